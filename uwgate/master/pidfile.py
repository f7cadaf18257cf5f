"""The pidfiles: decimal process id and a newline, as uWSGI writes them.

========================  =========================================================================
option                    written
========================  =========================================================================
pidfile                   before privileges are dropped
pidfile2                  right after that
safe-pidfile2, then       when everything is up
safe-pidfile
========================  =========================================================================
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Collection

from uwgate.config.settings import ProcessSettings
from uwgate.master.errors import StartError, explain
from uwgate.master.logs import MainLog

ANCHOR = "UWGATE_ANCHOR"
"""Variable: pid of the process that stands for this one (``guardian``), if it is its parent."""

_CONTENT = re.compile(rb"([1-9][0-9]{0,9})\n?")


def service_pid() -> int:
    """The process id that others know this instance by."""
    anchor = os.environ.get(ANCHOR, "")
    return os.getppid() if anchor == str(os.getppid()) else os.getpid()


class PidFile:
    """``path`` of one instance's pidfile; "" turns every method into nothing. ``option``: its name,
    for errors."""

    __slots__ = ("_option", "_path")

    def __init__(self, path: str, option: str = "pidfile") -> None:
        # Absolute, because the working directory may change before the file is removed.
        self._path = os.path.abspath(path) if path else ""
        self._option = option

    @property
    def path(self) -> str:
        """Absolute, or ""."""
        return self._path

    def check(self) -> None:
        """Raise ``StartError`` if the file names another uwgate that runs.

        A file that names no process, or one that is some other program (process ids are used
        again), is stale and will be replaced.
        """
        if not self._path:
            return
        pid = self._recorded()
        if pid is not None and pid != service_pid() and _is_uwgate(pid):
            words = f"{self._option} = {self._path}"
            raise StartError(f"{words}: uwgate already runs there (pid {pid})")

    def check_writable(self) -> None:
        """Raise ``StartError`` if this process could not write it; changes nothing."""
        if not self._path:
            return
        above = os.path.dirname(self._path)
        if os.path.isdir(self._path):
            reason = "is a directory"
        elif not os.path.isdir(above):
            reason = "no such file or directory"
        elif not os.access(above, os.W_OK | os.X_OK) and not os.access(self._path, os.W_OK):
            reason = "permission denied"
        else:
            return
        raise StartError(f"{self._option} = {self._path}: {reason}")

    def write(self) -> None:
        """Replace the file in one step: readers see the old content or the new one. In a directory
        that may not be written to, a file that may be is overwritten.

        Raises ``StartError``.
        """
        if not self._path:
            return
        if os.path.isdir(self._path):
            raise StartError(f"{self._option} = {self._path}: is a directory")
        try:
            try:
                self._put_in_place()
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM):
                    raise
                self._overwrite(error)
        except OSError as error:
            raise StartError(f"{self._option} = {self._path}: {explain(error)}") from None

    def _put_in_place(self) -> None:
        fresh = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(fresh, flags, 0o644)
        try:
            os.write(fd, b"%d\n" % service_pid())
        finally:
            os.close(fd)
        os.replace(fresh, self._path)

    def _overwrite(self, reason: OSError) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags)
        except FileNotFoundError:
            raise reason from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise reason
            os.write(fd, b"%d\n" % service_pid())
            os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file if it is still ours; without the right to do so it stays behind."""
        if self._path and self._recorded() == service_pid():
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _recorded(self) -> int | None:
        try:
            # Whatever somebody has put there: a FIFO would have us wait for ever.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(self._path, flags), "rb") as file:
                content = file.read(32) or b""
        except OSError:
            return None
        match = _CONTENT.fullmatch(content)
        return int(match[1]) if match else None


class PidFiles:
    """All those of one instance.

    ``kept``: ``ours`` of the master that executed itself. What it has written is left alone (the
    process id is the same), even if it is another instance's by now. To be made before the working
    directory changes, as ``PidFile``.
    """

    __slots__ = ("_dropped", "_early", "_kept", "_log", "_up", "ours")

    def __init__(self, process: ProcessSettings, log: MainLog, kept: Collection[str] = ()) -> None:
        self._log = log
        self._early = PidFile(process.pidfile)
        self._dropped = PidFile(process.pidfile2, "pidfile2")
        self._up = (
            PidFile(process.safe_pidfile2, "safe-pidfile2"),
            PidFile(process.safe_pidfile, "safe-pidfile"),
        )
        self._kept = frozenset(kept)
        self.ours: list[str] = []  # paths that this master has written or kept, for the next one

    def check(self) -> None:
        """Raise ``StartError`` if one of them names another uwgate that runs. Not to be asked by
        an instance that is there to take the place of another."""
        for each in self._all():
            if each.path not in self._kept:
                each.check()

    def rehearse(self) -> None:
        """Raise ``StartError`` if a reload could not write one of them; changes nothing."""
        for each in self._all():
            if each.path not in self._kept:
                each.check_writable()

    def early(self) -> None:
        """Before privileges are dropped. Raises ``StartError``."""
        self._write(self._early)

    def dropped(self) -> None:
        """Right after that. Raises ``StartError``, also for what ``up`` could not write."""
        self._write(self._dropped)
        for each in self._up:
            if each.path not in self._kept:
                each.check_writable()

    def up(self) -> None:
        """Everything is up: what cannot be written is a line in the log. After a reload, those that
        are not wanted any more are removed."""
        for each in self._up:
            try:
                self._write(each)
            except StartError as error:
                self._log.line(str(error))
        for path in self._kept.difference(self.ours):
            PidFile(path).remove()
        self._kept = frozenset(self.ours)

    def rewrite(self) -> None:
        """All of them, whoever has written them last (FIFO ``P``)."""
        for each in self._all():
            try:
                each.write()
            except StartError as error:
                self._log.line(f"cannot write a pidfile: {error}")

    def remove(self) -> None:
        """Those that are still ours."""
        for each in self._all():
            each.remove()
        for path in self._kept:
            PidFile(path).remove()

    def _all(self) -> list[PidFile]:
        return [each for each in (self._early, self._dropped, *self._up) if each.path]

    def _write(self, file: PidFile) -> None:
        if file.path and file.path not in self.ours:
            if file.path not in self._kept:
                file.write()
            self.ours.append(file.path)


def _is_uwgate(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        return False
    # A program or module; an editor of uwgate.ini is none.
    return any(os.path.basename(word) == b"uwgate" for word in words)
