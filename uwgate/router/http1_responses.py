"""The response half of an HTTP/1 client connection: what an exchange calls its front.

Heads are made by ``responder``; here is when they are sent, how bodies are framed, and how a
connection ends. The request half is ``http1_front.Http1Front``.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from _socket import socket as new_socket  # see upstream_uwsgi
from typing import TYPE_CHECKING, cast

from uwgate.protocols.chunked import encode_chunk, last_chunk
from uwgate.protocols.http1_request import RequestBlock, RequestLine
from uwgate.protocols.http1_response import ResponseHead
from uwgate.router import responder
from uwgate.router.client import KnownClient
from uwgate.router.errors import Failure
from uwgate.router.responder import CHUNKED, NONE, PLAIN, UNTIL_CLOSE

if TYPE_CHECKING:
    from uwgate.router.exchange import Exchange
    from uwgate.router.front import Connection
    from uwgate.router.http import HttpGateway

# Stages of a connection.
HEAD, BODY, WAIT, TUNNEL, LINGER, PREFACE, GONE = range(7)

KEPT_HEAD = 4096  # bytes; of longer heads an idle connection remembers nothing
_KEPT_STATUS = (404, 500, 502, 503, 504)  # of failures that say nothing against the client
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds

NOT_YET = RequestBlock(b"")  # equal to no block


def _dated(head: ResponseHead, date: bytes) -> bytes:
    """The whole head with the Date of this second."""
    if head.dated_with is not date:  # once a second
        head.dated_with = date
        head.now_dated = head.undated + date + b"\r\n"
    return head.now_dated


class Http1Responses(KnownClient):
    """State and methods of the response side; ``Http1Front`` adds the request side."""

    __slots__ = (
        "block",
        "blocked",
        "buffer",
        "deadline",
        "due",
        "eof",
        "exchange",
        "fields",
        "framing",
        "gzip",
        "head_bytes",
        "node_eof",
        "persist",
        "raw",
        "reading",
        "request",
        "sent_bytes",
        "stage",
        "status",
        "transport",
        "waited",
    )

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        super().__init__(gateway, constants)
        self.transport: asyncio.Transport
        self.exchange: Exchange
        self.stage = HEAD
        self.block = NOT_YET
        self.request: RequestLine | None = None
        self.buffer: bytearray | None = None
        self.deadline = 0.0
        self.due = 0
        self.persist = gateway.keepalive
        self.reading = True  # the socket is being read
        self.waited = False  # 100 Continue was sent
        self.blocked = False  # the client does not read what we write
        self.eof = False  # the client sends no more
        self.node_eof = False  # in a tunnel: the node sends no more
        self.framing = NONE
        self.gzip: responder.Gzip | None = None
        self.raw: new_socket | None = None  # a duplicate of the client's, once sendfile was used
        self.status = 0
        self.fields = 0  # of the response
        self.head_bytes = 0
        self.sent_bytes = 0

    # --- to be provided by the request side ---------------------------------------------------

    def expired(self) -> None:
        """The deadline passed."""
        raise AssertionError

    def start_next(self) -> None:
        """Begin the request that is in the buffer."""
        raise AssertionError

    def pause(self) -> None:
        """Stop reading."""
        raise AssertionError

    def resume(self) -> None:
        """Go on reading, if that was paused."""
        raise AssertionError

    def rest_of_buffer(self) -> None:
        """Hand on what the client sent behind the head."""
        raise AssertionError

    def close(self) -> None:
        """Close after what is written."""
        raise AssertionError

    def linger(self) -> None:
        """Send FIN, read a moment longer, close."""
        raise AssertionError

    def stays(self) -> bool:
        """Whether the connection outlives this response while the gateway drains."""
        raise AssertionError

    # --- front of the exchange --------------------------------------------------------------------

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """A response of known length in one piece, to a plain request (HTTP/1.1, not HEAD);
        ``data[:end]`` is its head as received."""
        gateway = self.gateway
        if not self.persist:
            out = b""
        elif head.clean:
            out = data
        elif head.ready:
            out = head.ready + data[end:]
        elif head.undated:
            out = _dated(head, gateway.clock.date) + data[end:]
        else:
            out = b""
        if not out:
            self.respond(head, data[end:], True)
            self.end(b"")
            return
        self.transport.write(out)
        tally = gateway.tally
        tally.responses[head.status] += 1
        tally.tx += len(out)
        timed = gateway.timed
        if timed == 1:
            tally.seconds += time.monotonic() - self.exchange.started_at
        elif timed:
            self.status = head.status
            self.fields = head.count
            self.sent_bytes = len(data) - end
            self.head_bytes = len(out) - self.sent_bytes
            self.log(None)
        if not self.buffer and not self.eof and self.reading:
            self.stage = HEAD
            self.deadline = gateway.idle_deadline
            if gateway.short_idle:
                gateway.clock.watch(self)
            return
        self._go_on()

    def begin(self, head: ResponseHead, data: bytes, end: int) -> None:
        """Head and first body bytes of a response of known length, as received."""
        if not (self.persist and head.ready and self.request.minor):  # type: ignore[union-attr]
            self.respond(head, data[end:], False)
            return
        size = len(data)
        if head.clean:
            self.transport.write(data)
        elif self.tls is not None:  # each write is a record of its own
            self.transport.write(b"".join((head.ready, memoryview(data)[end:])))
            size += len(head.ready) - end
        else:
            # Two writes leave in one call, and nothing large is copied.
            self.transport.write(head.ready)
            self.transport.write(memoryview(data)[end:])
            size += len(head.ready) - end
        tally = self.gateway.tally
        tally.responses[head.status] += 1
        tally.tx += size
        self.framing = PLAIN
        self.status = head.status
        self.fields = head.count
        self.sent_bytes = len(data) - end
        self.head_bytes = size - self.sent_bytes

    def respond(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The head of the final response, with the first body bytes."""
        out = self._final_head(head)
        if body and self.framing != NONE:
            self.sent_bytes = len(body)
            out += self._framed(body)
        self.gateway.tally.tx += len(out)
        if ended and self.tls is not None and not self.persist:
            self.transport.cork()  # type: ignore[attr-defined]  # the end follows at once
        self.transport.write(out)

    def announce(self, head: ResponseHead) -> bytes:
        """The head of a response that somebody else sends over ``raw``; ``sent_bytes`` is what was
        sent less the head."""
        exchange = self.exchange
        if (
            self.persist
            and head.undated
            and exchange.request.plain
            and exchange.block.simple
            and exchange.request_ended
        ):
            out = _dated(head, self.gateway.clock.date)
            self.framing = PLAIN
            self.gateway.tally.responses[head.status] += 1
            self.status = head.status
            self.fields = head.count
            self.head_bytes = len(out)
        else:
            out = self._final_head(head)
        self.sent_bytes = -len(out)
        return out

    def raw_socket(self) -> new_socket | None:
        """The client's socket, for sending by other means while nothing is written; None if that is
        not possible: over TLS, and while the client has not taken all that was."""
        if self.tls is not None or self.blocked or self.transport.get_write_buffer_size():
            return None
        if self.raw is None:
            sock = self.transport.get_extra_info("socket")
            try:
                self.raw = new_socket(fileno=os.dup(sock.fileno()))
            except (AttributeError, OSError):  # it is gone, or there is no descriptor left
                return None
            self.gateway.duplicated.add(self)
        return self.raw

    def close_raw(self) -> None:
        """Nothing is sent over the duplicate now."""
        raw, self.raw = self.raw, None
        if raw is not None:
            self.gateway.duplicated.discard(self)
            raw.close()

    def _final_head(self, head: ResponseHead) -> bytes:
        gateway, request, block = self.gateway, self.request, self.exchange.block
        assert request is not None
        minor = request.minor
        gzip = (
            head.gzip
            and block.gzip
            and bool(minor)
            and not head.bodiless
            and request.method != b"HEAD"
        )
        framing = self.framing = responder.choose_framing(
            head,
            is_head=request.method == b"HEAD",
            minor=minor,
            gzip=gzip,
            auto_chunked=gateway.settings.auto_chunked,
        )
        if framing == UNTIL_CLOSE or not self.exchange.request_ended:
            self.persist = False
        elif gateway.draining:
            self.persist = self.stays()
        out = responder.response_head(
            head, framing, gateway.clock.date, minor=minor, persist=self.persist, gzip=gzip
        )
        if gateway.sticky is not None:
            out = gateway.sticky.mark(self.exchange, out, secure=self.scheme == b"https")
        self.gzip = responder.Gzip() if gzip else None
        gateway.tally.responses[head.status] += 1
        self.status = head.status
        self.fields = head.count
        self.head_bytes = len(out)
        self.sent_bytes = 0
        return out

    def _framed(self, payload: bytes) -> bytes:
        if self.gzip is not None:
            payload = self.gzip.data(payload)
        return encode_chunk(payload) if self.framing == CHUNKED else payload

    def informational(self, head: ResponseHead) -> None:
        """A 1xx response; HTTP/1.0 clients do not know them (RFC 9110 §15.2)."""
        if head.status == 100:
            if self.waited or not self.exchange.block.expect:
                return
            self.waited = True
        if self.request is not None and self.request.minor:
            self.transport.write(head.lines + b"\r\n")

    def send_continue(self) -> None:
        """100 Continue, where the client waits for it and the body is not here already."""
        if (
            not self.waited
            and self.exchange.block.expect
            and self.request is not None
            and self.request.minor
            and not self.exchange.request_ended
        ):
            self.waited = True
            self.transport.write(responder.CONTINUE)

    def data(self, payload: bytes) -> None:
        """Body bytes."""
        if self.framing == NONE:
            return
        self.sent_bytes += len(payload)
        if self.framing != PLAIN:
            payload = self._framed(payload)
        self.gateway.tally.tx += len(payload)
        self.transport.write(payload)

    def end(self, trailer: bytes) -> None:
        """The response is complete."""
        if self.framing == CHUNKED:
            out = b""
            if self.gzip is not None:
                out = encode_chunk(self.gzip.end())
                self.gzip = None
            out += last_chunk(trailer)
            self.gateway.tally.tx += len(out)
            self.transport.write(out)
        self._next()

    def _next(self) -> None:
        """The request is served: log it, then the next one, or close."""
        self.log(None)
        self._go_on()

    def _go_on(self) -> None:
        """On to the next request, or close."""
        gateway = self.gateway
        if not self.persist or self.stage != WAIT:
            # Gently: the client could not know that this was the last one, and may have sent more.
            (self.linger if gateway.gently else self.close)()
            return
        self.stage = HEAD
        # Who is still reading the last response has the time of a request for it.
        self.deadline = gateway.request_deadline if self.blocked else gateway.idle_deadline
        if gateway.short_idle:
            gateway.clock.watch(self)
        if len(self.block.raw) > KEPT_HEAD:
            self.block = self.exchange.block = NOT_YET
            self.request = None
            self.exchange.forget_heads()
        if self.buffer:
            # Not from here: a client that pipelines thousands must not nest thousands deep.
            gateway.loop.call_soon(self.start_next)
            return
        if gateway.draining:
            self.persist = False
        if self.eof:
            self.close()
        elif self.blocked:
            self.pause()
        else:
            self.resume()

    def upgraded(self, head: ResponseHead | None) -> None:
        """Become a tunnel."""
        if head is not None:
            self.status = 101
            self.gateway.tally.responses[101] += 1
            out = responder.switch_head(head)
            self.head_bytes = len(out)
            self.transport.write(out)
            self.gateway.tally.tx += len(out)
        self.persist = False
        self.stage = TUNNEL
        self.resume()
        self.rest_of_buffer()
        back = self.exchange.back
        if self.eof and back is not None:
            back.write_eof()

    def tunnel_data(self, data: bytes) -> None:
        """Bytes of the node in a tunnel."""
        gateway = self.gateway
        self.deadline = gateway.clock.now + gateway.settings.timeout
        self.sent_bytes += len(data)
        gateway.tally.tx += len(data)
        self.transport.write(data)

    def tunnel_eof(self) -> None:
        """The node sends no more; the tunnel ends when the client is done too."""
        self.node_eof = True
        if self.eof or self.exchange.raw:
            self.end_tunnel()
        elif self.transport.can_write_eof():
            self.transport.write_eof()

    def tunnel_broken(self) -> None:
        """The node has reset its connection: the same, to a client that has no word for it."""
        self.end_tunnel()

    def end_tunnel(self) -> None:
        """Both sides are done."""
        self.exchange.tunnel_over()
        self.log(None)
        self.finish_writing()

    def finish_writing(self) -> None:
        """Close when all is written; a client that does not read gets http-timeout for it."""
        self.stage = GONE
        self.deadline = self.gateway.request_deadline
        self.gateway.clock.watch(self)
        self.transport.close()

    def forget_response(self) -> None:
        """A new request begins: what the log says of its response is not that of the last."""
        self.status = self.fields = self.head_bytes = self.sent_bytes = 0

    def fail(self, failure: Failure) -> None:
        """Answer with an error. The connection stays only after a request that was understood and
        read to its end, and a failure that is not the client's."""
        self.persist = (
            (self.stays() if self.gateway.draining else self.persist)
            and failure.status in _KEPT_STATUS
            and self.stage == WAIT
            and self.request is not None
            and bool(self.request.minor)
        )
        self.answer(failure)
        self.gateway.tally.errors[failure] += 1
        self.log(failure)
        if self.persist:
            self._go_on()
        else:
            self.linger()

    def error_lines(self) -> bytes:
        """Field lines that every response of our own carries."""
        return b""

    def answer(self, failure: Failure) -> None:
        gateway = self.gateway
        is_head = self.request is not None and self.request.method == b"HEAD"
        accept = gateway.accept_of(self.block.raw)
        out, size = responder.error_response(
            failure,
            accept,
            gateway.clock.date,
            gateway.settings.error_pages,
            persist=self.persist,
            is_head=is_head,
            extra=self.error_lines(),
        )
        gateway.tally.responses[failure.status] += 1
        gateway.tally.tx += len(out)
        self.status = failure.status
        self.fields = out.count(b"\r\n", 0, len(out) - size) - 2
        self.sent_bytes = size
        self.head_bytes = len(out) - size
        self.transport.write(out)

    def abort(self, failure: Failure) -> None:
        """Cut the connection: a response that cannot be completed must not look complete."""
        self.gateway.tally.errors[failure] += 1
        self.log(failure)
        self.stage = GONE
        if self.framing == UNTIL_CLOSE or self.blocked:
            self.reset()
        else:
            self.transport.abort()

    def reset(self) -> None:
        """Close with a reset: where a plain close would say "complete", and where the kernel would
        go on keeping what a stalled client does not take."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def log(self, failure: Failure | None) -> None:
        gateway = self.gateway
        if gateway.timed:
            gateway.finished(cast("Connection", self), failure, time.monotonic())
