"""Nobody waits for ever: uploads, downloads and requests beside others that are stuck."""

from __future__ import annotations

import random
import socket
import threading
import time
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from support.http2_raw import WINDOW, RawHttp2, at, fields, window_update
from support.nodes import Connection, RawHttpNode, RawUwsgiNode, Seen, response
from support.uwgate import Gateway, running
from support.waiting import DEADLINE, wait_until


def ended(client: RawHttp2, *streams: int) -> None:
    """All of them have ended, one way or the other."""

    def all_have(frame: object) -> bool:
        found = [client.answers.get(stream) for stream in streams]
        return all(each and (each.ended or each.reset is not None) for each in found)

    if not all_have(None):
        client.wait(all_have, f"the end of {streams}")


# --- uploads ----------------------------------------------------------------------------------


class Uploads:
    """Many at once, by turns, as far as the windows go."""

    def __init__(self, gateway: Gateway, count: int, size: int) -> None:
        self.sock = socket.create_connection(gateway.address, DEADLINE)  # type: ignore[arg-type]
        config = h2.config.H2Configuration(header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.statuses: dict[int, bytes] = {}
        self.order = random.Random(count)
        self.granted = False
        while not self.granted:  # before the streams begin: their windows would be others
            self.receive()
        self.left = {2 * number + 1: size for number in range(count)}
        length = (b"content-length", b"%d" % size)
        for stream in self.left:
            head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"),
                    (b":authority", b"h"), length]  # fmt: skip
            self.h2.send_headers(stream, head)

    def receive(self) -> None:
        self.sock.sendall(self.h2.data_to_send())
        data = self.sock.recv(65_536)
        assert data, "closed"
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.WindowUpdated):
                self.granted = True
            elif isinstance(event, h2.events.ResponseReceived):
                self.statuses[event.stream_id] = dict(event.headers)[b":status"]
            elif isinstance(event, h2.events.StreamReset):
                self.left.pop(event.stream_id, None)

    def send_some(self) -> bool:
        moved = False
        for stream in self.order.sample(sorted(self.left), len(self.left)):
            left = self.left[stream]
            size = min(self.h2.local_flow_control_window(stream), left, 16_384)
            if size > 0:
                self.left[stream] -= size
                self.h2.send_data(stream, bytes(size), end_stream=size == left)
                moved = True
                if size == left:
                    del self.left[stream]
        return moved

    def run(self) -> dict[int, bytes]:
        """-> statuses by stream."""
        count = len(self.left)
        while len(self.statuses) < count:
            while self.send_some():
                pass
            self.receive()
        self.sock.close()
        return self.statuses


@pytest.mark.parametrize("count", [36, 60, 100])
def test_many_uploads_at_once(count: int) -> None:
    """Those that wait for nodes keep no window from those that are there."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        statuses = Uploads(gateway, count, 200_000).run()
        assert set(statuses.values()) == {b"200"}
        assert [len(seen.body) for seen in node.seen] == [200_000] * count


# --- downloads --------------------------------------------------------------------------------


def test_a_download_beside_stuck_ones() -> None:
    """Its windows are open: each piece is sent whole, and nothing has to wake it."""
    stuck = threading.Event()

    def answer(connection: Connection, seen: Seen) -> None:
        if seen.target == b"/stuck":
            connection.send(response(bytes(3_000_000)))
            return
        assert stuck.wait(10)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n")
        for _ in range(20):
            connection.send(bytes(100_000))
            time.sleep(0.01)  # pieces of their own

    with RawHttpNode() as node, running("--http-to", node.spec, "--http-timeout=5") as gateway:
        node.otherwise = answer
        with at(gateway, {WINDOW: 1000}) as client:
            client.send(window_update(0, 2**30), client.headers(1), window_update(1, 2**30))
            streams = range(3, 59, 2)
            client.send(*(client.headers(stream, fields("GET", "/stuck")) for stream in streams))
            client.wait(lambda frame: sum(a.size for a in client.answers.values()) >= 5000, "them")
            stuck.set()
            client.wait(lambda frame: client.answers.get(1) and client.answers[1].ended, "its end")
            assert client.answers[1].size == 2_000_000


# --- requests that wait -----------------------------------------------------------------------


def test_requests_that_failed_while_they_waited() -> None:
    """Their clients take nothing of the 504: they end all the same, and the gateway, too."""
    gate = threading.Event()
    options = ("--http-timeout", "1", "--http2-node-requests", "1")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = lambda connection, seen: [gate.wait(20), "close"][1]
        with at(gateway, {WINDOW: 0}) as client:
            client.send(*(client.headers(stream) for stream in range(1, 15, 2)))
            ended(client, *range(1, 15, 2))
            assert {client.answers[stream].reset for stream in range(3, 15, 2)} == {
                ErrorCodes.CANCEL
            }
            gate.set()
            gateway.stop()


def test_a_half_closed_client_that_gives_streams_up() -> None:
    """Stuck responses end when the client can take no more; those behind have their turn."""

    def answer(connection: Connection, seen: Seen) -> None:
        connection.send(response(bytes(300_000) if seen.target == b"/large" else b"hello"))

    options = ("--http2-node-requests", "1")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = answer
        with at(gateway, {WINDOW: 100_000}) as client:
            large = [client.headers(stream, fields("GET", "/large")) for stream in (1, 3, 5, 7)]
            client.send(window_update(0, 2**20), *large, client.headers(9))
            client.sock.shutdown(socket.SHUT_WR)
            began = time.monotonic()
            ended(client, 9)
            assert client.answers[9].status == 200
            assert time.monotonic() - began < 3


# --- nodes of uwsgi that are held before they were asked --------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(40_000))
    return tmp_path


def test_a_node_that_is_held_and_released_at_once(site: Path) -> None:
    options = ("--static-map", f"/s={site}", "--http2-max-queued", "65536",
               "--http2-node-requests=0", "--http-timeout=5")  # fmt: skip
    with (
        RawUwsgiNode() as node,
        running("--http-to", node.spec, *options) as gateway,
        at(gateway, {WINDOW: 0}) as client,
    ):
        file = fields("GET", "/s/file")
        client.send(client.headers(1, file))
        client.wait(lambda frame: client.answers.get(1), "the file's head")
        client.send(
            client.headers(3, fields("GET", "/dynamic")),
            client.headers(5, file),
            window_update(3, 1000),
        )
        client.wait(lambda frame: client.answers.get(3), "the node's answer")
        assert client.answers[3].status == 200


def test_a_node_that_was_held_is_nobody_elses(site: Path) -> None:
    """The next client of its object has a response as ever."""
    gate = threading.Event()

    def answer(connection: Connection, seen: Seen) -> None:
        if seen.target.startswith(b"/slow"):
            gate.wait(20)
        connection.send(response(b"dynamic"))

    options = ("--static-map", f"/s={site}", "--http2-max-queued", "65536",
               "--http2-node-requests=0", "--http-timeout=2")  # fmt: skip
    with RawUwsgiNode() as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = answer
        with at(gateway, {WINDOW: 0}) as client:
            file = fields("GET", "/s/file")
            client.send(client.headers(1, file))
            client.wait(lambda frame: client.answers.get(1), "the file's head")
            client.send(client.headers(3, fields("GET", "/dynamic")), client.headers(5, file))
            wait_until(lambda: node.seen, "the node to be asked")
            with gateway.connect(10) as other:
                reply = other.ask(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
                assert reply.status == 504
            gate.set()
