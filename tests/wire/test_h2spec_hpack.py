"""h2spec's list, hpack: header blocks that cannot be decoded."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from support import http2_fixture
from support.http2_raw import END_HEADERS, END_STREAM, HEADER_TABLE_SIZE, HEADERS, connected, raw

Server = http2_fixture.Server
http2_server = http2_fixture.http2_server

WHOLE = END_STREAM | END_HEADERS
NAME = b"\x00\x85\xf2\xb2\x4a\x84\xff"
"""A literal field without indexing: x-test, then the value."""


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"\xc6", id="hpack/2.3.3/1 an indexed field beyond the table"),
        pytest.param(b"\x7f\x07\x00", id="hpack/2.3.3/2 a literal's name beyond the table"),
        pytest.param(b"\x21", id="hpack/4.2/1 a size update at the end of a block"),
        pytest.param(NAME + b"\x84\x49\x50\x9f\xff", id="hpack/5.2/1 padding of more than 7 bits"),
        pytest.param(NAME + b"\x83\x49\x50\x90", id="hpack/5.2/2 padding with zeros"),
        pytest.param(NAME + b"\x87\x49\x51\xff\xff\xff\xfa\x7f", id="hpack/5.2/3 EOS in a string"),
        pytest.param(b"\x80", id="hpack/6.1/1 index 0"),
    ],
)
def test_undecodable_block(http2_server: Server, tail: bytes) -> None:
    """hpack/2.3.3/1-2, 4.2/1, 5.2/1-3, 6.1/1: connection error COMPRESSION_ERROR."""
    with connected(http2_server) as client:
        client.send(raw(HEADERS, WHOLE, 1, client.block() + tail))
        client.assert_connection_error(ErrorCodes.COMPRESSION_ERROR)


def test_table_size_update_above_the_limit(http2_server: Server) -> None:
    """hpack/6.3/1: a size above SETTINGS_HEADER_TABLE_SIZE: connection error COMPRESSION_ERROR."""
    with connected(http2_server) as client:
        rest = client.settings.get(HEADER_TABLE_SIZE, 4096) + 1 - 31
        assert rest >= 0
        update = b"\x3f"
        while rest >= 128:
            update += bytes([rest & 127 | 128])
            rest >>= 7
        client.send(raw(HEADERS, WHOLE, 1, update + bytes([rest]) + client.block()))
        client.assert_connection_error(ErrorCodes.COMPRESSION_ERROR)
