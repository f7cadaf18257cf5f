"""Pooled keep-alive connections to HTTP/1.1 nodes."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, cast

from uwgate.protocols.chunked import encode_chunk, last_chunk
from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.http1_request import CHUNKED
from uwgate.router.errors import Failure
from uwgate.router.heads import http_head
from uwgate.router.phases import SENT
from uwgate.router.upstream import HEAD, LENGTH, RAW, SHORTAGES, Back

if TYPE_CHECKING:
    from uwgate.router.balance import Address, Node
    from uwgate.router.exchange import Exchange
    from uwgate.router.gateway import Gateway
    from uwgate.router.spool import Spool

_SPOOL_PIECE = 65536
_BACKLOG_RETRY = 0.01  # seconds


class HttpBack(Back, asyncio.Protocol):
    """A keep-alive connection to an HTTP/1.1 node."""

    __slots__ = ("_blocked", "_pumped", "_sock", "deadline", "due", "transport")

    def __init__(self, gateway: Gateway, node: Node, sock: socket.socket) -> None:
        super().__init__(gateway, node)
        self._sock = sock
        self._blocked = False  # the node does not keep up
        self._pumped: Spool | None = None  # a body taken in whole that is being sent
        self.transport: asyncio.Transport
        self.deadline = 0.0  # of an idle connection
        self.due = 0

    def is_open(self) -> bool:
        """Whether the node has neither closed this idle connection nor sent anything, asked of the
        kernel: the loop may not have come to it yet."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def begin(self, exchange: Exchange) -> None:
        """Send a request over this connection."""
        self.exchange = exchange
        if exchange.plain and exchange.request.repeatable:
            head = exchange.head
            size = len(head)
            self.node.rx += size
            # Nothing waits in the transport of a connection that is new or was idle (``_park``).
            try:
                sent = self._sock.send(head)
            except OSError:
                sent = 0  # the transport says why
            if sent != size:
                self.transport.write(head[sent:])
            exchange.phase = SENT
            exchange.back = self
            if self.gateway.short_connect:
                exchange.front.deadline = self.gateway.request_deadline
            if self.gateway.timed > 1:
                exchange.connected_now()
            return
        head = http_head(exchange)
        self.node.rx += len(head)
        self.transport.write(head)
        exchange.sent(self)
        if exchange.raw and self.exchange is exchange:
            self.state = RAW
            exchange.upgraded(None)
            return
        if exchange.spool is not None and self.exchange is exchange:
            # It was meant for a uwsgi node, which could not be reached.
            self._pumped = exchange.spool
            self._pump()

    def _pump(self) -> None:
        """Send a spooled body, as chunks if it came as such, as fast as the node takes it."""
        spool, exchange = self._pumped, self.exchange
        chunked = exchange is not None and exchange.block.length == CHUNKED
        while spool is not None and not self._blocked:
            piece = spool.read(_SPOOL_PIECE)
            if piece:
                self.write(encode_chunk(piece) if chunked else piece)
            else:
                if chunked:
                    self.write(last_chunk(b""))
                self._pumped = spool = None

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.gateway.backs.add(self)

    def data_received(self, data: bytes) -> None:
        node = self.node
        size = len(data)
        node.tx += size
        exchange = self.exchange
        if (
            exchange is not None
            and exchange.plain
            and not self.state
            and not self.buffer
            and not self.touched
        ):
            # The usual case: a complete response in one piece, most often with the last head again.
            last = node.last_head
            if data.startswith(last):
                head, end = node.last_parsed, len(last)
            else:
                end = data.find(b"\r\n\r\n") + 4
                if end < 4:
                    self.receive(data)
                    return
                try:
                    head = self.gateway.responses.parse(data[:end])
                except Http1Error:
                    self.receive(data)  # once more, to say what is wrong
                    return
                node.last_head, node.last_parsed = data[:end], head
            if head.usual:
                left = head.length - size + end
                if not left:
                    self.exchange = None
                    self._park()
                    exchange.whole(head, data, end)
                    return
                if left > 0:
                    self.left = left
                    self.state = LENGTH
                    self.keep = True
                    exchange.begin(head, data, end)
                    return
        self.receive(data)

    def eof_received(self) -> bool:
        if self.state == RAW and self.exchange is not None:
            self.exchange.front.tunnel_eof()
            return True
        self._unlist()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.backs.discard(self)
        self.deadline = 0.0
        self.gateway.clock.forget(self)
        if exc is not None and self.state != RAW:
            self._rescue()
        if self.exchange is not None:
            self.ended(exc is not None)
        else:
            self._unlist()

    def _rescue(self) -> None:
        """Read what the node said before it broke the connection: a node that refuses a body
        answers, closes, and makes our next write fail before its answer was read."""
        while self.exchange is not None:
            try:
                data = self._sock.recv(_SPOOL_PIECE)
            except OSError:
                break
            if not data:
                break
            self.data_received(data)
        self._unlist()

    def _unlist(self) -> None:
        """Not for the next request: what would be sent is lost, or served twice."""
        if self.exchange is None and self in self.node.idle:
            self.node.idle.remove(self)

    def pause_writing(self) -> None:
        self._blocked = True
        if self.exchange is not None:
            self.exchange.front.pause()

    def resume_writing(self) -> None:
        self._blocked = False
        if self.exchange is not None:
            self.exchange.front.resume()
            self._pump()

    # --- Back ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.node.rx += len(data)
            self.transport.write(data)

    def abort(self) -> None:
        self._unlist()
        self.exchange = self._pumped = None
        self.deadline = 0.0
        self.transport.abort()

    def finish(self) -> None:
        self.exchange = self._pumped = None
        self.deadline = self.gateway.request_deadline
        self.gateway.clock.watch(self)
        self.transport.close()

    def write_eof(self) -> None:
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def pause(self) -> None:
        self.paused = True
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        self.paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def release(self, *, reusable: bool) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None and exchange.block.upgrade:
            reusable = False  # a node that was asked for a tunnel may take anything for its bytes
        if self._pumped is not None:  # the answer came before all of the body was sent
            self._pumped, reusable = None, False
        if self.paused:
            self.resume()
        if reusable:
            self.state = HEAD
            self.touched = False
            self.reader = None
            self._park()
        else:
            self._leave()

    def _leave(self) -> None:
        """Close; what the node has not taken is sent as long as a request may last."""
        if self.transport.get_write_buffer_size():
            self.finish()
        else:
            self.transport.close()

    def _park(self) -> None:
        """Wait in the pool for the next request, if the node has taken all of the last one."""
        gateway, idle = self.gateway, self.node.idle
        if len(idle) >= gateway.pool_limit or self.transport.get_write_buffer_size():
            self._leave()
            return
        self.deadline = gateway.pool_deadline
        if not self.due:
            self.reused = True
            gateway.clock.watch(self)
        idle.append(self)

    def expired(self) -> None:
        """Idle for too long, or closed, and the node does not take the rest."""
        if self in self.node.idle:
            self.node.idle.remove(self)
            self.transport.close()
        elif self.exchange is None:
            self.transport.abort()


