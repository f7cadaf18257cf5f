import errno
import json
import os
import select
import selectors
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from observe_loop import Master, read_all, serving, split
from observe_samples import View, full, node, worker
from support.waiting import wait_until

from uwgate.observe import server
from uwgate.observe.server import StatsServer
from uwgate.observe.stats import StatsFacts


def test_a_silent_client_gets_the_bare_document() -> None:
    with serving() as master:
        began = time.monotonic()
        with master.connect() as sock:
            value = json.loads(read_all(sock))
        assert value["active_sessions"] == 1
        assert 0.15 < time.monotonic() - began < 5


def test_a_client_that_ends_its_side_is_answered_at_once() -> None:
    with serving(minified=True) as master, master.connect() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert json.loads(read_all(sock))["cheap"] == 0


def test_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "stats")
    with serving(path) as master:
        with master.connect() as sock:
            assert json.loads(read_all(sock))["counters"]["requests"] == 3
        assert master.get("/healthz")[0] == 200


def test_json_over_http() -> None:
    with serving() as master:
        status, fields, body = master.get("/")
        assert status == 200
        assert fields["content-type"] == "application/json"
        assert fields["connection"] == "close"
        assert fields["content-length"] == str(len(body))
        assert "access-control-allow-origin" not in fields
        assert json.loads(body)["static_nodes"][0]["hits"] == 3


def test_metrics_over_http() -> None:
    with serving() as master:
        status, fields, body = master.get("/metrics?name=x")
        assert status == 200
        assert fields["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b"\nuwgate_requests_total 3\n" in body
        master.snapshots = [worker(started=2000, requests=1)]
        assert b"\nuwgate_requests_total 4\n" in master.get("/metrics")[2]


def test_probes() -> None:
    with serving() as master:
        assert master.get("/readyz")[::2] == (200, b"ready\n")
        master.reason = "draining"
        assert master.get("/readyz")[::2] == (503, b"draining\n")
        assert master.get("/healthz")[::2] == (200, b"ok\n")
        assert master.collections == 0


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/other"])
def test_head_has_the_fields_of_get_and_no_body(path: str) -> None:
    with serving() as master:
        status, fields, body = master.get(path, "HEAD")
        assert body == b""
        again = master.get(path)
        assert (status, list(fields)) == (again[0], list(again[1]))
        assert int(fields["content-length"]) > 0


def test_other_paths_and_methods_are_refused() -> None:
    with serving() as master:
        assert master.get("/other")[0] == 404
        status, fields, _ = master.get("/", "POST")
        assert (status, fields["allow"]) == (405, "GET, HEAD")
        assert split(master.ask(b"GET / HTTP/1.1\r\n\r\n"))[0] == 400
        assert split(master.ask(b"\x16\x03\x01\r\n\r\n"))[0] == 400


def test_a_large_request_is_refused_and_the_refusal_arrives() -> None:
    with serving() as master, master.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\nX: " + b"a" * 100_000)
        assert split(read_all(sock))[0] == 431


def test_a_request_in_pieces_is_answered_even_after_the_grace() -> None:
    with serving() as master, master.connect() as sock:
        sock.sendall(b"GET /healthz HT")
        # The next turn of a whole exchange proves that ticks have passed meanwhile.
        with master.connect() as silent:
            assert read_all(silent).startswith(b"{")
        sock.sendall(b"TP/1.0\r\n\r\n")
        assert split(read_all(sock))[0] == 200


def test_an_unfinished_request_ends_with_its_input() -> None:
    with serving() as master, master.connect() as sock:
        sock.sendall(b"GET / HT")
        sock.shutdown(socket.SHUT_WR)
        assert split(read_all(sock))[0] == 400


def test_stats_http_is_always_http() -> None:
    with serving(http=True) as master:
        status, fields, body = master.get("/whatever")
        assert status == 200
        assert fields["access-control-allow-origin"] == "*"
        assert json.loads(body)["pid"] == os.getpid()
        assert "access-control-allow-origin" not in master.get("/metrics")[1]
        with master.connect() as sock:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""


def send_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"x")
        select.select([], [], [sock], 0.01)


def test_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DEADLINE", 0.4)
    monkeypatch.setattr(server, "LINGER", 0.1)
    with serving(http=True) as master:
        with master.connect() as sock:
            assert split(read_all(sock))[0] == 408
        with master.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n")
            assert split(read_all(sock))[0] == 408
        # The linger after an early error is bounded too: the server hangs up.
        with master.connect() as sock:
            sock.sendall(b"POST / HTTP/1.0\r\n\r\n")
            assert split(read_all(sock))[0] == 405
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                send_for_ever(sock)


