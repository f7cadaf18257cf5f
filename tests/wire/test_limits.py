"""Limits of size and time: 408, 413, 414, 431, 504; slow clients, silent nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from support.client import Client
from support.nodes import CLOSE, NODES, Connection, Seen, default_answer, silent
from support.uwgate import StartGateway, running

from wire.conftest import Pair

HEAD = b"GET /l HTTP/1.1\r\nHost: h\r\n"
SLACK = 3.0
"""Seconds by which a limit may be overrun: deadlines are checked once a second."""


Scenario = Callable[[Pair], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Add a slow test: all of them run at the same time, before the first result is looked at."""
    SCENARIOS[function.__name__] = function
    return function


def _answer(connection: Connection, seen: Seen) -> str | None:
    if seen.target == b"/silent":
        return silent(connection, seen)
    if seen.target == b"/stall":
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        connection.drain()
        return CLOSE
    default_answer(connection, seen)
    return None


@pytest.fixture(scope="module")
def hasty_pairs() -> Iterator[dict[str, Pair]]:
    """Gateways with short limits."""
    with ExitStack() as stack:
        pairs = {}
        for kind, make in NODES.items():
            node = stack.enter_context(make())
            gateway = stack.enter_context(
                running(
                    *("--http-to", node.spec, "--http-headers-timeout", "1"),
                    *("--http-timeout", "2", "--http-keepalive=2", "--http-max-body", "10"),
                )
            )
            pairs[kind] = Pair(kind, gateway, node)
        yield pairs


@pytest.fixture(scope="module")
def outcomes(hasty_pairs: dict[str, Pair]) -> dict[tuple[str, str], Future[None]]:
    """The finished scenarios by kind of node and name."""
    for pair in hasty_pairs.values():
        pair.node.otherwise = _answer
    with ThreadPoolExecutor(32) as pool:
        return {
            (kind, name): pool.submit(function, pair)
            for kind, pair in hasty_pairs.items()
            for name, function in SCENARIOS.items()
        }


@pytest.fixture
def hasty(kind: str, hasty_pairs: dict[str, Pair], outcomes: object) -> Pair:
    """A gateway with short limits once the scenarios are through; its node is reset."""
    hasty_pairs[kind].node.reset()
    return hasty_pairs[kind]


def _trickled(pair: Pair, target: bytes, begin: bytes) -> None:
    """A head that comes byte by byte is cut at its deadline, and nothing reaches the node."""
    with pair.connect() as client:
        client.send(begin)
        assert _trickle(client, 0.2, b"a") <= 1 + SLACK
        reply = client.read_response()
        assert (reply.status, reply.closes) == (408, True)
        client.assert_closed()
    assert not [seen for seen in pair.node.seen if seen.target == target]


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


@scenario
def trickled_method(pair: Pair) -> None:
    _trickled(pair, b"", b"G")


@scenario
def trickled_target(pair: Pair) -> None:
    _trickled(pair, b"/trickled", b"GET /trickled")


@scenario
def trickled_value(pair: Pair) -> None:
    _trickled(pair, b"/value", b"GET /value HTTP/1.1\r\nHost: h\r\nX: ")


@scenario
def trickled_second_head(pair: Pair) -> None:
    with pair.connect() as client:
        client.assert_open()
        client.send(b"GET /second")
        assert _trickle(client, 0.2, b"a") <= 1 + SLACK
        assert client.read_response().status == 408


def _starved(pair: Pair, target: bytes, body: bytes) -> None:
    """A body that does not come: 408, and no whole request at the node."""
    with pair.connect() as client:
        client.send(b"POST " + target + b" HTTP/1.1\r\nHost: h\r\n" + body)
        reply = client.read_response(b"POST")
        assert (reply.status, reply.closes) == (408, True)
        client.assert_closed()
    assert not [seen for seen in pair.node.seen if seen.target == target]


@scenario
def starved_length(pair: Pair) -> None:
    _starved(pair, b"/starved", b"Content-Length: 9\r\n\r\nabc")


@scenario
def starved_chunks(pair: Pair) -> None:
    _starved(pair, b"/starved-chunks", b"Transfer-Encoding: chunked\r\n\r\n1\r\n")


@scenario
def silent_node(pair: Pair) -> None:
    for method in (b"GET", b"POST"):
        with pair.connect() as client:
            reply = client.ask(method + b" /silent HTTP/1.1\r\nHost: h\r\n\r\n", method)
            assert reply.status == 504
    # Neither is sent again: the node may be at work on it.
    assert len([seen for seen in pair.node.seen if seen.target == b"/silent"]) == 2


@scenario
def stalled_node(pair: Pair) -> None:
    with pair.connect() as client:
        client.send(b"GET /stall HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.read_to_end().endswith(b"\r\n\r\nabc")


@scenario
def idle_client(pair: Pair) -> None:
    with pair.connect() as client:
        client.assert_open()
        started = time.monotonic()
        assert client.read_to_end() == b"", "an idle client is let go without a word"
        assert 0.9 <= time.monotonic() - started <= 2 + SLACK


@pytest.mark.parametrize("name", SCENARIOS)
def test_slow(kind: str, name: str, outcomes: dict[tuple[str, str], Future[None]]) -> None:
    outcomes[kind, name].result()


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
