"""The shapes that the configuration code passes around: option rows, items, problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from uwgate.config.masking import masked


class Kind(Enum):
    """How an option takes its value, on the command line and in files (uWSGI's conventions).

    ``argument`` is what the command line does: ``"none"`` (``--opt``; ``--opt=value`` is accepted
    too), ``"optional"`` (``--opt`` or ``--opt=value``, never the next word), ``"required"``
    (``--opt value`` or ``--opt=value``). ``letter`` is the mark in the tables of the documentation.
    """

    FLAG = ("F", "none")
    BOOL = ("B", "required")
    INT = ("I", "required")
    OPTIONAL_INT = ("I?", "optional")
    STRING = ("S", "required")
    OPTIONAL_STRING = ("S?", "optional")
    LIST = ("L", "required")
    ADDRESS = ("A", "required")

    def __init__(self, letter: str, argument: Literal["none", "optional", "required"]) -> None:
        self.letter = letter
        self.argument = argument


class State(Enum):
    """What this version does with an option."""

    ACTIVE = "used"
    NOTHING = "accepted, nothing to do"  # true of uwgate anyway
    CONFIG = "read while the configuration is gathered"
    COMMAND_LINE = "command line only"
    SERVER = "application server; ignored"
    LATER = "not in this version; ignored with a warning"
    REFUSED = "not in this version; an error"
    COMMAND = "command of the uWSGI binary; an error"


def verbatim(text: str) -> str:
    """The converter of options whose value is taken as it is written."""
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the registry.

    ``name`` and ``aliases`` are without the leading dashes, ``short`` is one letter or empty.
    ``field`` is where the value goes: ``"process.x"``, ``"http.x"``, ``"request_log.x"`` (fields of
    ``Settings``), or empty if ``build`` composes something out of it. ``parse`` turns the text into
    the value and raises ``ValueError`` with one sentence (what is wrong, what is expected).
    ``default`` is shown where the default is not simply the one of ``field``. ``uwsgi`` is False
    for our extensions. ``since`` is the first version of uwgate that has the row. ``secret``: the
    value is never shown.
    """

    name: str
    kind: Kind
    topic: str
    help: str
    aliases: tuple[str, ...] = ()
    short: str = ""
    field: str = ""
    parse: Callable[[str], object] = verbatim
    unit: str = ""
    default: str = ""
    repeatable: bool = False
    uwsgi: bool = True
    state: State = State.ACTIVE
    since: str = "0.1.0"
    secret: bool = False


Source = Literal["command line", "environment", "file", "set"]


@dataclass(frozen=True, slots=True)
class Item:
    """One ``key = value`` as it was found; ``origin`` is ``file:line`` or names another source.

    ``key`` is what was written (a shortened name of the command line is completed).
    """

    key: str
    value: str
    origin: str
    source: Source


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint: where, about which option, and one sentence."""

    origin: str
    option: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin, self.option, self.message) if part)


class Problems:
    """Everything that is wrong (``errors``) or suspicious (``warnings``), in order of discovery.

    A message may quote any value: keys and passwords in it are masked here.
    """

    __slots__ = ("errors", "warnings")

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, origin: str, option: str, message: str) -> None:
        """Note something that forbids to start."""
        self.errors.append(Problem(origin, option, masked(message)))

    def warn(self, origin: str, option: str, message: str) -> None:
        """Note something that the operator should look at."""
        self.warnings.append(Problem(origin, option, masked(message)))
