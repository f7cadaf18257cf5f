"""Much at once: requests wait for others, frames for the next turn, nodes for windows."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from h2.errors import ErrorCodes
from hyperframe import frame as frames
from support.http2_client import Http2Client
from support.http2_raw import (
    PING,
    WINDOW,
    RawHttp2,
    at,
    data,
    fields,
    raw,
    rst_stream,
    settings,
    window_update,
)
from support.nodes import Connection, RawHttpNode, Seen, held, response, silent
from support.served import processor, worker_of
from support.uwgate import Gateway, running
from support.waiting import wait_until

UPGRADE = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"),
           (":path", "/"), (":authority", "localhost")]  # fmt: skip
PART = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"
SWITCH = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@contextmanager
def two_at_a_time(*options: str, most: int = 2) -> Iterator[tuple[RawHttpNode, Gateway]]:
    """A gateway that lets two requests of a connection wait for nodes."""
    words = ("--http2-node-requests", str(most), *options)
    with RawHttpNode() as node, running("--http-to", node.spec, *words) as gateway:
        yield node, gateway


def asked(node: RawHttpNode) -> list[bytes]:
    """Paths that the node has seen, as they came."""
    return [seen.target for seen in node.seen]


# --- requests ---------------------------------------------------------------------------------


def test_others_wait_for_the_first() -> None:
    gate = threading.Event()
    with two_at_a_time() as (node, gateway), Http2Client(gateway.address) as client:
        node.otherwise = held(gate, response(b"late"))
        streams = [client.begin() for _ in range(10)]
        node.wait_seen(2)
        client.h2.ping(b"12345678")
        client.flush()
        client.until(lambda: client.pongs)
        assert len(node.seen) == node.accepted == 2
        gate.set()
        assert [client.response(stream).body for stream in streams] == [b"late"] * 10
        assert len(node.seen) == 10
        assert node.accepted == 2
        node.check()


def test_the_most_urgent_is_next() -> None:
    gate = threading.Event()
    with two_at_a_time(most=1) as (node, gateway), at(gateway) as client:
        node.play(held(gate, response()))
        for number, urgency in enumerate((3, 3, 5, 7, 1, 3)):
            wanted = fields("GET", f"/{number}", ("priority", f"u={urgency}"))
            client.send(client.headers(2 * number + 1, wanted))
        node.wait_seen()
        client.assert_read()
        gate.set()
        for stream in range(1, 12, 2):
            client.assert_answered(stream)
        assert asked(node) == [b"/0", b"/4", b"/1", b"/5", b"/2", b"/3"]


def test_bodies_and_trailers_of_those_that_wait() -> None:
    gate = threading.Event()
    with two_at_a_time() as (node, gateway), at(gateway) as client:
        node.play(held(gate, response()), held(gate, response()))
        client.send(client.headers(1), client.headers(3))
        node.wait_seen(2)
        body = bytes(range(256)) * 64
        client.send(
            client.headers(5, fields("POST", "/body", ("content-length", "32768")), end=False),
            data(5, body, end=False),
            data(5, body),
            client.headers(7, fields("POST", "/trailer", ("trailer", "x")), end=False),
            data(7, b"abc", end=False),
            client.headers(7, [("x", "y")]),
            client.headers(9, fields("POST", "/empty", ("content-length", "0"))),
        )
        client.assert_read()
        assert len(node.seen) == 2
        gate.set()
        for stream in (5, 7, 9):
            client.assert_answered(stream)
        seen = {each.target: each for each in node.seen}
        assert seen[b"/body"].body == 2 * body
        assert seen[b"/trailer"].body == b"abc"
        assert b"\r\nx: y\r\n" in seen[b"/trailer"].raw.lower()
        assert seen[b"/empty"].body == b""
        node.check()


def test_a_body_that_waits_is_no_more_than_its_window() -> None:
    gate = threading.Event()
    with two_at_a_time() as (node, gateway), Http2Client(gateway.address) as client:
        node.play(held(gate, response()), held(gate, response()))
        client.begin(), client.begin()
        node.wait_seen(2)
        stream = client.begin(client.fields(b"POST", b"/large"), end=False)
        client.data(stream, bytes(65_536 - 1))
        assert client.h2.local_flow_control_window(stream) <= 1
        gate.set()
        client.data(stream, bytes(200_000), end=True)
        assert client.response(stream).body == b"POST /large 265535"


def test_those_that_are_given_up_never_begin() -> None:
    gate = threading.Event()
    with two_at_a_time() as (node, gateway), at(gateway) as client:
        node.play(held(gate, response()), held(gate, response()))
        paths = [fields("GET", f"/{number}") for number in range(6)]
        client.send(*(client.headers(2 * n + 1, path) for n, path in enumerate(paths)))
        node.wait_seen(2)
        client.send(rst_stream(5), rst_stream(9))
        client.assert_read()
        gate.set()
        for stream in (1, 3, 7, 11):
            client.assert_answered(stream)
        assert sorted(asked(node)) == [b"/0", b"/1", b"/3", b"/5"]


def test_those_that_the_client_gives_up_make_room() -> None:
    gate = threading.Event()
    with two_at_a_time() as (node, gateway), at(gateway) as client:
        node.play(held(gate, response()), held(gate, response()))
        client.send(client.headers(1), client.headers(3), client.headers(5, fields("GET", "/5")))
        node.wait_seen(2)
        client.send(rst_stream(1))
        client.assert_answered(5)
        gate.set()
        client.assert_answered(3)


def test_nothing_waits_for_ever() -> None:
    gate = threading.Event()
    with two_at_a_time("--http-timeout", "1") as (node, gateway), at(gateway) as client:
        node.otherwise = held(gate, response())
        client.send(*(client.headers(stream) for stream in (1, 3, 5)))
        client.wait(lambda frame: all(client.answers.get(s) for s in (1, 3, 5)), "answers")
        assert {client.answers[stream].status for stream in (1, 3, 5)} <= {504, 502}
        assert client.answers[5].status == 504 or len(node.seen) == 3
        gate.set()


@pytest.mark.parametrize("kind", ["tunnel", "begun"])
def test_what_goes_on_for_long_keeps_nobody(kind: str) -> None:
    """Tunnels, and responses that the client takes as they come: event streams, calls of gRPC."""
    gate = threading.Event()

    def long(connection: Connection, seen: Seen) -> None:
        connection.send(SWITCH if kind == "tunnel" else PART)
        assert gate.wait(10)
        if kind == "begun":
            connection.send(b"cd")

    with two_at_a_time() as (node, gateway), at(gateway) as client:
        node.play(*[long] * 4)
        wanted = UPGRADE if kind == "tunnel" else fields()
        for stream in (1, 3, 5, 7):
            client.send(client.headers(stream, wanted, end=kind == "begun"))
        client.wait(lambda frame: all(client.answers.get(s) for s in (1, 3, 5, 7)), "four heads")
        client.send(client.headers(9))
        client.assert_answered(9)
        gate.set()


def test_a_drain_serves_those_that_wait() -> None:
    gate = threading.Event()
    with two_at_a_time() as (node, gateway), Http2Client(gateway.address) as client:
        node.otherwise = held(gate, response(b"late"))
        streams = [client.begin() for _ in range(5)]
        node.wait_seen(2)
        gateway.terminate()
        client.until(lambda: client.goaways)
        gate.set()
        assert [client.response(stream).body for stream in streams] == [b"late"] * 5
        client.until(lambda: client.closed)
        gateway.stop()


def test_a_client_that_goes_takes_along_what_waits() -> None:
    with two_at_a_time() as (node, gateway):
        node.play(silent, silent)
        with at(gateway) as client:
            client.send(*(client.headers(stream) for stream in range(1, 20, 2)))
            node.wait_seen(2)
        wait_until(lambda: node.open_connections() == 0, "the connections of the node to end")
        with at(gateway) as client:
            client.send(client.headers(1, fields("GET", "/next")))
            client.assert_answered(1)
        assert asked(node) == [b"/", b"/", b"/next"]


# --- frames -----------------------------------------------------------------------------------


def test_a_flood_is_read_in_turns() -> None:
    """Of many frames in one piece, none is lost and none overtakes another."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        pings = [raw(PING, 0, 0, b"%08d" % number) for number in range(1500)]
        client.send(*pings)
        client.wait(lambda frame: count(client) == 1500, "all answers")
        found = [each.opaque_data for each in client.seen if isinstance(each, frames.PingFrame)]
        assert found == [b"%08d" % number for number in range(1500)]
        streams = range(1, 180, 2)
        client.send(*(client.headers(stream) for stream in streams), *pings[:200])
        client.wait(lambda frame: count(client) == 1700 and ended(client, streams), "all of it")


