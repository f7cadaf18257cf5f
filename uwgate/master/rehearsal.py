"""A reload is tried in a child before anything changes.

The child is what the master would become: the same program, executed anew, with the configuration
as it is now and the same inherited sockets. It does everything up to the first worker, and says
with its exit code whether it could. What it writes is what the operator gets to see.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import selectors
import signal
import sys
from collections.abc import Callable

from uwgate.master import handover, privileges, signals
from uwgate.master.handover import Handover, Mode
from uwgate.master.loop import Loop, Timer
from uwgate.master.systemd import stand_beside

PATIENCE = 60.0
"""Seconds that a rehearsal may take."""

_MOST = 1 << 16  # bytes of what it writes
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4} \[\d+\] ")

_SLOW = "uwgate: error: it took too long and was killed\n"

Done = Callable[[bool, list[str]], None]


class Program:
    """How this program was started, so that it can be executed again. To be made at the start,
    before the directory changes."""

    __slots__ = ("_directory", "arguments", "path")

    def __init__(self) -> None:
        # The name of the interpreter as it was given: in a virtual environment a link, whose
        # place says where the packages are, and whose target may be another one by now.
        self.path = sys.executable
        self.arguments = [sys.executable, *sys.orig_argv[1:]]
        self._directory = os.getcwd()

    def execute(self, environ: dict[str, str]) -> OSError:
        """Replace this process by the program; returns only why that could not be."""
        # By descriptor: the directory may have been removed.
        before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(self._directory)
            os.execve(self.path, self.arguments, environ)
        except OSError as error:
            os.fchdir(before)
            os.close(before)
            return error


def spawn(
    program: Program, given: Handover, mode: Mode, reloads: int, output: int | None = None
) -> int:
    """A child that executes the program with what is handed over -> its pid. ``output``: descriptor
    of its standard output and error, instead of ours."""
    file = handover.write(given)
    parent = os.getpid()
    try:
        with signals.blocked():
            pid = os.fork()
            if pid == 0:
                _become(program, given, file, mode, reloads, output, parent)
    finally:
        os.close(file)
    return pid


def _become(
    program: Program,
    given: Handover,
    file: int,
    mode: Mode,
    reloads: int,
    output: int | None,
    parent: int,
) -> None:
    """In the child. The signals of the master stay blocked until the new one has its handlers."""
    try:
        if output is not None:
            null = os.open(os.devnull, os.O_RDONLY)
            for fd, number in ((null, 0), (output, 1), (output, 2)):
                os.dup2(fd, number)
        environ = dict(os.environ)
        handover.prepare(given, file, environ, mode)
        environ["UWSGI_RELOADS"] = str(reloads)
        if mode == "fork":
            stand_beside(environ, parent)
        if mode == "rehearse":
            # One that hangs would keep addresses from whoever comes after a master that was killed.
            privileges.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)
            environ.pop("NOTIFY_SOCKET", None)  # it has nothing to say to systemd
        error = program.execute(environ)
        os.write(2, f"uwgate: error: {program.path}: {error.strerror}\n".encode())
    finally:
        os._exit(1)


class Rehearsal:
    """One under way. ``done`` is told whether it went well, and what was written."""

    def __init__(self, loop: Loop, program: Program, given: Handover, done: Done) -> None:
        self._loop = loop
        self._done: Done | None = done
        self._output = bytearray()
        self._code: int | None = None
        self._reader, writer = os.pipe()
        try:
            self.pid = spawn(program, given, "rehearse", given.reloads, writer)
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)
        os.set_blocking(self._reader, False)
        loop.selector.register(self._reader, selectors.EVENT_READ, self._readable)
        self._timer: Timer = loop.call_later(PATIENCE, functools.partial(self._kill, _SLOW))

    def reaped(self, pid: int, code: int) -> bool:
        """A child has ended; whether it was this one."""
        if pid != self.pid:
            return False
        self._code = code
        self._readable(selectors.EVENT_READ)
        self._finish()
        return True

    def cancel(self) -> None:
        """Never mind."""
        self._done = None
        self._kill("")

    def _kill(self, reason: str) -> None:
        if self._code is None:
            self._output += reason.encode()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _readable(self, mask: int) -> None:
        if self._reader < 0:
            return
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._reader, 1 << 14):
                self._output += piece[: _MOST - len(self._output)]
            self._close()

    def _close(self) -> None:
        if self._reader >= 0:
            self._loop.selector.unregister(self._reader)
            os.close(self._reader)
            self._reader = -1

    def _finish(self) -> None:
        self._timer.cancel()
        self._close()
        done, self._done = self._done, None
        if done is not None:
            text = self._output.decode("utf-8", "replace")
            lines = [_STAMP.sub("", line) for line in text.splitlines() if line.strip()]
            done(self._code == 0, lines)
