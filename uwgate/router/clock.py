"""One coarse clock and deadline wheel a loop; nothing else schedules per-request timers.

A timed object carries its deadline as a plain number and may move it as often as it likes: storing
it is all the data path pays. The wheel looks at an object when the bucket that it was put into
comes up, and puts it into a later one if its deadline has moved on meanwhile. Deadlines are
therefore kept to within a second or two, late rather than early.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Protocol

TICK = 1.0  # seconds


class Timed(Protocol):
    """What the wheel needs. ``deadline``: clock time in seconds, 0 = none. ``due``: the wheel's own
    note of the bucket the object is in (0 = none)."""

    deadline: float
    due: int

    def expired(self) -> None:
        """Called once the deadline has passed; the object is out of the wheel then."""
        ...


class Clock:
    """``now``: monotonic seconds, at most a tick old. ``date``: the Date field line for responses.

    ``on_tick`` is called with every new ``now``, before deadlines are looked at. Deadlines are
    ``now + limit``: ``now`` may lag by a tick, so an object is expired only when its
    deadline lies a whole tick back.
    """

    __slots__ = ("_buckets", "_handle", "_loop", "_on_tick", "date", "now")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_tick: Callable[[float], None] | None = None
    ) -> None:
        self._loop = loop
        self._on_tick = on_tick
        self._buckets: dict[int, set[Timed]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self.now = time.monotonic()
        self.date = _date()

    def start(self) -> None:
        """Begin ticking, once a second, until ``stop``."""
        self._handle = self._loop.call_later(TICK, self._tick)

    def stop(self) -> None:
        """Stop ticking; watched objects are forgotten."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._buckets.clear()

    def watch(self, item: Timed) -> None:
        """Make sure that ``item`` is looked at no later than a tick after its deadline.

        Needed when it is not in the wheel (``due`` 0) or its deadline moved before ``due``.
        """
        slot = max(int(item.deadline) + 2, int(self.now) + 1)
        if not item.due or slot < item.due:
            if item.due:
                self.forget(item)
            item.due = slot
            bucket = self._buckets.get(slot)
            if bucket is None:
                self._buckets[slot] = {item}
            else:
                bucket.add(item)

    def forget(self, item: Timed) -> None:
        """Take ``item`` out of the wheel, which would keep it alive until its bucket's turn."""
        bucket = self._buckets.get(item.due)
        if bucket is not None:
            bucket.discard(item)
        item.due = 0

    def _tick(self) -> None:
        self._handle = self._loop.call_later(TICK, self._tick)
        before, self.now = int(self.now), time.monotonic()
        self.date = _date()
        if self._on_tick is not None:
            self._on_tick(self.now)
        for slot in range(before, int(self.now) + 1):
            for item in self._buckets.pop(slot, ()):
                if item.due != slot:
                    continue  # forgotten by one that expired a moment ago
                item.due = 0
                if not item.deadline:
                    continue
                if item.deadline + TICK <= self.now:
                    self._expire(item)
                else:
                    self.watch(item)

    def _expire(self, item: Timed) -> None:
        try:
            item.expired()
        except Exception as error:  # one object's fault must not spare the others
            context = {"message": "deadline handler failed", "exception": error}
            self._loop.call_exception_handler(context)


def _date() -> bytes:
    return b"Date: " + formatdate(usegmt=True).encode("ascii") + b"\r\n"
