"""Cache synchronisation with real uWSGI, in both directions: its cache, and what we send and hear.

The cache is read and written from outside with uWSGI's own protocol (modifier1 111, modifier2 17).
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.waiting import DEADLINE, free_port, wait_until

from interop import peers
from interop.subscribing import free_udp_port
from uwgate.config.settings_tls import CacheSettings
from uwgate.protocols.cache_sync import Update
from uwgate.protocols.uwsgi import packet, var
from uwgate.tls.sync import SyncReceiver, SyncSender

ITEMS = 20
BLOCK = 65536


def split_reply(data: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """Variables and what follows the packet."""
    end = 4 + int.from_bytes(data[1:3], "little")
    fields, pos = [], 4
    while pos < end:
        stop = pos + 2 + int.from_bytes(data[pos : pos + 2], "little")
        fields.append(data[pos + 2 : stop])
        pos = stop
    return dict(zip(fields[::2], fields[1::2], strict=True)), data[end:]


class Cache:
    """The cache of a uWSGI at ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, body: bytes = b"", **variables: bytes) -> tuple[dict[bytes, bytes], bytes]:
        """What it answers; ``({}, b"")`` if it hangs up: an error, or there is no such key."""
        blocks = [var(name.encode(), value) for name, value in variables.items()]
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as sock:
            sock.sendall(packet(111, 17, *blocks) + body)
            with sock.makefile("rb") as reader:
                data = reader.read()
        return split_reply(data) if data else ({}, b"")

    def get(self, key: bytes) -> bytes | None:
        fields, value = self.ask(cmd=b"get", key=key)
        return value if fields else None

    def expires(self, key: bytes) -> int:
        """Second of the epoch; 0: never."""
        return int(self.ask(cmd=b"get", key=key)[0].get(b"expires", b"0"))

    def put(self, key: bytes, value: bytes, *, cmd: bytes = b"set", seconds: int = 0) -> None:
        size, expires = b"%d" % len(value), b"%d" % seconds
        fields, _ = self.ask(value, cmd=cmd, key=key, size=size, expires=expires)
        assert fields == {b"status": b"ok"}

    def drop(self, key: bytes) -> None:
        assert self.ask(cmd=b"del", key=key)[0] == {b"status": b"ok"}

    def becomes(self, key: bytes, value: bytes | None) -> None:
        wait_until(lambda: self.get(key) == value, f"{key!r} is {value!r:.40}")


class Ours:
    """Our end: a receiver of what uWSGI tells its nodes, and a sender to it."""

    def __init__(self, secret: str = "", address: str = "127.0.0.1:0") -> None:
        self.updates: list[Update] = []
        self.lines: list[str] = []
        self.secret = secret
        settings = CacheSettings(secret=secret)
        self.receiver = SyncReceiver(address, settings, self.updates.append, self.lines.append)
        self.address = f"127.0.0.1:{self.receiver.sock.getsockname()[1]}"

    def sender(self, node: str) -> SyncSender:
        return SyncSender(CacheSettings(nodes=(node,), secret=self.secret), self.lines.append)

    def peek(self) -> bytes:
        """The next datagram, which stays."""
        assert select.select([self.receiver], [], [], DEADLINE)[0]
        return self.receiver.sock.recv(BLOCK, socket.MSG_PEEK)

    def hears(self, update: Update) -> None:
        """Exactly this, next."""
        wait_until(self.heard, "a change")
        assert self.updates == [update]
        self.updates.clear()

    def heard(self) -> bool:
        """Whether there is a change not looked at yet."""
        self.receiver.read()
        return bool(self.updates)


@dataclass
class Both:
    """A running uWSGI that hears at ``udp``, its cache, and our end of it. ``sealed``: another of
    ours, with a secret."""

    process: peers.Peer
    cache: Cache
    ours: Ours
    sealed: Ours
    udp: str

    def say(self, data: bytes) -> None:
        """A datagram to uWSGI."""
        host, _, port = self.udp.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(data, (host, int(port)))


@contextlib.contextmanager
def uwsgi_with_cache(where: Path, udp: str, nodes: str) -> Iterator[peers.Peer]:
    address = f"127.0.0.1:{free_port()}"
    cache = f"name=x,items={ITEMS},blocksize={BLOCK},keysize=128,udp={udp},node={nodes}"
    argv = [peers.script("uwsgi"), "--master", "--die-on-term", "--uwsgi-socket", address]
    argv += ["--cache2", cache]
    # Killed at the end: it takes a second to go by itself.
    with peers.peer(argv, [address], where / "cache.log", stop=signal.SIGKILL) as running:
        # Its socket accepts before its threads hear.
        line = f'*** udp server for cache "x" running on {udp} ***'
        wait_until(lambda: line in running.logged, line)
        yield running


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    ours, sealed = Ours(), Ours("a long and well kept secret")
    udp = f"127.0.0.1:{free_udp_port()}"
    with (
        contextlib.closing(ours.receiver),
        contextlib.closing(sealed.receiver),
        uwsgi_with_cache(tmp_path, udp, f"{ours.address};{sealed.address}") as running,
    ):
        yield Both(running, Cache(running.address), ours, sealed, udp)


