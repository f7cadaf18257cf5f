"""Subscribed keys and nodes as the statistics show them: the master's table, the workers' numbers.

A table may have a million nodes, and the master has other things to do: what is shown is bounded,
chosen without a walk through the table, and made in steps. Where not all fit, the nodes that
workers told of come first (the marked ones, then the busiest), then whatever the table begins with.

Keys of slots and nodes follow uWSGI (2.0, and 2.1 for ``algo``, ``vassal``, ``backup``, ``proto``);
``gateway`` and what is behind ``proto`` are our own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Protocol

from uwgate.config.settings import SubscriptionSettings
from uwgate.observe.subscribed import STEP, Reports, Slots, SlotTotals
from uwgate.observe.sums import NodeTotals
from uwgate.subscriptions.table import Member, Slot, Table, certificate

JSON_NODES = 10_000
"""Most nodes in the document."""

_HASH_BUCKETS = 65535  # of uWSGI's table
_NO_SLOT = SlotTotals()
_MARKED = 1 << 62  # more than requests will ever be


class RegistryView(Protocol):
    """What the statistics read of a gateway's ``subscriptions.admission.Registry``."""

    @property
    def name(self) -> str:
        """The gateway."""
        ...

    @property
    def settings(self) -> SubscriptionSettings:
        """For the default algorithm and slow start."""
        ...

    @property
    def table(self) -> Table:
        """The table of record."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """What became of the datagrams, and what happened to nodes."""
        ...

    @property
    def rejected(self) -> Mapping[str, int]:
        """Refused datagrams by reason."""
        ...

    @property
    def servers(self) -> Sequence[str]:
        """Names of the datagram sockets."""
        ...

    def last_check(self, member: Member) -> int:
        """When the member announced itself last, epoch seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of one key that are shown, in the table's order, with the workers' numbers."""

    view: RegistryView
    slot: Slot
    totals: SlotTotals
    members: Sequence[Member]

    def rows(self) -> Iterator[tuple[Member, NodeTotals]]:
        """Each node and what the workers say of it."""
        node = self.totals.node
        for member in self.members:
            yield member, node(member.address)


def tables(views: Iterable[RegistryView]) -> dict[str, Table]:
    """Gateway -> table."""
    return {view.name: view.table for view in views}


def count(views: Iterable[RegistryView]) -> int:
    """How many nodes there are."""
    return sum(view.table.members for view in views)


Steps = Generator[None, None, "list[Group]"]
"""Yields between two steps of a longer work, and returns its result."""


def choose(views: Sequence[RegistryView], reports: Reports, limit: int) -> Steps:
    """At most ``limit`` nodes of all gateways, by gateway and key."""
    while not reports.step():
        yield
    everything = count(views) <= limit
    picked = {} if everything else (yield from _pick(views, reports.slots, limit))
    groups = []
    for view in views:
        totals = reports.slots.get(view.name, {})
        slots = view.table.slots.values() if everything else picked[view.name]
        for slot in sorted(slots, key=lambda slot: slot.key):
            members = list(slot) if everything else picked[view.name][slot]
            groups.append(Group(view, slot, totals.get(slot.key, _NO_SLOT), members))
    return groups


def _pick(
    views: Sequence[RegistryView], counted: Slots, limit: int
) -> Generator[None, None, dict[str, dict[Slot, list[Member]]]]:
    """Of too many nodes those worth showing: gateway -> slot -> members."""
    told: list[tuple[int, str, Member]] = []
    for node in _told(views, counted):
        told.append(node)
        if len(told) % STEP == 0:
            yield
    if len(told) > limit:
        told.sort(key=itemgetter(0), reverse=True)
    picked: dict[str, dict[Slot, list[Member]]] = {view.name: {} for view in views}
    chosen = set()
    for _rank, name, member in told[:limit]:
        picked[name].setdefault(member.slot, []).append(member)
        chosen.add(member)
    yield
    # Each turn shows a node or skips a chosen one: no more than twice ``limit`` steps.
    for view in views:
        room = limit - len(chosen)
        others = (member for member in view.table if member not in chosen)
        for member in list(islice(others, room)):
            picked[view.name].setdefault(member.slot, []).append(member)
            chosen.add(member)
    return picked


def _told(
    views: Iterable[RegistryView], counted: Slots
) -> Iterator[tuple[int, str, Member]]:
    """Nodes that workers know and that are still in the table: rank, gateway, node."""
    for view in views:
        find = view.table.find
        for key, slot in counted.get(view.name, {}).items():
            for address in slot:
                member = find(key, address)
                if member is not None:
                    rank = slot.requests(address) + (_MARKED if member.marked else 0)
                    yield rank, view.name, member


def state(view: RegistryView, member: Member, now: float) -> str:
    """``marked``: gets no requests, it could not be reached; ``slow-start``: not all of its share
    yet; else ``up``. ``now``: epoch seconds."""
    if member.marked:
        return "marked"
    return "slow-start" if member.joined + view.settings.slow_start > now else "up"


def last_seen(member: Member, monotonic: float) -> int:
    """Seconds since the node announced itself."""
    return max(0, int(monotonic) - member.seen)


def djb33x(key: bytes) -> int:
    """The hash of uWSGI's table: 32 bits, before it is reduced to a bucket."""
    value = 5381
    for byte in key:
        value = (value * 33 ^ byte) & 0xFFFFFFFF
    return value


