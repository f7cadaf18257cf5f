"""The real uwsgitop, on a pseudo-terminal, against a real stats server."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from observe_loop import Master, serving
from observe_samples import worker


class Screen:
    """uwsgitop's terminal: what it wrote, and a keyboard."""

    def __init__(self, terminal: int) -> None:
        self.terminal = terminal
        self.text = b""

    def wait_for(self, *wanted: bytes) -> None:
        """Until all of ``wanted`` has been drawn since the last call."""
        limit = time.monotonic() + 20
        while not all(part in self.text for part in wanted):
            assert time.monotonic() < limit, self.text
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.text += os.read(self.terminal, 65536)
        self.text = b""

    def press(self, key: bytes) -> None:
        os.write(self.terminal, key)


@contextmanager
def uwsgitop(address: str) -> Iterator[Screen]:
    """A running uwsgitop; it has to end with status 0 on ``q``."""
    program = shutil.which("uwsgitop") or str(Path(sys.executable).parent / "uwsgitop")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 180, 0, 0))
    process = subprocess.Popen(
        [sys.executable, program, address],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        screen = Screen(ours)
        yield screen
        screen.press(b"q")
        drain_until_exit(process, ours)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def drain_until_exit(process: subprocess.Popen[bytes], terminal: int) -> None:
    limit = time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < limit, "uwsgitop does not end"
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                os.read(terminal, 65536)
            except OSError:  # EIO: it closed its side
                process.wait(20)


@pytest.mark.parametrize("kind", ["tcp", "unix", "http"])
def test_uwsgitop_shows_the_workers(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "stats") if kind == "unix" else ""
    with serving(path) as master:
        master.snapshots = [
            worker(1, requests=41, tx=3 << 20, time_micros=41_000),
            worker(2, requests=1234, status="busy", active_requests=1),
        ]
        with uwsgitop(address_of(master, kind)) as screen:
            # Two workers' totals, then each one's own row.
            screen.wait_for(b"req: 1275", b"1234", b"busy", b"idle", b"3.0M")
            screen.press(b"a")  # cores merged into workers
            screen.wait_for(b"2:0")
            screen.press(b"a")  # cores below workers
            screen.wait_for(b":0")


def address_of(master: Master, kind: str) -> str:
    if isinstance(master.address, str):
        return master.address
    host, port = master.address
    return f"http://{host}:{port}/" if kind == "http" else f"{host}:{port}"
