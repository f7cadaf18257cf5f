"""The command line as getopt cuts it, and the environment."""

from __future__ import annotations

import pytest
from config_tools import errors_of, http_of, settings_of

from uwgate.config.argv import parse_argv, parse_environment
from uwgate.config.model import Problems


def cut(*words: str) -> tuple[list[tuple[str, str]], list[str]]:
    problems = Problems()
    command = parse_argv(list(words), problems)
    assert problems.errors == []
    return [(item.key, item.value) for item in command.items], command.words


def complaints(*words: str) -> list[str]:
    problems = Problems()
    parse_argv(list(words), problems)
    return [str(each) for each in problems.errors]


@pytest.mark.parametrize(
    ("words", "items", "rest"),
    [
        (["--http", ":1"], [("http", ":1")], []),
        (["--http=:1"], [("http", ":1")], []),
        (["--http", "--master"], [("http", "--master")], []),
        (["--master", "x.ini"], [("master", "")], ["x.ini"]),
        (["--master=false"], [("master", "false")], []),
        (["x.ini", "--http", ":1", "y.ini"], [("http", ":1")], ["x.ini", "y.ini"]),
        (["--http-keepalive", "60"], [("http-keepalive", "")], ["60"]),
        (["--http-keepalive=60"], [("http-keepalive", "60")], []),
        (["--http-quiet", "1"], [("http-quiet", "1")], []),
        (["--httprouter", ":1"], [("httprouter", ":1")], []),
        (["--http-headers", "3"], [("http-headers-timeout", "3")], []),
        (["--", "--http"], [], ["--http"]),
        (["-"], [], ["-"]),
        (["-l", "100"], [("listen", "100")], []),
        (["-l100", "-ML"], [("listen", "100"), ("master", ""), ("disable-logging", "")], []),
        (["-C"], [("chmod-socket", "")], []),
        (["-C660"], [("chmod-socket", "660")], []),
        (["-MC660"], [("master", ""), ("chmod-socket", "660")], []),
        (["-p", "4"], [("processes", "4")], []),
        (["--processes", "4"], [("processes", "4")], []),
        (["--module", "a:b", "--enable-threads", "x.ini"],
         [("module", "a:b"), ("enable-threads", "")], ["x.ini"]),
        (["--error-page-502", "x.html"], [("error-page-502", "x.html")], []),
        (["--usage"], [("help", "")], []),
        (["-h", "http"], [("help", "")], ["http"]),
    ],
)  # fmt: skip
def test_cut(words: list[str], items: list[tuple[str, str]], rest: list[str]) -> None:
    assert cut(*words) == (items, rest)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--http-timout", "3"], "command line: --http-timout: unknown option; did you mean"),
        (["--xyzzy"], "command line: --xyzzy: unknown option"),
        (["--http-ma"], "--http-ma: could be one of"),
        (["--=x"], "--: unknown option"),
        (["-Y"], "-Y: unknown option"),
        (["--http"], "--http: needs a value (address)"),
        (["--module"], "--module: needs a value"),
        (["-l"], "-l: needs a value"),
        (["--error-page-999", "x"], "did you mean --error-page-NNN"),
        (["--error-page-NNN", "x"], "unknown option"),
    ],
)
def test_wrong(words: list[str], complaint: str) -> None:
    found = complaints(*words)
    assert len(found) == 1
    assert complaint in found[0]


def test_optional_value_as_a_word_is_explained() -> None:
    found = errors_of("--http", ":1", "--http-to", "a:1", "--http-keepalive", "60")
    assert found == [
        "command line: 60: is not a file; an optional value is written --option=VALUE"
    ]


def test_environment() -> None:
    items = parse_environment(
        {
            "UWGATE_HTTP_TO": "b:1",
            "UWSGI_HTTP_TO": "a:1",
            "UWSGI_RELOADS": "1",
            "UWSGI_": "x",
            "HOME": "/",
        }
    )
    assert [(item.key, item.value, item.origin) for item in items] == [
        ("http-to", "a:1", "environment UWSGI_HTTP_TO"),
        ("http-to", "b:1", "environment UWGATE_HTTP_TO"),
    ]


def test_environment_comes_first() -> None:
    environ = {"UWSGI_HTTP": ":1", "UWSGI_HTTP_TO": "a:1", "UWSGI_HTTP_TIMEOUT": "7"}
    assert http_of(environ=environ).timeout == 7
    http = http_of("--http-to", "b:1", "--http-timeout", "8", environ=environ)
    assert http.timeout == 8
    assert [node.endpoint.text for node in http.nodes] == ["a:1", "b:1"]


def test_short_forms_reach_the_settings() -> None:
    settings = settings_of("-l77", "-MC660", "--http", ":1", "--http-to", "a:1")
    assert settings.process.listen == 77
    assert settings.process.chmod_socket == 0o660
