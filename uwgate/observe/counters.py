"""Worker snapshots summed into totals of the instance that never go backwards.

A worker counts from zero when it starts; a respawn would therefore make every sum fall. The
``Ledger`` keeps the last snapshot of each worker it has seen and folds it into a carried-over sum
when that worker is gone. What a killed worker counted after its last snapshot is lost.

Subscribed nodes come and go by the thousand: what is remembered of one is dropped once the table of
record has it no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from uwgate.observe.subscribed import Departed, Reports, Slots
from uwgate.observe.sums import NodeTotals, Snapshot, Sums, gateways, mapping, number
from uwgate.subscriptions.table import Table

# How many departed workers are remembered to refuse a snapshot that arrives after its fold.
_GONE_LIMIT = 256
# How many nodes are carried over where nobody ever asks for totals.
_NODES_LIMIT = 10_000


class _Incarnation(NamedTuple):
    """One life of a worker: the pid is left out because a dead worker may be listed without."""

    worker: int
    started: float


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
    """The whole instance: ``listeners`` is gateway -> names of its listening sockets.

    ``subscribed``: what was counted of subscribed keys, some of which may have left the table.
    ``cheap``: a live worker has stopped listening, as its gateway has no node (uWSGI's ``cheap``).
    """

    sums: Sums
    workers: list[WorkerTotals]
    listeners: dict[str, list[str]]
    subscribed: Reports
    cheap: bool


class Ledger:
    """Remembers what departed workers counted. One per instance, in the master."""

    __slots__ = ("_carried", "_carried_by_worker", "_departed", "_gone", "_last", "_listeners")

    def __init__(self) -> None:
        self._carried = Sums()
        self._departed = Departed()
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
        for name, gateway in gateways(snapshot):
            self._listeners[name] = [str(text) for text in gateway.get("listeners", ())]

    def retire(self, snapshot: Snapshot) -> None:
        """The last words of a worker that ends: from now on it only counts as carried over.

        Optional: a worker missing from ``totals``' list is retired with its latest snapshot.
        """
        self.observe(snapshot)
        self._fold(_incarnation(snapshot))

    def state(self) -> dict[str, Any]:
        """What departed workers counted, as JSON, for the ledger of the next master. What live ones
        have counted they will tell it themselves."""
        return {
            "carried": self._carried.as_snapshot(),
            "departed": self._departed.as_snapshot(),
            "workers": {
                str(worker): sums.as_snapshot()
                for worker, sums in self._carried_by_worker.items()
            },
        }

    def restore(self, state: object) -> None:
        """Go on from the ``state`` of the ledger before; what cannot be used is left out."""
        values = state if isinstance(state, dict) else {}
        self._carried.add(mapping(values, "carried"), gauges=False)
        self._departed.add(mapping(values, "departed"))
        for worker, snapshot in mapping(values, "workers").items():
            if worker.isdecimal() and isinstance(snapshot, dict):
                sums = self._carried_by_worker.setdefault(int(worker), Sums())
                sums.add(snapshot, gauges=False)

    def totals(
        self, snapshots: Iterable[Snapshot], tables: Mapping[str, Table] | None = None
    ) -> Totals:
        """Sum the given workers (all that exist now) and everything carried over.

        ``tables``: gateway -> its subscriptions; what was carried over of nodes that are not in
        there is forgotten.
        """
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
        workers = self._worker_totals(present)
        live = [
            self._last[_incarnation(snapshot)]
            for snapshot in present
            if snapshot.get("status") != "dead" and _incarnation(snapshot) in self._last
        ]
        cheap = any(number(part, "cheap") for last in live for _name, part in gateways(last))
        subscribed = Reports(self._departed_nodes(present, tables), live)
        return Totals(total, workers, dict(self._listeners), subscribed, cheap)

    def _departed_nodes(
        self, present: list[Snapshot], tables: Mapping[str, Table] | None
    ) -> Slots:
        """What workers counted of subscribed nodes that do not live any more."""
        slots: Slots = {}
        if tables is not None:
            self._departed.forget(tables)
        self._departed.add_to(slots)
        dead = Departed()  # not replaced yet
        for snapshot in present:
            if snapshot.get("status") == "dead" and _incarnation(snapshot) in self._last:
                dead.add(self._last[_incarnation(snapshot)])
        dead.add_to(slots)
        return slots

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
        nodes = self._carried.nodes
        while len(nodes) > _NODES_LIMIT:
            del nodes[next(iter(nodes))]
        self._departed.add(last)
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
                total.nodes[key] = NodeTotals(weight=old.weight, backup=old.backup)

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
