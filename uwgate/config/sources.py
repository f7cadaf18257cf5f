"""Every source, in uWSGI's order, gathered into one list of items.

Environment, then the options of the command line, then the files named there, then what was asked
to be inherited. Some options act while the list is made (``include``, ``set``, ``strict``, logic):
they see values before placeholders are replaced, as in uWSGI.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import BinaryIO

from uwgate import __version__
from uwgate.config import logic, options, values
from uwgate.config.argv import CommandLine, parse_environment
from uwgate.config.formats import EXTENSIONS, PARSERS, FormatError
from uwgate.config.model import Item, Option, Problems, State
from uwgate.config.placeholders import (
    Magic,
    PlaceholderError,
    names_in,
    replace_environment,
    replace_files,
    replace_names,
)

_MAX_FILE = 16 << 20
_MAX_DEPTH = 16
_SECTIONS = ("uwsgi", "uwgate")
_SCHEME = re.compile(r"[a-zA-Z]+://")
_FILE_OPTIONS = ("ini", "yaml", "json", "xml", "include", "inherit")


class Gatherer:
    """Collects ``items``; what goes wrong is put into ``problems``.

    ``strict`` tells whether unknown names are errors, ``placeholders`` the names that ``set-ph``
    made, ``printed`` the texts of ``print`` options.
    """

    def __init__(
        self, environ: Mapping[str, str], stdin: BinaryIO, program: str, problems: Problems
    ) -> None:
        self.items: list[Item] = []
        self.strict = False
        self.placeholders: set[str] = set()
        self.printed: list[str] = []
        self._environ = environ
        self._stdin = stdin
        self._problems = problems
        self._magic = Magic(__version__, program)
        self._conditions = logic.Conditions(environ, self._values_of)
        self._block: logic.Block | None = None
        self._block_origin = ""
        self._reading: list[str] = []
        self._inherited: list[tuple[str, str]] = []
        self._last_ini = ""

    def gather(self, command: CommandLine) -> list[Item]:
        """Read everything and replace placeholders."""
        for item in parse_environment(self._environ):
            self._add(item)
        self._end_of_source()
        for item in command.items:
            self._add(item)
        self._end_of_source()
        for word in command.words:
            if not word.startswith("["):  # uWSGI leaves room there for its process title
                self._load(word, "", "command line")
        while self._inherited:
            reference, origin = self._inherited.pop(0)
            self._load(reference, "", origin)
        return self._expand()

    def _values_of(self, name: str) -> list[str]:
        row = options.find(name)
        names = {name} if row is None else {row.name, *row.aliases}
        return [item.value for item in self.items if item.key in names]

    # Items and the options that act at once.

    def _add(self, item: Item) -> None:
        row = options.find(item.key)
        name = row.name if row else ""
        if logic.is_end(name):
            self._block = None
        elif self._block is not None:
            if logic.is_opener(name):
                self._problems.error(item.origin, item.key, "if and for cannot be nested")
                return
            for each in self._block(item):
                self._take(each, row)
        elif logic.is_opener(name):
            self._open(name, item)
        else:
            self._take(item, row)

    def _open(self, name: str, item: Item) -> None:
        try:
            self._block = logic.open_block(name, item.value, self._conditions)
        except ValueError as error:
            self._problems.error(item.origin, item.key, str(error))
            self._block = lambda item: []
        self._block_origin = item.origin

    def _end_of_source(self) -> None:
        if self._block is not None:
            self._problems.error(self._block_origin, "if/for", "has no end-if or end-for")
            self._block = None

    def _take(self, item: Item, row: Option | None) -> None:
        if row is None or row.state is not State.CONFIG:
            self.items.append(item)
        elif row.name in _FILE_OPTIONS:
            self._file_option(row.name, item)
        elif row.name == "strict":
            self.strict = values.boolean(item.value)
        elif row.name == "print":
            self.printed.append(item.value)
        else:
            self._set(row.name, item)

    def _set(self, name: str, item: Item) -> None:
        key, equals, value = item.value.partition("=")
        key = key.strip()
        if not equals or not key:
            self._problems.error(item.origin, item.key, f"{item.value!r}: expected KEY=VALUE")
        elif name == "set":
            self._add(Item(key, value, item.origin, "set"))
        elif options.find(key) is not None:
            self._problems.error(item.origin, item.key, f"{key} is an option; use set for it")
        else:
            self.placeholders.add(key)
            self.items.append(Item(key, value, item.origin, "set"))

    def _file_option(self, name: str, item: Item) -> None:
        if name == "inherit":
            self._inherited.append((item.value, item.origin))
        else:
            self._load(item.value, "" if name == "include" else name, item.origin)

    # Files.

    def _load(self, reference: str, kind: str, origin: str) -> None:
        if _SCHEME.match(reference):
            message = "configuration from an address is not supported; expected a file"
            self._problems.error(origin, reference, message)
            return
        path, section = self._split(reference)
        kind = kind or ("ini" if path == "-" else EXTENSIONS.get(_extension(path), ""))
        if not kind:
            self._problems.error(origin, reference, _unloadable(path))
            return
        if path in self._reading or len(self._reading) >= _MAX_DEPTH:
            self._problems.error(origin, reference, "is included from within itself")
            return
        try:
            data = self._read(path)
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._problems.error(origin, reference, f"cannot be read: {why}")
            return
        if kind == "ini":
            self._last_ini = path
        letters = self._magic.save()
        self._magic.enter(path, None if path == "-" else path, section)
        self._reading.append(path)
        self._parse(path, section, kind, data)
        self._reading.pop()
        if self._reading:
            self._magic.restore(letters)

    def _split(self, reference: str) -> tuple[str, str]:
        """``file.ini:section`` -> both; ``:section`` is in the INI file read last."""
        path, colon, section = reference.rpartition(":")
        if not colon or os.path.exists(reference):
            return reference, ""
        return path or self._last_ini, section

    def _read(self, path: str) -> str:
        if path == "-":
            data = self._stdin.read(_MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise ValueError(f"larger than {_MAX_FILE} bytes")
        if b"\0" in data:
            raise ValueError("it holds NUL bytes, so it is not a text")
        return data.decode("utf-8", "surrogateescape")

    def _parse(self, path: str, section: str, kind: str, data: str) -> None:
        name = "standard input" if path == "-" else path
        text = self._magic.replace(data.removeprefix("\ufeff"))
        sections = (section,) if section else _SECTIONS
        try:
            entries, found = PARSERS[kind](text, sections)
        except FormatError as error:
            origin = f"{name}:{error.line}" if error.line else name
            self._problems.error(origin, "", str(error))
            return
        if not found:
            message = f"there is no section {sections[0]!r} in this file"
            self._problems.warn(name, "", message)
        for entry in entries:
            self._add(Item(entry.key, entry.value, f"{name}:{entry.line}", "file"))
        if len(self._reading) == 1:
            self._end_of_source()

    # Placeholders.

    def _expand(self) -> list[Item]:
        expander = _Expander(self.items, self._environ, self._problems)
        return [expander.expand(index) for index in range(len(self.items))]


class _Expander:
    """Replaces placeholders of every item; a value that another one needs is replaced first."""

    def __init__(
        self, items: list[Item], environ: Mapping[str, str], problems: Problems
    ) -> None:
        self._items = items
        self._environ = environ
        self._problems = problems
        self._done: dict[int, str] = {}
        self._open: list[int] = []
        self._first: dict[str, int] = {}
        for index, item in enumerate(items):
            self._first.setdefault(item.key, index)

    def expand(self, index: int) -> Item:
        item = self._items[index]
        value = self._value(index)
        return Item(item.key, value, item.origin, item.source)

    def _value(self, index: int) -> str:
        if index in self._done:
            return self._done[index]
        item = self._items[index]
        self._open.append(index)
        text = replace_environment(item.value, self._environ)
        try:
            text = replace_names(replace_files(text), self._look_up)
        except PlaceholderError as error:
            self._problems.error(item.origin, item.key, str(error))
        self._open.pop()
        self._done[index] = text
        return text

    def _look_up(self, name: str) -> str | None:
        index = self._first.get(name)
        if index is None:
            return None
        if index in self._open:
            raise PlaceholderError("refers to itself")
        return self._value(index)


def referenced(items: list[Item]) -> set[str]:
    """Names that some value refers to with ``%(…)``, before replacement."""
    return set().union(*(names_in(item.value) for item in items))


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _unloadable(path: str) -> str:
    if re.fullmatch(r"[0-9]+", path):
        return "is not a file; an optional value is written --option=VALUE"
    return "is no configuration file; expected a name that ends in .ini, .yaml, .json or .xml"
