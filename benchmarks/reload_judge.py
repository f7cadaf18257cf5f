"""What `benchmarks.reload` makes of its observations; nothing here does anything."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.reload_client import SLOW
from benchmarks.reload_watch import Sample
from benchmarks.rolling_client import quantile

EXCUSE = 0.05  # seconds of the generator's own lag that excuse what ran meanwhile
CARRIED = 5.0  # seconds after an order in which the old workers may still take connections
EARLY = 0.05  # seconds by which a mercy may be measured too short
PSS_SLACK = 4 << 20  # bytes that master, or worker on average, may have more at the end
_PARTED = {"between": "merciful", "within": "interrupted", "reset": "torn"}

Span = tuple[float, float]


def spans(flat: Sequence[float], least: float = EXCUSE) -> list[Span]:
    """Begin, end, begin, end, … -> those that are that long."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return [(begin, end) for begin, end in pairs if end - begin > least]


def overlaps(begin: float, end: float, lags: Iterable[Span]) -> bool:
    """Whether one of the lags has to do with what ran from ``begun`` to ``ended``."""
    return any(start <= end and begin <= stop for start, stop in lags)


def group(kind: str) -> str:
    """"kept tls static" -> "kept"."""
    return kind.split(" ", 1)[0]


def since(when: float, reloads: Sequence[float]) -> float:
    """Seconds since the last of the reloads (in order), -1.0 before the first."""
    place = bisect_right(reloads, when)
    return when - reloads[place - 1] if place else -1.0


@dataclass(frozen=True, slots=True)
class Delays:
    """Of one group of requests. Seconds; ``over``: delayed, ``most``: the longest that is not
    excused; ``excused``: delayed while the generator itself was late, ``by_node``: a node was."""

    count: int
    p50: float
    p99: float
    most: float
    over: int
    excused: int
    by_node: int


def delays(
    latencies: dict[str, list[float]],
    slow: Iterable[tuple[float, float, str]],
    lags: Sequence[Span],
    node_lags: Sequence[Span],
) -> dict[str, Delays]:
    """By group."""
    values: dict[str, list[float]] = {}
    for kind, found in latencies.items():
        values.setdefault(group(kind), []).extend(found)
    over: Counter[str] = Counter()
    excused: Counter[str] = Counter()
    by_node: Counter[str] = Counter()
    blamed: dict[str, float] = {}
    for begin, end, kind in slow:
        name = group(kind)
        if overlaps(begin, end, lags):
            excused[name] += 1
        elif overlaps(begin, end, node_lags):
            by_node[name] += 1
        else:
            over[name] += 1
            blamed[name] = max(blamed.get(name, 0.0), end - begin)
    return {
        name: Delays(
            len(each),
            median(each),
            quantile(each, 0.99),
            blamed.get(name, max((value for value in each if value <= SLOW), default=0.0)),
            over[name],
            excused[name],
            by_node[name],
        )
        for name, each in sorted(values.items())
    }


def partings(
    sockets: Iterable[tuple[float, float, str]], reloads: Sequence[float], mercy: float
) -> Counter[str]:
    """WebSockets that the other side ended: "merciful" (between messages, ``mercy`` after a reload
    that they had lived to see), "interrupted" (the same, while a message was under way, which
    nobody in between can know), "torn" (the same, by a reset), "early", "reset" (early as well)."""
    found: Counter[str] = Counter()
    for opened, ended, how in sockets:
        latest = ended - mercy + EARLY
        due = opened <= latest and any(opened - CARRIED <= each <= latest for each in reloads)
        if due:
            found[_PARTED[how]] += 1
        else:
            found["reset" if how == "reset" else "early"] += 1
    return found


def served_after(
    reloads: Sequence[float], seen: Sequence[tuple[float, float, int]]
) -> tuple[list[float], list[float]]:
    """For the n-th reload, which brings configuration n + 1: seconds until its first answer, and
    until the last answer of an older one, asked for on a new connection. Those that never came, or
    were overtaken, are left out."""
    first, last = [], []
    for place, ordered in enumerate(reloads):
        number = place + 2  # 1 was there before
        news = [end for _, end, found in seen if found >= number and end > ordered]
        if not news:
            continue
        first.append(min(news) - ordered)
        old = [end for _, end, found in seen if found < number and end > ordered]
        last.append(max(old, default=ordered) - ordered)
    return first, last


def growth(before: Sample, after: Sample) -> list[str]:
    """What there is more of at rest than before the load."""
    found = []
    if after.processes > before.processes:
        found.append(f"{after.processes} processes, {before.processes} before")
    if after.master_fds > before.master_fds:
        found.append(f"{after.master_fds} descriptors of the master, {before.master_fds} before")
    if after.all_fds > before.all_fds:
        found.append(f"{after.all_fds} descriptors, {before.all_fds} before")
    for text, late, early in (
        ("PSS of the master", after.master_pss, before.master_pss),
        ("mean PSS of a worker", after.worker_pss, before.worker_pss),
    ):
        if late > early + PSS_SLACK:
            found.append(f"{text}: {late / 1e6:.1f} MB, {early / 1e6:.1f} before")
    return found


def levels(samples: Sequence[Sample]) -> dict[str, Any]:
    """Medians of the second and of the last fifth, and the most, of everything sampled."""
    if not samples:
        return {}
    fifth = max(1, len(samples) // 5)
    found = {}
    for name in ("processes", "master_pss", "worker_pss", "all_pss", "master_fds", "all_fds"):
        values = [float(getattr(each, name)) for each in samples]
        early = values[fifth : 2 * fifth] or values
        found[name] = (median(early), median(values[-fifth:]), max(values))
    return found


def summary(failures: Iterable[tuple[float, str, str, str]], reloads: Sequence[float]) -> list[str]:
    """One line for each kind and word: how many, when after a reload, one text."""
    groups: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for when, kind, word, text in failures:
        groups.setdefault((kind, word), []).append((since(when, reloads), text))
    lines = []
    for (kind, word), found in sorted(groups.items(), key=lambda each: -len(each[1])):
        ages = sorted(age for age, _ in found)
        lines.append(
            f"{len(found)} × {kind}: {word}, {ages[0]:.2f} to {ages[-1]:.2f} s after a reload"
            f" (median {median(ages):.2f}); {found[0][1]}"
        )
    return lines
