"""``http-to-https``: a listener in clear text whose only answer is where to go instead.

Heads are read, and refused, as on any other listener; no node takes part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1_request import RequestBlock, RequestLine
from uwgate.router.exchange import Exchange
from uwgate.router.http1_front import Http1Front

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway

_FIELDS = 3  # of an answer, Connection not counted


def host_of(value: bytes) -> bytes:
    """The host in a valid Host value, without its port; IPv6 literals keep their brackets."""
    if value.startswith(b"["):
        return value[: value.index(b"]") + 1]
    return value.partition(b":")[0]


def location(host: bytes, port: int, target: bytes) -> bytes:
    """The URI of ``target`` (origin-form, or ``*``, which is no part of a URI: RFC 9110 §7.1) at
    ``host``; ``port``: 0 = none is named."""
    path = b"" if target == b"*" else target
    return b"https://%b%b%b" % (host, b":%d" % port if port else b"", path)


class RedirectExchange(Exchange):
    """Ends where others look for a node."""

    __slots__ = ()

    def start(
        self, request: RequestLine, block: RequestBlock, ended: bool, raw: bool = False
    ) -> None:
        """Answer. ``ended``: there is no body; one that follows is not waited for."""
        self.request = request
        self.block = block
        self.request_ended = ended
        self.again()

    def again(self) -> None:
        """Answer the last request once more."""
        self._count()
        cast(RedirectFront, self.front).redirect()


class RedirectFront(Http1Front):
    """A client of ``http-to-https``. ``port``: of the HTTPS listener, 0 = none is named."""

    __slots__ = ("port",)

    def __init__(self, gateway: HttpGateway, constants: bytes, port: int) -> None:
        super().__init__(gateway, constants)
        self.exchange = RedirectExchange(gateway, self)
        self.port = port

    def redirect(self) -> None:
        """Send the answer to the request at hand."""
        gateway, request, exchange = self.gateway, self.request, self.exchange
        assert request is not None
        if not exchange.request_ended:
            self.persist = False
        elif gateway.draining:
            self.persist = self.stays()
        value = exchange.block.host
        host = host_of(value) if value is not None else gateway.server_name
        connection = b""
        if not self.persist:
            connection = b"Connection: close\r\n"
        elif not request.minor:
            connection = b"Connection: keep-alive\r\n"
        out = (
            b"HTTP/1.1 301 Moved Permanently\r\n%bLocation: %b\r\nContent-Length: 0\r\n%b\r\n"
        ) % (gateway.clock.date, location(host, self.port, request.target), connection)
        tally = gateway.tally
        tally.responses[301] += 1
        tally.tx += len(out)
        self.status = 301
        self.fields = _FIELDS + bool(connection)
        self.head_bytes = len(out)
        self.sent_bytes = 0
        self.transport.write(out)
        self._next()
