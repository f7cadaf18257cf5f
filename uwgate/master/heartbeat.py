"""Whether the event loop of a worker still turns.

Each worker writes the time into a place of its own, in memory that it shares with the master: a
message would wait in a queue, and say of a loop that has just come back that it is well.

The next master of a reload has the same memory, and the workers of before go on beating in it.

Layout: 256 × f64, seconds of ``time.monotonic()``, which the processes of a machine share; 0 where
nobody has written yet.
"""

from __future__ import annotations

import functools
import mmap
import signal
from collections.abc import Callable

from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.tls.shared import keeps_size, memory_file

CELLS = 256
INTERVAL = 0.5
"""Seconds between two beats."""

DUMP = signal.SIGUSR2
"""Has a worker write its stacks to the log, whatever it is busy with (``faulthandler``)."""

_DUMPING = 0.3  # seconds that it gets for that
# A master that has not looked for so many seconds was stopped itself (a container that is paused, a
# machine without memory), and its workers most likely, too: they get their time anew.
_OWN_STALL = 3.0


class Heartbeats:
    """To be made before the first fork. ``cell``: the place of a process, below CELLS. ``handed``:
    the descriptor (``file``) of the master before. Raises OSError."""

    __slots__ = ("_awake", "_cells", "_looked", "file")

    def __init__(self, handed: int = -1) -> None:
        size = CELLS * 8
        if not keeps_size(handed, size):
            handed = memory_file("uwgate-heartbeats", size)
        self.file = handed
        self._cells = memoryview(mmap.mmap(handed, size)).cast("d")
        self._looked = 0.0
        self._awake = 0.0  # since when the master has been looking without a break

    def beat(self, cell: int, now: float) -> None:
        """Of the process in that cell; 0 when another one gets it."""
        self._cells[cell] = now

    def late(self, cell: int, now: float, limit: float) -> bool:
        """Whether the process has beaten, and not for ``limit`` seconds in which it could have. To
        be asked once a second."""
        if now - self._looked > _OWN_STALL:
            self._awake = now
        self._looked = now
        last = self._cells[cell]
        if not 0 <= last <= now:
            last = self._awake  # no clock has said that: written by whoever wants to look alive
        return bool(limit and last and now - max(last, self._awake) > limit + INTERVAL)


def dump_and_kill(
    loop: Loop, log: MainLog, name: str, pid: int, send: Callable[[signal.Signals], None]
) -> None:
    """Have a worker that is stuck write where, then kill it, both with ``send``."""
    log.line(f"*** HARAKIRI ON GATEWAY {name} (pid: {pid}) ***")
    send(DUMP)
    loop.call_later(_DUMPING, functools.partial(send, signal.SIGKILL))