def connect_http(gateway: Gateway, node: Node, exchange: Exchange) -> asyncio.Task[None]:
    """Open a connection to an HTTP node and send the exchange's request over it."""
    return gateway.loop.create_task(_connect_http(gateway, node, exchange))


async def _connect_unix(sock: socket.socket, address: Address) -> None:
    """Connect to a unix socket; a full backlog (EAGAIN) cannot be waited for, only tried again
    until the connect deadline cancels the task."""
    while True:
        try:
            sock.connect(address)
        except BlockingIOError:
            await asyncio.sleep(_BACKLOG_RETRY)
        else:
            return


async def _connect_http(gateway: Gateway, node: Node, exchange: Exchange) -> None:
    reason: OSError | None = None
    for family, address in node.addresses:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno in SHORTAGES:
                exchange.task = None
                exchange.shortage(error)
                return
            reason = error
            continue
        try:
            if family == socket.AF_UNIX:
                await _connect_unix(sock, address)
            else:
                await gateway.loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = (
                gateway.loop.create_unix_connection
                if family == socket.AF_UNIX
                else gateway.loop.create_connection
            )
            _transport, back = await connection(partial(HttpBack, gateway, node, sock), sock=sock)
        except OSError as error:
            sock.close()
            reason = error
            continue
        except BaseException:
            sock.close()
            raise
        exchange.task = None
        gateway.node_works(node)
        gateway.tally.node_connects += 1
        back.begin(exchange)
        return
    exchange.task = None
    text = reason.strerror if reason is not None else "its name does not resolve"
    exchange.connect_failed(Failure.NODE_CONNECT, text or str(reason))
