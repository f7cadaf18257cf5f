"""Streams of HTTP/2 that are used again, and what their last request may leave behind: nothing."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from hyperframe import frame as frames
from support.http2_raw import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    WINDOW,
    Fields,
    RawHttp2,
    at,
    data,
    fields,
    raw,
    settings,
    window_update,
)
from support.node_wire import read_http_request
from support.nodes import CLOSE, Connection, RawHttpNode, RawUwsgiNode, Seen, response
from support.uwgate import running
from support.waiting import DEADLINE, free_port, wait_until

WEBSOCKET = [
    (":method", "CONNECT"), (":scheme", "http"), (":path", "/chat"), (":authority", "localhost"),
    (":protocol", "websocket"), ("sec-websocket-version", "13"),
]  # fmt: skip
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: x\r\n\r\n"
)
EVIL = b"GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n"
SMALL = ("--http2-connection-window", "65536")
PIECE = 16384
LETTERS = [bytes([letter]) * PIECE for letter in b"ABCDEF"]


class EarlyNode(RawHttpNode):
    """Answers requests for ``/early`` when the gate is open, and never reads their bodies."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        # Not TCP, where the system would take megabytes.
        super().__init__("unix")

    def serve(self, connection: Connection) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.sock.recv(1)
        if b" /early " in head:
            assert self.gate.wait(DEADLINE)
            connection.send(response(b"no", status=b"413 Content Too Large"))
            connection.go.wait(DEADLINE)
            return
        connection.buffer = head
        super().serve(connection)

    def close(self) -> None:
        for each in self.connections:
            each.go.set()
        super().close()


def granted(client: RawHttp2, stream: int) -> int:
    """Bytes that WINDOW_UPDATE has allowed."""
    return sum(
        frame.window_increment
        for frame in client.seen
        if isinstance(frame, frames.WindowUpdateFrame) and frame.stream_id == stream
    )


def fill(client: RawHttp2, stream: int) -> int:
    """Send body bytes until the gateway keeps what comes -> how many; a few may still be sent."""
    sent = 0
    while True:
        room = client.settings[WINDOW] + granted(client, stream) - sent
        if room <= 1024:
            client.assert_alive()  # what is said of the window comes before
            if client.settings[WINDOW] + granted(client, stream) - sent == room:
                return sent
            continue
        size = min(PIECE, room - 1000)
        client.send(data(stream, b"a" * size, end=False))
        client.assert_alive()
        sent += size


def ends(client: RawHttp2, stream: int) -> int:
    """How often the end of that stream has come."""
    return sum("END_STREAM" in frame.flags for frame in client.seen if frame.stream_id == stream)


def active(stats: int) -> int:
    """Requests that the first node has, as the statistics say."""
    with socket.create_connection(("127.0.0.1", stats), DEADLINE) as sock:
        text = b"".join(iter(lambda: sock.recv(65536), b""))
    found: int = json.loads(text)["static_nodes"][0]["active"]
    return found


def upload(client: RawHttp2, stream: int, *extra: tuple[str, str], trailer: bool = False) -> None:
    """A POST with a body of letters, and its answer."""
    client.send(client.headers(stream, fields("POST", "/next", *extra), end=False))
    for piece in LETTERS:
        client.send(data(stream, piece, end=not trailer and piece is LETTERS[-1]))
        client.assert_alive()  # windows are 64 KB
    if trailer:
        block = client.block([("x-sum", "1")])
        client.send(raw(HEADERS, END_STREAM | END_HEADERS, stream, block))
    client.assert_answered(stream)


# --- what was kept of a body ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["counted", "chunked", "trailer"])
def test_an_upload_that_nobody_reads(how: str) -> None:
    """The next request on its stream is what its client has sent, and the window is whole."""
    with EarlyNode() as node, running("--http-to", node.spec, *SMALL) as gateway:
        with at(gateway) as client:
            client.send(client.headers(1, fields("POST", "/early"), end=False))
            sent = fill(client, 1)
            client.send(data(1, EVIL, end=True))
            client.assert_alive()
            node.gate.set()
            assert client.finished(1).status == 413
            client.assert_alive()
            assert sent + len(EVIL) - granted(client, 0) < 32768, client.story()
            extra = [("content-length", str(len(LETTERS) * PIECE))] if how == "counted" else []
            upload(client, 3, *extra, trailer=how == "trailer")
            client.send(client.headers(5))
            client.assert_answered(5)
        posted, last = node.seen
        assert (posted.target, last.target) == (b"/next", b"/")
        assert posted.body == b"".join(LETTERS)
        assert posted.raw.count(b"x-sum: 1") == (how == "trailer")
        node.check()


