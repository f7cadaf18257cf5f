"""Handing out sockets, with real clients; what a real uWSGI sends is the measure."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.waiting import DEADLINE, free_port, wait_until
from zerg_tools import Rights, descriptors_left, inode, listener, open_descriptors, received

from uwgate.config.settings import Endpoint, ProcessSettings
from uwgate.config.settings_process import ZergPool, ZergSettings
from uwgate.master.errors import StartError
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.sockets import Binder
from uwgate.master.zerg import ZergServer, serve_zergs

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "zerg"
PROCESS = ProcessSettings(listen=16)


class Served:
    """A loop with zerg servers in it. ``path``: of the control socket of ``serve``."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.directory = directory
        self.path = f"{directory}/zerg"
        self._stack = stack
        self._log = MainLog(f"{directory}/log")
        stack.callback(self._log.close)
        self.loop = Loop(self._log)
        stack.callback(self.loop.close)

    @property
    def lines(self) -> list[str]:
        """What was logged, without time and pid."""
        text = Path(self.directory, "log").read_text()
        return [line.partition("] ")[2] for line in text.splitlines()]

    def keep(self, sock: socket.socket) -> socket.socket:
        """``sock``, closed at the end of the test."""
        return self._stack.enter_context(sock)

    def serve(self, *sockets: socket.socket) -> ZergServer:
        """A server that hands these out."""
        return self.serve_at(listener(socket.AF_UNIX, self.path), lambda: list(sockets))

    def serve_at(
        self, control: socket.socket, sockets: Callable[[], list[socket.socket]]
    ) -> ZergServer:
        server = ZergServer(
            "zerg-pool", self.path, self.keep(control), sockets, self.loop, self._log
        )
        self._stack.callback(server.close)
        return server

    def bind(self, settings: ZergSettings, process: ProcessSettings = PROCESS) -> Binder:
        """Everything that the settings ask for; ``http`` listens on a port with two workers."""
        binder = Binder(process, self._log.line)
        self._stack.callback(binder.close)
        address = Endpoint("tcp", "127.0.0.1:0", "127.0.0.1", 0)
        listening = binder.listen("http", address, 2).sockets
        for server in serve_zergs(settings, binder, lambda: listening, self.loop, self._log):
            self._stack.callback(server.close)
        return binder

    def client(self, address: str = "") -> socket.socket:
        """A client that has connected; nothing else has happened."""
        client = self.keep(socket.socket(socket.AF_UNIX))
        client.settimeout(10)
        client.connect(address or self.path)
        return client

    def receive(
        self, client: socket.socket | None = None
    ) -> tuple[bytes, list[Rights], list[socket.socket]]:
        """What a client gets, and that it is hung up on after."""
        client = client or self.client()
        self.loop.run_once(0)
        client.setblocking(False)
        data, ancillary, sockets = received(client)
        for sock in sockets:
            self.keep(sock)
        assert client.recv(100) == b""
        return data, ancillary, sockets

    def taken(self, client: socket.socket) -> list[socket.socket]:
        """The sockets that have been sent to this client."""
        return [self.keep(sock) for sock in received(client)[2]]


