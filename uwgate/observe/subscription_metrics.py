"""Metrics of subscriptions: of each table, and of each node as far as there are not too many.

A time series a node is dear where there are thousands: at most ``NODES`` have their own. What the
workers counted for the others is summed by key, and beyond as many keys in one more sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from uwgate.observe.exposition import Family, Sample, label_text
from uwgate.observe.subscribed import STEP, Reports, Slots
from uwgate.observe.subscriptions import RegistryView, choose, last_seen
from uwgate.observe.sums import NodeTotals
from uwgate.subscriptions.table import Member

NODES = 1_000
"""Most nodes with series of their own."""

OTHER = "other"

_RESULTS = ("refreshed", "joined", "updated", "left")  # of a datagram
_EVENTS = ("expired", "marked", "revived", "acknowledged", "forwarded")

# (name without prefix, attribute of NodeTotals, help)
_COUNTERS = (
    ("requests_total", "requests", "Requests sent to the subscribed node."),
    ("failures_total", "failures", "Failures of the subscribed node."),
    ("received_bytes_total", "tx", "Bytes read from the subscribed node."),
    ("sent_bytes_total", "rx", "Bytes written to the subscribed node."),
)


def families(views: Sequence[RegistryView], reports: Reports) -> Iterator[Family | None]:
    """All of it, and None between steps of longer work; nothing without subscriptions."""
    if not views:
        return
    yield from _of_tables(views)
    rows = yield from _rows(views, reports)
    for name, attribute, text in _COUNTERS:
        samples: list[Sample] = [(row.labels, getattr(row.totals, attribute)) for row in rows]
        yield f"subscription_node_{name}", "counter", text, samples
    yield (
        "subscription_node_errors_total",
        "counter",
        "Errors of requests at the subscribed node, by reason.",
        [
            (f'{row.labels[:-1]},{label_text({"reason": word})[1:]}', number)
            for row in rows
            for word, number in (row.totals.errors or {}).items()
        ],
    )
    yield (
        "subscription_node_active",
        "gauge",
        "Requests in flight at the subscribed node.",
        [(row.labels, row.totals.active) for row in rows],
    )
    yield (
        "subscription_node_latency_seconds",
        "gauge",
        "Moving average of the time to the first byte of the response.",
        [(row.labels, row.totals.latency / 1e6) for row in rows if row.totals.measured],
    )
    yield from _of_members([(row.labels, row.member) for row in rows if row.member is not None])


def _of_tables(views: Sequence[RegistryView]) -> Iterator[Family]:
    def family(name: str, kind: str, text: str, value: Callable[[RegistryView], int]) -> Family:
        return name, kind, text, [({"gateway": view.name}, value(view)) for view in views]

    yield family(
        "subscription_keys", "gauge", "Keys that nodes serve.", lambda view: len(view.table.slots)
    )
    yield family(
        "subscription_nodes", "gauge", "Nodes of all keys.", lambda view: view.table.members
    )
    yield family(
        "subscription_received_total",
        "counter",
        "Datagrams received by subscription servers.",
        lambda view: view.counters.get("received", 0),
    )
    yield (
        "subscription_packets_total",
        "counter",
        "What became of the datagrams.",
        [
            ({"gateway": view.name, "result": result}, number)
            for view in views
            for result, number in (
                *((result, view.counters.get(result, 0)) for result in _RESULTS),
                ("rejected", sum(view.rejected.values())),
            )
        ],
    )
    yield (
        "subscription_events_total",
        "counter",
        "What else happened to subscribed nodes.",
        [
            ({"gateway": view.name, "event": event}, view.counters.get(event, 0))
            for view in views
            for event in _EVENTS
        ],
    )
    yield (
        "subscription_rejected_total",
        "counter",
        "Datagrams refused, by reason.",
        [
            ({"gateway": view.name, "reason": word}, number)
            for view in views
            for word, number in sorted(view.rejected.items())
        ],
    )


def _of_members(rows: Sequence[tuple[str, Member]]) -> Iterator[Family]:
    monotonic = time.monotonic()
    yield (
        "subscription_node_up",
        "gauge",
        "1, or 0 while the node gets no requests as it could not be reached.",
        [(labels, int(not member.marked)) for labels, member in rows],
    )
    yield (
        "subscription_node_weight",
        "gauge",
        "Announced weight.",
        [(labels, member.weight) for labels, member in rows],
    )
    yield (
        "subscription_node_last_seen_seconds",
        "gauge",
        "Time since the last announcement.",
        [(labels, last_seen(member, monotonic)) for labels, member in rows],
    )


@dataclass(slots=True)
class _Row:
    """The series of a node, or of the rest. ``labels``: ready-made text."""

    labels: str
    totals: NodeTotals = field(default_factory=NodeTotals)
    member: Member | None = None


def _rows(
    views: Sequence[RegistryView], reports: Reports
) -> Generator[None, None, list[_Row]]:
    groups = yield from choose(views, reports, NODES)
    shown: dict[tuple[str, str], set[str]] = {}  # gateway, key -> addresses
    rows = []
    for group in groups:
        gateway, key = group.view.name, group.slot.key
        addresses: set[str] = set()
        shown[gateway, key] = addresses
        for member, totals in group.rows():
            # A node of that name would have the series of the sum.
            if member.address != OTHER:
                addresses.add(member.address)
                rows.append(_Row(_labels(gateway, key, member.address), totals, member))
    yield
    rest = yield from _left_out(views, reports.slots, shown)
    others = yield from _rest(rest)
    return rows + others


def _left_out(
    views: Iterable[RegistryView], counted: Slots, shown: dict[tuple[str, str], set[str]]
) -> Generator[None, None, dict[tuple[str, str], NodeTotals]]:
    """Sums of the nodes without series: (gateway, key) -> totals."""
    rest: dict[tuple[str, str], NodeTotals] = {}
    nobody: set[str] = set()
    nodes = 0
    for view in views:
        for key, slot in counted.get(view.name, {}).items():
            addresses = shown.get((view.name, key), nobody)
            for address in slot:
                if address in addresses or view.table.find(key, address) is None:
                    continue
                rest.setdefault((view.name, key), NodeTotals()).join(slot.node(address))
                nodes += 1
                if nodes % STEP == 0:
                    yield
    return rest


def _rest(
    rest: dict[tuple[str, str], NodeTotals],
) -> Generator[None, None, list[_Row]]:
    keys = list(rest)
    if len(keys) > NODES:
        keys.sort(key=lambda each: rest[each].requests, reverse=True)
        yield
    rows = {each: _Row(_labels(*each, OTHER), rest[each]) for each in keys[:NODES]}
    for done, (gateway, key) in enumerate(keys[NODES:], 1):
        row = rows.get((gateway, OTHER))
        if row is None:
            row = rows[gateway, OTHER] = _Row(_labels(gateway, OTHER, OTHER))
        row.totals.join(rest[gateway, key])
        if done % STEP == 0:
            yield
    return list(rows.values())


def _labels(gateway: str, key: str, node: str) -> str:
    return label_text({"gateway": gateway, "key": key, "node": node})
