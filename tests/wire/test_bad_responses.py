"""Malformed, cut and over-long responses of a node: 502 or an aborted connection, never a guess."""

from __future__ import annotations

import pytest
from support.client import Client, Reply, Truncated
from support.nodes import CLOSE, Answer, Connection, Seen, closing, resetting, response
from support.waiting import wait_until

from wire.conftest import Pair
from wire.test_fields import BAD_LINES, CONTROLS, NOT_TCHAR
from wire.test_framing import BAD_CODINGS, BAD_LENGTHS

POST = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"
GET = b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n"
OLD = b"GET /b HTTP/1.0\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


def _refused(pair: Pair, answer: Answer, request: bytes = POST) -> None:
    """The client gets 502 and nothing of ``answer``; the node's connection is not used again."""
    pair.node.play(answer)
    with pair.connect() as client:
        reply = client.ask(request, request.split()[0])
        assert reply.status == 502, reply
        assert b"evil" not in reply.body
        seen = pair.node.only()
        if reply.closes:
            client.assert_closed()
        else:
            client.assert_open()
    pair.node.reset()
    pair.sentinel()
    assert pair.node.only().connection != seen.connection


STATUS_LINES = [
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 abc OK",
    b"HTTP/1.1 2x0 OK",
    b"HTTP/1.1 +20 OK",
    b"HTTP/1.1 -20 OK",
    b"HTTP/1.1 2_0 OK",
    b"HTTP/1.1 000 X",
    b"HTTP/1.1 099 X",
    b"HTTP/1.1 600 X",
    b"HTTP/1.1 999 X",
    b"HTTP/1.1 \xb2\xb0\xb0 OK",
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1\t200 OK",
    b"HTTP/1.1 200\tOK",
    b" HTTP/1.1 200 OK",
    b"\r\nHTTP/1.1 200 OK",
    b"HTTP/1.1",
    b"HTTP/1.1 ",
    b"http/1.1 200 OK",
    b"HTTP/1.2 200 OK",
    b"HTTP/2.0 200 OK",
    b"HTTP/2 200 OK",
    b"HTTP/0.9 200 OK",
    b"HTTP/1.10 200 OK",
    b"HTTP/11 200 OK",
    b"ICY 200 OK",
    b"Status: 200 OK",
    b"200 OK",
    b"<html>",
    b"HTTP/1.1 200 O\rK",
    b"HTTP/1.1 200 O\nK",
    b"HTTP/1.1 200 O\x00K",
    b"HTTP/1.1 200 OK\r",
    b"HTTP/1.1 200 O\x7fK",
    b"HTTP/1.1 200 O\x1bK",
]


@pytest.mark.parametrize("line", STATUS_LINES)
def test_a_malformed_status_line(pair: Pair, line: bytes) -> None:
    _refused(pair, line + b"\r\nContent-Length: 4\r\n\r\nevil")


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_malformed_field_line(pair: Pair, line: bytes) -> None:
    _refused(pair, OK + b"Content-Length: 4\r\n" + line + b"\r\nZ: z\r\n\r\nevil")


@pytest.mark.parametrize("byte", NOT_TCHAR)
def test_a_name_that_is_no_token(pair: Pair, byte: int) -> None:
    _refused(pair, OK + b"Content-Length: 4\r\nX%cY: z\r\n\r\nevil" % byte)


@pytest.mark.parametrize("byte", CONTROLS)
def test_a_control_byte_in_a_value(pair: Pair, byte: int) -> None:
    _refused(pair, OK + b"Content-Length: 4\r\nX: a%cb\r\n\r\nevil" % byte)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 4\n\nevil",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\nevil",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\n\r\nevil",
        b"HTTP/1.1 200 OK\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\n X: y\r\nContent-Length: 4\r\n\r\nevil",
    ],
)
def test_lines_that_do_not_end_with_crlf(pair: Pair, raw: bytes) -> None:
    _refused(pair, raw)


@pytest.mark.parametrize("value", BAD_LENGTHS)
def test_a_malformed_content_length(pair: Pair, value: bytes) -> None:
    _refused(pair, OK + b"Content-Length: " + value + b"\r\n\r\nevil")


