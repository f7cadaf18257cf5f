"""The request log of one worker: lines are gathered and written in whole, bounded batches.

A line costs the data path a format and an append; the file is written when ``FLUSH_SIZE`` bytes
are gathered or when the worker says so (about every 100 ms). A log whose reader has stalled (a pipe
to a collector) must not stall requests: at most ``MAX_PENDING`` bytes wait, then lines are dropped
and counted.
"""

from __future__ import annotations

import os
import select
import stat

from uwgate.config.settings import RequestLogSettings
from uwgate.observe.logformat import Formatter, compile_format
from uwgate.observe.logvars import Environment
from uwgate.router.facts import RequestFacts

FLUSH_SIZE = 65536
MAX_PENDING = 1 << 20
_MODE = 0o640  # as uWSGI creates log files
_STDOUT = 1


class RequestLog:
    """Formats facts into lines and writes them to ``path`` ("": standard output).

    ``dropped``: lines lost because the file could not be written.
    """

    __slots__ = ("_fd", "_file", "_format", "_lines", "_path", "_pending", "_size", "dropped")

    def __init__(self, formatter: Formatter, path: str) -> None:
        """Opens the file for appending; OSError if that fails."""
        self._format = formatter
        self._path = path
        self._lines: list[str] = []
        self._size = 0
        self._pending = b""
        self.dropped = 0
        self._fd = _STDOUT
        self._file = False
        self._open()

    def __call__(self, facts: RequestFacts) -> None:
        """Log one request. Never raises for what a client sent, never blocks on a pipe."""
        line = self._format(facts)
        self._lines.append(line)
        self._size += len(line)
        if self._size >= FLUSH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered; what a full pipe does not take now stays for the next time."""
        if not self._size and not self._pending:
            return
        data = self._pending + "".join(self._lines).encode("utf-8", "surrogateescape")
        self._lines.clear()
        self._size = 0
        self._pending = self._write_file(data) if self._file else self._write_stream(data)
        if len(self._pending) > MAX_PENDING:
            self._shorten()

    def reopen(self) -> None:
        """Open the path anew (after a rotation). OSError if that fails: the old file stays."""
        self.flush()
        if self._path:
            self._open()

    def close(self) -> None:
        """Write what can be written and close the file; standard output stays open."""
        self.flush()
        if self._path and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        lost = self._pending.count(b"\n")
        self.dropped += lost
        self._pending = b""

    def _open(self) -> None:
        if self._path:
            # O_NONBLOCK: opening a FIFO without a reader fails instead of waiting for one.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            old, self._fd = self._fd, os.open(self._path, flags, _MODE)
            if old != _STDOUT:
                os.close(old)
        self._file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def _write_file(self, data: bytes) -> bytes:
        """Write everything or count what is lost; what to write before the next line."""
        # O_APPEND: one write of whole lines keeps the lines of several workers apart.
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:  # disk full: a line cut in two must not swallow the next one
            self.dropped += data.count(b"\n", written)
            return b"\n" if written and data[written - 1] != ord("\n") else b""
        return b""

    def _write_stream(self, data: bytes) -> bytes:
        """Write while the pipe, socket or terminal takes it; what it did not take.

        A descriptor that polls writable takes PIPE_BUF bytes without blocking, and writes no
        larger than that are never mixed with those of other workers (pipe(7)).
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        start = 0
        while start < len(data) and poll.poll(0):
            end = start + select.PIPE_BUF
            if end < len(data):
                end = data.rfind(b"\n", start, end) + 1 or end
            try:
                start += os.write(self._fd, data[start:end])
            except BlockingIOError:
                break
            except OSError:
                self.dropped += data.count(b"\n", start)
                return b""
        return data[start:]

    def _shorten(self) -> None:
        """Drop the newest lines beyond the bound; the cut is at a line's end."""
        keep = self._pending.rfind(b"\n", 0, MAX_PENDING) + 1
        self.dropped += self._pending.count(b"\n", keep)
        self._pending = self._pending[:keep]


def open_request_log(settings: RequestLogSettings, *, worker: int = 0) -> RequestLog:
    """The log that ``settings`` describe, for worker number ``worker`` (``%(wid)``).

    To be called in the worker, after the fork (``%(pid)``). OSError if the file cannot be opened.
    """
    environment = Environment(os.getpid(), worker, settings.x_forwarded_for)
    return RequestLog(compile_format(settings.format, environment), settings.path)
