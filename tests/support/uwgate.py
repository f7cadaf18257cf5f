"""A running gateway: ``python -m uwgate …`` as a child process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.client import Address, Client
from support.waiting import DEADLINE, free_port, wait_until
from support.zygote import Forked

ROOT = Path(__file__).resolve().parents[2]


class Gateway:
    """One instance. ``address`` is what clients connect to; ``log`` what it has written so far.

    ``options`` are command line words. Without ``listen`` it listens on a free TCP port of
    127.0.0.1; ``listen`` may be another TCP address, a unix path or ``@abstract``. ``option``:
    which gateway listens there.
    """

    def __init__(
        self,
        *options: str,
        listen: str = "",
        env: dict[str, str] | None = None,
        option: str = "--http",
    ) -> None:
        self.listen = listen or f"127.0.0.1:{free_port()}"
        self.address = _client_address(self.listen)
        self.command = [sys.executable, "-m", "uwgate", option, self.listen, *options]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._stopped = False
        self.process: subprocess.Popen[bytes] | Forked
        try:
            if env is None:
                self.process = Forked(self.command[3:], self._log.fileno())
            else:
                self.process = subprocess.Popen(
                    self.command,
                    cwd=ROOT,
                    env={**os.environ, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                )
        except BaseException:
            self._log.close()
            raise
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> str:
        """Standard output and error so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "backslashreplace")

    @property
    def port(self) -> int:
        """The TCP port."""
        assert not isinstance(self.address, str)
        return self.address[1]

    @property
    def authority(self) -> str:
        """``host:port`` for a URL."""
        return self.listen

    def connect(self, timeout: float = DEADLINE) -> Client:
        """A new client connection."""
        return Client(self.address, timeout)

    def unanswered(self, request: bytes) -> Client:
        """A connection whose request waits. Workers hear of what is new one by one: those that have
        not yet answer at once."""
        found: list[Client] = []

        def waits() -> bool:
            client = self.connect(1.0)
            client.send(request)
            try:
                client.sock.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                client.sock.settimeout(DEADLINE)
                found.append(client)
                return True
            client.close()
            return False

        wait_until(waits, "a connection that waits")
        return found[0]

    def terminate(self) -> None:
        """Ask it to drain (SIGTERM) and return at once."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, wait, assert a clean end: exit code 0 and no traceback in the log."""
        if self._stopped:
            return
        self.terminate()
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            log = self.log
            self.kill()
            raise AssertionError(f"did not stop after SIGTERM; log:\n{log}") from None
        log = self.log
        self._close()
        assert "Traceback" not in log, log
        assert code == 0, f"exit code {code}; log:\n{log}"

    def kill(self) -> None:
        """End it without ceremony: a second SIGTERM is the immediate stop, then SIGKILL."""
        if self._stopped:
            return
        self.terminate()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        self._stopped = True
        self._log.close()

    def _wait_ready(self) -> None:
        def accepts() -> bool:
            code = self.process.poll()
            assert code is None, f"exited with {code}; {self.command}; log:\n{self.log}"
            log = self.log
            if "] spawned uwgate " not in log and "] cheap: " not in log:
                return False  # other sockets than that of the address may not be bound yet
            try:
                Client(self.address).close()
            except OSError:
                return False
            return True

        try:
            wait_until(accepts, "gateway accepting", 15)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None


def _client_address(listen: str) -> Address:
    if listen.startswith(("@", "/")):
        return listen
    host, _, port = listen.rpartition(":")
    return (host.strip("[]") or "127.0.0.1", int(port))


@contextmanager
def running(
    *options: str, listen: str = "", env: dict[str, str] | None = None, option: str = "--http"
) -> Iterator[Gateway]:
    """A gateway for the length of a ``with`` block; stopped and checked at its end."""
    gateway = Gateway(*options, listen=listen, env=env, option=option)
    try:
        yield gateway
    except BaseException:
        gateway.kill()
        raise
    gateway.stop()


StartGateway = Callable[..., Gateway]
"""The ``start_gateway`` fixture: ``start_gateway(*options, listen="", env=None)``."""
