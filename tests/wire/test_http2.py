"""HTTP/2 in clear text before HTTP and uwsgi nodes: requests, responses, bodies, ends."""

from __future__ import annotations

import gzip
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from support import http2_raw
from support.http2_client import Http2Client, Response
from support.nodes import NODES, Connection, RawHttpNode, Seen, SeenUwsgi, held, response, silent
from support.reloading import reloadable
from support.uwgate import StartGateway, running
from support.waiting import DEADLINE, wait_until

from wire.conftest import Pair

Ask = Callable[..., Response]


@pytest.fixture
def client(pair: Pair) -> Iterator[Http2Client]:
    with Http2Client(pair.gateway.address) as client:
        yield client


def test_a_request(pair: Pair, client: Http2Client) -> None:
    pair.node.play(response(b"hello", b"X-Node: 1", b"Connection: keep-alive, x", b"X: y"))
    found = client.ask(client.fields(b"GET", b"/a?b", (b"x-field", b"1"), (b"cookie", b"a"),
                                     (b"cookie", b"b")))  # fmt: skip
    assert (found.status, found.body) == (200, b"hello")
    assert found.value(b"x-node") == b"1"
    assert found.value(b"content-length") == b"5"
    assert found.value(b"date")
    assert found.value(b"connection") is None
    (seen,) = pair.node.seen
    assert (seen.method, seen.target) == (b"GET", b"/a?b")
    assert seen.field(b"host") == [b"h"]
    assert seen.field(b"cookie") == [b"a; b"]
    assert seen.field(b"x-field") == [b"1"]
    assert seen.field(b"transfer-encoding") == []
    if isinstance(seen, SeenUwsgi):
        assert seen.var(b"SERVER_PROTOCOL") == b"HTTP/1.1"
    else:
        assert seen.field(b"via") == [b"2.0 uwgate"]


def test_the_same_again_and_again(pair: Pair, client: Http2Client) -> None:
    for _ in range(20):
        assert client.ask().status == 200
    assert len(pair.node.seen) == 20


def test_many_at_once(pair: Pair, client: Http2Client) -> None:
    streams = [client.begin(client.fields(b"GET", b"/%d" % number)) for number in range(60)]
    for stream in streams:
        assert client.response(stream).status == 200
    assert {each.target for each in pair.node.seen} == {b"/%d" % number for number in range(60)}


@pytest.mark.parametrize("size", [0, 1, 16384, 65536, 300_000])
@pytest.mark.parametrize("counted", [False, True])
def test_bodies(pair: Pair, client: Http2Client, size: int, counted: bool) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    extra = [(b"content-length", b"%d" % size)] if counted else []
    assert client.ask(client.fields(b"POST", b"/", *extra), body).status == 200
    assert pair.node.seen[0].body == body


def test_large_responses_side_by_side(pair: Pair, client: Http2Client) -> None:
    body = bytes(range(256)) * 4000
    pair.node.play(*[response(body) for _ in range(5)])
    streams = [client.begin() for _ in range(5)]
    for stream in streams:
        assert client.response(stream).body == body


