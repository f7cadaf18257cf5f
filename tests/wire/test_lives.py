"""How long workers live: orphans, stuck ones, large and old ones, an instance that nobody uses."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from support.client import Client
from support.nodes import RawHttpNode, held, response
from support.reloading import Reloadable, children
from support.uwgate import Gateway, StartGateway
from support.waiting import DEADLINE, free_port, wait_until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
ANSWER = response(b"late")


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def status(gateway: Gateway) -> int:
    with gateway.connect() as client:
        return client.ask(GET).status


def logged(gateway: Gateway, text: str, times: int = 1) -> None:
    try:
        wait_until(lambda: gateway.log.count(text) >= times, text)
    except AssertionError as error:
        raise AssertionError(f"{error}; log:\n{gateway.log}") from None


def workers(gateway: Gateway) -> list[int]:
    return children(gateway.process.pid)


# --- orphans ------------------------------------------------------------------------------------


def test_workers_that_lost_their_master_finish_what_they_have() -> None:
    gate = threading.Event()
    with RawHttpNode() as node:
        gateway = Gateway("--http-to", node.spec)
        try:
            node.play(held(gate, ANSWER))
            with gateway.connect() as client:
                client.send(GET)
                node.wait_seen()
                (worker,) = workers(gateway)
                gateway.process.kill()
                gateway.process.wait()
                logged(gateway, "the master is gone: draining")
                gate.set()
                reply = client.read_response()
                assert (reply.status, reply.body) == (200, b"late")
                wait_until(lambda: ended(worker), "the orphan ends")
        finally:
            gate.set()
            gateway.kill()


def test_no_orphans() -> None:
    gate = threading.Event()
    with RawHttpNode() as node:
        gateway = Gateway("--http-to", node.spec, "--no-orphans")
        try:
            node.play(held(gate, ANSWER))
            with gateway.connect() as client:
                client.send(GET)
                node.wait_seen()
                (worker,) = workers(gateway)
                gateway.process.kill()
                wait_until(lambda: ended(worker), "the worker dies with its master")
                assert client.read_to_end() == b""
        finally:
            gate.set()
            gateway.kill()


# --- stuck --------------------------------------------------------------------------------------


def test_a_stuck_worker_says_where_and_is_replaced(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    mapper = tmp_path / "mapper.py"
    with RawHttpNode() as node:
        mapper.write_text(
            "import threading\n"
            "def find(key):\n"
            "    if key == b'stuck' or key == 'stuck':\n"
            "        threading.Event().wait()\n"
            f"    return '{node.address}'\n"
        )
        gateway = start_gateway(
            "--http-use-code-string", f"0:{mapper}:find", "--harakiri", "1"
        )
        (worker,) = workers(gateway)
        with gateway.connect() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: stuck\r\n\r\n")
            logged(gateway, f"*** HARAKIRI ON GATEWAY uwgate http 1 (pid: {worker}) ***")
            assert client.read_to_end() == b""
        logged(gateway, f"uwgate http 1 (pid: {worker}) died: SIGKILL")
        assert "mapper.py" in gateway.log  # where it was stuck
        assert "in find" in gateway.log
        logged(gateway, "respawned uwgate http 1")


def test_a_stopped_worker_is_replaced(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, "--http-harakiri", "1")
        assert status(gateway) == 200
        (worker,) = workers(gateway)
        os.kill(worker, signal.SIGSTOP)
        logged(gateway, "HARAKIRI")
        wait_until(lambda: ended(worker), "it is killed")
        assert status(gateway) == 200


def test_a_worker_of_before_a_reload_is_watched_too(tmp_path: Path) -> None:
    mapper = tmp_path / "mapper.py"
    with RawHttpNode() as node:
        mapper.write_text(
            "import threading\n"
            "def find(key):\n"
            "    if key == 'stuck':\n"
            "        threading.Event().wait()\n"
            f"    return 'http://{node.address}'\n"
        )
        gateway = Reloadable(tmp_path, f"http-use-code-string = 0:{mapper}:find\nharakiri = 1")
        try:
            (worker,) = gateway.workers
            with gateway.connect() as client:
                assert client.ask(GET).status == 200
                gateway.reload()
                assert worker in gateway.workers
                client.send(b"GET / HTTP/1.1\r\nHost: stuck\r\n\r\n")
                logged(gateway, f"*** HARAKIRI ON GATEWAY uwgate http 1 (pid: {worker}) ***")
                assert client.read_to_end() == b""
            wait_until(lambda: worker not in gateway.workers, "it is killed")
            assert status(gateway) == 200
        finally:
            gateway.kill()


# --- old and large ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max-worker-lifetime", "1"], "is replaced: max-worker-lifetime ("),
        (["--reload-on-rss", "1", "--min-worker-lifetime", "1"], "is replaced: reload-on-rss ("),
    ],
)
def test_old_and_large_workers_are_replaced(
    start_gateway: StartGateway, options: list[str], reason: str
) -> None:
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, *options)
        with gateway.connect() as client:
            assert client.ask(GET).status == 200
            old = workers(gateway)
            logged(gateway, reason)
            wait_until(lambda: len(set(workers(gateway)) - set(old)) == 1, "another worker")
            logged(gateway, "respawned uwgate http 1")
            # The old one stays for the connection that it has.
            reply = client.ask(GET)
            assert reply.status == 200
        assert status(gateway) == 200


# --- pause --------------------------------------------------------------------------------------


def test_pause_and_resume(start_gateway: StartGateway) -> None:
    port = free_port()
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, "--http-stats", f"127.0.0.1:{port}")
        with gateway.connect() as before:
            assert before.ask(GET).status == 200
            gateway.process.send_signal(signal.SIGTSTP)
            logged(gateway, "SIGTSTP: paused, no connection is accepted")
            wait_until(lambda: probe(port, "readyz") == 503, "not ready")
            # Who is here is served; who comes waits in the queue, and is served later.
            assert before.ask(GET).status == 200
            with gateway.connect() as client:
                client.send(GET)
                assert before.ask(GET).status == 200
                assert len(node.seen) == 3
                gateway.process.send_signal(signal.SIGTSTP)
                assert client.read_response().status == 200
            assert probe(port, "readyz") == 200


def probe(port: int, what: str) -> int:
    text = b""
    while not text.startswith(b"HTTP/"):  # who asks too late gets uWSGI's document
        with Client(("127.0.0.1", port)) as client:
            client.send_willing(f"GET /{what} HTTP/1.0\r\n\r\n".encode())
            text = client.read_to_end()
    return int(text.split()[1])


def test_a_worker_that_comes_into_a_pause_is_paused(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec)
        assert status(gateway) == 200
        gateway.process.send_signal(signal.SIGTSTP)
        logged(gateway, "paused")
        (worker,) = workers(gateway)
        os.kill(worker, signal.SIGKILL)
        logged(gateway, "respawned uwgate http 1")
        gateway.process.send_signal(signal.SIGTSTP)
        logged(gateway, "accepting again")
        assert status(gateway) == 200


# --- cheap --------------------------------------------------------------------------------------


def test_idle_workers_go_and_come_back() -> None:
    with RawHttpNode() as node:
        gateway = Gateway("--http-to", node.spec, "--idle", "1", "--http-processes", "2")
        try:
            assert status(gateway) == 200
            logged(gateway, "no request for 1 s: cheap, no worker before the next connection")
            wait_until(lambda: not workers(gateway), "no worker")
            assert status(gateway) == 200
            assert "somebody has connected: leaving cheap mode" in gateway.log
            wait_until(lambda: len(workers(gateway)) == 2, "two workers")
            gateway.stop()
        finally:
            gateway.kill()


def test_cheap_from_the_start(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, "--cheap", "--http-processes", "2")
        # Who waited for its start was the first to connect: workers may be there by now.
        before, _, _ = gateway.log.partition("] somebody has connected: leaving cheap mode")
        assert "] cheap: no worker before the first connection" in before
        assert "] spawned " not in before
        with gateway.connect() as first, gateway.connect() as second:
            first.send(GET)
            second.send(GET)
            assert first.read_response().status == 200
            assert second.read_response().status == 200
        wait_until(lambda: len(workers(gateway)) == 2, "two workers")


def test_die_on_idle() -> None:
    with RawHttpNode() as node:
        gateway = Gateway("--http-to", node.spec, "--idle", "1", "--die-on-idle")
        try:
            assert status(gateway) == 200
            assert gateway.process.wait(DEADLINE) == 0
            assert "no request for 1 s (die-on-idle) received: draining" in gateway.log
        finally:
            gateway.kill()


def test_a_cheap_instance_reloads(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, "--idle", "1")
        assert status(gateway) == 200
        wait_until(lambda: not workers(gateway), "no worker")
        gateway.process.send_signal(signal.SIGHUP)
        logged(gateway, "] reloaded: ")
        wait_until(lambda: not workers(gateway), "no worker, and no guardian")
        assert status(gateway) == 200


# --- the end ------------------------------------------------------------------------------------


def test_drain_delay() -> None:
    port = free_port()
    with RawHttpNode() as node:
        gateway = Gateway(
            "--http-to", node.spec, "--drain-delay", "2", "--http-stats", f"127.0.0.1:{port}"
        )
        try:
            assert status(gateway) == 200
            gateway.terminate()
            logged(gateway, "SIGTERM received: not ready any more, draining in 2 s")
            assert probe(port, "readyz") == 503
            assert probe(port, "healthz") == 200
            # A balancer that has not looked yet sends a few more.
            assert status(gateway) == 200
            assert gateway.process.wait(DEADLINE) == 0
        finally:
            gateway.kill()


def test_exit_on_reload() -> None:
    with RawHttpNode() as node:
        gateway = Gateway("--http-to", node.spec, "--exit-on-reload")
        try:
            gateway.process.send_signal(signal.SIGHUP)
            assert gateway.process.wait(DEADLINE) == 0
        finally:
            gateway.kill()
