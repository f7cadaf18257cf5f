"""What waiting costs: memory per idle connection, behind a reader that stands still, and at all."""

from __future__ import annotations

import contextlib
import re
import resource
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.certificates import HOST, Pair, make
from benchmarks.compare import Bench
from benchmarks.figures import table
from benchmarks.peers import PEERS, Proxy, start_proxy
from benchmarks.procs import StartError, family, rss_bytes, trusting
from benchmarks.workloads import MB300, NodeKind

BATCH = 50  # connections opened and asked at once
PER_ADDRESS = 10_000  # connections from one source address: local ports are not endless
STALL_SECONDS = 4.0
ANSWER_DEADLINE = 15.0
STALL_LIMIT = 8 << 20
IDLE_LIMIT = 4096
TLS_IDLE = 2000  # connections
TLS_IDLE_LIMIT = 48 << 10
FEW_FILES = 1024
FILES_LIMIT = 1 << 20  # bytes: what two starts of the same program may differ by anyway
_TLS = trusting()
_ASK = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
_STALL = b"GET /body/300m HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,12}) *\r\n", re.IGNORECASE)


class ClientError(Exception):
    """A response did not come, or was not what was asked for."""


@dataclass(frozen=True, slots=True)
class Held:
    """One peer: ``growth`` bytes of RSS over ``base``, for ``count`` connections.

    In the test "files", ``count`` is how many descriptors more were allowed.
    """

    test: str
    peer: str
    count: int
    base: int
    growth: int
    failed: str = ""

    @property
    def each(self) -> float:
        """Bytes a connection."""
        return self.growth / self.count if self.count else 0.0


def raise_file_limit() -> int:
    """Allow as many descriptors as the hard limit does; returns that number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def idle(bench: Bench, peers: list[str], connections: int) -> list[Held]:
    """RSS for each of ``connections`` keep-alive connections that made one request each."""
    usable = min(connections, raise_file_limit() - 500)
    if usable < connections:
        bench.say(f"  idle: {usable} connections only: the limit of open files is too low")
    work = _Idle(usable)
    return [_measure(bench, "idle", peer, "http", usable, work) for peer in peers]


def tls_idle(bench: Bench, peers: list[str], connections: int) -> list[Held]:
    """The same for connections over TLS, of which ``TLS_IDLE`` are enough."""
    usable = min(connections, TLS_IDLE, raise_file_limit() - 500)
    pair, work = make(bench.directory / "tls-idle" / "pair"), _Idle(usable, tls=True)
    return [_measure(bench, "tls-idle", peer, "http", usable, work, pair) for peer in peers]


def stalled(bench: Bench, peers: list[str], node: NodeKind) -> list[Held]:
    """RSS that a 300 MB response adds while its client does not read."""
    return [_measure(bench, f"stalled-{node}", peer, node, 1, _stall) for peer in peers]


def _measure(
    bench: Bench,
    test: str,
    peer: str,
    node: NodeKind,
    count: int,
    work: Callable[[Proxy], _Rss],
    pair: Pair | None = None,
) -> Held:
    try:
        proxy = start_proxy(
            bench.tools,
            PEERS[peer],
            bench.directory / test / peer,
            bench.proxy_core,
            bench.origin,
            node,
            pair=pair,
        )
    except StartError as error:
        return Held(test, peer, count, 0, 0, str(error))
    with proxy.process:
        try:
            rss = work(proxy)
        except (ClientError, OSError) as error:
            return Held(test, peer, count, 0, 0, f"{type(error).__name__}: {error}")
    return Held(test, peer, count, rss.before, rss.after - rss.before)


def files(bench: Bench, peers: list[str], node: NodeKind) -> list[Held]:
    """RSS at rest that a high RLIMIT_NOFILE adds: FEW_FILES against this process's hard limit."""
    many, found = raise_file_limit(), []
    for name in peers:
        levels = []
        try:
            for limit in (FEW_FILES, many):
                where = bench.directory / f"files-{limit}" / name
                proxy = start_proxy(
                    bench.tools,
                    PEERS[name],
                    where,
                    bench.proxy_core,
                    bench.origin,
                    node,
                    files=limit,
                )
                with proxy.process:
                    levels.append(rss_bytes(family(proxy.process.pid)))
        except StartError as error:
            found.append(Held("files", name, 0, 0, 0, str(error)))
        else:
            found.append(Held("files", name, many - FEW_FILES, levels[0], levels[1] - levels[0]))
    return found


