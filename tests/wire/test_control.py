"""The control socket of a running instance, and the commands that use it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.nodes import RawHttpNode, held
from support.uwgate import ROOT, Gateway, StartGateway
from support.waiting import DEADLINE, dead_address, wait_until

from uwgate.control.client import ask_once

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def command(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``uwgate WORDS`` for the instance whose control socket is ``path``."""
    done = subprocess.run(
        [sys.executable, "-m", "uwgate", *words],
        cwd=ROOT,
        env={**os.environ, "UWGATE_CONTROL": str(path)},
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def status(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = ask_once([str(path)], "status", DEADLINE)["status"]
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the control socket shall be."""
    return tmp_path / "control.sock"


def test_status_and_nodes(start_gateway: StartGateway, http_node: RawHttpNode, path: Path) -> None:
    gateway = start_gateway(
        *("--http-to", http_node.spec, "--control-socket", str(path)),
        env={"UWGATE_CONTROL": "/nowhere"},  # no option: it is for the commands
    )
    assert "UWGATE_CONTROL" not in gateway.log
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    with gateway.connect() as client:
        assert client.ask(GET).status == 200
    found = status(path)
    assert (found["pid"], found["state"]) == (gateway.process.pid, "running")
    assert found["reloads"] == 0
    assert found["listeners"] == {"http": [gateway.listen]}
    (worker,) = found["workers"]
    assert (worker["gateway"], worker["id"], worker["requests"]) == ("http", 1, 1)
    done = command(path, "status")
    assert done.returncode == 0
    assert f"(pid {gateway.process.pid}): running, up " in done.stdout
    assert gateway.listen in done.stdout
    done = command(path, "nodes")
    assert (done.returncode, done.stderr) == (0, "")
    assert http_node.spec.rpartition("/")[2] in done.stdout


def test_reload(start_gateway: StartGateway, http_node: RawHttpNode, path: Path) -> None:
    gateway = start_gateway("--http-to", http_node.spec, "--control-socket", str(path))
    for number, words in enumerate((["--chain"], []), 1):
        before = status(path)
        done = command(path, "reload", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("reloaded: uwgate ")
        after = status(path)
        assert (after["pid"], after["reloads"]) == (before["pid"], number)
        old, new = ({each["pid"] for each in found["workers"]} for found in (before, after))
        assert new - old
        with gateway.connect() as client:
            assert client.ask(GET).status == 200
    assert gateway.log.count(": chain reload") == 1


def test_reload_with_a_broken_file_changes_nothing(
    start_gateway: StartGateway, http_node: RawHttpNode, path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "router.ini"
    file.write_text(f"[uwsgi]\nhttp-to = {http_node.spec}\n")
    gateway = start_gateway("--ini", str(file), "--control-socket", str(path))
    workers = status(path)["workers"]
    file.write_text("[uwsgi]\nhttp-to = @x\nhttp-timeout = soon\n")
    done = command(path, "reload")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{file}:3" in done.stderr
    assert "http-timeout" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("uwgate reload: error: ")
    assert [each["pid"] for each in status(path)["workers"]] == [each["pid"] for each in workers]
    with gateway.connect() as client:
        assert client.ask(GET).status == 200


def test_stop_returns_when_it_has_ended(path: Path) -> None:
    gate = threading.Event()
    with RawHttpNode() as node:
        node.play(held(gate, ANSWER))
        gateway = Gateway("--http-to", node.spec, "--control-socket", str(path))
        try:
            with gateway.connect() as client:
                client.send(GET)
                node.wait_seen()
                stop = subprocess.Popen(
                    [sys.executable, "-m", "uwgate", "stop", "-c", str(path)],
                    cwd=ROOT,
                    stderr=subprocess.PIPE,
                )
                assert stop.stderr is not None
                with stop.stderr:
                    assert stop.stderr.readline() == b"draining\n"
                    assert stop.poll() is None
                    gate.set()
                    assert client.read_response().body == b"ok"
                    assert stop.wait(DEADLINE) == 0
            assert _has_ended(gateway.process.pid), "it has not waited"
            assert gateway.process.wait(DEADLINE) == 0
            assert not path.exists()
        finally:
            gateway.kill()


def _has_ended(pid: int) -> bool:
    """Whether it has, though its parent may not have buried it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_nobody_there(path: Path) -> None:
    done = command(path, "reload")
    missing = f"no instance answers at {path}: no such file or directory"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"uwgate reload: error: {missing}\n"


def test_odd_clients_do_not_matter(start_gateway: StartGateway, path: Path) -> None:
    gateway = start_gateway("--http-to", dead_address(), "--control-socket", str(path))
    silent, leaving = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with silent, leaving:
        silent.connect(str(path))
        leaving.connect(str(path))
        leaving.sendall(b'{"command": "reload"}\n')
        leaving.close()
        wait_until(lambda: "reloaded: uwgate" in gateway.log, "the reload")
        # The connection that has said nothing yet is one of the new master.
        silent.settimeout(DEADLINE)
        silent.sendall(b'{"command": "status"}\n')
        with silent.makefile("rb") as answer:
            assert json.loads(answer.readline())["status"]["reloads"] == 1
