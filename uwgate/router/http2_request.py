"""The request of an HTTP/2 stream: what its client sends, and when that goes to the exchange.

Body bytes go to the exchange as they come; where that does not want them, they are kept here, and
the client has no more credit than the windows allow.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1_request import RequestBlock, RequestLine, parse_request_line
from uwgate.protocols.http2 import ErrorCode, StreamError
from uwgate.protocols.http2_fields import UNKNOWN, FieldError, Fields, trailer_lines
from uwgate.protocols.http2_priority import DEFAULT, Priority
from uwgate.protocols.http2_streams import State, Windows
from uwgate.router import responder
from uwgate.router.errors import Failure
from uwgate.router.http1_bodies import BODY_GRACE
from uwgate.router.http1_responses import KEPT_HEAD
from uwgate.router.phases import IDLE, TUNNEL

if TYPE_CHECKING:
    from uwgate.router.exchange import Exchange
    from uwgate.router.http2_connection import Http2Connection
    from uwgate.router.http2_stream import Http2Stream

_NOTHING = RequestBlock(b"")
_IDLE = State.IDLE
_NO_REQUEST = parse_request_line(b"GET / HTTP/1.1")
_LINGER = 2.0  # seconds
_PIECE = 65536  # bytes


class RequestSide:
    """``state``: see ``http2_streams``. ``queue``: pieces of the response's body that wait for the
    client, ``queued``: their bytes; ``ended``: nothing comes behind them but ``trailer``;
    ``end_sent``: END_STREAM is on its way, once; ``delayed``: the request waits for others;
    ``taken``: the client has taken some of the queue."""

    __slots__ = (
        "block", "blocked", "body_bytes", "body_since", "client", "client_port",
        "connection", "deadline", "delayed", "due", "end_sent", "ended", "exchange", "fields",
        "gzip", "head_bytes", "held", "http_tail", "id", "left", "line", "lingering", "paused",
        "persist", "priority", "queue", "queued", "received", "request", "scheme",
        "sent_bytes", "silent", "state", "status", "taken", "tls_lines", "trailer",
        "trailer_of_request", "uwsgi_constants", "waited", "websocket", "windows",
    )  # fmt: skip

    def __init__(self, connection: Http2Connection) -> None:
        gateway = connection.gateway
        self.connection = connection
        self.client = connection.client
        self.client_port = connection.client_port
        self.scheme = connection.scheme
        self.http_tail = connection.http_tail
        self.tls_lines = connection.tls_lines
        self.uwsgi_constants = connection.uwsgi_constants
        self.windows = Windows(0, 0)
        self.queue: deque[bytes | memoryview] = deque()
        self.held = bytearray()  # of the request's body, while the exchange does not take it
        self.deadline = 0.0
        self.due = 0
        self.line = b""  # of HTTP/1 fronts, where it may be sent at once
        self.exchange: Exchange = gateway.make_exchange(gateway, self._stream())
        self.exchange.block = self.block = _NOTHING
        self.request: RequestLine | None
        self.clear()

    def clear(self) -> None:
        """As before the first request."""
        self.id = 0
        self.state = _IDLE
        self.priority = DEFAULT
        self.queued = 0
        self.left = UNKNOWN  # a refused request has a body of any length
        self.body_bytes = self.received = 0
        self.body_since = 0.0
        self.request = None
        self.block = _NOTHING
        self.trailer = self.trailer_of_request = b""
        self.gzip: responder.Gzip | None = None
        self.persist = True
        self.ended = self.end_sent = self.lingering = self.silent = False
        self.paused = self.blocked = self.delayed = self.waited = self.websocket = False
        self.taken = False
        self.status = self.fields = self.head_bytes = self.sent_bytes = 0

    def is_long(self) -> bool:
        """Whether more of the last request is here than is to be kept while nobody asks."""
        exchange = self.exchange
        return len(exchange.head) + len(exchange.packet) + len(exchange.block.raw) > KEPT_HEAD

    def forget_heads(self) -> None:
        """Nothing of that is kept."""
        exchange = self.exchange
        exchange.forget_heads()
        exchange.block = _NOTHING
        exchange.request = _NO_REQUEST

    # --- to be provided by the response side ------------------------------------------------------

    def refuse(self, failure: Failure) -> None:
        """A request that is not even begun."""
        raise AssertionError

    def end_tunnel(self) -> None:
        """Both sides of a tunnel are done."""
        raise AssertionError

    def expired(self) -> None:
        """The deadline passed."""
        raise AssertionError

    def log(self, failure: Failure | None) -> None:
        """The request is over."""
        raise AssertionError

    def _stream(self) -> Http2Stream:
        return cast("Http2Stream", self)

    # --- from the connection ----------------------------------------------------------------------

    def begin_request(
        self, request: RequestLine, block: RequestBlock, length: int, priority: Priority
    ) -> None:
        """The header section is here. ``length``: bytes of the body, UNKNOWN if nobody has said;
        ``state`` says whether there may be one."""
        connection = self.connection
        gateway = connection.gateway
        self.request = request
        self.block = block
        self.priority = priority
        self.deadline = gateway.request_deadline
        if not self.due:
            gateway.clock.watch(self)
        exchange = self.exchange
        exchange.extra = exchange.extra_variables = b""
        settings = gateway.settings
        if request.method == b"CONNECT":
            self.refuse(Failure.METHOD_REFUSED)
        elif (settings.max_body and length > settings.max_body) or (
            block.expect and 1 < settings.manage_expect < length
        ):
            self.refuse(Failure.BODY_TOO_LARGE)
        else:
            self.left = length
            self.body_since = gateway.clock.now
            many = len(connection.streams) > connection.most_requests
            if (many or connection.wary or self.windows.send <= 0) and connection.must_wait():
                self.delay(request, block)
            else:
                exchange.start(request, block, not block.length)

    def delay(self, request: RequestLine, block: RequestBlock) -> None:
        """Others come first: the exchange waits as if it did for the address of a node, and what
        comes of the body is kept here, no more than the windows allow."""
        self.exchange.wait(request, block)
        self.paused = True
        self.connection.delay(self._stream())

    def start_delayed(self) -> None:
        """Its turn has come."""
        self.connection.undelay(self._stream())
        self.paused = False
        exchange, gateway = self.exchange, self.connection.gateway
        self.deadline = gateway.request_deadline
        came_at = exchange.started_at
        exchange.start(exchange.request, exchange.block, not exchange.block.length)
        if exchange.phase != IDLE:
            exchange.started_at = came_at
            if not (exchange.request_ended or self.paused):  # as the node's connection may want it
                self._go_on()

    def body(self, payload: bytes, size: int, ended: bool) -> None:
        """DATA: ``size`` bytes of the windows. Raises StreamError."""
        try:
            self.take_length(len(payload), ended)
        except StreamError:
            self.connection.credit(size)
            raise
        self.body_bytes += len(payload)
        if ended:
            self.state = State.HALF_CLOSED
        exchange = self.exchange
        if exchange.phase == IDLE:
            self.connection.took(self, size)  # answered already
            if ended and self.lingering:
                self.connection.over(self._stream())
            return
        if self.paused or self.held or (self.websocket and exchange.phase != TUNNEL):
            self.held += payload
            self.connection.took(self, size - len(payload))
            if self.delayed and self.connection.is_narrow():
                self.connection.ready()
            return
        self._pace()
        if payload:
            self._hand_on(payload)
        # A failure may have been the answer: what has come is not held in any case.
        self.connection.took(self, size)
        if ended and not self.paused:
            self._request_end()

    def take_length(self, size: int, ended: bool) -> None:
        """Content-Length and DATA must agree (RFC 9113 §8.1.1)."""
        if self.left != UNKNOWN:
            self.left -= size
            if self.left < 0 or (ended and self.left):
                raise StreamError(self.id, ErrorCode.PROTOCOL_ERROR, "not Content-Length bytes")
            return
        most = self.connection.gateway.settings.max_body
        self.received += size
        if most and self.received > most and not self.websocket:
            self.exchange.fail(Failure.BODY_TOO_LARGE)

    def trailers(self, fields: Fields, ended: bool) -> None:
        """HEADERS behind the body. Raises StreamError."""
        if not ended:
            raise StreamError(self.id, ErrorCode.PROTOCOL_ERROR, "HEADERS in the middle")
        self.take_length(0, True)
        try:
            lines = trailer_lines(fields)
        except FieldError as error:
            raise StreamError(self.id, ErrorCode.PROTOCOL_ERROR, str(error)) from None
        self.state = State.HALF_CLOSED
        if self.lingering:
            self.connection.over(self._stream())
        elif self.paused or self.held:
            self.trailer_of_request = lines
        elif self.exchange.phase != IDLE:
            self._request_end(lines)

    def hand_on_held(self) -> None:
        """A piece of what was kept."""
        payload = bytes(self.held[:_PIECE])
        del self.held[:_PIECE]
        self._hand_on(payload)
        self.connection.took(self, len(payload))

    def _hand_on(self, payload: bytes) -> None:
        exchange = self.exchange
        if self.websocket:
            exchange.request_size += len(payload)
            back = exchange.back
            if back is not None:
                back.write(payload)
        else:
            exchange.request_data(payload)

    def _request_end(self, trailer: bytes = b"") -> None:
        exchange = self.exchange
        if exchange.phase == TUNNEL:
            back = exchange.back
            if back is None or self.ended:
                self.end_tunnel()
            else:
                back.write_eof()
        elif exchange.phase != IDLE and not exchange.request_ended:
            exchange.request_end(trailer)

    def _pace(self) -> None:
        """Inactivity, or an average below the minimum rate, whichever strikes first."""
        gateway = self.connection.gateway
        settings, now = gateway.settings, gateway.clock.now
        deadline = now + settings.timeout
        if settings.body_min_rate and not self.websocket:
            due = self.body_since + BODY_GRACE + self.body_bytes / settings.body_min_rate
            deadline = min(deadline, due)
        self.deadline = deadline
        if deadline < self.due:
            gateway.clock.watch(self)

    def lost(self, failure: Failure = Failure.CLIENT_CLOSED) -> None:
        """The client does not want it any more, or is gone."""
        exchange = self.exchange
        if exchange.phase != IDLE:
            usual = exchange.phase == TUNNEL and failure == Failure.CLIENT_CLOSED
            exchange.client_lost()
            if not usual:
                self.connection.gateway.tally.errors[failure] += 1
            self.log(None if usual else failure)

    def linger(self) -> None:
        """The response is on its way, and the request is not complete: what else comes of it is
        read for a moment. Clients that get RST_STREAM with a response may not look at that (curl
        before 8); RFC 9113 §8.1 has it afterwards."""
        self.lingering = True
        size = len(self.held)
        self.held.clear()
        self.connection.took(self, size)
        clock = self.connection.gateway.clock
        self.deadline = clock.now + _LINGER
        clock.watch(self)

    def pause(self) -> None:
        """Stop reading the request body: what the windows still allow is kept here."""
        self.paused = True

    def resume(self) -> None:
        """Go on reading the request body."""
        if not self.paused:
            return
        self.paused = False
        self._go_on()

    def _go_on(self) -> None:
        self.body_since = self.connection.gateway.clock.now
        self.body_bytes = 0
        self._pace()
        connection = self.connection
        connection.gateway.loop.call_soon(self._hand_over, self.id)

    def _hand_over(self, number: int) -> None:
        """Go on with what was kept. Not in ``resume``: who calls that has earlier bytes to send."""
        if number != self.id or (self.websocket and self.exchange.phase != TUNNEL):
            return  # it serves another request; no tunnel is there, and may never be (``upgraded``)
        while self.held and not self.paused and self.exchange.phase != IDLE:
            self.hand_on_held()
        if not self.held and not self.paused and self.state == State.HALF_CLOSED:
            lines, self.trailer_of_request = self.trailer_of_request, b""
            self._request_end(lines)
