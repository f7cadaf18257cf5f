"""Zerg servers, pools and clients of whole instances."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.client import Client
from support.nodes import RawHttpNode, RawUwsgiNode
from support.uwgate import ROOT, Gateway, running
from support.waiting import DEADLINE, dead_address, free_port, wait_until

from uwgate.config.addresses import connecting
from uwgate.master.zerg import attach

GET = b"GET /zerg HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def where() -> Iterator[Path]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as path:
        yield Path(path)


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@contextmanager
def taken(control: str) -> Iterator[list[socket.socket]]:
    """What the zerg server there hands out."""
    with ExitStack() as stack:
        yield [stack.enter_context(sock) for sock in attach(connecting(control))]


@contextmanager
def alone(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """An instance without a gateway; stopped with SIGTERM and checked at the end."""
    with (
        open(os.devnull, "wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "uwgate", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        ) as process,
    ):
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        process.terminate()
        assert process.wait(DEADLINE) == 0


@contextmanager
def pool(control: str, *addresses: str, words: tuple[str, ...] = ()) -> Iterator[None]:
    """An instance that is a pool and nothing else."""
    with alone("--zerg-pool", f"{control}:{','.join(addresses)}", *words) as process:

        def serves() -> bool:
            assert process.poll() is None
            try:
                with taken(control):
                    return True
            except OSError:
                return False

        wait_until(serves, f"{control} serves")
        yield


def names(sockets: list[socket.socket]) -> list[object]:
    return [sock.getsockname() for sock in sockets]


@dataclass
class Busy:
    """A gateway with two addresses and three workers, a fastrouter, a pool and a zerg server."""

    gateway: Gateway
    where: Path
    ports: list[int]  # http, http, pool


@pytest.fixture(scope="module")
def busy() -> Iterator[Busy]:
    with TemporaryDirectory() as path, RawHttpNode() as node:
        ports = [0, free_port(), free_port()]
        words = ["--http-to", node.spec, "--http-processes", "3"]
        words += ["--http", f"127.0.0.1:{ports[1]}", "--chmod-socket=600"]
        words += ["--fastrouter", f"{path}/fast", "--fastrouter-to", dead_address()]
        words += ["--zerg-pool", f"{path}/pool:127.0.0.1:{ports[2]},{path}/app"]
        words += ["--zerg-server", f"{path}/server"]
        with running(*words) as gateway:
            ports[0] = gateway.port
            wait_until(lambda: gateway.log.count("] spawned uwgate ") == 4, "all workers")
            yield Busy(gateway, Path(path), ports)


def test_a_pool_beside_routers(busy: Busy) -> None:
    port, control = busy.ports[2], f"{busy.where}/pool"
    with taken(control) as sockets, Client(("127.0.0.1", port)) as client:
        assert names(sockets) == [("127.0.0.1", port), f"{busy.where}/app"]
        client.send(b"x")  # TCP_DEFER_ACCEPT
        wait_until(lambda: accepts(sockets[0]), "the connection is ours")
    assert ask(busy.gateway.port) == 200
    line = f"zerg-pool = {control}: 2 sockets to pid {os.getpid()} (uid {os.getuid()})"
    wait_until(lambda: line in busy.gateway.log, "the line of the log")


def test_modes(busy: Busy) -> None:
    """Of the zerg server, too: uWSGI leaves that to the umask."""
    for name in ("pool", "app", "server"):
        assert stat.S_IMODE(os.stat(busy.where / name).st_mode) == 0o600


def test_zerg_server_hands_out_every_socket(busy: Busy) -> None:
    """Three workers have a socket each for an address, and each is served by whoever has it."""
    with taken(f"{busy.where}/server") as sockets:
        assert len({inode(sock) for sock in sockets}) == 7
        first, second = (("127.0.0.1", port) for port in busy.ports[:2])
        assert names(sockets) == [first] * 3 + [second] * 3 + [f"{busy.where}/fast"]


def test_many_clients(busy: Busy) -> None:
    """Whether they read or not."""
    control = f"{busy.where}/pool"
    fds = f"/proc/{busy.gateway.process.pid}/fd"
    before = len(os.listdir(fds))
    with ExitStack() as stack:
        for _ in range(200):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.settimeout(DEADLINE)
            silent.connect(control)
        for _ in range(50):
            with taken(control) as sockets:
                assert len(sockets) == 2
        # Fewer, if somebody of before was still known then.
        wait_until(lambda: len(os.listdir(fds)) <= before, "nothing is kept of them")
    # Nobody fills a disk with them.
    assert 50 < busy.gateway.log.count(" sockets to pid") < 120


def accepts(sock: socket.socket) -> bool:
    """Whether a connection was waiting there."""
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_a_pool_alone_and_two_routers_on_it(where: Path) -> None:
    """The second takes over; nobody is refused in between, when there is none."""
    control, port = f"@{where}/pool", free_port()
    with (
        pool(control, f"127.0.0.1:{port}"),
        RawHttpNode() as one,
        RawHttpNode() as two,
    ):
        words = ("--http-zerg", control, "--http-to")
        with running(*words, one.spec):
            assert ask(port) == 200
            assert [seen.target for seen in one.seen] == [b"/zerg"]
        with Client(("127.0.0.1", port)) as early:
            early.send(GET)
            with running(*words, two.spec):
                assert early.read_response().status == 200
                assert [seen.target for seen in two.seen] == [b"/zerg"]


def ask(port: int) -> int:
    with Client(("127.0.0.1", port)) as client:
        return client.ask(GET).status


def test_a_router_has_nothing_but_what_it_was_given(where: Path) -> None:
    """``http-zerg`` alone begins the router (in uWSGI it does not)."""
    control, port = f"{where}/pool", free_port()
    with (
        pool(control, f"127.0.0.1:{port}"),
        RawHttpNode() as node,
        alone("--http-zerg", control, "--http-to", node.spec),
        Client(("127.0.0.1", port)) as client,
    ):
        assert client.ask(GET).status == 200


def test_a_fastrouter_on_a_pool(where: Path) -> None:
    control, port = f"{where}/pool", free_port()
    with (
        pool(control, f"127.0.0.1:{port}"),
        RawUwsgiNode() as node,
        alone("--fastrouter-zerg", control, "--fastrouter-to", node.spec),
        running("--http-to", f"127.0.0.1:{port}") as gateway,
    ):
        assert ask(gateway.port) == 200
        assert len(node.seen) == 1


# --- a server that is away ---------------------------------------------------------------------


def refused(*words: str) -> str:
    """The only reason why an instance does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "uwgate", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_no_server(where: Path) -> None:
    words = ["--http", f"127.0.0.1:{free_port()}", "--http-to", dead_address()]
    words += ["--http-zerg", f"{where}/away"]
    reason = "unable to connect to zerg server: no such file or directory"
    assert refused(*words) == f"uwgate: error: http-zerg = {where}/away: {reason}"


