"""Upgrade and the tunnel behind a 101 (RFC 9110 §7.8), towards both kinds of node."""

from __future__ import annotations

import pytest
from support.nodes import CLOSE, Connection, Script, Seen, response
from support.waiting import wait_until

from wire.conftest import Pair

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def _echo(connection: Connection, seen: Seen) -> str:
    """Switch, greet in the same segment, then echo in upper case until the end."""
    connection.send(SWITCH + b"\x00hi\r\n\r\n")
    while True:
        connection.send(connection.take_some().upper())


@pytest.mark.parametrize("early", [b"", b"early\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_tunnel_carries_everything_both_ways(pair: Pair, early: bytes) -> None:
    pair.node.play(_echo)
    with pair.connect() as client:
        client.send(UPGRADE + early)
        reply = client.read_response(upgrade=b"websocket")
        assert reply.status == 101
        assert reply.get(b"upgrade") == b"websocket"
        assert (reply.get(b"connection") or b"").lower() == b"upgrade"
        assert reply.get(b"sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert client.read_exactly(7) == b"\x00hi\r\n\r\n"
        assert client.read_exactly(len(early)) == early.upper()
        for data in (b"a", bytes(range(256)), b"z" * 300_000):
            client.send(data)
            assert client.read_exactly(len(data)) == data.upper()
    seen = pair.node.only()
    assert seen.field(b"upgrade") == [b"websocket"]
    assert seen.field(b"sec-websocket-key") == [b"dGhlIHNhbXBsZSBub25jZQ=="]
    if pair.kind == "http":
        (connection,) = seen.field(b"connection")
        assert connection.lower() == b"upgrade"


def test_the_nodes_end_is_the_clients_end(pair: Pair) -> None:
    def script(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH + b"bye")
        return CLOSE

    pair.node.play(script)
    with pair.connect() as client:
        client.send(UPGRADE)
        assert client.read_response(upgrade=b"websocket").status == 101
        assert client.read_to_end() == b"bye"


def test_the_clients_end_is_the_nodes_end(pair: Pair) -> None:
    got: list[bytes] = []

    def script(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        got.append(connection.take_to_end())
        return CLOSE

    pair.node.play(script)
    with pair.connect() as client:
        client.send(UPGRADE)
        assert client.read_response(upgrade=b"websocket").status == 101
        client.send(b"last words")
    wait_until(lambda: got, "the node to see the end")
    assert got == [b"last words"]


def test_the_client_may_close_its_half_first(pair: Pair) -> None:
    def script(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        connection.send(connection.take_to_end()[::-1])
        return CLOSE

    pair.node.play(script)
    with pair.connect() as client:
        client.send(UPGRADE)
        assert client.read_response(upgrade=b"websocket").status == 101
        client.send(b"abc")
        client.half_close()
        assert client.read_to_end() == b"cba"


def test_a_tunnels_node_connection_is_never_used_again(http_pair: Pair) -> None:
    http_pair.node.play(_echo)
    with http_pair.connect() as client:
        client.send(UPGRADE)
        client.read_response(upgrade=b"websocket")
    used = http_pair.node.only().connection
    http_pair.node.reset()
    http_pair.sentinel()
    assert http_pair.node.only().connection != used


@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden", b"426 Upgrade Required"])
def test_a_declined_upgrade_is_an_ordinary_response(pair: Pair, status: bytes) -> None:
    pair.node.play(response(b"no", status=status))
    with pair.connect() as client:
        client.send(UPGRADE)
        reply = client.read_response()
        assert (reply.status, reply.body) == (int(status[:3]), b"no")
        if reply.closes:
            client.assert_closed()
        else:
            client.assert_open()


def test_what_follows_a_declined_upgrade_is_a_request(pair: Pair) -> None:
    pair.node.play(response(b"no"))
    with pair.connect() as client:
        client.send(UPGRADE + b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        reply = client.read_response()
        assert reply.body == b"no"
        if not reply.closes:
            assert client.read_response().body == b"GET /next 0"


@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
        UPGRADE.replace(b"Connection: keep-alive, Upgrade\r\n", b""),
        UPGRADE.replace(b"Upgrade: websocket\r\n", b""),
        UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),  # RFC 9110 §7.8: MUST ignore
    ],
)
def test_half_an_upgrade_is_none(pair: Pair, request_: bytes) -> None:
    pair.node.play(SWITCH)
    with pair.connect() as client:
        client.send(request_)
        assert client.read_response().status == 502
    seen = pair.node.only()
    assert seen.field(b"upgrade") == []
    assert b"upgrade" not in b",".join(seen.field(b"connection")).lower()


def _sending(raw: bytes) -> Script:
    def script(connection: Connection, seen: Seen) -> str:
        connection.send(raw)
        connection.drain()
        return CLOSE

    return script


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
        SWITCH.replace(b"websocket", b"evil"),
    ],
)
def test_a_switch_to_what_was_not_offered(pair: Pair, raw: bytes) -> None:
    # RFC 9110 §7.8: a server MUST NOT switch to a protocol the client did not name.
    pair.node.play(_sending(raw))
    with pair.connect() as client:
        client.send(UPGRADE)
        assert client.read_response(upgrade=b"websocket").status == 502


def test_an_interim_response_before_the_switch(pair: Pair) -> None:
    def script(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        return _echo(connection, seen)

    pair.node.play(script)
    with pair.connect() as client:
        client.send(UPGRADE)
        reply = client.read_response(upgrade=b"websocket")
        assert [status for status, _ in reply.interim] == [103, 101]


def test_a_body_before_the_switch_is_the_requests(pair: Pair) -> None:
    pair.node.play(_echo)
    head = UPGRADE.replace(b"GET", b"POST")[:-2] + b"Content-Length: 4\r\n\r\n"
    with pair.connect() as client:
        client.send(head + b"bodytunnel")
        assert client.read_response(b"POST", upgrade=b"websocket").status == 101
        assert client.read_exactly(7 + 6) == b"\x00hi\r\n\r\nTUNNEL"
    assert pair.node.only().body == b"body"
