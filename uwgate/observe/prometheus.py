"""The instance's totals as Prometheus metrics.

Every name begins with ``uwgate_``; counters end in ``_total``; times are seconds and sizes bytes.
Where an instance has several gateways, their numbers are told apart by the label ``gateway``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from uwgate.observe.backlog import Queue
from uwgate.observe.counters import Totals, WorkerTotals
from uwgate.observe.exposition import Family, Labels, Sample, render
from uwgate.observe.http2_metrics import families as http2_families
from uwgate.observe.static_metrics import families as static_families
from uwgate.observe.stats import StatsFacts, shown_caches
from uwgate.observe.subscription_metrics import families as subscription_families
from uwgate.observe.sums import NodeTotals, Sums, Tallies
from uwgate.observe.tls_metrics import families as tls_families

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


def render_metrics(
    totals: Totals, queues: list[Queue], facts: StatsFacts
) -> Iterator[bytes | None]:
    """The exposition as UTF-8, in pieces, and None where the next one takes longer."""
    return render(_families(totals, queues, facts))


def _families(totals: Totals, queues: list[Queue], facts: StatsFacts) -> Iterator[Family | None]:
    yield "build_info", "gauge", "1, labelled with the version.", [({"version": facts.version}, 1)]
    yield "start_time_seconds", "gauge", "When the instance started.", [({}, facts.started)]
    ready = int(not facts.not_ready())
    yield "ready", "gauge", "1 while requests are served, 0 while draining.", [({}, ready)]
    yield "cheap", "gauge", "1 while a gateway does not listen, having no node.", [
        ({}, int(totals.cheap))
    ]
    yield from _gateways(totals.sums)
    yield from _listeners(queues)
    yield from _nodes(totals.sums)
    yield from _workers(totals.workers)
    yield from http2_families(totals.sums)
    yield from static_families(totals.sums)
    yield from tls_families(totals.sums, shown_caches(facts, totals.sums))
    yield from subscription_families(facts.subscriptions(), totals.subscribed)


def _gateways(sums: Sums) -> Iterator[Family]:
    parts: list[tuple[Labels, Tallies]] = [({}, sums)]
    if len(sums.gateways) > 1:
        parts = [({"gateway": name}, tallies) for name, tallies in sums.gateways.items()]

    def counted(key: str, unit: int = 1) -> list[Sample]:
        rows = [(labels, tallies.counters.get(key, 0)) for labels, tallies in parts]
        return [(labels, value if unit == 1 else value / unit) for labels, value in rows]

    for name, key, text in _COUNTERS:
        yield name, "counter", text, counted(key)
    text = "Sum of measured request durations."
    yield "request_seconds_total", "counter", text, counted("time_micros", 1_000_000)
    for name, key, text in _GAUGES:
        yield name, "gauge", text, counted(key)
    yield (
        "responses_total",
        "counter",
        "Responses by status code, the gateway's own errors included.",
        [
            ({**labels, "code": code}, number)
            for labels, tallies in parts
            for code, number in sorted(tallies.responses.items())
        ],
    )
    yield (
        "errors_total",
        "counter",
        "Requests and connections that failed, by reason.",
        [
            ({**labels, "reason": word}, number)
            for labels, tallies in parts
            for word, number in tallies.errors.items()
        ],
    )


def _listeners(queues: list[Queue]) -> Iterator[Family]:
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


def _nodes(sums: Sums) -> Iterator[Family]:
    # A node may be listed twice (as fallback, with other modifiers): one series all the same.
    several = len(sums.gateways) > 1
    nodes: dict[tuple[str, str, str], list[NodeTotals]] = {}
    for key, node in sums.nodes.items():
        gateway = key.gateway if several else ""
        nodes.setdefault((gateway, key.name, key.protocol), []).append(node)
    for kind, table in (("counter", _NODE_COUNTERS), ("gauge", _NODE_GAUGES)):
        for name, attribute, text in table:
            yield (
                name,
                kind,
                text,
                [
                    (_node_labels(*names), sum(getattr(node, attribute) for node in same))
                    for names, same in nodes.items()
                ],
            )


def _node_labels(gateway: str, node: str, protocol: str) -> Labels:
    labels = {"node": node, "protocol": protocol}
    return {"gateway": gateway, **labels} if gateway else labels


def _workers(workers: list[WorkerTotals]) -> Iterator[Family]:
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
