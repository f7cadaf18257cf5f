"""Items matched with option rows: converted values, and what is wrong with the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uwgate.config import options, values
from uwgate.config.model import Item, Kind, Option, Problems, State
from uwgate.config.placeholders import left_over

_TEMPLATES = ("http-log-format",)  # hold %(…) of their own
_INSTEAD = dict.fromkeys(("sslrouter", "sslrouter2"), "; https serves HTTP over TLS")


@dataclass(frozen=True, slots=True)
class Value:
    """One accepted value of an option and where it came from."""

    row: Option
    value: object
    item: Item


class Found:
    """Accepted values by canonical option name, in order. Scalars: the last one counts.

    ``refused`` are the names of options with a value that was not accepted: nobody has to hear
    that they are missing as well.
    """

    def __init__(self, accepted: Iterable[Value], refused: Iterable[str] = ()) -> None:
        self.accepted = list(accepted)
        self.refused = frozenset(refused)
        self._last = {each.row.name: each for each in self.accepted}

    def last(self, name: str) -> Value | None:
        """The value that counts for a scalar option, or None."""
        return self._last.get(name)

    def all(self, *names: str) -> list[Value]:
        """Every value of one or more repeatable options, in the order they were given."""
        return [each for each in self.accepted if each.row.name in names]

    def is_on(self, name: str) -> bool:
        """Whether a flag was given and means on."""
        each = self._last.get(name)
        return each is not None and each.value is True

    def fields(self, section: str) -> dict[str, object]:
        """Field name -> value, for the options whose value is a field of that section."""
        start = section + "."
        return {
            each.row.field.removeprefix(start): each.value
            for each in self._last.values()
            if each.row.field.startswith(start)
        }


def _warn_word(row: Option, item: Item, problems: Problems) -> None:
    flag = row.kind in (Kind.FLAG, Kind.BOOL) or row.unit == "boolean"
    if flag and values.odd_boolean(item.value):
        message = f"{item.value!r} is taken as true (as in uWSGI); expected true or false"
        problems.warn(item.origin, item.key, message)


def _convert(row: Option, item: Item, problems: Problems) -> Value | None:
    try:
        value = row.parse(item.value)
    except ValueError as error:
        problems.error(item.origin, item.key, str(error))
        return None
    _warn_word(row, item, problems)
    rest = "" if row.name in _TEMPLATES else left_over(item.value)
    if rest:
        problems.warn(item.origin, item.key, f"{rest} is not set in the environment; left as it is")
    return Value(row, value, item)


class Matcher:
    """Takes items one by one.

    ``server`` collects what belongs to the application server, ``refused`` the names of options
    whose value was not accepted.
    """

    def __init__(
        self, problems: Problems, strict: bool, placeholders: set[str], used: set[str]
    ) -> None:
        self.server: list[str] = []
        self.refused: set[str] = set()
        self._problems = problems
        self._strict = strict
        self._placeholders = placeholders
        self._used = used
        self._warned: set[str] = set()

    def match(self, item: Item) -> Value | None:
        """The item's value if it means something here; else None, with a problem if need be."""
        row = options.find(item.key)
        if row is None:
            self._unknown(item)
        elif row.state is State.ACTIVE:
            value = _convert(row, item, self._problems)
            if value is None:
                self.refused.add(row.name)
            return value
        elif row.state is State.SERVER:
            self.server.append(item.key)
        elif row.state is State.LATER:
            self._later(item)
        elif row.state is State.COMMAND_LINE:
            if item.source != "command line":
                self._problems.error(item.origin, item.key, "works on the command line only")
        elif row.state is not State.NOTHING:
            self._refuse(row, item)
        return None

    def _later(self, item: Item) -> None:
        if item.key not in self._warned and not values.is_false(item.value):
            self._warned.add(item.key)
            message = "known from uWSGI, but without effect in this version of uwgate"
            self._problems.warn(item.origin, item.key, message)

    def _refuse(self, row: Option, item: Item) -> None:
        if row.state is State.COMMAND:
            message = "is a command of the uWSGI binary that uwgate does not have"
        else:
            message = "not supported by this version (ignoring it would change what is served)"
            message += _INSTEAD.get(row.name, "")
        self._problems.error(item.origin, item.key, message)

    def _unknown(self, item: Item) -> None:
        near = options.nearest(item.key)
        hint = f"; did you mean {near}?" if near else ""
        if item.key in self._placeholders:
            return
        if item.source == "environment":
            if near and item.key not in self._used:
                self._problems.warn(item.origin, item.key, f"unknown option{hint}")
        elif self._strict:
            hint = hint or "; placeholders are made with set-placeholder"
            self._problems.error(item.origin, item.key, f"unknown option (strict){hint}")
        elif item.key not in self._used:
            message = f"unknown option, taken as a placeholder that nothing uses{hint}"
            self._problems.warn(item.origin, item.key, message)
