"""``python -m benchmarks.soak``: mixed load while a node is killed (-9) every few seconds.

Four nodes (two real uWSGI, two gunicorn) behind one uwgate. It passes if no GET failed, no process
of uwgate died or printed a traceback, its descriptors are back to where they were, and its memory
stayed flat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import FrameType

import uvloop

from benchmarks.origins import uwsgi_command
from benchmarks.peers import ROOT
from benchmarks.procs import (
    Process,
    StartError,
    descriptors,
    family,
    free_port,
    rss_bytes,
    wait_connect,
    wait_http,
)
from benchmarks.soak_client import Client, Score
from benchmarks.tools import Tools, find_tools

RSS_SLACK = 8 << 20  # bytes that the last fifth may be above the second
QUIET = 8.0  # seconds until pooled connections to nodes are gone (they may idle for 2)
QUIET_DEADLINE = 30.0
WARM_UP = 5.0
NODE_DOWN = 2.0  # seconds between a kill and the new start

Descriptors = dict[int, list[str]]  # what each process holds open


@dataclass(slots=True)
class Node:
    """A node that can be killed and started again on the same address."""

    name: str
    argv: list[str]
    address: tuple[str, int] | str
    directory: Path
    process: Process | None = None

    def start(self) -> None:
        """Start and wait until it accepts; StartError."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        log = self.directory / f"{self.name}.log"
        self.process = Process(self.name, self.argv, log, cwd=self.directory, env=env)
        wait_connect(self.process, self.address)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        if self.process:
            self.process.kill()


