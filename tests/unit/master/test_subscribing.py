"""The master's part: sockets, what workers are told and when, marks, expiry, the state file."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support.waiting import DEADLINE, wait_until

from uwgate.config.settings import (
    AnnounceSettings,
    Endpoint,
    RouterSubscriptions,
    SubscriptionSettings,
)
from uwgate.master import subscribing
from uwgate.master.errors import StartError
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.subscribing import Subscriptions, registries
from uwgate.subscriptions.packet import Announcement, decode, encode
from uwgate.subscriptions.table import Change, Table, joining

KEY, NODE, OTHER = "example.com", "10.0.0.1:3031", "10.0.0.2:3031"


def udp(port: int = 0, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint("tcp", f"{host}:{port}", host=host, port=port)


def unix(path: str) -> Endpoint:
    return Endpoint("unix", path, path=path)


class Instance:
    """Subscriptions in a real loop; ``worker`` is what a worker of "http" would know."""

    def __init__(
        self,
        directory: Path,
        *servers: Endpoint,
        wanted: dict[str, RouterSubscriptions] | None = None,
        resubscribe: tuple[Endpoint, ...] = (),
        mode: int | None = None,
        **common: Any,
    ) -> None:
        settings = SubscriptionSettings(**common)
        router = RouterSubscriptions(settings, servers or (udp(),), resubscribe=resubscribe)
        self.messages: list[tuple[str, list[Change]]] = []
        self.worker = Table()
        self.path = directory / "log"
        self._log = MainLog(str(self.path))
        self.loop = Loop(self._log)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.open = True
        try:
            self.subscriptions = Subscriptions(
                wanted or {"http": router},
                settings,
                AnnounceSettings(),
                self.loop,
                self._log,
                self._publish,
                mode=mode,
            )
        except StartError:
            self._close_rest()
            raise
        self.worker = self.gateway.table if self.gateway.table.members else self.worker
        self.subscriptions.listens("http", ["127.0.0.1:8080"])

    def _publish(self, gateway: str, changes: list[Change]) -> None:
        changes = json.loads(json.dumps(changes))
        self.messages.append((gateway, changes))
        if gateway == "http" and self.worker is not self.gateway.table:
            for change in changes:
                self.worker.apply(change)

    @property
    def gateway(self) -> subscribing.GatewaySubscriptions:
        return self.subscriptions.gateways["http"]

    @property
    def log(self) -> str:
        return self.path.read_text()

    def start(self) -> Instance:
        self.subscriptions.start()
        return self

    def send(self, data: bytes, name: str = "http", server: int = 0) -> None:
        host, _, port = self.subscriptions.gateways[name].servers[server].rpartition(":")
        self.sock.sendto(data, (host, int(port)))

    def announce(self, key: str = KEY, address: str = NODE, **fields: Any) -> None:
        self.send(encode(Announcement(key, address, **fields)))

    def until(self, condition: Callable[[], object], what: str = "condition") -> None:
        """Run the loop until then."""
        limit = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < limit, f"{what}; log:\n{self.log}"
            self.loop.run_once(0.05)

    def joined(self, members: int) -> None:
        self.until(lambda: self.worker.members == members, f"{members} members")

    def close(self) -> None:
        if self.open:
            self.subscriptions.close()
            self._close_rest()

    def _close_rest(self) -> None:
        self.open = False
        self.loop.close()
        self._log.close()
        self.sock.close()
        log = self.path.read_text() if self.path.exists() else ""
        assert "Traceback" not in log, log


Start = Callable[..., Instance]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(*servers: Endpoint, **settings: Any) -> Instance:
            made = Instance(directory, *servers, **settings)
            stack.callback(made.close)
            return made.start()

        yield begin


# --- sockets ------------------------------------------------------------------------------------


def test_a_packet_becomes_a_change(start: Start) -> None:
    it = start()
    it.announce(weight=3)
    it.joined(1)
    (message,) = it.messages
    joined = it.gateway.table.slots[KEY].first
    assert joined is not None
    assert message == ("http", [["+", KEY, NODE, 0, 0, 3, 0, "uwsgi", "", joined.joined]])
    assert f"uwgate http subscription server on {it.gateway.servers[0]} fd" in it.log


def test_several_sockets_feed_one_table(start: Start, directory: Path) -> None:
    path = str(directory / "s")
    it = start(udp(), udp(), unix(path), udp(host="::1"))
    for server in (0, 1):
        it.send(encode(Announcement(KEY, f"10.0.0.{server}:1")), server=server)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(encode(Announcement(KEY, ":7")), path)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        port = int(it.gateway.servers[3].rpartition(":")[2])
        sock.sendto(encode(Announcement(KEY, ":8")), ("::1", port))
    it.joined(4)
    found = {member.address: member.sender for member in it.gateway.table}
    assert found == {
        "10.0.0.0:1": "127.0.0.1",
        "10.0.0.1:1": "127.0.0.1",
        "127.0.0.1:7": "unix",
        "[::1]:8": "::1",
    }


def test_gateways_have_tables_of_their_own(start: Start) -> None:
    router = RouterSubscriptions(SubscriptionSettings(), (udp(),))
    it = start(wanted={"http": router, "fastrouter": router})
    it.send(encode(Announcement(KEY, NODE)), "fastrouter")
    it.announce(KEY, OTHER)
    it.until(lambda: len(it.messages) == 2)
    assert {name: [change[2] for change in changes] for name, changes in it.messages} == {
        "fastrouter": [NODE],
        "http": [OTHER],
    }
    assert [each.name for each in registries(it.subscriptions)] == ["http", "fastrouter"]
    assert registries(None) == ()


def test_a_unix_socket_has_its_mode_and_is_removed(start: Start, directory: Path) -> None:
    path = directory / "s"
    it = start(unix(str(path)), mode=0o660)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    it.close()
    assert not path.exists()


def test_an_address_that_is_taken(start: Start, directory: Path) -> None:
    it = start()
    host, _, port = it.gateway.servers[0].rpartition(":")
    with pytest.raises(StartError) as info:
        Instance(directory, udp(), udp(int(port), host))
    assert "http-subscription-server" in str(info.value)
    assert "in use" in str(info.value).lower()


def test_this_gateway_is_not_its_own_node(start: Start) -> None:
    it = start()
    it.announce(KEY, "127.0.0.1:8080")
    it.announce(KEY, OTHER)
    it.joined(1)
    assert it.gateway.rejected == {"self": 1}


def test_rate_of_a_sender(start: Start) -> None:
    it = start(max_rate=5)
    for number in range(50):
        it.announce(KEY, f"10.0.0.{number}:1")
    it.until(lambda: it.gateway.sockets[0].dropped > 0)
    it.until(lambda: it.gateway.sockets[0].received + it.gateway.sockets[0].dropped == 50)
    # Unless a second went by meanwhile.
    assert 5 <= it.gateway.table.members <= 15
    members = it.gateway.table.members

    def heard_again() -> bool:
        it.announce(KEY, OTHER)
        return it.gateway.table.members > members

    it.until(heard_again)


# --- what workers are told ----------------------------------------------------------------------


def test_changes_of_one_round_are_one_message(start: Start) -> None:
    it = start()
    for number in range(50):
        it.announce(KEY, f"10.0.0.{number}:1")
    it.joined(50)
    assert len(it.messages) < 10


def test_messages_are_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribing, "_BATCH", 7)
    it = start()
    for number in range(50):
        it.announce(KEY, f"10.0.0.{number}:1")
    it.joined(50)
    assert max(len(changes) for _, changes in it.messages) == 7


def test_a_worker_that_begins_now(start: Start) -> None:
    """Its table is the master's of that moment, whatever was said since is sent."""
    it = start()
    it.announce()
    it.joined(1)
    it.gateway.receive(encode(Announcement(KEY, OTHER)), "10.0.0.7", None)
    forked = Table()  # as by a fork: with the change that was not sent yet
    for member in it.gateway.table:
        forked.apply(joining(member))
    before = len(it.messages)
    it.subscriptions.flush()
    for _, changes in it.messages[before:]:
        for change in changes:
            forked.apply(change)
    assert [member.address for member in forked] == [NODE, OTHER]


