"""Requests in uwsgi packets as a gateway reads them: strict, in one pass, remembered within bounds.

Front servers send the same variables again and again. What they put behind SERVER_PROTOCOL is the
same for all requests of a connection: it is remembered under its exact bytes. What stands before it
differs in its values, but not in its names.
"""

from __future__ import annotations

import re

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

_MAX_KEY = 255  # longer values are no keys (uWSGI)
_REMEMBERED = 4096  # bytes of a packet or tail that is remembered
_LAYOUT = 1024  # bytes of a head whose layout is remembered
_CHANCES = 4
_TAILS, _KEYS = 4096, 4096  # how many

_KEY, _HOST, _NAME = b"UWSGI_FASTROUTER_KEY", b"HTTP_HOST", b"SERVER_NAME"
_LENGTH, _METHOD, _CLIENT = b"CONTENT_LENGTH", b"REQUEST_METHOD", b"REMOTE_ADDR"
_CODING, _UPGRADE = b"HTTP_TRANSFER_ENCODING", b"HTTP_UPGRADE"
_STEERING = frozenset((_KEY, _HOST, _NAME, _LENGTH, _METHOD, _CLIENT, _CODING, _UPGRADE))
_SIZES = frozenset(map(len, _STEERING))
_ROUTING = frozenset((_KEY, _HOST, _NAME))
_ROUTING_ONLY = _ROUTING | {_CLIENT}
_HEAD_ONLY = frozenset((_METHOD, _LENGTH))
# Where the tail begins: behind what differs from request to request of one connection, in the order
# of nginx's uwsgi_params, of uWSGI's own router and of others.
_MARK = b"\x0f\x00SERVER_PROTOCOL"
# A key is looked up, becomes part of paths and log lines, and is handed to functions of the
# operator: nothing but visible ASCII.
_VISIBLE = re.compile(rb"[\x21-\x7e]+")
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]{2,45}")


def with_modifiers(packet: bytes, modifier1: int, modifier2: int) -> bytes:
    """The packet with these modifiers; the variables are untouched."""
    return b"%c%b%c%b" % (modifier1, packet[1:3], modifier2, packet[4:])


class UwsgiRequest(RequestBlock):
    """One request as its packet says. It stands for both halves of a request head (`RequestLine`
    and `RequestBlock`): what HTTP says beside that is constant here.

    ``raw``: the packet. ``key``: routing key in lower case, "" without one. ``length``: body bytes
    that follow the packet. ``raw_session``: no length but a transfer coding: what follows is passed
    on as it comes, until one side closes. ``simple``, ``plain``: no body, no upgrade, not HEAD.
    ``upgrade``: protocols offered, b"" without. Shared between requests: never changed.
    """

    __slots__ = ("_found", "_items", "method", "plain", "raw_session", "repeatable")

    # Of the uwsgi protocol, whatever the client speaks with the front server.
    minor = 1
    authority = line = forward = variables = b""
    x_for = x_proto = forwarded_in = b""
    expect = close = keep_alive = gzip = False

    def __init__(
        self, raw: bytes, key: str, method: bytes, size: bytes, found: dict[bytes, bytes]
    ) -> None:
        """A request that is nothing but a packet, or has a body of ``size``; see ``_special``.
        ``found``: what the routing variables and REMOTE_ADDR say."""
        self.raw = raw
        self.key = key
        self.method = method
        self._found = found
        self._items: list[tuple[bytes, bytes]] | None = None
        self.host = found.get(_HOST)
        self.repeatable = method in IDEMPOTENT
        self.raw_session = False
        self.upgrade = b""
        if size:
            self.length = content_length(size)
            self.simple = not self.length
        else:
            self.length = 0
            self.simple = True
        self.plain = self.simple and method != b"HEAD"

    def _special(self, *, sized: bool) -> None:
        """What becomes a tunnel: bodies of no known length, and upgrades."""
        found = self._found
        self.raw_session = not sized and bool(found.get(_CODING))
        if not self.length:
            self.upgrade = _offered(found.get(_UPGRADE, b""))
        if self.raw_session or self.upgrade:
            self.simple = self.plain = False

    def packet(self, modifier1: int, modifier2: int) -> bytes:
        """The packet with other modifiers; the variables are untouched."""
        raw = self.raw
        if raw[0] == modifier1 and raw[3] == modifier2:
            return raw
        return with_modifiers(raw, modifier1, modifier2)

    @property
    def client(self) -> bytes:
        """REMOTE_ADDR where it is an address, else b""."""
        remote = self._found.get(_CLIENT, b"")
        return remote if _ADDRESS.fullmatch(remote) else b""

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
        """REQUEST_URI as received; PATH_INFO of a client that sends nothing else."""
        return self.get(b"REQUEST_URI") or self.get(b"PATH_INFO")

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


class _Layout:
    """Where the variables of a head lie. ``mask``, ``fixed``: all of it but the packet's header and
    the values, as integers (little-endian). ``method``, ``size``: where two values are, nowhere if
    they are not. ``chances``: heads of this length in a row that may be laid out differently."""

    __slots__ = ("chances", "fixed", "mask", "method", "size")

    def __init__(self, head: bytes, places: list[tuple[bytes, int, int]]) -> None:
        mask = bytearray(b"\0\0\0\0" + b"\xff" * (len(head) - 4))
        at = {_METHOD: (0, 0), _LENGTH: (0, 0)}
        for name, start, stop in places:
            mask[start:stop] = bytes(stop - start)
            if name in at:
                at[name] = (start, stop)
        self.chances = _CHANCES
        self.mask = int.from_bytes(mask, "little")
        self.fixed = int.from_bytes(head, "little") & self.mask
        self.method = slice(*at[_METHOD])
        self.size = slice(*at[_LENGTH])


