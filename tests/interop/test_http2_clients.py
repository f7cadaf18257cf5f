"""HTTP/2 of httpx, and of gRPC's own client: calls end with trailers."""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from support.certificates import Authority
from support.nodes import Connection, RawHttpNode, Seen
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

from interop.peers import Peer, accepts


def test_httpx(uwsgi_app: Peer, tmp_path: Path) -> None:
    """Many at once, uploads between them, over TLS that is verified."""
    authority, port = Authority(tmp_path), free_port()
    pair = authority.issue("localhost")
    secure = f"127.0.0.1:{port},{pair.cert},{pair.key}"
    body = bytes(range(256)) * 1000

    async def talk() -> None:
        context = ssl.create_default_context(cafile=authority.file)
        base = f"https://localhost:{port}"
        async with httpx.AsyncClient(http2=True, verify=context, base_url=base) as client:
            asked = [client.get(f"/env?number={number}") for number in range(60)]
            sent = [client.post("/echo", content=body) for _ in range(10)]
            found = await asyncio.gather(*asked, *sent)
        assert {(each.status_code, each.http_version) for each in found} == {(200, "HTTP/2")}
        assert [each.json()["QUERY_STRING"] for each in found[:60]] == [
            f"number={number}" for number in range(60)
        ]
        assert all(each.content == body for each in found[60:])

    with running("--http-to", uwsgi_app.address, "--https", secure):
        wait_until(lambda: accepts(f"127.0.0.1:{port}"), "the listener")
        asyncio.run(talk())


# --- gRPC -------------------------------------------------------------------------------------

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n"
    b"Trailer: grpc-status, grpc-message\r\n\r\n"
)


def messages(body: bytes) -> Iterator[bytes]:
    """Of a body of gRPC: a byte of flags, four of length, the message."""
    while body:
        (size,) = struct.unpack_from(">xL", body)
        yield body[5 : 5 + size]
        body = body[5 + size :]


def called(connection: Connection, seen: Seen) -> None:
    """Echo every message, or fail, as the path says."""
    connection.send(HEAD)
    for message in messages(seen.body):
        framed = struct.pack(">xL", len(message)) + message
        connection.send(b"%x\r\n%b\r\n" % (len(framed), framed))
    if seen.target == b"/test.Echo/Fail":
        connection.send(b"0\r\ngrpc-status: 5\r\ngrpc-message: not here\r\n\r\n")
    else:
        connection.send(b"0\r\ngrpc-status: 0\r\n\r\n")


@pytest.fixture
def echo() -> Iterator[tuple[RawHttpNode, Gateway, grpc.Channel]]:
    """A node that speaks HTTP/1.1 and answers as services of gRPC do."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = called
        with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            yield node, gateway, channel


def test_calls(echo: tuple[RawHttpNode, Gateway, grpc.Channel]) -> None:
    node, _, channel = echo
    call = channel.unary_unary("/test.Echo/Say")
    for size in (0, 5, 100_000):
        assert call(bytes(size), timeout=10) == bytes(size)
    at_once = [call.future(b"%d" % number, timeout=20) for number in range(60)]
    assert [each.result() for each in at_once] == [b"%d" % number for number in range(60)]
    node.check()


def test_streams_of_messages(echo: tuple[RawHttpNode, Gateway, grpc.Channel]) -> None:
    _, _, channel = echo
    call = channel.stream_stream("/test.Echo/Say")
    sent = [b"%d" % number * 1000 for number in range(50)]
    assert list(call(iter(sent), timeout=10)) == sent


def test_messages_both_ways_by_turns() -> None:
    """Each is answered before the next is sent: nothing waits for the end of a body."""

    def by_turns(connection: Connection, seen: Seen) -> None:
        raise AssertionError("this request has no end before its answer")

    class Node(RawHttpNode):
        def serve(self, connection: Connection) -> None:
            connection.take_until(b"\r\n\r\n")
            connection.send(HEAD)
            while size := int(connection.take_until(b"\r\n").strip() or b"0", 16):
                framed = connection.take(size)
                connection.take(2)
                connection.send(b"%x\r\n%b\r\n" % (len(framed), framed))
            connection.send(b"0\r\ngrpc-status: 0\r\n\r\n")

    with Node() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = by_turns
        with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            heard, more = threading.Semaphore(1), iter(range(5))

            def sent() -> Iterator[bytes]:
                for number in more:
                    assert heard.acquire(timeout=10)
                    yield b"message %d" % number

            found = []
            for answer in channel.stream_stream("/test.Echo/Say")(sent(), timeout=20):
                found.append(answer)
                heard.release()
            assert found == [b"message %d" % number for number in range(5)]


def test_a_call_that_fails(echo: tuple[RawHttpNode, Gateway, grpc.Channel]) -> None:
    _, _, channel = echo
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Echo/Fail")(b"x", timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "not here"
