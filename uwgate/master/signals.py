"""Signals as bytes on a descriptor, so that the master handles them between two events.

Python's C-level handler writes the number of each signal into the socket given to
``signal.set_wakeup_fd``; the Python-level handlers do nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from types import FrameType

# What the master reacts to; everything else keeps its disposition.
HANDLED = (
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# What a worker ignores: its master acts on these and tells it what to do. SIGINT and SIGTSTP are
# among them because a terminal sends them to the whole process group. SIGUSR2 means something to
# it later (``heartbeat.DUMP``).
IGNORED_BY_WORKERS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGPIPE,
    signal.SIGTSTP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class SignalPipe:
    """The readable end (``fileno``) polls readable once a signal of ``handled`` arrived."""

    __slots__ = ("_handled", "_reader", "_writer")

    def __init__(self, handled: Sequence[signal.Signals] = HANDLED) -> None:
        self._handled = handled
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The buffer may fill with a flood of one signal; the ones in it say enough.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in handled:
            signal.signal(number, _nothing)

    def fileno(self) -> int:
        """Descriptor for a selector."""
        return self._reader.fileno()

    def read(self) -> list[int]:
        """Signal numbers that arrived, in order, each as often as it was noticed."""
        numbers: list[int] = []
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while chunk := self._reader.recv(4096):
                numbers.extend(chunk)
        return numbers

    def again(self) -> None:
        """Make what has arrived, and was not read, pending again: the signals are blocked, and this
        process will be another program when they are not. Children are looked for anyway."""
        for number in dict.fromkeys(self.read()):
            if number != signal.SIGCHLD:
                os.kill(os.getpid(), number)

    def close(self) -> None:
        """Ignore the signals from now on, and close both ends.

        Ignore: the process has ended its work, and an impatient second SIGTERM must not turn its
        exit code into a death by signal.
        """
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Hold the handled signals back, so that none hits a child before ``enter_worker``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def enter_worker() -> None:
    """In a new child: forget the master's handlers, ignore what the master handles, unblock.

    SIGTERM and SIGQUIT end the worker until it installs handlers of its own.
    """
    signal.set_wakeup_fd(-1)
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    for number in IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor says it all; a handler has to exist for it to be written."""
