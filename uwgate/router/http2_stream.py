"""One request of an HTTP/2 client and its response: what an exchange calls its front.

The connection (``http2_connection``) reads frames and decides when what waits here is sent; a
stream that is over is used again for another request.
"""

from __future__ import annotations

import time
from _socket import socket as new_socket  # see upstream_uwsgi
from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1_response import ResponseHead
from uwgate.protocols.http2 import ErrorCode
from uwgate.protocols.http2_fields import field_block, response_block
from uwgate.protocols.http2_streams import State
from uwgate.router import responder
from uwgate.router.errors import Failure
from uwgate.router.front import field_of
from uwgate.router.http2_request import RequestSide
from uwgate.router.phases import IDLE
from uwgate.router.responder import NONE

if TYPE_CHECKING:
    from uwgate.router.front import Connection

HELD = 65536
"""Bytes of a response that wait in a stream before its node has to."""

_BULK = 65536  # bytes
_RESETS = {
    Failure.CLIENT_TIMEOUT: ErrorCode.CANCEL,
    Failure.KILLED: ErrorCode.CANCEL,
}


class Http2Stream(RequestSide):
    """The response side: a request as its connection sees it (``http2_request``), and what its
    exchange calls."""

    __slots__ = ()

    # From text to what is sent: SPDY has something else.
    block_of = staticmethod(response_block)
    trailer_of = staticmethod(field_block)

    def refuse(self, failure: Failure) -> None:
        """A request that is not even begun."""
        gateway = self.connection.gateway
        self.exchange.forget()
        gateway.tally.errors[failure] += 1
        self._answer(failure, begun=False)

    def sent_some(self, size: int) -> None:
        """Bytes of the queue have been sent: the node may go on."""
        self.queued -= size
        self.taken = True
        connection = self.connection
        self.deadline = connection.gateway.request_deadline
        if self.blocked and (
            not self.queued
            or (self.queued < HELD // 2 and connection.queued < connection.most_queued)
        ):
            self.start_node()

    def stop_node(self) -> None:
        """The client does not take what the node sends."""
        back = self.exchange.back
        if back is not None and not back.paused:  # it may be another than the one that was stopped
            self.blocked = True
            back.pause()

    def start_node(self) -> None:
        """The node may go on."""
        self.blocked = False
        back = self.exchange.back
        if back is not None:
            back.resume()

    def expired(self) -> None:
        """The deadline passed."""
        gateway = self.connection.gateway
        if self.state == State.IDLE:
            self.deadline = 0.0
        elif self.lingering:
            self.connection.reset(self, ErrorCode.NO_ERROR)
        elif self.delayed:
            self.exchange.fail(Failure.NODE_TIMEOUT)  # the others were not answered in time
        elif self.exchange.phase != IDLE:
            self.exchange.expired()
            if self.deadline > gateway.clock.now:
                gateway.clock.watch(self)
        else:  # all of it is here, and the client does not take it
            gateway.tally.errors[Failure.CLIENT_TIMEOUT] += 1
            self.connection.reset(self, ErrorCode.CANCEL)

    # --- front of the exchange --------------------------------------------------------------------

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """The complete response in one piece, to a plain request."""
        connection = self.connection
        gateway = connection.gateway
        block = connection.head_block(head)
        body = data[end:] if end else data
        gateway.tally.responses[head.status] += 1
        self.ended = True
        size = len(body)
        if gateway.timed == 1:
            gateway.tally.seconds += time.monotonic() - self.exchange.started_at
        elif gateway.timed:
            self.status = head.status
            self.fields = head.count
            self.head_bytes = len(block) + 9
            self.sent_bytes = size
            self.log(None)
        if connection.send_whole(self, block, body, size):
            return
        self._send_head(block, end=not size)
        if size:
            self._queue(body)
        else:
            connection.sent_all(self)

    def begin(self, head: ResponseHead, data: bytes, end: int) -> None:
        """Head and first body bytes of a response of known length, as received."""
        self._begin(head, self.connection.head_block(head))
        size = len(data) - end
        if size:  # it is often a quarter of a megabyte: not to be copied
            self.sent_bytes += size
            self._queue(memoryview(data)[end:])

    def respond(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The head of the final response, with the first body bytes."""
        gateway, request, block = self.connection.gateway, self.request, self.exchange.block
        assert request is not None
        if self.websocket and head.status < 300:
            # It would say that the tunnel is there (RFC 8441 §5).
            if self.exchange.phase == IDLE:  # a file
                self.abort(Failure.NODE_BAD_RESPONSE)
            else:
                self.exchange.abort(Failure.NODE_BAD_RESPONSE)
            return
        head = self.connection.marked(head)
        is_head = request.method == b"HEAD"
        gzip = head.gzip and block.gzip and not head.bodiless and not is_head
        framing = responder.choose_framing(
            head, is_head=is_head, minor=1, gzip=gzip, auto_chunked=True
        )
        text = responder.response_head(
            head, framing, gateway.clock.date, minor=1, persist=True, gzip=gzip
        )
        if gateway.sticky is not None:
            text = gateway.sticky.mark(self.exchange, text, secure=self.scheme == b"https")
        self.gzip = responder.Gzip() if gzip else None
        self.silent = framing == NONE
        if self.silent and ended:
            self.ended = True
        self._begin(head, self.block_of(text))
        if body:
            self.data(body)

    def _begin(self, head: ResponseHead, block: bytes) -> None:
        self.connection.gateway.tally.responses[head.status] += 1
        self.status = head.status
        self.fields = head.count
        self.head_bytes = len(block) + 9
        self.sent_bytes = 0
        self._send_head(block, end=self.ended)

    def _send_head(self, block: bytes, *, end: bool) -> None:
        connection = self.connection
        connection.put(connection.heads(self.id, block, end=end))

    def informational(self, head: ResponseHead) -> None:
        """A 1xx response other than 101."""
        if head.status == 100:
            if self.waited or not self.exchange.block.expect:
                return
            self.waited = True
        self._send_head(response_block(head.lines), end=False)

    def send_continue(self) -> None:
        """Ask for the body, once."""
        exchange = self.exchange
        if not self.waited and exchange.block.expect and not exchange.request_ended:
            self.waited = True
            self._send_head(response_block(b"HTTP/1.1 100 Continue\r\n"), end=False)

    def data(self, payload: bytes) -> None:
        """Body bytes."""
        if self.silent:
            return
        self.sent_bytes += len(payload)
        if self.gzip is not None:
            payload = self.gzip.data(payload)
        self._queue(payload)

    def _queue(self, payload: bytes | memoryview) -> None:
        if not payload:
            return
        connection = self.connection
        self.queue.append(payload)
        self.queued += len(payload)
        connection.enqueue(self)
        connection.queued += len(payload)
        if len(payload) >= _BULK:  # at once: at the end of the turn it is in no cache any more
            connection.flush()
        much = self.queued > HELD or connection.queued > connection.most_queued
        # What was sent whole leaves nothing that could wake it.
        if much and (self.queue or connection.is_shut(self)) and connection.is_behind(self):
            self.stop_node()
            if connection.queued > connection.most_queued:
                connection.hold()
                connection.gateway.http2.weigh(connection)

    def end(self, trailer: bytes) -> None:
        """The response is complete."""
        if self.ended:  # with its head
            self.log(None)
            self.connection.sent_all(self)
            return
        if self.gzip is not None:
            self._queue(self.gzip.end())
            self.gzip = None
        self.ended = True
        if trailer and not self.silent:
            self.trailer = self.trailer_of(trailer)
        self.log(None)
        self.connection.enqueue(self)

    def fail(self, failure: Failure) -> None:
        """Answer with an error; nothing of a response was sent yet."""
        self.connection.gateway.tally.errors[failure] += 1
        self._answer(failure, begun=True)

    def _answer(self, failure: Failure, *, begun: bool) -> None:
        connection, request = self.connection, self.request
        gateway = connection.gateway
        is_head = self.silent or (request is not None and request.method == b"HEAD")
        out, size = responder.error_response(
            failure,
            gateway.accept_of(self.block.raw),
            gateway.clock.date,
            gateway.settings.error_pages,
            persist=True,
            is_head=is_head,
            extra=connection.error_lines(),
        )
        block = self.block_of(out[: len(out) - size])
        gateway.tally.responses[failure.status] += 1
        self.status = failure.status
        self.fields = out.count(b"\r\n", 0, len(out) - size) - 2
        self.sent_bytes = size
        self.head_bytes = len(block) + 9
        self.ended = True
        if self.delayed:
            connection.undelay(self)
        if begun:  # it may be another's stream in a moment
            self.log(failure)
        else:
            gateway.log_refused(cast("Connection", self), failure)
        self._send_head(block, end=not size)
        if size:
            self.queue.append(out[-size:])
            self.queued += size
            connection.queued += size
            self.deadline = gateway.request_deadline
            gateway.clock.watch(self)
            connection.enqueue(self)
        else:
            connection.sent_all(self)

    def abort(self, failure: Failure) -> None:
        """Cut a response that cannot be completed."""
        self.connection.gateway.tally.errors[failure] += 1
        self.log(failure)
        self.connection.reset(self, _RESETS.get(failure, ErrorCode.INTERNAL_ERROR))

    # --- tunnels (RFC 8441) -----------------------------------------------------------------------

    def upgraded(self, head: ResponseHead | None) -> None:
        """Become a tunnel."""
        if head is None or not self.websocket:
            self.exchange.abort(Failure.NODE_BAD_RESPONSE)
            return
        self.status = 200
        tally = self.connection.gateway.tally
        tally.responses[200] += 1
        lines = b"\r\n".join(
            line
            for line in head.lines.split(b"\r\n")[1:]
            if not line.lower().startswith(b"sec-websocket-accept:")
        )
        block = response_block(b"HTTP/1.1 200 OK\r\n" + lines)
        self.head_bytes = len(block) + 9
        self._send_head(block, end=False)
        while self.held:
            self.hand_on_held()
        if self.state == State.HALF_CLOSED:
            self._request_end()

    def tunnel_data(self, data: bytes) -> None:
        """Bytes of the node in a tunnel."""
        gateway = self.connection.gateway
        self.deadline = gateway.clock.now + gateway.settings.timeout
        self.sent_bytes += len(data)
        self._queue(data)

    def tunnel_eof(self) -> None:
        """The node sends no more in a tunnel."""
        self.ended = True
        # What is kept for it goes there first, and that is the end (``_request_end``).
        if self.state == State.HALF_CLOSED and not self.held:
            self.end_tunnel()
        else:
            self.connection.enqueue(self)

    def tunnel_broken(self) -> None:
        """The node has reset its connection (RFC 8441 §5)."""
        if self.queue:  # what it had to say is said first
            self.end_tunnel()
            return
        self.exchange.client_lost()
        self.log(None)
        self.connection.reset(self, ErrorCode.CANCEL)

    def end_tunnel(self) -> None:
        """The node's connection is gone in a tunnel, or both sides are done."""
        if self.exchange.phase != IDLE:
            self.exchange.tunnel_over()
            self.log(None)
        self.ended = True
        if not self.end_sent:
            self.connection.enqueue(self)
        elif self.state == State.HALF_CLOSED:
            self.connection.over(self)
        elif not self.lingering:
            self.linger()

    # --- questions and pauses ---------------------------------------------------------------------

    def forget_response(self) -> None:
        """A new request begins."""
        self.status = self.fields = self.head_bytes = self.sent_bytes = 0

    def field(self, name: bytes) -> bytes:
        """The value of the request's field ``name``."""
        return field_of(self.block.raw + self.exchange.extra, name)

    def watch(self) -> None:
        """The deadline was moved to an earlier time."""
        self.connection.gateway.clock.watch(self)

    def raw_socket(self) -> new_socket | None:
        """Nobody else may write to the client's socket."""
        return None

    def log(self, failure: Failure | None) -> None:
        gateway = self.connection.gateway
        if gateway.timed:
            gateway.finished(cast("Connection", self), failure, time.monotonic())
