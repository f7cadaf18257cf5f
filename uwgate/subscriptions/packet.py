"""The subscription datagram: one announcement (or withdrawal) of one node for one key.

On the wire (integers are little-endian)::

    offset  size  field
    0       1     modifier1, always 224
    1       2     length of the dictionary: that of the datagram less 4
    3       1     modifier2, the command: 0 subscribe, 1 unsubscribe
    4       n     items: u16 name length, name, u16 value length, value, repeated

The names are those of uWSGI 2.0.31, the ones that only its unreleased 2.1 sends (``backup``,
``vassal``, ``proto``, ``algo``, ``clear``), and ``via``, which is ours. Numbers are decimal text.
A signature is the last item (``sign``) and covers the items before it, without the header.

uWSGI forgives nearly everything here: any modifier, any length field, a broken end, numbers with
rubbish behind them, modifiers of 300. Nothing that it sends itself needs that, so none of it is
accepted: bytes that two readers understand differently are how a signature comes to cover
something else than what is used. Names that are not known are skipped, for newer clients.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address
from struct import Struct
from struct import error as StructError
from typing import Literal

__all__ = [
    "MAX_DATAGRAM",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "Announcement",
    "AnnouncementError",
    "decode",
    "encode",
]

MAX_DATAGRAM = 8192
"""Bytes of the longest datagram that is read or made; uWSGI reads 4096, and sends 80 to 800."""

SUBSCRIBE, UNSUBSCRIBE = 0, 1

_MODIFIER = 224
_MAX_ITEMS = 64  # a client with every item sends 20; a bound on the time that rubbish may take
_MAX_WEIGHT = 1_000_000
_MAX_NUMBER = 2**63 - 1
_MAX_TEXT = 255
_MAX_NOTIFY = 101  # what fits into sun_path where uWSGI sends acknowledgements

_HEAD = Struct("<BHB")
_U16 = Struct("<H")


class AnnouncementError(ValueError):
    """The datagram is not an announcement that may be used; ``str()`` is one line for a log.

    ``word``, for counters: ``too-long``, ``not-a-subscription``, ``malformed``, ``bad-key``,
    ``no-address``, ``bad-address``, ``bad-number``.
    """

    def __init__(self, word: str, text: str) -> None:
        super().__init__(f"{word}: {text}")
        self.word = word


@dataclass(slots=True)
class Announcement:
    """What one datagram says. Numbers are not negative; text is printable.

    ``key``: the routing key, a host (lower-case after `decode`) with an optional port and, behind
    the first ``/``, a mountpoint. ``address``: where the node is, as announced: ``HOST:PORT``,
    ``:PORT``, ``[IPV6]:PORT``, ``@ABSTRACT``, or a path. ``cores`` and ``load`` are for people.
    ``weight``: 1 to 1,000,000. ``backup``: level, 0 is used first. ``clear``: a 2.1 client says
    goodbye that way. ``sni_*``: files on this machine, an ``sni_ca`` may begin with ``!``.
    ``notify``: path of a unix datagram socket that waits for an acknowledgement. ``unix``: the
    sender's clock in seconds, 0 if it does not say. ``via``: instances that passed it on, ids
    separated by commas. ``signed``: after `decode`, the bytes that ``signature`` covers; both are
    empty, or neither.
    """

    key: str
    address: str = ""
    command: int = SUBSCRIBE
    modifier1: int = 0
    modifier2: int = 0
    cores: int = 0
    load: int = 0
    weight: int = 1
    backup: int = 0
    protocol: Literal["uwsgi", "http"] = "uwsgi"
    algo: str = ""
    vassal: str = ""
    clear: bool = False
    sni_key: str = ""
    sni_crt: str = ""
    sni_ca: str = ""
    notify: str = ""
    unix: int = 0
    signature: bytes = b""
    via: str = ""
    signed: bytes = b""


# --- grammar -----------------------------------------------------------------------------------

# A Host value and a path without spaces. uWSGI takes any bytes, the empty key too.
_KEY = re.compile(rb"[\x21-\x7e]{1,255}")

# Exactly what config.addresses.connecting takes, less what no node announces: zones of IPv6,
# "10.*:80", ports with leading zeros, spaces. In doubt text with a colon is TCP and a word is a
# path, except a bare number or IP address, which nobody means as a path (uWSGI core/socket.c).
_PORT = (
    rb"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_V4 = rb"(?:%(octet)b\.%(octet)b\.%(octet)b\.%(octet)b)?" % {b"octet": _OCTET}
_LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rb"%(v4)b:%(port)b"
    rb"|(?=.{1,107}\Z)\.{0,2}/[\x21-\x7e]*"  # sun_path has 108 bytes, one of them a NUL
    rb"|(?:@|\\0)[\x21-\x7e]{1,106}"  # NUL, name, NUL
    rb"|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]:%(port)b"
    rb"|(?![0-9.]+:)(?=.{1,253}:)(?:%(label)b\.)*%(label)b\.?:%(port)b"
    rb"|(?![0-9.]*\*?\Z|\\0)[\x21-\x2e\x30-\x39\x3b-\x3f\x41-\x7e][\x21-\x39\x3b-\x7e]{0,106}"
    % {b"v4": _V4, b"port": _PORT, b"label": _LABEL}
)

_VIA = re.compile(rb"[0-9a-z]{1,32}(?:,[0-9a-z]{1,32}){0,15}")

_KNOWN = frozenset(
    b"key address modifier1 modifier2 cores load weight backup proto algo vassal clear "
    b"sni_key sni_crt sni_ca notify unix sign via".split()
)
_COMMON = frozenset(b"key address modifier1 modifier2 cores load weight".split())


def _shown(value: bytes) -> str:
    """Untrusted bytes for a log line."""
    return repr(value if len(value) <= 64 else value[:61] + b"...")[1:]


def _number(name: str, value: bytes, limit: int = _MAX_NUMBER) -> int:
    # isdigit() of bytes is [0-9]+ and nothing else.
    if not value.isdigit() or len(value) > 20 or (number := int(value)) > limit:
        raise AnnouncementError("bad-number", f"{name} is {_shown(value)}; expected 0 to {limit}")
    return number


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if len(value) > _MAX_TEXT or not text.isprintable():
        raise AnnouncementError(
            "malformed", f"{name} is {_shown(value)}; expected at most 255 bytes of printable text"
        )
    return text


def _key(value: bytes) -> str:
    if not _KEY.fullmatch(value):
        raise AnnouncementError(
            "bad-key", f"the key is {_shown(value)}; expected 1 to 255 visible ASCII characters"
        )
    text = value.decode("ascii")
    if "/" not in text:
        return text.lower()
    host, slash, path = text.partition("/")
    return host.lower() + slash + path


def _address(value: bytes) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is not None:
        if match.lastgroup is None:
            return value.decode("ascii")
        try:
            IPv6Address(match["v6"].decode("ascii"))
        except ValueError:
            pass
        else:
            return value.decode("ascii")
    if not value:
        raise AnnouncementError("no-address", "the packet says no address of the node")
    raise AnnouncementError(
        "bad-address", f"the address is {_shown(value)}; expected HOST:PORT, @NAME or a path"
    )


# --- decoding ----------------------------------------------------------------------------------


def _items(datagram: bytes, position: int, limit: int) -> dict[bytes, bytes]:
    """The items from ``position`` to the end, ``limit`` at most."""
    items: dict[bytes, bytes] = {}
    u16 = _U16.unpack_from
    size = len(datagram)
    name = b""
    try:
        while position < size:
            start = position + 2
            stop = start + u16(datagram, position)[0]
            name = datagram[start:stop]
            start = stop + 2
            position = start + u16(datagram, stop)[0]
            if name in items and name in _KNOWN:
                raise AnnouncementError("malformed", f"{_shown(name)} is there twice")
            items[name] = datagram[start:position]
            limit -= 1
            if limit < 0:
                raise AnnouncementError("malformed", f"there are more than {_MAX_ITEMS} items")
    except StructError:
        position = -1
    if position != size:
        raise AnnouncementError("malformed", "the items do not end where the datagram does")
    if b"" in items:
        raise AnnouncementError("malformed", "an item has no name")
    if b"sign" in items and name != b"sign":
        raise AnnouncementError("malformed", "the signature is not the last item")
    return items


# Items of printable text; each is the attribute of that name.
_TEXTS = {name.encode(): name for name in ("algo", "vassal", "sni_key", "sni_crt", "sni_ca")}


def _decode_rest(
    announcement: Announcement, items: dict[bytes, bytes], datagram: bytes
) -> None:
    """The items that a plain 2.0 packet does not have."""
    for name, value in items.items():
        if name in _COMMON:
            continue
        if name in _TEXTS:
            setattr(announcement, _TEXTS[name], _text(_TEXTS[name], value))
        elif name == b"notify":
            text = _text("notify", value)
            announcement.notify = text if len(value) <= _MAX_NOTIFY else ""
        elif name == b"unix":
            announcement.unix = _number("unix", value)
        elif name == b"sign":
            if not value:
                raise AnnouncementError("malformed", "the signature is empty")
            announcement.signature = value
            announcement.signed = datagram[4 : -8 - len(value)]
        elif name == b"backup":
            announcement.backup = _number("backup", value)
        elif name == b"proto":
            if value[:1] not in b"hHuU":  # b"" included: as if it was not there
                raise AnnouncementError("malformed", f"proto is {_shown(value)}; expected http")
            announcement.protocol = "http" if value[:1] in (b"h", b"H") else "uwsgi"
        elif name == b"clear":
            announcement.clear = _number("clear", value) != 0
            if announcement.clear:
                announcement.command = UNSUBSCRIBE
        elif name == b"via":
            if not _VIA.fullmatch(value):
                raise AnnouncementError(
                    "malformed", f"via is {_shown(value)}; expected 1 to 16 instance ids"
                )
            announcement.via = value.decode("ascii")


# The first seven items as every uWSGI sends them. What can be matched is valid, except the lengths
# of the first two, which are compared, and of the numbers, which are looked up with their length.
_NUMERAL = rb"([\x01-\x03]\x00[0-9]{1,3})"
_USUAL = re.compile(
    rb"\x03\x00key.\x00([\x21-\x40\x5b-\x7e]{1,255})"  # nothing to lower
    rb"\x07\x00address.\x00(%(v4)b:%(port)b|/[\x21-\x7e]{1,106})"
    rb"\x09\x00modifier1%(number)b\x09\x00modifier2%(number)b\x05\x00cores%(number)b"
    rb"\x04\x00load%(number)b\x06\x00weight%(number)b"
    % {b"v4": _V4, b"port": _PORT, b"number": _NUMERAL},
    re.DOTALL,
)
_NUMERALS = {_U16.pack(len(b"%d" % n)) + b"%d" % n: n for n in range(256)}


def _usual(datagram: bytes, command: int, found: re.Match[bytes]) -> Announcement | None:
    """The announcement of a datagram that begins as most do; None if it only looks like it."""
    key, address, modifier1, modifier2, cores, load, weight = found.groups()
    if datagram[9] != len(key) or datagram[20 + len(key)] != len(address):
        return None
    try:
        return Announcement(
            key.decode("ascii"),
            address.decode("ascii"),
            command,
            _NUMERALS[modifier1],
            _NUMERALS[modifier2],
            _NUMERALS[cores],
            _NUMERALS[load],
            _NUMERALS[weight] or 1,
        )
    except KeyError:
        return None


def _command(datagram: bytes) -> int:
    """Checks the header, returns the command."""
    size = len(datagram)
    if size > MAX_DATAGRAM:
        raise AnnouncementError("too-long", f"{size} bytes; {MAX_DATAGRAM} are the most")
    if size < 4:
        raise AnnouncementError("malformed", f"{size} bytes are not even a header")
    modifier, length, command = _HEAD.unpack_from(datagram)
    if modifier != _MODIFIER:
        raise AnnouncementError("not-a-subscription", f"modifier1 is {modifier}, expected 224")
    if length != size - 4:
        raise AnnouncementError("malformed", f"the header says {length} bytes, {size - 4} follow")
    if command > UNSUBSCRIBE:
        raise AnnouncementError("malformed", f"the command is {command}; expected 0 or 1")
    return int(command)


def decode(datagram: bytes) -> Announcement:
    """Read one datagram; AnnouncementError unless all of it is understood.

    A packet of ``clear=1`` withdraws the node: uWSGI means "forget the address, keep the vassal",
    and there are no vassals here.
    """
    command = _command(datagram)
    found = _USUAL.match(datagram, 4)
    if found is not None:
        announcement = _usual(datagram, command, found)
        if announcement is not None:
            if found.end() == len(datagram):
                return announcement
            items = _items(datagram, found.end(), _MAX_ITEMS - len(_COMMON))
            if items.keys().isdisjoint(_COMMON):
                _decode_rest(announcement, items, datagram)
                return announcement
    items = _items(datagram, 4, _MAX_ITEMS)
    get = items.get
    announcement = Announcement(
        _key(get(b"key", b"")),
        _address(get(b"address", b"")),
        command,
        _number("modifier1", get(b"modifier1", b"0"), 255),
        _number("modifier2", get(b"modifier2", b"0"), 255),
        _number("cores", get(b"cores", b"0")),
        _number("load", get(b"load", b"0")),
        _number("weight", get(b"weight", b"1"), _MAX_WEIGHT) or 1,
    )
    _decode_rest(announcement, items, datagram)
    return announcement


# --- encoding ----------------------------------------------------------------------------------


def _item(name: str, value: str | bytes | int) -> bytes:
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    try:
        return b"%b%b%b%b" % (_U16.pack(len(name)), name.encode(), _U16.pack(len(data)), data)
    except StructError:
        raise AnnouncementError("too-long", f"{name} has {len(data)} bytes") from None


def encode(
    announcement: Announcement,
    *,
    sign: Callable[[bytes], bytes] | None = None,
    extended: bool = False,
) -> bytes:
    """The datagram of ``announcement``, byte for byte what uWSGI would send.

    Items that 2.0.31 does not know are left out while they have their default; ``extended`` says
    ``backup`` all the same, as 2.1 does. The order is that of 2.0.31, with the items of 2.1 where
    2.1 has them. ``sign``: bytes in, signature out (`signing.Signer`); ``unix`` is sent if it is
    not 0 or there is a signature. ``signature`` and ``signed`` are not looked at: a signature
    covers bytes that cannot be made again from what was decoded.

    Raises AnnouncementError for what `decode` would not take, and what ``sign`` raises.
    """
    a = announcement
    if a.command not in (SUBSCRIBE, UNSUBSCRIBE):
        raise AnnouncementError("malformed", f"the command is {a.command}; expected 0 or 1")
    parts = [_item("key", a.key), _item("address", a.address)]
    for name in ("modifier1", "modifier2", "cores", "load", "weight"):
        parts.append(_item(name, getattr(a, name)))
    if a.backup or extended:
        parts.append(_item("backup", a.backup))
    for name in ("vassal", "sni_key", "sni_crt", "sni_ca"):
        if text := getattr(a, name):
            parts.append(_item(name, text))
    if a.protocol != "uwsgi":
        parts.append(_item("proto", a.protocol))
    for name in ("algo", "notify"):
        if text := getattr(a, name):
            parts.append(_item(name, text))
    if a.clear:
        parts.append(_item("clear", 1))
    if a.via:
        parts.append(_item("via", a.via))
    if a.unix or sign is not None:
        parts.append(_item("unix", a.unix))
    data = b"".join(parts)
    if sign is not None:
        data += _item("sign", sign(data))
    if 4 + len(data) > MAX_DATAGRAM:
        raise AnnouncementError("too-long", f"{4 + len(data)} bytes; {MAX_DATAGRAM} are the most")
    datagram = _HEAD.pack(_MODIFIER, len(data), a.command) + data
    decode(datagram)  # one grammar for what comes in and what goes out
    return datagram
