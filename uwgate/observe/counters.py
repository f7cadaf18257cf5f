"""Worker snapshots summed into totals of the instance that never go backwards.

A worker counts from zero when it starts; a respawn would therefore make every sum fall. The
``Ledger`` keeps the last snapshot of each worker it has seen and folds it into a carried-over sum
when that worker is gone. What a killed worker counted after its last snapshot is lost.

Counters and gauges are told apart: a counter (requests, bytes) outlives its worker, a gauge
(connections open now) does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Snapshot = dict[str, Any]
"""What a worker sends to the master, with ``status`` and ``respawn_count`` added there:
``{"id": int, "pid": int, "started": epoch seconds, "draining": bool, "rss": bytes, "vsz": bytes,
"status": "idle"|"busy"|"starting"|"dead", "respawn_count": int, "gateways": {"http":
{"tally": Tally.snapshot(), "listeners": [str], "nodes": [{"name": str, …}]}}}``. A worker that
never answered has no ``gateways`` (or no such key)."""

GAUGES = frozenset({"connections", "active_requests"})
NODE_COUNTERS = ("hits", "requests", "failures", "tx", "rx")
NODE_GAUGES = ("active", "idle")

# How many departed workers are remembered to refuse a snapshot that arrives after its fold.
_GONE_LIMIT = 256


class NodeKey(NamedTuple):
    """What tells one node from another within an instance."""

    gateway: str
    name: str
    protocol: str
    modifier1: int
    modifier2: int
    fallback: int


class _Incarnation(NamedTuple):
    """One life of a worker: the pid is left out because a dead worker may be listed without."""

    worker: int
    started: float


@dataclass(slots=True)
class NodeTotals:
    """One node over all workers. ``tx``: bytes read from it, ``rx``: bytes written to it.

    ``grace``: epoch seconds of the latest failure that a live worker still honours, 0 = alive in
    all of them. ``down``: how many live workers skip the node now.
    """

    hits: int = 0
    requests: int = 0
    failures: int = 0
    tx: int = 0
    rx: int = 0
    active: int = 0
    idle: int = 0
    weight: int = 1
    grace: int = 0
    down: int = 0


@dataclass(slots=True)
class Sums:
    """Sums over snapshots: plain name -> number dictionaries, nodes apart.

    ``counters`` holds whatever integers ``Tally.snapshot`` has, the gauges included.
    """

    counters: dict[str, int] = field(default_factory=dict)
    responses: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    nodes: dict[NodeKey, NodeTotals] = field(default_factory=dict)

    def add(self, snapshot: Snapshot, *, gauges: bool) -> None:
        """Add one worker's snapshot; without ``gauges`` only what outlives the worker."""
        for name, gateway in _gateways(snapshot):
            tally = _mapping(gateway, "tally")
            for key, value in tally.items():
                if isinstance(value, int) and (gauges or key not in GAUGES):
                    self.counters[key] = self.counters.get(key, 0) + value
            _add_each(self.responses, _mapping(tally, "responses"))
            _add_each(self.errors, _mapping(tally, "errors"))
            for node in gateway.get("nodes", ()):
                self._add_node(name, node, gauges)

    def _add_node(self, gateway: str, node: Snapshot, gauges: bool) -> None:
        key = NodeKey(
            gateway,
            str(node.get("name", "")),
            str(node.get("protocol", "")),
            number(node, "modifier1"),
            number(node, "modifier2"),
            number(node, "fallback"),
        )
        totals = self.nodes.get(key)
        if totals is None:
            totals = self.nodes[key] = NodeTotals()
        totals.weight = number(node, "weight") or 1
        for name in NODE_COUNTERS:
            setattr(totals, name, getattr(totals, name) + number(node, name))
        if not gauges:
            return
        for name in NODE_GAUGES:
            setattr(totals, name, getattr(totals, name) + number(node, name))
        grace = number(node, "grace")
        totals.grace = max(totals.grace, grace)
        totals.down += 1 if grace else 0

    def carry(self, other: Sums) -> None:
        """Add the counters that ``other`` carried over; nodes only where listed here."""
        _add_each(self.counters, other.counters)
        _add_each(self.responses, other.responses)
        _add_each(self.errors, other.errors)
        for key, totals in self.nodes.items():
            old = other.nodes.get(key)
            if old is not None:
                for name in NODE_COUNTERS:
                    setattr(totals, name, getattr(totals, name) + getattr(old, name))


@dataclass(slots=True)
class WorkerTotals:
    """One worker process. ``sums`` spans all lives of this worker id, ``own`` only this one."""

    id: int
    pid: int
    status: str
    draining: bool
    started: float
    respawn_count: int
    rss: int
    vsz: int
    own: Sums
    sums: Sums

    @property
    def accepting(self) -> bool:
        """Whether it takes new connections."""
        return self.status in ("idle", "busy") and not self.draining


@dataclass(slots=True)
class Totals:
    """The whole instance: ``listeners`` is gateway -> names of its listening sockets."""

    sums: Sums
    workers: list[WorkerTotals]
    listeners: dict[str, list[str]]


