"""h2spec's list, http2/5: states, numbers and priorities of streams, errors, extensions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from h2.errors import ErrorCodes
from support import http2_fixture
from support.http2_raw import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_STREAMS,
    PING,
    WINDOW,
    WITH_PRIORITY,
    RawHttp2,
    connected,
    continuation,
    data,
    fields,
    priority,
    raw,
    rst_stream,
    window_update,
)

Server = http2_fixture.Server
http2_server = http2_fixture.http2_server

PROTOCOL, CLOSED = ErrorCodes.PROTOCOL_ERROR, ErrorCodes.STREAM_CLOSED
UNKNOWN = raw(0x16, 0, 0, bytes(8))

Send = Callable[[RawHttp2], bytes]


def _more(client: RawHttp2) -> bytes:
    """CONTINUATION out of place."""
    return continuation(1, client.block([("x-dummy", "x" * 100)]))


def test_idle_data(http2_server: Server) -> None:
    """http2/5.1/1: DATA on an idle stream: PROTOCOL_ERROR of the connection, or STREAM_CLOSED."""
    with connected(http2_server) as client:
        client.send(data(1))
        client.assert_stream_error(1, PROTOCOL, CLOSED)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda client: rst_stream(1), id="http2/5.1/2 RST_STREAM"),
        pytest.param(lambda client: window_update(1, 100), id="http2/5.1/3 WINDOW_UPDATE"),
        pytest.param(
            lambda client: continuation(1, client.block()), id="http2/5.1/4 CONTINUATION"
        ),
    ],
)
def test_idle(http2_server: Server, send: Send) -> None:
    """http2/5.1/2-4: RST_STREAM, WINDOW_UPDATE, CONTINUATION on an idle stream: connection error
    PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(send(client))
        client.assert_connection_error(PROTOCOL)


@pytest.mark.parametrize(
    ("send", "codes"),
    [
        pytest.param(lambda client: data(1), (CLOSED,), id="http2/5.1/5 DATA"),
        pytest.param(lambda client: client.headers(), (CLOSED,), id="http2/5.1/6 HEADERS"),
        pytest.param(_more, (CLOSED, PROTOCOL), id="http2/5.1/7 CONTINUATION"),
    ],
)
def test_half_closed(http2_server: Server, send: Send, codes: tuple[ErrorCodes, ...]) -> None:
    """http2/5.1/5-7: DATA, HEADERS, CONTINUATION on a half-closed (remote) stream: stream error
    STREAM_CLOSED.

    A window of 0 keeps the stream from being closed before the second frame arrives.
    """
    with connected(http2_server, {WINDOW: 0}) as client:
        client.send(client.headers(1, fields("GET", "/large")), send(client))
        client.assert_stream_error(1, *codes)


@pytest.mark.parametrize(
    ("send", "codes"),
    [
        pytest.param(lambda client: data(1), (CLOSED,), id="http2/5.1/8 DATA"),
        pytest.param(lambda client: client.headers(), (CLOSED,), id="http2/5.1/9 HEADERS"),
        pytest.param(_more, (CLOSED, PROTOCOL), id="http2/5.1/10 CONTINUATION"),
    ],
)
def test_reset(http2_server: Server, send: Send, codes: tuple[ErrorCodes, ...]) -> None:
    """http2/5.1/8-10: DATA, HEADERS, CONTINUATION behind our RST_STREAM: stream error
    STREAM_CLOSED."""
    with connected(http2_server) as client:
        client.send(client.opened(), rst_stream(1), send(client))
        client.assert_stream_error(1, *codes)


def test_closed_data(http2_server: Server) -> None:
    """http2/5.1/11: DATA on a closed stream: stream error STREAM_CLOSED."""
    with connected(http2_server) as client:
        client.send(client.headers())
        client.finished()
        client.send(data(1))
        client.assert_stream_error(1, CLOSED)


@pytest.mark.parametrize(
    ("send", "codes"),
    [
        pytest.param(lambda client: client.headers(), (CLOSED,), id="http2/5.1/12 HEADERS"),
        pytest.param(_more, (CLOSED, PROTOCOL), id="http2/5.1/13 CONTINUATION"),
    ],
)
def test_closed(http2_server: Server, send: Send, codes: tuple[ErrorCodes, ...]) -> None:
    """http2/5.1/12-13: HEADERS, CONTINUATION on a closed stream: connection error STREAM_CLOSED."""
    with connected(http2_server) as client:
        client.send(client.headers())
        client.finished()
        client.send(send(client))
        client.assert_connection_error(*codes)


def test_even_stream(http2_server: Server) -> None:
    """http2/5.1.1/1: an even stream id: connection error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.headers(2))
        client.assert_connection_error(PROTOCOL)


def test_smaller_stream(http2_server: Server) -> None:
    """http2/5.1.1/2: a stream id smaller than an earlier one: connection error PROTOCOL_ERROR, or
    STREAM_CLOSED, as one that nobody has used is closed by the higher one."""
    with connected(http2_server) as client:
        client.send(client.headers(5), client.headers(3))
        client.assert_connection_error(PROTOCOL, CLOSED)


def test_more_streams_than_allowed(http2_server: Server) -> None:
    """http2/5.1.2/1: one stream above SETTINGS_MAX_CONCURRENT_STREAMS: stream error PROTOCOL_ERROR
    or REFUSED_STREAM. Skipped where the server names no limit."""
    with connected(http2_server, {WINDOW: 0}) as client:
        if MAX_STREAMS not in client.settings:
            pytest.skip("the server has no limit")
        last = 2 * client.settings[MAX_STREAMS] + 1
        wanted = fields("GET", "/large")
        client.send(*[client.headers(stream, wanted) for stream in range(1, last + 1, 2)])
        client.assert_stream_error(last, PROTOCOL, ErrorCodes.REFUSED_STREAM)


def _dependent(client: RawHttp2) -> bytes:
    flags = END_STREAM | END_HEADERS | WITH_PRIORITY
    return raw(HEADERS, flags, 1, b"\0\0\0\1\xff" + client.block())


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(_dependent, id="http2/5.3.1/1 HEADERS"),
        pytest.param(lambda client: priority(1, on=1), id="http2/5.3.1/2 PRIORITY"),
    ],
)
def test_dependency_on_itself(http2_server: Server, send: Send) -> None:
    """http2/5.3.1/1-2: a stream that depends on itself: stream error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(send(client))
        client.assert_stream_error(1, PROTOCOL)


@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(True, id="http2/5.4.1/1 the connection is closed"),
        pytest.param(False, id="http2/5.4.1/2 GOAWAY before (strict)"),
    ],
)
def test_connection_error(http2_server: Server, silent: bool) -> None:
    """http2/5.4.1/1-2: a connection error (PING on a stream): GOAWAY, then the end."""
    with connected(http2_server) as client:
        client.send(raw(PING, 0, 3, bytes(8)))
        client.assert_connection_error(PROTOCOL, silent=silent)


def test_unknown_frame(http2_server: Server) -> None:
    """http2/5.5/1: a frame of an unknown type is ignored."""
    with connected(http2_server) as client:
        client.send(UNKNOWN)
        client.assert_alive()


def test_unknown_frame_in_a_block(http2_server: Server) -> None:
    """http2/5.5/2: an unknown type of frame in a header block: connection error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.headers(end_headers=False), UNKNOWN)
        client.assert_connection_error(PROTOCOL)