def test_workers_that_never_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DEADLINE", 0.5)
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    with serving() as master:
        master.hold = True
        assert master.get("/metrics")[0] == 503
        with master.connect() as sock:
            assert read_all(sock) == b""
        # The lost collections do not block the next one, and their late answers are ignored.
        master.hold = False
        assert master.get("/metrics")[0] == 200
        master.snapshots = [worker(requests=9)]
        master.released.set()
        assert b"\nuwgate_requests_total 9\n" in master.get("/metrics")[2]


def test_a_client_is_answered_although_a_collection_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    with serving() as master:
        master.lost = 1
        with master.connect() as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert split(read_all(sock))[0] == 200
        assert master.collections == 2


def test_overlapping_requests_share_one_collection() -> None:
    with serving() as master:
        master.hold = True
        request = b"GET /metrics HTTP/1.0\r\n\r\n"
        socks = [master.connect() for _ in range(5)]
        for sock in socks:
            sock.sendall(request)
        assert master.get("/healthz")[0] == 200  # all five were read before this one
        master.released.set()
        for sock in socks:
            with sock:
                assert split(read_all(sock))[0] == 200
        assert master.collections == 1


def test_a_client_that_resets_harms_nobody() -> None:
    with serving() as master:
        master.hold = True
        for data in (b"", b"GET / HTTP/1.0\r\n\r\n", b"GET /"):
            sock = master.connect()
            sock.sendall(data)
            master.get("/healthz")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        master.released.set()
        master.hold = False
        assert master.get("/")[0] == 200


def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DEADLINE", 0.5)
    with serving() as master:
        master.snapshots = [worker(nodes=[node(f"node-{i}") for i in range(12_000)])]
        with master.connect() as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_until(lambda: master.collections and not master.server.active, "the cut")
            try:
                got = len(read_all(sock))
            except ConnectionResetError:
                got = 0
            assert got < 10_000_000


def test_a_large_document_arrives_whole() -> None:
    with serving() as master:
        master.snapshots = [worker(nodes=[node(f"node-{i}") for i in range(20_000)])]
        assert len(json.loads(master.get("/")[2])["static_nodes"]) == 20_000


def test_connections_beyond_the_limit_wait_for_their_turn() -> None:
    with serving(max_connections=2) as master:
        master.hold = True
        socks = [master.connect() for _ in range(4)]
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        wait_until(lambda: len(master.server._connections) == 2 and master.held, "two clients")
        assert len(master.server._connections) == 2
        master.hold = False
        master.released.set()
        for sock in socks:
            with sock:
                assert split(read_all(sock))[0] == 200


class _Exhausted(socket.socket):
    """A listener in a process that is out of descriptors while ``empty`` is true."""

    empty = True
    tries = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        if self.empty:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture(params=[False, True], ids=["usual", "stats-http"])
def crowded(request: pytest.FixtureRequest) -> Iterator[Master]:
    """A server with more nodes than a piece of the document holds."""
    view = View()
    full(view, 3_000)
    with serving(http=request.param) as master:
        master.views = [view]
        yield master


def test_a_long_document_ends_with_the_connection(crowded: Master) -> None:
    status, fields, body = crowded.get("/")
    assert status == 200
    assert "content-length" not in fields
    assert json.loads(body)["subscriptions_shown"] == 3_000
    status, fields, body = crowded.get("/", "HEAD")
    assert (status, body) == (200, b"")
    assert "content-length" not in fields
    status, _fields, body = crowded.get("/metrics")
    assert status == 200
    assert body.count(b"\nuwgate_subscription_node_up{") == 1_000
    assert body.endswith(b"\n")


def test_a_long_document_goes_to_fast_and_slow_clients(crowded: Master) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with crowded.connect() as slow, crowded.connect() as gone:
        slow.sendall(request)
        gone.sendall(request)
        assert gone.recv(100)
        gone.close()
        assert json.loads(split(crowded.ask(request))[2])["subscriptions_total"] == 3_000
        assert json.loads(split(read_all(slow))[2])["subscriptions_total"] == 3_000


def test_no_spinning_without_descriptors() -> None:
    with _Exhausted() as listener, selectors.DefaultSelector() as selector:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        facts = StatsFacts(1000.0, lambda: "", list)
        stats = StatsServer(listener, selector, lambda answer: answer([]), facts)
        with socket.create_connection(listener.getsockname(), 10) as client:
            for key, mask in selector.select(5):
                key.data(mask)
            assert selector.select(0) == []
            assert stats.active
            assert listener.tries == 1
            listener.empty = False
            stats.tick()
            for key, mask in selector.select(5):
                key.data(mask)
            stats.tick(time.monotonic() + 1)
            assert read_all(client).startswith(b"{")
        assert not stats.active
        stats.close()


def test_curl_is_content() -> None:
    with serving() as master:
        host, port = master.address
        command = ["curl", "-sS", "-i", f"http://{host}:{port}/metrics"]
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
        assert split(done.stdout)[0] == 200
