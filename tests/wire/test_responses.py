"""Good responses of a node: RFC 9110 §6.4, §6.6.1, §15; RFC 9112 §4, §6, §7."""

from __future__ import annotations

import re

import pytest
from support.client import Reply
from support.nodes import CLOSE, Answer, Connection, Seen, closing, response

from wire.conftest import Pair

GET = b"GET /r HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD = b"HEAD /r HTTP/1.1\r\nHost: h\r\n\r\n"
OLD = b"GET /r HTTP/1.0\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
DATE = re.compile(rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")


def _answered(pair: Pair, answer: Answer, request: bytes = GET, method: bytes = b"GET") -> Reply:
    """The reply to ``request``; the client's connection must serve another one after it."""
    pair.node.play(answer)
    with pair.connect() as client:
        reply = client.ask(request, method)
        assert not reply.closes
        client.assert_open()
    return reply


@pytest.mark.parametrize("size", [0, 1, 1000, 65535, 65536, 3_000_000])
def test_a_body_with_a_length(pair: Pair, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    reply = _answered(pair, response(body))
    assert (reply.body, reply.get(b"content-length")) == (body, b"%d" % size)
    assert reply.get(b"transfer-encoding") is None


@pytest.mark.parametrize(
    "raw",
    [
        b"0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"1\r\na\r\n2\r\nbc\r\n000\r\n\r\n",
        b'3;x="y"\r\nabc\r\n0;z\r\n\r\n',
        b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_chunked_body(pair: Pair, raw: bytes, bytewise: bool) -> None:
    whole = OK + b"Transfer-Encoding: Chunked\r\n\r\n" + raw

    def script(connection: Connection, seen: Seen) -> None:
        for i in range(len(whole)):
            connection.send(whole[i : i + 1])

    reply = _answered(pair, script if bytewise else whole)
    assert reply.body in (b"abc", b"")
    assert (reply.body == b"") == raw.startswith(b"0\r")
    assert reply.get(b"transfer-encoding") == b"chunked"
    assert reply.get(b"content-length") is None
    assert reply.trailers in ([], [(b"x-sum", b"1")])


def test_a_body_that_ends_with_the_connection_is_framed_for_a_11_client(pair: Pair) -> None:
    reply = _answered(pair, closing(OK + b"X: y\r\n\r\n" + b"z" * 100_000))
    assert reply.body == b"z" * 100_000
    assert reply.get(b"transfer-encoding") == b"chunked"


@pytest.mark.parametrize(
    "answer",
    [
        closing(OK + b"\r\nabc"),
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
    ],
)
def test_a_10_client_gets_no_chunks(pair: Pair, answer: Answer) -> None:
    # RFC 9112 §7.1: never chunked towards a client that is not HTTP/1.1.
    pair.node.play(answer)
    with pair.connect() as client:
        client.send(OLD)
        reply = client.read_response()
        assert (reply.status, reply.body) == (200, b"abc")
        assert reply.get(b"transfer-encoding") is None
        assert not client.was_reset
        client.assert_closed()


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"",
    ],
)
def test_a_head_response_has_no_body(pair: Pair, fields: bytes) -> None:
    answer: Answer = OK + fields + b"X: y\r\n\r\n"
    reply = _answered(pair, answer, HEAD, b"HEAD")
    assert (reply.status, reply.body, reply.get(b"x")) == (200, b"", b"y")
    if fields.startswith(b"Content"):
        assert reply.get(b"content-length") == fields[16:-2]


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("fields", [b"", b"Content-Length: 5\r\n", b"ETag: x\r\n"])
def test_204_and_304_have_no_body(pair: Pair, status: bytes, fields: bytes) -> None:
    reply = _answered(pair, b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n")
    assert (reply.status, reply.body) == (int(status[:3]), b"")
    assert reply.get(b"transfer-encoding") is None
    if reply.status == 204:  # RFC 9110 §8.6: MUST NOT send Content-Length with 204
        assert reply.get(b"content-length") is None


@pytest.mark.parametrize("status", [b"205 Reset Content", b"404 Not Found", b"500 X", b"599 Y"])
def test_other_statuses_have_one(pair: Pair, status: bytes) -> None:
    reply = _answered(pair, response(b"", status=status))
    assert reply.status == int(status[:3])


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE", b"OPTIONS", b"FOO"])
def test_responses_to_any_method_may_have_a_body(pair: Pair, method: bytes) -> None:
    request = method + b" / HTTP/1.1\r\nHost: h\r\n\r\n"
    assert _answered(pair, response(b"abc"), request, method).body == b"abc"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"HTTP/1.1 200 Fine By Me", b"Fine By Me"),
        (b"HTTP/1.1 200 ", b""),
        (b"HTTP/1.1 200 caf\xe9", b"caf\xe9"),
        (b"HTTP/1.0 200 Old", b"Old"),
    ],
)
def test_the_reason_passes(pair: Pair, line: bytes, reason: bytes) -> None:
    reply = _answered(pair, line + b"\r\nContent-Length: 2\r\n\r\nok")
    assert (reply.version, reply.status, reply.reason, reply.body) == (b"1.1", 200, reason, b"ok")


