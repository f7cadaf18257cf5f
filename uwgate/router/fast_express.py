"""The express way through the fastrouter: a whole plain packet in, a whole response out.

Most requests take it, and meet no front, exchange or back on it, only one small object. As soon as
anything is not as usual (a node that does not answer in one piece or within a tick, or not at all;
a client that does not take its answer at once) the request is *promoted*: it goes on as if it had
come by the general way, with all that belongs to it, from exactly where it is.
"""

from __future__ import annotations

import errno
import socket
import time
from _socket import socket as new_socket  # see upstream_uwsgi
from typing import TYPE_CHECKING

from uwgate.protocols.http1_response import UNTIL_CLOSE, ResponseHead
from uwgate.protocols.uwsgi_request import with_modifiers
from uwgate.router.exchange import SERVER_ERROR
from uwgate.router.poller import READ
from uwgate.router.upstream_uwsgi import STREAM, learn_head, prepare_tcp

if TYPE_CHECKING:
    from uwgate.protocols.uwsgi_request import UwsgiRequest
    from uwgate.router.balance import Node
    from uwgate.router.fast import FastGateway
    from uwgate.router.fast_front import FastFront
    from uwgate.router.upstream_uwsgi import UwsgiBack

# Data and the FIN of the close behind it go in one segment.
_LAST = socket.MSG_DONTWAIT | socket.MSG_MORE
_READ_SIZE = 65536
_SPARES = 256
_WHOLE, _PART, _BROKEN = range(3)  # what there is of a response
_UNIX = int(socket.AF_UNIX)


class Hop:
    """One request on the express way. ``client`` and ``sock`` are the sockets of its two sides,
    ``fd`` is the descriptor of ``sock``; ``packet`` is what the node gets: all that is kept of the
    request."""

    __slots__ = (
        "answer",
        "client",
        "fd",
        "gateway",
        "node",
        "packet",
        "sock",
        "started",
        "way",
    )

    def __init__(self, way: Express) -> None:
        self.way = way
        self.gateway = way.gateway
        self.client: new_socket
        self.sock: new_socket
        self.fd = -1
        self.node: Node
        self.packet = b""
        self.answer = b""
        self.started = 0.0

    def ready(self, events: int) -> None:
        """The node has answered."""
        try:
            data = self.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.promote().broken()
            return
        node = self.node
        last = node.last_head
        if not data.startswith(last):
            if not learn_head(self.gateway, node, data):
                self._take_over(data)
                return
            last = node.last_head
        head, end = node.last_parsed, len(last)
        if head.length != len(data) - end or not head.whole:
            # Applications write head and body apart, and whoever names no length closes at once.
            data, state = self._rest(head, data, end)
            if state != _WHOLE:
                self._take_over(data, broken=state == _BROKEN)
                return
        way, gateway = self.way, self.gateway
        gateway.poller.owners.pop(self.fd, None)
        self.sock.close()
        node.tx += len(data)
        node.active -= 1
        gateway.tally.responses[head.status] += 1
        if gateway.timed:
            seconds = time.monotonic() - self.started
            gateway.tally.seconds += seconds
            if head.status < 500:
                node.note_latency(seconds)
            else:
                node.note_error(SERVER_ERROR)
        if len(head.lines) + len(head.framing) + 2 != end:
            # Something had to be taken out of the head.
            data = b"".join((head.lines, head.framing, b"\r\n", data[end:]))
        self.answer = data
        way.answered.append(self)

    def _rest(self, head: ResponseHead, data: bytes, end: int) -> tuple[bytes, int]:
        """What has come behind ``data`` by now, and whether that makes a whole response."""
        unframed = head.length == UNTIL_CLOSE and not head.bodiless and head.status >= 200
        if not unframed and (not head.whole or head.length < len(data) - end):
            return data, _PART
        while len(data) < _READ_SIZE:
            try:
                more = self.sock.recv(_READ_SIZE)
            except BlockingIOError:
                break
            except OSError:  # said only once: behind it the response would seem to end
                return data, _BROKEN
            if not more:
                return data, _WHOLE if unframed else _PART
            data += more
            if not unframed and head.length <= len(data) - end:
                return data, _WHOLE if head.length == len(data) - end else _PART
        return data, _PART

    def _take_over(self, data: bytes, *, broken: bool = False) -> None:
        """The general way for what ``data`` begins; ``broken``: and will not go on."""
        back = self.promote()
        if data:
            back.take(data)
            if broken and back.fd >= 0:
                back.broken()
        else:
            back.ready(READ)  # the end of the connection stays where it is

    def promote(self) -> UwsgiBack:
        """Go on by the general way, the packet being sent; what stands for the node there."""
        front, request = self._front()
        back = front.exchange.resume(request, self.node, self.started)
        back.adopt(self.sock, self.fd)
        self._recycle()
        return back

    def _front(self) -> tuple[FastFront, UwsgiRequest]:
        request = self.gateway.packets.read(self.packet)
        front = self.gateway.new_front(self.client)
        front.waiting(request)
        return front, request

    def _recycle(self) -> None:
        spare = self.way.spare
        if len(spare) < _SPARES:
            spare.append(self)


