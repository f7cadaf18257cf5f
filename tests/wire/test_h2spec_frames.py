"""h2spec's list, http2/3.5, 4 and 6: the preface, the format of frames, every type of frame."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from h2.errors import ErrorCodes
from support import http2_fixture
from support.http2_raw import (
    ACK,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE,
    GOAWAY,
    HEADERS,
    MOST,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW,
    WINDOW_UPDATE,
    RawHttp2,
    connected,
    continuation,
    data,
    fields,
    goaway,
    priority,
    raw,
    rst_stream,
    settings,
    window_update,
)

Server = http2_fixture.Server
http2_server = http2_fixture.http2_server

PROTOCOL, FLOW = ErrorCodes.PROTOCOL_ERROR, ErrorCodes.FLOW_CONTROL_ERROR
SIZE, COMPRESSION = ErrorCodes.FRAME_SIZE_ERROR, ErrorCodes.COMPRESSION_ERROR
WHOLE = END_STREAM | END_HEADERS

Send = Callable[[RawHttp2], bytes]


def _dummy(client: RawHttp2) -> bytes:
    """A block of one more field."""
    return client.block([("x-dummy", "x" * 100)])


@pytest.mark.parametrize(
    "preface",
    [
        pytest.param(b"INVALID CONNECTION PREFACE\r\n\r\n", id="http2/3.5/2 nothing of it"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", id="http2/3.5/2 its end"),
    ],
)
def test_invalid_preface(http2_server: Server, preface: bytes) -> None:
    """http2/3.5/2: the connection ends; before it, GOAWAY PROTOCOL_ERROR or a 4xx of HTTP/1.1."""
    with RawHttp2(http2_server) as client:
        client.send(preface + raw(PING, 0, 0, b"--live--"))
        found = client.rest()
    if found.startswith(b"HTTP/1.1 "):
        assert found.startswith(b"HTTP/1.1 4"), found
        return
    assert b"--live--" not in found
    goaways = [part for kind, part in _frames(found) if kind == GOAWAY]
    assert all(part[4:8] == PROTOCOL.to_bytes(4, "big") for part in goaways), found


def _frames(found: bytes) -> list[tuple[int, bytes]]:
    """(type, payload) of each."""
    parts = []
    while found:
        size = 9 + int.from_bytes(found[:3], "big")
        assert len(found) >= size, found
        parts.append((found[3], found[9:size]))
        found = found[size:]
    return parts


# --- 4 --------------------------------------------------------------------------------------------


def test_unknown_type(http2_server: Server) -> None:
    """http2/4.1/1: a frame of an unknown type is ignored."""
    with connected(http2_server) as client:
        client.send(raw(0x16, 0, 0, bytes(8)))
        client.assert_alive()


@pytest.mark.parametrize(
    ("flags", "stream"),
    [
        pytest.param(0x16, 0, id="http2/4.1/2 undefined flags"),
        pytest.param(0x16, 1 << 31, id="http2/4.1/3 the reserved bit"),
    ],
)
def test_undefined_bits(http2_server: Server, flags: int, stream: int) -> None:
    """http2/4.1/2-3: undefined flags and the reserved bit are ignored."""
    with connected(http2_server) as client:
        client.send(raw(PING, flags, stream, b"12345678"))
        client.assert_pong(b"12345678")


def test_data_of_16384_bytes(http2_server: Server) -> None:
    """http2/4.2/1: DATA of 2^14 bytes is taken."""
    with connected(http2_server) as client:
        client.send(client.opened(), data(1, bytes(16384)))
        client.assert_answered()


def test_too_large_data(http2_server: Server) -> None:
    """http2/4.2/2: DATA above SETTINGS_MAX_FRAME_SIZE: stream error FRAME_SIZE_ERROR."""
    with connected(http2_server) as client:
        size = client.settings.get(FRAME_SIZE, 16384) + 1
        client.send(client.opened(), data(1, bytes(size)))
        client.assert_stream_error(1, SIZE)


def test_too_large_headers(http2_server: Server) -> None:
    """http2/4.2/3: HEADERS above SETTINGS_MAX_FRAME_SIZE: connection error FRAME_SIZE_ERROR."""
    with connected(http2_server) as client:
        size = client.settings.get(FRAME_SIZE, 16384) + 1
        block = client.block()
        while len(block) < size:
            block += b"\x00\x03x-a\x7e" + b"x" * 126
        client.send(raw(HEADERS, WHOLE, 1, block))
        client.assert_connection_error(SIZE)


def test_undecodable_block(http2_server: Server) -> None:
    """http2/4.3/1: a block that ends within a field: connection error COMPRESSION_ERROR."""
    with connected(http2_server) as client:
        client.send(raw(HEADERS, WHOLE, 1, b"\x40"))
        client.assert_connection_error(COMPRESSION)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda client: priority(1), id="http2/4.3/2 PRIORITY"),
        pytest.param(lambda client: client.headers(3), id="http2/4.3/3 HEADERS of another stream"),
        pytest.param(lambda client: priority(1), id="http2/6.2/1 PRIORITY"),
        pytest.param(lambda client: client.headers(3), id="http2/6.2/2 HEADERS of another stream"),
    ],
)
def test_frame_in_a_block(http2_server: Server, send: Send) -> None:
    """http2/4.3/2-3, 6.2/1-2: another frame between HEADERS and CONTINUATION: connection error
    PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.headers(end=False, end_headers=False), send(client))
        client.send(continuation(1, _dummy(client)))
        client.assert_connection_error(PROTOCOL)


