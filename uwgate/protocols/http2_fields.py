"""Fields of HTTP/2 messages, and the same as HTTP/1 (RFC 9113 §8).

A request becomes a request line and a block as ``http1_request`` reads them, so that whatever is
refused of an HTTP/1 client is refused here, by the same code: nothing can mean one thing on this
side and another on that. What RFC 9113 forbids besides is refused before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from uwgate.protocols.chunked import filter_trailer
from uwgate.protocols.hpack import encode, encode_status
from uwgate.protocols.http1 import CONTENT_LENGTH, TOKEN, VALUE

Fields = Iterable[tuple[bytes, bytes]]

UNKNOWN = -1
"""A length: there is a body, and no Content-Length."""

# field-name: a token without upper case                                RFC 9113 §8.2.1
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
# Fields of a connection of HTTP/1                                      RFC 9113 §8.2.2
_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority", b":protocol"))
# Which are more than a line.
_KEY = b"sec-websocket-key"
_SPECIAL = frozenset((b"host", b"content-length", b"cookie", b"te", b"priority", _KEY))

_LONGEST_KEPT = 512
_MOST_KEPT = 4096

# What a node cannot be told in a field, but has to be (RFC 8441 §4).
_UPGRADE = b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: "


class FieldError(ValueError):
    """A malformed message (RFC 9113 §8.1.1): a stream error PROTOCOL_ERROR."""


class RequestHead:
    """``line``, ``raw``: request line without its CRLF, and block, as of HTTP/1.1. ``length``: of
    the body in bytes, as Content-Length says, UNKNOWN without one. ``method``: of the line.
    ``priority``: the value of that field (RFC 9218), b"" without one. ``websocket``: an extended
    CONNECT (RFC 8441): ``raw`` is that of an upgrade then."""

    __slots__ = ("length", "line", "method", "priority", "raw", "websocket")

    def __init__(self) -> None:
        self.line = self.method = self.raw = self.priority = b""
        self.length = UNKNOWN
        self.websocket = False


class RequestFields:
    """Turns requests into heads; remembers lines that were found good, within bounds."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], bytes] = {}

    def head(self, fields: Fields, *, ended: bool, key: bytes = b"") -> RequestHead:
        """``ended``: no body follows. ``key``: Sec-WebSocket-Key for a node, should this be a
        WebSocket; without one there are none. Raises FieldError."""
        known = self._known.get
        lines: list[bytes] = [b"", b""]
        pseudo: dict[bytes, bytes] = {}
        special: dict[bytes, list[bytes]] = {}
        regular = False
        for field in fields:
            line = known(field)
            if line is not None:
                lines.append(line)
                regular = True
                continue
            name, value = field
            if name[:1] == b":":
                if regular or name in pseudo or name not in _PSEUDO:
                    raise FieldError(f"{name[:20]!r} again, behind others or unknown")
                pseudo[name] = value
                continue
            regular = True
            if name in _SPECIAL:
                check_value(value)
                special.setdefault(name, []).append(value)
            else:
                lines.append(self._line(field))
        return _head(lines, pseudo, special, ended=ended, key=key)

    def _line(self, field: tuple[bytes, bytes]) -> bytes:
        name, value = field
        check_name(name)
        check_value(value)
        line = b"%b: %b" % field
        if len(line) <= _LONGEST_KEPT:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[field] = line
        return line


def _head(
    lines: list[bytes],
    pseudo: dict[bytes, bytes],
    special: dict[bytes, list[bytes]],
    *,
    ended: bool,
    key: bytes,
) -> RequestHead:
    head = RequestHead()
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if TOKEN.fullmatch(method) is None:
        raise FieldError("no method")
    head.websocket = _is_websocket(method, pseudo, ended=ended, key=key)
    if method == b"CONNECT" and not head.websocket:
        # RFC 9113 §8.5; it is refused, as one of HTTP/1 is.
        if not pseudo.keys() <= {b":method", b":authority"}:
            raise FieldError("CONNECT with a scheme or a path")
        path = pseudo.get(b":authority", b"")
    elif pseudo.get(b":scheme") not in (b"http", b"https"):
        raise FieldError("no scheme, or an unknown one")
    elif path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS"):
        raise FieldError("no path")
    if head.websocket:
        method = b"GET"
    head.method = method
    head.line = b"%b %b HTTP/1.1" % (method, path)
    lines[1] = b"Host: " + _host(pseudo.get(b":authority"), special.get(b"host", []))
    if special:
        _special(head, lines, special)
    if head.websocket:
        lines[1] += _UPGRADE + key
    elif head.length == UNKNOWN:
        if not ended:
            lines.append(b"Transfer-Encoding: chunked")
    elif ended and head.length:
        raise FieldError("Content-Length, and no content")
    lines.append(b"\r\n")
    head.raw = b"\r\n".join(lines)
    return head


