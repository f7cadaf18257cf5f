"""uwgate as process 1, as it is in a container: in a namespace of its own.

The kernel delivers to process 1 only the signals that it has handlers for, gives it every orphan,
and ends all processes of the namespace with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.client import Client, Truncated
from support.nodes import RawHttpNode, held, response
from support.reloading import children
from support.uwgate import ROOT
from support.waiting import DEADLINE, free_port, wait_until

from interop.peers import needs

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"

# What a hook of an operator may leave behind: a grandchild whose parent is gone.
ORPHAN = "(sh -c 'echo $$ > {where}/orphan; read line < {where}/gate' &)"


class Container:
    """A namespace of processes whose process 1 is uwgate. ``pid``: of that, as we see it."""

    def __init__(self, where: Path, node: RawHttpNode, *words: str) -> None:
        unshare = needs("unshare")
        self.address = ("127.0.0.1", free_port())
        self._log = (where / "log").open("w+")
        listen = f"127.0.0.1:{self.address[1]}"
        namespace = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc"]
        gateway = [sys.executable, "-m", "uwgate", "--http", listen, "--http-to", node.spec]
        self.process = subprocess.Popen(
            [*namespace, *gateway, *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self.logged("] spawned uwgate http 1 ")
            (self.pid,) = children(self.process.pid)
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def logged(self, text: str, times: int = 1) -> None:
        try:
            wait_until(lambda: self.log.count(text) >= times, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def serves(self) -> bool:
        try:
            with Client(self.address) as client:
                return client.ask(GET).status == 200
        except (OSError, Truncated):  # its socket was closed in this very moment
            return False

    def ended(self) -> int:
        """The exit code; unshare has that of process 1."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


def may_unshare() -> bool:
    """Whether this is root, and the kernel lets it."""
    if os.geteuid() != 0:
        return False
    words = [needs("unshare"), "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(words, capture_output=True).returncode == 0


@contextmanager
def container(where: Path, node: RawHttpNode, *words: str) -> Iterator[Container]:
    if not may_unshare():
        pytest.skip("no namespaces of processes here (root only)")
    found = Container(where, node, *words)
    try:
        yield found
        assert "Traceback" not in found.log, found.log
    finally:
        found.kill()


@pytest.fixture
def node() -> Iterator[RawHttpNode]:
    with RawHttpNode() as found:
        yield found


def state_of(pid: int) -> str:
    """R, S, Z…; "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def inner(pid: int) -> int:
    """Its number in its own namespace, 0 for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    (line,) = [line for line in text.splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


def test_it_is_process_1_and_term_drains(tmp_path: Path, node: RawHttpNode) -> None:
    gate = threading.Event()
    with container(tmp_path, node) as it:
        assert "*** starting uwgate" in it.log
        assert "(pid 1)" in it.log
        node.play(held(gate, response(b"late")))
        with Client(it.address) as client:
            client.send(GET)
            node.wait_seen()  # and has that answer, not the next one
            it.send(signal.SIGTERM)
            it.logged("SIGTERM received: draining")
            wait_until(lambda: not it.serves(), "nobody else is served")
            gate.set()
            assert client.read_response().body == b"late"
        assert it.ended() == 0
        assert "goodbye to uwgate." in it.log


def test_it_has_no_company(tmp_path: Path, node: RawHttpNode) -> None:
    """Process 1 has parent 0, which is no other instance: idle clients are not waited for, and the
    files of its sockets go."""
    path = tmp_path / "socket"
    with container(tmp_path, node, "--http", str(path), "--vacuum") as it:
        with Client(it.address) as client:
            assert client.ask(GET).status == 200
            it.send(signal.SIGTERM)
            assert client.read_to_end() == b""
        assert it.ended() == 0
        assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_other_ends(tmp_path: Path, node: RawHttpNode, number: signal.Signals) -> None:
    with container(tmp_path, node) as it:
        it.send(number)
        assert it.ended() == 0


def test_it_reloads_as_process_1(tmp_path: Path, node: RawHttpNode) -> None:
    with container(tmp_path, node) as it:
        old = children(it.pid)
        it.send(signal.SIGHUP)
        it.logged("] reloaded: ")
        assert "(pid 1, reload 1)" in it.log
        assert it.serves()
        wait_until(lambda: not set(old) & set(children(it.pid)), "the old ones are buried")
        # Rehearsal and guardian have left no zombies either.
        wait_until(lambda: len(children(it.pid)) == 1, "there is one worker and nobody else")
        it.send(signal.SIGTERM)
        assert it.ended() == 0


def test_it_buries_orphans(tmp_path: Path, node: RawHttpNode) -> None:
    touched, gate = tmp_path / "touched", tmp_path / "gate"
    touched.touch()
    os.mkfifo(gate)
    hook = ORPHAN.format(where=tmp_path)
    with container(tmp_path, node, "--touch-exec", f"{touched} {hook}") as it:
        (worker,) = children(it.pid)
        os.utime(touched, (1, 1))
        written = tmp_path / "orphan"
        wait_until(lambda: written.exists() and written.read_text(), "the hook ran")

        def orphan() -> list[int]:
            # Not the hook itself, which is a child of process 1 as well until it has ended.
            number = int(written.read_text())
            return [pid for pid in children(it.pid) if inner(pid) == number]

        wait_until(lambda: len(orphan()) == 1, "it is a child of process 1")
        (pid,) = orphan()
        wait_until(lambda: state_of(pid) == "S", "it waits")
        gate.write_text("go\n")
        wait_until(lambda: state_of(pid) == "", "it is buried, and no zombie")
        wait_until(lambda: children(it.pid) == [worker], "nobody took it for a worker")
        assert "died" not in it.log
        assert it.serves()
        it.send(signal.SIGTERM)
        assert it.ended() == 0


def test_who_came_into_the_namespace_and_lost_its_parent_is_buried(
    tmp_path: Path, node: RawHttpNode
) -> None:
    """As with ``docker exec``: its parent is outside, so what it leaves behind is ours."""
    enter = needs("nsenter")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with container(tmp_path, node) as it:
        (worker,) = children(it.pid)
        words = [enter, "--target", str(it.pid), "--pid", "--mount", "sh", "-c"]
        subprocess.run([*words, ORPHAN.format(where=tmp_path)], check=True, timeout=20)
        wait_until(lambda: len(children(it.pid)) == 2, "process 1 has it")
        gate.write_text("go\n")
        wait_until(lambda: children(it.pid) == [worker], "it is buried")


def test_all_end_with_process_1(tmp_path: Path, node: RawHttpNode) -> None:
    with container(tmp_path, node, "--http-processes", "2") as it:
        it.logged("] spawned uwgate http 2 ")
        workers = children(it.pid)
        assert len(workers) == 2
        it.send(signal.SIGKILL)
        it.process.wait(DEADLINE)
        wait_until(lambda: not any(map(state_of, workers)), "nobody is left")
