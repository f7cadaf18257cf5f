"""Other ways than SIGHUP: chain reload, fresh workers, another master beside this one."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import threading
from pathlib import Path

from support.client import Client
from support.nodes import RawHttpNode
from support.reloading import Reloadable, children, reloadable
from support.waiting import DEADLINE, free_port, wait_until

from uwgate.control.client import NoInstance, OrderError, ask_once
from uwgate.subscriptions.packet import Announcement, encode
from wire.test_lives import ended
from wire.test_reload import held_up, relieved

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def write(fifo: Path, letters: str) -> None:
    with fifo.open("w") as file:
        file.write(letters)


def status(gateway: Reloadable) -> int:
    with gateway.connect() as client:
        return client.ask(GET).status


def test_a_chain_reload_replaces_one_after_the_other(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    with RawHttpNode() as one, RawHttpNode() as two:
        text = f"http-to = {{}}\nhttp-processes = 3\nmaster-fifo = {fifo}"
        with reloadable(tmp_path, text.format(one.spec)) as gateway:
            wait_until(lambda: len(gateway.workers) == 3, "all workers")
            assert status(gateway) == 200
            old = gateway.workers
            gateway.write(text.format(two.spec))
            write(fifo, "c")
            gateway.logged("FIFO c: chain reload, trying the configuration first")
            gateway.logged("] reloaded: ")
            wait_until(lambda: not set(old) & set(gateway.workers), "the old ones are gone")
            for _ in range(6):
                assert status(gateway) == 200
            assert len(two.seen) == 6
            # No worker was forked before the one before it served, and its predecessor was told.
            wait_until(lambda: gateway.log.count("has been buried") >= 3, "what is said of them")
            log = gateway.log[gateway.log.index("reload 1)") :]
            first = log.index("spawned uwgate http 1")
            buried = log.index('gateway "uwgate http 1" has been buried')
            last = log.index("spawned uwgate http 3")
            assert first < last
            assert first < buried


def test_fresh_workers_of_the_same_configuration(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    with RawHttpNode() as one:
        text = f"http-to = {one.spec}\nmaster-fifo = {fifo}"
        with reloadable(tmp_path, text) as gateway, gateway.connect() as client:
            assert client.ask(GET).status == 200
            gateway.write("this would not work = at all\nhttp-timeout = soon")
            (old,) = gateway.workers
            write(fifo, "w")
            gateway.logged("FIFO w: fresh workers")
            gateway.logged("respawned uwgate http 1")
            wait_until(lambda: client.ask(GET).closes, "the old one is relieved")
            wait_until(lambda: len(gateway.workers) == 1, "the old one is gone")
            (old,) = gateway.workers
            with gateway.connect() as other:
                assert other.ask(GET).status == 200
                write(fifo, "W")
                assert other.read_to_end() == b""
            wait_until(lambda: ended(old), "the old one is gone")
            assert status(gateway) == 200


def test_another_master_beside_this_one(tmp_path: Path) -> None:
    """FIFO f: both serve the same sockets; the older one is ended through its own slot."""
    new, running = tmp_path / "new", tmp_path / "running"
    server = f"127.0.0.1:{free_port()}"
    with RawHttpNode() as one:
        text = "\n".join(
            [
                f"http-subscription-server = {server}",
                f"master-fifo = {new}",
                f"master-fifo = {running}",
                f"control-socket = {tmp_path}/control",
            ]
        )
        with reloadable(tmp_path, text) as gateway:
            announce(server, one)
            gateway.logged("new node")
            wait_until(lambda: status(gateway) == 200, "the node is known")
            with gateway.connect() as client:
                assert client.ask(GET).status == 200
                write(new, "1f")
                gateway.logged("FIFO f: another instance beside this one (pid: ")
                found = re.findall(r"beside this one \(pid: (\d+)\)", gateway.log)
                other = int(found[0])
                wait_until(lambda: len(children(other)) == 1, "its worker")
                gateway.logged("FIFO: reading", 3)
                # Nodes say what they have to say to the newer one.
                announce(server, one, key="later.example")
                gateway.logged("later.example => new node")
                write(running, "q")
                gateway.logged("FIFO q received: draining")
                # Whoever is connected to the old one is served once more.
                relieved(client)
            assert gateway.process.wait(10) == 0
            try:
                for _ in range(5):
                    assert status(gateway) == 200
                assert Path(f"{tmp_path}/control").exists()
            finally:
                os.kill(other, signal.SIGTERM)
            wait_until(lambda: ended(other), "the newer one ends")


def announce(server: str, node: RawHttpNode, key: str = "h") -> None:
    host, _, port = server.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(encode(Announcement(key, node.address, protocol="http")), (host, int(port)))


def test_the_older_master_hears_again_when_the_newer_one_has_ended(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    server = f"127.0.0.1:{free_port()}"
    with RawHttpNode() as one:
        control = tmp_path / "control"
        text = f"http-subscription-server = {server}\nmaster-fifo = {fifo}"
        with reloadable(tmp_path, f"{text}\ncontrol-socket = {control}") as gateway:
            assert master_at(control) == gateway.process.pid
            write(fifo, "f")
            gateway.logged("beside this one (pid: ")
            other = int(re.findall(r"beside this one \(pid: (\d+)\)", gateway.log)[0])
            wait_until(lambda: len(children(other)) == 1, "its worker")
            wait_until(lambda: master_at(control) == other, "the newer one is asked")
            os.kill(other, signal.SIGTERM)
            gateway.logged(f"the instance with pid {other} has ended (exit code 0)")
            wait_until(lambda: master_at(control) == gateway.process.pid, "it is asked again")
            assert stat.S_IMODE(control.stat().st_mode) == 0o666
            announce(server, one)
            gateway.logged("new node")
            wait_until(lambda: status(gateway) == 200, "it serves")


def master_at(control: Path) -> int:
    """The pid of who answers there; 0 if nobody does."""
    try:
        answer = ask_once([str(control)], "status", DEADLINE)
    except (OrderError, NoInstance):
        return 0
    return int(answer["status"]["pid"])


def connected(gateway: Reloadable) -> Client:
    """To a worker that stays: one that is just being relieved may take one more connection."""
    while True:
        client = gateway.connect()
        reply = client.ask(GET)
        assert reply.status == 200
        if not reply.closes:
            return client
        client.close()


def test_the_oldest_worker_is_hurried_not_the_newest(tmp_path: Path) -> None:
    """Connections that nobody uses hold old workers; those of the last reload are in use."""
    with RawHttpNode() as node, reloadable(tmp_path, f"http-to = {node.spec}") as gateway:
        holding = []
        for _ in range(6):
            holding.append(connected(gateway))
            gateway.reload()
        # More than four relieved workers: the first ones had to let go, in the order of their age.
        for client in holding[:2]:
            client.assert_closed()
        for client in holding[3:]:
            relieved(client)
        for client in holding:
            client.close()


def test_sockets_are_added_under_load(tmp_path: Path) -> None:
    """The rehearsal must not listen: what the kernel gives it is lost."""
    text = "http-to = {}\nhttp-processes = {}"
    with RawHttpNode() as node, reloadable(tmp_path, text.format(node.spec, 1)) as gateway:
        done = threading.Event()
        failures: list[str] = []
        count = [0]

        def ask() -> None:
            while not done.is_set():
                try:
                    if status(gateway) != 200:
                        failures.append("status")
                    count[0] += 1
                except (OSError, AssertionError) as error:
                    failures.append(repr(error))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for workers in (3, 5):
                gateway.reload(text.format(node.spec, workers))
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert count[0] > 20


def test_a_mode_that_cannot_be_changed_any_more_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with RawHttpNode() as node:
        text = f"http-to = {node.spec}\nhttp = {path}\nchmod-socket = 660\ncontrol-socket = {{}}"
        text = text.format(tmp_path / "control")
        with reloadable(tmp_path, text) as gateway:
            gateway.reload()
            assert path.stat().st_mode & 0o777 == 0o660
            gateway.reload(text.replace("660", "600"))
            assert path.stat().st_mode & 0o777 == 0o600


def test_an_end_during_the_rehearsal_is_the_end(tmp_path: Path) -> None:
    with RawHttpNode() as node:
        flag, text = held_up(tmp_path, node)
        gateway = Reloadable(tmp_path, f"{text}\ndrain-delay = 1")
        try:
            assert status(gateway) == 200
            flag.touch()
            gateway.process.send_signal(signal.SIGHUP)
            gateway.logged("trying the configuration first")
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(10) == 0
            assert "] reloaded: " not in gateway.log
        finally:
            flag.unlink(missing_ok=True)
            gateway.kill()


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.mkdir()
    with RawHttpNode() as node:
        text = f"http-to = {node.spec}\nchdir = {release}"
        gateway = Reloadable(tmp_path, text)
        try:
            release.rename(tmp_path / "old")
            release.mkdir()
            (tmp_path / "old").rmdir()
            gateway.reload()
            assert status(gateway) == 200
            gateway.terminate()
            # Not ``stop``: what measures the tests complains in the log about such a directory.
            assert gateway.process.wait(10) == 0
        finally:
            gateway.kill()


def test_a_worker_that_dies_in_a_chain_is_no_end_of_reloads(tmp_path: Path) -> None:
    """The mapper of the new configuration cannot be loaded any more when the workers start."""
    mapper, fifo = tmp_path / "mapper.py", tmp_path / "fifo"
    with RawHttpNode() as node:
        good = f"http-to = {node.spec}\nhttp-processes = 2\nmaster-fifo = {fifo}"
        mapper.write_text(
            "import os\n"
            "if os.path.exists(__file__ + '.broken') and os.getppid() != 1 and "
            "open('/proc/self/comm').read().startswith('uwgate http'):\n"
            "    os._exit(9)\n"
            f"def find(key):\n    return 'http://{node.address}'\n"
        )
        with reloadable(tmp_path, good) as gateway:
            wait_until(lambda: len(gateway.workers) == 2, "all workers")
            (tmp_path / "mapper.py.broken").touch()
            gateway.write(
                f"http-use-code-string = 0:{mapper}:find\nhttp-processes = 2\nmaster-fifo = {fifo}"
            )
            write(fifo, "c")
            gateway.logged("reload failed: ")
            assert status(gateway) == 200