# --- 6 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param(data(0), PROTOCOL, id="http2/6.1/1 DATA on stream 0"),
        pytest.param(priority(0), PROTOCOL, id="http2/6.3/1 PRIORITY on stream 0"),
        pytest.param(rst_stream(0), PROTOCOL, id="http2/6.4/1 RST_STREAM on stream 0"),
        pytest.param(rst_stream(1), PROTOCOL, id="http2/6.4/2 RST_STREAM on an idle stream"),
        pytest.param(raw(SETTINGS, ACK, 0, b"\0"), SIZE, id="http2/6.5/1 SETTINGS, ACK and more"),
        pytest.param(
            raw(SETTINGS, 0, 1, b"\0\3\0\0\0\x64"), PROTOCOL, id="http2/6.5/2 SETTINGS on a stream"
        ),
        pytest.param(
            raw(SETTINGS, 0, 0, b"\0\3\0"), SIZE, id="http2/6.5/3 SETTINGS of another length"
        ),
        pytest.param(settings((ENABLE_PUSH, 2)), PROTOCOL, id="http2/6.5.2/1 ENABLE_PUSH 2"),
        pytest.param(settings((WINDOW, 1 << 31)), FLOW, id="http2/6.5.2/2 INITIAL_WINDOW_SIZE"),
        pytest.param(settings((FRAME_SIZE, 16383)), PROTOCOL, id="http2/6.5.2/3 MAX_FRAME_SIZE"),
        pytest.param(
            settings((FRAME_SIZE, 1 << 24)), PROTOCOL, id="http2/6.5.2/4 MAX_FRAME_SIZE"
        ),
        pytest.param(raw(PING, 0, 1, bytes(8)), PROTOCOL, id="http2/6.7/3 PING on a stream"),
        pytest.param(raw(PING, 0, 0, bytes(6)), SIZE, id="http2/6.7/4 PING of another length"),
        pytest.param(goaway(0, stream=1), PROTOCOL, id="http2/6.8/1 GOAWAY on a stream"),
        pytest.param(window_update(0, 0), PROTOCOL, id="http2/6.9/1 WINDOW_UPDATE by 0"),
        pytest.param(
            raw(WINDOW_UPDATE, 0, 0, b"\0\0\1"), SIZE, id="http2/6.9/3 WINDOW_UPDATE too short"
        ),
        pytest.param(settings((WINDOW, 1 << 31)), FLOW, id="http2/6.9.2/3 INITIAL_WINDOW_SIZE"),
    ],
)
def test_forbidden_frame(http2_server: Server, frame: bytes, code: ErrorCodes) -> None:
    """http2/6.1/1, 6.3/1, 6.4/1-2, 6.5/1-3, 6.5.2/1-4, 6.7/3-4, 6.8/1, 6.9/1, 6.9/3, 6.9.2/3:
    connection error."""
    with connected(http2_server) as client:
        client.send(frame)
        client.assert_connection_error(code)


