"""What an honest client of HTTP/2 gets in the corners: ends, tunnels, memory, and time."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from support.http2_raw import WINDOW, RawHttp2, at, data, fields, raw, window_update
from support.nodes import NODES, Connection, RawHttpNode, RawUwsgiNode, Seen, held, response
from support.served import memory, worker_of
from support.uwgate import running
from support.waiting import free_port, wait_until

UPGRADE = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"),
           (":path", "/small.txt"), (":authority", "localhost"),
           ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")]  # fmt: skip
SWITCH = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
LARGE = 2**31 - 1
WEBSOCKETS = "--http-websockets"


def over(client: RawHttp2, stream: int) -> None:
    """The stream has ended, one way or the other."""

    def is_over(frame: object) -> bool:
        answer = client.answers.get(stream)
        return answer is not None and (answer.ended or answer.reset is not None)

    client.wait(is_over, "its end")


def statistics(port: int) -> dict[str, int]:
    """What the statistics say of HTTP/2."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        text = b"".join(iter(lambda: sock.recv(65536), b""))
    found: dict[str, int] = json.loads(text)["http2"]
    return found


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", ["u=3", "u=5", "i", "u=5,i"])
@pytest.mark.parametrize("rest", [b"", b"x: y\r\n"], ids=["empty", "trailer"])
def test_an_end_needs_no_window(priority: str, rest: bytes) -> None:
    def answer(connection: Connection, seen: Seen) -> None:
        if seen.target == b"/large":
            connection.send(response(bytes(200_000)))
        else:
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.send(head + b"0\r\n" + rest + b"\r\n")

    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = answer
        with at(gateway, {WINDOW: 2**20}) as client:
            client.send(client.headers(1, fields("GET", "/large")))
            client.wait(lambda frame: client.answers[1].size == 65_535, "all that the window takes")
            asked = time.monotonic()
            client.send(client.headers(3, fields("GET", "/", ("priority", priority))))
            over(client, 3)
            assert client.answers[3].ended
            assert time.monotonic() - asked < 5


def test_the_end_of_a_connection_that_nobody_reads(tmp_path: Path) -> None:
    """Half-closed by its client, and the rest of the last response in our buffer."""
    where, port = str(tmp_path / "socket"), free_port()
    options = ("--http-timeout", "1", "--http-keepalive=1", "--http-headers-timeout", "1",
               "--http-stats", f"127.0.0.1:{port}")  # fmt: skip

    with (
        RawHttpNode() as node,
        running("--http-to", node.spec, *options, listen=where) as gateway,
    ):
        clients = []
        for size in range(200_000, 300_000, 10_000):
            client = at(gateway, {WINDOW: LARGE})
            node.play(response(bytes(size)))
            client.send(window_update(0, 2**30), client.headers(1))
            node.wait_seen(len(clients) + 1)
            clients.append(client)
        for client in clients:
            client.sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: statistics(port)["connections"] == 0, "the connections to end", 20)
        for client in clients:
            client.sock.close()


def test_a_busy_connection_is_not_slow() -> None:
    """Each read ends in the middle of a frame, of another one each time."""
    options = ("--http-headers-timeout", "1")
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec, *options) as gateway,
        at(gateway) as client,
    ):
        rest, stream, until = b"", 1, time.monotonic() + 3.5
        while time.monotonic() < until:
            frame = client.headers(stream)
            cut = len(frame) // 2
            client.send(rest + frame[:cut])
            rest = frame[cut:]
            if stream > 1:
                client.finished(stream - 2)
            stream += 2
        client.send(rest)
        client.assert_answered(stream - 2)


