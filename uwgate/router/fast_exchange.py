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
from uwgate.router.phases import RESOLVING, SENT, SPOOLING
from uwgate.router.spool import Spool
from uwgate.router.upstream_uwsgi import UwsgiBack

if TYPE_CHECKING:
    from uwgate.router.balance import Node
    from uwgate.router.fast import FastGateway
    from uwgate.router.front import Front


_NOTHING = UwsgiRequest(b"", "", b"", b"", {})


class FastExchange(Exchange):
    """``incoming``: the request as it came; ``request`` and ``block`` are the same object until an
    HTTP node is picked."""

    __slots__ = ("incoming",)

    def __init__(self, gateway: FastGateway, front: Front) -> None:
        super().__init__(gateway, front)
        self.incoming: UwsgiRequest

    def serve(self, request: UwsgiRequest, node: Node | None = None) -> None:
        """Begin; what follows of a body comes by ``request_data`` and ``request_end``.

        ``node``: picked already, and alive.
        """
        self._is(request)
        self._count()
        self.attempts = 0
        self.node = None
        self.phase = RESOLVING
        if node is not None:
            self.dispatch(node)
        else:
            self._begin_general()

    def _is(self, request: UwsgiRequest) -> None:
        self.incoming = request
        self.request = request  # type: ignore[assignment]
        self.block = request
        self.packet = b""
        self.raw = self.raw_wanted = request.raw_session
        self.request_ended = not request.length
        self.plain = request.plain

    def resume(self, request: UwsgiRequest, node: Node, started: float) -> UwsgiBack:
        """Take over a request whose packet is sent to ``node`` (see fast_express)."""
        self._is(request)
        self.node = node
        self.attempts = 1
        self.phase = SENT
        self.started_at = started
        self.back = back = UwsgiBack(self.gateway, node)
        back.exchange = self
        return back

    def _begin_general(self) -> None:
        gateway = cast("FastGateway", self.gateway)
        settings = gateway.settings
        length = self.incoming.length
        if not settings.post_buffering or not length:
            self.pick()
        elif length > settings.max_spool:
            self.fail(Failure.BODY_TOO_LARGE)  # before all of it is on our disk
        else:
            self.phase = SPOOLING
            directory = settings.post_buffering_dir or None
            self.spool = Spool(settings.post_buffering, length, directory)

    def request_end(self, trailer: bytes = b"") -> None:
        if self.spool is None or self.phase != SPOOLING:
            super().request_end(trailer)
            return
        self.request_ended = True
        self.spool.seal()
        self.front.deadline = self.gateway.request_deadline
        self.phase = RESOLVING
        self.pick()

    def key(self) -> str:
        # Not that of ``block``: the head for an HTTP node knows the host only.
        return self.placed(self.incoming.key, self.incoming.target)

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
        node = self.node
        assert node is not None
        return self.incoming.packet(node.modifier1, node.modifier2)

    def clean(self) -> None:
        """Forget what only a longer journey leaves behind."""
        self._is(_NOTHING)
        self.paused_front = False
        self.failure = None
        self.forget_heads()
