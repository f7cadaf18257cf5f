"""A client's HTTP/1 connection: from received bytes to exchanges, and responses back.

The usual request, a complete plain head in one piece with nothing behind it, takes the first lines
of ``data_received``. Everything else goes through one general state machine with the same grammar.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1 import BROKEN_LINE, Fault, Http1Error
from uwgate.protocols.http1_request import (
    CHUNKED as BODY_CHUNKED,
)
from uwgate.protocols.http1_request import (
    RequestBlock,
    RequestLine,
)
from uwgate.protocols.http1_varying import VaryingLines
from uwgate.protocols.http2 import PREFACE as HTTP2_PREFACE
from uwgate.router.errors import FAILURES, Failure
from uwgate.router.front import field_of
from uwgate.router.http1_ends import Http1Ends
from uwgate.router.http1_responses import (
    BODY,
    GONE,
    HEAD,
    LINGER,
    NOT_YET,
    PREFACE,
    TUNNEL,
    WAIT,
)
from uwgate.router.http2_connection import Http2Connection
from uwgate.router.phases import IDLE
from uwgate.router.preface import Preface, PrefaceError
from uwgate.router.upstream import RAW

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway

HTTP2_HEAD = HTTP2_PREFACE[:-6]
HTTP2_LINE = HTTP2_HEAD[:-4]
_PREFACE_LIMIT = 8192  # more than any PROXY header
_PIPELINE_LIMIT = 65536  # bytes of further requests read ahead


class Http1Front(Http1Ends, asyncio.Protocol):
    """One client connection. At most one exchange is under way; further requests wait."""

    __slots__ = (
        "last",
        "line",
        "preface",
        "scanned",
        "skipped",
        "varying",
    )

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        super().__init__(gateway, constants)
        self.exchange = gateway.make_exchange(gateway, self)
        self.last = b""  # the last request, if it took the first lines of data_received
        self.line = b""
        self.varying: VaryingLines | None = None
        self.preface: Preface | None = None
        self.scanned = 0  # bytes of the buffer known to hold no whole head
        self.skipped = False  # an empty line before the next request line (while ``line`` is empty)

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        gateway = self.gateway
        gateway.fronts.add(self)
        self.tls = transport.get_extra_info("tls")
        tls = self.tls is not None
        if not tls:  # else they have been counted before the handshake
            gateway.tally.accepted += 1
            gateway.tally.connections += 1
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.set_client(peer[0].encode("ascii"), peer[1], tls=tls)
        else:
            self.set_client(b"", 0, tls=tls)
        if gateway.has_preface and not tls:
            self.preface = Preface.for_peer(gateway.settings, self.client)
            if self.preface is not None:
                self.stage = PREFACE
        hurried = gateway.draining and not gateway.gently
        limit = 1.0 if hurried else gateway.settings.headers_timeout
        self.deadline = gateway.clock.now + limit
        gateway.clock.watch(self)

    def data_received(self, data: bytes) -> None:
        gateway = self.gateway
        gateway.tally.rx += len(data)
        if self.stage or self.buffer:
            self._general(data)
        elif data == self.last:
            # The same request again: probes and programs do little else.
            self.stage = WAIT
            self.deadline = gateway.request_deadline
            self.exchange.again()
        else:
            self._another(data)

    def _another(self, data: bytes) -> None:
        """A complete plain head in one piece, or whatever else for the general path."""
        gateway = self.gateway
        cut = data.find(b"\r\n")
        if cut <= 0 or len(data) > gateway.quick_limit:
            self._general(data)
            return
        raw = data[cut:]
        block = self.block
        exchange = self.exchange
        if raw != block.raw:
            found = self._other_block(raw)
            if found is None:
                self._general(data)
                return
            block = found
        elif exchange.extra:
            exchange.extra = exchange.extra_variables = b""
        line = data[:cut]
        request = self.request
        if line != self.line or request is None:
            request = gateway.lines.entries.get(line) or gateway.request_line(line)
        if request is None or not request.plain or not block.simple:
            self._general(data)
            return
        if block.close:
            self.persist = False
        self.last = data if request.repeatable else b""
        self.line = line
        self.request = request
        self.stage = WAIT
        self.deadline = gateway.request_deadline
        exchange.start(request, block, True)

    def admit_anew(self) -> None:
        """Other client certificates may be asked for now: what was admitted is not any more."""
        if self.tls is None:
            return
        self.last = b""
        if self.stage == HEAD:
            self.block = NOT_YET
        else:
            self.persist = False

    def eof_received(self) -> bool:
        self.eof = True
        stage = self.stage
        if stage == TUNNEL:
            back = self.exchange.back
            if self.node_eof or back is None:
                self.end_tunnel()
            else:
                back.write_eof()
            return True
        if stage == WAIT:
            return True  # half-closed: the answer is still wanted
        if stage == BODY:
            self.body_cut_short()
        elif stage == HEAD and self.buffer:
            if self.scanned:  # else its turn comes (``start_next``)
                self._refuse(Failure.BAD_REQUEST)
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        gateway = self.gateway
        gateway.fronts.discard(self)
        gateway.tally.connections -= 1
        self.stage = GONE
        self.deadline = 0.0
        self.buffer = None
        if self.exchange.phase != IDLE:
            tunnel = self.exchange.back is not None and self.exchange.back.state == RAW
            self.exchange.client_lost()
            if not tunnel:
                gateway.tally.errors[Failure.CLIENT_CLOSED] += 1
            self.log(None if tunnel else Failure.CLIENT_CLOSED)
        gateway.clock.forget(self)
        self.close_raw()
        self.exchange = gateway.no_exchange  # ours points at us: nothing to leave to the collector
        if gateway.draining:
            gateway.check_drained()

    def pause_writing(self) -> None:
        self.blocked = True
        back = self.exchange.back
        if back is not None:
            back.pause()
        if self.stage in (HEAD, WAIT):
            self.pause()  # who does not read answers may not ask for more

    def resume_writing(self) -> None:
        self.blocked = False
        back = self.exchange.back
        if back is not None:
            back.resume()
        if self.stage == HEAD:
            if self.buffer:
                self.gateway.loop.call_soon(self.start_next)
            else:
                self.resume()

    # --- reading requests -----------------------------------------------------------------------

    def _other_block(self, raw: bytes) -> RequestBlock | None:
        """The block ``raw`` where it is not the last one again; None: not a whole head, or one to
        be refused, by the general path."""
        exchange, varying = self.exchange, self.varying
        rest = varying.cut(raw) if varying is not None else None
        whole = raw if rest is None else rest
        block = self.block
        if whole != block.raw:
            end = whole.find(b"\r\n\r\n")
            if end < 0 or end + 4 != len(whole):
                return None
            try:
                block = self.parser.parse(whole)
            except Http1Error:
                return None
            if self.tls is not None and not self.admits(block):
                return None
            self._learn(whole)
            self.block = block
        if rest is None or varying is None:
            exchange.extra = exchange.extra_variables = b""
        else:
            exchange.extra = varying.extra
            exchange.extra_variables = varying.extra_variables() if self.gateway.any_uwsgi else b""
        return block

    def _learn(self, raw: bytes) -> None:
        """See whether ``raw`` differs from the last block only in lines that always differ."""
        before = self.block.raw
        if not before:
            return
        varying = self.varying
        if varying is None:
            varying = self.varying = VaryingLines(self.parser.policy)
        if varying.attempts > 0:
            varying.learn(before, raw)

    def _general(self, data: bytes) -> None:
        """Bytes of the client, at any stage."""
        stage = self.stage
        if stage == BODY:
            self.body(data)
        elif stage == TUNNEL:
            back = self.exchange.back
            if back is not None:
                self.deadline = self.gateway.clock.now + self.gateway.settings.timeout
                self.exchange.request_size += len(data)
                back.write(data)
        elif stage == HEAD:
            self.keep(data)
            if not self.blocked:
                self._scan()
        elif stage == WAIT:
            self.keep(data)
            if self.reading and len(cast(bytearray, self.buffer)) > _PIPELINE_LIMIT:
                self.pause()
        elif stage == PREFACE:
            self.keep(data)
            self._preface()

    def keep(self, data: bytes) -> None:
        if self.buffer is None:
            self.buffer = bytearray(data)
            self.scanned = 0
        else:
            self.buffer += data

    def _preface(self) -> None:
        """A PROXY or stud header before the first request."""
        preface, buffer = self.preface, self.buffer
        assert preface is not None
        assert buffer is not None
        try:
            consumed = preface.read(bytes(buffer[:_PREFACE_LIMIT]))
        except PrefaceError:
            self._refuse(Failure.BAD_PROXY)
            return
        if consumed < 0:
            return
        if preface.address is not None:
            address, port = preface.address
            self.set_client(address, port, tls=preface.tls)
        elif preface.tls:
            self.set_client(self.client, self.client_port, tls=True)
        self.preface = None
        self.stage = HEAD
        del buffer[:consumed]
        if buffer:
            self._scan()
        else:
            self.buffer = None

    def _scan(self) -> None:
        """Find a whole head in the buffer, and begin its request."""
        buffer = self.buffer
        assert buffer is not None
        if buffer[0] == 0x0D and not (self.skipped and not self.line) and buffer != b"\r":
            # RFC 9112 §2.2: one empty line before the request line is ignored.
            if buffer[1] == 0x0A:
                self.skipped, self.line, self.last = True, b"", b""
                self.scanned = 0
                del buffer[:2]
            if not buffer:
                self.buffer = None
                return
        settings = self.gateway.settings
        end = buffer.find(b"\r\n\r\n", max(0, self.scanned - 3))
        if 0 <= end <= settings.max_head - 4:
            head = bytes(buffer[: end + 4])
            del buffer[: end + 4]  # moves no bytes
            if not buffer:
                self.buffer = None
            self.scanned = 0
            cut = head.find(b"\r\n")
            self._begin(head[:cut], head[cut:])
            return
        if BROKEN_LINE.search(buffer, max(0, self.scanned - 1)):
            self._refuse(Failure.BAD_REQUEST)
        elif end >= 0 or len(buffer) > settings.max_head:
            no_line = buffer.find(b"\r\n", 0, settings.max_head) < 0
            self._refuse(Failure.URI_TOO_LONG if no_line else Failure.HEAD_TOO_LARGE)
        else:
            if not self.scanned:
                # The whole head has to be here by then, however it trickles in.
                self.deadline = self.gateway.clock.now + settings.headers_timeout
                self.gateway.clock.watch(self)
            self.scanned = max(1, len(buffer))

    def _begin(self, line: bytes, raw: bytes) -> None:
        """A whole head: decide what it is and start its exchange."""
        gateway, exchange = self.gateway, self.exchange
        settings = gateway.settings
        self.line = self.last = b""
        if line == HTTP2_LINE and gateway.speaks_http2(self, raw):
            rest, self.buffer = self.buffer or b"", None
            Http2Connection(gateway, self.constants).take_over(self, HTTP2_HEAD + bytes(rest))
            return
        self.skipped = self.persist = self.waited = False
        request = None
        try:
            request = gateway.parse_line(line)
            block = self.parser.parse(raw)
            if block.host is None and request.minor:
                raise Http1Error(Fault.BAD_HOST, "HTTP/1.1 without Host")
            if request.authority:
                block = self.parser.with_host(block, request.authority)
            if block.length == BODY_CHUNKED and not request.minor:
                raise Http1Error(Fault.BAD_FRAMING, "Transfer-Encoding in HTTP/1.0")
        except Http1Error as error:
            self._refuse(FAILURES[error.fault], request, raw)
            return
        self.request = request
        self.block = block
        exchange.extra = exchange.extra_variables = b""
        if self.tls is not None and not self.admits(block):
            self._refuse(Failure.MISDIRECTED, request, raw)
            return
        if request.method == b"CONNECT":
            self._refuse(Failure.METHOD_REFUSED, request, raw)
            return
        length = block.length
        if (settings.max_body and length > settings.max_body) or (
            block.expect and 1 < settings.manage_expect < length
        ):
            self._refuse(Failure.BODY_TOO_LARGE, request, raw)
            return
        wanted = not block.close if request.minor else block.keep_alive
        self.persist = wanted and gateway.keepalive
        self.deadline = gateway.clock.now + settings.timeout
        raw_session = gateway.is_raw(request)
        if raw_session:
            self.persist = False
            length = 0
        if length:
            self.expect_body(length)
        else:
            self.stage = WAIT
        exchange.start(request, block, not length, raw_session)
        self.rest_of_buffer()

    def rest_of_buffer(self) -> None:
        """What came behind the head: the beginning of its body, or of a tunnel."""
        buffer = self.buffer
        if buffer and self.stage in (BODY, TUNNEL):
            self.buffer = None
            self._general(bytes(buffer))

    @property
    def is_new(self) -> bool:
        """Whether nothing came before what is being looked at."""
        return self.request is None and not self.skipped

    def _refuse(
        self, failure: Failure, request: RequestLine | None = None, raw: bytes = b""
    ) -> None:
        """A request that is not even begun; what is known of it decides on the answer's form."""
        self.persist = False
        self.request = request
        self.block = RequestBlock(raw)
        self.gateway.tally.errors[failure] += 1
        self.answer(failure)
        self.gateway.log_refused(self, failure)
        self.linger()

    def spoke_in_clear(self, data: bytes) -> None:
        """``data`` came in clear text where TLS is spoken: refuse what request it may be."""
        line, _, rest = data.partition(b"\r\n")
        request = None
        try:
            request = self.gateway.parse_line(line)
        except Http1Error:
            pass  # half a line, or none
        block, end, _ = rest.partition(b"\r\n\r\n")
        self._refuse(Failure.PLAIN_HTTP, request, b"\r\n" + block + end if end else b"")

    def start_next(self) -> None:
        """Begin the request that is in the buffer."""
        if self.stage == HEAD and self.buffer and not self.blocked:
            self.resume()
            self.scanned = 0
            self._scan()
            if self.eof and self.stage == BODY:
                self.body_cut_short()
            elif self.eof and self.stage == HEAD:
                if not self.buffer:
                    self.close()
                elif self.scanned:
                    self._refuse(Failure.BAD_REQUEST)

    def field(self, name: bytes) -> bytes:
        """The value of a field of the request, in the general form of its head."""
        return field_of(self.block.raw + self.exchange.extra, name)

    def watch(self) -> None:
        self.gateway.clock.watch(self)

    # --- ends ---------------------------------------------------------------------------------

    def expired(self) -> None:
        """The deadline passed."""
        stage = self.stage
        if stage == HEAD and self.blocked:
            self.abort(Failure.CLIENT_TIMEOUT)
        elif stage in (BODY, WAIT, TUNNEL):
            self.exchange.expired()
            if self.stage == HEAD or self.deadline > self.gateway.clock.now:
                self.gateway.clock.watch(self)
        elif stage in (HEAD, PREFACE) and self.buffer:
            self._refuse(Failure.HEAD_TIMEOUT)
        elif stage == LINGER and not self.transport.get_write_buffer_size():
            self.transport.abort()  # a reset would take what is on its way from a slow client
        elif stage in (LINGER, GONE):
            self.reset()
        elif stage in (HEAD, PREFACE):
            self.close()
