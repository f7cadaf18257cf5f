"""A Redis server as long as a ``with``, and loops that end with nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvloop
from support.waiting import DEADLINE, free_port, wait_until

from interop.peers import needs


class RedisServer:
    """Keeps nothing on disk. Listens on a socket file, with ``port`` on TCP as well.
    ``url``: its address, the latter if there is one."""

    def __init__(self, where: Path, *options: str, port: int = 0) -> None:
        self.program = needs("redis-server")
        self.path = where / "redis.sock"
        self.url = f"redis://127.0.0.1:{port}" if port else f"unix://{self.path}"
        self.log = where / "redis.log"
        self.options = (
            *("--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(self.path)),
            *("--save", "", "--appendonly", "no", "--dir", str(where)),
            *("--logfile", str(self.log), *options),
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen([self.program, *self.options])
        wait_until(self.answers, "Redis")

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1)
            try:
                sock.connect(str(self.path))
                sock.sendall(b"PING\r\n")
                return bool(sock.recv(100))
            except OSError:
                return False

    def command(self, *words: str | bytes) -> bytes:
        """The raw answer (RESP) to a command, as far as it comes in one piece."""
        parts = [word if isinstance(word, bytes) else word.encode() for word in words]
        text = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(self.path))
            sock.sendall(text)
            return sock.recv(1 << 20)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def redis_server(where: Path, *options: str, tcp: bool = False) -> Iterator[RedisServer]:
    """One that runs."""
    server = RedisServer(where, *options, port=free_port() if tcp else 0)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def started(*parts: Any) -> AsyncIterator[None]:
    """``start`` and ``close`` those, and wait for what they leave to be done."""
    before = asyncio.all_tasks()
    for part in parts:
        part.start(asyncio.get_running_loop())
    try:
        yield
    finally:
        for part in parts:
            part.close()
        left = asyncio.all_tasks() - before
        if left:
            await asyncio.wait(left, timeout=DEADLINE)


async def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """``wait_until`` in a loop."""
    limit = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < limit, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.002)


def run(main: Coroutine[Any, Any, None]) -> None:
    """In a loop like a worker's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
