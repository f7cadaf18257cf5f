"""Connections of clients: keep-alive, pipelining, half-close (RFC 9112 §9)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest
from support.client import Client
from support.nodes import Connection, RawHttpNode, Seen, closing, held, response
from support.served import worker_of
from support.uwgate import StartGateway
from support.waiting import free_port, wait_until

from wire.conftest import Pair

GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: close",
        b"connection:Close",
        b"Connection: keep-alive, close",
        b"Connection: close, X-A",
        b"Connection: ,,close ,",
        b"Connection: keep-alive\r\nConnection: close",
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_close_closes(pair: Pair, lines: bytes, version: bytes) -> None:
    # RFC 9112 §9.6: no further request is processed on the connection.
    with pair.connect() as client:
        request = b"GET /1 HTTP/" + version + b"\r\nHost: h\r\n" + lines + b"\r\n\r\n"
        client.send(request + GET % 2)
        reply = client.read_response()
        assert (reply.status, reply.body) == (200, b"GET /1 0")
        assert reply.closes
        client.assert_closed()
    assert [each.target for each in pair.node.seen] == [b"/1"]


def test_http10_closes_by_itself(pair: Pair) -> None:
    with pair.connect() as client:
        reply = client.ask(b"GET /1 HTTP/1.0\r\nHost: h\r\n\r\n" + GET % 2)
        assert reply.status == 200
        client.assert_closed()
    assert len(pair.node.seen) == 1


def test_http10_stays_open_on_request(pair: Pair) -> None:
    request = b"GET /%d HTTP/1.0\r\nHost: h\r\nConnection: Keep-Alive\r\n\r\n"
    with pair.connect() as client:
        for number in range(3):
            reply = client.ask(request % number)
            assert (reply.get(b"connection") or b"").lower() == b"keep-alive"
            assert reply.body == b"GET /%d 0" % number
        assert client.ask(b"GET /4 HTTP/1.0\r\nHost: h\r\n\r\n").status == 200
        client.assert_closed()


@pytest.mark.parametrize(
    "answer",
    [
        closing(b"HTTP/1.1 200 OK\r\n\r\nabc"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_http10_closes_where_only_that_ends_the_body(pair: Pair, answer: bytes) -> None:
    pair.node.play(answer)
    with pair.connect() as client:
        client.send(b"GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n")
        reply = client.read_response()
        assert reply.body == b"abc"
        assert b"keep-alive" not in (reply.get(b"connection") or b"").lower()
        client.assert_closed()


def test_keepalive_can_be_turned_off(start_gateway: StartGateway, http_node: RawHttpNode) -> None:
    gateway = start_gateway("--http-to", http_node.spec, "--http-keepalive=0")
    with gateway.connect() as client:
        reply = client.ask(GET % 1)
        assert reply.status == 200
        assert reply.closes
        client.assert_closed()


TRAP = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
MIXED: list[tuple[bytes, bytes, int]] = [  # method, framing field and body, length of the body
    (b"GET", b"\r\n", 0),
    (b"POST", b"Content-Length: 5\r\n\r\nhello", 5),
    (b"HEAD", b"\r\n", 0),
    (b"POST", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 3),
    (b"PUT", b"Content-Length: %d\r\n\r\n" % len(TRAP) + TRAP, len(TRAP)),
    (b"DELETE", b"\r\n", 0),
    (b"POST", b"Content-Length: 0\r\n\r\n", 0),
    (b"POST", b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", 0),
    (b"OPTIONS", b"\r\n", 0),
]


@pytest.mark.parametrize("step", [1, 7, 64, 100_000])
def test_pipelined_requests_are_answered_in_order(pair: Pair, step: int) -> None:
    expected = [(m, b"/%d" % number, size) for number, (m, _, size) in enumerate(MIXED * 2)]
    stream = b"".join(
        b"%s /%d HTTP/1.1\r\nHost: h\r\n%s" % (method, number, rest)
        for number, (method, rest, _) in enumerate(MIXED * 2)
    )
    with pair.connect() as client:
        client.send_pieces(stream[i : i + step] for i in range(0, len(stream), step))
        for method, target, size in expected:
            reply = client.read_response(method)
            assert reply.status == 200
            body = b"" if method == b"HEAD" else b"%s %s %d" % (method, target, size)
            assert reply.body == body
        client.assert_open()
    seen = [(each.method, each.target, len(each.body)) for each in pair.node.seen[:-1]]
    assert seen == expected


def test_a_slow_answer_holds_back_the_next(pair: Pair) -> None:
    gate = threading.Event()
    pair.node.play(held(gate, response(b"slow")))
    with pair.connect() as client:
        client.send(GET % 1 + GET % 2)
        pair.node.wait_seen(1)
        gate.set()
        assert client.read_response().body == b"slow"
        assert client.read_response().body == b"GET /2 0"


@pytest.mark.parametrize(
    "bad",
    [
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_a_bad_request_after_good_ones_does_not_harm_them(pair: Pair, bad: bytes) -> None:
    with pair.connect() as client:
        client.send(GET % 1 + GET % 2 + bad + GET % 3)
        assert client.read_response().body == b"GET /1 0"
        assert client.read_response().body == b"GET /2 0"
        reply = client.read_response()
        assert reply.status in (400, 501)
        assert reply.closes
        client.assert_closed()
    assert [each.target for each in pair.node.seen] == [b"/1", b"/2"]


@pytest.mark.parametrize("count", [1, 3])
def test_a_half_closed_client_gets_its_answers(pair: Pair, count: int) -> None:
    with pair.connect() as client:
        client.send(b"".join(GET % number for number in range(count)))
        client.half_close()
        for number in range(count):
            assert client.read_response().body == b"GET /%d 0" % number
        client.assert_closed()


@pytest.mark.parametrize(
    "cut",
    [
        b"GET /2 HTTP/1.1\r\nHost",
        b"POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n",
        b"POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx",
        b"POST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r",
    ],
)
def test_a_half_closed_client_with_half_a_request_is_let_go(pair: Pair, cut: bytes) -> None:
    gate = threading.Event()
    pair.node.play(held(gate, response(b"slow")))
    with pair.connect() as client:
        client.send(GET % 1 + cut)
        pair.node.wait_seen(1)
        client.half_close()
        gate.set()
        assert client.read_response().body == b"slow"
        rest = client.read_to_end()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")
    pair.node.seen.clear()
    pair.assert_no_request()


def test_thousands_of_pipelined_requests(pair: Pair) -> None:
    """More than any read-ahead holds: the rest waits in the socket and is not lost."""
    count = 4000
    with pair.connect() as client:
        sender = threading.Thread(
            target=client.send, args=(b"".join(GET % number for number in range(count)),)
        )
        sender.start()
        for number in range(count):
            assert client.read_response().body == b"GET /%d 0" % number
        sender.join()
        client.assert_open()


def test_half_close_while_the_node_thinks(pair: Pair) -> None:
    gate = threading.Event()
    body = b"x" * 500_000
    pair.node.play(held(gate, response(body)))
    with pair.connect() as client:
        client.send(b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok")
        client.half_close()
        assert pair.node.wait_seen(1)[0].body == b"ok"
        gate.set()
        assert client.read_response(b"POST").body == body
        client.assert_closed()


def test_a_client_that_leaves_frees_the_node(pair: Pair) -> None:
    def endless(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            connection.send(b"x" * 65536)

    pair.node.play(endless)
    with pair.connect() as client:
        client.send(GET % 1)
        client.read_exactly(100_000)
        client.reset()
    number = pair.node.only().connection
    (used,) = [each for each in pair.node.connections if each.number == number]
    wait_until(lambda: used.closed, "the node connection to end")
    pair.node.reset()
    pair.assert_no_request()


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: h\r\n", b"\r\n"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_before_its_request_is_complete(
    pair: Pair, sent: bytes, reset: bool
) -> None:
    with pair.connect() as client:
        client.send(sent)
        if reset:
            client.reset()
        else:
            client.half_close()
            rest = client.read_to_end()
            assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")
    pair.assert_untouched()


class EarlyNode(RawHttpNode):
    """Answers as soon as it has a head, and reads no body."""

    def serve(self, connection: Connection) -> None:
        while True:
            connection.take_until(b"\r\n\r\n")
            connection.send(response(b"early", status=b"403 Forbidden"))


def test_an_early_answer_does_not_poison_the_node_connection(start_gateway: StartGateway) -> None:
    with EarlyNode() as node:
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client, gateway.connect() as other:
            client.send(b"POST /big HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nabc")
            reply = client.read_response(b"POST")
            assert (reply.status, reply.body) == (403, b"early")
            assert other.ask(GET % 2).status == 403
            assert node.accepted == 2
            client.send_willing(b"x" * 999_997)  # taken and thrown away, or the connection ends
            if not reply.closes:
                assert client.ask(GET % 3).status == 403


def test_a_node_that_has_not_taken_a_request_gets_no_other_behind_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """It answers all the same; what it has not taken yet goes there, whole and in its order."""
    fill = b"X: %b\r\n" % (b"x" * 3500)
    port = free_port()
    options = ("--http-to", f"http://{tmp_path}/node", "--http-stats", f"127.0.0.1:{port}")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{tmp_path}/node")
        listener.listen()
        listener.settimeout(10)
        client = stack.enter_context(start_gateway(*options).connect())
        nodes: list[socket.socket] = []
        for number in range(1, 100):  # more than the kernel takes
            client.send(b"GET /%d HTTP/1.1\r\nHost: h\r\n%b\r\n" % (number, fill))
            wait_until(lambda: sum(_sent(port)) == number, "the request")  # noqa: B023
            if len(nodes) < _sent(port)[0]:
                nodes.append(stack.enter_context(listener.accept()[0]))
            nodes[-1].sendall(response(b"", b"Date: Sat, 28 Nov 2026 00:00:00 GMT"))
            assert client.read_response().status == 200
            if len(nodes) == 2:
                break
        nodes[0].settimeout(10)
        taken = b""
        while more := nodes[0].recv(1 << 20):
            taken += more
    heads = taken.split(b"\r\n\r\n")
    assert [head.split(b" ", 2)[1] for head in heads[:-1]] == [b"/%d" % n for n in range(1, number)]
    assert all(head.count(b"x" * 3500) == 1 for head in heads[:-1])
    assert not heads[-1]


def _sent(port: int) -> list[int]:
    """Requests over new connections to nodes, and over others, as the statistics say."""
    with Client(("127.0.0.1", port)) as client:
        client.send(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = client.read_to_end()
    found = re.findall(rb"\nuwgate_upstream_(?:connects|reuses)_total[^\n]* (\d+)", text)
    return [int(each) for each in found] or [0]


@pytest.mark.parametrize("method", [b"GET", b"DELETE"])
def test_a_node_that_speaks_unasked_serves_no_request_twice(
    start_gateway: StartGateway, method: bytes
) -> None:
    """Its connection was idle, and is given up in the turn in which a request comes."""
    said = b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n"
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec)
        worker = worker_of(gateway)
        with gateway.connect() as client:
            for number in range(8):
                node.reset()
                assert client.ask(method + GET[3:] % number, method).status == 200
                idle = node.connections[-1]
                os.kill(worker, signal.SIGSTOP)
                idle.send(said)
                client.send(method + GET[3:] % (100 + number))
                os.kill(worker, signal.SIGCONT)
                client.read_response(method)  # if it comes first, that answer is its own
                wait_until(lambda: node.open_connections() <= 1, "the other one is gone")
                assert [seen.target for seen in node.seen].count(b"/%d" % (100 + number)) <= 1
