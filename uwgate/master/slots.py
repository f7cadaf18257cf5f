"""Generations of worker slots.

A generation is one configuration at work: for each gateway a row of slots, each with the sockets
that belong to its number and at most one process at a time. A reload makes a new generation whose
slot i gets the sockets of slot i before it, while the workers of the old one drain.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from uwgate.config.settings import ListenerSettings, Settings
from uwgate.master import pids
from uwgate.master.control import Allowance, Channel, Message
from uwgate.master.loop import Timer
from uwgate.master.sockets import Bound
from uwgate.master.worker import Listener


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A live worker. ``born``: epoch seconds (it tells two lives of a slot apart in stats).

    ``cell``: its place in memory that all share. ``child``: of this process; the death of another
    is noticed by ``pidfd`` (`pids.hold`), or if there is none by the end of its channel.
    """

    pid: int
    channel: Channel
    cell: int = 0
    born: float = field(default_factory=time.time)
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    draining: bool = False
    child: bool = True
    stuck: bool = False  # on its way to be killed for not answering
    snapshot: Message | None = None  # its latest
    pidfd: int = -1
    relieved: float = 0.0  # monotonic: since when its mercy runs
    asked: int = 4  # for statistics; one who ends says them by itself, and others may have asked
    allowance: Allowance = field(default_factory=Allowance)
    ended: bool = False

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        if not self.ended:
            pids.send(self.pid, self.pidfd, number)

    def bury(self) -> None:
        """It has ended: its number may be another's soon."""
        self.ended = True
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.pidfd)
            self.pidfd = -1


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one worker. ``id`` counts over all gateways, ``number`` within one, from 1.

    ``heir``: the slot that took the place of this one; once that serves, this one is relieved.
    """

    gateway: str
    id: int
    number: int
    listeners: tuple[Listener, ...]
    process: WorkerProcess | None = None
    last: WorkerProcess | None = None  # the previous one; its counts are still asked for
    spawns: int = 0
    early_deaths: int = 0  # in a row, before the worker had served for a while
    hopeless: bool = False  # it said that trying again does not help
    respawn: Timer | None = None
    heir: Slot | None = None
    mercy: Timer | None = None  # when a relieved one is killed

    @property
    def name(self) -> str:
        """``uwgate http 1``: as uWSGI names its gateways in the log."""
        return f"uwgate {self.gateway} {self.number}"


@dataclass(slots=True, eq=False)
class Generation:
    """One configuration and its slots. ``served``: one of its workers became ready."""

    number: int
    settings: Settings
    slots: list[Slot]
    served: bool = False

    @property
    def alive(self) -> list[WorkerProcess]:
        """All its processes."""
        return processes(self.slots)

    @property
    def complete(self) -> bool:
        """Whether every slot has a worker that serves."""
        return all(slot.process is not None and slot.process.ready for slot in self.slots)


def processes(slots: Sequence[Slot]) -> list[WorkerProcess]:
    """Those of the slots that have one."""
    return [slot.process for slot in slots if slot.process is not None]


def make_slots(
    gateway: str, workers: int, listening: list[tuple[ListenerSettings, Bound]], first_id: int = 1
) -> list[Slot]:
    """Slots of one gateway: slot i gets socket i of every address, or several of them."""
    return [
        Slot(
            gateway,
            first_id + index,
            index + 1,
            tuple(
                (listener, sock)
                for listener, bound in listening
                for sock in bound.for_worker(index, workers)
            ),
        )
        for index in range(workers)
    ]
