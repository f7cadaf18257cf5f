"""The uwsgi protocol: request packets and the CGI variables inside them.

A request on the wire (integers are little-endian)::

    offset      size       field
    0           1          modifier1
    1           2          datasize: length of the variable block, at most 65535
    3           1          modifier2
    4           datasize   variables: u16 key length, key, u16 value length, value, repeated
    4+datasize  the rest   request body, raw

Keys are not empty, values may be; duplicates are legal and keep their order. The answer is a bare
HTTP response that ends where the connection ends. Source: "The uwsgi Protocol" of the uWSGI
documentation, and uWSGI 2.0.31 on the wire.

All strings are bytes. The functions that build a packet trust the grammar of what they are given:
the validator of request heads has seen it (method and names are tokens, targets are printable).
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

__all__ = [
    "MAX_DATASIZE",
    "Packet",
    "PacketError",
    "header_name",
    "packet",
    "parse_packet",
    "path_info",
    "request_line_vars",
    "var",
]

MAX_DATASIZE = 65535
"""Largest variable block in bytes: what the u16 ``datasize`` can say."""

_U16 = Struct("<H")
_HEAD = Struct("<BHB")
_u16 = _U16.pack


class PacketError(ValueError):
    """The packet cannot be built, or what was received is not a uwsgi packet."""


class Packet(NamedTuple):
    """A decoded request packet.

    ``variables`` holds (key, value) in wire order, duplicates included; ``end`` is the offset of
    the first byte after the packet, where the body begins.
    """

    modifier1: int
    modifier2: int
    variables: list[tuple[bytes, bytes]]
    end: int


def var(key: bytes, value: bytes) -> bytes:
    """One variable: u16le key length, key, u16le value length, value.

    Raises PacketError for an empty key, and for a key or value above 65535 bytes.
    """
    if not key:
        raise PacketError("a uwsgi variable needs a name")
    try:
        return b"%b%b%b%b" % (_u16(len(key)), key, _u16(len(value)), value)
    except StructError:
        raise PacketError(
            f"uwsgi variable of {len(key)} + {len(value)} bytes: 65535 bytes are the most"
        ) from None


# --- header names ------------------------------------------------------------------------------

_CGI_NAME = bytes.maketrans(b"abcdefghijklmnopqrstuvwxyz-", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_BARE_NAMES = frozenset((b"CONTENT_LENGTH", b"CONTENT_TYPE"))


def header_name(name: bytes) -> bytes:
    """The CGI variable of a header field: ``User-Agent`` becomes ``HTTP_USER_AGENT``.

    Content-Length and Content-Type become CONTENT_LENGTH and CONTENT_TYPE, without the prefix
    (RFC 3875 §4.1.2, §4.1.3, §4.1.18). ``-`` and ``_`` give the same variable: whoever lets a
    field with ``_`` in its name pass accepts that it may shadow its dashed twin.
    """
    mapped = name.translate(_CGI_NAME)
    return mapped if mapped in _BARE_NAMES else b"HTTP_" + mapped


# --- PATH_INFO ---------------------------------------------------------------------------------

_HASH, _PERCENT, _DOT = b"#%."
_HEX = b"0123456789ABCDEFabcdef"
# "%00" is left out on purpose: a NUL ends the path in whatever opens the file in C.
_ESCAPES: dict[bytes, bytes] = {
    bytes((high, low)): bytes((int(bytes((high, low)), 16),))
    for high in _HEX
    for low in _HEX
    if (high, low) != (0x30, 0x30)
}


def _unescape(path: bytes) -> bytes:
    """Undo percent escapes, exactly once (``%252e`` is the text ``%2e``)."""
    head, *rest = path.split(b"%")
    parts = [head]
    for part in rest:
        byte = _ESCAPES.get(part[:2])
        if byte is None:
            if part[:2] == b"00":
                raise PacketError("the request path contains an escaped NUL")
            raise PacketError("the request path contains an invalid percent escape")
        parts.append(byte)
        parts.append(part[2:])
    return b"".join(parts)


def _without_dots(path: bytes) -> bytes:
    """Resolve the segments ``.`` and ``..``; nothing climbs above the first segment.

    The shape at the end is uWSGI's: ``/a/..`` is ``/`` but ``/..`` is the empty path.
    """
    kept: list[bytes] = []
    slash = b""
    pieces = path.split(b"/")
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        if piece == b"..":
            removed = kept.pop() if kept else b""
            if index == last and removed[:1] == b"/":
                kept.append(b"/")
        elif piece == b".":
            if index == last:
                kept.append(b"/")
        elif piece or index:
            kept.append(slash + piece)
        slash = b"/"
    return b"".join(kept)


def path_info(target: bytes) -> bytes:
    """PATH_INFO of a request target, such that no spelling of ``..`` leaves the root.

    1. The path ends before the first ``?`` or ``#``.
    2. Percent escapes are undone once, ``%2F`` included. An escape that is not two hexadecimal
       digits, and ``%00``, raise PacketError.
    3. Only then are the segments ``.`` and ``..`` resolved, so that ``/a/%2e%2e/b`` and
       ``/a%2F..%2Fb`` mean what ``/a/../b`` means. Empty segments are kept; ``..`` at the root is
       absorbed. The result has no ``.`` or ``..`` segment.

    For targets without escapes the result is that of uWSGI 2.0.31 (``/..`` gives the empty path,
    ``+`` is not decoded, an absolute-form target is not reduced to its path, ``*`` stays). uWSGI
    itself resolves dot segments before it decodes, and so lets the encoded ones through.
    """
    return _path_of(target.partition(b"?")[0])


def _path_of(path: bytes) -> bytes:
    """`path_info` of a target without query."""
    # An int is looked for ten times faster than a bytes of one byte.
    if _HASH in path:
        path = path[: path.index(_HASH)]
    if _PERCENT in path:
        path = _unescape(path)
    if _DOT in path and (b"/." in path or path[0] == _DOT):
        return _without_dots(path)
    return path


# --- request line ------------------------------------------------------------------------------

# Only what an operator's clients send all day is kept ready; anything else is built when it comes.
_METHODS = {
    method: var(b"REQUEST_METHOD", method)
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS")
}
_PROTOCOLS = {
    protocol: var(b"SERVER_PROTOCOL", protocol) for protocol in (b"HTTP/1.0", b"HTTP/1.1")
}
_PATH_INFO_KEY = _u16(9) + b"PATH_INFO"
_REQUEST_URI_KEY = _u16(11) + b"REQUEST_URI"
_QUERY_STRING_KEY = _u16(12) + b"QUERY_STRING"
_NO_QUERY = var(b"QUERY_STRING", b"")


def request_line_vars(method: bytes, target: bytes, protocol: bytes) -> bytes:
    """The variables of a request line, in the order in which uWSGI's router sends them.

    REQUEST_METHOD; then with a ``?`` in the target PATH_INFO, REQUEST_URI, QUERY_STRING and without
    one REQUEST_URI, PATH_INFO, an empty QUERY_STRING; then SERVER_PROTOCOL. REQUEST_URI is the
    target as received, QUERY_STRING what follows the first ``?`` (a ``#`` stays in it).

    Raises PacketError as `path_info` does, and if a part is longer than 65535 bytes.
    """
    raw_path, mark, query = target.partition(b"?")
    path = _path_of(raw_path)
    try:
        uri = b"%b%b%b" % (_REQUEST_URI_KEY, _u16(len(target)), target)
        info = b"%b%b%b" % (_PATH_INFO_KEY, _u16(len(path)), path)
    except StructError:
        raise PacketError(
            f"the request target has {len(target)} bytes: 65535 are the most"
        ) from None
    first = _METHODS.get(method) or var(b"REQUEST_METHOD", method)
    last = _PROTOCOLS.get(protocol) or var(b"SERVER_PROTOCOL", protocol)
    if not mark:
        return b"%b%b%b%b%b" % (first, uri, info, _NO_QUERY, last)
    return b"%b%b%b%b%b%b%b" % (
        first, info, uri, _QUERY_STRING_KEY, _u16(len(query)), query, last,
    )  # fmt: skip


# --- packets -----------------------------------------------------------------------------------


def packet(modifier1: int, modifier2: int, *blocks: bytes) -> bytes:
    """A request packet: the four-byte header, then the blocks (made by `var`) one after another.

    Raises PacketError if the blocks are longer than 65535 bytes or a modifier is not 0 to 255.
    """
    data = b"".join(blocks)
    size = len(data)
    if size > MAX_DATASIZE:
        raise PacketError(f"the uwsgi variables take {size} bytes: {MAX_DATASIZE} are the most")
    try:
        return _HEAD.pack(modifier1, size, modifier2) + data
    except StructError:
        raise PacketError(f"uwsgi modifiers are 0 to 255, not {modifier1}/{modifier2}") from None


def _string(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """The length-prefixed string at ``pos``, and the position behind it."""
    start = pos + 2
    if start > end:
        raise PacketError("the uwsgi variables end inside a length")
    stop = start + int.from_bytes(data[pos:start], "little")
    if stop > end:
        raise PacketError("the uwsgi variables end inside a string")
    return data[start:stop], stop


def parse_packet(data: bytes) -> Packet | None:
    """Decode the packet at the start of ``data``; None while it is incomplete.

    Raises PacketError if the variables do not fill ``datasize`` exactly or a key is empty.
    """
    if len(data) < 4:
        return None
    modifier1, size, modifier2 = _HEAD.unpack_from(data)
    end = 4 + size
    if len(data) < end:
        return None
    variables: list[tuple[bytes, bytes]] = []
    pos = 4
    while pos < end:
        key, pos = _string(data, pos, end)
        if not key:
            raise PacketError("a uwsgi variable has no name")
        value, pos = _string(data, pos, end)
        variables.append((key, value))
    return Packet(modifier1, modifier2, variables, end)
