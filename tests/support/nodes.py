"""Recording nodes: real sockets served by threads, answering with scripted bytes.

``RawHttpNode`` speaks HTTP/1.1 with keep-alive, ``RawUwsgiNode`` the uwsgi protocol. Both keep the
exact bytes they received and have their own small parsers, independent of the gateway's.
"""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from support.node_wire import (
    Connection,
    PeerGone,
    Seen,
    SeenHttp,
    SeenUwsgi,
    read_http_request,
    read_uwsgi_request,
)
from support.waiting import DEADLINE, wait_until

__all__ = [
    "CLOSE",
    "CONTINUE",
    "Answer",
    "Connection",
    "Node",
    "RawHttpNode",
    "RawUwsgiNode",
    "Seen",
    "SeenHttp",
    "SeenUwsgi",
    "closing",
    "default_answer",
    "held",
    "pieces",
    "resetting",
    "response",
    "silent",
]

CLOSE = "close"
"""Returned by a script: close the connection after it."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Script = Callable[[Connection, Seen], str | None]
Answer = bytes | Script
"""What a node does with a request: raw bytes to send, or a function that acts by itself."""

_names = itertools.count()


def response(
    body: bytes = b"ok", *fields: bytes, status: bytes = b"200 OK", length: bool = True
) -> bytes:
    """A plain HTTP/1.1 response with ``fields`` (``b"Name: value"`` each)."""
    lines = [b"HTTP/1.1 " + status, *fields]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def closing(raw: bytes) -> Script:
    """Send ``raw``, then close."""

    def script(connection: Connection, seen: Seen) -> str:
        connection.send(raw)
        return CLOSE

    return script


def resetting(raw: bytes = b"") -> Script:
    """Send ``raw``, then reset the connection."""

    def script(connection: Connection, seen: Seen) -> str:
        connection.send(raw)
        connection.reset()
        return CLOSE

    return script


def silent(connection: Connection, seen: Seen) -> str:
    """Send nothing; wait until the gateway gives up."""
    connection.drain()
    return CLOSE


def held(gate: threading.Event, raw: bytes) -> Script:
    """Send ``raw`` once ``gate`` is set."""

    def script(connection: Connection, seen: Seen) -> None:
        assert gate.wait(DEADLINE), "gate never opened"
        connection.send(raw)

    return script


def pieces(*parts: bytes) -> Script:
    """Send each part in a ``send`` of its own, then close."""

    def script(connection: Connection, seen: Seen) -> str:
        for part in parts:
            connection.send(part)
        return CLOSE

    return script


def default_answer(connection: Connection, seen: Seen) -> None:
    """200; the body is ``METHOD TARGET LENGTH-OF-BODY``, so that answers can be told apart."""
    body = b"%s %s %d" % (seen.method, seen.target, len(seen.body))
    raw = response(body, b"Content-Type: text/plain")
    connection.send(raw[: -len(body)] if seen.method == b"HEAD" else raw)


class Node:
    """A listening node. ``where``: "tcp" (127.0.0.1, ``port`` or any), "unix" or "abstract".

    ``play`` queues answers; each request takes the next one, then ``otherwise`` (at first
    ``default_answer``) answers. ``seen`` lists complete requests in the order they were complete.
    """

    kind = ""

    def __init__(self, where: str = "tcp", port: int = 0) -> None:
        self.where = where
        self.port = port
        self._lock = threading.Lock()
        self._script: deque[Answer] = deque()
        self.otherwise: Answer = default_answer
        self.seen: list[Seen] = []
        self.faults: list[BaseException] = []
        self.connections: list[Connection] = []
        self.accepted = 0
        self._closing = False
        self._bind()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name=f"{self.kind}-node")
        self._acceptor.start()

    def _bind(self) -> None:
        self.path = ""
        if self.where == "tcp":
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
            self.port = int(self.listener.getsockname()[1])
            self.address = f"127.0.0.1:{self.port}"
            return
        name = f"uwgate-node-{os.getpid()}-{next(_names)}"
        self.listener = socket.socket(socket.AF_UNIX)
        if self.where == "unix":
            self.path = os.path.join(tempfile.gettempdir(), name + ".sock")
            self.listener.bind(self.path)
            self.address = self.path
        else:
            self.listener.bind(f"\0{name}\0")
            self.address = f"@{name}"
        self.listener.listen(512)

    @property
    def spec(self) -> str:
        """The node as ``--http-to`` wants it."""
        return self.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def play(self, *answers: Answer) -> None:
        """Queue an answer for each of the next requests."""
        self._script.extend(answers)

    def reset(self) -> None:
        """Forget what was seen and what was queued; idle connections stay open."""
        with self._lock:
            self._script.clear()
            self.otherwise = default_answer
            self.seen = []
            self.faults = []
            self.connections = [each for each in self.connections if not each.closed]
            for each in self.connections:
                each.received = b""

    def wait_seen(self, count: int = 1) -> list[Seen]:
        """The first ``count`` requests, once that many were complete."""
        wait_until(lambda: len(self.seen) >= count, f"{count} requests at the {self.kind} node")
        return self.seen[:count]

    def only(self) -> Seen:
        """The only request seen."""
        assert len(self.seen) == 1, [each.raw for each in self.seen]
        return self.seen[0]

    def check(self) -> None:
        """Assert that nothing this node received was malformed."""
        assert not self.faults, self.faults

    def open_connections(self) -> int:
        """How many connections are open now."""
        return sum(not each.closed for each in self.connections)

    def drop_idle(self) -> None:
        """Close every connection, those too that come meanwhile."""

        def none_left() -> bool:
            for each in list(self.connections):
                if not each.closed:
                    each.shut()
            return self.open_connections() == 0

        # A thread each, and some of them in the middle of megabytes.
        wait_until(none_left, "connections of the node to close", 30)

    def close(self) -> None:
        """Stop serving and close everything."""
        self._closing = True
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._acceptor.join(DEADLINE)
        self.listener.close()
        for each in list(self.connections):
            each.shut()
        for thread in self._threads:
            thread.join(DEADLINE)
        if self.path:
            os.unlink(self.path)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            if self._closing:
                sock.close()
                return
            with self._lock:
                self.accepted += 1
                connection = Connection(sock, self.accepted)
                self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            self.serve(connection)
        except (PeerGone, OSError):
            pass
        except BaseException as error:
            self.faults.append(error)
        finally:
            connection.close()

    def serve(self, connection: Connection) -> None:
        """Answer requests until the connection ends."""
        raise PeerGone

    def answer(self, connection: Connection, seen: Seen) -> str | None:
        """Record ``seen``, then do what the script says."""
        with self._lock:
            answer = self._script.popleft() if self._script else self.otherwise
            self.seen.append(seen)  # from here on a test may change the script
        if isinstance(answer, bytes):
            connection.send(answer)
            return None
        return answer(connection, seen)


class RawHttpNode(Node):
    """An HTTP/1.1 origin; keeps connections open unless a script closes them.

    ``on_expect`` is sent before the body of a request with Expect is read; b"" sends nothing.
    """

    kind = "http"
    on_expect = CONTINUE

    def reset(self) -> None:
        super().reset()
        self.on_expect = CONTINUE

    @property
    def spec(self) -> str:
        return f"http://{self.address}"

    def serve(self, connection: Connection) -> None:
        while True:
            seen = read_http_request(connection, lambda: self.on_expect)
            if self.answer(connection, seen) == CLOSE:
                return


class RawUwsgiNode(Node):
    """A uwsgi server: one request a connection, then close."""

    kind = "uwsgi"

    def serve(self, connection: Connection) -> None:
        self.answer(connection, read_uwsgi_request(connection))


NODES: dict[str, type[Node]] = {"http": RawHttpNode, "uwsgi": RawUwsgiNode}
