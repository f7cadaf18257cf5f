"""``python -m benchmarks.rolling``: nodes and workers are reloaded and killed, and no GET fails.

Three real uWSGI nodes announce themselves to one uwgate with two workers. While GETs arrive at a
fixed rate, the nodes are reloaded gracefully in turn, again and again, a node is killed (-9) every
five seconds and a worker of the router every ten.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import uvloop

from benchmarks.origins import uwsgi_command
from benchmarks.peers import ROOT
from benchmarks.procs import Process, StartError, family, free_port, rss_bytes, wait_connect
from benchmarks.rolling_client import Score, Traffic, quantile
from benchmarks.tools import Tools, find_tools

KEY = "rolling.example"
JOIN_DEADLINE = 20.0  # seconds until a node has announced itself
RSS_SLACK = 8 << 20  # bytes that the master's last fifth may be above its second
SAMPLE = 1.0  # seconds between looks at the statistics
_COUNTERS = ("joined", "left", "marked", "revived", "expired", "updated", "refreshed")
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(slots=True)
class Node:
    """A uWSGI instance that announces ``address``. ``up`` between its start and its death."""

    name: str
    argv: list[str]
    address: str
    directory: Path
    process: Process | None = None
    up: bool = False
    reloads: int = 0

    def start(self) -> None:
        """Start and wait until it accepts; StartError."""
        # uWSGI as a Python module starts the interpreter, not the virtualenv's, on reload.
        path = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
        env = {**os.environ, "PYTHONPATH": path}
        log = self.directory / f"{self.name}.log"
        self.process = Process(self.name, self.argv, log, cwd=self.directory, env=env)
        host, _, port = self.address.rpartition(":")
        wait_connect(self.process, (host, int(port)) if host else self.address)
        self.up = True

    def kill(self) -> None:
        """SIGKILL to all its processes at once."""
        self.up = False
        if self.process is not None:
            self.process.kill()

    def reload(self) -> None:
        """What an operator does after a deployment: SIGHUP."""
        assert self.process is not None
        self.reloads += 1
        os.kill(self.process.pid, signal.SIGHUP)

    def reloaded(self) -> int:
        """How many reloads its log tells of."""
        text = (self.directory / f"{self.name}.log").read_text(errors="replace")
        return text.count("binary reloading uWSGI")


@dataclass(slots=True)
class Router:
    """uwgate with its statistics. ``rss``: of the master and of all, bytes, once a second."""

    process: Process
    port: int
    stats_port: int
    rss: list[tuple[int, int]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    killed: int = 0

    def workers(self) -> list[int]:
        """Pids of the workers."""
        return [pid for pid in family(self.process.pid) if pid != self.process.pid]

    def said(self, text: str) -> int:
        """How often its log has ``text``."""
        return self.process.log.read_text(errors="replace").count(text)

    async def sample(self) -> None:
        """Read the statistics and note the memory."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.stats_port)
        try:
            self.stats = json.loads(await asyncio.wait_for(reader.read(-1), 10))
        finally:
            writer.close()
        pids = family(self.process.pid)
        self.rss.append((rss_bytes(pids[:1]), rss_bytes(pids)))

    def counters(self) -> dict[str, int]:
        """What happened to nodes, as the statistics count it."""
        found = self.stats.get("subscription_counters", {}).get("http", {})
        return {name: int(found.get(name, 0)) for name in _COUNTERS}

    def problems(self) -> list[str]:
        """What is wrong with it at the end."""
        found = []
        if not self.process.running():
            found.append(f"the master ended: {self.process.tail()}")
        if self.said("Traceback"):
            found.append(f"a traceback in the log: {self.process.tail(3)}")
        early, late = levels([master for master, _ in self.rss])
        if late > early + RSS_SLACK:
            found.append(f"RSS of the master grew from {early / 1e6:.1f} to {late / 1e6:.1f} MB")
        return found


