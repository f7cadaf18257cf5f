"""``python -m benchmarks.tls``: what sessions save, many certificates, stalled handshakes.

The comparison with nginx and HAProxy is part of ``python -m benchmarks`` (``--only 'tls-*'``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import certificates, tls_abuse, tls_client
from benchmarks.__main__ import machine, say, start_origins
from benchmarks.figures import per_request_micros, spread
from benchmarks.measured import Figure, MeasureError
from benchmarks.memory import raise_file_limit
from benchmarks.origins import Origin
from benchmarks.peers import ROOT
from benchmarks.procs import (
    Process,
    StartError,
    cores,
    cpu_nanos,
    family,
    free_port,
    rss_bytes,
    wait_http,
)
from benchmarks.tls_client import TlsClientError
from benchmarks.tools import Tools, find_tools

MOST_RESUMED = 0.6  # of the cost of a full TLS 1.2 connection
LEAST_HITS = 99.0  # percent
MOST_START = 1.0  # seconds
MOST_P99 = 2.0  # times the calm value
HEADERS_TIMEOUT = 5  # seconds, while there is abuse
LATE = 0.5  # seconds that this client may need to see the end
WORKERS = 8


class Instance:
    """A uwgate with one HTTPS listener on ``port``, started with ``options``."""

    def __init__(self, run: Run, name: str, *options: str, core: int | None = None) -> None:
        directory = run.directory / name
        pair = certificates.make(directory)
        self.port = free_port()
        self._stats = directory / "stats"
        argv = [
            *run.tools.commands["uwgate"],
            f"--https=127.0.0.1:{self.port},{pair.cert},{pair.key}",
            f"--http-to=http://127.0.0.1:{run.origin.http}",
            f"--http-stats={self._stats}",
            "--http-keepalive=600",
            *options,
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = Process("uwgate", argv, directory / "output.log", core=core, env=env)

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stop()

    def wait(self) -> Instance:
        """Until it answers; StartError."""
        wait_http(self.process, ("127.0.0.1", self.port), tls=True)
        return self

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return family(self.process.pid)

    def stats(self) -> dict[str, Any]:
        """The statistics' document."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._stats))
            text = b"".join(iter(lambda: sock.recv(65536), b""))
        found: dict[str, Any] = json.loads(text)
        return found


class Run:
    """One run: what was asked for, where, and what has been found."""

    def __init__(
        self, options: argparse.Namespace, tools: Tools, directory: Path, origin: Origin
    ) -> None:
        self.options = options
        self.tools = tools
        self.directory = directory
        self.origin = origin
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
        except (MeasureError, StartError, TlsClientError, OSError) as error:
            self.failures.append(f"{name}: {error}")
            say(f"  FAILED  {name}: {error}")
        say("")


def resumption(run: Run) -> Iterator[Figure]:
    """CPU of a connection with one request, whose handshake is a full one or resumes a session"""
    costs: dict[tuple[str, bool], list[float]] = {}
    with Instance(run, "resumption", core=run.core).wait() as instance:
        for _ in range(run.options.rounds):
            for version in tls_client.VERSIONS:
                for resume in (False, True):
                    before = cpu_nanos(instance.pids)
                    found = tls_client.run(
                        instance.port, 16, run.options.seconds, run.load_core, version,
                        resume=resume,
                    )  # fmt: skip
                    spent = cpu_nanos(instance.pids) - before
                    faults = tls_client.faults(found, resume=resume)
                    if faults:
                        raise MeasureError("; ".join(faults))
                    cost = per_request_micros(spent, found.requests)
                    costs.setdefault((version, resume), []).append(cost)
    for version in tls_client.VERSIONS:
        full, resumed = costs[version, False], costs[version, True]
        for text, values in (("full", full), ("resumed", resumed)):
            note = f"{min(values):.0f} to {max(values):.0f}"
            yield Figure(f"TLS {version}, {text}", spread(values).median, "us", note=note)
        ratio = spread([a / b for a, b in zip(resumed, full, strict=True)])
        limit = MOST_RESUMED if version == "1.2" else None
        yield Figure(f"TLS {version}, resumed to full", ratio.median, "times", limit)


