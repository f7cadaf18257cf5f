"""Sockets between real uWSGIs and us, both ways."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.waiting import free_port, wait_until

from interop import peers, zergs
from interop.subscribing import signing_uwsgi
from uwgate.config.addresses import connecting
from uwgate.master.zerg import attach

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "zerg"


@pytest.fixture
def where() -> Iterator[Path]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as path:
        yield Path(path)


@contextmanager
def taken(control: str) -> Iterator[list[socket.socket]]:
    """What the server there hands to us."""
    with ExitStack() as stack:
        yield [stack.enter_context(sock) for sock in attach(connecting(control))]


def said(control: str) -> bytes:
    """The bytes that the server there begins with; what it hands out is let go."""
    family, address = peers.wire_address(control)
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect(address)
        return sock.recv(100)


# --- our pool, their zergs ---------------------------------------------------------------------


def test_real_zergs_come_and_go(where: Path) -> None:
    """On two addresses; the second takes over from the first."""
    ports = [free_port(), free_port()]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    control = f"{where}/pool"
    options = ("--zerg", control, "--protocol", "http")
    with zergs.pool(where, control, *addresses), ExitStack() as first:
        one = first.enter_context(zergs.uwsgi(where, "one", *options))
        zergs.logged(one, "spawned uWSGI worker 1")
        assert [zergs.named(port) for port in ports] == ["one", "one"]
        with zergs.uwsgi(where, "two", *options) as two:
            zergs.logged(two, "spawned uWSGI worker 1")
            one.process.send_signal(signal.SIGTSTP)
            zergs.logged(one, "*** worker 1 suspended ***")
            assert [zergs.named(port) for port in ports] == ["two", "two"]
            first.close()
            assert [zergs.named(port) for port in ports] == ["two", "two"]
        # Nobody is attached: the connection is taken all the same, and waits.
        with socket.create_connection(("127.0.0.1", ports[0]), 10) as early:
            early.sendall(b"GET /name HTTP/1.0\r\n\r\n")
            with zergs.uwsgi(where, "three", *options):
                assert b'"three"' in b"".join(iter(lambda: early.recv(1000), b""))


@pytest.mark.parametrize("build", ["wheel", "source"])
def test_more_than_a_uwsgi_makes_room_for_at_first(where: Path, build: str) -> None:
    """It connects, sees the number, and comes again with room enough."""
    program = signing_uwsgi() if build == "source" else ""
    control = f"@{where}/pool"
    ports = [free_port() for _ in range(11)]
    addresses = [*(f"127.0.0.1:{port}" for port in ports), f"{where}/app"]
    with zergs.pool(where, control, *addresses) as pool:
        assert said(control) == bytes.fromhex((FIXTURES / "pool-12-sockets.hex").read_text())
        options = ("--zerg", control, "--protocol", "http")
        with zergs.uwsgi(where, "zerg", *options, program=program) as zerg:
            zergs.logged(zerg, "spawned uWSGI worker 1")
            assert {zergs.named(port) for port in ports} == {"zerg"}
            assert f"attached to UNIX address {where}/app" in zerg.logged
            line = f": 12 sockets to pid {zerg.process.pid} "
            wait_until(lambda: pool.logged.count(line) >= 2, "it has come twice")
            assert pool.logged.count(line) == 2


def test_every_socket_of_an_address_is_served(where: Path) -> None:
    """Three workers have three sockets of the same name. A zerg of a uWSGI serves all of them:
    of 24 connections, which the kernel spreads, none is left behind."""
    port = free_port()
    control = f"{where}/server"
    options: dict[str, object] = {
        "servers": [control],
        "listen": [f"127.0.0.1:{port}"],
        "workers": 3,
    }
    with (
        zergs.pool(where, control, **options),
        zergs.uwsgi(where, "zerg", "--zerg", control, "--protocol", "http") as zerg,
    ):
        zergs.logged(zerg, "spawned uWSGI worker 1")
        assert {zergs.named(port) for _ in range(24)} == {"zerg"}


# --- their servers, us -------------------------------------------------------------------------


def test_sockets_of_a_real_pool(where: Path) -> None:
    ports = [free_port() for _ in range(10)]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    control = f"{where}/pool"
    words = ("--zerg-pool", f"{control}:{','.join(addresses)},{where}/app")
    with (
        zergs.uwsgi(where, "pool", *words, addresses=[control], application=False),
        taken(control) as sockets,
    ):
        names = [sock.getsockname() for sock in sockets]
        assert names == [*(("127.0.0.1", port) for port in ports), f"{where}/app"]
        for sock, name in zip(sockets, names, strict=True):
            with socket.socket(sock.family) as client:
                client.connect(name)
                client.sendall(b"x")  # the pool's sockets have TCP_DEFER_ACCEPT
                wait_until(lambda sock=sock: accepted(sock), f"a connection on {name}")


def accepted(sock: socket.socket) -> bool:
    """Whether there was a connection."""
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.skipif(sys.byteorder != "little", reason="captured on a little-endian machine")
@pytest.mark.parametrize("control", ["path", "abstract"])
def test_sockets_of_a_real_instance(where: Path, control: str) -> None:
    server = f"{where}/server" if control == "path" else f"@{where}/server"
    port, http, abstract = free_port(), free_port(), f"zabs{os.getpid()}"
    words = ["--socket", f"127.0.0.1:{port}", "--socket", f"{where}/app"]
    words += ["--http-socket", f"127.0.0.1:{http}", "--socket", f"@{abstract}"]
    with zergs.uwsgi(where, "real", *words, "--zerg-server", server, addresses=[server]):
        assert said(server) == bytes.fromhex((FIXTURES / "server-4-sockets.hex").read_text())
        with taken(server) as sockets:
            assert [sock.getsockname() for sock in sockets] == [
                ("127.0.0.1", port),
                f"{where}/app",
                ("127.0.0.1", http),
                f"\0{abstract}\0".encode(),
            ]
            assert not any(sock.getblocking() for sock in sockets)
        # The instance serves on.
        assert zergs.named(http) == "real"