@dataclass(slots=True)
class Watch:
    """What uwgate's processes looked like: RSS once a second, descriptors when at rest."""

    router: Process
    pids: list[int] = field(default_factory=list)
    base: Descriptors = field(default_factory=dict)
    rss: list[int] = field(default_factory=list)

    def problems(self, final: Descriptors) -> list[str]:
        """What is wrong at the end; an empty list if nothing is."""
        found = []
        now = family(self.router.pid)
        if not self.router.running() or sorted(now) != sorted(self.pids):
            found.append(f"processes of uwgate changed: {sorted(self.pids)} -> {sorted(now)}")
        if "Traceback" in self.router.log.read_text(errors="replace"):
            found.append(f"a traceback in the log: {self.router.tail(3)}")
        for pid, open_now in final.items():
            before = self.base.get(pid, [])
            if len(open_now) > len(before):
                extra = ", ".join(sorted(set(open_now) - set(before)))
                found.append(f"{pid} leaks descriptors: {len(before)} -> {len(open_now)}: {extra}")
        early, late = self.levels()
        if late > early + RSS_SLACK:
            found.append(f"RSS grew from {early / 1e6:.1f} to {late / 1e6:.1f} MB")
        return found

    def levels(self) -> tuple[float, float]:
        """Median RSS of the second fifth and of the last fifth of the run, bytes."""
        fifth = max(1, len(self.rss) // 5)
        return median(self.rss[fifth : 2 * fifth] or self.rss), median(self.rss[-fifth:])


def make_nodes(tools: Tools, directory: Path) -> list[Node]:
    """Two uWSGI nodes on unix sockets, two gunicorn nodes on TCP."""
    nodes = []
    for name in ("uwsgi-1", "uwsgi-2"):
        path = str(directory / f"{name}.sock")
        argv = uwsgi_command(tools, f"--socket={path}", processes=4)
        nodes.append(Node(name, argv, path, directory))
    for name in ("gunicorn-1", "gunicorn-2"):
        port = free_port()
        argv = [*tools.commands["gunicorn"], "--bind", f"127.0.0.1:{port}", "--workers", "1"]
        argv += ["--worker-class", "gthread", "--threads", "16", "--keep-alive", "75"]
        argv += ["--log-level", "error", "benchmarks.app:application"]
        nodes.append(Node(name, argv, ("127.0.0.1", port), directory))
    return nodes


def start_router(tools: Tools, nodes: list[Node], directory: Path) -> tuple[Process, int]:
    """uwgate before all nodes; (process, port). StartError."""
    port = free_port()
    argv = [*tools.commands["uwgate"], "--http", f"127.0.0.1:{port}"]
    for node in nodes:
        where = node.address
        argv += ["--http-to", where if isinstance(where, str) else f"http://{where[0]}:{where[1]}"]
    argv += ["--http-gracetime", "2", "--http-node-keepalive-timeout", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = Process("uwgate", argv, directory / "uwgate.log", cwd=directory, env=env)
    try:
        wait_http(process, ("127.0.0.1", port))
    except BaseException:
        process.stop()
        raise
    return process, port


async def load(port: int, clients: int, score: Score, active: Callable[[], bool]) -> None:
    """``clients`` users at once until ``active()`` is false."""
    await asyncio.gather(*(Client(port, seed, score).run(active) for seed in range(clients)))


async def kill_in_turn(
    nodes: list[Node], every: float, score: Score, active: Callable[[], bool]
) -> None:
    """Every ``every`` seconds kill the next node, start it again NODE_DOWN seconds later."""
    for node in itertools.cycle(nodes):
        await asyncio.sleep(every - NODE_DOWN)
        if not active():
            return
        score.kills.append(time.monotonic())
        node.kill()
        await asyncio.sleep(NODE_DOWN)
        await asyncio.to_thread(node.start)


async def sample(watch: Watch, active: Callable[[], bool]) -> None:
    """Note the RSS once a second."""
    while active():
        watch.rss.append(rss_bytes(watch.pids))
        await asyncio.sleep(1)


async def at_rest(watch: Watch) -> Descriptors:
    """Descriptors once nothing is going on: the lowest of QUIET seconds, or down to the base."""
    lowest: Descriptors = {}
    deadline = time.monotonic() + (QUIET_DEADLINE if watch.base else QUIET)
    while time.monotonic() < deadline:
        now = descriptors(watch.pids)
        if not lowest or held(now) < held(lowest):
            lowest = now
        if watch.base and all(len(now.get(pid, [])) <= len(n) for pid, n in watch.base.items()):
            return now
        await asyncio.sleep(0.5)
    return lowest


def held(found: Descriptors) -> int:
    """How many descriptors all processes hold."""
    return sum(map(len, found.values()))


def _until(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


async def soak(options: argparse.Namespace, nodes: list[Node], router: Process, port: int) -> int:
    """Warm up, load and kill, come to rest, judge; the exit code."""
    watch, warm, score = Watch(router, family(router.pid)), Score(), Score()
    await load(port, options.clients, warm, _until(WARM_UP))
    for text in warm.failures:
        score.fail(f"warm-up: {text}")
    watch.base = await at_rest(watch)
    active = _until(options.minutes * 60)
    await asyncio.gather(
        load(port, options.clients, score, active),
        kill_in_turn(nodes, options.every, score, active),
        sample(watch, active),
    )
    final = await at_rest(watch)
    problems = watch.problems(final)
    if score.failed:
        problems.append(f"{score.failed} requests failed")
    summary(score, watch, final)
    for text in score.failures:
        print(f"failure: {text}")
    for text in problems:
        print(f"PROBLEM: {text}")
    print("failed" if problems else "passed")
    return 1 if problems else 0


def summary(score: Score, watch: Watch, final: Descriptors) -> None:
    """Print what happened."""
    total = sum(score.done.values())
    print(f"{total:,} requests answered rightly, {len(score.kills)} nodes killed")
    for kind, count in sorted(score.done.items()):
        print(f"  {kind}: {count:,}")
    print(f"  GETs cut in the body by a kill: {score.cut}; POSTs lost with a node: ", end="")
    print(f"{score.casualties}; failures: {score.failed}")
    early, late = watch.levels()
    print(
        f"RSS {early / 1e6:.1f} MB early, {late / 1e6:.1f} MB late, {max(watch.rss) / 1e6:.1f}",
        end="",
    )
    print(f" MB at most; descriptors {held(watch.base)} before, {held(final)} after")


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: everything held. 1: something did not. 2: something needed is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between kills (5)")
    options = parser.parse_args(argv)
    if options.minutes <= 0 or options.clients < 1 or options.every < 3:
        parser.error("needs --minutes > 0, --clients >= 1, --every >= 3")
    tools = find_tools()
    needed = [name for name in ("uwgate", "uwsgi", "gunicorn") if not tools.has(name)]
    if needed:
        print(f"missing: {', '.join(needed)}")
        return 2
    signal.signal(signal.SIGTERM, _terminated)
    with (
        tempfile.TemporaryDirectory(prefix="uwgate-soak-") as name,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        nodes = make_nodes(tools, directory)
        try:
            for node in nodes:
                stack.callback(node.kill)
                node.start()
            router, port = start_router(tools, nodes, directory)
            stack.callback(router.stop)
            return uvloop.run(soak(options, nodes, router, port))
        except StartError as error:
            print(error)
            return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
