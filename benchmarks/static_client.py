"""Clients beside which others must not suffer, and the others: each in a process of its own.

``python -m benchmarks.static_client small PORT SECONDS TARGET`` asks for a small file at fixed
times. ``… cold PORT SECONDS COUNT RATE PLACE FIRST [DIRECTORY]`` downloads, on so many connections
at once, RATE bytes a second on all of them (0: as many as come), ``PLACE/FIRST`` and those that
follow; with a DIRECTORY, all files in it, round and round, each dropped from the page cache before.
``warm`` does not drop them.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import select
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.procs import on_core
from benchmarks.rolling_client import quantile

ROOT = Path(__file__).resolve().parent.parent
RATE = 200.0  # small requests each second
PATIENCE = 30.0  # seconds
_KEPT = 8
_MOUTHFUL = 256 << 10  # bytes taken at once
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]{1,12})\r\n", re.IGNORECASE)


class StaticClientError(Exception):
    """A response was not what was asked for, or a client said nothing."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the small requests met, in ms from when each was due; ``failed``: no right answer."""

    requests: int
    p50: float
    p99: float
    worst: float
    failed: int


@dataclass(frozen=True, slots=True)
class Downloads:
    """``files`` that arrived whole; how many were ``cold`` when asked for; bytes received."""

    files: int
    cold: int
    size: int


def ask(target: str) -> bytes:
    """The request."""
    return f"GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n".encode()


def small(port: int, seconds: float, target: str, rate: float = RATE) -> Service:
    """Ask at fixed times for so long, on kept connections in turn, whatever becomes of them.

    Time begins when a request was due: who waits behind another one waits as well.
    """
    request = ask(target)
    kept = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(_KEPT)]
    times: list[float] = []
    failed, count = 0, int(seconds * rate)
    began = time.perf_counter()
    for number in range(count):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            select.select([], [], [], wait)
        place = number % _KEPT
        try:
            kept[place].sendall(request)
            _whole(kept[place])
        except (OSError, StaticClientError):
            failed += 1
            kept[place].close()
            kept[place] = socket.create_connection(("127.0.0.1", port), PATIENCE)
        times.append(time.perf_counter() - due)
    for sock in kept:
        sock.close()
    p50, p99, worst = (1e3 * quantile(times, share) for share in (0.5, 0.99, 1.0))
    return Service(count, p50, p99, worst, failed)


def _whole(sock: socket.socket) -> None:
    """Read one response of a small file; StaticClientError unless it is a whole 200."""
    answer = b""
    while True:
        data = sock.recv(65536)
        answer += data
        head, blank, body = answer.partition(b"\r\n\r\n")
        if blank and len(body) >= _body_size(head + b"\r\n"):
            return
        if not data:
            raise StaticClientError(f"connection closed after {answer[:60]!r}")


def _body_size(head: bytes) -> int:
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise StaticClientError(f"no 200 with a length: {head[:60]!r}")
    return int(length[1])


class Fetch:
    """One connection that downloads what ``names`` says; what arrives is thrown away unread."""

    def __init__(self, port: int, names: Iterator[str]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.sock.settimeout(PATIENCE)
        self._names = names
        self._left = 0
        self._answered = True
        self.files = self.size = 0

    def begin(self) -> None:
        """Ask for the next one."""
        self.sock.sendall(ask(next(self._names)))
        self._answered = False

    def ready(self, scrap: mmap.mmap) -> None:
        """Take what is there; ask for the next when that was the end. StaticClientError."""
        if not self._answered:
            head, blank, _ = self.sock.recv(4096, socket.MSG_PEEK).partition(b"\r\n\r\n")
            if not blank:
                raise StaticClientError(f"no head: {head[:60]!r}")
            self._left = _body_size(head + b"\r\n")
            self.sock.recv(len(head) + len(blank))
            self._answered = True
            return
        # TCP: the kernel drops what it would have copied (tcp(7)).
        got = self.sock.recv_into(scrap, min(self._left, len(scrap)), socket.MSG_TRUNC)
        if not got:
            raise StaticClientError("a download was cut")
        self.size += got
        self._left -= got
        if not self._left:
            self.files += 1
            self.begin()


def download(
    port: int, seconds: float, count: int, rate: int, names: Iterator[str]
) -> tuple[int, int]:
    """Download for so long on ``count`` connections, at most ``rate`` bytes a second (0: without
    that); (files, bytes). StaticClientError."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        scrap = stack.enter_context(mmap.mmap(-1, _MOUTHFUL))
        fetches = [Fetch(port, names) for _ in range(count)]
        for fetch in fetches:
            stack.enter_context(fetch.sock)
            selector.register(fetch.sock, selectors.EVENT_READ, fetch)
            fetch.begin()
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            if rate:
                ahead = sum(fetch.size for fetch in fetches) / rate - elapsed
                time.sleep(min(0.1, max(0.0, ahead)))
            for key, _ in selector.select(0.1):
                key.data.ready(scrap)
    return sum(fetch.files for fetch in fetches), sum(fetch.size for fetch in fetches)


def forget(path: Path) -> bool:
    """Drop the file from the page cache; whether its first page is gone."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Apart:
    """This module's command line in a process on ``core``; ``idle``: it makes way for others."""

    def __init__(self, core: int, *words: object, idle: bool = False) -> None:
        argv = [sys.executable, "-m", "benchmarks.static_client", *map(str, words)]
        self._words = argv[3:]
        with on_core(core):
            self._process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if idle:
            os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))

    def result(self) -> dict[str, int]:
        """Wait for its end; StaticClientError if it failed."""
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise StaticClientError(f"{' '.join(self._words)} ended with an error")
        found: dict[str, int] = json.loads(output)
        return found

    def service(self) -> Service:
        """What `small` found."""
        return Service(**self.result())

    def downloads(self) -> Downloads:
        """What was downloaded."""
        return Downloads(**self.result())

    def stop(self) -> None:
        """End it now."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _small(port: str, seconds: str, target: str) -> Service:
    with contextlib.suppress(OSError):
        os.nice(-10)  # what it measures is the server, not its neighbours on this core
    return small(int(port), float(seconds), target)


def _fetch(words: list[str], *, drop: bool) -> Downloads:
    port, seconds, count, rate, place, first, *where = words
    cold = asked = 0
    there = sorted(Path(where[0]).iterdir()) if where else []

    def names() -> Iterator[str]:
        nonlocal cold, asked
        while True:
            if there:
                path = there[asked % len(there)]
                cold += drop and forget(path)
                name = path.name
            else:
                cold += 1
                name = str(int(first) + asked)
            asked += 1
            yield f"{place}/{name}"

    files, size = download(int(port), float(seconds), int(count), int(rate), names())
    return Downloads(files, cold, size)


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    said: Service | Downloads
    said = _small(*words) if role == "small" else _fetch(words, drop=role == "cold")
    print(json.dumps({name: getattr(said, name) for name in said.__slots__}))
