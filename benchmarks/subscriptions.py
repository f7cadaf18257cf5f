"""``python -m benchmarks.subscriptions``: what announcements, their table and look-ups cost.

Every part runs in processes of its own. CPU time is what counts: the machine may be busy with other
things.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType

from benchmarks import compare, subscription_table, subscription_traffic
from benchmarks.__main__ import contenders, machine, say, start_origins
from benchmarks.compare import Bench, Outcome
from benchmarks.figures import paired_ratios, spread
from benchmarks.measured import Figure, MeasureError, apart
from benchmarks.procs import StartError, cores
from benchmarks.subscription_traffic import Rate
from benchmarks.tools import Tools, find_tools
from benchmarks.workloads import WORKLOADS

LEAST_RATE = 100_000.0  # unsigned announcements of known nodes a CPU-second
MOST_BYTES = 600.0  # of the master, a node
MOST_LOOKUP = 2_000.0  # nanoseconds
MOST_GROWTH = 2.0  # of a look-up, from one key to a million; what caches do not hold is in it
MANY = 1_000_000


class Run:
    """One run: what was asked for, where, and what has been found."""

    def __init__(
        self,
        options: argparse.Namespace,
        tools: Tools,
        directory: Path,
        stack: contextlib.ExitStack,
    ) -> None:
        self.options = options
        self.tools = tools
        self.directory = directory
        self.stack = stack
        self.core, self.load_core = cores()
        self.figures: list[Figure] = []
        self.outcomes: list[Outcome] = []
        self.failures: list[str] = []

    def part(self, name: str) -> None:
        """Measure one part, print its figures as they come."""
        say(f"{name}: {PARTS[name].__doc__}")
        try:
            for figure in PARTS[name](self):
                self.figures.append(figure)
                say(f"  {figure.text}")
        except (MeasureError, StartError, OSError) as error:
            self.failures.append(f"{name}: {error}")
            say(f"  FAILED  {name}: {error}")
        say("")

    def median_rate(self, measure: Callable[[], Rate]) -> Rate:
        """The one in the middle of ``--rounds`` measurements, by CPU time."""
        found = sorted((measure() for _ in range(self.options.rounds)), key=lambda r: r.per_cpu)
        return found[len(found) // 2]


def rates(run: Run) -> Iterator[Figure]:
    """announcements over UDP, applied by one process and told to one worker, each CPU-second"""
    options = run.options
    kinds = (
        ("refresh", "the same again"),
        ("flood", "the same again, sent faster than they are read"),
        ("load", "with another load"),
        ("join", "of new nodes"),
        ("garbage", "garbage, refused"),
    )
    for kind, text in kinds:
        nodes = options.joins if kind == "join" else 10_000
        measure = functools.partial(
            subscription_traffic.unsigned,
            kind,
            run.core,
            run.load_core,
            float(options.seconds),
            nodes,
        )
        rate = run.median_rate(measure)
        limit = None if kind in ("join", "garbage") else LEAST_RATE
        yield Figure(f"packets, {text}", rate.per_cpu, "/s", limit, True, _remarks(rate))
    with tempfile.TemporaryDirectory(dir=run.directory) as name:
        signed = functools.partial(
            subscription_traffic.signed,
            run.core,
            run.load_core,
            Path(name),
            100,
            options.signed,
        )
        rate = run.median_rate(signed)
        text = "packets, signed with RSA-2048 and SHA-256"
        yield Figure(text, rate.per_cpu, "/s", note=_remarks(rate))


def _remarks(rate: Rate) -> str:
    lost = f"; {rate.lost:,} of {rate.sent:,} dropped by the kernel" if rate.lost else ""
    busy = rate.cpu / rate.wall
    return f"{rate.per_wall:,.0f} each second, its core {busy:.0%} busy{lost}"


def memory(run: Run) -> Iterator[Figure]:
    """RSS that a node adds to the master"""
    for nodes in (100_000, run.options.nodes):
        for per_key in (10, 1):
            work = functools.partial(subscription_table.master_memory, nodes, per_key)
            each = float(apart(run.core, work)["each"])
            yield Figure(f"{nodes:,} nodes, {per_key} a key", each, "bytes a node", MOST_BYTES)


def lookup(run: Run) -> Iterator[Figure]:
    """key to node in a worker: look-up and pick, three nodes a key, the key's hash not known"""
    one = 0.0
    for keys in (1, 1_000, run.options.nodes):
        found = apart(run.core, functools.partial(subscription_table.lookups, keys, 3))
        one = one or found["hot"]
        for kind, text in (("hot", "few of them hot"), ("random", "any of them")):
            if keys == 1 and kind == "random":
                continue
            yield Figure(f"{keys:,} keys, {text}", found[kind], "ns", MOST_LOOKUP)
        if keys > 1:
            yield Figure(f"{keys:,} keys, asked for first", found["first"], "ns")
        if keys == run.options.nodes:
            growth = found["hot"] / one
            yield Figure(
                f"{keys:,} keys, few of them hot, to a single key", growth, "times", MOST_GROWTH
            )
            note = "what the processor's caches do not hold"
            yield Figure(f"{keys:,} keys, any to hot", found["random"] / found["hot"], "times",
                         note=note)  # fmt: skip


