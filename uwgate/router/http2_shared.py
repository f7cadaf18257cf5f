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
from uwgate.protocols.http2 import ErrorCode
from uwgate.protocols.http2_fields import RequestFields, RequestHead, field_block

if TYPE_CHECKING:
    from uwgate.config.settings import Http2Settings
    from uwgate.router.clock import Clock
    from uwgate.router.http2_connection import Http2Connection

_KNOWN = 4096  # requests
_LONGEST_KNOWN = 1024  # bytes of a block
_TEMPLATES = 256
_HEAVIEST = 32  # times http2-max-queued, in all connections that have more than that
_LONGEST_TEMPLATE = 4096

Request = tuple[RequestLine, RequestBlock, RequestHead]


class Http2Shared:
    """``opening``: the frames that every connection begins with. ``memo``: of decoders.
    ``parsers``: of blocks, of clients that are not and that are trusted. ``heavy``: connections in
    which more waits than ``http2-max-queued``."""

    __slots__ = (
        "_block", "_clock", "_date", "_fields", "_known", "_templates", "heavy", "memo",
        "opening", "parsers",
    )  # fmt: skip

    def __init__(
        self, settings: Http2Settings, clock: Clock, policy: Callable[..., RequestPolicy]
    ) -> None:
        self._clock = clock
        self._date = b""
        self._block = b""
        self._fields = RequestFields()
        self.memo = Memo()
        self.heavy: set[Http2Connection] = set()
        self.parsers = [
            RequestParser(policy(trusted=trusted, version=b"2.0")) for trusted in (False, True)
        ]
        # The decoder returns the same object for the same bytes: by its identity, which the entry
        # keeps from being another's.
        self._known: dict[int, tuple[Fields, RequestParser, Request]] = {}
        # Of each parser: fields without ``:path`` -> what is the same whatever that is.
        self._templates: dict[RequestParser, dict[Fields, tuple[RequestBlock, RequestHead]]] = {
            parser: {} for parser in self.parsers
        }
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
        if not ended:
            return self._new(parser, fields, ended=False)
        known = self._known.get(id(fields))
        if known is not None and known[1] is parser:
            return known[2]
        found = self._another(parser, fields)
        if len(found[0].line) + len(found[1].raw) <= _LONGEST_KNOWN:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[id(fields)] = fields, parser, found
        return found

    def _another(self, parser: RequestParser, fields: Fields) -> Request:
        """A request without a body: usually one of many that differ in their path alone."""
        place = _place_of_path(fields)
        if place < 0:
            return self._new(parser, fields, ended=True)
        templates = self._templates[parser]
        rest = fields[:place] + fields[place + 1 :]
        template = templates.get(rest)
        if template is None:
            found = self._new(parser, fields, ended=True)
            _, block, head = found
            if len(head.line) + len(block.raw) <= _LONGEST_TEMPLATE:
                if len(templates) >= _TEMPLATES:
                    templates.clear()
                templates[rest] = block, head
            return found
        block, head = template
        line = parse_request_line(b"%b %b HTTP/1.1" % (head.method, fields[place][1]))
        line.protocol = b"HTTP/2.0"
        return line, block, head

    def _new(self, parser: RequestParser, fields: Fields, *, ended: bool) -> Request:
        head = self._fields.head(fields, ended=ended, key=b"" if ended else _key(fields))
        line = parse_request_line(head.line)
        line.protocol = b"HTTP/2.0"
        return line, parser.parse(head.raw), head

    def weigh(self, connection: Http2Connection) -> None:
        """Too much waits in a connection: every stream may take in one more piece of its node. If
        that becomes too much in all together, those that let nothing go are ended."""
        heavy = self.heavy
        heavy.add(connection)
        if sum(each.queued for each in heavy) > _HEAVIEST * connection.most_queued:
            # Not now: this is the middle of an exchange, which may be one of theirs.
            connection.gateway.loop.call_soon(self._relieve)

    def _relieve(self) -> None:
        heavy = self.heavy
        for each in [each for each in heavy if each.queued <= each.most_queued]:
            heavy.discard(each)
        total = sum(each.queued for each in heavy)
        for each in sorted(heavy, key=_queued, reverse=True):
            if total <= _HEAVIEST * each.most_queued:
                break
            if each.stalled or each.blocked:
                total -= each.queued
                heavy.discard(each)
                each.fail(ErrorCode.ENHANCE_YOUR_CALM, "too much waits for the client")

    def date(self) -> bytes:
        """The Date of this second, as a header block."""
        date = self._clock.date
        if date is not self._date:
            self._date, self._block = date, field_block(date)
        return self._block


def _queued(connection: Http2Connection) -> int:
    return connection.queued


def _place_of_path(fields: Fields) -> int:
    """Where ``:path`` is, with a slash, among pseudo-fields; -1 if nowhere. Without it, what is
    left says the same of every path."""
    for place, (name, value) in enumerate(fields):
        if name == b":path":
            return place if value[:1] == b"/" else -1
        if name[:1] != b":":
            break
    return -1


def _key(fields: Fields) -> bytes:
    """Sec-WebSocket-Key, where one is needed: a node checks that there is one, and nobody here
    looks at what it answers (RFC 8441 §5.1)."""
    if (b":method", b"CONNECT") not in fields:
        return b""
    return base64.b64encode(os.urandom(16))
