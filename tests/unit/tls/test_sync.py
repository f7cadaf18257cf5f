"""Changes of caches from socket to socket: in clear, sealed, forged, replayed, by multicast."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.config.settings_tls import CacheSettings
from uwgate.protocols.cache_sync import SyncError, Update, encode, split
from uwgate.tls.sync import SEALED, Sealer, SyncReceiver, SyncSender

OURS, THEIRS = "ours, and kept well", "theirs"
NOW = 1_800_000_000
UPDATE = encode(Update(b"key", b"value", NOW))


class Heard:
    """A receiver, and what it was told."""

    made: ClassVar[list[Heard]] = []

    def __init__(self, address: str = "127.0.0.1:0", secret: str = "", **fields: int) -> None:
        self.updates: list[Update] = []
        self.lines: list[str] = []
        cache = CacheSettings(secret=secret, **fields)  # type: ignore[arg-type]
        self.receiver = SyncReceiver(address, cache, self.updates.append, self.lines.append)
        self.receiver.sock.settimeout(5)
        self.made.append(self)
        self.port = self.receiver.sock.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def wait(self, count: int) -> list[Update]:
        """``count`` datagrams more, heard or refused."""
        have = self.receiver.received
        while self.receiver.received < have + count:
            self.receiver.sock.recv(1, socket.MSG_PEEK)  # blocks until there is one
            self.receiver.sock.setblocking(False)
            self.receiver.read()
            self.receiver.sock.settimeout(5)
        return self.updates


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    for heard in Heard.made:
        heard.receiver.close()
    Heard.made.clear()


@pytest.fixture
def senders() -> Iterator[list[SyncSender]]:
    made: list[SyncSender] = []
    yield made
    for sender in made:
        sender.close()


def sender_to(made: list[SyncSender], *nodes: str, secret: str = "") -> SyncSender:
    made.append(SyncSender(CacheSettings(nodes=nodes, secret=secret), print))
    return made[-1]


@pytest.mark.parametrize("secret", ["", "a long and well kept secret"])
def test_there(senders: list[SyncSender], secret: str) -> None:
    one, two = Heard(secret=secret), Heard(secret=secret)
    sender = sender_to(senders, one.address, two.address, secret=secret)
    sender.set(b"\x00id", b"der" * 100, NOW)
    sender.delete(b"\x00id")
    for heard in (one, two):
        assert heard.wait(2) == [Update(b"\x00id", b"der" * 100, NOW), Update(b"\x00id", None)]
    assert (sender.sent, sender.failed) == (4, 0)


def test_who_has_a_secret_hears_nothing_else(senders: list[SyncSender]) -> None:
    heard = Heard(secret=OURS)
    sender_to(senders, heard.address).set(b"k", b"v", 0)
    sender_to(senders, heard.address, secret=THEIRS).set(b"k", b"v", 0)
    assert heard.wait(2) == []
    assert heard.receiver.refused == 2
    assert len(heard.lines) == 1  # not one a datagram


def test_who_has_none_hears_nothing_sealed(senders: list[SyncSender]) -> None:
    heard = Heard()
    sender_to(senders, heard.address, secret=THEIRS).set(b"k", b"v", 0)
    assert heard.wait(1) == []


def test_a_child_has_sockets_of_its_own(senders: list[SyncSender]) -> None:
    heard = Heard()
    sender = sender_to(senders, heard.address)
    sender.set(b"parent", b"", 0)
    pid = os.fork()
    if pid == 0:
        sender.set(b"child", b"", 0)
        os._exit(sender.failed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    sender.set(b"parent again", b"", 0)
    ports = set()
    heard.receiver.sock.settimeout(5)
    for _ in range(3):
        data, source = heard.receiver.sock.recvfrom(100)
        ports.add((b"parent" in data, source[1]))
    assert len(ports) == 2
    assert len({port for _, port in ports}) == 2


def test_what_cannot_be_sent_is_counted(senders: list[SyncSender]) -> None:
    lines: list[str] = []
    senders.append(
        SyncSender(
            CacheSettings(nodes=("no.such.host.invalid:1", "x" * 64 + ".:1", "127.0.0.1:9")),
            lines.append,
        )
    )
    assert len(lines) == 2
    assert "no.such.host.invalid:1" in lines[0]
    assert "x" * 64 in lines[1]
    senders[-1].set(b"k", b"v" * 65507, 0)
    assert (senders[-1].sent, senders[-1].failed) == (0, 1)
    nowhere = sender_to(senders, "127.0.0.1:0", "127.0.0.1:9")
    nowhere.delete(b"k")
    assert (nowhere.sent, nowhere.failed) == (1, 1)


def test_a_group(senders: list[SyncSender]) -> None:
    """uWSGI's documents use 225.1.1.1; several may hear one port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    try:
        one, two = Heard(f"225.1.1.1:{port}"), Heard(f"225.1.1.1:{port}")
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    sender = sender_to(senders, f"225.1.1.1:{port}")
    sender.set(b"k", b"v", 0)
    if sender.failed:
        pytest.skip("no multicast here")
    for heard in (one, two):
        assert heard.wait(1) == [Update(b"k", b"v", 0)]


def test_a_group_of_ipv6(senders: list[SyncSender]) -> None:
    """ff01::/16 does not leave the machine."""
    try:
        heard = Heard("[ff01::75]:0")
    except OSError as error:
        pytest.skip(f"no IPv6 multicast here: {error}")
    sender = sender_to(senders, f"[ff01::75]:{heard.port}")
    sender.set(b"k", b"v", 0)
    if sender.failed:
        pytest.skip("no IPv6 multicast here")
    assert heard.wait(1) == [Update(b"k", b"v", 0)]


