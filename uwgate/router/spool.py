"""A request body taken in whole: in memory up to a limit, then in an unlinked temporary file."""

from __future__ import annotations

import contextlib
import tempfile
from io import BytesIO
from typing import IO


class SpoolFullError(Exception):
    """The body is larger than allowed."""


class Spool:
    """Bytes in, then bytes out. ``memory``: bytes kept in memory; ``limit``: the most allowed;
    ``directory``: where the file is made (None: where the system makes temporary files)."""

    __slots__ = ("_directory", "_file", "_limit", "_memory", "_on_disk", "size")

    def __init__(self, memory: int, limit: int, directory: str | None = None) -> None:
        self._directory = directory
        self._file: IO[bytes] = BytesIO()
        self._memory = memory
        self._limit = limit
        self._on_disk = False
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append; raises SpoolFullError above the limit, OSError if the file cannot be written."""
        size = self.size + len(data)
        if size > self._limit:
            raise SpoolFullError
        if not self._on_disk and size > self._memory:
            memory = self._file
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (closed by ``close``)
            self._on_disk = True
            assert isinstance(memory, BytesIO)
            self._file.write(memory.getbuffer())
        self._file.write(data)
        if self._on_disk:
            self._file.flush()  # a full disk is noticed here, and nowhere else
        self.size = size

    def seal(self) -> None:
        """No more is written; reading starts at the first byte (again, for another node)."""
        self._file.seek(0)

    def read(self, size: int) -> bytes:
        """The next bytes, b"" at the end."""
        return self._file.read(size)

    def close(self) -> None:
        """Free the memory or the file."""
        with contextlib.suppress(OSError):  # what the full disk did not take, nobody wants any more
            self._file.close()
