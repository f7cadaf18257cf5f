"""The line between the master and a worker: one JSON object a line over a socketpair.

======  ================================  ============================================
sender  message                           meaning
======  ================================  ============================================
master  ``{"type": "stats", "round": n}``  send a snapshot
master  ``{"type": "drain"}``             accept no more, close idle connections, finish, exit 0
master  ``{"type": "drain", "gently": true, "limit": s}``  the same within so many seconds, while
                                          others serve: idle connections get one more response
master  ``{"type": "hurry"}``             of a gentle drain: close idle connections now; the limit
                                          stays
master  ``{"type": "pause"}``             accept no more connections for now
master  ``{"type": "resume"}``            accept again
master  ``{"type": "stop"}``              cut everything, exit 0
master  ``{"type": "reopen"}``            open the log files again
master  ``{"type": "nodes", "changes": […]}``  what changed in the table of subscriptions
worker  ``{"type": "ready"}``             accepting
worker  ``{"type": "draining"}``          accepting no more
worker  ``{"type": "failed", "reason": s}``  cannot start, and trying again will not help
worker  ``{"type": "stats", "round": n, "snapshot": {…}}``
worker  ``{"type": "mark", "key": s, "address": s, "reason": s}``  a node cannot be reached
worker  ``{"type": "reached", "key": s, "address": s}``  a marked node was reached after all
======  ================================  ============================================

A drain may be ordered again: what is gentle can become plain, never the other way round, and the
earlier end counts. Without ``limit`` it is the ``drain-timeout`` of the gateway. SIGTERM is a plain
one, and so is the end of the channel, which tells that the master has died: over a reload it stays
open.

Both ends are non-blocking and bounded. The master does not trust a worker's bytes: a line that is
too long, not UTF-8 or not a JSON object raises ``ControlError``, and the worker is replaced; so is
one that says more than `Allowance` has room for.
"""

from __future__ import annotations

import json
import socket
import time
from typing import NoReturn

# A snapshot holds some 250 bytes a node: room for tens of thousands of nodes.
MAX_MESSAGE = 16 << 20
_CHUNK = 1 << 16
_LAST = 4 << 20  # bytes that are read from a worker that has ended; the kernel keeps less
_LONGEST_PIECE = 1 << 20  # of a message that the next master is told

_MESSAGES = 20_000  # a worker may say at once: a mark for every node it knows
_MESSAGES_PER_SECOND = 2_000
_BYTES = 128 << 20
_BYTES_PER_SECOND = 16 << 20

Message = dict[str, object]


class ControlError(Exception):
    """The peer broke the rules of the channel; it cannot be used any more."""


class Channel:
    """One end. ``limit``: bytes of one message, and of what may wait to be sent."""

    __slots__ = (
        "_in", "_limit", "_mute", "_out", "_scanned", "_socket", "_torn", "closed", "size",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, limit: int = MAX_MESSAGE) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._limit = limit
        self._in = bytearray()
        self._scanned = 0
        self._out = bytearray()
        self._torn = False  # the next line may be the end of one
        self._mute = False  # the peer does not read any more; what it wrote may still be here
        self.closed = False  # nothing more will be received
        self.size = 0  # bytes of the last ``receive``

    def fileno(self) -> int:
        """Descriptor for a selector or event loop."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Bytes wait: call ``flush`` when the descriptor is writable."""
        return bool(self._out)

    def send(self, message: Message) -> bool:
        """Send, or keep for ``flush``; False if it was dropped because too much waits already."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if self._mute or len(self._out) + len(line) > self._limit:
            return False
        self._out += line
        self.flush()
        return not self._mute

    def flush(self) -> None:
        """Send what the kernel takes now."""
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._out.clear()
            self._mute = True

    def receive(self, *, last: bool = False) -> list[Message]:
        """Messages that are complete by now, of the next 64 KB; sets ``closed`` at the end of the
        stream. ``last``: of all that is there, as nobody will ask again.

        Raises ``ControlError`` for a malformed or oversized message.
        """
        messages: list[Message] = []
        self.size = 0
        left = _LAST if last else _CHUNK
        while left > 0 and not self.closed:
            try:
                chunk = self._socket.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.closed = True
                break
            left -= len(chunk)
            self.size += len(chunk)
            self._in += chunk
            messages += self._take()
        return messages

    def _take(self) -> list[Message]:
        messages: list[Message] = []
        while (end := self._in.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            self._scanned = 0
            torn, self._torn = self._torn, False
            try:
                messages.append(_decode(line))
            except ControlError:
                if not torn:
                    raise
        # A long line arrives in many pieces: look at each byte once.
        self._scanned = len(self._in)
        if self._scanned > self._limit:
            raise ControlError("message too long")
        return messages

    def pieces(self) -> tuple[bytes, bytes, bool]:
        """Pieces of messages: what was read but is not complete, what waits to be sent; and whether
        the next line to be read may be the end of one, as its beginning was too long to tell."""
        if len(self._in) > _LONGEST_PIECE:
            return b"", bytes(self._out), True
        return bytes(self._in), bytes(self._out), self._torn

    def restore(self, unread: bytes, unsent: bytes, *, torn: bool = False) -> None:
        """Go on where another process, with this very descriptor, has stopped (`pieces`)."""
        self._in += unread
        self._out += unsent
        self._torn = torn

    def resume(self) -> None:
        """Go on after another process has used this very descriptor for a while: it may have read
        the beginning of a message, and sent what waited here."""
        self._in.clear()
        self._out.clear()
        self._scanned = 0
        self._torn = True

    def close(self) -> None:
        """Close the descriptor; what waits is lost."""
        self.closed = self._mute = True
        self._out.clear()
        self._socket.close()


class Allowance:
    """How much a worker may say: 20,000 messages and 128 MB at once, 2,000 and 16 MB a second."""

    __slots__ = ("_bytes", "_messages", "_since")

    def __init__(self) -> None:
        self._messages = float(_MESSAGES)
        self._bytes = float(_BYTES)
        self._since = time.monotonic()

    def take(self, messages: int, size: int) -> None:
        """Raises ``ControlError`` if these are too many, or too long."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._messages = min(self._messages + seconds * _MESSAGES_PER_SECOND, _MESSAGES) - messages
        self._bytes = min(self._bytes + seconds * _BYTES_PER_SECOND, _BYTES) - size
        if self._messages < 0 or self._bytes < 0:
            raise ControlError("too many messages")


def pair() -> tuple[Channel, socket.socket]:
    """The master's end, and the socket that the child makes its own channel of."""
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


def _decode(line: bytes) -> Message:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ControlError("not JSON") from None
    if not isinstance(value, dict):
        raise ControlError("not a JSON object")
    return value


def _no_constant(word: str) -> NoReturn:
    """Python's JSON knows NaN and infinities, JSON does not."""
    raise ValueError(word)
