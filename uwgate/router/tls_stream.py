"""The bytes of one TLS connection: a raw socket, OpenSSL between two memory buffers, a transport.

``asyncio``'s own TLS costs 48 KB an idle connection and a quarter of a handshake more (measured);
what a front needs of a transport fits into one class. What OpenSSL is given was received in one
call, and what it makes is sent in one call, so that no record costs a system call of its own.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
from _socket import socket as new_socket  # see upstream_uwsgi
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uwgate.router.errors import Failure
from uwgate.router.fast_client import DONTWAIT, UNWATCHED
from uwgate.router.poller import READ, WRITE

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway
    from uwgate.tls.peer import Peer

_READ_SIZE = 65536  # bytes a turn: four records, and as much as one connection may take of a round
_MAX_PLAIN = 16384  # of one record
_HIGH, _LOW = 65536, 16384  # water marks of unsent bytes, asyncio's
_AHEAD = 262144  # bytes encrypted before the kernel has taken the last ones
_HANG_UP = select.EPOLLHUP | select.EPOLLERR
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds

Engine = Any
"""``_ssl._SSLSocket``: what ``ssl.SSLObject`` wraps, at a third of the cost of a call."""


class TlsStream:
    """A transport over TLS, as far as fronts use one (``asyncio.Transport``).

    ``fd``: -1 once the socket is closed. ``front``: the protocol, once the handshake is done.
    """

    __slots__ = (
        "__weakref__",
        "backlog",
        "backlog_size",
        "blocked",
        "closing",
        "engine",
        "eof",
        "events",
        "fd",
        "front",
        "gateway",
        "incoming",
        "outgoing",
        "peer",
        "peername",
        "read",
        "reading",
        "shut",
        "sock",
        "unsent",
    )

    def __init__(self, gateway: HttpGateway, sock: new_socket) -> None:
        self.gateway = gateway
        self.sock = sock
        self.fd = sock.fileno()
        self.events = UNWATCHED
        self.engine: Engine = None
        self.incoming: ssl.MemoryBIO
        self.outgoing: ssl.MemoryBIO
        self.read: Callable[[int], bytes]
        self.front: asyncio.Protocol | None = None
        self.peer: Peer | None = None
        self.peername: tuple[str, int] | None = None
        self.unsent: memoryview | None = None  # encrypted, and not taken by the kernel yet
        self.backlog: list[bytes | memoryview] = []  # not even encrypted
        self.backlog_size = 0
        self.reading = True
        self.blocked = False  # the front was asked to pause
        self.closing = False  # no more is written; the socket closes when all is sent
        self.shut = False  # close_notify is sent
        self.eof = False  # the client sends no more

    # --- readiness --------------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """The poller's call."""
        if self.unsent is not None and events & ~READ:
            self._flush()
        if self.fd < 0:
            return
        if self.events & READ:
            try:
                data = self.sock.recv(_READ_SIZE, DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self.lost(error)
                return
            if data:
                self.received(data)
            else:
                self.end_of_input()
        elif events & _HANG_UP:
            self.lost(None)

    def watch_socket(self) -> None:
        """Have the poller watch for what is wanted now."""
        if self.fd < 0:
            return
        wanted = READ if self.reading and not self.eof else 0
        if self.unsent is not None:
            wanted |= WRITE
        before = self.events
        if wanted == before:
            return
        self.events = wanted
        if before == UNWATCHED:
            self.gateway.poller.register(self.fd, self, wanted)
        else:
            self.gateway.poller.modify(self.fd, wanted)

    # --- receiving --------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes of the client after the handshake."""
        self.incoming.write(data)
        self.decrypt()

    def decrypt(self) -> None:
        """Hand on what ``incoming`` holds of whole records."""
        incoming, read = self.incoming, self.read
        parts: list[bytes] = []
        ended = broken = False
        while incoming.pending:
            try:
                plain = read(_MAX_PLAIN)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                plain = b""
            except ssl.SSLError:
                broken = True
                break
            if not plain:
                ended = True
                break
            parts.append(plain)
        if self.outgoing.pending and not self.closing:
            self._send_out()  # alerts, answers to key updates
        if parts and not self.closing and self.front is not None:
            self.front.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if broken:
            self.gateway.tally.errors[Failure.TLS_BROKEN] += 1
            self.abort()
        elif ended:
            self.end_of_input()

    def end_of_input(self) -> None:
        """The client has sent close_notify, or FIN."""
        if self.eof or self.fd < 0:
            return
        self.eof = True
        self.watch_socket()
        front = self.front
        if front is not None and not self.closing and not front.eof_received():
            self.close()

    # --- sending ----------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep what the client does not take yet and have the front pause."""
        if self.closing or self.shut:
            return
        if self.unsent is not None:
            self.backlog.append(data)
            self.backlog_size += len(data)
            if not self.blocked and self.get_write_buffer_size() > _HIGH:
                self._block()
            return
        try:
            self.engine.write(data)
        except ssl.SSLError:
            self._fail()
            return
        self._send_out()

    def _send_out(self) -> None:
        """Send what OpenSSL has made."""
        data = self.outgoing.read()
        if self.unsent is not None:
            self.unsent = memoryview(b"".join((self.unsent, data)))
            return
        try:
            sent = self.sock.send(data, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fail()
            return
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            self.watch_socket()
            if not self.blocked and len(data) - sent > _HIGH:
                self._block()

    def _block(self) -> None:
        self.blocked = True
        if self.front is not None:
            self.front.pause_writing()

    def _flush(self) -> None:
        """The client takes more."""
        while True:
            unsent = self.unsent
            if unsent is not None:
                try:
                    sent = self.sock.send(unsent, DONTWAIT)
                except BlockingIOError:
                    return
                except OSError as error:
                    self.lost(error)
                    return
                if sent < len(unsent):
                    self.unsent = unsent[sent:]
                    break
                self.unsent = None
            if not self.backlog:
                break
            try:
                self._encrypt_backlog()
            except ssl.SSLError as error:
                self.lost(error)
                return
        if self.blocked and self.get_write_buffer_size() <= _LOW:
            self.blocked = False
            if self.front is not None:
                self.front.resume_writing()
        if self.fd >= 0 and self.unsent is None:
            if self.closing:
                self._finish()
                return
            if self.shut:
                self._half_close()
            self.watch_socket()

    def _encrypt_backlog(self) -> None:
        size = 0
        taken = 0
        for data in self.backlog:
            size += len(data)
            taken += 1
            if size >= _AHEAD:
                break
        parts, self.backlog = self.backlog[:taken], self.backlog[taken:]
        self.backlog_size -= size
        self.engine.write(parts[0] if taken == 1 else b"".join(parts))
        if self.closing or self.shut:
            self._say_goodbye()
        self.unsent = memoryview(self.outgoing.read())

    def _say_goodbye(self) -> None:
        """close_notify behind the last byte. Without it a client would have to take the end for an
        attack (RFC 8446 §6.1), and OpenSSL would drop the session."""
        if self.backlog or self.engine is None:
            return
        try:
            self.engine.shutdown()
        except ssl.SSLError:
            pass  # the client's own is not waited for

    def _fail(self) -> None:
        # Not at once: whoever writes is in the middle of something.
        self.closing = True
        self.unsent = None
        self.backlog.clear()
        self.backlog_size = 0
        self.gateway.loop.call_soon(self.lost, None)

    # --- asyncio.Transport ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: object = None) -> object:
        """``peername``, ``socket``, ``tls`` (Peer), ``ssl_object``."""
        if name == "peername":
            return self.peername
        if name == "tls":
            return self.peer
        if name == "socket":
            return self.sock if self.fd >= 0 else None
        if name == "ssl_object":
            return self.engine
        return default

    def is_closing(self) -> bool:
        """Whether ``close`` or ``abort`` was called, or the connection is lost."""
        return self.closing or self.fd < 0

    def pause_reading(self) -> None:
        """No ``data_received`` until ``resume_reading``; the kernel makes the client wait."""
        self.reading = False
        self.watch_socket()

    def resume_reading(self) -> None:
        """Go on reading."""
        self.reading = True
        self.watch_socket()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for the client, encrypted or not."""
        return self.backlog_size + (len(self.unsent) if self.unsent is not None else 0)

    def can_write_eof(self) -> bool:
        """TLS knows a half-closed connection (RFC 8446 §6.1)."""
        return True

    def write_eof(self) -> None:
        """close_notify and FIN behind what is written; what the client sends is still read."""
        if self.shut or self.closing:
            return
        self.shut = True
        self._say_goodbye()
        if self.outgoing.pending:
            self._send_out()
        if self.unsent is None and self.fd >= 0:
            self._half_close()

    def _half_close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # already reset: the reader finds out

    def close(self) -> None:
        """Close when all is sent, close_notify included."""
        if self.closing or self.fd < 0:
            return
        self.closing = True
        self.reading = False
        if not self.shut:
            self._say_goodbye()
            if self.outgoing.pending:
                self._send_out()
        if self.unsent is None:
            self._finish()
        else:
            self.watch_socket()

    def _finish(self) -> None:
        self.close_socket()
        self.gateway.loop.call_soon(self.gone, None)

    def abort(self) -> None:
        """Close now; what waits is lost."""
        if self.fd >= 0:
            self.closing = True
            self.close_socket()
            self.gateway.loop.call_soon(self.gone, None)

    def lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self.fd >= 0:
            self.closing = True
            self.close_socket()
            self.gone(error)

    def gone(self, error: Exception | None) -> None:
        """The last call: tell the front, and let go of everything."""
        front, self.front = self.front, None
        self.engine = None
        if front is not None:
            front.connection_lost(error)

    def reset(self) -> None:
        """Close with a reset: for a client that does not take what it is sent."""
        if self.fd >= 0 and self.sock.family != socket.AF_UNIX:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass  # gone already
        self.abort()

    def close_socket(self) -> None:
        """Close; unsent bytes are dropped."""
        fd = self.fd
        if fd >= 0:
            self.fd = -1
            if self.events != UNWATCHED:
                self.events = UNWATCHED
                self.gateway.poller.forget(fd)
            self.sock.close()
            self.unsent = None
            self.backlog.clear()
            self.backlog_size = 0
