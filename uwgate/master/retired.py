"""Workers that are no longer needed: they finish what is under way, and go.

A worker is relieved once its successor serves, not before: it stops accepting, finishes its
requests, and answers the next one of each idle connection with ``Connection: close``. For all that
it has ``reload-mercy`` seconds.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.slots import Slot, WorkerProcess, processes

# Seconds on top of the mercy, for a worker's own clean-up, before it is killed.
_SLACK = 2.0
# So many relieved ones for each that serves may wait for their clients to come back. An instance
# that is reloaded every second would else have sixty times its workers.
_PATIENT = 4


class Retired:
    """``slots``: those whose process is still there. ``changed`` is told of a channel with output,
    ``kill`` kills."""

    def __init__(
        self,
        loop: Loop,
        log: MainLog,
        mercy: float,
        changed: Callable[[WorkerProcess], None],
        kill: Callable[[WorkerProcess], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._mercy = mercy
        self._changed = changed
        self._kill = kill
        self._relieved: list[Slot] = []  # oldest first
        self.slots: list[Slot] = []

    def add(self, slot: Slot) -> None:
        """Its process will not be replaced. It serves until it is relieved."""
        self.slots.append(slot)

    def displace(self, slot: Slot) -> Slot:
        """Make room in a slot: its process goes on in a place of its own, until the next one in
        the slot serves."""
        old = Slot(slot.gateway, slot.id, slot.number, (), slot.process, heir=slot)
        old.spawns = slot.spawns
        slot.last, slot.process = slot.process, None
        self.add(old)
        return old

    def relieve(self, heir: Slot | None = None, serving: int = 1) -> None:
        """Those that this slot took the place of, or all. ``serving``: how many workers do."""
        for slot in list(self.slots):
            if slot not in self._relieved and (heir is None or slot.heir is heir):
                self._relieve(slot)
        # Oldest first, also of those that a master before has relieved.
        self._relieved.sort(key=lambda slot: slot.process.since if slot.process else 0.0)
        patient = max(_PATIENT * serving, 1)
        for slot in self._relieved[:-patient]:
            self._send(slot, {"type": "hurry"})

    def _relieve(self, slot: Slot) -> None:
        if slot.process is None:
            return
        self._relieved.append(slot)
        slot.process.draining = True
        now = time.monotonic()
        # A master before may have relieved it already.
        slot.process.relieved = slot.process.relieved or now
        mercy = max(0.0, slot.process.relieved + self._mercy - now)
        self._send(slot, {"type": "drain", "gently": True, "limit": mercy})
        slot.mercy = self._loop.call_later(mercy + _SLACK, functools.partial(self._end, slot))

    def dismiss(self, slot: Slot) -> None:
        """No mercy: cut what it has under way."""
        if slot.process is not None:
            self._relieved.append(slot)
            slot.process.draining = True
            self._send(slot, {"type": "stop"})
            slot.mercy = self._loop.call_later(1.0, functools.partial(self._end, slot))

    def gone(self, slot: Slot) -> None:
        """Its process has ended."""
        if slot.mercy is not None:
            slot.mercy.cancel()
        for each in (self.slots, self._relieved):
            if slot in each:
                each.remove(slot)

    @property
    def alive(self) -> list[WorkerProcess]:
        """All their processes."""
        return processes(self.slots)

    @property
    def waiting(self) -> bool:
        """Whether some still serve in full."""
        return len(self._relieved) < len(self.slots)

    def _send(self, slot: Slot, message: dict[str, object]) -> None:
        if slot.process is not None:
            slot.process.channel.send(message)
            self._changed(slot.process)

    def _end(self, slot: Slot) -> None:
        if slot.process is not None:
            self._log.line(f"{slot.name} (pid: {slot.process.pid}) does not end: killed")
            self._kill(slot.process)
