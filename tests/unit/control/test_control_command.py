"""``uwgate reload|stop|status|nodes`` with the real control server, and with odd ones."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.orders import Remembered
from support.waiting import DEADLINE

from uwgate.control import client
from uwgate.control.client import Connection, OrderError, candidates
from uwgate.control.command import main
from uwgate.control.table import render
from uwgate.master.control_server import ControlServer
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.nodes.command import main as nodes

Script = Callable[[Remembered], bool]
"""Called after every turn of the loop; True: everything is played."""


@contextmanager
def serving(path: Path, play: Script) -> Iterator[Remembered]:
    """A control server at ``path`` whose master does as ``play`` says, until that has ended."""
    log = MainLog(str(path) + ".log")
    loop, orders = Loop(log), Remembered()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = ControlServer(listener, loop, log, orders)
    limit = time.monotonic() + DEADLINE

    def run() -> None:
        while not play(orders) and time.monotonic() < limit:
            loop.run_once(0.01)
        # What is left to send or to read of those who have their answer.
        while server._connections and time.monotonic() < limit:
            loop.run_once(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield orders
    finally:
        thread.join()
        server.close()
        loop.close()
        log.close()


@contextmanager
def saying(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """A socket that answers one line with each of these, and then ends."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(DEADLINE)

        def run() -> None:
            for answer in answers:
                sock, _address = listener.accept()
                with sock, sock.makefile("rb") as file:
                    asked.append(file.readline())
                    sock.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield asked
        finally:
            thread.join()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the instance listens; nothing else is found."""
    monkeypatch.setattr(client, "USUAL", str(tmp_path / "usual.sock"))
    monkeypatch.setenv("UWGATE_CONTROL", str(tmp_path / "control.sock"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / "control.sock"


def outcome(code: int, text: str, *lines: str) -> Script:
    """Every order ends like this."""

    def play(orders: Remembered) -> bool:
        for report in orders.reports:
            assert report is not None
            for line in lines:
                report.line(line)
            report.done(code, text)
        return bool(orders.reports)

    return play


def test_reload(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(path, outcome(0, "reloaded", "checking", "warning: \x1b[31m")) as orders:
        assert main(["reload"]) == 0
    assert orders.seen == [f"reload: uwgate reload (uid {os.geteuid()})"]
    output = capfd.readouterr()
    assert output.out == "reloaded\n"
    assert output.err == "checking\nwarning: \\x1b[31m\n"


def test_chain_reload_that_fails(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = path.with_name("other")
    with serving(other, outcome(1, "nothing has changed", "error: x.ini: no such file")) as orders:
        assert main(["reload", "--chain", "-c", str(other)]) == 1
    assert orders.seen[0].startswith("reload chain: ")
    output = capfd.readouterr()
    assert output.out == ""
    errors = "error: x.ini: no such file\nuwgate reload: error: nothing has changed\n"
    assert output.err == errors


def test_lines_are_printed_as_they_come(path: Path) -> None:
    told = threading.Event()

    def play(orders: Remembered) -> bool:
        for report in orders.reports[:1]:
            assert report is not None
            if not told.is_set():
                report.line("checking")
                told.set()
            elif read.is_set():
                report.done(0, "")
                return True
        return False

    read = threading.Event()
    words = [sys.executable, "-c", _MAIN, "reload"]
    with serving(path, play):
        process = subprocess.Popen(words, stderr=subprocess.PIPE, env=dict(os.environ))
        assert process.stderr is not None
        with process.stderr:
            assert process.stderr.readline() == b"checking\n"
            read.set()
            assert process.wait(DEADLINE) == 0


_MAIN = "import sys; from uwgate.control.command import main; sys.exit(main(sys.argv[1:]))"


def test_nobody_there(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = f"no instance answers at {path}: no such file or directory"
    for name in ("reload", "stop", "status"):
        assert main([name]) == 2
        assert capfd.readouterr().err == f"uwgate {name}: error: {missing}\n"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert main(["status"]) == 2
    assert "connection refused\n" in capfd.readouterr().err
    assert main(["status", "-c", "x" * 200]) == 2
    assert "too long" in capfd.readouterr().err


def test_the_usual_places(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = path.with_name("run")
    (runtime / "uwgate").mkdir(parents=True)
    monkeypatch.setenv("UWGATE_CONTROL", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    usual, own = client.USUAL, str(runtime / "uwgate" / "control.sock")
    assert main(["reload"]) == 2
    message = f"no instance answers at {usual}: no such file or directory, nor at {own}: no such"
    assert message in capfd.readouterr().err
    for place in (own, usual):
        with serving(Path(place), outcome(0, place)):
            assert main(["reload"]) == 0
        assert capfd.readouterr().out == f"{place}\n"


def test_candidates() -> None:
    environ = {"UWGATE_CONTROL": "/b", "XDG_RUNTIME_DIR": "/c"}
    assert candidates("/a", environ) == ["/a"]
    assert candidates("", environ) == ["/b"]
    del environ["UWGATE_CONTROL"]
    assert candidates("", environ) == ["/run/uwgate/control.sock", "/c/uwgate/control.sock"]
    assert candidates("", {}) == ["/run/uwgate/control.sock"]


@pytest.mark.parametrize(
    "words",
    [
        ["reload", "now"],
        ["reload", "--json"],
        ["reload", "--timeout", "0"],
        ["stop", "--timeout", "x"],
        ["stop", "--chain"],
        ["status", "--chain"],
    ],
)
def test_what_is_not_understood(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert f"uwgate {words[0]}: error: " in capfd.readouterr().err


def test_not_in_time(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(path, lambda orders: bool(orders.reports)):
        assert main(["reload", "--timeout", "0.05"]) == 1
    assert capfd.readouterr().err == "uwgate reload: error: no answer in time\n"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "the instance has ended before it was done"),
        (b'{"pid": 1}\n{"do', "the instance has ended before it was done"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is not that of a control socket"),
        (b"[" * 10_000 + b"\n", "the answer is not that of a control socket"),
        (b'{"error": "no\\u001b"}\n', "no\\x1b"),
        (b'{"done": true, "text": ""}\n', "it failed"),
    ],
)
def test_other_answers(
    path: Path, capfd: pytest.CaptureFixture[str], answer: bytes, problem: str
) -> None:
    with saying(path, answer) as asked:
        assert main(["reload"]) == 1
    assert json.loads(asked[0]) == {"command": "reload", "chain": False}
    assert capfd.readouterr().err == f"uwgate reload: error: {problem}\n"


def test_an_answer_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LIMIT", 1000)
    with (
        saying(path, b"x" * 1001),
        Connection([str(path)], time.monotonic() + DEADLINE) as connection,
        pytest.raises(OrderError, match="larger than"),
    ):
        list(connection.ask({"command": "status"}))


# --- stop -----------------------------------------------------------------------------------------

# Says that it will stop, closes the connection, and ends a while later.
_LATE = """
import json, os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
sock = listener.accept()[0]
sock.recv(100)
sock.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\\n")
sock.sendall(b'{"done": 0, "text": "stopping"}\\n')
sock.close()
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("seconds", "code"), [("0.2", 0), ("30", 1)])
def test_stop_waits_for_the_end_of_the_process(
    path: Path, capfd: pytest.CaptureFixture[str], seconds: str, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _LATE, str(path), seconds], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    timeout = str(DEADLINE if code == 0 else 1)
    assert main(["stop", "--timeout", timeout]) == code
    if code == 0:
        assert process.poll() == 0, "it has not waited"
    else:
        process.kill()
        process.wait()
    output = capfd.readouterr()
    assert output.out == "stopping\n"
    late = f"uwgate stop: error: process {process.pid} has not ended in time\n"
    assert output.err == (late if code else "")


