"""Sessions that are kept outside of OpenSSL."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from openssl_tools import TLS_1_2, TLS_1_3, VERSIONS, World, connect, hooks, visit


class Kept(dict[bytes, bytes]):
    """Sessions by id, and what OpenSSL asked for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.removed: list[bytes] = []

    def find(self, key: bytes) -> bytes | None:
        self.asked.append(key)
        return self.get(key)

    def remove(self, key: bytes) -> None:
        self.removed.append(key)
        self.pop(key, None)

    def serve(self, context: ssl.SSLContext) -> ssl.SSLContext:
        hooks().external_sessions(context, self.__setitem__, self.find, self.remove)
        return context


def stateful(world: World, kept: Kept, name: bytes = b"test", timeout: int = 300) -> ssl.SSLContext:
    server = world.server(name, timeout)
    server.options |= ssl.OP_NO_TICKET
    return kept.serve(server)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_another_context_resumes_what_is_kept(world: World, version: ssl.TLSVersion) -> None:
    kept = Kept()
    one, two = stateful(world, kept), stateful(world, kept)
    client = world.client(version)
    reused, session = visit(one, client)
    assert (reused, len(kept), kept.removed) == (False, 1, [])
    ((key, der),) = kept.items()
    assert len(key) == 32
    assert der[0] == 0x30  # SEQUENCE
    assert visit(two, client, session)[0]
    assert kept.asked == [key]
    assert hooks().failures == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_kept_any_more_is_a_full_handshake(
    world: World, version: ssl.TLSVersion
) -> None:
    kept = Kept()
    server, client = stateful(world, kept), world.client(version)
    session = visit(server, client)[1]
    kept.clear()
    assert not visit(server, client, session)[0]
    assert len(kept.asked) == 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("rubbish", [b"", b"\0", b"\x30\x03\x02\x01", bytes(200), b"0" * 70000])
def test_what_is_no_session_is_a_full_handshake(
    world: World, version: ssl.TLSVersion, rubbish: bytes
) -> None:
    kept = Kept()
    server, client = stateful(world, kept), world.client(version)
    session = visit(server, client)[1]
    for key in kept:
        kept[key] = rubbish
    assert not visit(server, client, session)[0]
    assert len(kept.asked) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_other_session_context_is_a_full_handshake(world: World, version: ssl.TLSVersion) -> None:
    kept = Kept()
    one, two = stateful(world, kept), stateful(world, kept, b"other")
    client = world.client(version)
    session = visit(one, client)[1]
    assert not visit(two, client, session)[0]
    assert len(kept.asked) == 1
    assert visit(one, client, session)[0]


def test_connection_that_breaks_takes_its_session_along(world: World) -> None:
    kept = Kept()
    server, client = stateful(world, kept), world.client(TLS_1_2)
    ends = connect(server, client)
    (key,) = kept
    session = ends.session
    del ends
    assert kept.removed == [key]
    assert not visit(server, client, session)[0]


def test_session_that_is_too_old_is_removed(world: World) -> None:
    kept = Kept()
    server, client = stateful(world, kept, timeout=300), world.client(TLS_1_2)
    session = visit(server, client)[1]
    ((key, der),) = kept.items()
    # SSL_SESSION ASN.1: [1] time, INTEGER of four bytes: thirty years earlier.
    place = der.index(b"\xa1\x06\x02\x04")
    kept[key] = der[: place + 4] + (86400 * 365 * 25).to_bytes(4, "big") + der[place + 8 :]
    assert not visit(server, client, session)[0]
    assert kept.removed == [key]


@pytest.mark.parametrize("version", VERSIONS)
def test_clients_with_tickets_need_no_store(world: World, version: ssl.TLSVersion) -> None:
    kept = Kept()
    server, client = kept.serve(world.server()), world.client(version)
    session = visit(server, client)[1]
    assert visit(server, client, session)[0]
    assert (len(kept), kept.asked) == (0, [])


def test_clients_without_tickets_do_beside_those_with(world: World) -> None:
    kept = Kept()
    server, client = kept.serve(world.server()), world.client(TLS_1_2, ssl.OP_NO_TICKET)
    session = visit(server, client)[1]
    assert visit(server, client, session)[0]
    assert len(kept.asked) == 1


def test_contexts_have_stores_of_their_own(world: World) -> None:
    stores = [Kept(), Kept()]
    servers = [stateful(world, kept) for kept in stores]
    client = world.client(TLS_1_3)
    sessions = [visit(server, client)[1] for server in servers]
    assert [len(kept) for kept in stores] == [1, 1]
    assert not visit(servers[1], client, sessions[0])[0]
    assert visit(servers[1], client, sessions[1])[0]


def test_address_of_a_context_that_is_gone_means_nothing(world: World) -> None:
    """A context may lie where another was whose sessions went elsewhere."""
    kept = Kept()
    client = world.client(TLS_1_2, ssl.OP_NO_TICKET)
    for _ in range(20):
        stateful(world, kept)
        visit(world.server(), client)
    assert len(kept) == 0
