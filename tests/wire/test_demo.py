"""``python -m uwgate.demo``: both nodes answer, everything ends with the router."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.client import Client
from support.waiting import DEADLINE, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
NODES = {"the HTTP node", "the uwsgi node"}
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def _start(port: int | str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "uwgate.demo"],
        cwd=ROOT,
        env={**os.environ, "PORT": str(port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _two_free_ports() -> int:
    """The first of two neighbours nobody listens on."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def _demo() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    port = _two_free_ports()
    process = _start(port)
    try:
        wait_until(lambda: process.poll() is not None or _accepts(port), "the demo", 20)
        assert process.poll() is None, process.communicate()[0]
        wait_until(lambda: _answering(port) == NODES, "both nodes to have joined")
        yield port, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _answering(port: int) -> set[object]:
    """Who answers two requests."""
    with Client(("127.0.0.1", port)) as client:
        return {_seen(client, _get(b"/seen"))["node"] for _ in NODES}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A demo that is stopped the way a terminal does it."""
    with _demo() as (port, process):
        yield port
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, output
        assert "Traceback" not in output
        assert f"http://127.0.0.1:{port}/" in output
        wait_until(lambda: not _group_alive(process.pid), "the end of every process")


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _get(path: bytes, more: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: demo\r\n" + more + b"\r\n"


def _seen(client: Client, request: bytes) -> dict[str, object]:
    reply = client.ask(request)
    assert reply.status == 200
    document = json.loads(reply.body)
    assert isinstance(document, dict)
    return document


def test_both_nodes_show_what_they_saw(port: int) -> None:
    bodies = (
        b"POST /seen?a=1 HTTP/1.1\r\nHost: demo\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /seen?a=1 HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n",
    )
    for request in bodies:
        nodes = {}
        with Client(("127.0.0.1", port)) as client:
            for _ in NODES:
                document = _seen(client, request)
                nodes[document["node"]] = document
        assert set(nodes) == NODES
        for document in nodes.values():
            assert document["target"] == "/seen?a=1"
            sha256 = hashlib.sha256(b"hello").hexdigest()
            assert document["body"] == {"bytes": 5, "sha256": sha256}
        assert ["Via", "1.1 uwgate"] in nodes["the HTTP node"]["seen"]
        assert ["QUERY_STRING", "a=1"] in nodes["the uwsgi node"]["seen"]


def test_the_page_names_its_node(port: int) -> None:
    with Client(("127.0.0.1", port)) as client:
        pages = [client.ask(_get(b"/")).body.decode() for _ in NODES]
    assert {node for node in NODES for page in pages if node in page} == NODES


def test_head_and_unknown_paths(port: int) -> None:
    with Client(("127.0.0.1", port)) as client:
        for path in (b"/", b"/stream"):
            for _ in NODES:
                reply = client.ask(b"HEAD " + path + b" HTTP/1.1\r\nHost: demo\r\n\r\n", b"HEAD")
                assert (reply.status, reply.body) == (200, b"")
        for _ in NODES:
            assert client.ask(_get(b"/nothing")).status == 404


def test_a_stream_is_chunked_whatever_the_node_speaks(port: int) -> None:
    with Client(("127.0.0.1", port)) as client:
        for _ in NODES:
            reply = client.ask(_get(b"/stream"))
            assert reply.get(b"transfer-encoding") == b"chunked"
            assert len(reply.body.splitlines()) == 10


def test_events_come_one_by_one(port: int) -> None:
    for _ in NODES:
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            client.sendall(_get(b"/events"))
            received = b""
            while b"data: event 1 " not in received:
                data = client.recv(4096)
                assert data
                received += data
            # A read is an event, if nobody was held up for as long as there is between two.
            reads = (client.recv(4096) for _ in range(20))
            assert any(read.count(b"data: event ") == 1 for read in reads)


@pytest.mark.parametrize("size", [2, 300, 70_000])
def test_a_websocket_echoes(port: int, size: int) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
    payload = bytes(i % 251 for i in range(size))
    length = (
        bytes((0x80 | size,)) if size < 126
        else bytes((0x80 | 126,)) + size.to_bytes(2) if size < 1 << 16
        else bytes((0x80 | 127,)) + size.to_bytes(8)
    )  # fmt: skip
    mask = b"\x01\x02\x03\x04"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    for _ in NODES:
        with Client(("127.0.0.1", port)) as client:
            client.send(_get(b"/ws", upgrade))
            reply = client.read_response(upgrade=b"websocket")
            assert reply.status == 101
            digest = hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            assert reply.get(b"sec-websocket-accept") == base64.b64encode(digest)
            client.send(b"\x82" + length + mask + masked)
            assert client.read_exactly(1 + len(length) + size)[-size:] == payload
            client.send(b"\x8a\x80" + mask)  # a pong needs no answer
            client.send(b"\x89\x80" + mask)  # ping
            assert client.read_exactly(2) == b"\x8a\x00"
            client.send(b"\x88\x80" + mask)  # close
            assert client.read_exactly(2) == b"\x88\x00"


def test_statistics_are_one_port_above(port: int) -> None:
    with Client(("127.0.0.1", port + 1)) as client:
        reply = client.ask(_get(b"/metrics"))
    assert reply.status == 200
    assert b"uwgate_" in reply.body


def test_sigterm_ends_every_process_with_an_endless_stream_open() -> None:
    with _demo() as (port, process), Client(("127.0.0.1", port)) as client:
        client.send(_get(b"/events"))
        wait_until(lambda: client.sock.recv(1), "the stream to begin")
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, output
        wait_until(lambda: not _group_alive(process.pid), "the end of every process")


def test_nothing_stays_behind_a_killed_demo() -> None:
    with _demo() as (_port, process):
        process.kill()
        process.wait(DEADLINE)
        wait_until(lambda: not _group_alive(process.pid), "the end of every process")


@pytest.mark.parametrize("above", [0, 1])
def test_a_busy_port_is_named(above: int) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as holder:
        busy = holder.getsockname()[1]
        process = _start(busy - above)
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert f"127.0.0.1:{busy} cannot be had" in output
    assert "make demo PORT=9000" in output


@pytest.mark.parametrize("text", [" ", "0", "65535", "80a", "٣"])
def test_what_is_no_port_is_named(text: str) -> None:
    process = _start(text)
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert f"PORT={text}: expected a number" in output
