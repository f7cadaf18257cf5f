"""HTTP over TLS: everything that goes through a connection once its handshake is done."""

from __future__ import annotations

import hashlib
import random
import re
import select
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.client import Client
from support.node_wire import SeenUwsgi
from support.nodes import CLOSE, NODES, Connection, Node, Seen, closing, held, response
from support.tls import NAME, Terminating, TlsClient, client_context, terminating
from support.waiting import DEADLINE, wait_until

BIG = random.Random(4).randbytes(10_000_000)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def gateways(authority: Authority) -> Iterator[dict[str, Terminating]]:
    with (
        NODES["http"]() as http,
        NODES["uwsgi"]() as uwsgi,
        terminating(authority, http, "--http-max-body", "100M") as one,
        terminating(authority, uwsgi, "--http-max-body", "100M") as two,
    ):
        yield {"http": one, "uwsgi": two}


def fresh(it: Terminating) -> Iterator[Terminating]:
    it.node.reset()
    yield it
    it.node.check()


@pytest.fixture(params=["http", "uwsgi"])
def either(
    request: pytest.FixtureRequest, gateways: dict[str, Terminating]
) -> Iterator[Terminating]:
    """The gateway before an HTTP node, then the one before a uwsgi node."""
    yield from fresh(gateways[request.param])


@pytest.fixture
def it(gateways: dict[str, Terminating]) -> Iterator[Terminating]:
    """The gateway before an HTTP node."""
    yield from fresh(gateways["http"])


def get(target: bytes = b"/", *fields: bytes, host: bytes = NAME.encode()) -> bytes:
    lines = [b"GET %b HTTP/1.1" % target, b"Host: " + host, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


# --- requests and what nodes are told -------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_on_one_connection(either: Terminating, version: ssl.TLSVersion) -> None:
    with either.connect(version=version) as client:
        assert client.sock.selected_alpn_protocol() is None
        for number in range(5):
            reply = client.ask(get(b"/%d" % number))
            assert (reply.status, reply.body) == (200, b"GET /%d 0" % number)


def test_the_node_knows_that_it_was_https(
    it: Terminating, gateways: dict[str, Terminating]
) -> None:
    for each in (it, gateways["uwsgi"]):
        each.node.reset()
        with each.connect() as client:
            port = client.port
            assert client.ask(get()).status == 200
        (seen,) = each.node.wait_seen()
        if each is it:
            assert seen.field(b"x-forwarded-proto") == [b"https"]
            continue
        assert isinstance(seen, SeenUwsgi)
        values = dict(seen.variables)
        names = list(values)
        assert values[b"HTTPS"] == b"on"
        assert values[b"REMOTE_PORT"] == b"%d" % port
        assert values[b"SERVER_PORT"] == b"%d" % each.port
        assert names[names.index(b"UWSGI_ROUTER") + 1] == b"HTTPS"
        assert not [name for name in names if name.startswith(b"HTTPS_")]
        each.node.reset()


def test_http_1_1_is_negotiated(it: Terminating) -> None:
    context = client_context(it.authority)
    context.set_alpn_protocols(["spdy/2", "http/1.1"])
    with TlsClient(it.address, context) as client:
        assert client.sock.selected_alpn_protocol() == "http/1.1"
        assert client.ask(get()).status == 200


@pytest.mark.parametrize("size", [1, 7, 1000, 16384, 16385, 40_000])
def test_a_request_in_records_of_any_size(either: Terminating, size: int) -> None:
    body = BIG[:50_000]
    request = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 50000\r\n\r\n" + body
    pieces = [request[:100]] if size == 1 else []
    with either.connect() as client:
        if size == 1:
            client.send_bytewise(request[:100])
            client.send(request[100:])
        else:
            client.send_pieces(request[i : i + size] for i in range(0, len(request), size))
        assert client.read_response(b"POST").body == b"POST /a 50000"
    assert either.node.only().body == body
    assert len(pieces) < 2


def test_pipelined_requests_in_one_record(either: Terminating) -> None:
    with either.connect() as client:
        client.send(b"".join(get(b"/%d" % number) for number in range(50)))
        for number in range(50):
            assert client.read_response().body == b"GET /%d 0" % number


def test_head_and_first_bytes_are_one_record(it: Terminating) -> None:
    """A small response costs one record and one call, also if its head had to be changed."""
    it.node.play(response(b"x" * 100, b"Connection: keep-alive"))
    with it.connect(version=ssl.TLSVersion.TLSv1_2) as client:
        client.send(get())
        assert client.sock.recv(65536).endswith(b"\r\n\r\n" + b"x" * 100)


# --- large bodies ---------------------------------------------------------------------------------


def test_more_in_one_write_than_is_encrypted_at_once(authority: Authority, tmp_path: Path) -> None:
    """What the kernel takes at once must not end before the rest is encrypted."""
    page = tmp_path / "502.html"
    page.write_bytes(BIG[:400_000])
    with (
        NODES["http"]() as node,
        terminating(authority, node, f"--error-page-502={page}", "--http-keepalive=9") as it,
        it.connect() as client,
    ):
        for _ in range(5):
            node.play(b"nonsense\r\n\r\n", CLOSE)
            reply = client.ask(get())
            assert (reply.status, reply.body == BIG[:400_000]) == (502, True)
            assert client.ask(get(b"/next")).body == b"GET /next 0"  # nor overtake it


@pytest.mark.parametrize("version", VERSIONS)
def test_ten_megabytes_down(either: Terminating, version: ssl.TLSVersion) -> None:
    either.node.play(response(BIG))
    with either.connect(version=version) as client:
        reply = client.ask(get())
        assert hashlib.md5(reply.body).digest() == hashlib.md5(BIG).digest()
        client.assert_open()


def test_ten_megabytes_up(either: Terminating) -> None:
    with either.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BIG))
        client.send(BIG)
        assert client.read_response(b"POST").body == b"POST / %d" % len(BIG)
        client.assert_open()
    assert either.node.wait_seen()[0].body == BIG


