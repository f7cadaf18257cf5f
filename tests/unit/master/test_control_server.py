"""The control socket: requests, outcomes, limits, whom it obeys, and what passes over an exec."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.orders import Remembered
from support.waiting import DEADLINE, wait_until

from uwgate.master import control_server
from uwgate.master.control_server import MAX_CONNECTIONS, MAX_REQUEST, ControlServer
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop

NOBODY = 65534
ME = {"pid": os.getpid()}


class Client:
    """A client's end; reads what the loop has made of it."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setblocking(False)
        self.sock.connect(served.path)
        self._kept = b""

    def send(self, data: bytes | dict[str, Any]) -> None:
        self.sock.send(json.dumps(data).encode() + b"\n" if isinstance(data, dict) else data)

    def receive(self) -> list[dict[str, Any]]:
        """All lines that are there now."""
        with suppress(BlockingIOError, ConnectionResetError):
            while data := self.sock.recv(1 << 20):
                self._kept += data
        *lines, self._kept = self._kept.split(b"\n")
        return [json.loads(line) for line in lines]

    def answer(self, count: int = 1) -> list[dict[str, Any]]:
        """So many lines, and no more."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found.extend(self.receive())
            return len(found) >= count

        self._served.run_until(enough)
        assert len(found) == count
        return found

    def assert_closed(self) -> None:
        def closed() -> bool:
            try:
                return self.sock.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        self._served.run_until(closed)

    def assert_open(self) -> None:
        self._served.turn()
        assert not select.select([self.sock], [], [], 0)[0]


class Served:
    """A server, its loop, and what it was asked for."""

    def __init__(self, directory: Path, allowed: frozenset[int] = frozenset()) -> None:
        self.path = str(directory / "control.sock")
        self._log_file = directory / "log"
        self.log = MainLog(str(self._log_file))
        self.loop = Loop(self.log)
        self.orders = Remembered()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(100)
        self.server = self.make(allowed)
        self.clients: list[Client] = []

    def make(self, allowed: frozenset[int] = frozenset()) -> ControlServer:
        return ControlServer(self.listener, self.loop, self.log, self.orders, allowed=allowed)

    @property
    def lines(self) -> list[str]:
        return [line.partition("] ")[2] for line in self._log_file.read_text().splitlines()]

    def client(self, request: bytes | dict[str, Any] = b"") -> Client:
        client = Client(self)
        self.clients.append(client)
        if request:
            client.send(request)
        return client

    def turn(self) -> None:
        """Whatever is ready now, and what comes of it."""
        for _ in range(5):
            self.loop.run_once(0)

    def run_until(self, condition: Callable[[], object]) -> None:
        def tried() -> object:
            self.loop.run_once(0.005)
            return condition()

        wait_until(tried)

    def ordered(self, *expected: str) -> None:
        self.run_until(lambda: len(self.orders.seen) >= len(expected))
        assert self.orders.seen == list(expected)

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.sock.close()
        self.loop.close()
        self.log.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


WHY = f"(uid {os.geteuid()})"


@pytest.mark.parametrize("chain", [None, False, True])
def test_reload(served: Served, chain: bool | None) -> None:
    request = {"command": "reload"} | ({} if chain is None else {"chain": chain})
    client = served.client(request)
    assert client.answer() == [ME]
    served.ordered(f"reload{' chain' if chain else ''}: uwgate reload {WHY}")
    (report,) = served.orders.reports
    assert report is not None
    report.line("one\ntwo")
    assert client.answer() == [{"line": "one\ntwo"}]
    client.assert_open()
    report.done(1, "no")
    report.done(0, "yes")
    report.line("more")
    assert client.answer() == [{"done": 1, "text": "no"}]
    client.assert_closed()


def test_stop_ends_with_the_process(served: Served) -> None:
    client = served.client({"command": "stop"})
    assert client.answer() == [ME]
    served.ordered(f"stop: uwgate stop {WHY}")
    (report,) = served.orders.reports
    assert report is not None
    report.done(0, "draining")
    assert client.answer() == [{"done": 0, "text": "draining"}]
    before = set(os.listdir("/proc/self/fd"))
    served.server.close()
    client.assert_open()
    served.server.close()  # as the fixture does; nothing twice
    left = [fd for fd in before if _accepted_at(int(fd), served.path)]
    assert len(left) == 1
    os.close(int(left[0]))  # exit
    client.assert_closed()


def _accepted_at(fd: int, path: str) -> bool:
    """Whether it is a connection to ``path``, of the server's side. Nothing is written: among the
    descriptors of this process are those of other tests, and of the zygote."""
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        return False
    with sock:
        return sock.family == socket.AF_UNIX and sock.getsockname() == path


def test_a_stop_that_is_refused(served: Served) -> None:
    client = served.client({"command": "stop"})
    served.run_until(lambda: served.orders.reports)
    served.orders.reports[0].done(1, "no")  # type: ignore[union-attr]
    assert client.answer(2) == [ME, {"done": 1, "text": "no"}]
    client.assert_closed()


def test_status(served: Served) -> None:
    client = served.client({"command": "status"})
    served.run_until(lambda: served.orders.statuses)
    client.assert_open()
    served.orders.statuses[0]({"state": "running", "pid": 7})
    assert client.answer() == [{"done": 0, "status": {"state": "running", "pid": 7}}]
    client.assert_closed()
    served.orders.statuses[0]({"state": "running"})  # it has left


def test_stats_are_made_once_for_all_who_ask(served: Served) -> None:
    clients = [served.client({"command": "stats"}) for _ in range(3)]
    served.run_until(lambda: served.orders.documents)
    served.turn()
    assert len(served.orders.documents) == 1
    served.orders.documents[0]('{"a": "é"}'.encode())
    for client in clients:
        assert client.answer() == [{"done": 0, "stats": '{"a": "é"}'}]
        client.assert_closed()


def test_a_document_that_never_comes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.client({"command": "stats"})
    served.run_until(lambda: served.orders.documents)
    monkeypatch.setattr(control_server, "_PATIENCE", 0.0)
    client = served.client({"command": "stats"})
    served.run_until(lambda: len(served.orders.documents) == 2)
    served.orders.documents[1](b"{}")
    assert client.answer() == [{"done": 0, "stats": "{}"}]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"\n", "a request is one JSON object on a line"),
        (b"[]\n", "a request is one JSON object on a line"),
        (b"\xff{}\n", "a request is one JSON object on a line"),
        (b"[" * 4000 + b"\n", "a request is one JSON object on a line"),
        (b"{}\n", "there is no such command"),
        (b'{"command": ["stop"]}\n', "there is no such command"),
        (b'{"command": "reload", "chain": 1}\n', "there is no such command"),
        (b'{"command": "quit"}\n', "there is no such command"),
        (b"x" * MAX_REQUEST, "a request has at most 4096 bytes"),
    ],
)
def test_nonsense(served: Served, request_: bytes, error: str) -> None:
    client = served.client(request_)
    assert client.answer() == [{"error": error}]
    client.assert_closed()
    assert served.orders.seen == []


def test_a_request_may_come_in_pieces_and_is_the_only_one(served: Served) -> None:
    client = served.client()
    for byte in b'{"command":"reload"}\n{"command":"stop"}\n':
        client.send(bytes([byte]))
        served.turn()
    assert client.answer() == [ME]
    assert served.orders.seen == [f"reload: uwgate reload {WHY}"]


def test_half_closed_clients_get_their_answer(served: Served) -> None:
    client = served.client({"command": "status"})
    client.sock.shutdown(socket.SHUT_WR)
    served.run_until(lambda: served.orders.statuses)
    served.turn()
    served.orders.statuses[0]({})
    assert client.answer() == [{"done": 0, "status": {}}]
    client.assert_closed()


def test_clients_that_leave_do_not_matter(served: Served) -> None:
    served.client().sock.close()
    served.client(b'{"comm').sock.close()
    waiting = served.client({"command": "reload"})
    served.run_until(lambda: served.orders.reports)
    waiting.sock.close()
    served.turn()
    assert served.server.handover() == []
    report = served.orders.reports[0]
    assert report is not None
    report.line("x")
    report.done(0, "x")
    assert not [line for line in served.lines if "Traceback" in line]


def test_a_silent_client(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server._Connection._limit, "__defaults__", (0.02,))
    client = served.client(b'{"command":')
    assert client.answer() == [{"error": "the request did not arrive in time"}]
    client.assert_closed()


def test_waiting_for_a_reload_takes_as_long_as_it_takes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server._Connection._limit, "__defaults__", (0.3,))
    client = served.client({"command": "reload"})
    assert client.answer() == [ME]
    limit = time.monotonic() + 0.5
    served.run_until(lambda: time.monotonic() > limit)
    client.assert_open()


def test_a_slow_reader_costs_lines_and_then_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = served.client({"command": "reload"})
    served.run_until(lambda: served.orders.reports)
    report = served.orders.reports[0]
    assert report is not None
    began = time.monotonic()
    for number in range(5000):
        report.line(f"{number} " + "x" * 500)
    assert time.monotonic() - began < DEADLINE, "waited for the reader"
    assert report._queued <= control_server.MAX_LINES  # type: ignore[attr-defined]
    report.done(0, "fine")
    told: list[dict[str, Any]] = []

    def ended() -> bool:
        told.extend(client.receive())
        return "done" in told[-1]

    served.run_until(ended)
    lines = [int(each["line"].split()[0]) for each in told[1:-1]]
    assert lines == list(range(len(lines)))
    assert 100 < len(lines) < 5000
    assert told[-1] == {"done": 0, "text": "fine"}
    client.assert_closed()


def test_who_takes_nothing_of_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server._Connection._limit, "__defaults__", (0.3,))
    stuck = served.client({"command": "stats"})
    served.run_until(lambda: served.orders.documents)
    served.orders.documents[0](b"x" * (4 << 20))
    served.run_until(lambda: not served.server._connections)
    with pytest.raises(AssertionError, match="not within"):
        wait_until(lambda: stuck.receive(), seconds=0.01)  # it was cut off


def test_a_large_answer_arrives_whole(served: Served) -> None:
    client = served.client({"command": "stats"})
    served.run_until(lambda: served.orders.documents)
    served.orders.documents[0](b"x" * (4 << 20))
    assert client.answer() == [{"done": 0, "stats": "x" * (4 << 20)}]


def test_connections_are_bounded(served: Served) -> None:
    first = [served.client({"command": "reload"}) for _ in range(MAX_CONNECTIONS)]
    served.run_until(lambda: len(served.orders.reports) == MAX_CONNECTIONS)
    late = served.client({"command": "reload"})
    served.turn()
    assert len(served.orders.reports) == MAX_CONNECTIONS
    first[0].sock.close()
    assert late.answer() == [ME]


def test_an_order_that_fails(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("broken")

    for command in ("status", "stats", "reload", "stop"):
        monkeypatch.setattr(served.orders, command, fail)
        client = served.client({"command": command})
        told = client.answer(1 if command in ("status", "stats") else 2)
        assert told[-1] == {"error": "it failed; the log says why"}
        client.assert_closed()
    assert f"uwgate stop {WHY}: RuntimeError: broken" in served.lines
    monkeypatch.undo()
    client = served.client({"command": "stats"})
    served.run_until(lambda: served.orders.documents)


def test_the_end_of_the_server(served: Served) -> None:
    clients = [served.client({"command": "reload"}), served.client({"command": "status"})]
    served.run_until(lambda: served.orders.reports and served.orders.statuses)
    served.server.close()
    assert clients[0].answer(2) == [ME, {"done": 1, "text": "the instance has ended"}]
    for client in clients:
        client.assert_closed()
    served.orders.statuses[0]({})


# --- whom it obeys --------------------------------------------------------------------------------


def as_nobody(served: Served, request: dict[str, Any]) -> Client:
    os.chmod(served.path, 0o666)  # noqa: S103
    os.chmod(Path(served.path).parent, 0o755)  # noqa: S103
    directory = os.open(Path(served.path).parent, os.O_PATH)
    served.path = f"/proc/self/fd/{directory}/control.sock"
    os.seteuid(NOBODY)
    try:
        return served.client(request)
    finally:
        os.seteuid(0)
        os.close(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_strangers_are_refused(tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        path = served.path
        for _ in range(5):
            served.path = path
            client = as_nobody(served, {"command": "stop"})
            error = f"user {NOBODY} may not give orders to this instance"
            assert client.answer() == [{"error": error}]
            client.assert_closed()
        assert served.orders.seen == []
        refused = [line for line in served.lines if "refused user 65534" in line]
        assert len(refused) == 3  # the 1st, the 2nd, the 4th
        assert f"(pid {os.getpid()}; 4 times)" in refused[2]
    finally:
        served.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_started_it_may(tmp_path: Path) -> None:
    served = Served(tmp_path, frozenset({NOBODY}))
    try:
        as_nobody(served, {"command": "reload"})
        served.ordered(f"reload: uwgate reload (uid {NOBODY})")
    finally:
        served.close()


# --- over a re-execution --------------------------------------------------------------------------


def executed(served: Served) -> Any:
    """The server after this one gets copies of the descriptors; the old one is gone."""
    handed = json.loads(json.dumps(served.server.handover()))
    for value in handed:
        value["fd"] = os.dup(value["fd"])
    old, kept = served.server, served.listener.dup()
    for connection in list(old._connections.values()):
        connection._close()
    old.close()
    served.listener = kept
    served.orders = Remembered()
    served.server = served.make()
    served.server.adopt(handed)
    return handed


def test_who_waits_for_a_reload_is_told_by_the_new_master(served: Served) -> None:
    client = served.client({"command": "reload"})
    served.run_until(lambda: served.orders.reports)
    served.client({"command": "stop"})
    served.run_until(lambda: len(served.orders.reports) == 2)
    served.orders.reports[0].line("checked")  # type: ignore[union-attr]
    handed = executed(served)
    (fd,) = [value["fd"] for value in handed if value.get("command") == "reload"]
    assert not os.get_inheritable(fd)
    report = served.server.waiting(fd)
    assert served.server.waiters == [report]
    assert served.server.waiting(fd + 1000) is None
    assert report is not None
    report.line("ready")
    report.done(0, "reloaded")
    lines = [ME, {"line": "checked"}, {"line": "ready"}, {"done": 0, "text": "reloaded"}]
    assert client.answer(4) == lines
    client.assert_closed()
    served.client({"command": "reload"})
    served.run_until(lambda: served.orders.seen)
    assert served.server.waiters == []


def test_other_requests_are_read_again(served: Served) -> None:
    half = served.client(b'{"command":')
    status = served.client({"command": "status"})
    stop = served.client({"command": "stop"})
    served.run_until(lambda: served.orders.statuses and served.orders.reports)
    executed(served)
    assert served.orders.seen == [], "obeyed before the master was ready"
    served.run_until(lambda: served.orders.statuses and served.orders.reports)
    served.orders.statuses[0]({"pid": 1})
    assert status.answer() == [{"done": 0, "status": {"pid": 1}}]
    assert stop.answer(2) == [ME, ME]
    half.send(b'"reload"}\n')
    assert half.answer() == [ME]
    served.orders.reports[0].done(1, "no")  # type: ignore[union-attr]


def test_unsent_lines_pass(served: Served) -> None:
    client = served.client({"command": "reload"})
    served.run_until(lambda: served.orders.reports)
    for number in range(2000):
        served.orders.reports[0].line(f"{number} " + "x" * 500)  # type: ignore[union-attr]
    executed(served)
    served.server.waiters[0].done(0, "reloaded")
    told: list[dict[str, Any]] = []

    def ended() -> bool:
        told.extend(client.receive())
        return told[-1] == {"done": 0, "text": "reloaded"}

    served.run_until(ended)
    lines = [int(each["line"].split()[0]) for each in told[1:-1]]
    assert lines == list(range(len(lines)))


@pytest.mark.parametrize("value", [None, {}, {"fd": "x"}, {"fd": 10**6, "in": ""}, {"fd": 0}, 7])
def test_nonsense_that_was_handed_over(served: Served, value: object) -> None:
    served.server.adopt([value])
    client = served.client({"command": "reload"})
    assert client.answer() == [ME]
