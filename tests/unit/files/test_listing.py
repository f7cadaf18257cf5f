"""Lists of directories: what is in them, and that no name gets out of its place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.files.listing import Entry, as_json, entries, html
from uwgate.protocols.http_date import LATEST

SHAPE = {
    "html": {"lang"},
    "meta": {"charset", "name", "content"},
    "a": {"href"},
    "span": {"title"},
    "time": {"datetime"},
}
PLAIN = {"head", "title", "style", "body", "h1", "table", "thead", "tbody", "tr", "th", "td"}
PLAIN |= {"bdi", "p"}
HOSTILE = [
    b'"><script>alert(1)',
    b"' onmouseover='x",
    b"<!--",
    b"<b title=x>",
    b"&lt;&amp",
    b"javascript:alert(1)",
    b"a:b",
    b"a b?c#d%41",
    b"line\nbreak\r\x00\x1b",
    b"\xff\xfe\x80",
    "\u202egpj.exe\u2066\u200f".encode(),
    b"-->",
    b"a\\b",
]

names = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name)
names |= st.sampled_from(HOSTILE)
listed = st.builds(
    Entry, names, st.booleans(), st.integers(0, 1 << 63), st.integers(-(1 << 63), 1 << 63)
)


class Page(HTMLParser):
    """A page, taken apart. ``links``: hrefs and their texts. ``text``: all of it but the style."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[list[str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in PLAIN or tag in SHAPE, tag
        assert {name for name, _ in attrs} <= SHAPE.get(tag, set())
        if tag == "a":
            self.links.append([dict(attrs)["href"] or "", ""])
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            assert "<" not in data
            return
        self.text += data
        if "a" in self.open:
            self.links[-1][1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """A descriptor of it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


# --- what is there --------------------------------------------------------------------------------


def test_entries(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"12345")
    (tmp_path / "A").write_bytes(b"")
    (tmp_path / "z").mkdir()
    (tmp_path / ".hidden").write_bytes(b"")
    (tmp_path / "to-z").symlink_to("z")
    (tmp_path / "to-b").symlink_to("b")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    os.mkfifo(tmp_path / "fifo")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"1")
    os.utime(tmp_path / "b", (1, 1_700_000_000.9))
    with directory(tmp_path) as fd:
        before = len(os.listdir("/proc/self/fd"))
        found, truncated = entries(fd, dotfiles=False)
        assert entries(fd, dotfiles=False) == (found, truncated)
        everything, _ = entries(fd, dotfiles=True)
        assert len(os.listdir("/proc/self/fd")) == before
    assert [entry.name for entry in found] == [b"to-z", b"z", b"A", b"b", b"to-b", b"\xff"]
    assert [entry.is_dir for entry in found] == [True, True, False, False, False, False]
    assert found[3] == Entry(b"b", False, 5, 1_700_000_000)
    assert found[4].size == 5
    assert not truncated
    assert {entry.name for entry in everything} - {entry.name for entry in found} == {b".hidden"}


def test_a_long_directory_is_cut(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}").touch()
    with directory(tmp_path) as fd:
        assert len(entries(fd, False, limit=5)[0]) == 5
        assert entries(fd, False, limit=5)[1] is False
        found, truncated = entries(fd, False, limit=4)
    assert (len(found), truncated) == (4, True)
    assert "ends after 4 entries" in Page(html(b"/", found, True)).text


def test_what_is_no_directory_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with open(tmp_path / "file", "rb") as file, pytest.raises(NotADirectoryError):
        entries(file.fileno(), False)


# --- for people -----------------------------------------------------------------------------------


def test_page() -> None:
    found = [Entry(b"dir", True, 4096, 0), Entry("ü.txt".encode(), False, 1536, 1_700_000_000)]
    page = html(b"/a b/c/", found, False)
    parsed = Page(page)
    assert parsed.links == [
        ["../../", "/"],
        ["../", "a b"],
        ["../", "../"],
        ["./dir/", "dir/"],
        ["./%C3%BC.txt", "ü.txt"],
    ]
    assert "Index of /a b/c/" in parsed.text
    assert b'<span title="1536 bytes">1.5 KiB</span>' in page
    assert b'<time datetime="2023-11-14T22:13:20Z">2023-11-14 22:13</time>' in page
    assert b"4096" not in page
    assert b"src=" not in page
    assert page.startswith(b"<!DOCTYPE html>")


def test_the_root_has_no_parent() -> None:
    assert Page(html(b"/", [], False)).links == []


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10189, "10 KiB"),
        (1_023_487, "999 KiB"),
        (1_023_488, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 63, "8.0 EiB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert f">{shown}<".encode() in html(b"/", [Entry(b"a", False, size, 0)], False)


@given(st.lists(names, max_size=4), st.lists(listed, max_size=5), st.booleans())
def test_no_name_gets_out_of_its_place(
    segments: list[bytes], found: list[Entry], truncated: bool
) -> None:
    path = b"/" + b"".join(segment + b"/" for segment in segments)
    page = html(path, found, truncated)
    parsed = Page(page)
    rows = parsed.links[len(parsed.links) - len(found) :]
    assert len(parsed.links) == len(found) + len(segments) + bool(segments)
    for entry, (href, text) in zip(found, rows, strict=True):
        slash = "/" if entry.is_dir else ""
        assert re.fullmatch(r"\./[A-Za-z0-9_.~%-]+/?", href)
        assert unquote_to_bytes(href[2:].removesuffix("/")) == entry.name
        assert href.endswith("/") is entry.is_dir
        assert text.endswith(slash)
    # "\n" is what the page itself is made with.
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.decode())
    assert "\n" not in "".join(text for _, text in parsed.links)


@pytest.mark.parametrize("name", HOSTILE)
def test_links_stay_below(name: bytes) -> None:
    (_, _, (href, text)) = Page(html(b"/d/", [Entry(name, False, 1, 1)], False)).links
    target = urljoin("http://host/d/", href)
    assert unquote_to_bytes(target) == b"http://host/d/" + name
    plain = name.decode("utf-8", "replace")
    expected = re.sub("[\x00-\x1f\u202e\u2066\u200f]", "\ufffd", plain)
    assert text == expected


# --- for programs ---------------------------------------------------------------------------------


def test_json() -> None:
    found = [Entry(b"dir", True, 4096, 0), Entry(b'a\xff"\n', False, 5, 784111777)]
    assert json.loads(as_json(b"/", found, False)) == [
        {"name": "dir", "type": "directory", "mtime": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {
            "name": 'a\ufffd"\n',
            "type": "file",
            "mtime": "Sun, 06 Nov 1994 08:49:37 GMT",
            "size": 5,
        },
    ]
    assert as_json(b"/", [], False) == b"[]\n"


@given(st.lists(listed, max_size=5))
def test_json_of_anything(found: list[Entry]) -> None:
    text = as_json(b"/", found, True)
    assert text.isascii()
    parsed = json.loads(text)
    assert [each["name"] for each in parsed] == [
        entry.name.decode("utf-8", "replace") for entry in found
    ]
    assert [each.get("size") for each in parsed] == [
        None if entry.is_dir else entry.size for entry in found
    ]


def test_years_that_cannot_be_written() -> None:
    found = [Entry(b"early", False, 0, -(1 << 62)), Entry(b"late", False, 0, LATEST + 1)]
    page = html(b"/", found, False)
    assert b"1970-01-01T00:00:00Z" in page
    assert b"9999-12-31T23:59:59Z" in page
