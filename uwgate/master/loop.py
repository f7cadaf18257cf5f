"""The master's event loop: a selector and timers; no asyncio, because the master forks.

Every registration's ``key.data`` is a callable ``(mask: int) -> None``.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import socket
import time
from collections.abc import Callable

from uwgate.master.logs import MainLog

Callback = Callable[[], None]


class Timer:
    """A pending call; ``cancel`` forgets it."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Do not call; harmless if it was called already."""
        self.callback = None


class Loop:
    """Turns events and elapsed time into calls; an error in one call does not end the loop."""

    def __init__(self, log: MainLog) -> None:
        self.selector = selectors.DefaultSelector()
        self._log = log
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call ``callback`` once, ``seconds`` from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def run_once(self, longest: float | None = None) -> None:
        """Wait for the next event or timer (``longest`` seconds at most), handle what is due."""
        for key, mask in self.selector.select(self._patience(longest)):
            # A handler before this one may have closed it.
            if self.selector.get_map().get(key.fd) is not key:
                continue
            try:
                key.data(mask)
            except Exception as error:
                self._log.crash("event handler failed", error)
                self._discard(key)
        self._run_timers()

    def close(self) -> None:
        """Close the selector; in a forked child this leaves the parent's registrations alone."""
        self.selector.close()

    def _patience(self, longest: float | None) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return longest
        rest = max(0.0, self._timers[0][0] - time.monotonic())
        return rest if longest is None else min(rest, longest)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                continue
            try:
                callback()
            except Exception as error:
                self._log.crash("timer failed", error)

    def _discard(self, key: selectors.SelectorKey) -> None:
        """Let go of what failed: left in place it would be ready, and fail, for ever."""
        with contextlib.suppress(KeyError, ValueError, OSError):
            self.selector.unregister(key.fileobj)
        with contextlib.suppress(OSError):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            elif isinstance(key.fileobj, int):
                os.close(key.fileobj)
