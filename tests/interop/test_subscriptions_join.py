"""Real uWSGI instances announce themselves to uwgate: how they join, and what they say."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import pytest
from support.waiting import wait_until

from interop.observing import wait_ready
from interop.subscribing import (
    KEY,
    Router,
    address,
    free_udp_port,
    node,
    node_logged,
    router,
    stop,
    subscribe,
)


@pytest.fixture
def gate() -> Iterator[Router]:
    with router() as started:
        yield started


# --- addresses ----------------------------------------------------------------------------------


def test_default_address(gate: Router, tmp_path: Path) -> None:
    assert gate.ask().status == 503
    with node(tmp_path, *subscribe(gate)) as instance:
        gate.joined(instance.address)
        gate.served()
        assert gate.name() == "node"
        assert gate.ask(key="other.example").status == 503
        assert gate.ask(key="APP.Example").status == 200
        assert gate.ask(key=f"{KEY}:8080").status == 503  # another key, as in uWSGI


def test_port_of_the_kernels_choice(gate: Router, tmp_path: Path) -> None:
    """uWSGI fills in the port that it got."""
    with node(tmp_path, *subscribe(gate), socket_address="127.0.0.1:0", listens=()):
        gate.served()
        assert "new node: 127.0.0.1:0 " not in gate.log


def test_explicit_address(gate: Router, tmp_path: Path) -> None:
    """The first socket is not the one that is announced."""
    second = address()
    words = ("--uwsgi-socket", second, "--subscribe-to", f"{second}={gate.server}:{KEY}")
    with node(tmp_path, *words, listens=[second]):
        gate.joined(second)
        gate.served()


def test_unix_socket(gate: Router, tmp_path: Path) -> None:
    path = str(tmp_path / "app,1.sock")
    with node(tmp_path, *subscribe(gate), socket_address=path):
        gate.joined(path)
        gate.served()


def test_abstract_socket(gate: Router, tmp_path: Path) -> None:
    name = f"@uwgate-subscription-{os.getpid()}"
    with node(tmp_path, *subscribe(gate), socket_address=name):
        gate.joined(name)
        gate.served()


def test_shared_socket(gate: Router, tmp_path: Path) -> None:
    shared = address()
    words = ("--subscribe-to", f"=0={gate.server}:{KEY}")
    before = ("--shared-socket", shared)
    with node(tmp_path, *words, before=before, socket_address="=0", listens=[shared]):
        gate.joined(shared)
        gate.served()


def test_port_alone_is_one_of_the_senders_host(gate: Router, tmp_path: Path) -> None:
    """uWSGI announces ``:PORT`` as it is written; the router takes the host the packet is from."""
    port = free_udp_port()
    with node(
        tmp_path, *subscribe(gate), socket_address=f":{port}", listens=[f"127.0.0.1:{port}"]
    ):
        gate.joined(f"127.0.0.1:{port}")
        gate.served()


# --- servers ------------------------------------------------------------------------------------


def test_unix_datagram_server(tmp_path: Path) -> None:
    with (
        router(server=str(tmp_path / "subscriptions")) as gate,
        node(tmp_path, *subscribe(gate)) as instance,
    ):
        gate.joined(instance.address)
        gate.served()
        stop(instance)
        gate.unserved()


def test_unix_datagram_server_with_credentials(tmp_path: Path) -> None:
    """Who owns the file named after a key may serve it; the statistics say who that was."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / KEY).touch()
    words = ["--subscriptions-use-credentials", "--subscriptions-credentials-check", f"{allowed}/"]
    with router(*words, server=str(tmp_path / "subscriptions")) as gate:
        both = ("--subscribe-to", f"{gate.server}:other.example", "--subscriptions-use-credentials")
        with node(tmp_path, *subscribe(gate), *both) as instance:
            gate.joined(instance.address)
            gate.served()
            wait_until(lambda: gate.rejected("bad-credentials") >= 1, "the other key is refused")
            found = gate.nodes()[instance.address]
            assert (found["uid"], found["gid"]) == (os.getuid(), os.getgid())
            assert found["pid"] == instance.process.pid
            assert gate.ask(key="other.example").status == 503
            stop(instance)
            gate.unserved()


