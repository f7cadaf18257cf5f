"""Paths of targets: decoded once, no detours, nothing above the root (RFC 3986 §5.2.4)."""

from __future__ import annotations

import posixpath
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uwgate.protocols.paths import decoded_path
from uwgate.protocols.uwsgi import path_info


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"/a", b"/a"),
        (b"/a/", b"/a/"),
        (b"/a/b.css", b"/a/b.css"),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"/a..b/c./d..", b"/a..b/c./d.."),
        (b"/..a/...", b"/..a/..."),
        (b"/a;b=c/+", b"/a;b=c/+"),
        pytest.param(b"/a?b=/../%zz\x00", b"/a", id="the query is cut off"),
        pytest.param(b"/%61?b?c", b"/a", id="the query is cut off, general"),
        pytest.param(b"/?", b"/", id="empty query"),
        pytest.param(b"/a%20b%C3%a9", b"/a b\xc3\xa9", id="2.1 decoded"),
        pytest.param(b"/%25%32%65", b"/%2e", id="2.4 decoded once"),
        pytest.param(b"/%252e%252e/x", b"/%2e%2e/x", id="2.4 not decoded twice"),
        pytest.param(b"/a%3Fb%23c", b"/a?b#c", id="encoded delimiters are names"),
        pytest.param(b"/\xe9", b"/\xe9", id="bytes above ASCII"),
        pytest.param(b"/a%2Fb", b"/a/b", id="encoded slash"),
        pytest.param(b"/a/b/c/./../../g", b"/a/g", id="5.2.4 example"),
        pytest.param(b"/a/.", b"/a/", id="5.2.4 trailing dot"),
        pytest.param(b"/a/..", b"/", id="5.2.4 trailing dots"),
        pytest.param(b"/a/b/..", b"/a/", id="5.2.4 trailing dots, deeper"),
        pytest.param(b"/a/b/../", b"/a/", id="5.2.4 dots and slash"),
        pytest.param(b"/.", b"/", id="5.2.4 only a dot"),
        pytest.param(b"/a/%2e%2E/b", b"/b", id="encoded dots"),
        pytest.param(b"/a/.%2e%2fb", b"/b", id="half encoded dots, encoded slash"),
        pytest.param(b"//a///b//", b"/a/b/", id="empty segments"),
        pytest.param(b"//", b"/", id="only empty segments"),
        pytest.param(b"/a//../b", b"/b", id="an empty segment is none to go up from"),
    ],
)
def test_paths(target: bytes, path: bytes) -> None:
    assert decoded_path(target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"a/b",
        b"?a",
        b"http://host/",
        b"host:80",
        b"%2fa",
        b"/%",
        b"/a%2",
        b"/%zz",
        b"/%+1",
        b"/%2?e",
        b"/%%32e",
        b"/%u0041",
        b"/a\x00",
        b"/a%00.css",
        b"/a%0d%0a",
        b"/a%1F",
        b"/a%7f",
        b"/a\tb",
        b"/a\n",
        b"/a\\b",
        b"/a%5cb",
        b"/..%5c..",
        b"/a#b",
        b"/..",
        b"/../",
        b"/../a",
        b"/a/../../b",
        b"/a/../..",
        b"/%2e%2e/a",
        b"/%2e%2e%2fa",
        b"//../a",
        b"/./../a",
        b"/a/../../a/b",
    ],
)
def test_refused(target: bytes) -> None:
    assert decoded_path(target) is None


def test_long_targets_are_read_in_linear_time() -> None:
    assert decoded_path(b"/a" * 30000 + b"%") is None
    assert decoded_path(b"/.a." * 15000 + b"\x00") is None
    assert decoded_path(b"/" * 60000) == b"/"
    assert decoded_path(b"/%41" * 15000) == b"/A" * 15000
    assert decoded_path(b"/a" * 30000 + b"/.." * 30000) == b"/"


def reference(target: bytes) -> bytes | None:
    """The same with other tools, and without a short path."""
    path = target.split(b"?", 1)[0]
    escapes = path.split(b"%")[1:]
    hexadecimal = b"0123456789abcdefABCDEF"
    if not path.startswith(b"/") or b"#" in path:
        return None
    if any(len(e) < 2 or e[0] not in hexadecimal or e[1] not in hexadecimal for e in escapes):
        return None
    path = unquote_to_bytes(path)
    if b"\\" in path or any(byte < 32 or byte == 127 for byte in path):
        return None
    depth = 0
    for segment in path.split(b"/"):
        depth += -1 if segment == b".." else segment not in (b"", b".")
        if depth < 0:
            return None
    clean = posixpath.normpath(b"/" + path.lstrip(b"/"))
    slash = path.rsplit(b"/", 1)[1] in (b"", b".", b"..") and clean != b"/"
    return clean + b"/" * slash


PIECES = st.lists(
    st.sampled_from(
        [*rb"/ / . .. /../ /./ a B7 ~ \ ? # % %2e %2F %41 %25 %5c %00".split(), b"\xe9", b"\x1f"]
    ),
    max_size=12,
).map(lambda pieces: b"/" + b"".join(pieces))


@settings(max_examples=100)
@given(PIECES | st.binary(max_size=20).map(lambda data: b"/" + data) | st.binary(max_size=20))
@example(b"/a/b/../..?x")
def test_any_bytes_as_other_tools_have_it(target: bytes) -> None:
    assert decoded_path(target) == reference(target)


@settings(max_examples=100)
@given(PIECES)
def test_no_detours_are_left(target: bytes) -> None:
    path = decoded_path(target)
    if path is not None:
        assert path.startswith(b"/")
        assert not {b".", b".."} & set(path.split(b"/"))
        assert b"//" not in path
        assert posixpath.normpath(b"/srv" + path).startswith(b"/srv")


@settings(max_examples=100)
@given(PIECES)
def test_nodes_are_told_the_same_path(target: bytes) -> None:
    """But for empty segments, which PATH_INFO keeps."""
    path = decoded_path(target)
    if path is not None and b"//" not in unquote_to_bytes(target):
        assert path_info(target) in (path, path.removesuffix(b"/"))


NAMES = st.binary(min_size=1, max_size=5).filter(
    lambda name: name not in (b".", b"..") and not any(c < 32 or c in b"\x7f/\\" for c in name)
)


@settings(max_examples=100)
@given(st.lists(NAMES, max_size=5), st.booleans())
def test_names_come_through(names: list[bytes], slash: bool) -> None:
    path = b"/" + b"/".join(names) + b"/" * (slash and bool(names))
    assert decoded_path(quote_from_bytes(path).encode()) == path