def test_both_ways_at_once(it: Terminating) -> None:
    """A tunnel that carries megabytes in both directions while neither side waits."""

    def script(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        sender = threading.Thread(target=connection.send, args=(BIG,))
        sender.start()
        got.append(connection.take(len(BIG)))
        sender.join()
        return CLOSE

    got: list[bytes] = []
    it.node.play(script)
    with it.connect() as client:
        client.send(get(b"/", b"Connection: upgrade", b"Upgrade: x"))
        assert client.read_response(upgrade=b"x").status == 101
        received = both_ways(client, BIG)
    assert received == BIG
    wait_until(lambda: got, "the node to have it all")
    assert got == [BIG]


def both_ways(client: TlsClient, data: bytes) -> bytes:
    """Send ``data``, and meanwhile receive as much. One thread: OpenSSL lets no two of them use a
    connection at once, and Python before 3.13 does not keep them from it."""
    sock, unsent, received = client.sock, memoryview(data), bytearray(client.buffer)
    sock.setblocking(False)
    while unsent or len(received) < len(data):
        moved = 0
        try:
            if unsent:
                moved = sock.send(unsent[:65536])
                unsent = unsent[moved:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        try:
            part = sock.recv(65536)
            assert part, "closed"
            received += part
            moved += len(part)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if not moved:
            ready = select.select([sock], [sock] if unsent else [], [], DEADLINE)
            assert any(ready), "nothing moves"
    sock.settimeout(DEADLINE)
    return bytes(received)


def test_a_slow_reader_makes_the_node_wait(it: Terminating) -> None:
    """What waits for a client is bounded, however fast the node is."""
    written: list[int] = []

    def script(connection: Connection, seen: Seen) -> str:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (8 * len(BIG))
        connection.send(head)
        for _ in range(8):
            for start in range(0, len(BIG), 100_000):
                connection.send(BIG[start : start + 100_000])
                written.append(100_000)
        return CLOSE

    it.node.play(script)
    with it.connect() as client:
        client.send(get())
        client.read_until(b"\r\n\r\n")

        def stands_still() -> bool:
            before = len(written)
            return before > 5 and not threading.Event().wait(0.2) and len(written) == before

        wait_until(stands_still, "the node to be held")
        assert sum(written) < 6 * len(BIG)
        digest, left = hashlib.sha256(), 8 * len(BIG)
        while left:
            data = client.receive()
            assert data
            digest.update(data)
            left -= len(data)
    assert digest.digest() == hashlib.sha256(BIG * 8).digest()


def test_a_slow_node_makes_the_client_wait(it: Terminating) -> None:
    gate = threading.Event()

    def script(connection: Connection) -> bytes:
        assert gate.wait(20)
        return b""

    it.node.on_expect = script(Connection(socket.socket(), 0)) if gate.is_set() else b""  # type: ignore[attr-defined]
    sent: list[int] = []
    with it.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BIG))
        for start in range(0, len(BIG), 100_000):
            client.send(BIG[start : start + 100_000])
            sent.append(start)
        assert client.read_response(b"POST").body == b"POST / %d" % len(BIG)


