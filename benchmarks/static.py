"""``python -m benchmarks.static``: readers that stand still, and files that are not in memory.

The comparison with nginx is part of ``python -m benchmarks`` (``--only '*static-*'``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType

from benchmarks import certificates, static_files
from benchmarks.__main__ import machine, say
from benchmarks.figures import spread
from benchmarks.measured import Figure, MeasureError
from benchmarks.memory import raise_file_limit
from benchmarks.peers import ROOT
from benchmarks.procs import Process, StartError, cores, family, free_port, trusting, wait_http
from benchmarks.slow_disk import SlowDisk
from benchmarks.static_client import PATIENCE, Apart, StaticClientError, ask
from benchmarks.tools import Tools, find_tools
from benchmarks.workloads import GB1, HELLO

MOST_GROWTH = 16 << 20  # bytes, for all stalled readers
MOST_STALLED = 2.0  # times the calm p99
MOST_COLD = 3.0  # the same, with threads
THREADS = 4
DELAY = 0.05  # seconds that the slow disk takes for a read
COLD_FILES, COLD_SIZE = 48, 16 << 20  # of the real disk
SLOW_SIZE = 4 << 20  # of the slow one
WARM = 20  # readers before anything is measured
WATCHED = 1.0  # seconds in which RSS comes to rest
RECEIVE_BUFFER = 4096
_FIELDS = re.compile(r"^(VmRSS|RssAnon):\s+([0-9]+) kB$", re.MULTILINE)


class Instance:
    """A uwgate that sends the files of ``directory``, started with ``options``."""

    def __init__(self, run: Run, name: str, *options: str, tls: bool = False) -> None:
        directory = run.directory / name
        directory.mkdir()
        self.port, self.tls = free_port(), tls
        listen = f"--http=127.0.0.1:{self.port}"
        if tls:
            pair = certificates.make(directory)
            listen = f"--https=127.0.0.1:{self.port},{pair.cert},{pair.key}"
        argv = [*run.tools.commands["uwgate"], listen, f"--check-static={run.files}"]
        argv += ["--static-index=index.html", "--http-processes=1", "--http-keepalive=600"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        log = directory / "output.log"
        self.process = Process("uwgate", [*argv, *options], log, core=run.core, env=env)

    def __enter__(self) -> Instance:
        try:
            wait_http(self.process, ("127.0.0.1", self.port), tls=self.tls)
        except BaseException:
            self.process.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stop()

    def memory(self) -> tuple[int, int]:
        """(RSS, the part of it that is no file's), bytes of all its processes."""
        return memory(family(self.process.pid))


def memory(pids: list[int]) -> tuple[int, int]:
    """(RSS, anonymous RSS) of these processes in bytes, added up. Source: proc(5)."""
    sums = {"VmRSS": 0, "RssAnon": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name, value in _FIELDS.findall(Path(f"/proc/{pid}/status").read_text()):
                sums[name] += int(value) * 1024
    return sums["VmRSS"], sums["RssAnon"]


class Run:
    """One run: what was asked for, where, and what has been found. ``files``: a directory on a
    disk that is served."""

    def __init__(
        self, options: argparse.Namespace, tools: Tools, directory: Path, files: Path
    ) -> None:
        self.options = options
        self.tools = tools
        self.directory = directory
        self.files = files
        self.core, self.load_core = cores()
        self.figures: list[Figure] = []
        self.failures: list[str] = []

    def part(self, name: str) -> None:
        """Measure one part, print its figures as they come."""
        say(f"{name}: {PARTS[name].__doc__}")
        try:
            for figure in PARTS[name](self):
                self.figures.append(figure)
                say(f"  {figure.text}")
        except (MeasureError, StartError, StaticClientError, OSError) as error:
            self.failures.append(f"{name}: {error}")
            say(f"  FAILED  {name}: {error}")
        say("")

    def served(self, port: int) -> Apart:
        """Small requests from now on."""
        return Apart(self.load_core, "small", port, self.options.seconds, "/index.html")


# --- stalled readers ------------------------------------------------------------------------------


def stalled(run: Run) -> Iterator[Figure]:
    """readers of a file of 1 GB that never read, and small requests of others beside them"""
    raise_file_limit()
    static_files.fill(run.files / "big", GB1)
    count = run.options.readers
    growths: list[tuple[int, int]] = []
    ratios: list[float] = []
    calm = beside = 0.0
    for number in range(run.options.rounds):  # a new one each time: memory that was freed is kept
        with Instance(run, f"stalled-{number}") as instance:
            with readers(instance, WARM):
                calm = _p99(run, instance)
            before = instance.memory()
            with readers(instance, count) as socks:
                held = _highest(instance, WATCHED)
                beside = _p99(run, instance)
                held = max(held, instance.memory())
                check_stalled(socks)
            ratios.append(beside / calm)
            growths.append((held[0] - before[0], held[1] - before[1]))
    limit = MOST_GROWTH / 1e6
    for name, place in (("RSS", 0), ("anonymous RSS", 1)):
        most = max(growth[place] for growth in growths) / 1e6
        yield Figure(f"{name} that {count:,} readers add", most, "MB", limit)
    note = f"last: {calm:.2f} ms calm, {beside:.2f} ms beside them"
    yield Figure("p99 of small requests", spread(ratios).median, "times calm", MOST_STALLED,
                 note=note)  # fmt: skip
    yield from _stalled_tls(run, count)


def _stalled_tls(run: Run, count: int) -> Iterator[Figure]:
    """Over TLS there is something to hold: a piece that was read and encrypted."""
    with Instance(run, "stalled-tls", tls=True) as instance:
        with readers(instance, WARM):
            _highest(instance, WATCHED)
        before = instance.memory()
        with readers(instance, count):
            held = _highest(instance, 2 * WATCHED)
    note = f"{(held[0] - before[0]) / count / 1024:.0f} KB each, connections and all"
    yield Figure(f"RSS that {count:,} readers over TLS add", (held[0] - before[0]) / 1e6, "MB",
                 note=note)  # fmt: skip


@contextlib.contextmanager
def readers(instance: Instance, count: int) -> Iterator[list[socket.socket]]:
    """So many that have asked for the large file, and do not read what comes."""
    context = trusting()
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = socket.socket()
            stack.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            sock.settimeout(PATIENCE)
            sock.connect(("127.0.0.1", instance.port))
            if instance.tls:
                sock = stack.enter_context(context.wrap_socket(sock))
            sock.sendall(ask("/big"))
            socks.append(sock)
        yield socks


def check_stalled(socks: list[socket.socket]) -> None:
    """Each has its 200 waiting; MeasureError."""
    for sock in socks:
        begin = sock.recv(12, socket.MSG_PEEK)
        if begin != b"HTTP/1.1 200":
            raise MeasureError(f"a stalled reader got {begin!r}")


def _highest(instance: Instance, seconds: float) -> tuple[int, int]:
    """The most memory in so many seconds."""
    deadline, most = time.monotonic() + seconds, (0, 0)
    while time.monotonic() < deadline:
        most = max(most, instance.memory())
        time.sleep(0.05)
    return most


def _p99(run: Run, instance: Instance) -> float:
    found = run.served(instance.port).service()
    if found.failed:
        raise MeasureError(f"{found.failed} of {found.requests} small requests failed")
    return found.p99


# --- cold files -----------------------------------------------------------------------------------


def cold(run: Run) -> Iterator[Figure]:
    """small requests beside downloads of files that are on the disk, but not in memory"""
    directory = run.files / "cold"
    directory.mkdir()
    for number in range(COLD_FILES):
        static_files.fill(directory / str(number), COLD_SIZE)
    kind = static_files.file_system(directory)
    rate = 1_000_000 * run.options.rate
    for threads in (THREADS, 0):
        load = Load("cold", rate, "/cold", directory)
        yield _beside(run, f"{kind}, {run.options.rate} MB/s", threads, load, MOST_COLD)
    # Here the processor is what they wait for: so do those who ask for what is in memory.
    yield _beside(run, f"{kind}, unbridled", THREADS, Load("cold", 0, "/cold", directory))
    yield _beside(run, f"{kind}, warm, unbridled", THREADS, Load("warm", 0, "/cold", directory))


def slow(run: Run) -> Iterator[Figure]:
    """the same with a disk that takes 50 ms for every read (FUSE; needs root)"""
    log = run.directory / "slow.log"
    where = run.directory / "slow"
    with SlowDisk(where, DELAY, SLOW_SIZE, log, run.load_core) as disk:
        for threads in (THREADS, 0):
            option = f"--static-map=/slow={disk.directory}"
            load = Load("cold", 0, "/slow")
            yield _beside(run, "50 ms a read", threads, load, MOST_COLD, option)


@dataclass(frozen=True, slots=True)
class Load:
    """Downloads (`benchmarks.static_client`), "cold" or "warm", at ``rate`` bytes a second or as
    fast as they come (0), below ``place``, of what lies in ``directory`` or of what is new."""

    kind: str
    rate: int
    place: str
    directory: Path | None = None

    def start(self, run: Run, port: int, seconds: float, first: int) -> Apart:
        """In the background, on the core of the load."""
        where = [] if self.directory is None else [self.directory]
        return Apart(run.load_core, self.kind, port, seconds, run.options.downloads, self.rate,
                     self.place, first, *where, idle=True)  # fmt: skip


def _beside(
    run: Run, name: str, threads: int, load: Load, limit: float | None = None, *options: str
) -> Figure:
    """p99 beside downloads to that without them; the limit holds with threads."""
    ratios, rates, last = [], [], ""
    first = 0  # of the slow disk: every file is new once
    option = f"--offload-threads={threads}"
    with Instance(run, f"beside-{len(run.figures)}", option, *options) as instance:
        for _ in range(run.options.rounds):
            calm = run.served(instance.port).service()
            seconds = run.options.seconds + 1.0
            downloads = load.start(run, instance.port, seconds, first)
            try:
                time.sleep(0.4)
                beside = run.served(instance.port).service()
                found = downloads.downloads()
            finally:
                downloads.stop()
            first += found.cold
            if calm.failed or beside.failed or not found.size:
                raise MeasureError(
                    f"{calm.failed} and {beside.failed} small requests failed,"
                    f" {found.size} bytes downloaded"
                )
            if load.kind == "cold" and found.cold < found.files:
                raise MeasureError(f"only {found.cold} of {found.files} files were cold")
            ratios.append(beside.p99 / calm.p99)
            rates.append(found.size / seconds / 1e6)
            last = f"last: {calm.p99:.2f} ms calm, {beside.p99:.2f} and at most {beside.worst:.2f}"
    note = f"{last}; {spread(rates).median:,.0f} MB/s downloaded"
    return Figure(f"p99, {name}, {threads} threads", spread(ratios).median, "times calm",
                  limit if threads else None, note=note)  # fmt: skip


PARTS: dict[str, Callable[[Run], Iterator[Figure]]] = {
    "stalled": stalled,
    "cold": cold,
    "slow": slow,
}


def select_parts(patterns: list[str]) -> list[str]:
    """Parts whose name matches one of the shell patterns, in their order; ValueError."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in PARTS):
            raise ValueError(f"no part is called {pattern!r}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if any(fnmatchcase(name, each) for each in patterns)]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("--only", default="*", help=f"names or patterns: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--seconds", type=int, default=4, help="length of a measurement (4)")
    parser.add_argument("--readers", type=int, default=1000, help="that stand still (1000)")
    parser.add_argument("--downloads", type=int, default=4, help="of cold files at once (4)")
    parser.add_argument("--rate", type=int, default=100, help="MB/s of them (100)")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(argv)
    numbers = (options.rounds, options.seconds, options.readers, options.downloads, options.rate)
    if min(numbers) < 1:
        parser.error("all numbers must be at least 1")
    try:
        options.parts = select_parts(options.only.split(","))
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
    if not tools.has("uwgate"):
        say("needs uwgate")
        return 1
    facts = machine(tools)
    needed = GB1 + COLD_FILES * COLD_SIZE
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uwgate-static-")))
        try:
            files = stack.enter_context(static_files.on_disk(needed))
        except OSError as error:
            say(f"left out: {error}")
            return 1
        facts["files"] = static_files.file_system(files)
        say("; ".join(f"{name}: {value}" for name, value in facts.items() if value) + "\n")
        (files / "index.html").write_bytes(HELLO)
        run = Run(options, tools, directory, files)
        for part in options.parts:
            run.part(part)
        return report(run, facts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
