"""What review and attack have found in the service of files."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from itertools import count
from pathlib import Path

import pytest
from support.client import Client
from support.nodes import NODES, response
from support.served import (
    BIG,
    HUGE,
    MIDDLE,
    SMALL,
    asked,
    fill,
    get,
    open_files,
    rest_of,
    slow_client,
    worker_of,
    write,
)
from support.uwgate import running
from support.waiting import free_port, wait_until


@pytest.fixture(scope="module")
def www(tmp_path_factory: pytest.TempPathFactory) -> Path:
    www = tmp_path_factory.mktemp("www")
    fill(www)
    return www


class Hasty(threading.Thread):
    """An HTTP node that answers as soon as it has a head, and remembers all it gets."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(daemon=True)
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.spec = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.got: list[bytes] = []

    def run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(65536):
                self.got.append(data)
                if b"HTTP/1.1" in data:
                    sock.sendall(self.answer if b"POST" in data else response(b"next"))


@pytest.mark.parametrize("threads", [(), ("--offload-threads=1",)], ids=["here", "threads"])
@pytest.mark.parametrize("name", ["small.txt", "big.bin", "none"])
def test_the_rest_of_a_body_is_no_request(www: Path, threads: tuple[str, ...], name: str) -> None:
    """The node names a file before it has read the body."""
    inner = get(b"/smuggled")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Sendfile: %b/%b\r\n\r\n"
    node = Hasty(answer % (os.fsencode(www), name.encode()))
    node.start()
    options = ("--http-to", node.spec, "--http-sendfile=true", "--static-safe", str(www))
    with node.listener, running(*options, *threads) as gateway:
        with gateway.connect() as client:
            length = b"Content-Length: %d" % (len(inner) + 5)
            client.send(get(b"/up", length, method=b"POST"))
            head = client.read_until(b"\r\n\r\n")
            client.send_willing(b"12345" + inner)
            rest = client.read_to_end()
            assert head.startswith(b"HTTP/1.1 404" if name == "none" else b"HTTP/1.1 200")
            assert b"\r\nConnection: close\r\n" in head
            assert b"HTTP/1.1" not in rest
        with gateway.connect() as client:
            for _ in range(3):
                assert client.ask(get(b"/next")).body == b"next"
        lines = [data.partition(b"\r\n")[0] for data in node.got if b"HTTP/1.1" in data]
        assert set(lines) == {b"POST /up HTTP/1.1", b"GET /next HTTP/1.1"}


def test_a_mapped_file_is_not_followed_out(tmp_path: Path) -> None:
    """Whoever may write beside a mapped file cannot have another one served."""
    (tmp_path / "up").mkdir()
    (tmp_path / "out").mkdir()
    write(tmp_path / "up/icon", SMALL)
    write(tmp_path / "out/secret", b"secret")
    with running("--static-map", f"/icon={tmp_path}/up/icon") as gateway:
        assert asked(gateway, get(b"/icon")).body == SMALL
        for target, link in ((b"/icon", "out/secret"), (b"/icon/secret", "out")):
            (tmp_path / "up/new").symlink_to(tmp_path / link)
            (tmp_path / "up/new").rename(tmp_path / "up/icon")
            wait_until(lambda: asked(gateway, get(b"/icon")).status == 404, "it is gone")
            assert asked(gateway, get(target)).status == 404
        write(tmp_path / "up/icon", b"again")
        wait_until(lambda: asked(gateway, get(b"/icon")).body == b"again", "it is back")


def test_without_descriptors(www: Path) -> None:
    """What is open already is sent in pieces; what is not is 503, and everybody is answered."""
    with running("--check-static", str(www), "--http-log") as gateway:
        for target in (b"/big.bin", b"/small.txt"):
            assert asked(gateway, get(target)).status == 200
        worker = worker_of(gateway)
        with gateway.connect() as first, gateway.connect() as second:
            first.ask(get(b"/small.txt"))
            second.ask(get(b"/small.txt"))
            taken = set(map(int, open_files(worker)))
            most = next(number for number in count() if number not in taken)
            before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (most, before[1]))
            try:
                assert first.ask(get(b"/big.bin")).body == BIG
                assert second.ask(get(b"/big.bin") + get(b"/small.txt")).body == BIG
                assert second.read_response().body == SMALL
                assert first.ask(get(b"/middle.bin")).status == 503
            finally:
                resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        wait_until(lambda: asked(gateway, get(b"/middle.bin")).body == MIDDLE, "it is found")


