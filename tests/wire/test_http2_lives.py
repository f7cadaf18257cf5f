"""How long connections of HTTP/2 live: deadlines, drains, reloads, and clients that are slow."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from hyperframe import frame as frames
from support.http2_client import Http2Client
from support.http2_raw import PING, PREFACE, WINDOW, RawHttp2, at, fields, raw, settings
from support.nodes import Connection, RawHttpNode, Seen, held, response, silent
from support.reloading import reloadable
from support.uwgate import Gateway, running
from support.waiting import DEADLINE, free_port, wait_until

BAD_HOST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a b")]
LARGE = 2**31 - 1


def statistics(port: int) -> dict[str, dict[str, int]]:
    """Of the gateway."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
        text = b"".join(iter(lambda: sock.recv(65536), b""))
    found: dict[str, dict[str, int]] = json.loads(text)
    return found


def goaways(client: RawHttp2) -> list[tuple[int, int]]:
    """(last stream, code) of those that have come."""
    return [
        (frame.last_stream_id, frame.error_code)
        for frame in client.seen
        if isinstance(frame, frames.GoAwayFrame)
    ]


# --- clients that take nothing ----------------------------------------------------------------


def test_windows_that_stay_shut_keep_no_connection() -> None:
    """Requests that are refused, that time out, and that are answered: all are given up."""
    options = ("--http-timeout", "1", "--http-headers-timeout", "1", "--http-keepalive=1")
    with RawHttpNode() as node, running("--http-to", node.spec, *options) as gateway:
        refused, late, answered = (at(gateway, {WINDOW: 0}) for _ in range(3))
        refused.send(refused.headers(1, BAD_HOST))
        answered.send(answered.headers(1))
        answered.wait(lambda frame: answered.answer(1).status, "its head")
        node.play(silent)
        late.send(late.headers(1))
        for client, status in ((refused, 400), (answered, 200), (late, 504)):
            with client:
                client.to_the_end()
                assert client.answer(1).status == status
                assert client.answer(1).reset == ErrorCodes.CANCEL, client.story()
                assert goaways(client)[-1] == (1, ErrorCodes.NO_ERROR)


def test_who_reads_nothing_is_counted(tmp_path: Path) -> None:
    """Windows are large, and the socket is full, whatever comes of the node meanwhile."""

    def trickle(connection: Connection, seen: Seen) -> str:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:  # until the gateway has enough
            connection.send(b"x")
            connection.go.wait(0.1)

    stats = free_port()
    options = ("--http-timeout", "1", "--http-stats", f"127.0.0.1:{stats}")
    where = str(tmp_path / "listener")  # not TCP, where the system would take megabytes
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec, *options, listen=where) as gateway,
        Http2Client(gateway.address, window=LARGE) as client,
    ):
        node.play(trickle, response(bytes(2_000_000)))
        client.h2.increment_flow_control_window(2**30)
        client.begin()
        node.wait_seen()
        client.begin()
        wait_until(lambda: node.open_connections() == 0, "the node is let go")
        wait_until(lambda: statistics(stats)["http2"]["connections"] == 0, "no connection")
        errors = {word: count for word, count in statistics(stats)["errors"].items() if count}
        assert set(errors) == {"client-timeout"}
        assert errors["client-timeout"] == 2


@contextmanager
def slow_reader(where: Path, size: int) -> Iterator[tuple[Gateway, Http2Client, int]]:
    """One that has asked, and has read nothing: and the stream."""
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec, listen=str(where / f"{size}")) as gateway,
        Http2Client(gateway.address, window=LARGE) as client,
    ):
        node.play(response(bytes(size)))
        client.h2.increment_flow_control_window(2**30)
        stream = client.begin()
        node.wait_seen()
        yield gateway, client, stream


def test_slow_readers_get_all_when_the_gateway_drains(tmp_path: Path) -> None:
    """However much of it the system has taken, and though nothing is read for a while."""
    sizes = [250_000, 290_000, 330_000, 2_000_000]
    with ExitStack() as stack:
        readers = [stack.enter_context(slow_reader(tmp_path, size)) for size in sizes]
        for gateway, _, _ in readers:
            gateway.terminate()
        time.sleep(4.2)  # more than the moment that others have
        for size, (_, client, stream) in zip(sizes, readers, strict=True):
            found = client.response(stream)
            assert (found.ended, len(found.body)) == (True, size)
            while not client.closed:
                client.receive()
            assert client.goaways[-1] == (stream, 0)


