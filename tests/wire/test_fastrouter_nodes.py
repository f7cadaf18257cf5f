"""The fastrouter before HTTP nodes, its tunnels, its log and its statistics."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fast import ask, fastrouter, packed, post, request, variables
from support.nodes import (
    CLOSE,
    Connection,
    RawHttpNode,
    RawUwsgiNode,
    Seen,
    SeenHttp,
    closing,
    response,
)
from support.uwgate import Gateway
from support.waiting import free_port, wait_until


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Gateway, RawHttpNode]]:
    with RawHttpNode() as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        yield gateway, node


@pytest.fixture
def http(shared: tuple[Gateway, RawHttpNode]) -> Iterator[tuple[Gateway, RawHttpNode]]:
    shared[1].reset()
    yield shared
    shared[1].check()


# --- HTTP nodes -------------------------------------------------------------------------------


def test_an_http_node_gets_a_request_in_http(http: tuple[Gateway, RawHttpNode]) -> None:
    gateway, node = http
    more = ((b"HTTP_USER_AGENT", b"curl"), (b"HTTP_X_FORWARDED_FOR", b"203.0.113.9"))
    for _ in range(3):
        reply = ask(gateway, request(b"/a?b", b"GET", b"www.test", *more))
        assert reply.body == b"GET /a?b 0"
    for seen in node.seen:
        assert isinstance(seen, SeenHttp)
        assert seen.fields == [
            (b"Host", b"www.test"),
            (b"User-Agent", b"curl"),
            (b"X-Forwarded-Host", b"www.test"),
            (b"X-Forwarded-For", b"192.0.2.7"),
            (b"X-Forwarded-Proto", b"http"),
        ]
    assert len({seen.connection for seen in node.seen}) == 1  # kept


def test_the_scheme_is_the_front_servers(http: tuple[Gateway, RawHttpNode]) -> None:
    gateway, node = http
    for more in ((b"HTTPS", b"on"), (b"REQUEST_SCHEME", b"https")):
        node.reset()
        assert ask(gateway, packed([*variables(), more])).status == 200
        assert node.only().field(b"X-Forwarded-Proto") == [b"https"]


@pytest.mark.parametrize("size", [1, 100_000, 2_000_000])
def test_bodies_for_http_nodes(http: tuple[Gateway, RawHttpNode], size: int) -> None:
    gateway, node = http
    assert ask(gateway, post(b"b" * size)).body == b"POST /x %d" % size
    assert node.only().field(b"Content-Length") == [b"%d" % size]


def test_chunked_responses_are_decoded(http: tuple[Gateway, RawHttpNode]) -> None:
    gateway, node = http

    def script(connection: Connection, seen: Seen) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (b"a" * 1000, b"b" * 70_000):
            connection.send(b"%x\r\n%b\r\n" % (len(part), part))
        connection.send(b"0\r\nTrailer: x\r\n\r\n")

    node.play(script)
    with gateway.connect() as client:
        client.send(request())
        data = client.read_to_end()
    assert data == b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 1000 + b"b" * 70_000
    assert ask(gateway, request()).status == 200  # over the same connection
    assert len({seen.connection for seen in node.seen}) == 1


@pytest.mark.parametrize(
    "packet",
    [
        request(b"/x", b"GET", b"h", (b"HTTP_A", b"b\r\nX-Evil: 1")),
        request(b"/x\r\nX-Evil: 1"),
        request(b"/x y"),
        request(b"/x", b"GET / HTTP/1.1\r\nX: "),
        request(b"/x", b"GET", b"h/../i"),
        request(b"/x", b"CONNECT"),
        post(b"ok", length=b"2") + b"",
    ],
)
def test_nothing_is_smuggled_through_variables(
    http: tuple[Gateway, RawHttpNode], packet: bytes
) -> None:
    gateway, node = http
    reply = ask(gateway, packet)
    assert reply.status == (200 if b"ok" in packet else 400)
    assert b"Evil" not in b"".join(seen.raw for seen in node.seen)


def test_a_body_without_a_length_is_refused_for_http_nodes(
    http: tuple[Gateway, RawHttpNode],
) -> None:
    gateway, node = http
    chunked = request(b"/x", b"POST", b"h", (b"HTTP_TRANSFER_ENCODING", b"chunked"))
    assert ask(gateway, chunked + b"2\r\nok\r\n0\r\n\r\n").status == 411
    assert not node.seen


def test_nodes_of_both_kinds() -> None:
    with RawHttpNode() as one, RawUwsgiNode("unix") as two:
        options = ["--fastrouter-to", one.spec, "--fastrouter-to", two.spec]
        with fastrouter(*options) as gateway:
            for _ in range(6):
                assert ask(gateway, request()).status == 200
        assert (len(one.seen), len(two.seen)) == (3, 3)


# --- tunnels ----------------------------------------------------------------------------------


def echoing(connection: Connection, seen: Seen) -> str:
    """Switches protocols, then sends back in capitals what comes, until the client is done."""
    connection.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    while b"bye" not in connection.buffer:
        connection.buffer += connection.receive()
    connection.send(connection.buffer.upper())
    return CLOSE


UPGRADE = request(
    b"/ws", b"GET", b"h", (b"HTTP_UPGRADE", b"websocket"), (b"HTTP_CONNECTION", b"Upgrade")
)


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
@pytest.mark.parametrize("early", [b"", b"early "])
def test_websockets(kind: str, early: bytes) -> None:
    node_type = RawHttpNode if kind == "http" else RawUwsgiNode
    with node_type() as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        node.play(echoing)
        with gateway.connect() as client:
            client.send(UPGRADE + early)
            reply = client.read_response(upgrade=b"websocket")
            assert reply.status == 101
            assert reply.get(b"upgrade") == b"websocket"
            client.send(b"hello ")
            client.send(b"bye")
            assert client.read_exactly(len(early) + 9) == (early + b"hello bye").upper()
            client.half_close()
            client.assert_closed()
        node.check()


def test_an_upgrade_that_was_not_asked_for() -> None:
    with RawUwsgiNode() as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        node.otherwise = echoing
        assert ask(gateway, request()).status == 502
        h2c = request(b"/x", b"GET", b"h", (b"HTTP_UPGRADE", b"h2c"))
        assert ask(gateway, h2c).status == 502


def test_an_upgrade_that_is_declined(tmp_path: Path) -> None:
    with RawUwsgiNode("unix") as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        assert ask(gateway, UPGRADE).body == b"GET /ws 0"
        node.play(closing(response(b"no", b"Upgrade: x", b"Connection: upgrade", status=b"426 U")))
        assert ask(gateway, UPGRADE).all(b"upgrade") == [b"x"]


def test_raw_sessions_pass_on_everything_both_ways() -> None:
    class Raw(RawUwsgiNode):
        def serve(self, connection: Connection) -> None:
            connection.fill(len(chunked) + 12)
            connection.send(b"anything at all")
            connection.fill(len(chunked) + 17)
            connection.send(b", to the end")

    chunked = request(b"/x", b"POST", b"h", (b"HTTP_TRANSFER_ENCODING", b"chunked"))
    with Raw("unix") as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        with gateway.connect() as client:
            client.send(chunked + b"2\r\nok\r\n")
            client.send(b"3\r\nno")
            assert client.read_exactly(15) == b"anything at all"
            client.send(b"0\r\n\r\n")
            assert client.read_to_end() == b", to the end"
        assert node.connections[0].received == chunked + b"2\r\nok\r\n3\r\nno0\r\n\r\n"


def test_large_tunnels_are_paced() -> None:
    total = 5_000_000

    class Sink(RawUwsgiNode):
        def serve(self, connection: Connection) -> None:
            connection.fill(len(UPGRADE))
            connection.take(len(UPGRADE))
            connection.send(
                b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            connection.take(total)
            connection.send(b"z" * total)

    with (
        Sink("unix") as node,
        fastrouter("--fastrouter-to", node.spec) as gateway,
        gateway.connect() as client,
    ):
        client.send(UPGRADE)
        assert client.read_response(upgrade=b"websocket").status == 101
        client.send(b"a" * total)
        assert client.read_exactly(total) == b"z" * total


# --- log and statistics ------------------------------------------------------------------------


def test_the_request_log_knows_the_variables(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    options = ["--http-log-file", str(log), "--http-log-format", "json"]
    with RawUwsgiNode("unix") as node:
        with fastrouter("--fastrouter-to", node.spec, *options) as gateway:
            agent = (b"HTTP_USER_AGENT", b"tester")
            assert ask(gateway, request(b"/logged?x", b"GET", b"h", agent)).status == 200
            assert ask(gateway, post(b"body")).status == 200
            assert ask(gateway, packed([(b"A", b"b")])).status == 400
            wait_until(lambda: log.exists() and log.read_text().count("\n") == 3, "three lines")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    text = json.dumps(lines[0])
    assert "/logged?x" in text
    assert "192.0.2.7" in text
    assert [line["status"] for line in lines] == [200, 200, 400]


@pytest.mark.parametrize("option", ["--fastrouter-stats", "--fastrouter-ss", "--http-stats"])
def test_statistics(option: str) -> None:
    port = free_port()
    with RawUwsgiNode("unix") as node:
        options = ["--fastrouter-to", node.spec, option, f"127.0.0.1:{port}"]
        with fastrouter(*options, "--fastrouter-processes", "2") as gateway:
            for _ in range(5):
                assert ask(gateway, request()).status == 200
            assert ask(gateway, packed([(b"A", b"b")])).status == 400
            with socket.create_connection(("127.0.0.1", port)) as sock:
                parts = []
                while part := sock.recv(65536):
                    parts.append(part)
    document = json.loads(b"".join(parts))
    assert document["fastrouter"] == [gateway.listen]
    assert document["static_nodes"][0]["hits"] == 5
    assert document["static_nodes"][0]["active"] == 0
    assert document["active_sessions"] == 0
    assert document["responses"] == {"200": 5, "400": 1}
    assert document["counters"]["requests"] == 5
    assert document["counters"]["accepted"] >= 6
    assert document["counters"]["node_connects"] == 5
    assert document["errors"]["bad-host"] == 1


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    listen = str(tmp_path / "router.sock")
    with (
        RawUwsgiNode("unix") as node,
        fastrouter("--fastrouter-to", node.spec, listen=listen) as gateway,
    ):
        spawned = re.compile(r"spawned uwgate fastrouter 1 \(pid: ([0-9]+)\)")
        wait_until(lambda: spawned.search(gateway.log), "the worker")
        found = spawned.search(gateway.log)
        assert found is not None
        os.kill(int(found[1]), signal.SIGKILL)
        wait_until(lambda: "respawned uwgate fastrouter 1" in gateway.log, "the new worker")
        assert ask(gateway, request()).status == 200
