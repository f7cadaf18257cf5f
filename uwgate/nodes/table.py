"""Rows as a table for a terminal: as wide as needed, or as wide as there is room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uwgate.nodes.rows import NO_KEY, Document, Row
from uwgate.observe.escape import escape_word

_GAP = "  "
_SHORTEST = 12  # characters that are left of a key or a name
_BOLD, _DIM, _RED, _YELLOW, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cell: Callable[[Row], str]
    total: Callable[[Sequence[Row]], str] = lambda rows: ""
    right: bool = True


_COLUMNS = (
    _Column("GATEWAY", lambda row: _word(row.gateway), right=False),
    _Column("KEY", lambda row: _word(row.key), lambda rows: _keys(rows), right=False),
    _Column(
        "NODE", lambda row: _word(row.node), lambda rows: _many(len(rows), "node"), right=False
    ),
    _Column("PROTO", lambda row: _word(row.protocol), right=False),
    _Column("STATE", lambda row: _word(row.state), lambda rows: _marked(rows), right=False),
    _Column("WEIGHT", lambda row: str(row.weight)),
    _Column("BACKUP", lambda row: str(row.backup)),
    _Column(
        "IN FLIGHT",
        lambda row: str(row.in_flight),
        lambda rows: str(sum(row.in_flight for row in rows)),
    ),
    _Column(
        "REQUESTS",
        lambda row: str(row.requests),
        lambda rows: str(sum(row.requests for row in rows)),
    ),
    _Column("LATENCY", lambda row: _time(row.latency), lambda rows: _time(_mean(rows))),
    _Column(
        "ERRORS", lambda row: str(row.errors), lambda rows: str(sum(row.errors for row in rows))
    ),
    _Column("SEEN", lambda row: _ago(row.seen)),
)
# What is left out where there is no room, one after the other.
_EXPENDABLE = (
    *("BACKUP", "PROTO", "WEIGHT", "SEEN", "GATEWAY", "LATENCY"),
    *("ERRORS", "IN FLIGHT", "REQUESTS", "STATE"),
)


def render(rows: Sequence[Row], width: int = 0, *, colour: bool = False) -> str:
    """The table with its sums, lines ended by LF. ``width``: columns of the terminal, 0 = any."""
    several = len({row.gateway for row in rows}) > 1
    columns = [column for column in _COLUMNS if several or column.title != "GATEWAY"]
    columns, widths = _fit(columns, rows, width)

    def line(cells: Sequence[str], style: str = "", row: Row | None = None) -> str:
        padded = []
        for column, size, cell in zip(columns, widths, cells, strict=True):
            text = _shorten(cell, size, keep_end=column.title == "NODE")
            text = text.rjust(size) if column.right else text.ljust(size)
            own = _style(column.title, row) if colour and row is not None else ""
            padded.append(f"{own}{text}{_PLAIN}" if own else text)
        joined = _GAP.join(padded).rstrip()
        return f"{style}{joined}{_PLAIN}\n" if colour and style else f"{joined}\n"

    text = line([column.title for column in columns], _BOLD)
    text += "".join(line([column.cell(row) for column in columns], row=row) for row in rows)
    return text + line([column.total(rows) for column in columns], _BOLD)


def summary(document: Document, width: int = 0, *, colour: bool = False) -> str:
    """What became of the datagrams, a line a gateway, and whether all nodes are shown."""
    lines = []
    counters = document.get("subscription_counters")
    for gateway, values in counters.items() if isinstance(counters, dict) else ():
        if isinstance(values, dict):
            lines.append(f"{_word(str(gateway))}: {_counted(values)}")
    shown, everything = document.get("subscriptions_shown"), document.get("subscriptions_total")
    if isinstance(shown, int) and isinstance(everything, int) and shown < everything:
        lines.append(f"{shown} of {everything} nodes are shown: failed and busy ones first")
    if width:
        lines = [_shorten(line, width) for line in lines]
    return "".join(f"{_DIM}{line}{_PLAIN}\n" if colour else f"{line}\n" for line in lines)


def _counted(values: Document) -> str:
    """``received 12, joined 2, rejected 1 (stale 1)``; of zeros only ``received``."""
    parts = [
        f"{_word(name)} {number}"
        for name, number in values.items()
        if isinstance(number, int)
        and name not in ("keys", "nodes")
        and (number or name == "received")
    ]
    rejected = values.get("rejected")
    if isinstance(rejected, dict):
        words = {word: n for word, n in rejected.items() if isinstance(n, int) and n}
        if words:
            each = ", ".join(f"{_word(word)} {number}" for word, number in words.items())
            parts.append(f"rejected {sum(words.values())} ({each})")
    return "datagrams: " + ", ".join(parts)


def _fit(
    columns: list[_Column], rows: Sequence[Row], width: int
) -> tuple[list[_Column], list[int]]:
    """The columns there is room for, and how wide each is."""
    sizes = {column.title: _size(column, rows) for column in columns}
    if not width:
        return columns, list(sizes.values())
    least = {t: min(n, _SHORTEST) if t in ("KEY", "NODE") else n for t, n in sizes.items()}
    for title in _EXPENDABLE:
        if sum(least.values()) + len(_GAP) * (len(least) - 1) <= width:
            break
        least.pop(title, None)
    columns = [column for column in columns if column.title in least]
    widths = [sizes[column.title] for column in columns]
    room = width - len(_GAP) * (len(columns) - 1)
    names = [i for i, column in enumerate(columns) if column.title in ("KEY", "NODE")]
    while sum(widths) > room:
        widest = max(names, key=lambda i: widths[i])
        if widths[widest] <= 1:
            break
        widths[widest] -= 1
    return columns, widths


def _size(column: _Column, rows: Sequence[Row]) -> int:
    cells = [column.title, column.total(rows), *(column.cell(row) for row in rows)]
    return max(map(len, cells))


def _shorten(text: str, width: int, *, keep_end: bool = False) -> str:
    if len(text) <= width:
        return text
    return f"…{text[len(text) - width + 1 :]}" if keep_end else f"{text[: width - 1]}…"


def _style(title: str, row: Row) -> str:
    if title == "STATE" and row.state != "up":
        return _RED if row.state == "marked" else _YELLOW
    return _RED if title == "ERRORS" and row.errors else ""


def _word(text: str) -> str:
    """Printable ASCII without blanks: nothing of it may steer a terminal."""
    return escape_word(text.encode("utf-8", "surrogatepass"))


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _keys(rows: Sequence[Row]) -> str:
    return _many(len({(row.gateway, row.key) for row in rows if row.key != NO_KEY}), "key")


def _marked(rows: Sequence[Row]) -> str:
    marked = sum(row.state == "marked" for row in rows)
    return f"{marked} marked" if marked else ""


def _mean(rows: Sequence[Row]) -> float:
    """Latency of all, each node with the weight of its requests."""
    measured = [(row.latency, row.requests or 1) for row in rows if row.latency]
    weights = sum(weight for _latency, weight in measured)
    return sum(latency * weight for latency, weight in measured) / weights if weights else 0.0


def _time(milliseconds: float) -> str:
    if not milliseconds:
        return "-"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.{1 if milliseconds < 100 else 0}f} ms"


def _ago(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    for limit, unit, letter in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit}{letter}"
    return f"{seconds // 86_400}d"
