"""Limits of size and time: 408, 413, 414, 431, 504; slow clients, silent nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from support.client import Client, Truncated
from support.nodes import CLOSE, NODES, Connection, Seen, silent
from support.uwgate import StartGateway, running
from support.waiting import wait_until

from wire.conftest import Pair

HEAD = b"GET /l HTTP/1.1\r\nHost: h\r\n"
SLACK = 3.0
"""Seconds by which a limit may be overrun: deadlines are checked once a second."""


@pytest.fixture(scope="module", params=["http", "uwsgi"])
def hasty_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A gateway with short limits."""
    with (
        NODES[request.param]() as node,
        running(
            *("--http-to", node.spec, "--http-headers-timeout", "1", "--http-timeout", "2"),
            *("--http-keepalive=2", "--http-max-body", "10"),
        ) as gateway,
    ):
        yield Pair(request.param, gateway, node)


@pytest.fixture
def hasty(hasty_pair: Pair) -> Pair:
    """The same, its node reset."""
    hasty_pair.node.reset()
    return hasty_pair


def _trickle(client: Client, pace: float, byte: bytes) -> float:
    """Send ``byte`` every ``pace`` seconds until something comes back; seconds that took."""
    started = time.monotonic()
    client.sock.settimeout(pace)
    while True:
        try:
            client.buffer = client.sock.recv(65536)
        except TimeoutError:
            client.send_willing(byte)
            assert time.monotonic() - started < 15, "never cut"
            continue
        client.sock.settimeout(10)
        return time.monotonic() - started


@pytest.mark.parametrize("begin", [b"G", HEAD, HEAD + b"X: "])
def test_a_trickled_head_is_cut_at_its_deadline(hasty: Pair, begin: bytes) -> None:
    with hasty.connect() as client:
        client.send(begin)
        assert _trickle(client, 0.2, b"a") <= 1 + SLACK
        reply = client.read_response()
        assert (reply.status, reply.closes) == (408, True)
        client.assert_closed()
    hasty.assert_untouched()


def test_a_second_head_has_a_deadline_too(hasty: Pair) -> None:
    with hasty.connect() as client:
        client.assert_open()
        client.send(b"GET /")
        assert _trickle(client, 0.2, b"a") <= 1 + SLACK
        assert client.read_response().status == 408


@pytest.mark.parametrize(
    "body", [b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n1\r\n"]
)
def test_a_body_that_does_not_come(hasty: Pair, body: bytes) -> None:
    with hasty.connect() as client:
        client.send(b"POST /l HTTP/1.1\r\nHost: h\r\n" + body)
        reply = client.read_response(b"POST")
        assert (reply.status, reply.closes) == (408, True)
        client.assert_closed()
    hasty.assert_no_request()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_silent_node(hasty: Pair, method: bytes) -> None:
    hasty.node.play(silent)
    with hasty.connect() as client:
        reply = client.ask(method + b" /l HTTP/1.1\r\nHost: h\r\n\r\n", method)
        assert reply.status == 504
    assert len(hasty.node.seen) == 1
    wait_until(lambda: hasty.kind == "http" or hasty.node.open_connections() == 0, "node closed")


def test_a_node_that_stalls_in_its_answer(hasty: Pair) -> None:
    def script(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        connection.drain()
        return CLOSE

    hasty.node.play(script)
    with hasty.connect() as client:
        with pytest.raises(Truncated) as cut:
            client.ask(HEAD + b"\r\n")
        assert cut.value.data.endswith(b"abc")


def test_an_idle_client_is_let_go_without_a_word(hasty: Pair) -> None:
    with hasty.connect() as client:
        client.assert_open()
        started = time.monotonic()
        assert client.read_to_end() == b""
        assert 0.9 <= time.monotonic() - started <= 2 + SLACK


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /l HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n",
        b"POST /l HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world",
        b"POST /l HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999999999\r\n\r\n",
    ],
)
def test_a_body_over_the_limit(hasty: Pair, request_: bytes) -> None:
    hasty.refused(request_, 413)


@pytest.mark.parametrize(
    "chunks", [[b"b\r\nhello world\r\n0\r\n\r\n"], [b"6\r\nhello \r\n", b"5\r\nworld\r\n"]]
)
def test_a_chunked_body_over_the_limit(hasty: Pair, chunks: list[bytes]) -> None:
    head = b"POST /l HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    with hasty.connect() as client:
        client.send(head)
        for chunk in chunks:
            client.send_willing(chunk)
        reply = client.read_response(b"POST")
        assert (reply.status, reply.closes) == (413, True)
        client.assert_closed()
    hasty.assert_no_request()


@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 10\r\n\r\n0123456789",
        b"Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
    ],
)
def test_a_body_at_the_limit(hasty: Pair, framed: bytes) -> None:
    with hasty.connect() as client:
        reply = client.ask(b"POST /l HTTP/1.1\r\nHost: h\r\n" + framed, b"POST")
        assert (reply.status, reply.body) == (200, b"POST /l 10")


@pytest.mark.parametrize("ended", [True, False])
def test_a_target_without_bounds(pair: Pair, ended: bool) -> None:
    end = b" HTTP/1.1\r\nHost: h\r\n\r\n" if ended else b""
    pair.refused(b"GET /" + b"a" * 200_000 + end, 414, 431)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("block", [b"X: " + b"y" * 200_000, b"X: y\r\n" * 40_000, b"y" * 200_000])
def test_a_head_without_bounds(pair: Pair, block: bytes, ended: bool) -> None:
    end = b"\r\n\r\n" if ended else b""
    pair.refused(HEAD + block + end, 431, *([400] if block[:1] == b"y" else []))


def test_a_method_without_bounds(pair: Pair) -> None:
    pair.refused(b"G" * 200_000, 400, 414, 431)


def test_too_many_fields(pair: Pair) -> None:
    lines = b"".join(b"X-%d: y\r\n" % number for number in range(128))
    pair.refused(HEAD + lines + b"\r\n", 431)  # and Host: 129


def test_many_fields(pair: Pair) -> None:
    lines = b"".join(b"X-%d: y\r\n" % number for number in range(120))
    assert pair.forwarded(HEAD + lines + b"\r\n").field(b"x-119") == [b"y"]


def test_a_head_at_the_limit(http_pair: Pair) -> None:
    value = b"v" * 60_000
    assert http_pair.forwarded(HEAD + b"X: " + value + b"\r\n\r\n").field(b"x") == [value]


def test_a_stalled_reader_stops_the_node(start_gateway: StartGateway, kind: str) -> None:
    """The node's answer to a stalled reader costs a bounded buffer; the node waits meanwhile."""
    progress = [0]

    def endless(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300000000\r\n\r\n")
        for _ in range(3000):
            connection.send(b"x" * 100_000)
            progress[0] += 100_000
        return CLOSE

    with NODES[kind]() as node:
        node.play(endless)
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            client.send(HEAD + b"\r\n")
            client.read_exactly(100_000)
            last = -1
            while last != progress[0]:  # until the node is stopped by back-pressure
                last = progress[0]
                node.connections[0].go.wait(0.5)
            assert progress[0] < 60_000_000
            client.reset()
