"""How an HTTP/2 connection ends: the gateway drains, the time is over, the client broke rules."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from uwgate.protocols import http2
from uwgate.protocols.http2 import ErrorCode, FrameReader
from uwgate.router.clock import TICK
from uwgate.router.errors import Failure
from uwgate.router.http2_turns import Turns

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway
    from uwgate.router.http2_connection import Http2Connection
    from uwgate.router.http2_stream import Http2Stream

FOREVER = (1 << 31) - 1
"""A stream: GOAWAY that refuses none yet (RFC 9113 §6.8)."""

PROBE = 1.0
"""Seconds between questions to who sends no more, whether there is anybody."""

_BEYOND = 65536  # bytes that are not DATA
_LINGER = 2.0  # seconds that a client may read why
_NOTICE = 1.0  # seconds between the two steps: what has been sent meanwhile is served

# Stages
PREFACE, OPEN, CLOSING, GONE = range(4)


class Ends(Turns):
    """``last``: the highest stream of the client. ``step``: of the end: 1 announced, 2 no stream
    behind ``ended_at`` is taken. ``settled``: the client's SETTINGS are here. ``slow_since``: a
    frame that is no DATA has been on its way since then; ``rest``: the deadline but for that."""

    __slots__ = (
        "announced_at", "deadline", "discarded", "due", "ended_at", "last", "reader", "rest",
        "settled", "slow_since", "stage", "step",
    )  # fmt: skip

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        super().__init__(gateway, constants)
        settings = gateway.settings.http2
        self.reader = FrameReader(max_block=2 * settings.max_header_list)
        self.stage = PREFACE
        self.settled = False
        self.last = 0
        self.step = 0
        self.ended_at = 0
        self.discarded = 0
        self.deadline = 0.0
        self.due = 0
        self.rest = 0.0
        self.slow_since = 0.0
        self.announced_at = 0.0

    # --- to be provided ---------------------------------------------------------------------------

    def drop(self, stream: Http2Stream) -> None:
        """Nobody needs it any more."""
        raise AssertionError

    # --- ends -------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests under way."""
        return sum(stream.exchange.phase != 0 for stream in self.streams.values())

    def goaway(self, last: int, code: ErrorCode, reason: str = "") -> None:
        """GOAWAY, which is counted if it is the end."""
        if last != FOREVER:
            self.gateway.tally.count_goaway(code)
        if self.step == 2:
            last = min(last, self.ended_at)
        self.put(http2.goaway(last, code, reason.encode("ascii", "replace")[:80]))

    def fail(self, code: ErrorCode, reason: str) -> None:
        """The client has broken the rules (RFC 9113 §5.4.1)."""
        if self.stage >= CLOSING:
            return
        self.goaway(self.last, code, reason)
        for stream in list(self.streams.values()):
            stream.lost()
            self.drop(stream)
        self.forget_streams()
        self.close()

    def close(self) -> None:
        """Send what there is, FIN, and read a moment longer: unread bytes would make it a reset."""
        if self.stage >= CLOSING:
            return
        self.stage = CLOSING
        self.flush()
        self.finished = True
        transport = self.transport
        # A reset would take what is on its way from a slow client; one that closes already, too,
        # waits for him.
        limit = self.gateway.settings.timeout if transport.get_write_buffer_size() else _LINGER
        self.deadline = self.gateway.clock.now + limit
        self.gateway.clock.watch(self)
        if transport.is_closing():
            return
        if self.eof or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            transport.resume_reading()

    def discard(self, size: int) -> None:
        """So many bytes behind the end. As many as were allowed are on their way; who sends more
        waits for the end: cut at once, it would be back at once."""
        self.discarded += size
        if self.discarded > self.windows.size + _BEYOND:
            self.transport.pause_reading()

    def begin(self) -> None:
        """The connection is there; a gateway that drains takes what was on its way, no more."""
        gateway = self.gateway
        hurried = gateway.draining and not gateway.gently
        self.rest_until(gateway.clock.now + (1.0 if hurried else gateway.settings.headers_timeout))
        if gateway.draining:
            self.leave()

    def leave(self) -> None:
        """Others serve from now on (RFC 9113 §6.8): say so, and a second later what the last stream
        was, which a client that heard of it in time has not gone beyond."""
        if self.stage >= CLOSING:
            return
        now = time.monotonic()
        if not self.step:
            self.step = 1
            self.announced_at = now
            self.goaway(FOREVER, ErrorCode.NO_ERROR)
        elif self.step == 1 and now - self.announced_at >= _NOTICE:
            self.drain()

    def drain(self) -> None:
        """The gateway is stopping: take no further stream."""
        if self.stage >= CLOSING or self.step == 2:
            return
        self.step = 2
        self.ended_at = self.last
        self.goaway(self.last, ErrorCode.NO_ERROR)
        if not self.streams:
            self.close()

    def part(self) -> None:
        """The time is over: tunnels end between two bytes, the rest is cut."""
        for stream in list(self.streams.values()):
            if stream.websocket:
                stream.lost(Failure.KILLED)
                self.reset(stream, ErrorCode.CANCEL)
            elif stream.exchange.phase:
                stream.exchange.abort(Failure.KILLED)
        self.drain()
        self.close()

    def cut(self) -> None:
        """The gateway ends now."""
        for stream in list(self.streams.values()):
            if stream.exchange.phase:
                stream.exchange.abort(Failure.KILLED)
        self.transport.abort()

    def admit_anew(self) -> None:
        """Every request is looked at."""

    def watch_slow(self) -> None:
        """A header section has to be here in the time of one, however it trickles in."""
        if self.reader.slow:
            if not self.slow_since:
                self.slow_from_now()
        elif self.slow_since:
            self.slow_since = 0.0
            self.deadline = self.rest

    def slow_from_now(self) -> None:
        """Something has begun that has to be here in the time of a header section."""
        gateway = self.gateway
        self.slow_since = gateway.clock.now
        self.deadline = min(self.deadline, gateway.clock.now + gateway.settings.headers_timeout)
        gateway.clock.watch(self)

    def rest_until(self, deadline: float) -> None:
        """The deadline is that, unless what is on its way has an earlier one."""
        self.rest = deadline
        self.deadline = min(self.deadline, deadline) if self.slow_since else deadline
        gateway = self.gateway
        if not self.due or gateway.short_idle:
            gateway.clock.watch(self)

    def expired(self) -> None:
        """The deadline passed."""
        gateway = self.gateway
        now = gateway.clock.now
        if self.stage >= CLOSING:
            self.transport.abort()
        elif self.blocked:
            self._given_up()
        elif self.stage == PREFACE or not self.settled:
            self.fail(ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS")
        elif self.slow_since and now - self.slow_since >= gateway.settings.headers_timeout + TICK:
            gateway.tally.errors[Failure.HEAD_TIMEOUT] += 1
            self.fail(ErrorCode.ENHANCE_YOUR_CALM, "a header section that does not end")
        elif self.step == 1 and not gateway.gently:
            self.drain()
        elif self.streams and self.eof:
            self.probe()
            self.rest_until(now + PROBE)
        elif self.streams:
            self.rest_until(gateway.request_deadline)
        else:
            self.drain()

    def probe(self) -> None:
        """Something that needs no answer: if all of the connection is closed, not one side of it,
        the client's system says so, and nodes do not work for nobody."""
        self.put(http2.frame(http2.PING, 0, 0, b"anybody?"))

    def _given_up(self) -> None:
        """The client does not take what is sent."""
        errors = self.gateway.tally.errors
        for stream in list(self.streams.values()):
            if stream.exchange.phase:
                stream.lost(Failure.CLIENT_TIMEOUT)
            else:
                errors[Failure.CLIENT_TIMEOUT] += 1
            self.drop(stream)  # its own deadline may be looked at in the same tick
        self.forget_streams()
        self.transport.abort()

    def forget_streams(self) -> None:
        """All of them were dropped: nothing waits."""
        self.streams.clear()
        self.writers.clear()
        self.queued = 0
        self.gateway.http2.heavy.discard(cast("Http2Connection", self))
