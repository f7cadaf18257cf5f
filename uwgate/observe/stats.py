"""The stats document: uWSGI's router and master JSON shapes in one, summed over workers.

Key names and meanings follow uWSGI 2.0 (router stats, and the ``workers`` array of the master
stats so that ``uwsgitop`` works); ``counters``, ``responses``, ``errors`` and a few node and worker
keys are our own. Unlike uWSGI's, the document is always valid JSON: all text is escaped, and
nothing but ASCII is written.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uwgate import __version__
from uwgate.observe.backlog import Queue
from uwgate.observe.counters import NodeKey, NodeTotals, Sums, Totals, WorkerTotals
from uwgate.router.errors import Failure

# What uWSGI would call a read or a write error of a request.
READ_ERRORS = (Failure.HEAD_TIMEOUT, Failure.BODY_TIMEOUT)
WRITE_ERRORS = (Failure.CLIENT_CLOSED, Failure.CLIENT_TIMEOUT)


@dataclass(frozen=True, slots=True)
class StatsFacts:
    """What the master knows and the workers do not.

    ``started``: epoch seconds. ``not_ready``: "" while requests are served, else a short reason
    ("draining", "no worker"). ``sockets``: all listening traffic sockets, for their queues.
    ``minified``, ``http``: options ``stats-minified`` and ``stats-http``.
    """

    started: float
    not_ready: Callable[[], str]
    sockets: Callable[[], Sequence[socket.socket]]
    minified: bool = False
    http: bool = False
    version: str = __version__


def render_json(totals: Totals, queues: list[Queue], facts: StatsFacts) -> bytes:
    """The document as ASCII bytes: indented by tabs, or on one line if ``facts.minified``."""
    value = document(totals, queues, facts)
    if facts.minified:
        text = json.dumps(value, separators=(",", ":"))
    else:
        text = json.dumps(value, indent="\t", separators=(",", ":")) + "\n"
    return text.encode("ascii")


def document(totals: Totals, queues: list[Queue], facts: StatsFacts) -> dict[str, object]:
    """The document as plain values, keys in uWSGI's order. pid, uid, gid, cwd: this process."""
    sums = totals.sums
    waiting = sum(queue.waiting for queue in queues)
    value: dict[str, object] = {
        "version": facts.version,
        "listen_queue": waiting,
        "listen_queue_errors": 0,
        "signal_queue": 0,
        "load": waiting,
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "cwd": clean(_cwd()),
        "active_sessions": sums.counters.get("connections", 0),
    }
    for gateway, names in totals.listeners.items():
        value[gateway] = [clean(name) for name in names]
    if sums.nodes:
        value["static_nodes"] = [_node(key, node) for key, node in sums.nodes.items()]
    value["cheap"] = 0
    value["started"] = int(facts.started)
    value["sockets"] = [_socket(queue) for queue in queues]
    value["counters"] = dict(sums.counters)
    value["responses"] = dict(sorted(sums.responses.items()))
    value["errors"] = dict(sums.errors)
    value["workers"] = [_worker(worker) for worker in totals.workers]
    return value


def clean(text: str) -> str:
    """Text without lone surrogates (undecodable bytes of a path), which many parsers refuse."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory was removed under us
        return ""


def _node(key: NodeKey, node: NodeTotals) -> dict[str, object]:
    return {
        "name": clean(key.name),
        "hits": node.hits,
        "grace": node.grace,
        "gateway": key.gateway,
        "protocol": key.protocol,
        "modifier1": key.modifier1,
        "modifier2": key.modifier2,
        "fallback": key.fallback,
        "weight": node.weight,
        "requests": node.requests,
        "failures": node.failures,
        "down": node.down,
        "active": node.active,
        "idle": node.idle,
        "tx": node.tx,
        "rx": node.rx,
    }


def _socket(queue: Queue) -> dict[str, object]:
    return {
        "name": clean(queue.name),
        "proto": "http",
        "queue": queue.waiting,
        "max_queue": queue.limit,
        "shared": 0,
        "can_offload": 0,
    }


def _worker(worker: WorkerTotals) -> dict[str, object]:
    counters = worker.sums.counters
    requests = counters.get("requests", 0)
    micros = counters.get("time_micros", 0)
    return {
        "id": worker.id,
        "pid": worker.pid,
        "accepting": int(worker.accepting),
        "requests": requests,
        "delta_requests": worker.own.counters.get("requests", 0),
        "exceptions": worker.sums.errors.get(Failure.INTERNAL.word, 0),
        "harakiri_count": 0,
        "signals": 0,
        "signal_queue": 0,
        "status": worker.status,
        "rss": worker.rss,
        "vsz": worker.vsz,
        "running_time": micros,
        "last_spawn": int(worker.started),
        "respawn_count": worker.respawn_count,
        "tx": counters.get("tx", 0),
        "avg_rt": micros // requests if requests else 0,
        "draining": int(worker.draining),
        "connections": worker.own.counters.get("connections", 0),
        "active_requests": worker.own.counters.get("active_requests", 0),
        "apps": [],
        "cores": [_core(worker.sums, worker.own)],
    }


def _core(sums: Sums, own: Sums) -> dict[str, object]:
    return {
        "id": 0,
        "requests": sums.counters.get("requests", 0),
        "static_requests": 0,
        "routed_requests": 0,
        "offloaded_requests": 0,
        "write_errors": sum(sums.errors.get(failure.word, 0) for failure in WRITE_ERRORS),
        "read_errors": sum(sums.errors.get(failure.word, 0) for failure in READ_ERRORS),
        "in_request": int(own.counters.get("active_requests", 0) > 0),
        "vars": [],
        "req_info": {},
    }
