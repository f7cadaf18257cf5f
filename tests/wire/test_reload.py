"""A reload: what changes, what survives, and what happens to those who are connected."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from support.client import Client
from support.nodes import RawHttpNode, held, response
from support.reloading import Reloadable, children, reloadable
from support.waiting import DEADLINE, free_port, wait_until
from support.workers import links

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def body(gateway: Reloadable) -> bytes:
    with gateway.connect() as client:
        return client.ask(GET).body


def relieved(client: Client) -> None:
    """Wait until the worker that it is connected to has heard that there is another one: it says
    so with its next response."""

    def told() -> bool:
        reply = client.ask(GET)
        assert reply.status == 200
        return reply.closes

    wait_until(told, "the worker of before to know")


def to(node: RawHttpNode, *more: str) -> str:
    return "\n".join([f"http-to = {node.spec}", *more])


def test_a_new_configuration_serves_under_the_same_pid(tmp_path: Path) -> None:
    with RawHttpNode() as one, RawHttpNode() as two, reloadable(tmp_path, to(one)) as gateway:
        assert body(gateway) == b"GET / 0"
        old = gateway.workers
        gateway.reload(to(two))
        # A worker without connections has nothing to wait for.
        wait_until(lambda: not set(old) & set(gateway.workers), "the old worker is gone")
        assert body(gateway) == b"GET / 0"
        assert (len(one.seen), len(two.seen)) == (1, 1)
        assert gateway.process.poll() is None
        wait_until(lambda: len(gateway.workers) == 1, "the guardian is gone, too")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("http-timeout = soon", "gateway.ini:3: http-timeout: "),
        ("http = 192.0.2.1:1", "http = 192.0.2.1:1: cannot assign requested address"),
        ("https = 127.0.0.1:0,/no/such.crt,/no/such.key", "/no/such.crt"),
        ("http-use-code-string = 0:{here}/broken.py:f", "http-use-code-string"),
        ("uid = nobody-knows-him", "gateway.ini:3: uid: "),
    ],
)
def test_what_does_not_work_changes_nothing_and_is_said(
    tmp_path: Path, line: str, reason: str
) -> None:
    (tmp_path / "broken.py").write_text("def f(")
    with RawHttpNode() as node, reloadable(tmp_path, to(node)) as gateway:
        workers = gateway.workers
        gateway.write(to(node, line.format(here=tmp_path)))
        gateway.process.send_signal(signal.SIGHUP)
        gateway.logged("reload failed: the new configuration does not work; nothing has changed")
        assert reason in gateway.log
        assert body(gateway) == b"GET / 0"
        assert gateway.workers == workers
        gateway.reload(to(node))


def test_a_rehearsal_leaves_no_trace(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.sock"
    with RawHttpNode() as node, reloadable(tmp_path, to(node)) as gateway:
        gateway.write(to(node, f"http = {fresh}", "http = 192.0.2.1:1"))
        gateway.process.send_signal(signal.SIGHUP)
        gateway.logged("reload failed")
        assert not fresh.exists()
        gateway.reload(to(node, f"http = {fresh}"))
        with Client(str(fresh)) as client:
            assert client.ask(GET).status == 200


def test_a_request_under_way_is_finished_by_the_old_worker(tmp_path: Path) -> None:
    gate = threading.Event()
    with (
        RawHttpNode() as node,
        reloadable(tmp_path, to(node)) as gateway,
        gateway.connect() as client,
        gateway.connect() as witness,
    ):
        assert not witness.ask(GET).closes
        node.play(held(gate, response(b"late")))
        client.send(GET)
        node.wait_seen(2)
        gateway.reload()
        relieved(witness)
        gate.set()
        reply = client.read_response()
        assert (reply.status, reply.body) == (200, b"late")
        assert reply.closes
        client.assert_closed()


def test_an_idle_connection_is_closed_with_its_next_response(tmp_path: Path) -> None:
    with RawHttpNode() as node, reloadable(tmp_path, to(node)) as gateway:
        with gateway.connect() as client:
            assert not client.ask(GET).closes
            old = gateway.workers
            gateway.reload()
            assert set(old) <= set(gateway.workers)
            relieved(client)
            client.assert_closed()
        wait_until(lambda: not set(old) & set(gateway.workers), "the old worker is gone")


def test_mercy_is_limited(tmp_path: Path) -> None:
    gate = threading.Event()
    with RawHttpNode() as node, reloadable(tmp_path, to(node, "reload-mercy = 1")) as gateway:
        node.play(held(gate, response(b"late")))
        with gateway.connect() as client:
            client.send(GET)
            node.wait_seen()
            old = gateway.workers
            gateway.reload()
            wait_until(lambda: not set(old) & set(gateway.workers), "the old worker is gone")
            assert client.read_to_end() == b""
        gate.set()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3)])
def test_more_and_fewer_workers(tmp_path: Path, before: int, after: int) -> None:
    with RawHttpNode() as node:
        text = "http-processes = {}"
        with reloadable(tmp_path, to(node, text.format(before))) as gateway:
            # Nobody serves while the workers are stopped: connections wait in the queues of all
            # sockets of the address, and none may be lost.
            wait_until(lambda: len(gateway.workers) == before, "all workers")
            stopped = gateway.workers
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            waiting = [gateway.connect() for _ in range(20)]
            for client in waiting:
                client.send(GET)
            gateway.reload(to(node, text.format(after)))
            for client in waiting:
                assert client.read_response().status == 200
                client.close()
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            wait_until(lambda: len(gateway.workers) == after, "as many workers as wanted")
            gateway.reload()
            assert body(gateway) == b"GET / 0"


def test_addresses_come_and_go(tmp_path: Path) -> None:
    first, second = free_port(), free_port()

    def refused() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", first)) != 0

    text = f"http = 127.0.0.1:{first}"
    with RawHttpNode() as node, reloadable(tmp_path, to(node, text)) as gateway:
        gateway.reload(to(node, f"http = 127.0.0.1:{second}"))
        with Client(("127.0.0.1", second)) as client:
            assert client.ask(GET).status == 200
        assert f"does not listen on 127.0.0.1:{first} any more" in gateway.log
        wait_until(refused, "the address is free")


def held_up(where: Path, node: RawHttpNode) -> tuple[Path, str]:
    """A file, and an option instead of http-to: nothing gets ready as long as the file exists."""
    flag, mapper = where / "wait", where / "mapper.py"
    mapper.write_text(
        "import os, time\n"
        f"while os.path.exists({str(flag)!r}):\n    time.sleep(0.01)\n"
        f"def find(key):\n    return 'http://{node.address}'\n"
    )
    return flag, f"http-use-code-string = 0:{mapper}:find"


def test_one_reload_after_the_other(tmp_path: Path) -> None:
    with RawHttpNode() as node:
        flag, text = held_up(tmp_path, node)
        with reloadable(tmp_path, text) as gateway:
            flag.touch()
            gateway.process.send_signal(signal.SIGHUP)
            gateway.logged("trying the configuration first")
            gateway.process.send_signal(signal.SIGHUP)
            gateway.logged("another reload follows the one under way")
            flag.unlink()
            gateway.logged("] reloaded: ", 2)
            assert body(gateway) == b"GET / 0"
            assert "reload 2)" in gateway.log


def settled(gateway: Reloadable) -> int:
    """How many descriptors the master has, as soon as it has forgotten the old workers."""

    def forgotten() -> bool:
        # A worker is reaped first, and the descriptor of its process is closed behind that.
        mine = links(gateway.process.pid)
        return len(gateway.workers) == 2 >= mine.count("anon_inode:[pidfd]")

    wait_until(forgotten, "only new workers")
    return len(links(gateway.process.pid))


def test_nothing_piles_up(tmp_path: Path) -> None:
    # Everything that may have a descriptor of its own.
    text = to_all(tmp_path)
    with reloadable(tmp_path, text) as gateway:
        gateway.reload()
        before = settled(gateway)
        for _ in range(3):
            gateway.reload()
        assert settled(gateway) == before


def to_all(where: Path) -> str:
    return "\n".join(
        [
            "http-processes = 2",
            f"http-subscription-server = 127.0.0.1:{free_port()}",
            f"http-subscription-server = {where}/subscriptions.sock",
            f"http-stats = 127.0.0.1:{free_port()}",
            f"http = {where}/http.sock",
            f"master-fifo = {where}/fifo",
            f"control-socket = {where}/control.sock",
            f"touch-reload = {where}/touch",
            f"zerg-pool = {where}/pool:127.0.0.1:{free_port()},{where}/pooled.sock",
            f"notify-socket = {where}/notify.sock",
            f"pidfile = {where}/pid",
        ]
    )


CRASH = """
import os
if "UWGATE_GUARDIAN" in os.environ and os.path.exists({flag!r}):
    {how}
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("os.kill(os.getpid(), 9)", "reload failed: the new master died; nothing has changed"),
        ("os._exit(7)", "reload failed: the new master died; nothing has changed"),
    ],
)
def test_a_new_master_that_dies_is_replaced_by_the_old_one(
    tmp_path: Path, how: str, said: str
) -> None:
    flag = tmp_path / "crash"
    (tmp_path / "sitecustomize.py").write_text(CRASH.format(flag=str(flag), how=how))
    environ = {"PYTHONPATH": str(tmp_path)}
    pidfile = tmp_path / "pid"
    with RawHttpNode() as node:
        gateway = Reloadable(tmp_path, to(node, f"pidfile = {pidfile}"), environ)
        try:
            with gateway.connect() as client:
                assert client.ask(GET).status == 200
                workers = gateway.workers
                flag.touch()
                gateway.process.send_signal(signal.SIGHUP)
                assert gateway.process.wait(DEADLINE)
                gateway.logged(said)
                # The very same worker, and the very same connection.
                reply = client.ask(GET)
                assert reply.status == 200
                assert not reply.closes
            guardian = int(pidfile.read_text())
            assert guardian != gateway.process.pid
            flag.unlink()
            os.kill(guardian, signal.SIGHUP)
            gateway.logged("] reloaded: ")
            assert body(gateway) == b"GET / 0"
            wait_until(lambda: not any(map(alive, workers)), "the old workers are gone")
            os.kill(guardian, signal.SIGTERM)
            gateway.logged("goodbye to uwgate.")
            wait_until(lambda: not alive(guardian), "the end")
        finally:
            gateway.kill()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_new_master_that_fails_leaves_its_pid_to_the_old_one(tmp_path: Path) -> None:
    """What the rehearsal has seen is not there any more."""
    flag = tmp_path / "crash"
    package = tmp_path / "later"
    package.mkdir()
    how = "import sys; sys.argv.append('--http-timeout=soon')"
    (package / "sitecustomize.py").write_text(CRASH.format(flag=str(flag), how=how))
    with RawHttpNode() as node:
        pidfile = tmp_path / "pid"
        text = to(node, f"pidfile = {pidfile}")
        gateway = Reloadable(tmp_path, text, {"PYTHONPATH": str(package)})
        try:
            workers = gateway.workers
            flag.touch()
            gateway.process.send_signal(signal.SIGHUP)
            gateway.logged("reload failed: ")
            assert "nothing has changed" in gateway.log
            assert body(gateway) == b"GET / 0"
            assert gateway.process.poll() is None
            (guardian,) = [pid for pid in gateway.workers if pid not in workers]
            # Signals to the one pid that everybody knows still work, and so does its exit code.
            flag.unlink()
            gateway.process.send_signal(signal.SIGHUP)
            gateway.logged("] reloaded: ")
            wait_until(lambda: not set(workers) & set(gateway.workers), "the old ones are gone")
            wait_until(lambda: len(children(guardian)) == 1, "its worker")
            assert int(pidfile.read_text()) == gateway.process.pid
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(DEADLINE) == 0
            assert "goodbye to uwgate." in gateway.log
            assert not pidfile.exists()
        finally:
            gateway.kill()
