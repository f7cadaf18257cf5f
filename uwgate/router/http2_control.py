"""The frames of HTTP/2 that are about streams, or the connection: what is to be done of each.

Requests and their bodies are `http2_connection`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uwgate.protocols import http2
from uwgate.protocols.hpack import DEFAULT_TABLE, EMPTY_TABLE
from uwgate.protocols.http2 import ErrorCode, Frame, Http2Error, StreamError
from uwgate.protocols.http2_priority import parse_priority
from uwgate.protocols.http2_streams import judge

if TYPE_CHECKING:
    from uwgate.router.http2_connection import Http2Connection

_PRIORITIES = 100  # of streams that have not come yet


def _rst_stream(client: Http2Connection, frame: Frame) -> None:
    state = client.state_of(frame.stream)
    if not judge(state, http2.RST_STREAM, frame.stream):
        return
    code = http2.number(frame.payload)
    tally = client.gateway.tally
    tally.count_reset("client", code)
    client.given_up()
    client.give_up(frame.stream)


def _settings(client: Http2Connection, frame: Frame) -> None:
    if frame.flags & http2.ACK:
        client.acknowledged = True
        return
    client.settled = True
    window = client.initial_window
    for name, value in http2.settings(frame.payload):
        if name == http2.INITIAL_WINDOW_SIZE:
            window = value
        elif name == http2.MAX_FRAME_SIZE:
            client.max_frame = min(value, client.most_frame)
        elif name == http2.HEADER_TABLE_SIZE and value < DEFAULT_TABLE:
            # Ours has never had an entry; it has to be said all the same (RFC 9113 §4.3.1).
            client.prefix = EMPTY_TABLE
    if window != client.initial_window:
        client.resize_windows(window)
    client.put(http2.frame(http2.SETTINGS, http2.ACK, 0))


def _ping(client: Http2Connection, frame: Frame) -> None:
    if not frame.flags & http2.ACK:
        client.limits.spend()  # once more: it wants an answer
        client.put(http2.frame(http2.PING, http2.ACK, 0, frame.payload))


def _goaway(client: Http2Connection, frame: Frame) -> None:
    """The client opens no more streams, or so it says."""


def _window_update(client: Http2Connection, frame: Frame) -> None:
    increment = http2.number(frame.payload) & http2.MAX_WINDOW
    number = frame.stream
    if not number:
        if not increment:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a window that grows by nothing")
        client.grow(increment)
    elif judge(client.state_of(number), http2.WINDOW_UPDATE, number):
        if not increment:
            raise StreamError(number, ErrorCode.PROTOCOL_ERROR, "a window that grows by nothing")
        client.grow_stream(client.streams[number], increment)


def _priority(client: Http2Connection, frame: Frame) -> None:
    """RFC 9113 §5.3: means nothing any more, but for this."""
    if http2.number(frame.payload) & http2.MAX_WINDOW == frame.stream:
        raise StreamError(frame.stream, ErrorCode.PROTOCOL_ERROR, "it depends on itself")


def _priority_update(client: Http2Connection, frame: Frame) -> None:
    """RFC 9218 §7.1."""
    number = http2.number(frame.payload) & http2.MAX_WINDOW
    if not number & 1:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the priority of no stream")
    stream = client.streams.get(number)
    if stream is not None:
        stream.priority = parse_priority(frame.payload[4:])
    elif number > client.last:
        if len(client.later) >= _PRIORITIES:  # of streams that were refused, maybe
            client.later = {each: said for each, said in client.later.items() if each > client.last}
        if len(client.later) < _PRIORITIES:
            client.later[number] = parse_priority(frame.payload[4:])


HANDLERS: dict[int, Callable[[Http2Connection, Frame], None]] = {
    http2.RST_STREAM: _rst_stream,
    http2.SETTINGS: _settings,
    http2.PING: _ping,
    http2.GOAWAY: _goaway,
    http2.WINDOW_UPDATE: _window_update,
    http2.PRIORITY: _priority,
    http2.PRIORITY_UPDATE: _priority_update,
}
"""What each type of frame does; raises Http2Error and StreamError. Unknown ones mean nothing."""
