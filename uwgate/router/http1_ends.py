"""How a client's HTTP/1 connection ends: the gateway drains, or its time is over; politely."""

from __future__ import annotations

from uwgate.router.errors import Failure
from uwgate.router.http1_bodies import Http1Bodies
from uwgate.router.http1_responses import BODY, GONE, HEAD, LINGER, PREFACE, TUNNEL
from uwgate.router.phases import IDLE, RELAYING

_LINGER = 2.0  # seconds in which a client may read the last answer, and stop sending


class Http1Ends(Http1Bodies):
    """The ends that are no answers."""

    __slots__ = ()

    @property
    def active(self) -> int:
        """Whether a request is under way."""
        return int(self.exchange.phase != IDLE)

    def stays(self) -> bool:
        """Whether the connection outlives this response while the gateway drains: requests that
        were sent one behind the other are all answered, if there is time for it."""
        gateway, request = self.gateway, self.request
        able = gateway.gently and gateway.settings.keepalive and not self.exchange.raw_wanted
        if not (able and self.buffer and request):
            return False
        return not self.block.close if request.minor else self.block.keep_alive

    def drain(self) -> None:
        """The gateway is stopping: close when idle, else after the response."""
        self.persist = False
        if self.stage in (HEAD, PREFACE) and not self.buffer:
            self.close()

    def leave(self) -> None:
        """Others serve from now on: close with the next response that can still say so.

        What has begun without saying it cannot, and requests that were sent one behind the other
        are all answered.
        """
        if self.exchange.phase < RELAYING and not self.buffer:
            self.persist = False

    def part(self) -> None:
        """The time is over. A tunnel may end between any two bytes, but what is on its way would
        turn a close into a reset; a response must not look complete."""
        if self.stage == TUNNEL:
            self.exchange.client_lost()
            self.gateway.tally.errors[Failure.KILLED] += 1
            self.log(Failure.KILLED)
            self.linger()
        elif self.stage not in (LINGER, GONE):
            self.cut()

    def cut(self) -> None:
        """The gateway ends now."""
        if self.exchange.phase:
            self.exchange.abort(Failure.KILLED)
        self.transport.abort()

    def close(self) -> None:
        """Close after what is written; unread bytes must not turn that into a reset."""
        if self.stage == BODY or self.buffer or not self.reading:
            self.linger()
            return
        self.finish_writing()

    def linger(self) -> None:
        """Send what is written, then FIN, and read a moment longer (RFC 9112 §9.6)."""
        self.stage = LINGER
        self.buffer = None
        if self.transport.is_closing():
            return
        if self.eof or not self.transport.can_write_eof():
            self.finish_writing()
            return
        self.transport.write_eof()
        if not self.reading:
            self.reading = True
            self.transport.resume_reading()
        unsent = self.transport.get_write_buffer_size()
        limit = self.gateway.settings.timeout if unsent else _LINGER
        self.deadline = self.gateway.clock.now + limit
        self.gateway.clock.watch(self)
