"""Addresses to listening sockets, with real sockets on both sides."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.waiting import free_port

from uwgate.config.settings import Endpoint, ProcessSettings
from uwgate.master.errors import StartError
from uwgate.master.inherited import Inherited
from uwgate.master.sockets import Binder, Bound

DEFAULT = ProcessSettings(listen=16)


@contextmanager
def binder(process: ProcessSettings = DEFAULT) -> Iterator[Binder]:
    warnings: list[str] = []
    made = Binder(process, warnings.append)
    try:
        yield made
    finally:
        made.close()
    assert warnings == []


def tcp(port: int, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint("tcp", f"{host}:{port}", host, port)


def unix(path: str) -> Endpoint:
    return Endpoint("unix", path, path=path)


@pytest.fixture
def directory() -> Iterator[str]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as path:
        yield path


def refusal(make: Binder, endpoint: Endpoint, workers: int = 1) -> str:
    with pytest.raises(StartError) as caught:
        make.listen("http", endpoint, workers)
    return str(caught.value)


def accepted(bound: Bound) -> int:
    """How many connections wait on the sockets of ``bound``."""
    count = 0
    for sock in bound.sockets:
        while True:
            try:
                sock.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
    return count


def test_tcp_has_a_socket_a_worker() -> None:
    port = free_port()
    with binder(replace(DEFAULT, defer_accept=0)) as make:
        bound = make.listen("http", tcp(port), 3)
        assert bound.name == f"127.0.0.1:{port}"
        assert len({s.fileno() for s in bound.sockets}) == 3
        assert [bound.for_worker(i, 3) for i in range(3)] == [(sock,) for sock in bound.sockets]
        # With fewer workers nobody's queue is forgotten, with more some share.
        first, second, third = bound.sockets
        assert [bound.for_worker(i, 2) for i in range(2)] == [(first, third), (second,)]
        assert bound.for_worker(3, 4) == (first,)
        for sock in bound.sockets:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        assert accepted(bound) == 12
        for client in clients:
            client.close()


def test_a_single_worker_shares_its_port_with_nobody() -> None:
    with binder() as make:
        bound = make.listen("http", tcp(free_port()), 1)
        assert bound.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("theirs", [False, True])
def test_address_in_use_is_noticed_even_with_reuse_port(workers: int, theirs: bool) -> None:
    port = free_port()
    with socket.socket() as other, binder() as make:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(theirs))
        other.bind(("127.0.0.1", port))
        other.listen()
        expected = f"http = 127.0.0.1:{port}: address already in use"
        assert refusal(make, tcp(port), workers) == expected


def test_reuse_port_shares_on_purpose() -> None:
    port = free_port()
    shared = replace(DEFAULT, reuse_port=True)
    with binder(shared) as first, binder(shared) as second:
        first.listen("http", tcp(port), 2)
        second.listen("http", tcp(port), 1)


def test_same_address_twice_in_one_instance() -> None:
    port = free_port()
    with binder() as make:
        make.listen("http", tcp(port), 2)
        assert refusal(make, tcp(port), 2).endswith("address already in use")


def test_no_host_is_all_of_ipv4() -> None:
    with binder() as make:
        bound = make.listen("http", Endpoint("tcp", ":0"), 1)
        assert bound.name.startswith("0.0.0.0:")
        assert bound.sockets[0].family == socket.AF_INET


def test_port_0_is_one_port_for_all_workers() -> None:
    with binder() as make:
        bound = make.listen("http", tcp(0), 4)
        assert len({s.getsockname() for s in bound.sockets}) == 1
        assert not bound.name.endswith(":0")


def test_ipv6_does_not_take_ipv4() -> None:
    port = free_port()
    with binder() as make:
        first = make.listen("http", Endpoint("tcp", f"[::]:{port}", "::", port), 2)
        second = make.listen("http", Endpoint("tcp", f":{port}", "", port), 2)
        assert first.name == f"[::]:{port}"
        assert second.name == f"0.0.0.0:{port}"


def test_host_names_prefer_ipv4() -> None:
    port = free_port()
    with binder() as make:
        assert make.listen("http", tcp(port, "localhost"), 1).name == f"127.0.0.1:{port}"


def test_unknown_host_name() -> None:
    with binder() as make:
        line = refusal(make, tcp(8080, "no-such-host.invalid"))
        expected = 'host name "no-such-host.invalid" cannot be resolved'
        assert line == f"http = no-such-host.invalid:8080: {expected}"
        assert "cannot be resolved" in refusal(make, tcp(8080, "a" * 80 + ".invalid"))


def test_foreign_address_needs_freebind() -> None:
    endpoint = tcp(free_port(), "192.0.2.7")  # RFC 5737: nobody's
    with binder() as make:
        assert refusal(make, endpoint).endswith("cannot assign requested address")
    with binder(replace(DEFAULT, freebind=True)) as make:
        assert make.listen("http", endpoint, 2).name.startswith("192.0.2.7:")
        v6 = Endpoint("tcp", "[2001:db8::7]:8080", "2001:db8::7", free_port())
        assert make.listen("http", v6, 1).name.startswith("[2001:db8::7]:")


def test_defer_accept() -> None:
    def seconds(bound: Bound) -> int:
        return bound.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)

    with binder() as make:
        assert seconds(make.listen("http", tcp(free_port()), 1)) >= 4
        assert seconds(make.listen("http-stats", tcp(free_port()), 1, defer=False)) == 0
    with binder(replace(DEFAULT, defer_accept=0)) as make:
        assert seconds(make.listen("http", tcp(free_port()), 1)) == 0


def test_unix_socket_is_one_for_all(directory: str) -> None:
    path = f"{directory}/s"
    with binder(replace(DEFAULT, chmod_socket=0o660)) as make:
        bound = make.listen("http", unix(path), 3)
        assert bound.name == path
        assert len(bound.sockets) == 1
        assert bound.for_worker(2, 3) == bound.sockets
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert accepted(bound) == 1


def test_stale_unix_socket_is_replaced(directory: str) -> None:
    path = f"{directory}/s"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
        old.listen()
    with binder() as make:
        make.listen("http", unix(path), 1)


def test_unix_socket_in_use_is_left_alone(directory: str) -> None:
    path = f"{directory}/s"
    with socket.socket(socket.AF_UNIX) as old, binder() as make:
        old.bind(path)
        old.listen(0)
        # The second time its queue is full already, and still it is in use.
        for _ in range(2):
            assert refusal(make, unix(path)) == f"http = {path}: address already in use"
        assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_only_sockets_are_ever_removed(directory: str, kind: str) -> None:
    path = Path(directory, "s")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(directory)
    with binder() as make:
        assert refusal(make, unix(str(path))).endswith("the file exists and is not a socket")
    assert os.path.lexists(path)


def test_long_names(directory: str) -> None:
    with binder() as make:
        assert "longer than 107 bytes" in refusal(make, unix("/" + "x" * 107))
        name = "n" * 107
        endpoint = Endpoint("abstract", f"@{name}", path=name)
        assert "longer than 106 bytes" in refusal(make, endpoint)


def test_unix_socket_in_no_directory(directory: str) -> None:
    path = f"{directory}/no/s"
    with binder() as make:
        assert refusal(make, unix(path)) == f"http = {path}: no such file or directory"


def test_abstract_names_end_with_nul() -> None:
    name = f"uwgate-test-{os.getpid()}"
    with binder() as make, socket.socket(socket.AF_UNIX) as client:
        bound = make.listen("http", Endpoint("abstract", f"@{name}", path=name), 2)
        assert bound.name == f"@{name}"
        client.connect(b"\0" + name.encode() + b"\0")
        assert accepted(bound) == 1


def test_vacuum_removes_only_its_own(directory: str) -> None:
    path = f"{directory}/s"
    with binder() as make:
        bound = make.listen("http", unix(path), 1)
        bound.close()
        with binder() as successor:
            successor.listen("http", unix(path), 1)
            make.vacuum()
            assert os.path.exists(path)
            successor.vacuum()
            assert not os.path.exists(path)
        make.vacuum()


def test_inherited_descriptor() -> None:
    given = socket.create_server(("127.0.0.1", 0))
    number = given.detach()
    with binder() as make:
        endpoint = Endpoint("fd", f"fd://{number}", number=number)
        bound = make.listen("http", endpoint, 2)
        assert bound.sockets[0].fileno() == number
        assert not bound.sockets[0].getblocking()
        assert refusal(make, endpoint) == f"http = fd://{number}: is listened on twice"


def test_descriptors_that_will_not_do() -> None:
    with (
        binder() as make,
        socket.socket() as idle,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as foreign,
        open(os.devnull) as file,
    ):
        for number, reason in (
            (idle.fileno(), "the socket is not listening"),
            (datagram.fileno(), "the socket is not a stream socket"),
            (foreign.fileno(), "the socket is neither TCP nor unix"),
            (file.fileno(), "the descriptor is not a socket"),
            (99999, "no such descriptor is open"),
        ):
            line = refusal(make, Endpoint("fd", f"fd://{number}", number=number))
            assert line == f"http = fd://{number}: {reason}"
        assert idle.getsockname()


def test_shared_sockets(directory: str) -> None:
    port = free_port()
    endpoints = (tcp(port), unix(f"{directory}/s"))
    with binder(replace(DEFAULT, shared_sockets=endpoints, undeferred=(True, False))) as make:
        make.bind_shared(2)
        bound = make.listen("http", Endpoint("shared", "=0", number=0), 2)
        assert bound.name == f"127.0.0.1:{port}"
        assert len(bound.sockets) == 2
        assert bound.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0
        bound = make.listen("http", Endpoint("shared", "=1", number=1), 2)
        assert bound.name == f"{directory}/s"
        again = refusal(make, Endpoint("shared", "=1", number=1))
        assert again == "http = =1: is listened on twice"
        missing = refusal(make, Endpoint("shared", "=2", number=2))
        assert missing == "http = =2: there are 2 shared sockets, counted from 0"


def test_shared_socket_errors_name_the_option() -> None:
    endpoint = tcp(free_port(), "192.0.2.7")
    for plain, option in ((False, "shared-socket"), (True, "undeferred-shared-socket")):
        with binder(replace(DEFAULT, shared_sockets=(endpoint,), undeferred=(plain,))) as make:
            with pytest.raises(StartError) as caught:
                make.bind_shared(1)
            assert str(caught.value).startswith(f"{option} = {endpoint.text}: ")


def test_backlog_above_that_of_the_kernel() -> None:
    make = Binder(replace(DEFAULT, listen=1 << 30), print)
    most = Path("/proc/sys/net/core/somaxconn").read_text().strip()
    with pytest.raises(StartError) as caught:
        make.bind_shared(1)
    reason = f"more than net.core.somaxconn ({most}); raise that, or lower listen"
    assert str(caught.value) == f"listen = 1073741824: {reason}"


# --- taken over ---------------------------------------------------------------------------------


PROMPT = replace(DEFAULT, defer_accept=0)  # without waiting for the client's first byte


def handed_over(bound: Bound) -> Inherited:
    """What the next master gets: the same sockets, its own descriptors."""
    handed = bound.handed()
    handed.fds = [os.dup(fd) for fd in handed.fds]
    bound.close()
    return Inherited([handed])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 2), (2, 3)])
def test_sockets_go_on(before: int, after: int) -> None:
    port = free_port()
    old = Binder(PROMPT, print).listen("http", tcp(port), before)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
    bound = Binder(PROMPT, print, handed_over(old)).listen("http", tcp(port), after)
    assert not bound.fresh
    assert len(bound.sockets) == max(before, after)
    assert accepted(bound) == 12
    # New ones take part at once.
    clients += [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
    assert accepted(bound) == 12
    for client in clients:
        client.close()
    bound.close()


def test_a_unix_socket_goes_on_and_its_mode_follows_the_configuration(directory: str) -> None:
    path = f"{directory}/s"
    old = Binder(replace(DEFAULT, chmod_socket=0o600), print).listen("http", unix(path), 1)
    make = Binder(replace(DEFAULT, chmod_socket=0o666, chown_socket=(-1, -1)), print,
                  handed_over(old))  # fmt: skip
    bound = make.listen("http", unix(path), 4)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert accepted(bound) == 1
    make.vacuum(fresh=True)
    assert os.path.exists(path)
    make.vacuum()
    assert not os.path.exists(path)
    make.close()


def test_a_rehearsal_changes_nothing_of_a_socket(directory: str) -> None:
    path = f"{directory}/s"
    old = Binder(replace(DEFAULT, chmod_socket=0o600), print).listen("http", unix(path), 1)
    handed = old.handed()
    handed.fds = [os.dup(fd) for fd in handed.fds]
    inherited = Inherited([handed], rehearsal=True)
    make = Binder(replace(DEFAULT, chmod_socket=0o666), print, inherited)
    make.listen("http", unix(path), 1)
    fresh = make.listen("http", unix(f"{directory}/fresh"), 1)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    make.vacuum(fresh=True)
    assert os.path.exists(path)
    assert not os.path.exists(fresh.name)
    make.close()
    old.close()


def test_options_that_connections_inherit() -> None:
    process = replace(
        DEFAULT, keepalive_probes=True, send_buffer=30_000, receive_buffer=40_000, fast_open=5
    )
    with binder(process) as make:
        (sock,) = make.listen("http", tcp(free_port()), 1).sockets
        options = [
            sock.getsockopt(socket.SOL_SOCKET, option)
            for option in (socket.SO_KEEPALIVE, socket.SO_SNDBUF, socket.SO_RCVBUF)
        ]
        assert options == [1, 60_000, 80_000]  # the kernel doubles them
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == 5
