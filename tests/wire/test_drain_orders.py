"""The orders that a worker gets around its end, and fastrouters that drain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fast
from support.client import Client
from support.nodes import Connection, RawHttpNode, RawUwsgiNode, Seen, held, response, silent
from support.waiting import DEADLINE, wait_until
from support.workers import Worker, stuff, worker

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def it(tmp_path: Path, http_node: RawHttpNode) -> Iterator[Worker]:
    """A worker before ``http_node`` that gives up after half a second, if it is not told more."""
    words = ["--http", "127.0.0.1:0", "--http-to", http_node.spec, "--http-drain-timeout", "0.5"]
    with worker(tmp_path, *words) as it:
        yield it


@pytest.fixture
def patient(tmp_path: Path, http_node: RawHttpNode) -> Iterator[Worker]:
    """The same, with all the time that there is usually."""
    with worker(tmp_path, "--http", "127.0.0.1:0", "--http-to", http_node.spec) as it:
        yield it


@pytest.fixture
def router(tmp_path: Path, uwsgi_node: RawUwsgiNode) -> Iterator[Worker]:
    """A worker of a fastrouter before ``uwsgi_node``."""
    words = ["--fastrouter", "127.0.0.1:0", "--fastrouter-to", uwsgi_node.spec]
    with worker(tmp_path, *words, gateway="fastrouter") as it:
        yield it


# --- with less and less patience ------------------------------------------------------------------


def hurry(it: Worker) -> None:
    it.order("hurry")


def drain_plainly(it: Worker) -> None:
    it.order("drain", limit=60)


@pytest.mark.parametrize("order", [hurry, drain_plainly, Worker.term])
def test_idle_connections_end_when_it_is_ordered(
    patient: Worker, http_node: RawHttpNode, order: object
) -> None:
    it, gate = patient, threading.Event()
    with it.connect() as idle, it.connect() as busy:
        assert idle.ask(GET).status == 200
        http_node.play(held(gate, response(b"late")))
        busy.send(GET)
        http_node.wait_seen(2)
        it.drain()
        assert callable(order)
        order(it)
        idle.assert_closed()
        assert not idle.was_reset
        gate.set()
        reply = busy.read_response()
        assert (reply.body, reply.closes) == (b"late", True)
        busy.close()
        assert it.wait() == 0
    assert it.log == ""


def test_a_plain_drain_closes_idle_connections_at_once(it: Worker) -> None:
    with it.connect() as fresh, it.connect() as idle:
        assert idle.ask(GET).status == 200
        it.drain(gently=False)
        idle.assert_closed()
        fresh.assert_closed()
        assert it.wait() == 0


def test_the_earlier_end_counts(it: Worker, http_node: RawHttpNode) -> None:
    http_node.play(silent)
    with it.connect() as client:
        client.send(GET)
        http_node.wait_seen()
        it.drain(60)
        it.order("drain", gently=True, limit=0.2)
        it.order("drain", gently=True, limit=60)
        assert client.read_to_end() == b""
        assert it.wait() == 0
    assert "uwgate http 1: out of time, 1 connection cut" in it.log


def test_without_a_limit_it_is_that_of_the_gateway(it: Worker, http_node: RawHttpNode) -> None:
    http_node.play(silent, silent)
    with it.connect() as first, it.connect() as second:
        for client in (first, second):
            client.send(GET)
        http_node.wait_seen(2)
        it.order("drain")
        assert it.wait() == 0
    assert "uwgate http 1: out of time, 2 connections cut" in it.log


def test_sigterm_ends_a_gentle_drain_in_the_time_of_the_gateway(
    it: Worker, http_node: RawHttpNode
) -> None:
    http_node.play(silent)
    with it.connect() as client:
        client.send(GET)
        http_node.wait_seen()
        it.drain(60)
        it.term()
        assert it.wait() == 0


def test_stop_cuts_at_any_time(it: Worker, http_node: RawHttpNode) -> None:
    http_node.play(silent)
    with it.connect() as client:
        client.send(GET)
        http_node.wait_seen()
        it.drain(60)
        it.order("stop")
        assert client.read_to_end() == b""
        assert it.wait() == 0
    assert it.log == ""  # nobody ran out of time


def test_hurry_means_nothing_to_a_worker_that_serves(it: Worker) -> None:
    with it.connect() as client:
        it.order("hurry")
        assert not client.ask(GET).closes
        with it.connect() as another:
            assert not another.ask(GET).closes


def test_who_lost_his_master_drains_and_ends_well(
    patient: Worker, http_node: RawHttpNode
) -> None:
    it, gate = patient, threading.Event()
    http_node.play(held(gate, response(b"late")))
    with it.connect() as busy, it.connect() as idle:
        busy.send(GET)
        http_node.wait_seen()
        it.channel.close()
        idle.assert_closed()
        wait_until(lambda: not it.has_sockets(), "accepts no more")
        gate.set()
        assert busy.read_response().body == b"late"
        busy.close()
        assert it.wait() == 0
    assert "uwgate http 1: the master is gone: draining" in it.log


def test_who_lost_his_master_gives_up_in_time(it: Worker, http_node: RawHttpNode) -> None:
    http_node.play(silent)
    with it.connect() as client:
        client.send(GET)
        http_node.wait_seen()
        it.drain(60)
        it.channel.close()
        assert it.wait() == 0


# --- a pause --------------------------------------------------------------------------------------


def test_in_a_pause_who_comes_waits(it: Worker) -> None:
    with it.connect() as before:
        assert before.ask(GET).status == 200
        it.order("pause")
        it.snapshot()  # it has read the order
        with Client(it.address()) as client:
            client.send(GET)
            assert not before.ask(GET).closes
            assert it.snapshot()["tally"]["accepted"] == 1
            it.order("resume")
            reply = client.read_response()
            assert (reply.status, reply.closes) == (200, False)


def test_who_drains_does_not_accept_again(it: Worker) -> None:
    with it.connect() as client:
        it.order("pause")
        it.drain()
        it.order("resume")
        assert it.snapshot()["tally"]["accepted"] == 1  # it has read the order
        assert not it.has_sockets()
        assert client.ask(GET).closes
        client.close()
        assert it.wait() == 0


# --- fastrouters ----------------------------------------------------------------------------------


def test_a_request_at_a_fastrouter_goes_on(router: Worker, uwsgi_node: RawUwsgiNode) -> None:
    gate = threading.Event()
    uwsgi_node.play(held(gate, response(b"late")))
    with router.connect() as client:
        client.send(fast.request())
        uwsgi_node.wait_seen()
        router.drain()
        gate.set()
        assert client.read_response().body == b"late"
        client.assert_closed()
        assert router.wait() == 0


def test_a_client_of_a_fastrouter_that_has_not_asked_yet_is_served(
    router: Worker, uwsgi_node: RawUwsgiNode
) -> None:
    with router.connect() as silent, router.connect() as half:
        packet = fast.request()
        half.send(packet[:10])
        router.received(10)
        router.drain()
        half.send(packet[10:])
        for client in (half, silent):
            if client is silent:
                client.send(fast.post(b"body"))
            assert client.read_response().status == 200
            client.assert_closed()
        assert router.wait() == 0
    assert uwsgi_node.seen[1].body == b"body"


def test_an_upload_to_a_fastrouter_goes_on(router: Worker, uwsgi_node: RawUwsgiNode) -> None:
    packet = fast.post(b"0123456789")
    with router.connect() as client:
        client.send(packet[:-5])
        router.received(len(packet) - 5)
        router.drain()
        client.send(packet[-5:])
        assert client.read_response().status == 200
        client.assert_closed()
        assert router.wait() == 0
    assert uwsgi_node.only().body == b"0123456789"


def test_a_response_of_a_fastrouter_goes_on(router: Worker, uwsgi_node: RawUwsgiNode) -> None:
    gate = threading.Event()

    def slowly(connection: Connection, seen: Seen) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        assert gate.wait(DEADLINE)
        connection.send(b"56789")

    uwsgi_node.play(slowly)
    with router.connect() as client:
        client.send(fast.request())
        client.read_until(b"01234")
        router.drain()
        gate.set()
        assert client.read_to_end() == b"56789"
        assert not client.was_reset
        assert router.wait() == 0


def test_the_time_of_a_fastrouter_is_limited(router: Worker, uwsgi_node: RawUwsgiNode) -> None:
    uwsgi_node.play(silent)
    with router.connect() as client, router.connect():
        client.send(fast.request())
        uwsgi_node.wait_seen()
        router.order("drain", gently=True, limit=0.2)
        client.read_to_end()
        assert router.wait() == 0
    assert "uwgate fastrouter 1: out of time, 2 connections cut" in router.log


def test_a_tunnel_of_a_fastrouter_ends_in_order(
    router: Worker, uwsgi_node: RawUwsgiNode
) -> None:
    gate = threading.Event()

    def deaf(connection: Connection, seen: Seen) -> None:
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n\r\n"
        )
        assert gate.wait(DEADLINE)

    uwsgi_node.play(deaf)
    upgrade = [(b"HTTP_CONNECTION", b"Upgrade"), (b"HTTP_UPGRADE", b"websocket")]
    with router.connect() as client:
        client.send(fast.request(b"/ws", b"GET", b"h", *upgrade))
        client.read_until(b"\r\n\r\n")
        stuff(client)
        router.drain(0)
        client.assert_closed()
        assert not client.was_reset
        gate.set()
        client.close()
        assert router.wait() == 0


def test_a_fastrouter_pauses(router: Worker) -> None:
    router.order("pause")
    router.snapshot()  # it has read the order
    with Client(router.address()) as client:
        client.send(fast.request())
        assert router.snapshot()["tally"]["accepted"] == 0
        router.order("resume")
        assert client.read_response().status == 200
