"""Whose turn it is: frames that came, requests that wait for others, nodes that wait for a client.

A client that asks for much at once does so at its own expense: a turn of the loop takes a part of
what it has sent (``FrameReader``), its nodes a part of what it asks for.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from uwgate.protocols.http2 import ErrorCode, Http2Error, StreamError
from uwgate.router.http2_output import Output, urgency
from uwgate.router.phases import IDLE, RELAYING, TUNNEL

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway
    from uwgate.router.http2_stream import Http2Stream


_TURN = 0.002  # seconds that what a connection has sent may take in one turn of the loop
_WARY_TURN = 0.0005  # the same of a client that gives much up
_ALL = 1 << 30
_FREE = (IDLE, TUNNEL)
_UNTAKEN = 8  # requests: one of whose response the client has never taken anything, nor can


class Turns(Output):
    """``more``: frames came that one turn of the loop may not cost; ``next_turn``: when they are
    read. ``admission``: when requests that wait are looked at; ``most_requests``: that may be at
    nodes. ``holding``: so much waits for the client that nodes do of which nothing is here.
    ``wary``: streams are given up, so that requests are begun behind what came with them."""

    __slots__ = ("admission", "holding", "more", "most_requests", "next_turn", "wary")

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        super().__init__(gateway, constants)
        self.more = False
        self.holding = False
        self.wary = False
        self.next_turn: asyncio.Handle | None = None
        self.admission: asyncio.Handle | None = None
        self.most_requests = gateway.settings.http2.node_requests or _ALL

    # --- to be provided ---------------------------------------------------------------------------

    def read_on(self) -> None:
        """The next part of what came."""
        raise AssertionError

    def reset(self, stream: Http2Stream, code: ErrorCode) -> None:
        """End a stream before its time."""
        raise AssertionError

    def count_delayed(self) -> None:
        """A request has to wait."""
        raise AssertionError

    # --- frames -----------------------------------------------------------------------------------

    def turn_ends(self) -> float:
        """Until when (monotonic seconds) frames of this connection are dealt with."""
        return time.monotonic() + (_WARY_TURN if self.wary else _TURN)

    def take_turns(self) -> None:
        """More is here than one turn of the loop may cost: others have theirs first."""
        if self.next_turn is None:
            self.transport.pause_reading()
            self.next_turn = self.gateway.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self.next_turn = None
        if self.blocked:
            return  # resume_writing goes on
        self.read_on()
        if self.next_turn is None and not self.blocked and not self.transport.is_closing():
            self.transport.resume_reading()

    # --- requests ---------------------------------------------------------------------------------

    def given_up(self) -> None:
        """A stream is, by one side or the other. Raises Http2Error."""
        self.limits.spend_reset()
        self.wary = self.limits.wary

    def must_wait(self) -> bool:
        """Whether enough other requests of this connection are at nodes: they have to be answered,
        and the client has to be able to take that, before the next one is begun."""
        # Those that came before have their turn first.
        return self.wary or bool(self.delayed) or self._busy() >= self.most_requests

    def delay(self, stream: Http2Stream) -> None:
        """The request waits until ``undelay``: when it is begun, answered, or given up."""
        stream.delayed = True
        self.delayed[stream.id] = stream
        self.count_delayed()

    def undelay(self, stream: Http2Stream) -> None:
        """It does so no more."""
        stream.delayed = False
        del self.delayed[stream.id]

    def _busy(self) -> int:
        """Requests that hold nodes up: not those that were begun to be answered, however long that
        takes (event streams, calls of gRPC, tunnels), if the client takes what comes."""
        count = 0
        shut = self.windows.send <= 0
        for stream in self.streams.values():
            phase = stream.exchange.phase
            if phase in _FREE or stream.delayed:
                continue
            if shut or stream.windows.send <= 0:
                count += 1 if stream.taken else _UNTAKEN
            elif phase < RELAYING:
                count += 1
        return count

    def is_narrow(self) -> bool:
        """Whether bodies that are kept here leave little of the window to the others."""
        return self.windows.receive * 2 < self.windows.size

    def ready(self) -> None:
        """Something was sent, or has ended: those that wait may have their turn, but not now, in
        the middle of an exchange."""
        if self.admission is None:
            self.admission = self.gateway.loop.call_soon(self._admit)

    def _admit(self) -> None:
        self.admission = None
        self.wary = self.limits.wary
        if self.wary and self.more:
            return  # what came with them may be the end of some: ``flush`` comes back behind it
        free = self.most_requests - self._busy()
        narrow = free <= 0 and self.is_narrow()
        if free <= 0 and not narrow:
            return
        waiting = list(self.delayed.values())
        if narrow:  # those at nodes cannot go on, for what these hold
            waiting = sorted([each for each in waiting if each.held], key=_held)[-1:]
            free = 1
        else:
            waiting.sort(key=urgency)
        for stream in waiting:
            if free <= 0:
                break
            if not stream.delayed:  # the start of another was the end of this one
                continue
            if not self.is_shut(stream):
                free -= 1
            elif self.eof:
                self.drop_delayed(stream)
                continue
            else:
                free -= _UNTAKEN
            stream.start_delayed()

    def drop_delayed(self, stream: Http2Stream) -> None:
        """No window will open for a response: it was never begun, and may be sent again."""
        stream.lost()
        self.reset(stream, ErrorCode.REFUSED_STREAM)

    # --- nodes ------------------------------------------------------------------------------------

    def grow(self, increment: int) -> None:
        """The client takes so many bytes more, of all streams. Raises Http2Error."""
        try:
            self.windows.grant(increment)
        except OverflowError:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window too large") from None
        if self.holding:
            self.release()

    def grow_stream(self, stream: Http2Stream, increment: int) -> None:
        """The client takes so many bytes more of that stream. Raises StreamError."""
        try:
            stream.windows.grant(increment)
        except OverflowError:
            raise StreamError(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "too large") from None
        if stream.queue or stream.ended:
            self.enqueue(stream)
        elif stream.blocked:
            self.release()

    def resize_windows(self, size: int) -> None:
        """The client has another initial window. Raises Http2Error."""
        super().resize_windows(size)
        if self.holding:
            self.release()

    def hold(self) -> None:
        """Enough waits here: what else the client cannot take is not even read. Each stream would
        take in a piece of its own, and there are a hundred."""
        self.holding = True
        for stream in self.streams.values():
            if not stream.blocked and self.is_shut(stream):
                stream.stop_node()

    def less(self, size: int) -> None:
        """So many bytes that waited do so no more."""
        self.queued -= size
        if self.holding and self.queued <= self.most_queued:
            self.holding = False
            self.gateway.loop.call_soon(self.release)

    def release(self) -> None:
        """Nodes of which the client may take something go on."""
        room = self.queued <= self.most_queued
        self.holding = not room
        for stream in list(self.streams.values()):
            if stream.blocked and not stream.queue and (room or not self.is_shut(stream)):
                stream.start_node()


def _held(stream: Http2Stream) -> int:
    return len(stream.held)
