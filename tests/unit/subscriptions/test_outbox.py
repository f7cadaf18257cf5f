"""Datagrams on their way out: names, errors, credentials, and servers that have no room."""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from announcer_tools import NOW, UP, Client, Server
from support.announced import burying
from support.waiting import wait_until

from uwgate.config.settings import Endpoint, SubscribeSettings
from uwgate.subscriptions.lookup import Lookups
from uwgate.subscriptions.outbox import numeric_address, resolve_now


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.sock.close()


@pytest.fixture
def entry(server: Server) -> SubscribeSettings:
    return SubscribeSettings(server.endpoint, "k.example", address="10.0.0.7:80")


def test_lookups_answer_later_and_once() -> None:
    log: list[str] = []
    answers: list[str] = []
    with burying(), selectors.DefaultSelector() as selector:
        lookups = Lookups(selector, log.append, lambda: answers.append("heard"))
        assert lookups.address("localhost", 7) is None
        assert lookups.address("localhost", 7) is None  # one question is enough
        assert len(selector.get_map()) == 1
        (key, mask) = selector.select(10)[0]
        key.data(mask)
        assert lookups.address("localhost", 7) == (socket.AF_INET, ("127.0.0.1", 7))
        assert (answers, log, len(selector.get_map())) == (["heard"], [], 0)
        assert lookups.address("no-such-name.invalid", 7) is None
        (key, mask) = selector.select(20)[0]
        key.data(mask)
        assert lookups.address("no-such-name.invalid", 7) is None
        (line,) = log
        assert line.startswith("looking up no-such-name.invalid: ")
        lookups.close()


def test_lookups_can_be_left_with_a_question_open() -> None:
    with burying(), selectors.DefaultSelector() as selector:
        lookups = Lookups(selector, lambda line: None, lambda: None)
        lookups.address("localhost", 1)
        lookups.close()
        assert len(selector.get_map()) == 0


def test_numeric_addresses_need_no_resolver() -> None:
    assert numeric_address("10.0.0.7", 1) == (socket.AF_INET, ("10.0.0.7", 1))
    found = numeric_address("::1", 2)
    assert found is not None
    assert (found[0], found[1][:2]) == (socket.AF_INET6, ("::1", 2))
    assert numeric_address("fe80::1%no-such-interface", 2) is None
    assert numeric_address("localhost", 2) is None
    assert resolve_now("localhost", 3) == (socket.AF_INET, ("127.0.0.1", 3))


# --- sockets ---------------------------------------------------------------------------------


def test_a_send_error_is_told_once_until_it_changes(
    entry: SubscribeSettings, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    client = Client(replace(entry, server=Endpoint("unix", path, path=path)), frequency=1.0)
    client.announcer.start(NOW)
    client.announcer.tick(NOW + 1)
    what = f"announcing to {path}"
    assert client.log == [f"{what}: No such file or directory"]
    gone = Server(path)
    gone.sock.close()
    client.announcer.tick(NOW + 2)
    client.announcer.tick(NOW + 3)
    assert client.log[1:] == [f"{what}: Connection refused"]
    os.unlink(path)
    back = Server(path)
    client.announcer.tick(NOW + 4)
    client.announcer.tick(NOW + 5)
    assert client.log[2:] == [f"{what}: works again"]
    assert back.said() == [UP, UP]
    assert client.outbox.failed == 4
    client.outbox.close()
    back.sock.close()


@pytest.mark.parametrize("use", [True, False])
def test_credentials(entry: SubscribeSettings, tmp_path: Path, use: bool) -> None:
    server = Server(str(tmp_path / "s"))
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    client = Client(replace(entry, server=server.endpoint), use_credentials=use)
    client.announcer.start(NOW)
    size = struct.calcsize("3i")
    _, ancillary, _, _ = server.sock.recvmsg(8192, socket.CMSG_SPACE(size))
    ((level, kind, data),) = ancillary
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    # The kernel fills them in for a receiver that asks, whether they were sent or not.
    assert struct.unpack("3i", data) == (os.getpid(), os.geteuid(), os.getegid())
    client.outbox.close()
    server.sock.close()


def test_many_keys_wait_for_room(entry: SubscribeSettings, tmp_path: Path) -> None:
    """A unix socket's queue holds ten datagrams or so."""
    server = Server(str(tmp_path / "s"))
    keys = tmp_path / "keys"
    keys.write_text("".join(f"k{number}\n" for number in range(500)))
    client = Client(replace(entry, key="", key_file=str(keys), server=server.endpoint))
    client.announcer.start(NOW)
    found: list[str] = []

    def all_there() -> bool:
        found.extend(each.key for each in server.packets())
        client.announcer.tick(NOW + 0.5)
        return len(found) == 500

    wait_until(all_there)
    assert set(found) == {f"k{number}" for number in range(500)}
    assert client.outbox.failed == 0
    client.outbox.close()
    server.sock.close()


def test_a_server_that_does_not_read_holds_up_nobody_else(
    server: Server, entry: SubscribeSettings, tmp_path: Path
) -> None:
    deaf = Server(str(tmp_path / "s"))
    keys = tmp_path / "keys"
    keys.write_text("".join(f"k{number}\n" for number in range(40)))
    many = replace(entry, key="", key_file=str(keys), server=deaf.endpoint)
    client = Client(many, entry)
    client.announcer.start(NOW)
    assert server.said() == [UP]
    assert client.outbox.waiting
    client.announcer.finish()  # gives up after half a second
    assert not client.outbox.waiting
    assert client.outbox.failed > 0
    client.outbox.close()
    deaf.sock.close()