def test_one_search_for_all(tmp_path: Path) -> None:
    """Many clients that want the same unknown path wait for one thread."""
    for number in range(2000):
        (tmp_path / f"file{number}").touch()
    port = free_port()
    options = ("--check-static", str(tmp_path), "--static-autoindex=true", "--offload-threads=1")
    with running(*options, "--http-stats", f"127.0.0.1:{port}") as gateway:
        clients = [gateway.connect() for _ in range(20)]
        for client in clients:
            client.send(get(b"/?%d" % id(client)))
        clients.pop().reset()
        for client in clients:
            assert b"file1999" in client.read_response().body
            client.close()

        def counted() -> dict[str, int]:
            with Client(("127.0.0.1", port)) as stats:
                found: dict[str, int] = json.loads(stats.read_to_end())["static"]
                return found

        wait_until(lambda: counted()["requests"] >= 19, "the counters")
        assert counted()["offloaded"] <= 3  # all, but for who has come before the first or later


def test_a_slow_client_is_not_a_stalled_one(www: Path, tmp_path: Path) -> None:
    """It takes something all the time, but less than a third of its buffer in http-timeout."""
    write(tmp_path / "huge", HUGE)
    with (
        running("--check-static", str(tmp_path), "--http-timeout=2") as gateway,
        slow_client(gateway, b"/huge") as client,
    ):
        data = bytearray(client.buffer)
        until = time.monotonic() + 6
        while time.monotonic() < until:
            data += client.sock.recv(10_000)
            time.sleep(0.04)
        client.buffer = bytes(data)
        assert rest_of(client) == HUGE


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_the_name_of_a_file_is_in_no_trailer(kind: str, www: Path) -> None:
    with (
        NODES[kind]() as node,
        running("--http-to", node.spec, "--http-sendfile=true", "--static-safe", str(www)) as it,
    ):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        trailer = b"X-Sendfile: /secret/place\r\nX-Other: a\r\n\r\n"
        for body in (b"2\r\nok\r\n0\r\n", b"2\r\nok\r\n" * 40_000 + b"0\r\n"):
            node.play(head + body + trailer)
            reply = asked(it, get(b"/"))
            assert reply.trailers == [(b"x-other", b"a")]


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_an_interim_response_comes_before_a_named_file(kind: str, www: Path) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Sendfile: %b/big.bin\r\n\r\n"
    with (
        NODES[kind]() as node,
        running("--http-to", node.spec, "--http-sendfile=true", "--static-safe", str(www)) as it,
        it.connect() as client,
    ):
        for _ in range(3):
            node.play(early + head % os.fsencode(www))
            reply = client.ask(get(b"/"))
            assert [status for status, _ in reply.interim] == [103]
            assert reply.body == BIG


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_a_named_file_after_a_post(kind: str, www: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Sendfile: %b/big.bin\r\n\r\n"
    request = get(b"/q", b"Content-Length: 4", b"Range: bytes=0-1", method=b"POST") + b"body"
    with (
        NODES[kind]() as node,
        running("--http-to", node.spec, "--http-sendfile=true", "--static-safe", str(www)) as it,
        it.connect() as client,
    ):
        node.play(answer % os.fsencode(www))
        reply = client.ask(request, b"POST")
        assert (reply.status, reply.body == BIG) == (200, True)
        assert client.ask(get(b"/plain")).body == b"GET /plain 0"


def test_the_end_waits_for_a_transfer(www: Path) -> None:
    """SIGTERM lets who is being sent a file have it to its end."""
    directory = www.parent / "end"
    directory.mkdir(exist_ok=True)
    write(directory / "huge", HUGE)
    with (
        running("--check-static", str(directory)) as gateway,
        slow_client(gateway, b"/huge") as client,
    ):
        gateway.terminate()
        wait_until(lambda: "draining" in gateway.log, "the signal")
        assert rest_of(client) == HUGE