@pytest.mark.parametrize("values", [(b"4", b"5"), (b"4", b"4"), (b"0", b"4"), (b"4", b"")])
def test_a_repeated_content_length(pair: Pair, values: tuple[bytes, bytes]) -> None:
    _refused(pair, OK + b"Content-Length: %s\r\nX: y\r\ncontent-length: %s\r\n\r\nevil" % values)


@pytest.mark.parametrize("value", BAD_CODINGS)
def test_a_coding_other_than_chunked(pair: Pair, value: bytes) -> None:
    _refused(pair, OK + b"Transfer-Encoding: " + value + b"\r\n\r\n4\r\nevil\r\n0\r\n\r\n")


@pytest.mark.parametrize("length_first", [True, False])
def test_length_and_coding_together(pair: Pair, length_first: bool) -> None:
    lines = [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"]
    if not length_first:
        lines.reverse()
    _refused(pair, OK + b"".join(lines) + b"\r\n4\r\nevil\r\n0\r\n\r\n")


def test_a_repeated_coding(pair: Pair) -> None:
    head = OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
    _refused(pair, head + b"4\r\nevil\r\n0\r\n\r\n")


def test_a_coding_in_http10(pair: Pair) -> None:
    head = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    _refused(pair, head + b"4\r\nevil\r\n0\r\n\r\n")


@pytest.mark.parametrize("fields", [b"", b"Upgrade: evil\r\nConnection: upgrade\r\n"])
def test_101_that_nobody_asked_for(pair: Pair, fields: bytes) -> None:
    _refused(pair, b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\nevil")


@pytest.mark.parametrize("raw", [b"", b"H", OK, OK + b"X: y", OK + b"X: y\r\n", OK[:-1]])
@pytest.mark.parametrize("end", [closing, resetting])
def test_a_head_that_never_ends(pair: Pair, raw: bytes, end: object) -> None:
    assert callable(end)
    _refused(pair, end(raw))


def test_an_interim_response_without_a_final_one(pair: Pair) -> None:
    pair.node.play(closing(b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"))
    with pair.connect() as client:
        reply = client.ask(POST, b"POST")
        assert (reply.status, [status for status, _ in reply.interim]) == (502, [103])


@pytest.mark.parametrize(
    "raw", [OK + b"X: " + b"y" * 2_000_000, OK + b"X: y\r\n" * 200_000, b"H" * 2_000_000]
)
def test_a_head_without_bounds(pair: Pair, raw: bytes) -> None:
    _refused(pair, closing(raw))


def test_a_get_is_not_repeated_after_a_malformed_answer(pair: Pair) -> None:
    _refused(pair, closing(b"HTTP/1.1 2000 OK\r\n\r\n"), GET)


CUT = [
    OK + b"Content-Length: 10\r\n\r\n",
    OK + b"Content-Length: 10\r\n\r\n12345",
    OK + b"Content-Length: 100000\r\n\r\n" + b"x" * 99_999,
    CHUNKED,
    CHUNKED + b"5",
    CHUNKED + b"5\r\nhel",
    CHUNKED + b"5\r\nhello\r\n",
    CHUNKED + b"5\r\nhello\r\n0",
    CHUNKED + b"5\r\nhello\r\n0\r\n",
    CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n",
]
BAD_CHUNKS = [
    b"-1\r\na\r\n0\r\n\r\n",
    b"0x1\r\na\r\n0\r\n\r\n",
    b"1_0\r\na\r\n0\r\n\r\n",
    b"\r\na\r\n0\r\n\r\n",
    b"zz\r\na\r\n0\r\n\r\n",
    b" 1\r\na\r\n0\r\n\r\n",
    b"1\na\r\n0\r\n\r\n",
    b"1;x\ny\r\na\r\n0\r\n\r\n",
    b"1\r\naXX0\r\n\r\n",
    b"1\r\na\n0\r\n\r\n",
    b"1\r\na\r\n0\r\nbad trailer\r\n\r\n",
    b"FFFFFFFFFFFFFFFFF\r\na\r\n0\r\n\r\n",
    b"1\r\na\r\nHTTP/1.1 200 OK\r\n\r\n",
]


def _read(client: Client, method: bytes) -> tuple[Reply | None, bytes]:
    """The whole reply, or None and what arrived of it."""
    try:
        return client.read_response(method), b""
    except Truncated as cut:
        return None, cut.data


def _aborted(pair: Pair, answer: Answer, request: bytes = POST) -> None:
    """The client must notice: either a 502 or a response that does not end as its framing says."""
    pair.node.play(answer)
    with pair.connect() as client:
        client.send(request)
        reply, cut = _read(client, request.split()[0])
        if reply is None:
            assert cut == b"" or cut.startswith(b"HTTP/1.1 200 ")
            assert b"\r\n0\r\n\r\n" not in cut
        else:
            assert reply.status == 502, reply
            if not reply.closes:
                client.assert_open()
                return
        client.assert_closed()
    seen = pair.node.seen[0]
    pair.node.reset()
    pair.sentinel()
    assert pair.node.only().connection != seen.connection


@pytest.mark.parametrize("raw", CUT)
@pytest.mark.parametrize("end", [closing, resetting])
def test_a_cut_body_aborts_the_client(pair: Pair, raw: bytes, end: object) -> None:
    assert callable(end)
    _aborted(pair, end(raw))


@pytest.mark.parametrize("raw", BAD_CHUNKS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_malformed_chunk_aborts_the_client(pair: Pair, raw: bytes, apart: bool) -> None:
    def script(connection: Connection, seen: Seen) -> str:
        connection.send(CHUNKED)
        connection.send(b"5\r\nhello\r\n")
        connection.send(raw)
        connection.drain()
        return CLOSE

    _aborted(pair, script if apart else CHUNKED + raw)


@pytest.mark.parametrize(
    "raw",
    [CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"5\r\nhel", OK + b"Content-Length: 9\r\n\r\nhello"],
)
def test_a_10_client_notices_a_cut_body_too(pair: Pair, raw: bytes) -> None:
    pair.node.play(closing(raw))
    with pair.connect() as client:
        client.send(OLD)
        data = client.read_to_end()
        assert client.was_reset or b"502" in data or b"Content-Length: 9" in data


def test_a_reset_in_a_body_that_ends_with_the_connection_is_not_its_end(pair: Pair) -> None:
    # RFC 9112 §8: an incomplete message must not be taken for a complete one.
    def script(connection: Connection, seen: Seen) -> str:
        connection.send(OK + b"X: y\r\n\r\nhello")
        connection.go.wait(5)
        connection.reset()
        return CLOSE

    pair.node.play(script)
    with pair.connect() as client:
        client.send(POST)
        client.read_until(b"hello")
        for each in pair.node.connections:
            each.go.set()
        rest = client.read_to_end()
        assert b"0\r\n\r\n" not in rest


@pytest.mark.parametrize(
    "raw",
    [
        response(b"good") + EVIL,
        response(b"good") + b"\r\n",
        response(b"good") + b"x",
        CHUNKED + b"4\r\ngood\r\n0\r\n\r\n" + EVIL,
    ],
)
def test_bytes_after_the_body_reach_nobody(pair: Pair, raw: bytes) -> None:
    pair.node.play(raw)
    with pair.connect() as client:
        assert client.ask(GET).body == b"good"
        assert client.ask(GET).body == b"GET /b 0"
    one, two = pair.node.seen
    assert one.connection != two.connection


@pytest.mark.parametrize(
    ("request_", "raw"),
    [
        (b"HEAD", response(b"good")),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\nevil"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil"),
        (b"HEAD", EVIL),
    ],
)
def test_a_body_where_none_belongs_reaches_nobody(pair: Pair, request_: bytes, raw: bytes) -> None:
    pair.node.play(raw)
    with pair.connect() as client:
        client.send(request_ + b" /b HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.read_response(request_).body == b""
        assert client.ask(GET).body == b"GET /b 0"
    one, two = pair.node.seen
    assert one.connection != two.connection


def test_a_node_that_speaks_unasked_is_dropped(http_pair: Pair) -> None:
    http_pair.sentinel()
    number = http_pair.node.only().connection
    (used,) = [each for each in http_pair.node.connections if each.number == number]
    used.send(EVIL)
    wait_until(lambda: used.closed, "the gateway to close the connection")
    with http_pair.connect() as client:
        assert client.ask(GET).body == b"GET /b 0"
