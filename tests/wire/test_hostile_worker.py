"""A worker that somebody has taken over, with all that a worker has: its master stays the master.

What it does is in its mapper, which is the operator's code in the worker's process.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.nodes import RawHttpNode
from support.reloading import Reloadable
from support.waiting import wait_until

MAPPER = """
import json, os, socket, struct, threading

def channel():
    \"\"\"The one socket whose other end the master has.\"\"\"
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", peer)[0] == os.getppid():
                sock.setblocking(True)
                return sock
        sock.close()

def flood(sock, line):
    while True:
        sock.sendall(line)

def deaf(sock):
    sock.shutdown(socket.SHUT_RDWR)
    threading.Event().wait()

def ruin():
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.shutdown(socket.SHUT_RDWR)
            if sock.family == socket.AF_INET:
                other = socket.create_server(("127.0.0.1", 0))
                sock.setblocking(True)
                sock.connect(other.getsockname())
    os._exit(9)

def find(key):
    command = open({command!r}).read()
    if command:
        open({command!r}, "w").close()
        sock = channel()
        kind, _, line = command.partition(" ")
        if kind == "say":
            sock.sendall(line.encode() + b"\\n")
            os._exit(9)
        elif kind == "flood":
            threading.Thread(target=flood, args=(sock, line.encode() * 1000)).start()
            threading.Event().wait()
        elif kind == "deaf":
            deaf(sock)
        elif kind == "ruin":
            ruin()
    return {node!r}
"""


class Hostile(Reloadable):
    """``command``: what its worker does when it gets the next request."""

    def __init__(self, where: Path, node: RawHttpNode, *more: str) -> None:
        self._command = where / "command"
        self._command.touch()
        mapper = where / "mapper.py"
        place = f"http://{node.address}"
        mapper.write_text(MAPPER.format(command=str(self._command), node=place))
        super().__init__(where, "\n".join([f"http-use-code-string = 0:{mapper}:find", *more]))

    def attack(self, command: str) -> None:
        """And wait until its master has buried and replaced it."""
        self._command.write_text(command)
        wait_until(lambda: len(self.workers) == 1, "there is a worker")
        (worker,) = self.workers
        with self.connect() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            wait_until(
                lambda: self.workers and worker not in self.workers, "it is replaced", 30
            )
        self.logged(f"(pid: {worker}) died: ")

    def check(self) -> None:
        """The master hears and does what it is told, and forgets nobody."""
        self.reload()
        with self.connect() as client:
            assert client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").status == 200
        assert "Traceback" not in self.log
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    with RawHttpNode() as node:
        gateway = Hostile(tmp_path, node)
        try:
            yield gateway
        finally:
            gateway.kill()


def snapshot(**gateway: object) -> str:
    value = {"gateways": {"http": {"tally": {}, "listeners": [], "nodes": []} | gateway}}
    return json.dumps({"type": "stats", "round": 0, "snapshot": value})


@pytest.mark.parametrize(
    "line",
    [
        snapshot(listeners=5),
        snapshot(nodes=[{"name": "n", "requests": int("9" * 4000)}]),
        snapshot(tally={"requests": int("9" * 4000)}),
        snapshot(tls={"certificates": 1}),
        snapshot(subscriptions={"slots": {"k": {"nodes": {"a": 1}}}}),
        snapshot(cheap="\ud800"),
        '{"type":"stats","round":0,"snapshot":{"started":NaN}}',
        '{"type":"stats","round":0,"snapshot":[]}',
        '{"type":"stats","round":0,"snapshot":' + "[" * 100_000,
        '{"type":["stats"]}{',
    ],
    ids=[
        *("listeners", "huge-node", "huge-tally", "certificates", "subscriptions", "surrogate"),
        *("NaN", "no-snapshot", "deep", "trailing"),
    ],
)
def test_nonsense(hostile: Hostile, line: str) -> None:
    hostile.attack(f"say {line}")
    hostile.logged("talks nonsense (")
    hostile.check()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{}\n", "too many messages"),
        ('{"type":"failed","reason":"x"}\n', "too many messages"),
        ('{"type":"mark","key":"k","address":"a","reason":"r"}\n', "too many messages"),
        (snapshot().replace("\\", "") + "\n", "statistics that nobody asked for"),
        ("x", "message too long"),
    ],
    ids=["empty", "failed", "mark", "stats", "endless"],
)
def test_floods(hostile: Hostile, line: str, why: str) -> None:
    hostile.attack(f"flood {line}")
    hostile.logged(f"talks nonsense ({why}): killed")
    assert hostile.log.count("cannot start") <= 1
    hostile.check()


def test_deaf(hostile: Hostile) -> None:
    hostile.attack("deaf ")
    hostile.check()


def test_a_ruined_socket_is_bound_anew_by_a_reload(tmp_path: Path) -> None:
    """A copy of a listening socket is enough to end it for all."""
    path = tmp_path / "socket"
    with RawHttpNode() as node:
        gateway = Hostile(tmp_path, node, f"http = {path}")
        try:
            gateway.attack("ruin ")
            gateway.reload()
            assert gateway.log.count("somebody has shut it down; it is bound anew") >= 1
            for address in (gateway.address, str(path)):
                with Client(address) as client:
                    assert client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").status == 200
        finally:
            gateway.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a right up")
def test_a_rehearsal_has_the_rights_of_a_worker(tmp_path: Path) -> None:
    """What only a worker is to run is run by nobody else when a reload is tried."""
    ids = tmp_path / "ids"
    ids.touch(mode=0o666)
    ids.chmod(0o666)
    tmp_path.chmod(0o755)
    mapper = tmp_path / "mapper.py"
    mapper.write_text(
        f"import os\nopen({str(ids)!r}, 'a').write(f'{{os.geteuid()}} ')\n"
        "def find(key):\n    return None\n"
    )
    for directory in (tmp_path.parent, tmp_path.parent.parent, tmp_path.parent.parent.parent):
        directory.chmod(directory.stat().st_mode | 0o011)
    text = f"http-use-code-string = 0:{mapper}:find\nhttp-uid = 65534\nhttp-gid = 65534"
    gateway = Reloadable(tmp_path, text)
    try:
        gateway.reload()
        assert set(ids.read_text().split()) == {"65534"}
        assert len(ids.read_text().split()) == 3
    finally:
        gateway.kill()
