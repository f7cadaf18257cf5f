"""Sessions in a store that others share: kept, found, told to others, forgotten when bad."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from openssl_tools import TLS_1_2, VERSIONS, World, hooks, visit

from uwgate.config.settings_tls import CacheSettings
from uwgate.protocols.cache_sync import Update
from uwgate.tls.cache import SharedCache
from uwgate.tls.sessions import Sessions

TIMEOUT = 120


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Others:
    """The other machines: what they are told."""

    def __init__(self) -> None:
        self.told: list[Update] = []

    def set(self, key: bytes, value: bytes, expires: int) -> None:
        self.told.append(Update(key, value, expires))

    def delete(self, key: bytes) -> None:
        self.told.append(Update(key, None))


def server(world: World, sessions: Sessions) -> ssl.SSLContext:
    """One whose sessions are not in tickets."""
    context = world.server()
    context.options |= ssl.OP_NO_TICKET
    sessions.attach(context)
    return context


def cache_of(blocksize: int = 4096) -> SharedCache:
    return SharedCache(CacheSettings(items=100, blocksize=blocksize))


@pytest.mark.parametrize("version", VERSIONS)
def test_resumed_where_the_store_is_shared(world: World, version: ssl.TLSVersion) -> None:
    cache = cache_of()
    one = server(world, Sessions(hooks(), cache, TIMEOUT))
    two = server(world, Sessions(hooks(), cache, TIMEOUT))
    elsewhere = server(world, Sessions(hooks(), cache_of(), TIMEOUT))
    client = world.client(version)
    reused, session = visit(one, client)
    assert not reused
    assert cache.items() == 1
    assert not visit(elsewhere, client, session)[0]
    assert visit(two, client, session)[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_other_machines_are_told(world: World, version: ssl.TLSVersion) -> None:
    """What they are told is enough for them to resume."""
    here, there, others = cache_of(), cache_of(), Others()
    one = server(world, Sessions(hooks(), here, TIMEOUT, others))
    two = server(world, Sessions(hooks(), there, TIMEOUT))
    client = world.client(version)
    before = int(time.time())
    session = visit(one, client)[1]
    ((key, value, expires),) = others.told
    assert value is not None
    assert here.get(key) == value
    assert before + TIMEOUT <= expires <= time.time() + TIMEOUT
    assert there.set(key, value, expires)
    assert visit(two, client, session)[0]


def test_a_session_ends_with_its_time(world: World) -> None:
    cache = cache_of()
    over = server(world, Sessions(hooks(), cache, 0))
    client = world.client(TLS_1_2)
    session = visit(over, client)[1]
    assert cache.snapshot()["last_modified_at"]
    assert not visit(over, client, session)[0]


def test_too_large_a_session_is_neither_kept_nor_told(world: World) -> None:
    cache, others = cache_of(blocksize=64), Others()
    one = server(world, Sessions(hooks(), cache, TIMEOUT, others))
    client = world.client(TLS_1_2)
    session = visit(one, client)[1]
    assert cache.items() == 0
    assert not visit(one, client, session)[0]
    assert others.told == []


def corrupt(ends_client: ssl.SSLObject, ends_server: ssl.SSLObject, up: ssl.MemoryBIO) -> None:
    """A record that nobody who has the keys can have made: the server answers with an alert."""
    up.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        ends_server.read(100)


def leave_politely(client: ssl.SSLObject, far: ssl.SSLObject, up: ssl.MemoryBIO) -> None:
    for side in (client, far):
        try:
            side.unwrap()
        except ssl.SSLWantReadError:
            pass


def vanish(client: ssl.SSLObject, far: ssl.SSLObject, up: ssl.MemoryBIO) -> None:
    """The client is gone without a word; the server says goodbye to nobody."""
    try:
        far.unwrap()
    except ssl.SSLError:
        pass


@pytest.mark.parametrize(
    ("end", "kept"), [(corrupt, False), (leave_politely, True), (vanish, True)]
)
def test_only_bad_sessions_are_forgotten(
    world: World,
    end: Callable[[ssl.SSLObject, ssl.SSLObject, ssl.MemoryBIO], None],
    kept: bool,
) -> None:
    cache, others = cache_of(), Others()
    one = server(world, Sessions(hooks(), cache, TIMEOUT, others))
    client = world.client(TLS_1_2)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname="localhost")
    far = one.wrap_bio(up, down, server_side=True)
    for side in (near, far, near, far):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    near.do_handshake()
    session = near.session
    ((key, _, _),) = others.told
    end(near, far, up)
    del far
    assert (cache.get(key) is not None) == kept
    if kept:
        assert len(others.told) == 1
        assert visit(one, client, session)[0]
    else:
        assert others.told[1:] == [Update(key, None)]
        assert not visit(one, client, session)[0]
