"""A client's SPDY/3.1 session: frames in, streams, frames out (SPDY draft 3.1).

Streams, windows, the order of bodies, deadlines, ends and what a client may cost are those of
HTTP/2 (``http2_connection`` and what it is made of); here is what differs: the frames, and what
each of them means for a stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.http1_request import RequestParser
from uwgate.protocols.http1_response import ResponseHead
from uwgate.protocols.http2 import MOST_AT_ONCE, ErrorCode, Http2Error, StreamError
from uwgate.protocols.http2_fields import FieldError
from uwgate.protocols.http2_priority import Priority
from uwgate.protocols.http2_streams import State, Windows
from uwgate.protocols.spdy3 import (
    INITIAL_WINDOW,
    INITIAL_WINDOW_SIZE,
    MAX_CONTROL,
    PERSISTED,
    Data,
    Frame,
    Goaway,
    Headers,
    Ping,
    RstStream,
    SessionStatus,
    Settings,
    SpdyError,
    SpdyReader,
    SpdyStreamError,
    SpdyWriter,
    StreamStatus,
    SynReply,
    SynStream,
    WindowUpdate,
    data_frame,
    data_header,
    goaway_frame,
    ping_frame,
    rst_stream_frame,
    window_update_frame,
)
from uwgate.protocols.uwsgi import var
from uwgate.router.errors import FAILURES, Failure
from uwgate.router.http2_connection import Http2Connection
from uwgate.router.http2_ends import FOREVER, OPEN
from uwgate.router.http2_stream import Http2Stream
from uwgate.router.spdy_stream import SpdyShared, SpdyStream, lines_of, size_of

if TYPE_CHECKING:
    from uwgate.router.hsts import Hsts
    from uwgate.router.http import HttpGateway

# uWSGI's, which says 3 of itself; beside the id of the stream.
_VARIABLES = var(b"SPDY", b"on") + var(b"SPDY.version", b"3")

# What is left unsaid here is PROTOCOL_ERROR.
_STATUSES = {
    ErrorCode.NO_ERROR: StreamStatus.CANCEL,  # the reply is complete, the request is not
    ErrorCode.CANCEL: StreamStatus.CANCEL,
    ErrorCode.INTERNAL_ERROR: StreamStatus.INTERNAL_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR: StreamStatus.FLOW_CONTROL_ERROR,
    ErrorCode.STREAM_CLOSED: StreamStatus.STREAM_ALREADY_CLOSED,
    ErrorCode.FRAME_SIZE_ERROR: StreamStatus.FRAME_TOO_LARGE,
    ErrorCode.REFUSED_STREAM: StreamStatus.REFUSED_STREAM,
}
_SESSION = {
    ErrorCode.NO_ERROR: SessionStatus.OK,
    ErrorCode.INTERNAL_ERROR: SessionStatus.INTERNAL_ERROR,
}


class SpdyConnection(Http2Connection):
    """``frames``: the reader of ``buffer``; what HTTP/2 has for that is not used."""

    __slots__ = ("buffer", "frames", "shared", "writer")

    def __init__(
        self, gateway: HttpGateway, constants: bytes, hsts: Hsts | None, shared: SpdyShared
    ) -> None:
        self.shared = shared
        super().__init__(gateway, constants, hsts)
        most = gateway.settings.http2.max_header_list
        # Twice the most, to tell the client what is wrong: who goes beyond has broken the
        # compression, and with it the session.
        self.frames = SpdyReader(
            max_control=max(MAX_CONTROL, most), max_data=shared.connection_window, limit=2 * most
        )
        self.buffer = bytearray()
        self.writer = SpdyWriter()
        self.initial_window = INITIAL_WINDOW
        self.max_frame = self.most_frame
        self.windows = Windows(INITIAL_WINDOW, shared.connection_window)
        self.stage = OPEN
        self.settled = True  # SETTINGS may come, or not

    def parser_for(self, *, trusted: bool) -> RequestParser:
        """What reads the header section of requests."""
        return self.shared.parsers[trusted]

    def set_client(self, address: bytes, port: int, *, tls: bool) -> None:
        """Who the client is: the constants of it."""
        super().set_client(address, port, tls=tls)
        if self.uwsgi_constants:
            self.uwsgi_constants += _VARIABLES + var(b"UWSGI_SCHEME", self.scheme)

    def _start(self) -> None:
        self.count(1)
        self.put(self.shared.opening)
        self.begin()

    def count(self, change: int) -> None:
        """A connection more or less."""
        self.gateway.tally.spdy_connections += change

    def count_delayed(self) -> None:
        """A request has to wait."""
        self.gateway.tally.spdy_delayed += 1

    # --- reading ----------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        if self.stage != OPEN:
            return
        self.buffer += data
        self.scheduled = True  # in any case, below
        taken, left, until = False, MOST_AT_ONCE, self.turn_ends()
        try:
            while left and self.stage == OPEN and self._read_one():
                taken, left = True, left - 1 if time.monotonic() < until else 0
        except Http2Error as error:
            self.fail(error.code, str(error))
        except SpdyError as error:
            self.fail(ErrorCode.PROTOCOL_ERROR, str(error))
        if taken and self.slow_since:  # what is not complete now has only begun
            self.slow_since, self.deadline = 0.0, self.rest
        self.more = not left
        if self.more:
            self.take_turns()
        else:
            self.watch_slow()
        self.flush()

    def _read_one(self) -> bool:
        """The next frame, or part of one; False: there is none. Raises Http2Error and SpdyError,
        which end the session."""
        frames = self.frames
        try:
            frame = frames.next_frame(self.buffer)
            for _ in range(frames.skipped):
                self.limits.spend()
            frames.skipped = 0
            if frame is None:
                # In the order of its coming: who sends slowly would seem to send nothing.
                frame = frames.part(self.buffer)
                if frame is None:
                    return False
            if type(frame) not in (SynStream, Data):
                self.limits.spend()
            if isinstance(frame, SynStream | Headers):
                self.limits.spend_section(len(frame.fields), size_of(frame.fields))
            _HANDLERS[type(frame)](self, frame)
        except SpdyStreamError as error:
            self.last = frames.last_stream_id
            self._end_stream(error.stream_id, error.status)
        except StreamError as error:
            self._end_stream(error.stream, _STATUSES.get(error.code, StreamStatus.PROTOCOL_ERROR))
        return True

    def watch_slow(self) -> None:
        """A frame has to be here in the time of a header section, however it trickles in."""
        if self.frames.slow(self.buffer):
            if not self.slow_since:
                self.slow_from_now()
        elif self.slow_since:
            self.slow_since, self.deadline = 0.0, self.rest

    def _end_stream(self, number: int, status: StreamStatus) -> None:
        self.given_up()
        self._rst(number, status)
        self.give_up(number)

    def _living(self, number: int) -> Http2Stream | None:
        """The stream that the client goes on sending on; None: it does not know yet that there is
        none. Raises StreamError, SpdyStreamError."""
        stream = self.streams.get(number)
        if stream is None:
            if number in self.resets or self.step == 2:
                return None
            raise SpdyStreamError(number, StreamStatus.INVALID_STREAM, "a stream that is not open")
        if stream.state != State.OPEN:
            raise StreamError(number, ErrorCode.STREAM_CLOSED, "something behind the end")
        return stream

    # --- frames -----------------------------------------------------------------------------------

    def _on_syn_stream(self, frame: SynStream) -> None:
        number = self.last = frame.stream_id
        if self.step == 2:
            self.limits.spend()
            self._remember(number)
            return
        if frame.unidirectional or frame.associated:
            raise StreamError(number, ErrorCode.PROTOCOL_ERROR, "a client pushes nothing")
        if len(self.streams) >= self.gateway.settings.http2.max_streams or self.stalled:
            raise StreamError(number, ErrorCode.REFUSED_STREAM, "too many streams")
        gateway = self.gateway
        gateway.tally.spdy_requests += 1
        stream = self.spare.pop() if self.spare else SpdyStream(self)
        stream.id = number
        stream.state = State.HALF_CLOSED if frame.fin else State.OPEN
        stream.windows.reset(self.initial_window, self.shared.window)
        if self.uwsgi_constants:
            stream.uwsgi_constants = self.uwsgi_constants + var(b"SPDY.stream", b"%d" % number)
        self.streams[number] = stream
        self._begin(stream, frame)

    def _begin(self, stream: Http2Stream, frame: SynStream) -> None:
        """What the fields say. The draft wants an answer where one is missing (3.2.1); a client has
        more of that than of a reset in any case."""
        if size_of(frame.fields) > self.gateway.settings.http2.max_header_list:
            self.given_up()  # compressed, it may be a few bytes
            self._refuse(stream, frame, Failure.HEAD_TOO_LARGE)
            return
        try:
            request, block, head = self.shared.request(self.parser, frame)
        except (SpdyStreamError, FieldError):
            self.given_up()
            self._refuse(stream, frame, Failure.BAD_REQUEST)
        except Http1Error as error:
            self._refuse(stream, frame, FAILURES[error.fault])
        else:
            if self.admits(block):
                stream.begin_request(request, block, head.length, Priority(frame.priority))
            else:
                stream.request, stream.block = request, block
                stream.refuse(Failure.MISDIRECTED)

    def _refuse(self, stream: Http2Stream, frame: SynStream, failure: Failure) -> None:
        """Answer what is no request; to HEAD without a body."""
        stream.silent = (b":method", b"HEAD") in frame.fields
        stream.refuse(failure)

    def _on_data(self, frame: Data) -> None:
        number, size = frame.stream_id, len(frame.data)
        try:
            self.windows.received(size)
        except OverflowError:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more than the window") from None
        if not size and not frame.fin:
            self.limits.spend()
        try:
            stream = self._living(number)
            if stream is not None:
                stream.windows.received(size)
        except (StreamError, SpdyStreamError):
            self.credit(size)
            raise
        except OverflowError:
            self.credit(size)
            raise StreamError(number, ErrorCode.FLOW_CONTROL_ERROR, "too much") from None
        if stream is None:
            self.credit(size)
        else:
            stream.body(frame.data, size, frame.fin)

    def _on_headers(self, frame: Headers) -> None:
        stream = self._living(frame.stream_id)
        if stream is not None:
            stream.trailers(frame.fields, frame.fin)

    def _on_syn_reply(self, frame: SynReply) -> None:
        """There is nothing to reply to: no stream is ours."""
        known = frame.stream_id in self.streams
        status = StreamStatus.PROTOCOL_ERROR if known else StreamStatus.INVALID_STREAM
        raise SpdyStreamError(frame.stream_id, status, "SYN_REPLY of a client")

    def _on_rst_stream(self, frame: RstStream) -> None:
        if frame.stream_id not in self.streams:
            return
        self.gateway.tally.count_spdy_reset("client", frame.status)
        self.given_up()
        self.give_up(frame.stream_id)

    def _on_settings(self, frame: Settings) -> None:
        for setting in frame.entries:
            # Nothing that clients are to keep was ever sent: PERSISTED is somebody else's.
            if setting.setting_id == INITIAL_WINDOW_SIZE and not setting.flags & PERSISTED:
                self.resize_windows(setting.value)

    def _on_ping(self, frame: Ping) -> None:
        if frame.ping_id & 1:
            self.put(ping_frame(frame.ping_id))

    def _on_goaway(self, frame: Goaway) -> None:
        """The client opens no more streams, or so it says."""

    def _on_window_update(self, frame: WindowUpdate) -> None:
        if not frame.stream_id:
            self.grow(frame.delta)
            return
        stream = self.streams.get(frame.stream_id)
        if stream is not None:
            self.grow_stream(stream, frame.delta)

    # --- writing ----------------------------------------------------------------------------------

    @staticmethod
    def data_head(stream: int, size: int, *, end: bool) -> bytes:
        """The header of DATA."""
        return data_header(stream, size, end=end)

    @staticmethod
    def window_update(stream: int, increment: int) -> bytes:
        """WINDOW_UPDATE; of the session: 0."""
        return window_update_frame(stream, increment)

    def head_block(self, head: ResponseHead) -> bytes:
        """A response that is passed on as it is: its lines (see SpdyStream)."""
        head = self.marked(head)
        return head.lines + head.framing + (b"" if head.dated else self.gateway.clock.date)

    def send_whole(self, stream: Http2Stream, block: bytes, body: bytes, size: int) -> bool:
        """A response without a body ends with its head; bodies take their turn."""
        if size:
            return False
        stream._send_head(block, end=True)
        self.limits.earn()
        self.sent_all(stream)
        return True

    def probe(self) -> None:
        """Something that needs no answer."""
        self.put(ping_frame(2))

    def trailer_frames(self, stream: Http2Stream) -> bytes:
        """Trailers; spdy-transport does not see FIN in HEADERS."""
        fields = lines_of(stream.trailer)
        return self.writer.headers(stream.id, fields) + data_frame(stream.id, b"", fin=True)

    def goaway(self, last: int, code: ErrorCode, reason: str = "") -> None:
        """GOAWAY. There are three codes here; what is counted tells more."""
        if last != FOREVER:
            self.gateway.tally.count_spdy_goaway(code)
        if self.step == 2:
            last = min(last, self.ended_at)
        self.put(goaway_frame(last, _SESSION.get(code, SessionStatus.PROTOCOL_ERROR)))

    def refuse(self, number: int, code: ErrorCode) -> None:
        """RST_STREAM; what the client sends before it knows is ignored."""
        self._rst(number, _STATUSES.get(code, StreamStatus.PROTOCOL_ERROR))

    def _rst(self, number: int, status: StreamStatus) -> None:
        self.put(rst_stream_frame(number, status))
        self.gateway.tally.count_spdy_reset("gateway", status)
        self._remember(number)


_HANDLERS: dict[type[Frame], Callable[[SpdyConnection, Any], None]] = {
    SynStream: SpdyConnection._on_syn_stream,
    Data: SpdyConnection._on_data,
    Headers: SpdyConnection._on_headers,
    SynReply: SpdyConnection._on_syn_reply,
    RstStream: SpdyConnection._on_rst_stream,
    Settings: SpdyConnection._on_settings,
    Ping: SpdyConnection._on_ping,
    Goaway: SpdyConnection._on_goaway,
    WindowUpdate: SpdyConnection._on_window_update,
}
