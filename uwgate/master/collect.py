"""Gathering the workers' counters for the stats listener and SIGUSR1.

One round at a time: every live worker is asked, and the round ends when all have answered or a
second has passed; then whoever asked meanwhile starts the next round together. So any number of
scrapers costs each worker at most one snapshot at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from uwgate.master.control import ControlError, Message
from uwgate.master.loop import Loop, Timer
from uwgate.master.slots import Slot, WorkerProcess
from uwgate.observe.snapshots import check_snapshot

PATIENCE = 1.0
"""Seconds that a round waits for a busy worker, whose previous snapshot is used after that."""

Answer = Callable[[list[Message]], None]


class Collector:
    """``slots`` yields every slot that counts now, ``changed`` is told of a channel with output."""

    def __init__(
        self,
        loop: Loop,
        slots: Callable[[], Iterable[Slot]],
        changed: Callable[[WorkerProcess], None],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._changed = changed
        self._round = 0
        self._missing: set[WorkerProcess] = set()
        self._asking: list[Answer] = []
        self._waiting: list[Answer] = []
        self._timer: Timer | None = None

    def collect(self, answer: Answer) -> None:
        """Call ``answer`` with a snapshot of every worker, taken after this call."""
        self._waiting.append(answer)
        if not self._asking:
            self._begin()

    def received(self, slot: Slot, process: WorkerProcess, message: Message) -> None:
        """A worker's ``stats`` message arrived. Raises ``ControlError`` if it is no such thing."""
        snapshot = message.get("snapshot")
        process.asked -= 1
        if process.asked < 0:
            raise ControlError("statistics that nobody asked for")
        try:
            check_snapshot(snapshot, slot.gateway)
        except (ValueError, RecursionError) as error:
            raise ControlError(str(error)) from None
        assert isinstance(snapshot, dict)
        process.snapshot = snapshot
        if message.get("round") == self._round:
            self.gone(process)

    def gone(self, process: WorkerProcess) -> None:
        """Wait no longer for this process."""
        self._missing.discard(process)
        if self._asking and not self._missing:
            self._finish()

    def snapshots(self) -> list[Message]:
        """The latest of every slot, as ``observe.counters.Snapshot`` describes it."""
        return [describe(slot) for slot in self._slots()]

    def _begin(self) -> None:
        self._round += 1
        self._asking, self._waiting = self._waiting, []
        self._missing = {
            slot.process
            for slot in self._slots()
            if slot.process is not None and slot.process.ready
        }
        for process in list(self._missing):
            if process.channel.send({"type": "stats", "round": self._round}):
                process.asked += 1
                self._changed(process)
            else:
                self._missing.discard(process)
        if self._missing:
            self._timer = self._loop.call_later(PATIENCE, self._finish)
        else:
            # Never from within ``collect``: its caller may not be ready for the answer.
            self._timer = self._loop.call_later(0, self._finish)

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        answers, self._asking = self._asking, []
        self._missing.clear()
        snapshots = self.snapshots()
        try:
            for answer in answers:
                answer(snapshots)
        finally:
            if self._waiting and not self._asking:
                self._begin()


def describe(slot: Slot) -> Message:
    """The slot's process (or its previous one, if it has none) as stats show it."""
    process = slot.process or slot.last
    respawns = max(0, slot.spawns - 1)
    if process is None:
        return {"id": slot.id, "pid": 0, "status": "dead", "respawn_count": respawns}
    snapshot: Message = dict(process.snapshot or {})
    # What the master knows itself it does not take from the worker.
    snapshot["id"] = slot.id
    snapshot["pid"] = process.pid
    snapshot["started"] = process.born
    snapshot["draining"] = process.draining or snapshot.get("draining") is True
    snapshot["respawn_count"] = respawns
    snapshot["status"] = _status(slot, snapshot)
    return snapshot


def _status(slot: Slot, snapshot: Message) -> str:
    if slot.process is None:
        return "dead"
    if not slot.process.ready:
        return "starting"
    gateways = snapshot.get("gateways")
    for gateway in gateways.values() if isinstance(gateways, dict) else ():
        tally = gateway.get("tally") if isinstance(gateway, dict) else None
        if isinstance(tally, dict) and tally.get("active_requests"):
            return "busy"
    return "idle"
