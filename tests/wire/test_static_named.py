"""Files that nodes name: X-Sendfile and X-Accel-Redirect, from HTTP and from uwsgi nodes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.files import ask, write
from support.nodes import NODES, Node, response
from support.uwgate import Gateway, running

BYTES = random.Random(22).randbytes(500_000)


@dataclass
class Naming:
    """A gateway that sends what its node names, in ``safe``."""

    gateway: Gateway
    node: Node
    safe: Path

    def play(self, field: bytes, *fields: bytes, status: bytes = b"200 OK", body: int = 2) -> None:
        """Have the node name a file with its next answer."""
        self.node.play(response(b"n" * body, field, *fields, status=status))


@pytest.fixture(scope="module", params=[(kind, way) for kind in NODES for way in ("", "threads")],
                ids=lambda both: "-".join(filter(None, both)))  # fmt: skip
def naming(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Naming]:
    kind, way = request.param
    safe = tmp_path_factory.mktemp("safe")
    write(safe / "a.txt", b"0123456789")
    write(safe / "a.txt.gz", b"zipped")
    write(safe / "large.bin", BYTES)
    options = [f"--static-safe={safe}", f"--static-accel=/private={safe}", "--http-sendfile=true",
               "--static-gzip-all", "--static-expires-type=text/plain=60"]  # fmt: skip
    if way:
        options.append("--offload-threads=2")
    with NODES[kind]() as node, running("--http-to", node.spec, *options) as gateway:
        yield Naming(gateway, node, safe)


FIELDS = ["X-Sendfile: {safe}/{name}", "X-Accel-Redirect: /private/{name}"]


@pytest.mark.parametrize("field", FIELDS)
def test_named_files(naming: Naming, field: str) -> None:
    """Conditions, ranges and variants hold; the node's own fields stay."""
    small = field.format(safe=naming.safe, name="a.txt").encode()
    large = field.format(safe=naming.safe, name="large.bin").encode()
    own = (b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"Content-Disposition: attachment",
           b'ETag: "own"', b"Content-Encoding: gzip", b"Vary: Cookie")  # fmt: skip
    cases: list[tuple[list[bytes], int, bytes]] = [
        ([], 200, b"0123456789"),
        ([b"Range: bytes=2-4"], 206, b"234"),
        ([b"Range: bytes=99-"], 416, b""),
        ([b"If-None-Match: *"], 304, b""),
        ([b'If-Match: "own"'], 412, b""),
        ([b'If-Range: "own"', b"Range: bytes=2-4"], 200, b"0123456789"),
        ([b"Accept-Encoding: gzip"], 200, b"zipped"),
    ]
    with naming.gateway.connect() as client:
        for fields, status, body in cases:
            naming.play(small, *own)
            reply = ask(client, b"/q", *fields)
            assert (reply.status, reply.body) == (status, body), fields
            assert reply.all(b"x-sendfile") == reply.all(b"x-accel-redirect") == []
            assert reply.get(b"etag") != b'"own"'
            coding = reply.get(b"content-encoding")
            assert coding == (b"gzip" if body == b"zipped" else None), fields
            if status in (200, 206):
                assert reply.all(b"set-cookie") == [b"a=1", b"b=2"]
                assert reply.get(b"content-disposition") == b"attachment"
                assert set(reply.all(b"vary")) == {b"Cookie", b"Accept-Encoding"}
        naming.play(large)
        assert ask(client, b"/q").body == BYTES
        naming.play(large)
        reply = ask(client, b"/q", method=b"HEAD")
        assert (reply.get(b"content-length"), reply.body) == (b"500000", b"")
        assert ask(client, b"/plain").body == b"GET /plain 0"


@pytest.mark.parametrize("field", FIELDS)
def test_the_body_of_the_node_is_dropped(naming: Naming, field: str) -> None:
    for size in (0, 1, 70_000, 8_000_000):
        for name, content in (("a.txt", b"0123456789"), ("large.bin", BYTES)):
            naming.play(field.format(safe=naming.safe, name=name).encode(), body=size)
            with naming.gateway.connect() as client:
                assert ask(client, b"/q").body == content
                assert ask(client, b"/plain").body == b"GET /plain 0"


@pytest.mark.parametrize("field", FIELDS)
def test_other_answers_only_lose_the_field(naming: Naming, field: str) -> None:
    line = field.format(safe=naming.safe, name="a.txt").encode()
    with naming.gateway.connect() as client:
        for status in (b"302 Found", b"400 Bad Request", b"404 Not Found", b"500 Oh"):
            naming.play(line, b"X-Other: x", status=status)
            reply = ask(client, b"/q")
            assert (reply.status, reply.body) == (int(status[:3]), b"nn")
            assert reply.all(b"x-sendfile") == reply.all(b"x-accel-redirect") == []
            assert reply.get(b"x-other") == b"x"
        naming.play(field.format(safe=naming.safe, name="missing").encode(), b"Set-Cookie: a=1")
        reply = ask(client, b"/q")
        assert (reply.status, reply.all(b"set-cookie")) == (404, [])
        assert b"no-such-file" in reply.body or b"cannot be sent" in reply.body
        assert ask(client, b"/plain").body == b"GET /plain 0"
    assert "named a file that cannot be sent" in naming.gateway.log


def test_freshness_of_the_node_is_not_mended(naming: Naming) -> None:
    """max-age outweighs Expires (RFC 9111 §5.3): where the node says one, both of ours must go."""
    line = f"X-Sendfile: {naming.safe}/a.txt".encode()
    for own in (b"Expires: 0", b"Cache-Control: no-cache"):
        naming.play(line, own)
        with naming.gateway.connect() as client:
            reply = ask(client, b"/q")
        name, _, value = own.partition(b": ")
        found = {key: reply.all(key) for key in (b"expires", b"cache-control")}
        assert {key: values for key, values in found.items() if values} == {name.lower(): [value]}


def test_a_304_does_not_change_what_a_cache_may_do(naming: Naming) -> None:
    """RFC 9110 §15.4.5: Cache-Control, Expires and Vary of the 200; caches take those of a 304 over
    (RFC 9111 §4.3.4), and no-cache became max-age=60: then nobody asks the application any more."""
    line = f"X-Sendfile: {naming.safe}/a.txt".encode()
    with naming.gateway.connect() as client:
        found = []
        for fields in ([], [b"If-None-Match: *"]):
            naming.play(line, b"Cache-Control: no-cache, private", b"Vary: Cookie")
            reply = ask(client, b"/q", *fields)
            found.append([reply.all(name) for name in (b"cache-control", b"expires")])
            found[-1].append(sorted(reply.all(b"vary")))
        assert found[0] == found[1]