def levels(values: list[int]) -> tuple[float, float]:
    """Medians of the second fifth and of the last fifth; zeros of nothing."""
    if not values:
        return 0.0, 0.0
    fifth = max(1, len(values) // 5)
    return median(values[fifth : 2 * fifth] or values), median(values[-fifth:])


def steady_port() -> int:
    """A free TCP port that no outgoing connection takes while its node is down."""
    low, high = map(int, _EPHEMERAL.read_text().split())
    while True:
        port = random.randrange(10_000, 60_000)
        if low <= port <= high:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def make_nodes(
    tools: Tools, options: argparse.Namespace, server: str, directory: Path
) -> list[Node]:
    """The nodes, not started."""
    nodes = []
    for number in range(1, options.nodes + 1):
        name = f"node-{number}"
        tcp = options.sockets == "tcp"
        address = f"127.0.0.1:{steady_port()}" if tcp else str(directory / f"{name}.sock")
        argv = uwsgi_command(
            tools,
            f"--socket={address}",
            f"--subscribe-to={server}:{KEY}",
            "--subscribe-freq=2",
            "--unsubscribe-on-graceful-reload",
            *options.node_option,
            processes=4,
        )
        nodes.append(Node(name, argv, address, directory))
    return nodes


def start_router(
    tools: Tools, options: argparse.Namespace, server: str, directory: Path
) -> Router:
    """uwgate without any node yet; StartError."""
    port, stats_port = free_port(), free_port()
    argv = [*tools.commands["uwgate"], "--http", f"127.0.0.1:{port}"]
    argv += ["--http-processes", str(options.processes), "--http-subscription-server", server]
    argv += ["--http-stats", f"127.0.0.1:{stats_port}", *options.router_option]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = Process("uwgate", argv, directory / "uwgate.log", cwd=directory, env=env)
    try:
        wait_connect(process, ("127.0.0.1", port))
        wait_connect(process, ("127.0.0.1", stats_port))
    except BaseException:
        process.stop()
        raise
    return Router(process, port, stats_port)


class Disturbance:
    """Everything that is done to nodes and workers while requests arrive."""

    def __init__(
        self, options: argparse.Namespace, nodes: list[Node], router: Router, score: Score
    ) -> None:
        self._options = options
        self._nodes = nodes
        self._router = router
        self._score = score

    async def run(self) -> None:
        """Until cancelled."""
        options = self._options
        async with asyncio.TaskGroup() as group:
            if options.kill_every:
                group.create_task(self._kill_nodes(options.kill_every))
            if options.worker_every:
                group.create_task(self._kill_workers(options.worker_every))
            if options.reload_every:
                group.create_task(self._reload_nodes(options.reload_every))
            group.create_task(self._watch())

    async def _kill_nodes(self, every: float) -> None:
        for node in itertools.cycle(self._nodes):
            await asyncio.sleep(every - self._options.down)
            self._score.node_kills.append(time.monotonic())
            node.kill()
            await asyncio.sleep(self._options.down)
            await asyncio.to_thread(node.start)

    async def _kill_workers(self, every: float) -> None:
        for number in itertools.count():
            await asyncio.sleep(every)
            workers = sorted(self._router.workers())
            if workers:
                self._score.worker_kills.append(time.monotonic())
                os.kill(workers[number % len(workers)], signal.SIGKILL)
                self._router.killed += 1

    async def _reload_nodes(self, every: float) -> None:
        """One after the other, each when the one before it is back."""
        for node in itertools.cycle(self._nodes):
            await asyncio.sleep(every)
            while not node.up:
                await asyncio.sleep(0.1)
            joins = self._router.said(f"new node: {node.address} ")
            node.reload()
            deadline = time.monotonic() + JOIN_DEADLINE
            while self._router.said(f"new node: {node.address} ") == joins:
                if time.monotonic() > deadline:
                    raise StartError(f"{node.name} did not come back after its reload")
                await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        while True:
            await self._router.sample()
            await asyncio.sleep(SAMPLE)


async def all_joined(router: Router, nodes: list[Node]) -> None:
    """Until every node has announced itself; StartError."""
    deadline = time.monotonic() + JOIN_DEADLINE
    while not all(router.said(f"new node: {node.address} ") for node in nodes):
        if time.monotonic() > deadline:
            raise StartError(f"not every node has announced itself: {router.process.tail()}")
        await asyncio.sleep(0.05)


async def roll(options: argparse.Namespace, nodes: list[Node], router: Router) -> int:
    """The whole test; the exit code."""
    await all_joined(router, nodes)
    score = Score()
    traffic = Traffic(
        router.port, KEY, score, rate=options.rate, kept=options.kept, wait=options.wait
    )
    # What disturbs goes on until the last answer is here.
    disturbance = asyncio.create_task(Disturbance(options, nodes, router, score).run())
    load = asyncio.create_task(traffic.run(options.seconds))
    await asyncio.wait((disturbance, load), return_when=asyncio.FIRST_COMPLETED)
    problems = []
    if disturbance.done():
        await load
        problems.append(f"the test itself broke: {disturbance.exception()!r}")
    disturbance.cancel()
    await asyncio.wait((disturbance,))
    await router.sample()
    problems += router.problems()
    if sum(score.failed.values()):
        problems.append(f"{sum(score.failed.values())} GETs failed")
    problems += unaccounted(score)
    found = facts(score, nodes, router)
    print(render(found), flush=True)
    for text in score.failures:
        print(f"failure: {text}")
    for text in problems:
        print(f"PROBLEM: {text}")
    if options.json:
        document = {**found, "failures": score.failures, "problems": problems}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if problems and options.keep_log:
        options.keep_log.write_text(router.process.log.read_text(errors="replace"))
    print("failed" if problems else "passed")
    return 1 if problems else 0


def unaccounted(score: Score) -> list[str]:
    """Whether the client itself can be trusted: every request has one outcome."""
    known = sum(score.done.values()) + sum(score.failed.values()) + score.cut
    if score.asked and known == score.asked:
        return []
    return [f"{score.asked} requests were made, but the outcome of {known} is known"]


def facts(score: Score, nodes: list[Node], router: Router) -> dict[str, Any]:
    """What happened, in plain values (seconds, bytes)."""
    master, everything = zip(*router.rss, strict=True)
    return {
        "answered": sum(score.done.values()),
        "done": dict(sorted(score.done.items())),
        "failed": dict(score.failed),
        "repeated": score.repeated,
        "cut": score.cut,
        "stale": score.stale,
        "latency": {
            "p50": quantile(score.latencies, 0.5),
            "p99": quantile(score.latencies, 0.99),
            "p999": quantile(score.latencies, 0.999),
            "max": max(score.latencies, default=0.0),
            "client_lag": score.lag,
        },
        "node_kills": len(score.node_kills),
        "worker_kills": router.killed,
        "reloads": sum(node.reloads for node in nodes),
        "reloads_finished": sum(node.reloaded() for node in nodes),
        "counters": router.counters(),
        "retries": int(router.stats.get("counters", {}).get("retries", 0)),
        "rss_master": levels(list(master)),
        "rss_all": levels(list(everything)),
    }


def render(found: dict[str, Any]) -> str:
    """`facts` for people."""
    latency, failed = found["latency"], found["failed"]
    lines = [f"{found['answered']:,} GETs answered rightly, {sum(failed.values())} failed"]
    lines += [f"  {kind}: {count:,}" for kind, count in found["done"].items()]
    lines += [f"  FAILED, {kind}: {count:,}" for kind, count in failed.items()]
    lines.append(
        f"  repeated by the client after a worker was killed: {found['repeated']};"
        f" cut in the middle by a kill: {found['cut']};"
        f" kept connections found closed: {found['stale']}"
    )
    times = ", ".join(f"{name} {1000 * value:.1f}" for name, value in latency.items())
    lines.append(f"latency, ms: {times}")
    lines.append(
        f"{found['node_kills']} nodes killed, {found['worker_kills']} workers killed,"
        f" {found['reloads']} reloads ({found['reloads_finished']} finished)"
    )
    counted = ", ".join(f"{name} {value:,}" for name, value in found["counters"].items())
    lines.append(f"statistics: {counted}, retries {found['retries']:,}")
    for name, text in (("rss_master", "master"), ("rss_all", "all processes")):
        early, late = found[name]
        lines.append(f"RSS of {text}: {early / 1e6:.1f} MB early, {late / 1e6:.1f} MB late")
    return "\n".join(lines)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="length (180)")
    parser.add_argument("--rate", type=float, default=200.0, help="GETs a second (200)")
    parser.add_argument("--nodes", type=int, default=3, help="uWSGI instances (3)")
    parser.add_argument("--processes", type=int, default=2, help="workers of uwgate (2)")
    parser.add_argument("--sockets", choices=("tcp", "unix"), default="tcp", help="of nodes (tcp)")
    parser.add_argument(
        "--kill-every", type=float, default=5.0, help="seconds between kills of a node (5; 0: none)"
    )
    parser.add_argument("--down", type=float, default=1.0, help="seconds a node stays killed (1)")
    parser.add_argument(
        "--worker-every", type=float, default=10.0, help="between kills of a worker (10; 0: none)"
    )
    parser.add_argument(
        "--reload-every", type=float, default=1.0, help="pause between reloads (1; 0: none)"
    )
    parser.add_argument("--kept", type=float, default=0.5, help="share on kept connections (0.5)")
    parser.add_argument("--wait", type=int, default=20, help="ms that a slow answer takes (20)")
    parser.add_argument("--router-option", action="append", default=[], help="for uwgate")
    parser.add_argument("--node-option", action="append", default=[], help="for uWSGI")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--keep-log", type=Path, help="where uwgate's log goes after a failure")
    options = parser.parse_args(argv)
    if options.seconds <= 0 or options.rate <= 0 or options.processes < 1:
        parser.error("needs --seconds > 0, --rate > 0, --processes >= 1")
    if options.nodes < 3 and (options.kill_every and options.reload_every):
        parser.error("with both kills and reloads two nodes may be away: needs --nodes >= 3")
    if options.kill_every and options.kill_every < options.down + 2:
        parser.error("--kill-every must be 2 seconds more than --down, or two nodes are away")
    if not 0 <= options.kept <= 1 or min(options.worker_every, options.reload_every) < 0:
        parser.error("--kept is from 0 to 1, times are not negative")
    return options


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: no GET failed. 1: something did. 2: something needed is missing."""
    options = arguments(argv)
    tools = find_tools()
    needed = [name for name in ("uwgate", "uwsgi") if not tools.has(name)]
    if needed:
        print(f"missing: {', '.join(needed)}")
        return 2
    signal.signal(signal.SIGTERM, _terminated)
    with (
        tempfile.TemporaryDirectory(prefix="uwgate-rolling-") as name,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        server = f"127.0.0.1:{free_port()}"
        try:
            router = start_router(tools, options, server, directory)
            stack.callback(router.process.stop)
            nodes = make_nodes(tools, options, server, directory)
            for node in nodes:
                stack.callback(node.kill)
                node.start()
            return uvloop.run(roll(options, nodes, router))
        except StartError as error:
            print(error)
            return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