def test_ipv6(senders: list[SyncSender]) -> None:
    try:
        heard = Heard("[::1]:0")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    sender_to(senders, f"[::1]:{heard.port}").delete(b"k")
    assert heard.wait(1) == [Update(b"k", None)]


def test_broadcast(senders: list[SyncSender]) -> None:
    """Nothing addressed to one machine alone arrives at a broadcast address."""
    heard = Heard("127.255.255.255:0")
    sender_to(senders, f"127.0.0.1:{heard.port}").set(b"one", b"", 0)
    sender = sender_to(senders, f"127.255.255.255:{heard.port}")
    sender.set(b"all", b"", 0)
    assert (sender.sent, sender.failed) == (1, 0)
    assert heard.wait(1) == [Update(b"all", b"", 0)]


def test_names_are_those_of_ipv4_first(senders: list[SyncSender]) -> None:
    """uWSGI hears nothing else, and ``localhost`` often is ``::1`` first."""
    heard = Heard("localhost:0")
    assert heard.receiver.sock.getsockname()[0] == "127.0.0.1"
    sender_to(senders, f"localhost:{heard.port}").set(b"k", b"v", 0)
    assert heard.wait(1) == [Update(b"k", b"v", 0)]


def test_without_a_host_it_is_this_machine(senders: list[SyncSender]) -> None:
    heard = Heard(":0")
    assert heard.receiver.sock.getsockname()[0] == "0.0.0.0"
    sender_to(senders, f":{heard.port}").set(b"k", b"v", 0)
    assert heard.wait(1) == [Update(b"k", b"v", 0)]


def test_a_turn_has_an_end(senders: list[SyncSender]) -> None:
    """The master has other things to do while datagrams keep coming."""
    heard = Heard()
    sender = sender_to(senders, heard.address)
    for number in range(300):
        sender.set(b"%d" % number, b"", 0)
    assert sender.failed == 0
    heard.receiver.sock.setblocking(False)
    heard.receiver.read()
    assert heard.receiver.received == 256
    heard.receiver.read()
    assert [update.key for update in heard.updates] == [b"%d" % number for number in range(300)]


@given(st.lists(st.binary(max_size=120), max_size=20))
@settings(max_examples=20, deadline=None)
def test_reading_never_raises(parts: list[bytes]) -> None:
    heard = Heard()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for part in parts:
            other.sendto(part, ("127.0.0.1", heard.port))
        other.sendto(UPDATE, ("127.0.0.1", heard.port))
    assert heard.wait(len(parts) + 1)[-1] == Update(b"key", b"value", NOW)
    assert heard.receiver.refused + len(heard.updates) == len(parts) + 1


def test_an_address_that_cannot_be_bound() -> None:
    heard = Heard()
    with pytest.raises(OSError, match="in use"):
        Heard(heard.address)


# --- sealing --------------------------------------------------------------------------------------


def test_sealed_and_opened() -> None:
    sealed = Sealer("s").seal(UPDATE, NOW)
    assert split(sealed)[0] == SEALED
    assert b"value" not in sealed
    assert Sealer("s").open(sealed, NOW + 60) == UPDATE
    assert Sealer("s").open(sealed, NOW - 60) == UPDATE


@pytest.mark.parametrize("moment", [NOW - 61, NOW + 61])
def test_out_of_time(moment: int) -> None:
    with pytest.raises(SyncError, match="old"):
        Sealer("s").open(Sealer("s").seal(UPDATE, NOW), moment)


@pytest.mark.parametrize("later", [0, 1, 60])
def test_once(later: int) -> None:
    for start in (NOW, NOW - NOW % 120 + 119):  # also where the memory is changed
        sealer = Sealer("s")
        sealed = sealer.seal(UPDATE, start)
        assert sealer.open(sealed, start) == UPDATE
        with pytest.raises(SyncError, match="before"):
            sealer.open(sealed, start + later)


def test_once_also_if_the_clock_is_put_back() -> None:
    sealer, start = Sealer("s"), NOW - NOW % 120
    first, second = Sealer("s").seal(UPDATE, start - 1), Sealer("s").seal(UPDATE, start)
    assert sealer.open(first, start - 1) == UPDATE
    assert sealer.open(second, start) == UPDATE
    for moment in (start - 1, start, start + 1):
        for sealed in (first, second):
            with pytest.raises(SyncError, match="before"):
                sealer.open(sealed, moment)


def test_what_is_out_of_time_is_forgotten() -> None:
    """Of periods long gone nothing is kept; nothing of them is opened either."""
    sealer = Sealer("s")
    sealed = sealer.seal(UPDATE, NOW)
    assert sealer.open(sealed, NOW) == UPDATE
    for moment in (NOW + 1000, NOW - 1000):
        assert sealer.open(sealer.seal(UPDATE, moment), moment) == UPDATE
        with pytest.raises(SyncError, match="old"):
            sealer.open(sealed, moment)


def test_no_two_are_alike() -> None:
    sealer = Sealer("s")
    assert len({sealer.seal(UPDATE, NOW) for _ in range(100)}) == 100


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_bit(position: int, flip: int) -> None:
    sealer = Sealer("s")
    sealed = bytearray(sealer.seal(UPDATE, int(time.time())))
    sealed[position % len(sealed)] ^= flip
    with pytest.raises(SyncError):
        sealer.open(bytes(sealed), int(time.time()))


@given(st.binary(max_size=80))
def test_whatever_comes(body: bytes) -> None:
    sealer = Sealer("s")
    for data in (body, b"\x6f" + len(body).to_bytes(2, "little") + bytes((SEALED,)) + body):
        with pytest.raises(SyncError):
            sealer.open(data, NOW)