def test_head_and_bodiless(pair: Pair, client: Http2Client) -> None:
    pair.node.play(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    found = client.ask(client.fields(b"HEAD"))
    assert (found.status, found.body, found.value(b"content-length")) == (200, b"", b"5")
    pair.node.play(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n")
    found = client.ask()
    assert (found.status, found.body, found.value(b"etag")) == (304, b"", b'"x"')


def test_chunked_responses_and_trailers() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.play(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
            b"Grpc-Status: 0\r\nContent-Length: 7\r\n\r\n"
        )
        with Http2Client(gateway.address) as client:
            found = client.ask(client.fields(b"POST", b"/", (b"te", b"trailers")), b"x")
        assert (found.body, found.trailers) == (b"hello", [(b"grpc-status", b"0")])


def test_trailers_of_requests() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        with Http2Client(gateway.address) as client:
            stream = client.begin(client.fields(b"POST"), end=False)
            client.data(stream, b"body")
            client.h2.send_headers(stream, [(b"x-sum", b"1")], end_stream=True)
            client.flush()
            assert client.response(stream).status == 200
        assert node.seen[0].body == b"body"
        assert b"\r\n0\r\nx-sum: 1\r\n\r\n" in node.seen[0].raw


def test_continue() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec, "--http-manage-expect") as gateway:
        with Http2Client(gateway.address) as client:
            fields = client.fields(b"POST", b"/", (b"expect", b"100-continue"))
            stream = client.begin(fields, end=False)
            client.until(lambda: client.responses[stream].interim)
            client.data(stream, b"body", end=True)
            found = client.response(stream)
        assert (found.interim, found.status) == ([100], 200)
        assert node.seen[0].body == b"body"


def test_early_hints() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.play(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + response(b"x"))
        with Http2Client(gateway.address) as client:
            found = client.ask()
        assert (found.interim, found.status, found.body) == ([103], 200, b"x")


def test_gzip() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec, "--http-auto-gzip") as gateway:
        node.play(response(b"a" * 1000, b"uWSGI-Encoding: gzip"))
        with Http2Client(gateway.address) as client:
            found = client.ask(client.fields(b"GET", b"/", (b"accept-encoding", b"gzip")))
        assert found.value(b"content-encoding") == b"gzip"
        assert gzip.decompress(found.body) == b"a" * 1000


TARGET = [(b":method", b"GET"), (b":scheme", b"http")]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b":method", b"CONNECT"), (b":authority", b"h:1")], 405),
        ([*TARGET, (b":path", b"/#"), (b":authority", b"h")], 400),
        ([*TARGET, (b":path", b"/"), (b":authority", b"h/")], 400),
        ([*TARGET, (b":path", b"/"), (b":authority", b"h"), (b"x", b"y" * 40_000)], 431),
    ],
)
def test_refusals(
    pair: Pair, client: Http2Client, fields: list[tuple[bytes, bytes]], status: int
) -> None:
    found = client.ask(fields)
    assert found.status == status
    assert found.value(b"connection") is None
    assert found.body
    # The connection goes on.
    assert client.ask().status == 200
    assert len(pair.node.seen) == 1


def test_what_comes_behind_an_early_answer(pair: Pair) -> None:
    """The rest of its request is read, and WINDOW_UPDATE is no reason to say its end again."""
    address = pair.gateway.address
    assert not isinstance(address, str)
    with http2_raw.connected(address) as client:
        client.send(client.headers(1, http2_raw.fields("POST", "/#"), end=False))
        assert client.finished().status == 400
        seen = len(client.seen)
        client.send(http2_raw.window_update(1, 1000), http2_raw.data(1, bytes(1000), end=False))
        client.assert_alive()
        client.send(http2_raw.data(1, b"", end=True))
        client.assert_alive()
        assert [frame.stream_id for frame in client.seen[seen:]] == [0, 0], client.story()


def test_no_node(start_gateway: StartGateway) -> None:
    gateway = start_gateway("--http-to", "http://127.0.0.1:1")
    with Http2Client(gateway.address) as client:
        for _ in range(3):
            found = client.ask(client.fields(b"GET", b"/", (b"accept", b"application/json")))
            assert found.status in (502, 503)
            assert found.value(b"content-type") == b"application/json"


@pytest.mark.parametrize("size", [3, 7])
def test_a_body_that_is_not_as_long_as_it_says(pair: Pair, client: Http2Client, size: int) -> None:
    client.h2.config.validate_outbound_headers = False
    fields = client.fields(b"POST", b"/", (b"content-length", b"5"))
    stream = client.begin(fields, end=False)
    client.data(stream, b"1234567"[:size], end=True)
    assert client.response(stream).reset == ErrorCodes.PROTOCOL_ERROR
    pair.assert_no_request()


def test_who_is_reset_lets_go_of_the_node(pair: Pair, client: Http2Client) -> None:
    pair.node.play(silent)
    stream = client.begin()
    number = pair.node.wait_seen()[0].connection
    (connection,) = [each for each in pair.node.connections if each.number == number]
    client.h2.reset_stream(stream, ErrorCodes.CANCEL)
    client.flush()
    wait_until(lambda: connection.saw_end, "the node is let go")
    assert client.ask().status == 200


