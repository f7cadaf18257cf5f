"""Random and mutated datagrams: AnnouncementError or the right value, and soon.

The oracle reads a datagram as slowly and plainly as possible, one path for everything; addresses
are read by ``config.addresses``, which later has to connect to them.
"""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packet_tools import PLAIN, captured, datagram, framed, item, plain

from uwgate.config.addresses import connecting
from uwgate.subscriptions.packet import MAX_DATAGRAM, Announcement, AnnouncementError, decode

SEEDS = [
    captured(name)
    for name in (
        "subscribe_basic",
        "subscribe_port_key_modifier1",
        "subscribe2_unix_address",
        "subscribe2_weight_sni",
        "subscribe_notify",
        "subscribe2_signed_sha256",
        "unsubscribe_signed_sha1",
        "v21_subscribe2_all_keys",
        "v21_clear_on_shutdown",
    )
] + [
    plain(key="Host.Example:80/Mount", address="[::1]:3031", via="a,b", notify="/n"),
    plain(address="node.example:3031", weight="1000", load="99999", colour="red"),
    datagram(*reversed(PLAIN.items())),
]
NUMBERS = {
    "modifier1": 255,
    "modifier2": 255,
    "cores": 2**63 - 1,
    "load": 2**63 - 1,
    "weight": 1_000_000,
    "backup": 2**63 - 1,
    "clear": 2**63 - 1,
    "unix": 2**63 - 1,
}
TEXTS = ("algo", "vassal", "sni_key", "sni_crt", "sni_ca", "notify")
DIGITS = frozenset(b"0123456789")
VISIBLE = frozenset(range(0x21, 0x7F))


def split(data: bytes) -> list[bytes]:
    """Length-prefixed strings that fill ``data``; IndexError if they do not."""
    strings = []
    while data:
        size = data[0] + 256 * data[1]
        if len(data) < 2 + size:
            raise IndexError
        strings.append(data[2 : 2 + size])
        data = data[2 + size :]
    return strings


def usable(address: bytes) -> bool:
    """What `connecting` takes, less zones, patterns, ports with a leading zero."""
    if not set(address) <= VISIBLE or len(address) > 255:
        return False
    text = address.decode()
    try:
        endpoint = connecting(text)
    except ValueError:
        return False
    return endpoint.kind != "tcp" or (
        not {"%", "*"} & set(text) and not text.rpartition(":")[2].startswith("0")
    )


def oracle(data: bytes) -> Announcement | None:
    """What ``data`` says; None if it has to be refused."""
    if not 4 <= len(data) <= MAX_DATAGRAM or data[0] != 224 or data[3] > 1:
        return None
    if data[1] + 256 * data[2] != len(data) - 4:
        return None
    try:
        strings = split(data[4:])
    except IndexError:
        return None
    names = [name.decode("latin-1") for name in strings[::2]]
    known = {*NUMBERS, *TEXTS, "key", "address", "proto", "via", "sign"}
    of_known = [name for name in names if name in known]
    if len(strings) % 2 or "" in names or len(set(of_known)) < len(of_known) or len(names) > 64:
        return None
    if "sign" in names[:-1]:
        return None
    return values(dict(zip(names, strings[1::2], strict=True)), data)


def values(items: dict[str, bytes], data: bytes) -> Announcement | None:
    found: dict[str, object] = {"command": data[3]}
    key = items.get("key", b"")
    if not 1 <= len(key) <= 255 or not set(key) <= VISIBLE or not usable(items.get("address", b"")):
        return None
    slash = (key + b"/").index(b"/")
    found["key"] = (key[:slash].lower() + key[slash:]).decode()
    found["address"] = items["address"].decode()
    for name, limit in NUMBERS.items():
        text = items.get(name, b"1" if name == "weight" else b"0")
        if not 1 <= len(text) <= 20 or not set(text) <= DIGITS or int(text) > limit:
            return None
        found[name] = int(text)
    found["weight"] = found["weight"] or 1
    found["clear"] = found["clear"] != 0
    if found["clear"]:
        found["command"] = 1
    for name in TEXTS:
        try:
            found[name] = items.get(name, b"").decode()
        except UnicodeDecodeError:
            return None
        if len(items.get(name, b"")) > 255 or not str(found[name]).isprintable():
            return None
    if len(items.get("notify", b"")) > 101:
        found["notify"] = ""
    if items.get("proto", b"u")[:1] not in (b"", b"h", b"H", b"u", b"U"):
        return None
    found["protocol"] = "http" if items.get("proto", b"u")[:1] in (b"h", b"H") else "uwsgi"
    if "via" in items:
        ids = items["via"].decode("latin-1").split(",")
        if len(ids) > 16 or not all(
            1 <= len(name) <= 32 and set(name) <= set("0123456789abcdefghijklmnopqrstuvwxyz")
            for name in ids
        ):
            return None
        found["via"] = ",".join(ids)
    if "sign" in items:
        if not items["sign"]:
            return None
        found["signature"] = items["sign"]
        found["signed"] = data[4 : len(data) - 8 - len(items["sign"])]
    return Announcement(**found)  # type: ignore[arg-type]


