"""Host names of servers, looked up without making anybody wait.

The owner is a single-threaded ``selectors`` loop that forks, so neither a thread (a fork while it
holds the resolver's locks would leave them locked in the child) nor a blocking call (some resolvers
take half a minute to say no) will do: a forked child asks, and answers through a pipe. Whoever
reaps children reaps this one, too.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from uwgate.subscriptions.outbox import Log, SocketAddress, Troubles, numeric_address, resolve_now

_FRESH = 30.0  # seconds that an answer is used without asking again
_ANSWER = 4096


@dataclass(slots=True)
class _Name:
    literal: str = ""  # the last good answer; kept while later ones fail
    asked: float = float("-inf")
    reader: int = -1  # a question under way


class Lookups:
    """``address`` is the ``Resolve`` of an `outbox.Outbox`.

    ``selector``: registrations get ``key.data`` = a callable taking the event mask. ``answered``
    is called when a name has an address for the first time, or another one than before.
    """

    def __init__(
        self, selector: selectors.BaseSelector, log: Log, answered: Callable[[], None]
    ) -> None:
        self._selector = selector
        self._answered = answered
        self._troubles = Troubles(log)
        self._names: dict[str, _Name] = {}

    def address(self, host: str, port: int) -> SocketAddress | None:
        """The address of ``host`` as last heard; None until the first answer."""
        name = self._names.setdefault(host, _Name())
        if name.reader < 0 and time.monotonic() - name.asked >= _FRESH:
            self._ask(host, name)
        return numeric_address(name.literal, port) if name.literal else None

    def close(self) -> None:
        """Hear no more answers."""
        for name in self._names.values():
            self._hang_up(name)

    def _ask(self, host: str, name: _Name) -> None:
        name.asked = time.monotonic()
        try:
            name.reader = _fork_question(host)
        except OSError as error:
            self._troubles.report(f"looking up {host}", error.strerror or str(error))
            return
        self._selector.register(
            name.reader, selectors.EVENT_READ, lambda mask: self._hear(host, name)
        )

    def _hear(self, host: str, name: _Name) -> None:
        # One write of less than PIPE_BUF: it is there in one piece, or the child died.
        answer = os.read(name.reader, _ANSWER).decode("utf-8", "replace")
        self._hang_up(name)
        word, _, text = answer.partition(" ")
        what = f"looking up {host}"
        if word != "ok":
            self._troubles.report(what, text or "the resolver died")
            return
        self._troubles.over(what)
        if text != name.literal:
            name.literal = text
            self._answered()

    def _hang_up(self, name: _Name) -> None:
        if name.reader >= 0:
            self._selector.unregister(name.reader)
            os.close(name.reader)
            name.reader = -1


def _fork_question(host: str) -> int:
    """Fork a child that looks up ``host``; the descriptor on which its answer will be."""
    reader, writer = os.pipe()
    # For good in the child: its handlers would write into the parent's wake-up descriptor.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if os.fork() == 0:
            _answer(host, writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return reader


def _answer(host: str, writer: int) -> NoReturn:
    """The child: nothing of the parent's may stay open here while the resolver thinks."""
    try:
        for entry in os.listdir("/proc/self/fd"):
            if int(entry) not in (0, 1, 2, writer):
                with contextlib.suppress(OSError):
                    os.close(int(entry))
        try:
            text = f"ok {resolve_now(host, 0)[1][0]}"
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            text = f"error {reason}"
        os.write(writer, text.encode()[:_ANSWER])
    finally:
        os._exit(0)
