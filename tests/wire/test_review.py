"""Orders of events that a state machine forgets: pauses that outlive their cause, early answers,
half-closed tunnels, stalled peers (RFC 9112 §9; the gateway's data path rules 4, 5, 7)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.client import Client, Truncated
from support.nodes import (
    NODES,
    Connection,
    RawHttpNode,
    RawUwsgiNode,
    Seen,
    default_answer,
    response,
    silent,
)
from support.uwgate import StartGateway
from support.waiting import DEADLINE, wait_until

GET = b"GET /%b HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = b"GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
MB = 1 << 20


@contextmanager
def unix_listener(backlog: int = 64) -> Iterator[tuple[socket.socket, str]]:
    """A unix socket that the test serves by itself: its buffers are small and of known size."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(folder, "node.sock")
        listener.bind(path)
        listener.listen(backlog)
        listener.settimeout(DEADLINE)
        yield listener, path


def accepted(listener: socket.socket) -> socket.socket:
    """The next connection."""
    sock, _ = listener.accept()
    sock.settimeout(DEADLINE)
    return sock


def read_head(sock: socket.socket) -> bytes:
    """Bytes up to the end of a head, not one more."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, data
        data += byte
    return data


def stuffed(sock: socket.socket, most: int) -> int:
    """Send until nobody takes more for a second, at most ``most`` bytes; the bytes taken."""
    sock.settimeout(1.0)
    sent, piece = 0, b"x" * 65536
    try:
        while sent < most:
            sent += sock.send(piece[: most - sent])
    except TimeoutError:
        pass
    sock.settimeout(DEADLINE)
    return sent


def next_connection(listener: socket.socket, used: socket.socket, unread: int) -> socket.socket:
    """Where the next request comes: a new connection, or ``used`` behind its unread bytes."""
    while unread and (data := used.recv(unread)):
        unread -= len(data)
    ready, _, _ = select.select([listener, used], [], [], 5)
    assert ready, "the next request did not reach the node"
    if listener in ready or unread or not used.recv(1, socket.MSG_PEEK):  # the old one's end
        return accepted(listener)
    return used


def slow_mapper(folder: Path, address: str | None) -> Path:
    """A code mapper that takes half a second to return ``address``."""
    mapper = folder / "mapper.py"
    mapper.write_text(
        "import asyncio\n"
        "async def find(key):\n"
        "    await asyncio.sleep(0.5)\n"
        f"    return {address!r}\n"
    )
    return mapper


def settled(value: Callable[[], int], most: int) -> int:
    """``value()`` once it has not changed for a second, or is at least ``most``."""
    last, since = value(), time.monotonic()
    limit = since + 3 * DEADLINE
    while last < most and time.monotonic() - since < 1.0 and time.monotonic() < limit:
        now = value()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.01)
    return last


def counters(stats: str) -> dict[str, int]:
    """The gateway's counters as ``/metrics`` tells them, labels cut off."""
    body = ""
    while not body:
        with Client(stats) as client, contextlib.suppress(Truncated):
            # Who says nothing for a fifth of a second, beside this load, gets uWSGI's document.
            client.send(b"GET /metrics HTTP/1.1\r\nHost: s\r\n\r\n")
            body = client.read_response().body.decode()
    found: dict[str, int] = {}
    for line in body.splitlines():
        if line and not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0) + int(float(number))
    return found


# --- back-pressure -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_pipelined_responses_wait_for_the_reader(start_gateway: StartGateway, kind: str) -> None:
    # Rule 5. A pause that came with the last bytes of one response holds for the next one, too.
    page = response(b"x" * 50_000, b"Date: Sat, 21 Nov 2026 09:00:00 GMT")
    with NODES[kind]() as node:
        node.otherwise = page
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send((GET % b"p") * 1500)
            count = settled(lambda: len(node.seen), 1500)
        assert count * 50_000 < 24 * MB, f"{count} responses of 50 KB are held for a stalled reader"


def test_big_response_behind_a_pause_waits_for_the_reader(start_gateway: StartGateway) -> None:
    # The same, one request after the other is enough: 300 MB behind small ones.
    sent = 0

    def answer(connection: Connection, seen: Seen) -> None:
        nonlocal sent
        if seen.target != b"/big":
            connection.send(response(b"x" * 50_000))
            return
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * MB))
        for _ in range(200):
            connection.send(bytes(MB))
            sent += 1

    with RawHttpNode() as node:
        node.otherwise = answer
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send((GET % b"p") * 200 + GET % b"big")
            assert settled(lambda: sent, 100) < 24


@pytest.mark.parametrize("scheme", ["http://", "uwsgi://"])
def test_upload_to_a_new_connection_waits_for_the_node(
    start_gateway: StartGateway, tmp_path: Path, scheme: str
) -> None:
    # Rule 5. What came while a node was looked for already fills the connection: the pause stays.
    with unix_listener() as (listener, path):
        mapper = slow_mapper(tmp_path, scheme + path)
        gateway = start_gateway("--http-use-code-string", f"0:{mapper}:find")
        with gateway.connect() as client:
            head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (200 * MB)
            client.send(head + bytes(60_000))  # alone no reason to pause
            client.send(bytes(400_000))  # together more than a unix socket takes
            with accepted(listener):
                assert stuffed(client.sock, 100 * MB) < 24 * MB


