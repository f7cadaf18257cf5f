"""The first message of a TLS client, the ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2).

It arrives in one or more records (RFC 8446 §5.1)::

    offset  size    field
    0       1       content type: 22, handshake
    1       2       record version: major is 3
    3       2       length of the fragment, 1 to 16384, big-endian
    5       length  fragment

The fragments joined are the message: u8 type 1, u24 length; then u16 legacy_version, 32 bytes
random, u8-prefixed session id (at most 32 bytes), u16-prefixed cipher suites, u8-prefixed
compression methods, and u16-prefixed extensions, each u16 type and u16-prefixed content.

Only what decides on the certificate and on the session to look up is taken out; OpenSSL reads
the same bytes again, and judges them.
"""

from __future__ import annotations

import re
from struct import Struct, unpack
from struct import error as StructError

MAX_HELLO = 16384
"""Bytes of the largest ClientHello that is read, without the headers of its records."""

ALERT_HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"
ALERT_DECODE_ERROR = b"\x15\x03\x03\x00\x02\x02\x32"
ALERT_UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
"""Fatal alerts in clear, as whole records (RFC 8446 §6.2)."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_MAX_FRAGMENT = 16384
_MAX_RECORDS = 32  # of one hello: joining them must not cost more than sending them
_SERVER_NAME, _ALPN, _SESSION_TICKET, _PRE_SHARED_KEY, _VERSIONS = 0, 16, 35, 41, 43

_RECORD = Struct(">BBBH")
_U16 = Struct(">H")
_EXTENSION = Struct(">HH")
_extension = _EXTENSION.unpack_from
_u16 = _U16.unpack_from

_METHOD = re.compile(rb"[A-Z][A-Z_-]{0,15}(?: |\Z)")
_NAME = re.compile(rb"(?:[a-z0-9_](?:[a-z0-9_-]{0,62})\.)*[a-z0-9_][a-z0-9_-]{0,62}")


class HelloError(ValueError):
    """What came is no ClientHello. ``reason``: "http" (it looks like HTTP in clear text),
    "malformed", or "too-large"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClientHello:
    """What a client asks for.

    ``server_name``: host name in lower case without the dot at the end, "" where none is given, or
    none that could be a host's name. ``ticket``: content of the session_ticket extension, None
    without one (RFC 5077). ``psk_identities``: of pre_shared_key. ``versions``: those of
    supported_versions, else the legacy version alone, as numbers (0x0304 is TLS 1.3).
    """

    __slots__ = ("alpn", "psk_identities", "server_name", "session_id", "ticket", "versions")

    def __init__(self, session_id: bytes, version: int) -> None:
        self.session_id = session_id
        self.versions: tuple[int, ...] = (version,)
        self.server_name = ""
        self.ticket: bytes | None = None
        self.psk_identities: tuple[bytes, ...] = ()
        self.alpn: tuple[bytes, ...] = ()


def is_whole(data: bytes) -> bool:
    """Whether ``data`` begins with one whole record that a whole ClientHello seems to be in: for
    who has nothing to choose, and leaves it to OpenSSL what is inside."""
    if len(data) < 9 or not data.startswith(b"\x16\x03") or data[5] != _CLIENT_HELLO:
        return False
    length = int.from_bytes(data[3:5], "big")
    return 4 + int.from_bytes(data[6:9], "big") <= length <= len(data) - 5


def parse_hello(data: bytes) -> ClientHello | None:
    """The ClientHello at the start of ``data``; None while it is incomplete.

    Raises HelloError as soon as it is certain that none will come of it.
    """
    if len(data) < 5:
        _check_start(data)
        return None
    kind, major, _, length = _RECORD.unpack_from(data)
    if kind != _HANDSHAKE or major != 3 or not 0 < length <= _MAX_FRAGMENT:
        _check_start(data)
        raise HelloError("malformed")
    fragment = data[5 : 5 + length]
    if len(fragment) < 4:
        message = _joined(data)
        if message is None:
            return None
    else:
        if fragment[0] != _CLIENT_HELLO:
            raise HelloError("malformed")
        size = int.from_bytes(fragment[1:4], "big")
        if size > MAX_HELLO:
            raise HelloError("too-large")
        if len(fragment) >= 4 + size:
            message = fragment[4 : 4 + size]
        else:
            joined = _joined(data)
            if joined is None:
                return None
            message = joined
    try:
        return _parse(message)
    except (StructError, IndexError):
        raise HelloError("malformed") from None


def _check_start(data: bytes) -> None:
    """Raise HelloError if no record of a handshake begins like this."""
    if data and data[0] != _HANDSHAKE:
        raise HelloError("http" if _METHOD.match(data) else "malformed")
    if len(data) > 1 and data[1] != 3:
        raise HelloError("malformed")


