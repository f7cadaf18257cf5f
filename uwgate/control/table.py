"""The answer to ``status`` as a few short lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from uwgate.observe.escape import escape_word

Status = dict[str, Any]

_GAP = "  "
_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


def render(status: Status, now: float | None = None) -> str:
    """Lines ended by LF. ``now``: epoch seconds. Of values of an unknown kind ``-`` is said."""
    now = time.time() if now is None else now
    reloads = _number(status, "reloads")
    text = (
        f"uwgate {_word(status.get('version'))} (pid {_number(status, 'pid')}):"
        f" {_word(status.get('state'))}, up {_age(status, now)},"
        f" {reloads} {'reload' if reloads == 1 else 'reloads'}\n"
    )
    listeners = status.get("listeners")
    if isinstance(listeners, dict) and listeners:
        rows = [
            [_word(gateway), ", ".join(map(_word, names)) if isinstance(names, list) else "-"]
            for gateway, names in listeners.items()
        ]
        text += "\n" + _table(["GATEWAY", "LISTENS ON"], rows, left=2)
    head = ["GATEWAY", "WORKER", "PID", "STATUS", "REQUESTS", "MEMORY", "UP"]
    workers = status.get("workers")
    found = workers if isinstance(workers, list) else []
    rows = [_worker(each, now) for each in found if isinstance(each, dict)]
    return text + "\n" + (_table(head, rows, left=1) if rows else "no workers\n")


def _worker(worker: Status, now: float) -> list[str]:
    draining = worker.get("draining") is True
    return [
        _word(worker.get("gateway")),
        str(_number(worker, "id")),
        str(_number(worker, "pid") or "-"),
        "draining" if draining else _word(worker.get("status")),
        str(_number(worker, "requests")),
        f"{_number(worker, 'rss') / (1 << 20):.1f} MB" if _number(worker, "rss") else "-",
        _age(worker, now),
    ]


def _table(head: list[str], rows: Sequence[list[str]], *, left: int) -> str:
    """``left``: how many columns have their text on the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    text = ""
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if index < left or head[index] == "STATUS" else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        text += _GAP.join(cells).rstrip() + "\n"
    return text


def _word(value: object) -> str:
    """Printable ASCII: nothing of it may steer a terminal."""
    return escape_word(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else "-"


def _number(values: Status, key: str) -> int:
    value = values.get(key)
    return int(value) if isinstance(value, int | float) and abs(value) < 2**63 else 0


def _age(values: Status, now: float) -> str:
    """``3d 4h``, ``12m 3s``: since ``started``."""
    started = _number(values, "started")
    if not started:
        return "-"
    seconds = max(0, int(now) - started)
    for unit, letter, smaller, small in _UNITS:
        if seconds >= unit:
            return f"{seconds // unit}{letter} {seconds % unit // smaller}{small}"
    return f"{seconds}s"
