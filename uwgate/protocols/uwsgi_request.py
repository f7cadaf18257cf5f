"""Requests in uwsgi packets as a gateway reads them: strict, in one pass, remembered within bounds.

Front servers send the same variables again and again. A whole packet that comes a second time is
remembered, and so are its tails: from SERVER_PROTOCOL on, where most front servers are through with
what differs from request to request of one connection, and from the first ``HTTP_…`` on, which is
the same for all connections of a browser.
"""

from __future__ import annotations

import re
from typing import Any, cast

from uwgate.protocols.http1 import (
    VALUE,
    Fault,
    Http1Error,
    LineMemo,
    content_length,
    upgrade_protocols,
)
from uwgate.protocols.http1_request import IDEMPOTENT, RequestBlock
from uwgate.protocols.uwsgi import parse_packet

MAX_PACKET = 4 + 65535
"""Longest packet in bytes: the header and what the u16 ``datasize`` can say."""

_MAX_KEY = 255  # longer values are no keys (uWSGI)
_REMEMBERED = 4096  # bytes of a packet or tail that is remembered
_LAYOUT = 1024  # bytes of a piece whose layout is remembered
_CHANCES = 4  # pieces in a row that may have another layout until it is forgotten
_PACKETS, _TAILS, _KEYS = 1024, 1024, 4096  # how many

_KEY, _HOST, _NAME = b"UWSGI_FASTROUTER_KEY", b"HTTP_HOST", b"SERVER_NAME"
_LENGTH, _METHOD, _CLIENT = b"CONTENT_LENGTH", b"REQUEST_METHOD", b"REMOTE_ADDR"
_CODING, _UPGRADE = b"HTTP_TRANSFER_ENCODING", b"HTTP_UPGRADE"
_STEERING = frozenset((_KEY, _HOST, _NAME, _LENGTH, _METHOD, _CLIENT, _CODING, _UPGRADE))
_SIZES = frozenset(map(len, _STEERING))
_ROUTING = frozenset((_KEY, _HOST, _NAME))
# Where tails begin that are worth remembering: what depends on the client's connection, and what
# depends on the client alone. ``(mark, bytes before it that belong to the variable)``
_MARKS = ((b"\x0f\x00SERVER_PROTOCOL", 0), (b"HTTP_", 2))
# A key is looked up, becomes part of paths and log lines, and is handed to functions of the
# operator: nothing but visible ASCII.
_VISIBLE = re.compile(rb"[\x21-\x7e]+")
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]{2,45}")


class UwsgiRequest(RequestBlock):
    """One request as its packet says. It stands for both halves of a request head (`RequestLine`
    and `RequestBlock`): what HTTP says beside that is constant here.

    ``raw``: the packet. ``key``: routing key in lower case, "" without one. ``length``: body bytes
    that follow the packet. ``raw_session``: no length but a transfer coding: what follows is passed
    on as it comes, until one side closes. ``simple``, ``plain``: no body, no upgrade, not HEAD.
    ``upgrade``: protocols offered, b"" without. Shared between requests: never changed.
    """

    __slots__ = ("_items", "_remote", "method", "plain", "raw_session", "repeatable")

    # Of the uwsgi protocol, whatever the client speaks with the front server.
    minor = 1
    authority = line = forward = variables = b""
    x_for = x_proto = forwarded_in = b""
    expect = close = keep_alive = gzip = False

    def __init__(self, raw: bytes, found: dict[bytes, bytes], key: str) -> None:
        self.raw = raw
        self.key = key
        self.host = found.get(_HOST)
        self.method = method = found.get(_METHOD, b"")
        self._remote = found.get(_CLIENT, b"")
        self._items: list[tuple[bytes, bytes]] | None = None
        self.repeatable = method in IDEMPOTENT
        self.length = 0
        self.raw_session = False
        self.upgrade = b""
        self.simple = True
        size = found.get(_LENGTH)
        if size or _CODING in found or _UPGRADE in found:
            self.length = content_length(size) if size else 0
            self.raw_session = not size and bool(found.get(_CODING))
            if not self.length:
                self.upgrade = _offered(found.get(_UPGRADE, b""))
            self.simple = not (self.length or self.raw_session or self.upgrade)
        self.plain = self.simple and method != b"HEAD"

    @property
    def client(self) -> bytes:
        """REMOTE_ADDR where it is an address, else b""."""
        return self._remote if _ADDRESS.fullmatch(self._remote) else b""

    @property
    def items(self) -> list[tuple[bytes, bytes]]:
        """All variables in wire order."""
        if self._items is None:
            packet = parse_packet(self.raw)
            assert packet is not None
            self._items = packet.variables
        return self._items

    def get(self, name: bytes) -> bytes:
        """The last value of a variable, b"" without one."""
        for key, value in reversed(self.items):
            if key == name:
                return value
        return b""

    @property
    def target(self) -> bytes:
        """REQUEST_URI as received."""
        return self.get(b"REQUEST_URI")

    @property
    def protocol(self) -> bytes:
        """SERVER_PROTOCOL as received."""
        return self.get(b"SERVER_PROTOCOL")


