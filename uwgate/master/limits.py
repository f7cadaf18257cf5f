"""Once a second: workers that are stuck, too large or too old, and an instance that nobody uses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from uwgate.config.settings_process import LifeSettings
from uwgate.master.control import Message
from uwgate.master.crew import Crew
from uwgate.master.heartbeat import Heartbeats, dump_and_kill
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.slots import WorkerProcess

_TICK = 1.0
# Seconds between two looks at the size of a worker.
_LOOK = 5.0


class Limits:
    """Watches while ``start``ed. ``idle`` is told when there was no request for so long."""

    def __init__(
        self,
        settings: LifeSettings,
        crew: Crew,
        loop: Loop,
        log: MainLog,
        heartbeats: Heartbeats | None,
        idle: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._crew = crew
        self._loop = loop
        self._log = log
        self._heartbeats = heartbeats
        self._idle = idle
        self._looked = 0.0
        self._busy = time.monotonic()
        self._requests = -1
        self._stopped = False

    def start(self) -> None:
        """Begin, if there is anything to watch."""
        settings = self._settings
        if settings.harakiri or settings.max_lifetime or settings.reload_on_rss or settings.idle:
            self._loop.call_later(_TICK, self._tick)

    def stop(self) -> None:
        """The instance ends."""
        self._stopped = True

    def _tick(self) -> None:
        if self._stopped:
            return
        self._loop.call_later(_TICK, self._tick)
        now = time.monotonic()
        self._kill_stuck(now)
        if now - self._looked >= _LOOK or self._settings.max_lifetime:
            self._looked = now
            self._renew(now)
        if self._settings.idle and self._crew.slots_of_now:
            self._crew.collector.collect(self._collected)

    # -- workers -------------------------------------------------------------------------------

    def _kill_stuck(self, now: float) -> None:
        if self._heartbeats is None:
            return
        for slot in self._crew.slots:
            process = slot.process
            if process is None or not process.ready or process.stuck:
                continue
            if self._heartbeats.late(process.cell, now, self._settings.harakiri):
                process.stuck = True
                dump_and_kill(self._loop, self._log, slot.name, process.pid, process.send)

    def _renew(self, now: float) -> None:
        """One at a time, and only while the others are all there."""
        if not self._crew.complete or self._crew.retired.waiting:
            return
        for slot in self._crew.slots_of_now:
            reason = slot.process and self._reason(slot.process, now)
            if reason:
                self._log.line(f"{slot.name} is replaced: {reason}")
                self._crew.renew(slot)
                return

    def _reason(self, process: WorkerProcess, now: float) -> str:
        settings = self._settings
        age = now - process.since
        if settings.max_lifetime and age >= settings.max_lifetime:
            return f"max-worker-lifetime ({age:.0f} s)"
        if settings.reload_on_rss and age >= settings.min_lifetime:
            size = resident(process.pid)
            if size > settings.reload_on_rss:
                return f"reload-on-rss ({size >> 20} MB)"
        return ""

    # -- requests ------------------------------------------------------------------------------

    def _collected(self, snapshots: list[Message]) -> None:
        requests = active = 0
        for snapshot in snapshots:
            for tally in _tallies(snapshot):
                requests += _number(tally, "requests")
                active += _number(tally, "active_requests")
        now = time.monotonic()
        if active or requests != self._requests:
            self._requests = requests
            self._busy = now
        elif now - self._busy >= self._settings.idle and self._crew.complete:
            self._busy = now
            self._idle()


def resident(pid: int) -> int:
    """Bytes of a process in memory; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _tallies(snapshot: Message) -> list[Message]:
    gateways = snapshot.get("gateways")
    if not isinstance(gateways, dict):
        return []
    parts = (gateway.get("tally") for gateway in gateways.values() if isinstance(gateway, dict))
    return [tally for tally in parts if isinstance(tally, dict)]


def _number(tally: Message, name: str) -> int:
    value = tally.get(name)
    return value if isinstance(value, int) else 0
