"""One request's journey: resolve, pick, connect or borrow, send, relay, retry, finish.

An exchange stands between a *front* (the client's side, ``front.Front``) and a *back* (the node's
side, ``upstream.Back``), so that neither knows what the other speaks. HTTP/1 fronts keep one
exchange and use it again for every request.

What may be sent again (RFC 9110 §9.2.2): a request of which no byte reached a node, always. A
request without a body whose connection died before the first response byte: once, over a new
connection and to another node if there is one, if its method is safe, or if it is idempotent and
the connection was a reused one. Nothing after a response byte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from uwgate.protocols.http1_request import CHUNKED, RequestBlock, RequestLine
from uwgate.protocols.http1_response import ResponseHead
from uwgate.protocols.uwsgi import PacketError, parse_packet
from uwgate.router import heads
from uwgate.router.balance import Node
from uwgate.router.errors import Failure
from uwgate.router.front import Front
from uwgate.router.resolve import ResolveTimeoutError
from uwgate.router.spool import Spool, SpoolFullError
from uwgate.router.upstream import HttpBack, connect_http
from uwgate.router.upstream_uwsgi import UwsgiBack, connect_uwsgi

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway

Back = HttpBack | UwsgiBack

SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
_PENDING_LIMIT = 65536  # bytes of a body held while a connection is being made
_SPOOLS = 4  # largest bodies (max_spool) that all requests of a worker may hold together
_STALE_AFTER = 1.0  # seconds idle after which only repeatable requests reuse a connection

# Phases of an exchange.
IDLE, RESOLVING, SPOOLING, CONNECTING, SENT, RELAYING, TUNNEL = range(7)


class Exchange:
    """The state of one request between its front and its back."""

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
        "request",
        "request_ended",
        "request_size",
        "resent",
        "responded",
        "response_size",
        "spool",
        "started_at",
        "task",
        "trailer",
        "tried",
        "variables_sent",
    )

    def __init__(self, gateway: HttpGateway, front: Front) -> None:
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
        self.raw = False
        self.started_at = 0.0
        self.connected_at = 0.0
        self.first_byte_at = 0.0
        self.response_size = 0
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

    # --- from the front -----------------------------------------------------------------------

    def start(
        self, request: RequestLine, block: RequestBlock, ended: bool, raw: bool = False
    ) -> None:
        """Begin; ``ended``: there is no body, ``raw``: the session becomes a tunnel as soon as the
        head is sent. The front has set its deadline.

        What a request leaves behind is cleared by ``_finish``, and only if it was touched.
        """
        self.request = request
        self.block = block
        self.request_ended = ended
        self.packet = b""
        self.raw = raw
        # Nothing but a head to send, and a response framed as its head says.
        self.plain = plain = ended and block.simple and request.plain
        if plain and request.repeatable:
            self.head = b"".join((request.line, block.forward, self.extra, self.front.http_tail))
            self.again()
            return
        self._count()
        self.attempts = 0
        self.node = None
        self.phase = RESOLVING
        turn = self.gateway.turn
        if turn is not None:
            node = turn()
            if not node.dead_until:
                self._dispatch(node)
                return
        self._pick()

    def again(self) -> None:
        """Begin the same request as the last one, which was plain and repeatable: the usual case,
        where nothing can go wrong that cannot be tried again."""
        gateway = self.gateway
        if gateway.timed:
            self._count()
        else:
            gateway.tally.requests += 1
        turn = gateway.turn
        if turn is not None:
            self.node = node = turn()
            if not node.dead_until:
                self.attempts = 1
                node.active += 1
                node.requests += 1
                if node.idle:
                    node.idle.pop().begin(self)
                elif node.one_shot and not gateway.short_connect:
                    self.phase = CONNECTING
                    connect_uwsgi(gateway, node, self)
                else:
                    self._open(node)
                return
        self.attempts = 0
        self.node = None
        self.phase = RESOLVING
        self._pick()

    def _count(self) -> None:
        """One request more, and when it began."""
        gateway = self.gateway
        gateway.tally.requests += 1
        if gateway.timed:
            self.started_at = time.monotonic()
            self.connected_at = self.first_byte_at = 0.0
            self.response_size = self.request_size = self.packet_size = 0
            self.variables_sent = b""
            self.front.forget_response()

    def request_data(self, payload: bytes) -> None:
        """Body bytes of the client, without framing."""
        self.request_size += len(payload)
        spool = self.spool
        if spool is not None:
            try:
                spool.write(payload)
            except SpoolFullError:
                self.fail(Failure.BODY_TOO_LARGE)
            except OSError as error:
                self.gateway.complain(f"cannot store a request body: {error.strerror}")
                self.fail(Failure.RESOURCES)
            else:
                self.gateway.spooled += len(payload)
                if self.gateway.spooled > self.gateway.settings.max_spool * _SPOOLS:
                    self.fail(Failure.RESOURCES)
            return
        if self.phase >= SENT:
            if self.back is not None:
                self.back.body(payload)
            return
        self.pending.append(payload)
        self.pending_size += len(payload)
        if self.pending_size > _PENDING_LIMIT and not self.paused_front:
            self.paused_front = True
            self.front.pause()

    def request_end(self, trailer: bytes = b"") -> None:
        """The body is complete; ``trailer`` holds field lines to pass on."""
        self.request_ended = True
        if self.spool is not None:
            assert self.node is not None
            self.spool.seal()
            self.front.deadline = self.gateway.request_deadline
            self._connect(self.node)
        elif self.phase >= SENT:
            # From here on it is the node's turn: no minimum rate any more.
            self.front.deadline = self.gateway.request_deadline
            if self.back is not None:
                self.back.body_end(trailer)
        else:
            self.trailer = trailer

    def client_lost(self) -> None:
        """The client is gone: give everything up."""
        self._close(Failure.CLIENT_CLOSED)

    def expired(self) -> None:
        """The front's deadline passed while this exchange was under way."""
        phase = self.phase
        if phase == CONNECTING:
            self._drop_attempt()
            self.connect_failed(Failure.CONNECT_TIMEOUT, "timed out")
        elif phase == RESOLVING:
            self.fail(Failure.RESOLVE_TIMEOUT)
        elif phase == SPOOLING or (phase == SENT and not self.request_ended):
            self.fail(Failure.BODY_TIMEOUT)
        elif phase == SENT:
            self.fail(Failure.NODE_TIMEOUT)
        elif phase == TUNNEL:
            self.abort(Failure.TUNNEL_TIMEOUT)
        elif self.back is not None and self.back.paused:
            self.abort(Failure.CLIENT_TIMEOUT)
        else:
            self.abort(Failure.NODE_STALLED)

    # --- picking and connecting -----------------------------------------------------------------

    def _pick(self) -> None:
        gateway = self.gateway
        key = self.block.key or gateway.default_key
        picked = gateway.resolver.pick(key, self.front.client, self.tried)
        if isinstance(picked, Node):
            self._dispatch(picked)
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
            self._dispatch(node)

    def _no_primary(self) -> None:
        """No node of the mapper is left: the fallback list, then a marked node, then give up."""
        gateway = self.gateway
        node = gateway.fallback.pick(self.front.client, self.tried) if gateway.fallback else None
        if node is None:
            node = gateway.last_resort(self.tried)
        if node is not None:
            self._dispatch(node)
        elif self.tried:
            self.fail(self.failure_of_tries)
        else:
            self.fail(Failure.NO_NODE if gateway.mapped else Failure.NO_NODE_ALIVE)

    @property
    def failure_of_tries(self) -> Failure:
        """What to answer when every node was tried in vain."""
        return self.failure or Failure.NODE_CONNECT

    def _dispatch(self, node: Node) -> None:
        self.node = node
        if node.protocol == "uwsgi" and self.block.length == CHUNKED:
            settings = self.gateway.settings
            chunked = settings.chunked_input or settings.raw_body or self.raw
            if not chunked and self.spool is None:
                self._begin_spool()
                return
        self._connect(node)

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
        self._resume_front()

    def _connect(self, node: Node) -> None:
        self.attempts += 1
        node.active += 1
        node.requests += 1
        if node.protocol == "http":
            idle = node.idle
            if idle and not self.resent and self._may_reuse(idle[-1]):
                idle.pop().begin(self)
                return
        self._open(node)

    def _open(self, node: Node) -> None:
        """A new connection to the node."""
        self.phase = CONNECTING
        gateway = self.gateway
        if gateway.short_connect:
            self.front.deadline = gateway.clock.now + gateway.settings.connect_timeout
            self.front.watch()
        if not node.addresses:
            self.task = gateway.loop.create_task(self._look_up(node))
        elif node.protocol == "http":
            self.task = connect_http(gateway, node, self)
        else:
            connect_uwsgi(gateway, node, self)

    async def _look_up(self, node: Node) -> None:
        await self.gateway.look_up([node])
        self.task = None
        if node.addresses:
            self._open(node)
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
        self._leave(node)
        node.failed(gateway.clock, gateway.settings.gracetime)
        if not gateway.settings.quiet:
            gateway.complain(f"unable to connect to node {node.name}: {reason}")
        self.failure = failure
        self.tried += (node,)
        if self.attempts > gateway.settings.max_retries:
            self.fail(failure)
            return
        gateway.tally.retries += 1
        self.front.deadline = gateway.clock.now + gateway.settings.timeout
        self._pick()

    # --- from the back --------------------------------------------------------------------------

    def shortage(self, error: OSError) -> None:
        """No descriptor or memory for a connection: our fault, and no mark for the node."""
        self.gateway.complain(f"cannot open a connection: {error.strerror}")
        self._drop_attempt()
        self.fail(Failure.RESOURCES)

    def packet_refused(self, error: PacketError) -> None:
        """The request cannot be said in a uwsgi packet."""
        self._drop_attempt()
        large = "at most" in str(error) or "the most" in str(error)
        self.fail(Failure.PACKET_TOO_LARGE if large else Failure.BAD_REQUEST)

    def connected_now(self) -> None:
        """Note the time for the request log."""
        self.connected_at = time.monotonic()

    def sent(self, back: Back) -> None:
        """The head is on its way: pass on what of the body has come meanwhile."""
        self.phase = SENT
        self.back = back
        gateway = self.gateway
        self.front.deadline = gateway.clock.now + gateway.settings.timeout
        if gateway.timed > 1:
            self.connected_at = time.monotonic()
        if self.request_ended and not self.block.length:
            return
        if self.block.expect:
            heads.expect(self)
        self._resume_front()  # first: the back may ask for a pause again
        pending, self.pending, self.pending_size = self.pending, [], 0
        for payload in pending:
            back.body(payload)
        if self.request_ended:
            back.body_end(self.trailer)

    def _resume_front(self) -> None:
        if self.paused_front:
            self.paused_front = False
            self.front.resume()

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """A complete response arrived in one piece; the back has let go already."""
        self.back = None
        if self.gateway.timed > 1:
            self.first_byte_at = time.monotonic()
            self.response_size = len(data) - end
        if self.tried:
            self._finish()
        else:
            self.phase = IDLE
            self.node.active -= 1  # type: ignore[union-attr]
        self.front.whole(head, data, end)

    def begin(self, head: ResponseHead, data: bytes, end: int) -> None:
        """``data[:end]`` is the head of a response of known length, the rest the start of its
        body."""
        self.responded = True
        self.phase = RELAYING
        gateway = self.gateway
        self.front.deadline = gateway.request_deadline
        if gateway.timed > 1:
            self.first_byte_at = time.monotonic()
            self.response_size = len(data) - end
        self.front.begin(head, data, end)

    def informational(self, head: ResponseHead) -> None:
        """A 1xx response of the node. It does not put off the deadline of the final one."""
        self.front.informational(head)

    def response(self, head: ResponseHead, payload: bytes, ended: bool, trailer: bytes) -> None:
        """The final response begins; ``ended``: and ends, the back has let go already."""
        self.responded = True
        self.phase = RELAYING
        gateway = self.gateway
        self.front.deadline = gateway.clock.now + gateway.settings.timeout
        if gateway.timed > 1:
            self.first_byte_at = time.monotonic()
            self.response_size = len(payload)
        if ended:
            self.back = None
        self.front.respond(head, payload, ended and not trailer)
        if ended:
            self._finish()
            self.front.end(trailer)

    def response_data(self, payload: bytes) -> None:
        """Body bytes of the node, without framing."""
        gateway = self.gateway
        front = self.front
        front.deadline = gateway.request_deadline
        self.response_size += len(payload)
        front.data(payload)

    def response_end(self, trailer: bytes) -> None:
        """The response is complete; the back has let go already."""
        self.back = None
        self._finish()
        self.front.end(trailer)

    def upgraded(self, head: ResponseHead | None) -> None:
        """The node switched protocols (or the session is raw): from here on only bytes."""
        self.phase = TUNNEL
        self.responded = True
        self.gateway.tally.tunnels += 1
        if self.gateway.timed > 1:
            self.first_byte_at = time.monotonic()
        self.front.upgraded(head)

    def lost(self, back: Back, failure: Failure, untouched: bool) -> None:
        """The connection to the node is gone before its response was complete.

        ``untouched``: not one byte of a response was received.
        """
        self.back = None
        node = self.node
        assert node is not None
        if self.responded:
            self.abort(failure)
            return
        if untouched and not self.resent and self._repeatable(back):
            self._leave(node)
            self.gateway.tally.retries += 1
            self.failure = failure
            self.resent = True
            if back.reused:
                self._discard_idle(node)
            # Elsewhere if possible: who closes an idle connection may be about to die.
            self.tried += (node,)
            other = None
            if not self.gateway.mapped:
                other = self.gateway.resolver.pick(self.block.key, self.front.client, self.tried)
            self._dispatch(other if isinstance(other, Node) else node)
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

    def forget(self) -> None:
        """No request was begun: nothing of an earlier one may show in the log."""
        self.node = None
        self.attempts = 0
        self.started_at = self.connected_at = self.first_byte_at = 0.0
        self.request_size = self.packet_size = 0
        self.variables_sent = self.extra = b""

    def count_variables(self) -> int:
        """Number of uwsgi variables sent (for the request log)."""
        if not self.variables_sent:
            return 0
        parsed = parse_packet(self.variables_sent)
        return len(parsed.variables) if parsed is not None else 0

    # --- ends ---------------------------------------------------------------------------------

    def _leave(self, node: Node) -> None:
        """Done with this node: from CONNECTING on, a request counts as active there."""
        node.active -= 1
        self.phase = RESOLVING

    def _finish(self) -> None:
        """Free what the request held; the front writes the log when it is done."""
        if self.phase >= CONNECTING:
            self.node.active -= 1  # type: ignore[union-attr]
        self.phase = IDLE
        self.responded = False
        self.resent = False
        self.tried = ()
        if self.spool is not None:
            self.gateway.spooled -= self.spool.size
            self.spool.close()
            self.spool = None
        if self.pending or self.trailer:
            self.pending = []
            self.pending_size = 0
            self.trailer = b""

    def _drop_attempt(self) -> None:
        """Give up the connection (made or being made)."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        back, self.back = self.back, None
        if back is not None:
            back.abort()

    def _close(self, failure: Failure) -> None:
        if self.phase == IDLE:
            return
        self.failure = failure
        self._drop_attempt()
        self.paused_front = False
        self._finish()

    def fail(self, failure: Failure) -> None:
        """End with an error response; no byte of a response was sent."""
        if self.phase == IDLE:
            return
        if self.responded:
            self.abort(failure)
            return
        self._close(failure)
        self.front.fail(failure)

    def abort(self, failure: Failure) -> None:
        """End in the middle of a response or tunnel."""
        if self.phase == IDLE:
            return
        self._close(failure)
        self.front.abort(failure)