def hits(run: Run) -> Iterator[Figure]:
    """sessions that are resumed where each connection meets one of eight workers at random"""
    stores: tuple[tuple[str, Sequence[str]], ...] = (
        ("tickets", ()),
        ("cache", ("--cache=20000", "--cache-blocksize=4096", "--ssl-sessions-use-cache")),
    )
    for store, options in stores:
        workers = f"--http-processes={WORKERS}"
        with Instance(run, f"hits-{store}", workers, *options).wait() as instance:
            for version in tls_client.VERSIONS:
                before = instance.stats()
                count = run.options.connections
                resumed = _resumptions(instance.port, version, count)
                met = _met(before, instance.stats())
                if met < WORKERS // 2:
                    raise MeasureError(f"only {met} workers were met")
                note = f"{count:,} connections, {met} workers met"
                share = 100 * resumed / count
                yield Figure(f"{store}, TLS {version}", share, "%", LEAST_HITS, True, note)
            if store == "cache":
                (cache,) = instance.stats()["caches"]
                looked = cache["hits"] + cache["miss"]
                yield Figure("hits of the cache", 100 * cache["hits"] / max(1, looked), "%")


def _resumptions(port: int, version: str, count: int) -> int:
    """How many of ``count`` connections, each with a session of some earlier one, resumed it."""
    context = tls_client.context(version)
    choose = random.Random(version)
    sessions: list[ssl.SSLSession | None] = []
    resumed = 0
    for number in range(-64, count):
        session = sessions.pop(choose.randrange(len(sessions))) if number >= 0 else None
        ask = tls_client.Ask(port, context, session)
        ask.sock.settimeout(tls_client.PATIENCE)
        ask.step()
        if ask.fault:
            raise MeasureError(ask.fault)
        resumed += number >= 0 and bool(ask.sock.session_reused)
        sessions.append(ask.sock.session)
        ask.sock.close()
    return resumed


def _met(before: dict[str, Any], after: dict[str, Any]) -> int:
    """How many workers have shaken hands in between."""

    def shaken(document: dict[str, Any]) -> dict[int, int]:
        return {each["id"]: sum(each["tls"]["handshakes"].values()) for each in document["workers"]}

    earlier = shaken(before)
    return sum(number > earlier[worker] for worker, number in shaken(after).items())


def names(run: Run) -> Iterator[Figure]:
    """many certificates in sni-dir: start-up, and memory before and after some of them are used"""
    many = run.options.certificates
    full, empty = run.directory / "many", run.directory / "none"
    site = certificates.fill(full, many)
    empty.mkdir()
    starts: dict[Path, list[float]] = {full: [], empty: []}
    rests: dict[Path, list[int]] = {full: [], empty: []}
    grown: dict[int, float] = {}
    for number in range(run.options.rounds):
        for directory in (full, empty):
            name = f"names-{directory.name}-{number}"
            option = f"--sni-dir={directory}"
            began = time.monotonic()
            with Instance(run, name, option, "--http-processes=1", core=run.core) as instance:
                _handshake(instance, certificates.HOST)
                starts[directory].append(time.monotonic() - began)
                instance.wait()
                rests[directory].append(rss_bytes(instance.pids))
                if directory == full and not grown:
                    grown = _grow(instance, site)
    start, alone = spread(starts[full]).median, spread(starts[empty]).median
    text = f"start with {many:,} certificates"
    yield Figure(text, start, "s", MOST_START, note=f"{alone:.2f} with none")
    more = (spread(rests[full]).median - spread(rests[empty]).median) / 1024
    yield Figure("RSS that they add", more, "KB")
    for count, growth in grown.items():
        yield Figure(f"RSS of {count} that were used", growth / 1024, "KB",
                     note=f"{growth / count / 1024:.1f} each")  # fmt: skip


def _grow(instance: Instance, site: list[str]) -> dict[int, float]:
    """RSS that certificates add when they are asked for: by number of them, bytes."""
    for _ in range(50):  # what handshakes leave behind is not theirs
        _handshake(instance, certificates.HOST)
    before = rss_bytes(instance.pids)
    grown: dict[int, float] = {}
    for count in (10, 500):
        for name in site[:count]:
            _handshake(instance, name)
        grown[count] = rss_bytes(instance.pids) - before
    return grown


def _handshake(instance: Instance, name: str) -> None:
    """Shake hands under ``name`` as soon as that is possible, and see its certificate."""
    context = tls_client.context("1.3")
    deadline = time.monotonic() + tls_client.PATIENCE
    while True:
        if not instance.process.running():
            raise StartError(f"uwgate ended at once: {instance.process.tail()}")
        try:
            with (
                socket.create_connection(("127.0.0.1", instance.port), 5) as raw,
                context.wrap_socket(raw, server_hostname=name) as sock,
            ):
                der = sock.getpeercert(binary_form=True)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            select.select([], [], [], 0.005)
    if name.encode() not in (der or b""):
        raise MeasureError(f"another certificate than that of {name}")


