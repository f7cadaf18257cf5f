"""The fastrouter of one worker: accepts uwsgi clients, and what their fronts share."""

from __future__ import annotations

import asyncio
from _socket import socket as new_socket  # see upstream_uwsgi
from collections.abc import Callable
from typing import cast

from uwgate.config.settings import FastSettings
from uwgate.protocols.uwsgi_request import PacketReader
from uwgate.protocols.uwsgi_to_http import Translator
from uwgate.router.acceptor import Acceptor
from uwgate.router.facts import RequestLog
from uwgate.router.fast_express import Express
from uwgate.router.fast_front import HEAD, FastFront
from uwgate.router.front import Connection
from uwgate.router.gateway import Gateway, Listener
from uwgate.router.poller import BATCH, Poller

_ROUNDS = 8  # looks at the sockets in a row, before timers and HTTP nodes get their turn


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
        self.express = Express(self)  # the first tick comes from within the next line
        super().__init__(
            settings,
            loop=loop,
            request_log=request_log,
            server_name=server_name,
            log=log,
            measured=measured,
        )
        self.clients = cast("set[FastFront]", self.fronts)
        self.packets = PacketReader()
        self.translator = Translator(
            x_forwarded=settings.x_forwarded, forwarded=settings.forwarded
        )
        # Whether requests without a routing key are served, by the fallback nodes.
        self.keyless = settings.fallback_on_no_key and self.fallback is not None
        self.spare_fronts: list[FastFront] = []
        # Whether requests may take the express way at all. A request log wants facts that it does
        # not gather, and a short connect timeout is not kept there.
        self.direct = self.timed < 2 and not self.short_connect

    def _on_tick(self, now: float) -> None:
        super()._on_tick(now)
        self.express.promote_all()
        for front in list(self.fronts):
            cast(FastFront, front).on_tick()

    def drain(
        self, on_drained: Callable[[], None] | None = None, *, gently: bool = False
    ) -> None:
        self.express.promote_all()
        super().drain(on_drained, gently=gently)

    async def close(self) -> None:
        self.draining = True
        self.express.promote_all()
        await super().close()

    def snapshot(self) -> dict[str, object]:
        self.express.promote_all()  # to be counted
        return super().snapshot()

    async def accept(self, listener: Listener) -> Acceptor:
        """Accept uwsgi clients on a socket."""
        # Accepting may be stopped and begun again.
        return Acceptor(self, listener.sock.dup(), self.welcome)

    def make_poller(self) -> Poller:
        self.in_round = False  # packets and answers will be sent without being asked for
        return FastPoller(self)

    def flush_soon(self) -> None:
        if not self.in_round:
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits to be sent in a burst."""
        self.express.flush()
        if self.unsent:
            self.send_packets()

    def welcome(self, fresh: list[tuple[new_socket, bytes | None]]) -> None:
        """Serve new connections: socket, and what has come (``FastFront.first``)."""
        tally, glance, begin = self.tally, self.packets.glance, self.express.begin
        tally.accepted += len(fresh)
        tally.connections += len(fresh)
        direct = self.direct and not self.draining
        turn, by_key = self.turn, self.by_key
        for sock, data in fresh:
            if data:
                tally.rx += len(data)
                key = glance(data) if direct else ""
                if key:
                    node = None
                    if turn is not None:
                        node = turn()
                    elif by_key is not None:
                        node = by_key.turn(key)
                    if node is not None and not node.dead_until:
                        if node.one_shot and begin(sock, data, node):
                            continue
                        request = self.packets.read(data)
                        front = self.new_front(sock)
                        front.waiting(request)
                        front.exchange.serve(request, node)
                        continue
            self.new_front(sock).first(data)

    def new_front(self, sock: new_socket) -> FastFront:
        """A front for an accepted connection."""
        spare = self.spare_fronts
        front = spare.pop() if spare else FastFront(self)
        self.clients.add(front)
        front.sock = sock
        front.fd = sock.fileno()
        front.stage = HEAD
        front.deadline = self.request_deadline
        if not front.due:
            self.clock.watch(front)
        return front

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


class FastPoller(Poller):
    """Looks again at once after a round: while it sent answers and packets, more has come, and
    another turn of the event loop costs as much as a quarter of a request."""

    __slots__ = ("_gateway",)

    def __init__(self, gateway: FastGateway) -> None:
        super().__init__(gateway.loop)
        self._gateway = gateway

    def round(self) -> None:
        gateway, owners, poll = self._gateway, self.owners, self.epoll.poll
        gateway.in_round = True
        try:
            for _ in range(_ROUNDS):
                found = poll(0, BATCH)
                if not found:
                    break
                for fd, events in found:
                    owner = owners.get(fd)
                    if owner is not None:
                        owner.ready(events)
                gateway.flush()
        finally:
            gateway.in_round = False
            if gateway.unsent or gateway.express.departing or gateway.express.answered:
                gateway.flush_soon()  # an owner has failed