def test_a_node_that_dies_in_the_middle() -> None:
    def half(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        return "close"

    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.play(half)
        with Http2Client(gateway.address) as client:
            found = client.ask()
            assert (found.body, found.reset) == (b"half", ErrorCodes.INTERNAL_ERROR)
            assert client.ask().status == 200


def test_a_stalled_stream_does_not_stop_others() -> None:
    """Its window is used up; what is there of it is bounded, and the node waits."""
    body = b"x" * 3_000_000
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec) as gateway,
        Http2Client(gateway.address, greedy=False, window=1000) as client,
    ):
        assert client.ask().status == 200  # by now both know of the windows
        client.h2.increment_flow_control_window(10_000_000)
        node.play(response(body), *[response(b"y" * 900) for _ in range(20)])
        stalled = client.begin()
        client.until(lambda: len(client.responses[stalled].body) == 1000)
        for _ in range(20):
            assert client.ask().body == b"y" * 900
        client.h2.increment_flow_control_window(10_000_000, stalled)
        client.flush()
        assert client.response(stalled).body == body


def test_a_slow_node_stops_an_upload() -> None:
    """What a client may send ahead is bounded, and all of it arrives in the end."""
    gate = threading.Event()
    with SlowNode(gate) as node, running("--http-to", f"http://{node.address}") as gateway:
        with Http2Client(gateway.address) as client:
            fields = client.fields(b"POST", b"/", (b"content-length", b"12000000"))
            stream = client.begin(fields, end=False)
            sent = 0
            client.sock.settimeout(1.0)
            while True:
                room = min(client.h2.local_flow_control_window(stream), 16384)
                client.data(stream, bytes(room))
                sent += room
                try:
                    if not room:
                        client.receive()
                except TimeoutError:
                    break  # the window is used up, and does not grow
            assert sent < 10_000_000
            client.sock.settimeout(DEADLINE)
            gate.set()
            client.data(stream, bytes(12_000_000 - sent), end=True)
            assert client.response(stream).status == 200
        assert node.size == 12_000_000


class SlowNode:
    """Takes one request, reads its body only when the gate is open, and counts."""

    def __init__(self, gate: threading.Event) -> None:
        self.size = 0
        self._gate = gate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(1)
            assert self._gate.wait(DEADLINE)
            while self.size < 12_000_000:
                self.size += len(connection.recv(1 << 20))
            connection.sendall(response(b"ok"))

    def __enter__(self) -> SlowNode:
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.set()
        self._listener.close()
        self._thread.join(DEADLINE)


@pytest.mark.parametrize("kind", list(NODES))
def test_drain(kind: str) -> None:
    """SIGTERM: GOAWAY, what is under way is finished, then the end."""
    gate = threading.Event()
    with NODES[kind]() as node, running("--http-to", node.spec) as gateway:
        node.play(held(gate, response(b"late")))
        with Http2Client(gateway.address) as client, Http2Client(gateway.address) as idle:
            stream = client.begin()
            idle.until(lambda: idle.settings)
            wait_until(lambda: node.accepted, "the request is under way")
            gateway.process.send_signal(signal.SIGTERM)
            client.until(lambda: client.goaways)
            assert client.goaways == [(stream, 0)]
            idle.until(lambda: idle.closed or idle.goaways)
            gate.set()
            assert client.response(stream).body == b"late"
            while not client.closed:
                client.receive()
        assert gateway.process.wait(10) == 0


def test_a_reload_is_announced_in_two_steps(tmp_path: Path) -> None:
    with RawHttpNode() as node, reloadable(tmp_path, f"http-to = {node.spec}") as gateway:
        with Http2Client(gateway.address) as client:
            assert client.ask().status == 200
            gateway.reload()
            client.until(lambda: client.goaways)
            assert client.goaways == [(2**31 - 1, 0)]
            # On its way before the client could know.
            stream = client.begin()
            assert client.response(stream).status == 200
            client.until(lambda: len(client.goaways) > 1)
            assert client.goaways[1] == (stream, 0)
            while not client.closed:
                client.receive()
        with Http2Client(gateway.address) as client:
            assert client.ask().status == 200


