"""The stats server: uWSGI's raw JSON, HTTP JSON, Prometheus and probes on one address.

It lives in the master's ``selectors`` loop and never blocks it: sockets are non-blocking, the
number of connections, the size of a request and the life of a connection are bounded, and
whatever needs the workers is asked for through a callback.

A client that sends nothing within ``GRACE`` (or closes its sending side) gets the bare document, as
from uWSGI; one that sends a request gets an HTTP response. With ``stats-http`` there is no bare
document.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto

from uwgate.observe.backlog import Queue, queues
from uwgate.observe.counters import Ledger, Totals
from uwgate.observe.exposition import CONTENT_TYPE
from uwgate.observe.http import MAX_HEAD, BadRequest, Request, parse, plain, response_head
from uwgate.observe.prometheus import render_metrics
from uwgate.observe.stats import StatsFacts, render_json
from uwgate.observe.subscriptions import tables
from uwgate.observe.sums import Snapshot

MAX_CONNECTIONS = 64
GRACE = 0.2  # seconds of silence after which a client is taken for a raw one
DEADLINE = 5.0  # seconds from accept to close, whatever happens
PATIENCE = 2.0  # seconds after which a collection that did not come back is begun anew
LINGER = 1.0  # seconds to read on after an early error response, so that it is not lost to a reset

Collect = Callable[[Callable[[list[Snapshot]], None]], None]

_ACCEPT_BATCH = 16
# Out of descriptors or memory: a level-triggered listener would spin until some are free.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class StatsServer:
    """Serves ``listener`` from ``selector``; every registration's data is ``(mask) -> None``.

    ``collect`` asks every worker and calls back with all snapshots, soon or at once, once.
    Calls overlapping in time share one collection. While ``active`` is true, ``tick`` has to be
    called about five times a second; it enforces the time limits.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        collect: Collect,
        facts: StatsFacts,
        *,
        ledger: Ledger | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.facts = facts
        self.ledger = Ledger() if ledger is None else ledger
        self._listener = listener
        self._selector = selector
        self._collect = collect
        self._max = max_connections
        self._connections: set[_Connection] = set()
        self._waiting: dict[_Connection, None] = {}
        self._asked: float | None = None  # when the collection under way began
        self._turn = 0
        self._closed = False
        self._listening = False
        self._exhausted = False
        listener.setblocking(False)
        self._listen(True)

    @property
    def active(self) -> bool:
        """Whether ``tick`` is needed."""
        return bool(self._connections) or self._exhausted

    def tick(self, now: float | None = None) -> None:
        """Enforce the time limits; ``now``: time.monotonic()."""
        now = time.monotonic() if now is None else now
        for connection in list(self._connections):
            connection.tick(now)
        if self._waiting:
            self._ask_workers(now)
        if self._exhausted:
            self._exhausted = False
            self._listen(True)

    def pause(self) -> None:
        """Accept nobody for now: this process is about to become another one, which does."""
        self._listen(False)

    def resume(self) -> None:
        """Accept again."""
        if not self._closed and len(self._connections) < self._max:
            self._listen(True)

    def close(self) -> None:
        """Close the listening socket and every connection."""
        self._closed = True
        self._waiting.clear()
        self._listen(False)
        self._listener.close()
        for connection in list(self._connections):
            connection.close()

    # -- for connections -----------------------------------------------------------------------

    def ask(self, connection: _Connection) -> None:
        """Call ``connection.answer(answers)`` once the workers have answered."""
        self._waiting[connection] = None
        self._ask_workers(time.monotonic())

    def _ask_workers(self, now: float) -> None:
        # A collection that never comes back must not silence the server for ever.
        if self._asked is not None and now - self._asked < PATIENCE:
            return
        self._asked = now
        self._turn += 1
        turn = self._turn
        self._collect(lambda snapshots: self._collected(turn, snapshots))

    def _collected(self, turn: int, snapshots: list[Snapshot]) -> None:
        if turn != self._turn or self._closed:
            return
        self._asked = None
        waiting, self._waiting = self._waiting, {}
        totals = self.ledger.totals(snapshots, tables(self.facts.subscriptions()))
        answers = _Answers(totals, self.facts)
        for connection in waiting:
            connection.answer(answers)

    def forget(self, connection: _Connection) -> None:
        """A connection has closed."""
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        if not self._closed and not self._exhausted:
            self._listen(True)

    # -- accepting -----------------------------------------------------------------------------

    def _listen(self, on: bool) -> None:
        if on and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ, self._on_accept)
        elif not on and self._listening:
            self._selector.unregister(self._listener)
        self._listening = on

    def _on_accept(self, mask: int) -> None:
        for _ in range(_ACCEPT_BATCH):
            if len(self._connections) >= self._max:
                self._listen(False)  # the rest waits in the queue until one has closed
                return
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._exhausted = True
                    self._listen(False)
                    return
                continue  # this client is gone already; accept(2) names many ways
            self._connections.add(_Connection(self, sock, self._selector))


