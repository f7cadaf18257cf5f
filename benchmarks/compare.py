"""Run the cells of a workload round by round, every peer in turn, and sum them up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import tls_client, wrk
from benchmarks.certificates import Pair, make
from benchmarks.figures import (
    Spread,
    paired_ratios,
    per_gigabyte_seconds,
    per_request_micros,
    spread,
    table,
)
from benchmarks.heads import lua_script
from benchmarks.origins import Origin
from benchmarks.peers import PEERS, Proxy, start_proxy
from benchmarks.procs import StartError, cpu_nanos, family, rss_bytes
from benchmarks.tools import Tools
from benchmarks.workloads import Workload

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cell:
    """One peer in one round. ``cost`` is CPU µs a request or CPU s a GB, as the workload says.

    ``busy`` is the share of its core that the proxy used (1 = all of it), latencies are in µs,
    ``rss`` in bytes. A cell with ``faults`` is not counted.
    """

    peer: str
    round: int
    cost: float
    rate: float
    p50: float
    p99: float
    rss: int
    busy: float
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """The rounds of one peer summed up; ``ratio`` and ``p99_ratio`` are ours / this peer's."""

    peer: str
    cost: Spread
    rate: float
    p50: float
    p99: float
    rss: int
    busy: float
    ratio: Spread | None
    p99_ratio: Spread | None


@dataclass(slots=True)
class Outcome:
    """All of one workload: cells, their summary, and what went wrong by peer."""

    workload: Workload
    cells: list[Cell] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """What stays the same over a whole run; ``directory`` is temporary."""

    tools: Tools
    directory: Path
    proxy_core: int
    load_core: int
    origin: Origin
    rounds: int
    seconds: int
    say: Say


def run_workload(bench: Bench, workload: Workload, peers: Sequence[str]) -> Outcome:
    """Start the peers, warm each up, run ``rounds`` interleaved rounds, stop them, sum up."""
    outcome = Outcome(workload)
    script = bench.directory / f"{workload.name}.lua"
    script.write_text(lua_script(workload.heads))
    pair = make(bench.directory / workload.name / "pair") if workload.tls else None
    with contextlib.ExitStack() as stack:
        proxies = []
        for name in peers:
            try:
                proxies.append(_start(bench, workload, name, stack, pair))
            except StartError as error:
                outcome.failed[name] = str(error)
        for proxy in proxies:
            _cell(bench, workload, proxy, script, 0, seconds=1)
        seconds = max(bench.seconds, workload.seconds)
        for number in range(1, bench.rounds + 1):
            for proxy in proxies:
                cell = _cell(bench, workload, proxy, script, number, seconds)
                outcome.cells.append(cell)
                for fault in cell.faults:
                    bench.say(f"  {workload.name}, {proxy.name}, round {number}: FAILED: {fault}")
    summarise(outcome)
    return outcome


def _start(
    bench: Bench, workload: Workload, name: str, stack: contextlib.ExitStack, pair: Pair | None
) -> Proxy:
    proxy = start_proxy(
        bench.tools,
        PEERS[name],
        bench.directory / workload.name / name,
        bench.proxy_core,
        bench.origin,
        workload.node,
        log=workload.log,
        gateway=workload.gateway,
        load_core=bench.load_core,
        pair=pair,
    )
    stack.callback(proxy.stop)
    return proxy


def _cell(
    bench: Bench, workload: Workload, proxy: Proxy, script: Path, number: int, seconds: int
) -> Cell:
    pids = family(proxy.process.pid)
    before = cpu_nanos(pids)
    try:
        result, faults = _load(bench, workload, proxy.port, script, seconds)
    except (wrk.WrkError, tls_client.TlsClientError) as error:
        return Cell(proxy.name, number, 0, 0, 0, 0, 0, 0, (str(error),))
    spent = cpu_nanos(pids) - before
    if set(family(proxy.process.pid)) != set(pids):
        faults.append("a process of the proxy came or went: its CPU time is not known")
    if faults:
        return Cell(proxy.name, number, 0, 0, 0, 0, 0, 0, tuple(faults))
    if workload.unit == "GB":
        cost = per_gigabyte_seconds(spent, result.size)
    else:
        cost = per_request_micros(spent, result.requests)
    return Cell(
        peer=proxy.name,
        round=number,
        cost=cost,
        rate=result.requests / result.seconds,
        p50=result.p50,
        p99=result.p99,
        rss=rss_bytes(pids),
        busy=spent / 1e9 / result.seconds,
    )


