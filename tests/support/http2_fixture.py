"""Where the tests of h2spec's list find their server.

A server that speaks HTTP/2 in clear text with prior knowledge, answers ``/`` with 200 and a few
bytes whatever the method, and ``/large`` with 200 and at least 200 KB. The environment variable
UWGATE_TEST_HTTP2=HOST:PORT names another one than ours (nghttpd passes all but http2/5.1.1/2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.nodes import Connection, RawHttpNode, Seen, default_answer, response
from support.uwgate import running

VARIABLE = "UWGATE_TEST_HTTP2"

Server = tuple[str, int]


def _pages(connection: Connection, seen: Seen) -> None:
    if seen.target == b"/large":
        connection.send(response(bytes(204_800)))
    else:
        default_answer(connection, seen)


@pytest.fixture(scope="module")
def http2_server() -> Iterator[Server]:
    """(host, port)."""
    host, _, port = os.environ.get(VARIABLE, "").rpartition(":")
    if host:
        yield host, int(port)
        return
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = _pages
        assert not isinstance(gateway.address, str)
        yield gateway.address
