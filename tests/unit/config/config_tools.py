"""Short ways to a configuration, for the tests of this room."""

from __future__ import annotations

import io

from uwgate.config.argv import parse_argv
from uwgate.config.build import Configuration, configure
from uwgate.config.model import Problems
from uwgate.config.settings import HttpSettings, Settings

BASE = ("--http", ":8080", "--http-to", "127.0.0.1:3031")


def configured(
    *words: str, environ: dict[str, str] | None = None, stdin: bytes = b""
) -> Configuration:
    """The configuration of a command line."""
    problems = Problems()
    command = parse_argv(list(words), problems)
    return configure(command, environ or {}, io.BytesIO(stdin), "/usr/bin/uwgate", problems)


def settings_of(
    *words: str, environ: dict[str, str] | None = None, stdin: bytes = b""
) -> Settings:
    """The settings of a command line that has to be without errors."""
    made = configured(*words, environ=environ, stdin=stdin)
    assert made.problems.errors == []
    assert made.settings is not None
    return made.settings


def http_of(*words: str, environ: dict[str, str] | None = None, stdin: bytes = b"") -> HttpSettings:
    """The router's settings of a command line that has to be without errors."""
    http = settings_of(*words, environ=environ, stdin=stdin).http
    assert http is not None
    return http


def http_ini(text: str, *words: str, environ: dict[str, str] | None = None) -> HttpSettings:
    """The router's settings of ``BASE`` plus an INI text without its section line."""
    return http_of(*BASE, *words, "-", environ=environ, stdin=f"[uwsgi]\n{text}".encode())


def values_in(
    text: str, key: str, *words: str, environ: dict[str, str] | None = None
) -> list[str]:
    """The values of a key in an INI text, after placeholders."""
    made = configured(
        *BASE, *words, "-", environ=environ, stdin=f"[uwsgi]\n{text}".encode()
    )
    assert made.problems.errors == []
    return [item.value for item in made.items if item.key == key]


def errors_of(
    *words: str, environ: dict[str, str] | None = None, stdin: bytes = b""
) -> list[str]:
    """The error lines of a command line that has to be wrong."""
    made = configured(*words, environ=environ, stdin=stdin)
    assert made.settings is None
    assert made.problems.errors
    return [str(each) for each in made.problems.errors]


def ini_errors(text: str) -> list[str]:
    """The error lines of ``BASE`` plus an INI text without its section line."""
    return errors_of(*BASE, "-", stdin=f"[uwsgi]\n{text}".encode())


def warnings_of(
    *words: str, environ: dict[str, str] | None = None, stdin: bytes = b""
) -> list[str]:
    """The warning lines of a command line."""
    made = configured(*words, environ=environ, stdin=stdin)
    return [str(each) for each in made.problems.warnings]
