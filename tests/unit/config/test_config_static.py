"""Static files: where they are looked for, what is said of them, and fields that name them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from config_tools import BASE, configured, errors_of, http_ini, http_of, ini_errors, settings_of
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config import static_values
from uwgate.config.model import State
from uwgate.config.options import find, foreign, in_topic
from uwgate.config.settings_static import (
    Compressed,
    ExpiresRule,
    SendfileField,
    StaticMap,
    StaticSettings,
)
from uwgate.config.show import show

FILES_ONLY = ("--http", ":8080", "--check-static", "site")
RECIPE = (
    "collect-header = X-Sendfile X_SENDFILE\n"
    "response-route-if-not = empty:${X_SENDFILE} static:${X_SENDFILE}\n"
)
X_SENDFILE = SendfileField(b"x-sendfile")
X_ACCEL = SendfileField(b"x-accel-redirect", uri=True)


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with directories that options name."""
    monkeypatch.chdir(tmp_path)
    for name in ("site", "more", "safe", "private"):
        (tmp_path / name).mkdir()
    (tmp_path / "favicon.ico").write_bytes(b"x")
    return tmp_path


def static_ini(text: str) -> StaticSettings:
    """The settings of ``BASE`` plus an INI text, where files are served."""
    found = http_ini(text).static
    assert found is not None
    return found


def remarks(text: str) -> list[str]:
    """The warnings of ``BASE`` plus an INI text without errors, but not where they come from."""
    made = configured(*BASE, "-", stdin=f"[uwsgi]\n{text}".encode())
    assert made.problems.errors == []
    return [re.sub("^standard input:[0-9]+: ", "", str(each)) for each in made.problems.warnings]


# Places.


def test_nothing_is_served() -> None:
    assert http_of(*BASE).static is None
    assert http_ini("check-static-docroot = false\nhttp-sendfile = off").static is None


def test_defaults(site: Path) -> None:
    assert static_ini("check-static = site") == StaticSettings(checks=(f"{site}/site",))


def test_places_in_order(site: Path) -> None:
    found = static_ini(
        "static-map2 = /b/=more/\n"
        "static-map = /static/=site\n"
        "static-check = more\n"
        "static-map = /favicon.ico=favicon.ico\n"
        "check-static = ./site/\n"
        "static-map = / = safe/../site\n"
        "http-var = DOCUMENT_ROOT=/nowhere\n"
        "http-var = DOCUMENT_ROOT=private\n"
        "check-static-docroot = true\n"
        "static-safe = safe\n"
    )
    assert found.checks == (f"{site}/more", f"{site}/site")
    assert found.maps == (
        StaticMap(b"/static", f"{site}/site"),
        StaticMap(b"/favicon.ico", f"{site}/favicon.ico"),
        StaticMap(b"", f"{site}/site"),
        StaticMap(b"/b", f"{site}/more", whole=True),
    )
    assert found.docroot == f"{site}/private"
    assert found.safe == (f"{site}/safe",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/srv", "'/srv' has no '='; expected mount=path, as in /img=/srv/img"),
        ("=/srv", "'=/srv' names no mount; expected mount=path, as in /img=/srv/img"),
        ("/a=", "'/a=' names no path; expected mount=path"),
        ("a=/srv", "the mount 'a' does not begin with '/'; no path is below it"),
    ],
)
def test_mounts_that_are_wrong(value: str, message: str) -> None:
    for option in ("static-map", "static-map2", "static-accel"):
        assert ini_errors(f"{option} = {value}") == [f"standard input:2: {option}: {message}"]


@pytest.mark.parametrize("mount", ["/a//b", "/a/../b", "/.", "/a\x01", "//"])
def test_mounts_that_no_path_is_below(mount: str) -> None:
    if mount == "//":
        assert static_values.mapping()(f"{mount}=/srv").prefix == b""
    else:
        with pytest.raises(ValueError, match="cannot match"):
            static_values.mapping()(f"{mount}=/srv")


def test_mounts_are_not_decoded() -> None:
    convert = static_values.mapping()
    assert convert("/a%20b=/srv") == StaticMap(b"/a%20b", "/srv")
    assert convert("/bücher=/srv/a=b") == StaticMap("/bücher".encode(), "/srv/a=b")