class _Text:
    """A body made piece by piece, as somebody wants the next: one that takes long does not stop
    the master, and it is there once, however many clients wait for it."""

    __slots__ = ("_pieces", "_source")

    def __init__(self, source: Iterator[bytes | None]) -> None:
        self._source = source
        self._pieces: list[bytes] = []

    def piece(self, index: int) -> bytes | None:
        """None if it is not ready, ask again; nothing behind the last. One after the other."""
        if index == len(self._pieces):
            made = next(self._source, b"")
            if made is None:
                return None
            self._pieces.append(made)
        return self._pieces[index]


class _Answers:
    """What is said of one collection. ``document``: the JSON, ``metrics``: the exposition."""

    __slots__ = ("document", "metrics")

    def __init__(self, totals: Totals, facts: StatsFacts) -> None:
        def source(
            render: Callable[[Totals, list[Queue], StatsFacts], Iterator[bytes | None]],
        ) -> Iterator[bytes | None]:
            yield from render(totals, queues(facts.sockets()), facts)

        self.document = _Text(source(render_json))
        self.metrics = _Text(source(render_metrics))


class _State(Enum):
    READING = auto()  # waiting for a request, or for silence
    COLLECTING = auto()  # waiting for the workers
    WRITING = auto()
    LINGERING = auto()  # response sent, the client may still be sending


