"""Files that the gateway sends by itself: small and large ones, changing ones, named ones."""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client, Reply
from support.nodes import NODES, response
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

OLD = 1_700_000_000
SMALL = b"small file\n"
BIG = random.Random(5).randbytes(3_000_000)
MIDDLE = BIG[:100_000]


def write(path: Path, data: bytes, when: int = OLD) -> None:
    """Put a file in its place at once, with a time that is long past."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(data)
    os.utime(new, (when, when))
    new.rename(path)


def get(target: bytes, *fields: bytes, method: bytes = b"GET") -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: h", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.fixture(scope="module")
def www(tmp_path_factory: pytest.TempPathFactory) -> Path:
    www = tmp_path_factory.mktemp("www")
    (www / "d").mkdir()
    write(www / "small.txt", SMALL)
    write(www / "middle.bin", MIDDLE)
    write(www / "big.bin", BIG)
    write(www / "empty", b"")
    write(www / "d" / "index.html", b"<p>index")
    write(www / "page.php", b"code")
    return www


SENDING = {"sendfile": (), "threads": ("--offload-threads=2",), "reading": ("--disable-sendfile",)}


@pytest.fixture(scope="module", params=SENDING)
def gateway(request: pytest.FixtureRequest, www: Path) -> Iterator[Gateway]:
    """Without a node, in all the ways to send."""
    options = ("--check-static", str(www), "--static-index=index.html", "--http-timeout=30")
    with running(*options, "--static-skip-ext=.php", *SENDING[request.param]) as gateway:
        yield gateway


def asked(gateway: Gateway, request: bytes, method: bytes = b"GET") -> Reply:
    with gateway.connect() as client:
        return client.ask(request, method)


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
        sender = threading.Thread(target=client.send, args=(b"".join(map(get, targets)),))
        sender.start()
        for target in targets:
            reply = client.read_response()
            if bodies[target] is None:
                assert reply.status == 404
            else:
                assert (reply.status, reply.body == bodies[target]) == (200, True)
        sender.join()


def test_many_at_once(gateway: Gateway) -> None:
    wrong: list[str] = []

    def fetch() -> None:
        with gateway.connect(30) as client:
            for _ in range(3):
                if client.ask(get(b"/big.bin")).body != BIG:
                    wrong.append("big")
                if client.ask(get(b"/small.txt")).body != SMALL:
                    wrong.append("small")

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- change ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    directory = tmp_path_factory.mktemp("changing")
    options = ("--check-static", str(directory), "--http-timeout=2", "--http-log")
    with running(*options) as gateway:
        yield gateway, directory


def slow_client(gateway: Gateway, target: bytes) -> Client:
    """One that has asked, and takes little until it reads on."""
    client = gateway.connect(20)
    client.send(get(target))
    client.read_until(b"\r\n\r\n")
    return client


def test_a_new_file_is_served_soon(changing: tuple[Gateway, Path]) -> None:
    gateway, directory = changing
    for data in (b"one", BIG, b"two"):
        write(directory / "a", data)
        with gateway.connect() as client:
            wait_until(lambda: client.ask(get(b"/a")).body == data, "the new one")  # noqa: B023
    (directory / "a").unlink()
    wait_until(lambda: asked(gateway, get(b"/a")).status == 404, "it is gone")


HUGE = BIG * 5  # more than the kernel takes for a client that does not read


def rest_of(client: Client) -> bytes:
    """All that comes until the gateway closes, or HUGE is complete."""
    data = bytearray(client.buffer)
    try:
        while len(data) < len(HUGE) and (more := client.sock.recv(1 << 20)):
            data += more
    except ConnectionResetError:
        pass
    return bytes(data)


def test_a_replaced_file_is_sent_whole(changing: tuple[Gateway, Path]) -> None:
    gateway, directory = changing
    write(directory / "b", HUGE)
    with slow_client(gateway, b"/b") as client:
        write(directory / "b", b"new")
        assert rest_of(client) == HUGE


@pytest.mark.parametrize("how", ["truncated", "rewritten"])
def test_a_file_that_changes_cuts_the_connection(
    changing: tuple[Gateway, Path], how: str
) -> None:
    gateway, directory = changing
    path = directory / how
    write(path, HUGE)
    with slow_client(gateway, b"/%b" % how.encode()) as client:
        if how == "truncated":
            os.truncate(path, 1000)
        else:
            path.write_bytes(b"x" * len(HUGE))
        # What the kernel has taken already are pages of the file, and change with it.
        assert len(rest_of(client)) < len(HUGE)
    if how == "rewritten":  # and whoever comes now gets it as it is
        assert asked(gateway, get(b"/rewritten")).body == b"x" * len(HUGE)


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


def test_who_does_not_read_is_cut(changing: tuple[Gateway, Path]) -> None:
    gateway, directory = changing
    write(directory / "d", HUGE)
    write(directory / "small", SMALL)
    with slow_client(gateway, b"/d") as client:
        wait_until(lambda: "client-timeout" in gateway.log, "its end", 15)
        assert len(rest_of(client)) < len(HUGE)
    assert asked(gateway, get(b"/small")).body == SMALL


def worker_of(gateway: Gateway) -> int:
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    return int(children.read_text().split()[0])


def open_files(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


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


# --- files that nodes name ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["http", "uwsgi"])
def naming(request: pytest.FixtureRequest, www: Path) -> Iterator[tuple[Gateway, object]]:
    with (
        NODES[request.param]() as node,
        running(
            *("--http-to", node.spec, "--http-sendfile=true", "--static-safe", str(www)),
            *("--static-accel", f"/internal={www}", "--http-keepalive=30"),
        ) as gateway,
    ):
        yield gateway, node


@pytest.mark.parametrize("size", [0, 7, 300_000])
def test_named_files(naming: tuple[Gateway, object], www: Path, size: int) -> None:
    gateway, node = naming
    node.reset()  # type: ignore[attr-defined]
    own = b'Set-Cookie: a=b\r\nContent-Type: image/x\r\nETag: W/"mine"\r\nContent-Length: %d' % size
    with gateway.connect() as client:
        for field, body in (
            (b"X-Sendfile: %b/small.txt" % os.fsencode(www), SMALL),
            (b"X-Accel-Redirect: /internal/small.t%78t", SMALL),
            (b"x-sendfile: %b/big.bin" % os.fsencode(www), BIG),
        ):
            answer = b"HTTP/1.1 200 OK\r\n%b\r\n%b\r\n\r\n%b" % (own, field, b"y" * size)
            node.play(answer, answer, answer)  # type: ignore[attr-defined]
            reply = client.ask(get(b"/q"))
            assert (reply.status, reply.body == body) == (200, True)
            assert reply.get(b"content-type") == b"image/x"
            assert reply.get(b"set-cookie") == b"a=b"
            assert reply.get(b"x-sendfile") is None
            assert reply.get(b"x-accel-redirect") is None
            etag = reply.get(b"etag")
            assert etag is not None
            assert etag.startswith(b'"')
            assert client.ask(get(b"/q", b"If-None-Match: " + etag)).status == 304
            part = client.ask(get(b"/q", b"Range: bytes=2-4"))
            assert (part.status, part.body) == (206, body[2:5])
        assert client.ask(get(b"/plain")).body == b"GET /plain 0"


def test_what_may_not_be_named(naming: tuple[Gateway, object], www: Path, tmp_path: Path) -> None:
    gateway, node = naming
    node.reset()  # type: ignore[attr-defined]
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    for field in (
        b"X-Sendfile: " + os.fsencode(outside),
        b"X-Sendfile: %b/../%b/outside" % (os.fsencode(www), os.fsencode(tmp_path.name)),
        b"X-Sendfile: %b/none" % os.fsencode(www),
        b"X-Sendfile: small.txt",
        b"X-Sendfile: " + os.fsencode(www),
        b"X-Accel-Redirect: /internal/../outside",
        b"X-Accel-Redirect: " + os.fsencode(www) + b"/small.txt",
    ):
        node.play(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%b\r\n\r\nok" % field)  # type: ignore[attr-defined]
        reply = asked(gateway, get(b"/q"))
        assert reply.status == 404, field
    assert "named a file that cannot be sent: small.txt" in gateway.log
    both = b"X-Sendfile: %b/small.txt\r\nX-Accel-Redirect: /internal/small.txt" % os.fsencode(www)
    node.play(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%b\r\n\r\n" % both)  # type: ignore[attr-defined]
    assert asked(gateway, get(b"/q")).status == 502
    for status in (b"404 Not Found", b"302 Found"):
        answer = b"HTTP/1.1 %b\r\nContent-Length: 2\r\n%b\r\n\r\nno" % (status, both)
        node.play(answer)  # type: ignore[attr-defined]
        reply = asked(gateway, get(b"/q"))
        assert (reply.status, reply.body) == (int(status[:3]), b"no")
        assert reply.get(b"x-sendfile") is reply.get(b"x-accel-redirect") is None


def test_a_named_file_after_a_post(naming: tuple[Gateway, object], www: Path) -> None:
    gateway, node = naming
    node.reset()  # type: ignore[attr-defined]
    node.play(  # type: ignore[attr-defined]
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Sendfile: %b/big.bin\r\n\r\n" % os.fsencode(www)
    )
    request = get(b"/q", b"Content-Length: 4", b"Range: bytes=0-1", method=b"POST") + b"body"
    with gateway.connect() as client:
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


# --- what review and attack have found ------------------------------------------------------------


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
            most = max(map(int, open_files(worker))) + 1
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
