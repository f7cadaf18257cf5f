"""Clients of HTTP/2 that want to be a burden: each is told to calm down, and others are served."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hyperframe import frame as frames
from support.http2_attacker import Attacker, goaway_in
from support.http2_client import Http2Client
from support.nodes import RawHttpNode, held, response
from support.uwgate import Gateway, running
from support.waiting import DEADLINE, wait_until

CALM, COMPRESSION, PROTOCOL = 11, 9, 1


@pytest.fixture(scope="module")
def node() -> Iterator[RawHttpNode]:
    with RawHttpNode() as found:
        yield found


@pytest.fixture(scope="module")
def gateway(node: RawHttpNode) -> Iterator[Gateway]:
    with running("--http-to", node.spec, "--http-headers-timeout", "2") as found:
        yield found


def served(gateway: Gateway) -> None:
    """Somebody else."""
    with Http2Client(gateway.address) as client:
        assert client.ask().status == 200


@pytest.mark.parametrize(
    "frame",
    [
        frames.PingFrame(0, b"12345678"),
        frames.SettingsFrame(0, {4: 65535}),
        frames.PriorityFrame(1, 3, 1),
        frames.WindowUpdateFrame(0, 1),
        frames.GoAwayFrame(0, 0, 0),
    ],
    ids=["PING", "SETTINGS", "PRIORITY", "WINDOW_UPDATE", "GOAWAY"],
)
def test_frames_that_are_of_no_use(gateway: Gateway, frame: frames.Frame) -> None:
    with Attacker(gateway) as attacker:
        assert attacker.flood(lambda: frame.serialize() * 50) == CALM
    served(gateway)


def test_empty_data(gateway: Gateway, node: RawHttpNode) -> None:
    with Attacker(gateway) as attacker:
        attacker.sock.sendall(attacker.request(end=False))
        empty = frames.DataFrame(attacker.stream, b"").serialize()
        assert attacker.flood(lambda: empty * 50) == CALM
    served(gateway)


def test_rapid_reset(gateway: Gateway) -> None:
    def one() -> bytes:
        return attacker.request() + frames.RstStreamFrame(attacker.stream, 8).serialize()

    with Attacker(gateway) as attacker:
        assert attacker.flood(one, 5000) == CALM
    served(gateway)


@pytest.mark.parametrize("how", ["window", "priority", "length"])
def test_made_you_reset(gateway: Gateway, how: str) -> None:
    """Streams that the gateway has to reset count as much as those that the client does."""

    def one() -> bytes:
        if how == "length":
            data = frames.DataFrame(attacker.stream + 2, b"too much", flags=["END_STREAM"])
            return attacker.request(("content-length", "1"), end=False) + data.serialize()
        headers = attacker.request(end=False)
        if how == "window":
            return headers + b"\0\0\4\x08\0" + struct.pack(">LL", attacker.stream, 0)
        return headers + frames.PriorityFrame(attacker.stream, attacker.stream, 1).serialize()

    with Attacker(gateway) as attacker:
        assert attacker.flood(one, 5000) == CALM
    served(gateway)


def test_a_header_section_without_end(gateway: Gateway) -> None:
    with Attacker(gateway) as attacker:
        attacker.sock.sendall(frames.HeadersFrame(1, b"").serialize())
        more = frames.ContinuationFrame(1, b"").serialize()
        assert attacker.flood(lambda: more) == CALM
    served(gateway)


def test_a_header_section_that_trickles(gateway: Gateway) -> None:
    """A frame of it at a time would keep a connection for ever."""
    with Attacker(gateway) as attacker:
        attacker.sock.sendall(frames.HeadersFrame(1, b"\x82").serialize()[:11])
        assert attacker.flood(lambda: b"", 1) == CALM


def test_a_preface_that_trickles(gateway: Gateway) -> None:
    with socket.create_connection(gateway.address, DEADLINE) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n")
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert goaway_in(data) == 4  # SETTINGS_TIMEOUT


def test_a_bomb(gateway: Gateway) -> None:
    """A large entry of the table, named again and again."""
    with Attacker(gateway) as attacker:
        attacker.sock.sendall(attacker.request(("x", "y" * 4000)))
        bomb = frames.HeadersFrame(3, b"\xbe" * 16000, flags=["END_HEADERS", "END_STREAM"])
        attacker.sock.sendall(bomb.serialize())
        assert attacker.flood(lambda: b"", 1) == COMPRESSION
    served(gateway)


def test_too_many_streams(gateway: Gateway, node: RawHttpNode) -> None:
    gate = threading.Event()
    node.otherwise = held(gate, response(b"x"))
    try:
        with Attacker(gateway) as attacker:
            attacker.sock.sendall(b"".join(attacker.request() for _ in range(101)))
            _, stream, payload = attacker.frame(3)
            assert (stream, payload) == (201, b"\0\0\0\x07")  # REFUSED_STREAM
            gate.set()
            assert attacker.frame(1)[1] < 201
    finally:
        gate.set()
        node.reset()


def test_windows_that_stay_shut(gateway: Gateway, node: RawHttpNode) -> None:
    """What waits for a client that takes nothing is bounded; then no further request is taken."""
    node.otherwise = response(b"z" * 60_000)
    with Http2Client(gateway.address, window=0) as client:
        client.until(lambda: client.settings)
        streams = [client.begin() for _ in range(60)]
        # So many it takes at least, whatever the node's threads do meanwhile.
        client.until(lambda: sum(each.status > 0 for each in client.responses.values()) >= 17)
        refused: list[int] = []

        def some_are_refused() -> bool:
            stream = client.begin()
            streams.append(stream)
            client.h2.ping(b"12345678")
            client.flush()
            before = len(client.pongs)
            client.until(lambda: len(client.pongs) > before)
            refused.extend(s for s in streams if client.responses[s].reset is not None)
            return bool(refused)

        assert any(some_are_refused() for _ in range(39))
    node.reset()
    served(gateway)


def test_much_that_waits_in_many_connections() -> None:
    """Each may hold what its nodes had sent before they were told to wait; all together may not."""
    options = ("--http2-max-queued", "65536")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as it:
        node.otherwise = lambda connection, seen: connection.send(response(bytes(50_000)))
        shut = frames.SettingsFrame(0, {4: 0}).serialize()
        with contextlib.ExitStack() as stack:
            attackers = [stack.enter_context(Attacker(it)) for _ in range(40)]
            for attacker in attackers:
                attacker.sock.sendall(shut + b"".join(attacker.request() for _ in range(30)))
            codes: list[bytes] = []

            def told() -> bool:
                for each in select.select([each.sock for each in attackers], [], [], 0)[0]:
                    codes.append(each.recv(65536))
                return any(goaway_in(each) == CALM for each in codes)

            wait_until(told, "one of them is ended")
            with Http2Client(it.address) as client:
                assert client.ask().body == bytes(50_000)
