"""``if-*`` and ``for-*``: what happens to the options between an opener and its end.

uWSGI repeats each option for every word before it goes on to the next option (not the whole block
for each word), replaces ``%(_)`` in values, and knows no nesting. An opener is turned into a
``Block``: a function from an item to the items that take its place.
"""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace

from uwgate.config.model import Item
from uwgate.config.placeholders import PlaceholderError, read_text

Block = Callable[[Item], list[Item]]
_COUNT = re.compile(r"[0-9]{1,6}")
_PLUGINS = ("http", "corerouter")  # what this router can do, in the names of uWSGI's plugins


def _fill(item: Item, value: str) -> Item:
    return replace(item, value=item.value.replace("%(_)", value))


def _repeat(values: list[str]) -> Block:
    return lambda item: [_fill(item, value) for value in values]


def _words(name: str, argument: str) -> list[str]:
    if name == "for":
        return argument.split()
    if name == "for-glob":
        return sorted(glob.glob(argument))
    if name == "for-times":
        if not _COUNT.fullmatch(argument):
            raise ValueError(f"{argument!r} is not a number; expected how many times")
        return [str(number) for number in range(1, int(argument) + 1)]
    try:
        return read_text(argument).splitlines()
    except PlaceholderError as error:
        raise ValueError(str(error)) from None


def _pair(argument: str) -> tuple[str, str | None]:
    name, equals, value = argument.partition("=")
    return name.strip(), value.strip() if equals else None


def _matches_host(argument: str) -> bool:
    try:
        return re.search(argument, socket.gethostname()) is not None
    except re.error as error:
        raise ValueError(f"{argument!r} is not a regular expression: {error}") from None


class Conditions:
    """Evaluates ``if-*``; ``values_of`` gives the values that an option has been given so far."""

    def __init__(
        self, environ: Mapping[str, str], values_of: Callable[[str], list[str]]
    ) -> None:
        self._environ = environ
        self._values_of = values_of

    def holds(self, subject: str, argument: str) -> tuple[bool, str]:
        """``(true or false, what %(_) stands for)`` for ``if-<subject> = argument``."""
        name, wanted = _pair(argument)
        if subject == "env":
            value = self._environ.get(name)
            return value is not None and wanted in (None, value), value or ""
        if subject == "opt":
            values = self._values_of(name)
            return bool(values) if wanted is None else wanted in values, argument
        simple: dict[str, Callable[[], bool]] = {
            "exists": lambda: os.path.exists(argument),
            "file": lambda: os.path.isfile(argument),
            "dir": lambda: os.path.isdir(argument),
            "plugin": lambda: argument in _PLUGINS,
            "hostname": lambda: argument == socket.gethostname(),
            "hostname-match": lambda: _matches_host(argument),
            "reload": lambda: "UWSGI_RELOADS" in self._environ,
        }
        return simple[subject](), argument


def open_block(name: str, argument: str, conditions: Conditions) -> Block:
    """The block that an opener (canonical name) starts. Raises ValueError."""
    if name.startswith("for"):
        return _repeat(_words(name, argument))
    negative = name.startswith("if-not-")
    subject = name.removeprefix("if-not-" if negative else "if-")
    true, value = conditions.holds(subject, argument)
    return _repeat([value] if true != negative else [])


def is_opener(name: str) -> bool:
    """Whether a canonical option name starts a block."""
    return name.startswith(("if-", "for-")) or name == "for"


def is_end(name: str) -> bool:
    """Whether a canonical option name ends a block (either end ends either kind)."""
    return name in ("end-if", "end-for")