@pytest.fixture
def served() -> Iterator[Served]:
    """In a short directory, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as directory, ExitStack() as stack:
        yield Served(directory, stack)


def unix(path: str) -> Endpoint:
    return Endpoint("unix", path, path=path)


@pytest.mark.skipif(sys.byteorder != "little", reason="captured on a little-endian machine")
@pytest.mark.parametrize(("name", "count"), [("pool-2-sockets", 2), ("pool-12-sockets", 12)])
def test_bytes_are_those_of_uwsgi(served: Served, name: str, count: int) -> None:
    """Also those of the control message's head, recomputed from what arrived as the fixture's."""
    served.serve(*[served.keep(listener()) for _ in range(count)])
    data, ancillary, _sockets = served.receive()
    assert data == bytes.fromhex((FIXTURES / f"{name}.hex").read_text())
    ((level, kind, payload),) = ancillary
    head = struct.pack("=Qii", socket.CMSG_LEN(len(payload)), level, kind)
    assert head == bytes.fromhex((FIXTURES / f"{name}.cmsg-header.hex").read_text())


def test_the_sockets_in_their_order(served: Served) -> None:
    handed = [
        served.keep(sock)
        for sock in (listener(), listener(socket.AF_UNIX), listener(socket.AF_INET6), listener())
    ]
    served.serve(*handed)
    for _ in range(3):
        _data, _ancillary, sockets = served.receive()
        assert [inode(sock) for sock in sockets] == [inode(sock) for sock in handed]
    who = f"pid {os.getpid()} (uid {os.getuid()})"
    assert served.lines == [f"zerg-pool = {served.path}: 4 sockets to {who}"] * 3


def test_a_socket_that_is_there_twice_goes_once(served: Served) -> None:
    sock, other = served.keep(listener()), served.keep(listener())
    served.serve(sock, other, served.keep(sock.dup()), sock)
    data, _ancillary, sockets = served.receive()
    assert data[-4:] == struct.pack("=i", 2)
    assert [inode(each) for each in sockets] == [inode(sock), inode(other)]


def test_every_socket_of_an_address_goes(served: Served) -> None:
    """They have the same name, but each its own queue, and all of them have to be served."""
    made = [socket.socket() for _ in range(3)]
    address = ("127.0.0.1", 0)
    for sock in made:
        served.keep(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen()
        address = sock.getsockname()
    served.serve(*made)
    _data, _ancillary, sockets = served.receive()
    assert len({inode(sock) for sock in sockets}) == 3
    assert {sock.getsockname() for sock in sockets} == {address}


def test_what_is_handed_out_is_what_is_there_now(served: Served) -> None:
    first, second = served.keep(listener()), served.keep(listener())
    now = [first]
    served.serve_at(listener(socket.AF_UNIX, served.path), lambda: now)
    assert len(served.receive()[2]) == 1
    now.append(second)
    assert len(served.receive()[2]) == 2
    first.close()
    (only,) = served.receive()[2]
    assert inode(only) == inode(second)
    second.close()
    client = served.client()
    served.loop.run_once(0)
    assert client.recv(100) == b""
    assert "nothing for pid" in served.lines[-1]


def test_as_many_as_a_message_holds_and_no_more(served: Served) -> None:
    handed = [served.keep(listener(socket.AF_UNIX)) for _ in range(253)]
    served.serve(*handed)
    assert len(served.receive()[2]) == 253
    handed.append(served.keep(listener(socket.AF_UNIX)))
    with pytest.raises(StartError) as caught:
        served.serve_at(listener(socket.AF_UNIX), lambda: handed)
    reason = str(caught.value)
    assert reason.startswith(f"zerg-pool = {served.path}: 254 sockets, but at most 253")


def test_clients_that_do_not_read_are_in_nobodys_way(served: Served) -> None:
    served.serve(served.keep(listener()))
    before = open_descriptors()
    for _ in range(5):
        silent = [served.client() for _ in range(8)]
        served.loop.run_once(0)
    assert len(served.receive()[2]) == 1
    # One of its own for each of them, the last one, and the socket that this has got.
    assert open_descriptors() == before + 42
    assert len(served.taken(silent[0])) == 1


def test_a_client_that_is_gone(served: Served) -> None:
    served.serve(served.keep(listener()))
    before = open_descriptors()
    for _ in range(3):
        served.client().close()
    served.loop.run_once(0)
    assert open_descriptors() == before
    assert [line.count("not handed to pid") for line in served.lines] == [1, 1, 1]
    assert all(line.endswith(": broken pipe") for line in served.lines)
    assert len(served.receive()[2]) == 1


def test_a_client_that_talks(served: Served) -> None:
    """Nobody listens to it; it gets the sockets and is hung up on."""
    served.serve(served.keep(listener()))
    talker = served.client()
    talker.send(b"x" * 100)
    served.loop.run_once(0)
    assert len(served.taken(talker)) == 1
    with pytest.raises(ConnectionResetError):
        talker.recv(100)
    assert len(served.receive()[2]) == 1


def test_no_descriptor_for_a_client(served: Served) -> None:
    """It waits until there is one, and the master does not spin meanwhile."""
    served.serve(served.keep(listener()))
    client = served.client()
    with descriptors_left(0):
        for _ in range(3):
            served.loop.run_once(0.4)
    reason = "too many open files"
    assert served.lines == [f"zerg-pool = {served.path}: clients have to wait: {reason}"]
    wait_until(lambda: served.loop.run_once(0.05) or len(served.lines) == 2, "served after all")
    assert len(served.taken(client)) == 1
    assert len(served.receive()[2]) == 1


def test_closed_while_waiting_for_descriptors(served: Served) -> None:
    server = served.serve(served.keep(listener()))
    client = served.client()
    with descriptors_left(0):
        served.loop.run_once(0)
        server.close()
    client.settimeout(0.4)
    served.loop.run_once(0.3)
    with pytest.raises(TimeoutError):
        client.recv(100)


def test_closing_leaves_the_listener_open(served: Served) -> None:
    """It is the next master's."""
    handed = served.keep(listener())
    control = listener(socket.AF_UNIX, served.path)
    served.serve_at(control, lambda: [handed]).close()
    client = served.client()
    served.loop.run_once(0)
    served.serve_at(control, lambda: [handed])
    assert len(served.receive(client)[2]) == 1


