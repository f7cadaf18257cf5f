"""The main log: what the master and the workers say about themselves.

One line is one ``write`` on an append-only descriptor that all processes share, so lines of
different processes never mix. Logging never raises and never blocks: a reader that went away or
stopped reading costs lines, not the service.

Line: ``2026-11-21 03:18:00.123 +0000 [pid] text``; control bytes in ``text`` are escaped.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import stat
import sys
import time
import traceback

from uwgate.master.errors import StartError, explain

# POSIX: a pipe that polls writable takes this much without blocking, in one piece.
PIPE_BUF = 4096
# C0, DEL, C1, the two Unicode line ends, and what surrogateescape leaves of invalid UTF-8.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def escape(text: str) -> str:
    """``text`` on one line: control characters as in a Python string literal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def occupy_standard_streams() -> None:
    """Open ``/dev/null`` on each of descriptors 0 to 2 that is closed.

    Otherwise a listening socket could become descriptor 2 and receive the log.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is the one that is missing: those before it are open by now.
            os.open(os.devnull, os.O_RDWR)


class MainLog:
    """The log of one instance.

    ``path``: file that is appended to (created with mode 0640, as uWSGI does), "" for standard
    error. Raises ``StartError`` if the file cannot be opened.
    """

    __slots__ = ("_fd", "_path", "_poll", "lost")

    def __init__(self, path: str = "") -> None:
        # Absolute, because the working directory may change before it is opened again.
        self._path = os.path.abspath(path) if path else ""
        self.lost = 0  # lines that nobody took
        self._fd = 2
        if path:
            try:
                self._fd = _open(path)
            except OSError as error:
                raise StartError(f"logto = {path}: {explain(error)}") from None
        self._watch()

    def _watch(self) -> None:
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def fileno(self) -> int:
        """The descriptor written to."""
        return self._fd

    def line(self, text: str) -> None:
        """Write one line; never raises, never blocks."""
        now = time.time()
        local = time.localtime(now)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", local)
        zone = time.strftime("%z", local)
        millis = int(now * 1000) % 1000
        record = f"{stamp}.{millis:03d} {zone} [{os.getpid()}] {escape(text)}\n".encode()
        if len(record) > PIPE_BUF:
            record = record[: PIPE_BUF - 5] + b" ...\n"
        try:
            if self._poll.poll(0):
                os.write(self._fd, record)
            else:
                self.lost += 1
        except OSError:
            self.lost += 1

    def crash(self, what: str, error: BaseException) -> None:
        """Write a traceback, each of its lines as one line of the log."""
        self.line(f"{what}: {type(error).__name__}: {error}")
        text = "".join(traceback.format_exception(error))
        for row in text.splitlines():
            self.line(f"| {row}")

    def reopen(self) -> None:
        """Open the file again under its path (it was rotated); keeps the old one on failure."""
        if not self._path:
            return
        try:
            fresh = _open(self._path)
        except OSError as error:
            self.line(f"cannot reopen the log {self._path}: {explain(error)}")
            return
        # Keeping the number keeps what refers to it: the poll object, redirected streams.
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)
        self._watch()

    def close(self) -> None:
        """Close the file; standard error stays open."""
        if self._path:
            with contextlib.suppress(OSError):
                os.close(self._fd)


def create_log(path: str, uid: int | None, gid: int | None) -> None:
    """Create a log file for that owner, mode 0640; one that exists is left as it is.

    To be called before privileges are dropped. Raises ``StartError``.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o640)
    except FileExistsError:
        return
    except OSError as error:
        raise StartError(f"request log {path}: {explain(error)}") from None
    try:
        if os.geteuid() == 0 and (uid is not None or gid is not None):
            os.fchown(fd, -1 if uid is None else uid, -1 if gid is None else gid)
    finally:
        os.close(fd)


def complain(text: str) -> None:
    """Show a start-up error on standard error, whatever ``logto`` says."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"uwgate: error: {escape(text)}\n")
        sys.stderr.flush()


def _open(path: str) -> int:
    """Open for appending. As root, a symbolic link is followed only if root made it: in a directory
    of somebody else it could lead to any file."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    if os.geteuid() == 0:
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode) and found.st_uid == 0:
                path = os.path.realpath(path)
        flags |= os.O_NOFOLLOW
    return os.open(path, flags, 0o640)
