"""Files that the gateway sends by itself: small and large ones, changing ones, named ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.nodes import NODES
from support.served import (
    BIG,
    MIDDLE,
    SMALL,
    asked,
    fill,
    get,
    open_files,
    slow_client,
    worker_of,
    write,
)
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until


@pytest.fixture(scope="module")
def www(tmp_path_factory: pytest.TempPathFactory) -> Path:
    www = tmp_path_factory.mktemp("www")
    fill(www)
    return www


SENDING = {"sendfile": (), "threads": ("--offload-threads=2",), "reading": ("--disable-sendfile",)}


@pytest.fixture(scope="module", params=SENDING)
def gateway(request: pytest.FixtureRequest, www: Path) -> Iterator[Gateway]:
    """Without a node, in all the ways to send."""
    options = ("--check-static", str(www), "--static-index=index.html", "--http-timeout=30")
    with running(*options, "--static-skip-ext=.php", *SENDING[request.param]) as gateway:
        yield gateway


# --- plain answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (b"/small.txt", SMALL),
        (b"/middle.bin?query", MIDDLE),
        (b"/big.bin", BIG),
        (b"/empty", b""),
        (b"/d/", b"<p>index"),
        (b"http://h/d/./../small.txt", SMALL),
    ],
)
def test_get_and_head(gateway: Gateway, target: bytes, body: bytes) -> None:
    with gateway.connect() as client:
        for _ in range(3):  # the third one is remembered
            reply = client.ask(get(target))
            assert (reply.status, reply.body == body) == (200, True)
        head = client.ask(get(target, method=b"HEAD"), b"HEAD")
        assert head.status == 200
        assert head.body == b""
        same = (b"content-length", b"etag", b"last-modified", b"content-type", b"accept-ranges")
        assert [head.get(name) for name in same] == [reply.get(name) for name in same]
        assert reply.get(b"x-content-type-options") == b"nosniff"
        assert client.ask(get(b"/small.txt")).body == SMALL


def test_http_1_0(gateway: Gateway) -> None:
    for target, body in ((b"/small.txt", SMALL), (b"/big.bin", BIG)):
        with gateway.connect() as client:
            client.send(b"GET %b HTTP/1.0\r\n\r\n" % target)
            head, _, rest = client.read_to_end().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection: close" in head
            assert rest == body
        with gateway.connect() as client:
            for _ in range(2):
                client.send(b"GET %b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" % target)
                reply = client.read_response()
                assert reply.body == body
                assert reply.get(b"connection") == b"keep-alive"


def test_what_is_not_there(gateway: Gateway) -> None:
    with gateway.connect() as client:
        for target in (b"/none", b"/page.php", b"/d/none", b"/small.txt/", b"/%00", b"/.hidden"):
            reply = client.ask(get(target))
            assert reply.status == 404
        assert client.ask(get(b"/small.txt")).body == SMALL  # the connection is kept
    reply = asked(gateway, get(b"/small.txt", b"Content-Length: 0", method=b"POST"))
    assert reply.status == 405
    assert reply.get(b"allow") == b"GET, HEAD"


def test_a_directory_without_its_slash(gateway: Gateway) -> None:
    for target, location in (
        (b"/d", b"/d/"),
        (b"/d?a=b&c", b"/d/?a=b&c"),
        (b"//d", b"/d/"),
        (b"http://h/%64", b"/d/"),
    ):
        reply = asked(gateway, get(target))
        assert (reply.status, reply.get(b"location")) == (301, location)


def test_requests_with_a_body(gateway: Gateway) -> None:
    for target, body in ((b"/small.txt", SMALL), (b"/big.bin", BIG)):
        with gateway.connect() as client:
            client.send(get(target, b"Content-Length: 5") + b"12345" + get(b"/empty"))
            reply = client.read_response()
            assert reply.body == body
            if reply.get(b"connection") == b"close":  # the body was not waited for
                client.assert_closed()
            else:
                assert client.read_response().get(b"content-length") == b"0"


def test_a_body_for_a_file_is_nobody_elses(www: Path) -> None:
    with (
        NODES["http"]() as node,
        running("--http-to", node.spec, "--check-static", str(www), "--offload-threads=1") as it,
    ):
        for number in range(5):  # the thread has looked before or after the body has come
            body = get(b"/small.txt?%d" % number, b"Content-Length: 5") + b"12345"
            with it.connect() as client:
                client.send(body)
                reply = client.read_response()
                assert reply.body == SMALL
                if reply.get(b"connection") != b"close":
                    assert client.ask(get(b"/node")).body == b"GET /node 0"
            with it.connect() as client:
                client.send(get(b"/none?%d" % number, b"Content-Length: 5") + b"12345")
                assert client.read_response().body == b"GET /none?%d 5" % number


def test_an_error_page(www: Path, tmp_path: Path) -> None:
    page = tmp_path / "404.html"
    page.write_bytes(b"<p>not here")
    with running("--check-static", str(www), f"--error-page-404={page}") as gateway:
        reply = asked(gateway, get(b"/none"))
        assert (reply.status, reply.body) == (404, b"<p>not here")


# --- order ----------------------------------------------------------------------------------------


def test_pipelining(gateway: Gateway) -> None:
    """Small answers are queued, large ones sent at once: their order is that of the requests."""
    bodies = {b"/small.txt": SMALL, b"/middle.bin": MIDDLE, b"/empty": b"", b"/none": None}
    targets = [random.Random(6).choice(list(bodies)) for _ in range(120)]
    with gateway.connect(30) as client:
        client.send(b"".join(map(get, targets)))  # no more than the kernel takes
        for target in targets:
            reply = client.read_response()
            if bodies[target] is None:
                assert reply.status == 404
            else:
                assert (reply.status, reply.body == bodies[target]) == (200, True)


# --- change ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    directory = tmp_path_factory.mktemp("changing")
    options = ("--check-static", str(directory), "--http-timeout=2", "--http-log")
    with running(*options) as gateway:
        yield gateway, directory


def test_a_changed_file_is_opened_anew_before_its_head_is_sent(
    changing: tuple[Gateway, Path],
) -> None:
    gateway, directory = changing
    path = directory / "c"
    write(path, MIDDLE)
    with gateway.connect() as client:
        assert client.ask(get(b"/c")).body == MIDDLE
        for size in (90_000, 120_000, 5):
            path.write_bytes(BIG[:size])
            assert client.ask(get(b"/c")).body == BIG[:size]
        path.unlink()


def test_no_descriptor_is_left(gateway: Gateway, www: Path) -> None:
    worker = worker_of(gateway)
    asked(gateway, get(b"/big.bin"))
    asked(gateway, get(b"/middle.bin"))
    before = len(open_files(worker))
    for _ in range(30):
        with slow_client(gateway, b"/big.bin") as client:
            client.reset()
    wait_until(lambda: len(open_files(worker)) <= before, "all are closed")
    assert asked(gateway, get(b"/big.bin")).body == BIG


# --- beside nodes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "uwsgi"])
def test_files_before_nodes(kind: str, www: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        NODES[kind]() as node,
        running(
            *("--http-to", node.spec, "--static-map", f"/static={www}"),
            *("--http-log-file", str(log), "--http-log-format", "json"),
        ) as gateway,
        gateway.connect() as client,
    ):
        for _ in range(2):
            assert client.ask(get(b"/static/small.txt")).body == SMALL
            assert client.ask(get(b"/static/big.bin")).body == BIG
            for target in (b"/static/none", b"/small.txt", b"/staticsmall.txt", b"/static"):
                for _ in range(3):
                    assert client.ask(get(target)).body == b"GET %b 0" % target
        post = get(b"/static/small.txt", b"Content-Length: 0", method=b"POST")
        assert client.ask(post, b"POST").body == b"POST /static/small.txt 0"
        wait_until(lambda: log.exists() and log.read_text().count("\n") == 29, "the log")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        named = {line["target"]: line["node"] for line in lines if line["method"] == "GET"}
        assert named["/static/small.txt"] == named["/static/big.bin"] == "static"
        assert named["/small.txt"] == named["/static/none"] != "static"
        big = next(line for line in lines if line["target"] == "/static/big.bin")
        assert big["response_body"] == len(BIG)
        write(www / "later.txt", b"later")
        wait_until(lambda: client.ask(get(b"/static/later.txt")).body == b"later", "it is seen")


def test_counters(www: Path) -> None:
    port = free_port()
    options = ("--check-static", str(www), "--http-stats", f"127.0.0.1:{port}")
    with running(*options) as gateway, gateway.connect() as client:
        etag = client.ask(get(b"/small.txt")).get(b"etag")
        assert etag is not None
        client.ask(get(b"/small.txt"))
        client.ask(get(b"/middle.bin"))
        assert client.ask(get(b"/middle.bin", b"Range: bytes=0-9")).status == 206
        assert client.ask(get(b"/small.txt", b"If-None-Match: " + etag)).status == 304

        def counted() -> dict[str, int]:
            with Client(("127.0.0.1", port)) as stats:
                found: dict[str, int] = json.loads(stats.read_to_end())["static"]
                return found

        wait_until(lambda: counted()["not_modified"] == 1, "the counters")
        found = counted()
        assert found["requests"] == 4
        assert found["bytes"] == 2 * len(SMALL) + len(MIDDLE) + 10
        assert found["loads"] == 2
        assert found["entries"] == 2
