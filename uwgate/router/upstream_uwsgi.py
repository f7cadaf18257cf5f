"""One-shot connections to uwsgi nodes: raw non-blocking sockets under the poller.

The protocol has one request a connection, so what a connection costs is what a request costs: no
task, no transport, no future; connect, send at once (on unix sockets and loopback that succeeds),
one registration, receive, close as soon as the response's framing says that it is complete.
"""

from __future__ import annotations

import errno
import os
import socket

# The class below socket.socket, which adds what nobody here uses (makefile, dup, contexts) at half
# a microsecond an object.
from _socket import socket as new_socket
from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.uwsgi import PacketError
from uwgate.router.errors import Failure
from uwgate.router.phases import CONNECTING, SENT
from uwgate.router.poller import READ, WRITE
from uwgate.router.upstream import RAW, SHORTAGES, Back

if TYPE_CHECKING:
    from uwgate.router.balance import Address, Node
    from uwgate.router.exchange import Exchange
    from uwgate.router.gateway import Gateway

STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_UNIX, _TCP, _QUICKACK = int(socket.AF_UNIX), socket.IPPROTO_TCP, socket.TCP_QUICKACK
_FIRST_READ = 65536
_NEXT_READ = 262144
_HIGH_WATER = 65536  # unsent bytes at which the client is asked to wait
_SPOOL_PIECE = 65536
_BACKLOG_RETRY = 0.01  # seconds; a unix socket whose backlog is full cannot be waited for


def prepare_tcp(sock: new_socket) -> None:
    """The last step of the handshake waits for the packet and goes with it: one segment less, and
    the node wakes once."""
    sock.setsockopt(_TCP, _QUICKACK, 0)