def test_several_servers_feed_one_table(tmp_path: Path) -> None:
    second = address()
    with ExitStack() as stack:
        gate = stack.enter_context(router("--http-subscription-server", second))
        one = stack.enter_context(node(tmp_path, *subscribe(gate), name="one"))
        words = ("--subscribe-to", f"{second}:{KEY}")
        two = stack.enter_context(node(tmp_path, *words, name="two"))
        gate.joined(one.address)
        gate.joined(two.address)
        wait_until(lambda: Counter(gate.names(10)) == {"one": 5, "two": 5}, "both serve")


# --- what packets say ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "counts", "longest"),
    [("wrr", {"a": 8, "b": 6, "c": 4}, 2), ("wrr-uwsgi", {"a": 9, "b": 4, "c": 5}, 2)],
)
def test_weights(algo: str, counts: dict[str, int], longest: int, tmp_path: Path) -> None:
    """4, 3 and 2: spread evenly, and as uWSGI's division has it (``CAABCAAB``)."""
    with ExitStack() as stack:
        gate = stack.enter_context(router("--subscription-algo", algo))
        for name, weight in (("a", 4), ("b", 3), ("c", 2)):
            words = ("--weight", str(weight), *subscribe(gate))
            instance = stack.enter_context(node(tmp_path, *words, name=name))
            gate.joined(instance.address)
            wait_until(lambda name=name: name in gate.names(9), f"{name} serves")
        gate.names(9)
        seen = gate.names(18)
        found = Counter(seen)
        assert all(abs(found[name] - count) <= 1 for name, count in counts.items()), seen
        assert max(len(list(run)) for _, run in groupby(seen)) <= longest, seen


def test_modifier(gate: Router, tmp_path: Path) -> None:
    """The node is asked for another of its plugins, which this one does not have."""
    words = (
        "--subscribe-to",
        f"{gate.server}:{KEY},41",
        "--subscribe2",
        f"server={gate.server},key=two.example,modifier1=42,modifier2=7",
    )
    with node(tmp_path, *words) as instance:
        gate.joined(instance.address)
        gate.joined(instance.address, key="two.example")
        for key, number in ((KEY, 41), ("two.example", 42)):
            wait_until(lambda key=key: gate.ask(key=key).status != 503, "a node is asked")
            node_logged(instance, f"unavailable modifier requested: {number}")


def test_modifier_for_all(gate: Router, tmp_path: Path) -> None:
    words = ("--subscribe-with-modifier1", "43", *subscribe(gate))
    with node(tmp_path, *words) as instance:
        gate.joined(instance.address)
        wait_until(lambda: gate.ask().status != 503, "a node is asked")
        node_logged(instance, "unavailable modifier requested: 43")


def test_several_keys(gate: Router, tmp_path: Path) -> None:
    words = ("--subscribe-to", f"{gate.server}:{KEY}:8080", *subscribe(gate, "second.example"))
    with node(tmp_path, *words) as instance:
        for key in (f"{KEY}:8080", "second.example"):
            gate.joined(instance.address, key)
            gate.served(key)
        assert gate.ask().status == 503
        stop(instance)
        gate.unserved("second.example")
        gate.unserved(f"{KEY}:8080")


def test_keys_of_a_file(gate: Router, tmp_path: Path) -> None:
    """uWSGI reads the file again for every announcement, and says goodbye to what is in it."""
    mappings = tmp_path / "mappings.txt"
    mappings.write_text("# sites\none.example\n\ntwo.example,0\n")
    words = ("--subscribe-to", f"{gate.server}:@{mappings}", "--subscribe-freq", "1")
    with node(tmp_path, *words) as instance:
        gate.served("one.example")
        gate.served("two.example")
        assert gate.ask(key="three.example").status == 503
        with mappings.open("a") as file:
            file.write("three.example")
        gate.served("three.example")
        stop(instance)
        for key in ("one.example", "two.example", "three.example"):
            gate.unserved(key)