def test_an_upload_that_stops_and_goes_on_behind_one_that_nobody_read() -> None:
    """Its node is slow, so that it is kept, too: the bytes of the two do not meet."""
    gate = threading.Event()

    class Slow(EarlyNode):
        def answer(self, connection: Connection, seen: Seen) -> str | None:
            self.seen.append(seen)
            connection.send(response())
            return None

        def serve(self, connection: Connection) -> None:
            if len(self.connections) > 1:
                assert gate.wait(DEADLINE)
            super().serve(connection)

    with Slow() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        client.send(client.headers(1, fields("POST", "/early"), end=False))
        fill(client, 1)
        client.send(data(1, EVIL, end=True))
        client.assert_alive()
        node.gate.set()
        assert client.finished(1).status == 413
        client.send(client.headers(3, fields("POST", "/next"), end=False))
        sent = fill(client, 3)
        client.send(data(3, b"end", end=True))
        client.assert_alive()
        gate.set()
        client.assert_answered(3)
        assert node.only().body == b"a" * sent + b"end"
        node.check()


def forbidding(connection: Connection, seen: Seen) -> None:
    connection.send(response(b"no", status=b"403 Forbidden"))


def test_a_refused_websocket_leaves_no_bytes_to_the_next() -> None:
    got: list[bytes] = []

    def take(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        got.append(connection.take_to_end())
        return CLOSE

    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.play(forbidding, take)
        with at(gateway) as client:
            client.send(client.headers(1, WEBSOCKET, end=False), data(1, b"evil"))
            assert client.finished(1).status == 403
            client.send(client.headers(3, WEBSOCKET, end=False))
            client.send(data(3, b"good", end=True))
            assert client.finished(3).status == 200
        wait_until(lambda: got, "the end of the tunnel")
        assert got == [b"good"]


def test_a_refused_websocket_leaves_no_bytes_to_an_upload() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.play(forbidding)
        with at(gateway) as client:
            client.send(client.headers(1, WEBSOCKET, end=False), data(1, b"evil"))
            assert client.finished(1).status == 403
            upload(client, 3, trailer=True)
        assert node.seen[1].body == b"".join(LETTERS)
        assert b"\r\n0\r\nx-sum: 1\r\n\r\n" in node.seen[1].raw


# --- the way to a node is long ----------------------------------------------------------------


@contextmanager
def full_backlog() -> Iterator[tuple[str, Callable[[], socket.socket]]]:
    """A unix socket that takes no connection until the second value is called, which returns that
    of the gateway."""
    with tempfile.TemporaryDirectory() as where, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(where) / "node")
        listener.bind(path)
        listener.listen(0)
        listener.settimeout(DEADLINE)
        waiting: list[socket.socket] = []
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            try:
                waiting[-1].connect(path)
            except BlockingIOError:
                waiting.pop().close()
                break

        def accept() -> socket.socket:
            for each in waiting:
                listener.accept()[0].close()
                each.close()
            return listener.accept()[0]

        yield path, accept


@pytest.mark.parametrize("counted", [False, True], ids=["chunked", "counted"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "later"])
def test_a_body_is_in_order_when_connecting_takes_long(counted: bool, late: bool) -> None:
    """``late``: its last part comes when the node is there."""
    extra = [("content-length", str(len(LETTERS) * PIECE))] if counted else []
    with (
        full_backlog() as (path, accept),
        running("--http-to", f"http://{path}") as gateway,
        at(gateway) as client,
    ):
        client.send(client.headers(1, fields("POST", "/", *extra), end=False))
        for piece in LETTERS[:-1]:
            client.send(data(1, piece, end=False))
            client.assert_alive()
        if not late:
            client.send(data(1, LETTERS[-1], end=True))
            client.assert_alive()
        connection = Connection(accept(), 1)
        if late:
            client.send(data(1, LETTERS[-1], end=True))
        seen = read_http_request(connection)
        assert seen.body == b"".join(LETTERS)
        connection.send(response())
        client.assert_answered()
        connection.close()


def test_a_spooled_body_is_sent_once(tmp_path: Path) -> None:
    """The mapper takes its time, the body is complete by then: one request, one answer."""
    gate, mapper, stats = tmp_path / "gate", tmp_path / "mapper.py", free_port()
    with RawUwsgiNode() as node:
        mapper.write_text(
            "import asyncio, os\n"
            "async def where(key):\n"
            f"    while not os.path.exists({str(gate)!r}):\n"
            "        await asyncio.sleep(0.01)\n"
            f"    return {node.address.encode()!r}\n"
        )
        options = ("--http-use-code-string", f"0:{mapper}:where", "--http-code-timeout", "9")
        with running(*options, "--http-stats", f"127.0.0.1:{stats}") as gateway:
            with at(gateway) as client:
                client.send(client.headers(1, fields("POST", "/up"), end=False))
                for piece in LETTERS:
                    client.send(data(1, piece, end=piece is LETTERS[-1]))
                    client.assert_alive()
                gate.touch()
                client.assert_answered(1)
                node.play(response(b"other"))
                client.send(client.headers(3, fields("GET", "/other")))
                assert client.assert_answered(3).size == len(b"other")
            assert [each.target for each in node.seen] == [b"/up", b"/other"]
            assert node.seen[0].body == b"".join(LETTERS)
            assert node.accepted == 2
        node.check()


# --- tunnels ----------------------------------------------------------------------------------