# --- pauses that outlive their cause -------------------------------------------------------------


def test_connection_goes_on_after_a_failure_with_a_held_body(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # The body was held back until a node is found; none is. The next request must be read.
    mapper = slow_mapper(tmp_path, None)
    gateway = start_gateway(
        "--http-use-code-string", f"0:{mapper}:find", "--http-keepalive=30", "--http-timeout", "30"
    )
    with gateway.connect() as client:
        body = bytes(100_000)
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n" + body)
        reply = client.read_response()
        assert reply.status == 503
        if not reply.closes:
            assert client.ask(GET % b"next").status == 503


def test_connection_goes_on_after_an_early_answer(start_gateway: StartGateway) -> None:
    # Rule 7. The node answers without reading the body, whose end lies in our buffer: that
    # connection is no good any more, and the client, if kept, must be read again.
    with unix_listener() as (listener, path), tempfile.TemporaryDirectory() as folder:
        stats = os.path.join(folder, "stats")
        gateway = start_gateway(
            "--http-to", "http://" + path, "--http-stats", stats, "--http-keepalive=30"
        )
        # Connections are taken in before the statistics are there.
        wait_until(lambda: os.path.exists(stats), "the statistics")
        sizes = range(200_000, 460_000, 20_000)
        for size in sizes:
            before = counters(stats)["uwgate_received_bytes_total"]
            with gateway.connect() as client:
                head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size
                client.send(head)
                with accepted(listener) as node:
                    read_head(node)
                    client.send(bytes(size))
                    total = before + len(head) + size
                    settled(lambda: counters(stats)["uwgate_received_bytes_total"], total)
                    node.sendall(OK)
                    reply = client.read_response()
                    assert reply.status == 200
                    if reply.closes:
                        continue
                    client.send(GET % b"next")
                    other = next_connection(listener, node, size)
                    with other:
                        assert read_head(other).startswith(b"GET /next"), size
                        other.sendall(OK)
                        assert client.read_response().status == 200


# --- tunnels -------------------------------------------------------------------------------------


def test_tunnel_reads_on_after_much_was_sent_ahead(start_gateway: StartGateway) -> None:
    def answer(connection: Connection, seen: Seen) -> str:
        assert connection.go.wait(DEADLINE)
        connection.send(SWITCH)
        connection.drain()
        return "close"

    with RawHttpNode() as node:
        node.otherwise = answer
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            client.send(UPGRADE)
            node.wait_seen()
            stuffed(client.sock, 400_000)
            node.connections[-1].go.set()
            assert client.read_response(upgrade=b"chat").status == 101
            client.send(b"the end")
            wait_until(lambda: node.connections[-1].received.endswith(b"the end"), "tunnel data")


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_half_close_before_the_switch_reaches_the_node(
    start_gateway: StartGateway, kind: str
) -> None:
    def answer(connection: Connection, seen: Seen) -> str:
        assert connection.go.wait(DEADLINE)
        connection.send(SWITCH)
        assert connection.take_to_end() == b"all I have"
        connection.send(b"thanks")
        return "close"

    with NODES[kind]() as node:
        node.otherwise = answer
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            client.send(UPGRADE + b"all I have")
            client.half_close()
            node.wait_seen()
            settled(lambda: 0, 1)
            node.connections[-1].go.set()
            assert client.read_response(upgrade=b"chat").status == 101
            assert client.read_to_end() == b"thanks"


def test_dead_node_ends_a_tunnel(start_gateway: StartGateway) -> None:
    # After a reset nobody is left to send to: the client must not talk to nobody for ever.
    def answer(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        assert connection.go.wait(DEADLINE)
        connection.reset()
        return "close"

    with RawHttpNode() as node:
        node.otherwise = answer
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            client.send(UPGRADE)
            assert client.read_response(upgrade=b"chat").status == 101
            node.connections[-1].go.set()
            assert client.read_to_end() == b""

            def refused() -> bool:
                try:
                    client.send(b"x")
                except OSError:
                    return True
                return False

            wait_until(refused, "the gateway to close its side")


def test_switch_before_the_request_is_complete_is_refused(start_gateway: StartGateway) -> None:
    # RFC 9110 §7.8: the server must have read the whole request before it switches.
    with unix_listener() as (listener, path):
        gateway = start_gateway("--http-to", "http://" + path)
        with gateway.connect() as client:
            client.send(
                UPGRADE.replace(b"GET", b"POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"
            )
            with accepted(listener) as node:
                read_head(node)
                node.sendall(SWITCH)
                assert client.read_response(upgrade=b"chat").status == 502


# --- raw sessions --------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_raw_session_never_leaves_a_connection_in_the_pool(
    start_gateway: StartGateway, framing: bytes
) -> None:
    # Rule 7. The node was promised a body it does not get: the next request would become it.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        gateway = start_gateway(
            "--http-to",
            f"http://127.0.0.1:{listener.getsockname()[1]}",
            "--http-manage-source",
        )
        with gateway.connect() as client:
            client.send(b"SOURCE /s HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n")
            with accepted(listener) as first:
                head = read_head(first)
                first.sendall(OK)
                client.read_until(b"ok")
                client.close()
                with gateway.connect() as victim:
                    victim.send(GET % b"victim")
                    first.settimeout(1.0)
                    try:
                        data = first.recv(65536)
                    except TimeoutError:
                        data = b""
                    assert b"GET /victim" not in data, (head, data)


def test_raw_session_with_chunks_reaches_a_uwsgi_node(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode
) -> None:
    gateway = start_gateway(
        "--http-to", uwsgi_node.spec, "--http-manage-source", "--http-timeout", "3"
    )
    with gateway.connect() as client:
        client.send(b"SOURCE /s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        wait_until(lambda: uwsgi_node.accepted > 0, "the session to reach the node", 2.5)


# --- stalled clients -----------------------------------------------------------------------------


@pytest.mark.parametrize("last", [b"Connection: close", b"X: y"])
def test_stalled_reader_of_a_complete_response_is_cut(
    start_gateway: StartGateway, last: bytes
) -> None:
    # The response is complete, its end still waits for a client that does not read.
    with RawHttpNode() as node, tempfile.TemporaryDirectory() as folder:
        stats = os.path.join(folder, "stats")

        def answer(connection: Connection, seen: Seen) -> None:
            connection.send(response(bytes(int(seen.target[1:]))))

        node.otherwise = answer
        gateway = start_gateway(
            "--http-to",
            node.spec,
            "--http-stats",
            stats,
            "--http-timeout",
            "2",
            "--http-keepalive=2",
        )
        clients = []
        try:
            for size in range(MB, 7 * MB, 50_000):
                client = gateway.connect()
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                clients.append(client)
                client.send(b"GET /%d HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % (size, last))
            wait_until(
                lambda: counters(stats)["uwgate_connections"] == 0,
                "stalled clients to be cut",
                15,
            )
        finally:
            for client in clients:
                client.close()


# --- deadlines and facts -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_node_gets_its_whole_time_after_a_body(start_gateway: StartGateway, kind: str) -> None:
    # The minimum rate of a body says nothing about the node that works on it afterwards.
    def answer(connection: Connection, seen: Seen) -> None:
        time.sleep(24)  # what is tested is this time
        default_answer(connection, seen)

    with NODES[kind]() as node:
        gateway = start_gateway("--http-to", node.spec, "--http-timeout", "60")
        with gateway.connect(40) as client:
            if kind == "http":
                assert client.ask(GET % b"warm").status == 200
            node.otherwise = answer
            client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
            assert client.read_response().status == 200


def test_log_of_an_unanswered_request_shows_no_status(
    start_gateway: StartGateway, http_node: RawHttpNode
) -> None:
    gateway = start_gateway(
        "--http-to", http_node.spec, "--log-format", "%(uri) %(status) %(rsize)|"
    )
    with gateway.connect() as client:
        assert client.ask(GET % b"one").status == 200
        http_node.play(silent)
        client.send(GET % b"two")
        http_node.wait_seen(2)
        client.reset()
    wait_until(lambda: "/two " in gateway.log, "log line")
    line = next(line for line in gateway.log.splitlines() if line.startswith("/two"))
    assert line.startswith("/two 0 0|"), line


def test_unix_http_node_with_a_full_backlog_is_waited_for(start_gateway: StartGateway) -> None:
    # Nothing was sent, so nothing is lost, whatever the method (rule 6).
    with unix_listener(backlog=0) as (listener, path), socket.socket(socket.AF_UNIX) as first:
        first.connect(path)  # fills it
        gateway = start_gateway("--http-to", "http://" + path)
        with gateway.connect() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi")
            settled(lambda: 0, 1)
            with accepted(listener), accepted(listener) as node:
                read_head(node)
                node.sendall(OK)
                assert client.read_response().status == 200


def test_early_answer_of_a_node_that_resets_gets_through(start_gateway: StartGateway) -> None:
    # RFC 9112 §9.3, §9.6: the answer was received before sending failed; it counts.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        gateway = start_gateway("--http-to", f"http://127.0.0.1:{listener.getsockname()[1]}")
        for _ in range(20):
            with gateway.connect() as client:
                client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (3 * MB))
                with accepted(listener) as node:
                    read_head(node)
                    client.send(bytes(100_000))
                    select.select([node], [], [], DEADLINE)
                    node.sendall(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
                client.send_willing(bytes(3 * MB - 100_000))
                assert client.read_response().status == 413