@dataclass(frozen=True, slots=True)
class _Rss:
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class _Idle:
    connections: int
    tls: bool = False

    def __call__(self, proxy: Proxy) -> _Rss:
        with contextlib.ExitStack() as stack:
            warm = [self._connect(proxy.port, 0, stack) for _ in range(BATCH)]
            for _ in range(20):
                _ask_all(warm)
            pids = family(proxy.process.pid)
            before = rss_bytes(pids)
            for first in range(0, self.connections, BATCH):
                last = min(first + BATCH, self.connections)
                _ask_all([self._connect(proxy.port, n, stack) for n in range(first, last)])
            return _Rss(before, rss_bytes(pids))

    def _connect(self, port: int, number: int, stack: contextlib.ExitStack) -> socket.socket:
        sock = _connect(port, number, stack)
        if not self.tls:
            return sock
        return stack.enter_context(_TLS.wrap_socket(sock, server_hostname=HOST))


def _connect(port: int, number: int, stack: contextlib.ExitStack) -> socket.socket:
    source = f"127.0.0.{2 + number // PER_ADDRESS}"
    sock = socket.create_connection(("127.0.0.1", port), ANSWER_DEADLINE, (source, 0))
    stack.enter_context(sock)
    return sock


def _ask_all(socks: list[socket.socket]) -> None:
    """One request on each connection, all at once; ClientError unless each gets a whole 200."""
    for sock in socks:
        sock.sendall(_ASK)
    for sock in socks:
        answer = b""
        while not _whole(answer):
            block = sock.recv(65536)
            if not block:
                raise ClientError(f"connection closed after {answer[:60]!r}")
            answer += block


def _whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise ClientError(f"expected a 200, got {head[:60]!r}")
    length = _LENGTH.search(head + b"\r\n")
    if length is None:
        raise ClientError(f"no Content-Length in {head[:200]!r}")
    return len(body) == int(length[1])


def _stall(proxy: Proxy) -> _Rss:
    """Read the head, stand still, watch the highest RSS, then read on and count every byte."""
    with contextlib.ExitStack() as stack:
        warm = [_connect(proxy.port, 0, stack) for _ in range(BATCH)]
        for _ in range(20):
            _ask_all(warm)
        pids = family(proxy.process.pid)
        before = rss_bytes(pids)
        sock = _connect(proxy.port, 0, stack)
        sock.sendall(_STALL)
        received = sock.recv(4096)
        if not received.startswith(b"HTTP/1.1 200"):
            raise ClientError(f"expected a 200, got {received[:60]!r}")
        highest = before
        deadline = time.monotonic() + STALL_SECONDS
        with selectors.DefaultSelector() as pause:
            while time.monotonic() < deadline:
                highest = max(highest, rss_bytes(pids))
                pause.select(0.02)
        size = _drain(sock, received)
        if size != MB300:
            raise ClientError(f"body of {size} bytes instead of {MB300} after the stall")
        return _Rss(before, highest)


def _drain(sock: socket.socket, received: bytes) -> int:
    """Read to the end of the connection; the number of body bytes."""
    while b"\r\n\r\n" not in received:
        block = sock.recv(65536)
        if not block:
            raise ClientError("connection closed within the head")
        received += block
    head, _, body = received.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        raise ClientError("the response is chunked: its length cannot be compared")
    size = len(body)
    while block := sock.recv(1 << 20):
        size += len(block)
    return size


def verdicts(held: list[Held]) -> list[tuple[str, bool]]:
    """What the project promises about memory: (sentence, whether it held)."""
    found = []
    for row in held:
        if row.peer != "uwgate" or row.failed:
            continue
        if row.test in ("idle", "tls-idle"):
            limit = IDLE_LIMIT if row.test == "idle" else TLS_IDLE_LIMIT
            text = f"{row.test}: {row.each:,.0f} bytes a connection at {row.count:,}, limit {limit}"
            found.append((text, row.each <= limit))
        else:
            limit = FILES_LIMIT if row.test == "files" else STALL_LIMIT
            text = f"{row.test}: {row.growth / 1e6:.1f} MB more, limit {limit / 1e6:.1f}"
            found.append((text, row.growth <= limit))
    return found


def render(held: list[Held]) -> str:
    """The table of the memory tests."""
    rows = [["", "test", "count", "RSS before MB", "growth MB", "KB each"]]
    for row in held:
        if not row.failed:
            each = f"{row.each / 1024:.2f}"
            rows.append(
                [row.peer, row.test, f"{row.count:,}", f"{row.base / 1e6:.1f}",
                 f"{row.growth / 1e6:.2f}", each]
            )  # fmt: skip
    text = "memory: RSS growth of all processes of the proxy\n" + table(rows)
    for row in held:
        if row.failed:
            text += f"\n  {row.test}, {row.peer}: FAILED: {row.failed}"
    return text
