"""The tools themselves: client and nodes talk to each other without a gateway between."""

from __future__ import annotations

import struct
import threading

import pytest
from support.client import Client, Truncated
from support.nodes import Node, RawHttpNode, RawUwsgiNode, closing, held, pieces, response


def _address(node: Node) -> tuple[str, int] | str:
    return ("127.0.0.1", node.port) if node.port else node.address


def _packet(*variables: tuple[bytes, bytes]) -> bytes:
    block = b"".join(
        struct.pack("<H", len(each)) + each for variable in variables for each in variable
    )
    return struct.pack("<BHB", 0, len(block), 0) + block


@pytest.mark.parametrize("where", ["tcp", "unix", "abstract"])
def test_http_node_records_exact_bytes_and_keeps_the_connection(where: str) -> None:
    first = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok"
    second = (
        b"PUT /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n"
    )
    with RawHttpNode(where) as node, Client(_address(node)) as client:
        assert client.ask(first, b"POST").body == b"POST /a 2"
        client.send_bytewise(second)
        assert client.read_response(b"PUT").body == b"PUT /b 3"
        one, two = node.wait_seen(2)
        assert (one.raw, two.raw) == (first, second)
        assert two.body == b"abc"
        assert one.connection == two.connection == 1
        assert one.field(b"content-length") == [b"2"]
        node.check()


def test_uwsgi_node_parses_a_packet_and_closes() -> None:
    packet = _packet(
        (b"REQUEST_METHOD", b"POST"),
        (b"REQUEST_URI", b"/u"),
        (b"CONTENT_LENGTH", b"3"),
        (b"HTTP_X_A", b""),
    )
    with RawUwsgiNode("abstract") as node, Client(_address(node)) as client:
        client.send_bytewise(packet + b"abc")
        assert client.read_response(b"POST").body == b"POST /u 3"
        client.assert_closed()
        seen = node.only()
        assert (seen.raw, seen.body) == (packet + b"abc", b"abc")
        assert seen.field(b"x-a") == [b""]


def test_a_malformed_request_is_a_fault_of_the_gateway() -> None:
    with RawHttpNode() as node, Client(_address(node)) as client:
        client.send(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n")
        client.assert_closed()
        assert node.seen == []
        with pytest.raises(AssertionError, match="malformed field line"):
            node.check()


def test_scripts_and_truncation() -> None:
    gate = threading.Event()
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"
    with RawHttpNode() as node:
        node.play(held(gate, response(b"one")), closing(short), pieces(b"HTTP/1.0 200 x", b"\r\n"))
        with Client(_address(node)) as client:
            client.send(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")
            node.wait_seen(1)
            gate.set()
            assert client.read_response().body == b"one"
            with pytest.raises(Truncated) as caught:
                client.ask(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
            assert caught.value.data == short
        with Client(_address(node)) as client:
            client.send(b"GET /3 HTTP/1.1\r\nHost: h\r\n\r\n")
            assert client.read_to_end() == b"HTTP/1.0 200 x\r\n"


def test_interim_upgrade_and_pipelined_responses_are_told_apart() -> None:
    with RawHttpNode() as node, Client(_address(node)) as client:
        node.play(
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + response(b"a"),
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: p\r\nConnection: upgrade\r\n\r\nTUNNEL",
        )
        client.send(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n" + b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
        reply = client.read_response()
        assert (reply.interim[0][0], reply.body) == (103, b"a")
        assert client.read_response(upgrade=b"p").status == 101
        assert client.read_exactly(6) == b"TUNNEL"