def test_directories_that_are_missing(site: Path) -> None:
    text = "check-static = none\nstatic-map = /a=none\nstatic-safe = none\n"
    again = f"{site}/none: No such file or directory; it is looked for again while requests come"
    assert remarks(text) == [f"{name}: {again}" for name in ("check-static", "static-map",
                                                             "static-safe")]  # fmt: skip
    assert ini_errors("check-static = favicon.ico") == [
        f"standard input:2: check-static: {site}/favicon.ico is not a directory"
    ]
    assert remarks("static-map = /favicon.ico=favicon.ico") == []


def test_docroot() -> None:
    needs = "check-static-docroot: needs http-var = DOCUMENT_ROOT=DIRECTORY; clients cannot say it"
    assert ini_errors("check-static-docroot = true") == [f"standard input:2: {needs}"]
    assert "DOCUMENT_ROOT: 'a\\tb' has control" in ini_errors(
        "check-static-docroot = true\nhttp-var = DOCUMENT_ROOT=a\tb"
    )[0]
    text = "check-static-docroot = true\nhttp-var = DOCUMENT_ROOT=/no/where"
    assert static_ini(text).docroot == "/no/where"
    assert remarks(text) == [
        "check-static-docroot: DOCUMENT_ROOT: /no/where is no directory;"
        " it is looked for again while requests come"
    ]


def test_paths_mean_the_directory_of_the_start(site: Path) -> None:
    found = http_of(*BASE, "--check-static", "site", "--chdir", "/").static
    assert found is not None
    assert found.checks == (f"{site}/site",)


# Without nodes.


def test_files_need_no_node(site: Path) -> None:
    http = http_of(*FILES_ONLY, "--static-index", "index.html")
    assert http.nodes == ()
    assert http.static == StaticSettings(checks=(f"{site}/site",), index=(b"index.html",))
    assert http_of("--http", ":1", "--static-map", "/a=site").nodes == ()
    assert len(errors_of("--http", ":1", "--static-map", "site")) == 1


def test_fields_need_nodes() -> None:
    words = ("--http", ":1", "--http-sendfile", "--static-safe", "safe")
    assert errors_of(*words) == [
        "command line: http: no node to send requests to;"
        " add http-to = ADDRESS of the application server"
    ]


def test_a_socket_is_a_node_nevertheless() -> None:
    assert len(http_of(*FILES_ONLY, "--socket", ":3031").nodes) == 1


def test_the_fastrouter_has_no_files() -> None:
    made = configured("--fastrouter", ":1", "--fastrouter-to", "a:1", "--check-static", "site",
                      "--static-index", "a", "--offload-threads", "2")  # fmt: skip
    assert made.settings is not None
    assert made.settings.http is None
    assert [str(each) for each in made.problems.warnings] == [
        "ignored, as they belong to the application server: offload-threads",
        "command line: check-static: has no effect without http",
    ]


# What is said of files.


def test_what_is_said_of_files(site: Path) -> None:
    found = static_ini(
        "check-static = site\nstatic-index = index.html\nstatic-index = index.htm\n"
        "static-skip-ext = .php\nstatic-skip-ext = .lua\nstatic-dotfiles = true\n"
        "static-autoindex = on\nstatic-cache-paths = 30\nhonour-range = false\n"
        "offload-thread = 4\ndisable-sendfile = true\nstatic-charset = ISO-8859-1\n"
        "static-gzip-all = true\nstatic-gzip = \\.x$\nstatic-gzip-dir = site/\n"
        "static-gzip-prefix = more\nstatic-gzip-ext = css\nstatic-gzip-suffix = .js\n"
    )
    assert found == StaticSettings(
        checks=(f"{site}/site",),
        index=(b"index.html", b"index.htm"),
        skip_ext=(b".php", b".lua"),
        dotfiles=True,
        autoindex=True,
        cache_paths=30.0,
        ranges=False,
        offload_threads=4,
        sendfile=False,
        charset="ISO-8859-1",
        compressed=Compressed(
            everything=True,
            prefixes=(os.fsencode(f"{site}/site/"), os.fsencode(f"{site}/more")),
            suffixes=(b"css", b".js"),
            regexps=(re.compile(rb"\.x$"),),
        ),
    )
    assert static_ini("check-static = site\nstatic-charset = Off").charset == ""
    assert static_ini("check-static = site\nhonour-range = true").ranges