def fork(run: Run) -> Iterator[Figure]:
    """a worker that dies when there are many nodes, one a key, and what its successor costs"""
    if not run.tools.has("nginx") or not run.tools.has("uwgate"):
        raise MeasureError("needs nginx and uwgate")
    origin, _ = start_origins(
        run.tools, {"http"}, run.directory / "fork", run.load_core, run.stack
    )
    nodes = run.options.nodes
    found = subscription_table.forks(
        run.tools, run.directory, run.core, f"127.0.0.1:{origin.http}", nodes
    )
    for key, text in (
        ("fork", "fork"),
        ("serve", "from the kill of a worker to the next answer"),
        ("start", "start of the instance with its state file"),
    ):
        note = f"{1000 * found[f'empty_{key}']:.1f} with one node"
        yield Figure(f"{nodes:,} nodes, {text}", 1000 * found[f"full_{key}"], "ms", note=note)
    note = f"{found['empty_private'] / 1e6:.1f} with one node"
    yield Figure("private memory of the worker", found["full_private"] / 1e6, "MB", note=note)
    yield Figure(
        f"the same after requests for {found['asked']:,} keys", found["asked_private"] / 1e6, "MB"
    )
    yield Figure("RSS of the master", found["full_master"] / 1e6, "MB")


def expiry(run: Run) -> Iterator[Figure]:
    """100,000 nodes fall silent in the same second: longest round of a loop"""
    nodes = 100_000
    work = functools.partial(subscription_traffic.expiry, run.load_core, nodes)
    found = [apart(run.core, work) for _ in range(run.options.rounds)]
    for who in ("master", "worker"):
        figures = spread([1000 * each[who] for each in found])
        note = f"{figures.low:.0f} to {figures.high:.0f} in {figures.count} runs"
        yield Figure(f"pause of the {who}", figures.median, "ms", note=note)
    cpu = spread([each["cpu"] for each in found]).median
    yield Figure("CPU time of the master for a node", 1e6 * cpu / nodes, "us")


def cost(run: Run) -> Iterator[Figure]:
    """CPU of an HTTP request to a node that announced itself, beside http-to and nginx"""
    rows = [row for row in WORKLOADS if row.ours == "uwgate-subscribed"]
    if not run.tools.has("wrk"):
        raise MeasureError("needs wrk")
    origin, there = start_origins(
        run.tools, {row.node for row in rows}, run.directory / "cost", run.load_core, run.stack
    )
    bench = Bench(
        run.tools,
        run.directory,
        run.core,
        run.load_core,
        origin,
        run.options.rounds,
        run.options.seconds,
        say,
    )
    for row in rows:
        names = contenders([], row.peers, row.node, run.tools, row.ours)
        if row.node not in there:
            continue
        outcome = compare.run_workload(bench, row, names)
        run.outcomes.append(outcome)
        run.failures += [f"{row.name}, {peer}: {why}" for peer, why in outcome.failed.items()]
        say(compare.render(outcome))
        yield from _ratios(outcome)


def _ratios(outcome: Outcome) -> Iterator[Figure]:
    row = outcome.workload
    costs: dict[str, dict[int, float]] = {}
    for cell in outcome.cells:
        if not cell.faults:
            costs.setdefault(cell.peer, {})[cell.round] = cell.cost
    ours = costs.get(row.ours, {})
    for peer, theirs in costs.items():
        ratios = paired_ratios(ours, theirs)
        if peer == row.ours or not ratios:
            continue
        ratio = spread(ratios)
        more = spread([ours[n] - theirs[n] for n in ours.keys() & theirs.keys()]).median
        note = f"{ratio.low:.2f} to {ratio.high:.2f}, {more:+.1f} us a request"
        limit = row.limits.get(peer)
        yield Figure(f"{row.name}, CPU to {peer}", ratio.median, "times", limit, note=note)


PARTS: dict[str, Callable[[Run], Iterator[Figure]]] = {
    "rates": rates,
    "memory": memory,
    "lookup": lookup,
    "fork": fork,
    "expiry": expiry,
    "cost": cost,
}


def select(patterns: list[str]) -> list[str]:
    """Parts whose name matches one of the shell patterns, in their order; ValueError."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in PARTS):
            raise ValueError(f"no part is called {pattern!r}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if any(fnmatchcase(name, each) for each in patterns)]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subscriptions", description=__doc__)
    parser.add_argument("--only", default="*", help=f"names or patterns: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a measurement (2)")
    parser.add_argument("--nodes", type=int, default=MANY, help="of a large table (1,000,000)")
    parser.add_argument("--joins", type=int, default=200_000, help="new nodes (200,000)")
    parser.add_argument("--signed", type=int, default=3000, help="signed packets of a run (3000)")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(argv)
    counts = (options.rounds, options.seconds)
    if min(counts) < 1 or min(options.nodes, options.joins, options.signed) < 1000:
        parser.error("--rounds and --seconds must be at least 1, the others 1000")
    if max(options.nodes, options.joins) > 1 << 24:
        parser.error(f"--nodes and --joins can be {1 << 24} at the most")
    try:
        options.parts = select(options.only.split(","))
    except ValueError as error:
        parser.error(str(error))
    return options


def report(run: Run, facts: dict[str, str]) -> int:
    """Say what did not hold, write the JSON file; exit code 0, or 1 if anything was over."""
    over = [figure for figure in run.figures if not figure.kept]
    for figure in over:
        say(figure.text)
    for line in run.failures:
        say(f"FAILED  {line}")
    if run.options.json:
        document = {
            "machine": facts,
            "figures": [{**asdict(each), "kept": each.kept} for each in run.figures],
            "workloads": [asdict(each) for each in run.outcomes],
            "failures": run.failures,
        }
        run.options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if over or run.failures or not run.figures else 0


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: every limit was kept. 1: one was not, or something could not be measured."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, _terminated)
    tools = find_tools()
    facts = machine(tools)
    say("; ".join(f"{name}: {value}" for name, value in facts.items() if value) + "\n")
    with (
        tempfile.TemporaryDirectory(prefix="uwgate-subscriptions-") as name,
        contextlib.ExitStack() as stack,
    ):
        run = Run(options, tools, Path(name), stack)
        for part in options.parts:
            run.part(part)
        return report(run, facts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
