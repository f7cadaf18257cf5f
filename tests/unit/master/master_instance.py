"""A master with stand-in workers as a child process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.waiting import DEADLINE, free_port, wait_until

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("master_standin.py")


def tcp(port: int, host: str = "127.0.0.1") -> dict[str, object]:
    """Plain values of a TCP endpoint."""
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return {"kind": "tcp", "text": text, "host": host, "port": port}


class Instance:
    """``options``: see ``master_standin.build``; without listeners one on a free TCP port."""

    def __init__(self, options: dict[str, Any], **popen: Any) -> None:
        http = options.setdefault("http", {})
        self.port = free_port()
        http.setdefault("listeners", [tcp(self.port)])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        popen.setdefault("stdout", self._log)
        popen.setdefault("stderr", self._log)
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(options)],
            cwd=popen.pop("cwd", ROOT),
            env={**os.environ, "PYTHONPATH": str(ROOT), **popen.pop("env", {})},
            **popen,
        )

    @property
    def log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def logged(self, text: str, times: int = 1) -> None:
        """Wait until the log has ``text`` that often."""
        try:
            wait_until(lambda: self.log.count(text) >= times, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    @property
    def workers(self) -> list[int]:
        """Pids of the children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def connect(self, port: int = 0) -> Talk:
        def connected() -> socket.socket | None:
            try:
                return socket.create_connection(("127.0.0.1", port or self.port), DEADLINE)
            except ConnectionRefusedError:
                code = self.process.poll()
                assert code is None, f"exited with {code}; log:\n{self.log}"
                return None

        found: list[socket.socket] = []
        wait_until(lambda: found or found.extend(filter(None, [connected()])) or found)
        return Talk(found[0])

    def ask(self, word: str) -> str:
        with self.connect() as talk:
            return talk.ask(word)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs; log:\n{self.log}") from None

    def stop(self) -> None:
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log

    def clean(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Talk:
    """One connection to a stand-in."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def ask(self, word: str) -> str:
        self.sock.sendall(word.encode() + b"\n")
        data = b""
        while not data.endswith(b"\n"):
            chunk = self.sock.recv(65536)
            if not chunk:
                raise ConnectionResetError("closed")
            data += chunk
        return data.decode().rstrip("\n")


@contextmanager
def instance(options: dict[str, Any] | None = None, **popen: Any) -> Iterator[Instance]:
    """A running instance, killed at the end if the test has not stopped it."""
    running = Instance(options or {}, **popen)
    try:
        yield running
    finally:
        running.clean()


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie nobody waits for counts)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
