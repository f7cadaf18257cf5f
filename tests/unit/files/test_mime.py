"""Media types by extension."""

from __future__ import annotations

from pathlib import Path

import pytest

from uwgate.files.mime import UNKNOWN, MimeTypes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a.css", b"text/css"),
        (b"dir/a.CSS", b"text/css"),
        (b"a.js", b"text/javascript"),
        (b"a.min.mjs", b"text/javascript"),
        (b"a.html", b"text/html"),
        (b"a.svg", b"image/svg+xml"),
        (b"a.json", b"application/json"),
        (b"a.js.map", b"application/json"),
        (b"a.wasm", b"application/wasm"),
        (b"a.webp", b"image/webp"),
        (b"a.avif", b"image/avif"),
        (b"a.woff2", b"font/woff2"),
        (b"a.mp4", b"video/mp4"),
        (b"a.webm", b"video/webm"),
        (b"a.webmanifest", b"application/manifest+json"),
        (b"a.xml", b"application/xml"),
        (b"a.txt", b"text/plain"),
        (b"a.ico", b"image/x-icon"),
        (b"a.md", b"text/markdown"),
        (b"a.png", b"image/png"),
        (b"a.pdf", b"application/pdf"),
        (b"a.tar.gz", b"application/gzip"),
        (b"a.unheard-of", UNKNOWN),
        (b"a.css/plain", UNKNOWN),
        (b"a", UNKNOWN),
        (b"a.", UNKNOWN),
        (b"", UNKNOWN),
        (b".css", UNKNOWN),
        (b"a/.css", UNKNOWN),
        (b"a.\xff", UNKNOWN),
    ],
)
@pytest.mark.parametrize("system", ["/etc/mime.types", "/nonexistent", "wrong"])
def test_the_web_is_the_same_everywhere(
    name: bytes, expected: bytes, system: str, tmp_path: Path
) -> None:
    if system == "wrong":
        table = "text/x-wrong css js mjs json svg # png\nimage/png png\napplication/pdf pdf\n"
        (tmp_path / "mime.types").write_text(table)
        system = str(tmp_path / "mime.types")
    assert MimeTypes(None, "", system).of(name) == expected


def test_the_systems_table(tmp_path: Path) -> None:
    system = tmp_path / "mime.types"
    system.write_bytes(
        b"# text/x-comment one\n\nx/alone\nx/y\tOne two # three\nx/z two four\n"
        b"\xff\xfe five\nbad six\n"
    )
    types = MimeTypes(None, "utf-8", str(system))
    assert types.of(b"a.one") == b"x/y"
    assert types.of(b"a.two") == b"x/y"
    assert types.of(b"a.four") == b"x/z"
    for unknown in (b"a.three", b"a.five", b"a.six", b"a.alone"):
        assert types.of(unknown) == UNKNOWN
    system.unlink()  # it was read once
    assert types.of(b"a.one") == b"x/y"


def test_it_is_read_when_it_is_needed(tmp_path: Path) -> None:
    system = tmp_path / "mime.types"
    types = MimeTypes(None, "utf-8", str(system))
    system.write_text("x/y one\n")
    assert types.of(b"a.one") == b"x/y"


def test_the_operators_table_is_all_there_is() -> None:
    types = MimeTypes([(b"foo", b"x/1"), (b".BAR", b"x/2"), (b"foo", b"x/3")], "utf-8")
    assert types.of(b"a.foo") == b"x/3"
    assert types.of(b"a.bar") == b"x/2"
    assert types.of(b"a.css") == UNKNOWN
    assert MimeTypes([], "utf-8").of(b"a.css") == UNKNOWN


@pytest.mark.parametrize(
    "bad", [b"", b"text", b"text/", b"a/b\r\nX: y", b"a/b\xff", b"a b/c", b"a/b c"]
)
def test_what_is_no_type_is_left_out(bad: bytes) -> None:
    assert MimeTypes([(b"foo", bad)], "utf-8").of(b"a.foo") == UNKNOWN


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (b"text/css", b"text/css; charset=utf-8"),
        (b"Text/Plain", b"Text/Plain; charset=utf-8"),
        (b"application/javascript", b"application/javascript; charset=utf-8"),
        (b"application/xml", b"application/xml; charset=utf-8"),
        (b"image/svg+xml", b"image/svg+xml; charset=utf-8"),
        (b"text/plain; format=flowed", b"text/plain; format=flowed; charset=utf-8"),
        (b"text/plain ;Charset=latin1", b"text/plain ;Charset=latin1"),
        (b"application/json", b"application/json"),
        (b"image/png", b"image/png"),
        (b"textual/x", b"textual/x"),
    ],
)
def test_charset(kind: bytes, expected: bytes) -> None:
    assert MimeTypes([(b"x", kind)], "utf-8").of(b"a.x") == expected
    assert MimeTypes([(b"x", kind)], "").of(b"a.x") == kind
