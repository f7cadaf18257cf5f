"""Streams of HTTP/2: what may come in which state, and windows (RFC 9113 §5.1, §5.2)."""

from __future__ import annotations

from enum import IntEnum

from uwgate.protocols.http2 import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PING,
    PRIORITY,
    PRIORITY_UPDATE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    StreamError,
)


class State(IntEnum):
    """As the server sees it, which promises nothing (RFC 9113 §5.1). ``HALF_CLOSED``: the client
    has ended its side. ``RESET``: by us; the client may not know yet. ``CLOSED``: by the client, or
    by both."""

    IDLE = 0
    OPEN = 1
    HALF_CLOSED = 2
    RESET = 3
    CLOSED = 4


class Verdict(IntEnum):
    """What to do with a frame."""

    TAKE = 0
    IGNORE = 1
    STREAM_CLOSED = 2  # an error of the stream
    CONNECTION_CLOSED = 3  # the same, of the connection
    PROTOCOL_ERROR = 4  # of the connection


_T, _I = Verdict.TAKE, Verdict.IGNORE
_S, _C, _P = Verdict.STREAM_CLOSED, Verdict.CONNECTION_CLOSED, Verdict.PROTOCOL_ERROR

#                    IDLE OPEN HALF RESET CLOSED
_TABLE: dict[int, tuple[Verdict, Verdict, Verdict, Verdict, Verdict]] = {
    HEADERS: (_T, _T, _S, _I, _C),
    DATA: (_P, _T, _S, _I, _C),
    RST_STREAM: (_P, _T, _T, _I, _I),
    WINDOW_UPDATE: (_P, _T, _T, _I, _I),
    PRIORITY: (_T, _T, _T, _T, _T),
    # Of the connection, whatever it says of streams.
    SETTINGS: (_T, _T, _T, _T, _T),
    PING: (_T, _T, _T, _T, _T),
    GOAWAY: (_T, _T, _T, _T, _T),
    PRIORITY_UPDATE: (_T, _T, _T, _T, _T),
    # The reader lets none of these through by itself.
    CONTINUATION: (_P, _P, _P, _P, _P),
}
_UNKNOWN = (_I, _I, _I, _I, _I)  # RFC 9113 §4.1


def judge(state: State, kind: int, stream: int) -> bool:
    """Whether a frame of that type is to be taken, for a stream in that state; False: ignored.

    Raises Http2Error or StreamError for those that must not come.
    """
    verdict = _TABLE.get(kind, _UNKNOWN)[state]
    if verdict == _S:
        raise StreamError(stream, ErrorCode.STREAM_CLOSED, f"type {kind} behind the end")
    if verdict == _C:
        raise Http2Error(ErrorCode.STREAM_CLOSED, f"type {kind} on a closed stream")
    if verdict == _P:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"type {kind} on an idle stream")
    return verdict == _T


class Windows:
    """The two windows of a stream, or of the connection, in bytes.

    ``send``: what may still be sent; negative after the client has made its windows smaller
    (RFC 9113 §6.9.2). ``receive``: what the client may still send, of ``size``.
    """

    __slots__ = ("_unsaid", "receive", "send", "size")

    def __init__(self, send: int, size: int) -> None:
        self.reset(send, size)

    def reset(self, send: int, size: int) -> None:
        """As new."""
        self.send = send
        self.receive = self.size = size
        self._unsaid = 0  # bytes that were dealt with, and the client does not know

    def grant(self, increment: int) -> None:
        """The client takes more. Raises OverflowError above 2^31 − 1 (RFC 9113 §6.9.1)."""
        self.send += increment
        if self.send > MAX_WINDOW:
            raise OverflowError(self.send)

    def received(self, size: int) -> None:
        """Bytes of DATA frames. Raises OverflowError if that is more than we have allowed."""
        self.receive -= size
        if self.receive < 0:
            raise OverflowError(size)

    def done(self, size: int) -> int:
        """That many received bytes are not held any more -> the increment to tell the client, 0
        while it is not worth a frame: that would be one for each it sends."""
        unsaid = self._unsaid + size
        if unsaid * 2 < self.size and unsaid < self.receive:
            self._unsaid = unsaid
            return 0
        self._unsaid = 0
        self.receive += unsaid
        return unsaid
