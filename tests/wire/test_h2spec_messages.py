"""h2spec's list, http2/7 and 8: unknown error codes, malformed requests, PUSH_PROMISE."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from support import http2_fixture
from support.http2_raw import (
    END_HEADERS,
    PUSH_PROMISE,
    Fields,
    connected,
    data,
    fields,
    goaway,
    raw,
    rst_stream,
)

Server = http2_fixture.Server
http2_server = http2_fixture.http2_server

PROTOCOL = ErrorCodes.PROTOCOL_ERROR
GET = fields()
METHOD, SCHEME, PATH, AUTHORITY = GET


def test_goaway_with_unknown_code(http2_server: Server) -> None:
    """http2/7/1: GOAWAY with an unknown code: PING is answered, or the connection ends in peace."""
    with connected(http2_server) as client:
        client.send(goaway(0xFF))
        client.assert_alive_or_finished()


def test_rst_stream_with_unknown_code(http2_server: Server) -> None:
    """http2/7/2: RST_STREAM with an unknown code is taken."""
    with connected(http2_server) as client:
        client.send(client.opened(), rst_stream(1, 0xFF))
        client.assert_alive()
        client.send(client.headers(3))
        client.assert_answered(3)


@pytest.mark.parametrize(
    "trailers",
    [
        pytest.param([("x-test", "ok")], id="http2/8.1/1 without END_STREAM"),
        pytest.param([(":method", "POST")], id="http2/8.1.2.1/3 a pseudo-field in trailers"),
    ],
)
def test_second_headers(http2_server: Server, trailers: Fields) -> None:
    """http2/8.1/1, 8.1.2.1/3: HEADERS behind the body without END_STREAM: stream error
    PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.opened(), data(1, end=False), client.headers(1, trailers, end=False))
        client.assert_stream_error(1, PROTOCOL)


def test_pseudo_field_in_last_headers(http2_server: Server) -> None:
    """http2/8.1.2.1/3: a pseudo-field in trailers that end the stream as they must: the same."""
    with connected(http2_server) as client:
        trailers = client.headers(1, [(":method", "POST")])
        client.send(client.opened(), data(1, end=False), trailers)
        client.assert_stream_error(1, PROTOCOL)


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param([*GET, ("X-TEST", "ok")], id="http2/8.1.2/1 a name in upper case"),
        pytest.param([*GET, (":test", "ok")], id="http2/8.1.2.1/1 an unknown pseudo-field"),
        pytest.param([*GET, (":status", "200")], id="http2/8.1.2.1/2 one of responses"),
        pytest.param([("x-test", "ok"), *GET], id="http2/8.1.2.1/4 pseudo-fields behind a field"),
        pytest.param([*GET, ("connection", "keep-alive")], id="http2/8.1.2.2/1 connection"),
        pytest.param(
            [*GET, ("trailers", "test"), ("te", "trailers, deflate")], id="http2/8.1.2.2/2 te"
        ),
        pytest.param([METHOD, SCHEME, (":path", ""), AUTHORITY], id="http2/8.1.2.3/1 empty path"),
        pytest.param([SCHEME, PATH, AUTHORITY], id="http2/8.1.2.3/2 no method"),
        pytest.param([METHOD, PATH, AUTHORITY], id="http2/8.1.2.3/3 no scheme"),
        pytest.param([METHOD, SCHEME, AUTHORITY], id="http2/8.1.2.3/4 no path"),
        pytest.param([*GET, METHOD], id="http2/8.1.2.3/5 two methods"),
        pytest.param([*GET, SCHEME], id="http2/8.1.2.3/6 two schemes"),
        pytest.param([*GET, PATH], id="http2/8.1.2.3/7 two paths"),
    ],
)
def test_malformed_request(http2_server: Server, wanted: Fields) -> None:
    """http2/8.1.2/1, 8.1.2.1/1-2, 8.1.2.1/4, 8.1.2.2/1-2, 8.1.2.3/1-7: stream error
    PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.headers(1, wanted))
        client.assert_stream_error(1, PROTOCOL)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(data(1), id="http2/8.1.2.6/1 one frame"),
        pytest.param(data(1, end=False) + data(1), id="http2/8.1.2.6/2 two frames"),
    ],
)
def test_another_content_length(http2_server: Server, body: bytes) -> None:
    """http2/8.1.2.6/1-2: a body not as long as Content-Length: stream error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        client.send(client.opened(1, ("content-length", "1")), body)
        client.assert_stream_error(1, PROTOCOL)


@pytest.mark.parametrize(
    "opened",
    [
        pytest.param(False, id="http2/8.2/1 on an idle stream"),
        pytest.param(True, id="http2/8.2/1 on an open stream"),
    ],
)
def test_push_promise(http2_server: Server, opened: bool) -> None:
    """http2/8.2/1: PUSH_PROMISE of a client: connection error PROTOCOL_ERROR."""
    with connected(http2_server) as client:
        if opened:
            client.send(client.opened())
        client.send(raw(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\3" + client.block()))
        client.assert_connection_error(PROTOCOL)
