"""What `benchmarks.reload` has seen, judged and put in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import reload_judge
from benchmarks.figures import table
from benchmarks.reload_watch import Markers, Sample
from benchmarks.rolling_client import quantile


@dataclass(slots=True)
class Seen:
    """Everything that was observed of one contender. Times are monotonic seconds."""

    name: str
    reloads: list[float] = field(default_factory=list)
    missed: int = 0  # configurations that did not answer within PATIENCE
    load: dict[str, Any] = field(default_factory=dict)
    markers: Markers | None = None
    lags: list[float] = field(default_factory=list)  # of this process
    node_lags: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    before: Sample | None = None
    after: Sample | None = None
    busy: float = 0.0  # share of all processors
    problems: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)


def judge(seen: Seen, mercy: float) -> dict[str, Any]:
    """The facts of one contender, in plain values."""
    assert seen.markers is not None
    load, polled = seen.load, seen.markers.score.plain()
    lags = reload_judge.spans(load["lags"])
    own = reload_judge.spans(seen.lags)
    node_lags = reload_judge.spans(seen.node_lags)
    found = reload_judge.delays(load["latencies"], load["slow"], lags, node_lags)
    found |= reload_judge.delays(polled["latencies"], polled["slow"], own, node_lags)
    failures = [*load["failures"], *polled["failures"]]
    parted = reload_judge.partings(load["sockets"], seen.reloads, mercy)
    failed = Counter(load["failed"]) + Counter(polled["failed"])
    words = Counter(word for _, _, word, _ in failures)
    first, last = reload_judge.served_after(seen.reloads, seen.markers.seen)
    done = sum(load["done"].values()) + sum(polled["done"].values())
    torn = parted["reset"] + parted["torn"]
    raced = sum(word == "raced" and text.startswith("reset") for _, _, word, text in failures)
    return {
        "name": seen.name,
        "reloads": len(seen.reloads),
        "missed": seen.missed,
        "done": done,
        "rate": done / max(load["ended"] - load["begun"], 0.01),
        "failed": sum(failed.values()) + parted["early"] + torn,
        "failed_by_kind": dict(failed),
        "words": dict(words),
        "resets": words["reset"] + raced + torn,
        "raced": words["raced"],
        "polite": load["polite"],
        "idle": load["idle"],
        "partings": dict(parted),
        "sockets": [(a - load["begun"], b - load["begun"], how) for a, b, how in load["sockets"]],
        "delays": {name: asdict(each) for name, each in found.items()},
        "first": first,
        "last": last,
        "lag": max((end - begin for begin, end in reload_judge.spans(load["lags"], 0)), default=0),
        "node_lag": max((e - b for b, e in reload_judge.spans(seen.node_lags, 0)), default=0),
        "busy": seen.busy,
        "levels": reload_judge.levels(seen.samples),
        "before": _plain(seen.before),
        "after": _plain(seen.after),
        "growth": reload_judge.growth(seen.before, seen.after)
        if seen.before and seen.after
        else ["nothing was seen at rest"],
        "raw": failures[:200],
        "failures": reload_judge.summary(failures, seen.reloads),
        "facts": seen.facts,
        "problems": seen.problems,
    }


def _plain(sample: Sample | None) -> dict[str, float]:
    return {} if sample is None else {**asdict(sample), "worker_pss": sample.worker_pss}


def objections(found: dict[str, Any], *, strict: bool = False) -> list[str]:
    """Why this is no success."""
    lines = []
    if found["failed"]:
        lines.append(f"{found['failed']} failures")
    if found["missed"] or not found["first"]:
        lines.append(f"{found['missed']} configurations never answered")
    delayed = sum(each["over"] for each in found["delays"].values())
    if strict and delayed:
        lines.append(f"{delayed} requests took more than 100 ms")
    lines += found["growth"]
    lines += found["problems"][:5]
    return lines


def render(found: dict[str, Any]) -> str:
    """One contender."""
    parted = found["partings"]
    lines = [
        f"{found['name']}: {found['reloads']} reloads, {found['done']:,} requests"
        f" ({found['rate']:,.0f} a second, {100 * found['busy']:.0f} % of the processors busy);"
        f" {found['failed']} failed, {found['resets']} resets"
    ]
    lines += [f"  FAILED  {line}" for line in found["failures"]]
    lines.append(
        f"  connections: {found['polite']:,} told to close, {found['idle']} closed while idle,"
        f" {found['raced']} closed under a request"
    )
    if parted:
        ends = ", ".join(f"{count} {word}" for word, count in sorted(parted.items()))
        lines.append(f"  WebSockets ended: {ends}")
    rows = [("", "requests", "p50 ms", "p99 ms", "longest ms", "> 100 ms", "excused", "node's")]
    for name, each in found["delays"].items():
        times = (f"{1000 * each[key]:.1f}" for key in ("p50", "p99", "most"))
        counts = (str(each[key]) for key in ("over", "excused", "by_node"))
        rows.append((name, f"{each['count']:,}", *times, *counts))
    lines.append(table(rows, "    "))
    lines.append(
        f"  new configuration served after {_times(found['first'])};"
        f" last old answer after {_times(found['last'])}"
    )
    lines.append(
        f"  lag of the load: {1000 * found['lag']:.0f} ms, of a node:"
        f" {1000 * found['node_lag']:.0f} ms at most"
    )
    lines.append(_held(found))
    facts = ", ".join(f"{name} {count}" for name, count in found["facts"].items())
    lines += [f"  its log: {facts}"] if facts else []
    lines += [f"  GROWTH  {line}" for line in found["growth"]]
    lines += [f"  LOG  {line}" for line in found["problems"][:10]]
    return "\n".join(lines)


def _times(values: list[float]) -> str:
    if not values:
        return "(never)"
    return f"{quantile(values, 0.5):.2f} s (at most {max(values):.2f})"


def _held(found: dict[str, Any]) -> str:
    levels = found["levels"]
    rows: list[tuple[str, ...]] = [("", "before", "early", "late", "most", "after")]
    for name, unit in (
        ("processes", 1.0),
        ("master_fds", 1.0),
        ("all_fds", 1.0),
        ("master_pss", 1e6),
        ("worker_pss", 1e6),
        ("all_pss", 1e6),
    ):
        values = [found["before"].get(name), *levels.get(name, (0.0, 0.0, 0.0))]
        values.append(found["after"].get(name))
        text = name.replace("_", " ") + (", MB" if unit > 1 else "")
        rows.append((text, *(_number(each, unit) for each in values)))
    return table(rows, "    ")


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.1f}" if unit > 1 else f"{value:g}"


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """All contenders in one table."""
    rows = [("", "reloads", "requests", "failed", "resets", "raced", "> 100 ms", "longest ms",
             "served after s", "most processes")]  # fmt: skip
    for each in results:
        delays = each["delays"].values()
        first, processes = each["first"], each["levels"].get("processes", (0, 0, 0))
        rows.append((
            each["name"],
            str(each["reloads"]),
            f"{each['done']:,}",
            str(each["failed"]),
            str(each["resets"]),
            str(each["raced"]),
            str(sum(found["over"] for found in delays)),
            f"{1000 * max((found['most'] for found in delays), default=0.0):.0f}",
            f"{quantile(first, 0.5):.2f}" if first else "never",
            f"{processes[2]:g}",
        ))  # fmt: skip
    return table(rows, "")