def ended(client: RawHttp2, streams: range) -> bool:
    """Whether all of the streams are."""
    return all(stream in client.answers and client.answers[stream].ended for stream in streams)


def count(client: RawHttp2) -> int:
    """PINGs that have come back."""
    return sum(isinstance(each, frames.PingFrame) for each in client.seen)


def test_a_flood_and_the_end() -> None:
    """What came before FIN is read."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        client.send(*[raw(PING, 0, 0, b"12345678")] * 1000, client.headers(1))
        client.sock.shutdown(socket.SHUT_WR)
        client.wait(lambda frame: 1 in client.answers and client.answers[1].ended, "the answer")
        assert count(client) == 1000


# --- nodes ------------------------------------------------------------------------------------


def test_what_nobody_takes_is_not_read() -> None:
    """A hundred responses, and windows that are shut: the nodes' bytes stay with the nodes."""
    sent = []
    lock = threading.Lock()

    def much(connection: Connection, seen: Seen) -> None:
        connection.sock.settimeout(0.2)
        total = 0
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n")
        try:
            while total < 8_000_000:
                total += connection.sock.send(bytes(65_536))
        except TimeoutError:
            pass
        with lock:
            sent.append(total)

    options = ("--http2-max-queued", "65536", "--http2-node-requests=0")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = much
        with at(gateway, {WINDOW: 0}) as client:
            client.send(*(client.headers(stream) for stream in range(1, 81, 2)))
            wait_until(lambda: len(sent) >= 40, "the nodes to be stuck", 20)
            assert gateway_memory(gateway) < 40_000_000
            client.assert_read()


