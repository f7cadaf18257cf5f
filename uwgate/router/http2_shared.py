"""What the HTTP/2 connections of a gateway share: first frames, requests seen before, Date."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from uwgate.protocols import http2
from uwgate.protocols.hpack import Fields, Memo
from uwgate.protocols.http1_request import (
    RequestBlock,
    RequestLine,
    RequestParser,
    RequestPolicy,
    parse_request_line,
)
from uwgate.protocols.http2_fields import RequestFields, RequestHead, field_block

if TYPE_CHECKING:
    from uwgate.config.settings import Http2Settings
    from uwgate.router.clock import Clock

_KNOWN = 1024  # requests

Request = tuple[RequestLine, RequestBlock, RequestHead]


class Http2Shared:
    """``opening``: the frames that every connection begins with. ``memo``: of decoders.
    ``parsers``: of blocks, of clients that are not and that are trusted."""

    __slots__ = ("_block", "_clock", "_date", "_fields", "_known", "memo", "opening", "parsers")

    def __init__(
        self, settings: Http2Settings, clock: Clock, policy: Callable[..., RequestPolicy]
    ) -> None:
        self._clock = clock
        self._date = b""
        self._block = b""
        self._fields = RequestFields()
        self.memo = Memo()
        self.parsers = [
            RequestParser(policy(trusted=trusted, version=b"2.0")) for trusted in (False, True)
        ]
        # The decoder returns the same object for the same bytes: by its identity, which the entry
        # keeps from being another's.
        self._known: dict[int, tuple[Fields, RequestParser, Request]] = {}
        self.opening = http2.settings_frame(
            [
                (http2.MAX_CONCURRENT_STREAMS, settings.max_streams),
                (http2.INITIAL_WINDOW_SIZE, settings.window),
                (http2.MAX_HEADER_LIST_SIZE, settings.max_header_list),
                (http2.ENABLE_CONNECT_PROTOCOL, 1),
                (http2.NO_RFC7540_PRIORITIES, 1),
            ]
        )
        more = settings.connection_window - http2.DEFAULT_WINDOW
        if more > 0:
            self.opening += http2.window_update(0, more)

    def request(self, parser: RequestParser, fields: Fields, *, ended: bool) -> Request:
        """A request as HTTP/1 has it. Raises FieldError for what is malformed, Http1Error for what
        is refused of HTTP/1 clients, too."""
        known = self._known.get(id(fields))
        if known is not None and ended and known[1] is parser:
            return known[2]
        head = self._fields.head(fields, ended=ended, key=b"" if ended else _key(fields))
        line = parse_request_line(head.line)
        line.protocol = b"HTTP/2.0"
        found = line, parser.parse(head.raw), head
        if ended:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[id(fields)] = fields, parser, found
        return found

    def date(self) -> bytes:
        """The Date of this second, as a header block."""
        date = self._clock.date
        if date is not self._date:
            self._date, self._block = date, field_block(date)
        return self._block


def _key(fields: Fields) -> bytes:
    """Sec-WebSocket-Key, where one is needed: a node checks that there is one, and nobody here
    looks at what it answers (RFC 8441 §5.1)."""
    if (b":method", b"CONNECT") not in fields:
        return b""
    return base64.b64encode(os.urandom(16))
