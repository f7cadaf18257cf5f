"""The control socket: orders from ``uwgate reload|stop|status|nodes``, and their outcome.

A unix stream socket. A client sends one JSON object on a line and gets objects, one a line:

=============================================  ================================================
request                                        answer
=============================================  ================================================
``{"command": "reload", "chain": false}``      ``{"pid": n}``, any number of ``{"line": s}``,
                                               ``{"done": 0|1, "text": s}``
``{"command": "stop"}``                        the same; the connection ends with the process
``{"command": "status"}``                      ``{"done": 0, "status": {…}}`` (``Orders.status``)
``{"command": "stats"}``                       ``{"done": 0, "stats": s}``: JSON as text
anything else, or a user who may not           ``{"error": s}``
=============================================  ================================================

Who may is decided by the credentials that the kernel tells (unix(7), SO_PEERCRED), not by the mode
of the file. Everything is bounded, and nobody who is slow holds up the loop.

A master that executes itself anew hands its connections over (``handover``, ``adopt``): who waits
for the end of a reload is told by the new one; any other request is simply read again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import selectors
import socket
import struct
import time
from collections.abc import Collection, Iterable, Mapping
from enum import Enum, auto

from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop, Timer
from uwgate.master.orders import Orders, Report

MAX_CONNECTIONS = 64
MAX_REQUEST = 4096  # bytes
DEADLINE = 10.0  # seconds to send the request, and from one piece of an answer taken to the next
MAX_LINES = 1 << 16  # bytes of progress that may wait for a client; more is left out

_ACCEPT_BATCH = 16
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RETRY = 1.0  # seconds until the next try after that
_PATIENCE = 2.0  # seconds after which a document that did not come is asked for again
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_MAX_REFUSED = 64  # users whose refusals are counted one by one


class ControlServer:
    """Serves ``listener`` from ``loop``. Users 0, our own and ``allowed`` may give orders."""

    def __init__(
        self,
        listener: socket.socket,
        loop: Loop,
        log: MainLog,
        orders: Orders,
        *,
        allowed: Collection[int] = frozenset(),
    ) -> None:
        self.loop = loop
        self.log = log
        self.orders = orders
        self._listener = listener
        self._allowed = frozenset(allowed)
        self._connections: dict[int, _Connection] = {}
        self._stats: list[_Connection] = []  # they share one document
        self._asked = 0.0  # when it was asked for
        self._refused: dict[int, int] = {}
        self._listening = False
        self._closed = False
        listener.setblocking(False)
        self._listen(True)

    def close(self) -> None:
        """Close the listener and all connections, except of those who wait for the end of this
        process: the kernel closes them then."""
        self._closed = True
        self._listen(False)
        self._listener.close()
        for connection in list(self._connections.values()):
            connection.finish()

    def move(self, listener: socket.socket) -> None:
        """Listen on another socket, and close the one before."""
        self._listen(False)
        self._listener.close()
        self._listener = listener
        listener.setblocking(False)
        self._listen(True)

    # -- over a re-execution -------------------------------------------------------------------

    def handover(self) -> list[dict[str, object]]:
        """JSON values, one a connection; their ``fd`` have to stay open. Changes nothing."""
        found = (each.state() for each in self._connections.values())
        return [state for state in found if state is not None]

    def adopt(self, handed: Iterable[object]) -> None:
        """Go on with the connections of the master before us; what cannot be used is left out."""
        for value in handed:
            try:
                if not isinstance(value, Mapping):
                    raise TypeError
                sock = socket.socket(fileno=int(value["fd"]))
                uid = _peer(sock)[1]
            except (KeyError, TypeError, ValueError, OSError):
                continue
            sock.set_inheritable(False)
            connection = _Connection(self, sock, uid)
            self._connections[sock.fileno()] = connection
            connection.restore(value)

    def waiting(self, fd: int) -> Report | None:
        """The connection with that descriptor, if it waits for the end of a reload."""
        connection = self._connections.get(fd)
        return connection.report if connection is not None else None

    @property
    def waiters(self) -> list[Report]:
        """All that wait for the end of a reload that the master before us has begun."""
        adopted = (each for each in self._connections.values() if each.adopted)
        return [each.report for each in adopted if each.report is not None]

    # -- for connections -----------------------------------------------------------------------

    def ask_stats(self, connection: _Connection) -> None:
        """Have ``connection.answer`` called with a document; those who ask together share it."""
        self._stats.append(connection)
        now = time.monotonic()
        # A document that never comes must not silence those who ask later.
        if len(self._stats) == 1 or now - self._asked >= _PATIENCE:
            self._asked = now
            self.orders.stats(self._answer_stats)

    def _answer_stats(self, document: bytes) -> None:
        text = document.decode("utf-8", "replace")
        line = _line({"done": 0, "stats": text})
        asking, self._stats = self._stats, []
        for connection in asking:
            connection.answer(line)

    def forget(self, connection: _Connection, fd: int) -> None:
        """It has closed."""
        self._connections.pop(fd, None)
        if connection in self._stats:
            self._stats.remove(connection)
        if not self._closed:
            self._listen(True)

    # -- accepting -----------------------------------------------------------------------------

    def _listen(self, on: bool) -> None:
        if on and not self._listening:
            self.loop.selector.register(self._listener, selectors.EVENT_READ, self._on_accept)
        elif not on and self._listening:
            self.loop.selector.unregister(self._listener)
        self._listening = on

    def _resume(self) -> None:
        if not self._closed:
            self._listen(True)

    def _on_accept(self, mask: int) -> None:
        for _ in range(_ACCEPT_BATCH):
            if len(self._connections) >= MAX_CONNECTIONS:
                self._listen(False)  # the rest waits in the queue until one has closed
                return
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._listen(False)
                    self.loop.call_later(_RETRY, self._resume)
                    return
                continue  # this client is gone already
            pid, uid = _peer(sock)
            if uid in self._allowed or uid in (0, os.geteuid()):
                self._connections[sock.fileno()] = _Connection(self, sock, uid)
            else:
                self._refuse(sock, pid, uid)

    def _refuse(self, sock: socket.socket, pid: int, uid: int) -> None:
        with sock, contextlib.suppress(OSError):
            sock.setblocking(False)
            sock.send(_line({"error": f"user {uid} may not give orders to this instance"}))
        uid = uid if uid in self._refused or len(self._refused) < _MAX_REFUSED else -1
        count = self._refused[uid] = self._refused.get(uid, 0) + 1
        if count & (count - 1) == 0:
            # The 1st, 2nd, 4th, 8th … time, so that nobody can fill a disk.
            self.log.line(f"control socket: refused user {uid} (pid {pid}; {count} times)")


class _State(Enum):
    READING = auto()  # the request
    WAITING = auto()  # for what has been asked for
    ENDING = auto()  # all is said: only sending is left
    STOPPING = auto()  # all is said, the process is about to end


class _Connection:
    """One client, from accept to close. Also its ``Report``."""

    __slots__ = (
        "_command",
        "_events",
        "_input",
        "_left",
        "_out",
        "_queued",
        "_server",
        "_sock",
        "_state",
        "_timer",
        "_uid",
        "adopted",
    )

    def __init__(self, server: ControlServer, sock: socket.socket, uid: int) -> None:
        sock.setblocking(False)
        self._server = server
        self._sock = sock
        self._uid = uid
        self._state = _State.READING
        self.adopted = False  # its order was given to the master before us
        self._command = ""
        self._input = bytearray()
        self._out: list[memoryview] = []
        self._queued = 0  # bytes of them
        self._left = False  # the client sends no more
        self._events = 0
        self._timer: Timer | None = None
        self._limit()
        self._watch()

    @property
    def report(self) -> Report | None:
        """Itself, if it waits for the end of a reload."""
        waits = self._state is _State.WAITING and self._command == "reload"
        return self if waits else None

    # -- Report --------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """Progress; of a client that does not read too much of it is left out."""
        data = _line({"line": text})
        if self._state is _State.WAITING and self._queued + len(data) <= MAX_LINES:
            self._send(data)

    def done(self, code: int, text: str) -> None:
        """The outcome; only the first one counts."""
        if self._state is not _State.WAITING:
            return
        self._state = _State.ENDING
        if self._command == "stop" and code == 0:
            self._state = _State.STOPPING
        self._send(_line({"done": code, "text": text}))

    def answer(self, line: bytes) -> None:
        """All that there is to say."""
        if self._state in (_State.READING, _State.WAITING):
            self._state = _State.ENDING
            self._send(line)

    # -- handing over --------------------------------------------------------------------------

    def state(self) -> dict[str, object] | None:
        """JSON value, None if the next master need not know of it."""
        if self._sock.fileno() < 0 or self._state in (_State.ENDING, _State.STOPPING):
            return None
        value: dict[str, object] = {"fd": self._sock.fileno(), "in": self._input.decode("latin-1")}
        if self._command == "reload":
            value["command"] = self._command
            value["out"] = b"".join(self._out).decode("latin-1")
        return value

    def restore(self, value: Mapping[str, object]) -> None:
        """Be what ``state`` said."""
        if value.get("command") == "reload":
            self.adopted = True
            self._command = "reload"
            self._state = _State.WAITING
            self._limit(None)
            self._send(str(value.get("out", "")).encode("latin-1", "replace"))
        else:
            self._input += str(value.get("in", "")).encode("latin-1", "replace")
            # Not now: the master may not be ready for orders.
            self._server.loop.call_later(0, self._begin)

    def _begin(self) -> None:
        if self._state is _State.READING:
            self._feed(b"")

    # -- reading -------------------------------------------------------------------------------

    def _on_event(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                self._read()
            if mask & selectors.EVENT_WRITE and self._sock.fileno() >= 0:
                self._flush()
        except Exception as error:
            self._server.log.crash("control socket", error)
            self._close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(MAX_REQUEST)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close()
            return
        if data:
            # What follows a request means nothing.
            if self._state is _State.READING:
                self._feed(data)
            return
        self._left = True
        if self._state is _State.READING or self._is_gone():
            self._close()
        else:
            self._watch()

    def _is_gone(self) -> bool:
        """Whether it has closed, rather than only its sending side."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(mask & (select.POLLHUP | select.POLLERR) for _fd, mask in poll.poll(0))

    def _feed(self, data: bytes) -> None:
        self._input += data
        end = self._input.find(b"\n")
        if end < 0 and len(self._input) < MAX_REQUEST:
            return
        if end < 0 or end >= MAX_REQUEST:
            self._fail(f"a request has at most {MAX_REQUEST} bytes")
            return
        del self._input[end + 1 :]
        try:
            request = json.loads(self._input)
        except (ValueError, RecursionError):
            request = None
        if isinstance(request, dict):
            self._obey(request)
        else:
            self._fail("a request is one JSON object on a line")

    def _fail(self, text: str) -> None:
        self.answer(_line({"error": text}))

    def _obey(self, request: dict[str, object]) -> None:
        command, chain = request.get("command"), request.get("chain", False)
        if command not in ("reload", "stop", "status", "stats") or not isinstance(chain, bool):
            self._fail("there is no such command")
            return
        self._command = str(command)
        self._state = _State.WAITING
        self._limit(None)
        orders, why = self._server.orders, f"uwgate {command} (uid {self._uid})"
        try:
            if command == "status":
                orders.status(self._answer_status)
            elif command == "stats":
                self._server.ask_stats(self)
            else:
                self._send(_line({"pid": os.getpid()}))
                if command == "reload":
                    orders.reload(why, chain=chain, report=self)
                else:
                    orders.stop(why, report=self)
        except Exception as error:
            self._server.log.crash(why, error)
            self._fail("it failed; the log says why")

    def _answer_status(self, status: dict[str, object]) -> None:
        self.answer(_line({"done": 0, "status": status}))

    # -- writing -------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if not self._out:
            self._limit()  # from now on: what waited before was up to us
        self._out.append(memoryview(data))
        self._queued += len(data)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                piece = self._out[0]
                sent = self._sock.send(piece)
                self._queued -= sent
                if sent == len(piece):
                    del self._out[0]
                else:
                    self._out[0] = piece[sent:]
                self._limit()
        except (BlockingIOError, InterruptedError):
            self._watch()
            return
        except OSError:
            self._close()
            return
        if self._state is _State.ENDING:
            self._close()
        else:
            self._limit(None)
            self._watch()

    def _watch(self) -> None:
        """Ask for the events that matter now."""
        wanted = 0 if self._left else selectors.EVENT_READ
        if self._out:
            wanted |= selectors.EVENT_WRITE
        selector = self._server.loop.selector
        if wanted == self._events:
            return
        if not self._events:
            selector.register(self._sock, wanted, self._on_event)
        elif not wanted:
            selector.unregister(self._sock)
        else:
            selector.modify(self._sock, wanted, self._on_event)
        self._events = wanted

    def _limit(self, seconds: float | None = DEADLINE) -> None:
        """The client has so long for what it has to do next."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds is not None:
            self._timer = self._server.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._state is _State.READING:
            self._fail("the request did not arrive in time")
        self._close()

    # -- the end -------------------------------------------------------------------------------

    def finish(self) -> None:
        """The server closes."""
        if self._command == "stop" and self._state in (_State.WAITING, _State.STOPPING):
            # Its end tells the client that the process is gone.
            self._close(keep=True)
            return
        if self._command == "reload":
            self.done(1, "the instance has ended")
        self._close()

    def _close(self, *, keep: bool = False) -> None:
        fd = self._sock.fileno()
        if fd < 0:
            return
        self._state = _State.ENDING
        self._limit(None)
        self._out.clear()
        if self._events:
            self._server.loop.selector.unregister(self._sock)
            self._events = 0
        if keep:
            self._sock.detach()
        else:
            self._sock.close()
        self._server.forget(self, fd)


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as they were when it connected."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(data)
    return pid, uid
