"""A worker that somebody has taken over, with all that a worker has: its master stays the master.

What it does is in its mapper, which is the operator's code in the worker's process.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
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
    return {node!r}
"""


class Hostile(Reloadable):
    """``command``: what its worker does when it gets the next request."""

    def __init__(self, where: Path, node: RawHttpNode) -> None:
        self._command = where / "command"
        self._command.touch()
        mapper = where / "mapper.py"
        place = f"http://{node.address}"
        mapper.write_text(MAPPER.format(command=str(self._command), node=place))
        super().__init__(where, f"http-use-code-string = 0:{mapper}:find")

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
        '{"type":"stats","round":0,"snapshot":{"gateways":{"fastrouter":{"listeners":["x"]}}}}',
        '{"type":"stats","round":0,"snapshot":{"started":NaN}}',
        '{"type":"stats","round":0,"snapshot":[]}',
        '{"type":"stats","round":0,"snapshot":' + "[" * 100_000,
        '{"type":["stats"]}{',
    ],
    ids=[
        *("listeners", "huge-node", "huge-tally", "certificates", "subscriptions", "surrogate"),
        *("other-gateway", "NaN", "no-snapshot", "deep", "trailing"),
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
        ("x", "message too long"),
    ],
    ids=["empty", "failed", "mark", "endless"],
)
def test_floods(hostile: Hostile, line: str, why: str) -> None:
    hostile.attack(f"flood {line}")
    hostile.logged(f"talks nonsense ({why}): killed")
    assert hostile.log.count("cannot start") <= 1
    hostile.check()


def test_deaf(hostile: Hostile) -> None:
    hostile.attack("deaf ")
    hostile.check()
