"""The name/value blocks of SPDY/3.1, and the request in one (SPDY draft 3.1, 2.6.10, 3.2).

A block, before compression, all integers big-endian::

    size    field
    4       number of pairs
            for each pair:
    4       length of the name, not 0
    length  name, in lower case
    4       length of the value
    length  value: empty, or values of at least one byte with a NUL between two

The blocks of one direction of a session are one zlib stream (RFC 1950) that begins with
`DICTIONARY`, flushed after each block. So a block that was not read to its end makes all later ones
unreadable: what breaks the stream or the layout ends the session, what is only wrong with a name or
a value ends its stream (2.4).

Stricter than the draft, because a request goes on to nodes that speak HTTP/1: names are tokens,
values have no control bytes but the tab (RFC 9110 §5.6.2, §5.5).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from uwgate.protocols.http1 import HOST, TOKEN, VALUE

__all__ = [
    "DICTIONARY",
    "MAX_BLOCK",
    "BlockReader",
    "BlockWriter",
    "Field",
    "SessionStatus",
    "SpdyError",
    "SpdyRequest",
    "SpdyStreamError",
    "StreamStatus",
    "request_of",
]

Field = tuple[bytes, bytes]
"""A name in lower case and one value of it."""

MAX_BLOCK = 32768
"""Bytes of the largest block that is read, decompressed, unless told otherwise."""

_U32 = Struct(">I")
_u32 = _U32.unpack_from

# The draft gives the dictionary as bytes (2.6.10.1): these with their lengths, then the text.
_COMMON = (
    b"options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,"
    b"accept-ranges,age,allow,authorization,cache-control,connection,content-base,"
    b"content-encoding,content-language,content-length,content-location,content-md5,"
    b"content-range,content-type,date,etag,expect,expires,from,host,if-match,if-modified-since,"
    b"if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,"
    b"proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,trailer,"
    b"transfer-encoding,upgrade,user-agent,vary,via,warning,www-authenticate,method,get,status,"
    b"200 OK,version,HTTP/1.1,url,public,set-cookie,keep-alive,origin"
)
_COMMON_TEXT = (
    b"10010120120220520630030230330430530630740240540640740840941041141241341441541641750250450"
    b"5203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    b"401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    b"503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    b"Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    b"application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    b"gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)

DICTIONARY = b"".join(_U32.pack(len(word)) + word for word in _COMMON.split(b",")) + _COMMON_TEXT
"""What zlib has seen before the first block (SPDY draft 3.1, 2.6.10.1); 1423 bytes."""

# 2 KiB, as the draft advises; 16 KiB of memory for a session instead of 256.
_WINDOW_BITS = 11
_MEMORY_LEVEL = 4

_name = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_BYTE = rb"[\t\x20-\x7e\x80-\xff]"
_values = re.compile(_BYTE + rb"*|" + _BYTE + rb"+(?:\x00" + _BYTE + rb"+)+").fullmatch

_NOT_IN_REPLIES = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding")
)
_NOT_IN_REQUESTS = _NOT_IN_REPLIES | {b"host"}

# As in a request of HTTP/1 (see protocols/http1.py); without CONNECT's form of a target.
_PSEUDO = {
    b":method": TOKEN.fullmatch,
    b":path": re.compile(rb"/[\x21\x22\x24-\x7e]*|\*").fullmatch,
    b":version": re.compile(rb"HTTP/1\.[01]").fullmatch,
    b":host": HOST.fullmatch,
    b":scheme": re.compile(rb"https?").fullmatch,
}


class SessionStatus(IntEnum):
    """Why a session ends: the status of GOAWAY (SPDY draft 3.1, 2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class StreamStatus(IntEnum):
    """Why a stream ends: the status of RST_STREAM (SPDY draft 3.1, 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class SpdyError(ValueError):
    """A session error (SPDY draft 3.1, 2.4.1): send GOAWAY with ``status`` and close."""

    status = SessionStatus.PROTOCOL_ERROR


class SpdyStreamError(ValueError):
    """A stream error (SPDY draft 3.1, 2.4.2): send RST_STREAM for ``stream_id`` with ``status``;
    the session goes on."""

    def __init__(self, stream_id: int, status: StreamStatus, message: str) -> None:
        super().__init__(message)
        self.stream_id = stream_id
        self.status = status


class SpdyRequest(NamedTuple):
    """A request: the values of the fields of these names, with ``:`` before, and all others."""

    method: bytes
    path: bytes
    version: bytes
    host: bytes
    scheme: bytes
    rest: tuple[Field, ...]


def _malformed(stream_id: int, message: str) -> SpdyStreamError:
    return SpdyStreamError(stream_id, StreamStatus.PROTOCOL_ERROR, message)


_MOST_FIELDS = 1040


class BlockReader:
    """Reads the blocks that a peer sends in one session, in the order in which they come.

    ``limit``: bytes that a block may have, decompressed. It may have a field for each 32 of them,
    and 16, but no more than 1,040: compressed, a few bytes can be any number of fields.
    """

    __slots__ = ("_inflate", "_limit", "_most")

    def __init__(self, limit: int = MAX_BLOCK) -> None:
        self._limit = limit
        self._most = min(16 + limit // 32, _MOST_FIELDS)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def read(self, data: bytes, stream_id: int) -> tuple[Field, ...]:
        """The fields in ``data``, a compressed block; one for each value, in order.

        No data is a block without fields (2.6.7: the shortest HEADERS frame).
        Raises SpdyError: not a block, or more than ``limit`` bytes or so many fields; there is no
        reading on.
        Raises SpdyStreamError: a name is empty, twice there, not in lower case or no token, or a
        value begins or ends with NUL, has two of them in a row or a control byte.
        """
        if not data:
            return ()
        pairs = self._pairs(data)
        if sum(value.count(0) + 1 for _, value in pairs) > self._most:
            raise SpdyError("a name/value block has too many values")
        return _fields(pairs, stream_id)

    def _pairs(self, data: bytes) -> list[Field]:
        """The pairs as they stand in the block."""
        inflate = self._inflate
        try:
            # A byte more than may come: with room left, zlib holds nothing back.
            block = inflate.decompress(data, self._limit + 1)
        except zlib.error as error:
            raise SpdyError(f"a name/value block cannot be decompressed: {error}") from None
        if len(block) > self._limit:
            raise SpdyError(f"a name/value block has more than {self._limit} bytes")
        if inflate.eof:
            raise SpdyError("the compressed stream of name/value blocks has ended")
        pairs: list[Field] = []
        pos = 4
        try:
            count = _u32(block)[0]
            if count > self._most:
                raise SpdyError("a name/value block has too many pairs")
            for _ in range(count):
                start = pos + 4
                stop = start + _u32(block, pos)[0]
                pos = stop + 4 + _u32(block, stop)[0]
                pairs.append((block[start:stop], block[stop + 4 : pos]))
        except StructError:
            pos = -1
        # Whoever ends a block too early may not have flushed; the rest would be in the next one.
        if pos != len(block):
            raise SpdyError("a name/value block does not have the length that it tells")
        return pairs


def _fields(pairs: list[Field], stream_id: int) -> tuple[Field, ...]:
    """One field for each value."""
    seen: set[bytes] = set()
    fields: list[Field] = []
    for name, value in pairs:
        if name in seen:
            raise _malformed(stream_id, f"a field twice: {name[:60]!r}")
        if _name(name) is None:
            raise _malformed(stream_id, f"malformed field name {name[:60]!r}")
        if _values(value) is None:
            raise _malformed(stream_id, f"malformed value of field {name[:60]!r}")
        seen.add(name)
        fields += [(name, each) for each in value.split(b"\0")]
    return tuple(fields)


class BlockWriter:
    """Writes the blocks of one direction of a session, which must be sent in this order.

    ``level``: 0 (not compressed) to 9. With any other than 0, the length of a block tells whether
    parts of it were in earlier ones, so who can choose one field and see the lengths can guess the
    secrets in the others (CRIME): only for sessions whose fields are nobody's secret.
    """

    __slots__ = ("_deflate",)

    def __init__(self, level: int = 0) -> None:
        self._deflate = zlib.compressobj(
            level, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zdict=DICTIONARY
        )

    def write(self, pseudo: Sequence[Field], fields: Iterable[Field]) -> bytes:
        """A block of ``pseudo``, with names as they are, then ``fields``: ready to be sent.

        Names come in any case, and more than once where a field has several values. Fields that
        belong to a connection are left out (3.2.2).
        Raises ValueError: a name is no token, or a value has control bytes; nothing is written.
        """
        for name, value in pseudo:
            if VALUE.fullmatch(value) is None:
                raise ValueError(f"malformed field {name!r}")
        joined: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            if TOKEN.fullmatch(name) is None or VALUE.fullmatch(value) is None:
                raise ValueError(f"malformed field {name[:60]!r}")
            values = joined.setdefault(name.lower(), [])
            # Of several values none may be empty.
            if value:
                values.append(value)
        pairs = [*pseudo]
        pairs += [
            (name, b"\0".join(values))
            for name, values in joined.items()
            if name not in _NOT_IN_REPLIES
        ]
        block = [_U32.pack(len(pairs))]
        for name, value in pairs:
            block += (_U32.pack(len(name)), name, _U32.pack(len(value)), value)
        deflate = self._deflate
        return deflate.compress(b"".join(block)) + deflate.flush(zlib.Z_SYNC_FLUSH)


def request_of(fields: Iterable[Field], stream_id: int) -> SpdyRequest:
    """The request in the fields of a SYN_STREAM (SPDY draft 3.1, 3.2.1), in whatever order.

    Raises SpdyStreamError, PROTOCOL_ERROR: one of ``:method :path :version :host :scheme`` is
    missing, twice there or malformed, there is another field with a colon, or one that must not
    be sent: connection, host, keep-alive, proxy-connection, transfer-encoding. (The draft wants a
    400 where one is missing; who likes to can answer so, the stream is intact.)
    """
    pseudo: dict[bytes, bytes] = {}
    rest: list[Field] = []
    for field in fields:
        name, value = field
        if name in _NOT_IN_REQUESTS:
            raise _malformed(stream_id, f"field {name!r} is not for SPDY")
        if not name.startswith(b":"):
            rest.append(field)
        elif name in pseudo:
            raise _malformed(stream_id, f"several values of {name!r}")
        elif name not in _PSEUDO or _PSEUDO[name](value) is None:
            raise _malformed(stream_id, f"malformed or unknown field {name[:60]!r}")
        else:
            pseudo[name] = value
    if len(pseudo) < len(_PSEUDO):
        missing = b" ".join(name for name in _PSEUDO if name not in pseudo)
        raise _malformed(stream_id, f"a request without {missing.decode()}")
    return SpdyRequest(
        pseudo[b":method"],
        pseudo[b":path"],
        pseudo[b":version"],
        pseudo[b":host"],
        pseudo[b":scheme"],
        tuple(rest),
    )
