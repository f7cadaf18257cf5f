"""Request heads: strict parse, framing decision, and the bytes to forward (RFC 9110, RFC 9112).

A head is split at the end of its request line. What follows, up to and including the blank line, is
the *block*: ``CRLF field CRLF field … CRLF CRLF``. Clients send the same block again and again, so
the result of parsing one is remembered under its exact bytes (``RequestParser.parse``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uwgate.protocols.http1 import (
    ABSOLUTE,
    HOP_BY_HOP,
    HOST,
    OTHER_VERSION,
    REQUEST_LINE,
    Fault,
    Http1Error,
    LineMemo,
    accepts_gzip,
    content_length,
    split_field,
    split_list,
    transfer_coding,
)
from uwgate.protocols.uwsgi import PacketError, header_name, var

CHUNKED = -1

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_SPECIAL = frozenset((b"CONNECT", b"HEAD", b"SOURCE"))

# A memoised line or block must not hold much memory.
_LINE_LIMIT = 512
_LINES_LIMIT = 4096
BLOCK_LIMIT = 4096
_BLOCKS_LIMIT = 1024

# Fields that steer routing, framing or forwarding; all others are passed on as they are.
STEERING = frozenset(
    (
        *HOP_BY_HOP,
        b"accept-encoding",
        b"content-length",
        b"expect",
        b"forwarded",
        b"host",
        b"http2-settings",
        b"proxy",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    )
)
# What a Connection field must not name: removing these would change the meaning of the request.
_NOT_NOMINABLE = frozenset(
    (b"host", b"content-length", b"content-type", b"cookie", b"authorization")
)
# Steering fields that are passed on as they are.
_STEERING_KEPT = frozenset((b"accept-encoding", b"host", b"via"))
_CLIENT_CLAIMS = frozenset((b"x-real-ip", b"x-client-ip", b"front-end-https", b"forwarded"))
_WHITE_LIST = re.compile(rb"[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*")


def _claims_client(name: bytes) -> bool:
    """Whether a field says who the client is or how it came: only a trusted peer may."""
    return name.startswith(b"x-forwarded-") or name in _CLIENT_CLAIMS


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """What a parser lets through. ``trusted``: the peer's forwarding fields are believed.
    ``general``: no block is simple, as some field of it decides on the node. ``version``: of HTTP,
    for Via. ``strip_tls``: ``X-SSL-…`` fields of clients are removed, as the gateway says such
    things itself."""

    trusted: bool = False
    x_forwarded: bool = True
    forwarded: bool = False
    via: bytes = b""
    version: bytes = b"1.1"
    allow_underscores: bool = False
    server_name_as_host: bool = False
    max_fields: int = 128
    general: bool = False
    strip_tls: bool = False

    def drops(self, name: bytes) -> bool:
        """Whether fields called ``name`` (in lower case) are removed: what they say, only a trusted
        peer may say, or only the gateway."""
        if not self.trusted and _claims_client(name):
            return True
        return self.strip_tls and name.replace(b"_", b"-").startswith(b"x-ssl-")


class RequestLine:
    """A parsed request line. ``target`` is in origin-form or ``*``; ``authority`` is set if the
    client sent absolute-form (RFC 9112 §3.2.2), else b"". ``line`` is what an HTTP node gets.
    ``plain``: HTTP/1.1, nothing to rewrite, no CONNECT, not HEAD. ``repeatable``: an idempotent
    method (RFC 9110 §9.2.2). ``variables``: room for the same as uwsgi
    variables, filled by the first who needs them."""

    __slots__ = (
        "authority",
        "line",
        "method",
        "minor",
        "plain",
        "protocol",
        "repeatable",
        "target",
        "variables",
    )

    def __init__(self, method: bytes, target: bytes, minor: int, line: bytes) -> None:
        self.method = method
        self.target = target
        self.minor = minor
        self.line = line
        self.protocol = b"HTTP/1.1" if minor else b"HTTP/1.0"
        self.authority = b""
        self.plain = False
        self.repeatable = method in IDEMPOTENT
        self.variables = b""


def parse_request_line(line: bytes) -> RequestLine:
    """Parse a request line without its CRLF; raises Http1Error (BAD_MESSAGE, BAD_VERSION).

    CONNECT's authority-form is returned as target; the caller refuses the method.
    """
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        if OTHER_VERSION.fullmatch(line) and not line.endswith((b" HTTP/1.0", b" HTTP/1.1")):
            raise Http1Error(Fault.BAD_VERSION, repr(line[-12:]))
        raise Http1Error(Fault.BAD_MESSAGE, f"request line {line[:60]!r}")
    method, target, minor = match[1], match[2], match[3] == b"1"
    if target[0] == 0x2F and minor:  # "/", HTTP/1.1: the usual case, forwarded as it is
        request = RequestLine(method, target, 1, line)
        request.plain = method not in _SPECIAL
        return request
    authority = b""
    if target[0] != 0x2F and not (target == b"*" and method == b"OPTIONS") and method != b"CONNECT":
        absolute = ABSOLUTE.fullmatch(target)
        if absolute is None or HOST.fullmatch(absolute[1]) is None:
            raise Http1Error(Fault.BAD_MESSAGE, f"request target {target[:60]!r}")
        authority, target = absolute[1], absolute[2]
        if not target and method == b"OPTIONS":  # RFC 9112 §3.2.4
            target = b"*"
        elif not target.startswith(b"/"):
            target = b"/" + target
    request = RequestLine(method, target, int(minor), b"%b %b HTTP/1.1" % (method, target))
    request.authority = authority
    return request


class RequestBlock:
    """What one header block means. Shared between requests: never changed after parsing.

    ``length``: Content-Length in bytes, 0 without a body, CHUNKED for chunked.
    ``simple``: no body, no Upgrade, no Expect, one Host, no Forwarded to add, nothing of a trusted
    peer to extend, not longer than what is remembered.
    ``forward``: ``CRLF field CRLF field …`` for an HTTP node, without the end of the last line and
    without Expect and X-Forwarded-For/-Proto, which depend on the connection.
    ``variables``: the same fields as uwsgi variables (HTTP_…, CONTENT_LENGTH, CONTENT_TYPE).
    ``x_for``, ``x_proto``, ``forwarded_in``: values of a trusted peer, joined, else b"".
    """

    __slots__ = (
        "close",
        "expect",
        "forward",
        "forwarded_in",
        "gzip",
        "host",
        "keep_alive",
        "key",
        "length",
        "raw",
        "simple",
        "upgrade",
        "variables",
        "x_for",
        "x_proto",
    )

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.host: bytes | None = None
        self.key = ""
        self.length = 0
        self.close = False
        self.keep_alive = False
        self.upgrade = b""
        self.expect = False
        self.gzip = False
        self.simple = False
        self.forward = b""
        self.variables = b""
        self.x_for = b""
        self.x_proto = b""
        self.forwarded_in = b""


class _Fields:
    """The steering fields of one block while it is being parsed."""

    __slots__ = ("connection", "kept", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, list[bytes]] = {}
        self.kept: list[tuple[bytes, bytes, bytes]] = []  # (name, line, packed variable)
        self.connection: set[bytes] = set()


class RequestParser:
    """Parses blocks under one policy and remembers the results, within bounds."""

    __slots__ = ("_lines", "_memo", "policy")

    def __init__(self, policy: RequestPolicy) -> None:
        self.policy = policy
        self._memo: LineMemo[RequestBlock] = LineMemo(_BLOCKS_LIMIT)
        # line -> (lower-case name, packed uwsgi variable or b""), for lines known to be plain
        self._lines: dict[bytes, tuple[bytes, bytes]] = {}

    def parse(self, raw: bytes) -> RequestBlock:
        """The meaning of ``raw`` (``CRLF … CRLF CRLF``); raises Http1Error."""
        known = self._memo.entries.get(raw)
        if known is not None:
            return known
        try:
            block = self._parse(raw)
        except PacketError as error:  # a value that no uwsgi variable can hold
            raise Http1Error(Fault.TOO_MANY_FIELDS, str(error)) from None
        if len(raw) <= BLOCK_LIMIT and self._memo.worth_keeping(raw):
            self._memo.entries[raw] = block
        return block

    def with_host(self, block: RequestBlock, host: bytes) -> RequestBlock:
        """The same block with ``host`` in the place of its Host field (RFC 9112 §3.2.2)."""
        lines = [b"Host: " + host]
        if block.raw != b"\r\n\r\n":
            lines += [
                line
                for line in block.raw[2:-4].split(b"\r\n")
                if line[:5].lower() != b"host:"
            ]
        return self.parse(b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")

    def _parse(self, raw: bytes) -> RequestBlock:
        block = RequestBlock(raw)
        fields = _Fields()
        if raw != b"\r\n\r\n":
            lines = raw[2:-4].split(b"\r\n")
            if len(lines) > self.policy.max_fields:
                raise Http1Error(Fault.TOO_MANY_FIELDS, str(len(lines)))
            self._sort_lines(lines, fields)
        values = fields.values
        if values:
            self._framing(block, values)
            self._host(block, values)
            self._connection(block, fields)
            self._forwarding(block, values)
            if b"accept-encoding" in values:
                block.gzip = accepts_gzip(b",".join(values[b"accept-encoding"]))
        self._build(block, fields)
        block.simple = not (
            block.length
            or block.upgrade
            or block.expect
            or block.host is None
            or block.x_for
            or block.x_proto
            or self.policy.forwarded
            or self.policy.general
            or len(raw) > BLOCK_LIMIT
        )
        return block

    def _sort_lines(self, lines: list[bytes], fields: _Fields) -> None:
        """Plain lines to ``kept``, steering ones to ``values`` (and ``kept`` where passed on)."""
        known, kept = self._lines, fields.kept
        for line in lines:
            entry = known.get(line)
            if entry is not None:
                kept.append((entry[0], line, entry[1]))
                continue
            name, value = split_field(line)
            if self.policy.drops(name):
                continue
            if name in STEERING:
                fields.values.setdefault(name, []).append(value)
                if name == b"content-length":
                    value = value.lstrip(b"0") or b"0"
                    kept.append((name, b"Content-Length: " + value, var(b"CONTENT_LENGTH", value)))
                elif name in _STEERING_KEPT or (
                    name == b"x-forwarded-host" and self.policy.trusted
                ):
                    kept.append((name, line, var(header_name(name), value)))
                continue
            packed = b""
            if b"_" in name:
                # "X_A" and "X-A" are one variable: the underscore form must not shadow the other.
                dashed = name.replace(b"_", b"-")
                if dashed in STEERING or _claims_client(dashed):
                    continue
                if self.policy.allow_underscores:
                    packed = var(header_name(name), value)
            else:
                packed = var(header_name(name), value)
            kept.append((name, line, packed))
            if len(line) <= _LINE_LIMIT:
                if len(known) >= _LINES_LIMIT:
                    known.clear()
                known[line] = (name, packed)

    def _framing(self, block: RequestBlock, values: dict[bytes, list[bytes]]) -> None:
        """RFC 9112 §6: one Content-Length or one Transfer-Encoding: chunked, never both."""
        codings = values.get(b"transfer-encoding")
        lengths = values.get(b"content-length")
        if codings is not None:
            if lengths is not None:
                raise Http1Error(Fault.BAD_FRAMING, "both Content-Length and Transfer-Encoding")
            if len(codings) > 1:
                raise Http1Error(Fault.BAD_FRAMING, "repeated Transfer-Encoding")
            transfer_coding(codings[0])
            block.length = CHUNKED
        elif lengths is not None:
            if len(lengths) > 1:
                raise Http1Error(Fault.BAD_FRAMING, "repeated Content-Length")
            block.length = content_length(lengths[0])
        expectations = values.get(b"expect")
        if expectations is not None:
            if any(value.lower() != b"100-continue" for value in expectations):
                raise Http1Error(Fault.BAD_EXPECTATION, repr(expectations[0][:40]))
            block.expect = True

    def _host(self, block: RequestBlock, values: dict[bytes, list[bytes]]) -> None:
        hosts = values.get(b"host")
        if hosts is None:
            return
        if len(hosts) > 1:
            raise Http1Error(Fault.BAD_HOST, "repeated Host")
        if HOST.fullmatch(hosts[0]) is None:
            raise Http1Error(Fault.BAD_HOST, repr(hosts[0][:60]))
        block.host = hosts[0]
        block.key = hosts[0].decode("ascii").lower()

    def _connection(self, block: RequestBlock, fields: _Fields) -> None:
        """RFC 9110 §7.6.1: options of this connection, and the fields that they name."""
        for value in fields.values.get(b"connection", ()):
            fields.connection.update(split_list(value))
        options = fields.connection
        if options & _NOT_NOMINABLE:
            raise Http1Error(Fault.BAD_MESSAGE, "Connection names an end-to-end field")
        block.close = b"close" in options
        block.keep_alive = b"keep-alive" in options and not block.close
        if b"upgrade" in options:
            upgrades = fields.values.get(b"upgrade", [])
            # h2c by Upgrade is obsolete (RFC 9113 §3.1) and a way around the gateway: not offered.
            if len(upgrades) == 1 and _WHITE_LIST.fullmatch(upgrades[0]):
                offered = [o.split(b"/")[0] for o in upgrades[0].lower().split(b",")]
                if all(protocol.strip(b" \t") not in (b"h2c", b"h2") for protocol in offered):
                    block.upgrade = upgrades[0]

    def _forwarding(self, block: RequestBlock, values: dict[bytes, list[bytes]]) -> None:
        if self.policy.trusted:
            block.x_for = b", ".join(values.get(b"x-forwarded-for", ()))
            block.x_proto = b", ".join(values.get(b"x-forwarded-proto", ())[-1:])
            block.forwarded_in = b", ".join(values.get(b"forwarded", ()))

    def _build(self, block: RequestBlock, fields: _Fields) -> None:
        """Ready-made bytes for both kinds of node."""
        policy, named = self.policy, fields.connection
        lines: list[bytes] = [b""]
        packed: dict[bytes, bytes] = {}  # name -> variable, in order of first appearance
        merged: dict[bytes, list[bytes]] = {}
        for name, line, variable in fields.kept:
            if name in named:
                continue
            lines.append(line)
            if not variable:
                continue
            mapped = name.replace(b"_", b"-")
            if mapped in packed:
                merged.setdefault(mapped, [packed[mapped]]).append(variable)
            else:
                packed[mapped] = variable
        for name, variables in merged.items():
            packed[name] = _merge(name, variables)
        if policy.x_forwarded and block.host is not None and not (
            policy.trusted and b"x-forwarded-host" in fields.values
        ):
            lines.append(b"X-Forwarded-Host: " + block.host)
        if policy.via:
            lines.append(b"Via: %b %b" % (policy.version, policy.via))
        if block.length == CHUNKED:
            lines.append(b"Transfer-Encoding: chunked")
        block.forward = b"\r\n".join(lines)
        if policy.trusted:
            for name, value in (
                (b"x-forwarded-for", block.x_for),
                (b"x-forwarded-proto", block.x_proto),
                (b"forwarded", block.forwarded_in),
            ):
                if value:
                    packed[name] = var(header_name(name), value)
        if policy.server_name_as_host and block.host is not None and b"host" in packed:
            packed[b"host"] = var(b"SERVER_NAME", block.host) + packed[b"host"]
        block.variables = b"".join(packed.values())


def _merge(name: bytes, variables: list[bytes]) -> bytes:
    """One variable of several with the same name: values joined by ``, `` (Cookie: ``; ``)."""
    size = int.from_bytes(variables[0][:2], "little")
    key = variables[0][2 : 2 + size]
    joiner = b"; " if name == b"cookie" else b", "
    return var(key, joiner.join(v[4 + size :] for v in variables))
