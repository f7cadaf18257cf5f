"""Length of a request body: RFC 9112 §6, §7; every known way to smuggle past it."""

from __future__ import annotations

import pytest
from support.nodes import SeenHttp, SeenUwsgi
from support.waiting import wait_until

from wire.conftest import Pair

POST = b"POST /p HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
INNER = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"

BAD_LENGTHS = [
    b"+1",
    b"-1",
    b"-0",
    b"1_0",
    b"1,1",
    b"1, 1",
    b"1,",
    b",1",
    b"1 1",
    b"0x1",
    b"1h",
    b"1.0",
    b"1e1",
    b"1;",
    b'"1"',
    b"",
    b" ",
    b"\xa01",
    b"1\xa0",
    b"\x0b1",
    b"1\x0c",
    b"1\x00",
    b"\xd9\xa1",  # ARABIC-INDIC DIGIT ONE
    b"\xc2\xb9",  # SUPERSCRIPT ONE
    b"\xef\xbc\x91",  # FULLWIDTH DIGIT ONE
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551617",
    b"1" * 400,
    b"chunked",
    b"NaN",
]

BAD_CODINGS = [
    b"xchunked",
    b"chunkedx",
    b"chunked, chunked",
    b"chunked,chunked",
    b"identity",
    b"identity, chunked",
    b"chunked, identity",
    b"gzip, chunked",
    b"chunked, gzip",
    b"gzip",
    b"deflate",
    b"trailers",
    b"chunked;q=1",
    b"chunked; a=b",
    b'"chunked"',
    b"'chunked'",
    b"chunked,",
    b",chunked",
    b"chun ked",
    b"chunked x",
    b"",
    b"\x0bchunked",
    b"chunked\x0c",
    b"\xa0chunked",
    b"chunked\xa0",
    b"chun\x00ked",
    b"chunked\x00",
    b"\xe2\x84\xaachunked",
    b"chun\xe2\x84\xaaed",  # KELVIN SIGN, which str.lower() turns into "k"
]


@pytest.mark.parametrize("value", BAD_LENGTHS)
def test_a_malformed_content_length_is_refused(pair: Pair, value: bytes) -> None:
    pair.refused(POST + b"Content-Length: " + value + b"\r\n\r\n" + INNER, 400, 413)


@pytest.mark.parametrize("value", [b"1", b" 1", b"1 ", b"\t1\t"])
def test_white_space_around_a_length_is_not_part_of_it(pair: Pair, value: bytes) -> None:
    request = POST + b"Content-Length:" + value + b"\r\n\r\nx"
    seen = pair.forwarded(request, b"POST")
    assert (seen.field(b"content-length"), seen.body) == ([b"1"], b"x")


@pytest.mark.parametrize("value", [b"0007", b"00", b"000000000000000000000001"])
def test_leading_zeros_are_refused_or_made_canonical(pair: Pair, value: bytes) -> None:
    length = int(value)
    with pair.connect() as client:
        client.send(POST + b"Content-Length: " + value + b"\r\n\r\n" + b"x" * length)
        reply = client.read_response(b"POST")
    if reply.status == 200:
        seen = pair.node.only()
        assert (seen.field(b"content-length"), len(seen.body)) == ([b"%d" % length], length)
    else:
        assert reply.status == 400
        pair.assert_untouched()


@pytest.mark.parametrize(
    ("one", "two"), [(b"5", b"5"), (b"5", b"6"), (b"0", b"5"), (b"5", b"0"), (b"5", b"05")]
)
@pytest.mark.parametrize("between", [b"", b"X: y\r\n"])
def test_a_repeated_content_length_is_refused(
    pair: Pair, one: bytes, two: bytes, between: bytes
) -> None:
    lines = b"Content-Length: " + one + b"\r\n" + between + b"content-length: " + two + b"\r\n"
    pair.refused(POST + lines + b"\r\nhello", 400)


