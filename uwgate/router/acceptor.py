"""Accepting on a raw listening socket under the poller, with what the clients have sent already."""

from __future__ import annotations

import socket
from _socket import socket as new_socket  # see upstream_uwsgi
from collections.abc import Callable
from typing import TYPE_CHECKING

from uwgate.router.fast_client import DONTWAIT
from uwgate.router.poller import READ

if TYPE_CHECKING:
    from uwgate.router.gateway import Gateway

_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_FIRST_READ = 16384  # larger packets and hellos are rare, and take one more call
_BATCH = 64  # connections taken in a row, before those that are there get their turn
_PAUSE = 0.1  # seconds without accepting when there is no descriptor left

Fresh = list[tuple[new_socket, bytes | None]]
"""New connections: socket, and what has come (b"": end of the stream, None: nothing yet)."""


class Acceptor:
    """A listening socket under the poller. ``welcome`` gets what has connected."""

    __slots__ = ("_accept", "_closed", "_family", "_gateway", "_sock", "_watched", "_welcome")

    def __init__(
        self, gateway: Gateway, sock: socket.socket, welcome: Callable[[Fresh], None]
    ) -> None:
        self._gateway = gateway
        self._welcome = welcome
        self._sock = sock
        self._accept = sock._accept  # type: ignore[attr-defined]
        self._family = sock.family.value
        self._closed = self._watched = False
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            # Inherited by what it accepts: answers that come in pieces do not wait for each other.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.resume()

    def ready(self, events: int) -> None:
        """Clients have connected."""
        gateway, accept, family = self._gateway, self._accept, self._family
        fresh: Fresh = []
        for _ in range(_BATCH):
            try:
                fd = accept()[0]
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue
            except OSError as error:
                gateway.complain(f"cannot accept connections: {error.strerror}")
                self.pause()
                gateway.loop.call_later(_PAUSE, self.resume)
                break
            sock = new_socket(family, _STREAM, 0, fd)  # with all four, the kernel is not asked
            data: bytes | None
            try:
                data = sock.recv(_FIRST_READ, DONTWAIT)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            fresh.append((sock, data))
        # All of them are read before the first is served: each read wakes its client if that
        # sleeps, and the sooner they follow each other the fewer do.
        self._welcome(fresh)

    def pause(self) -> None:
        """Leave connections in the queue for now."""
        if self._watched:
            self._watched = False
            self._gateway.poller.suspend(self._sock.fileno())

    def resume(self) -> None:
        """Accept again."""
        if not self._closed and not self._watched:
            self._watched = True
            self._gateway.poller.register(self._sock.fileno(), self, READ)

    def close(self) -> None:
        """Accept no more. The master and other workers may hold the same socket, so closing it
        would not take it out of the poller."""
        self.pause()
        self._closed = True
        self._sock.close()
