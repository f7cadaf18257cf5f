"""What a path leads to, and what is remembered of it."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from uwgate.config.settings_static import (
    Compressed,
    ExpiresRule,
    SendfileField,
    StaticMap,
    StaticSettings,
)
from uwgate.files import site as site_module
from uwgate.files.entries import KEPT_SIZE, Answer, Entry
from uwgate.files.represent import Representations
from uwgate.files.site import UNKNOWN, Site

NOW = 1_800_000_000
OLD = 1_700_000_000


class Files:
    """A site over a directory, and short ways to ask it."""

    def __init__(self, settings: StaticSettings) -> None:
        self.site = Site(settings)
        self.representations = Representations(settings)
        self.clock = float(NOW)
        self.site.turn(self.clock)

    def turn(self, seconds: float = 1.0) -> None:
        self.clock += seconds
        self.site.turn(self.clock)

    def find(self, target: bytes) -> Entry | None:
        found = self.site.known(target)
        if found is not UNKNOWN:
            assert found is None or isinstance(found, Entry)
            return found
        path = self.site.path_of(target)
        assert path is not None
        return self.site.keep(target, path, self.site.load(path))

    def text(self, target: bytes) -> bytes | None:
        """The content of what is found."""
        entry = self.find(target)
        if entry is None:
            return None
        if entry.kind == "redirect":
            return b"-> " + entry.path + b"/"
        assert entry.file is not None
        if entry.file.data is not None:
            return entry.file.data
        return os.pread(entry.file.fd, entry.file.size, 0)

    def answer(self, target: bytes, encodings: bytes = b"", accept: bytes = b"") -> Answer:
        entry = self.find(target)
        assert entry is not None
        return self.representations.choose(entry, encodings, accept, target, int(self.clock))


Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def put(name: str, content: bytes = b"", when: int = OLD) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_bytes(content or name.encode())
        os.utime(new, (when, when))
        new.rename(path)
        return path

    return put


def site(tmp_path: Path, **more: object) -> Files:
    return Files(StaticSettings(checks=(str(tmp_path / "www"),), **more))  # type: ignore[arg-type]


# --- lookup ---------------------------------------------------------------------------------------


def test_the_order_of_places(tmp_path: Path, put: Put) -> None:
    for name in ("one/a", "two/a", "two/b", "map/x/a", "map/c", "whole/m/d", "root/e", "root/a"):
        put(name)
    files = Files(
        StaticSettings(
            checks=(str(tmp_path / "one"), str(tmp_path / "two")),
            maps=(
                StaticMap(b"/m", str(tmp_path / "map")),
                StaticMap(b"/m/x", str(tmp_path / "two")),
                StaticMap(b"/m", str(tmp_path / "whole"), whole=True),
            ),
            docroot=str(tmp_path / "root"),
        )
    )
    assert files.text(b"/a") == b"one/a"
    assert files.text(b"/b?query") == b"two/b"
    assert files.text(b"/m/x/a") == b"map/x/a"  # the first map, not the longest
    assert files.text(b"/m/x/b") == b"two/b"
    assert files.text(b"/m/c") == b"map/c"
    assert files.text(b"/m/d") == b"whole/m/d"
    assert files.text(b"/e") == b"root/e"
    assert files.text(b"/mx/a") is None
    assert files.text(b"/nothing") is None


def test_a_map_to_one_file(tmp_path: Path, put: Put) -> None:
    put("icon")
    files = Files(StaticSettings(maps=(StaticMap(b"/favicon.ico", str(tmp_path / "icon")),)))
    assert files.text(b"/favicon.ico") == b"icon"
    assert files.text(b"/favicon.ico/x") is None
    assert files.text(b"/favicon.icon") is None


def test_directories(tmp_path: Path, put: Put) -> None:
    put("www/d/index.html")
    put("www/e/default.htm")
    put("www/f/x")
    files = site(tmp_path, index=(b"index.html", b"default.htm"))
    assert files.text(b"/d/") == b"www/d/index.html"
    assert files.text(b"/e/") == b"www/e/default.htm"
    assert files.text(b"/d") == b"-> /d/"
    assert files.text(b"/f/") is None
    assert files.text(b"/f") is None
    assert files.text(b"/d/index.html/") is None


def test_an_index_where_nothing_may_be_listed(tmp_path: Path, put: Put) -> None:
    directory = put("www/d/index.html").parent
    directory.chmod(0o111)
    try:
        assert site(tmp_path, index=(b"index.html",)).text(b"/d/") == b"www/d/index.html"
    finally:
        directory.chmod(0o755)


def test_lists(tmp_path: Path, put: Put) -> None:
    put("www/d/a.txt")
    put("www/d/.hidden")
    put("outside")
    (tmp_path / "www/d/out").symlink_to(tmp_path / "outside")
    (tmp_path / "www/d/in").symlink_to(tmp_path / "www/d/a.txt")
    files = site(tmp_path, autoindex=True)
    assert files.text(b"/d") == b"-> /d/"
    page = files.text(b"/d/")
    assert page is not None
    assert b"a.txt" in page
    assert b"hidden" not in page
    assert b'"./in"' in page
    assert b'"./out"' not in page  # what would not be sent is not told either
    assert files.answer(b"/d/").content_type == b"text/html; charset=utf-8"
    listed = files.answer(b"/d/", accept=b"application/json")
    assert listed.content_type == b"application/json"
    assert b"a.txt" in (listed.file.data or b"")
    put("www/d/b.txt")
    files.turn()
    assert b"b.txt" in (files.text(b"/d/") or b"")


def test_skipped_endings(tmp_path: Path, put: Put) -> None:
    put("www/a.php")
    put("www/d/index.php")
    put("www/d/index.html")
    (tmp_path / "www/b.txt").symlink_to("a.php")
    files = site(tmp_path, skip_ext=(b".php",), index=(b"index.php", b"index.html"))
    for target in (b"/a.php", b"/a%2ephp", b"/a.php?x", b"/b.txt"):
        assert files.text(target) is None
    assert files.text(b"/d/") == b"www/d/index.html"


def test_names_of_applications(tmp_path: Path, put: Put) -> None:
    put("www/a")
    put("safe/.b")
    put("accel/c.php")
    put("outside")
    files = Files(
        StaticSettings(
            checks=(str(tmp_path / "www"),),
            safe=(str(tmp_path / "safe"),),
            accel=(StaticMap(b"/int", str(tmp_path / "accel")),),
            skip_ext=(b".php",),
            sendfile_fields=(SendfileField(b"x-sendfile"),),
        )
    )

    def named(name: object, *, uri: bool = False) -> bytes | None:
        key = files.site.named_key(os.fsencode(str(name)), uri=uri)
        return None if key is None else files.text(key)

    assert named(tmp_path / "www/a") == b"www/a"
    assert named(f"{tmp_path}//www/./a") == b"www/a"
    assert named(tmp_path / "safe/.b") == b"safe/.b"
    assert named("/int/c.php", uri=True) == b"accel/c.php"
    assert named("/int/c%2Ephp", uri=True) == b"accel/c.php"
    for name in ("outside", "safe/../outside", "www", "safer", "accel/c.php"):
        assert named(tmp_path / name) is None, name
    for name in ("", "relative", "/", "/int/c.php", "a\0b"):
        assert named(name) is None, name
    for name in ("/int", "/int/../outside", "/other/c.php", "int/c.php", "/int/%00"):
        assert named(name, uri=True) is None, name
    # They are no targets, nor the other way round.
    assert files.text(b"/a") == b"www/a"
    assert named("/a") is None


def test_a_site_over_everything(tmp_path: Path, put: Put) -> None:
    path = put("www/a")
    files = Files(StaticSettings(safe=("/",)))
    key = files.site.named_key(os.fsencode(path), uri=False)
    assert key is not None
    assert files.text(key) == b"www/a"


# --- what is remembered ---------------------------------------------------------------------------


def test_what_changes_is_seen_a_second_later(tmp_path: Path, put: Put) -> None:
    put("www/a", b"one")
    put("www/big", b"x" * (KEPT_SIZE + 1))
    files = site(tmp_path)
    assert files.text(b"/a") == b"one"
    assert len(files.text(b"/big") or b"") == KEPT_SIZE + 1
    assert files.text(b"/b") is None
    put("www/a", b"two", OLD + 1)
    put("www/b")
    put("www/big", b"small", OLD + 1)
    assert files.text(b"/a") == b"one"
    assert files.text(b"/b") is None
    loads = files.site.counters.loads
    files.turn(0.4)
    assert files.text(b"/a") == b"one"
    files.turn()
    assert files.text(b"/a") == b"two"
    assert files.text(b"/b") == b"www/b"
    assert files.text(b"/big") == b"small"
    assert files.site.counters.loads == loads + 3
    for _ in range(3):  # nothing has changed: nothing is opened
        files.turn()
        assert files.text(b"/a") == b"two"
        assert files.text(b"/a?other=target") == b"two"
    assert files.site.counters.loads == loads + 3
    (tmp_path / "www/a").unlink()
    files.turn()
    assert files.text(b"/a") is None


def test_a_better_place_is_seen(tmp_path: Path, put: Put) -> None:
    put("two/a")
    (tmp_path / "one").mkdir()
    files = Files(StaticSettings(checks=(str(tmp_path / "one"), str(tmp_path / "two"))))
    assert files.text(b"/a") == b"two/a"
    files.turn()
    assert files.text(b"/a") == b"two/a"
    put("one/a")
    files.turn()
    assert files.text(b"/a") == b"one/a"


def test_paths_are_remembered_longer_if_wanted(tmp_path: Path, put: Put) -> None:
    put("www/a", b"one")
    files = site(tmp_path, cache_paths=60.0)
    assert files.text(b"/a") == b"one"
    assert files.text(b"/b") is None
    put("www/a", b"two", OLD + 1)
    put("www/b")
    for _ in range(59):
        files.turn()
        assert (files.text(b"/a"), files.text(b"/b")) == (b"one", None)
    files.turn()
    assert (files.text(b"/a"), files.text(b"/b")) == (b"two", b"www/b")


def test_an_escaped_name_is_another_target(tmp_path: Path, put: Put) -> None:
    put("www/a b", b"space")
    put("www/a%20b", b"percent")
    files = site(tmp_path)
    for _ in range(2):
        assert files.text(b"/a%20b") == b"space"
        assert files.text(b"/a%2520b") == b"percent"
        entry = files.find(b"/a%2520b")
        assert entry is not None
        files.site.anew(entry)
        files.turn()


def test_bounds(tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "_MAX_ENTRIES", 5)
    for number in range(20):
        put(f"www/{number}", b"x" * (KEPT_SIZE + 1))
    gc.collect()  # what others have left behind
    before = len(os.listdir("/proc/self/fd"))
    files = site(tmp_path)
    for number in range(20):
        assert files.text(b"/%d" % number) is not None
    snapshot = files.site.snapshot()
    assert (snapshot["entries"], snapshot["descriptors"]) == (5, 5)
    assert len(os.listdir("/proc/self/fd")) - before <= 6  # and one for the directory
    monkeypatch.setattr(site_module, "_MAX_BYTES", 3000)
    put("www/small", b"y" * 2000)
    assert files.text(b"/small") == b"y" * 2000
    assert files.site.snapshot()["entries"] == 1  # more than there is room for, but just asked for
    del files
    assert len(os.listdir("/proc/self/fd")) == before


def test_targets_and_misses_are_bounded(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "_MAX_TARGETS", 10)
    put("www/a")
    files = site(tmp_path)
    for number in range(50):
        assert files.text(b"/a?%d" % number) == b"www/a"
        assert files.text(b"/none%d" % number) is None
        assert len(files.site.targets) <= 10
    assert files.text(b"/a?" + b"x" * 5000) == b"www/a"
    assert all(len(target) < 100 for target in files.site.targets)


# --- representations ------------------------------------------------------------------------------


def test_fields(tmp_path: Path, put: Put) -> None:
    put("www/a.css", b"body{}")
    answer = site(tmp_path).answer(b"/a.css")
    etag = b'"%x-6"' % (OLD * 1_000_000_000)
    assert answer.etag == etag
    assert answer.head.lines.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/css; charset=utf-8",
        b"Last-Modified: Tue, 14 Nov 2023 22:13:20 GMT",
        b"ETag: " + etag,
        b"Accept-Ranges: bytes",
        b"X-Content-Type-Options: nosniff",
        b"",
    ]
    assert answer.head.framing == b"Content-Length: 6\r\n"


def test_times_that_prove_nothing(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    path = tmp_path / "www/a"
    for _ in range(50):  # until we were quick enough
        path.write_bytes(b"x")
        answer = site(tmp_path).answer(b"/a")
        if answer.etag.startswith(b"W/"):
            break
    assert answer.etag.startswith(b'W/"')
    assert answer.entry.signature is None  # it is looked at again
    os.utime(path, (2_000_000_000, 2_000_000_000))
    answer = site(tmp_path).answer(b"/a")
    assert answer.etag.startswith(b'"')
    assert answer.last_modified is None
    assert b"Last-Modified" not in answer.lines


def test_variants(tmp_path: Path, put: Put) -> None:
    for ending in ("", ".gz", ".br", ".zst"):
        put(f"www/a.css{ending}")
        put(f"www/a.txt{ending}")
    put("www/b.css")
    (tmp_path / "www/b.css.gz").symlink_to("/etc/hostname")
    files = site(tmp_path, compressed=Compressed(suffixes=(b".css",)))

    def sent(target: bytes, encodings: bytes) -> bytes:
        answer = files.answer(target, encodings)
        assert (b"Vary: Accept-Encoding\r\n" in answer.lines) == target.endswith(b".css")
        assert answer.content_type.startswith(b"text/")
        return answer.file.data or b""

    assert sent(b"/a.css", b"gzip, br, zstd") == b"www/a.css.br"
    assert sent(b"/a.css", b"gzip;q=1, br;q=0.5") == b"www/a.css.gz"
    assert sent(b"/a.css", b"zstd") == b"www/a.css.zst"
    assert sent(b"/a.css", b"gzip;q=0") == b"www/a.css"
    assert sent(b"/a.css", b"") == b"www/a.css"
    assert sent(b"/a.txt", b"gzip, br") == b"www/a.txt"
    assert sent(b"/b.css", b"gzip, br") == b"www/b.css"
    tags = {files.answer(b"/a.css", each).etag for each in (b"", b"br", b"gzip", b"zstd")}
    assert len(tags) == 4
    put("www/a.css.br", b"new", OLD + 1)
    files.turn()
    assert sent(b"/a.css", b"br") == b"new"


@pytest.mark.parametrize(
    ("compressed", "target", "found"),
    [
        (Compressed(everything=True), b"/d/a.css", True),
        (Compressed(prefixes=(b"{www}/d/",)), b"/d/a.css", True),
        (Compressed(prefixes=(b"{www}/e/",)), b"/d/a.css", False),
        (Compressed(regexps=(re.compile(rb"/d/.*css$"),)), b"/d/a.css", True),
        (Compressed(regexps=(re.compile(rb"^/d/"),)), b"/d/a.css", False),
    ],
)
def test_which_files_have_variants(
    tmp_path: Path, put: Put, compressed: Compressed, target: bytes, found: bool
) -> None:
    www = os.fsencode(os.path.realpath(tmp_path / "www"))
    prefixes = tuple(each.replace(b"{www}", www) for each in compressed.prefixes)
    put("www/d/a.css")
    put("www/d/a.css.gz")
    rules = Compressed(compressed.everything, prefixes, (), compressed.regexps)
    answer = site(tmp_path, compressed=rules).answer(target, b"gzip")
    assert (b"Content-Encoding: gzip" in answer.lines) == found


def rule(by: str, pattern: bytes, seconds: int, mtime: bool = False) -> ExpiresRule:
    return ExpiresRule(by, re.compile(pattern), seconds, mtime)  # type: ignore[arg-type]


def test_expiry(tmp_path: Path, put: Put) -> None:
    put("www/a.css")
    put("www/b.css")
    put("www/c d.css")
    put("www/e.txt")
    rules = (
        rule("type", rb"text/css", 1),
        rule("uri", rb"v=", 2),
        rule("path-info", rb"^/c d", 3),
        rule("file", rb"/b\.css$", 4, True),
        rule("file", rb"/nothing$", 5),
    )
    files = site(tmp_path, expires=rules)

    def lines(target: bytes) -> bytes:
        return files.representations.expires(files.answer(target), files.site.now)

    assert lines(b"/a.css").endswith(b"GMT\r\nCache-Control: max-age=1\r\n")
    assert lines(b"/a.css?v=1").endswith(b"max-age=2\r\n")
    assert lines(b"/a.css").endswith(b"max-age=1\r\n")
    assert lines(b"/c%20d.css?v=1").endswith(b"max-age=3\r\n")
    assert lines(b"/b.css?v=1") == (
        b"Expires: Tue, 14 Nov 2023 22:13:24 GMT\r\nCache-Control: max-age=0\r\n"
    )
    assert lines(b"/e.txt") == b""
    answer = files.answer(b"/a.css")
    before = files.representations.head(answer, NOW).lines
    assert files.representations.head(answer, NOW).lines is before
    assert b"Expires: Fri, 15 Jan 2027 08:00:02 GMT\r\n" in (
        files.representations.head(answer, NOW + 1).lines
    )
