"""Ticket keys: which tickets are good, when, and where."""

from __future__ import annotations

import copy
import ctypes
import os
import ssl
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openssl_tools import TLS_1_2, VERSIONS, World, hooks, visit

from uwgate.config.settings_tls import TicketSettings
from uwgate.tls.ticket_ring import TicketRing
from uwgate.tls.tickets import KEY_SIZE, TicketKeys

LIFE = 300


def made(rotate: float = 3600.0) -> TicketKeys:
    return TicketKeys(TicketSettings(rotate=rotate), LIFE, print)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def attached(world: World, keys: TicketKeys, name: bytes = b"test") -> ssl.SSLContext:
    context = world.server(name)
    keys.attach(hooks(), context)
    return context


@pytest.mark.parametrize("version", VERSIONS)
def test_contexts_with_the_same_keys_resume_each_other(
    world: World, version: ssl.TLSVersion
) -> None:
    keys = made()
    one, two, client = attached(world, keys), attached(world, keys), world.client(version)
    reused, session = visit(one, client)
    assert not reused
    assert visit(two, client, session)[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_ticket_of_the_key_before_is_good_and_renewed(
    world: World, version: ssl.TLSVersion
) -> None:
    keys = made()
    server, client = attached(world, keys), world.client(version)
    session = visit(server, client)[1]
    now = time.monotonic()
    keys.rotate(now)
    keys.refresh(now + 1.5)
    reused, renewed = visit(server, client, session)
    assert reused
    keys.retire(now + LIFE + 3)
    assert len(keys) == 1
    assert not visit(server, client, session)[0]
    assert visit(server, client, renewed)[0]


def test_new_key_encrypts_only_when_all_know_it(world: World) -> None:
    keys = made()
    server, client = attached(world, keys), world.client(TLS_1_2)
    late = world.server()
    hooks().set_ticket_keys(late, keys._encrypting)  # as a worker that has not looked yet
    keys.rotate(time.monotonic())
    assert visit(late, client, visit(server, client)[1])[0]
    keys.refresh(time.monotonic() + 1.5)
    assert not visit(late, client, visit(server, client)[1])[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("several", [False, True])
def test_foreign_and_forged_tickets_are_full_handshakes(
    world: World, version: ssl.TLSVersion, several: bool
) -> None:
    """Foreign: a key of another name; forged: our name, and another secret."""
    keys, client = made(), world.client(version)
    server = attached(world, keys)
    if several:
        keys.rotate(time.monotonic() - 2)
    for key in (os.urandom(KEY_SIZE), bytes(keys._encrypting[:16]) + bytes(64)):
        other = world.server()
        hooks().set_ticket_keys(other, key)
        session = visit(other, client)[1]
        assert visit(other, client, session)[0]
        assert not visit(server, client, session)[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("several", [False, True])
def test_ticket_of_another_session_context_is_a_full_handshake(
    world: World, version: ssl.TLSVersion, several: bool
) -> None:
    keys, client = made(), world.client(version)
    one, two = attached(world, keys), attached(world, keys, b"other")
    if several:
        keys.rotate(time.monotonic() - 2)
    session = visit(one, client)[1]
    assert not visit(two, client, session)[0]
    assert visit(one, client, session)[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("old", [False, True], ids=["OpenSSL 3", "OpenSSL 1.1.1"])
def test_ring_and_openssl_make_the_same_tickets(
    world: World, version: ssl.TLSVersion, old: bool
) -> None:
    key, other = os.urandom(KEY_SIZE), os.urandom(KEY_SIZE)
    client, native, asking = world.client(version), world.server(), world.server()
    ring = TicketRing(hooks(), old=old)
    ring.load([other, key], encrypting=1)
    hooks().set_ticket_keys(native, key)
    hooks().set_ticket_ring(asking, ring)
    assert visit(native, client, visit(asking, client)[1])[0]
    assert visit(asking, client, visit(native, client)[1])[0]
    hooks().set_ticket_keys(native, other)
    assert visit(asking, client, visit(native, client)[1])[0]
    hooks().set_ticket_ring(asking, None)
    hooks().set_ticket_keys(asking, key)
    assert not visit(asking, client, visit(native, client)[1])[0]


def test_ring_needs_keys(world: World) -> None:
    ring = TicketRing(hooks())
    for keys in ([], [bytes(48)]):
        with pytest.raises(ValueError, match="80 bytes"):
            ring.load(keys)
    server = world.server()
    hooks().set_ticket_ring(server, ring)
    with pytest.raises(ssl.SSLError):
        visit(server, world.client(TLS_1_2))


def test_keys_of_the_distributed_store(world: World) -> None:
    keys, other = made(), made()
    server, client = attached(world, keys), world.client(TLS_1_2)
    theirs, before, next_one = (os.urandom(KEY_SIZE) for _ in range(3))
    keys.adopt([theirs, before, next_one])
    session = visit(server, client)[1]
    elsewhere = attached(world, other)
    other.adopt([next_one, theirs])
    assert visit(elsewhere, client, session)[0]
    for wrong in ([], [bytes(79)], [theirs, b""]):
        with pytest.raises(ValueError, match="80 bytes"):
            keys.adopt(wrong)
    keys.adopt([theirs, before, next_one])
    assert visit(server, client, session)[0]


def test_adopted_keys_stay_when_the_master_rotates(world: World) -> None:
    """The master's keys serve only those workers that have none of the store."""
    master, worker, theirs = made(), made(), os.urandom(KEY_SIZE)
    worker.adopt([theirs])
    master.rotate(0.0)
    worker._memory[:] = master._memory[:]
    worker.refresh()
    assert [bytes(key.data) for key in worker._keys] == [theirs]


def test_keys_are_not_shown_and_are_overwritten() -> None:
    keys = made()
    secret = bytes(keys._encrypting)
    first = keys._keys[0]
    assert repr(keys) == "<TicketKeys: 1>"
    assert "bytearray" not in repr(vars(keys)["_keys"])
    keys.rotate(0.0)
    assert secret in keys._memory[:]
    keys.retire(LIFE + 3.0)
    assert secret not in keys._memory[:]
    assert bytes(first.data) == bytes(KEY_SIZE)


def test_ring_overwrites_what_it_had() -> None:
    ring, secret = TicketRing(hooks()), os.urandom(KEY_SIZE)
    ring.load([secret])
    buffer = ring._buffer
    assert secret in buffer.raw
    ring.load([os.urandom(KEY_SIZE)])
    assert secret not in buffer.raw


def test_memory_is_left_out_of_core_dumps() -> None:
    keys = made()
    address = ctypes.addressof(ctypes.c_char.from_buffer(keys._memory))
    with open("/proc/self/smaps") as maps:
        text = maps.read()
    mapping = next(part for part in text.split("VmFlags:") if f"{address:x}-" in part)
    flags = text[text.index(mapping) + len(mapping) :].split("\n", 1)[0]
    assert " dd" in flags


def test_time_of_the_next_rotation() -> None:
    before = time.monotonic()
    keys = made(rotate=50.0)
    assert before + 50 <= keys.next_rotation <= time.monotonic() + 50
    keys.rotate(1000.0)
    assert keys.next_rotation == 1050.0


def test_no_more_keys_than_can_be_needed() -> None:
    keys = made(rotate=10.0)
    for rotation in range(50):
        keys.rotate(rotation * 10.0)
    assert len(keys) == 31 + 1
    keys = made(rotate=0.1)
    for rotation in range(530):
        keys.rotate(rotation * 0.1)
    assert len(keys) == 512


def names(keys: TicketKeys) -> list[bytes]:
    return [bytes(key.data[:16]) for key in keys._keys]


@settings(deadline=None)
@given(st.data())
def test_half_written_memory_is_not_believed(data: st.DataObject) -> None:
    """Any mixture of two states, in blocks of eight bytes, is one of them or is left alone."""
    master, worker = made(rotate=100.0), made(rotate=100.0)
    for now in range(data.draw(st.integers(1, 3))):
        master.rotate(float(now))
    before, old = master._memory[:], names(master)
    master.rotate(100.0)
    after, new = master._memory[:], names(master)
    own = names(worker)
    blocks = data.draw(st.lists(st.booleans(), min_size=60, max_size=60))
    mixed = b"".join(
        (after if blocks[min(place // 8, 59)] else before)[place : place + 8]
        for place in range(0, len(before), 8)
    )
    worker._memory[:] = mixed
    worker.refresh(150.0)
    expected = {before: old, after: new}.get(mixed, own)
    assert names(worker) == expected
    worker._memory[:] = after
    worker.refresh(151.0)
    assert names(worker) == new


def forked(master: TicketKeys) -> TicketKeys:
    """What a fork makes of it: the memory is shared, all else is a copy."""
    worker = copy.copy(master)
    worker._keys = [type(key)(key.data, key.since, key.until) for key in master._keys]
    worker._select(0.0)
    return worker


@settings(max_examples=40, deadline=None)
@given(
    st.integers(5, 1000),
    st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=6),
    st.floats(0.0, 0.99),
)
def test_tickets_are_good_for_their_whole_life_and_not_much_longer(
    rotate: int, steps: list[tuple[int, bool]], shift: float
) -> None:
    """Whatever happens when; the workers look once a second, at different moments."""
    master = made(float(rotate))
    workers = [forked(master), forked(master)]
    tickets: list[tuple[int, bytes]] = []
    second = 0
    for pause, retire in steps:
        start = second + 1
        for second in range(start, start + pause):
            if second % rotate == 0:
                master.rotate(second + shift)
            workers[0].refresh(float(second))
            workers[1].refresh(second + shift)
        if retire:
            master.retire(float(second))
        for worker in workers:
            good = {bytes(key.data[:16]) for key in worker._good}
            assert all(name in good for issued, name in tickets if second - issued <= LIFE)
            gone = [name for issued, name in tickets if second - issued > rotate + LIFE + 4]
            assert good.isdisjoint(gone)
        tickets += [(second, bytes(worker._encrypting[:16])) for worker in workers]
        assert all(name in good for _, name in tickets[-2:])
