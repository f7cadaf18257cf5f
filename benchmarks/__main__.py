"""``python -m benchmarks``: uwgate beside nginx, HAProxy and uWSGI's router, in one go."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from benchmarks import compare, memory, static_files
from benchmarks.compare import Bench, Outcome
from benchmarks.memory import Held
from benchmarks.origins import Origin, start_http_origin, start_uwsgi_origin
from benchmarks.peers import PEERS
from benchmarks.procs import StartError, cores
from benchmarks.tools import Tools, find_tools
from benchmarks.workloads import EXTRAS, WORKLOADS, NodeKind, Workload, select


def say(text: str) -> None:
    """Print at once: a run takes minutes and is watched."""
    print(text, flush=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ", ".join([row.name for row in WORKLOADS] + list(EXTRAS))
    parser.add_argument("--only", default="*", help=f"names or patterns, with commas: {names}")
    parser.add_argument("--peers", default="", help=f"names, with commas: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a cell (2)")
    parser.add_argument("--idle", type=int, default=8000, help="idle connections (8000)")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.seconds < 1 or options.idle < 1:
        parser.error("--rounds, --seconds and --idle must be at least 1")
    options.peers = [name for name in options.peers.split(",") if name]
    for name in options.peers:
        if name not in PEERS:
            parser.error(f"no peer is called {name!r}; there are {', '.join(PEERS)}")
    try:
        options.workloads, options.extras = select(options.only.split(","))
    except ValueError as error:
        parser.error(str(error))
    return options


def contenders(
    wanted: list[str],
    standard: tuple[str, ...],
    node: NodeKind,
    tools: Tools,
    ours: str = "uwgate",
) -> list[str]:
    """Peers of one workload: those asked for (``ours`` always), as far as they exist and can."""
    names = [ours, *(n for n in wanted if n != ours)] if wanted else list(standard)
    return [n for n in names if node in PEERS[n].nodes and tools.has(PEERS[n].program)]


def start_origins(
    tools: Tools, nodes: set[NodeKind], directory: Path, core: int, stack: contextlib.ExitStack
) -> tuple[Origin, set[NodeKind]]:
    """Start what the workloads need; (addresses, the kinds of node that are there)."""
    http = uwsgi_tcp = 0
    uwsgi_unix = ""
    there: set[NodeKind] = set()
    try:
        if "http" in nodes and tools.has("nginx"):
            process, http = start_http_origin(tools, directory / "origin-http", core)
            stack.callback(process.stop)
            there.add("http")
        if nodes & {"uwsgi-unix", "uwsgi-tcp"} and tools.has("uwsgi"):
            process, uwsgi_tcp, uwsgi_unix = start_uwsgi_origin(
                tools, directory / "origin-uwsgi", core
            )
            stack.callback(process.stop)
            there |= {"uwsgi-unix", "uwsgi-tcp"}
    except StartError as error:
        say(f"origin: {error}")
    return Origin(http, uwsgi_tcp, uwsgi_unix), there


def run(
    options: argparse.Namespace, tools: Tools, directory: Path
) -> tuple[list[Outcome], list[Held]]:
    """Everything that was asked for; results are printed as they come."""
    proxy_core, load_core = cores()
    if proxy_core == load_core:
        say("only one core: proxy and load share it, so rates and latencies mean little")
    memory.raise_file_limit()
    nodes: set[NodeKind] = {row.node for row in options.workloads}
    if options.extras:
        nodes |= {"http", "uwsgi-unix"}
    outcomes: list[Outcome] = []
    held: list[Held] = []
    with contextlib.ExitStack() as stack:
        origin, there = start_origins(tools, nodes, directory, load_core, stack)
        origin = _write_files(options.workloads, origin, there, stack)
        bench = Bench(
            tools, directory, proxy_core, load_core, origin, options.rounds, options.seconds, say
        )
        for workload in options.workloads:
            outcome = _one(bench, workload, options.peers, there)
            if outcome:
                outcomes.append(outcome)
        held = _memory(bench, options, there)
    return outcomes, held


def _write_files(
    rows: list[Workload], origin: Origin, there: set[NodeKind], stack: contextlib.ExitStack
) -> Origin:
    """Write what the workloads ask for, on a disk; without it they are left out."""
    rows = [row for row in rows if row.node == "files"]
    if not rows:
        return origin
    try:
        directory = stack.enter_context(static_files.on_disk(static_files.needed(rows)))
        static_files.write(directory, rows)
    except OSError as error:
        say(f"files: {error}")
        return origin
    there.add("files")
    return replace(origin, files=str(directory))


def _one(
    bench: Bench, workload: Workload, wanted: list[str], there: set[NodeKind]
) -> Outcome | None:
    names = contenders(wanted, workload.peers, workload.node, bench.tools, workload.ours)
    if workload.node not in there or not bench.tools.has("wrk") or not names:
        say(f"{workload.name}: left out, something it needs is missing\n")
        return None
    outcome = compare.run_workload(bench, workload, names)
    say(compare.render(outcome) + "\n")
    return outcome


def _memory(bench: Bench, options: argparse.Namespace, there: set[NodeKind]) -> list[Held]:
    held: list[Held] = []
    standard = ("uwgate", "nginx", "haproxy")
    if "idle" in options.extras and "http" in there:
        names = contenders(options.peers, standard, "http", bench.tools)
        held += memory.idle(bench, names, options.idle)
    if "tls-idle" in options.extras and "http" in there:
        names = contenders(options.peers, standard, "http", bench.tools)
        held += memory.tls_idle(bench, names, options.idle)
    if "stalled" in options.extras:
        kinds: tuple[NodeKind, ...] = ("http", "uwsgi-unix")
        for node in kinds:
            if node in there:
                names = contenders(options.peers, (*standard, "uwsgi"), node, bench.tools)
                held += memory.stalled(bench, names, node)
    if "files" in options.extras and "uwsgi-unix" in there:
        names = contenders(options.peers, ("uwgate", "uwsgi"), "uwsgi-unix", bench.tools)
        held += memory.files(bench, names, "uwsgi-unix")
    if held:
        say(memory.render(held) + "\n")
    return held


def machine(tools: Tools) -> dict[str, str]:
    """What was measured on."""
    facts = {
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    facts.update({name: tools.version(name) for name in ("nginx", "haproxy", "uwsgi", "wrk")})
    return facts


def report(
    options: argparse.Namespace, facts: dict[str, str], results: tuple[list[Outcome], list[Held]]
) -> int:
    """Print the verdicts, write the JSON file; exit code 0, or 1 if anything failed or is over."""
    outcomes, held = results
    found = [item for outcome in outcomes for item in compare.verdicts(outcome)]
    found += memory.verdicts(held)
    for text, kept in found:
        say(f"{'ok  ' if kept else 'OVER'}  {text}")
    failures = [f"{o.workload.name}, {p}: {w}" for o in outcomes for p, w in o.failed.items()]
    failures += [f"{row.test}, {row.peer}: {row.failed}" for row in held if row.failed]
    for line in failures:
        say(f"FAILED  {line}")
    if options.json:
        document = {
            "machine": facts,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "workloads": [asdict(outcome) for outcome in outcomes],
            "memory": [asdict(row) for row in held],
            "verdicts": [{"text": text, "kept": kept} for text, kept in found],
            "failures": failures,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if outcomes + held and not failures and all(kept for _, kept in found) else 1


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; the exit code says whether every promise that was measured held."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, _terminated)
    tools = find_tools()
    for line in tools.missing():
        say(f"missing: {line}")
    facts = machine(tools)
    say("; ".join(f"{name}: {value}" for name, value in facts.items() if value) + "\n")
    with tempfile.TemporaryDirectory(prefix="uwgate-bench-") as name:
        results = run(options, tools, Path(name))
    return report(options, facts, results)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