# --- tunnels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_a_tunnel_that_its_node_ends_loses_nothing(kind: str, version: str, late: bool) -> None:
    """What the node has not taken when both have ended it is still its own. ``late``: the node ends
    when the client has, or is about to."""
    gate, got = threading.Event(), []

    def tunnel(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        if not late:
            connection.half_close()
        assert gate.wait(10)
        if late:
            connection.half_close()
        got.append(len(connection.take_to_end()))
        return "close"

    size = 1_000_000
    options = ("--http2-window", "4000000", "--http2-connection-window", "8000000",
               "--http-websockets")  # fmt: skip
    with NODES[kind]("unix") as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = tunnel
        if version == "2":
            client = at(gateway)
            client.send(client.headers(1, UPGRADE, end=False))
            client.wait(lambda frame: client.answers.get(1), "the tunnel")
            pieces = [data(1, bytes(16_000), end=False)] * (size // 16_000)
            client.send(*pieces, data(1, bytes(size % 16_000)))
            client.assert_read()
            sock = client.sock
        else:
            sock = socket.create_connection(gateway.address, 10)  # type: ignore[arg-type]
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                         b"Upgrade: websocket\r\n\r\n")  # fmt: skip
            assert sock.recv(1000).startswith(b"HTTP/1.1 101")
            sender = threading.Thread(target=sock.sendall, args=(bytes(size),))
            sender.start()
        gate.set()
        if version == "1":
            sender.join()
            sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: got, "the node to have it all", 20)
        assert got == [size]
        sock.close()


@pytest.mark.parametrize("end", ["reset", "close"])
@pytest.mark.parametrize("late", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_a_tunnel_whose_node_is_gone_is_over(kind: str, late: bool, end: str) -> None:
    """What is kept for the node keeps nothing open."""
    read, gate = threading.Event(), threading.Event()

    def tunnel(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        if not late:
            connection.half_close()
        assert read.wait(20)
        if late:
            connection.half_close()
        assert gate.wait(20)
        if end == "reset":
            connection.reset()
        return "close"

    port = free_port()
    options = ("--http2-window", "100000000", "--http2-connection-window", "200000000",
               "--http-websockets", "--http-stats", f"127.0.0.1:{port}")  # fmt: skip
    with NODES[kind]("tcp") as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = tunnel
        with at(gateway) as client:
            client.send(client.headers(1, UPGRADE, end=False))
            client.wait(lambda frame: client.answers.get(1), "the tunnel")
            client.send(*[data(1, bytes(16_000), end=False)] * 1500, data(1, b""))
            client.assert_read()
            read.set()
            if late:
                client.wait(lambda frame: client.answers[1].ended, "the node's end")
            assert statistics(port)["streams"] == 1
            gate.set()
            wait_until(lambda: statistics(port)["streams"] == 0, "the end of the tunnel")


@pytest.mark.parametrize("where", ["unix", "tcp"])
@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_what_a_node_says_with_101_before_its_end_arrives(kind: str, where: str) -> None:
    """Though nothing can be written to it any more by then."""
    gate, sent = threading.Event(), threading.Event()

    def tunnel(connection: Connection, seen: Seen) -> str:
        assert gate.wait(10)
        connection.send(SWITCH + b"hello")
        connection.take_to_end() if where == "tcp" else connection.shut()
        sent.set()
        return "close"

    with NODES[kind](where) as node, running("--http-to", node.spec, WEBSOCKETS) as gateway:
        node.otherwise = tunnel
        worker = worker_of(gateway)
        with at(gateway) as client:
            client.send(client.headers(1, UPGRADE, end=False), data(1, b"early", end=False))
            node.wait_seen()
            os.kill(worker, signal.SIGSTOP)
            gate.set()
            if where == "unix":
                assert sent.wait(10)
            os.kill(worker, signal.SIGCONT)
            client.wait(lambda frame: client.answers[1].size == 5, "what it said")
            client.send(data(1, b""))
            over(client, 1)


def test_a_node_that_does_not_read_goes_on_in_a_tunnel() -> None:
    """What the client says is lost, by its own will: not what it says itself."""
    heard = threading.Event()

    def tunnel(connection: Connection, seen: Seen) -> str:
        connection.sock.shutdown(socket.SHUT_RD)
        connection.send(SWITCH)
        assert heard.wait(10)
        for number in range(10):
            connection.send(b"event %d" % number)
            time.sleep(0.01)
        return "close"

    with RawUwsgiNode("unix") as node, running("--http-to", node.spec, WEBSOCKETS) as gateway:
        node.otherwise = tunnel
        with at(gateway) as client:
            client.send(client.headers(1, UPGRADE, end=False))
            client.wait(lambda frame: client.answers.get(1), "the tunnel")
            client.send(data(1, b"x", end=False))
            client.assert_read()
            heard.set()
            over(client, 1)
            assert client.answers[1].size == 70


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_a_tunnel_that_its_node_breaks(kind: str) -> None:
    """RFC 8441 §5: a reset is a reset, an end is an end."""
    gate = threading.Event()

    def broken(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH + b"hello")
        assert gate.wait(10)
        connection.reset()
        return "close"

    with NODES[kind]() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        node.play(broken)
        client.send(client.headers(1, UPGRADE, end=False))
        client.wait(lambda frame: client.answers.get(1) and client.answers[1].size == 5, "hello")
        gate.set()
        over(client, 1)
        assert client.answers[1].reset == ErrorCodes.CANCEL
        client.assert_alive()


def test_a_tunnel_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("hello")
    options = ("--check-static", str(tmp_path))
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec, *options) as gateway,
        at(gateway) as client,
    ):
        client.send(client.headers(1, UPGRADE, end=False))
        over(client, 1)
        assert client.answers[1].reset is not None
        assert not client.answers[1].ended
        client.assert_alive()