class _Connection:
    """One client of the stats server, from accept to close."""

    __slots__ = (
        "_accepted",
        "_events",
        "_head_only",
        "_input",
        "_kind",
        "_linger",
        "_lingering_since",
        "_output",
        "_piece",
        "_selector",
        "_server",
        "_state",
        "_text",
        "sock",
    )

    def __init__(
        self, server: StatsServer, sock: socket.socket, selector: selectors.BaseSelector
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._server = server
        self._selector = selector
        self._state = _State.READING
        self._accepted = time.monotonic()
        self._input = bytearray()
        self._output = memoryview(b"")
        self._text: _Text | None = None  # what follows the output, from ``_piece`` on
        self._piece = 0
        self._kind = "raw"
        self._head_only = False
        self._linger = False
        self._lingering_since = 0.0
        self._events = selectors.EVENT_READ
        selector.register(sock, self._events, self._on_event)

    def tick(self, now: float) -> None:
        """Enforce this connection's time limits."""
        age = now - self._accepted
        if self._state is _State.READING:
            if age >= DEADLINE:
                self._early_error(408, "The request did not arrive in time.")
            elif age >= GRACE and not self._input and not self._server.facts.http:
                self._collect("raw")
        elif self._state is _State.COLLECTING and age >= DEADLINE:
            self._give_up()
        elif self._state is _State.LINGERING and now - self._lingering_since >= LINGER:
            self.close()
        if self._state is _State.WRITING and age >= DEADLINE:
            self.close()

    def close(self) -> None:
        """Close now. Safe to call twice."""
        if self.sock.fileno() < 0:
            return
        if self._events:
            self._selector.unregister(self.sock)
        # A worker forked meanwhile holds a copy of the descriptor: only shutdown ends the stream.
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
        self._server.forget(self)

    # -- events --------------------------------------------------------------------------------

    def _on_event(self, mask: int) -> None:
        if self._state is _State.READING:
            self._read()
        elif self._state is _State.WRITING:
            self._write()
        else:
            self._discard()

    def _watch(self, events: int) -> None:
        if events == self._events:
            return
        if not events:
            self._selector.unregister(self.sock)
        elif not self._events:
            self._selector.register(self.sock, events, self._on_event)
        else:
            self._selector.modify(self.sock, events, self._on_event)
        self._events = events

    def _read(self) -> None:
        try:
            data = self.sock.recv(MAX_HEAD - len(self._input))
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._end_of_input()
            return
        self._input += data
        try:
            request = parse(self._input)
        except BadRequest as error:
            self._early_error(error.status, str(error))
            return
        if request is not None:
            self._answer(request)

    def _end_of_input(self) -> None:
        if self._input:
            self._early_error(400, "The request is incomplete.")
        elif self._server.facts.http:
            self.close()
        else:
            self._collect("raw")

    def _discard(self) -> None:
        try:
            if self.sock.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    # -- answers -------------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        if request.method not in (b"GET", b"HEAD"):
            self._linger = True  # there may be a body on its way
            self._send(plain(405, "Only GET and HEAD are served.", extra="Allow: GET, HEAD\r\n"))
            return
        self._head_only = request.method == b"HEAD"
        facts = self._server.facts
        if request.path == b"/metrics":
            self._collect("metrics")
        elif request.path == b"/healthz":
            self._send(plain(200, "ok", head_only=self._head_only))
        elif request.path == b"/readyz":
            reason = facts.not_ready()
            status, text = (503, reason) if reason else (200, "ready")
            self._send(plain(status, text, head_only=self._head_only))
        elif request.path == b"/" or facts.http:  # uWSGI's stats-http does not look at the path
            self._collect("json")
        else:
            text = "Served here: /, /metrics, /healthz, /readyz."
            self._send(plain(404, text, head_only=self._head_only))

    def _collect(self, kind: str) -> None:
        self._kind = kind
        self._state = _State.COLLECTING
        self._watch(0)
        self._server.ask(self)

    def answer(self, answers: _Answers) -> None:
        """The workers have answered."""
        if self._state is _State.COLLECTING:
            self._text = answers.metrics if self._kind == "metrics" else answers.document
            self._state = _State.WRITING
            self._more()
            self._write()

    def _give_up(self) -> None:
        if self._kind == "raw":  # nothing but the document can be said there
            self.close()
        else:
            self._send(plain(503, "The workers did not answer.", head_only=self._head_only))

    def _early_error(self, status: int, text: str) -> None:
        self._linger = True
        self._send(plain(status, text))

    def _send(self, data: bytes) -> None:
        self._output = memoryview(data)
        self._state = _State.WRITING
        self._write()

    def _write(self) -> None:
        try:
            while self._output:
                self._output = self._output[self.sock.send(self._output) :]
            if self._more():
                self._watch(selectors.EVENT_WRITE)  # a piece a turn: others want to be served, too
                return
        except BlockingIOError:
            self._watch(selectors.EVENT_WRITE)
            return
        except OSError:
            self.close()
            return
        self._sent()

    def _more(self) -> bool:
        """Take the next piece of the text, if it is ready; False when there is no more."""
        if self._text is None:
            return False
        piece = self._text.piece(self._piece)
        if piece is None:
            return True
        if self._piece == 0 and self._kind != "raw":
            piece = self._head(self._text, piece) + (b"" if self._head_only else piece)
            if self._head_only:
                self._text = None
        self._piece += 1
        self._output = memoryview(piece)
        return bool(piece)

    def _head(self, text: _Text, first: bytes) -> bytes:
        kind, extra = CONTENT_TYPE, ""
        if self._kind == "json":
            kind = "application/json"
            # uWSGI lets every web page read it; only who asked for stats-http gets that.
            if self._server.facts.http:
                extra = "Access-Control-Allow-Origin: *\r\n"
        # Only what fits in one piece has a length; the connection ends with the body.
        length = len(first) if text.piece(1) == b"" else None
        return response_head(200, kind, length, extra)

    def _sent(self) -> None:
        if not self._linger:
            self.close()
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._state = _State.LINGERING
        self._lingering_since = time.monotonic()
        self._watch(selectors.EVENT_READ)
