"""``python -m benchmarks.reload_load JSON``: the load of `benchmarks.reload`, in its own process.

The argument is a `Load` as JSON; what it prints is `Score.plain` with ``lags``, ``begun`` and
``ended`` added. Clients behave as RFC 9112 §9 wants: who was told that a connection ends opens
another one, and so does who sees that one has ended before it is used. A request on a connection
that ends without a byte in answer has failed; "raced" if the connection had been used before.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import ssl
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.procs import trusting
from benchmarks.reload_client import DEADLINE, Failure, Lag, Score, Wire, check, connect, repeated
from benchmarks.reload_node import length_of, masked

_PIECE = 1 << 16  # bytes of an upload at a time
_SLOWER = 40  # times the usual pause
_GREETING = (
    "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n\r\n"
)
_TEXT, _CLOSE = 0x81, 0x88


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be sent. ``plain``, ``tls``: ports. ``files``: "" or a directory whose files are
    served under /static/. ``slow``: of the kept connections, so many have long pauses. Times are
    seconds, ``upload_rate`` bytes a second."""

    plain: int
    tls: int
    host: str
    seconds: float = 10.0
    kept: int = 64
    think: float = 0.08
    fresh: int = 16
    fresh_think: float = 0.2
    sockets: int = 4
    socket_think: float = 0.02
    uploads: int = 2
    upload_sizes: tuple[int, int] = (20_000_000, 50_000_000)
    upload_rate: float = 5_000_000
    files: str = ""
    slow: int = 0


