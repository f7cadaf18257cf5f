"""Is the server well? One check at a time, bounded in time and bytes, and how often it must agree.

A check is begun with a callable that hears the outcome: "" for well, otherwise the reason. It calls
back at most once, never before ``begin`` has returned, and not after ``cancel``.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from uwgate import __version__
from uwgate.announce.options import CheckOptions
from uwgate.announce.processes import Processes, cause
from uwgate.config.settings import Endpoint
from uwgate.master.errors import explain
from uwgate.master.loop import Loop, Timer
from uwgate.master.sockets import abstract_address
from uwgate.protocols import uwsgi
from uwgate.subscriptions.lookup import Lookups
from uwgate.subscriptions.outbox import SocketAddress, numeric_address

Outcome = Callable[[str], None]

_MOST = 16384  # bytes of a response that are looked at
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?\r?\n")
_LINE = 1024  # a status line that is longer is none


class Check(Protocol):
    """One way to look."""

    def begin(self, done: Outcome) -> None:
        """Start looking."""

    def cancel(self) -> None:
        """Stop looking."""


class Connection:
    """Well if a connection succeeds and, with a ``request``, if the response is 2xx or 3xx."""

    def __init__(
        self, loop: Loop, endpoint: Endpoint, lookups: Lookups, request: bytes = b""
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._lookups = lookups
        self._request = request
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._response = b""
        self._done: Outcome = _nobody

    def begin(self, done: Outcome) -> None:
        """Connect."""
        self._done, self._response = done, b""
        target = self._target()
        if target is None:
            self._later(f"the address of {self._endpoint.host} is not known")
            return
        sock = self._socket = socket.socket(target[0], socket.SOCK_STREAM)
        sock.setblocking(False)
        result = sock.connect_ex(target[1])
        if result == errno.EINPROGRESS:
            self._register(selectors.EVENT_WRITE, self._on_connected)
        elif result:
            self._later(_reason(result))
        elif self._request:
            self._register(selectors.EVENT_WRITE, self._on_connected)
        else:
            self._later("")

    def cancel(self) -> None:
        """Close."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            if self._socket in self._loop.selector.get_map():
                self._loop.selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _target(self) -> SocketAddress | None:
        endpoint = self._endpoint
        if endpoint.kind == "unix":
            return socket.AF_UNIX, endpoint.path
        if endpoint.kind == "abstract":
            return socket.AF_UNIX, abstract_address(endpoint.path)
        numeric = numeric_address(endpoint.host, endpoint.port)
        return numeric or self._lookups.address(endpoint.host, endpoint.port)

    def _register(self, events: int, handler: Callable[[socket.socket], None]) -> None:
        sock = self._socket
        assert sock is not None
        self._loop.selector.register(sock, events, lambda mask: handler(sock))

    def _later(self, reason: str) -> None:
        """Report from the loop."""
        self._timer = self._loop.call_later(0, functools.partial(self._finish, reason))

    def _finish(self, reason: str) -> None:
        self.cancel()
        self._done(reason)

    def _on_connected(self, sock: socket.socket) -> None:
        result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result or not self._request:
            self._finish(_reason(result) if result else "")
            return
        try:
            # A fresh connection has room for it.
            sent = sock.send(self._request)
        except OSError as error:
            self._finish(explain(error))
            return
        if sent < len(self._request):
            self._finish("the request was not taken")
            return
        self._loop.selector.unregister(sock)
        self._register(selectors.EVENT_READ, self._on_readable)

    def _on_readable(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_MOST - len(self._response))
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(explain(error))
            return
        self._response += data
        reason = judge(self._response, ended=not data)
        if reason is not None:
            self._finish(reason)


def judge(response: bytes, *, ended: bool) -> str | None:
    """What the beginning of a response says: "" well, a reason, or None while it is too short.

    A status line alone decides nothing: the server may still die over the response's head.
    """
    match = _STATUS.match(response)
    if match is None:
        if b"\n" in response[:_LINE] or len(response) >= _LINE:
            return "the answer is not HTTP/1"
        return "no answer, the connection was closed" if ended else None
    if not match[1].startswith((b"2", b"3")):
        return f"status {match[1].decode('ascii')}"
    whole = b"\r\n\r\n" in response or b"\n\n" in response or len(response) >= _MOST
    if whole:
        return ""
    return "the connection was closed in the middle of the response" if ended else None