def _load(
    bench: Bench, workload: Workload, port: int, script: Path, seconds: int
) -> tuple[wrk.WrkResult | tls_client.TlsResult, list[str]]:
    """One run of the generator, and why it may not be counted."""
    count, core, shake = workload.connections, bench.load_core, workload.handshake
    if shake is not None:
        found = tls_client.run(port, count, seconds, core, shake.version, resume=shake.resume)
        return found, tls_client.faults(found, resume=shake.resume)
    command = bench.tools.commands["wrk"]
    result = wrk.run(command, script, port, count, seconds, core, tls=workload.tls)
    return result, wrk.faults(result, workload.body)


def summarise(outcome: Outcome) -> None:
    """Fill ``lines`` and ``failed`` from ``cells``; a cell with faults is not counted."""
    by_peer: dict[str, list[Cell]] = {}
    for cell in outcome.cells:
        by_peer.setdefault(cell.peer, [])
        if cell.faults:
            outcome.failed.setdefault(cell.peer, f"round {cell.round}: {'; '.join(cell.faults)}")
        else:
            by_peer[cell.peer].append(cell)
    name = outcome.workload.ours
    ours = by_peer.get(name, [])
    for peer, cells in by_peer.items():
        if not cells:
            continue
        costs = {cell.round: cell.cost for cell in cells}
        p99s = {cell.round: cell.p99 for cell in cells}
        ratios = paired_ratios({cell.round: cell.cost for cell in ours}, costs)
        p99_ratios = paired_ratios({cell.round: cell.p99 for cell in ours}, p99s)
        outcome.lines.append(
            Line(
                peer=peer,
                cost=spread(list(costs.values())),
                rate=spread([cell.rate for cell in cells]).median,
                p50=spread([cell.p50 for cell in cells]).median,
                p99=spread(list(p99s.values())).median,
                rss=cells[-1].rss,
                busy=spread([cell.busy for cell in cells]).median,
                ratio=spread(ratios) if ratios and peer != name else None,
                p99_ratio=spread(p99_ratios) if p99_ratios and peer != name else None,
            )
        )


def verdicts(outcome: Outcome) -> list[tuple[str, bool]]:
    """What the project promises about this workload: (sentence, whether it held)."""
    found = []
    for line in outcome.lines:
        workload = outcome.workload
        for what, limits, ratio in (
            ("CPU", workload.limits, line.ratio),
            ("p99", workload.p99_limits, line.p99_ratio),
        ):
            if ratio is not None and line.peer in limits:
                limit = limits[line.peer]
                text = f"{workload.name}: {what} {ratio.median:.2f} x {line.peer}, limit {limit:g}"
                found.append((text, ratio.median <= limit))
    return found


def render(outcome: Outcome) -> str:
    """The table of one workload, with a line for every peer that failed."""
    workload = outcome.workload
    unit = "CPU s/GB" if workload.unit == "GB" else "CPU us/req"
    rows = [
        ["", unit, "(min-max)", "req/s", "p50 ms", "p99 ms", "RSS MB", "core",
         f"{workload.ours} / peer", "(min-max)", "p99 ratio"],
    ]  # fmt: skip
    for line in outcome.lines:
        digits = 3 if workload.unit == "GB" else 1
        cost, ratio = line.cost, line.ratio
        rows.append(
            [
                line.peer,
                f"{cost.median:.{digits}f}",
                f"({cost.low:.{digits}f}-{cost.high:.{digits}f})",
                f"{line.rate:,.0f}",
                f"{line.p50 / 1000:.2f}",
                f"{line.p99 / 1000:.2f}",
                f"{line.rss / 1e6:.1f}",
                f"{line.busy:.0%}",
                f"{ratio.median:.2f}" if ratio else "",
                f"({ratio.low:.2f}-{ratio.high:.2f})" if ratio else "",
                f"{line.p99_ratio.median:.2f}" if line.p99_ratio else "",
            ]
        )
    node = "no" if workload.node == "files" else workload.node
    head = f"{workload.name}: {workload.title} ({node} node, "
    text = f"{head}{workload.connections} connections)\n{table(rows)}"
    for peer, why in outcome.failed.items():
        text += f"\n  {peer}: FAILED: {why}"
    return text