class Traffic:
    """All clients."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.score = Score()
        self._context = trusting()
        self._dice = random.Random(7)
        self._number = 0
        self._until = 0.0
        self._files = {}
        if load.files:
            self._files = {path.name: path.read_bytes() for path in Path(load.files).iterdir()}

    async def run(self) -> dict[str, Any]:
        """Until the time is over and everything that was begun has ended."""
        load, lag = self.load, Lag()
        watching = asyncio.create_task(lag.watch())
        begun = time.monotonic()
        self._until = begun + load.seconds
        clients: list[tuple[int, Callable[[bool], Coroutine[Any, Any, None]]]] = [
            (load.kept - load.slow, partial(self._kept, think=load.think)),
            (load.slow, partial(self._kept, think=_SLOWER * load.think)),
            (load.fresh, self._fresh),
            (load.sockets, self._socket),
            (load.uploads, self._upload),
        ]
        async with asyncio.TaskGroup() as group:
            for count, client in clients:
                for number in range(count):
                    group.create_task(client(number % 2 == 1))
        watching.cancel()
        ended = time.monotonic()
        return {**self.score.plain(), "lags": lag.flat(), "begun": begun, "ended": ended}

    # -- common --------------------------------------------------------------------------------

    @property
    def _going(self) -> bool:
        return time.monotonic() < self._until

    async def _pause(self, mean: float) -> None:
        """Not longer than the load lasts."""
        drawn = min(self._dice.expovariate(1 / mean), 5 * mean)
        await asyncio.sleep(min(drawn, max(0.0, self._until - time.monotonic())))

    async def _connect(self, tls: bool) -> Wire:
        context: ssl.SSLContext | None = self._context if tls else None
        port = self.load.tls if tls else self.load.plain
        return await connect(port, context, self.load.host)

    def _draw(self) -> tuple[str, str, bytes]:
        """Kind, target, and the body that has to come back."""
        self._number += 1
        if self._files and self._dice.random() < 0.4:
            name = self._dice.choice(list(self._files))
            return "static", f"/static/{name}", self._files[name]
        size = 20_000 if self._dice.random() < 0.1 else 200
        word = f"w{self._number}"
        return "proxied", f"/echo/{size}/{word}", repeated(word, size)

    def _request(self, target: str, more: str = "") -> bytes:
        return f"GET {target} HTTP/1.1\r\nHost: {self.load.host}\r\n{more}\r\n".encode()

    # -- kept connections ----------------------------------------------------------------------

    async def _kept(self, tls: bool, think: float) -> None:
        """One connection that is used again and again."""
        wire: Wire | None = None
        uses = 0
        await self._pause(think)
        while self._going:
            if wire is not None and wire.ended:
                self._found_closed(wire, tls)
                wire = None
            kind, target, body = self._draw()
            kind = f"kept {_plain(tls)} {kind}"
            begun = time.monotonic()
            with self.score.judging(kind):
                try:
                    async with asyncio.timeout(DEADLINE):
                        if wire is None:
                            wire, uses = await self._connect(tls), 0
                        uses += 1
                        closes = await self._ask(wire, uses, target, body)
                except BaseException:
                    _let_go(wire)
                    wire = None
                    raise
                self.score.right(kind, begun)
                if closes:
                    self.score.polite += 1
                    _let_go(wire)
                    wire = None
            await self._pause(think)
        _let_go(wire)

    async def _ask(self, wire: Wire, uses: int, target: str, body: bytes) -> bool:
        """One request; whether the response said that it was the last one."""
        begun = time.monotonic()
        wire.write(self._request(target))
        try:
            response = await wire.response()
        except Failure as error:
            if uses > 1 and not wire.buffer and error.word in ("eof", "reset"):
                later = 1000 * (time.monotonic() - begun)
                text = f"{error.word} {later:.1f} ms after the request, idle for"
                raise Failure("raced", f"{text} {begun - wire.answered:.2f} s before") from None
            raise
        wire.answered = time.monotonic()
        check(response, body, wire)
        return response.closes

    def _found_closed(self, wire: Wire, tls: bool) -> None:
        if wire.reset:
            self.score.fail(f"kept {_plain(tls)} idle", "reset", str(wire.cause))
        elif wire.buffer:
            self.score.fail(f"kept {_plain(tls)} idle", "nonsense", repr(bytes(wire.buffer[:60])))
        else:
            self.score.idle += 1

    # -- new connections -----------------------------------------------------------------------

    async def _fresh(self, tls: bool) -> None:
        """Connect, ask, close, every time."""
        while self._going:
            await self._pause(self.load.fresh_think)
            kind, target, body = self._draw()
            kind = f"new {_plain(tls)} {kind}"
            begun, wire = time.monotonic(), None
            with self.score.judging(kind):
                try:
                    async with asyncio.timeout(DEADLINE):
                        wire = await self._connect(tls)
                        wire.write(self._request(target, "Connection: close\r\n"))
                        check(await wire.response(), body, wire)
                    self.score.right(kind, begun)
                finally:
                    _let_go(wire)

    # -- WebSockets ----------------------------------------------------------------------------

    async def _socket(self, tls: bool) -> None:
        """Messages all the time; another one once it was closed."""
        kind = f"websocket {_plain(tls)}"
        while self._going:
            wire = None
            with self.score.judging(kind):
                try:
                    async with asyncio.timeout(DEADLINE):
                        wire = await self._connect(tls)
                        await self._greet(wire)
                    await self._talk(wire, kind)
                finally:
                    _let_go(wire)
            if self._going:
                await asyncio.sleep(0.01)

    async def _greet(self, wire: Wire) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        wire.write(_GREETING.format(self.load.host, key).encode())
        response = await wire.response()
        if response.status != 101:
            raise Failure("status", f"{response.status} instead of 101")

    async def _talk(self, wire: Wire, kind: str) -> None:
        """Until the time is over or the other side has ended it; `Failure` of a wrong echo."""
        opened = time.monotonic()
        while self._going:
            await self._pause(self.load.socket_think)
            if wire.ended or wire.buffer:
                self._parted(wire, opened, "between")
                return
            said = self._dice.randbytes(self._dice.choice((16, 100, 1000))).hex().encode()
            begun, frame = time.monotonic(), bytes((_TEXT,)) + length_of(len(said)) + said
            wire.write(_masked_frame(said))
            try:
                async with asyncio.timeout(DEADLINE):
                    echo = await wire.exactly(len(frame))
            except Failure:
                self._parted(wire, opened, "within")
                return
            if echo != frame:
                raise Failure("body", f"echo {echo[:40]!r} of {frame[:40]!r}")
            self.score.right(kind, begun)

    def _parted(self, wire: Wire, opened: float, how: str) -> None:
        """The judgement is `reload_judge`'s, who knows of the reloads."""
        if wire.buffer and wire.buffer[0] != _CLOSE:
            raise Failure("nonsense", repr(bytes(wire.buffer[:60])))
        how = "reset" if wire.reset else how
        self.score.sockets.append((opened, time.monotonic(), how))

    # -- uploads -------------------------------------------------------------------------------

    async def _upload(self, tls: bool) -> None:
        """One large body after the other, slowly."""
        kind = f"upload {_plain(tls)}"
        while self._going:
            size, wire = self._upload_size(), None
            with self.score.judging(kind):
                try:
                    async with asyncio.timeout(DEADLINE):
                        wire = await self._connect(tls)
                    expected = await self._send_body(wire, size)
                    begun = time.monotonic()
                    async with asyncio.timeout(DEADLINE):
                        check(await wire.response(), expected, wire)
                    self.score.right(kind, begun)
                finally:
                    _let_go(wire)

    def _upload_size(self) -> int:
        """Less than asked for where the time is too short."""
        size = self._dice.randint(*self.load.upload_sizes)
        left = (self._until - time.monotonic()) * self.load.upload_rate
        return min(size, max(_PIECE, round(left)))

    async def _send_body(self, wire: Wire, size: int) -> bytes:
        """Head and body at the limited rate; the answer that has to come."""
        load, digest = self.load, hashlib.sha256()
        head = f"PUT /upload HTTP/1.1\r\nHost: {load.host}\r\nContent-Length: {size}\r\n\r\n"
        wire.write(head.encode())
        begun, sent, piece = time.monotonic(), 0, self._dice.randbytes(_PIECE)
        while sent < size:
            # No two pieces are equal: one that got lost or was sent twice is noticed.
            part = (sent.to_bytes(8) + piece[8:])[: size - sent]
            digest.update(part)
            wire.write(part)
            sent += len(part)
            async with asyncio.timeout(DEADLINE):
                await wire.drained()
            early = begun + sent / load.upload_rate - time.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            if sent < size and (wire.buffer or wire.ended):
                word = "early" if wire.buffer else "reset" if wire.reset else "eof"
                raise Failure(word, f"after {sent} of {size} bytes: {bytes(wire.buffer[:60])!r}")
        return f"{digest.hexdigest()} {size}".encode()


def _plain(tls: bool) -> str:
    return "tls" if tls else "plain"


def _let_go(wire: Wire | None) -> None:
    if wire is not None:
        wire.close()


def _masked_frame(payload: bytes) -> bytes:
    mask = os.urandom(4)
    head = bytes((_TEXT,)) + length_of(len(payload), 0x80)
    return head + mask + masked(payload, mask)


def encode(load: Load) -> str:
    """As the argument of this program."""
    return json.dumps(asdict(load))


def decode(text: str) -> Load:
    """What `encode` made."""
    fields = json.loads(text)
    fields["upload_sizes"] = tuple(fields["upload_sizes"])
    return Load(**fields)


def main(argv: list[str]) -> int:
    """Always 0: what failed is in the output."""
    print(json.dumps(uvloop.run(Traffic(decode(argv[0])).run())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