def test_stop_of_a_process_in_another_namespace(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its number is somebody else's here: the end of the connection has to do."""
    with saying(path, b'{"pid": 1}\n{"line": "draining"}\n'):
        assert main(["stop"]) == 0
    assert capfd.readouterr().err == "draining\n"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "the connection was closed without an answer"),
        (b'{"done": 1, "text": "no"}\n', "no"),
        (b'{"error": "you may not"}\n', "you may not"),
    ],
)
def test_stop_that_fails(
    path: Path, capfd: pytest.CaptureFixture[str], answer: bytes, problem: str
) -> None:
    with saying(path, answer):
        assert main(["stop"]) == 1
    assert capfd.readouterr().err == f"uwgate stop: error: {problem}\n"


# --- status and nodes -----------------------------------------------------------------------------

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 4711,
    "state": "running",
    "started": 1_000_000.5,
    "reloads": 1,
    "workers": [
        {
            "gateway": "http",
            "id": 1,
            "pid": 4712,
            "status": "idle",
            "draining": False,
            "requests": 12345,
            "rss": 31_500_000,
            "started": 1_000_100.0,
        },
        {"gateway": "fastrouter", "id": 12, "pid": 0, "status": "dead"},
        {"gateway": "http", "id": 1, "pid": 4000, "status": "busy", "draining": True},
    ],
    "listeners": {"http": ["0.0.0.0:80", "/run/\x1b.sock"], "fastrouter": ["127.0.0.1:3031"]},
}

