"""What a contender holds while it is reloaded, and when a new configuration answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reload_client import DEADLINE, Failure, Score, connect

POLL = 0.01  # seconds between questions for the configuration
_PSS = re.compile(r"^Pss:\s+([0-9]+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one moment: bytes of PSS and descriptors, of the master and of all processes."""

    when: float
    processes: int
    master_pss: int
    all_pss: int
    master_fds: int
    all_fds: int

    @property
    def worker_pss(self) -> float:
        """Mean of the processes that are not the master; 0.0 without any."""
        others = self.processes - 1
        return (self.all_pss - self.master_pss) / others if others > 0 else 0.0


def sample(master: int, pids: list[int]) -> Sample:
    """Look into /proc; processes that end meanwhile count as nothing."""
    size = {pid: pss(pid) for pid in pids}
    count = {pid: descriptors(pid) for pid in pids}
    return Sample(
        time.monotonic(),
        len(pids),
        size.get(master, 0),
        sum(size.values()),
        count.get(master, 0),
        sum(count.values()),
    )


def pss(pid: int) -> int:
    """Proportional set size in bytes (proc(5), smaps_rollup); 0 if it is gone."""
    with contextlib.suppress(OSError):
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        if found is not None:
            return int(found[1]) * 1024
    return 0


def descriptors(pid: int) -> int:
    """How many are open; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def busy() -> tuple[float, float]:
    """(seconds that all processors worked, that they could have), since boot (proc(5), stat)."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - fields[3] - fields[4]) / ticks, sum(fields) / ticks


@dataclass(slots=True)
class Markers:
    """Asks for ``/marker`` on new connections. ``seen``: begin, end, number of the answer."""

    port: int
    host: str
    score: Score
    seen: list[tuple[float, float, int]] = field(default_factory=list)

    async def poll(self) -> None:
        """Until cancelled."""
        while True:
            with self.score.judging("marker"):
                await self.ask()
            await asyncio.sleep(POLL)

    async def ask(self) -> None:
        """Once; `Failure`, TimeoutError."""
        begun, wire = time.monotonic(), None
        try:
            async with asyncio.timeout(DEADLINE):
                wire = await connect(self.port, None, self.host)
                more = "Connection: close\r\n\r\n"
                wire.write(f"GET /marker HTTP/1.1\r\nHost: {self.host}\r\n{more}".encode())
                response = await wire.response()
        finally:
            if wire is not None:
                wire.close()
        if response.status != 200 or not response.body.strip().isdigit():
            raise Failure("status", f"{response.status} {response.body[:60]!r}")
        self.seen.append((begun, time.monotonic(), int(response.body)))
        self.score.right("marker", begun)

    async def reached(self, number: int, patience: float) -> bool:
        """Wait until that configuration, or a later one, has answered; whether it has."""
        deadline = time.monotonic() + patience
        place = 0
        while time.monotonic() < deadline:
            for _, _, found in self.seen[place:]:
                if found >= number:
                    return True
            place = len(self.seen)
            await asyncio.sleep(POLL / 2)
        return False