def test_what_we_send_is_in_its_cache(both: Both) -> None:
    with contextlib.closing(both.ours.sender(both.udp)) as sender:
        until = int(time.time()) + 300
        key = bytes(range(32))  # as a session's id may be
        sender.set(key, b"\x30\x81" + bytes(200), until)
        both.cache.becomes(key, b"\x30\x81" + bytes(200))
        assert both.cache.expires(key) == until
        sender.set(key, b"another", 0)
        both.cache.becomes(key, b"another")
        assert both.cache.expires(key) == 0
        sender.delete(key)
        both.cache.becomes(key, None)
        assert (sender.sent, sender.failed) == (3, 0)


def test_the_largest_that_fits(both: Both) -> None:
    """4 bytes of head, 2 + 3 of the key, 2 of the value's length, 2 + 1 of the expiry."""
    largest = bytes(65507 - 4 - 5 - 2 - 3)
    with contextlib.closing(both.ours.sender(both.udp)) as sender:
        sender.set(b"big", largest + b"x", 0)
        assert (sender.sent, sender.failed) == (0, 1)
        sender.set(b"big", largest, 0)
        assert (sender.sent, sender.failed) == (1, 1)
        both.cache.becomes(b"big", largest)


def test_its_changes_are_heard(both: Both) -> None:
    cache, ours = both.cache, both.ours
    cache.put(b"one", b"1")
    ours.hears(Update(b"one", b"1", 0))
    # Its clock is the kernel's coarse one, which may be in the second before for some ms.
    before = int(time.time()) - 1
    cache.put(b"two", b"2" * 4096, seconds=300)
    after = int(time.time())
    wait_until(ours.heard, "a change")
    assert before + 300 <= ours.updates[0].expires <= after + 300
    ours.hears(Update(b"two", b"2" * 4096, ours.updates[0].expires))
    cache.put(b"one", b"11", cmd=b"update")
    ours.hears(Update(b"one", b"11", 0))
    assert ours.receiver.refused == 0


def test_its_deletes_are_heard_though_it_would_not_hear_them(both: Both) -> None:
    cache, ours = both.cache, both.ours
    cache.put(b"one", b"1")
    ours.hears(Update(b"one", b"1", 0))
    cache.drop(b"one")
    data = ours.peek()
    assert data == b"\x6f\x05\x00\x0b\x03\x00one"
    ours.hears(Update(b"one", None))
    # The same to itself: the key stays. With what is added here it goes.
    cache.put(b"one", b"1")
    with contextlib.closing(ours.sender(both.udp)) as sender:
        both.say(data)
        sender.set(b"later", b"2", 0)
        cache.becomes(b"later", b"2")
        assert cache.get(b"one") == b"1"
        sender.delete(b"one")
        cache.becomes(b"one", None)


def test_what_it_hears_it_does_not_pass_on(both: Both) -> None:
    """So two that name each other as nodes do not talk for ever."""
    with contextlib.closing(both.ours.sender(both.udp)) as sender:
        sender.set(b"ours", b"1", 0)
        both.cache.becomes(b"ours", b"1")
    both.cache.put(b"its", b"2")
    both.ours.hears(Update(b"its", b"2", 0))


def test_its_clearing_deletes_nothing(both: Both) -> None:
    """A delete of no key for each of its items, and the next change is heard again."""
    cache, ours = both.cache, both.ours
    cache.ask(cmd=b"clear")
    assert ours.peek().hex() == "6f02000b0000"
    cache.put(b"next", b"1")
    ours.hears(Update(b"next", b"1", 0))
    assert ours.receiver.refused == ITEMS - 1
    assert len(ours.lines) == 1


def test_it_passes_over_what_is_sealed(both: Both) -> None:
    with (
        contextlib.closing(both.sealed.sender(both.udp)) as sealed,
        contextlib.closing(both.ours.sender(both.udp)) as clear,
    ):
        sealed.set(b"secret", b"1", 0)
        clear.set(b"clear", b"2", 0)
        both.cache.becomes(b"clear", b"2")
        assert both.cache.get(b"secret") is None
    assert both.process.process.poll() is None


def test_who_has_a_secret_does_not_hear_it(both: Both) -> None:
    sealed = both.sealed
    both.cache.put(b"clear", b"1")
    sealed.peek()
    assert not sealed.heard()
    assert sealed.receiver.refused == 1


def test_a_group(tmp_path: Path) -> None:
    """Both hear the group; what uWSGI says to it reaches us, and what we say reaches it."""
    group = f"225.1.1.75:{free_udp_port()}"
    try:
        ours = Ours(address=group)
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    with contextlib.closing(ours.receiver), contextlib.closing(ours.sender(group)) as sender:
        sender.set(b"probe", b"", 0)
        if sender.failed:
            pytest.skip("no multicast here")
        ours.hears(Update(b"probe", b"", 0))
        with uwsgi_with_cache(tmp_path, group, group) as running:
            cache = Cache(running.address)
            sender.set(b"ours", b"1", 0)
            cache.becomes(b"ours", b"1")
            ours.hears(Update(b"ours", b"1", 0))  # we are of the group
            cache.put(b"its", b"2")
            ours.hears(Update(b"its", b"2", 0))