TABLE = r"""uwgate 0.1.0 (pid 4711): running, up 1d 2h, 1 reload

GATEWAY     LISTENS ON
http        0.0.0.0:80, /run/\x1b.sock
fastrouter  127.0.0.1:3031

GATEWAY     WORKER   PID  STATUS    REQUESTS   MEMORY     UP
http             1  4712  idle         12345  30.0 MB  1d 2h
fastrouter      12     -  dead             0        -      -
http             1  4000  draining         0        -      -
"""


def test_table() -> None:
    assert render(STATUS, 1_000_000 + 86_400 + 7_500) == TABLE
    assert render({}, 5).splitlines() == [
        "uwgate - (pid 0): -, up -, 0 reloads",
        "",
        "no workers",
    ]
    odd = {"workers": [1, {"pid": "x", "rss": float("nan")}], "listeners": {"a": 1}, "started": []}
    assert len(render(odd, 100).splitlines()) == 7


def answering_status(orders: Remembered) -> bool:
    for answer in orders.statuses:
        answer(STATUS)
    return bool(orders.statuses)


def test_status(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(path, answering_status):
        assert main(["status"]) == 0
    output = capfd.readouterr()
    assert output.out.splitlines()[2:5] == TABLE.splitlines()[2:5]
    assert output.err == ""


def test_status_as_json(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(path, answering_status):
        assert main(["status", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == STATUS


def test_a_re_execution_in_the_midst_of_an_answer(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"done": 0, "status": STATUS}).encode() + b"\n"
    with saying(path, good[:50], good):
        assert main(["status", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == STATUS
    path.unlink()
    with saying(path, b"", b""):
        assert main(["status"]) == 1
    problem = "the connection was closed without an answer"
    assert capfd.readouterr().err == f"uwgate status: error: {problem}\n"


def test_nodes_by_the_control_socket(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    document = {"static_nodes": [{"name": "10.0.0.9:80", "hits": 7, "gateway": "http"}]}

    def play(orders: Remembered) -> bool:
        for answer in orders.documents:
            answer(json.dumps(document).encode())
        return bool(orders.documents)

    with serving(path, play):
        assert nodes(["--json"]) == 0
    assert json.loads(capfd.readouterr().out) == document
    with saying(path.with_name("other"), b'{"done":0,"stats":"[]"}\n'):
        assert nodes(["--control", str(path.with_name("other"))]) == 1
    problem = f"uwgate nodes: {path.with_name('other')}: the answer is not the statistics"
    assert problem in capfd.readouterr().err


def test_nodes_without_an_instance(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert nodes([]) == 2
    output = capfd.readouterr()
    assert output.err.startswith("uwgate nodes: error: no STATS-ADDRESS, and no instance answers")
    with pytest.raises(SystemExit) as left:
        nodes(["--control", str(path), "127.0.0.1:1"])
    assert left.value.code == 2