def check(data: bytes) -> bool:
    """`decode` and the oracle agree; whether the datagram was accepted."""
    found: Announcement | None = None
    text = ""
    try:
        found = decode(data)
    except AnnouncementError as error:
        text = str(error)
    assert text.isprintable(), data
    assert found == oracle(data), data
    return found is not None


PIECES = [b"", b"\0", b"\xff", b"\xff\xff", b"0", b"256", b"/", b":", b"[", b"A", b"\n", b"\x01\0"]


def mutated(chance: random.Random) -> bytes:
    """A seed with one to three changes; mostly with a header that fits again."""
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 3)):
        where = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[where : where + 1] = bytes((chance.randrange(256),))
            case 1:
                data[where : where + chance.randrange(4)] = chance.choice(PIECES)
            case 2:
                del data[where:]
            case 3:
                other = chance.choice(SEEDS)
                data[where:] = other[chance.randrange(len(other)) :]
            case _ if where < len(data):
                data[where] ^= 1 << chance.randrange(8)
    if chance.randrange(8):
        return framed(bytes(data[4:]), command=chance.choice((0, 0, 0, 1)))
    return bytes(data)


def rebuilt(chance: random.Random) -> bytes:
    """Well-formed items with odd values: what mutation of lengths seldom reaches."""
    names = [*NUMBERS, *TEXTS, "proto", "via", "sign", "x"]
    items: dict[str, bytes | str] = dict(PLAIN)
    for name in chance.sample([*PLAIN, *names], chance.randrange(1, 5)):
        items[name] = chance.choice(
            [b"", b"0", b"1", b"255", b"256", b"01", b"a", b"Az/Z", b"http", b"a:1", b":1", b"@a",
             b"/a", b"9" * 19, b"9" * 20, b"a,b", b"\xc3\xa9", b"\x80", b"x" * 102, b"x" * 256,
             b"[::1]:80", b"[1::2::3]:80", b"10.0.0.1:80", b"10.0.0.256:80", b"1.2.3.4.:80",
             bytes((chance.randrange(256),)) + b"1", b"1" + bytes((chance.randrange(256),))]
        )  # fmt: skip
    if chance.randrange(4) == 0:
        del items[chance.choice(list(items))]
    order = list(items.items())
    if chance.randrange(3) == 0:
        chance.shuffle(order)
    return datagram(*order)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_datagrams(seed: int) -> None:
    chance = random.Random(seed)
    accepted = sum(check(mutated(chance)) for _ in range(8_000))
    assert 400 < accepted < 7_600  # else the mutations say nothing


@pytest.mark.parametrize("seed", range(2))
def test_odd_values(seed: int) -> None:
    chance = random.Random(seed)
    accepted = sum(check(rebuilt(chance)) for _ in range(10_000))
    assert 500 < accepted < 9_500


def test_random_bytes() -> None:
    chance = random.Random(7)
    for _ in range(10_000):
        data = chance.randbytes(chance.choice((0, 1, 3, 4, 5, 9, 20, 100)))
        check(data)
        check(framed(data, command=chance.randrange(2)))


@given(st.binary(max_size=400))
@example(b"")
def test_any_bytes(data: bytes) -> None:
    check(data)
    check(framed(data))
    check(framed(item(b"key", b"k") + item(b"address", data)))
    check(framed(item(b"address", b"/a") + item(b"key", data)))


@settings(max_examples=150)
@example("/")
@example("./")
@example("..")
@example("127.*:1")
@example("\\0:1")
@example("x" * 107 + "/")
@given(st.text("0123456789.:[]@/\\*_-aF%", max_size=24) | st.from_regex(r"\A[a.\-]{0,70}:[0-9]+\Z"))
def test_accepted_addresses_are_those_that_can_be_connected_to(text: str) -> None:
    check(plain(address=text))


ROOM = MAX_DATAGRAM - 300
LONG = {
    "many items": framed(item(b"a", b"") * (ROOM // 5)),
    "many items behind a plain packet": framed(plain()[4:] + item(b"a", b"") * (ROOM // 5)),
    "many names": framed(b"".join(item(b"%d" % n, b"") for n in range(ROOM // 8))),
    "key": plain(key="k" * ROOM),
    "key of slashes": plain(key="/" * ROOM),
    "digits": plain(load="9" * ROOM),
    "dots": plain(address="." * ROOM),
    "labels": plain(address="a." * (ROOM // 2) + ":80"),
    "label": plain(address="a" * ROOM + ":80"),
    "short labels": plain(address="a." * 126 + "-:80"),
    "dashes": plain(address="a-" * 126 + ":80"),
    "octets": plain(address="1." * 126 + ":80"),
    "colons": plain(address="[" + ":" * 45 + "]:80"),
    "path": plain(address="/" * ROOM),
    "via": plain(via="a," * (ROOM // 2)),
    "text": plain(algo="é" * (ROOM // 2)),
    "notify": plain(notify="/" * ROOM),
}


@pytest.mark.parametrize("name", LONG)
def test_time_is_bounded(name: str) -> None:
    """A millisecond is what 8 KB may cost; measured are 5 to 30 µs."""
    data = LONG[name]
    assert 250 < len(data) <= MAX_DATAGRAM or name == "colons"
    best = 1.0
    for _ in range(5):
        begin = time.perf_counter()
        check_only(data)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.001


def check_only(data: bytes) -> None:
    with pytest.raises(AnnouncementError):
        decode(data)
