"""The command line, cut up as GNU ``getopt_long`` does it, and the environment.

Long names may be shortened while they stay unambiguous; ``--opt=value`` and ``--opt value`` are the
same for options that need a value; optional values are only taken from ``--opt=value``; one-letter
options can be joined (``-ML``, ``-l100``); ``--`` ends the options; other words are configuration
files. Real uWSGI reads the files after all options, so that a file's scalar wins (kept here).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from uwgate.config import options
from uwgate.config.model import Item, Option, Problems, State

ORIGIN = "command line"
# uWSGI's own messages from one process to the next (uWSGI core/config.c).
_RESERVED = (
    "RELOADS", "VASSALS_DIR", "EMPEROR_FD", "BROODLORD_NUM", "EMPEROR_FD_CONFIG", "EMPEROR_PROXY",
    "JAIL_PID", "ORIGINAL_PROC_NAME",
    # And ours.
    "ANCHOR", "BESIDE", "CONTROL", "GUARDIAN", "HANDOVER",
)  # fmt: skip


@dataclass(slots=True)
class CommandLine:
    """``items`` in order; ``words`` are the arguments that are not options (files, or topics)."""

    items: list[Item] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Whether the option with this canonical name was given."""
        return any(item.key == name for item in self.items)


class _Cutter:
    def __init__(self, argv: list[str], problems: Problems) -> None:
        self._rest = argv[::-1]
        self._problems = problems
        self.result = CommandLine()

    def run(self) -> CommandLine:
        while self._rest:
            word = self._rest.pop()
            if word == "--":
                self.result.words += self._rest[::-1]
                break
            if word.startswith("--"):
                self._long(word[2:])
            elif word.startswith("-") and word != "-":
                self._letters(word[1:])
            else:
                self.result.words.append(word)
        return self.result

    def _error(self, name: str, message: str) -> None:
        self._problems.error(ORIGIN, name, message)

    def _long(self, text: str) -> None:
        name, equals, value = text.partition("=")
        row = self._row(name)
        if row is None:
            return
        if equals:
            self._add(row, name, value)
        elif row.kind.argument == "required":
            self._add_next(row, name, f"--{name}")
        else:
            self._add(row, name, None)

    def _row(self, name: str) -> Option | None:
        row = options.find(name)
        if row is not None:
            return row
        candidates = options.find_prefix(name) if name else []
        if len(candidates) == 1:
            return options.find(candidates[0])
        if candidates:
            shown = ", ".join(f"--{other}" for other in candidates[:4])
            self._error(f"--{name}", f"could be one of {len(candidates)} options: {shown}…")
            return None
        near = options.nearest(name)
        hint = f"; did you mean --{near}?" if near else ""
        self._error(f"--{name}", f"unknown option{hint}")
        return None

    def _letters(self, letters: str) -> None:
        while letters:
            letter, letters = letters[0], letters[1:]
            row = options.find_short(letter)
            if row is None:
                self._error(f"-{letter}", "unknown option; see --help")
                return
            if row.kind.argument == "none":
                self._add(row, row.name, None)
                continue
            if letters:
                self._add(row, row.name, letters)
            elif row.kind.argument == "required":
                self._add_next(row, row.name, f"-{letter}")
            else:
                self._add(row, row.name, None)
            return

    def _add_next(self, row: Option, name: str, shown: str) -> None:
        if not self._rest:
            self._error(shown, f"needs a value ({row.unit})" if row.unit else "needs a value")
            return
        self._add(row, name, self._rest.pop())

    def _add(self, row: Option, name: str, value: str | None) -> None:
        key = name if options.find(name) is not None else row.name
        if row.state is State.COMMAND_LINE:  # nobody refers to it by the name that was written
            key = row.name
        self.result.items.append(Item(key, value or "", ORIGIN, "command line"))


def parse_argv(argv: list[str], problems: Problems) -> CommandLine:
    """Cut the words after the program's name. Unknown and ambiguous options become errors."""
    return _Cutter(argv, problems).run()


def parse_environment(environ: Mapping[str, str]) -> list[Item]:
    """``UWSGI_FOO_BAR=v``, then ``UWGATE_FOO_BAR=v`` -> ``foo-bar = v``."""
    items = []
    for prefix in ("UWSGI_", "UWGATE_"):
        for variable, value in environ.items():
            name = variable[len(prefix) :]
            if not variable.startswith(prefix) or not name or name in _RESERVED:
                continue
            key = name.lower().replace("_", "-")
            items.append(Item(key, value, f"environment {variable}", "environment"))
    return items
