"""One request of a SPDY client and its response: that of HTTP/2, but for what its frames hold.

The fields of a request are put as those of HTTP/2 are, and so go the same way to HTTP/1: what is
refused there is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from uwgate.protocols.http1_request import (
    RequestBlock,
    RequestLine,
    RequestParser,
    parse_request_line,
)
from uwgate.protocols.http1_response import ResponseHead
from uwgate.protocols.http2 import ErrorCode, StreamError
from uwgate.protocols.http2_fields import Fields, RequestFields, RequestHead
from uwgate.protocols.spdy3 import (
    INITIAL_WINDOW,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    Field,
    Setting,
    SynStream,
    request_of,
    settings_frame,
    window_update_frame,
)
from uwgate.router.http2_stream import Http2Stream

if TYPE_CHECKING:
    from uwgate.config.settings import Http2Settings
    from uwgate.router.spdy_connection import SpdyConnection

PROTOCOL = b"SPDY/3.1"
"""Of requests, for the request log and Via."""

_OVERHEAD = 32  # bytes of a field beside name and value, as HTTP/2 counts (RFC 9113 §6.5.2)


class SpdyShared:
    """What the SPDY connections of a listener share. ``opening``: the frames that every one begins
    with; ``window``, ``connection_window``: bytes of a body, and of all bodies of a connection,
    that a client may send; ``parsers``: of blocks, of clients that are not and that are trusted.
    """

    __slots__ = ("_fields", "connection_window", "opening", "parsers", "window")

    def __init__(self, settings: Http2Settings, parsers: Iterable[RequestParser]) -> None:
        self._fields = RequestFields()
        self.parsers = [
            RequestParser(replace(parser.policy, version=PROTOCOL)) for parser in parsers
        ]
        # Never less than clients take for granted: they do not say when they have read SETTINGS.
        self.window = max(settings.window, INITIAL_WINDOW)
        self.connection_window = max(settings.connection_window, INITIAL_WINDOW)
        self.opening = settings_frame(
            [
                Setting(MAX_CONCURRENT_STREAMS, settings.max_streams),
                Setting(INITIAL_WINDOW_SIZE, self.window),
            ]
        )
        if self.connection_window > INITIAL_WINDOW:
            self.opening += window_update_frame(0, self.connection_window - INITIAL_WINDOW)

    def request(
        self, parser: RequestParser, frame: SynStream
    ) -> tuple[RequestLine, RequestBlock, RequestHead]:
        """A request as HTTP/1 has it. Raises SpdyStreamError, FieldError and Http1Error for what is
        refused; the stream is intact."""
        request = request_of(frame.fields, frame.stream_id)
        fields = (
            (b":method", request.method),
            (b":scheme", request.scheme),
            (b":path", request.path),
            (b":authority", request.host),
            *request.rest,
        )
        head = self._fields.head(fields, ended=frame.fin)
        line = parse_request_line(head.line)
        line.protocol = PROTOCOL
        return line, parser.parse(head.raw), head


def size_of(fields: Iterable[Field]) -> int:
    """Bytes of a header section, as ``http2-max-header-list`` counts them."""
    return sum(len(name) + len(value) + _OVERHEAD for name, value in fields)


def lines_of(text: bytes) -> list[Field]:
    """The fields in lines (``Name: value CRLF …``)."""
    return [
        (name, value.strip(b" \t"))
        for name, colon, value in (line.partition(b":") for line in text.split(b"\r\n"))
        if colon
    ]


class SpdyStream(Http2Stream):
    """What HTTP/2 calls a header block is text here, as of HTTP/1: the compression of a session
    wants blocks in the order in which they are sent. ``late``: fields of HEADERS, which the draft
    allows anywhere (2.6.7): trailers."""

    __slots__ = ("late",)

    connection: SpdyConnection
    late: tuple[Field, ...]

    @staticmethod
    def block_of(head: bytes) -> bytes:
        """As it is."""
        return head

    @staticmethod
    def trailer_of(lines: bytes) -> bytes:
        """As they are."""
        return lines

    def clear(self) -> None:
        """As before the first request."""
        super().clear()
        self.late = ()

    def body(self, payload: bytes, size: int, ended: bool) -> None:
        """DATA. Raises StreamError."""
        if ended and self.late:
            super().body(payload, size, False)
            self.trailers((), True)
        else:
            super().body(payload, size, ended)

    def trailers(self, fields: Fields, ended: bool) -> None:
        """HEADERS behind SYN_STREAM. Its FIN counts, or that of the DATA behind it: spdy-transport
        sends that, and looks at no other. Raises StreamError."""
        late = self.late + tuple(fields)
        if size_of(late) > self.connection.gateway.settings.http2.max_header_list:
            raise StreamError(self.id, ErrorCode.FRAME_SIZE_ERROR, "a long trailer")
        self.late = late
        if ended:
            super().trailers(late, True)

    def informational(self, head: ResponseHead) -> None:
        """There is one reply to a stream (2.3.3), and it is the final one."""

    def send_continue(self) -> None:
        """The same: clients do not wait."""

    def _send_head(self, block: bytes, *, end: bool) -> None:
        connection = self.connection
        line, _, lines = block.partition(b"\r\n")
        # Behind "HTTP/1.1 ": code and reason.
        frame = connection.writer.syn_reply(self.id, line[9:].rstrip(), lines_of(lines), fin=end)
        connection.put(frame)
