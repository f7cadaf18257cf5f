"""h2spec's list, generic: what every server of HTTP/2 must take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from h2.errors import ErrorCodes
from hyperframe import frame as frames
from support import http2_fixture
from support.http2_raw import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PREFACE,
    WITH_PRIORITY,
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

BARE = b"\x82\x86\x84\x01\x09localhost"
"""GET / of the static table alone: the dynamic one stays empty."""

WHOLE = END_STREAM | END_HEADERS


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case) for case in ("generic/1/1", "http2/3.5/1")]
)
def test_client_preface(http2_server: Server, case: str) -> None:
    """generic/1/1, http2/3.5/1: the first frame of the server is SETTINGS without ACK."""
    with RawHttp2(http2_server) as client:
        client.send(PREFACE, settings((4, 65535)))
        first = client.wait(lambda frame: True, "the first frame")
        assert isinstance(first, frames.SettingsFrame)
        assert "ACK" not in first.flags
        client.acknowledged()
        client.assert_alive()


def test_priority_on_idle_stream(http2_server: Server) -> None:
    """generic/2/1: PRIORITY on an idle stream is taken."""
    with connected(http2_server) as client:
        client.send(priority(1))
        client.assert_alive()


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"", id="generic/2/2 WINDOW_UPDATE"),
        pytest.param(priority(1), id="generic/2/3 PRIORITY"),
    ],
)
def test_frames_on_half_closed_stream(http2_server: Server, before: bytes) -> None:
    """generic/2/2-3: WINDOW_UPDATE and PRIORITY on a half-closed (remote) stream are taken."""
    with connected(http2_server, {4: 0}) as client:
        client.send(client.headers(1, fields("GET", "/large")))
        client.assert_window_kept(1, 0)
        client.send(before, window_update(1, 1))
        client.assert_window_kept(1, 1)


def test_rst_stream_on_half_closed_stream(http2_server: Server) -> None:
    """generic/2/4: RST_STREAM on a half-closed (remote) stream is taken."""
    with connected(http2_server) as client:
        client.send(client.headers(), rst_stream(1))
        client.assert_alive()
        client.send(client.headers(3))
        client.assert_answered(3)


def test_priority_on_closed_stream(http2_server: Server) -> None:
    """generic/2/5: PRIORITY on a closed stream is taken."""
    with connected(http2_server) as client:
        client.send(client.headers())
        client.finished()
        client.send(priority(1))
        client.assert_alive()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(data(1), id="generic/3.1/1 one frame"),
        pytest.param(data(1, end=False) + data(1), id="generic/3.1/2 two frames"),
        pytest.param(
            raw(0, END_STREAM | PADDED, 1, b"\x05test" + bytes(5)), id="generic/3.1/3 padding"
        ),
    ],
)
def test_data(http2_server: Server, body: bytes) -> None:
    """generic/3.1/1-3: DATA is taken, several too, with padding too."""
    with connected(http2_server) as client:
        client.send(client.opened(), body)
        client.assert_answered()


@pytest.mark.parametrize(
    ("flags", "head", "tail"),
    [
        pytest.param(WHOLE, b"", b"", id="generic/3.2/1 plain"),
        pytest.param(WHOLE | PADDED, b"\x08", bytes(8), id="generic/3.2/2 padding"),
        pytest.param(WHOLE | WITH_PRIORITY, b"\0\0\0\0\xff", b"", id="generic/3.2/3 priority"),
    ],
)
def test_headers(http2_server: Server, flags: int, head: bytes, tail: bytes) -> None:
    """generic/3.2/1-3: HEADERS is taken, with padding and with a priority too."""
    with connected(http2_server) as client:
        client.send(raw(HEADERS, flags, 1, head + client.block() + tail))
        client.assert_answered()


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(priority(1, weight=0), id="generic/3.3/1 weight 1"),
        pytest.param(priority(1, weight=255), id="generic/3.3/2 weight 256"),
        pytest.param(priority(3, on=1, weight=0), id="generic/3.3/3 a dependency"),
        pytest.param(priority(1, weight=0, exclusive=True), id="generic/3.3/4 exclusive"),
        pytest.param(priority(3), id="generic/3.3/5 of a later stream"),
    ],
)
def test_priority(http2_server: Server, before: bytes) -> None:
    """generic/3.3/1-5: PRIORITY before a request is taken."""
    with connected(http2_server) as client:
        client.send(before, client.headers())
        client.assert_answered()


def test_rst_stream(http2_server: Server) -> None:
    """generic/3.4/1: RST_STREAM of an open stream is taken."""
    with connected(http2_server) as client:
        client.send(client.opened(), rst_stream(1))
        client.assert_alive()
        client.send(client.headers(3))
        client.assert_answered(3)


def test_settings(http2_server: Server) -> None:
    """generic/3.5/1: SETTINGS with every parameter is acknowledged."""
    with connected(http2_server) as client:
        client.send(settings((1, 4096), (2, 1), (3, 100), (4, 65535), (5, 16384), (6, 100)))
        client.acknowledged()
        client.assert_alive()


def test_ping(http2_server: Server) -> None:
    """generic/3.7/1: PING is answered with the same bytes."""
    with connected(http2_server) as client:
        client.send(raw(6, 0, 0, b"h2spec\0\0"))
        client.assert_pong(b"h2spec\0\0")


def test_goaway(http2_server: Server) -> None:
    """generic/3.8/1: GOAWAY is taken: PING is answered, or the connection ends in peace."""
    with connected(http2_server) as client:
        client.send(goaway(ErrorCodes.NO_ERROR, b"h2spec"))
        client.assert_alive_or_finished()


def test_window_update_of_the_connection(http2_server: Server) -> None:
    """generic/3.9/1: WINDOW_UPDATE on stream 0 is taken."""
    with connected(http2_server) as client:
        client.send(window_update(0, 1))
        client.assert_alive()


def test_window_update_of_a_stream(http2_server: Server) -> None:
    """generic/3.9/2: WINDOW_UPDATE on a stream is taken."""
    with connected(http2_server) as client:
        client.send(client.headers(), window_update(1, 1))
        client.assert_answered()


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param((5,), id="generic/3.10/1 one"),
        pytest.param((5, 10), id="generic/3.10/2 two"),
    ],
)
def test_continuation(http2_server: Server, cuts: tuple[int, ...]) -> None:
    """generic/3.10/1-2: CONTINUATION is taken, several too."""
    with connected(http2_server) as client:
        block = client.block(fields("GET", "/", ("x-test", "h2spec")))
        parts = [block[at:to] for at, to in zip((0, *cuts), (*cuts, len(block)), strict=True)]
        client.send(raw(HEADERS, END_STREAM, 1, parts[0]))
        for number, part in enumerate(parts[1:], 1):
            client.send(continuation(1, part, end=number == len(cuts)))
        client.assert_answered()


def _get(client: RawHttp2) -> bytes:
    return client.headers()


def _head(client: RawHttp2) -> bytes:
    return client.headers(1, fields("HEAD"))


def _post(client: RawHttp2) -> bytes:
    return client.opened() + data(1)


def _trailers(client: RawHttp2) -> bytes:
    opened = client.opened(1, ("trailer", "x-test"))
    return opened + data(1, end=False) + client.headers(1, [("x-test", "ok")])


@pytest.mark.parametrize(
    ("send", "size"),
    [
        pytest.param(_get, True, id="generic/4/1 GET"),
        pytest.param(_head, False, id="generic/4/2 HEAD"),
        pytest.param(_post, True, id="generic/4/3 POST"),
        pytest.param(_trailers, True, id="generic/4/4 POST with trailers"),
    ],
)
def test_request(http2_server: Server, send: Callable[[RawHttp2], bytes], size: bool) -> None:
    """generic/4/1-4: GET, HEAD, POST, POST with trailers are answered; HEAD without a body."""
    with connected(http2_server) as client:
        client.send(send(client))
        answer = client.assert_answered()
        assert bool(answer.size) == size


def test_indexed_field(http2_server: Server) -> None:
    """generic/5/1: an indexed field is taken."""
    with connected(http2_server) as client:
        client.send(raw(HEADERS, WHOLE, 1, BARE + b"\xba"))
        client.assert_answered()


PLAIN_VALUE, HUFFMAN_VALUE = b"\x06h2spec", b"\x84\x9c\x48\xac\xa4"
PLAIN_NAME, HUFFMAN_NAME = b"\x06x-test", b"\x85\xf2\xb2\x4a\x84\xff"
STRINGS = [
    ("indexed name", b"", PLAIN_VALUE),
    ("indexed name, Huffman", b"", HUFFMAN_VALUE),
    ("new name", PLAIN_NAME, PLAIN_VALUE),
    ("new name, Huffman", HUFFMAN_NAME, HUFFMAN_VALUE),
]


def _literals(first: int, new: bytes, indexed: bytes) -> list[object]:
    """The four of a kind, from that number on; ``indexed``: user-agent, 58 of the static table."""
    return [
        pytest.param((new + name if name else indexed) + value, id=f"generic/5/{first + at} {what}")
        for at, (what, name, value) in enumerate(STRINGS)
    ]


@pytest.mark.parametrize("literal", _literals(2, b"\x40", b"\x7a"))
def test_literal_with_indexing(http2_server: Server, literal: bytes) -> None:
    """generic/5/2-5: a literal field with incremental indexing is taken, and is in the table."""
    with connected(http2_server) as client:
        client.send(raw(HEADERS, WHOLE, 1, BARE + literal))
        client.assert_answered()
        client.send(raw(HEADERS, WHOLE, 3, BARE + b"\xbe"))
        client.assert_answered(3)


@pytest.mark.parametrize(
    "literal",
    [*_literals(6, b"\x00", b"\x0f\x2b"), *_literals(10, b"\x10", b"\x1f\x2b")],
)
def test_literal_without_indexing(http2_server: Server, literal: bytes) -> None:
    """generic/5/6-9 without indexing, 10-13 never indexed: taken, and not put into the table."""
    with connected(http2_server) as client:
        client.send(raw(HEADERS, WHOLE, 1, BARE + literal))
        client.assert_answered()
        client.send(raw(HEADERS, WHOLE, 3, BARE + b"\xbe"))
        client.assert_connection_error(ErrorCodes.COMPRESSION_ERROR)


@pytest.mark.parametrize(
    "update",
    [
        pytest.param(b"\x3f\x61", id="generic/5/14 one"),
        pytest.param(b"\x3f\x61\x3f\xe1\x1f", id="generic/5/15 two"),
    ],
)
def test_table_size_update(http2_server: Server, update: bytes) -> None:
    """generic/5/14-15: updates of the dynamic table's size at the start of a block are taken."""
    with connected(http2_server) as client:
        client.send(raw(HEADERS, WHOLE, 1, update + client.block()))
        client.assert_answered()
        client.send(client.headers(3))
        client.assert_answered(3)