def test_date_is_added_where_missing(pair: Pair) -> None:
    # RFC 9110 §6.6.1: a recipient with a clock that forwards a response without Date adds it.
    date = _answered(pair, response()).get(b"date")
    assert date is not None
    assert DATE.fullmatch(date)


def test_date_is_kept_where_present(pair: Pair) -> None:
    old = b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert _answered(pair, response(b"", b"Date: " + old)).get(b"date") == old


def test_fields_pass_in_order(pair: Pair) -> None:
    lines = [
        b"Set-Cookie: a=1",
        b"X-A: 1",
        b"Set-Cookie: b=2",
        b"Server: node",
        b"X-E:",
        b"X: \xe9",
    ]
    reply = _answered(pair, response(b"ok", *lines))
    assert reply.all(b"set-cookie") == [b"a=1", b"b=2"]
    assert (reply.get(b"x-a"), reply.get(b"server"), reply.get(b"x-e")) == (b"1", b"node", b"")
    assert reply.get(b"x") == b"\xe9"


@pytest.mark.parametrize(
    "line", [b"Keep-Alive: timeout=5", b"Proxy-Connection: x", b"Upgrade: h2c", b"TE: x"]
)
def test_hop_by_hop_fields_of_the_node_stop_here(pair: Pair, line: bytes) -> None:
    reply = _answered(pair, response(b"ok", line, b"Connection: keep-alive"))
    assert reply.get(line.split(b":")[0]) is None
    assert b"keep-alive" not in b",".join(reply.all(b"connection")).lower()


@pytest.mark.parametrize(
    "connection", [b"X-One, x-two", b"keep-alive, x-ONE ,, X-Two", b"x-two,x-one"]
)
def test_what_the_nodes_connection_names_is_removed(pair: Pair, connection: bytes) -> None:
    lines = [b"X-One: 1", b"Connection: " + connection, b"X-Two: 2", b"X-Three: 3"]
    reply = _answered(pair, response(b"ok", *lines))
    assert reply.get(b"x-one") is reply.get(b"x-two") is None
    assert reply.get(b"x-three") == b"3"


def test_the_nodes_close_is_not_the_clients(http_pair: Pair) -> None:
    for _ in range(2):
        _answered(http_pair, closing(response(b"ok", b"Connection: close")))


@pytest.mark.parametrize(
    "raw",
    [
        response(b"a", b"Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 1\r\n\r\na",
    ],
)
def test_a_node_that_will_close_is_not_used_again(http_pair: Pair, raw: bytes) -> None:
    http_pair.node.play(raw)
    with http_pair.connect() as client:
        assert client.ask(GET).body == b"a"
        assert client.ask(GET).status == 200
    one, two = http_pair.node.seen
    assert one.connection != two.connection


@pytest.mark.parametrize(
    "raw",
    [
        response(b"a"),
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na",
    ],
)
def test_a_node_that_keeps_the_connection_is(http_pair: Pair, raw: bytes) -> None:
    http_pair.node.play(raw)
    with http_pair.connect() as client:
        assert client.ask(GET).body == b"a"
        assert client.ask(GET).status == 200
    one, two = http_pair.node.seen
    assert one.connection == two.connection


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("together", [True, False])
def test_interim_responses_pass(pair: Pair, count: int, together: bool) -> None:
    # RFC 9110 §15.2: a proxy MUST forward 1xx unless it asked for them itself.
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n"

    def script(connection: Connection, seen: Seen) -> str:
        if together:
            connection.send(hint * count + response(b"done"))
        else:
            for _ in range(count):
                connection.send(hint)
            connection.send(response(b"done"))
        return CLOSE

    reply = _answered(pair, script)
    assert [status for status, _ in reply.interim] == [103] * count
    assert (b"link", b"</s.css>") in reply.interim[0][1]
    assert reply.body == b"done"


def test_a_10_client_gets_no_interim_response(pair: Pair) -> None:
    # RFC 9110 §15.2: a server MUST NOT send a 1xx response to an HTTP/1.0 client.
    pair.node.play(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + response(b"done"))
    with pair.connect() as client:
        client.send(OLD)
        data = client.read_to_end()
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b"\r\n\r\ndone")
