"""Subscription datagrams: what uWSGI sends, byte for byte, and every way to be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packet_tools import FIXTURES, PLAIN, captured, datagram, framed, item, plain

from uwgate.subscriptions.packet import (
    MAX_DATAGRAM,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Announcement,
    AnnouncementError,
    decode,
    encode,
)

# The weights that these captures have on the wire are 0 where 1 is expected here (uWSGI: same).
CAPTURED = {
    "subscribe_basic": Announcement("example.com", "127.0.0.1:24061", cores=1),
    "unsubscribe_basic": Announcement(
        "example.com", "127.0.0.1:24061", command=UNSUBSCRIBE, cores=1
    ),
    "subscribe_port_key_modifier1": Announcement(
        "example.com:8000", "127.0.0.1:24061", modifier1=5, cores=1
    ),
    "subscribe_cores_weight": Announcement("multi.example", "127.0.0.1:24061", cores=6, weight=4),
    "subscribe2_unix_address": Announcement("app.example", "/run/uwsgi/app.sock", cores=1),
    "subscribe2_weight_sni": Announcement(
        "secure.example.com",
        "10.0.0.1:3031",
        modifier1=5,
        modifier2=3,
        cores=1,
        weight=7,
        sni_key="/etc/ssl/k.pem",
        sni_crt="/etc/ssl/c.pem",
        sni_ca="/etc/ssl/ca.pem",
    ),
    "subscribe_notify": Announcement(
        "notify.example", "127.0.0.1:24061", cores=1, notify="/run/uwsgi/notify.sock"
    ),
    "resubscribe_forwarded": Announcement(
        "r1",
        "127.0.0.1:24071",
        modifier1=5,
        modifier2=4,
        weight=6,
        sni_key="/k",
        sni_crt="/c",
        sni_ca="/ca",
    ),
    "v21_subscribe2_all_keys": Announcement(
        "s.example/foo",
        "127.0.0.1:24061",
        cores=1,
        weight=3,
        backup=1,
        protocol="http",
        algo="lrc",
        vassal="v1.ini",
    ),
    "v21_clear_on_shutdown": Announcement(
        "s.example", "127.0.0.1:24061", command=UNSUBSCRIBE, cores=1, clear=True
    ),
}
SIGNED = {
    "subscribe_signed_sha1": Announcement(
        "test.uwsgi.it:8000", "127.0.0.1:24061", modifier1=5, cores=1, unix=1795231162
    ),
    "unsubscribe_signed_sha1": Announcement(
        "test.uwsgi.it:8000",
        "127.0.0.1:24061",
        command=UNSUBSCRIBE,
        modifier1=5,
        cores=1,
        unix=1795231166,
    ),
    "subscribe2_signed_sha256": Announcement(
        "s.example", "127.0.0.1:24061", cores=1, unix=1795231166
    ),
}
HAS_WEIGHT = {
    "subscribe_cores_weight",
    "subscribe2_weight_sni",
    "resubscribe_forwarded",
    "v21_subscribe2_all_keys",
    "v21_clear_on_shutdown",
}


def test_every_capture_has_its_test() -> None:
    assert {path.stem for path in FIXTURES.glob("*.hex")} == CAPTURED.keys() | SIGNED.keys()


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_packet_is_decoded(name: str) -> None:
    assert decode(captured(name)) == CAPTURED[name]


@pytest.mark.parametrize("name", SIGNED)
def test_captured_signed_packet_is_decoded(name: str) -> None:
    wire = captured(name)
    found = decode(wire)
    assert found == replace(SIGNED[name], signature=wire[-256:], signed=wire[4:-264])


@pytest.mark.parametrize("name", CAPTURED)
def test_encoding_is_that_of_uwsgi(name: str) -> None:
    wire = captured(name)
    sent = CAPTURED[name]
    if name not in HAS_WEIGHT:
        sent = replace(sent, weight=0)
    if sent.clear:
        sent = replace(sent, command=SUBSCRIBE)
    inactive = item(b"inactive", b"1")  # read by nothing, so not sent
    if wire.endswith(inactive):
        wire = framed(wire[4 : -len(inactive)])
    assert encode(sent, extended=name.startswith("v21_")) == wire


@pytest.mark.parametrize("name", SIGNED)
def test_encoding_of_signed_packet_is_that_of_uwsgi(name: str) -> None:
    wire = captured(name)
    covered = []

    def sign(data: bytes) -> bytes:
        covered.append(data)
        return wire[-256:]

    assert encode(replace(SIGNED[name], weight=0), sign=sign) == wire
    assert covered == [wire[4:-264]]


def test_order_of_all_items() -> None:
    everything = Announcement(
        "k", "/a", 0, 1, 2, 3, 4, 5, 6, "http", "lrc", "v", True, "sk", "sc", "sa", "/n", 7, via="i"
    )
    wire = encode(everything, sign=lambda data: b"S")
    assert wire == datagram(
        ("key", "k"), ("address", "/a"), ("modifier1", "1"), ("modifier2", "2"), ("cores", "3"),
        ("load", "4"), ("weight", "5"), ("backup", "6"), ("vassal", "v"), ("sni_key", "sk"),
        ("sni_crt", "sc"), ("sni_ca", "sa"), ("proto", "http"), ("algo", "lrc"), ("notify", "/n"),
        ("clear", "1"), ("via", "i"), ("unix", "7"), ("sign", "S"),
    )  # fmt: skip
    assert decode(wire) == replace(
        everything, command=UNSUBSCRIBE, signature=b"S", signed=wire[4:-9]
    )


# --- what a packet may leave out, and may have besides -----------------------------------------


def test_defaults() -> None:
    assert decode(datagram(("address", "/a"), ("key", "k"))) == Announcement("k", "/a")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"weight": "0"}, {}),
        ({"weight": "1000000"}, {"weight": 1_000_000}),
        ({"weight": "0007"}, {"weight": 7}),
        ({"modifier1": "255", "modifier2": "255"}, {"modifier1": 255, "modifier2": 255}),
        ({"cores": "256"}, {"cores": 256}),
        ({"load": str(2**63 - 1)}, {"load": 2**63 - 1}),
        ({"load": "0" * 19 + "1"}, {"load": 1}),
        ({"backup": "3"}, {"backup": 3}),
        ({"unix": "1795231162"}, {"unix": 1795231162}),
        ({"proto": "http"}, {"protocol": "http"}),
        ({"proto": "H"}, {"protocol": "http"}),
        ({"proto": "uwsgi"}, {}),
        ({"proto": "U"}, {}),
        ({"proto": ""}, {}),
        ({"clear": "0"}, {}),
        ({"clear": "1"}, {"clear": True, "command": UNSUBSCRIBE}),
        ({"algo": "wrr", "vassal": "v"}, {"algo": "wrr", "vassal": "v"}),
        ({"algo": "", "sni_ca": ""}, {}),
        ({"sni_ca": "!/ca"}, {"sni_ca": "!/ca"}),
        ({"sni_key": "/é"}, {"sni_key": "/é"}),
        ({"sni_key": "x" * 255}, {"sni_key": "x" * 255}),
        ({"notify": "n" * 101}, {"notify": "n" * 101}),
        ({"notify": "n" * 102}, {}),
        ({"notify": "é" * 51}, {}),
        ({"via": "a1"}, {"via": "a1"}),
        ({"via": ",".join(["z" * 32] * 16)}, {"via": ",".join(["z" * 32] * 16)}),
        ({"inactive": "1", "Key": "x", "colour": "\0"}, {}),
    ],
)
def test_accepted(changed: dict[str, str], expected: dict[str, object]) -> None:
    base = Announcement("example.com", "127.0.0.1:3031", cores=1)
    assert decode(plain(**changed)) == replace(base, **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("Example.COM", "example.com"),
        ("Example.COM:8000", "example.com:8000"),
        ("Example.COM/Foo/BAR", "example.com/Foo/BAR"),
        ("example.com/Foo", "example.com/Foo"),
        ("/Run/X", "/Run/X"),
        (".example.com", ".example.com"),
        ("!~", "!~"),
        ("K" * 255, "k" * 255),
    ],
)
def test_key_is_lowered_up_to_the_mountpoint(sent: str, key: str) -> None:
    assert decode(plain(key=sent)).key == key


ADDRESSES = [
    "10.0.0.7:3031", "255.255.255.255:65535", "0.0.0.0:1", ":3031", "[::1]:80",
    "[2001:DB8::7]:8080", "[::ffff:10.0.0.1]:1", "app:3031", "App_1.example-2.com.:3031",
    "1.2.3.4.example:80", "a" * 63 + ":1", "@app", "@a:1", "\\0app", "/run/app.sock", "/x",
    "/run/a:b.sock", "./x", "../x:1", "app.sock", "run/app.sock", "/" + "x" * 106,
    "@" + "x" * 106, "x" * 107, "~", "1a",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_address_is_kept(address: str) -> None:
    assert decode(plain(address=address)).address == address


UNFIT = [
    "10.0.0.7:0", "10.0.0.7:65536", "10.0.0.7:99999", "10.0.0.7:03031", "10.0.0.7:", "10.0.0.7",
    "10.0.0.7:1_0", "10.0.0.7:+1", "10.0.0.7:80 ", "10.0.0.7:80\n", "256.0.0.1:80", "1.2.3:80",
    "01.2.3.4:80", "10.*:80", "10.*", "3031", ":", "::1:80", "[]:80", "[::1]", "[::1]:0",
    "[:::]:80", "[fe80::1%eth0]:80", "[::1]:80]", "-a:80", "a-:80", "a..b:80", "é:80",
    "a" * 64 + ":80", ".".join(["a" * 62] * 5) + ":80", "http://a:80", "fd://3", "a b", "/a b",
    "/a\0", "@", "\\0", "/" + "x" * 107, "@" + "x" * 107, "\\0" + "x" * 107, "x" * 108,
    "a:80/x", ".", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("address", UNFIT)
def test_address_of_no_known_shape_is_refused(address: str) -> None:
    assert refused(plain(address=address)) == "bad-address"


# --- refusals ----------------------------------------------------------------------------------


def refused(wire: bytes) -> str:
    """The word with which ``wire`` is refused; the text is fit for a log."""
    with pytest.raises(AnnouncementError) as caught:
        decode(wire)
    text = str(caught.value)
    assert text.startswith(caught.value.word + ": ")
    assert text.isprintable()
    assert len(text) < 400
    return caught.value.word


WIRE = plain()
SIGN = ("sign", b"s")


@pytest.mark.parametrize(
    ("wire", "word"),
    [
        (framed(b"x" * (MAX_DATAGRAM - 3)), "too-long"),
        (b"", "malformed"),
        (b"\xe0\0\0", "malformed"),
        (b"GET / HTTP/1.1\r\n\r\n", "not-a-subscription"),
        (framed(WIRE[4:], modifier=0), "not-a-subscription"),
        (framed(WIRE[4:], command=2), "malformed"),
        (framed(WIRE[4:], command=255), "malformed"),
        (WIRE + b"\0", "malformed"),
        (WIRE[:-1], "malformed"),
        (framed(WIRE[4:] + b"\0"), "malformed"),
        (framed(WIRE[4:-1]), "malformed"),
        (framed(WIRE[4:] + b"\1\0x"), "malformed"),
        (framed(WIRE[4:] + b"\1\0x\2\0y"), "malformed"),
        (framed(WIRE[4:] + b"\xff\xffx"), "malformed"),
        (framed(WIRE[4:] + item(b"", b"x")), "malformed"),
        (framed(WIRE[4:] + item(b"key", b"other")), "malformed"),
        (framed(item(b"key", b"other") + WIRE[4:]), "malformed"),
        (framed(WIRE[4:] + item(b"unix", b"1") * 2), "malformed"),
        (framed(WIRE[4:] + item(b"x", b"") * 58), "malformed"),
        (framed(item(b"x", b"") * 58 + WIRE[4:]), "malformed"),
        (datagram(SIGN, *PLAIN.items()), "malformed"),
        (datagram(*PLAIN.items(), SIGN, ("unix", "1")), "malformed"),
        (datagram(*PLAIN.items(), SIGN, ("colour", "red")), "malformed"),
        (plain(sign=b""), "malformed"),
        (framed(b""), "bad-key"),
        (plain(key=None), "bad-key"),
        (plain(key=""), "bad-key"),
        (plain(key="k" * 256), "bad-key"),
        (plain(key="a b"), "bad-key"),
        (plain(key="a\n"), "bad-key"),
        (plain(key="a\0"), "bad-key"),
        (plain(key="\x7f"), "bad-key"),
        (plain(key="é"), "bad-key"),
        (plain(address=None), "no-address"),
        (plain(address=""), "no-address"),
        (plain(address=None, vassal="v1.ini"), "no-address"),
        (plain(address=None, clear="1"), "no-address"),
        (plain(modifier1="256"), "bad-number"),
        (plain(modifier1="300"), "bad-number"),
        (plain(modifier2="256"), "bad-number"),
        (plain(weight="1000001"), "bad-number"),
        (plain(proto="scgi"), "malformed"),
        (plain(proto="\0h"), "malformed"),
        (plain(via=""), "malformed"),
        (plain(via="a,"), "malformed"),
        (plain(via="A"), "malformed"),
        (plain(via="a,,b"), "malformed"),
        (plain(via="z" * 33), "malformed"),
        (plain(via=",".join("a" * 17)), "malformed"),
    ],
)
def test_refused(wire: bytes, word: str) -> None:
    assert refused(wire) == word


def test_limits_are_exact() -> None:
    longest = framed(WIRE[4:] + item(b"x", b"y" * (MAX_DATAGRAM - len(WIRE) - 5)))
    assert len(longest) == MAX_DATAGRAM
    assert decode(longest) == decode(WIRE)
    assert decode(framed(WIRE[4:] + item(b"x", b"") * 57)) == decode(WIRE)
    assert decode(framed(item(b"x", b"") * 57 + WIRE[4:])) == decode(WIRE)


NUMBERS = ("modifier1", "modifier2", "cores", "load", "weight", "backup", "unix", "clear")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [b"", b"-1", b"+1", b" 1", b"1 ", b"1\n", b"1_0", b"0x1", b"1.0", b"1e3", "١".encode(), b"\xb2",
     b"9" * 20, b"%d" % 2**63, b"0" * 21, b"1" * 6000],
)  # fmt: skip
def test_numbers_are_digits(name: str, value: bytes) -> None:
    assert refused(plain(**{name: value})) == "bad-number"


@pytest.mark.parametrize("name", ["algo", "vassal", "sni_key", "sni_crt", "sni_ca", "notify"])
@pytest.mark.parametrize(
    "value",
    [b"a\0", b"a\nb", b"\x1b[2J", b"\x7f", b"\xff", b"\xc3", b"\xed\xa0\x80", "\u2028".encode(),
     "\u202e".encode(), "\x85".encode(), b"x" * 256],
)  # fmt: skip
def test_text_is_printable(name: str, value: bytes) -> None:
    assert refused(plain(**{name: value})) == "malformed"


# --- encoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("announcement", "word"),
    [
        (Announcement("", "/a"), "bad-key"),
        (Announcement("é", "/a"), "bad-key"),
        (Announcement("k" * 9000, "/a"), "too-long"),
        (Announcement("k" * 70000, "/a"), "too-long"),
        (Announcement("k"), "no-address"),
        (Announcement("k", "a:b"), "bad-address"),
        (Announcement("k", "/a", command=2), "malformed"),
        (Announcement("k", "/a", command=256), "malformed"),
        (Announcement("k", "/a", load=-1), "bad-number"),
        (Announcement("k", "/a", modifier1=256), "bad-number"),
        (Announcement("k", "/a", unix=2**63), "bad-number"),
        (Announcement("k", "/a", sni_key="\ud800"), "malformed"),
        (Announcement("k", "/a", sni_crt="\udcff"), "malformed"),
        (Announcement("k", "/a", via="A"), "malformed"),
    ],
)
def test_what_would_be_refused_is_not_sent(announcement: Announcement, word: str) -> None:
    with pytest.raises(AnnouncementError) as caught:
        encode(announcement)
    assert caught.value.word == word


def test_signature_that_does_not_fit() -> None:
    for size, word in ((0, "malformed"), (8100, "too-long"), (70000, "too-long")):
        with pytest.raises(AnnouncementError) as caught:
            encode(Announcement("k", "/a"), sign=lambda data, size=size: b"s" * size)
        assert caught.value.word == word


def test_what_sign_raises_is_passed_on() -> None:
    def sign(data: bytes) -> bytes:
        raise OSError("no token")

    with pytest.raises(OSError, match="no token"):
        encode(Announcement("k", "/a"), sign=sign)


def test_old_signature_is_not_sent_again() -> None:
    again = encode(decode(captured("subscribe_signed_sha1")))
    assert decode(again).signature == b""
    assert decode(again).unix == 1795231162


VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
PRINTABLE = st.text(max_size=60).filter(lambda text: text.isprintable() and len(text.encode()) < 99)
NUMBER = st.integers(0, 300) | st.integers(0, 2**63 - 1)

announcements = st.builds(
    Announcement,
    key=st.text(VISIBLE, min_size=1, max_size=255),
    address=st.sampled_from(ADDRESSES),
    command=st.sampled_from((SUBSCRIBE, UNSUBSCRIBE)),
    modifier1=st.integers(0, 255),
    modifier2=st.integers(0, 255),
    cores=NUMBER,
    load=NUMBER,
    weight=st.integers(0, 1_000_000),
    backup=st.just(0) | NUMBER,
    protocol=st.sampled_from(("uwsgi", "http")),
    algo=PRINTABLE,
    vassal=PRINTABLE,
    clear=st.booleans(),
    sni_key=PRINTABLE,
    sni_crt=PRINTABLE,
    sni_ca=PRINTABLE,
    notify=PRINTABLE,
    unix=NUMBER,
    via=st.lists(st.from_regex(r"\A[0-9a-z]{1,32}\Z"), max_size=16).map(",".join),
)


@given(announcements, st.binary(min_size=1, max_size=300) | st.none(), st.booleans())
def test_round_trip(sent: Announcement, signature: bytes | None, extended: bool) -> None:
    host, slash, path = sent.key.partition("/")
    expected = replace(
        sent,
        key=host.lower() + slash + path,
        weight=sent.weight or 1,
        command=UNSUBSCRIBE if sent.clear else sent.command,
    )
    covered = b""

    def sign(data: bytes) -> bytes:
        nonlocal covered
        covered = data
        return signature or b""

    wire = encode(sent, sign=None if signature is None else sign, extended=extended)
    assert decode(wire) == replace(expected, signature=signature or b"", signed=covered)


@given(announcements, st.randoms())
def test_order_of_items_does_not_matter(sent: Announcement, chance: object) -> None:
    """The short path needs uWSGI's order; any other order takes the general one: same result."""
    wire = encode(sent)
    parts, position = [], 4
    while position < len(wire):
        stop = position + 2 + int.from_bytes(wire[position : position + 2], "little")
        end = stop + 2 + int.from_bytes(wire[stop : stop + 2], "little")
        parts.append(wire[position:end])
        position = end
    chance.shuffle(parts)  # type: ignore[attr-defined]
    assert decode(framed(b"".join(parts), sent.command)) == decode(wire)