def _joined(data: bytes) -> bytes | None:
    """The message out of several records; None while it is incomplete."""
    parts: list[bytes] = []
    have = pos = wanted = 0
    while True:
        if len(data) - pos < 5:
            return None
        kind, major, _, length = _RECORD.unpack_from(data, pos)
        if kind != _HANDSHAKE or major != 3 or not 0 < length <= _MAX_FRAGMENT:
            raise HelloError("malformed")
        if len(parts) == _MAX_RECORDS:
            raise HelloError("too-large")
        part = data[pos + 5 : pos + 5 + length]
        parts.append(part)
        have += len(part)
        pos += 5 + length
        if not wanted and have >= 4:
            start = b"".join(parts)
            if start[0] != _CLIENT_HELLO:
                raise HelloError("malformed")
            wanted = 4 + int.from_bytes(start[1:4], "big")
            if wanted > 4 + MAX_HELLO:
                raise HelloError("too-large")
        if wanted and have >= wanted:
            return b"".join(parts)[4:wanted]
        if len(part) < length:
            return None


def _parse(body: bytes) -> ClientHello:
    """The body of the message. IndexError, struct.error: it ends too early."""
    size = len(body)
    version = _u16(body)[0]
    pos = 35 + body[34]
    if body[34] > 32 or pos > size:
        raise HelloError("malformed")
    hello = ClientHello(body[35:pos], version)
    suites = _u16(body, pos)[0]
    pos += 2 + suites
    if not suites or suites % 2:
        raise HelloError("malformed")
    methods = body[pos]
    pos += 1 + methods
    if not methods or pos > size:
        raise HelloError("malformed")
    if pos == size:
        return hello  # TLS 1.2 allows a hello without extensions
    if pos + 2 + _u16(body, pos)[0] != size:
        raise HelloError("malformed")
    pos += 2
    kinds: list[int] = []
    while pos < size:
        kind, length = _extension(body, pos)
        start = pos + 4
        pos = start + length
        kinds.append(kind)
        if kind in _READERS:
            _READERS[kind](hello, body[start:pos])
    # Looked at once, here: what a reader has made of the end of the message is dropped then.
    if pos != size or len(set(kinds)) != len(kinds):
        raise HelloError("malformed")
    return hello


def _read_name(hello: ClientHello, content: bytes) -> None:
    """RFC 6066 §3: u16-prefixed list of u8 type (0: host_name) and u16-prefixed name."""
    if len(content) < 5 or _u16(content)[0] != len(content) - 2 or content[2]:
        raise HelloError("malformed")
    if not 0 < _u16(content, 3)[0] == len(content) - 5:
        raise HelloError("malformed")
    name = content[5:].lower()
    if name.endswith(b"."):
        name = name[:-1]
    if len(name) <= 253 and _NAME.fullmatch(name):
        hello.server_name = name.decode("ascii")


def _read_alpn(hello: ClientHello, content: bytes) -> None:
    """RFC 7301 §3.1: u16-prefixed list of u8-prefixed names."""
    if _u16(content)[0] != len(content) - 2 or len(content) < 4:
        raise HelloError("malformed")
    names = []
    pos = 2
    while pos < len(content):
        end = pos + 1 + content[pos]
        if end > len(content) or not content[pos]:
            raise HelloError("malformed")
        names.append(content[pos + 1 : end])
        pos = end
    hello.alpn = tuple(names)


def _read_ticket(hello: ClientHello, content: bytes) -> None:
    hello.ticket = content


def _read_psk(hello: ClientHello, content: bytes) -> None:
    """RFC 8446 §4.2.11: u16-prefixed identities (u16-prefixed identity, u32 age), then binders."""
    end = 2 + _u16(content)[0]
    if end == 2 or end > len(content):
        raise HelloError("malformed")
    identities = []
    pos = 2
    while pos < end:
        stop = pos + 2 + _u16(content, pos)[0]
        identities.append(content[pos + 2 : stop])
        pos = stop + 4
    if pos != end:
        raise HelloError("malformed")
    hello.psk_identities = tuple(identities)


def _read_versions(hello: ClientHello, content: bytes) -> None:
    """RFC 8446 §4.2.1: u8-prefixed list of u16."""
    count = content[0]
    if count != len(content) - 1 or not count or count % 2:
        raise HelloError("malformed")
    hello.versions = unpack(f">{count // 2}H", content[1:])


_READERS = {
    _SERVER_NAME: _read_name,
    _ALPN: _read_alpn,
    _SESSION_TICKET: _read_ticket,
    _PRE_SHARED_KEY: _read_psk,
    _VERSIONS: _read_versions,
}
