"""The processes as a user sees them: the command, its exit codes, its log, its signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from support.nodes import RawHttpNode, held
from support.uwgate import ROOT, Gateway
from support.waiting import DEADLINE, dead_address, free_port, wait_until

StartGateway = Callable[..., Gateway]

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """Run ``uwgate`` to its end, which has to come soon."""
    return subprocess.run(
        [sys.executable, "-m", "uwgate", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def test_address_in_use(start_gateway: StartGateway) -> None:
    first = start_gateway("--http-to", dead_address())
    for processes in ("1", "2"):
        done = command(
            "--http", first.listen, "--http-to", dead_address(), "--http-processes", processes
        )
        assert done.returncode == 1
        line = f"uwgate: error: http = {first.listen}: address already in use"
        assert done.stderr.splitlines()[-1] == line
        assert "Traceback" not in done.stderr


def test_regular_file_in_the_way() -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, "precious")
        path.write_text("data")
        done = command("--http", str(path), "--http-to", dead_address())
        assert done.returncode == 1
        assert f"http = {path}: the file exists and is not a socket" in done.stderr
        assert path.read_text() == "data"


def test_request_in_flight_is_finished_and_the_port_is_free_at_once(
    start_gateway: StartGateway,
) -> None:
    gate = threading.Event()
    with RawHttpNode() as node:
        node.play(held(gate, ANSWER))
        gateway = start_gateway("--http-to", node.spec)
        with gateway.connect() as client:
            client.send(GET)
            node.wait_seen()
            gateway.terminate()
            wait_until(lambda: bindable(gateway.port), "address free")
            gate.set()
            assert client.read_response().body == b"ok"
        assert gateway.process.wait(DEADLINE) == 0


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_several_workers_and_their_replacement(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, "--http-processes", "3")
        wait_until(lambda: len(children(gateway.process.pid)) == 3, "three workers")
        for worker in children(gateway.process.pid):
            os.kill(worker, signal.SIGKILL)
        for _ in range(12):
            with gateway.connect() as client:
                assert client.ask(GET).status == 200
        # The first of them may have served them all.
        wait_until(lambda: gateway.log.count("spawned uwgate http ") >= 6, "six workers")
        assert gateway.log.count("spawned uwgate http ") == 6
        assert "respawned uwgate http 3 (pid: " in gateway.log


def test_shared_socket(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        port = free_port()
        gateway = start_gateway(
            "--shared-socket", f"127.0.0.1:{port}", "--http", "=0", "--http-to", node.spec
        )
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            client.sendall(GET)
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        gateway.stop()


def test_pidfile_of_a_running_instance() -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, "uwgate.pid")
        gateway = Gateway("--http-to", dead_address(), "--pidfile", str(path))
        try:
            assert int(path.read_text()) == gateway.process.pid
            done = command(
                "--http", f"127.0.0.1:{free_port()}", "--pidfile", str(path), "--http-to", "@x"
            )
            assert done.returncode == 1
            running = f"uwgate already runs there (pid {gateway.process.pid})"
            assert f"pidfile = {path}: {running}" in done.stderr
        finally:
            gateway.stop()
        assert not path.exists()


def test_no_worker_can_start() -> None:
    done = command(
        "--http", f"127.0.0.1:{free_port()}", "--http-use-code-string", "0:/no/such/app.py:choose"
    )
    assert done.returncode in (1, 3)
    assert "/no/such/app.py" in done.stderr
    assert "Traceback" not in done.stderr