def learn_head(gateway: Gateway, node: Node, data: bytes) -> bool:
    """Make the response head in ``data`` the node's last; False: the general path has to look."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return False
    try:
        node.last_parsed = gateway.responses.parse(data[:end])
    except Http1Error:
        return False
    node.last_head = data[:end]
    return True


class UwsgiBack(Back):
    """The connection of one request to one uwsgi node."""

    __slots__ = (
        "_addresses", "_broken", "_ended", "_eof_wanted", "_events", "_held", "_unsent", "deadline",
        "due", "fd", "sock",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, node: Node) -> None:
        super().__init__(gateway, node)
        self.fd = -1
        self._events = 0
        self._unsent = b""
        self._eof_wanted = self._ended = False
        self._broken = 0  # why nothing can be written in a tunnel any more
        self._held = False  # the front was asked to pause
        self.deadline = 0.0  # of one that closes when all is sent
        self.due = 0
        self._addresses: tuple[tuple[int, Address], ...] = ()  # to try after this one

    # --- connecting ---------------------------------------------------------------------------

    def make_packet(self, exchange: Exchange, node: Node) -> bytes:
        """The packet of the request; b"" if it cannot be said in one (the exchange knows)."""
        try:
            packet = exchange.uwsgi_packet()
        except PacketError as error:
            exchange.packet_refused(error)
            return b""
        exchange.packet, exchange.packet_node = packet, node
        return packet

    def connect_to(self, family: int, address: Address, packet: bytes) -> None:
        """Begin to connect to one address of the node; ``send_packet`` follows."""
        try:
            self.sock = sock = new_socket(family, STREAM)
        except OSError as error:  # no descriptor left, or no such family
            exchange = self.exchange
            if error.errno in SHORTAGES and exchange is not None:
                exchange.shortage(error)
            else:
                self._try_next(packet, error.strerror or str(error))
            return
        self.fd = sock.fileno()
        try:
            if family != _UNIX:
                prepare_tcp(sock)
            code = sock.connect_ex(address)
        except OSError as error:  # a path that no address can hold
            code = error.errno or errno.EINVAL
        if code and code != errno.EINPROGRESS:
            self._not_connected(family, address, packet, code)
            return
        # Not at once: see Gateway.unsent.
        self._unsent = packet
        gateway = self.gateway
        if not gateway.unsent:
            gateway.flush_soon()
        gateway.unsent.append(self)

    def send_packet(self) -> None:
        """The first send, a moment after ``connect``; most often the only one."""
        exchange = self.exchange
        if exchange is None or self._events:
            return  # given up meanwhile
        gateway, node, packet = self.gateway, self.node, self._unsent
        try:
            sent = self.sock.send(packet)
        except BlockingIOError:  # still connecting
            self._set_events(WRITE if self.paused else READ | WRITE)
            return
        except OSError as error:
            self._close_socket()
            self._unsent = b""
            self._try_next(packet, error.strerror or str(error))
            return
        node.rx += sent
        if sent == len(packet):
            self._unsent = b""
            self._events = events = 0 if self.paused else READ
        else:
            self._unsent = packet[sent:]
            self._events = events = WRITE if self.paused else READ | WRITE
        if events:
            poller, fd = gateway.poller, self.fd
            poller.owners[fd] = self
            poller.add(fd, events)
        if exchange.plain and not node.dead_until and not gateway.short_connect:
            gateway.tally.node_connects += 1
            exchange.phase = SENT
            if gateway.timed > 1:
                exchange.connected_now()
        else:
            self._connected()

    def later_addresses(self, addresses: tuple[tuple[int, Address], ...]) -> None:
        """What to try if the first address of the node fails."""
        self._addresses = addresses

    def _not_connected(self, family: int, address: Address, packet: bytes, code: int) -> None:
        self._close_socket()
        if code == errno.EAGAIN:
            # A unix socket whose backlog is full: the node lives but is busy. Try again until the
            # connect deadline ends the exchange.
            self._addresses = ((family, address), *self._addresses)
            self.gateway.loop.call_later(_BACKLOG_RETRY, self._again, packet)
        else:
            self._try_next(packet, os.strerror(code))

    def _again(self, packet: bytes) -> None:
        if self.exchange is not None:
            self._try_next(packet, "its backlog is full")

    def _try_next(self, packet: bytes, reason: str) -> None:
        """Connect to the next address of the node, if it has one; most do not."""
        if self._addresses:
            (family, address), *rest = self._addresses
            self._addresses = tuple(rest)
            self.connect_to(family, address, packet)
            return
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.back = None
            exchange.connect_failed(Failure.NODE_CONNECT, reason)

    def _connected(self) -> None:
        exchange = cast("Exchange", self.exchange)
        self._addresses = ()
        self.gateway.node_works(self.node)
        self.gateway.tally.node_connects += 1
        if exchange.raw:
            self.state = RAW
        exchange.sent(self)
        if exchange.raw:
            exchange.upgraded(None)
        if exchange.spool is not None and not self._unsent:
            self._flush()

    # --- taking over what was begun elsewhere (see fast_express) ------------------------------

    def adopt(self, sock: new_socket, fd: int) -> None:
        """Take over a connection over which a packet is sent."""
        self.sock = sock
        self.fd = fd
        poller = self.gateway.poller
        if fd in poller.owners:
            poller.owners[fd] = self
            self._events = READ

    def go_on(self, packet: bytes) -> None:
        """The connection is not made yet: the packet is sent as soon as it is."""
        exchange = cast("Exchange", self.exchange)
        exchange.phase = CONNECTING
        self._unsent = packet
        self._set_events(READ | WRITE)

    def send_on(self, rest: bytes) -> None:
        """Only the beginning of the packet could be sent."""
        self._unsent = rest
        self._set_events(READ | WRITE)

    def not_sent(self, packet: bytes, reason: str) -> None:
        """The connection could not be made: another address, another node."""
        exchange = cast("Exchange", self.exchange)
        exchange.phase = CONNECTING
        self.later_addresses(self.node.addresses[1:])
        self._close_socket()
        self._try_next(packet, reason)

    def take(self, data: bytes) -> None:
        """The first bytes of the response."""
        self._receive(data)

    def broken(self) -> None:
        """Receiving has failed."""
        self._close_socket()
        self.ended(reset=True)

    # --- readiness ----------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """The poller's call; both directions, and the end of connecting."""
        exchange = self.exchange
        if self._events == READ:
            if (
                exchange is None
                or not exchange.plain
                or self.state
                or self.buffer
                or self.touched
            ):
                self._receive()
                return
            # The usual case: the head, and all of the body, in one piece.
            try:
                data = self.sock.recv(_FIRST_READ)
            except BlockingIOError:
                return
            except OSError:
                self._close_socket()
                self.ended(reset=True)
                return
            node = self.node
            last = node.last_head
            if not data.startswith(last):
                if not learn_head(self.gateway, node, data):
                    self._receive(data)
                    return
                last = node.last_head
            head, end = node.last_parsed, len(last)
            if head.length == len(data) - end and head.whole:
                node.tx += len(data)
                self.gateway.poller.owners.pop(self.fd, None)
                self.sock.close()
                self.exchange = None
                self.fd = -1
                self._events = 0
                if self._addresses:
                    self._addresses = ()
                self.gateway.spare.append(self)
                exchange.whole(head, data, end)
            else:
                self._receive(data)
            return
        if exchange is not None and exchange.back is self and exchange.phase < SENT:
            self._on_connecting()
            return
        if self._events & WRITE and events & ~READ:
            self._flush()
        if self.fd >= 0 and self._events & READ:
            self._receive()

    def _on_connecting(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        packet = self._unsent
        try:
            if code:
                raise OSError(code, os.strerror(code))
            sent = self.sock.send(packet)
        except BlockingIOError:
            return
        except OSError as error:
            self._close_socket()
            self._unsent = b""
            self._try_next(packet, error.strerror or str(error))
            return
        self.node.rx += sent
        self._unsent = packet[sent:]
        wanted = 0 if self.paused else READ
        self._set_events(wanted | WRITE if self._unsent else wanted)
        self._connected()

    def _receive(self, data: bytes | None = None) -> None:
        """The general case; ``data``: received already."""
        if not data:
            try:
                data = self.sock.recv(_FIRST_READ if not self.touched else _NEXT_READ)
            except BlockingIOError:
                return
            except OSError:
                self._close_socket()
                self.ended(reset=True)
                return
        if data:
            self.node.tx += len(data)
            self.receive(data)
        elif self.state == RAW and self.exchange is not None and not (self._ended or self._broken):
            self._ended = True
            self._set_events(self._events & ~READ)
            self.exchange.front.tunnel_eof()
        else:
            self._close_socket()
            self.ended(reset=self._broken == errno.ECONNRESET)

    def _flush(self) -> None:
        """Send what is waiting, then more of a spooled body."""
        while True:
            if self._unsent:
                try:
                    sent = self.sock.send(self._unsent)
                except BlockingIOError:
                    break
                except OSError as error:
                    self._write_failed(error)
                    return
                self.node.rx += sent
                self._unsent = self._unsent[sent:]
                if self._unsent:
                    break
            exchange = self.exchange
            if exchange is None or exchange.spool is None:
                break
            self._unsent = exchange.spool.read(_SPOOL_PIECE)
            if not self._unsent:
                break
        if self._unsent:
            if not self._events & WRITE:
                self._set_events(self._events | WRITE)
            return
        if self._events & WRITE:
            self._set_events(self._events & ~WRITE)
        if self._held and self.exchange is not None:
            self._held = False
            self.exchange.front.resume()
        if self.deadline:
            self._close_socket()
        elif self._eof_wanted:
            self._shutdown()

    def _write_failed(self, error: OSError) -> None:
        """The node may have answered before it stopped reading: let the reader find out."""
        self._unsent = b""
        if self.state != RAW:
            self._set_events(READ)
        elif self._ended or self.exchange is None:
            self._close_socket()
            self.ended(reset=True)
        else:  # in a tunnel, the end of what it says is that of both sides
            self._broken = error.errno or errno.EPIPE
            self._set_events(0 if self.paused else READ)

    def _set_events(self, events: int) -> None:
        before, self._events = self._events, events
        if events == before:
            return
        poller = self.gateway.poller
        if not events:
            # With an empty mask epoll still reports a hang-up, again and again.
            poller.suspend(self.fd)
        elif before:
            poller.modify(self.fd, events)
        else:
            poller.register(self.fd, self, events)

    def _close_socket(self) -> None:
        fd = self.fd
        if fd >= 0:
            self.fd = -1
            self.gateway.poller.forget(fd)
            self.sock.close()

    # --- Back ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.fd < 0:
            return
        self._unsent += data
        if not self._events & WRITE:
            self._flush()
        if len(self._unsent) > _HIGH_WATER and not self._held and self.exchange is not None:
            self._held = True
            self.exchange.front.pause()

    def write_eof(self) -> None:
        self._eof_wanted = True
        if not self._unsent:
            self._shutdown()

    def _shutdown(self) -> None:
        if self.fd >= 0:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # already reset: the reader finds out

    def abort(self) -> None:
        self.exchange = None
        self._close_socket()

    def release(self, *, reusable: bool) -> None:
        self.exchange = None
        self._close_socket()

    def finish(self) -> None:
        self.exchange = None
        if not self._unsent or self.fd < 0:
            self._close_socket()
            return
        self.deadline = self.gateway.request_deadline
        self.gateway.clock.watch(self)
        self._set_events(WRITE)

    def expired(self) -> None:
        """The node does not take the rest of what a tunnel had for it."""
        if self.deadline:
            self._close_socket()

    def pause(self) -> None:
        self.paused = True
        if self.fd >= 0:
            self._set_events(self._events & ~READ)

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        exchange = self.exchange
        if not self._events and exchange is not None and exchange.phase < SENT:
            return  # the packet comes first
        if self.fd >= 0 and not self._ended:
            self._set_events(self._events | READ)


def connect_uwsgi(gateway: Gateway, node: Node, exchange: Exchange) -> None:
    """Connect to a uwsgi node and send the packet; tells the exchange what became of it.

    Objects of connections that ended in the usual way are used again (``gateway.spare``): all of
    their state is back to where it began.
    """
    spare = gateway.spare
    if spare:
        back = spare.pop()
        back.node = node
    else:
        back = UwsgiBack(gateway, node)
    back.exchange = exchange
    exchange.back = back
    packet = exchange.packet
    if not packet or exchange.packet_node is not node or not exchange.plain:
        packet = back.make_packet(exchange, node)
        if not packet:
            return
    if gateway.timed > 1:
        exchange.packet_size = len(packet)
        exchange.variables_sent = packet
    addresses = node.addresses
    if len(addresses) > 1:
        back.later_addresses(addresses[1:])
    family, address = addresses[0]
    back.connect_to(family, address, packet)
