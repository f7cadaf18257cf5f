"""The Prometheus text exposition format, version 0.0.4, of the instance's totals.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based format). Every
name begins with ``uwgate_``; counters end in ``_total``; times are seconds and sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from uwgate.observe.backlog import Queue
from uwgate.observe.counters import NodeTotals, Sums, Totals, WorkerTotals
from uwgate.observe.stats import StatsFacts, clean

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[Labels, int | float]

# (name without prefix, key of Tally.snapshot, help)
_COUNTERS = (
    ("accepted_connections_total", "accepted", "Client connections accepted."),
    ("requests_total", "requests", "Requests whose head was understood."),
    ("retries_total", "retries", "Connection attempts and requests repeated on a node."),
    ("upstream_connects_total", "node_connects", "Connections made to nodes."),
    ("upstream_reuses_total", "node_reuses", "Requests sent on a pooled node connection."),
    ("tunnels_total", "tunnels", "Connections upgraded to a tunnel, WebSockets included."),
    ("received_bytes_total", "rx", "Bytes received from clients."),
    ("sent_bytes_total", "tx", "Bytes sent to clients."),
)
_GAUGES = (
    ("connections", "connections", "Client connections open now."),
    ("active_requests", "active_requests", "Requests in flight now."),
)
_NODE_COUNTERS = (
    ("node_hits_total", "hits", "Successful connects to the node and reuses of connections."),
    ("node_requests_total", "requests", "Requests sent to the node."),
    ("node_failures_total", "failures", "Failures of the node."),
    ("node_received_bytes_total", "tx", "Bytes read from the node."),
    ("node_sent_bytes_total", "rx", "Bytes written to the node."),
)
_NODE_GAUGES = (
    ("node_active_requests", "active", "Requests in flight at the node."),
    ("node_idle_connections", "idle", "Pooled connections to the node that are idle."),
    ("node_down_workers", "down", "Workers that skip the node because it failed; 0 = alive."),
)
_WORKER_COUNTERS: tuple[tuple[str, Callable[[WorkerTotals], int], str], ...] = (
    (
        "worker_requests_total",
        lambda w: w.sums.counters.get("requests", 0),
        "Requests of the worker, its former lives included.",
    ),
    (
        "worker_sent_bytes_total",
        lambda w: w.sums.counters.get("tx", 0),
        "Bytes sent to clients by the worker, its former lives included.",
    ),
)
_WORKER_GAUGES: tuple[tuple[str, Callable[[WorkerTotals], int], str], ...] = (
    (
        "worker_connections",
        lambda w: w.own.counters.get("connections", 0),
        "Client connections open in the worker.",
    ),
    (
        "worker_active_requests",
        lambda w: w.own.counters.get("active_requests", 0),
        "Requests in flight in the worker.",
    ),
    ("worker_accepting", lambda w: int(w.accepting), "1 while it takes new connections."),
    ("worker_resident_memory_bytes", lambda w: w.rss, "Resident memory of the worker."),
    ("worker_virtual_memory_bytes", lambda w: w.vsz, "Virtual memory of the worker."),
)


def render_metrics(totals: Totals, queues: list[Queue], facts: StatsFacts) -> bytes:
    """The exposition as UTF-8 bytes."""
    lines: list[str] = []
    for name, kind, text, samples in _families(totals, queues, facts):
        lines.append(f"# HELP uwgate_{name} {text}")
        lines.append(f"# TYPE uwgate_{name} {kind}")
        lines.extend(f"uwgate_{name}{_labels(labels)} {value}" for labels, value in samples)
    lines.append("")
    return "\n".join(lines).encode("utf-8", "replace")


def _families(
    totals: Totals, queues: list[Queue], facts: StatsFacts
) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    yield "build_info", "gauge", "1, labelled with the version.", [({"version": facts.version}, 1)]
    yield "start_time_seconds", "gauge", "When the instance started.", [({}, facts.started)]
    ready = int(not facts.not_ready())
    yield "ready", "gauge", "1 while requests are served, 0 while draining.", [({}, ready)]
    yield from _instance(totals.sums)
    yield from _listeners(queues)
    yield from _nodes(totals.sums)
    yield from _workers(totals.workers)


def _instance(sums: Sums) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    for name, key, text in _COUNTERS:
        yield name, "counter", text, [({}, sums.counters.get(key, 0))]
    seconds = sums.counters.get("time_micros", 0) / 1e6
    yield "request_seconds_total", "counter", "Sum of measured request durations.", [({}, seconds)]
    for name, key, text in _GAUGES:
        yield name, "gauge", text, [({}, sums.counters.get(key, 0))]
    yield (
        "responses_total",
        "counter",
        "Responses by status code, the gateway's own errors included.",
        [({"code": code}, count) for code, count in sorted(sums.responses.items())],
    )
    yield (
        "errors_total",
        "counter",
        "Requests and connections that failed, by reason.",
        [({"reason": word}, count) for word, count in sums.errors.items()],
    )


def _listeners(queues: list[Queue]) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    yield (
        "listen_queue",
        "gauge",
        "Connections waiting to be accepted (TCP only).",
        [({"listener": queue.name}, queue.waiting) for queue in queues],
    )
    yield (
        "listen_queue_limit",
        "gauge",
        "Most connections that may wait to be accepted (TCP only).",
        [({"listener": queue.name}, queue.limit) for queue in queues],
    )


def _nodes(sums: Sums) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    # A node may be listed twice (as fallback, with other modifiers): one series all the same.
    nodes: dict[tuple[str, str], list[NodeTotals]] = {}
    for key, node in sums.nodes.items():
        nodes.setdefault((key.name, key.protocol), []).append(node)
    for kind, table in (("counter", _NODE_COUNTERS), ("gauge", _NODE_GAUGES)):
        for name, attribute, text in table:
            yield (
                name,
                kind,
                text,
                [
                    ({"node": node, "protocol": protocol}, sum(getattr(n, attribute) for n in same))
                    for (node, protocol), same in nodes.items()
                ],
            )


def _workers(workers: list[WorkerTotals]) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    # Two lives of one worker id overlap during a reload: their sum is the worker.
    by_id: dict[int, list[WorkerTotals]] = {}
    for worker in workers:
        by_id.setdefault(worker.id, []).append(worker)
    for kind, table in (("counter", _WORKER_COUNTERS), ("gauge", _WORKER_GAUGES)):
        for name, value, text in table:
            yield (
                name,
                kind,
                text,
                [({"worker": str(i)}, sum(map(value, same))) for i, same in by_id.items()],
            )
    newest = {i: max(same, key=lambda w: w.started) for i, same in by_id.items()}
    yield (
        "worker_respawns_total",
        "counter",
        "How often the worker was started again.",
        [({"worker": str(i)}, worker.respawn_count) for i, worker in newest.items()],
    )
    yield (
        "worker_start_time_seconds",
        "gauge",
        "When the worker started.",
        [({"worker": str(i)}, worker.started) for i, worker in newest.items()],
    )


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    """Label values: backslash, double quote and line feed are the characters with a meaning."""
    return clean(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
