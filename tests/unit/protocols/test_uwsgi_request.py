"""Packets as a gateway reads them: routing keys, framing, and the short path beside the general."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fast import packed, raw_packet, request, string, variables

from uwgate.protocols.http1 import Fault, Http1Error
from uwgate.protocols.uwsgi import PacketError, parse_packet
from uwgate.protocols.uwsgi_request import PacketReader, UwsgiRequest

KEY, HOST, NAME = b"UWSGI_FASTROUTER_KEY", b"HTTP_HOST", b"SERVER_NAME"


def read(*pairs: tuple[bytes, bytes]) -> UwsgiRequest:
    return PacketReader().read(packed(list(pairs)))


def fault_of(packet: bytes) -> Fault:
    with pytest.raises(Http1Error) as caught:
        PacketReader().read(packet)
    return caught.value.fault


@pytest.mark.parametrize(
    ("pairs", "key"),
    [
        ([(NAME, b"n"), (HOST, b"h"), (KEY, b"k")], "k"),
        ([(KEY, b"k"), (HOST, b"h"), (NAME, b"n")], "k"),
        ([(HOST, b"h"), (NAME, b"n")], "h"),
        ([(HOST, b"h1"), (HOST, b"h2")], "h2"),
        ([(NAME, b"n1"), (NAME, b"n2")], "n1"),
        ([(NAME, b"n1"), (b"SERVER_PROTOCOL", b"HTTP/1.1"), (NAME, b"n2")], "n1"),
        ([(HOST, b"h1"), (b"SERVER_PROTOCOL", b"HTTP/1.1"), (HOST, b"h2")], "h2"),
        ([(HOST, b"WWW.Example.COM:80")], "www.example.com:80"),
        ([(HOST, b""), (NAME, b"n")], "n"),
        ([(HOST, b"x" * 256), (NAME, b"n")], "n"),
        ([(HOST, b"h"), (HOST, b"x" * 256)], "h"),
        ([(HOST, b"x" * 255)], "x" * 255),
        ([(b"HTTP_HOSTS", b"h"), (b"X", b"y")], ""),
    ],
)
def test_routing_key(pairs: list[tuple[bytes, bytes]], key: str) -> None:
    assert read(*pairs).key == key


@pytest.mark.parametrize("value", [b"a b", b"a\0", b"\xc4.example", b"a\nb", b" "])
def test_keys_are_visible_ascii(value: bytes) -> None:
    assert fault_of(packed([(HOST, value)])) is Fault.BAD_HOST


def test_a_better_key_makes_up_for_a_bad_host() -> None:
    pairs = [(KEY, b"k"), (b"SERVER_PROTOCOL", b"HTTP/1.1"), (HOST, b"a b")]
    assert read(*pairs).key == "k"


@pytest.mark.parametrize(
    ("pairs", "length", "raw_session", "plain"),
    [
        ([], 0, False, True),
        ([(b"CONTENT_LENGTH", b"")], 0, False, True),
        ([(b"CONTENT_LENGTH", b"0")], 0, False, True),
        ([(b"CONTENT_LENGTH", b"12")], 12, False, False),
        ([(b"CONTENT_LENGTH", b"12"), (b"CONTENT_LENGTH", b"12")], 12, False, False),
        ([(b"HTTP_TRANSFER_ENCODING", b"chunked")], 0, True, False),
        ([(b"CONTENT_LENGTH", b""), (b"HTTP_TRANSFER_ENCODING", b"chunked")], 0, True, False),
        ([(b"CONTENT_LENGTH", b"0"), (b"HTTP_TRANSFER_ENCODING", b"chunked")], 0, False, True),
        ([(b"CONTENT_LENGTH", b"7"), (b"HTTP_TRANSFER_ENCODING", b"chunked")], 7, False, False),
        ([(b"HTTP_TRANSFER_ENCODING", b"")], 0, False, True),
        ([(b"REQUEST_METHOD", b"HEAD")], 0, False, False),
    ],
)
def test_framing(
    pairs: list[tuple[bytes, bytes]], length: int, raw_session: bool, plain: bool
) -> None:
    found = read(*pairs)
    assert (found.length, found.raw_session, found.plain) == (length, raw_session, plain)
    assert found.simple == (not length and not raw_session)


@pytest.mark.parametrize(
    "value", [b"-1", b"+1", b"1_0", b" 1", b"1 ", b"0x1", b"5, 5", "١".encode(), b"9" * 19]
)
def test_lengths_are_decimal(value: bytes) -> None:
    assert fault_of(packed([(b"CONTENT_LENGTH", value)])) is Fault.BAD_FRAMING


def test_two_lengths_are_ambiguous() -> None:
    pairs = [(b"CONTENT_LENGTH", b"1"), (b"CONTENT_LENGTH", b"2")]
    assert fault_of(packed(pairs)) is Fault.BAD_FRAMING


@pytest.mark.parametrize(
    ("value", "offered"),
    [
        (b"websocket", b"websocket"),
        (b"h2c", b""),
        (b"websocket, h2c", b""),
        (b"H2/1", b""),
        (b"web\nsocket", b""),
        (b"", b""),
    ],
)
def test_upgrades(value: bytes, offered: bytes) -> None:
    found = read((b"HTTP_UPGRADE", value))
    assert found.upgrade == offered
    assert found.plain is not bool(offered)
    assert read((b"HTTP_UPGRADE", value), (b"CONTENT_LENGTH", b"1")).upgrade == b""


@pytest.mark.parametrize(
    "block",
    [
        b"\x01",
        string(b"A"),
        string(b"A") + b"\x01",
        string(b"A") + string(b"bc")[:-1],
        string(b"A") + string(b"b") + b"\x00",
        string(b"") + string(b"b"),
        string(b"SERVER_PROTOCOL") + string(b"HTTP/1.1") + b"\x05",
        string(b"SERVER_PROTOCOL") + string(b"HTTP/1.1") + string(b"X") + b"\x09\x00ab",
        string(b"SERVER_PROTOCOL") + b"\x00",
        string(b"A") + b"\xff\xff" + b"x" * 10,
        b"\xff\xff" + b"x" * 10,
    ],
)
def test_malformed(block: bytes) -> None:
    assert fault_of(raw_packet(block)) is Fault.BAD_MESSAGE


def test_marks_inside_values_are_text() -> None:
    inside = b"?\x0f\x00SERVER_PROTOCOL\x01\x00x\x09\x00HTTP_HOST\x04\x00evil"
    reader = PacketReader()
    for _ in range(3):
        packet = request(b"/" + inside, b"GET", b"good")
        assert reader.glance(packet) in ("", "good")
        found = reader.read(packet)
        assert (found.key, found.target) == ("good", b"/" + inside)


def test_a_packet_of_the_largest_size() -> None:
    rest = 65535 - len(packed([(HOST, b"h"), (b"HTTP_COOKIE", b"")])) + 4
    packet = packed([(HOST, b"h"), (b"HTTP_COOKIE", b"c" * rest)])
    assert len(packet) == 4 + 65535
    found = PacketReader().read(packet)
    assert found.key == "h"
    assert len(found.get(b"HTTP_COOKIE")) == rest


def test_what_is_looked_up_later() -> None:
    found = read(*variables(b"/a?b"), (b"A" * 300, b"x" * 300))
    assert found.target == b"/a?b"
    assert found.protocol == b"HTTP/1.1"
    assert found.client == b"192.0.2.7"
    assert found.get(b"A" * 300) == b"x" * 300
    assert found.get(b"NO_SUCH") == b""
    assert read((b"REMOTE_ADDR", b"unix:")).client == b""
    assert read((b"X", b"y")).client == b""


def test_modifiers_are_replaced_and_nothing_else() -> None:
    packet = packed(variables(), 5, 9)
    found = PacketReader().read(packet)
    assert found.packet(5, 9) is packet
    assert found.packet(7, 255) == packed(variables(), 7, 255)


def facts(found: UwsgiRequest) -> tuple[object, ...]:
    return (
        found.raw, found.key, found.method, found.length, found.raw_session, found.upgrade,
        found.simple, found.plain, found.repeatable, found.host, found.client, found.target,
    )  # fmt: skip


def test_a_glance_is_enough_the_third_time() -> None:
    reader = PacketReader()
    for _ in range(2):
        assert reader.glance(request(b"/aa")) == ""
        reader.read(request(b"/aa"))
    assert reader.glance(request(b"/bb", b"GET")) == "h"
    assert reader.glance(request(b"/cc", b"PUT")) == "h"  # the same places, other values
    assert reader.glance(request(b"/aa") + b"more") == ""
    assert reader.glance(request(b"/aa")[:-1]) == ""
    assert reader.glance(request(b"/aa", b"GET", b"other")) == ""


def test_a_layout_that_is_not_used_any_more_is_forgotten() -> None:
    reader = PacketReader()
    for _ in range(2):
        reader.read(request(b"/aa"))
    names = {b"PATH_INFO": b"XATH_INFO"}
    other = [(names.get(name, name), value) for name, value in variables(b"/cc")]
    for _ in range(5):
        assert reader.glance(packed(other)) == ""
    assert reader.glance(request(b"/aa")) == ""
    reader.read(request(b"/aa"))
    assert reader.glance(request(b"/aa")) == "h"


def test_heads_that_steer_more_are_not_learned() -> None:
    for extra in ((KEY, b"k"), (b"CONTENT_LENGTH", b""), (b"REQUEST_METHOD", b"PUT")):
        reader = PacketReader()
        packet = packed([extra, *variables()])
        for _ in range(3):
            assert reader.glance(packet) == ""
            reader.read(packet)


def test_tails_that_steer_more_are_not_taken_at_a_glance() -> None:
    reader = PacketReader()
    packet = request(b"/x", b"GET", b"h", (b"HTTP_UPGRADE", b"websocket"))
    for _ in range(3):
        assert reader.glance(packet) == ""
        assert reader.read(packet).upgrade == b"websocket"


def test_only_plain_packets_are_taken_at_a_glance() -> None:
    reader = PacketReader()

    def packet(length: bytes, method: bytes) -> bytes:
        pairs = variables(b"/x", method)
        pairs[3] = (b"CONTENT_LENGTH", length)
        return packed(pairs)

    for length, method in ((b"12", b"POST"), (b"-1", b"POST"), (b"", b"HEAD")):
        for _ in range(3):
            assert reader.glance(packet(length, method)) == ""
            if length != b"-1":
                reader.read(packet(length, method))
    assert reader.glance(packet(b"", b"POST")) == "h"


def test_nothing_grows_without_bounds() -> None:
    reader = PacketReader()
    for number in range(5000):
        packet = request(b"/x", b"GET", b"host-%d" % number)
        reader.read(packet)
        reader.read(packet)
    assert len(reader._known) <= 4096
    assert len(reader._keys) <= 4096
    big = request(b"/x", b"GET", b"h", (b"HTTP_COOKIE", b"c" * 5000))
    for _ in range(3):
        reader.read(big)
        assert reader.glance(big) == ""
    long = request(b"/" + b"x" * 2000)
    for _ in range(3):
        reader.read(long)
        assert reader.glance(long) == ""


NAMES = st.sampled_from(
    [KEY, HOST, NAME, b"CONTENT_LENGTH", b"REQUEST_METHOD", b"REMOTE_ADDR", b"SERVER_PROTOCOL",
     b"HTTP_TRANSFER_ENCODING", b"HTTP_UPGRADE", b"HTTP_X", b"PATH_INFO"]
)  # fmt: skip
VALUES = st.sampled_from([b"", b"h", b"5", b"GET", b"HEAD", b"x y", b"\x0f\x00SERVER_PROTOCOL"])
BLOCKS = st.one_of(
    st.lists(st.tuples(NAMES, VALUES), max_size=8).map(
        lambda pairs: b"".join(string(name) + string(value) for name, value in pairs)
    ),
    st.binary(max_size=40),
)


@given(st.lists(BLOCKS, min_size=1, max_size=6))
def test_the_short_path_says_what_the_general_says(blocks: list[bytes]) -> None:
    """Whatever a reader has seen before, it reads as a fresh one, and as the plain parser does."""
    reader = PacketReader()
    for block in [*blocks, *blocks, *blocks]:
        packet = raw_packet(block)
        expected: object
        try:
            expected = facts(PacketReader().read(packet))
        except Http1Error as error:
            expected = error.fault
        key = reader.glance(packet)
        found: object
        try:
            said = reader.read(packet)
            found = facts(said)
            assert not key or (key == said.key and said.plain)
        except Http1Error as error:
            found = error.fault
            assert not key
        assert found == expected
        try:
            parse_packet(packet)
        except PacketError:
            assert expected is Fault.BAD_MESSAGE or expected in (Fault.BAD_FRAMING, Fault.BAD_HOST)
        else:
            assert expected is not Fault.BAD_MESSAGE
