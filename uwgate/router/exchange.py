"""One request's journey: resolve, pick, connect or borrow, send, relay, retry, finish.

An exchange stands between a *front* (the client's side, ``front.Front``) and a *back* (the node's
side, ``upstream.Back``), so that neither knows what the other speaks. HTTP/1 fronts keep one
exchange and use it again for every request.

The way to a connection, and what may be sent again, is in ``attempts``.
"""

from __future__ import annotations

import time

from uwgate.protocols.http1_request import RequestBlock, RequestLine
from uwgate.protocols.http1_response import ResponseHead
from uwgate.protocols.uwsgi import parse_packet
from uwgate.router import heads
from uwgate.router.attempts import SPOOLS, Attempts, Back
from uwgate.router.balance import Node
from uwgate.router.errors import Failure
from uwgate.router.phases import CONNECTING, IDLE, RELAYING, RESOLVING, SENT, SPOOLING, TUNNEL
from uwgate.router.spool import SpoolFullError
from uwgate.router.upstream_uwsgi import connect_uwsgi

SERVER_ERROR = "response-5xx"  # among the errors of a node
_PENDING_LIMIT = 65536  # bytes of a body held while a connection is being made


class Exchange(Attempts):
    """The state of one request between its front and its back."""

    __slots__ = ()

    source = ""
    """What the request log says where no node was asked."""

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
        self.raw = self.raw_wanted = raw
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
                self.dispatch(node)
                return
        self.pick()

    def wait(self, request: RequestLine, block: RequestBlock) -> None:
        """Not yet: ``start`` follows, or the end."""
        self.request = request
        self.block = block
        self.request_ended = self.plain = False
        self.attempts = 0
        self.node = None
        self.phase = RESOLVING
        self._mark()

    def again(self) -> None:
        """Begin the same request as the last one, which was plain and repeatable: the usual case,
        where nothing can go wrong that cannot be tried again."""
        gateway = self.gateway
        timed = gateway.timed
        if timed > 1:
            self._count()
        else:
            gateway.tally.requests += 1
            if timed:
                self.started_at = time.monotonic()
        turn = gateway.turn
        node: Node | None = None
        if turn is not None:
            node = turn()
            if node.dead_until:
                node = None
        elif gateway.by_key is not None:
            node = gateway.by_key.turn(self.block.key or gateway.default_key)
        if node is not None:
            self.node = node
            self.attempts = 1
            node.active += 1
            node.requests += 1
            if node.idle:
                gateway.tally.node_reuses += 1
                node.idle.pop().begin(self)
            elif node.one_shot and not gateway.short_connect:
                self.phase = CONNECTING
                connect_uwsgi(gateway, node, self)
            else:
                self.open(node)
            return
        self.attempts = 0
        self.node = None
        self.phase = RESOLVING
        self.pick()

    def _count(self) -> None:
        """One request more, and when it began."""
        self.gateway.tally.requests += 1
        self._mark()

    def _mark(self) -> None:
        """The request log begins to count."""
        if self.gateway.timed:
            self.started_at = time.monotonic()
            self.connected_at = self.first_byte_at = 0.0
            self.request_size = self.packet_size = 0
            self.variables_sent = b""
            self.front.forget_response()

    def uwsgi_packet(self) -> bytes:
        """The packet for the node that was picked, if that speaks uwsgi; raises PacketError."""
        return heads.uwsgi_packet(self)

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
                if self.gateway.spooled > self.gateway.settings.max_spool * SPOOLS:
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
            if self.node.dead_until:  # it failed or left while the body came
                self.phase = RESOLVING
                self.pick()
            else:
                self.connect(self.node)
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

    def tunnel_over(self) -> None:
        """Both sides of a tunnel have ended: what the node has not taken yet is still its own."""
        back, self.back = self.back, None
        if back is not None:
            back.finish()
        self._close(Failure.CLIENT_CLOSED)

    def expired(self) -> None:
        """The front's deadline passed while this exchange was under way."""
        phase = self.phase
        if phase == CONNECTING:
            self.drop_attempt()
            self.connect_failed(Failure.CONNECT_TIMEOUT, "timed out")
        elif phase == RESOLVING:
            self.fail(Failure.RESOLVE_TIMEOUT)
        elif phase == SPOOLING or (phase == SENT and not self.request_ended):
            self.fail(Failure.BODY_TIMEOUT)
        elif phase == TUNNEL:
            self.abort(Failure.TUNNEL_TIMEOUT)
        elif self.back is not None and self.back.paused:
            self.abort(Failure.CLIENT_TIMEOUT)
        elif phase == SENT:
            self.fail(Failure.NODE_TIMEOUT)
        else:
            self.abort(Failure.NODE_STALLED)

    # --- from the back --------------------------------------------------------------------------

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
        ended = self.request_ended
        self.resume_front()  # first: the back may ask for a pause again
        pending, self.pending, self.pending_size = self.pending, [], 0
        for payload in pending:
            back.body(payload)
        if ended:
            back.body_end(self.trailer)

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """A complete response arrived in one piece; the back has let go already."""
        self.back = None
        if self.gateway.timed:
            self._answered(head.status)
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
        if gateway.timed:
            self._answered(head.status)
        self.front.begin(head, data, end)

    def _answered(self, status: int) -> None:
        """The final head is here: what that says of the node, and the time for the request log."""
        self.first_byte_at = now = time.monotonic()
        node = self.node
        if node is not None:
            if status < 500:
                node.note_latency(now - self.started_at)
            else:
                node.note_error(SERVER_ERROR)

    def informational(self, head: ResponseHead) -> None:
        """A 1xx response of the node. It does not put off the deadline of the final one."""
        self.front.informational(head)

    def response(self, head: ResponseHead, payload: bytes, ended: bool, trailer: bytes) -> None:
        """The final response begins; ``ended``: and ends, the back has let go already."""
        self.responded = True
        self.phase = RELAYING
        gateway = self.gateway
        self.front.deadline = gateway.clock.now + gateway.settings.timeout
        if gateway.timed:
            self._answered(head.status)
        if ended:
            self.back = None
        self.front.respond(head, payload, ended and not trailer)
        if ended and self.phase != IDLE:  # the front may have refused it
            self._finish()
            self.front.end(trailer)

    def response_data(self, payload: bytes) -> None:
        """Body bytes of the node, without framing."""
        gateway = self.gateway
        front = self.front
        front.deadline = gateway.request_deadline
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

    def forget(self) -> None:
        """No request was begun: nothing of an earlier one may show in the log."""
        self.node = None
        self.attempts = 0
        self.started_at = self.connected_at = self.first_byte_at = 0.0
        self.request_size = self.packet_size = 0
        self.variables_sent = self.extra = b""

    def forget_heads(self) -> None:
        """Nothing of a long head is kept while the connection is idle."""
        self.head = self.packet = self.extra = self.extra_variables = self.variables_sent = b""

    def count_variables(self) -> int:
        """Number of uwsgi variables sent (for the request log)."""
        if not self.variables_sent:
            return 0
        parsed = parse_packet(self.variables_sent)
        return len(parsed.variables) if parsed is not None else 0

    # --- ends ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Free what the request held; the front writes the log when it is done."""
        if self.phase >= CONNECTING:
            self.node.active -= 1  # type: ignore[union-attr]
        self.phase = IDLE
        self.responded = False
        self.resent = False
        self.raw = False
        self.tried = ()
        if self.spool is not None:
            self.gateway.spooled -= self.spool.size
            self.spool.close()
            self.spool = None
        if self.pending or self.trailer:
            self.pending = []
            self.pending_size = 0
            self.trailer = b""

    def drop_attempt(self) -> None:
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
        self.drop_attempt()
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
