"""Clients of the rolling test: an open loop of GETs, every byte of every response verified.

Requests are due at fixed times, whatever became of those before them; a latency begins when the
request was due. Half of them use kept connections in turn, the others bring their own.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import cast

from benchmarks.app import HELLO, pattern

DEADLINE = 30.0  # seconds until a request counts as never answered
KILL_ECHO = 0.5  # seconds in which a kill is still felt
USES = 50  # requests on a kept connection
_LONG = 40_000
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9}) *\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close *\r\n", re.IGNORECASE)


@dataclass(slots=True)
class Score:
    """What became of the requests. ``done`` by kind, ``latencies`` in seconds.

    ``repeated``: connections that a killed router worker took with it before a response byte;
    the client asked again, once, on another one (RFC 9110 §9.2.2). ``cut``: responses that a kill
    ended in the middle, which nobody can repair. ``failed``: everything else, by kind.
    ``stale``: kept connections found closed when they were to be used. ``lag``: the longest that
    the client itself was late, seconds.
    """

    asked: int = 0
    done: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    repeated: int = 0
    cut: int = 0
    stale: int = 0
    lag: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # the first few, in words
    node_kills: list[float] = field(default_factory=list)
    worker_kills: list[float] = field(default_factory=list)

    def fail(self, kind: str, text: str) -> None:
        """Count a failure; the first twenty are kept in words."""
        self.failed[kind] += 1
        if len(self.failures) < 20:
            self.failures.append(f"{time.strftime('%H:%M:%S')} {kind}: {text}")


def during(kills: list[float], begun: float, ended: float) -> bool:
    """Whether one of the ``kills`` can be felt by what ran from ``begun`` to ``ended``."""
    return any(begun - KILL_ECHO <= kill <= ended for kill in kills[-8:])


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed; 0.0 of none."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


class Ended(Exception):
    """The connection ended before the response was complete; ``received``: what was there."""

    def __init__(self, received: bytes, cause: Exception | None) -> None:
        super().__init__(f"after {len(received)} bytes ({cause or 'end of file'})")
        self.received = received


class Wrong(Exception):
    """A response that is whole but not right; ``kind`` for the score."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Request:
    """A GET and the body that has to come back."""

    kind: str
    target: str
    expected: bytes

    def head(self, key: str, *, kept: bool) -> bytes:
        """The bytes to send."""
        more = "" if kept else "Connection: close\r\n"
        return f"GET {self.target} HTTP/1.1\r\nHost: {key}\r\n{more}\r\n".encode()


class Connection(asyncio.Protocol):
    """One connection to the router: a request at a time, the response by its Content-Length."""

    def __init__(self) -> None:
        self.uses = 0
        self.ended = False
        self.closing = False  # the router said that this was the last response
        self._cause: Exception | None = None
        self._received = bytearray()
        self._whole = -1  # bytes of the response, once known
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        """From the loop."""
        self._received += data
        if self._whole < 0:
            end = self._received.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            length = _LENGTH.search(self._received, 0, end)
            self._whole = end + int(length[1]) if length else end
        if len(self._received) >= self._whole:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """From the loop."""
        self.ended = True
        self._cause = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def ask(self, head: bytes) -> tuple[int, bytes]:
        """Send a request; status and body. Raises Ended and Wrong."""
        self.uses += 1
        self._received.clear()
        self._whole = -1
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(head)
        await self._waiter
        received, whole = bytes(self._received), self._whole
        if whole < 0 or len(received) < whole:
            raise Ended(received, self._cause)
        status = _STATUS.match(received)
        if status is None or len(received) > whole:
            raise Wrong("nonsense", f"{received[:80]!r} … {received[whole:][:80]!r}")
        first, _, body = received.partition(b"\r\n\r\n")
        self.closing = _CLOSE.search(first + b"\r\n") is not None
        return int(status[1]), body

    def close(self) -> None:
        """Close it; harmless if that has happened."""
        self._transport.close()


class Traffic:
    """``rate`` GETs a second to 127.0.0.1:``port`` for the routing key ``key``.

    ``kept``: share of the requests that use kept connections. ``wait``: milliseconds that the
    slower ones take, so that there is something in flight when a process dies.
    """

    def __init__(
        self, port: int, key: str, score: Score, *, rate: float, kept: float, wait: int
    ) -> None:
        self._port = port
        self._key = key
        self._score = score
        self._rate = rate
        self._kept = kept
        self._kinds = (
            (0.60, Request("short", "/", HELLO)),
            (0.90, Request("waiting", f"/wait/{wait}", HELLO)),
            (1.00, Request("long", f"/pattern/{_LONG}", pattern(_LONG))),
        )
        self._dice = random.Random(1)
        self._idle: deque[Connection] = deque()

    async def run(self, seconds: float) -> None:
        """All requests of that time, to the last answer."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        start = loop.time()
        for number in range(int(seconds * self._rate)):
            due = start + number / self._rate
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            self._score.lag = max(self._score.lag, loop.time() - due)
            self._score.asked += 1
            task = asyncio.create_task(self._get(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        while self._idle:
            self._idle.pop().close()

    def _draw(self) -> Request:
        roll = self._dice.random()
        return next(request for limit, request in self._kinds if roll <= limit)

    async def _get(self, due: float) -> None:
        request, kept = self._draw(), self._dice.random() < self._kept
        score, begun = self._score, time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE):
                await self._twice(request, kept)
        except TimeoutError:
            score.fail("unanswered", f"{request.target}: nothing within {DEADLINE:g} s")
        except Wrong as error:
            score.fail(error.kind, f"{request.target}: {error}")
        except Ended as error:
            kills = sorted(score.node_kills[-8:] + score.worker_kills[-8:])
            if error.received and during(kills, begun, time.monotonic()):
                score.cut += 1
            else:
                kind = "cut" if error.received else "closed"
                score.fail(kind, f"{request.target}: {error}")
        except OSError as error:
            score.fail("connect", f"{request.target}: {error}")
        else:
            score.done[f"{request.kind}, {'kept' if kept else 'new'}"] += 1
            score.latencies.append(asyncio.get_running_loop().time() - due)

    async def _twice(self, request: Request, kept: bool) -> None:
        """One request; again if the connection went away with a worker before it was answered."""
        begun = time.monotonic()
        try:
            await self._once(request, self._take() if kept else None, kept)
        except Ended as error:
            killed = during(self._score.worker_kills, begun, time.monotonic())
            if error.received or not killed:
                raise
            self._score.repeated += 1
            await self._once(request, None, kept)

    async def _once(self, request: Request, connection: Connection | None, kept: bool) -> None:
        if connection is None:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        try:
            status, body = await connection.ask(request.head(self._key, kept=kept))
        except BaseException:
            connection.close()
            raise
        if kept and not connection.closing and not connection.ended and connection.uses < USES:
            self._idle.append(connection)
        else:
            connection.close()
        if status != 200:
            raise Wrong(f"status {status}", repr(body[:120]))
        if body != request.expected:
            raise Wrong("body", f"{len(body)} bytes instead of {len(request.expected)}")

    def _take(self) -> Connection | None:
        """A kept connection, the one that was idle longest."""
        while self._idle:
            connection = self._idle.popleft()
            if not connection.ended:
                return connection
            self._score.stale += 1
        return None
