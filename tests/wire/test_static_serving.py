"""Static files from the client's side: every byte in order, whatever becomes of file and reader."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.certificates import Authority
from support.client import Client
from support.files import ask, request, write
from support.static import Connect, descriptors, digest_of, every_way, rest_of
from support.uwgate import StartGateway
from support.waiting import wait_until

BYTES = random.Random(21).randbytes(10_000_000)
HUGE = BYTES + BYTES[:6_000_000]  # more than the kernel takes for a client that does not read
WAYS = ["sendfile", "reading", "threads", "tls-sendfile", "tls-threads"]
CONTENT = {
    b"/empty": b"",
    b"/one": b"1",
    b"/small": BYTES[:500],
    b"/kept": BYTES[:65536],
    b"/open": BYTES[:65537],
    b"/large": BYTES[:700_000],
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@dataclass
class Site:
    """All ways to a directory, without a node."""

    root: Path
    ways: dict[str, Connect]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("site")
    root = base / "root"
    for path, content in CONTENT.items():
        write(root / path.decode()[1:], content)
    write(root / "ten", BYTES)
    write(root / "dir/index.html", b"<p>index")
    page = write(base / "404.html", b"<p>nothing here")
    options = (f"--check-static={root}", "--static-index=index.html", f"--error-page-404={page}")
    with every_way(authority, *options) as ways:
        yield Site(root, ways.connect)


# --- bytes in order -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_200_pipelined_requests(site: Site, way: str) -> None:
    """Small ones are answered at once, large ones by and by: each in its turn."""
    chosen = random.Random(way).choices([*CONTENT, b"/missing"], k=200)
    with site.ways[way]() as client:
        sent = b"".join(map(request, chosen))
        client.send(sent)  # no more than the kernel takes while nobody reads
        for number, path in enumerate(chosen):
            reply = client.read_response()
            content = CONTENT.get(path, b"<p>nothing here")
            assert reply.status == (200 if path in CONTENT else 404), (number, path)
            assert reply.body == content, (number, path)


@pytest.mark.parametrize("way", WAYS)
def test_ten_megabytes_to_many(site: Site, way: str) -> None:
    """And small files to others meanwhile."""
    wanted = (200, hashlib.md5(BYTES, usedforsecurity=False).hexdigest())

    def large(_: int) -> tuple[int, str]:
        with site.ways[way]() as client:
            return digest_of(client, b"/ten")

    def small(_: int) -> bool:
        with site.ways[way]() as client:
            return all(ask(client, b"/small").body == CONTENT[b"/small"] for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        found, others = pool.map(large, range(6)), pool.map(small, range(2))
        assert list(found) == [wanted] * 6
        assert all(others)


KINDS: list[tuple[str, bytes, list[bytes], bytes, int]] = [
    ("200", b"/small", [], b"GET", 200),
    ("200-large", b"/large", [], b"GET", 200),
    ("200-empty", b"/empty", [], b"GET", 200),
    ("head", b"/large", [], b"HEAD", 200),
    ("206", b"/large", [b"Range: bytes=1-9"], b"GET", 206),
    ("206-parts", b"/large", [b"Range: bytes=1-9,500-40000"], b"GET", 206),
    ("301", b"/dir?x", [], b"GET", 301),
    ("301-head", b"/dir", [], b"HEAD", 301),
    ("304", b"/large", [b"If-None-Match: *"], b"GET", 304),
    ("304-head", b"/large", [b"If-None-Match: *"], b"HEAD", 304),
    ("404", b"/missing", [], b"GET", 404),
    ("404-head", b"/missing", [], b"HEAD", 404),
    ("405", b"/small", [b"Content-Length: 0"], b"POST", 405),
    ("405-options", b"/small", [], b"OPTIONS", 405),
    ("405-delete", b"/missing", [], b"DELETE", 405),
    ("412", b"/small", [b'If-Match: "x"'], b"GET", 412),
    ("416", b"/small", [b"Range: bytes=9999-"], b"GET", 416),
]


@pytest.mark.parametrize(
    ("path", "fields", "method", "status"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS]
)
def test_the_connection_goes_on(
    site: Site, path: bytes, fields: list[bytes], method: bytes, status: int
) -> None:
    for way in WAYS:
        with site.ways[way]() as client:
            for _ in range(3):
                reply = ask(client, path, *fields, method=method)
                assert reply.status == status, way
                assert reply.get(b"date")
                assert reply.get(b"allow") == (b"GET, HEAD" if status == 405 else None)
                assert reply.get(b"location") == (
                    b"/dir/" + path[4:] if status == 301 else None
                )
                assert method != b"HEAD" or reply.body == b""
                if reply.closes:
                    break
            assert reply.closes is (status == 405)  # a body may follow that nobody reads
            if not reply.closes:
                assert ask(client, b"/small").body == CONTENT[b"/small"]
        with site.ways[way]() as client:  # with the next request right behind it
            client.send(request(path, *fields, method=method) + request(b"/one"))
            reply = client.read_response(method)
            assert reply.status == status
            assert reply.closes or client.read_response().body == b"1"


@pytest.mark.parametrize("way", WAYS)
def test_http_1_0(site: Site, way: str) -> None:
    for path, content in CONTENT.items():
        with site.ways[way]() as client:
            for _ in range(3):
                client.send(b"GET " + path + b" HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                reply = client.read_response()
                assert (reply.body == content, reply.get(b"connection")) == (True, b"keep-alive")
            client.send(b"HEAD " + path + b" HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert client.read_response(b"HEAD").get(b"content-length") == b"%d" % len(content)
            client.send(b"GET " + path + b" HTTP/1.0\r\n\r\n")
            assert client.read_response().body == content
            client.assert_closed()
        with site.ways[way]() as client:
            client.send(request(path, b"Connection: close"))
            reply = client.read_response()
            assert (reply.body == content, reply.closes) == (True, True)
            client.assert_closed()


@pytest.mark.parametrize("way", WAYS)
def test_a_request_with_a_body_or_an_expectation(site: Site, way: str) -> None:
    """The file comes whole; what follows is either read as a request, or not at all."""
    bodies = [
        ([b"Content-Length: 5"], b"12345"),
        ([b"Content-Length: 100000"], b"x" * 100_000),
        ([b"Transfer-Encoding: chunked"], b"5\r\n12345\r\n0\r\n\r\n"),
        ([b"Content-Length: 5", b"Expect: 100-continue"], b"12345"),
        ([b"Expect: 100-continue"], b""),
    ]
    for path in (b"/small", b"/large", b"/missing"):
        for fields, body in bodies:
            with site.ways[way]() as client:
                client.send_willing(request(path, *fields) + body + request(b"/one"))
                reply = client.read_response()
                assert reply.status == (404 if path == b"/missing" else 200)
                if path in CONTENT:
                    assert reply.body == CONTENT[path]
                if not reply.closes:
                    assert client.read_response().body == b"1"
        with site.ways[way]() as client:  # one who waits for 100, or for the answer
            client.send(request(path, b"Content-Length: 5", b"Expect: 100-continue"))
            reply = client.read_response()
            assert reply.status == (404 if path == b"/missing" else 200)


# --- files that change ----------------------------------------------------------------------------


def test_a_changed_file_is_served_soon(site: Site) -> None:
    """Within a second or two, in all ways; nothing but the old one and the new one is seen."""
    file = site.root / "changing"
    with ExitStack() as stack:
        clients = [stack.enter_context(site.ways[way]()) for way in WAYS]
        before: bytes | None = None
        for content in (BYTES[:50_000], BYTES[50_000:110_000], b"", None):
            if content is None:
                file.unlink()
            else:
                write(site.root / "new", content).rename(file)
            started = time.monotonic()
            for client in clients:

                def is_new(client: Client = client, content: bytes | None = content) -> bool:
                    reply = ask(client, b"/changing")
                    found = reply.body if reply.status == 200 else None
                    assert found in (before, content)  # noqa: B023
                    return found == content

                wait_until(is_new, "the new content")
            assert time.monotonic() - started < 5
            before = content


def _stalling(connect: Connect, path: bytes) -> Client:
    """One who has asked for much and has read the head."""
    client = connect()
    client.send(request(path))
    client.read_until(b"\r\n\r\n")
    return client


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["truncated", "emptied", "overwritten", "grown", "renamed"])
def test_a_file_that_changes_while_it_is_sent(site: Site, way: str, how: str) -> None:
    file = write(site.root / f"huge-{how}-{way}", HUGE)
    with _stalling(site.ways[way], f"/{file.name}".encode()) as client:
        if how == "renamed":
            write(site.root / f"next-{way}", b"new").rename(file)
        elif how == "truncated":
            os.truncate(file, 12_000_000)
        elif how == "emptied":
            os.truncate(file, 0)
        elif how == "overwritten":
            with file.open("r+b") as handle:
                handle.write(b"x" * len(HUGE))
        else:
            with file.open("ab") as handle:
                handle.write(b"x")
        data = rest_of(client, len(HUGE))
    file.unlink()
    if how == "renamed":
        assert data == HUGE
    else:  # what was on its way already may be of the new content, but is not all of it
        assert len(data) < len(HUGE)
        assert data[:1000] in (HUGE[:1000], b"x" * 1000)


def test_who_does_not_read_is_cut(site: Site, authority: Authority) -> None:
    """After http-timeout. Others go on, and so does who reads little by little."""
    write(site.root / "stalled", HUGE)
    options = (f"--check-static={site.root}", "--http-timeout=1", "--http-log")
    with every_way(authority, *options) as ways, ExitStack() as stack:

        def clients(target: bytes) -> list[Client]:
            connects = ways.connect.values()
            return [stack.enter_context(_stalling(connect, target)) for connect in connects]

        stalling, slow, quick = clients(b"/stalled"), clients(b"/stalled"), clients(b"/empty")
        taken = [bytearray(client.read_exactly(len(client.buffer))) for client in slow]
        started = time.monotonic()
        while sum(each.log.count("client-timeout") for each in ways.gateways) < len(stalling):
            passed = time.monotonic() - started
            assert passed < 30
            for client, data in zip(slow, taken, strict=True):
                # Much, for the kernel tells of a third of what it holds, not of each byte.
                while len(data) < min(len(HUGE), 2_500_000 * passed):
                    data += client.sock.recv(min(65536, len(HUGE) - len(data)))
            for client in quick:
                assert ask(client, b"/one").body == b"1"
        for client in stalling:
            assert len(rest_of(client, len(HUGE))) < len(HUGE)
        for client, data in zip(slow, taken, strict=True):
            data += rest_of(client, len(HUGE) - len(data))
            assert data == HUGE


# --- descriptors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--offload-threads=2",)], ids=["plain", "threads"])
def test_descriptors_do_not_grow(
    tmp_path: Path, start_gateway: StartGateway, options: tuple[str, ...]
) -> None:
    """2,000 files that are each worth one, and downloads that are given up."""
    for number in range(2000):
        with (tmp_path / f"{number}").open("wb") as file:
            file.truncate(65_537)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(30_000_000)
    gateway = start_gateway(f"--check-static={tmp_path}", *options)
    targets = [b"/%d" % number for number in range(2000)]
    before = descriptors(gateway)
    with gateway.connect() as client:
        for start in range(0, 2000, 50):
            client.send(b"".join(request(t, b"Range: bytes=0-5") for t in targets[start:][:50]))
            for _ in range(50):
                assert client.read_response().status == 206
    assert descriptors(gateway) <= before + 1024 + 20
    settled = descriptors(gateway)
    for number in range(60):
        with _stalling(gateway.connect, b"/huge" if number % 2 else targets[number]) as client:
            if number % 3:
                client.reset()
    wait_until(lambda: descriptors(gateway) <= settled + 1, "that all are closed")