@pytest.mark.parametrize("length", [b"0", b"4", b"5", b"35", b""])
@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"identity", b"x", b""])
@pytest.mark.parametrize("length_first", [True, False])
def test_length_and_coding_together_are_refused(
    pair: Pair, length: bytes, coding: bytes, length_first: bool
) -> None:
    # RFC 9112 §6.1: both together "ought to be handled as an error".
    lines = [b"Content-Length: " + length, b"Transfer-Encoding: " + coding]
    if not length_first:
        lines.reverse()
    head = POST + b"\r\n".join(lines) + b"\r\n\r\n"
    pair.refused(head + b"0\r\n\r\n" + INNER, 400, 501)


@pytest.mark.parametrize("coding", BAD_CODINGS)
def test_only_exactly_chunked_is_a_transfer_coding(pair: Pair, coding: bytes) -> None:
    head = POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n"
    pair.refused(head + b"0\r\n\r\n" + INNER, 400, 501)


def test_an_unknown_coding_is_not_implemented(pair: Pair) -> None:
    # RFC 9112 §6.1: "SHOULD respond with 501".
    pair.refused(POST + b"Transfer-Encoding: gzip\r\n\r\nxxx", 501)


@pytest.mark.parametrize("other", [b"chunked", b"identity", b"gzip", b""])
@pytest.mark.parametrize("first", [True, False])
def test_a_repeated_transfer_encoding_is_refused(pair: Pair, other: bytes, first: bool) -> None:
    lines = [b"Transfer-Encoding: chunked", b"Transfer-encoding: " + other]
    if first:
        lines.reverse()
    head = POST + b"\r\nX: y\r\n".join(lines) + b"\r\n\r\n"
    pair.refused(head + b"0\r\n\r\n" + INNER, 400, 501)


@pytest.mark.parametrize("extra", [b"", b"Connection: keep-alive\r\n", b"Content-Length: 5\r\n"])
def test_a_transfer_coding_in_http10_is_refused(pair: Pair, extra: bytes) -> None:
    # RFC 9112 §6.1: such a message's framing is faulty.
    head = b"POST /p HTTP/1.0\r\nHost: h\r\n" + extra + b"Transfer-Encoding: chunked\r\n\r\n"
    pair.refused(head + b"0\r\n\r\n" + INNER, 400)


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b" chunked \t"])
def test_chunked_is_case_insensitive(pair: Pair, value: bytes) -> None:
    request = POST + b"transfer-encoding:" + value + b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert pair.forwarded(request, b"POST").body == b"abc"


@pytest.mark.parametrize("name", [b"Content_Length", b"Transfer_Encoding", b"Content_length"])
def test_an_underscore_twin_frames_nothing(pair: Pair, name: bytes) -> None:
    value = b"5" if b"ength" in name else b"chunked"
    with pair.connect() as client:
        client.send(POST + name + b": " + value + b"\r\n\r\n" + INNER)
        assert client.read_response(b"POST").body == b"POST /p 0"
        assert client.read_response().body == b"GET /smuggled 0"
    first = pair.node.seen[0]
    assert first.body == b""
    if isinstance(first, SeenUwsgi):
        assert first.field(name) == []


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"POST", b"FOO"])
def test_any_method_may_have_a_body(pair: Pair, method: bytes) -> None:
    head = method + b" /b HTTP/1.1\r\nHost: h\r\n"
    assert pair.forwarded(head + b"Content-Length: 3\r\n\r\nabc", method).body == b"abc"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert pair.forwarded(chunked, method).body == b"abc"


def test_without_length_and_coding_there_is_no_body(pair: Pair) -> None:
    with pair.connect() as client:
        client.send(POST + b"\r\n" + INNER)
        assert client.read_response(b"POST").body == b"POST /p 0"
        assert client.read_response().body == b"GET /smuggled 0"