def _offered(value: bytes) -> bytes:
    """What an Upgrade value offers that may be taken up; h2c is a way around the gateway."""
    if VALUE.fullmatch(value) is None:
        return b""
    protocols = [name.split(b"/")[0] for name in upgrade_protocols(value)]
    return b"" if b"h2c" in protocols or b"h2" in protocols else value


class Layouts:
    """Where the variables of a piece lie, for pieces of the same length as one read before.

    Requests whose paths have the same length have their variables in the same places. So a piece is
    compared with the last one of its length in everything but the values, all bytes at once; where
    it is the same, the values are where they were.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # length -> [chances left, mask, masked bytes, (name, start, stop)…]
        self._known: dict[int, list[Any]] = {}

    def read(self, data: bytes, pos: int, end: int, found: dict[bytes, bytes]) -> bool:
        """Put the steering variables of ``data[pos:end]`` into ``found``; False: not known."""
        size = end - pos
        known = self._known.get(size)
        if known is None:
            if size <= _LAYOUT:
                self._learn(data, pos, end)
            return False
        piece = data[pos:end]
        if int.from_bytes(piece, "little") & known[1] != known[2]:
            known[0] -= 1
            if known[0] < 0:
                del self._known[size]
            return False
        known[0] = _CHANCES
        for name, start, stop in known[3]:
            found[name] = piece[start:stop]
        return True

    def _learn(self, data: bytes, pos: int, end: int) -> None:
        piece = data[pos:end]
        mask = bytearray(b"\xff" * len(piece))
        parts = []
        places = _places(piece)
        for name, start, stop in places:
            mask[start:stop] = bytes(stop - start)
            if name in _STEERING:
                if stop - start > _MAX_KEY:
                    return
                parts.append((name, start, stop))
        if not places or len({name for name, _, _ in parts}) < len(parts):
            return  # malformed, or which one counts is not only a question of places
        bits = int.from_bytes(mask, "little")
        self._known[len(piece)] = [_CHANCES, bits, int.from_bytes(piece, "little") & bits, parts]


def _places(piece: bytes) -> list[tuple[bytes, int, int]]:
    """``(name, start and stop of its value)`` of all variables; none if they do not fill it."""
    places = []
    pos = 0
    try:
        while pos < len(piece):
            stop = pos + 2 + int.from_bytes(piece[pos : pos + 2], "little")
            start = stop + 2
            value = start + piece[stop] + (piece[stop + 1] << 8)
            places.append((piece[pos + 2 : stop], start, value))
            pos = value
    except IndexError:
        return []
    return places if pos == len(piece) and all(name for name, _, _ in places) else []


class PacketReader:
    """Reads packets and remembers the results, within bounds."""

    __slots__ = ("_keys", "_layouts", "_packets", "_tails", "known")

    def __init__(self) -> None:
        self._packets = LineMemo(_PACKETS)
        self._tails = LineMemo(_TAILS)
        self._layouts = Layouts()
        self._keys: dict[bytes, str] = {}
        self.known = cast("dict[bytes, UwsgiRequest]", self._packets.entries)
        """Packets seen twice or more, exactly as they came -> what they mean."""

    def read(self, packet: bytes) -> UwsgiRequest:
        """The meaning of one whole packet (header and variables, nothing behind).

        Raises Http1Error: BAD_MESSAGE for variables that do not fill the packet exactly or have no
        name, BAD_FRAMING for a CONTENT_LENGTH that is not a number or said twice differently,
        BAD_HOST for a key that is not visible ASCII.
        """
        known = self.known.get(packet)
        if known is not None:
            return known
        found: dict[bytes, bytes] = {}
        try:
            self._walk(packet, 4, 0, found)
        except IndexError:
            raise _malformed("they end inside a variable") from None
        key = found.get(_KEY) or found.get(_HOST) or found.get(_NAME)
        request = UwsgiRequest(packet, found, self._key(key) if key else "")
        if len(packet) <= _REMEMBERED and self._packets.worth_keeping(packet):
            self.known[packet] = request
        return request

    def _walk(self, data: bytes, pos: int, level: int, found: dict[bytes, bytes]) -> None:
        """All variables from ``pos`` on. IndexError: they do not end where the data ends."""
        end = len(data)
        while level < len(_MARKS):
            mark, offset = _MARKS[level]
            cut = data.find(mark, pos) - offset
            level += 1
            if cut >= pos:
                if not self._layouts.read(data, pos, cut, found):
                    pos = _variables(data, pos, cut, found)
                    if pos != cut:  # the mark was inside a value
                        continue
                self._tail(data[cut:], level, found)
                return
        if _variables(data, pos, end, found) != end:
            raise IndexError

    def _tail(self, tail: bytes, level: int, found: dict[bytes, bytes]) -> None:
        memo = self._tails
        known = cast("dict[bytes, bytes] | None", memo.entries.get(tail))
        if known is None:
            known = {}
            self._walk(tail, 0, level, known)
            if len(tail) <= _REMEMBERED and memo.worth_keeping(tail):
                memo.entries[tail] = known
        for name, value in known.items():
            if name in found:
                _note(found, name, value)
            else:
                found[name] = value

    def _key(self, value: bytes) -> str:
        key = self._keys.get(value)
        if key is None:
            if _VISIBLE.fullmatch(value) is None:
                raise Http1Error(Fault.BAD_HOST, f"routing key {value[:60]!r}")
            key = value.lower().decode("ascii")
            if len(self._keys) >= _KEYS:
                self._keys.clear()
            self._keys[value] = key
        return key


def _variables(data: bytes, pos: int, end: int, found: dict[bytes, bytes]) -> int:
    """Read variables from ``pos`` until ``end`` is reached or passed: the position behind the last.

    What steers the request goes to ``found``. IndexError if a length is not there.
    """
    while pos < end:
        size = data[pos]
        if data[pos + 1]:
            size += data[pos + 1] << 8
        elif not size:
            raise _malformed("one has no name")
        start = pos + 2
        stop = start + size
        length = data[stop]
        if data[stop + 1]:
            length += data[stop + 1] << 8
        value = stop + 2
        pos = value + length
        if size in _SIZES:
            name = data[start:stop]
            if name in _STEERING:
                _note(found, name, data[value:pos])
    return pos


def _note(found: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    """The last value counts, but the first SERVER_NAME (uWSGI), and only one CONTENT_LENGTH."""
    if name in _ROUTING and len(value) > _MAX_KEY:
        return
    if name in found:
        if name == _NAME:
            return
        if name == _LENGTH and value != found[name]:
            raise Http1Error(Fault.BAD_FRAMING, "CONTENT_LENGTH twice, and different")
    found[name] = value


def _malformed(how: str) -> Http1Error:
    return Http1Error(Fault.BAD_MESSAGE, f"uwsgi variables: {how}")
