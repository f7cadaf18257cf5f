"""However the frames of streams are mixed and cut, each stream is the exchange it is alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.http2_client import Http2Client, Response
from support.nodes import NODES, Connection, Node, Seen, SeenHttp, response
from support.uwgate import Gateway, running

TRAILER = (b"x-trailer", b"late")


@dataclass(frozen=True)
class Asked:
    """A request. ``pieces``: of its body, a DATA frame each; None: none at all. ``counted``: with
    Content-Length. ``padding``: of each DATA."""

    pieces: list[bytes] | None
    counted: bool
    trailer: bool
    padding: int | None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces or [])


requests = st.builds(
    Asked,
    pieces=st.none() | st.lists(st.binary(max_size=300), max_size=4),
    counted=st.booleans(),
    trailer=st.booleans(),
    padding=st.none() | st.integers(0, 40),
)


def _echo(connection: Connection, seen: Seen) -> None:
    connection.send(response(seen.body, b"X-Asked: " + seen.target, b"X-Method: " + seen.method))


@pytest.fixture(scope="module", params=["http", "uwsgi"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Gateway, Node]]:
    with NODES[request.param]() as node, running("--http-to", node.spec) as gateway:
        yield gateway, node


def _steps(client: Http2Client, stream: int, asked: Asked) -> Iterator[None]:
    """Each step puts one frame of the request into what ``client.h2`` sends."""
    extra = [(b"x-number", b"%d" % stream)]
    method = b"GET" if asked.pieces is None else b"POST"
    if asked.counted and asked.pieces is not None:
        extra.append((b"content-length", b"%d" % len(asked.body)))
    fields = client.fields(method, b"/%d" % stream, *extra)
    client.h2.send_headers(stream, fields, end_stream=asked.pieces is None)
    yield
    if asked.pieces is None:
        return
    for piece in asked.pieces:
        client.h2.send_data(stream, piece, pad_length=asked.padding)
        yield
    if asked.trailer:
        client.h2.send_headers(stream, [TRAILER], end_stream=True)
    else:
        client.h2.end_stream(stream)
    yield


def _mixed(client: Http2Client, asked: list[Asked], turns: list[int]) -> bytes:
    """All frames, in the order of ``turns`` and then one stream after the other."""
    left = [_steps(client, 2 * place + 1, each) for place, each in enumerate(asked)]
    # A stream may not be opened before those with lower numbers.
    for each in left:
        next(each)
    for turn in turns:
        next(left[turn % len(left)], None)
    for each in left:
        list(each)
    data: bytes = client.h2.data_to_send()
    return data


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(requests, min_size=2, max_size=4),
    turns=st.lists(st.integers(0, 3), max_size=12),
    cuts=st.lists(st.integers(1, 400), max_size=6),
)
def test_any_order(
    site: tuple[Gateway, Node], asked: list[Asked], turns: list[int], cuts: list[int]
) -> None:
    gateway, node = site
    node.reset()
    node.otherwise = _echo
    with Http2Client(gateway.address) as client:
        for place in range(len(asked)):
            client.responses[2 * place + 1] = Response()
        data = _mixed(client, asked, turns)
        for cut in cuts:
            client.sock.sendall(data[:cut])
            data = data[cut:]
        client.sock.sendall(data)
        for place, each in enumerate(asked):
            stream = 2 * place + 1
            found = client.response(stream)
            assert (found.status, found.body) == (200, each.body)
            assert found.value(b"x-asked") == b"/%d" % stream
    seen = {request.target: request for request in node.seen}
    assert len(node.seen) == len(seen) == len(asked)
    for place, each in enumerate(asked):
        request = seen[b"/%d" % (2 * place + 1)]
        assert request.body == each.body
        assert request.field(b"x-number") == [b"%d" % (2 * place + 1)]
        if isinstance(request, SeenHttp):
            trailer = each.pieces is not None and each.trailer and not each.counted
            assert request.trailers == ([TRAILER] if trailer else [])
    node.check()