# --- ends -----------------------------------------------------------------------------------------


def test_the_end_is_announced(either: Terminating) -> None:
    """close_notify, or a client must take the end for an attack (RFC 8446 §6.1)."""
    with either.connect() as client:
        client.send(get(b"/", b"Connection: close"))
        assert client.read_response().closes
        assert client.sock.recv(1) == b""  # and no ssl.SSLEOFError
    either.node.reset()
    either.node.play(closing(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"))
    with either.connect() as client:
        client.send(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
        assert client.read_to_end().endswith(b"\r\n\r\nuntil the end")


@pytest.mark.parametrize("how", ["half_close", "cut"])
def test_a_half_closed_client_gets_its_answer(either: Terminating, how: str) -> None:
    gate = threading.Event()
    either.node.play(held(gate, response(BIG[:300_000])))
    with either.connect() as client:
        client.send(get())
        either.node.wait_seen()
        getattr(client, how)()
        gate.set()
        assert client.read_response().body == BIG[:300_000]
        if how == "half_close":
            assert client.receive() == b""


def test_a_body_that_is_cut_off_is_no_body(either: Terminating) -> None:
    """The end of the stream is not the end of a request (RFC 8446 §6.1, truncation)."""
    before = either.failed("client-closed")
    with either.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345")
        client.cut()
        assert client.read_to_end() == b""
    assert either.failed("client-closed") == before + 1
    assert either.node.seen == []


def test_a_client_that_leaves_is_noticed(it: Terminating) -> None:
    before = it.failed("client-closed")
    gate = threading.Event()
    it.node.play(held(gate, response()))
    with it.connect() as client:
        client.send(get())
        it.node.wait_seen()
        client.reset()
    wait_until(lambda: it.failed("client-closed") == before + 1, "the client's end")
    gate.set()


@pytest.mark.parametrize("first", ["node", "client"])
def test_a_tunnel_ends_one_way_at_a_time(either: Terminating, first: str) -> None:
    got: list[bytes] = []
    # OpenSSL's shutdown looks for data, too, and breaks the connection where it finds some.
    closed = threading.Event()

    def script(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        if first == "node":
            connection.send(b"the node's last")
            connection.half_close()
            got.append(connection.take_to_end())
        else:
            got.append(connection.take_to_end())
            assert closed.wait(10)
            connection.send(b"the node's last")
        return CLOSE

    either.node.play(script)
    with either.connect() as client:
        client.send(get(b"/", b"Connection: upgrade", b"Upgrade: x"))
        assert client.read_response(upgrade=b"x").status == 101
        if first == "node":
            assert client.read_to_end() == b"the node's last"
            client.send(b"the client's last")
            client.half_close()
        else:
            client.send(b"the client's last")
            client.half_close()
            closed.set()
            assert client.read_to_end() == b"the node's last"
        wait_until(lambda: got, "the node to see the end")
    assert got == [b"the client's last"]


def test_garbage_after_the_handshake(it: Terminating) -> None:
    before = it.failed("tls-broken")
    with it.connect() as client:
        assert client.ask(get()).status == 200
        raw = socket.socket(fileno=client.sock.detach())
        raw.settimeout(10)
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        data = b""
        try:
            while more := raw.recv(4096):
                data += more
        except ConnectionResetError:
            pass
        raw.close()
        assert len(data) < 100  # an alert, if anything: nothing is answered
    wait_until(lambda: it.failed("tls-broken") == before + 1, "it to be counted")
    assert len(it.node.seen) == 1


# --- HTTP in clear text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "method"),
    [
        (b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", b"GET"),
        (b"GET ", b"GET"),
        (b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"HEAD"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000, b"POST"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET"),
    ],
)
def test_http_in_clear_text_is_told_so(it: Terminating, request_: bytes, method: bytes) -> None:
    before, accepted = it.failed("plain-http"), it.metrics("uwgate_accepted_connections_total")
    with it.in_clear() as client:
        client.send_willing(request_)
        reply = client.read_response(method)
        assert reply.status == 400
        assert reply.closes
        assert (b"HTTPS" in reply.body) == (method != b"HEAD")
        client.read_to_end()
    assert it.failed("plain-http") == before + 1
    assert it.metrics("uwgate_accepted_connections_total") == accepted + 1
    wait_until(lambda: it.open_connections == 0, "the connection to be forgotten")
    assert it.node.seen == []


def test_http_in_clear_text_is_in_the_request_log(authority: Authority) -> None:
    with NODES["http"]() as node, terminating(authority, node, "--http-log") as it:
        with it.in_clear() as client:
            assert client.ask(get(b"/somewhere")).status == 400
        with it.connect() as client:
            assert client.ask(get(b"/elsewhere")).status == 200
        wait_until(lambda: "/elsewhere" in it.gateway.log, "the log")
        (line,) = [line for line in it.gateway.log.splitlines() if "/somewhere" in line]
        assert "400" in line
        assert "plain-http" in line


# --- draining -------------------------------------------------------------------------------------


def test_draining(authority: Authority) -> None:
    """Who is served is served to the end, who has said nothing yet goes, and so do the idle."""
    gate = threading.Event()
    with NODES["http"]() as node, terminating(authority, node, "--no-defer-accept") as it:
        node.play(response(), held(gate, response(b"served")))
        idle, busy, silent = it.connect(), it.connect(), Client(it.address)
        with idle, busy, silent:
            assert idle.ask(get()).status == 200
            busy.send(get())
            node.wait_seen(2)
            wait_until(lambda: it.open_connections == 3, "three connections")
            it.gateway.process.send_signal(signal.SIGTERM)
            assert idle.read_to_end() == b""
            assert silent.read_to_end() == b""
            gate.set()
            reply = busy.read_response()
            assert (reply.body, reply.closes) == (b"served", True)
            busy.assert_closed()
        assert it.gateway.process.wait(10) == 0


def test_a_handshake_under_way_is_finished(authority: Authority) -> None:
    with NODES["http"]() as node, terminating(authority, node) as it:
        context = client_context(authority)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        with Client(it.address) as client:
            client.send(hello[:50])
            wait_until(lambda: it.metrics("uwgate_tls_handshaking") == 1, "the handshake")
            it.gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: re.search("SIGTERM", it.gateway.log), "the end to begin")
            client.send(hello[50:])
            while True:
                incoming.write(client.receive())
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    client.send(outgoing.read())
            tls.write(get())
            client.send(outgoing.read())
            reply = b""
            while b"GET / 0" not in reply:
                incoming.write(client.receive())
                try:
                    reply += tls.read(65536)
                except ssl.SSLWantReadError:
                    pass
        assert it.gateway.process.wait(10) == 0


def unused(node: Node) -> None:
    """Nothing reached the node."""
    assert node.seen == []
