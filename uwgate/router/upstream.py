"""Connections to nodes: what all have in common, and pooled HTTP/1.1 connections.

A ``Back`` reads one response after another off the bytes of a node and tells its exchange. It is
strict: a response whose end is not certain ends the connection, and a connection goes back to the
pool only if the response ended exactly where its framing said, with no byte more, and the request
was fully sent.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

from uwgate.protocols.chunked import (
    ChunkedError,
    ChunkedReader,
    encode_chunk,
    filter_trailer,
    last_chunk,
)
from uwgate.protocols.http1 import BROKEN_LINE, Http1Error, upgrade_protocols
from uwgate.protocols.http1_request import CHUNKED
from uwgate.protocols.http1_response import UNTIL_CLOSE, ResponseHead
from uwgate.router.errors import Failure

if TYPE_CHECKING:
    from uwgate.router.balance import Node
    from uwgate.router.exchange import Exchange
    from uwgate.router.gateway import Gateway

# What a back expects next from its node.
HEAD, LENGTH, CHUNKS, CLOSE, RAW = range(5)

MAX_RESPONSE_HEAD = 65536
_MAX_INTERIM = 100  # 1xx responses before a final one
# What connecting runs into when we, not the node, are at the end of our means.
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Back:
    """Reads responses. Subclasses move the bytes: ``write``, ``abort``, ``pause``, ``resume``.

    ``reused``: the connection had served a request before. ``paused``: the client does not keep up.
    """

    __slots__ = (
        "buffer",
        "exchange",
        "gateway",
        "keep",
        "left",
        "node",
        "paused",
        "reader",
        "reused",
        "state",
        "touched",
    )

    def __init__(self, gateway: Gateway, node: Node) -> None:
        self.gateway = gateway
        self.node = node
        self.exchange: Exchange | None = None
        self.state = HEAD
        self.left = 0  # body bytes to come, in state LENGTH
        self.buffer = b""  # an incomplete head
        self.reader: ChunkedReader | None = None
        self.reused = False
        self.paused = False
        self.touched = False  # a byte of the response was received
        self.keep = False  # the node keeps the connection after the body under way

    # --- to be provided -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes to the node, buffered."""
        raise AssertionError

    def abort(self) -> None:
        """Close at once and forget the exchange."""
        raise AssertionError

    def release(self, *, reusable: bool) -> None:
        """The response is complete: let the exchange go, keep or close the connection."""
        raise AssertionError

    def write_eof(self) -> None:
        """No more is sent to the node (tunnels)."""
        raise AssertionError

    def finish(self) -> None:
        """Close as soon as all that was written is sent; the exchange is somebody else's."""
        raise AssertionError

    def pause(self) -> None:
        """The client does not keep up: stop reading."""
        raise AssertionError

    def resume(self) -> None:
        """The client keeps up again."""
        raise AssertionError

    # --- request bodies -----------------------------------------------------------------------

    def body(self, payload: bytes) -> None:
        """Body bytes; framed again as chunks where the request was chunked."""
        exchange = self.exchange
        if exchange is not None and exchange.block.length == CHUNKED and exchange.spool is None:
            payload = encode_chunk(payload)
        self.write(payload)

    def body_end(self, trailer: bytes) -> None:
        """The body is complete."""
        exchange = self.exchange
        if exchange is not None and exchange.block.length == CHUNKED and exchange.spool is None:
            self.write(last_chunk(filter_trailer(trailer)))

    # --- responses ----------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes of the node, in the general case."""
        exchange = self.exchange
        if exchange is None:
            self.abort()
            return
        state = self.state
        if state == LENGTH:
            self._length(exchange, data)
        elif state == CLOSE:
            exchange.response_data(data)
        elif state == CHUNKS:
            self._chunks(exchange, data)
        elif state == HEAD:
            self._heads(exchange, data)
        elif state == RAW:
            exchange.front.tunnel_data(data)

    def bad_response(self) -> None:
        """The node's answer is refused."""
        exchange, self.exchange = self.exchange, None
        self.abort()
        if exchange is not None:
            exchange.back = None
            exchange.fail(Failure.NODE_BAD_RESPONSE)

    def ended(self, reset: bool) -> None:
        """The node's side is closed (``reset``: by an error). The connection is gone."""
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if self.state == CLOSE and not reset:
            exchange.response_end(b"")
        elif self.state == RAW:
            exchange.back = None
            if reset:
                exchange.front.tunnel_broken()
            else:
                exchange.front.end_tunnel()
        elif self.state == HEAD:
            untouched = not self.touched
            failure = Failure.NODE_RESET if reset else Failure.NODE_EMPTY
            if not untouched and not reset:
                failure = Failure.NODE_BAD_RESPONSE
            exchange.lost(self, failure, untouched)  # type: ignore[arg-type]
        else:
            exchange.lost(self, Failure.NODE_TRUNCATED, untouched=False)  # type: ignore[arg-type]

    def _heads(self, exchange: Exchange, data: bytes) -> None:
        """A few 1xx heads, then the final one."""
        if not self.touched:
            self.touched = True
            self.left = 0  # counts the 1xx heads until there is a body
        if self.buffer:
            data, self.buffer = self.buffer + data, b""
        start = 0
        while True:
            end = data.find(b"\r\n\r\n", start) + 4
            if end <= 3 or end - start > MAX_RESPONSE_HEAD:
                self._incomplete(data[start:])
                return
            try:
                head = self.gateway.responses.parse(data[start:end])
            except Http1Error as error:
                self.gateway.complain(f"node {self.node.name}: {error}")
                self.bad_response()
                return
            if head.status >= 200:
                self._final(exchange, head, data[end:])
                return
            if head.status == 101:
                self._switch(exchange, head, data[end:])
                return
            self.left += 1
            if self.left > _MAX_INTERIM:
                self.bad_response()
                return
            exchange.informational(head)
            start = end
            if self.exchange is None or start == len(data):
                return

    def _incomplete(self, data: bytes) -> None:
        """The beginning of a head."""
        if len(data) > MAX_RESPONSE_HEAD or BROKEN_LINE.search(data):
            self.bad_response()
        else:
            self.buffer = data

    def _switch(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        offered = upgrade_protocols(exchange.block.upgrade) if exchange.request.minor else []
        chosen = upgrade_protocols(head.upgrade)
        # RFC 9110 §7.8: not before the request is complete, and only to what was offered.
        if not exchange.request_ended or not chosen or any(name not in offered for name in chosen):
            self.bad_response()
            return
        self.state = RAW
        exchange.upgraded(head)
        if data and self.exchange is not None:
            exchange.front.tunnel_data(data)

    def _final(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        """The final head; ``data`` is what came behind it."""
        if head.bodiless or exchange.request.method == b"HEAD":
            # A node that sends the body it announces, against the rules, must not get the chance
            # to have it taken for the next client's response.
            reusable = head.persistent and not data and head.length in (0, UNTIL_CLOSE)
            self._whole(exchange, head, b"", b"", reusable=reusable)
        elif head.length >= 0:
            size = len(data)
            if size >= head.length:
                reusable = head.persistent and size == head.length
                self._whole(exchange, head, data[: head.length], b"", reusable=reusable)
                return
            self.left = head.length - size
            self.state = LENGTH
            self.keep = head.persistent
            exchange.response(head, data, False, b"")
        elif head.length == UNTIL_CLOSE:
            self.state = CLOSE
            exchange.response(head, data, False, b"")
        else:
            self._first_chunks(exchange, head, data)

    def _whole(
        self, exchange: Exchange, head: ResponseHead, body: bytes, trailer: bytes, *, reusable: bool
    ) -> None:
        self.release(reusable=reusable and exchange.request_ended)
        exchange.response(head, body, True, trailer)

    def _first_chunks(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        reader = self.reader = ChunkedReader()
        self.state = CHUNKS
        try:
            end = reader.feed(data)
        except ChunkedError:
            self.bad_response()
            return
        body = b"".join(reader.payload)
        if reader.done:
            reusable = head.persistent and end == len(data)
            trailer = filter_trailer(reader.trailer)
            self._whole(exchange, head, body, trailer, reusable=reusable)
        else:
            self.keep = head.persistent
            exchange.response(head, body, False, b"")

    def _length(self, exchange: Exchange, data: bytes) -> None:
        size = len(data)
        left = self.left
        if size < left:
            self.left = left - size
            exchange.response_data(data)
            return
        self.release(reusable=self.keep and size == left and exchange.request_ended)
        exchange.back = None
        exchange.response_data(data if size == left else data[:left])
        exchange.response_end(b"")

    def _chunks(self, exchange: Exchange, data: bytes) -> None:
        reader = cast(ChunkedReader, self.reader)
        try:
            end = reader.feed(data)
        except ChunkedError:
            self.exchange = None
            self.abort()
            exchange.back = None
            exchange.abort(Failure.NODE_BAD_RESPONSE)
            return
        payload = reader.payload
        if reader.done:
            self.release(reusable=self.keep and end == len(data) and exchange.request_ended)
            exchange.back = None
        if payload:
            exchange.response_data(payload[0] if len(payload) == 1 else b"".join(payload))
        if reader.done:
            exchange.response_end(filter_trailer(reader.trailer))
