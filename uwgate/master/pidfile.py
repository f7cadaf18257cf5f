"""The pidfile: decimal process id and a newline, as uWSGI writes it."""

from __future__ import annotations

import contextlib
import os
import re

from uwgate.master.errors import StartError, explain

_CONTENT = re.compile(rb"([1-9][0-9]{0,9})\n?")


class PidFile:
    """``path`` of one instance's pidfile; "" turns every method into nothing."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        # Absolute, because the working directory may change before the file is removed.
        self._path = os.path.abspath(path) if path else ""

    def check(self) -> None:
        """Raise ``StartError`` if the file names another uwgate that runs.

        A file that names no process, or one that is some other program (process ids are used
        again), is stale and will be replaced.
        """
        if not self._path:
            return
        pid = self._recorded()
        if pid is not None and pid != os.getpid() and _is_uwgate(pid):
            raise StartError(f"pidfile = {self._path}: uwgate already runs there (pid {pid})")

    def write(self) -> None:
        """Replace the file in one step: readers see the old content or the new one.

        Raises ``StartError``.
        """
        if not self._path:
            return
        if os.path.isdir(self._path):
            raise StartError(f"pidfile = {self._path}: is a directory")
        fresh = f"{self._path}.{os.getpid()}"
        try:
            # A leftover of a killed predecessor with the same process id.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(fresh, flags, 0o644)
            try:
                os.write(fd, b"%d\n" % os.getpid())
            finally:
                os.close(fd)
            os.replace(fresh, self._path)
        except OSError as error:
            raise StartError(f"pidfile = {self._path}: {explain(error)}") from None

    def remove(self) -> None:
        """Remove the file if it is still ours; without the right to do so it stays behind."""
        if self._path and self._recorded() == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _recorded(self) -> int | None:
        try:
            with open(self._path, "rb") as file:
                content = file.read(32)
        except OSError:
            return None
        match = _CONTENT.fullmatch(content)
        return int(match[1]) if match else None


def _is_uwgate(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"uwgate" in file.read(4096)
    except OSError:
        return False
