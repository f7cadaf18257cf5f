"""The main log: what the master and the workers say about themselves.

One line is one ``write`` on an append-only descriptor that all processes share, so lines of
different processes never mix. Logging never raises and never blocks: a reader that went away or
stopped reading costs lines, not the service.

Line: ``2026-11-21 03:18:00.123 +0000 [pid] text``; control bytes in ``text`` are escaped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
import sys
import time
import traceback
from collections.abc import Mapping

from uwgate.config.settings_process import MainLogSettings
from uwgate.master.errors import StartError, explain

# POSIX: a pipe that polls writable takes this much without blocking, in one piece.
PIPE_BUF = 4096
# C0, DEL, C1, the two Unicode line ends, and what surrogateescape leaves of invalid UTF-8.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Names of descriptors that are open already: opened by name, pipes and sockets would be refused.
_STANDARD = {
    name: number
    for number, word in ((1, "stdout"), (2, "stderr"))
    for name in (f"/dev/{word}", f"/dev/fd/{number}", f"/proc/self/fd/{number}")
}
# Seconds until a file that is too large, and could not be rotated, is tried again.
_RETRY = 60.0


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
    error; /dev/stdout and /dev/stderr are the descriptors. ``settings``: its size, mode and owner.
    ``handed``: what ``state`` said in the master that executed itself; then nothing is truncated,
    the open file is written on (with ``settings.reopen`` only if it cannot be opened again), and
    nothing raises. Otherwise raises ``StartError`` if the file cannot be opened.
    """

    __slots__ = (
        "_fd",
        "_not_before",
        "_path",
        "_poll",
        "_settings",
        "_streams",
        "lost",
    )

    def __init__(
        self,
        path: str = "",
        settings: MainLogSettings = MainLogSettings(),  # noqa: B008
        *,
        handed: object = None,
    ) -> None:
        self._settings = settings
        self._fd = _STANDARD.get(path, 2)
        # Absolute, because the working directory may change before it is opened again.
        self._path = os.path.abspath(path) if path and path not in _STANDARD else ""
        self.lost = 0  # lines that nobody took
        self._streams = False
        self._not_before = 0.0
        if handed is not None:
            self._take_over(handed)
        elif self._path:
            self._begin(path)
        self._watch()

    def _begin(self, path: str) -> None:
        try:
            self._fd = _open(self._path)
        except OSError as error:
            raise StartError(f"logto = {path}: {explain(error)}") from None
        settings = self._settings
        try:
            _furnish(self._fd, settings)
            if settings.truncate and _regular(self._fd):
                _refuse_second_names(self._fd)
                os.ftruncate(self._fd, 0)
        except OSError as error:
            os.close(self._fd)
            raise StartError(f"{_words(settings)} of {path}: {explain(error)}") from None

    def _take_over(self, handed: object) -> None:
        path, fd = _handed(handed)
        if fd >= 0:
            os.set_inheritable(fd, False)
        if not self._path:
            if fd >= 0:
                os.close(fd)
            return
        if path == self._path and fd >= 0 and not self._settings.reopen:
            self._fd = fd
            return
        try:
            self._fd = _open(self._path)
        except OSError as error:
            # Standard error is the log of the master before: it had taken the streams.
            self._fd = fd if fd >= 0 else os.dup(2)
            self._watch()
            self.line(f"cannot open the log {self._path}: {explain(error)}; still in the old file")
            return
        if fd >= 0:
            os.close(fd)
        self._watch()
        self._furnish_again(None)

    def _watch(self) -> None:
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    @property
    def path(self) -> str:
        """The file, "" for standard error or output."""
        return self._path

    def fileno(self) -> int:
        """The descriptor written to."""
        return self._fd

    def state(self) -> dict[str, object]:
        """JSON value for the master that follows in this process; ``fd`` (if >= 0) has to stay
        open."""
        return {"path": self._path, "fd": self._fd if self._path else -1}

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

    def take_streams(self) -> None:
        """From now on standard output and error are the file, too, over every rotation (uWSGI: so
        are those of ``logto`` and ``daemonize``). Nothing without a file."""
        if self._path:
            _flush_streams()
            self._streams = True
            self._spread()

    def _spread(self) -> None:
        if self._streams:
            for number in (1, 2):
                os.dup2(self._fd, number)

    # -- another file under the same name ------------------------------------------------------

    def reopen(self) -> None:
        """Open the file again under its path (it was rotated); keeps the old one on failure."""
        if not self._path:
            return
        try:
            fresh = _open(self._path)
        except OSError as error:
            self.line(f"cannot reopen the log {self._path}: {explain(error)}")
            return
        self._replace(fresh, None)

    def rotate(self) -> bool:
        """Rename the file, and begin a new one of the same mode and owner; whether that was done.

        The new name is ``settings.backup_name``, whose file is replaced (uWSGI), or the name, a
        dot and the second of the epoch, with ``.1``, ``.2`` … where there is one already. If
        another program has renamed the file before, it is only opened again. The other processes
        of the instance go on writing to the old one until they are told to ``reopen``.
        """
        if not self._path:
            self.line("cannot rotate the log: it is not a file")
            return False
        self._not_before = time.monotonic() + _RETRY
        place = _place(self._path)
        backup = ""
        try:
            old = os.fstat(self._fd)
            if not stat.S_ISREG(old.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            if _is_at(place, old):
                backup = self._backup(place)
                os.rename(place, backup)
            try:
                fresh = _open(self._path)
            except OSError:
                if backup:
                    os.rename(backup, place)
                raise
        except OSError as error:
            self.line(f"cannot rotate the log {self._path}: {explain(error)}")
            return False
        if backup:
            # Into the old one: the new one could be too large at once.
            self.line(f"log rotated: this file is {backup} now")
        self._replace(fresh, old)
        self._not_before = 0.0
        return True

    def too_large(self) -> bool:
        """Whether it is time to ``rotate`` (``settings.max_size``). False for a minute after that
        has failed."""
        if not self._path or not self._settings.max_size or time.monotonic() < self._not_before:
            return False
        info = os.fstat(self._fd)
        return stat.S_ISREG(info.st_mode) and info.st_size > self._settings.max_size

    def _backup(self, place: str) -> str:
        if self._settings.backup_name:
            name = os.path.join(os.path.dirname(place), self._settings.backup_name)
            if os.path.normpath(name) == place:
                raise OSError(errno.EINVAL, "log-backupname is its own name")
            return name
        name = wanted = f"{place}.{int(time.time())}"
        count = 0
        while os.path.lexists(name):
            count += 1
            name = f"{wanted}.{count}"
        return name

    def _replace(self, fresh: int, like: os.stat_result | None) -> None:
        # Keeping the number keeps what refers to it: the poll object, redirected streams.
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)
        self._watch()
        self._spread()
        self._furnish_again(like)

    def _furnish_again(self, like: os.stat_result | None) -> None:
        # The others have not the rights; the master has done it before it told them.
        if os.geteuid() not in (0, os.fstat(self._fd).st_uid):
            return
        try:
            _furnish(self._fd, self._settings, like)
        except OSError as error:
            self.line(f"cannot set mode and owner of the log {self._path}: {explain(error)}")

    def close(self) -> None:
        """Close the file; standard error stays open."""
        if self._path:
            with contextlib.suppress(OSError):
                os.close(self._fd)


