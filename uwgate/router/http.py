"""The HTTP router of one worker: what its HTTP/1 fronts share."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING, cast

from uwgate.config.settings import HttpSettings, ListenerSettings
from uwgate.files.represent import Representations
from uwgate.files.site import Site
from uwgate.protocols.http1 import Fault, Http1Error, LineMemo
from uwgate.protocols.http1_request import (
    RequestLine,
    RequestParser,
    RequestPolicy,
    parse_request_line,
)
from uwgate.protocols.http1_response import ResponseParser, ResponsePolicy
from uwgate.protocols.spdy3 import ALPN as SPDY
from uwgate.protocols.uwsgi import var
from uwgate.router.acceptor import Acceptor
from uwgate.router.affinity import Sticky
from uwgate.router.clock import TICK
from uwgate.router.exchange import Exchange
from uwgate.router.facts import RequestLog
from uwgate.router.gateway import Accepting, Gateway, Listener
from uwgate.router.hsts import Hsts, HstsFront
from uwgate.router.http1_front import Http1Front
from uwgate.router.http1_responses import KEPT_HEAD, Http1Responses
from uwgate.router.http2_connection import Http2Connection
from uwgate.router.http2_shared import Http2Shared
from uwgate.router.redirect import RedirectFront
from uwgate.router.spdy_connection import SpdyConnection
from uwgate.router.spdy_stream import SpdyShared
from uwgate.router.static_exchange import StaticExchange
from uwgate.router.tls_accept import Fronts, TlsConnection, TlsDoor
from uwgate.subscriptions.table import FILES, JOIN, LEAVE, NOTHING, Change, certificate

if TYPE_CHECKING:
    from uwgate.tls.terminator import Terminator

_ENDED_AT_ONCE = 50  # handshakes
_LONG_LINE = 256  # bytes; longer ones are not remembered
_LINES = 12_000
_ACCEPT = re.compile(rb"(?i)\r\nAccept:[ \t]*([^\r\n]*)")
_RTSP_LINE = re.compile(rb"([A-Z_]+) ([\x21\x22\x24-\x7e]+) RTSP/1\.0")
_RTSP_TARGET = re.compile(rb"(?i:rtsp[su]?)://([A-Za-z0-9._:\[\]-]+)(/.*)?")


class HttpGateway(Gateway):
    """The HTTP router (options ``http-*``)."""

    settings: HttpSettings

    def __init__(
        self,
        settings: HttpSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        request_log: RequestLog | None = None,
        server_name: bytes = b"localhost",
        log: Callable[[str], None] = print,
        measured: bool = False,
    ) -> None:
        self.terminator: Terminator | None = None
        static = settings.static
        self.site = Site(static) if static is not None else None
        self.representations = Representations(static) if static is not None else None
        self.make_exchange: type[Exchange] = StaticExchange if static is not None else Exchange
        self.duplicated: set[Http1Responses] = set()  # clients with a second descriptor
        self.pool: ThreadPoolExecutor | None = None  # for what may have to wait for a disk
        # In the order in which their time ends.
        self.handshaking: dict[TlsConnection, None] = {}
        self.lingering: dict[TlsConnection, None] = {}
        # Those with a TLS 1.3 ticket that no response has taken along so far.
        self.ticketed: dict[TlsConnection, None] = {}
        super().__init__(
            settings,
            loop=loop,
            request_log=request_log,
            server_name=server_name,
            log=log,
            measured=measured,
            auto_gzip=settings.auto_gzip,
        )
        self.nodeless = settings.mapper.kind == "static" and not self.static_nodes
        if static is not None and static.sendfile_fields:
            names = {field.name: field.uri for field in static.sendfile_fields}
            self.responses = ResponseParser(ResponsePolicy(gzip=settings.auto_gzip, files=names))
        self.keepalive = settings.keepalive
        self.quick_limit = min(settings.max_head, KEPT_HEAD)
        # Whether an idle connection's deadline may come before that of the request it had.
        self.short_idle = settings.keepalive_timeout < settings.timeout
        if settings.sticky:
            self.sticky = Sticky(settings.sticky)
            self.by_key = None
            self.turn = None  # a cookie comes first
        self.has_preface = settings.proxy_protocol or bool(settings.stud_prefix)
        # Those that come again and again, of whatever client. Only where files are served: what a
        # request to a node costs, a line is a small part of.
        self.lines: LineMemo[RequestLine] = LineMemo(_LINES)
        self._trust_cache: dict[bytes, bool] = {}
        self._make_parsers()

    def _make_parsers(self) -> None:
        settings = self.settings

        def policy(*, trusted: bool, version: bytes = b"1.1") -> RequestPolicy:
            return RequestPolicy(
                trusted=trusted,
                version=version,
                x_forwarded=settings.x_forwarded,
                forwarded=settings.forwarded,
                via=settings.via.encode("ascii"),
                allow_underscores=settings.allow_underscores,
                server_name_as_host=settings.server_name_as_http_host,
                max_fields=settings.max_headers,
                strip_tls=settings.client_headers,
                general=bool(settings.sticky) or settings.hash_by.kind in ("header", "cookie"),
            )

        self.parser = RequestParser(policy(trusted=False))
        self.trusted_parser = RequestParser(policy(trusted=True))
        self.http2 = Http2Shared(settings.http2, self.clock, policy)

    def _on_tick(self, now: float) -> None:
        super()._on_tick(now)
        if self.site is not None:
            self.site.turn(time.time())
            for front in list(self.duplicated):
                if not front.exchange.phase:  # who is idle keeps one descriptor
                    front.close_raw()
        self.idle_deadline = now + self.settings.keepalive_timeout
        if self.terminator is not None:
            self.terminator.tick(now)
            # The clock may lag by a tick, and the end be seen a tick late: within the limit.
            limit = self.settings.headers_timeout
            self.handshake_deadline = now + max(limit - 2 * TICK, limit / 2)
            ticketed, self.ticketed = self.ticketed, {}
            for connection in ticketed:
                connection.send_ticket()
            self._end_handshakes()

    def _end_handshakes(self) -> None:
        """Those whose time is over, some at a time: thousands would make the others wait."""
        now = time.monotonic()
        ended = [
            connection
            for waiting in (self.handshaking, self.lingering)
            for connection in islice(waiting, _ENDED_AT_ONCE)
            if connection.deadline <= now
        ]
        for connection in ended:
            connection.expired()
        if ended:
            self.loop.call_soon(self._end_handshakes)

    def use_tls(self, terminator: Terminator) -> None:
        self.terminator = terminator
        self._on_tick(self.clock.now)

    async def start(self, sockets: Sequence[tuple[ListenerSettings, socket.socket]]) -> None:
        static = self.settings.static
        if static is not None and static.offload_threads:
            self.pool = ThreadPoolExecutor(static.offload_threads, "offload")
        if self.terminator is not None:
            self.terminator.start(self.loop, self.complain)
            if self.subscribed is not None:
                for member in self.subscribed.table:
                    if member.extra is not NOTHING:
                        self._announced(member.slot.key, member.address, certificate(member.extra))
        await super().start(sockets)

    def nodes_changed(self, changes: Sequence[Change]) -> None:
        super().nodes_changed(changes)
        if self.terminator is None or self.subscribed is None:
            return
        changed = False
        for operation, key, address, *values in changes:
            if operation == JOIN:
                changed |= self._announced(key, address, values[FILES:])
            elif operation == LEAVE:
                changed |= self.terminator.withdraw(key, address)
        if changed:
            for front in self.fronts:
                cast(Http1Front | Http2Connection, front).admit_anew()

    def _announced(self, key: str, address: str, files: Sequence[str]) -> bool:
        """A node came, with a certificate if there are ``files``; whether that changes anything."""
        if self.terminator is None:
            return False
        if not files:
            return self.terminator.withdraw(key, address)
        crt, private_key, authority = files
        return self.terminator.announce(key, address, crt, private_key, authority)

    async def accept(self, listener: Listener) -> Accepting:
        """Accept HTTP clients on a socket."""
        # Accepting may be stopped and begun again, and a server closes the socket that it is given.
        sock = listener.sock.dup()
        named = not self.settings.server_name_as_http_host
        constants = b"".join(
            (
                var(b"SCRIPT_NAME", b""),
                var(b"SERVER_NAME", self.server_name) if named else b"",
                var(b"SERVER_PORT", listener.port),
                var(b"UWSGI_ROUTER", b"http"),
            )
        )
        settings = listener.settings
        if settings.tls is not None:
            fronts = self._tls_fronts(constants, spdy=settings.tls.spdy)
            return Acceptor(self, sock, TlsDoor(self, settings.tls, fronts).welcome)
        front: Callable[[], Http1Front] = partial(Http1Front, self, constants)
        if settings.redirect is not None:
            front = partial(RedirectFront, self, constants, settings.redirect.port)
        if sock.family == socket.AF_UNIX:
            return await self.loop.create_unix_server(front, sock=sock)
        return await self.loop.create_server(front, sock=sock)

    def _tls_fronts(self, constants: bytes, *, spdy: bool) -> dict[str | None, Fronts]:
        """The fronts of connections over TLS, by protocol; who negotiates none speaks HTTP/1."""
        value = self.settings.hsts
        hsts = Hsts(value) if value else None
        fronts: dict[str | None, Fronts] = {None: partial(Http1Front, self, constants)}
        if hsts is not None:
            fronts[None] = partial(HstsFront, self, constants, hsts)
        if self.settings.http2.enabled:
            fronts["h2"] = partial(Http2Connection, self, constants, hsts)
        if spdy:
            shared = SpdyShared(self.settings.http2, self.http2.parsers)
            fronts[SPDY] = partial(SpdyConnection, self, constants, hsts, shared)
        return fronts

    def drain(
        self, on_drained: Callable[[], None] | None = None, *, gently: bool = False
    ) -> None:
        self.keepalive = False
        if not gently:
            for connection in list(self.handshaking):
                connection.drain()
        super().drain(on_drained, gently=gently)

    @property
    def drained(self) -> bool:
        return not self.handshaking and not self.lingering and super().drained

    async def close(self) -> None:
        self.keepalive = False
        for connection in [*self.handshaking, *self.lingering]:
            connection.cut()
        if self.terminator is not None:
            self.terminator.close()
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        await super().close()

    def snapshot(self) -> dict[str, object]:
        fronts = cast("set[Http1Front | Http2Connection]", self.fronts)
        tally = self.tally
        tally.http2_streams = tally.spdy_streams = 0
        for front in fronts:
            if isinstance(front, SpdyConnection):
                tally.spdy_streams += len(front.streams)
            elif isinstance(front, Http2Connection):
                tally.http2_streams += len(front.streams)
        snapshot = super().snapshot()
        if self.site is not None:
            snapshot["static"] = self.site.snapshot()
        if self.terminator is not None:
            snapshot["tls"] = self.terminator.snapshot()
            snapshot["tls_handshaking"] = len(self.handshaking)
        return snapshot

    # --- questions of the fronts ------------------------------------------------------------------

    def speaks_http2(self, front: Http1Front, raw: bytes) -> bool:
        """Whether a client in clear text that has sent the first line of HTTP/2's preface, and this
        block, begins with it (RFC 9113 §3.3)."""
        return (
            self.settings.http2.cleartext
            and raw == b"\r\n\r\n"
            and type(front) is Http1Front
            and front.tls is None
            and front.is_new
        )

    def trusts(self, client: bytes) -> bool:
        """Whether forwarding fields of this peer are believed (http-trusted-proxy)."""
        settings = self.settings
        if not client:
            return settings.trust_unix
        if not settings.trusted_proxies:
            return False
        known = self._trust_cache.get(client)
        if known is None:
            if len(self._trust_cache) > 10_000:
                self._trust_cache.clear()
            address = ip_address(client.decode("ascii").partition("%")[0])
            known = any(address in network for network in settings.trusted_proxies)
            self._trust_cache[client] = known
        return known

    def request_line(self, line: bytes) -> RequestLine | None:
        """A request line as it should be; else None."""
        try:
            request = parse_request_line(line)
        except Http1Error:
            return None
        if self.site is not None and len(line) <= _LONG_LINE and self.lines.worth_keeping(line):
            self.lines.entries[line] = request
        return request

    def parse_line(self, line: bytes) -> RequestLine:
        """A request line in the general path, with the raw protocols that options allow."""
        if self.settings.manage_rtsp and line.endswith(b" RTSP/1.0"):
            match = _RTSP_LINE.fullmatch(line)
            if match is None:
                raise Http1Error(Fault.BAD_MESSAGE, "RTSP request line")
            target = _RTSP_TARGET.fullmatch(match[2])
            if target is None and match[2][:1] != b"/" and match[2] != b"*":
                raise Http1Error(Fault.BAD_MESSAGE, "RTSP request target")
            path = target[2] or b"/" if target else match[2]
            request = RequestLine(match[1], path, 0, line)
            request.protocol = b"RTSP/1.0"
            if target:
                request.authority = target[1]
            return request
        return parse_request_line(line)

    def is_raw(self, request: RequestLine) -> bool:
        """Whether the session becomes a tunnel as soon as the head is sent (uWSGI's raw mode)."""
        settings = self.settings
        return (settings.manage_source and request.method == b"SOURCE") or (
            request.protocol == b"RTSP/1.0"
        )

    @staticmethod
    def accept_of(raw: bytes) -> bytes:
        """The value of the first Accept field in a header block."""
        match = _ACCEPT.search(raw)
        return match[1] if match is not None else b""
