"""The socket of a uwsgi client: raw, non-blocking, and under the poller only when it has to be.

Most requests arrive whole with their connection and are answered in one piece before anybody has to
wait for the client, so most sockets are never registered anywhere.
"""

from __future__ import annotations

import select
import socket
import struct
from _socket import socket as new_socket  # see upstream_uwsgi
from typing import TYPE_CHECKING

from uwgate.router.poller import READ, WRITE

if TYPE_CHECKING:
    from uwgate.router.fast import FastGateway

# The kernel makes accepted sockets blocking; a flag a call is cheaper than a call to change that.
DONTWAIT = socket.MSG_DONTWAIT
UNWATCHED = -1  # ``events`` of a descriptor that the poller does not know

_HANG_UP = select.EPOLLHUP | select.EPOLLERR
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds
_READ_SIZE = 65536


class FastClient:
    """Sending and receiving. ``fd``: -1 once the socket is closed. ``events``: what the poller
    watches for; with 0 it still reports a hang-up."""

    __slots__ = (
        "blocked",
        "broken",
        "eof",
        "events",
        "fd",
        "gateway",
        "reading",
        "sock",
        "unread",
        "unsent",
    )

    def __init__(self, gateway: FastGateway) -> None:
        self.gateway = gateway
        self.sock: new_socket
        self.fd = -1
        self.events = UNWATCHED
        self.unsent: bytes | memoryview = b""
        self.reading = True  # more of the client is wanted
        self.blocked = False  # the node was asked to wait until the client has taken what there is
        self.broken = False  # sending failed; ``lost`` is on its way
        self.eof = False  # the client sends no more
        self.unread = False  # the client sent what nobody asked for

    # --- to be provided -----------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes of the client."""
        raise AssertionError

    def end_of_input(self) -> None:
        """The client sends no more (``eof`` is set)."""
        raise AssertionError

    def lost(self) -> None:
        """The client is gone."""
        raise AssertionError

    def stalled(self) -> None:
        """The client does not take what it is sent."""
        raise AssertionError

    def drained(self) -> None:
        """All that was written has been sent."""
        raise AssertionError

    # --- readiness ----------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """The poller's call."""
        if self.unsent and events & ~READ:
            self._flush()
        if self.fd < 0 or self.broken:
            return
        if self.events & READ:
            self._receive()
        elif events & _HANG_UP and (self.eof or self.unread) and not self.unsent:
            self.lost()

    def _receive(self) -> None:
        try:
            data = self.sock.recv(_READ_SIZE, DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self.lost()
            return
        if data:
            self.gateway.tally.rx += len(data)
            self.received(data)
        else:
            self.eof = True
            self.reading = False
            self.end_of_input()
            if self.fd >= 0:
                self.watch_socket()

    def watch_socket(self) -> None:
        """Have the poller watch for what is wanted now."""
        wanted = READ if self.reading else 0
        if self.unsent:
            wanted |= WRITE
        elif not wanted and not self.eof and not self.unread:
            wanted = UNWATCHED  # a hang-up would be reported again and again
        before = self.events
        if wanted == before:
            return
        self.events = wanted
        poller = self.gateway.poller
        if wanted == UNWATCHED:
            poller.suspend(self.fd)
        elif before == UNWATCHED:
            poller.register(self.fd, self, wanted)
        else:
            poller.modify(self.fd, wanted)

    # --- sending ------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send, or keep what the client does not take yet and have the node wait."""
        self.gateway.tally.tx += len(data)
        if self.broken:
            return
        if self.unsent:
            self.unsent = b"".join((self.unsent, data))
            return
        try:
            sent = self.sock.send(data, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fail()
            return
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            self.watch_socket()
            self.stalled()

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self.unsent, DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        if sent < len(self.unsent):
            self.unsent = self.unsent[sent:]
            return
        self.unsent = b""
        self.drained()
        if self.fd >= 0 and not self.broken:
            self.watch_socket()

    def _fail(self) -> None:
        # Not at once: whoever sends is in the middle of the node's response.
        self.broken = True
        self.unsent = b""
        self.gateway.loop.call_soon(self._broke)

    def _broke(self) -> None:
        if self.fd >= 0:
            self.lost()

    def finish_sending(self) -> None:
        """FIN; what the client sends is still read."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # already reset: the reader finds out

    def close_socket(self) -> None:
        """Close; unsent bytes are dropped."""
        fd = self.fd
        if fd >= 0:
            self.fd = -1
            if self.events != UNWATCHED:
                self.events = UNWATCHED
                self.gateway.poller.forget(fd)
            self.sock.close()
            self.unsent = b""

    def reset(self) -> None:
        """Close with a reset: where a plain close would say "complete"."""
        if self.fd >= 0 and self.sock.family != socket.AF_UNIX:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass  # gone already
        self.close_socket()
