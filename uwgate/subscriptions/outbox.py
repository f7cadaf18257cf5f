"""Datagrams on their way out: names looked up, sockets kept, bursts spread, troubles told once.

A datagram that cannot be sent is never an error of the caller: it is logged, once until the reason
changes, and the next announcement tries again.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from uwgate.config.settings import Endpoint

SocketAddress = tuple[int, Any]
"""Address family, and what ``sendto`` takes."""

Resolve = Callable[[str, int], SocketAddress | None]
"""Host and port -> address; None while it is not known (the reason was logged)."""

Log = Callable[[str], None]

# A receiver with Linux's default buffer (208 KiB) holds about 270 small datagrams; a unix datagram
# socket 10 (net.unix.max_dgram_qlen). So bursts are cut, and what finds no room waits.
_BURST = 64
_PAUSE = 0.005
_MAX_QUEUE = 1 << 17
_FULL = (errno.EAGAIN, errno.ENOBUFS)


class Troubles:
    """Problems that repeat: each is logged when it begins, when it changes, and when it is over."""

    __slots__ = ("_known", "_log")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: dict[str, str] = {}

    @property
    def active(self) -> bool:
        """Whether something does not work at the moment."""
        return bool(self._known)

    def report(self, what: str, reason: str) -> None:
        """``what`` does not work, for ``reason``."""
        if self._known.get(what) != reason:
            self._known[what] = reason
            self._log(f"{what}: {reason}")

    def over(self, what: str) -> None:
        """``what`` works (again)."""
        if self._known and self._known.pop(what, None) is not None:
            self._log(f"{what}: works again")


def numeric_address(host: str, port: int) -> SocketAddress | None:
    """The address of an IPv4 or IPv6 literal (with a zone, too); None for a name."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    if version == 4:
        return socket.AF_INET, (host, port)
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_DGRAM, 0, flags)
    except OSError:  # a zone that this machine does not have
        return None
    return socket.AF_INET6, found[0][4]


def resolve_now(host: str, port: int) -> SocketAddress:
    """Ask the resolver and wait; IPv4 if the name has one. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    best = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return int(best[0]), best[4]


class Outbox:
    """Sends datagrams to subscription servers; never blocks, except in ``finish``.

    ``credentials``: say who we are on unix sockets (SCM_CREDENTIALS: pid, uid, gid), for servers
    with ``subscriptions-use-credentials``.
    """

    def __init__(self, resolve: Resolve, log: Log, *, credentials: bool = False) -> None:
        self.troubles = Troubles(log)
        self._resolve = resolve
        self._credentials = credentials
        self._sockets: dict[int, socket.socket] = {}
        self._queue: deque[tuple[Endpoint, bytes]] = deque()
        self.failed = 0  # datagrams that were given up

    @property
    def waiting(self) -> bool:
        """Whether ``pump`` has more to do."""
        return bool(self._queue)

    def put(self, server: Endpoint, datagram: bytes) -> None:
        """Queue a datagram for ``server`` (kind ``tcp`` or ``unix``)."""
        if len(self._queue) >= _MAX_QUEUE:
            self.failed += 1
            self.troubles.report(_what(server), "the queue is full, announcements are lost")
            return
        self._queue.append((server, datagram))

    def pump(self) -> float | None:
        """Send what may go now; seconds until more may, None if nothing is left."""
        full: set[Endpoint] = set()
        for _ in range(min(_BURST, len(self._queue))):
            server, datagram = self._queue.popleft()
            if server in full or not self._send(server, datagram):
                full.add(server)
                self._queue.append((server, datagram))
        return _PAUSE if self._queue else None

    def finish(self, seconds: float) -> None:
        """Send all that is left, for at most that long."""
        limit = time.monotonic() + seconds
        while (pause := self.pump()) is not None:
            if time.monotonic() >= limit:
                self.failed += len(self._queue)
                self._queue.clear()
                return
            time.sleep(pause)

    def local_host(self, server: Endpoint, family: int) -> str:
        """The address of this machine on the way to ``server``, as a literal.

        Towards a unix socket that is the loopback address. "" if it cannot be told.
        """
        if server.kind == "unix":
            return "127.0.0.1" if family == socket.AF_INET else "::1"
        target = self.target(server)
        if target is None or target[0] != family:
            return ""
        # Connecting a datagram socket sends nothing: it only asks the routing table.
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target[1])
                return str(probe.getsockname()[0])
        except OSError:  # no way there, or no descriptor left
            return ""

    def target(self, server: Endpoint) -> SocketAddress | None:
        """Where datagrams for ``server`` go; None while its name is not resolved."""
        if server.kind == "unix":
            return socket.AF_UNIX, server.path
        return numeric_address(server.host, server.port) or self._resolve(server.host, server.port)

    def close(self) -> None:
        """Close the sockets; what is queued is dropped."""
        self._queue.clear()
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def _send(self, server: Endpoint, datagram: bytes) -> bool:
        """False if there is no room at the moment."""
        target = self.target(server)
        if target is None:
            self.failed += 1
            return True
        family, address = target
        try:
            self._socket(family).sendmsg([datagram], self._ancillary(family), 0, address)
        except OSError as error:
            if error.errno in _FULL:
                return False
            self.failed += 1
            self.troubles.report(_what(server), error.strerror or str(error))
        else:
            self.troubles.over(_what(server))
        return True

    def _ancillary(self, family: int) -> list[tuple[int, int, bytes]]:
        if family != socket.AF_UNIX or not self._credentials:
            return []
        who = struct.pack("3i", os.getpid(), os.geteuid(), os.getegid())
        return [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)]

    def _socket(self, family: int) -> socket.socket:
        sock = self._sockets.get(family)
        if sock is None:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
            self._sockets[family] = sock
        return sock


def _what(server: Endpoint) -> str:
    return f"announcing to {server.text}"
