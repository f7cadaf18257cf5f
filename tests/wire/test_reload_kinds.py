"""Other ways than SIGHUP: chain reload, fresh workers, another master beside this one."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

from support.nodes import RawHttpNode
from support.reloading import Reloadable, children, reloadable
from support.waiting import free_port, wait_until

from uwgate.subscriptions.packet import Announcement, encode
from wire.test_lives import ended

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
            wait_until(lambda: ended(old), "the old one is gone")
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
                reply = client.ask(GET)
                assert reply.status == 200
                assert reply.closes
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
        text = f"http-subscription-server = {server}\nmaster-fifo = {fifo}"
        with reloadable(tmp_path, text) as gateway:
            write(fifo, "f")
            gateway.logged("beside this one (pid: ")
            other = int(re.findall(r"beside this one \(pid: (\d+)\)", gateway.log)[0])
            wait_until(lambda: len(children(other)) == 1, "its worker")
            os.kill(other, signal.SIGTERM)
            gateway.logged(f"the instance with pid {other} has ended (exit code 0)")
            announce(server, one)
            gateway.logged("new node")
            wait_until(lambda: status(gateway) == 200, "it serves")