def test_a_websocket_that_is_answered_with_200() -> None:
    """Its stream is reset, and that is all: the connection and its streams go on."""
    stats = free_port()
    with RawHttpNode() as node:
        options = ("--http-to", node.spec, "--http-stats", f"127.0.0.1:{stats}")
        with running(*options) as gateway, at(gateway) as client:
            client.send(client.headers(1, WEBSOCKET, end=False))
            client.assert_stream_error(1, ErrorCodes.INTERNAL_ERROR, gentle=True)
            client.send(client.opened(3), data(3, b"abc"))
            client.assert_answered(3)
            client.send(client.headers(5))
            client.assert_answered(5)
            assert [type(each) for each in client.seen if each.stream_id == 1] == [
                frames.RstStreamFrame
            ]
            with at(gateway) as other:
                other.send(other.opened(1), data(1, b"abc"))
                other.assert_answered(1)
            wait_until(lambda: active(stats) == 0, "no active request")
        node.check()


@pytest.mark.parametrize("wholly", [False, True], ids=["half", "wholly"])
@pytest.mark.parametrize("last", [b"", b"bye"], ids=["end", "data"])
def test_a_node_that_ends_a_websocket_first(wholly: bool, last: bytes) -> None:
    """Then the client: its end is said once, and nothing of it is left."""
    stats = free_port()

    def hang_up(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH + b"hello")
        if not wholly:
            connection.half_close()
            connection.take_to_end()
        return CLOSE

    with RawHttpNode() as node:
        options = ("--http-to", node.spec, "--http-stats", f"127.0.0.1:{stats}")
        with running(*options) as gateway, at(gateway) as client:
            node.otherwise = hang_up
            streams = range(1, 12, 2)
            for stream in streams:
                client.send(client.headers(stream, WEBSOCKET, end=False))
                assert client.finished(stream).size == len(b"hello")
            for stream in streams:
                client.send(data(stream, last, end=True))
            client.assert_alive()
            wait_until(lambda: node.open_connections() == 0, "the node's connections end")
            wait_until(lambda: active(stats) == 0, "no active request")
            client.assert_alive()
            assert [ends(client, stream) for stream in streams] == [1] * len(streams)
            node.otherwise = response()
            client.send(client.headers(99))
            client.assert_answered(99)
        if not wholly:
            assert all(each.saw_end for each in node.connections[: len(streams)])
            assert node.connections[0].received.endswith(b"\r\n\r\n" + last)


def test_a_client_that_does_not_end_its_websocket() -> None:
    """The node is gone, and refuses what still comes: the stream is reset (RFC 8441 §5)."""
    stats = free_port()

    def hang_up(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        return CLOSE

    with RawHttpNode() as node:
        node.play(hang_up)
        options = ("--http-to", node.spec, "--http-stats", f"127.0.0.1:{stats}")
        with running(*options) as gateway, at(gateway) as client:
            client.send(client.headers(1, WEBSOCKET, end=False))
            client.finished(1)

            def let_go() -> bool:
                client.send(data(1, b"hello?", end=False))
                return active(stats) == 0

            wait_until(let_go, "no active request")
            client.wait(lambda frame: client.answer(1).reset is not None, "RST_STREAM")
            assert client.answer(1).reset == ErrorCodes.CANCEL
            client.send(client.headers(3))
            client.assert_answered(3)
            assert ends(client, 1) == 1


def with_length(value: str) -> Fields:
    return [*WEBSOCKET, ("content-length", value)]


@pytest.mark.parametrize("value", ["0", "5"])
def test_a_websocket_has_no_length(value: str) -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        with at(gateway) as client:
            client.send(client.headers(1, with_length(value), end=False))
            client.assert_stream_error(1, ErrorCodes.PROTOCOL_ERROR, gentle=True)
            client.send(client.headers(3))
            client.assert_answered(3)
        assert [each.target for each in node.seen] == [b"/"]


# --- ends and windows -------------------------------------------------------------------------


def test_the_end_of_an_early_answer_is_said_once() -> None:
    """Windows that grow are no reason to say it again."""
    with EarlyNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        node.gate.set()
        client.send(client.headers(1, fields("POST", "/early"), end=False))
        assert client.finished(1).status == 413
        for piece in (window_update(1, 4), settings((WINDOW, 100_000)), window_update(1, 4)):
            client.send(piece)
            client.assert_alive()
        client.send(data(1, b"end", end=True))
        client.assert_alive()
        assert ends(client, 1) == 1, client.story()
        assert client.answer(1).reset is None


def test_too_much_for_its_length_does_not_use_up_the_window() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec, *SMALL) as gateway:
        with at(gateway) as client:
            for stream in range(1, 10, 2):
                client.send(client.opened(stream, ("content-length", "1")))
                client.send(data(stream, bytes(PIECE)))
                client.assert_stream_error(stream, ErrorCodes.PROTOCOL_ERROR, gentle=True)
            assert 5 * PIECE - granted(client, 0) < 32768, client.story()
            upload(client, 11)
        assert node.only().body == b"".join(LETTERS)
