"""Figures with the limit that the project promises, and measuring in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Said = dict[str, Any]
"""What a measurement says: plain values, ready for JSON."""


class MeasureError(Exception):
    """A measurement did not come about, or what it measured is not what it should have."""


@dataclass(frozen=True, slots=True)
class Figure:
    """``value`` in ``unit``. ``limit``: the most that is promised, or with ``least`` the least.

    ``note``: what else is worth knowing about it.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    least: bool = False
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether the promise, if there is one, held."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.least else self.value <= self.limit

    @property
    def text(self) -> str:
        """One line: the verdict, the figure, its limit, the note."""
        verdict = "    " if self.limit is None else "ok  " if self.kept else "OVER"
        line = f"{verdict}  {self.name}: {number(self.value)} {self.unit}"
        if self.limit is not None:
            line += f", {'at least' if self.least else 'limit'} {number(self.limit)}"
        return line + (f" ({self.note})" if self.note else "")


def number(value: float) -> str:
    """Three significant digits or all digits before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def apart(core: int, work: Callable[[], Said]) -> Said:
    """What ``work`` says in a fork of this process that is bound to ``core``; MeasureError.

    Its memory begins small and is gone afterwards.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.sched_setaffinity(0, {core})
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise MeasureError(f"the measuring process ended with {code}")
    found: Said = json.loads(text)
    return found