GOOD_CHUNKS = [
    (b"0\r\n\r\n", b""),
    (b"000\r\n\r\n", b""),
    (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    (b"003\r\nabc\r\n0\r\n\r\n", b"abc"),
    (b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
    (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    (b"5;x\r\nhello\r\n0;y=z\r\n\r\n", b"hello"),
    (b'5;a=b;c="d;\\"e"\r\nhello\r\n0\r\n\r\n', b"hello"),
    (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    (b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n", b"x" * 65536),
]


@pytest.mark.parametrize(("raw", "body"), GOOD_CHUNKS)
def test_a_chunked_body_is_decoded(pair: Pair, raw: bytes, body: bytes) -> None:
    seen = pair.forwarded(CHUNKED + raw, b"POST")
    assert seen.body == body
    if isinstance(seen, SeenUwsgi):
        # A uwsgi node has no other frame than CONTENT_LENGTH: the body is gathered first.
        assert seen.var(b"CONTENT_LENGTH") == b"%d" % len(body)
        assert seen.field(b"transfer-encoding") == []
    else:
        assert seen.field(b"transfer-encoding") == [b"chunked"]


BAD_CHUNKS = [
    b"-1\r\na\r\n0\r\n\r\n",
    b"+1\r\na\r\n0\r\n\r\n",
    b"0x1\r\na\r\n0\r\n\r\n",
    b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    b"\r\na\r\n0\r\n\r\n",
    b";x\r\na\r\n0\r\n\r\n",
    b" 1\r\na\r\n0\r\n\r\n",
    b"\t1\r\na\r\n0\r\n\r\n",
    b"1 \r\na\r\n0\r\n\r\n",
    b"1\t\r\na\r\n0\r\n\r\n",
    b"1 1\r\na\r\n0\r\n\r\n",
    b"g\r\na\r\n0\r\n\r\n",
    b"1g\r\na\r\n0\r\n\r\n",
    b"1,\r\na\r\n0\r\n\r\n",
    b"1.\r\na\r\n0\r\n\r\n",
    b"1:\r\na\r\n0\r\n\r\n",
    b"\x001\r\na\r\n0\r\n\r\n",
    b"1\x00\r\na\r\n0\r\n\r\n",
    b"\xd9\xa1\r\na\r\n0\r\n\r\n",
    b"\xef\xbc\x91\r\na\r\n0\r\n\r\n",
    b"1\na\r\n0\r\n\r\n",
    b"1\ra\r\n0\r\n\r\n",
    b"1\r\r\na\r\n0\r\n\r\n",
    b"1\n\r\na\r\n0\r\n\r\n",
    b"1;x\na\r\n0\r\n\r\n",
    b"1;x\ny\r\na\r\n0\r\n\r\n",
    b"1;\na\r\n0\r\n\r\n",
    b"1;x\ry\r\na\r\n0\r\n\r\n",
    b"1;x\x00y\r\na\r\n0\r\n\r\n",
    b"1;x\r\r\na\r\n0\r\n\r\n",
    b"1\r\na0\r\n\r\n",
    b"1\r\naX\r\n0\r\n\r\n",
    b"1\r\na\n0\r\n\r\n",
    b"1\r\na\r0\r\n\r\n",
    b"1\r\na\r\r\n0\r\n\r\n",
    b"1\r\nab\r\n0\r\n\r\n",
    b"2\r\na\r\n0\r\n\r\n",
    b"5\r\nhelloGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
    b"1\r\na\r\n\r\n0\r\n\r\n",
    b"1\r\na\r\n-0\r\n\r\n",
    b"0\n\r\n",
    b"0\r\n\n",
    b"0\r\n\rx\r\n\r\n",
    b"0\r\nbad trailer\r\n\r\n",
    b"0\r\nX : y\r\n\r\n",
    b"0\r\n X: y\r\n\r\n",
    b"0\r\nX: y\r\n z\r\n\r\n",
    b"0\r\nX: a\rb\r\n\r\n",
    b"0\r\nX: a\nb\r\n\r\n",
    b"0\r\nX: a\x00b\r\n\r\n",
    b"0\r\n: y\r\n\r\n",
    b"0\r\nX: y\n\n",
    b"0\r\nX: y\r\n\n",
]


@pytest.mark.parametrize("raw", BAD_CHUNKS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_malformed_chunk_is_refused(pair: Pair, raw: bytes, apart: bool) -> None:
    with pair.connect() as client:
        if apart:
            client.send(CHUNKED)
            client.send_willing(raw)
        else:
            client.send_willing(CHUNKED + raw)
        reply = client.read_response(b"POST")
        assert reply.status == 400, reply
        assert reply.closes
        client.assert_closed()
    pair.assert_no_request()


@pytest.mark.parametrize(
    "digits", [b"8000000000000000", b"10000000000000000", b"F" * 17, b"f" * 64]
)
def test_a_chunk_too_huge_for_any_integer_is_refused(pair: Pair, digits: bytes) -> None:
    pair.refused(CHUNKED + digits + b"\r\nabc", 400, 413, touched=True)


def test_leading_zeros_of_a_chunk_size_have_an_end(pair: Pair) -> None:
    pair.refused(CHUNKED + b"0" * 100_000 + b"1\r\na\r\n0\r\n\r\n", 400, 413, 431, touched=True)


def test_chunk_extensions_have_an_end(pair: Pair) -> None:
    raw = b"1;" + b"x" * 200_000 + b"\r\na\r\n0\r\n\r\n"
    pair.refused(CHUNKED + raw, 400, 413, 431, touched=True)


def test_trailers_have_an_end(pair: Pair) -> None:
    raw = b"0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n"
    pair.refused(CHUNKED + raw, 400, 413, 431, touched=True)


def test_a_failed_chunked_body_ends_the_node_connection(http_pair: Pair) -> None:
    with http_pair.connect() as client:
        client.send(CHUNKED + b"1\r\na\r\n")
        wait_until(
            lambda: any(b"POST /p" in each.received for each in http_pair.node.connections),
            "the head at the node",
        )
        (used,) = [each for each in http_pair.node.connections if b"POST /p" in each.received]
        client.send(b"zz\r\n")
        assert client.read_response(b"POST").status == 400
    wait_until(lambda: used.closed, "the node connection to end")
    assert b"\r\n0\r\n" not in used.received


FORBIDDEN_TRAILERS = [
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Host: evil",
    b"Connection: close",
    b"Content-Type: evil/x",
    b"Authorization: evil",
    b"Trailer: x",
    b"X-Forwarded-For: 6.6.6.6",
    b"Proxy: http://evil",
    b"Upgrade: evil",
    b"Expect: 100-continue",
]


@pytest.mark.parametrize("line", FORBIDDEN_TRAILERS)
def test_a_forbidden_trailer_is_refused_or_dropped(pair: Pair, line: bytes) -> None:
    # RFC 9110 §6.5.1: no framing, routing or authentication in trailers; never merged into fields.
    name, _, value = line.partition(b": ")
    with pair.connect() as client:
        reply = client.ask(CHUNKED + b"1\r\na\r\n0\r\n" + line + b"\r\n\r\n", b"POST")
    if reply.status == 400:
        pair.assert_no_request()
        return
    assert reply.status == 200
    seen = pair.node.only()
    assert value not in seen.field(name) or value == b"chunked"
    if isinstance(seen, SeenHttp):
        assert seen.trailers == []


def test_a_harmless_trailer_passes_or_is_dropped_but_is_never_a_field(pair: Pair) -> None:
    seen = pair.forwarded(CHUNKED + b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n", b"POST")
    assert seen.field(b"x-sum") == []
    if isinstance(seen, SeenHttp):
        assert seen.trailers in ([], [(b"X-Sum", b"1")])


@pytest.mark.parametrize(
    "body", [b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\n", bytes(256)]
)
def test_a_body_is_data_whatever_it_looks_like(pair: Pair, body: bytes) -> None:
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert pair.forwarded(request, b"POST").body == body


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 10\r\n\r\nabc", b"Content-Length: 1\r\n\r\n"]
)
def test_a_body_cut_by_the_client_is_never_a_request(pair: Pair, framing: bytes) -> None:
    with pair.connect() as client:
        client.send(POST + framing)
        client.half_close()
        rest = client.read_to_end()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400 "), rest
    pair.assert_no_request()


@pytest.mark.parametrize(
    "raw", [b"", b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nX: y\r\n"]
)
def test_a_chunked_body_cut_by_the_client_is_never_a_request(pair: Pair, raw: bytes) -> None:
    with pair.connect() as client:
        client.send(CHUNKED + raw)
        client.half_close()
        rest = client.read_to_end()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400 "), rest
    pair.assert_no_request()
