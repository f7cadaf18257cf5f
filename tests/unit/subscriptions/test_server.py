"""Datagram sockets of subscription servers, with real senders."""

from __future__ import annotations

import array
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from selectors import EVENT_READ
from tempfile import TemporaryDirectory

import pytest
from support.waiting import wait_until

from uwgate.config.settings import Endpoint
from uwgate.subscriptions import server as module
from uwgate.subscriptions.packet import MAX_DATAGRAM
from uwgate.subscriptions.server import BATCH, Credentials, DatagramServer

GROUP = "225.1.1.7"
ME = (os.getpid(), os.geteuid(), os.getegid())


class Heard:
    """A server and what it passed on."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        credentials: bool = False,
        max_rate: int = 0,
        mode: int | None = None,
    ) -> None:
        self.got: list[tuple[bytes, str, Credentials | None]] = []
        self.crashes: list[str] = []
        self.server = DatagramServer(
            endpoint,
            self.receive,
            credentials=credentials,
            max_rate=max_rate,
            mode=mode,
            crash=lambda text, error: self.crashes.append(f"{text}: {error}"),
        )

    def receive(self, datagram: bytes, sender: str, who: Credentials | None) -> None:
        if datagram == b"crash":
            raise RuntimeError("sorry")
        self.got.append((datagram, sender, who))

    def read(self, count: int) -> list[tuple[bytes, str, Credentials | None]]:
        """Wait until that many were passed on, all in all."""

        def enough() -> bool:
            self.server.on_readable(EVENT_READ)
            return len(self.got) >= count

        wait_until(enough, f"{count} datagrams, {len(self.got)} came")
        return self.got

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.name.rpartition(":")
        return host.strip("[]"), int(port)


@pytest.fixture
def directory() -> Iterator[str]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as path:
        yield path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def udp(host: str, port: int = 0) -> Endpoint:
    return Endpoint("tcp", f"{host}:{port}", host=host, port=port)


def unix(path: str) -> Endpoint:
    return Endpoint("unix", path, path=path)


def heard(
    stack: ExitStack,
    endpoint: Endpoint,
    *,
    credentials: bool = False,
    max_rate: int = 0,
    mode: int | None = None,
) -> Heard:
    made = Heard(endpoint, credentials=credentials, max_rate=max_rate, mode=mode)
    stack.callback(made.server.close)
    return made


def sender(stack: ExitStack, family: int = socket.AF_INET) -> socket.socket:
    return stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))


def refusal(endpoint: Endpoint) -> str:
    with pytest.raises(OSError, match=r".") as caught:
        Heard(endpoint)
    assert caught.value.strerror
    return caught.value.strerror


# --- UDP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_udp(host: str, stack: ExitStack) -> None:
    server = heard(stack, udp(host), credentials=True)
    ip = "::1" if host == "::1" else "127.0.0.1"
    assert server.address[0] == ip
    assert server.server.fileno() > 0
    assert server.server.buffer >= 200_000
    peer = sender(stack, socket.AF_INET6 if ip == "::1" else socket.AF_INET)
    peer.sendto(b"one", server.address)
    peer.sendto(b"", server.address)
    assert server.read(2) == [(b"one", ip, None), (b"", ip, None)]
    assert server.server.received == 2
    server.server.close()
    assert server.server.fileno() == -1


def test_empty_host_is_every_ipv4_address(stack: ExitStack) -> None:
    server = heard(stack, udp(""))
    assert server.address[0] == "0.0.0.0"
    sender(stack).sendto(b"one", ("127.0.0.1", server.address[1]))
    assert server.read(1) == [(b"one", "127.0.0.1", None)]


def test_both_families_may_have_one_port(stack: ExitStack) -> None:
    first = heard(stack, udp("0.0.0.0"))
    second = heard(stack, udp("::", first.address[1]))
    assert second.server.name == f"[::]:{first.address[1]}"


def test_nothing_to_read_is_no_error(stack: ExitStack) -> None:
    server = heard(stack, udp("127.0.0.1"))
    server.server.on_readable(EVENT_READ)
    assert (server.got, server.server.errors) == ([], 0)


def test_failed_reads_are_counted(stack: ExitStack) -> None:
    server = heard(stack, udp("127.0.0.1"))
    server.server.close()
    server.server.on_readable(EVENT_READ)
    assert server.server.errors == 1


def test_one_call_reads_a_batch(stack: ExitStack) -> None:
    server = heard(stack, udp("127.0.0.1"))
    peer = sender(stack)
    for number in range(BATCH + 10):
        peer.sendto(b"%d" % number, server.address)
    server.server.on_readable(EVENT_READ)
    assert len(server.got) == BATCH
    assert [int(datagram) for datagram, _, _ in server.read(BATCH + 10)] == list(range(BATCH + 10))


def test_too_long_ones_are_seen_as_such(stack: ExitStack) -> None:
    server = heard(stack, udp("127.0.0.1"))
    peer = sender(stack)
    peer.sendto(bytes(MAX_DATAGRAM), server.address)
    peer.sendto(bytes(60_000), server.address)
    got = server.read(2)
    assert [len(datagram) for datagram, _, _ in got] == [MAX_DATAGRAM, MAX_DATAGRAM + 1]
    assert server.server.truncated == 1


def test_an_exception_of_the_receiver_costs_one_datagram(stack: ExitStack) -> None:
    server = heard(stack, udp("127.0.0.1"))
    peer = sender(stack)
    for datagram in (b"crash", b"crash", b"one"):
        peer.sendto(datagram, server.address)
    assert [datagram for datagram, _, _ in server.read(1)] == [b"one"]
    told = "a subscription packet from 127.0.0.1 made trouble: sorry"
    assert (server.server.crashes, server.crashes) == (2, [told])
    server.server.tick()
    peer.sendto(b"crash", server.address)
    peer.sendto(b"two", server.address)
    server.read(2)
    assert server.crashes == [told, told]


def test_the_kernel_tells_what_it_lost(stack: ExitStack) -> None:
    server = heard(stack, udp("127.0.0.1"))
    assert server.server.lost == 0
    peer = sender(stack)
    sent = 0
    while server.server.lost == 0:
        for _ in range(100):
            peer.sendto(bytes(8000), server.address)
        sent += 100
        assert sent < 100_000
    lost = server.server.lost
    server.read(sent - lost)
    assert len(server.got) == sent - lost
    # A burst of ten thousand usual packets finds room where the kernel gave what was asked for.
    if server.server.buffer >= 8 << 20:
        for _ in range(10_000):
            peer.sendto(bytes(178), server.address)
        assert server.server.lost == lost
    server.server.close()
    assert server.server.lost == 0


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (udp("no-such-host.invalid", 4040), 'host name "no-such-host.invalid" cannot be resolved'),
        (udp("192.0.2.99", 4040), "Cannot assign requested address"),
        (Endpoint("abstract", "@x", path="x"), "a subscription server is HOST:PORT or a path"),
        (unix("/no/such/directory/x"), "No such file or directory"),
        (unix("/" + "x" * 108), "path is longer than 107 bytes"),
    ],
)
def test_what_cannot_be_bound(endpoint: Endpoint, reason: str) -> None:
    assert refusal(endpoint) == reason


def test_an_address_has_one_server(stack: ExitStack) -> None:
    server = heard(stack, udp("127.0.0.1"))
    assert refusal(udp("127.0.0.1", server.address[1])) == "Address already in use"


# --- multicast, broadcast ----------------------------------------------------------------------


def test_multicast_ipv4(stack: ExitStack) -> None:
    first = heard(stack, udp(GROUP))
    second = heard(stack, udp(GROUP, first.address[1]))
    peer = sender(stack)
    peer.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    peer.sendto(b"one", first.address)
    assert first.address[0] == GROUP
    assert first.read(1)[0][0] == second.read(1)[0][0] == b"one"
    # Bound as the group: what is sent to the port otherwise belongs to somebody else.
    peer.sendto(b"two", ("127.0.0.1", first.address[1]))
    peer.sendto(b"three", first.address)
    assert [datagram for datagram, _, _ in first.read(2)] == [b"one", b"three"]


@pytest.mark.parametrize("group", ["ff02::4242", "ff15::4242", "ff02::4242%ZONE"])
def test_multicast_ipv6(group: str, stack: ExitStack) -> None:
    for index, name in socket.if_nameindex():
        server = heard(stack, udp(group.replace("ZONE", name)))
        peer = sender(stack, socket.AF_INET6)
        peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        try:
            peer.sendto(b"one", (group.partition("%")[0], server.address[1], 0, index))
        except OSError:  # this interface does no IPv6 multicast
            continue
        assert server.read(1)[0][0] == b"one"
        return
    pytest.skip("no interface for IPv6 multicast")


def test_a_group_that_no_interface_takes(stack: ExitStack) -> None:
    with pytest.raises(OSError, match=r"Invalid argument"):
        module._join(sender(stack), socket.inet_aton("127.0.0.1"), ("127.0.0.1", 0))


def test_broadcast(stack: ExitStack) -> None:
    server = heard(stack, udp("255.255.255.255"))
    with socket.socket(fileno=os.dup(server.server.fileno())) as copy:
        assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
    peer = sender(stack)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    try:
        peer.sendto(b"one", server.address)
    except OSError as error:
        pytest.skip(f"no broadcast here: {error}")
    assert server.read(1)[0][0] == b"one"


# --- unix --------------------------------------------------------------------------------------


def test_unix(directory: str, stack: ExitStack) -> None:
    path = f"{directory}/s"
    server = heard(stack, unix(path), mode=0o620)
    assert server.server.name == path
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o620
    peer = sender(stack, socket.AF_UNIX)
    peer.sendto(b"one", path)
    assert server.read(1) == [(b"one", "unix", None)]


def test_the_umask_is_as_before(directory: str, stack: ExitStack) -> None:
    before = os.umask(0o027)
    try:
        heard(stack, unix(f"{directory}/s"), mode=0o666)
        assert os.umask(0o027) == 0o027
        heard(stack, unix(f"{directory}/t"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(f"{directory}/s").st_mode) == 0o666
    assert stat.S_IMODE(os.lstat(f"{directory}/t").st_mode) == 0o750


def test_credentials(directory: str, stack: ExitStack) -> None:
    path = f"{directory}/s"
    server = heard(stack, unix(path), credentials=True)
    peer = sender(stack, socket.AF_UNIX)
    peer.sendto(b"one", path)  # the kernel fills them in
    claim = struct.pack("3i", *ME)
    peer.sendmsg([b"two"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, claim)], 0, path)
    who = f"uid {ME[1]}"
    assert server.read(2) == [(b"one", who, ME), (b"two", who, ME)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can say that it is somebody else")
def test_credentials_of_others(directory: str, stack: ExitStack) -> None:
    path = f"{directory}/s"
    server = heard(stack, unix(path), credentials=True)
    claim = struct.pack("3i", ME[0], 1234, 567)
    peer = sender(stack, socket.AF_UNIX)
    peer.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, claim)], 0, path)
    assert server.read(1) == [(b"x", "uid 1234", (ME[0], 1234, 567))]


@pytest.mark.parametrize("credentials", [False, True])
@pytest.mark.parametrize("room", [0, 64])
def test_descriptors_are_not_leaked(
    credentials: bool, room: int, directory: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANCILLARY", module._ANCILLARY + socket.CMSG_SPACE(room))
    path = f"{directory}/s"
    server = heard(stack, unix(path), credentials=credentials)
    peer = sender(stack, socket.AF_UNIX)
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    rights = array.array("i", [writer] * 3)
    for _ in range(5):
        peer.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, path)
    os.close(writer)
    assert len(server.read(5)) == 5
    assert os.read(reader, 1) == b""  # nobody holds the other end
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) == before


def test_ancillary_data_of_other_kinds_is_nothing() -> None:
    other = [(socket.IPPROTO_IP, 1, b"1234"), (socket.SOL_SOCKET, 99, b"x")]
    assert module._credentials(other) is None
    short = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, b"1234")]
    assert module._credentials(short) is None


def test_a_stale_socket_is_replaced(directory: str, stack: ExitStack) -> None:
    path = f"{directory}/s"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as old:
        old.bind(path)
    server = heard(stack, unix(path))
    sender(stack, socket.AF_UNIX).sendto(b"one", path)
    assert server.read(1)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_socket_in_use_stays(
    kind: socket.SocketKind, directory: str, stack: ExitStack
) -> None:
    path = f"{directory}/s"
    other = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    other.bind(path)
    if kind is socket.SOCK_STREAM:
        other.listen()
    before = os.lstat(path).st_ino
    assert refusal(unix(path)) == "Address already in use"
    assert os.lstat(path).st_ino == before


def test_other_files_stay(directory: str) -> None:
    file = Path(directory, "f")
    file.write_text("precious")
    link = Path(directory, "l")
    link.symlink_to(file)
    Path(directory, "dangling").symlink_to("nowhere")
    for name in ("f", "l", "dangling", ""):
        assert refusal(unix(f"{directory}/{name}")) == "the file exists and is not a socket"
    assert file.read_text() == "precious"
    assert link.is_symlink()


def test_vacuum_removes_its_own_file_only(directory: str, stack: ExitStack) -> None:
    first = heard(stack, unix(f"{directory}/s"))
    first.server.close()
    second = heard(stack, unix(f"{directory}/s"))
    first.server.vacuum()
    assert os.path.exists(f"{directory}/s")
    second.server.vacuum()
    assert not os.path.exists(f"{directory}/s")
    second.server.vacuum()
    heard(stack, udp("127.0.0.1")).server.vacuum()


# --- rates -------------------------------------------------------------------------------------


def test_a_sender_has_a_rate(stack: ExitStack) -> None:
    server = heard(stack, udp("0.0.0.0"), max_rate=3)
    port = server.address[1]
    loud, quiet = sender(stack), sender(stack)
    loud.bind(("127.0.0.1", 0))
    quiet.bind(("127.0.0.2", 0))
    for number in range(5):
        loud.sendto(b"%d" % number, ("127.0.0.1", port))
    quiet.sendto(b"q", ("127.0.0.1", port))
    server.read(4)
    senders = [sender for _, sender, _ in server.got]
    assert senders == ["127.0.0.1"] * 3 + ["127.0.0.2"]
    assert (server.server.dropped, server.server.received) == (2, 4)
    server.server.tick()
    loud.sendto(b"again", ("127.0.0.1", port))
    assert server.read(5)[-1][0] == b"again"


def test_made_up_senders_do_not_fill_the_memory(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SENDERS", 2)
    server = heard(stack, udp("0.0.0.0"), max_rate=1)
    to = ("127.0.0.1", server.address[1])
    peers = [sender(stack) for _ in range(4)]
    for number, peer in enumerate(peers):
        peer.bind((f"127.0.0.{number + 1}", 0))
        peer.sendto(b"x", to)
        peer.sendto(b"x", to)
    # The first two are counted and dropped; those that found no place are not.
    server.read(6)
    assert server.server.dropped == 2
    assert len(server.server._counts) == 2