def check_log(path: str, settings: MainLogSettings, handed: object = None) -> None:
    """Raise ``StartError`` if a new master could not write to that log; changes nothing.

    ``handed``: as for ``MainLog``, of the master that is at work.
    """
    if not path or path in _STANDARD:
        return
    place = _place(os.path.abspath(path))
    old, fd = _handed(handed)
    if fd >= 0 and old == os.path.abspath(path):
        return  # in the worst case that file is written on
    try:
        if os.path.isdir(place):
            raise OSError(errno.EISDIR, "is a directory")
        above = os.path.dirname(place)
        if os.path.lexists(place):
            allowed = os.access(place, os.W_OK)
        elif os.path.isdir(above):
            allowed = os.access(above, os.W_OK | os.X_OK)
        else:
            raise OSError(errno.ENOENT, "no such file or directory")
        if not allowed:
            raise OSError(errno.EACCES, "permission denied")
    except OSError as error:
        raise StartError(f"logto = {path}: {explain(error)}") from None


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


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _place(path: str) -> str:
    """Where the file is. As root, a symbolic link is followed only if root made it: in a directory
    of somebody else it could lead to any file."""
    if os.geteuid() != 0:
        return os.path.realpath(path)
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode) and found.st_uid == 0:
            return os.path.realpath(path)
    return path


def _open(path: str) -> int:
    """Open for appending."""
    # O_NONBLOCK: opening a FIFO without a reader fails instead of waiting for one.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    if os.geteuid() == 0:
        flags |= os.O_NOFOLLOW
    return os.open(_place(path), flags, 0o640)


def _regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _is_at(path: str, info: os.stat_result) -> bool:
    """Whether the name still means that file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (info.st_dev, info.st_ino)


def _refuse_second_names(fd: int) -> None:
    """In a directory of somebody else another name of any file could have been put here."""
    if os.geteuid() == 0 and os.fstat(fd).st_nlink > 1:
        raise OSError(errno.EMLINK, "the file has another name, too")


def _furnish(fd: int, settings: MainLogSettings, like: os.stat_result | None = None) -> None:
    """Mode and owner as configured, else those of ``like``; only those of a plain file."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        return
    uid, gid, mode = settings.uid, settings.gid, settings.mode
    if like is not None:
        root = os.geteuid() == 0
        uid = like.st_uid if uid is None and root else uid
        gid = like.st_gid if gid is None and root else gid
        mode = stat.S_IMODE(like.st_mode) if mode is None else mode
    owner = (info.st_uid if uid is None else uid, info.st_gid if gid is None else gid)
    change_owner = owner != (info.st_uid, info.st_gid)
    change_mode = mode is not None and mode != stat.S_IMODE(info.st_mode)
    if change_owner or change_mode:
        _refuse_second_names(fd)
    if change_owner:
        os.fchown(fd, *owner)
    if change_mode and mode is not None:
        os.fchmod(fd, mode)


def _words(settings: MainLogSettings) -> str:
    """The options that may be to blame."""
    asked = {
        "logfile-chmod": settings.mode is not None,
        "logfile-chown": settings.uid is not None or settings.gid is not None,
        "log-truncate": settings.truncate,
    }
    return ", ".join(name for name, given in asked.items() if given) or "logto"


def _handed(value: object) -> tuple[str, int]:
    """Path and descriptor of ``MainLog.state``; "" and -1 if there is none that can be used."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError
        path, fd = str(value["path"]), int(value["fd"])
        os.fstat(fd)
    except (KeyError, TypeError, ValueError, OSError):
        return "", -1
    return path, fd
