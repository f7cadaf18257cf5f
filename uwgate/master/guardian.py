"""Who serves on if a re-executed master cannot.

Before the master executes itself anew it forks: the copy, the *guardian*, knows and holds all that
the master did. It waits for the word of the new one. Once that has workers that serve, the guardian
ends. If the new master dies, or says that it has failed, the guardian is the master: it goes on
where it was, with the workers that never stopped.

Who started the instance knows it by its process id. A new master that fails therefore does not end:
it is the guardian's *anchor*, which passes signals on to it and ends when it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import MutableMapping

from uwgate.master.logs import escape
from uwgate.master.pids import parent_of
from uwgate.master.systemd import Notifier

VARIABLE = "UWGATE_GUARDIAN"

_FULFILLED = b"\0"
_LONGEST = 4096  # bytes of a reason

# What an anchor passes on.
_PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Guardian:
    """The old master's side. ``pid``: of the guardian, 0 in itself. ``orphaned``: in the guardian,
    that the process that was the master is gone, and will not be its anchor."""

    __slots__ = ("_reader", "_writer", "orphaned", "pid")

    def __init__(self) -> None:
        self.orphaned = False
        self._reader, self._writer = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self._reader)
            os.close(self._writer)
            raise
        if self.pid == 0:
            os.close(self._writer)
        else:
            os.close(self._reader)

    def announce(self, environ: MutableMapping[str, str]) -> None:
        """In the master: tell what it becomes of its guardian."""
        os.set_inheritable(self._writer, True)
        environ[VARIABLE] = f"{self._writer}:{self.pid}"

    def dismiss(self, environ: MutableMapping[str, str]) -> None:
        """In the master: the execution failed, and nothing has changed."""
        environ.pop(VARIABLE, None)
        os.close(self._writer)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def wait(self) -> str:
        """In the guardian: why the new master failed. Ends this process if it has not."""
        said = b""
        while len(said) < _LONGEST:
            piece = os.read(self._reader, _LONGEST)
            if not piece:
                break
            said += piece
            if said.startswith(_FULFILLED):
                os._exit(0)
        os.close(self._reader)
        # One that fails says why. Who our parent is would not tell: when the pipe of a process that
        # dies is closed, it still is.
        self.orphaned = not said
        return escape(said.decode("utf-8", "replace")) or "the new master died"


class Pledge:
    """The new master's side: it owes its guardian a word. ``open`` until that was given.
    ``reason``: of its failure; ``again``: another reload was ordered of it."""

    __slots__ = ("_fd", "_pid", "again", "open", "reason")

    def __init__(self, fd: int, pid: int) -> None:
        os.set_inheritable(fd, False)
        self._fd = fd
        self._pid = pid
        self.open = True
        self.reason = ""
        self.again = False

    def fulfil(self) -> None:
        """The new master serves: nobody needs the old one."""
        self._say(_FULFILLED)

    def fail(self, code: int) -> int:
        """The new master has failed, with that exit code, and let go of everything. Returns, with
        the exit code, when the guardian has ended."""
        reason = self.reason or f"the new master failed (exit code {code})"
        if self.again:
            # Its own signals are blocked until it knows.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGHUP)
        # Only from this process does systemd believe it (NotifyAccess=main).
        Notifier(os.environ).main_pid(self._pid)
        self._say(reason.encode("utf-8", "replace")[:_LONGEST])
        return anchor(self._pid)

    def _say(self, word: bytes) -> None:
        self.open = False
        with contextlib.suppress(OSError):
            os.write(self._fd, word)
        os.close(self._fd)


def pledge(environ: MutableMapping[str, str]) -> Pledge | None:
    """What this process owes, if it is a master that executed itself anew; removes the variable.

    None also for what cannot be: a guardian is our child. We would send it signals, and whoever can
    set our environment need not be allowed to send any to others.
    """
    fd, _, pid = environ.pop(VARIABLE, "").partition(":")
    if not (fd.isascii() and fd.isdecimal() and pid.isascii() and pid.isdecimal()):
        return None
    try:
        if parent_of(int(pid)) != os.getpid() or not stat.S_ISFIFO(os.fstat(int(fd)).st_mode):
            return None
        return Pledge(int(fd), int(pid))
    except (OSError, OverflowError):
        return None


def anchor(pid: int) -> int:
    """Be no more than a name for the process ``pid``, a child -> its exit code."""
    # Copies of listening sockets would keep addresses from being free, and channels from ending.
    os.closerange(3, max(os.sysconf("SC_OPEN_MAX"), 65536))
    waited: set[int] = {*_PASSED_ON, signal.SIGCHLD}
    for number in waited:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    while True:
        code = _reap(pid)
        if code is not None:
            return code
        number = signal.sigwait(waited)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _reap(pid: int) -> int | None:
    """Bury all children that have ended; the exit code of ``pid`` if it is among them."""
    code = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1 if code is None else code
        if ended == 0:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