class Express:
    """All hops of a worker.

    Packets are sent in a burst and so are answers, before the loop polls again: peers are woken
    once that would go to sleep between them.
    """

    __slots__ = ("answered", "departing", "gateway", "spare")

    def __init__(self, gateway: FastGateway) -> None:
        self.gateway = gateway
        self.spare: list[Hop] = []
        self.departing: list[Hop] = []  # connected, or about to be
        self.answered: list[Hop] = []

    def begin(self, client: new_socket, packet: bytes, node: Node) -> bool:
        """Connect to the node; False: not this way. ``packet``: a plain one."""
        family, address = node.addresses[0]
        try:
            sock = new_socket(family, STREAM)
        except OSError:
            return False
        try:
            if family != _UNIX:
                prepare_tcp(sock)
            code = sock.connect_ex(address)
        except OSError:  # a path that no address can hold
            code = errno.EINVAL
        if code and code != errno.EINPROGRESS:
            sock.close()
            return False
        spare = self.spare
        hop = spare.pop() if spare else Hop(self)
        hop.client = client
        hop.sock = sock
        hop.node = node
        if packet[0] == node.modifier1 and packet[3] == node.modifier2:
            hop.packet = packet
        else:
            hop.packet = with_modifiers(packet, node.modifier1, node.modifier2)
        node.active += 1
        node.requests += 1
        gateway = self.gateway
        gateway.tally.requests += 1
        if gateway.timed:
            hop.started = time.monotonic()
        self.departing.append(hop)
        return True

    def flush(self) -> None:
        """Send what waits to be sent."""
        if self.departing:
            self._depart()
        if self.answered:
            self._answer()

    def _depart(self) -> None:
        departing, self.departing = self.departing, []
        gateway = self.gateway
        poller = gateway.poller
        owners, add = poller.owners, poller.add
        for hop in departing:
            sock, packet = hop.sock, hop.packet
            hop.fd = fd = sock.fileno()
            try:
                sent = sock.send(packet)
            except BlockingIOError:  # still connecting
                hop.promote().go_on(packet)
                continue
            except OSError as error:
                back = hop.promote()
                back.not_sent(packet, error.strerror or str(error))
                continue
            gateway.tally.node_connects += 1
            hop.node.rx += sent
            owners[fd] = hop
            try:
                add(fd, READ)
            except OSError as error:  # no memory or no watch left
                owners.pop(fd, None)
                front = hop.promote().exchange
                if front is not None:
                    front.shortage(error)
                continue
            if sent != len(packet):
                hop.promote().send_on(packet[sent:])

    def _answer(self) -> None:
        answered, self.answered = self.answered, []
        tally, spare = self.gateway.tally, self.spare
        for hop in answered:
            client, data = hop.client, hop.answer
            try:
                sent = client.send(data, _LAST)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = len(data)  # the client is gone
            if sent == len(data):
                tally.tx += sent
                tally.connections -= 1
                client.close()
            else:
                hop._front()[0].send_rest(data, sent)
            hop.answer = hop.packet = b""
            if len(spare) < _SPARES:
                spare.append(hop)

    def promote_all(self) -> None:
        """Whatever is still under way goes on by the general way."""
        self.flush()
        for owner in list(self.gateway.poller.owners.values()):
            if isinstance(owner, Hop):
                owner.promote()
