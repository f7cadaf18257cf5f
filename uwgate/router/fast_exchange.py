"""One request of the fastrouter: as any exchange, but the packet it came in is what goes on.

A uwsgi node gets the variables untouched behind a header with its own modifiers. For an HTTP node
the packet is translated into a request head, by the grammar that heads of HTTP clients are held to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.uwsgi_request import UwsgiRequest
from uwgate.router.errors import FAILURES, Failure
from uwgate.router.exchange import Exchange
from uwgate.router.heads import http_head
from uwgate.router.phases import CONNECTING, RESOLVING, SPOOLING
from uwgate.router.spool import Spool
from uwgate.router.upstream_uwsgi import connect_uwsgi

if TYPE_CHECKING:
    from uwgate.router.balance import Node
    from uwgate.router.fast import FastGateway
    from uwgate.router.front import Front


class FastExchange(Exchange):
    """``incoming``: the request as it came; ``request`` and ``block`` are the same object until an
    HTTP node is picked."""

    __slots__ = ("incoming",)

    def __init__(self, gateway: FastGateway, front: Front) -> None:
        super().__init__(gateway, front)
        self.incoming: UwsgiRequest

    def serve(self, request: UwsgiRequest) -> None:
        """Begin; what follows of a body comes by ``request_data`` and ``request_end``."""
        self.incoming = request
        self.request = request  # type: ignore[assignment]
        self.block = request
        self.packet = b""
        self.raw = self.raw_wanted = request.raw_session
        self.request_ended = not request.length
        self.plain = plain = request.plain
        gateway = self.gateway
        if gateway.timed:
            self._count()
        else:
            gateway.tally.requests += 1
        turn = gateway.turn
        if plain and turn is not None and request.key:
            node = turn()
            if node.one_shot and not node.dead_until and not gateway.short_connect:
                # The usual case: nothing but a packet to send.
                self.node = self.packet_node = node
                self.packet = self.uwsgi_packet()
                self.attempts = 1
                node.active += 1
                node.requests += 1
                self.phase = CONNECTING
                connect_uwsgi(gateway, node, self)
                return
        self.attempts = 0
        self.node = None
        self.phase = RESOLVING
        self._begin_general()

    def _begin_general(self) -> None:
        gateway = cast("FastGateway", self.gateway)
        settings = gateway.settings
        if settings.post_buffering and self.incoming.length:
            self.phase = SPOOLING
            self.spool = Spool(
                settings.post_buffering,
                settings.max_body or settings.max_spool,
                settings.post_buffering_dir or None,
            )
        else:
            self.pick()

    def request_end(self, trailer: bytes = b"") -> None:
        if self.spool is None or self.phase != SPOOLING:
            super().request_end(trailer)
            return
        self.request_ended = True
        self.spool.seal()
        self.front.deadline = self.gateway.request_deadline
        self.phase = RESOLVING
        self.pick()

    def pick(self) -> None:
        if self.incoming.key:
            super().pick()
        else:  # fastrouter-fallback-on-no-key
            self._no_primary()

    def dispatch(self, node: Node) -> None:
        if node.protocol == "http" and self.block is self.incoming and not self._translate():
            return
        super().dispatch(node)

    def _translate(self) -> bool:
        """Make the request head for HTTP nodes; False: it cannot be said in HTTP, and is over."""
        if self.raw_wanted:
            # Chunks that nobody has checked must not meet a connection that others use as well.
            self.fail(Failure.LENGTH_REQUIRED)
            return False
        gateway = cast("FastGateway", self.gateway)
        try:
            self.request, self.block = gateway.translator.translate(self.incoming)
        except Http1Error as error:
            self.fail(FAILURES[error.fault])
            return False
        self.plain = self.incoming.plain and self.block.simple and self.request.plain
        if self.plain and self.request.repeatable:
            self.head = http_head(self)
        return True

    def uwsgi_packet(self) -> bytes:
        raw, node = self.incoming.raw, self.node
        assert node is not None
        if raw[0] == node.modifier1 and raw[3] == node.modifier2:
            return raw
        return b"%c%b%c%b" % (node.modifier1, raw[1:3], node.modifier2, raw[4:])

    def clean(self) -> None:
        """Forget what only a longer journey leaves behind."""
        self.paused_front = False
        self.failure = None
        self.forget_heads()