@pytest.mark.parametrize("kind", list(NODES))
def test_a_websocket(kind: str) -> None:
    """RFC 8441: an extended CONNECT here, an upgrade there."""

    def echo(connection: Connection, seen: Seen) -> str:
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\nX-Node: 1\r\n\r\n"
        )
        while True:
            connection.send(b"<" + connection.take_some() + b">")

    fields = [
        (b":method", b"CONNECT"), (b":scheme", b"http"), (b":path", b"/chat"),
        (b":authority", b"h"), (b":protocol", b"websocket"), (b"sec-websocket-version", b"13"),
    ]  # fmt: skip
    with NODES[kind]() as node, running("--http-to", node.spec) as gateway:
        node.play(echo)
        with Http2Client(gateway.address) as client:
            client.until(lambda: client.settings)
            assert client.settings[8] == 1
            stream = client.begin(fields, end=False)
            found = client.responses[stream]
            client.until(lambda: found.status)
            assert found.status == 200
            assert found.value(b"x-node") == b"1"
            assert found.value(b"sec-websocket-accept") is None
            for text in (b"one", b"two"):
                client.data(stream, text)
                client.until(lambda text=text: found.body.endswith(b"<" + text + b">"))
            client.data(stream, b"", end=True)
            assert client.response(stream).ended
            assert client.ask().status == 200
        seen = node.seen[0]
        assert (seen.method, seen.target) == (b"GET", b"/chat")
        assert len(seen.field(b"sec-websocket-key")[0]) == 24
        assert [value.lower() for value in seen.field(b"upgrade")] == [b"websocket"]


def test_a_websocket_that_is_refused(pair: Pair, client: Http2Client) -> None:
    fields = [
        (b":method", b"CONNECT"), (b":scheme", b"http"), (b":path", b"/chat"),
        (b":authority", b"h"), (b":protocol", b"websocket"),
    ]  # fmt: skip
    pair.node.play(response(b"no", status=b"403 Forbidden"), response(b"what"))
    client.until(lambda: client.settings)
    assert client.response(client.begin(fields, end=False)).status == 403
    # 200 would say that the tunnel is there.
    assert client.response(client.begin(fields, end=False)).reset == ErrorCodes.INTERNAL_ERROR


def test_priorities() -> None:
    """What is urgent overtakes, once a window lets something go again."""
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec) as gateway,
        Http2Client(gateway.address, greedy=False, window=1_000_000) as client,
    ):
        node.otherwise = response(b"x" * 60_000)
        assert client.ask().status == 200  # which leaves 5,535 bytes of the connection's window
        streams = [
            client.begin(client.fields(b"GET", b"/", (b"priority", value)))
            for value in (b"u=5", b"u=1", b"u=3")
        ]
        node.wait_seen(4)
        client.until(lambda: all(client.responses[each].status for each in streams))
        client.h2.ping(b"12345678")
        client.flush()
        client.until(lambda: client.pongs)  # by now the rest of the nodes' bytes are here, too
        order: list[int] = []
        while not all(client.responses[each].ended for each in streams):
            client.h2.increment_flow_control_window(30_000)
            client.flush()
            before = {each: len(client.responses[each].body) for each in streams}
            client.receive()
            order += [each for each in streams if len(client.responses[each].body) > before[each]]
        last = [max(i for i, each in enumerate(order) if each == stream) for stream in streams]
        assert last[1] < last[2] < last[0]


def test_the_preface_is_only_one_at_the_beginning(pair: Pair) -> None:
    with pair.connect() as client:
        assert client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").status == 200
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.read_response().status == 505


def test_it_can_be_turned_off(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, "--http2-cleartext", "false")
        with gateway.connect() as client:
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert client.read_response().status == 505
