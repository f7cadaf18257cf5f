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
from _socket import socket as new_socket  # see upstream_uwsgi
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from uwgate.router.errors import Failure
from uwgate.router.fast_client import DONTWAIT, UNWATCHED
from uwgate.router.poller import READ, WRITE

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway
    from uwgate.tls.peer import Peer

# OpenSSL's buffers stay as large as they once had to be, so what goes through them at once is what
# an idle connection may cost. Twice as much would save 2 % of the CPU of large bodies.
_READ_SIZE = 32768  # bytes a turn, and as much as one connection may take of a round
_PIECE = 32768  # bytes encrypted in one call
_MAX_PLAIN = 16384  # of one record
_HIGH, _LOW = 65536, 16384  # water marks of unsent bytes, asyncio's
_AHEAD = 262144  # bytes encrypted before the kernel has taken the last ones
_REFUSALS = 4096  # bytes that wait for a response to go with it
_HANG_UP = select.EPOLLHUP | select.EPOLLERR

Engine = Any
"""``_ssl._SSLSocket``: what ``ssl.SSLObject`` wraps, at a third of the cost of a call."""

Data = bytes | memoryview


class TlsStream:
    """A transport over TLS, as far as fronts use one (``asyncio.Transport``).

    ``fd``: -1 once the socket is closed. ``front``: the protocol, once the handshake is done.
    """

    __slots__ = (
        "backlog",
        "backlog_size",
        "blocked",
        "closing",
        "corked",
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
        self.unsent: Sequence[Data] = ()  # encrypted, and not taken by the kernel yet
        self.backlog: list[Data] | None = None  # not even encrypted
        self.backlog_size = 0
        self.reading = True
        self.blocked = False  # the front was asked to pause
        self.corked = False  # what is written goes with the close_notify that follows
        self.closing = False  # no more is written; the socket closes when all is sent
        self.shut = False  # close_notify is wanted behind what is written
        self.eof = False  # the client sends no more

    # --- readiness --------------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """The poller's call."""
        if self.unsent and events & ~READ:
            self._flush()
            if self.fd < 0:
                return
        if not self.events & READ:
            if events & _HANG_UP:
                self._hung_up(events)
            return
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

    def _hung_up(self, events: int) -> None:
        """Both directions are shut, or reset, and nobody wants to read now. Or it was said of
        another connection, which had this number until a moment ago."""
        if self.eof or (
            events & select.EPOLLERR
            and self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        ):
            self.lost(None)
        elif not self.unsent:  # what has come before is read when it is wanted
            self.events = UNWATCHED
            self.gateway.poller.suspend(self.fd)

    def watch_socket(self) -> None:
        """Have the poller watch for what is wanted now."""
        if self.fd < 0:
            return
        wanted = READ if self.reading and not self.eof else 0
        if self.unsent:
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
        try:
            while incoming.pending:
                plain = read(_MAX_PLAIN)
                if not plain:
                    ended = True
                    break
                parts.append(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError:
            broken = True
        front = self.front
        if parts and front is not None and not self.closing:
            front.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
            if self.outgoing.pending > _REFUSALS and not self.closing:
                broken = self._answer() or broken
        elif self.outgoing.pending and self.fd >= 0:
            broken = self._answer() or broken
        if broken:
            self._break()
        elif ended:
            self.end_of_input()

    def _answer(self) -> bool:
        """Send what goes with no response: refusals to renegotiate. Whether the client goes on
        asking and does not read."""
        if self.fd >= 0:
            self._send_out()
        return self.get_write_buffer_size() > 2 * _AHEAD

    def _break(self) -> None:
        """What came is no record: nothing of this connection can be trusted any more."""
        self.gateway.tally.errors[Failure.TLS_BROKEN] += 1
        if self.fd >= 0 and self.outgoing.pending:
            self._send_out()  # the alert
        self.abort()

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

    def write(self, data: Data) -> None:
        """Send, or keep what the client does not take yet and have the front pause."""
        if self.unsent or len(data) > _PIECE or self.closing or self.shut or not data:
            self._write_more(data)
            return
        try:
            self.engine.write(data)
        except ssl.SSLError:
            self._fail()
            return
        if not self.corked:
            self._send_out()

    def writelines(self, pieces: Iterable[Data]) -> None:
        """As one piece: records are as long as that allows."""
        self.write(b"".join(pieces))

    def cork(self) -> None:
        """The next writes are the last ones: they wait for ``close`` or ``write_eof``."""
        self.corked = True

    def _write_more(self, data: Data) -> None:
        """Anything but a small piece that can be sent at once."""
        if self.closing or self.shut or not data:
            return
        if self.backlog is None:
            self.backlog = [data]
        else:
            self.backlog.append(data)
        self.backlog_size += len(data)
        if not self.unsent:
            try:  # a backlog waits behind unsent bytes, never alone: nothing would wake it
                self._encrypt_backlog()
                self._send_backlog()
            except OSError:  # ssl.SSLError is one
                self._fail()
                return
            self.watch_socket()
        if not self.blocked and self.get_write_buffer_size() > _HIGH:
            self._block()

    def _send_out(self) -> None:
        """Send what OpenSSL has made."""
        data = self.outgoing.read()
        if self.unsent:
            self.unsent = [*self.unsent, data]
            return
        try:
            sent = self.sock.send(data, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fail()
            return
        if sent < len(data):
            self.unsent = (memoryview(data)[sent:],)
            self.watch_socket()
            if not self.blocked and len(data) - sent > _HIGH:
                self._block()

    def _block(self) -> None:
        self.blocked = True
        if self.front is not None:
            self.front.pause_writing()

    def _send_unsent(self) -> bool:
        """Whether the kernel has taken it all. Raises OSError."""
        unsent = self.unsent
        try:
            sent = self.sock.sendmsg(unsent, (), DONTWAIT)
        except BlockingIOError:
            return False
        for index, part in enumerate(unsent):
            if sent < len(part):
                self.unsent = [memoryview(part)[sent:], *unsent[index + 1 :]]
                return False
            sent -= len(part)
        self.unsent = ()
        return True

    def _send_backlog(self) -> None:
        """Send what is encrypted, and encrypt more, as long as the kernel takes it. Raises
        OSError."""
        while self._send_unsent() and self.backlog is not None:
            self._encrypt_backlog()

    def _flush(self) -> None:
        """The client takes more."""
        try:
            self._send_backlog()
        except OSError as error:
            self.lost(error)
            return
        if self.blocked and self.get_write_buffer_size() <= _LOW:
            self.blocked = False
            if self.front is not None:
                self.front.resume_writing()
        if self.fd >= 0 and not self.unsent:
            self._all_sent()

    def _all_sent(self) -> None:
        if self.closing:
            self._finish()
            return
        if self.shut:
            self._half_close()
        self.watch_socket()

    def _encrypt_backlog(self) -> None:
        """Encrypt what waits, within bounds, and put it where it waits to be sent."""
        backlog = self.backlog
        assert backlog is not None
        size = taken = 0
        for data in backlog:
            size += len(data)
            taken += 1
            if size >= _AHEAD:
                break
        whole = memoryview(backlog[0] if taken == 1 else b"".join(backlog[:taken]))
        del backlog[:taken]
        if size > _AHEAD:
            backlog.insert(0, whole[_AHEAD:])
            whole = whole[:_AHEAD]
        if not backlog:
            self.backlog = None
        self.backlog_size -= len(whole)
        write, read = self.engine.write, self.outgoing.read
        unsent: list[Data] = []
        for start in range(0, len(whole), _PIECE):
            write(whole[start : start + _PIECE])
            unsent.append(read())
        if self.backlog is None and (self.closing or self.shut):
            self._say_goodbye()
            unsent.append(read())
        self.unsent = unsent

    def _say_goodbye(self) -> None:
        """close_notify behind the last byte. Without it a client would have to take the end for an
        attack (RFC 8446 §6.1), and OpenSSL would drop the session."""
        try:
            self.engine.shutdown()
        except ssl.SSLError:
            pass  # the client's own is not waited for

    def _fail(self) -> None:
        # Not at once: whoever writes is in the middle of something.
        self.closing = True
        self._forget_unsent()
        self.gateway.loop.call_soon(self.lost, None)

    def _forget_unsent(self) -> None:
        self.unsent = ()
        self.backlog = None
        self.backlog_size = 0

    # --- asyncio.Transport ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: object = None) -> object:
        """``peername``, ``socket``, ``tls`` (Peer)."""
        if name == "peername":
            return self.peername
        if name == "tls":
            return self.peer
        if name == "socket":
            return self.sock if self.fd >= 0 else None
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
        return self.backlog_size + sum(map(len, self.unsent))

    def can_write_eof(self) -> bool:
        """TLS knows a half-closed connection (RFC 8446 §6.1)."""
        return True

    def write_eof(self) -> None:
        """close_notify and FIN behind what is written; what the client sends is still read."""
        if self.shut or self.closing:
            return
        self.shut = True
        self._end_writing()
        if not self.unsent and self.fd >= 0:
            self._half_close()

    def _end_writing(self) -> None:
        if self.backlog is None:  # else it comes behind that
            self._say_goodbye()
            if self.outgoing.pending:
                self._send_out()

    def _half_close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # already reset: the reader finds out

    def close(self) -> None:
        """Close when all is sent, close_notify included."""
        if self.closing or self.fd < 0:
            return
        self.reading = False
        if not self.shut:
            self._end_writing()
        self.closing = True
        if self.unsent:
            self.watch_socket()
        else:
            self._finish()

    def _finish(self) -> None:
        if self.fd >= 0:
            self.close_socket()
            self.gateway.loop.call_soon(self.gone, None)

    def abort(self) -> None:
        """Close now; what waits is lost."""
        self.closing = True
        self._keep_session()
        self._finish()

    def lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self.fd >= 0:
            self.closing = True
            self._keep_session()
            self.close_socket()
            self.gone(error)

    def _keep_session(self) -> None:
        """OpenSSL drops the session of a connection that ends without a goodbye, and has all other
        machines drop it. A client that is cut off may well come back with it."""
        if self.engine is not None:
            self._say_goodbye()

    def gone(self, error: Exception | None) -> None:
        """The last call: tell the front, and let go of everything."""
        front, self.front = self.front, None
        self.engine = None
        if front is not None:
            front.connection_lost(error)

    def close_socket(self) -> None:
        """Close; unsent bytes are dropped."""
        fd = self.fd
        if fd >= 0:
            self.fd = -1
            if self.events != UNWATCHED:
                self.events = UNWATCHED
                self.gateway.poller.forget(fd)
            self.sock.close()
            self._forget_unsent()
