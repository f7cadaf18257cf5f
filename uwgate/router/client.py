"""Who the client of a connection is, and what nodes are told of it: once a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uwgate.protocols.http1_request import RequestBlock, RequestParser
from uwgate.protocols.uwsgi import var
from uwgate.router.tls_facts import header_lines, variables

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway
    from uwgate.tls.peer import Peer


class KnownClient:
    """A client's connection, of any version of HTTP. ``constants``: uwsgi variables that are the
    same for all of a listener. ``tls``: None in clear text."""

    __slots__ = (
        "client", "client_port", "constants", "gateway", "http_tail", "parser", "scheme", "tls",
        "tls_lines", "uwsgi_constants",
    )  # fmt: skip

    parser: RequestParser

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        self.gateway = gateway
        self.constants = constants
        self.client = b""
        self.client_port = 0
        self.scheme = b"http"
        self.http_tail = self.uwsgi_constants = self.tls_lines = b""
        self.tls: Peer | None = None

    def parser_for(self, *, trusted: bool) -> RequestParser:
        """What reads the header section of requests."""
        return self.gateway.trusted_parser if trusted else self.gateway.parser

    def set_client(self, address: bytes, port: int, *, tls: bool) -> None:
        """Who the client is (socket peer, or what a PROXY header says): the constants of it."""
        gateway = self.gateway
        settings = gateway.settings
        self.client = address
        self.client_port = port
        self.scheme = scheme = b"https" if tls else b"http"
        self.parser = self.parser_for(trusted=gateway.trusts(address))
        if self.tls is not None and settings.client_headers:
            self.tls_lines = header_lines(self.tls)
        if not settings.x_forwarded:
            self.http_tail = self.tls_lines + b"\r\n\r\n"
        else:
            named = b"\r\nX-Forwarded-For: " + address if address else b""
            self.http_tail = b"%b\r\nX-Forwarded-Proto: %b%b\r\n\r\n" % (
                named,
                scheme,
                self.tls_lines,
            )
        self.uwsgi_constants = self._variables(tls=tls) if gateway.any_uwsgi else b""

    def _variables(self, *, tls: bool) -> bytes:
        certificate = b""
        if self.tls is not None and self.tls.der is not None:
            certificate = variables(self.tls, export=self.gateway.settings.export_cert)
        return b"".join(
            (
                self.constants,
                var(b"HTTPS", b"on") if tls else b"",
                certificate,
                var(b"REMOTE_ADDR", self.client or b"0.0.0.0"),
                var(b"REMOTE_PORT", b"%d" % self.client_port),
            )
        )

    def admits(self, block: RequestBlock) -> bool:
        """Whether this TLS connection may carry requests for that Host: what is asked of clients
        there (a certificate, of which CA) must have been asked here (RFC 9110 §7.4)."""
        terminator, peer = self.gateway.terminator, self.tls
        if terminator is None or peer is None or not terminator.any_domain:
            return True
        domain_of, listener = terminator.domain_of, peer.listener
        if block.host is not None:
            return domain_of(listener, block.host.decode("latin-1")) == peer.domain
        # A node is told the machine's name then.
        names = (peer.server_name, self.gateway.default_key)
        return all(domain_of(listener, name) == peer.domain for name in names)