def test_expires() -> None:
    found = static_ini(
        "check-static = site\n"
        "static-expires-type-mtime = image/svg+xml=60\nstatic-expires-type = text/CSS = 3600\n"
        "static-expires-uri-mtime = \\?v= 1\nstatic-expires-uri = ^/u 2\n"
        "static-expires-path-info-mtime = ^/pm 3\nstatic-expires-path-info = ^/p   4\n"
        "static-expires-mtime = \\.m$ 5\nstatic-expires = é 6\nstatic-expires = \\.b$ 1h\n"
    )
    search = re.compile
    assert found.expires == (
        ExpiresRule("file", search("é".encode()), 6),
        ExpiresRule("file", search(rb"\.b$"), 3600),
        ExpiresRule("file", search(rb"\.m$"), 5, mtime=True),
        ExpiresRule("path-info", search(rb"^/p"), 4),
        ExpiresRule("path-info", search(rb"^/pm"), 3, mtime=True),
        ExpiresRule("uri", search(rb"^/u"), 2),
        ExpiresRule("uri", search(rb"\?v="), 1, mtime=True),
        ExpiresRule("type", search(rb"text/CSS", re.IGNORECASE), 3600),
        ExpiresRule("type", search(rb"image/svg\+xml", re.IGNORECASE), 60, mtime=True),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("static-expires = 60", "is not complete; expected REGEXP SECONDS"),
        ("static-expires = ( 60", "'(' is not a regular expression: missing ), unterminated"),
        ("static-expires = a b 60", "'b 60' is not a number; expected seconds"),
        ("static-expires = a -1", "'-1' is negative; expected seconds"),
        ("static-expires = a 1000000000", "is out of range"),
        ("static-expires-type = text/css 60", "has no '='; expected type=seconds"),
        ("static-expires-type = text=60", "'text' is not a media type; expected e.g. text/css"),
        ("static-gzip = [", "'[' is not a regular expression: unterminated character set"),
        ("static-gzip =", "a regular expression is missing"),
        (f"static-gzip = {'a' * 1001}", "is longer than 1000 characters"),
        ("static-index = a/b", "'a/b' is not the name of a file; expected e.g. index.html"),
        ("static-skip-ext =", "a suffix is missing; expected e.g. .php"),
        ("static-gzip-ext = /x", "'/x' is not the end of a name"),
        ("static-gzip-dir =", "a file name is missing"),
        ("check-static =", "a file name is missing"),
        ("offload-threads = 65", "'65' is out of range; expected 0 to 64"),
        ("static-charset = a b", "'a b' is not a charset; expected e.g. utf-8, or off"),
        ("static-cache-paths = x", "'x' is not a number"),
        ("mimefile = none", "none: No such file or directory"),
        (
            "file-serve-mode = raw",
            "'raw' is not known; expected one of x-sendfile, xsendfile, x-accel-redirect,"
            " xaccelredirect, nginx",
        ),
        (
            "http-sendfile = x-lighttpd-send-file",
            "'x-lighttpd-send-file' is not known; expected true, false, x-sendfile or"
            " x-accel-redirect (others are named with collect-header)",
        ),
    ],
)
def test_what_is_wrong_is_said(line: str, message: str) -> None:
    name = line.partition(" ")[0]
    (error,) = ini_errors(f"check-static = site\n{line}")
    assert error.startswith(f"standard input:3: {name}: ")
    assert message in error


def test_what_python_may_change_some_day_is_no_problem() -> None:
    assert static_values.regexp("[[a]").pattern == b"[[a]"


def test_mime_files(site: Path) -> None:
    (site / "a.types").write_bytes(
        b"# types/comment nope\r\ntext/html\t html HTM # and more\n text/indented nope\n"
        b"text/empty\nnothing nope\n\ntypes {\napplication/x-c  .c html\n\xff/\xff nope\n"
    )
    (site / "b.types").write_bytes(b"text/other html b\nimage/z z")
    found = static_ini("check-static = site\nmimefile = a.types\nmime-file = b.types")
    assert dict(found.mime or ()) == {
        b"html": b"text/html",
        b"htm": b"text/html",
        b"c": b"application/x-c",
        b"b": b"text/other",
        b"z": b"image/z",
    }
    assert static_ini("check-static = site").mime is None
    assert remarks("check-static = site\nmimefile = favicon.ico") == [
        f"mimefile: {site}/favicon.ico holds no types;"
        " expected lines such as: text/html html htm"
    ]
    (site / "big").write_bytes(b"\n" * ((4 << 20) + 1))
    assert "larger than" in ini_errors("check-static = site\nmimefile = big")[0]


