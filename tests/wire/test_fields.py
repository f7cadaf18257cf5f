"""Field lines and Host: RFC 9112 §2.2, §3.2, §5; RFC 9110 §5.5, §7.2."""

from __future__ import annotations

import pytest

from wire.conftest import Pair

START = b"GET /f HTTP/1.1\r\nHost: h\r\n"

BAD_LINES = [
    b"X : v",
    b"X\t: v",
    b" X: v",
    b"\tX: v",
    b"X Y: v",
    b": v",
    b":",
    b" : v",
    b"X",
    b"X v",
    b" ",
    b"\t",
    b"X: a\r\n b",  # obs-fold
    b"X: a\r\n\tb",
    b"X:\r\n v",
    b"X: a\r\n ",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding\x00: chunked",
    b"Transfer-Encoding\x0b: chunked",
    b"Transfer\xadEncoding: chunked",
    b"Content-Length : 5",
    b"\xc5\xbf: v",
    b"X: a\rb",
    b"X: a\r",
    b"X\r: a",
    b"X:\ra",
    b"X: a\nY: b",
    b"X: a\n",
    b"\nX: a",
    b"X: a\r\r\nY: b",
    b"X: a\n\r\nY: b",
    b"X: a\r\n\rY: b",
    b"X: a\x00b",
    b"X: \x00",
    b"X\x00: v",
]
NOT_TCHAR = b'()<>@,;\\"/[]?={}\x7f\x01\x1f\x80\xa0\xff'
CONTROLS = bytes([*range(1, 9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_malformed_field_line_is_refused(pair: Pair, line: bytes) -> None:
    pair.refused(START + line + b"\r\nZ: z\r\n\r\n", 400)


@pytest.mark.parametrize(
    "head",
    [
        b" Host: h\r\n",
        b"\tA: b\r\nHost: h\r\n",
        b"Host : h\r\n",
        b"Host\t: h\r\n",
        b"\nHost: h\r\n",
        b"Host: h\n",
        b"Host: h\nX: y\r\n",
    ],
)
def test_nor_is_the_first_line(pair: Pair, head: bytes) -> None:
    pair.refused(b"GET /f HTTP/1.1\r\n" + head + b"\r\n", 400)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\n\r\n",
        b"GET / HTTP/1.1\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\rHost: h\r\r",
        b"GET / HTTP/1.1\r\nHost: h\r\n\rX\r\n\r\n",
    ],
)
def test_lines_end_with_crlf_and_nothing_else(pair: Pair, request_: bytes) -> None:
    pair.refused(request_, 400)


@pytest.mark.parametrize("byte", NOT_TCHAR)
def test_names_are_tokens(pair: Pair, byte: int) -> None:
    pair.refused(START + b"X%cY: v\r\n\r\n" % byte, 400)


@pytest.mark.parametrize("byte", CONTROLS)
def test_no_control_byte_in_a_value(pair: Pair, byte: int) -> None:
    pair.refused(START + b"X: a%cb\r\n\r\n" % byte, 400)
    pair.node.reset()
    pair.refused(START + b"X: %c\r\n\r\n" % byte, 400)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"X-V: plain", b"plain"),
        (b"X-V:tight", b"tight"),
        (b"X-V: \t  spaced \t ", b"spaced"),
        (b"X-V: in\tside  it", b"in\tside  it"),
        (b"X-V:", b""),
        (b"X-V:   ", b""),
        (b"X-V: a:b:c", b"a:b:c"),
        (b"X-V: \xe9\x80\xff", b"\xe9\x80\xff"),
        (b"X-V: caf\xc3\xa9", b"caf\xc3\xa9"),
        (b"X-V: \xa0a\xa0", b"\xa0a\xa0"),
        (b"X-V: ,", b","),
        (b'X-V: "quo\\"ted"', b'"quo\\"ted"'),
    ],
)
def test_a_good_value_arrives(pair: Pair, line: bytes, value: bytes) -> None:
    (seen,) = pair.forwarded(START + line + b"\r\n\r\n").field(b"x-v")
    assert seen.strip(b" \t") == value


def test_every_token_character_is_good_in_a_name(http_pair: Pair) -> None:
    name = b"X!#$%&'*+-.^`|~09azAZ"
    assert http_pair.forwarded(START + name + b": v\r\n\r\n").field(name) == [b"v"]


def test_repeated_fields_keep_their_order(pair: Pair) -> None:
    seen = pair.forwarded(START + b"A: 1\r\nB: x\r\na: 2\r\nA: 3\r\n\r\n")
    expected = [b"1", b"2", b"3"] if pair.kind == "http" else [b"1, 2, 3"]
    assert seen.field(b"a") == expected


BAD_HOSTS = [
    b"",
    b"a b",
    b"a\tb",
    b"a/b",
    b"../../x",
    b"a\\b",
    b"a@b",
    b"u:p@b",
    b"a,b",
    b"a, b",
    b"a;b",
    b"a?b",
    b"a#b",
    b"a:b",
    b"a:-1",
    b"a:+1",
    b"a:1_0",
    b"a:80:80",
    b"a:999999",
    b":80",
    b"[::1",
    b"::1",
    b"[::1]x",
    b"[]",
    b"[g]",
    b"a]b",
    b"a\x00b",
    b"a\x7f",
    b"b\xc3\xbccher",
    b"http://a",
    b'"a"',
    b"a%00b",
    b"a" * 300,
]


@pytest.mark.parametrize("host", BAD_HOSTS)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_malformed_host_is_refused(pair: Pair, host: bytes, version: bytes) -> None:
    pair.refused(b"GET / HTTP/" + version + b"\r\nHost: " + host + b"\r\n\r\n", 400)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"X: y\r\n",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nHost: b\r\n",
        b"Host: a\r\nX: y\r\nhOST: b\r\n",
        b"Host:\r\nHost: a\r\n",
        b"Host: a\r\nHost:\r\n",
        b"X-Host: a\r\n",
        b"Host_: a\r\n",
    ],
)
def test_http11_needs_exactly_one_host(pair: Pair, lines: bytes) -> None:
    pair.refused(b"GET / HTTP/1.1\r\n" + lines + b"\r\n", 400)


def test_two_hosts_are_refused_in_http10_too(pair: Pair) -> None:
    pair.refused(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400)


@pytest.mark.parametrize(
    "host", [b"EXAMPLE.com:80", b"[::1]:80", b"[2001:db8::1]", b"1.2.3.4", b"a_b.c-d", b"h:"]
)
def test_a_good_host_arrives_verbatim(pair: Pair, host: bytes) -> None:
    assert pair.forwarded(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").field(b"host") == [host]


def test_http10_needs_no_host(pair: Pair) -> None:
    with pair.connect() as client:
        assert client.ask(b"GET /old HTTP/1.0\r\n\r\n").status == 200
        client.assert_closed()
    assert pair.node.only().target == b"/old"
