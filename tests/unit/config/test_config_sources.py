"""Files and their order, includes, immediate options, if and for."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from config_tools import (
    BASE,
    configured,
    errors_of,
    http_ini,
    http_of,
    ini_errors,
    values_in,
    warnings_of,
)

from uwgate.config import sources

INI = "[uwsgi]\nhttp = :1\nhttp-to = a:1\nhttp-to = b:1\nhttp-timeout = 7\n"
YAML = "uwsgi:\n  http: :1\n  http-to:\n    - a:1\n    - b:1\n  http-timeout: 7\n"
JSON = json.dumps({"uwsgi": {"http": ":1", "http-to": ["a:1", "b:1"], "http-timeout": 7}})
XML = (
    "<uwsgi><http>:1</http><http-to>a:1</http-to><http-to>b:1</http-to>"
    "<http-timeout>7</http-timeout></uwsgi>"
)


@pytest.mark.parametrize(
    ("ending", "option", "text"),
    [
        ("ini", "--ini", INI),
        ("yaml", "--yaml", YAML),
        ("yml", "-y", YAML),
        ("json", "--json", JSON),
        ("js", "-j", JSON),
        ("xml", "--xml", XML),
        ("INI", "-S http-quiet=0 --ini", INI),
        ("xml", "-x", XML),
    ],
)
def test_every_form(ending: str, option: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"router.{ending}"
    path.write_text(text)
    plain = tmp_path / "router"
    plain.write_text(text)
    http = http_of(str(path))
    assert http.timeout == 7
    assert [node.endpoint.text for node in http.nodes] == ["a:1", "b:1"]
    assert http_of(*option.split(), str(plain)) == http
    assert http_of(*option.split(), "-", stdin=text.encode()) == http


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_bytes(b"\xef\xbb\xbf" + INI.replace("\n", "\r\n").encode())
    assert http_of(str(path)).timeout == 7


def test_bytes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_bytes(INI.encode() + b"http-var = A=\xff\xc3\xa9\n")
    assert http_of(str(path)).variables == ((b"A", b"\xff\xc3\xa9"),)


def test_sections(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_text(INI + "[one]\nhttp-timeout = 1\n[two]\nhttp-timeout = 2\nx = %x\n")
    assert http_of(str(path)).timeout == 7
    assert http_of(*BASE, f"{path}:one").timeout == 1
    assert http_of(*BASE, f"{path}:one", ":two").timeout == 2
    assert http_of(*BASE, "--ini", f"{path}:two").timeout == 2
    made = configured(*BASE, f"{path}:two")
    assert [item.value for item in made.items if item.key == "x"] == ["two"]
    assert warnings_of(*BASE, f"{path}:three") == [
        f"{path}: there is no section 'three' in this file"
    ]


def test_a_colon_may_be_part_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a:b.ini"
    path.write_text(INI)
    assert http_of(str(path)).timeout == 7


def test_section_of_our_own() -> None:
    text = "[uwsgi]\nhttp-timeout = 1\n[uwgate]\nhttp-timeout = 2\n"
    assert http_of(*BASE, "-", stdin=text.encode()).timeout == 2


def test_files_come_after_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_text("[uwsgi]\nhttp-timeout = 5\n")
    assert http_of(*BASE, str(path), "--http-timeout", "6").timeout == 5  # as in uWSGI
    assert http_of(*BASE, "--ini", str(path), "--http-timeout", "6").timeout == 6


def test_origins(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_text("[uwsgi]\n\nhttp-timeout = x\nset = http-gracetime=y\n")
    assert errors_of(*BASE, str(path)) == [
        f"{path}:3: http-timeout: 'x' is not a number;"
        " expected seconds, or a number with ms, s, m or h",
        f"{path}:4: http-gracetime: 'y' is not a number;"
        " expected seconds, or a number with ms, s, m or h",
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["/no/such.ini"], "/no/such.ini: cannot be read: No such file or directory"),
        (["router.toml"], "router.toml: is no configuration file"),
        (["http://host/x.ini"], "http://host/x.ini: configuration from an address"),
        (["--ini", "exec://id"], "configuration from an address"),
        (["/"], "/: is no configuration file"),
        (["--ini", "/"], "/: cannot be read: Is a directory"),
        (["--include", "x"], "x: is no configuration file"),
    ],
)
def test_unreadable(words: list[str], complaint: str) -> None:
    found = errors_of(*BASE, *words)
    assert len(found) == 1
    assert complaint in found[0]


def test_files_that_are_no_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ini"
    path.write_bytes(b"[uwsgi]\nx = \0\n")
    assert "NUL bytes" in errors_of(*BASE, str(path))[0]
    monkeypatch.setattr(sources, "_MAX_FILE", 5)
    assert "larger than 5 bytes" in errors_of(*BASE, str(path))[0]


def test_syntax_errors_have_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"uwsgi":\n{"a" 1}}')
    assert errors_of(*BASE, str(path))[0].startswith(f"{path}:2: not valid JSON")
    path.write_text('{"uwsgi": {"a": NaN}}')
    assert errors_of(*BASE, str(path))[0].startswith(f"{path}: not valid JSON")


def test_words_in_brackets_are_skipped() -> None:
    assert http_of(*BASE, "[uwgate-title]").timeout == 60


def test_include_and_inherit(tmp_path: Path) -> None:
    inner = tmp_path / "inner.yaml"
    late = tmp_path / "late.ini"
    inner.write_text("uwsgi:\n  http-timeout: 2\n  http-gracetime: 3\n")
    late.write_text("[uwsgi]\nhttp-gracetime = 9\n")
    http = http_ini(
        f"http-timeout = 1\ninherit = {late}\ninclude = {inner}\nhttp-gracetime = 4\n"
    )
    assert http.timeout == 2
    assert http.gracetime == 9


def test_include_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_text(f"[uwsgi]\ninclude = {path}\n")
    assert errors_of(*BASE, str(path)) == [
        f"{path}:2: {path}: is included from within itself"
    ]


def test_set() -> None:
    http = http_ini("set = http-timeout=5\nset = my=9\nset-ph = other=1\nhttp-gracetime = %(my)\n")
    assert http.timeout == 5
    assert http.gracetime == 9
    assert http_of(*BASE, "-S", "http-timeout=6").timeout == 6


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("set = x", "set: 'x': expected KEY=VALUE"),
        ("set = =x", "set: '=x': expected KEY=VALUE"),
        ("set-ph = http=:1", "set-ph: http is an option; use set for it"),
    ],
)
def test_set_refused(text: str, complaint: str) -> None:
    assert ini_errors(text) == [f"standard input:2: {complaint}"]


def test_strict() -> None:
    text = "ip = 1\nhttp-var = A=%(ip)\nhttp-timout = 3\nset-placeholder = ok=1\n"
    assert ini_errors("strict = true\n" + text) == [
        "standard input:3: ip: unknown option (strict); placeholders are made with set-placeholder",
        "standard input:5: http-timout: unknown option (strict); did you mean http-timeout?",
    ]
    assert len(errors_of(*BASE, "-", "--strict", stdin=f"[uwsgi]\n{text}".encode())) == 2
    assert http_ini("strict = false\n" + text).timeout == 60


def test_print() -> None:
    assert configured(*BASE, "--print", "hello").printed == ["hello"]


def test_for_repeats_each_option_before_the_next() -> None:
    http = http_ini(
        "for = a b\nhttp-to = %(_):1\nhttp-var = K=%(_)\nendfor =\nhttp-gracetime = 1\n"
    )
    assert [node.endpoint.text for node in http.nodes[1:]] == ["a:1", "b:1"]
    assert [value for _, value in http.variables] == [b"a", b"b"]


def test_for_times_glob_and_lines(tmp_path: Path) -> None:
    for name in ("b.conf", "a.conf"):
        (tmp_path / name).write_text("one\ntwo\n")
    assert values_in("for-times = 3\nx = %(_)\nend-for = x\ny = %(_)", "x") == ["1", "2", "3"]
    assert values_in(f"for-glob = {tmp_path}/*.conf\nx = %(_)\nendif", "x") == [
        f"{tmp_path}/a.conf",
        f"{tmp_path}/b.conf",
    ]
    assert values_in(f"for-readline = {tmp_path}/a.conf\nx = %(_)\nend", "x") == ["one", "two"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("if-env = HOME", ["v/root"]),
        ("ifenv = HOME=/root", ["v/root"]),
        ("if-env = HOME=/other", []),
        ("if-env = NOPE", []),
        ("if-not-env = NOPE", ["v"]),
        ("if-exists = /dev", ["v/dev"]),
        ("if-not-exists = /dev", []),
        ("if-file = /dev", []),
        ("if-file = /etc/passwd", ["v/etc/passwd"]),
        ("if-directory = /dev", ["v/dev"]),
        ("if-not-dir = /dev", []),
        ("if-plugin = http", ["vhttp"]),
        ("ifplugin = python", []),
        ("if-reload = true", []),
        ("if-not-reload =", ["v"]),
        (f"if-hostname = {socket.gethostname()}", [f"v{socket.gethostname()}"]),
        ("if-hostname-match = .", ["v."]),
        ("if-not-hostname-match = ^$", ["v^$"]),
        ("if-opt = seen", ["vseen"]),
        ("if-opt = seen=1", ["vseen=1"]),
        ("if-opt = seen=2", []),
        ("if-not-opt = later", ["vlater"]),
        ("if-opt = httprouter=:8080", ["vhttprouter=:8080"]),
    ],
)
def test_if(condition: str, expected: list[str]) -> None:
    text = f"seen = 1\n{condition}\nx = v%(_)\nendif =\nlater = 1\n"
    assert values_in(text, "x", environ={"HOME": "/root"}) == expected


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("if-env = A\nif-env = B\nend", 3, "if-env: if and for cannot be nested"),
        ("for = a\nif-env = B\nend", 3, "if-env: if and for cannot be nested"),
        ("for-times = x\ny = 1\nend", 2, "for-times: 'x' is not a number"),
        ("for-readline = /no/such\nend", 2, "for-readline: @(/no/such): No such file"),
        ("if-hostname-match = (\nend", 2, "if-hostname-match: '(' is not a regular expression"),
        ("if-env = A\nx = 1", 2, "if/for: has no end-if or end-for"),
    ],
)
def test_logic_refused(text: str, line: int, complaint: str) -> None:
    found = ini_errors(text)
    assert len(found) == 1
    assert found[0].startswith(f"standard input:{line}: {complaint}")


def test_logic_on_the_command_line() -> None:
    words = ("--for", "a b", "--http-to", "%(_):1", "--endfor")
    http = http_of("--http", ":1", *words)
    assert [node.endpoint.text for node in http.nodes] == ["a:1", "b:1"]
    assert errors_of(*BASE, "--if-env", "A") == [
        "command line: if/for: has no end-if or end-for"
    ]


def test_a_block_lets_includes_through(tmp_path: Path) -> None:
    inner = tmp_path / "inner.ini"
    inner.write_text("[uwsgi]\nhttp-var = K=%(_)\n")
    http = http_ini(f"for = a b\ninclude = {inner}\nend =\n")
    assert {value for _, value in http.variables} == {b"a", b"b"}


def test_stdin_is_read_once() -> None:
    made = configured(*BASE, "-", "-", stdin=b"[uwsgi]\nhttp-var = A=1\n")
    assert made.settings is not None
    assert made.settings.http is not None
    assert len(made.settings.http.variables) == 1
