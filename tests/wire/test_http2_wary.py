"""Requests that nobody waits for: streams that are given up, windows that stay shut."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable

import pytest
from h2.errors import ErrorCodes
from hyperframe import frame as frames
from support.http2_raw import (
    WINDOW,
    RawHttp2,
    at,
    data,
    fields,
    rst_stream,
    window_update,
)
from support.nodes import Connection, RawHttpNode, Seen, held, response
from support.served import worker_of
from support.uwgate import running
from support.waiting import DEADLINE, wait_until

CALM = 8  # streams that may be given up before the connection is looked at with other eyes
MANY = 100
SIZE = 8_000_000  # bytes that no kernel takes


def given_up(client: RawHttp2, stream: int, path: str) -> bytes:
    """A request, and that it is not wanted (CVE-2023-44487)."""
    return _headers(client, stream, path, end=True) + rst_stream(stream)


def made_to(client: RawHttp2, stream: int, path: str) -> bytes:
    """A request, and a frame that has us give it up (CVE-2025-8671)."""
    return _headers(client, stream, path, end=False) + window_update(stream, 0)


def _headers(client: RawHttp2, stream: int, path: str, *, end: bool) -> bytes:
    return client.headers(stream, fields("GET" if end else "POST", path), end=end)


def count(node: RawHttpNode, path: bytes) -> int:
    """Requests for that path at the node."""
    return sum(seen.target == path for seen in node.seen)


def heads(client: RawHttp2, streams: Iterable[int]) -> None:
    """Their responses have begun."""
    limit = time.monotonic() + DEADLINE
    while not all(client.answer(stream).fields for stream in streams):
        assert client.receive(limit) is not None, client.story()


@pytest.mark.parametrize("pair", [given_up, made_to])
def test_who_gives_up_much_begins_behind_what_came_with_it(
    pair: Callable[[RawHttp2, int, str], bytes],
) -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        streams = iter(range(1, 1000, 2))
        for _ in range(CALM + 1):
            client.send(pair(client, next(streams), "/first"))
        client.assert_read()
        gate = threading.Event()
        node.otherwise = held(gate, response())
        pooled = [next(streams) for _ in range(20)]
        client.send(*(_headers(client, stream, "/pooled", end=True) for stream in pooled))
        wait_until(lambda: count(node, b"/pooled") == len(pooled), "connections in use")
        gate.set()
        for stream in pooled:
            client.assert_answered(stream)
        client.send(*(pair(client, next(streams), "/gone") for _ in range(MANY)))
        # An honest request is served all the same.
        last = next(streams)
        client.send(_headers(client, last, "/kept", end=True))
        client.assert_answered(last)
        assert count(node, b"/kept") == 1
        # A turn of the loop may end between the two frames: of a few in a hundred.
        assert count(node, b"/gone") <= 5
        assert node.open_connections() >= len(pooled) - 5


@pytest.mark.parametrize("wary", [False, True])
def test_four_at_a_time_of_those_that_cannot_be_taken(wary: bool) -> None:
    """Those that were begun and given up make room for as many, not for all."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = answer
        with at(gateway, {WINDOW: 0}) as client:
            streams = iter(range(1, 1000, 2))
            for _ in range(CALM + 1 if wary else 0):
                client.send(given_up(client, next(streams), "/first"))
            client.assert_read()
            late = [next(streams) for _ in range(MANY // 2)]
            client.send(*(client.headers(stream, fields("GET", "/late")) for stream in late))
            for number in range(4, 13, 4):
                wait_until(lambda: count(node, b"/late") == number, "four")  # noqa: B023
                heads(client, late[:number])
                client.assert_read()
                assert count(node, b"/late") == number
                client.send(*(rst_stream(each) for each in late[number - 4 : number]))


@pytest.mark.parametrize("entries", [{WINDOW: 0}, {}], ids=["streams", "connection"])
def test_nothing_is_begun_for_who_can_take_nothing_any_more(entries: dict[int, int]) -> None:
    """The client has closed its side: no window will open. (Each that ended let another one
    begin.)"""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = answer
        with at(gateway, entries) as client:
            client.send(*(client.headers(2 * n + 1, fields("GET", "/")) for n in range(MANY)))
            # Of whichever: with enough of the others here, its node would not be read.
            client.wait(lambda frame: isinstance(frame, frames.HeadersFrame), "the first head")
            client.sock.shutdown(socket.SHUT_WR)
            client.rest()
        wait_until(lambda: node.open_connections() == 0, "the nodes are let go")
        # Those that are being answered do not count as long as the window is open: a few more.
        assert len(node.seen) <= (4 if entries else 40)


def test_what_was_not_begun_may_be_sent_again() -> None:
    """What was is answered if that needs no window."""
    gate = threading.Event()
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = held(gate, response(b"", status=b"204 Gone", length=False))
        with at(gateway, {WINDOW: 0}) as client:
            streams = range(1, 21, 2)
            client.send(*(client.headers(stream, fields("DELETE", "/")) for stream in streams))
            node.wait_seen(4)
            client.sock.shutdown(socket.SHUT_WR)
            client.wait(lambda frame: client.answers.get(19), "the refusal of the last")
            gate.set()
            for stream in streams[:4]:
                assert client.finished(stream).status == 204
            for stream in streams[4:]:
                assert client.answers[stream].reset == ErrorCodes.REFUSED_STREAM
        assert len(node.seen) == 4


def test_they_are_refused_beside_those_that_cannot_go_on() -> None:
    """Nothing of the connection is left then but to say so."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = answer
        with at(gateway, {WINDOW: 0}) as client:
            streams = range(1, 21, 2)
            client.send(*(client.headers(stream, fields("DELETE", "/")) for stream in streams))
            heads(client, streams[:4])
            client.sock.shutdown(socket.SHUT_WR)
            client.to_the_end()
            for stream in streams[4:]:
                assert client.answers[stream].reset == ErrorCodes.REFUSED_STREAM


def test_a_response_in_the_turn_of_the_end_of_its_client() -> None:
    gate, sent = threading.Event(), threading.Event()

    def late(connection: Connection, seen: Seen) -> None:
        assert gate.wait(10)
        connection.send(response(b"hello", b"Date: Sat, 28 Nov 2026 00:00:00 GMT"))
        sent.set()

    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        worker = worker_of(gateway)
        node.otherwise = late
        with at(gateway) as client:
            client.send(client.headers(1))
            node.wait_seen()
            os.kill(worker, signal.SIGSTOP)
            gate.set()
            assert sent.wait(10)
            client.sock.shutdown(socket.SHUT_WR)
            os.kill(worker, signal.SIGCONT)
            assert client.finished(1).status == 200


def test_compressed_responses_count_as_others_do() -> None:
    """What the client has taken is not what the node has sent."""
    body = b"".join(b"%d," % number for number in range(1_000_000))

    def compressible(connection: Connection, seen: Seen) -> None:
        with contextlib.suppress(OSError):
            connection.send(response(body, b"uWSGI-Encoding: gzip"))

    with RawHttpNode() as node, running("--http-to", node.spec, "--http-auto-gzip") as gateway:
        node.otherwise = compressible
        gzip = fields("GET", "/", ("accept-encoding", "gzip"))
        with at(gateway, {WINDOW: 0}) as client:
            client.send(*(client.headers(stream, gzip) for stream in range(1, 40, 2)))
            heads(client, range(1, 8, 2))
            client.assert_read()
            assert len(node.seen) == 4


def test_who_asks_back_at_each_small_answer_goes_on() -> None:
    """The same for calls, whose one message comes with the trailers."""
    lines = b"Transfer-Encoding: chunked\r\nTrailer: grpc-status"
    call = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n" % lines
    option = "--http2-max-frames=100"
    with RawHttpNode() as node, running("--http-to", node.spec, option) as gateway:
        node.otherwise = call
        with at(gateway) as client:
            for stream in range(1, 300, 2):
                client.send(client.headers(stream, fields("POST", "/"), end=False), data(stream))
                client.finished(stream)
                client.send(window_update(0, 5))
                client.assert_read()


def test_who_asks_back_at_each_small_frame_goes_on() -> None:
    """As clients of gRPC do that measure their line: WINDOW_UPDATE and PING for each message."""
    enough = threading.Event()

    def messages(connection: Connection, seen: Seen) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not enough.wait(0.001):
            connection.send(b"5\r\nhello\r\n")
        connection.send(b"0\r\n\r\n")

    option = "--http2-max-frames=100"
    with RawHttpNode() as node, running("--http-to", node.spec, option) as gateway:
        node.otherwise = messages
        with at(gateway) as client:
            client.send(client.headers(1))
            for _ in range(300):
                frame = client.wait(lambda frame: isinstance(frame, frames.DataFrame), "a message")
                client.assert_read()
                client.send(window_update(0, len(frame.data)), window_update(1, len(frame.data)))
            enough.set()
            client.assert_answered(1)


def answer(connection: Connection, seen: Seen) -> None:
    """More than is taken in of a response that nobody reads."""
    with contextlib.suppress(OSError):
        connection.send(response(bytes(SIZE)))