def gateway_memory(gateway: Gateway) -> int:
    """Bytes that wait in the gateway cannot be more than what its process has."""
    with open(f"/proc/{worker_of(gateway)}/smaps_rollup") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line and "-" not in line[:8])
    return int(lines["Private_Dirty"].split()[0]) * 1024


@pytest.mark.parametrize("how", ["stream", "settings", "other"])
def test_nodes_go_on_when_windows_open(how: str) -> None:
    """Those, too, of which nothing was here while others had filled what may wait."""
    body = bytes(range(256)) * 800
    options = ("--http2-max-queued", "65536")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        first, others = threading.Event(), threading.Event()

        def answer(connection: Connection, seen: Seen) -> None:
            assert (first if seen.target == b"/1" else others).wait(10)
            connection.send(response(body))

        node.otherwise = answer
        with at(gateway, {WINDOW: 0}) as client:
            client.send(window_update(0, 10**6))
            client.send(*(client.headers(s, fields("GET", f"/{s}")) for s in (1, 3, 5)))
            node.wait_seen(3)
            first.set()
            client.wait(lambda frame: client.answers.get(1), "the head of the first")
            others.set()
            client.assert_read()
            if how == "settings":
                client.send(settings((WINDOW, 10**6)))
            elif how == "stream":
                client.send(*(window_update(stream, 10**6) for stream in (5, 3, 1)))
            else:  # what has waited goes, and others may come
                client.send(rst_stream(1), window_update(3, 10**6), window_update(5, 10**6))
            for stream in (3, 5):
                client.assert_answered(stream)
                assert client.answers[stream].size == len(body)


# --- little that costs much -------------------------------------------------------------------


def test_a_tunnel_that_waits_sends_nothing_before_it_is_one() -> None:
    """Else the bytes would be a request to a node that refuses the tunnel."""
    gate = threading.Event()
    with two_at_a_time(most=1) as (node, gateway), at(gateway) as client:
        node.play(held(gate, response()), response(b"no", status=b"403 Forbidden"))
        client.send(client.headers(1))
        node.wait_seen()
        smuggled = b"GET /smuggled HTTP/1.1\r\nHost: internal\r\n\r\n"
        client.send(client.headers(3, UPGRADE, end=False), data(3, smuggled, end=False))
        client.assert_read()
        gate.set()
        client.wait(lambda frame: client.answers.get(3), "the refusal")
        assert client.answers[3].status == 403
        client.send(client.headers(5, fields("GET", "/victim")))
        assert client.assert_answered(5).size == len(b"GET /victim 0")
        assert asked(node) == [b"/", b"/", b"/victim"]
        node.check()
        # Whatever it was sent: nobody has that connection after it.
        wait_until(lambda: node.open_connections() == 1, "the end of that connection")