def abuse(run: Run) -> Iterator[Figure]:
    """thousands of handshakes that stall or are nonsense, and a good client beside them"""
    raise_file_limit()
    stalled = run.options.stalled
    seconds = float(stalled / tls_abuse.OPENING + HEADERS_TIMEOUT)
    limits = f"--http-headers-timeout={HEADERS_TIMEOUT}", "--http-processes=1"
    kept, fresh, lives = [], [], dict[str, float]()
    failed = left = 0
    with Instance(run, "abuse", *limits, core=run.core).wait() as instance:
        # The first sockets of a machine cost more than those after them, on both sides.
        tls_abuse.storm_apart(run.load_core, instance.port, stalled, 0, 0.0)
        _wait_until_calm(instance)
        before = instance.stats()["errors"]
        opened = 0
        for _ in range(run.options.rounds):
            calm = tls_abuse.GoodClient(instance.port, seconds, run.load_core).result()
            good = tls_abuse.GoodClient(instance.port, seconds, run.load_core)
            found = tls_abuse.storm_apart(
                run.load_core, instance.port, stalled, stalled // 20, 4.0 * HEADERS_TIMEOUT
            )
            stormy = good.result()
            kept.append(stormy.kept / calm.kept)
            fresh.append(stormy.fresh / calm.fresh)
            failed += stormy.failed + calm.failed
            left += found.left
            opened += sum(found.opened.values())
            for kind, life in found.lives.items():
                lives[kind] = max(life, lives.get(kind, 0.0))
        attempts = 5
        tried, granted = tls_abuse.renegotiations(instance.port, attempts)
        if tried < attempts:
            raise MeasureError(f"only {tried} of {attempts} attempts to renegotiate were answered")
        after = instance.stats()["errors"]
    counted = {word: after[word] - before.get(word, 0) for word in after}
    reasons = {word: number for word, number in counted.items() if number}
    text = ", ".join(f"{number} {word}" for word, number in sorted(reasons.items()))
    yield Figure("p99 of a good client, kept connections", spread(kept).median, "times calm",
                 MOST_P99)  # fmt: skip
    yield Figure("p99 of a good client, new connections", spread(fresh).median, "times calm",
                 MOST_P99)  # fmt: skip
    yield Figure("requests of it that failed", failed, "requests", 0)
    for kind, life in sorted(lives.items()):
        # Who says nothing at all stays with the kernel at first (http-defer-accept).
        limit = None if kind == "silent" else HEADERS_TIMEOUT + LATE
        yield Figure(f"longest life, {kind}", life, "s", limit)
    yield Figure("bad connections left open", left, "connections", 0)
    yield Figure("those with a counted reason", 100 * sum(reasons.values()) / max(1, opened), "%",
                 100, True, text)  # fmt: skip
    yield Figure("renegotiations granted", granted, f"of {attempts}", 0)


def _wait_until_calm(instance: Instance) -> None:
    """Until no handshake is under way."""
    deadline = time.monotonic() + 4.0 * HEADERS_TIMEOUT
    while instance.stats()["tls"]["handshaking"]:
        if time.monotonic() > deadline:
            raise MeasureError("handshakes do not end")
        time.sleep(0.1)


PARTS: dict[str, Callable[[Run], Iterator[Figure]]] = {
    "resumption": resumption,
    "hits": hits,
    "names": names,
    "abuse": abuse,
}


def select_parts(patterns: list[str]) -> list[str]:
    """Parts whose name matches one of the shell patterns, in their order; ValueError."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in PARTS):
            raise ValueError(f"no part is called {pattern!r}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if any(fnmatchcase(name, each) for each in patterns)]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description=__doc__)
    parser.add_argument("--only", default="*", help=f"names or patterns: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a measurement (2)")
    parser.add_argument("--connections", type=int, default=2000, help="of a hit rate (2000)")
    parser.add_argument("--certificates", type=int, default=10_000, help="of sni-dir (10,000)")
    parser.add_argument("--stalled", type=int, default=2000, help="handshakes (2000)")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(argv)
    if min(options.rounds, options.seconds) < 1:
        parser.error("--rounds and --seconds must be at least 1")
    if min(options.connections, options.stalled) < 100 or options.certificates < 1000:
        parser.error("--connections and --stalled must be at least 100, --certificates 1000")
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
    facts = machine(tools)
    say("; ".join(f"{name}: {value}" for name, value in facts.items() if value) + "\n")
    with (
        tempfile.TemporaryDirectory(prefix="uwgate-tls-") as name,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        origin, there = start_origins(tools, {"http"}, directory, cores()[1], stack)
        if "http" not in there or not tools.has("uwgate"):
            say("needs nginx and uwgate")
            return 1
        run = Run(options, tools, directory, origin)
        for part in options.parts:
            run.part(part)
        return report(run, facts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
