"""``python -m benchmarks.reload``: an instance is reloaded every second, and nobody notices.

Kept and new connections, WebSockets, large uploads, TLS and plain, files and three nodes that
announce themselves; beside uwgate, in turn, nginx and HAProxy under the same load.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import uvloop

from benchmarks import certificates
from benchmarks.memory import raise_file_limit
from benchmarks.peers import ROOT
from benchmarks.procs import Process, StartError, cores, free_port, on_core, wait_connect
from benchmarks.reload_client import Failure, Lag, Score, check, connect, repeated
from benchmarks.reload_load import Load, encode
from benchmarks.reload_peers import (
    CONTENDERS,
    HOW,
    PEERS,
    Contender,
    Scene,
    interpreter,
    program,
    session,
)
from benchmarks.reload_report import Seen, comparison, judge, objections, render
from benchmarks.reload_watch import Markers, Sample, busy, sample
from benchmarks.rolling import steady_port
from benchmarks.tools import Tools, find_tools

HOST = "reload.example"
NODES = 3
PATIENCE = 20.0  # seconds until a configuration has to serve, or nodes are known
SAMPLE = 1.0  # seconds between looks at /proc
_FILES = {"small.txt": 600, "page.html": 12_000, "script.js": 70_000}


# --- one contender --------------------------------------------------------------------------------


class Trial:
    """One contender from its start to its end."""

    def __init__(
        self, options: argparse.Namespace, tools: Tools, contender: Contender, nodes: list[Process]
    ) -> None:
        self._options = options
        self._tools = tools
        self._contender = contender
        self._nodes = nodes
        self._number = 0
        self.seen = Seen(contender.name)
        scene = contender.scene
        self._where = scene.plain, scene.host
        self._markers = self.seen.markers = Markers(*self._where, Score())
        self._said = scene.directory / "load.json"
        self._loading = False
        self._calm = True  # nobody polls

    async def run(self) -> Seen:
        """Start, warm up, load and reload, come to rest; StartError."""
        contender, seen, options = self._contender, self.seen, self._options
        contender.start(self._tools, options.cores[0])
        try:
            wait_connect(contender.process, ("127.0.0.1", contender.scene.plain))
            await self._all_nodes()
            # The first reload makes the memory that all others have as well.
            seen.before = await self._after_reload()
            seen.reloads.clear()
            self._markers.score = Score()
            self._markers.seen.clear()
            await self._loaded()
            reloads, self._markers = list(seen.reloads), Markers(*self._where, Score())
            await self._steady()
            seen.after = await self._after_reload()
            seen.reloads = reloads
            seen.problems = contender.problems()
            seen.facts = contender.facts()
            if options.keep_logs:
                target = options.keep_logs / f"{contender.name}.log"
                target.write_bytes(contender.process.log.read_bytes())
        finally:
            contender.stop()
        return seen

    async def _all_nodes(self) -> None:
        """Until each of the nodes has answered."""
        answered: set[bytes] = set()
        deadline = time.monotonic() + PATIENCE
        scene = self._contender.scene
        while len(answered) < NODES:
            if time.monotonic() > deadline:
                raise StartError(f"not every node is known: {self._contender.process.tail()}")
            with contextlib.suppress(Failure):
                wire = await connect(scene.plain, None, scene.host)
                wire.write(f"GET /echo/9/hello HTTP/1.1\r\nHost: {scene.host}\r\n\r\n".encode())
                response = await wire.response()
                wire.close()
                check(response, repeated("hello", 9), wire)
                fields = response.head.lower().split(b"\r\n")
                answered.update(each for each in fields if each.startswith(b"x-node:"))
            await asyncio.sleep(0.01)

    async def _reload(self) -> None:
        """One, and wait until it answers."""
        self._number += 1
        self._contender.configure(self._number)
        self.seen.reloads.append(time.monotonic())
        try:
            self._contender.reload()
        except OSError as error:
            self.seen.problems.append(f"no order could be given: {error}")
        polling = asyncio.create_task(self._markers.poll()) if self._calm else None
        if await self._markers.reached(self._number, PATIENCE):
            self._contender.seen()
        else:
            self.seen.missed += 1
        if polling is not None:
            polling.cancel()

    async def _after_reload(self) -> Sample:
        """What there is at rest after a reload without load."""
        await self._reload()
        await self._steady()
        return self._look()

    async def _steady(self) -> None:
        """Until no process comes or goes any more, or the mercy is over.

        The rehearsal of a reload that was ordered while one was under way lasts almost a second.
        """
        last, steady = 0, 0
        deadline = time.monotonic() + self._contender.scene.mercy + 6
        while steady < 15 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            count = len(session(self._contender.process.pid))
            steady = steady + 1 if count == last else 0
            last = count

    def _look(self) -> Sample:
        return sample(self._contender.master, session(self._contender.process.pid))

    async def _loaded(self) -> None:
        """The load, reloads beside it until it is over, and what both say."""
        seen, lag = self.seen, Lag()
        self._loading, self._calm = True, False
        worked, could = busy()
        load = await self._start_load()
        helpers = (lag.watch, self._markers.poll, self._watch)
        tasks = [asyncio.create_task(each()) for each in helpers]
        reloads = asyncio.create_task(self._reloads())
        try:
            code = await load.wait()
            self._loading = False
            await reloads
        finally:
            for task in (*tasks, reloads):
                task.cancel()
            if load.returncode is None:
                load.kill()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                raise StartError(f"the benchmark itself broke: {result!r}")
        self._calm = True
        later, could_later = busy()
        seen.busy = (later - worked) / max(could_later - could, 0.01)
        seen.lags = lag.flat()
        if code:
            raise StartError(f"the load ended with {code}")
        seen.load = json.loads(self._said.read_text())

    async def _start_load(self) -> asyncio.subprocess.Process:
        options, scene = self._options, self._contender.scene
        load = Load(
            scene.plain,
            scene.tls,
            scene.host,
            options.seconds,
            options.kept,
            options.kept / max(options.rate, 1.0),
            options.fresh,
            options.fresh_think,
            options.websockets,
            0.02,
            options.uploads,
            tuple(round(size * 1e6) for size in options.upload_mb),
            options.upload_rate * 1e6,
            str(scene.files) if self._contender.static else "",
            options.slow,
        )
        argv = [*interpreter(), "benchmarks.reload_load", encode(load)]
        # Megabytes: a file takes them at once, whatever this process is doing.
        with on_core(options.cores[1]), self._said.open("wb") as sink:
            return await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=sink)

    async def _reloads(self) -> None:
        """One every so many seconds until the load is over, and until all of them answer."""
        tasks: list[asyncio.Task[None]] = []
        due = time.monotonic() + min(0.5, self._options.every)
        while self._loading:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += self._options.every
            tasks.append(asyncio.create_task(self._reload()))
            if self._contender.name in ("fork", "version"):
                # Or two old masters would share the place of one, and a master that is importing
                # would get modules of two versions.
                await tasks[-1]
                due = max(due, time.monotonic())
        await asyncio.gather(*tasks)

    async def _watch(self) -> None:
        while True:
            self.seen.samples.append(self._look())
            await asyncio.sleep(SAMPLE)


# --- the whole ------------------------------------------------------------------------------------


def start_nodes(directory: Path, ports: list[int], server: str, core: int | None) -> list[Process]:
    """The nodes, accepting; StartError."""
    nodes: list[Process] = []
    try:
        for number, port in enumerate(ports):
            name = f"node-{number}"
            argv = [*interpreter(), "benchmarks.reload_node", f"--name={name}", f"--port={port}"]
            argv += [f"--key={HOST}", f"--server={server}"]
            log = directory / f"{name}.json"
            nodes.append(Process(name, argv, log, core=core, cwd=ROOT))
        for node, port in zip(nodes, ports, strict=True):
            wait_connect(node, ("127.0.0.1", port))
    except BaseException:
        for node in nodes:
            node.stop()
        raise
    return nodes


def try_one(options: argparse.Namespace, tools: Tools, name: str, directory: Path) -> Seen:
    """One contender with nodes of its own; StartError."""
    ports, server = [steady_port() for _ in range(NODES)], f"127.0.0.1:{free_port()}"
    files, where = directory / "files", directory / name
    where.mkdir()
    files.mkdir(exist_ok=True)
    for file, size in _FILES.items():
        (files / file).write_bytes(repeated(file, size))
    scene = Scene(
        where, steady_port(), steady_port(), server, tuple(ports), HOST,
        certificates.make(where / "certificate", HOST), files, options.mercy, options.processes,
        tuple(options.router_option), options.other,
    )  # fmt: skip
    nodes = start_nodes(where, ports, server, options.cores[1])
    try:
        seen = uvloop.run(Trial(options, tools, CONTENDERS[name](scene), nodes).run())
    finally:
        for node in nodes:
            node.stop()
    for node in nodes:
        with contextlib.suppress(ValueError):
            seen.node_lags += json.loads(node.log.read_text())
    return seen


def sizes(text: str) -> tuple[float, float]:
    """"20-50" or "20"; ValueError."""
    low, _, high = text.partition("-")
    pair = float(low), float(high or low)
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(text)
    return pair


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reload", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="length of the load (60)")
    add("--every", type=float, default=1.0, help="seconds between reloads (1)")
    add("--how", default="hup", help=f"how uwgate is reloaded: {', '.join(HOW)}, or all (hup)")
    add("--peers", default="", help=f"who else: {', '.join(PEERS)}")
    add("--other", default="", help="revision that `version` takes turns with (a renamed copy)")
    add("--rate", type=float, default=800.0, help="requests a second on kept connections (800)")
    add("--kept", type=int, default=64, help="kept connections (64)")
    add("--slow", type=int, default=8, help="of them, with pauses 40 times as long (8)")
    add("--fresh", type=int, default=16, help="clients with new connections (16)")
    add("--fresh-think", type=float, default=0.2, help="their mean pause, seconds (0.2)")
    add("--websockets", type=int, default=4, help="WebSockets (4)")
    add("--uploads", type=int, default=2, help="uploads at a time (2)")
    add("--upload-mb", type=sizes, default=(20, 50), help="their sizes, MB (20-50)")
    add("--upload-rate", type=float, default=5.0, help="MB/s of each (5)")
    add("--mercy", type=int, default=15, help="seconds that old workers get (15)")
    add("--processes", type=int, default=2, help="workers or threads (2)")
    add("--bind", action="store_true", help="contender on one core, load and nodes on another")
    add("--router-option", action="append", default=[], help="a line of uwgate's configuration")
    add("--strict", action="store_true", help="a delay of more than 100 ms is a failure as well")
    add("--keep-logs", type=Path, help="directory for the logs of the contenders")
    add("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(argv)
    options.names = list(HOW) if options.how == "all" else _words(options.how)
    options.names += _words(options.peers)
    for name in options.names:
        if name not in CONTENDERS:
            parser.error(f"{name}: there are {', '.join(CONTENDERS)}")
    if min(options.seconds, options.every, options.upload_rate, options.mercy) <= 0:
        parser.error("times and rates are more than 0")
    if not 0 <= options.slow <= options.kept:
        parser.error("--slow is at most --kept")
    options.cores = cores() if options.bind else (None, None)
    return options


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: uwgate lost nothing. 1: it did. 2: something needed is missing."""
    options = arguments(argv)
    tools = find_tools()
    missing = sorted({program(name) for name in options.names} - set(tools.commands))
    if missing:
        print(f"missing: {', '.join(missing)}")
        return 2
    signal.signal(signal.SIGTERM, _terminated)
    raise_file_limit()
    results, bad = [], []
    with tempfile.TemporaryDirectory(prefix="uwgate-reload-") as directory:
        for name in options.names:
            try:
                found = judge(try_one(options, tools, name, Path(directory)), options.mercy)
            except StartError as error:
                print(f"{name}: {error}", flush=True)
                bad.append(f"{name}: {error}")
                continue
            results.append(found)
            print(render(found), flush=True)
            if name in HOW:
                bad += [f"{name}: {text}" for text in objections(found, strict=options.strict)]
    if len(results) > 1:
        print(comparison(results), flush=True)
    for text in bad:
        print(f"PROBLEM: {text}")
    if options.json:
        options.json.write_text(json.dumps({"results": results, "problems": bad}, indent=1) + "\n")
    print("failed" if bad else "passed")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