def test_a_name_for_a_cache_is_without_effect() -> None:
    assert remarks("check-static = site\nstatic-cache-paths-name = x") == [
        "static-cache-paths-name: without effect: paths are remembered without a cache"
    ]


# Fields of nodes.


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("http-sendfile = true", (X_SENDFILE, X_ACCEL)),
        ("http-sendfile", (X_SENDFILE, X_ACCEL)),
        ("http-sendfile = X-Sendfile", (X_SENDFILE,)),
        ("http-sendfile = x-accel-redirect\nhttp-sendfile = x-sendfile", (X_ACCEL, X_SENDFILE)),
        ("http-sendfile = true\nhttp-sendfile = no\nfile-serve-mode = xsendfile", (X_SENDFILE,)),
        ("fileserve-mode = NGINX", (X_ACCEL,)),
        ("file-serve-mode = nginx\nfile-serve-mode = x-sendfile", (X_SENDFILE,)),
        (RECIPE, (X_SENDFILE,)),
        (f"http-sendfile = true\n{RECIPE}", (X_SENDFILE, X_ACCEL)),
        (
            "pull-header = X-File   the.file\n"
            "response-route-if-not = empty:${the.file}  static:${the.file}",
            (SendfileField(b"x-file"),),
        ),
        (
            RECIPE.replace("X-Sendfile", "X-Accel-Redirect"),
            (SendfileField(b"x-accel-redirect"),),
        ),
    ],
)
def test_fields(text: str, fields: tuple[SendfileField, ...], site: Path) -> None:
    text = f"static-safe = safe\nstatic-accel = /i/=private\n{text}"
    found = static_ini(text)
    assert found.sendfile_fields == fields
    assert found.accel == (StaticMap(b"/i", f"{site}/private"),)
    assert not any("application server" in each for each in remarks(text))


@pytest.mark.parametrize(
    "text",
    [
        "collect-header = X-Sendfile X_SENDFILE",
        "response-route-if-not = empty:${X_SENDFILE} static:${X_SENDFILE}",
        RECIPE.replace("X_SENDFILE\n", "OTHER\n"),
        RECIPE.replace("static:${X_SENDFILE}", "static:${OTHER}"),
        RECIPE.replace("empty:", "equal:"),
        RECIPE.replace("static:", "file:"),
        RECIPE.replace("X-Sendfile", "X(Sendfile"),
        RECIPE.replace("-if-not", "-if"),
        "pull-header =",
    ],
)
def test_other_routes_belong_to_the_application_server(text: str) -> None:
    assert http_ini(text).static is None
    names = [line.split()[0] for line in text.splitlines()]
    (remark,) = remarks(text)
    assert remark.startswith("ignored, as they belong to the application server: ")
    assert set(remark.rpartition(": ")[2].split(", ")) == set(names)


def test_fields_need_directories() -> None:
    safe = "no file may be sent; name the directories that may be sent from with static-safe"
    accel = "no path leads to a file; map it with static-accel /internal=/srv/private"
    for line in (
        "http-sendfile = true", "http-sendfile = x-sendfile", "file-serve-mode = xsendfile",
    ):  # fmt: skip
        assert ini_errors(line) == [f"standard input:2: {line.split()[0]}: {safe}"]
    assert ini_errors(RECIPE) == [f"standard input:2: collect-header: {safe}"]
    for line in ("http-sendfile = x-accel-redirect", "file-serve-mode = nginx"):
        assert ini_errors(f"{line}\nstatic-safe = safe") == [
            f"standard input:2: {line.split()[0]}: {accel}"
        ]
    for line in ("static-safe = safe", "static-accel = /i=private", "static-map = /m=site"):
        assert static_ini(f"http-sendfile = true\n{line}").sendfile_fields == (X_SENDFILE, X_ACCEL)


def test_a_field_with_two_meanings() -> None:
    text = "http-sendfile = true\nstatic-safe = safe\n" + RECIPE.replace(
        "X-Sendfile", "X-Accel-Redirect"
    )
    assert ini_errors(text) == [
        "standard input:4: collect-header: x-accel-redirect names a file here, and a path that"
        " static-accel maps in http-sendfile (standard input:2)"
    ]


# Without effect.


