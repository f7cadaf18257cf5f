"""Subscriptions in memory: bytes a node, the cost of a look-up, forks of a large table.

All but `Instance` is to be run in a process of its own (`measured.apart`), because memory that was
freed is seldom given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.measured import MeasureError, Said, apart
from benchmarks.peers import ROOT
from benchmarks.procs import (
    Process,
    StartError,
    family,
    free_port,
    rss_bytes,
    wait_connect,
)
from benchmarks.subscription_traffic import announcements, settings
from benchmarks.tools import Tools
from uwgate.router.clock import Clock
from uwgate.router.resolve_subscriptions import SubscriptionResolver
from uwgate.subscriptions.admission import Registry
from uwgate.subscriptions.state import load, save
from uwgate.subscriptions.table import JOIN, Table

HOST = "www.example.com"
START_DEADLINE = 60.0  # seconds that an instance may take to read its state
_LOOKS = 200_000  # look-ups in a series
_HOT = 100  # keys that most requests are for
_SERIES = 7


def master_memory(nodes: int, per_key: int) -> Said:
    """RSS that ``nodes`` announced nodes add to a master, ``per_key`` of them serving a key."""
    registry = Registry(
        "http", settings(), publish=lambda change: None, log=lambda line: None
    )
    gc.collect()
    before = rss_bytes([os.getpid()])
    for datagram in announcements(nodes, nodes // per_key, sign=None):
        registry.receive(datagram, "127.0.0.1", None)
    grown = rss_bytes([os.getpid()]) - before
    if registry.table.members != nodes:
        raise MeasureError(f"{registry.table.members} of {nodes} nodes were accepted")
    return {"each": grown / nodes}


def lookups(keys: int, per_key: int) -> Said:
    """Nanoseconds of `SubscriptionResolver.pick` with so many keys in the table.

    ``hot``: the same few keys again and again. ``random``: any of them, looked up once before.
    ``first``: the first time, when the nodes are made ready for balancing.
    """
    loop = asyncio.new_event_loop()
    resolver = SubscriptionResolver(settings(), Clock(loop))
    table = Table()
    for number in range(keys):
        for node in range(per_key):
            address = f"10.{node}.{number >> 8 & 255}.{number & 255}:3031"
            table.apply([JOIN, _key(number), address, 0, 0, 1, 0, "uwsgi", "", 1])
    resolver.inherit(table, lambda message: None)
    gc.freeze()  # as a worker does
    dice = random.Random(3)
    hot = [dice.randrange(keys) for _ in range(min(_HOT, keys))]
    spread = [dice.randrange(keys) for _ in range(min(_LOOKS, 10 * keys))]
    empty = min(_series(_Nothing(), hot) for _ in range(_SERIES))
    # Every key of its own, and none that is looked up later.
    opened = dict.fromkeys(spread[: len(spread) // 2])
    first = _once(resolver, list(opened)) - empty
    _once(resolver, spread)
    scattered = [_once(resolver, spread) for _ in range(_SERIES)]
    usual = [_series(resolver, hot) for _ in range(_SERIES)]
    loop.close()
    return {
        "hot": median(usual) - empty,
        "random": median(scattered) - empty,
        "first": first,
    }


class _Nothing:
    """What the measuring itself costs."""

    def pick(self, key: str, token: bytes, tried: Sequence[object]) -> object:
        """Look up nothing."""
        return self


def _key(number: int) -> str:
    """A new string every time, as the key of a request is: its hash is not known yet."""
    return f"app{number}.example.com"


def _series(resolver: SubscriptionResolver | _Nothing, numbers: list[int]) -> float:
    return _once(resolver, numbers * (_LOOKS // len(numbers)))


def _once(resolver: SubscriptionResolver | _Nothing, numbers: list[int]) -> float:
    """Nanoseconds of a look-up and pick of each of these keys, CPU time."""
    pick, spent = resolver.pick, 0
    for start in range(0, len(numbers), 10_000):
        # Few at a time, so that the strings are still at hand, as those of a request are.
        keys = [_key(number) for number in numbers[start : start + 10_000]]
        began = time.process_time_ns()
        for key in keys:
            if pick(key, b"", ()) is None:
                raise MeasureError(f"no node for {key}")
        spent += time.process_time_ns() - began
    return spent / len(numbers)


# --- forks ---------------------------------------------------------------------------------------


def write_state(path: Path, nodes: int, address: str) -> Said:
    """A state file of ``nodes`` keys with an HTTP node each, all of them at ``address``."""
    table = Table()
    for number in range(nodes):
        key = HOST if number == 0 else _key(number)
        member = table.add(key, address)
        member.kind = table.kind(member.kind._replace(protocol="http"))
        member.weight, member.joined, member.seen = 1, int(time.time()), int(time.monotonic())
        member.sender = "127.0.0.1"
    save(str(path), {"http": table}, {}, time.monotonic())
    return {"bytes": path.stat().st_size}


def fork_time(path: Path) -> Said:
    """Seconds of ``os.fork`` in a process that has read the state."""
    state = load(str(path))
    if state is None:
        raise MeasureError("there is no state")
    gc.collect()
    gc.freeze()
    times = []
    for _ in range(_SERIES):
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        times.append(time.perf_counter() - began)
        os.waitpid(pid, 0)
    return {"fork": median(times), "rss": rss_bytes([os.getpid()])}


def private_bytes(pid: int) -> int:
    """Memory that only this process has (Private_Clean and Private_Dirty of smaps_rollup)."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            total += int(line.split()[1]) * 1024
    return total