# --- drains and reloads -----------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_preface_that_is_complete_when_the_gateway_drains(busy: bool) -> None:
    """It is told at once, and keeps the gateway from its end for a moment only."""
    gate = threading.Event()
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        with at(gateway) as witness, RawHttp2(witness.sock.getpeername()) as client:
            client.send(PREFACE[:16])
            witness.send(witness.headers(1))
            witness.finished(1)
            node.play(held(gate, response()))
            witness.send(witness.headers(3))
            node.wait_seen(2)
            gateway.terminate()
            witness.wait(lambda frame: isinstance(frame, frames.GoAwayFrame), "GOAWAY")
            began = time.monotonic()
            client.send(PREFACE[16:], settings())
            client.wait(lambda frame: isinstance(frame, frames.GoAwayFrame), "GOAWAY")
            stream = 1
            while busy and not client.closed:
                client.send(client.headers(stream))
                assert stream < 1000
                frame = client.receive(time.monotonic() + DEADLINE)
                while frame is not None and not client.answer(stream).ended:
                    frame = client.receive(time.monotonic() + DEADLINE)
                stream += 2
            client.to_the_end()
            assert time.monotonic() - began < 6
            gate.set()
            witness.finished(3)
            witness.to_the_end()
        assert gateway.process.wait(DEADLINE) == 0


def test_the_two_steps_of_a_reload_are_a_second_apart(tmp_path: Path) -> None:
    with (
        RawHttpNode() as node,
        reloadable(tmp_path, f"http-to = {node.spec}") as gateway,
        Http2Client(gateway.address) as client,
    ):
        assert client.ask().status == 200
        gateway.reload()
        client.until(lambda: client.goaways)
        first = time.monotonic()  # or later, if we had to wait for a processor
        client.until(lambda: len(client.goaways) > 1)
        assert 0.5 < time.monotonic() - first < 5


# --- what is half there -----------------------------------------------------------------------


def test_frames_in_two_pieces_change_no_deadline() -> None:
    """PING in halves: who does nothing else is idle, and idle no shorter than others."""
    ping = raw(PING, 0, 0, b"abcdefgh")
    patient_waits = True
    with RawHttpNode() as node:
        to = ("--http-to", node.spec, "--http-headers-timeout")
        with (
            running(*to, "2", "--http-keepalive=2") as short,
            running(*to, "1", "--http-keepalive=30") as long,
            at(short) as pinging,
            at(long) as patient,
        ):
            for client in (pinging, patient):
                client.send(client.headers(1))
                client.assert_answered()
            began = time.monotonic()
            patient.send(ping[:12])
            while not goaways(pinging):
                assert time.monotonic() - began < 9, pinging.story()
                pinging.send(ping[:12])
                time.sleep(0.3)
                pinging.send(ping[12:])
                patient.send(ping[12:] if patient_waits else b"")
                patient_waits = False
                if pinging.receive(time.monotonic() + DEADLINE) is None:
                    break
            assert time.monotonic() - began > 1.5, "earlier than the idle timeout"
            assert goaways(pinging) == [(1, ErrorCodes.NO_ERROR)], pinging.story()
            time.sleep(max(0.0, began + 3.5 - time.monotonic()))
            patient.assert_pong(b"abcdefgh")
            patient.assert_alive()


@pytest.mark.parametrize("size", [2, 30_000])
def test_who_sends_no_more_still_gets_answers(size: int) -> None:
    gate = threading.Event()
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec) as gateway,
        at(gateway) as client,
    ):
        node.otherwise = held(gate, response(bytes(size)))
        client.send(client.headers(1), client.headers(3, fields("POST"), end=False))
        client.send(raw(0, 1, 3, b"body"))
        node.wait_seen(2)
        client.sock.shutdown(socket.SHUT_WR)
        client.wait(lambda frame: isinstance(frame, frames.GoAwayFrame), "GOAWAY")
        gate.set()
        client.to_the_end()
        for stream in (1, 3):
            answer = client.answer(stream)
            assert (answer.status, answer.size, answer.ended) == (200, size, True), stream