def test_data_on_half_closed_stream(http2_server: Server) -> None:
    """http2/6.1/2: DATA on a stream that is not open: stream error STREAM_CLOSED."""
    with connected(http2_server, {WINDOW: 0}) as client:
        client.send(client.headers(1, fields("POST", "/large")), data(1))
        client.assert_stream_error(1, ErrorCodes.STREAM_CLOSED)


def test_data_with_too_much_padding(http2_server: Server) -> None:
    """http2/6.1/3: padding as long as the payload: connection error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        opened = client.opened(1, ("content-length", "4"))
        client.send(opened, raw(DATA, END_STREAM | PADDED, 1, b"\x06Test"))
        client.assert_connection_error(PROTOCOL)


def test_headers_on_stream_0(http2_server: Server) -> None:
    """http2/6.2/3: HEADERS on stream 0: connection error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.headers(0))
        client.assert_connection_error(PROTOCOL)


def test_headers_with_too_much_padding(http2_server: Server) -> None:
    """http2/6.2/4: padding longer than the payload: connection error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        block = client.block()
        client.send(raw(HEADERS, WHOLE | PADDED, 1, bytes([len(block) + 2]) + block))
        client.assert_stream_error(1, PROTOCOL)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(raw(PRIORITY, 0, 1, b"\x80\0\0\1"), id="http2/6.3/2 PRIORITY"),
        pytest.param(raw(RST_STREAM, 0, 1, bytes(3)), id="http2/6.4/3 RST_STREAM"),
    ],
)
def test_another_length(http2_server: Server, frame: bytes) -> None:
    """http2/6.3/2, 6.4/3: PRIORITY, RST_STREAM of another length: FRAME_SIZE_ERROR."""
    with connected(http2_server, {WINDOW: 0}) as client:
        client.send(client.headers(1, fields("GET", "/large")), frame)
        client.assert_stream_error(1, SIZE)


def test_unknown_setting(http2_server: Server) -> None:
    """http2/6.5.2/5: a setting of an unknown name is ignored."""
    with connected(http2_server) as client:
        client.send(settings((0xFF, 1)))
        client.acknowledged()
        client.assert_alive()


def test_setting_twice_in_a_frame(http2_server: Server) -> None:
    """http2/6.5.3/1: of a setting that comes twice in a frame the last value counts."""
    with connected(http2_server) as client:
        client.send(settings((WINDOW, 100), (WINDOW, 1)))
        client.acknowledged()
        client.send(client.headers(1, fields("GET", "/large")))
        client.assert_window_kept(1, 1)


def test_settings_are_acknowledged(http2_server: Server) -> None:
    """http2/6.5.3/2: SETTINGS is acknowledged."""
    with connected(http2_server) as client:
        client.send(settings((ENABLE_PUSH, 0)))
        client.acknowledged()
        client.assert_alive()


def test_ping(http2_server: Server) -> None:
    """http2/6.7/1: PING is answered with the same bytes."""
    with connected(http2_server) as client:
        client.send(raw(PING, 0, 0, b"h2spec\0\0"))
        client.assert_pong(b"h2spec\0\0")


def test_ping_with_ack(http2_server: Server) -> None:
    """http2/6.7/2: PING with ACK is not answered."""
    with connected(http2_server) as client:
        client.send(raw(PING, ACK, 0, b"invalid\0"), raw(PING, 0, 0, b"h2spec\0\0"))
        client.assert_pong(b"h2spec\0\0")
        client.assert_alive()


def test_window_update_of_a_stream_by_0(http2_server: Server) -> None:
    """http2/6.9/2: WINDOW_UPDATE of a stream by 0: stream error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.opened(), window_update(1, 0))
        client.assert_stream_error(1, PROTOCOL)