@pytest.mark.parametrize(
    "line",
    [
        "static-index = a", "static-skip-ext = .a", "static-expires = a 1", "static-gzip-all",
        "static-expires-type-mtime = a/b=1", "static-gzip = a", "static-gzip-ext = a",
        "static-dotfiles = true", "static-autoindex = true", "static-charset = off",
        "honour-range", "static-cache-paths = 5", "static-safe = safe", "mimefile = none",
    ],
)  # fmt: skip
def test_options_that_need_files(line: str) -> None:
    name = line.split()[0]
    assert remarks(line) == [
        f"{name}: has no effect without check-static, check-static-docroot, static-map,"
        " static-map2 or http-sendfile"
    ]
    assert http_ini(line).static is None


def test_an_ini_file_that_an_application_shares() -> None:
    assert remarks("offload-threads = 8\ndisable-sendfile = true\nmodule = a") == [
        "ignored, as they belong to the application server:"
        " module, offload-threads, disable-sendfile"
    ]
    assert remarks("offload-threads = 8\ndisable-sendfile = true\ncheck-static = site") == []
    assert remarks("honour-range = false\nstatic-dotfiles = false") == []


def test_options_of_paths_beside_fields() -> None:
    assert remarks("http-sendfile = x-sendfile\nstatic-safe = safe\nstatic-index = a") == [
        "static-index: has no effect without"
        " check-static or check-static-docroot or static-map or static-map2"
    ]
    assert remarks("check-static = site\nstatic-accel = /i=private") == [
        "static-accel: has no effect without http-sendfile"
        " or file-serve-mode = x-accel-redirect"
    ]


# All of them.


def test_show_config_gives_the_same_settings(site: Path) -> None:
    (site / "m.types").write_text("text/x x")
    text = (
        "static-expires-type = a/b=1\nstatic-expires = a%%b$ 2\nstatic-map2 = /b=more\n"
        "static-map = /a=site\ncheck-static = site\ncheck-static-docroot\n"
        "http-var = DOCUMENT_ROOT=private\nhttp-sendfile\nstatic-accel = /i=private\n"
        "pull-header = X-F V\nresponse-route-if-not = empty:${V} static:${V}\n"
        "collect-header = X-G W\nmime-file = m.types\nstatic-charset = off\n"
        "honour-range = false\ndisable-sendfile\noffload-threads = 2\nstatic-gzip-all\n"
        "static-gzip-dir = site\nstatic-gzip-ext = .a\nstatic-gzip = x\nstatic-dotfiles = true\n"
    )
    made = configured(*BASE, "-", stdin=f"[uwsgi]\n{text}".encode())
    assert made.problems.errors == []
    assert made.settings is not None
    shown = show(made, made.settings)
    assert settings_of("-", stdin=shown.encode()) == made.settings
    for words in (BASE, FILES_ONLY):
        plain = configured(*words)
        assert plain.settings is not None
        again = configured("-", stdin=show(plain, plain.settings).encode())
        assert again.settings == plain.settings
        assert not [each for each in again.problems.warnings if "static" in str(each)]


def test_every_option_of_static_files_is_known_once() -> None:
    known = {name for row in in_topic("static") for name in (row.name, *row.aliases)}
    others = {row.name for state in State for row in foreign(state)}
    assert not known & others
    assert not [name for name in others if name.startswith(("static-", "check-static"))]
    row = find("response-route-if")
    assert row is not None
    assert row.state is State.SERVER


_PARSERS: list[Callable[[str], object]] = [row.parse for row in in_topic("static")]


@given(
    st.text(max_size=30)
    | st.text(alphabet="/=ab. %[]()*+?{}1-9\\\x00\udcff\ud800", max_size=30)
    | st.builds("/{}={}".format, st.text(max_size=8), st.text(max_size=8))
    | st.builds("{} {}".format, st.text(max_size=8), st.integers())
)
def test_parsers_raise_nothing_but_value_errors(text: str) -> None:
    raised: list[ValueError] = []
    for parse in (*_PARSERS, static_values.collected, static_values.routed):
        try:
            parse(text)
        except ValueError as error:
            raised.append(error)
    assert {type(error) for error in raised} <= {ValueError}
    assert all(map(str, raised))


@given(st.binary(max_size=200))
def test_any_mime_file(data: bytes) -> None:
    for extension, kind in static_values.mime_types(data).items():
        assert extension == extension.lower()
        assert b"/" in kind
