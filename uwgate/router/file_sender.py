"""Sends parts of an open file to a client: what an exchange has in place of a node's connection.

On plain sockets the kernel sends (``sendfile``), on a duplicate of the client's descriptor, because
uvloop watches its own only for itself. Over TLS, and where sendfile is switched off, pieces are
read and go the way of a node's response, with the same back-pressure.

Before each turn the file is looked at: if it was written to, the connection is cut, since what
comes now is not what the head has announced.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
from _socket import socket as new_socket  # see upstream_uwsgi
from array import array
from socket import MSG_MORE
from typing import TYPE_CHECKING

from uwgate.files.entries import File
from uwgate.router.errors import Failure
from uwgate.router.fast_client import DONTWAIT
from uwgate.router.phases import IDLE
from uwgate.router.poller import WRITE, Poller

if TYPE_CHECKING:
    from uwgate.router.static_exchange import StaticExchange

Part = bytes | tuple[int, int]
"""Bytes of ours, or the bytes of the file from an offset to another one, which is excluded."""

_TURN = 2 << 20  # bytes that the kernel is asked to send in a round of the poller, for all together
# Bytes read at once where the kernel does not send by itself: what waits for a client that stalls,
# and more for those that keep up, which saves 8 % of the CPU of a large file over TLS.
_PIECE, _MAX_PIECE = 65536, 262144
_STEP = 262144  # bytes that are looked for on the disk at once
_READ_AHEAD = 131072  # bytes that any file system reads ahead at once


def send_at_once(raw: new_socket, file: File, parts: list[Part]) -> int:
    """Send a head and one part of the file, as far as the client takes them now, and take what was
    sent out of ``parts``; returns the number of bytes. What is in the way, such as a client that is
    gone, is left for the sender to find."""
    if len(parts) != 2:
        return 0
    head, part = parts
    assert isinstance(head, bytes)
    start, end = part
    sent = 0
    try:
        sent = raw.send(head, DONTWAIT | MSG_MORE)
        if sent < len(head):
            parts[0] = head[sent:]
            return sent
        del parts[0]
        body = os.sendfile(raw.fileno(), file.fd, start, min(end - start, _TURN))
    except OSError:
        return sent
    if start + body == end:
        parts.clear()
    else:
        parts[0] = (start + body, end)
    return sent + body


class FileSender:
    """One response body. ``raw``: the client's socket (a duplicate), None to send through the
    front. ``paused``: the client does not take more."""

    __slots__ = (
        "_at", "_end", "_exchange", "_file", "_parts", "_piece", "_poller", "_queued",
        "_raw", "_soon", "_task", "_warm", "paused",
    )  # fmt: skip

    state = -1  # none of those of a node's connection
    reused = False

    def __init__(
        self, exchange: StaticExchange, file: File, parts: list[Part], raw: new_socket | None
    ) -> None:
        self._exchange: StaticExchange | None = exchange
        self._file = file
        self._parts = parts[::-1]
        self._raw = raw
        self._at = self._end = 0  # of the part of the file that is being sent
        self._piece = _PIECE
        self._queued = -1  # bytes the kernel held when it was last asked
        self._warm = -1  # offset up to which it has been read into the page cache
        self._task: asyncio.Future[int] | None = None
        self._poller: Poller | None = None  # while it watches the socket
        self.paused = self._soon = False

    # --- back of the exchange ---------------------------------------------------------------------

    def body(self, payload: bytes) -> None:
        """A body of the request means nothing (RFC 9110 §9.3.1)."""

    def body_end(self, trailer: bytes) -> None:
        """Nor does its end."""

    def pause(self) -> None:
        """The front has enough for now."""
        self.paused = True
        self._piece = _PIECE

    def resume(self) -> None:
        """The front takes more."""
        self.paused = False
        exchange = self._exchange
        if exchange is not None and self._raw is None and self._task is None and not self._soon:
            self._soon = True
            exchange.gateway.loop.call_soon(self._resumed)

    def _resumed(self) -> None:
        self._soon = False
        self.go_on()

    def abort(self) -> None:
        """Stop; the client's connection is somebody else's business."""
        self._exchange = None
        self._unwatch()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    # --- sending ----------------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """The poller's call: the client's socket takes more, or is broken."""
        if self._poller is not None and self._poller.spent < _TURN:  # else it will say so again
            self.go_on()

    def go_on(self, *, looked: bool = False) -> None:
        """Send what can be sent now. ``looked``: the file was looked at a moment ago."""
        exchange = self._exchange
        if exchange is None or self._task is not None:
            return
        try:
            if not looked and self._file.changed():
                exchange.abort(Failure.FILE_CHANGED)
            elif self._raw is not None:
                self._send(exchange, self._raw)
            elif not self.paused:
                self._pump(exchange)
        except OSError as error:
            self._broken(exchange, error)

    def _broken(self, exchange: StaticExchange, error: OSError) -> None:
        if isinstance(error, (BrokenPipeError, ConnectionError, TimeoutError)):
            exchange.abort(Failure.CLIENT_CLOSED)
        else:
            exchange.gateway.complain(f"cannot send {os.fsdecode(self._file.path)}: {error}")
            exchange.abort(Failure.FILE_CHANGED)

    def _send(self, exchange: StaticExchange, raw: new_socket) -> None:
        """By the kernel, until the socket takes no more. Raises OSError."""
        number, poller = raw.fileno(), exchange.gateway.poller
        turn = max(_TURN - poller.spent, _PIECE)
        try:
            while self._next_part():
                part = self._parts[-1]
                if isinstance(part, bytes):
                    more = MSG_MORE if len(self._parts) > 1 else 0
                    sent = raw.send(part, DONTWAIT | more)
                    if sent < len(part):
                        self._parts[-1] = part[sent:]
                    else:
                        self._parts.pop()
                else:
                    wanted = min(self._end - self._at, turn)
                    if exchange.offloads:
                        wanted = min(wanted, _STEP)
                        if not self._is_warm(exchange, wanted):
                            self._unwatch()
                            return
                    sent = os.sendfile(number, self._file.fd, self._at, wanted)
                    if not sent:
                        exchange.abort(Failure.FILE_CHANGED)
                        return
                    self._at += sent
                    turn -= sent
                    poller.spent += sent
                exchange.file_sent(sent)
                if turn <= 0:  # the poller comes back at once, after the others
                    break
        except BlockingIOError:
            pass
        if self._next_part():
            self._queued = _queued(number)
            self._watch(exchange, number)
        else:
            self._finish(exchange)

    def _next_part(self) -> bool:
        """Whether there is more to send; takes up the next part of the file when it is its turn."""
        while self._parts:
            part = self._parts[-1]
            if isinstance(part, bytes):
                return True
            if not self._end:
                self._at, self._end = part
            if self._at < self._end:
                return True
            self._end = 0
            self._parts.pop()
        return False

    def _pump(self, exchange: StaticExchange) -> None:
        """Through the front, until that has enough. Raises OSError."""
        turn = _MAX_PIECE
        while not self.paused and turn > 0 and self._next_part():
            part = self._parts[-1]
            if isinstance(part, bytes):
                data = part
                self._parts.pop()
            else:
                wanted = min(self._end - self._at, self._piece)
                if exchange.offloads and not self._is_warm(exchange, wanted):
                    return
                data = os.pread(self._file.fd, wanted, self._at)
                if not data:
                    exchange.abort(Failure.FILE_CHANGED)
                    return
                self._at += len(data)
            turn -= len(data)
            self._piece = min(2 * self._piece, _MAX_PIECE)
            exchange.piece(data)
            if self._exchange is None:  # given up while it was written
                return
        if not self._next_part():
            self._finish(exchange)
        elif not self.paused:
            exchange.gateway.loop.call_soon(self.go_on)

    def _finish(self, exchange: StaticExchange) -> None:
        self._exchange = None
        self._unwatch()
        if self._raw is not None:
            exchange.stalled(False)
        exchange.response_end(b"")

    def progressed(self) -> bool:
        """Whether the client has taken something since the kernel took no more from us. It wants
        more only when a third of its buffer is free, which may take a slow client long."""
        before = self._queued
        if self._raw is None or before < 0:
            return False
        self._queued = _queued(self._raw.fileno())
        return 0 <= self._queued < before

    # --- waiting ----------------------------------------------------------------------------------

    def _watch(self, exchange: StaticExchange, number: int) -> None:
        if self._poller is None:
            self._poller = exchange.gateway.poller
            self._poller.register(number, self, WRITE)
            self.paused = True
            exchange.stalled(True)

    def _unwatch(self) -> None:
        # Explicitly: the client's own descriptor keeps what is registered for the duplicate alive.
        poller, self._poller = self._poller, None
        if poller is not None and self._raw is not None:
            self.paused = False
            poller.suspend(self._raw.fileno())

    # --- disks ------------------------------------------------------------------------------------

    def _is_warm(self, exchange: StaticExchange, size: int) -> bool:
        """Whether the next ``size`` bytes are in memory; if not, a thread reads them first."""
        start, end = self._at, self._at + size
        if end <= self._warm or _in_memory(self._file.fd, start, end):
            return True
        self._warm = end
        self._task = exchange.offload(_warm_up, self._file, start, size)
        self._task.add_done_callback(self._warmed)
        return False

    def _warmed(self, task: asyncio.Future[int]) -> None:
        if task.cancelled() or self._exchange is None:
            return
        self._task = None
        error = task.exception()
        if error is not None:
            self._broken(self._exchange, error)  # type: ignore[arg-type]
        elif self._exchange.phase != IDLE:
            self.go_on()


def _queued(number: int) -> int:
    """Bytes that the client has not acknowledged yet; -1 if that is not known."""
    held = array("i", [0])
    try:
        fcntl.ioctl(number, termios.TIOCOUTQ, held)
    except OSError:
        return -1
    return held[0]


def _in_memory(fd: int, start: int, end: int) -> bool:
    """Whether reading would not wait, as far as the first and the last page tell."""
    probe = [bytearray(1)]
    try:
        for offset in (start, end - 1):
            if not os.preadv(fd, probe, offset, os.RWF_NOWAIT):
                return True  # the end: no disk has to be asked for that
    except BlockingIOError:
        return False
    except OSError:  # a file system that cannot tell
        return False
    return True


def _warm_up(file: File, start: int, size: int) -> int:
    """Have the disk fill the page cache, and wait for it; runs in a thread, which keeps the file
    open as long as it does. Nothing is copied: that would take the core from who serves."""
    end = start + size
    for offset in range(start, end, _READ_AHEAD):
        os.posix_fadvise(file.fd, offset, min(_READ_AHEAD, end - offset), os.POSIX_FADV_WILLNEED)
    for offset in (*range(start, end, _READ_AHEAD // 2), end - 1):
        os.pread(file.fd, 1, offset)
    return size
