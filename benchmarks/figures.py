"""Pure arithmetic on measurements: medians, paired ratios, number formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of a series with its smallest and largest value."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum of ``values``; ValueError if there are none."""
    if not values:
        raise ValueError("no values to summarise")
    return Spread(median(values), min(values), max(values), len(values))


def paired_ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """``ours / theirs`` for every round number that both have, in round order.

    Pairing by round is what makes the figure hold on a machine whose speed drifts: both cells of
    a pair ran within seconds of each other. Rounds where the peer's value is 0 are left out.
    """
    return [ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()) if theirs[n] > 0]


def per_request_micros(cpu_nanos: int, requests: int) -> float:
    """CPU microseconds a request; ValueError without a completed request."""
    if requests <= 0:
        raise ValueError("no request was completed")
    return cpu_nanos / 1000 / requests


def per_gigabyte_seconds(cpu_nanos: int, size: int) -> float:
    """CPU seconds a gigabyte (10^9 bytes) carried; ValueError if nothing was carried."""
    if size <= 0:
        raise ValueError("no byte was carried")
    return cpu_nanos / size


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Rows of cells as aligned text: the first column to the left, the others to the right."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
