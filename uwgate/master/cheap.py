"""An instance without workers: the master waits for the first connection (``cheap``, ``idle``).

Connections wait in the queues of the sockets meanwhile. With TCP_DEFER_ACCEPT it is the first byte
that wakes the instance, not the connection.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Iterable

from uwgate.master.loop import Loop


class Cheap:
    """``on`` while nobody accepts. ``wake`` is called when somebody has connected."""

    def __init__(
        self,
        loop: Loop,
        sockets: Callable[[], Iterable[socket.socket]],
        wake: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sockets = sockets
        self._wake = wake
        self._watched: list[socket.socket] = []
        self.on = False

    def enter(self) -> None:
        """Wait."""
        self.on = True
        for sock in self._sockets():
            # The same socket may be there for several addresses.
            with contextlib.suppress(KeyError):
                self._loop.selector.register(sock, selectors.EVENT_READ, self._on_connection)
                self._watched.append(sock)

    def leave(self) -> None:
        """Wait no more; harmless if that was not so."""
        self.on = False
        for sock in self._watched:
            with contextlib.suppress(KeyError, ValueError):
                self._loop.selector.unregister(sock)
        self._watched.clear()

    def _on_connection(self, mask: int) -> None:
        if self.on:
            self.leave()
            self._wake()
