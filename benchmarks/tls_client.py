"""``python -m benchmarks.tls_client``: one TLS connection for each request, full or resumed.

wrk cannot say which of its handshakes were resumed, and ``openssl s_time`` resumes no TLS 1.3
session. This client keeps ``--connections`` handshakes going at once and counts what each of them
was. Its own cost does not matter: only the proxy's CPU time is compared.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.certificates import HOST
from benchmarks.procs import on_core, trusting
from benchmarks.rolling_client import quantile
from benchmarks.workloads import HELLO

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
PATIENCE = 10.0  # seconds that one request may take
_ASK = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


class TlsClientError(Exception):
    """The client failed, or what it said is not a report."""


@dataclass(frozen=True, slots=True)
class TlsResult:
    """What one run counted: ``requests`` completed, ``resumed`` of their handshakes; ``size`` bytes
    of responses, ``seconds`` of wall clock, ``p50`` and ``p99`` in µs from connect to last byte;
    ``ciphers``: those that were used; ``errors``: "number what" for each kind of error."""

    requests: int
    resumed: int
    size: int
    seconds: float
    p50: float
    p99: float
    ciphers: tuple[str, ...]
    errors: tuple[str, ...]


def context(version: str, *, tickets: bool = True) -> ssl.SSLContext:
    """A client that believes any certificate and speaks just ``version`` ("1.2", "1.3")."""
    made = trusting()
    made.minimum_version = made.maximum_version = VERSIONS[version]
    if not tickets:
        made.options |= ssl.OP_NO_TICKET
    return made


class Ask:
    """One connection and its only request. ``step`` drives it until ``done``."""

    __slots__ = ("_phase", "answer", "began", "done", "ended", "sock", "wanted")

    def __init__(self, port: int, made: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        self.began = time.perf_counter()
        raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setblocking(False)
        self.sock = made.wrap_socket(
            raw, server_hostname=HOST, session=session, do_handshake_on_connect=False
        )
        self._phase = self._shake
        self.wanted = _READ
        self.answer = b""
        self.done = False
        self.ended = 0.0

    def step(self) -> None:
        """Go on as far as possible; OSError (of which ssl.SSLError is one)."""
        try:
            while not self.done:
                self._phase()
        except ssl.SSLWantReadError:
            self.wanted = _READ
        except ssl.SSLWantWriteError:
            self.wanted = _WRITE

    def _shake(self) -> None:
        self.sock.do_handshake()
        self._phase = self._send

    def _send(self) -> None:
        self.sock.send(_ASK)
        self._phase = self._receive

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        self.answer += data
        if not data:
            self.done = True
            self.ended = time.perf_counter()

    @property
    def fault(self) -> str:
        """What is wrong with the answer, "" if nothing is."""
        if not self.answer.startswith(b"HTTP/1.1 200 "):
            return f"answers that are no 200 ({self.answer[:20]!r})"
        return "" if self.answer.endswith(b"\r\n\r\n" + HELLO) else "wrong bodies"


class Load:
    """Keeps ``connections`` requests going, each on a new connection."""

    def __init__(self, port: int, connections: int, version: str, *, resume: bool) -> None:
        self._port = port
        self._connections = connections
        self._context = context(version)
        self._resume = resume
        self._session: ssl.SSLSession | None = None
        self._epoll = select.epoll()
        self._asks: dict[int, Ask] = {}
        self.times: list[float] = []
        self.resumed = 0
        self.size = 0
        self.ciphers: set[str] = set()
        self.errors: Counter[str] = Counter()

    def run(self, seconds: float) -> TlsResult:
        """Load for so long; those under way at the end are waited for and counted."""
        if self._resume:
            self._first()
        began = time.perf_counter()
        end = began + seconds
        try:
            while self._asks or time.perf_counter() < end:
                while len(self._asks) < self._connections and time.perf_counter() < end:
                    self._begin()
                self._round(end)
        finally:
            for ask in self._asks.values():
                ask.sock.close()
            self._epoll.close()
        return TlsResult(
            requests=len(self.times),
            resumed=self.resumed,
            size=self.size,
            seconds=time.perf_counter() - began,
            p50=1e6 * quantile(self.times, 0.5),
            p99=1e6 * quantile(self.times, 0.99),
            ciphers=tuple(sorted(self.ciphers)),
            errors=tuple(f"{number} {what}" for what, number in self.errors.items()),
        )

    def _first(self) -> None:
        """Get a session; it counts as nothing."""
        ask = Ask(self._port, self._context, None)
        ask.sock.settimeout(PATIENCE)
        ask.step()
        self._session = ask.sock.session
        ask.sock.close()

    def _begin(self) -> None:
        try:
            ask = Ask(self._port, self._context, self._session)
        except OSError as error:
            self.errors[f"failed connects ({error.strerror or error})"] += 1
            return
        number = ask.sock.fileno()
        self._asks[number] = ask
        self._epoll.register(number, 0)
        self._go_on(number, ask)

    def _go_on(self, number: int, ask: Ask) -> None:
        try:
            ask.step()
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
            self.errors[f"broken connections ({reason})"] += 1
            self._drop(number, ask)
            return
        if ask.done:
            self._count(ask)
            self._drop(number, ask)
        else:
            self._epoll.modify(number, ask.wanted)

    def _count(self, ask: Ask) -> None:
        fault = ask.fault
        if fault:
            self.errors[fault] += 1
            return
        self.times.append(ask.ended - ask.began)
        self.resumed += bool(ask.sock.session_reused)
        self.size += len(ask.answer)
        cipher = ask.sock.cipher()
        self.ciphers.add(cipher[0] if cipher else "")
        if self._resume:
            self._session = ask.sock.session

    def _drop(self, number: int, ask: Ask) -> None:
        del self._asks[number]
        self._epoll.unregister(number)
        ask.sock.close()

    def _round(self, end: float) -> None:
        for number, _ in self._epoll.poll(0.5):
            self._go_on(number, self._asks[number])
        if time.perf_counter() > end + PATIENCE:
            self.errors["requests without an end"] += len(self._asks)
            for number, ask in list(self._asks.items()):
                self._drop(number, ask)


def faults(result: TlsResult, *, resume: bool) -> list[str]:
    """Why the run may not be counted; an empty list if it may.

    A proxy that resumes nothing must not be compared under "resumed", nor the other way round.
    """
    found = list(result.errors)
    wanted = result.requests if resume else 0
    if result.requests == 0:
        found.append("no request was completed")
    elif result.resumed != wanted:
        found.append(f"{result.resumed} of {result.requests} handshakes were resumed")
    return found


def parse(output: str) -> TlsResult:
    """The report that the client prints; TlsClientError."""
    try:
        said = json.loads(output)
        return TlsResult(**{**said, **{n: tuple(said[n]) for n in ("ciphers", "errors")}})
    except (ValueError, TypeError, KeyError) as error:
        raise TlsClientError(f"bad report of the TLS client: {output[:200]!r}") from error


def run(
    port: int, connections: int, seconds: int, core: int, version: str, *, resume: bool
) -> TlsResult:
    """Load 127.0.0.1:``port`` from a process on ``core``; TlsClientError."""
    argv = [sys.executable, "-m", "benchmarks.tls_client", str(port), f"--version={version}"]
    argv += [f"--connections={connections}", f"--seconds={seconds}"]
    limit = seconds + 3 * PATIENCE
    try:
        with on_core(core):
            done = subprocess.run(
                [*argv, *(["--resume"] if resume else [])],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
            )
    except subprocess.TimeoutExpired as error:
        raise TlsClientError(f"the TLS client did not end within {limit:.0f} s") from error
    if done.returncode:
        raise TlsClientError(f"the TLS client failed: {done.stderr.strip()[-300:]}")
    return parse(done.stdout)


def main(argv: list[str] | None = None) -> int:
    """Load a port and print the report as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls_client", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--version", choices=VERSIONS, default="1.3")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--resume", action="store_true", help="offer a session every time")
    options = parser.parse_args(argv)
    load = Load(options.port, options.connections, options.version, resume=options.resume)
    print(json.dumps(asdict(load.run(options.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
