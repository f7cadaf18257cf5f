"""Children: started with clean signals in a session of their own, and buried whoever they are."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence

Ended = Callable[[int], None]
"""Gets the exit code: 0 to 255, or minus the signal."""

# Python ignores these; a program expects the default.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Processes:
    """The children of this process. ``handled``: signals whose handlers a child must not keep."""

    def __init__(self, handled: Sequence[signal.Signals]) -> None:
        self._defaults = {*handled, *_IGNORED_BY_PYTHON}
        self._ended: dict[int, Ended] = {}

    def start(self, argv: Sequence[str], ended: Ended, *, silent: bool = False) -> int:
        """Start ``argv`` in a new session (a terminal's Ctrl-C does not reach it); its pid.

        ``silent``: with ``/dev/null`` as its standard streams. ``ended`` is called by `reap`.
        Raises OSError if it cannot be started.
        """
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            os.environ,
            file_actions=null if silent else [],
            setsid=True,
            setsigmask=[],
            setsigdef=self._defaults,
        )
        self._ended[pid] = ended
        return pid

    def reap(self) -> None:
        """Bury the dead (SIGCHLD): ours, and orphans that came to us as process 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._ended.pop(pid, None)
            if ended is not None:
                ended(os.waitstatus_to_exitcode(status))

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a child that was not buried yet.

        Raises PermissionError if it has become another user, and we are not root.
        """
        if pid in self._ended:
            os.kill(pid, number)

    @staticmethod
    def signal_group(pid: int, number: int) -> None:
        """Send a signal to all that is left of a child's process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


def cause(code: int) -> str:
    """What an exit code means, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