class _Tail:
    """What a tail says. ``key``: the routing key if the tail decides it and has no other influence
    on the request, else "". """

    __slots__ = ("found", "key")

    def __init__(self, found: dict[bytes, bytes], key: str) -> None:
        self.found = found
        self.key = key if found.keys() <= _ROUTING_ONLY else ""


class PacketReader:
    """Reads packets and remembers parts of them, within bounds."""

    __slots__ = ("_keys", "_known", "_layouts", "_tails")

    def __init__(self) -> None:
        self._tails: LineMemo[_Tail] = LineMemo(_TAILS)
        self._known = self._tails.entries
        self._layouts: dict[int, _Layout] = {}  # length of the head -> the last one of that length
        self._keys: dict[bytes, str] = {}

    def glance(self, data: bytes) -> str:
        """The routing key, if ``data`` is one whole plain packet whose tail is known and whose head
        is laid out as another of that length was; "": `read` has to look.

        Requests whose paths have the same length have their variables in the same places. So the
        head is compared with that other one in everything but the values, all bytes at once; where
        it is the same, the values are where they were.
        """
        cut = data.find(_MARK, 4)
        layout = self._layouts.get(cut)
        if layout is None:
            return ""
        tail = self._known.get(data[cut:])
        if tail is None or len(data) != 4 + data[1] + (data[2] << 8):
            return ""
        head = data[:cut]
        if int.from_bytes(head, "little") & layout.mask != layout.fixed:
            layout.chances -= 1
            if layout.chances < 0:
                del self._layouts[cut]
            return ""
        if head[layout.size] or head[layout.method] == b"HEAD":
            return ""
        return tail.key

    def read(self, packet: bytes) -> UwsgiRequest:
        """The meaning of one whole packet (header and variables, nothing behind).

        Raises Http1Error: BAD_MESSAGE for variables that do not fill the packet exactly or have no
        name, BAD_FRAMING for a CONTENT_LENGTH that is not a number or said twice differently,
        BAD_HOST for a key that is not visible ASCII.
        """
        found: dict[bytes, bytes] = {}
        try:
            self._walk(packet, 4, found)
        except IndexError:
            raise _malformed("they end inside a variable") from None
        size = found.get(_LENGTH, b"")
        request = UwsgiRequest(
            packet, self._key(found), found.get(_METHOD, b""), size, found
        )
        if _CODING in found or _UPGRADE in found:
            request._special(sized=bool(size))
        return request

    def _walk(self, packet: bytes, pos: int, found: dict[bytes, bytes]) -> None:
        """All variables from ``pos`` on. IndexError: they do not end where the packet ends."""
        cut = packet.find(_MARK, pos)
        if cut >= 0:
            pos = _variables(packet, pos, cut, found)
            if pos == cut:  # else the mark was inside a value
                if cut <= _LAYOUT and cut not in self._layouts and _only_head(found):
                    self._learn(packet[:cut])
                self._tail(packet[cut:], found)
                return
        if _variables(packet, pos, len(packet), found) != len(packet):
            raise IndexError

    def _learn(self, head: bytes) -> None:
        places = _places(head)
        names = [name for name, _, _ in places]
        if names.count(_LENGTH) < 2 and names.count(_METHOD) < 2:
            self._layouts[len(head)] = _Layout(head, places)

    def _tail(self, data: bytes, found: dict[bytes, bytes]) -> None:
        tail = self._known.get(data)
        if tail is None:
            known: dict[bytes, bytes] = {}
            if _variables(data, 0, len(data), known) != len(data):
                raise IndexError
            try:
                key = self._key(known)
            except Http1Error:
                key = ""  # the head may have a better one
            tail = _Tail(known, key)
            if len(data) <= _REMEMBERED and self._tails.worth_keeping(data):
                self._known[data] = tail
        for name, value in tail.found.items():
            _note(found, name, value)

    def _key(self, found: dict[bytes, bytes]) -> str:
        value = found.get(_KEY) or found.get(_HOST) or found.get(_NAME)
        if not value:
            return ""
        key = self._keys.get(value)
        if key is None:
            if _VISIBLE.fullmatch(value) is None:
                raise Http1Error(Fault.BAD_HOST, f"routing key {value[:60]!r}")
            key = value.lower().decode("ascii")
            if len(self._keys) >= _KEYS:
                self._keys.clear()
            self._keys[value] = key
        return key


def _only_head(found: dict[bytes, bytes]) -> bool:
    """Whether a head steers by nothing but what a layout takes out of it."""
    return found.keys() <= _HEAD_ONLY


def _places(head: bytes) -> list[tuple[bytes, int, int]]:
    """``(name, start and stop of its value)`` of all variables of a packet's beginning, which is
    known to be whole ones."""
    places = []
    pos = 4
    while pos < len(head):
        stop = pos + 2 + int.from_bytes(head[pos : pos + 2], "little")
        start = stop + 2
        value = start + int.from_bytes(head[stop:start], "little")
        places.append((head[pos + 2 : stop], start, value))
        pos = value
    return places


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