def subscriptions_json(
    groups: Iterable[Group], *, minified: bool, certified: str = ""
) -> Iterator[str]:
    """The array ``subscriptions`` as ASCII text, in pieces of a slot's beginning, a node, …

    ``certified``: name of the gateway that loads certificates of announcements, if one does.
    On one line, or a line for each slot and node: ``json.dumps`` with indentation takes the slow
    encoder.
    """
    now, monotonic = time.time(), time.monotonic()
    encode = json.JSONEncoder(separators=(",", ":")).encode
    line, end = ("", "") if minified else ("\n\t\t", "\n\t")
    inner = line and line + "\t"
    yield "["
    comma = ""
    for group in groups:
        yield f'{comma}{line}{encode(_slot(group, certified))[:-1]},"nodes":['
        comma = ""
        for member, totals in group.rows():
            yield f"{comma}{inner}{encode(_node(group.view, member, totals, now, monotonic))}"
            comma = ","
        yield f"{line}]}}"
        comma = ","
    yield f"{end}]" if comma else "]"


def _slot(group: Group, certified: str) -> dict[str, object]:
    slot = group.slot
    enabled = group.view.name == certified and any(
        certificate(member.extra) for member in group.members
    )
    return {
        "key": plain(slot.key),
        "hash": djb33x(slot.key.encode("utf-8", "surrogateescape")) % _HASH_BUCKETS,
        "hits": group.totals.hits,
        "sni_enabled": int(enabled),
        "algo": slot.algo or group.view.settings.algo,
        "gateway": group.view.name,
    }


def _node(
    view: RegistryView, member: Member, totals: NodeTotals, now: float, monotonic: float
) -> dict[str, object]:
    kind, extra = member.kind, member.extra
    return {
        "name": plain(member.address),
        "modifier1": kind.modifier1,
        "modifier2": kind.modifier2,
        "last_check": view.last_check(member),
        "pid": extra.pid,
        "uid": extra.uid,
        "gid": extra.gid,
        "requests": totals.hits,
        "last_requests": totals.last_requests,
        "tx": totals.tx,
        "rx": totals.rx,
        "cores": member.cores,
        "load": member.load,
        "weight": member.weight,
        "wrr": totals.credits,
        "ref": totals.active,
        "failcnt": member.failures,
        "death_mark": int(member.marked),
        "vassal": plain(extra.vassal),
        "backup": kind.backup,
        "proto": kind.protocol,
        "state": state(view, member, now),
        "in_flight": totals.active,
        "idle": totals.idle,
        "latency_ms": round(totals.latency / 1000, 3),
        "failures": totals.failures,
        "errors": totals.errors or {},
        "last_seen": last_seen(member, monotonic),
        "joined": member.joined,
        "sender": plain(member.sender),
    }


def counters(view: RegistryView) -> dict[str, object]:
    """One gateway's part of ``subscription_counters``."""
    table = view.table
    return {
        "keys": len(table.slots),
        "nodes": table.members,
        "servers": [plain(name) for name in view.servers],
        **view.counters,
        "rejected": dict(sorted(view.rejected.items())),
    }


def plain(text: str) -> str:
    """Text without lone surrogates (undecodable bytes of a path), which many parsers refuse."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
