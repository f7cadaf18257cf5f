"""Request heads for nodes, where the request is more than a plain one (see Exchange.http_head)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uwgate.protocols.http1_request import CHUNKED
from uwgate.protocols.uwsgi import packet, request_line_vars, var

if TYPE_CHECKING:
    from uwgate.router.exchange import Exchange

_NEWER = (b"HTTP/2.0", b"SPDY/3.1")
_CHUNKED_VAR = var(b"HTTP_TRANSFER_ENCODING", b"chunked")
_EXPECT_VAR = var(b"HTTP_EXPECT", b"100-continue")
_UPGRADE_VAR = var(b"HTTP_CONNECTION", b"Upgrade")


def http_head(exchange: Exchange) -> bytes:
    """The head for an HTTP node: fields of the client, then those that are ours to say."""
    block, front = exchange.block, exchange.front
    settings = exchange.gateway.settings
    parts = [exchange.request.line, block.forward, exchange.extra]
    if block.upgrade and exchange.request.minor:
        parts.append(b"\r\nConnection: Upgrade\r\nUpgrade: " + block.upgrade)
    if block.expect and exchange.request.minor and not settings.manage_expect:
        parts.append(b"\r\nExpect: 100-continue")
    if block.host is None:  # HTTP/1.0 without Host; the node gets HTTP/1.1 (RFC 9112 §3.2)
        parts.append(b"\r\nHost: " + exchange.gateway.server_name)
    if settings.x_forwarded:
        chain = [value for value in (block.x_for, front.client) if value]
        if chain:
            parts.append(b"\r\nX-Forwarded-For: " + b", ".join(chain))
        parts.append(b"\r\nX-Forwarded-Proto: " + (block.x_proto or front.scheme))
    if settings.forwarded:
        parts.append(b"\r\nForwarded: " + forwarded(exchange))
    parts.append(front.tls_lines)
    parts.append(b"\r\n\r\n")
    return b"".join(parts)


def forwarded(exchange: Exchange) -> bytes:
    """The Forwarded element of this hop behind those of a trusted peer (RFC 7239 §4)."""
    block, client = exchange.block, exchange.front.client
    node = b"unknown" if not client else b'"[%b]"' % client if b":" in client else client
    element = b"for=%b;proto=%b" % (node, exchange.front.scheme)
    if block.host is not None:
        element += b';host="%b"' % block.host
    return b"%b, %b" % (block.forwarded_in, element) if block.forwarded_in else element


def uwsgi_packet(exchange: Exchange) -> bytes:
    """The packet for a uwsgi node (spec: variables of uWSGI's router, in its order).

    Raises PacketError if the target does not decode or the variables do not fit.
    """
    gateway, block, node, request = (
        exchange.gateway,
        exchange.block,
        exchange.node,
        exchange.request,
    )
    assert node is not None
    line = request.variables
    if not line:
        # uWSGI repeats it in its status line; HTTP nodes are spoken to in HTTP/1.1, too.
        protocol = b"HTTP/1.1" if request.protocol in _NEWER else request.protocol
        line = request.variables = request_line_vars(request.method, request.target, protocol)
    settings = gateway.settings
    modifier1 = settings.modifier1 or node.modifier1
    modifier2 = settings.modifier2 or node.modifier2
    if block.simple:
        extra = exchange.extra_variables
    else:
        extra = exchange.extra_variables + _uncommon_variables(exchange)
    if modifier1 == 123:
        # uWSGI's mark of a node that wants the bare connection; it is never on the wire. Only who
        # configures this router may say so: what follows on the connection is not for such a node
        # alone, and whoever announces one key would get the requests for the others.
        modifier1 = 0
        if exchange.request_ended and (not node.key or settings.modifier1):
            exchange.raw, exchange.plain = True, False
    return packet(
        modifier1,
        modifier2,
        line,
        exchange.front.uwsgi_constants,
        block.variables,
        extra,
        gateway.uwsgi_tail,
    )


def _uncommon_variables(exchange: Exchange) -> bytes:
    block, settings = exchange.block, exchange.gateway.settings
    parts = []
    if block.upgrade and exchange.request.minor:
        parts.append(_UPGRADE_VAR + var(b"HTTP_UPGRADE", block.upgrade))
    if block.expect:
        parts.append(_EXPECT_VAR)
    if block.length == CHUNKED:
        spool = exchange.spool
        parts.append(
            _CHUNKED_VAR if spool is None else var(b"CONTENT_LENGTH", str(spool.size).encode())
        )
    if settings.forwarded:
        parts.append(var(b"HTTP_FORWARDED", forwarded(exchange)))
    return b"".join(parts)


def expect(exchange: Exchange) -> None:
    """``Expect: 100-continue`` once a node is found (RFC 9110 §10.1.1).

    An HTTP node gets the expectation and answers itself, unless http-manage-expect. A uwsgi node
    has no way to, so the gateway does.
    """
    node = exchange.node
    if exchange.gateway.settings.manage_expect or (node is not None and node.protocol == "uwsgi"):
        exchange.front.send_continue()