def test_a_tunnel_has_one_key() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        client.send(client.headers(1, UPGRADE, end=False))
        (seen,) = node.wait_seen()
        assert seen.raw.lower().count(b"sec-websocket-key:") == 1
        client.send(client.headers(3, fields("GET", "/", ("sec-websocket-key", "abc"))))
        client.assert_answered(3)
        assert b"\r\nsec-websocket-key: abc\r\n" in node.seen[1].raw.lower()


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["path", "field"])
def test_long_requests_are_not_kept(where: str) -> None:
    """Neither by what all connections share, nor by connections that are idle."""
    with RawUwsgiNode() as node, running("--http-to", node.spec, "--http-processes=1") as gateway:
        node.otherwise = response()
        clients = [at(gateway) for _ in range(20)]
        before = memory(worker_of(gateway))
        for number, client in enumerate(clients):
            for stream in range(1, 31, 2):
                long = f"{number}-{stream}-" + "!" * 28_000
                block = b"\x82\x86\x41\x01h"
                if where == "path":
                    block += literal(b"\x04", "/" + long)
                else:
                    block += b"\x84" + literal(b"\x00\x01x", long)
                first, rest = block[:16_000], block[16_000:]
                client.send(raw(1, 1, stream, first), raw(9, 4, stream, rest))
                assert client.finished(stream).status == 200
                node.seen.clear()
        assert memory(worker_of(gateway)) - before < 12_000_000
        for client in clients:
            client.sock.close()


def literal(name: bytes, value: str) -> bytes:
    """A field that is not to be indexed."""
    length, out = len(value) - 127, bytearray(name + b"\x7f")
    if length < 0:
        return name + bytes([len(value)]) + value.encode()
    while length >= 128:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes(out) + bytes([length]) + value.encode()


def test_what_was_given_up_weighs_nothing() -> None:
    """Connections that were ended do not count among those that hold too much."""
    gate = threading.Event()
    options = ("--http2-max-queued", "65536")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = held(gate, response(bytes(60_000)))
        gate.set()
        for _ in range(60):
            with at(gateway, {WINDOW: 0}) as client:
                client.send(*(client.headers(stream) for stream in (1, 3, 5, 7)))
                client.wait(lambda frame: len(client.answers) >= 2, "heads")
                client.send(raw(6, 0, 1, bytes(8)))  # PING on a stream
                while client.receive(time.monotonic() + 10) is not None:
                    pass
        with at(gateway, {WINDOW: 0}) as client:
            client.send(*(client.headers(stream) for stream in (1, 3, 5, 7)))
            client.wait(lambda frame: len(client.answers) >= 2, "heads")
            client.assert_alive()
