"""The first half of an exchange: which node, which connection, and what to do when it fails.

What may be sent again (RFC 9110 §9.2.2): a request of which no byte reached a node, always. A
request without a body whose connection died before the first response byte: once, over a new
connection and to another node if there is one, if its method is safe, or if it is idempotent and
the connection was a reused one. Nothing after a response byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, cast

from uwgate.protocols.http1_request import CHUNKED, RequestBlock, RequestLine
from uwgate.protocols.uwsgi import PacketError
from uwgate.router.affinity import mount_path
from uwgate.router.balance import Node
from uwgate.router.errors import Failure
from uwgate.router.front import Front
from uwgate.router.phases import CONNECTING, IDLE, RESOLVING, SPOOLING
from uwgate.router.resolve import ResolveTimeoutError
from uwgate.router.spool import Spool
from uwgate.router.upstream_http import HttpBack, connect_http
from uwgate.router.upstream_uwsgi import UwsgiBack, connect_uwsgi

if TYPE_CHECKING:
    from uwgate.router.exchange import Exchange
    from uwgate.router.gateway import Gateway

Back = HttpBack | UwsgiBack

SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
SPOOLS = 4  # largest bodies (max_spool) that all requests of a worker may hold together
_STALE_AFTER = 1.0  # seconds idle after which only repeatable requests reuse a connection


class Attempts:
    """State of an exchange, and its way to a connection. ``Exchange`` adds the relaying."""

    __slots__ = (
        "attempts",
        "back",
        "block",
        "connected_at",
        "extra",
        "extra_variables",
        "failure",
        "first_byte_at",
        "front",
        "gateway",
        "head",
        "node",
        "packet",
        "packet_node",
        "packet_size",
        "paused_front",
        "pending",
        "pending_size",
        "phase",
        "plain",
        "raw",
        "raw_wanted",
        "request",
        "request_ended",
        "request_size",
        "resent",
        "responded",
        "spool",
        "started_at",
        "stuck",
        "task",
        "trailer",
        "tried",
        "variables_sent",
    )

    def __init__(self, gateway: Gateway, front: Front) -> None:
        self.gateway = gateway
        self.front = front
        self.phase = IDLE
        self.back: Back | None = None
        self.node: Node | None = None
        self.task: asyncio.Task[None] | None = None
        self.spool: Spool | None = None
        self.request: RequestLine
        self.block: RequestBlock
        self.extra = b""
        self.extra_variables = b""
        self.head = b""  # of a plain request, for HTTP nodes
        self.packet = b""  # the same for uwsgi nodes, made when one is picked
        self.packet_node: Node | None = None  # whose modifiers are in it
        self.pending: list[bytes] = []
        self.pending_size = 0
        self.trailer = b""  # of a body that was complete before there was a connection
        self.paused_front = False
        self.raw = False  # the session becomes a tunnel as soon as the head is sent
        self.raw_wanted = False  # by the request, whatever node it meets
        self.started_at = 0.0
        self.stuck = b""  # what the cookie of a sticky session says
        self.connected_at = 0.0
        self.first_byte_at = 0.0
        self.request_size = 0
        self.packet_size = 0
        self.variables_sent = b""
        self.failure: Failure | None = None
        self.attempts = 0
        self.plain = False
        self.responded = False
        self.request_ended = True
        self.resent = False
        self.tried: tuple[Node, ...] = ()

    # --- to be provided by the relaying half ------------------------------------------------------

    def request_data(self, payload: bytes) -> None:
        """Body bytes of the client, without framing."""
        raise AssertionError

    def request_end(self, trailer: bytes = b"") -> None:
        """The body is complete."""
        raise AssertionError

    def drop_attempt(self) -> None:
        """Give up the connection (made or being made)."""
        raise AssertionError

    def fail(self, failure: Failure) -> None:
        """End with an error response."""
        raise AssertionError

    def abort(self, failure: Failure) -> None:
        """End in the middle of a response or tunnel."""
        raise AssertionError

    def _exchange(self) -> Exchange:
        return cast("Exchange", self)

    # --- picking and connecting -------------------------------------------------------------------

    def key(self) -> str:
        """The routing key."""
        return self.placed(self.block.key or self.gateway.default_key, self.request.target)

    def placed(self, key: str, target: bytes) -> str:
        """The key with the part of the path that belongs to it."""
        segments = self.gateway.mountpoints
        return key + mount_path(target, segments) if segments else key

    def token(self, key: str) -> bytes:
        """What hashing algorithms look at."""
        gateway = self.gateway
        token_of = gateway.token_of
        if token_of is None:
            return self.front.client
        # Announcements decide key by key; for iphash it has to be the client.
        subscribed = gateway.subscribed
        if subscribed is not None and not subscribed.hashes(key):
            return self.front.client
        return token_of(self)

    def pick(self) -> None:
        gateway = self.gateway
        if gateway.sticky is not None and not self.tried:
            node = gateway.sticky.node_of(self)
            if node is not None:
                self.dispatch(node)
                return
        key = self.key()
        picked = gateway.resolver.pick(key, self.token(key), self.tried)
        if isinstance(picked, Node):
            self.dispatch(picked)
        elif picked is None:
            self._no_primary()
        else:
            self.phase = RESOLVING
            self.task = gateway.loop.create_task(self._wait(picked))

    async def _wait(self, picked: Awaitable[Node | None]) -> None:
        try:
            node = await picked
        except ResolveTimeoutError:
            self.task = None
            self.fail(Failure.RESOLVE_TIMEOUT)
            return
        self.task = None
        if node is None:
            self._no_primary()
        else:
            self.dispatch(node)

    def _no_primary(self) -> None:
        """No node of the mapper is left: the fallback list, then a marked node, then give up."""
        gateway = self.gateway
        node = gateway.fallback.pick(self.front.client, self.tried) if gateway.fallback else None
        if node is None:
            node = gateway.resolver.last_resort(self.key(), self.tried)
        if node is not None:
            self.dispatch(node)
        elif self.tried:
            self.fail(self.failure_of_tries)
        else:
            known = gateway.resolver.knows(self.key())
            self.fail(Failure.NO_NODE_ALIVE if known else Failure.NO_NODE)

    @property
    def failure_of_tries(self) -> Failure:
        """What to answer when every node was tried in vain."""
        return self.failure or Failure.NODE_CONNECT

    def dispatch(self, node: Node) -> None:
        self.node = node
        if node.protocol == "uwsgi" and self.block.length == CHUNKED:
            settings = self.gateway.settings
            chunked = settings.chunked_input or settings.raw_body or self.raw
            if not chunked and self.spool is None:
                self._begin_spool()
                return
        self.connect(node)

    def _begin_spool(self) -> None:
        """A uwsgi node must be told a length: take in the whole body first."""
        settings = self.gateway.settings
        self.phase = SPOOLING
        self.spool = Spool(settings.body_buffer, settings.max_body or settings.max_spool)
        self.front.send_continue()
        if self.pending:
            pending, self.pending, self.pending_size = self.pending, [], 0
            for payload in pending:
                self.request_data(payload)
                if self.spool is None:  # refused
                    return
        ended = self.request_ended
        self.resume_front()
        if ended:
            self.request_end(self.trailer)

    def connect(self, node: Node) -> None:
        self.attempts += 1
        node.active += 1
        node.requests += 1
        if node.protocol == "http":
            idle = node.idle
            if idle and not self.resent and self._may_reuse(idle[-1]):
                self.gateway.tally.node_reuses += 1
                idle.pop().begin(self._exchange())
                return
        self.open(node)

    def open(self, node: Node) -> None:
        """A new connection to the node."""
        self.phase = CONNECTING
        gateway = self.gateway
        if gateway.short_connect:
            self.front.deadline = gateway.clock.now + gateway.settings.connect_timeout
            self.front.watch()
        if not node.addresses:
            self.task = gateway.loop.create_task(self._look_up(node))
        elif node.protocol == "http":
            self.task = connect_http(gateway, node, self._exchange())
        else:
            connect_uwsgi(gateway, node, self._exchange())

    async def _look_up(self, node: Node) -> None:
        await self.gateway.look_up([node])
        self.task = None
        if node.addresses:
            self.open(node)
        else:
            self.connect_failed(Failure.NODE_CONNECT, "its name does not resolve")

    def _may_reuse(self, back: HttpBack) -> bool:
        """A node may close an idle connection just when a request is on its way. A request that
        cannot be repeated goes only over one that was in use a moment ago."""
        if self.request.repeatable and not self.block.length:
            return True
        gateway = self.gateway
        idle_since = back.deadline - gateway.settings.node_keepalive_timeout
        return idle_since + _STALE_AFTER >= gateway.clock.now and back.is_open()

    def connect_failed(self, failure: Failure, reason: str) -> None:
        """The connection could not be made; nothing was sent, so another node may be tried."""
        gateway, node = self.gateway, self.node
        assert node is not None
        self.leave(node)
        node.failed(gateway.clock, gateway.settings.gracetime)
        node.note_error(failure.word)
        if node.key:
            gateway.node_failed(node, reason)
        if not gateway.settings.quiet:
            gateway.complain(f"unable to connect to node {node.name}: {reason}")
        self.failure = failure
        self.tried += (node,)
        if self.attempts > gateway.settings.max_retries:
            self.fail(failure)
            return
        gateway.tally.retries += 1
        self.front.deadline = gateway.clock.now + gateway.settings.timeout
        self.pick()

    def shortage(self, error: OSError) -> None:
        """No descriptor or memory for a connection: our fault, and no mark for the node."""
        self.gateway.complain(f"cannot open a connection: {error.strerror}")
        self.drop_attempt()
        self.fail(Failure.RESOURCES)

    def packet_refused(self, error: PacketError) -> None:
        """The request cannot be said in a uwsgi packet."""
        self.drop_attempt()
        large = "at most" in str(error) or "the most" in str(error)
        self.fail(Failure.PACKET_TOO_LARGE if large else Failure.BAD_REQUEST)

    def lost(self, back: Back, failure: Failure, untouched: bool) -> None:
        """The connection to the node is gone before its response was complete.

        ``untouched``: not one byte of a response was received.
        """
        self.back = None
        node = self.node
        assert node is not None
        node.note_error(failure.word)
        if self.responded:
            self.abort(failure)
            return
        if untouched and not self.resent and self._repeatable(back):
            self.leave(node)
            self.gateway.tally.retries += 1
            self.failure = failure
            self.resent = True
            if back.reused:
                self._discard_idle(node)
            # Elsewhere if possible: who closes an idle connection may be about to die.
            self.tried += (node,)
            other = None
            if self.gateway.resolver.several:
                key = self.key()
                other = self.gateway.resolver.pick(key, self.token(key), self.tried)
            self.dispatch(other if isinstance(other, Node) else node)
            return
        self.fail(failure)

    def _discard_idle(self, node: Node) -> None:
        """Where one idle connection was closed by the node, the older ones are as good as gone."""
        idle, node.idle = node.idle, []
        for back in idle:
            back.abort()

    def _repeatable(self, back: Back) -> bool:
        if self.block.length or self.block.upgrade or self.raw:
            return False
        request = self.request
        return request.method in SAFE or (back.reused and request.repeatable)

    def resume_front(self) -> None:
        if self.paused_front:
            self.paused_front = False
            self.front.resume()

    def leave(self, node: Node) -> None:
        """Done with this node: from CONNECTING on, a request counts as active there."""
        node.active -= 1
        self.phase = RESOLVING
        self.raw = self.raw_wanted
