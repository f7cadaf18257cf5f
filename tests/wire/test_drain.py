"""A worker that drains: gently, because others serve the same sockets, or because it has to end.

The test is the worker's master, and holds its listening sockets as the next worker would.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.certificates import Authority, Pair
from support.client import Client
from support.nodes import Connection, Node, RawHttpNode, Seen, held, response
from support.served import BIG, fill, get
from support.tls import NAME, TlsClient, client_context
from support.waiting import DEADLINE, dead_address, wait_until
from support.workers import Worker, stuff, worker

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def asking(target: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target


def echo(connection: Connection, seen: Seen) -> None:
    """Switch protocols, and send back what comes."""
    connection.send(SWITCH)
    while True:
        connection.send(connection.take_some())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Pair:
    return authority.issue(NAME)


@dataclass
class Serving:
    """A worker with one listener, and how to be its client."""

    worker: Worker
    authority: Authority | None

    def connect(self) -> Client:
        """One that is accepted, and has shaken hands."""
        if self.authority is None:
            return self.worker.connect()
        return TlsClient(self.worker.address(), client_context(self.authority))


Serve = Callable[..., AbstractContextManager[Serving]]


@pytest.fixture(params=["http", "https"])
def serve(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority, certificate: Pair
) -> Serve:
    """``serve(node, *options)``: a worker before it, in clear text and over TLS."""
    secure = request.param == "https"
    listener = ["--http", "127.0.0.1:0"]
    if secure:
        listener = ["--https", f"127.0.0.1:0,{certificate.cert},{certificate.key}"]

    @contextmanager
    def serving(node: Node | None, *options: str) -> Iterator[Serving]:
        to = ["--http-to", node.spec] if node is not None else []
        with worker(tmp_path, *listener, *to, *options) as it:
            yield Serving(it, authority if secure else None)

    return serving


@pytest.fixture
def plain(tmp_path: Path, http_node: RawHttpNode) -> Iterator[Worker]:
    """A worker before ``http_node``."""
    with worker(tmp_path, "--http", "127.0.0.1:0", "--http-to", http_node.spec) as it:
        yield it


# --- connections that wait ------------------------------------------------------------------------


def test_an_idle_connection_gets_one_more_response(serve: Serve, http_node: RawHttpNode) -> None:
    with serve(http_node) as it, it.connect() as first, it.connect() as second:
        for client in (first, second):
            assert not client.ask(GET).closes
        it.worker.drain()
        for client in (first, second):
            reply = client.ask(GET)
            assert (reply.status, reply.body, reply.closes) == (200, b"GET / 0", True)
            client.assert_closed()
            assert not client.was_reset
            client.close()
        assert it.worker.wait() == 0


def test_so_does_one_of_http_10(plain: Worker, http_node: RawHttpNode) -> None:
    old = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    with plain.connect() as client:
        assert client.ask(old).get(b"connection") == b"keep-alive"
        plain.drain()
        assert client.ask(old).closes
        client.assert_closed()
    assert plain.wait() == 0


def test_one_that_has_not_asked_yet_is_served(serve: Serve, http_node: RawHttpNode) -> None:
    with serve(http_node) as it, it.connect() as client:
        it.worker.drain()
        reply = client.ask(GET)
        assert (reply.status, reply.closes) == (200, True)
        client.assert_closed()


def test_one_that_has_asked_for_half_is_served(serve: Serve, http_node: RawHttpNode) -> None:
    with serve(http_node) as it, it.connect() as client:
        client.send(GET[:20])
        it.worker.received(20)
        it.worker.drain()
        client.send(GET[20:])
        reply = client.read_response()
        assert (reply.status, reply.closes) == (200, True)
        client.assert_closed()


def test_a_handshake_under_way_is_finished(
    tmp_path: Path, http_node: RawHttpNode, authority: Authority, certificate: Pair
) -> None:
    https = f"127.0.0.1:0,{certificate.cert},{certificate.key}"
    with (
        worker(tmp_path, "--https", https, "--http-to", http_node.spec) as it,
        Client(it.address()) as silent,
        Client(it.address()) as half,
    ):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(authority).wrap_bio(incoming, outgoing, server_hostname=NAME)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        half.send(hello[:100])
        it.received(100)
        assert it.snapshot()["tls_handshaking"] == 2
        it.drain()
        half.send(hello[100:])
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                half.send(outgoing.read())
                incoming.write(half.receive())
        tls.write(GET)
        half.send(outgoing.read())
        incoming.write(half.read_to_end())
        assert b"Connection: close\r\n" in tls.read(10000)
        descriptor = socket.socket.detach(silent.sock)
        with client_context(authority).wrap_socket(
            socket.socket(fileno=descriptor), server_hostname=NAME
        ) as late:
            late.settimeout(DEADLINE)
            late.sendall(GET)
            assert late.recv(10000).startswith(b"HTTP/1.1 200 OK\r\n")
        half.close()
        assert it.wait() == 0


@pytest.mark.parametrize("cut", [0, 10])
def test_a_proxy_header_under_way_is_read(
    tmp_path: Path, http_node: RawHttpNode, cut: int
) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n"
    words = ["--http", "127.0.0.1:0", "--http-to", http_node.spec]
    with (
        worker(tmp_path, *words, "--http-enable-proxy-protocol") as it,
        it.connect() as client,
    ):
        client.send(header[:cut])
        it.received(cut)
        it.drain()
        reply = client.ask(header[cut:] + GET)
        assert (reply.status, reply.closes) == (200, True)
        assert http_node.only().field(b"x-forwarded-for") == [b"192.0.2.7"]
        client.assert_closed()


def test_a_redirecting_listener_drains_as_well(
    tmp_path: Path, http_node: RawHttpNode, certificate: Pair
) -> None:
    https = f"127.0.0.1:1443,{certificate.cert},{certificate.key}"
    words = ["--http-to-https", "127.0.0.1:0", "--https", https, "--http-to", http_node.spec]
    with worker(tmp_path, *words) as it:
        (index,) = (
            index
            for index, (settings, _) in enumerate(it.listeners)
            if settings.redirect is not None
        )
        with it.connect(index) as client:
            assert not client.ask(GET).closes
            it.drain()
            client.send(GET + GET)
            replies = [client.read_response(), client.read_response()]
            assert [reply.status for reply in replies] == [301, 301]
            assert [reply.closes for reply in replies] == [False, True]
            client.assert_closed()
        assert it.wait() == 0


def test_who_comes_later_is_left_to_others(plain: Worker, http_node: RawHttpNode) -> None:
    with plain.connect():  # for whom it stays
        plain.drain()
        with Client(plain.address()) as client:
            client.send(GET)
            (listening,) = plain.listening
            listening.settimeout(DEADLINE)
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.recv(1000) == GET
    assert plain.wait() == 0
    assert not http_node.seen


def test_an_idle_connection_ends_in_its_time(tmp_path: Path, http_node: RawHttpNode) -> None:
    words = ["--http", "127.0.0.1:0", "--http-to", http_node.spec, "--http-timeout", "1"]
    with worker(tmp_path, *words) as it, it.connect() as client:
        assert client.ask(GET).status == 200
        it.drain()
        client.assert_closed()
        assert not client.was_reset
        assert it.wait() == 0
    assert "cut" not in it.log


def test_without_connections_it_ends_at_once(plain: Worker, http_node: RawHttpNode) -> None:
    with plain.connect() as client:
        assert client.ask(GET).status == 200
    wait_until(lambda: plain.snapshot()["tally"]["connections"] == 0, "the client is gone")
    assert http_node.open_connections() == 1
    plain.order("drain", gently=True, limit=60)
    assert plain.wait() == 0
    wait_until(lambda: http_node.open_connections() == 0, "no idle connection to the node")
    assert plain.log == ""


# --- requests one behind the other ----------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_all_that_was_asked_is_answered(serve: Serve, http_node: RawHttpNode, after: bool) -> None:
    gate = threading.Event()
    with serve(http_node) as it, it.connect() as client:
        http_node.play(held(gate, response(b"first")))
        more = asking(b"/2") + asking(b"/3")
        size = it.worker.snapshot()["tally"]["rx"]
        client.send(GET)
        http_node.wait_seen()
        if after:
            it.worker.drain()
        client.send(more)
        it.worker.received(size + len(GET + more))
        if not after:
            it.worker.drain()
        gate.set()
        replies = [client.read_response() for _ in range(3)]
        assert [reply.body for reply in replies] == [b"first", b"GET /2 0", b"GET /3 0"]
        assert [reply.closes for reply in replies] == [False, False, True]
        client.assert_closed()
        assert not client.was_reset
        client.close()
        assert it.worker.wait() == 0


def test_all_in_one_piece_are_answered(serve: Serve, http_node: RawHttpNode) -> None:
    post = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
    with serve(http_node) as it, it.connect() as client:
        it.worker.drain()
        client.send(asking(b"/1") + post + asking(b"/3"))
        replies = [client.read_response() for _ in range(3)]
        assert [reply.body for reply in replies] == [b"GET /1 0", b"POST /p 3", b"GET /3 0"]
        assert [reply.closes for reply in replies] == [False, False, True]
        client.assert_closed()


def test_who_wants_to_close_gets_his_way(serve: Serve, http_node: RawHttpNode) -> None:
    last = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    with serve(http_node) as it, it.connect() as client:
        it.worker.drain()
        client.send(last + asking(b"/never"))
        reply = client.read_response()
        assert (reply.body, reply.closes) == (b"GET /last 0", True)
        client.assert_closed()
    assert [seen.target for seen in http_node.seen] == [b"/last"]


def test_errors_of_nodes_do_not_end_a_row(tmp_path: Path) -> None:
    words = ["--http", "127.0.0.1:0", "--http-to", dead_address()]
    with worker(tmp_path, *words) as it, it.connect() as client:
        it.drain()
        client.send(GET * 3)
        replies = [client.read_response() for _ in range(3)]
        assert [reply.status // 100 for reply in replies] == [5, 5, 5]
        assert [reply.closes for reply in replies] == [False, False, True]
        client.assert_closed()


def test_a_request_that_comes_too_late_takes_no_response_along(
    plain: Worker, http_node: RawHttpNode
) -> None:
    """A reset would destroy what its slow client has not read yet."""
    body = bytes(200_000)
    gate = threading.Event()
    http_node.play(held(gate, response(body)))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE)
        sock.connect(plain.address())
        sock.sendall(GET)
        http_node.wait_seen()
        plain.drain()
        gate.set()
        wait_until(lambda: plain.snapshot()["tally"]["tx"] > len(body), "it is sent")
        sock.sendall(GET)
        assert plain.wait() == 0  # it has waited for the client's FIN, but not for ever
        data = bytearray()
        while more := sock.recv(65536):
            data += more
    assert data.endswith(body)
    assert len(data) > len(body)


# --- what is under way ----------------------------------------------------------------------------


def test_an_upload_goes_on(serve: Serve, http_node: RawHttpNode) -> None:
    head = b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"
    with serve(http_node) as it, it.connect() as client:
        size = it.worker.snapshot()["tally"]["rx"]
        client.send(head + b"01234")
        it.worker.received(size + len(head) + 5)
        it.worker.drain()
        client.send(b"56789")
        reply = client.read_response()
        assert (reply.status, reply.body, reply.closes) == (200, b"POST /up 10", True)
        client.assert_closed()
        assert http_node.only().body == b"0123456789"


def test_a_response_goes_on(serve: Serve, http_node: RawHttpNode) -> None:
    gate = threading.Event()

    def slowly(connection: Connection, seen: Seen) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        assert gate.wait(DEADLINE)
        connection.send(b"56789")

    http_node.play(slowly)
    with serve(http_node) as it, it.connect() as client:
        client.send(GET)
        begin = client.read_until(b"01234")
        assert b"close" not in begin
        it.worker.drain()
        gate.set()
        assert client.read_exactly(5) == b"56789"
        # Its head could not say so: the next one does.
        assert client.ask(GET).closes
        client.assert_closed()
        client.close()
        assert it.worker.wait() == 0


def test_a_file_goes_on(serve: Serve, tmp_path: Path) -> None:
    www = tmp_path / "www"
    www.mkdir()
    fill(www)
    with serve(None, "--check-static", str(www)) as it, it.connect() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(get(b"/big.bin"))
        client.read_until(b"\r\n\r\n")
        it.worker.drain()
        assert client.read_exactly(len(BIG)) == BIG
        reply = client.ask(get(b"/small.txt"))
        assert (reply.status, reply.closes) == (200, True)
        client.assert_closed()
        client.close()
        assert it.worker.wait() == 0


def test_what_is_on_its_way_through_a_tunnel_does_not_reset_it(
    serve: Serve, http_node: RawHttpNode
) -> None:
    gate = threading.Event()

    def deaf(connection: Connection, seen: Seen) -> None:
        connection.send(SWITCH)
        assert gate.wait(DEADLINE)

    http_node.play(deaf)
    with serve(http_node) as it, it.connect() as client:
        client.send(UPGRADE)
        assert client.read_response(upgrade=b"websocket").status == 101
        stuff(client)
        it.worker.drain(0)
        client.assert_closed()
        assert not client.was_reset
        gate.set()
        client.close()
        assert it.worker.wait() == 0


def test_a_tunnel_goes_on_until_the_time_is_over(serve: Serve, http_node: RawHttpNode) -> None:
    with serve(http_node) as it, it.connect() as client, it.connect() as idle:
        assert idle.ask(GET).status == 200
        http_node.play(echo)
        client.send(UPGRADE)
        assert client.read_response(upgrade=b"websocket").status == 101
        it.worker.drain(2)
        client.send(b"ping")
        assert client.read_exactly(4) == b"ping"
        idle.assert_closed()  # with the time, politely
        assert not idle.was_reset
        client.assert_closed()
        assert not client.was_reset
        assert it.worker.wait() == 0
    assert "uwgate http 1: out of time, 1 connection cut" in it.worker.log