def test_a_tunnel_that_waits_has_its_bytes() -> None:
    gate = threading.Event()
    got = []

    def tunnel(connection: Connection, seen: Seen) -> str:
        connection.send(SWITCH)
        got.append(connection.take(6))
        return "close"

    with two_at_a_time(most=1) as (node, gateway), at(gateway) as client:
        node.play(held(gate, response()), tunnel)
        client.send(client.headers(1))
        node.wait_seen()
        client.send(client.headers(3, UPGRADE, end=False), data(3, b"abc", end=False))
        client.assert_read()
        client.send(data(3, b"def", end=False))
        gate.set()
        wait_until(lambda: got, "the bytes of the tunnel")
        assert got == [b"abcdef"]


def by_reference(client: RawHttp2, name: str, value: str, times: int, count: int) -> None:
    """So many requests, each with that field so many times, in a byte for each."""
    client.send(client.headers(1, fields("GET", "/", (name, value))))
    client.assert_answered(1)
    again = [(name, value)] * times
    for stream in range(3, 3 + 2 * count, 2):
        client.send(client.headers(stream, [*fields(), *again]))
    for stream in range(3, 3 + 2 * count, 2):
        client.assert_answered(stream)


def test_long_encodings_cost_little() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        before = processor(worker_of(gateway))
        by_reference(client, "accept-encoding", "," * 3900, 7, 60)
        assert processor(worker_of(gateway)) - before < 1.0


def test_many_small_pieces_that_wait_cost_little() -> None:
    gate = threading.Event()
    with two_at_a_time(most=1) as (node, gateway), at(gateway) as client:
        node.play(held(gate, response()))
        client.send(client.headers(1))
        node.wait_seen()
        before = processor(worker_of(gateway))
        client.send(client.headers(3, fields("POST", "/small"), end=False))
        client.send(*[data(3, b"x", end=False)] * 60_000)
        client.assert_read()
        gate.set()
        client.send(data(3, b""))
        client.assert_answered(3)
        assert processor(worker_of(gateway)) - before < 2.0
        assert node.seen[1].body == b"x" * 60_000


@pytest.mark.parametrize("kind", ["long", "reset"])
def test_sections_that_lead_to_nothing_are_counted(kind: str) -> None:
    """Of lists that are too long (431), and of streams that are over."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        large = client.block([*fields(), *[("x", "y" * 1000)] * 40])
        if kind == "reset":
            client.send(client.headers(1, [(":method", "GET")], end=False))
            client.wait(lambda frame: client.answers.get(1), "RST_STREAM")
        if kind == "long":
            client.send(*(raw(1, 5, 2 * number + 3, large) for number in range(400)))
        else:
            client.send(*[raw(1, 4, 1, large)] * 5000)
        client.assert_connection_error(ErrorCodes.ENHANCE_YOUR_CALM)


def test_allowances_are_options() -> None:
    options = ("--http2-max-resets", "10", "--http2-max-frames", "100")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        node.otherwise = silent
        with at(gateway) as client:
            for stream in range(1, 21, 2):
                client.send(client.headers(stream), rst_stream(stream))
            client.assert_alive()
            client.send(client.headers(21), rst_stream(21))
            client.assert_connection_error(ErrorCodes.ENHANCE_YOUR_CALM)
        with at(gateway) as client:
            client.send(*[raw(PING, 0, 0, b"12345678")] * 200)
            client.assert_connection_error(ErrorCodes.ENHANCE_YOUR_CALM)
            assert 45 <= count(client) <= 50  # each costs as much as two, for it is answered


def test_who_goes_on_after_the_end_is_cut() -> None:
    """What may be on its way is read, so that GOAWAY is not lost; not all that somebody sends."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        with at(gateway) as client:
            client.send(raw(PING, 0, 1, bytes(8)), bytes(1_000_000))
            client.assert_connection_error(ErrorCodes.PROTOCOL_ERROR)
        with at(gateway) as client:
            client.send(raw(PING, 0, 1, bytes(8)))
            sent, began = 0, time.monotonic()
            with contextlib.suppress(ConnectionError):
                while sent < 100_000_000:
                    sent += client.sock.send(bytes(65_536))
            assert sent < 30_000_000  # buffers of the system
            assert time.monotonic() - began > 1.0  # and it is not back at once