def test_fallback(where: Path) -> None:
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec, "--http-zerg", f"{where}/away", "--zerg-fallback") as gate,
    ):
        assert ask(gate.port) == 200
        assert "starting without it (zerg-fallback)" in gate.log


def test_no_zerg_server_at_all(where: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{where}/other")
        server.listen()
        words = ["--http", f"127.0.0.1:{free_port()}", "--http-to", dead_address()]
        process = subprocess.Popen(
            [sys.executable, "-m", "uwgate", *words, "--http-zerg", f"{where}/other"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with process:
            client, _ = server.accept()
            with client:
                client.sendall(b"-ERR unknown command\r\n")
            _out, log = process.communicate(timeout=DEADLINE)
    reason = "invalid data received from zerg server: 15 bytes instead of 14"
    assert log.decode().splitlines()[-1] == f"uwgate: error: http-zerg = {where}/other: {reason}"
    assert process.returncode == 1


def test_an_address_in_use(where: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        reason = refused("--zerg-pool", f"{where}/pool:127.0.0.1:{port}")
    assert reason == f"uwgate: error: zerg-pool = 127.0.0.1:{port}: address already in use"


# --- reload ------------------------------------------------------------------------------------


def reload(gateway: Gateway) -> None:
    """SIGHUP, until new workers serve."""
    before = gateway.log.count("] spawned uwgate ")
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: gateway.log.count("] spawned uwgate ") > before, "reloaded")


def test_the_sockets_of_a_pool_outlive_a_reload(where: Path) -> None:
    """Those who attached before and after share them (uWSGI binds them anew)."""
    control, port = f"{where}/pool", free_port()
    words = ("--zerg-pool", f"{control}:127.0.0.1:{port}")
    with (
        running("--http-to", dead_address(), *words) as gateway,
        taken(control) as before,
        Client(("127.0.0.1", port)) as early,
    ):
        early.send(b"x")
        reload(gateway)
        with taken(control) as after:
            assert [inode(sock) for sock in after] == [inode(sock) for sock in before]
            wait_until(lambda: accepts(after[0]), "what waited is there")


def test_attached_sockets_outlive_a_reload_without_the_server(where: Path) -> None:
    """In uWSGI the instance ends."""
    control, port = f"{where}/pool", free_port()
    with ExitStack() as server, RawHttpNode() as node:
        server.enter_context(pool(control, f"127.0.0.1:{port}"))
        with running("--http-to", node.spec, "--http-zerg", control) as gateway:
            assert ask(port) == 200
            server.close()
            reload(gateway)
            assert ask(port) == 200