def test_tcp_passes_no_sockets(served: Served) -> None:
    with pytest.raises(StartError) as caught:
        served.serve_at(listener(), list)
    assert str(caught.value).startswith(f"zerg-pool = {served.path}: not a unix socket")


def test_pools_and_servers(served: Served) -> None:
    one, two, app = (f"{served.directory}/{name}" for name in ("one", "two", "app"))
    first, second = free_port(), free_port()
    settings = ZergSettings(
        servers=(Endpoint("abstract", f"@{served.path}", path=served.path),),
        pools=(
            ZergPool(
                unix(one),
                (Endpoint("tcp", f"127.0.0.1:{first}", "127.0.0.1", first), unix(app)),
            ),
            ZergPool(
                unix(two), (Endpoint("tcp", f"127.0.0.1:{second}", "127.0.0.1", second),)
            ),
        ),
    )
    served.bind(settings, replace(PROCESS, chmod_socket=0o640))
    sockets = served.receive(served.client(one))[2]
    assert [sock.getsockname() for sock in sockets] == [("127.0.0.1", first), app]
    (sock,) = served.receive(served.client(two))[2]
    assert sock.getsockname() == ("127.0.0.1", second)
    workers = served.receive(served.client(f"\0{served.path}\0"))[2]
    assert len({inode(sock) for sock in workers}) == 2
    assert len({sock.getsockname() for sock in workers}) == 1
    for path in (one, two, app):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


def test_connections_wait_in_a_pool_for_somebody_to_attach(served: Served) -> None:
    port = free_port()
    address = Endpoint("tcp", f"127.0.0.1:{port}", "127.0.0.1", port)
    settings = ZergSettings(pools=(ZergPool(unix(served.path), (address,)),))
    served.bind(settings, replace(PROCESS, defer_accept=0))
    with socket.create_connection(("127.0.0.1", port)) as early:
        served.receive()[2][0].close()  # this one ends without having accepted
        (sock,) = served.receive()[2]
        sock.settimeout(DEADLINE)
        theirs, name = sock.accept()
        with theirs:
            assert name == early.getsockname()


def test_an_address_in_two_pools(served: Served) -> None:
    port = free_port()
    address = Endpoint("tcp", f"127.0.0.1:{port}", "127.0.0.1", port)
    pools = tuple(ZergPool(unix(f"{served.path}{n}"), (address,)) for n in (1, 2))
    with pytest.raises(StartError) as caught:
        served.bind(ZergSettings(pools=pools))
    assert str(caught.value) == f"zerg-pool = 127.0.0.1:{port}: address already in use"


def test_a_pool_of_too_many(served: Served) -> None:
    addresses = tuple(
        Endpoint("abstract", f"@{served.path}{n}", path=f"{served.path}{n}") for n in range(254)
    )
    with pytest.raises(StartError) as caught:
        served.bind(ZergSettings(pools=(ZergPool(unix(served.path), addresses),)))
    reason = str(caught.value)
    assert reason.startswith(f"zerg-pool = {served.path}: 254 sockets, but at most 253")
