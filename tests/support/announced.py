"""A subscription server's socket that notes what it hears and when, and ``uwgate announce``."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.waiting import DEADLINE, wait_until
from uwgate.subscriptions.packet import Announcement, decode

ROOT = Path(__file__).resolve().parents[2]
# <asm/socket.h>; Python has no name for it. Our thread may run much later than the kernel.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")


@dataclass(frozen=True, slots=True)
class Heard:
    """One datagram; ``when``: the wall clock at the time the kernel received it."""

    when: float
    packet: Announcement

    @property
    def up(self) -> bool:
        return self.packet.command == 0


class Listener:
    """Receives announcements in a thread, on UDP or, with a path, on a unix datagram socket."""

    def __init__(self, path: str = "") -> None:
        self.sock = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.sock.bind(path or ("127.0.0.1", 0))
        self.address = path or f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.heard: list[Heard] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        with socket.socket(self.sock.family, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.sock.getsockname())
        self._thread.join()
        self.sock.close()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def ups(self) -> int:
        return sum(each.up for each in self.heard)

    def downs(self) -> int:
        return sum(not each.up for each in self.heard)

    def wait(self, *, ups: int = 0, downs: int = 0) -> None:
        """Until that many announcements and goodbyes were heard."""
        wait_until(
            lambda: self.ups() >= ups and self.downs() >= downs, f"{ups} up, {downs} down"
        )

    def _listen(self) -> None:
        space = socket.CMSG_SPACE(_TIMESPEC.size)
        while True:
            datagram, ancillary, _, _ = self.sock.recvmsg(65536, space)
            if not datagram:
                return
            when = time.time()
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                    seconds, nanoseconds = _TIMESPEC.unpack(data)
                    when = seconds + nanoseconds / 1e9
            self.heard.append(Heard(when, decode(datagram)))


class Announce:
    """A running ``uwgate announce``; ``log`` has what it and its child wrote."""

    def __init__(self, words: Sequence[str], prefix: Sequence[str] = ()) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "uwgate", "announce", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "backslashreplace")

    def logged(self, text: str, times: int = 1) -> None:
        """Wait until the log has ``text`` that often."""
        try:
            wait_until(lambda: self.log.count(text) >= times, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs; log:\n{self.log}") from None
        assert "Traceback" not in self.log, self.log
        return code

    def clean(self) -> None:
        if self.process.poll() is None:
            for child in self.children:
                os.kill(child, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        self._log.close()


@contextmanager
def announcing(*words: str, prefix: Sequence[str] = ()) -> Iterator[Announce]:
    """``uwgate announce`` with these words; killed at the end if the test has not stopped it."""
    running = Announce(words, prefix)
    try:
        yield running
    finally:
        running.clean()


@contextmanager
def burying() -> Iterator[None]:
    """Waits for the children that the block left behind (those of ``Lookups``), and no other."""
    before = _children()
    yield
    for pid in _children() - before:
        os.waitpid(pid, 0)


def _children() -> set[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}