def _is_websocket(
    method: bytes, pseudo: dict[bytes, bytes], *, ended: bool, key: bytes
) -> bool:
    protocol = pseudo.get(b":protocol")
    if protocol is None:
        return False
    if method != b"CONNECT" or not key or ended:
        raise FieldError(":protocol without CONNECT, or not offered")
    if protocol != b"websocket":
        raise FieldError("another protocol than websocket")
    return True


def _host(authority: bytes | None, hosts: list[bytes]) -> bytes:
    """RFC 9113 §8.3.1: one name, said once or twice."""
    if authority is None:
        if len(hosts) != 1:
            raise FieldError("no authority")
        return hosts[0]
    check_value(authority)
    if any(host.lower() != authority.lower() for host in hosts):
        raise FieldError("Host is not :authority")
    return authority


def _special(head: RequestHead, lines: list[bytes], special: dict[bytes, list[bytes]]) -> None:
    lengths = special.get(b"content-length")
    if lengths is not None:
        if len(lengths) > 1 or CONTENT_LENGTH.fullmatch(lengths[0]) is None:
            raise FieldError("Content-Length")
        if head.websocket:
            raise FieldError("Content-Length of a tunnel")
        head.length = int(lengths[0])
        lines.append(b"Content-Length: " + lengths[0])
    cookies = special.get(b"cookie")
    if cookies is not None:  # RFC 9113 §8.2.3
        lines.append(b"cookie: " + b"; ".join(cookies))
    if not head.websocket:  # else it has one of ours
        lines += [b"%b: %b" % (_KEY, value) for value in special.get(_KEY, ())]
    if any(value.lower() != b"trailers" for value in special.get(b"te", ())):
        raise FieldError("TE other than trailers")
    priorities = special.get(b"priority")
    if priorities is not None:
        head.priority = b", ".join(priorities)
        lines.append(b"priority: " + head.priority)


def check_name(name: bytes) -> None:
    """Raises FieldError unless it may be the name of a field that is no pseudo-field."""
    if _NAME.fullmatch(name) is None or name in _CONNECTION:
        raise FieldError(f"a field called {name[:40]!r}")


def check_value(value: bytes) -> None:
    """Raises FieldError: CR, LF, NUL (RFC 9113 §8.2.1), other control bytes, blanks around it."""
    if VALUE.fullmatch(value) is None or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
        raise FieldError("a malformed value")


def trailer_lines(fields: Fields) -> bytes:
    """``name: value CRLF …`` of a trailer section, without what must not be in one (as HTTP/1's).
    Raises FieldError, also for pseudo-fields (RFC 9113 §8.1)."""
    lines = []
    for name, value in fields:
        check_name(name)
        check_value(value)
        lines.append(b"%b: %b\r\n" % (name, value))
    return filter_trailer(b"".join(lines))


def response_block(head: bytes) -> bytes:
    """The header block (HPACK) of a response head of HTTP/1, with or without its blank line; the
    status comes first, fields of the connection are left out."""
    status, _, rest = head.partition(b"\r\n")
    return encode_status(int(status[9:12])) + field_block(rest)


def field_block(lines: bytes) -> bytes:
    """The header block of field lines (``Name: value CRLF …``)."""
    fields = []
    for line in lines.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        name = name.lower()
        if colon and name not in _CONNECTION:
            fields.append((name, value.strip(b" \t")))
    return encode(fields)
