"""The clients of the soak test: mixed requests, every byte of every response verified."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from benchmarks.app import HELLO, pattern

RESPONSE_DEADLINE = 30.0  # seconds for one request, whatever its size
# A kill is felt a little later than it happens: resets are queued behind data.
KILL_ECHO = 0.5
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*")
_LENGTH = re.compile(rb"content-length:[ ]*([0-9]{1,12})", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_MORE: tuple[int, ...] = (1_000, 40_000, 300_000)
_LARGE = 4_000_000


class Lost(Exception):
    """A request got no right answer. ``begun``: the response's head had arrived."""

    def __init__(self, why: str, begun: bool) -> None:
        super().__init__(why)
        self.begun = begun


class Wrong(Exception):
    """A response that looks whole and is not right: no kill excuses that."""


@dataclass(slots=True)
class Score:
    """What happened: requests by kind, and what was lost.

    ``cut``: GETs whose node was killed while the body was on its way (nobody can repair that; the
    client was told by a broken connection). ``casualties``: POSTs that were at a node when it was
    killed (they must not be sent again). ``failures``: everything else; there must be none.
    """

    done: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    casualties: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first few, in words
    kills: list[float] = field(default_factory=list)

    def fail(self, text: str) -> None:
        """Count a failure and keep its text if it is among the first twenty."""
        self.failed += 1
        if len(self.failures) < 20:
            self.failures.append(text)

    def excused(self, begun: float, ended: float) -> bool:
        """Whether a node was killed while a request ran (monotonic seconds)."""
        return any(begun - KILL_ECHO <= kill <= ended for kill in self.kills[-4:])


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes to send, piece by piece, and the body that must come back."""

    kind: str
    pieces: tuple[bytes, ...]
    expected: bytes
    close: bool = False


@lru_cache(maxsize=8)
def _expected(size: int) -> bytes:
    return pattern(size)


def _head(line: str, *fields: str) -> bytes:
    return "\r\n".join((line, "Host: soak.example", "Accept: text/plain", *fields, "", "")).encode()


def _echo(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


def _get(size: int, kind: str, close: bool = False) -> Request:
    target = f"/pattern/{size}" if size else "/"
    fields = ("Connection: close",) if close else ()
    body = _expected(size) if size else HELLO
    return Request(kind, (_head(f"GET {target} HTTP/1.1", *fields),), body, close)


def _post(size: int) -> Request:
    body = _expected(size)
    head = _head("POST /echo HTTP/1.1", f"Content-Length: {size}")
    half = size // 2
    return Request("POST", (head + body[:half], body[half:]), _echo(body))


def _chunked(size: int, dice: random.Random) -> Request:
    body = _expected(size)
    pieces = [_head("POST /echo HTTP/1.1", "Transfer-Encoding: chunked")]
    at = 0
    while at < size:
        block = body[at : at + dice.randint(1, 50_000)]
        pieces.append(b"%x\r\n%b\r\n" % (len(block), block))
        at += len(block)
    pieces.append(b"0\r\n\r\n")
    return Request("POST chunked", tuple(pieces), _echo(body))


def draw(dice: random.Random) -> Request:
    """One request of the mix, by chance."""
    roll = dice.random()
    if roll < 0.50:
        return _get(0, "GET small")
    if roll < 0.70:
        return _get(dice.choice(_MORE), "GET medium")
    if roll < 0.72:
        return _get(_LARGE, "GET large")
    if roll < 0.80:
        return _get(dice.choice((0, *_MORE)), "GET close", close=True)
    if roll < 0.90:
        return _post(dice.choice(_MORE))
    return _chunked(dice.choice(_MORE), dice)


class Client:
    """One user: request after request, on one connection while it lasts."""

    def __init__(self, port: int, seed: int, score: Score) -> None:
        self._port = port
        self._dice = random.Random(seed)
        self._score = score
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, active: Callable[[], bool]) -> None:
        """Send requests until ``active()`` is false; failures go to the score."""
        while active():
            await self._one(draw(self._dice))
        await self._drop()

    async def _one(self, request: Request) -> None:
        score, begun = self._score, time.monotonic()
        try:
            await asyncio.wait_for(self._exchange(request), RESPONSE_DEADLINE)
        except TimeoutError:
            # Before OSError, its base: a node that dies must be noticed, so no kill excuses this.
            await self._drop()
            score.fail(f"{request.kind}: no answer within {RESPONSE_DEADLINE:g} s")
        except (Lost, OSError) as error:
            excused = score.excused(begun, time.monotonic())
            await self._drop()
            if excused and request.kind.startswith("POST"):
                score.casualties += 1
            elif excused and isinstance(error, Lost) and error.begun:
                score.cut += 1
            else:
                score.fail(f"{request.kind}: {type(error).__name__}: {error}")
        except Wrong as error:
            await self._drop()
            score.fail(f"{request.kind}: {error}")
        else:
            score.done[request.kind] += 1

    async def _exchange(self, request: Request) -> None:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        # An early answer (a 502) may arrive, and the connection close, while we still send:
        # the answer is what counts, so a failing write waits for the reader's verdict.
        with contextlib.suppress(ConnectionError):
            for piece in request.pieces:
                self._writer.write(piece)
                await self._writer.drain()
        status, head = await _read_head(self._reader)
        body = await _read_body(self._reader, head)
        if status != 200:
            raise Lost(f"status {status}: {body[:120]!r}", begun=False)
        if body != request.expected:
            raise Wrong(f"a complete response with {len(body)} wrong bytes")
        if request.close or b"\r\nconnection: close" in head.lower():
            if request.close and await self._reader.read(1):
                raise Wrong("bytes after the end of a response")
            await self._drop()

    async def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and head of the final response; Lost if none comes."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise Lost(f"closed after {error.partial[:60]!r}", begun=False) from error
        status = _STATUS.match(head)
        if status is None:
            raise Lost(f"not a response: {head[:60]!r}", begun=False)
        if status[1] != b"100":
            return int(status[1]), head


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body by its framing; Lost(begun=True) if it ends early."""
    try:
        length = _LENGTH.search(head)
        if length:
            return await reader.readexactly(int(length[1]))
        if b"\r\ntransfer-encoding: chunked" not in head.lower():
            return await reader.read(-1)
        blocks: list[bytes] = []
        while True:
            size = _CHUNK.fullmatch(await reader.readuntil(b"\r\n"))
            if size is None:
                raise Wrong("bad chunk size line")
            block = await reader.readexactly(int(size[1], 16) + 2)
            if block == b"\r\n":
                return b"".join(blocks)
            blocks.append(block[:-2])
    except asyncio.IncompleteReadError as error:
        raise Lost("closed within the body", begun=True) from error
    except ConnectionError as error:
        raise Lost(f"broken within the body: {error}", begun=True) from error
