"""Into the background (``daemonize``, ``daemonize2``): a process without terminal, parent, session.

Unlike uWSGI, the command that was started waits until the daemon is up or has failed, and ends with
its exit code; what went wrong is on the terminal. It hears over a socket: the daemon's process id
and a newline, then one byte, the code.

The umask stays as it is (uWSGI sets 0 unless ``umask`` is given: its unix sockets and files may
then be open to everybody).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from io import BufferedReader
from typing import NoReturn

from uwgate.config.settings import ProcessSettings
from uwgate.master import signals
from uwgate.master.logs import MainLog, complain

# An emperor wants its children where they are.
_EMPEROR = "UWSGI_EMPEROR_FD"
_INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def log_file(process: ProcessSettings) -> str:
    """The file of the main log, "" for standard error: ``logto`` before ``daemonize``."""
    return process.log_file or process.daemonize or process.daemonize2


class Background:
    """The way into the background, once in the life of an instance. Without ``daemonize``, after
    a reload (``again``) and under an emperor nothing happens.

    Standard output and error stay those of the terminal until ``MainLog.take_streams``: errors of
    the start are seen. That has to come before the first worker is forked; a worker that had the
    terminal would keep it.
    """

    __slots__ = ("_log", "_socket", "_wanted")

    def __init__(self, process: ProcessSettings, log: MainLog, *, again: bool = False) -> None:
        asked = bool(process.daemonize or process.daemonize2)
        self._wanted = asked and not again and _EMPEROR not in os.environ
        self._log = log
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Go there; returns in the daemon only. Before anything is bound, and before the first
        child: the process id changes."""
        if not self._wanted:
            return
        self._wanted = False
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        ours, theirs = socket.socketpair()
        with signals.blocked():
            child = os.fork()
            if child > 0:
                theirs.close()
                _wait(ours, child, self._log.path)
            ours.close()
            os.setsid()
            # Not the leader of the session, so that no terminal can become its own by being opened.
            if os.fork() > 0:
                os._exit(0)
            # It says so itself: of two that write, the second could be the first.
            with contextlib.suppress(OSError):
                theirs.sendall(b"%d\n" % os.getpid())
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self._socket = theirs

    def ready(self) -> None:
        """Everything is up: the command that waits ends with 0."""
        self._tell(0)

    def failed(self, code: int) -> None:
        """It ends, and was not up before: so does the command, with the same code. Nothing after
        ``ready``."""
        self._tell(code or 1)

    def _tell(self, code: int) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # nobody waits any more
                self._socket.sendall(bytes((code & 0xFF,)))
            self._socket.close()
            self._socket = None


def _wait(ours: socket.socket, child: int, log: str) -> NoReturn:
    """Be the command: wait for the daemon, and end as it says. Signals are blocked."""
    code = 1
    try:
        with ours, ours.makefile("rb") as reader:
            daemon = int(reader.readline())
            os.waitpid(child, 0)
            code = _wait_for(daemon, reader)
        if code:
            where = f"; its log is {log}" if log else ""
            complain(f"not started (exit code {code}){where}")
    finally:
        # Not sys.exit: below us on the stack is the code of the master, with its clean-up.
        os._exit(code)


def _wait_for(daemon: int, reader: BufferedReader) -> int:
    # The handlers of the master would tell the daemon of our signals, and not end us.
    signal.set_wakeup_fd(-1)
    for number in signals.HANDLED:
        signal.signal(number, signal.SIG_DFL)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.HANDLED)
        answer = reader.read(1)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGTERM)
        return _INTERRUPTED
    return answer[0] if answer else 1
