"""A client's HTTP/2 connection: frames in, streams, frames out (RFC 9113).

What is to be sent is collected and leaves in one write at the end of a turn of the loop; the order
of bodies is that of RFC 9218. What a client may cost is bounded here: `http2_limits`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from uwgate.protocols import http2
from uwgate.protocols.hpack import Decoder, FieldListTooLarge, Fields, HpackError
from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.http2 import (
    ErrorCode,
    Frame,
    FrameError,
    Http2Error,
    StreamError,
)
from uwgate.protocols.http2_fields import FieldError, response_block
from uwgate.protocols.http2_priority import Priority, parse_priority
from uwgate.protocols.http2_streams import State, judge
from uwgate.router.errors import FAILURES, Failure
from uwgate.router.http1_responses import GONE
from uwgate.router.http2_control import HANDLERS
from uwgate.router.http2_ends import CLOSING, OPEN, PREFACE, PROBE, Ends
from uwgate.router.http2_ends import GONE as CLOSED
from uwgate.router.http2_limits import FREE_BYTES, FREE_FIELDS, Limits
from uwgate.router.http2_stream import Http2Stream
from uwgate.router.phases import IDLE, TUNNEL

if TYPE_CHECKING:
    from uwgate.protocols.http1_request import RequestParser
    from uwgate.protocols.http1_response import ResponseHead
    from uwgate.router.front import Connection
    from uwgate.router.hsts import Hsts
    from uwgate.router.http import HttpGateway
    from uwgate.router.http1_front import Http1Front
    from uwgate.router.http2_request import RequestSide

_FEW = 4  # frames, which are not worth looking at the time
_RESETS = 200  # that are remembered, at least
_SPARE = 12  # streams that are kept for the next requests

# A look into the class takes longer.
OPENED, HALF_CLOSED = State.OPEN, State.HALF_CLOSED
_HEAD = (b":method", b"HEAD")
_VERSIONS = ("TLSv1.2", "TLSv1.3")  # RFC 9113 §9.2


class Http2Connection(Ends, asyncio.Protocol):
    """``acknowledged``: the client knows our settings; ``resets``: streams that we have ended, and
    it may not know; ``later``: priorities of streams to come; ``unread``: frames for the next turn;
    ``ending``: behind them the client sends no more."""

    __slots__ = (
        "acknowledged", "decoder", "ending", "held", "hsts", "later", "limits", "resets", "spare",
        "unread",
    )  # fmt: skip

    def __init__(self, gateway: HttpGateway, constants: bytes, hsts: Hsts | None = None) -> None:
        super().__init__(gateway, constants)
        self.hsts = hsts
        self.decoder = Decoder(gateway.http2.memo)
        self.limits = Limits(gateway.clock, gateway.settings.http2)
        self.held = b""  # of the preface
        self.acknowledged = self.ending = False
        self.unread: list[Frame] = []
        self.resets: dict[int, None] = {}
        self.later: dict[int, Priority] = {}
        self.spare: list[Http2Stream] = []

    def parser_for(self, *, trusted: bool) -> RequestParser:
        return self.gateway.http2.parsers[trusted]

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        gateway = self.gateway
        self.tls = transport.get_extra_info("tls")
        peer = transport.get_extra_info("peername")
        address, port = peer if isinstance(peer, tuple) else ("", 0)
        self.set_client(address.encode("ascii"), port, tls=True)
        gateway.fronts.add(cast("Connection", self))
        self._start()

    def take_over(self, front: Http1Front, data: bytes) -> None:
        """A connection in clear text has begun with the preface: ``data`` is what came."""
        self.transport = front.transport
        gateway = self.gateway
        self.set_client(front.client, front.client_port, tls=front.scheme == b"https")
        gateway.fronts.discard(front)
        gateway.clock.forget(front)
        front.exchange, front.stage = gateway.no_exchange, GONE
        gateway.fronts.add(cast("Connection", self))
        self.transport.set_protocol(self)
        self._start()
        self._read(data)

    def _start(self) -> None:
        gateway = self.gateway
        self.count(1)
        self.put(gateway.http2.opening)
        self.begin()
        if self.tls is not None and self.tls.version not in _VERSIONS:
            self.fail(ErrorCode.INADEQUATE_SECURITY, self.tls.version)

    def count(self, change: int) -> None:
        """A connection more or less."""
        self.gateway.tally.http2_connections += change

    def data_received(self, data: bytes) -> None:
        self.gateway.tally.rx += len(data)
        if self.stage < CLOSING:
            self._read(data)
        else:
            self.discard(len(data))

    def _read(self, data: bytes) -> None:
        if self.stage == OPEN:
            pass
        elif self.stage == PREFACE:
            data = self.held + data
            if not data.startswith(http2.PREFACE[: len(data)]):
                self.fail(ErrorCode.PROTOCOL_ERROR, "no preface")
                return
            if len(data) < len(http2.PREFACE):
                self.held = data
                return
            self.held = b""
            data = data[len(http2.PREFACE) :]
            self.stage = OPEN
        else:
            return
        self.scheduled = True  # in any case, below
        try:
            frames = self.reader.feed(data) if data or not self.unread else []
            if self.slow_since and frames:  # what is not complete now has only begun
                self.slow_since, self.deadline = 0.0, self.rest
            if self.unread or len(frames) > _FEW:
                self._take_some(self.unread + frames)
            else:
                for frame in frames:
                    self._take(frame)
        except FrameError as error:
            self._take_last(error)
        except Http2Error as error:
            self.fail(error.code, str(error))
        self.more = bool(self.unread) or self.reader.more
        if self.more:
            self.take_turns()
        else:
            self.watch_slow()
        self.flush()

    def read_on(self) -> None:
        """The next part of what came."""
        self._read(b"")
        if self.ending and not self.more:
            self.ending = False
            if not self.eof_received() and not self.transport.is_closing():
                self.transport.close()

    def count_delayed(self) -> None:
        """A request has to wait."""
        self.gateway.tally.http2_delayed += 1

    def _take_some(self, frames: list[Frame]) -> None:
        """As many as there is time for; raises Http2Error."""
        until = self.turn_ends()
        self.unread = []
        for place, frame in enumerate(frames, 1):
            self._take(frame)
            if time.monotonic() > until:
                self.unread = frames[place:]
                break

    def _take_last(self, error: FrameError) -> None:
        """What came before the frame that is the end."""
        try:
            for frame in self.unread + error.frames:
                self._take(frame)
        except Http2Error as earlier:
            self.fail(earlier.code, str(earlier))
        else:
            self.fail(error.code, str(error))

    def eof_received(self) -> bool:
        """The client sends no more; what it has asked for is still wanted."""
        if self.more and self.stage == OPEN:
            self.ending = True  # when its turn has come
            return True
        self.eof = True
        for number, stream in list(self.streams.items()):
            # Neither the rest of a request nor a larger window will come.
            if stream.delayed and self.is_shut(stream):
                self.drop_delayed(stream)
            elif stream.state == State.OPEN or (stream.queue and self.is_shut(stream)):
                self.give_up(number)
        if self.stage != OPEN or not self.streams:
            self.flush()  # what has just been said: the connection is closed behind it
            return False
        self.drain()
        if not self.blocked:  # else it has its time to take what is there
            self.rest_until(self.gateway.clock.now + PROBE)
            self.gateway.clock.watch(self)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        gateway = self.gateway
        gateway.fronts.discard(cast("Connection", self))
        gateway.tally.connections -= 1
        self.count(-1)
        self.stage = CLOSED
        self.deadline = 0.0
        for stream in list(self.streams.values()):
            stream.lost()
            self.drop(stream)
        for stream in self.spare:
            self.drop(stream)
        self.spare.clear()
        self.forget_streams()
        self.out.clear()
        gateway.clock.forget(self)
        if gateway.draining:
            gateway.check_drained()

    def pause_writing(self) -> None:
        self.blocked = True
        # Who does not read answers may not ask for more.
        self.transport.pause_reading()
        self.deadline = self.gateway.request_deadline
        self.gateway.clock.watch(self)

    def resume_writing(self) -> None:
        self.blocked = False
        if self.stage == OPEN:
            gateway = self.gateway
            self.rest_until(gateway.clock.now + PROBE if self.eof else gateway.request_deadline)
            gateway.clock.watch(self)
            if self.more:
                self.take_turns()
            else:
                self.transport.resume_reading()
            self.schedule()

    # --- frames -----------------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        """One frame; raises Http2Error."""
        if self.stage != OPEN:
            return
        kind = frame.type
        try:
            if not self.settled and (kind != http2.SETTINGS or frame.flags & http2.ACK):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if kind == http2.HEADERS:
                self._headers(frame)
            elif kind == http2.DATA:
                self._data(frame)
            else:
                self.limits.spend()
                handler = HANDLERS.get(kind)
                if handler is not None:
                    handler(self, frame)
        except StreamError as error:
            self.given_up()
            stream = self.streams.get(error.stream)
            if stream is not None:
                stream.lost()
                self.reset(stream, error.code)
            else:
                self.refuse(error.stream, error.code)

    def state_of(self, stream: int) -> State:
        """Of a stream by its number."""
        known = self.streams.get(stream)
        if known is not None:
            return known.state
        if stream > self.last or not stream & 1:
            return State.IDLE
        return State.RESET if stream in self.resets else State.CLOSED

    def _headers(self, frame: Frame) -> None:
        number, long = frame.stream, False
        try:
            fields = self.decoder.decode(frame.payload, self.gateway.settings.http2.max_header_list)
        except HpackError as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        except FieldListTooLarge as error:
            fields, long = error.fields, True
        if frame.size > FREE_BYTES or len(fields) > FREE_FIELDS:
            self.limits.spend_section(len(fields), frame.size)
        ended = bool(frame.flags & http2.END_STREAM)
        if number <= self.last and number & 1:
            if judge(self.state_of(number), http2.HEADERS, number):
                if long:
                    raise StreamError(number, ErrorCode.ENHANCE_YOUR_CALM, "a long trailer")
                self.streams[number].trailers(fields, ended)
            else:
                self.limits.spend()
            return
        if not number & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream with an even number")
        self.last = number
        if self.step == 2 and number > self.ended_at:
            self.limits.spend()
            self._remember(number)
            return
        if frame.flags & http2.SELF_DEPENDENT:
            raise StreamError(number, ErrorCode.PROTOCOL_ERROR, "it depends on itself")
        settings = self.gateway.settings.http2
        if len(self.streams) >= settings.max_streams or self.stalled:
            raise StreamError(number, ErrorCode.REFUSED_STREAM, "too many streams")
        self._open(number, fields, ended=ended, long=long)

    def _open(self, number: int, fields: Fields, *, ended: bool, long: bool) -> None:
        gateway = self.gateway
        gateway.tally.http2_requests += 1
        stream = self.spare.pop() if self.spare else Http2Stream(self)
        stream.id = number
        stream.state = HALF_CLOSED if ended else OPENED
        windows = stream.windows
        windows.reset(self.initial_window, gateway.settings.http2.window)
        if not self.acknowledged:  # it may send as much as it knows of (RFC 9113 §6.9.3)
            windows.receive = max(windows.receive, http2.DEFAULT_WINDOW)
        self.streams[number] = stream
        if long:
            self.given_up()  # compressed, it may be a few bytes
            stream.silent = _HEAD in fields
            stream.refuse(Failure.HEAD_TOO_LARGE)
            return
        try:
            request, block, head = gateway.http2.request(self.parser, fields, ended=ended)
        except FieldError as error:
            raise StreamError(number, ErrorCode.PROTOCOL_ERROR, str(error)) from None
        except Http1Error as error:
            stream.silent = _HEAD in fields
            stream.refuse(FAILURES[error.fault])
            return
        if self.tls is not None and not self.admits(block):
            stream.request, stream.block = request, block
            stream.refuse(Failure.MISDIRECTED)
            return
        stream.websocket = head.websocket
        said = self.later.pop(number, None) if self.later else None
        if said is None:
            said = parse_priority(head.priority)
        stream.begin_request(request, block, head.length, said)

    def _data(self, frame: Frame) -> None:
        number, size = frame.stream, frame.size
        try:
            self.windows.received(size)
        except OverflowError:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more than the window") from None
        ended = bool(frame.flags & http2.END_STREAM)
        if not frame.payload and not ended:
            self.limits.spend()  # CVE-2019-9518
        stream = self.streams.get(number)
        if stream is None:
            self.credit(size)
            judge(self.state_of(number), http2.DATA, number)
            return
        try:
            judge(stream.state, http2.DATA, number)
            stream.windows.received(size)
        except OverflowError:
            self.credit(size)
            raise StreamError(number, ErrorCode.FLOW_CONTROL_ERROR, "too much") from None
        except StreamError:
            self.credit(size)
            raise
        stream.body(frame.payload, size, ended)

    # --- for streams ------------------------------------------------------------------------------

    def took(self, stream: RequestSide, size: int) -> None:
        """Received bytes that are not held any more: the client may send as many again."""
        self.credit(size)
        if stream.state == State.OPEN:
            increment = stream.windows.done(size)
            if increment:
                self.put(self.window_update(stream.id, increment))

    def head_block(self, head: ResponseHead) -> bytes:
        """The header block of a response that is passed on as it is."""
        if self.hsts is not None:
            head = self.hsts.mark(head)
        block = head.http2
        if not block:
            block = head.http2 = response_block(head.lines + head.framing)
        return block if head.dated else block + self.gateway.http2.date()

    def marked(self, head: ResponseHead) -> ResponseHead:
        """The head with what this connection adds."""
        return head if self.hsts is None else self.hsts.mark(head)

    def error_lines(self) -> bytes:
        """Field lines that every response of our own carries."""
        return b"" if self.hsts is None else self.hsts.line

    def reset(self, stream: Http2Stream, code: ErrorCode) -> None:
        """End a stream before its time; its exchange is over."""
        self.less(stream.queued)
        self.refuse(stream.id, code)
        self._forget(stream)

    def refuse(self, number: int, code: ErrorCode) -> None:
        """RST_STREAM; what the client sends before it knows is ignored."""
        self.put(http2.rst_stream(number, code))
        self.gateway.tally.count_reset("gateway", code)
        self._remember(number)

    def _remember(self, number: int) -> None:
        resets = self.resets
        resets[number] = None
        if len(resets) > max(_RESETS, 2 * self.gateway.settings.http2.max_streams):
            del resets[next(iter(resets))]

    def sent_all(self, stream: Http2Stream) -> None:
        """END_STREAM is on its way."""
        if self.streams.get(stream.id) is not stream:
            return  # it was reset
        stream.end_sent = True
        if stream.exchange.phase == TUNNEL:
            return  # the client goes on
        if stream.state is OPENED:
            stream.linger()
        else:
            self.over(stream)

    def over(self, stream: Http2Stream) -> None:
        """Both sides have ended."""
        self.streams.pop(stream.id, None)
        if len(self.spare) < _SPARE and stream.exchange.phase == IDLE:
            if stream.held:  # nobody wanted it
                self.credit_held(stream)
            stream.clear()
            self.spare.append(stream)
        else:
            self.drop(stream)
        if not self.streams:
            self._idle()

    def _forget(self, stream: Http2Stream) -> None:
        self.streams.pop(stream.id, None)
        self.writers.pop(stream, None)
        self.drop(stream)
        if not self.streams:
            self._idle()

    def drop(self, stream: Http2Stream) -> None:
        """Nobody needs it any more: nothing is left to the collector."""
        gateway = self.gateway
        if stream.exchange.phase != IDLE:
            stream.lost()
        if stream.delayed:
            self.undelay(stream)
        stream.state = State.CLOSED
        stream.end_sent = True
        stream.queue.clear()
        if stream.held:
            self.credit_held(stream)
        stream.queued = 0
        gateway.clock.forget(stream)
        stream.exchange = gateway.no_exchange

    def give_up(self, number: int) -> None:
        """The stream ends here, if there is one: nothing more is said of it."""
        stream = self.streams.get(number)
        if stream is not None:
            self.less(stream.queued)
            stream.lost()
            self._forget(stream)
            if self.delayed:
                self.ready()

    def credit_held(self, stream: Http2Stream) -> None:
        """Body bytes that were kept for an exchange are not needed any more."""
        size = len(stream.held)
        stream.held.clear()
        self.credit(size)

    def _idle(self) -> None:
        """No stream is left."""
        gateway = self.gateway
        for stream in self.spare:
            if stream.is_long():
                stream.forget_heads()
        if self.step == 2:
            self.close()
        elif self.step and not gateway.gently:
            self.drain()
        else:
            self.rest_until(gateway.idle_deadline)