def test_marks_of_one_worker_reach_the_others_at_once(start: Start) -> None:
    it = start()
    it.announce()
    it.joined(1)
    it.messages.clear()
    it.gateway.mark(KEY, NODE, "refused")
    it.loop.run_once(0)
    assert it.messages == [("http", [["x", KEY, NODE]])]
    it.gateway.reached(KEY, NODE)
    it.gateway.mark(KEY, NODE, "refused")
    it.loop.run_once(0)
    assert it.messages[1:] == [("http", [["o", KEY, NODE], ["x", KEY, NODE]])]


# --- time ---------------------------------------------------------------------------------------


def test_silent_nodes_are_dropped_without_traffic(start: Start) -> None:
    it = start(tolerance=1.0)
    it.announce()
    it.joined(1)
    it.joined(0)
    assert f"{KEY} => marking {NODE} as failed (no announce received in 2 seconds)" in it.log


def test_limits_of_a_second_are_of_a_second(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While many expire, the clock is looked at more often."""
    it = start(max_rate=5)
    monkeypatch.setattr(it.gateway, "tick", lambda now: True)
    it.until(lambda: it.gateway.sockets[0].received == 0)
    for _ in range(20):
        it.announce()
    it.until(lambda: it.gateway.sockets[0].dropped >= 5)
    rounds = 0
    limit = time.monotonic() + 0.8
    while time.monotonic() < limit:
        it.announce()
        it.loop.run_once(0.02)
        rounds += 1
    assert it.gateway.sockets[0].received <= 15
    assert rounds > 40


# --- federation ---------------------------------------------------------------------------------


def test_a_router_that_retires_is_not_announced_again(start: Start) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.settimeout(DEADLINE)
        port = upstream.getsockname()[1]
        it = start(resubscribe=(udp(port),))
        it.announce()
        it.joined(1)
        first = decode(upstream.recv(9000))
        assert (first.key, first.address, first.command) == (KEY, "127.0.0.1:8080", 0)
        it.subscriptions.retire()
        assert decode(upstream.recv(9000)).command == 1
        it.announce(KEY, OTHER)
        it.announce()
        it.joined(2)
        it.announce("last.example")
        it.joined(3)
        upstream.setblocking(False)
        with pytest.raises(BlockingIOError):
            upstream.recv(9000)


# --- state --------------------------------------------------------------------------------------


def test_nodes_survive_a_restart(start: Start, directory: Path) -> None:
    path = str(directory / "state")
    first = start(state=path)
    first.announce(weight=3, algo="lrc")
    first.announce(KEY, OTHER, modifier1=5)
    first.joined(2)
    first.close()
    second = start(state=path)
    table = second.gateway.table
    assert [member.address for member in table] == [NODE, OTHER]
    assert table.slots[KEY].algo == "lrc"
    assert [member.weight for member in table] == [3, 1]
    assert "2 nodes of 1 keys as they were" in second.log
    second.announce(weight=3)
    second.until(lambda: second.gateway.sockets[0].received)
    assert second.messages == []  # nothing new
    second.announce(command=1)
    second.until(lambda: second.messages)
    assert second.messages[0][1] == [["-", KEY, NODE]]


def test_the_state_is_written_while_it_runs(start: Start, directory: Path) -> None:
    path = directory / "state"
    it = start(state=str(path))
    it.announce()
    it.until(lambda: path.exists() and NODE in path.read_text())
    wait_until(_reaped)


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return True


def test_restored_nodes_expire_as_others_do(start: Start, directory: Path) -> None:
    path = str(directory / "state")
    first = start(state=path, tolerance=1.0)
    first.announce()
    first.joined(1)
    first.close()
    second = start(state=path, tolerance=1.0)
    assert second.gateway.table.members == 1
    second.until(lambda: not second.gateway.table.members)
    assert second.messages == [("http", [["-", KEY, NODE]])]


def test_a_state_file_that_is_none(start: Start, directory: Path) -> None:
    path = directory / "state"
    path.write_text("nonsense\n")
    path.chmod(0o600)
    it = start(state=str(path))
    assert "starting without it" in it.log
    it.announce()
    it.joined(1)
