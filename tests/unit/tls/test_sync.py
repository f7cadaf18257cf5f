"""Changes of caches from socket to socket: in clear, sealed, forged, replayed, by multicast."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config.settings_tls import CacheSettings
from uwgate.protocols.cache_sync import SyncError, Update, encode, split
from uwgate.tls.sync import SEALED, Sealer, SyncReceiver, SyncSender

OURS, THEIRS = "ours, and kept well", "theirs"
NOW = 1_800_000_000
UPDATE = encode(Update(b"key", b"value", NOW))


class Heard:
    """A receiver, and what it was told."""

    def __init__(self, address: str = "127.0.0.1:0", secret: str = "", **fields: int) -> None:
        self.updates: list[Update] = []
        self.lines: list[str] = []
        settings = CacheSettings(secret=secret, **fields)  # type: ignore[arg-type]
        self.receiver = SyncReceiver(address, settings, self.updates.append, self.lines.append)
        self.receiver.sock.settimeout(5)
        self.address = f"127.0.0.1:{self.receiver.sock.getsockname()[1]}"

    def wait(self, count: int) -> list[Update]:
        """``count`` datagrams more, heard or refused."""
        have = self.receiver.received
        while self.receiver.received < have + count:
            self.receiver.sock.recv(1, socket.MSG_PEEK)  # blocks until there is one
            self.receiver.sock.setblocking(False)
            self.receiver.read()
            self.receiver.sock.settimeout(5)
        return self.updates


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
        heard.receiver.close()
    assert (sender.sent, sender.failed) == (4, 0)


def test_who_has_a_secret_hears_nothing_else(senders: list[SyncSender]) -> None:
    heard = Heard(secret=OURS)
    sender_to(senders, heard.address).set(b"k", b"v", 0)
    sender_to(senders, heard.address, secret=THEIRS).set(b"k", b"v", 0)
    assert heard.wait(2) == []
    assert heard.receiver.refused == 2
    assert len(heard.lines) == 1  # not one a datagram
    heard.receiver.close()


def test_who_has_none_hears_nothing_sealed(senders: list[SyncSender]) -> None:
    heard = Heard()
    sender_to(senders, heard.address, secret=THEIRS).set(b"k", b"v", 0)
    assert heard.wait(1) == []
    heard.receiver.close()


def test_a_child_has_sockets_of_its_own(senders: list[SyncSender]) -> None:
    heard = Heard()
    sender = sender_to(senders, heard.address)
    sender.set(b"parent", b"", 0)
    pid = os.fork()
    if pid == 0:
        sender.set(b"child", b"", 0)
        os._exit(sender.failed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert {update.key for update in heard.wait(2)} == {b"parent", b"child"}
    heard.receiver.close()


def test_what_cannot_be_sent_is_counted(senders: list[SyncSender]) -> None:
    lines: list[str] = []
    senders.append(
        SyncSender(CacheSettings(nodes=("no.such.host.invalid:1", "127.0.0.1:9")), lines.append)
    )
    assert len(lines) == 1
    assert "no.such.host.invalid:1" in lines[0]
    senders[-1].set(b"k", b"v" * 65507, 0)
    assert (senders[-1].sent, senders[-1].failed) == (0, 1)


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
        heard.receiver.close()


def test_an_address_that_cannot_be_bound() -> None:
    heard = Heard()
    with pytest.raises(OSError, match="in use"):
        Heard(heard.address)
    heard.receiver.close()


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