class Instance:
    """A whole uwgate with one worker that begins with a state file."""

    def __init__(self, tools: Tools, directory: Path, state: Path, core: int) -> None:
        self._port = free_port()
        argv = [*tools.commands["uwgate"], "--http", f"127.0.0.1:{self._port}"]
        argv += ["--http-processes=1", f"--http-subscription-server=127.0.0.1:{free_port()}"]
        argv += [f"--subscription-state={state}", "--subscription-tolerance=100000"]
        argv += ["--subscription-max-keys=100000000"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        log = directory / "instance.log"
        began = time.monotonic()
        self.process = Process("uwgate", argv, log, core=core, cwd=directory, env=env)
        try:
            self._wait_served()
        except BaseException:
            self.process.stop()
            raise
        self.started = time.monotonic() - began

    def _wait_served(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while True:
            with contextlib.suppress(StartError):
                wait_connect(self.process, ("127.0.0.1", self._port))
                break
            if not self.process.running() or time.monotonic() > deadline:
                raise StartError(f"uwgate with its state does not start: {self.process.tail()}")
        self.ask([HOST])

    def worker(self) -> int:
        """Pid of the worker."""
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline:
            others = [pid for pid in family(self.process.pid) if pid != self.process.pid]
            if others:
                return others[0]
            time.sleep(0.001)
        raise StartError("there is no worker")

    def ask(self, keys: Sequence[str]) -> None:
        """A request for each of these keys over one connection; MeasureError unless all are 200."""
        address = ("127.0.0.1", self._port)
        with socket.create_connection(address, timeout=START_DEADLINE) as sock:
            for key in keys:
                sock.sendall(f"GET / HTTP/1.1\r\nHost: {key}\r\n\r\n".encode())
                answer = b""
                while not answer.endswith(b"Hello, world!"):
                    block = sock.recv(65536)
                    answer += block
                    if not block or not answer.startswith(b"HTTP/1.1 200"[: len(answer)]):
                        raise MeasureError(f"{key}: {answer[:200]!r}")

    def respawn(self) -> float:
        """Kill the worker; seconds until the next one has answered a request."""
        time.sleep(1.5)  # one that dies younger is replaced more slowly
        old = self.worker()
        began = time.monotonic()
        os.kill(old, signal.SIGKILL)
        while self.worker() == old:
            time.sleep(0.0005)
        self.ask([HOST])
        return time.monotonic() - began


@contextlib.contextmanager
def instance(tools: Tools, directory: Path, state: Path, core: int) -> Iterator[Instance]:
    """An instance for a ``with`` block."""
    running = Instance(tools, directory, state, core)
    try:
        yield running
    finally:
        running.process.stop()


def forks(tools: Tools, directory: Path, core: int, address: str, nodes: int) -> Said:
    """What a table of ``nodes`` nodes means for a new worker; times in seconds, sizes in bytes."""
    found: Said = {}
    for name, count in (("empty", 1), ("full", nodes)):
        state = directory / f"{name}.state"
        apart(core, functools.partial(write_state, state, count, address))
        with instance(tools, directory, state, core) as running:
            found[f"{name}_start"] = running.started
            found[f"{name}_serve"] = median(running.respawn() for _ in range(3))
            found[f"{name}_private"] = private_bytes(running.worker())
            found[f"{name}_master"] = rss_bytes([running.process.pid])
            if count > 1:
                dice = random.Random(5)
                asked = min(10_000, nodes - 1)
                running.ask([_key(1 + dice.randrange(nodes - 1)) for _ in range(asked)])
                found["asked"] = asked
                found["asked_private"] = private_bytes(running.worker())
        found[f"{name}_fork"] = apart(core, functools.partial(fork_time, state))["fork"]
    return found