class Command:
    """Well if a shell command exits with 0."""

    def __init__(self, processes: Processes, command: str) -> None:
        self._processes = processes
        self._argv = ("/bin/sh", "-c", command)
        self._pid = 0

    def begin(self, done: Outcome) -> None:
        """Start it, in silence: it is asked every few seconds."""

        def ended(code: int) -> None:
            if pid == self._pid:
                self._pid = 0
                done(cause(code) if code else "")

        pid = self._pid = self._processes.start(self._argv, ended, silent=True)

    def cancel(self) -> None:
        """Kill it and what it started."""
        if self._pid:
            self._processes.signal_group(self._pid, signal.SIGKILL)
            self._pid = 0


class Checker:
    """Checks every ``interval`` seconds; ``up`` and ``down(reason)`` hear of changes only.

    ``down`` is also called for the first failure before it was ever well, and then for each other
    reason, so that the operator learns what it waits for.
    """

    def __init__(
        self,
        options: CheckOptions,
        check: Check,
        loop: Loop,
        up: Callable[[], None],
        down: Callable[[str], None],
    ) -> None:
        self._options = options
        self._check = check
        self._loop = loop
        self._up = up
        self._down = down
        self._timer: Timer | None = None
        self._deadline: Timer | None = None
        self._active = False
        self._row = 0  # outcomes in a row that speak against the present state
        self._reason = ""
        self.well = False

    def start(self) -> None:
        """Look now, and go on."""
        self._active = True
        self._look()

    def _look(self) -> None:
        options = self._options
        self._timer = self._loop.call_later(options.interval, self._on_interval)
        self._deadline = self._loop.call_later(options.timeout, self._on_timeout)
        try:
            self._check.begin(self._on_outcome)
        except OSError as error:
            self._on_outcome(explain(error))

    def stop(self) -> None:
        """Look no more."""
        self._active = False
        for timer in (self._timer, self._deadline):
            if timer is not None:
                timer.cancel()
        self._timer = self._deadline = None
        self._check.cancel()

    def _on_interval(self) -> None:
        self._timer = None
        if self._deadline is None:
            self._look()

    def _on_timeout(self) -> None:
        self._check.cancel()
        self._on_outcome(f"no answer within {self._options.timeout:g} s")

    def _on_outcome(self, reason: str) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._weigh(reason)
        if self._active and self._timer is None:  # it took longer than the interval
            self._timer = self._loop.call_later(0, self._on_interval)

    def _weigh(self, reason: str) -> None:
        well = not reason
        if well == self.well:
            self._row = 0
            if not well and reason != self._reason:
                self._reason = reason
                self._down(reason)
            return
        self._row += 1
        if self._row >= (self._options.rise if well else self._options.fall):
            self.well, self._row, self._reason = well, 0, reason
            if well:
                self._up()
            else:
                self._down(reason)


def make_check(
    options: CheckOptions, loop: Loop, processes: Processes, lookups: Lookups
) -> Check:
    """The check that the options describe (kind "tcp", "http" or "command")."""
    if options.kind == "command":
        return Command(processes, options.value)
    assert options.address is not None
    request = b"" if options.kind == "tcp" else _request(options)
    return Connection(loop, options.address, lookups, request)


def _request(options: CheckOptions) -> bytes:
    """HTTP/1.0, to which nobody answers 1xx first; or the same as a uwsgi packet."""
    agent = f"uwgate/{__version__} (announce)"
    target, host = options.value.encode("ascii"), options.host.encode("ascii")
    if options.protocol == "http":
        lines = (
            b"GET %b HTTP/1.0" % target,
            b"Host: %b" % host,
            b"User-Agent: %b" % agent.encode(),
            b"Accept: */*",
            b"Connection: close",
        )
        return b"\r\n".join(lines) + b"\r\n\r\n"
    name, _, port = host.partition(b":")
    return uwsgi.packet(
        options.modifier1,
        options.modifier2,
        uwsgi.request_line_vars(b"GET", target, b"HTTP/1.0"),
        uwsgi.var(b"HTTP_HOST", host),
        uwsgi.var(b"SERVER_NAME", name),
        uwsgi.var(b"SERVER_PORT", port or b"80"),
        uwsgi.var(b"REMOTE_ADDR", b"127.0.0.1"),
        uwsgi.var(b"HTTP_USER_AGENT", agent.encode()),
        uwsgi.var(b"HTTP_ACCEPT", b"*/*"),
    )


def _reason(number: int) -> str:
    return explain(OSError(number, os.strerror(number)))


def _nobody(reason: str) -> None:
    """Nobody asked yet."""
