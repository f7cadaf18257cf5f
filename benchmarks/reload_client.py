"""Strict clients of `benchmarks.reload`: every byte is expected, and every end has a name."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

DEADLINE = 10.0  # seconds until a request counts as never answered
SLOW = 0.1  # seconds above which a request is delayed
LAG = 0.02  # seconds by which a loop has to be late to be remembered
_TICK = 0.005
_MOST_FAILURES = 2000  # kept one by one; all are counted
_BUFFER = 1 << 20  # bytes that may wait unread
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,12}) *\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close *\r\n", re.IGNORECASE)


def repeated(word: str, size: int) -> bytes:
    """``word`` and a newline again and again, ``size`` bytes of it."""
    line = word.encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


class Failure(Exception):
    """A request failed. ``word``: connect, reset, eof, timeout, status, body, nonsense, raced."""

    def __init__(self, word: str, text: str = "") -> None:
        super().__init__(text)
        self.word = word


class Lag:
    """When this process was not served by its processor, or kept itself busy."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            if now - due > LAG:
                self.spans.append((due, now))

    def flat(self) -> list[float]:
        """Begin, end, begin, end, … (monotonic seconds)."""
        return [each for span in self.spans for each in span]


@dataclass(slots=True)
class Score:
    """What became of everything. Times are monotonic seconds.

    ``done``: whole and right, by kind; ``failures``: when, kind, word, text; ``slow``: begin, end,
    kind; ``polite``: connections that a response said would be closed; ``idle``: closed in order
    while nothing was under way, before they were used again; ``sockets``: of each WebSocket that
    the other side ended: begin, end, "between" messages, "within" one, or "reset".
    """

    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, str, str, str]] = field(default_factory=list)
    latencies: dict[str, array[float]] = field(default_factory=dict)
    slow: list[tuple[float, float, str]] = field(default_factory=list)
    polite: int = 0
    idle: int = 0
    sockets: list[tuple[float, float, str]] = field(default_factory=list)

    def right(self, kind: str, begun: float) -> None:
        """A request that began then has just been answered as it should."""
        self.done[kind] += 1
        self.took(kind, begun)

    def took(self, kind: str, begun: float) -> None:
        """Note how long it was."""
        now = time.monotonic()
        self.latencies.setdefault(kind, array("d")).append(now - begun)
        if now - begun > SLOW:
            self.slow.append((begun, now, kind))

    def fail(self, kind: str, word: str, text: str = "") -> None:
        """Count a failure."""
        self.failed[kind] += 1
        if len(self.failures) < _MOST_FAILURES:
            self.failures.append((time.monotonic(), kind, word, text))

    @contextmanager
    def judging(self, kind: str) -> Iterator[None]:
        """Whatever goes wrong inside is a failure of that kind, and goes no further."""
        try:
            yield
        except Failure as error:
            self.fail(kind, error.word, str(error))
        except TimeoutError:
            self.fail(kind, "timeout", f"nothing within {DEADLINE:g} s")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "done": dict(self.done),
            "failed": dict(self.failed),
            "failures": self.failures,
            "latencies": {kind: list(map(_micro, each)) for kind, each in self.latencies.items()},
            "slow": self.slow,
            "polite": self.polite,
            "idle": self.idle,
            "sockets": self.sockets,
        }


def _micro(value: float) -> float:
    return round(value, 6)


@dataclass(frozen=True, slots=True)
class Response:
    """``closes``: it said that the connection ends."""

    status: int
    head: bytes
    body: bytes
    closes: bool


class Wire(asyncio.Protocol):
    """One connection: bytes in, bytes out, and how it ended."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.eof = False
        self.lost = False
        self.cause: Exception | None = None
        self.answered = 0.0  # when the last response was whole
        self._waiter: asyncio.Future[None] | None = None
        self._full: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    # -- from the loop -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        """From the loop."""
        self.buffer += data
        self._wake()

    def eof_received(self) -> None:
        """From the loop; the transport closes itself."""
        self.eof = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """From the loop."""
        self.lost = True
        self.cause = exc
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        """From the loop."""
        self._full = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """From the loop."""
        if self._full is not None and not self._full.done():
            self._full.set_result(None)
        self._full = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- for clients ---------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the other side has ended it."""
        return self.lost or self.eof

    @property
    def reset(self) -> bool:
        """Whether it was torn, not closed. TLS: an end without close_notify is none."""
        return isinstance(self.cause, OSError) and not isinstance(self.cause, ssl.SSLError)

    def write(self, data: bytes) -> None:
        """Send."""
        self._transport.write(data)

    async def drained(self) -> None:
        """Until more may be sent."""
        if self._full is not None:
            await self._full

    async def more(self) -> None:
        """Until there is more to read; `Failure` "eof" or "reset"."""
        if self.ended:
            word = "reset" if self.reset else "eof"
            raise Failure(word, f"after {len(self.buffer)} bytes ({self.cause or 'end of file'})")
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def exactly(self, size: int) -> bytes:
        """So many bytes; `Failure`."""
        while len(self.buffer) < size:
            await self.more()
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def response(self) -> Response:
        """One whole response that has a Content-Length, or 101; `Failure`."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > _BUFFER:
                raise Failure("nonsense", "a head without an end")
            await self.more()
        head = bytes(self.buffer[: end + 4])
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None or (length is None and status[1] != b"101"):
            raise Failure("nonsense", repr(head[:160]))
        whole = end + 4 + (int(length[1]) if length is not None else 0)
        while len(self.buffer) < whole:
            await self.more()
        body = bytes(self.buffer[end + 4 : whole])
        del self.buffer[:whole]
        return Response(int(status[1]), head, body, _CLOSE.search(head) is not None)

    def close(self) -> None:
        """Close it; harmless if that has happened."""
        self._transport.close()


async def connect(port: int, context: ssl.SSLContext | None, host: str) -> Wire:
    """A connection to 127.0.0.1; `Failure` "connect"."""
    loop = asyncio.get_running_loop()
    name = host if context is not None else None
    try:
        _, wire = await loop.create_connection(
            Wire, "127.0.0.1", port, ssl=context, server_hostname=name
        )
    except OSError as error:  # an SSLError is one
        raise Failure("connect", f"{type(error).__name__}: {error}") from None
    return wire


def check(response: Response, body: bytes, wire: Wire) -> None:
    """`Failure` unless it is a 200 with that body, and nothing behind it."""
    if response.status != 200:
        raise Failure("status", f"{response.status} {response.body[:80]!r}")
    if response.body != body:
        raise Failure("body", f"{len(response.body)} bytes for {len(body)}: {response.body[:60]!r}")
    if wire.buffer:
        raise Failure("nonsense", f"behind the response: {bytes(wire.buffer[:60])!r}")
