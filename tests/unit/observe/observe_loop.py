"""A selectors loop in a thread, as the master runs it around a StatsServer."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from observe_samples import node, worker

from uwgate.observe.server import StatsServer
from uwgate.observe.stats import StatsFacts
from uwgate.observe.subscriptions import RegistryView
from uwgate.observe.sums import Snapshot

Answer = Callable[[list[Snapshot]], None]


class Master:
    """What the tests steer: ``reason`` of /readyz, ``snapshots``, and when collections answer."""

    def __init__(self) -> None:
        self.reason = ""
        self.snapshots = [worker(requests=3, connections=1, nodes=[node(hits=3)])]
        self.views: list[RegistryView] = []
        self.collections = 0
        self.hold = False  # answers wait until ``released``
        self.lost = 0  # so do those of so many collections, the first ones
        self.released = threading.Event()
        self.held: list[Answer] = []
        self.server: StatsServer
        self.address: tuple[str, int] | str

    def collect(self, answer: Answer) -> None:
        self.collections += 1
        if self.hold or self.collections <= self.lost:
            self.held.append(answer)
        else:
            answer(self.snapshots)

    def step(self) -> None:
        """Once a turn of the loop, in its thread."""
        if self.released.is_set():
            self.released.clear()
            held, self.held = self.held, []
            for answer in held:
                answer(self.snapshots)

    def connect(self) -> socket.socket:
        family = socket.AF_INET if isinstance(self.address, tuple) else socket.AF_UNIX
        sock = socket.socket(family)
        sock.settimeout(10)
        sock.connect(self.address)
        return sock

    def ask(self, data: bytes) -> bytes:
        """Everything the server says to ``data`` until it closes."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Status, fields by lower-case name, body."""
        return split(self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def split(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    fields = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    return int(status), fields, body


@contextmanager
def serving(
    path: str = "", *, http: bool = False, minified: bool = False, max_connections: int = 64
) -> Iterator[Master]:
    """A running server on TCP, or on the unix socket ``path``."""
    master = Master()
    if path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
    else:
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    master.address = listener.getsockname()
    facts = StatsFacts(
        1000.0,
        lambda: master.reason,
        lambda: [listener],
        minified=minified,
        http=http,
        subscriptions=lambda: master.views,
    )
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                for key, mask in selector.select(0.02):
                    key.data(mask)
                master.step()
                if master.server.active:
                    master.server.tick()
            master.server.close()
        except BaseException as error:
            failures.append(error)

    with selectors.DefaultSelector() as selector:
        master.server = StatsServer(
            listener, selector, master.collect, facts, max_connections=max_connections
        )
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield master
        finally:
            stop.set()
            thread.join()
        assert not failures, failures
        assert not selector.get_map()
