"""Request bodies of an HTTP/1 client connection: counted or unchunked, paced, handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uwgate.protocols.chunked import ChunkedError, ChunkedReader
from uwgate.protocols.http1_request import CHUNKED as BODY_CHUNKED
from uwgate.router.errors import Failure
from uwgate.router.http1_responses import BODY, WAIT, Http1Responses

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway

BODY_GRACE = 20.0
"""Seconds before a body's rate counts."""


class Http1Bodies(Http1Responses):
    """``left``: bytes of a counted body to come."""

    __slots__ = ("body_bytes", "body_since", "left", "reader")

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        super().__init__(gateway, constants)
        self.reader: ChunkedReader | None = None
        self.left = 0
        self.body_bytes = 0  # since ``body_since``
        self.body_since = 0.0

    def keep(self, data: bytes) -> None:
        """Put bytes behind those that wait to be looked at."""
        raise AssertionError

    def expect_body(self, length: int) -> None:
        self.stage = BODY
        self.left = length
        self.reader = ChunkedReader() if length == BODY_CHUNKED else None
        self.body_bytes = 0
        self.body_since = self.gateway.clock.now

    def body(self, data: bytes) -> None:
        """Body bytes: counted or unchunked, and what is behind them kept for the next request."""
        exchange = self.exchange
        size = len(data)
        self.body_bytes += size
        self._body_deadline()
        reader = self.reader
        if reader is not None:
            self._chunked_body(reader, data)
            return
        left = self.left
        if size < left:
            self.left = left - size
            exchange.request_data(data)
            return
        self.left = 0
        self.stage = WAIT
        if size > left:
            self.keep(data[left:])
            data = data[:left]
        exchange.request_data(data)
        if self.stage == WAIT:
            exchange.request_end()

    def _chunked_body(self, reader: ChunkedReader, data: bytes) -> None:
        exchange, limit = self.exchange, self.gateway.settings.max_body
        try:
            end = reader.feed(data)
        except ChunkedError:
            exchange.fail(Failure.BAD_CHUNK)
            return
        if limit and reader.size > limit:
            exchange.fail(Failure.BODY_TOO_LARGE)
            return
        done = reader.done
        if done:
            self.stage = WAIT
            self.reader = None
            if end < len(data):
                self.keep(data[end:])
        for payload in reader.payload:
            exchange.request_data(payload)
            if self.stage not in (BODY, WAIT):
                return
        if done and self.stage == WAIT:
            exchange.request_end(reader.trailer)

    def _body_deadline(self) -> None:
        """Inactivity, or an average below the minimum rate, whichever strikes first."""
        settings, now = self.gateway.settings, self.gateway.clock.now
        deadline = now + settings.timeout
        if settings.body_min_rate:
            due = self.body_since + BODY_GRACE + self.body_bytes / settings.body_min_rate
            deadline = min(deadline, due)
        self.deadline = deadline
        if deadline < self.due:
            self.gateway.clock.watch(self)

    def body_cut_short(self) -> None:
        """The client closed its side in the middle of a body: there is no request to answer."""
        self.exchange.client_lost()
        self.gateway.tally.errors[Failure.CLIENT_CLOSED] += 1
        self.log(Failure.CLIENT_CLOSED)
        self.finish_writing()

    def pause(self) -> None:
        if self.reading and not self.transport.is_closing():
            self.reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            # What the client could not send meanwhile is not its slowness.
            self.body_since = self.gateway.clock.now
            self.body_bytes = 0
            self.transport.resume_reading()
