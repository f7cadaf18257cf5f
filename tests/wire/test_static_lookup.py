"""Which static file answers, and what is said of it: places, types, expiry, variants, the log."""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.files import CHANGED, ask, write
from support.nodes import Node, RawHttpNode
from support.uwgate import Gateway, running
from support.waiting import wait_until

PLACES = [
    "first/a.txt", "second/a.txt", "second/b.txt", "img/c.txt", "img/b.txt", "other/c.txt",
    "other/d.txt", "whole/img/e.txt", "whole/img/d.txt", "docroot/img/e.txt", "docroot/f.txt",
    "first/page.php", "first/code/index.php", "second/code/index.htm", "first/two/index.htm",
    "first/two/index.html", "first/x.css", "first/x.css.gz", "first/x.css.br", "first/y.css",
    "first/y.css.gz", "first/z.txt.gz", "first/z.txt", "deep/g.txt", "first/pic.PNG",
    "first/none.zzz", "first/noext", "first/own.own", "first/s.svg", "first/j.js",
    "first/f.0123abcd.js",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories, each of whose files says where it is."""
    base = tmp_path_factory.mktemp("base")
    for name in PLACES:
        write(base / name, name.encode())
    write(base / "single.ico", b"single.ico")
    (base / "first/alias.txt").symlink_to("page.php")
    (base / "first/empty").mkdir()
    write(base / "types", b"text/plain txt own\nimage/png png\ntext/css css\nx/y js\nx/z js\n")
    return base


@dataclass
class House:
    """A gateway with all kinds of options before a node."""

    gateway: Gateway
    node: Node
    log: Path


@pytest.fixture(scope="module")
def house(base: Path) -> Iterator[House]:
    options = [
        f"--check-static={base}/first", f"--check-static={base}/second",
        f"--static-map=/img={base}/img", f"--static-map=/img={base}/other",
        f"--static-map=/one.ico={base}/single.ico", f"--static-map=/img/deep={base}/deep",
        f"--static-map2=/img={base}/whole", "--check-static-docroot",
        f"--http-var=DOCUMENT_ROOT={base}/docroot", "--static-skip-ext=.php",
        "--static-index=index.php", "--static-index=index.html", "--static-index=index.htm",
        "--static-gzip-ext=.css", f"--mimefile={base}/types",
        r"--static-expires=first/f\.[0-9a-f]+\.js$ 31536000",
        "--static-expires-mtime=/noext$ 7", r"--static-expires-path-info=^/b\.txt$ 60",
        r"--static-expires-uri=\?long$ 600", r"--static-expires-uri-mtime=\?mtime$ 5",
        "--static-expires-type=text/css=30", f"--http-log-file={base}/log",
        "--http-log-format=json",
    ]  # fmt: skip
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        yield House(gateway, node, base / "log")


LOOKUP = [
    ("check-static-order", b"/a.txt", b"first/a.txt"),
    ("check-static-second", b"/b.txt", b"second/b.txt"),
    ("map", b"/img/c.txt", b"img/c.txt"),
    ("map-misses-then-next-map", b"/img/d.txt", b"other/d.txt"),
    ("maps-before-map2", b"/img/b.txt", b"img/b.txt"),
    ("map2-before-docroot", b"/img/e.txt", b"whole/img/e.txt"),
    ("docroot", b"/f.txt", b"docroot/f.txt"),
    ("map-of-a-file", b"/one.ico", b"single.ico"),
    ("a-longer-mount", b"/img/deep/g.txt", b"deep/g.txt"),
    ("index-with-skipped-end-is-passed-over", b"/code/", b"second/code/index.htm"),
    ("index-in-order", b"/two/", b"first/two/index.html"),
    ("node-nothing-there", b"/nothing", None),
    ("node-map-boundary", b"/imgc.txt", None),
    ("node-behind-a-file", b"/one.ico/x", None),
    ("node-skip-ext", b"/page.php", None),
    ("node-skip-ext-with-query", b"/page.php?a.txt", None),
    ("node-skip-ext-encoded", b"/page%2ephp", None),
    ("node-skip-ext-of-the-real-name", b"/alias.txt", None),
    ("node-skip-ext-of-an-index", b"/code/index.php", None),
    ("node-directory-without-index", b"/empty/", None),
    ("node-slash-behind-a-file", b"/a.txt/", None),
]


@pytest.mark.parametrize(("path", "content"), [e[1:] for e in LOOKUP], ids=[e[0] for e in LOOKUP])
def test_lookup(house: House, path: bytes, content: bytes | None) -> None:
    with house.gateway.connect() as client:
        for _ in range(2):
            assert ask(client, path).body == (content or b"GET " + path + b" 0")


def test_methods_are_the_nodes(house: House) -> None:
    with house.gateway.connect() as client:
        for method in (b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PURGE", b"get"):
            reply = ask(client, b"/a.txt", b"Content-Length: 0", method=method)
            assert reply.body == method + b" /a.txt 0"
            assert ask(client, b"/a.txt").body == b"first/a.txt"


TYPES = {
    b"/a.txt": b"text/plain; charset=utf-8", b"/own.own": b"text/plain; charset=utf-8",
    b"/pic.PNG": b"image/png", b"/x.css": b"text/css; charset=utf-8", b"/j.js": b"x/y",
    b"/none.zzz": b"application/octet-stream", b"/noext": b"application/octet-stream",
    b"/s.svg": b"application/octet-stream",
}  # fmt: skip


def test_types(house: House) -> None:
    """Of mimefile only; the first line counts."""
    with house.gateway.connect() as client:
        found = {path: ask(client, path).get(b"content-type") for path in TYPES}
    assert found == TYPES


EXPIRES: list[tuple[str, bytes, int | None, int | None]] = [
    ("by-file", b"/f.0123abcd.js", 31_536_000, None),
    ("by-file-mtime", b"/noext", 0, CHANGED + 7),
    ("by-path", b"/b.txt", 60, None),
    ("by-path-not-with-another-uri", b"/%62.txt?x", 60, None),
    ("by-uri", b"/a.txt?long", 600, None),
    ("by-uri-mtime", b"/a.txt?mtime", 0, CHANGED + 5),
    ("file-before-uri", b"/f.0123abcd.js?long", 31_536_000, None),
    ("by-type", b"/y.css", 30, None),
    ("by-no-rule", b"/a.txt", None, None),
]


@pytest.mark.parametrize(
    ("path", "age", "fixed"), [e[1:] for e in EXPIRES], ids=[e[0] for e in EXPIRES]
)
def test_expires(house: House, path: bytes, age: int | None, fixed: int | None) -> None:
    with house.gateway.connect() as client:
        for field in (b"X: y", b"Range: bytes=0-1", b"If-None-Match: *"):
            reply = ask(client, path, field)
            if age is None:
                assert reply.all(b"expires") == reply.all(b"cache-control") == []
                continue
            assert reply.get(b"cache-control") == b"max-age=%d" % age
            expires = _seconds(reply.get(b"expires"))
            date = _seconds(reply.get(b"date"))
            # The head may have been made at the end of the second before.
            assert expires == fixed if fixed else 0 <= date + age - expires <= 2
        for status, fields in ((412, [b'If-Match: "x"']), (416, [b"Range: bytes=999-"])):
            reply = ask(client, path, *fields)
            assert (reply.status, reply.all(b"expires")) == (status, [])


def _seconds(date: bytes | None) -> int:
    assert date is not None
    return calendar.timegm(time.strptime(date.decode(), "%a, %d %b %Y %H:%M:%S GMT"))


CODINGS: list[tuple[str, bytes | None]] = [
    ("", None), ("gzip", b"gzip"), ("br", b"br"), ("gzip, br", b"br"), ("br;q=0.5, gzip", b"gzip"),
    ("br;q=0, gzip", b"gzip"), ("gzip;q=0", None), ("brotli", None), ("GZIP", b"gzip"),
    ("x-gzip", b"gzip"), ("*", b"br"), ("*;q=0", None), ("br;q=0, *", b"gzip"),
    ("identity, gzip;q=0.5", None), ("identity;q=0.5, gzip", b"gzip"), ("deflate, zstd", None),
    ("gzip;q=0.001", b"gzip"), ("gzip;q=nonsense, br;q=1.5", None), ("gzip;q=1.000", b"gzip"),
]  # fmt: skip


@pytest.mark.parametrize(("accepted", "coding"), CODINGS, ids=[c[0] or "empty" for c in CODINGS])
def test_variants(house: House, accepted: str, coding: bytes | None) -> None:
    field = b"Accept-Encoding: " + accepted.encode()
    ending = {b"gzip": b".gz", b"br": b".br", None: b""}[coding]
    with house.gateway.connect() as client:
        plain = ask(client, b"/x.css")
        reply = ask(client, b"/x.css", field)
        assert reply.body == b"first/x.css" + ending
        assert reply.get(b"content-encoding") == coding
        assert reply.get(b"content-type") == b"text/css; charset=utf-8"
        assert reply.get(b"vary") == plain.get(b"vary") == b"Accept-Encoding"
        assert (reply.get(b"etag") == plain.get(b"etag")) is (coding is None)
        head = ask(client, b"/x.css", field, method=b"HEAD")
        assert head.get(b"content-encoding") == coding
        part = ask(client, b"/x.css", field, b"Range: bytes=-3")
        assert (part.status, part.get(b"content-encoding")) == (206, coding)
        assert part.body == (ending or b"css")
        reply = ask(client, b"/z.txt", field)  # no option says so
        assert (reply.body, reply.all(b"vary")) == (b"first/z.txt", [])


def test_the_log_says_static(house: House) -> None:
    with house.gateway.connect() as client:
        for target in (b"/a.txt?log", b"/nothing?log", b"/img?log", b"/two?log"):
            ask(client, target)
        ask(client, b"/a.txt?log304", b"If-None-Match: *")
        ask(client, b"/a.txt?log416", b"Range: bytes=999-")
        ask(client, b"/a.txt?log206", b"Range: bytes=0-1")

    def lines() -> dict[str, tuple[str, int, int]]:
        found = [json.loads(line) for line in house.log.read_text().splitlines()]
        return {
            each["target"]: (each["node"], each["status"], each["response_body"])
            for each in found
            if "log" in each["target"]
        }

    wait_until(lambda: len(lines()) == 7, "the log")
    found = lines()
    assert found["/nothing?log"][0] == found["/img?log"][0] != "static"
    assert {target: what for target, what in found.items() if what[0] == "static"} == {
        "/a.txt?log": ("static", 200, 11),
        "/two?log": ("static", 301, 0),
        "/a.txt?log304": ("static", 304, 0),
        "/a.txt?log416": ("static", 416, 0),
        "/a.txt?log206": ("static", 206, 2),
    }
