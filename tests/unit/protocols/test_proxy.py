"""PROXY protocol headers, versions 1 and 2: exact or refused."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols.proxy import (
    MAX_V1_LENGTH,
    MAX_V2_LENGTH,
    ProxyError,
    ProxyHeader,
    could_be,
    parse,
)

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4 = bytes((192, 0, 2, 1, 198, 51, 100, 2)) + b"\x30\x39\x01\xbb"
V6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + b"\x30\x39\x01\xbb"
)
UNIX = b"/run/a.sock".ljust(108, b"\0") + b"/run/b.sock".ljust(108, b"\0")


def v2(body: bytes, kind: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes((command, kind)) + len(body).to_bytes(2, "big") + body


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def header(source: bytes, destination: bytes, length: int, tls: bool = False) -> ProxyHeader:
    return ProxyHeader(source, 12345, destination, 443, tls, length)


def nowhere(length: int, tls: bool = False) -> ProxyHeader:
    return ProxyHeader(b"", 0, b"", 0, tls, length)


# --- version 1 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", b"192.0.2.1", b"198.51.100.2"),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 12345 443\r\n", b"0.0.0.0", b"255.255.255.255"),
        (b"PROXY TCP6 2001:db8::1 ::1 12345 443\r\n", b"2001:db8::1", b"::1"),
        (b"PROXY TCP6 2001:DB8:0::01 :: 12345 443\r\n", b"2001:db8::1", b"::"),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 12345 443\r\n", b"::ffff:192.0.2.1", b"::1"),
    ],
)
def test_v1_addresses(line: bytes, source: bytes, destination: bytes) -> None:
    assert parse(line + b"GET / HTTP/1.1\r\n") == header(source, destination, len(line))


def test_v1_ports() -> None:
    parsed = parse(b"PROXY TCP4 10.0.0.1 10.0.0.2 0 65535\r\n")
    assert parsed is not None
    assert (parsed.source_port, parsed.destination_port) == (0, 65535)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN any thing 1 2\r\n",
        b"PROXY UNKNOWN " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n",
    ],
)
def test_v1_unknown(line: bytes) -> None:
    assert parse(line + b"rest") == nowhere(len(line))


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.01 198.51.100.2 1 2",
        b"PROXY TCP4 192.0.2.256 198.51.100.2 1 2",
        b"PROXY TCP4 192.0.2 198.51.100.2 1 2",
        b"PROXY TCP4 192.0.2.1.1 198.51.100.2 1 2",
        b"PROXY TCP4 0x7f.0.0.1 198.51.100.2 1 2",
        b"PROXY TCP4 ::1 ::1 1 2",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 01 2",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 1",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 99999",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 2",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1_0 2",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 2",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 ",
        b"PROXY TCP4  192.0.2.1 198.51.100.2 1 2",
        b"PROXY TCP4\t192.0.2.1 198.51.100.2 1 2",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r",
        b"PROXY TCP4",
        b"PROXY tcp4 192.0.2.1 198.51.100.2 1 2",
        b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2",
        b"PROXY TCP6 192.0.2.1 ::1 1 2",
        b"PROXY TCP6 ::1::1 ::1 1 2",
        b"PROXY TCP6 :::1 ::1 1 2",
        b"PROXY TCP6 12345::1 ::1 1 2",
        b"PROXY TCP6 ::1 ::1%eth0 1 2",
        b"PROXY TCP6 [::1] ::1 1 2",
        b"PROXY TCP6 ::1 ::ffff:1.2.3.04 1 2",
        b"PROXY UNKNOWNx",
        b"PROXY UNKNOWN \x00",
        b"PROXY UNKNOWN \n",
        b"PROXY \xd9\xa1",
        b"PROXY ",
    ],
)
def test_v1_malformed(line: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(line + b"\r\nGET / HTTP/1.1\r\n")


def test_v1_is_bounded() -> None:
    longest = b"PROXY UNKNOWN " + b"x" * (MAX_V1_LENGTH - 16)
    assert len(longest) + 2 == MAX_V1_LENGTH == 107
    assert parse(longest + b"\r") is None
    assert parse(longest + b"\r\n") == nowhere(MAX_V1_LENGTH)
    assert parse(longest + b"x") is None
    for line in (longest + b"x\r", longest + b"x\r\n", longest + b"x" * 5000):
        with pytest.raises(ProxyError, match="107"):
            parse(line)


# --- version 2 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body", "source", "destination"),
    [
        (0x11, V4, b"192.0.2.1", b"198.51.100.2"),
        (0x12, V4, b"192.0.2.1", b"198.51.100.2"),
        (0x21, V6, b"2001:db8::1", b"::1"),
        (0x22, V6, b"2001:db8::1", b"::1"),
    ],
)
@pytest.mark.parametrize("tlvs", [b"", tlv(0x04, b""), tlv(0x01, b"h2") + tlv(0x02, b"ex.com")])
def test_v2_addresses(
    kind: int, body: bytes, source: bytes, destination: bytes, tlvs: bytes
) -> None:
    data = v2(body + tlvs, kind)
    assert parse(data + b"GET /") == header(source, destination, len(data))


@pytest.mark.parametrize(
    "data",
    [
        v2(b"", 0x00),
        v2(b"whatever", 0x00),
        v2(b"", 0x00, command=0x20),
        v2(V4, 0x11, command=0x20),
        v2(b"junk", 0xFF, command=0x20),
        v2(UNIX, 0x31),
        v2(UNIX + tlv(0x04, b"\0\0"), 0x32),
    ],
)
def test_v2_without_ip_addresses(data: bytes) -> None:
    assert parse(data + b"rest") == nowhere(len(data))


@pytest.mark.parametrize(
    ("value", "tls"),
    [
        (b"\x01\0\0\0\0", True),
        (b"\x07\0\0\0\0" + tlv(0x21, b"TLSv1.3") + tlv(0x22, b"cn"), True),
        (b"\x00\0\0\0\0", False),
        (b"\x06\0\0\0\1", False),
    ],
)
def test_v2_tls(value: bytes, tls: bool) -> None:
    data = v2(V4 + tlv(0x20, value))
    assert parse(data) == header(b"192.0.2.1", b"198.51.100.2", len(data), tls)
    data = v2(UNIX + tlv(0x20, value), 0x31)
    assert parse(data) == nowhere(len(data), tls)


# Bit by bit, apart from the table under test; the check value of CRC-32C is asserted below.
def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def checked(body: bytes, after: bytes = b"") -> bytes:
    blank = v2(body + tlv(0x03, bytes(4)) + after)
    at = 16 + len(body) + 3
    return blank[:at] + crc32c(blank).to_bytes(4, "big") + blank[at + 4 :]


def test_v2_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    for after in (b"", tlv(0x05, b"unique")):
        data = checked(V4, after)
        assert parse(data + b"rest") == header(b"192.0.2.1", b"198.51.100.2", len(data))
        for at in range(16, len(data)):
            damaged = data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :]
            if at not in range(28, 31):  # type and length of the checksum itself
                with pytest.raises(ProxyError):
                    parse(damaged)


@pytest.mark.parametrize(
    "data",
    [
        v2(V4, command=0x11),
        v2(V4, command=0x31),
        v2(V4, command=0x22),
        v2(V4, 0x10),
        v2(V4, 0x13),
        v2(V4, 0x01),
        v2(V4, 0x41),
        v2(V4[:-1]),
        v2(V4, 0x21),
        v2(V6[:-1], 0x21),
        v2(UNIX[:-1], 0x31),
        v2(V4 + b"\x04"),
        v2(V4 + b"\x04\0"),
        v2(V4 + b"\x04\0\x02x"),
        v2(V4 + tlv(0x04, b"") + b"\0"),
        v2(V4 + tlv(0x03, b"\0\0\0")),
        v2(V4 + tlv(0x03, b"\0\0\0\0\0")),
        v2(V4 + tlv(0x03, b"\0\0\0\0")),
        checked(V4, tlv(0x03, bytes(4))),
        v2(V4 + tlv(0x20, b"\1\0\0\0")),
        v2(V4 + tlv(0x20, b"\1\0\0\0\0x")),
        v2(V4 + tlv(0x20, b"\1\0\0\0\0\x21\0\x02x")),
        v2(V4 + tlv(0x20, b"\0\0\0\0\0") + tlv(0x20, b"\1\0\0\0\0")),
        v2(V4 + tlv(0x04, bytes(MAX_V2_LENGTH))),
    ],
)
def test_v2_malformed(data: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(data)


def test_v2_length_is_bounded_before_it_is_waited_for() -> None:
    room = MAX_V2_LENGTH - 16 - len(V4) - 3
    longest = v2(V4 + tlv(0x04, bytes(room)))
    parsed = parse(longest)
    assert parsed is not None
    assert parsed.length == len(longest) == MAX_V2_LENGTH
    with pytest.raises(ProxyError, match="4112"):
        parse(v2(V4 + tlv(0x04, bytes(room + 1)))[:16])


# --- both --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", True),
        (b"P", True),
        (b"PROXY", True),
        (b"PROXY ", True),
        (b"PROXY TCP4", True),
        (b"\r\n", True),
        (SIGNATURE, True),
        (SIGNATURE + b"x", True),
        (b"POST / HTTP/1.1", False),
        (b"PROXYING", False),
        (b"proxy ", False),
        (b"GET / HTTP/1.1", False),
        (b"\r\nGET / HTTP/1.1", False),
        (SIGNATURE[:-1] + b"\r", False),
    ],
)
def test_could_be(data: bytes, answer: bool) -> None:
    assert could_be(data) is answer
    if not answer:
        with pytest.raises(ProxyError, match="does not begin"):
            parse(data)


ports = st.integers(0, 65535)
v4s = st.ip_addresses(v=4)
v6s = st.ip_addresses(v=6)
endpoints = st.one_of(st.tuples(v4s, v4s), st.tuples(v6s, v6s))


def _text(address: IPv4Address | IPv6Address) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.inet_ntop(family, address.packed).encode()


@given(endpoints, ports, ports, st.booleans(), st.binary(max_size=30))
def test_any_prefix_waits_and_anything_behind_is_left_alone(
    pair: tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address],
    source_port: int,
    destination_port: int,
    binary: bool,
    rest: bytes,
) -> None:
    source, destination = pair
    if binary:
        tail = source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
        kind = 0x11 if source.version == 4 else 0x21
        data = v2(source.packed + destination.packed + tail, kind)
    else:
        data = b"PROXY TCP%d %b %b %d %d\r\n" % (
            source.version, _text(source), _text(destination), source_port, destination_port,
        )  # fmt: skip
    for cut in range(len(data)):
        assert could_be(data[:cut])
        assert parse(data[:cut]) is None
    assert parse(data + rest) == ProxyHeader(
        _text(source), source_port, _text(destination), destination_port, False, len(data)
    )


starts = st.sampled_from(
    [
        b"",
        b"PROXY ",
        b"PROXY TCP4 ",
        b"PROXY TCP6 ",
        SIGNATURE,
        v2(V4)[:14],
        v2(V4 + b"x" * 20)[:28],
    ]
)


@given(starts, st.binary(max_size=120))
def test_any_bytes_are_a_header_or_a_proxy_error(start: bytes, data: bytes) -> None:
    """And whatever was decided on a prefix stays decided with more bytes."""
    verdicts = []
    for end in range(len(start + data) + 1):
        try:
            verdicts.append(parse((start + data)[:end]))
        except ProxyError:
            verdicts.append(nowhere(-1))
    decided = [verdict for verdict in verdicts if verdict is not None]
    assert len(set(decided)) <= 1
    assert verdicts == [None] * (len(verdicts) - len(decided)) + decided
