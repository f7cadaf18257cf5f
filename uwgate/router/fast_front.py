"""A uwsgi client's connection: one packet, perhaps a body, one response, closed.

Responses are framed as HTTP, but as to an HTTP/1.0 client: known lengths are said, chunks are
decoded, and the end of the connection is the end of the response.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.http1_request import RequestBlock
from uwgate.protocols.http1_response import UNTIL_CLOSE as NO_LENGTH
from uwgate.protocols.http1_response import ResponseHead
from uwgate.protocols.uwsgi import header_name
from uwgate.protocols.uwsgi_request import UwsgiRequest
from uwgate.router import responder
from uwgate.router.errors import FAILURES, Failure
from uwgate.router.fast_client import UNWATCHED, FastClient
from uwgate.router.fast_exchange import FastExchange
from uwgate.router.phases import IDLE
from uwgate.router.upstream import RAW

if TYPE_CHECKING:
    from uwgate.router.fast import FastGateway
    from uwgate.router.front import Connection, Front

# Stages of a connection.
HEAD, BODY, WAIT, TUNNEL, FLUSH, LINGER, GONE = range(7)

_LINGER = 2.0  # seconds a refused client gets to read why
SPARES = 256
_EARLY_LIMIT = 65536  # bytes kept of a client that tunnels before it is asked to
NO_REQUEST = RequestBlock(b"")


class FastFront(FastClient):
    """One client connection. Objects are used again for later ones (``FastGateway.spare_fronts``):
    ``FastGateway.new_front`` begins one, ``_close`` ends it and cleans up."""

    __slots__ = (
        "buffer",
        "client_port",
        "deadline",
        "due",
        "exchange",
        "fields",
        "head_bytes",
        "left",
        "node_eof",
        "request",
        "sent_bytes",
        "stage",
        "status",
        "unframed",
    )

    persist = False
    http_tail = uwsgi_constants = tls_lines = b""

    def __init__(self, gateway: FastGateway) -> None:
        super().__init__(gateway)
        self.exchange = FastExchange(gateway, cast("Front", self))
        self.due = 0
        self.deadline = 0.0
        self.client_port = 0
        self.stage = HEAD
        self.request: UwsgiRequest | None = None
        self._forget()

    def _forget(self) -> None:
        """As before the first byte."""
        self.reading = True
        self.eof = self.blocked = self.broken = self.unread = False
        self.buffer = b""
        self.left = 0  # bytes of a body to come
        self.unframed = False  # only the end of the connection ends the response
        self.node_eof = False  # in a tunnel: the node sends no more
        self.status = self.fields = self.head_bytes = self.sent_bytes = 0

    # --- what the log and the exchange ask ----------------------------------------------------

    @property
    def block(self) -> RequestBlock:
        """What the packet says."""
        return self.request or NO_REQUEST

    @property
    def client(self) -> bytes:
        """Whom the front server serves (REMOTE_ADDR), b"" where it is no address."""
        return self.request.client if self.request is not None else b""

    def field(self, name: bytes) -> bytes:
        """The value of the request's field ``name`` (lower case; several joined), b"" without."""
        if self.request is None:
            return b""
        wanted = header_name(name)
        found = [value for key, value in self.request.items if key == wanted]
        return b"; ".join(found) if name == b"cookie" else b", ".join(found)

    @property
    def scheme(self) -> bytes:
        """How the client came to the front server."""
        request = self.request
        if request is None:
            return b"http"
        secure = request.get(b"HTTPS").lower() in (b"on", b"1")
        return b"https" if secure or request.get(b"REQUEST_SCHEME") == b"https" else b"http"

    # --- the request ----------------------------------------------------------------------------

    def first(self, data: bytes | None) -> None:
        """What came with the connection: None for nothing yet, b"" for its end."""
        if data:
            self._head(data)
        elif data is None:
            self.watch_socket()
        else:
            self.lost()

    def waiting(self, request: UwsgiRequest) -> None:
        """Take over a request that waits for its node (see fast_express)."""
        self.request = request
        self.stage = WAIT

    def send_rest(self, data: bytes, sent: int) -> None:
        """Take over a whole response of which ``sent`` bytes are gone."""
        self.gateway.tally.tx += len(data)
        self.unsent = memoryview(data)[sent:]
        self._end()

    def received(self, data: bytes) -> None:
        """Bytes of the client, at any stage; where it only has to read the end, they are lost."""
        stage = self.stage
        if stage == HEAD:
            self._head(data)
        elif stage == BODY:
            self._body(data)
        elif stage == TUNNEL:
            self._tunnel(data)
        elif stage == WAIT:
            self._early(data)

    def _head(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        end = 4 + int.from_bytes(data[1:3], "little") if len(data) >= 4 else 4
        size = len(data)
        if size < end:
            self.buffer = data
            self.watch_socket()
            return
        rest = b""
        if size > end:
            data, rest = data[:end], data[end:]
        self.buffer = b""
        try:
            request = self.gateway.packets.read(data)
        except Http1Error as error:
            self._refuse(FAILURES[error.fault])
            return
        self.request = request
        settings = self.gateway.settings
        length = request.length
        if not request.key and not self.gateway.keyless:
            self._refuse(Failure.BAD_HOST)
        elif length and length > (settings.max_body or length):
            self._refuse(Failure.BODY_TOO_LARGE)
        else:
            self._begin(request, length, rest)

    def _begin(self, request: UwsgiRequest, length: int, rest: bytes) -> None:
        self.deadline = self.gateway.request_deadline
        self.left = length
        self.stage = BODY if length else WAIT
        self.exchange.serve(request)
        if rest:
            self.received(rest)
        if self.stage == BODY:
            self.watch_socket()

    def _body(self, data: bytes) -> None:
        exchange, left, size = self.exchange, self.left, len(data)
        self.deadline = self.gateway.request_deadline
        if size < left:
            self.left = left - size
            exchange.request_data(data)
            return
        self.left = 0
        self.stage = WAIT
        if size > left:
            self._early(data[left:])
            data = data[:left]
        exchange.request_data(data)
        if self.stage == WAIT:
            exchange.request_end()

    def _early(self, data: bytes) -> None:
        """Bytes behind the request: the beginning of a tunnel, or nothing that anybody wants."""
        request = self.request
        if request is not None and (request.upgrade or request.raw_session):
            self.buffer += data
            self.reading = len(self.buffer) < _EARLY_LIMIT
        else:
            self.unread = True
            self.reading = False
        self.watch_socket()

    def _tunnel(self, data: bytes) -> None:
        back = self.exchange.back
        if back is not None:
            self.deadline = self.gateway.request_deadline
            self.exchange.request_size += len(data)
            back.write(data)

    def end_of_input(self) -> None:
        """The client sends no more: half-closed, or gone; only a hang-up tells."""
        stage = self.stage
        if stage == TUNNEL:
            back = self.exchange.back
            if self.node_eof or back is None:
                self.end_tunnel()
            else:
                back.write_eof()
        elif stage == HEAD and self.buffer:
            self._refuse(Failure.BAD_REQUEST)
        elif stage in (HEAD, BODY, LINGER):
            self.lost()

    def _refuse(self, failure: Failure) -> None:
        """A request that is not even begun."""
        self.gateway.tally.errors[failure] += 1
        self.unread = True  # whatever may follow
        self._answer(failure)
        self.gateway.log_refused(cast("Connection", self), failure)
        self._end()

    def pause(self) -> None:
        """Stop reading the request body."""
        self.reading = False
        self.watch_socket()

    def resume(self) -> None:
        """Go on reading the request body."""
        if not self.eof and not self.unread and self.fd >= 0:
            self.reading = True
            self.watch_socket()

    def watch(self) -> None:
        self.gateway.clock.watch(self)

    # --- the response -----------------------------------------------------------------------------

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """A response of known length in one piece, to a plain request; ``data[:end]`` is its head
        as received."""
        self.respond(head, data[end:], True)
        self.end(b"")

    def begin(self, head: ResponseHead, data: bytes, end: int) -> None:
        """Head and first body bytes of a response of known length, as received."""
        self.respond(head, data[end:], False)

    def respond(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The head of the final response, with the first body bytes."""
        request = self.request
        is_head = request is not None and request.method == b"HEAD"
        self.unframed = head.length < 0 and not head.bodiless and not is_head
        if self.unframed and head.length != NO_LENGTH and ended:
            framing = b"Content-Length: %d\r\n" % len(body)  # chunks that came in one piece
        else:
            framing = head.framing
        if head.upgrade and head.status == 426:
            framing += b"Connection: upgrade\r\nUpgrade: %b\r\n" % head.upgrade
        out = b"".join((head.lines, framing, b"\r\n", body))
        self.gateway.tally.responses[head.status] += 1
        self.status = head.status
        self.fields = head.count
        self.head_bytes = len(out) - len(body)
        self.sent_bytes = len(body)
        self.send(out)

    def informational(self, head: ResponseHead) -> None:
        """A 1xx response is for HTTP clients: the front server would take it for the final one."""

    def send_continue(self) -> None:
        """The front server has answered the client's expectation."""

    def data(self, payload: bytes) -> None:
        """Body bytes."""
        self.sent_bytes += len(payload)
        self.send(payload)

    def end(self, trailer: bytes) -> None:
        """The response is complete. There is no place for trailers."""
        if self.stage != GONE:
            self.log(None)
            self._end()

    def forget_response(self) -> None:
        """A new request begins: what the log says of its response is not that of the last."""
        self.status = self.fields = self.head_bytes = self.sent_bytes = 0

    def fail(self, failure: Failure) -> None:
        """Answer with an error."""
        self._answer(failure)
        self.gateway.tally.errors[failure] += 1
        self.log(failure)
        self._end()

    def _answer(self, failure: Failure) -> None:
        gateway, request = self.gateway, self.request
        out, size = responder.error_response(
            failure,
            request.get(b"HTTP_ACCEPT") if request is not None else b"",
            gateway.clock.date,
            {},
            persist=False,
            is_head=request is not None and request.method == b"HEAD",
        )
        gateway.tally.responses[failure.status] += 1
        self.status = failure.status
        self.fields = out.count(b"\r\n", 0, len(out) - size) - 2
        self.sent_bytes = size
        self.head_bytes = len(out) - size
        self.send(out)

    def abort(self, failure: Failure) -> None:
        """Cut the connection: a response that cannot be completed must not look complete."""
        self.gateway.tally.errors[failure] += 1
        self.log(failure)
        if self.unframed or self.unsent:
            self.reset()
        self._close()

    # --- tunnels ----------------------------------------------------------------------------------

    def upgraded(self, head: ResponseHead | None) -> None:
        """Become a tunnel; with a head, answer 101 first."""
        if head is not None:
            self.status = 101
            self.gateway.tally.responses[101] += 1
            out = responder.switch_head(head)
            self.head_bytes = len(out)
            self.send(out)
        self.stage = TUNNEL
        self.reading = not self.eof
        self.watch_socket()
        back = self.exchange.back
        if back is None:
            return
        if self.buffer:
            early, self.buffer = self.buffer, b""
            self._tunnel(early)
        if self.eof:
            back.write_eof()

    def tunnel_data(self, data: bytes) -> None:
        """Bytes of the node in a tunnel."""
        self.deadline = self.gateway.request_deadline
        self.sent_bytes += len(data)
        self.send(data)

    def tunnel_eof(self) -> None:
        """The node sends no more; the tunnel ends when the client is done too."""
        self.node_eof = True
        if self.eof or self.exchange.raw:
            self.end_tunnel()
        elif not self.unsent:
            self.finish_sending()

    def tunnel_broken(self) -> None:
        """The node has reset its connection: the same, to a client that has no word for it."""
        self.end_tunnel()

    def end_tunnel(self) -> None:
        """Both sides are done."""
        self.exchange.tunnel_over()
        self.log(None)
        self._end()

    # --- ends ---------------------------------------------------------------------------------

    def stalled(self) -> None:
        self.blocked = True
        back = self.exchange.back
        if back is not None:
            back.pause()

    def drained(self) -> None:
        self.blocked = False
        if self.stage == FLUSH:
            self._finish()
            return
        if self.stage == TUNNEL and self.node_eof:
            self.finish_sending()
        back = self.exchange.back
        if back is not None:
            back.resume()

    def _end(self) -> None:
        """The answer is written: close when it is sent."""
        if not self.unsent:
            self._finish()
            return
        self.stage = FLUSH
        self.reading = False
        self.watch_socket()
        self.deadline = self.gateway.request_deadline
        self.gateway.clock.watch(self)

    def _finish(self) -> None:
        """The answer is sent: close. Bytes that were not read would make that a reset, and take
        the answer from whoever has not read it yet."""
        if self.broken or self.eof or not (self.left or self.unread or self.buffer):
            self._close()
            return
        self.stage = LINGER
        self.buffer = b""
        self.unread = False
        self.finish_sending()
        self.reading = True
        self.watch_socket()
        self.deadline = self.gateway.clock.now + _LINGER
        self.gateway.clock.watch(self)

    def _close(self) -> None:
        """The end of this connection; the object waits for the next one."""
        gateway = self.gateway
        if self.stage == GONE:
            return
        self.stage = GONE
        self.close_socket()
        self.deadline = 0.0
        gateway.clients.discard(self)
        gateway.tally.connections -= 1
        spare = gateway.spare_fronts
        if self.broken or len(spare) >= SPARES:
            # Ours points at us: nothing to leave to the collector.
            self.exchange = cast(FastExchange, gateway.no_exchange)
            gateway.clock.forget(self)
        else:
            self._forget()
            self.exchange.clean()
            self.request = None
            spare.append(self)
        if gateway.draining:
            gateway.check_drained()

    def lost(self) -> None:
        """The client is gone."""
        exchange = self.exchange
        if exchange.phase != IDLE:
            tunnel = exchange.back is not None and exchange.back.state == RAW
            exchange.client_lost()
            if not tunnel:
                self.gateway.tally.errors[Failure.CLIENT_CLOSED] += 1
            self.log(None if tunnel else Failure.CLIENT_CLOSED)
        self._close()

    def expired(self) -> None:
        """The deadline passed."""
        stage = self.stage
        if stage == HEAD and self.buffer:
            self._refuse(Failure.HEAD_TIMEOUT)
        elif stage == HEAD:
            self._close()
        elif stage in (BODY, WAIT, TUNNEL):
            self.exchange.expired()
            if self.fd >= 0:
                self.gateway.clock.watch(self)
        elif stage != GONE:
            self.reset()
            self._close()

    def on_tick(self) -> None:
        """Once a second: whoever has waited for so long is watched from now on."""
        if self.stage == WAIT and self.events == UNWATCHED and self.reading:
            self.watch_socket()

    @property
    def active(self) -> int:
        """Whether a request is under way."""
        return int(self.exchange.phase != IDLE)

    def drain(self) -> None:
        """The gateway is stopping. A client that has just connected is about to ask."""
        if self.stage == HEAD and not self.buffer:
            self.deadline = self.gateway.clock.now + 1.0
            self.gateway.clock.watch(self)

    def leave(self) -> None:
        """Nothing to do: there is one request a connection, and who has connected is about to ask.
        """

    def part(self) -> None:
        """The time is over: end a tunnel in order, and cut whatever else is under way."""
        if self.stage == TUNNEL and not self.unsent:
            self.exchange.client_lost()
            self.gateway.tally.errors[Failure.KILLED] += 1
            self.log(Failure.KILLED)
            self.unread = True  # whatever is on its way
            self._finish()
        elif self.stage != LINGER:
            self.cut()

    def cut(self) -> None:
        """End now, whatever is under way."""
        if self.exchange.phase != IDLE:
            self.exchange.abort(Failure.KILLED)
        self._close()

    def log(self, failure: Failure | None) -> None:
        gateway = self.gateway
        if gateway.timed:
            gateway.finished(cast("Connection", self), failure, time.monotonic())