class Ledger:
    """Remembers what departed workers counted. One per instance, in the master."""

    __slots__ = ("_carried", "_carried_by_worker", "_gone", "_last", "_listeners")

    def __init__(self) -> None:
        self._carried = Sums()
        self._carried_by_worker: dict[int, Sums] = {}
        self._last: dict[_Incarnation, Snapshot] = {}
        self._gone: dict[_Incarnation, None] = {}
        self._listeners: dict[str, list[str]] = {}

    def observe(self, snapshot: Snapshot) -> None:
        """Keep this as the worker's latest; one without gateways changes nothing."""
        life = _incarnation(snapshot)
        if life in self._gone or not snapshot.get("gateways"):
            return
        self._last[life] = snapshot
        for name, gateway in _gateways(snapshot):
            self._listeners[name] = [str(text) for text in gateway.get("listeners", ())]

    def retire(self, snapshot: Snapshot) -> None:
        """The last words of a worker that ends: from now on it only counts as carried over.

        Optional: a worker missing from ``totals``' list is retired with its latest snapshot.
        """
        self.observe(snapshot)
        self._fold(_incarnation(snapshot))

    def totals(self, snapshots: Iterable[Snapshot]) -> Totals:
        """Sum the given workers (all that exist now) and everything carried over."""
        present = list(snapshots)
        for snapshot in present:
            self.observe(snapshot)
        here = {_incarnation(s) for s in present}
        for life in [life for life in self._last if life not in here]:
            self._fold(life)

        total = Sums()
        for snapshot in present:
            self._add_latest(total, snapshot)
        self._settle_nodes(total)
        total.carry(self._carried)
        return Totals(total, self._worker_totals(present), dict(self._listeners))

    def _add_latest(self, sums: Sums, snapshot: Snapshot) -> None:
        last = self._last.get(_incarnation(snapshot))
        if last is not None:
            sums.add(last, gauges=snapshot.get("status") != "dead")

    def _fold(self, life: _Incarnation) -> None:
        last = self._last.pop(life, None)
        if last is None:
            return
        self._gone[life] = None
        while len(self._gone) > _GONE_LIMIT:
            del self._gone[next(iter(self._gone))]
        self._carried.add(last, gauges=False)
        self._carried_by_worker.setdefault(life.worker, Sums()).add(last, gauges=False)
        self._carried_by_worker[life.worker].nodes.clear()

    def _settle_nodes(self, total: Sums) -> None:
        """Nodes that no worker knows any more are dropped, lest dynamic ones pile up for ever.

        While no worker has answered yet (a respawn just happened) the old list stays.
        """
        if total.nodes:
            for key in [key for key in self._carried.nodes if key not in total.nodes]:
                del self._carried.nodes[key]
        else:
            for key, old in self._carried.nodes.items():
                total.nodes[key] = NodeTotals(weight=old.weight)

    def _worker_totals(self, present: list[Snapshot]) -> list[WorkerTotals]:
        # Two lives of one id overlap during a reload: the younger one inherits the past.
        heir = {number(s, "id"): s for s in sorted(present, key=_started)}
        rows = []
        for snapshot in present:
            own = Sums()
            self._add_latest(own, snapshot)
            sums = Sums()
            sums.carry(own)
            worker = number(snapshot, "id")
            if heir[worker] is snapshot and worker in self._carried_by_worker:
                sums.carry(self._carried_by_worker[worker])
            rows.append(_worker(snapshot, own, sums))
        return rows


def number(values: Snapshot, key: str) -> int:
    """``values[key]`` as an integer; 0 if it is missing or not a number."""
    value = values.get(key, 0)
    return int(value) if isinstance(value, (int, float)) else 0


def _worker(snapshot: Snapshot, own: Sums, sums: Sums) -> WorkerTotals:
    active = own.counters.get("active_requests", 0)
    return WorkerTotals(
        id=number(snapshot, "id"),
        pid=number(snapshot, "pid"),
        status=str(snapshot.get("status") or ("busy" if active else "idle")),
        draining=bool(snapshot.get("draining")),
        started=_started(snapshot),
        respawn_count=number(snapshot, "respawn_count"),
        rss=number(snapshot, "rss"),
        vsz=number(snapshot, "vsz"),
        own=own,
        sums=sums,
    )


def _started(snapshot: Snapshot) -> float:
    return float(snapshot.get("started") or 0.0)


def _incarnation(snapshot: Snapshot) -> _Incarnation:
    return _Incarnation(number(snapshot, "id"), _started(snapshot))


def _mapping(values: Snapshot, key: str) -> Snapshot:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _gateways(snapshot: Snapshot) -> Iterator[tuple[str, Snapshot]]:
    for name, gateway in _mapping(snapshot, "gateways").items():
        if isinstance(gateway, dict):
            yield name, gateway


def _add_each(into: dict[str, int], values: dict[str, int]) -> None:
    for key, value in values.items():
        into[key] = into.get(key, 0) + value