def test_window_of_one_byte(http2_server: Server) -> None:
    """http2/6.9.1/1: no more is sent than the window has room for."""
    with connected(http2_server) as client:
        client.send(settings((WINDOW, 1)))
        client.acknowledged()
        client.send(client.headers(1, fields("GET", "/large")))
        client.assert_window_kept(1, 1)
        client.send(window_update(1, 5))
        client.assert_window_kept(1, 6)


def test_too_large_window_of_the_connection(http2_server: Server) -> None:
    """http2/6.9.1/2: the connection's window above 2^31-1: GOAWAY FLOW_CONTROL_ERROR."""
    with connected(http2_server) as client:
        client.send(window_update(0, MOST), window_update(0, MOST))
        client.assert_connection_error(FLOW, silent=False)


def test_too_large_window_of_a_stream(http2_server: Server) -> None:
    """http2/6.9.1/3: a stream's window above 2^31-1: RST_STREAM FLOW_CONTROL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.opened(), window_update(1, MOST), window_update(1, MOST))
        client.assert_stream_error(1, FLOW, gentle=True)


def test_window_of_an_open_stream_grows(http2_server: Server) -> None:
    """http2/6.9.2/1: INITIAL_WINDOW_SIZE changes the windows of streams that are open."""
    with connected(http2_server) as client:
        client.send(settings((WINDOW, 0)))
        client.acknowledged()
        client.send(client.headers(1, fields("GET", "/large")))
        client.assert_window_kept(1, 0)
        client.send(settings((WINDOW, 1)))
        client.assert_window_kept(1, 1)


def test_window_below_zero(http2_server: Server) -> None:
    """http2/6.9.2/2: a window that INITIAL_WINDOW_SIZE makes negative is kept track of."""
    with connected(http2_server) as client:
        client.send(settings((WINDOW, 3)))
        client.acknowledged()
        client.send(client.headers(1, fields("GET", "/large")))
        client.assert_window_kept(1, 3)
        client.send(settings((WINDOW, 2)))
        client.acknowledged()
        client.send(window_update(1, 2))
        client.assert_window_kept(1, 4)


def test_two_continuations(http2_server: Server) -> None:
    """http2/6.10/1: several CONTINUATIONs behind HEADERS are taken."""
    with connected(http2_server) as client:
        client.send(client.headers(end_headers=False))
        client.send(continuation(1, _dummy(client), end=False), continuation(1, _dummy(client)))
        client.assert_answered()


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        pytest.param(
            lambda client: continuation(1, _dummy(client), end=False),
            lambda client: data(1),
            id="http2/6.10/2 another frame behind it",
        ),
        pytest.param(
            lambda client: b"",
            lambda client: continuation(0, _dummy(client)),
            id="http2/6.10/3 on stream 0",
        ),
        pytest.param(
            lambda client: continuation(1, _dummy(client)),
            lambda client: continuation(1, _dummy(client)),
            id="http2/6.10/5 behind CONTINUATION with END_HEADERS",
        ),
        pytest.param(
            lambda client: data(1),
            lambda client: continuation(1, _dummy(client), end=False),
            id="http2/6.10/6 behind DATA, in a block",
        ),
        pytest.param(
            lambda client: continuation(1, _dummy(client)) + data(1, end=False),
            lambda client: continuation(1, _dummy(client)),
            id="http2/6.10/6 behind DATA",
        ),
    ],
)
def test_continuation_out_of_place(http2_server: Server, head: Send, tail: Send) -> None:
    """http2/6.10/2-3, 5-6: CONTINUATION that must not come, or not end: connection error
    PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.headers(1, fields("POST"), end=False, end_headers=False))
        client.send(head(client), tail(client))
        client.assert_connection_error(PROTOCOL)


def test_continuation_behind_end_headers(http2_server: Server) -> None:
    """http2/6.10/4: CONTINUATION behind HEADERS with END_HEADERS: connection error
    PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.headers(), continuation(1, _dummy(client)))
        client.assert_connection_error(PROTOCOL)
