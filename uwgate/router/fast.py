"""The fastrouter of one worker: accepts uwsgi clients, and what their fronts share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from uwgate.config.settings import FastSettings
from uwgate.protocols.uwsgi_request import PacketReader
from uwgate.protocols.uwsgi_to_http import Translator
from uwgate.router.facts import RequestLog
from uwgate.router.fast_front import FastFront
from uwgate.router.front import Connection
from uwgate.router.gateway import Gateway, Listener
from uwgate.router.poller import READ

_BATCH = 64  # connections taken in a row, before those that are there get their turn
_PAUSE = 0.1  # seconds without accepting when there is no descriptor left


class FastGateway(Gateway):
    """The fastrouter (options ``fastrouter-*``)."""

    settings: FastSettings

    def __init__(
        self,
        settings: FastSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        request_log: RequestLog | None = None,
        server_name: bytes = b"localhost",
        log: Callable[[str], None] = print,
        measured: bool = False,
    ) -> None:
        super().__init__(
            settings,
            loop=loop,
            request_log=request_log,
            server_name=server_name,
            log=log,
            measured=measured,
        )
        self.packets = PacketReader()
        self.translator = Translator(
            x_forwarded=settings.x_forwarded, forwarded=settings.forwarded
        )
        # Whether requests without a routing key are served, by the fallback nodes.
        self.keyless = settings.fallback_on_no_key and self.fallback is not None
        self.spare_fronts: list[FastFront] = []

    def _on_tick(self, now: float) -> None:
        super()._on_tick(now)
        for front in list(self.fronts):
            if isinstance(front, FastFront):
                front.on_tick()

    async def accept(self, listener: Listener) -> Acceptor:
        """Accept uwsgi clients on a socket."""
        return Acceptor(self, listener.sock)

    def field_lines(self, front: Connection) -> bytes:
        """The variables that were header fields, as header fields."""
        if not isinstance(front, FastFront) or front.request is None:
            return b""
        lines = []
        for name, value in front.request.items:
            if name.startswith(b"HTTP_") or name in (b"CONTENT_TYPE", b"CONTENT_LENGTH"):
                field = name.removeprefix(b"HTTP_").replace(b"_", b"-")
                lines.append(b"%b: %b\r\n" % (field, value))
        return b"".join(lines)


class Acceptor:
    """A listening socket under the poller."""

    __slots__ = ("_accept", "_closed", "_family", "_gateway", "_sock", "_watched")

    def __init__(self, gateway: FastGateway, sock: socket.socket) -> None:
        self._gateway = gateway
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
        spare = gateway.spare_fronts
        fresh = []
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
            front = spare.pop() if spare else FastFront(gateway)
            fresh.append((front, front.accepted(fd, family)))
        for front, data in fresh:
            front.first(data)

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
