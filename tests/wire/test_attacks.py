"""Attacks on a running gateway: by clients, by nodes, and by what the machine runs out of."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.nodes import CLOSE, NODES, Connection, Node, Seen, default_answer, resetting, response
from support.uwgate import Gateway, StartGateway
from support.waiting import wait_until

from wire.conftest import Pair

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


@pytest.fixture
def node(kind: str) -> Iterator[Node]:
    """A node of its own for gateways that are not shared."""
    with NODES[kind]() as made:
        yield made
        made.check()


def _worker(gateway: Gateway) -> int:
    """Process id of the only worker, once it serves."""
    with gateway.connect() as client:
        client.assert_open()
    pid = gateway.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    assert len(children) == 1, children
    return int(children[0])


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def _without_descriptors(pid: int) -> Iterator[None]:
    """Let the process open nothing more for the length of the block."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def _stalled(gateway: Gateway) -> socket.socket:
    """A client whose kernel takes next to nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(gateway.address)
    return sock


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True], ids=["at once", "apart"])
def test_header_lines_without_a_request_line_repeat_nothing(pair: Pair, split: bool) -> None:
    with pair.connect() as client:
        # A body makes the first request take the general path, which forgets its line.
        request = b"POST /transfer HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"
        assert client.ask(request, b"POST").status == 200
        if split:
            client.send(b"\r\n")
            client.send(b"Host: evil\r\n\r\n")
        else:
            client.send(b"\r\nHost: evil\r\n\r\n")
        assert client.read_response().status == 400
        client.assert_closed()
    assert [seen.target for seen in pair.node.seen] == [b"/transfer"]


def test_nothing_of_ours_can_be_nominated_away(http_pair: Pair) -> None:
    names = b"x-forwarded-for, x-forwarded-host, x-forwarded-proto, via"
    seen = http_pair.forwarded(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: " + names + b"\r\n\r\n")
    assert seen.field(b"x-forwarded-for") == [b"127.0.0.1"]
    assert seen.field(b"x-forwarded-proto") == [b"http"]
    assert seen.field(b"x-forwarded-host") == [b"h"]
    assert seen.field(b"via") == [b"1.1 uwgate"]


def test_a_learned_varying_field_hides_no_end_of_head(pair: Pair) -> None:
    def head(value: bytes, *more: bytes) -> bytes:
        lines = (b"GET /v HTTP/1.1", b"Host: h", *more, b"X-Id: " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    with pair.connect() as client:
        for number in range(4):  # after these X-Id is known to vary
            assert client.ask(head(b"%d" % number)).status == 200
        seen = len(pair.node.seen)
        client.send(head(b"4", b"\r\nGET /hidden HTTP/1.1\r\nHost: h"))
        assert client.read_response().body.startswith(b"GET /v")
        assert client.read_response().body.startswith(b"GET /hidden")
        targets = [each.target for each in pair.node.seen[seen:]]
        assert targets == [b"/v", b"/hidden"]
        assert pair.node.seen[seen].field(b"x-id") == []
        assert pair.node.seen[seen + 1].field(b"x-id") == [b"4"]


def test_a_host_too_long_for_any_name_is_answered(start_gateway: StartGateway, kind: str) -> None:
    scheme = "http://" if kind == "http" else ""
    gateway = start_gateway("--http-use-pattern", f"{scheme}%s:3031")
    with gateway.connect(timeout=3) as client:
        reply = client.ask(b"GET / HTTP/1.1\r\nHost: " + b"a" * 64 + b"\r\n\r\n")
    assert reply.status in (502, 503)
    assert "Traceback" not in gateway.log


# --- readers that stall ---------------------------------------------------------------------------


def test_a_stalled_reader_is_bounded_over_many_requests(
    start_gateway: StartGateway, kind: str, node: Node
) -> None:
    """Responses that are complete fill the buffer; the one after them must be held back too."""
    finished: list[bool] = []

    def answer(connection: Connection, seen: Seen) -> str | None:
        if seen.target != b"/large":
            connection.send(response(b"x" * 60_000))
            return None
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
        connection.sock.settimeout(1)
        try:
            for _ in range(64):
                connection.sock.sendall(bytes(1_000_000))
        except OSError:
            finished.append(False)
        else:
            finished.append(True)
        return CLOSE

    node.otherwise = answer
    gateway = start_gateway("--http-to", node.spec, "--http-timeout", "4")
    with _stalled(gateway) as client:
        client.sendall(GET * 100 + b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        # Held back before its head was even sent is just as well.
        wait_until(lambda: finished or _gone(client), "the node held back, or the client cut")
    assert finished in ([], [False]), "64 MB were read for a client that reads nothing"


def _gone(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@pytest.mark.parametrize("field", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
def test_a_reader_that_stalls_at_the_end_is_cut(
    start_gateway: StartGateway, kind: str, node: Node, field: bytes
) -> None:
    """Everything has come from the node, the rest waits in our buffer: it may not wait for ever."""
    # How much the kernel takes is its secret: some of these end in between.
    # (Without end: a request whose connection is dropped below before its answer is sent again.)
    sizes = itertools.cycle(range(500_000, 4_500_000, 100_000))
    node.otherwise = lambda connection, _seen: connection.send(response(bytes(next(sizes))))
    gateway = start_gateway("--http-to", node.spec, "--http-timeout", "1", "--http-keepalive=2")
    node.play(default_answer)
    pid = _worker(gateway)
    idle = _descriptors(pid)  # may count what is about to be closed, never too little
    clients = [_stalled(gateway) for _ in range(40)]
    try:
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n" + field + b"\r\n")
        wait_until(lambda: len(node.seen) == len(clients) + 1, "all requests at the node")

        def let_go() -> bool:
            node.drop_idle()  # again: what ends late is kept by the pool, not by its client
            return _descriptors(pid) <= idle

        wait_until(let_go, "the gateway to let go of them")
    finally:
        for client in clients:
            client.close()


# --- hostile nodes --------------------------------------------------------------------------------


def test_a_late_body_of_a_head_response_is_nobodys_response(http_pair: Pair) -> None:
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"

    def late(connection: Connection, seen: Seen) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(poison))

    def on_get(connection: Connection, seen: Seen) -> None:
        if connection.number == http_pair.node.seen[0].connection:
            connection.send(poison)  # the body that was on its way when the request came
        else:
            default_answer(connection, seen)

    http_pair.node.play(late, on_get)
    with http_pair.connect() as attacker, http_pair.connect() as victim:
        assert attacker.ask(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"HEAD").status == 200
        assert victim.ask(GET).body == b"GET / 0"


def test_interim_responses_have_an_end(start_gateway: StartGateway, kind: str, node: Node) -> None:
    cut = threading.Event()

    def flood(connection: Connection, seen: Seen) -> str:
        try:
            for _ in range(5000):
                connection.sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        except OSError:
            cut.set()
        return CLOSE

    node.play(flood)
    gateway = start_gateway("--http-to", node.spec)
    with gateway.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        data = client.read_to_end()
    assert cut.wait(10)
    assert data.count(b"Early Hints") < 10_000


def test_a_tunnel_ends_when_its_node_is_reset(
    start_gateway: StartGateway, kind: str, node: Node
) -> None:
    node.play(resetting(SWITCH))
    gateway = start_gateway("--http-to", node.spec)
    with gateway.connect(timeout=3) as client:
        client.send(UPGRADE)
        client.read_until(b"\r\n\r\n")
        assert client.read_to_end() == b""
    assert "Traceback" not in gateway.log


def test_bytes_for_a_tunnel_whose_node_is_gone(
    start_gateway: StartGateway, kind: str, node: Node
) -> None:
    node.play(resetting(SWITCH))
    gateway = start_gateway("--http-to", node.spec)
    with gateway.connect() as client:
        client.send(UPGRADE)
        client.read_until(b"\r\n\r\n")
        wait_until(lambda: node.open_connections() == 0, "the node gone")
        for _ in range(20):
            client.send_willing(b"x")
    with gateway.connect() as client:
        client.assert_open()  # everything before has been dealt with
    assert "Traceback" not in gateway.log
    assert "raised exception" not in gateway.log


# --- out of descriptors ---------------------------------------------------------------------------


def test_without_descriptors_requests_fail_at_once_and_mark_no_node(
    start_gateway: StartGateway, kind: str, node: Node
) -> None:
    gateway = start_gateway("--http-to", node.spec)
    pid = _worker(gateway)
    with gateway.connect(timeout=5) as client:
        assert client.ask(GET).status == 200
        pooled = 1 if kind == "http" else 0
        without = _descriptors(pid) - pooled
        node.drop_idle()
        wait_until(lambda: _descriptors(pid) <= without, "the pool empty")
        with _without_descriptors(pid):
            assert client.ask(GET).status in (500, 502, 503)
        # The lack was ours: the node is as well as before.
        assert client.ask(GET).status == 200
    assert "Traceback" not in gateway.log


def test_a_body_that_cannot_be_stored_is_answered(start_gateway: StartGateway) -> None:
    with NODES["uwsgi"]() as node:
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            assert client.ask(GET).status == 200
            head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            with _without_descriptors(_worker(gateway)):
                client.send_willing(head + b"200000\r\n" + bytes(0x200000) + b"\r\n0\r\n\r\n")
                assert client.read_response(b"POST").status >= 500
        assert "Traceback" not in gateway.log


# --- logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["default", "json", "%(uri) %(host) %(uagent) %(var.HTTP_X)"])
def test_one_request_is_one_line_of_ascii(
    start_gateway: StartGateway, tmp_path: Path, kind: str, node: Node, form: str
) -> None:
    path = tmp_path / "requests.log"
    gateway = start_gateway(
        *("--http-to", node.spec, "--http-log-file", str(path), "--http-log-format", form)
    )
    hostile = b'\x85\xe2\x80\xa8\xff\t"\\%s%(status) \x80'
    request = b'GET /%0a%0d"\\ HTTP/1.1\r\nHost: h\r\nUser-Agent: @\r\nX: @\r\n\r\n'
    with gateway.connect() as client:
        client.send(request.replace(b"@", hostile))
        client.read_response()
    wait_until(lambda: path.stat().st_size > 0, "the line")
    gateway.stop()
    text = path.read_bytes()
    assert text.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in text[:-1]), text
