"""Life and death of the processes, with real requests in flight."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

from interop.clients import Client, fetch
from interop.observing import probe, wait_ready, workers
from interop.peers import Gate, Peer


@contextmanager
def watched(app: Peer, *options: str, processes: int = 1) -> Iterator[tuple[Gateway, str]]:
    """A gateway with ``http-stats``; yields it and the stats address."""
    address = f"127.0.0.1:{free_port()}"
    words = ["--http-to", app.address, "--http-processes", str(processes), "--http-stats", address]
    with running(*words, *options) as gateway:
        wait_ready(address, processes)
        yield gateway, address


@contextmanager
def in_flight(gateway: Gateway, gate: Gate) -> Iterator[Client]:
    """A request that waits at the application until its gate is opened (at the latest: here)."""
    with Client(gateway.port) as client:
        client.start("GET", f"/slow?gate={gate.path}")
        client.finish()
        gate.reached()
        try:
            yield client
        finally:
            gate.open()


def refused(port: int) -> bool:
    """Whether a new client gets no service: refused, or closed without a byte."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as late:
            late.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            return late.recv(100) == b""
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return True


def test_both_workers_serve(uwsgi_app: Peer) -> None:
    with watched(uwsgi_app, processes=2) as (gateway, address):
        asked = 0

        def both() -> bool:
            # One of them may have no CPU for as long as the other answers all of these.
            nonlocal asked
            for _ in range(60):
                assert fetch(gateway.port, "/").status == 200
            asked += 60
            served = [worker["requests"] for worker in workers(address)]
            assert sum(served) == asked
            return min(served) > 0

        wait_until(both, "both serve")


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_worker_is_replaced(uwsgi_app: Peer, processes: int) -> None:
    with watched(uwsgi_app, processes=processes) as (gateway, address):
        old = wait_ready(address, processes)
        os.kill(old[0], signal.SIGKILL)

        def replaced() -> bool:
            now = workers(address)
            return len(now) == processes and all(
                worker["pid"] not in (0, old[0]) and worker["status"] in ("idle", "busy")
                for worker in now
            )

        wait_until(replaced, "a new worker")
        assert {worker["pid"] for worker in workers(address)} & set(old) == set(old[1:])
        assert sum(worker["respawn_count"] for worker in workers(address)) >= 1
        for _ in range(20):
            assert fetch(gateway.port, "/").status == 200


def test_connections_wait_while_the_only_worker_is_replaced(uwsgi_app: Peer) -> None:
    """The master holds the listening socket: nobody is refused between death and rebirth."""
    with watched(uwsgi_app) as (gateway, address):
        (pid,) = wait_ready(address, 1)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: workers(address)[0]["pid"] != pid, "the death to be noticed")
        assert fetch(gateway.port, "/").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_end_well(uwsgi_app: Peer, gate: Gate, number: signal.Signals) -> None:
    with watched(uwsgi_app) as (gateway, address):
        with Client(gateway.port) as idle, in_flight(gateway, gate) as slow:
            assert idle.request("GET", "/").status == 200
            gateway.process.send_signal(number)
            wait_until(lambda: probe(address, "/readyz") == 503, "draining")
            assert probe(address, "/healthz") == 200
            assert idle.ended(), "an idle connection is closed at once"
            wait_until(lambda: refused(gateway.port), "no new client to be served")
            assert gateway.process.poll() is None
            gate.open()
            reply = slow.response()
            assert (reply.status, reply.json()["slow"]) == (200, "done")
            assert reply.get("connection") == "close"
        assert gateway.process.wait(10) == 0


def test_second_signal_is_immediate(uwsgi_app: Peer, gate: Gate) -> None:
    with watched(uwsgi_app) as (gateway, address), in_flight(gateway, gate) as slow:
        gateway.terminate()
        wait_until(lambda: probe(address, "/readyz") == 503, "draining")

        def noticed() -> bool:
            if "stopping at once" in gateway.log:
                return True
            # Again and again, because signals in quick succession count as one (a terminal's
            # Ctrl-C under make arrives twice).
            gateway.terminate()
            return False

        wait_until(noticed, "the second signal to be noticed")
        assert gateway.process.wait(5) == 0
        assert slow.ended()


def test_drain_ends_after_its_time(uwsgi_app: Peer, gate: Gate) -> None:
    options = ["--http-drain-timeout", "1"]
    with watched(uwsgi_app, *options) as (gateway, _), in_flight(gateway, gate) as slow:
        gateway.terminate()
        assert gateway.process.wait(8) == 0
        assert slow.ended()


def test_no_request_is_lost_at_the_end(uwsgi_app: Peer) -> None:
    """Clients hammer while SIGTERM comes: each request is answered whole or not at all."""
    broken: list[BaseException] = []
    served = [0]

    def hammer(port: int) -> None:
        while True:
            try:
                client = Client(port)
            except OSError:
                return
            with client:
                try:
                    client.start("GET", "/download?size=20000")
                    client.finish()
                    first = client.socket.recv(65536)
                except OSError:
                    return
                if not first:
                    return
                try:
                    client.h11.receive_data(first)
                    assert client.response().size == 20000
                    served[0] += 1
                except BaseException as error:
                    broken.append(error)
                    return

    with watched(uwsgi_app, processes=2) as (gateway, _):
        threads = [threading.Thread(target=hammer, args=(gateway.port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: served[0] > 50, "requests to flow")
        gateway.terminate()
        assert gateway.process.wait(10) == 0
        for thread in threads:
            thread.join(10)
    assert not broken