def test_subscribe2_with_escaped_commas(gate: Router, tmp_path: Path) -> None:
    path = tmp_path / "a,b.sock"
    escaped = str(path).replace(",", "\\,")
    words = ("--subscribe2", f"server={gate.server},key={KEY},addr={escaped},weight=3")
    with node(tmp_path, *words, socket_address=str(path)):
        gate.joined(str(path))
        assert f"new node: {path} (weight: 3," in gate.log
        gate.served()


def test_subscribe2_socket_and_weights(gate: Router, tmp_path: Path) -> None:
    """``socket=N`` is an index; a weight counts for the entries after it, too (uWSGI's way)."""
    second = address()
    words = ("--uwsgi-socket", second)
    words += ("--subscribe2", f"server={gate.server},key={KEY},socket=1,weight=5")
    words += ("--subscribe2", f"server={gate.server},key=two.example,socket=0")
    with node(tmp_path, *words) as instance:
        gate.joined(second)
        gate.joined(instance.address, "two.example")
        assert f"new node: {second} (weight: 5," in gate.log
        gate.served()
        gate.served("two.example")
        assert gate.nodes()[second]["weight"] == 5
        assert gate.nodes("two.example")[instance.address]["weight"] == 5


def test_subscribe2_check_file(tmp_path: Path) -> None:
    """While the file exists uWSGI is silent, and silent nodes are dropped."""
    check = tmp_path / "away"
    with router("--subscription-tolerance", "2") as gate:
        words = ("--subscribe2", f"server={gate.server},key={KEY},check={check}")
        with node(tmp_path, *words, "--subscribe-freq", "1") as instance:
            gate.served()
            check.touch()
            gate.logged(f"{KEY} => marking {instance.address} as failed (no announce received in")
            gate.unserved()
            check.unlink()
            gate.joined(instance.address, times=2)
            gate.served()


# --- several processes --------------------------------------------------------------------------


def test_four_workers_are_one_router(tmp_path: Path) -> None:
    """Each worker knows a node from its first request on, and each hears of its goodbye."""
    with router("--http-processes", "4") as gate, ExitStack() as stack:
        wait_ready(gate.stats_address, 4)
        with node(tmp_path, *subscribe(gate), name="first") as first:
            gate.served()
            stack.enter_context(node(tmp_path, *subscribe(gate), name="second"))
            wait_until(lambda: set(gate.names(40)) == {"first", "second"}, "both serve")
            assert "" not in gate.names(40)
            stop(first)
            gate.left(first.address)
        wait_until(lambda: set(gate.names(40)) == {"second"}, "the first one is gone")


# --- acknowledgements ---------------------------------------------------------------------------


def test_notify_socket(gate: Router, tmp_path: Path) -> None:
    words = ("--notify-socket", str(tmp_path / "notify"), *subscribe(gate, freq=1))
    with node(tmp_path, *words) as instance:
        text = f"[notify-socket] [subscription ack] {KEY} => new node: {instance.address}"
        node_logged(instance, text)
        wait_until(lambda: gate.counter("received") >= 4, "it repeats itself")
        assert instance.logged.count("[subscription ack]") == 1  # only the first is answered
        assert gate.counter("acknowledged") == 1


def test_notify_socket_of_somebody_else(gate: Router, tmp_path: Path) -> None:
    """``subscription-notify-socket`` alone binds nothing: it names who else is told."""
    path = str(tmp_path / "listener")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(20)
        words = ("--subscription-notify-socket", path, *subscribe(gate))
        with node(tmp_path, *words) as instance:
            text = f"[subscription ack] {KEY} => new node: {instance.address}"
            assert listener.recv(1000) == text.encode()
            gate.served()
