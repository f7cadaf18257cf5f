"""Connections that stall in the handshake or talk nonsense, and a good client beside them.

``python -m benchmarks.tls_abuse PORT SECONDS`` is the good client: it asks at fixed times, whatever
became of the request before, on kept connections and, one time in ten, on a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.certificates import HOST
from benchmarks.measured import Said, apart
from benchmarks.procs import on_core, trusting
from benchmarks.rolling_client import quantile
from benchmarks.tls_client import PATIENCE, ROOT
from benchmarks.workloads import HELLO

OPENING = 500  # bad connections opened each second
GOOD_RATE = 200.0  # requests of the good client each second
_ARREARS = 0.01
_KEPT = 8
_FRESH_EVERY = 10
_ASK = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()

# What a bad connection does, and in how many of a hundred stalled ones. Those with 0 end at once
# and are opened beside them.
STALLED = {"half": 40, "shaken": 40, "trickle": 15, "silent": 5}
NONSENSE = ("garbage", "huge", "records", "http")


def client_hello() -> bytes:
    """The first flight of an ordinary client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting().wrap_bio(incoming, outgoing, server_hostname=HOST)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def opening(kind: str, hello: bytes) -> bytes:
    """What a bad connection sends first."""
    if kind == "half":
        return hello[: len(hello) // 2]
    if kind == "trickle":
        return hello[:1]
    if kind == "shaken":
        return hello
    if kind == "garbage":
        return bytes(range(200, 256)) * 4
    if kind == "records":  # a good beginning, and then what no client answers
        return hello + b"\x16\x03\x03\x00\x20" + b"\xaa" * 32
    if kind == "huge":  # a ClientHello of 100 KB, in records as large as they may be
        body = b"\x01" + (100_000).to_bytes(3, "big") + b"\x03\x03" + bytes(32) + b"\x00" * 99_962
        pieces = [body[n : n + 16_384] for n in range(0, len(body), 16_384)]
        return b"".join(b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p for p in pieces)
    return _ASK if kind == "http" else b""


def kinds(stalled: int, nonsense: int) -> Iterator[str]:
    """The kinds of so many connections, evenly mixed."""
    pattern = [kind for kind, share in STALLED.items() for _ in range(share)]
    order = [pattern[(37 * number) % len(pattern)] for number in range(len(pattern))]
    every = max(1, stalled // max(1, nonsense))
    for number in range(stalled):
        yield order[number % len(order)]
        if nonsense and number % every == 0:
            yield NONSENSE[(number // every) % len(NONSENSE)]


@dataclass(slots=True)
class Storm:
    """How it went: ``opened`` and the longest ``lives`` (seconds) by kind; ``left``: connections
    that were still open when patience ended."""

    opened: Counter[str] = field(default_factory=Counter)
    lives: dict[str, float] = field(default_factory=dict)
    left: int = 0


class _Bad:
    __slots__ = ("began", "kind", "rest", "sock")

    def __init__(self, kind: str, port: int, hello: bytes) -> None:
        self.kind = kind
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.began = time.monotonic()
        self.sock.setblocking(False)
        self.rest = hello[1:] if kind == "trickle" else b""
        with contextlib.suppress(OSError):
            self.sock.send(opening(kind, hello))


def storm(port: int, stalled: int, nonsense: int, patience: float) -> Storm:
    """Open them at a steady pace and watch them end; those left after ``patience`` are closed."""
    hello = client_hello()
    found, bad = Storm(), dict[int, _Bad]()
    epoll = select.epoll()
    todo = kinds(stalled, nonsense)
    began = time.monotonic()
    due, trickled, all_open = began, began, False
    deadline = began + 2 * stalled / OPENING + patience
    while (bad or not all_open) and time.monotonic() < deadline:
        due = max(due, time.monotonic() - _ARREARS)  # a storm that was late must not burst
        while not all_open and due < time.monotonic():
            kind = next(todo, "")
            if not kind:
                all_open = True
                deadline = time.monotonic() + patience
                break
            each = _Bad(kind, port, hello)
            bad[each.sock.fileno()] = each
            epoll.register(each.sock.fileno(), select.EPOLLIN)
            found.opened[kind] += 1
            due += 1 / OPENING
        if time.monotonic() > trickled + 1:
            trickled += 1
            _trickle(bad)
        for number, _ in epoll.poll(0.01):
            each = bad[number]
            if _ended(each.sock):
                life = time.monotonic() - each.began
                found.lives[each.kind] = max(life, found.lives.get(each.kind, 0.0))
                epoll.unregister(number)
                each.sock.close()
                del bad[number]
    found.left = len(bad)
    for each in bad.values():
        each.sock.close()
    epoll.close()
    return found


def storm_apart(core: int, port: int, stalled: int, nonsense: int, patience: float) -> Storm:
    """The same in a process of its own on ``core``, which makes way at once for the good client and
    the origin there: their time is to be the proxy's, not that of who shares their core."""

    def work() -> Said:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        found = storm(port, stalled, nonsense, patience)
        return {name: getattr(found, name) for name in Storm.__slots__}

    said = apart(core, work)
    return Storm(Counter(said["opened"]), said["lives"], said["left"])


def _trickle(bad: dict[int, _Bad]) -> None:
    """One byte more on each connection that has some left."""
    for each in bad.values():
        if each.rest:
            with contextlib.suppress(OSError):
                each.sock.send(each.rest[:1])
                each.rest = each.rest[1:]


def _ended(sock: socket.socket) -> bool:
    try:
        return not sock.recv(65536)
    except BlockingIOError:
        return False
    except OSError:
        return True


def renegotiations(port: int, count: int) -> tuple[int, int]:
    """``(tried, granted)``: how often openssl's client asked to renegotiate a TLS 1.2 connection,
    of ``count`` times, and how often it was allowed to."""
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-msg"]
    tried = granted = 0
    for _ in range(count):
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            end = threading.Timer(PATIENCE, client.kill)
            end.start()
            client.stdin.write(b"R\n")
            client.stdin.flush()
            asked = False
            for line in client.stdout:
                if line.startswith(b"RENEGOTIATING"):
                    asked = True
                elif asked and (line.endswith(b" ServerHello\n") or b"no_renegotiation" in line):
                    tried += 1
                    granted += line.endswith(b" ServerHello\n")
                    break
            end.cancel()
            client.kill()
    return tried, granted


# --- the good client ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """What the good client saw: 99th percentiles in ms, of requests on kept connections and of
    requests on new ones (handshake included); ``failed``: requests without the right answer."""

    requests: int
    kept: float
    fresh: float
    failed: int


class GoodClient:
    """Runs in a process of its own, on ``core``."""

    def __init__(self, port: int, seconds: float, core: int) -> None:
        argv = [sys.executable, "-m", "benchmarks.tls_abuse", str(port), str(seconds)]
        with on_core(core):
            self._process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def result(self) -> Service:
        """Wait for its end; ValueError if it said nothing."""
        output, _ = self._process.communicate()
        return Service(**json.loads(output))


def serve(port: int, seconds: float) -> Service:
    """Ask at fixed times for so long."""
    context = trusting()

    def connect() -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(raw, server_hostname=HOST)

    kept = [connect() for _ in range(_KEPT)]
    times: dict[bool, list[float]] = {True: [], False: []}
    failed = 0
    count = int(seconds * GOOD_RATE)
    began = time.perf_counter()
    for number in range(count):
        due = began + number / GOOD_RATE
        if (wait := due - time.perf_counter()) > 0:
            select.select([], [], [], wait)
        fresh = number % _FRESH_EVERY == 0
        start = time.perf_counter()
        try:
            sock = connect() if fresh else kept[number % _KEPT]
            sock.sendall(_ASK)
            good = _answer(sock)
            times[fresh].append(time.perf_counter() - start)
            if fresh:
                sock.close()
        except OSError:
            good = False
            if not fresh:
                kept[number % _KEPT] = connect()
        failed += not good
    p99 = {fresh: 1e3 * quantile(times[fresh], 0.99) for fresh in times}
    return Service(count, p99[False], p99[True], failed)


def _answer(sock: ssl.SSLSocket) -> bool:
    answer = b""
    while not answer.endswith(HELLO):
        data = sock.recv(4096)
        if not data:
            return False
        answer += data
    return answer.startswith(b"HTTP/1.1 200 ")


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.nice(-10)  # what it measures is the proxy, not its neighbours on this core
    found = serve(int(sys.argv[1]), float(sys.argv[2]))
    print(json.dumps({name: getattr(found, name) for name in Service.__slots__}))
