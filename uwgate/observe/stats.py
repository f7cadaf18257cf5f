"""The stats document: uWSGI's router and master JSON shapes in one, summed over workers.

Key names and meanings follow uWSGI 2.0 (router stats, and the ``workers`` array of the master
stats so that ``uwsgitop`` works); ``counters``, ``responses``, ``errors`` and a few node and worker
keys are our own. Unlike uWSGI's, the document is always valid JSON: all text is escaped, and
nothing but ASCII is written. Subscriptions are ``observe.subscriptions``' part of it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from uwgate import __version__
from uwgate.observe.backlog import Queue
from uwgate.observe.counters import Totals, WorkerTotals
from uwgate.observe.subscriptions import (
    JSON_NODES,
    Group,
    RegistryView,
    choose,
    count,
    counters,
    plain,
    subscriptions_json,
)
from uwgate.observe.sums import NodeKey, NodeTotals, Sums, Tallies, TlsTotals
from uwgate.router.errors import Failure

# What uWSGI would call a read or a write error of a request.
READ_ERRORS = (Failure.HEAD_TIMEOUT, Failure.BODY_TIMEOUT)
WRITE_ERRORS = (Failure.CLIENT_CLOSED, Failure.CLIENT_TIMEOUT)

Cache = dict[str, Any]
"""A cache as uWSGI shows it: ``SharedCache.snapshot()``. Where it exchanges changes with other
machines also ``sync``, counts of datagrams: ``received``, ``refused`` from the master, to which
``sent`` and ``failed`` of the workers are added here."""


@dataclass(frozen=True, slots=True)
class StatsFacts:
    """What the master knows and the workers do not.

    ``started``: epoch seconds. ``not_ready``: "" while requests are served, else a short reason
    ("draining", "no worker"). ``sockets``: all listening traffic sockets, for their queues.
    ``subscriptions``: the registry of each gateway that has one. ``caches``: as they are now.
    ``https``: names of the sockets with TLS. ``minified``, ``http``: options ``stats-minified`` and
    ``stats-http``.
    """

    started: float
    not_ready: Callable[[], str]
    sockets: Callable[[], Sequence[socket.socket]]
    minified: bool = False
    http: bool = False
    version: str = __version__
    subscriptions: Callable[[], Sequence[RegistryView]] = tuple
    caches: Callable[[], Sequence[Cache]] = tuple
    https: Collection[str] = ()


_PIECE = 65536  # bytes after which the rest of a document is for later


def render_json(totals: Totals, queues: list[Queue], facts: StatsFacts) -> Iterator[bytes | None]:
    """The document as ASCII, indented by tabs, or on one line if ``facts.minified``.

    In pieces, and None where more work is to be done before the next one: a step takes no more than
    some milliseconds, however many nodes there are.
    """
    groups = yield from choose(facts.subscriptions(), totals.subscribed, JSON_NODES)
    line = "" if facts.minified else "\n\t"
    text = "{"
    comma = ""
    for name, value in document(totals, queues, facts, groups).items():
        text += f"{comma}{line}{json.dumps(name)}:"
        comma = ","
        if isinstance(value, Iterator):
            for piece in value:
                text += piece
                if len(text) >= _PIECE:
                    yield text.encode("ascii")
                    text = ""
        elif facts.minified:
            text += json.dumps(value, separators=(",", ":"))
        else:
            # No text holds a raw line feed, so that each one begins a line.
            text += json.dumps(value, indent="\t", separators=(",", ":")).replace("\n", "\n\t")
    text += "}" if facts.minified else "\n}\n"
    yield text.encode("ascii")


def document(
    totals: Totals, queues: list[Queue], facts: StatsFacts, groups: list[Group]
) -> dict[str, object]:
    """The document as plain values, keys in uWSGI's order. pid, uid, gid, cwd: this process.

    ``groups``: the subscribed nodes, which are not values but pieces of JSON text.
    """
    sums = totals.sums
    views = facts.subscriptions()
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
        "cwd": plain(_cwd()),
        "active_sessions": sums.counters.get("connections", 0),
    }
    servers = {view.name: view.servers for view in views}
    for gateway, names in totals.listeners.items():
        # uWSGI lists the datagram sockets, too.
        value[gateway] = [plain(name) for name in (*names, *servers.get(gateway, ()))]
    if sums.nodes:
        value["static_nodes"] = [_node(key, node) for key, node in sums.nodes.items()]
    if views:
        certified = "http" if sums.tls is not None else ""
        value["subscriptions"] = subscriptions_json(
            groups, minified=facts.minified, certified=certified
        )
        value["subscriptions_shown"] = sum(len(group.members) for group in groups)
        value["subscriptions_total"] = count(views)
        value["subscription_counters"] = {view.name: counters(view) for view in views}
    value["cheap"] = int(totals.cheap)
    value["started"] = int(facts.started)
    caches = shown_caches(facts, sums)
    if caches:
        value["caches"] = caches
    spoken = dict.fromkeys(totals.listeners.get("fastrouter", ()), "uwsgi")
    spoken |= dict.fromkeys(facts.https, "https")
    value["sockets"] = [_socket(queue, spoken.get(queue.name, "http")) for queue in queues]
    value |= _tallies(sums)
    if len(sums.gateways) > 1:
        value["gateways"] = {name: _tallies(each) for name, each in sums.gateways.items()}
    if sums.tls is not None:
        value["tls"] = _handshakes(sums) | _tls(sums.tls)
    if sums.counters.get("http2_requests") or sums.counters.get("http2_connections"):
        value["http2"] = _multiplexed("http2", sums, sums.resets, sums.goaways)
    if sums.counters.get("spdy_requests") or sums.counters.get("spdy_connections"):
        value["spdy"] = _multiplexed("spdy", sums, sums.spdy_resets, sums.spdy_goaways)
    if sums.static is not None:
        value["static"] = dict(sums.static)
    value["workers"] = [_worker(worker) for worker in totals.workers]
    return value


def _tallies(tallies: Tallies) -> dict[str, object]:
    return {
        "counters": dict(tallies.counters),
        "responses": dict(sorted(tallies.responses.items())),
        "errors": dict(tallies.errors),
    }


def _multiplexed(
    protocol: str, sums: Sums, resets: dict[str, int], goaways: dict[str, int]
) -> dict[str, object]:
    return {
        **{
            name: sums.counters.get(f"{protocol}_{name}", 0)
            for name in ("connections", "streams", "requests", "delayed")
        },
        "resets": dict(sorted(resets.items())),
        "goaways": dict(sorted(goaways.items())),
    }


def shown_caches(facts: StatsFacts, sums: Sums) -> list[Cache]:
    """All caches, with what the workers have sent of them."""
    caches = []
    for cache in facts.caches():
        if "sync" in cache:
            cache["sync"] |= {"sent": 0, "failed": 0} | sums.sync.get(cache["name"], {})
        caches.append(cache)
    return caches


def _handshakes(sums: Sums) -> dict[str, object]:
    return {
        "handshakes": dict(sorted(sums.handshakes.items())),
        "resumed": dict(sorted(sums.resumed.items())),
        "handshaking": sums.tls.handshaking if sums.tls is not None else 0,
    }


def _tls(tls: TlsTotals) -> dict[str, object]:
    value: dict[str, object] = {
        "contexts": tls.contexts,
        "certificates": [
            {"source": key.source, "name": plain(key.name), "not_after": end}
            for key, end in tls.expiring()
        ],
    }
    if tls.store:
        value["store"] = dict(tls.store)
    return value


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory was removed under us
        return ""


def _node(key: NodeKey, node: NodeTotals) -> dict[str, object]:
    return {
        "name": plain(key.name),
        "hits": node.hits,
        "grace": node.grace,
        "gateway": key.gateway,
        "protocol": key.protocol,
        "modifier1": key.modifier1,
        "modifier2": key.modifier2,
        "fallback": key.fallback,
        "weight": node.weight,
        "backup": node.backup,
        "requests": node.requests,
        "failures": node.failures,
        "down": node.down,
        "active": node.active,
        "idle": node.idle,
        "latency_ms": round(node.latency / 1000, 3),
        "errors": node.errors or {},
        "tx": node.tx,
        "rx": node.rx,
    }


def _socket(queue: Queue, protocol: str) -> dict[str, object]:
    return {
        "name": plain(queue.name),
        "proto": protocol,
        "queue": queue.waiting,
        "max_queue": queue.limit,
        "shared": 0,
        "can_offload": 0,
    }


def _worker(worker: WorkerTotals) -> dict[str, object]:
    counters = worker.sums.counters
    requests = counters.get("requests", 0)
    micros = counters.get("time_micros", 0)
    value: dict[str, object] = {
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
    if worker.sums.tls is not None:
        value["tls"] = _handshakes(worker.sums)
    return value


def _core(sums: Sums, own: Sums) -> dict[str, object]:
    static = sums.static or {}
    return {
        "id": 0,
        "requests": sums.counters.get("requests", 0),
        "static_requests": static.get("requests", 0),
        "routed_requests": 0,
        "offloaded_requests": static.get("offloaded", 0),
        "write_errors": sum(sums.errors.get(failure.word, 0) for failure in WRITE_ERRORS),
        "read_errors": sum(sums.errors.get(failure.word, 0) for failure in READ_ERRORS),
        "in_request": int(own.counters.get("active_requests", 0) > 0),
        "vars": [],
        "req_info": {},
    }
