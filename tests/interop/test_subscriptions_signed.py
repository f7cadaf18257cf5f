"""Signed announcements of real uWSGI: right, wrong, missing and repeated signatures."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.waiting import wait_until

from interop.observing import wait_ready
from interop.peers import Peer
from interop.subscribing import (
    KEY,
    Keys,
    Relay,
    Router,
    flipped,
    node,
    router,
    signing_uwsgi,
    stop,
    wait_idle,
)


@pytest.fixture
def program() -> str:
    return signing_uwsgi()


@pytest.fixture
def keys(tmp_path: Path, program: str) -> Keys:
    return Keys(tmp_path, tmp_path / "public")


@contextlib.contextmanager
def checking(
    keys: Keys, *options: str, digest: str = "SHA256", server: str = ""
) -> Iterator[Router]:
    """A router that accepts only what the keys have signed."""
    words = ("--subscriptions-sign-check", f"{digest}:{keys.public}", *options)
    with router(*words, server=server) as gate:
        yield gate


def signed(server: str, private: Path, digest: str = "SHA256", key: str = KEY) -> tuple[str, ...]:
    return ("--subscribe-to", f"{server}:{key},0,{digest}:{private}")


@pytest.mark.parametrize(
    ("digest", "kind"),
    [("SHA256", "rsa"), ("sha512", "rsa"), ("SHA1", "rsa"), ("SHA256", "ec")],
)
def test_right_key(digest: str, kind: str, program: str, tmp_path: Path) -> None:
    keys = Keys(tmp_path, tmp_path / "public", kind)
    with checking(keys, digest=digest) as gate:
        words = signed(gate.server, keys.private, digest)
        with node(tmp_path, *words, "--subscribe-freq", "1", program=program) as instance:
            gate.joined(instance.address)
            gate.served()
            wait_until(lambda: gate.counter("refreshed") >= 1, "it refreshes itself")
            stop(instance)
            gate.left(instance.address)
            gate.unserved()


def test_key_with_a_port(keys: Keys, program: str, tmp_path: Path) -> None:
    """The file of a key: what is no letter, digit, dot, hyphen or underscore becomes one."""
    key = f"{KEY}:8000"
    private = keys.make("other", key=key)
    with checking(keys) as gate:
        words = ("--subscribe2", f"server={gate.server},key={key},sign=SHA256:{private}")
        with node(tmp_path, *words, program=program) as instance:
            gate.joined(instance.address, key)
            gate.served(key)


def test_wrong_key(keys: Keys, program: str, tmp_path: Path) -> None:
    wrong = keys.make("wrong")
    with checking(keys) as gate, node(tmp_path, *signed(gate.server, wrong), program=program):
        gate.logged(f"refused: bad-signature: {KEY}: the signature does not fit")
        assert gate.ask().status == 503
        assert gate.rejected("bad-signature") >= 1


def test_other_digest(keys: Keys, program: str, tmp_path: Path) -> None:
    with (
        checking(keys) as gate,
        node(tmp_path, *signed(gate.server, keys.private, "SHA1"), program=program),
    ):
        wait_until(lambda: gate.rejected("bad-signature") >= 1, "it is refused")
        assert gate.ask().status == 503


def test_key_without_a_file(keys: Keys, program: str, tmp_path: Path) -> None:
    with checking(keys) as gate:
        words = signed(gate.server, keys.private, key="nobody.example")
        with node(tmp_path, *words, program=program):
            wait_until(lambda: gate.rejected("no-key-file") >= 1, "it is refused")
            assert gate.ask(key="nobody.example").status == 503


def test_unsigned(keys: Keys, program: str, tmp_path: Path) -> None:
    """Neither joins nor says goodbye for anybody."""
    with ExitStack() as stack:
        gate = stack.enter_context(checking(keys))
        words = signed(gate.server, keys.private)
        first = stack.enter_context(node(tmp_path, *words, program=program, name="first"))
        gate.joined(first.address)
        gate.served()
        # It claims the address of the first one, and takes it back.
        words = ("--subscribe-to", f"{first.address}={gate.server}:{KEY}")
        liar = stack.enter_context(node(tmp_path, *words, name="liar"))
        wait_until(lambda: gate.rejected("unsigned") + gate.rejected("stale") >= 1, "refused")
        before = gate.counter("received")
        stop(liar)
        wait_until(lambda: gate.counter("received") > before, "the goodbye has come")
        assert gate.names(3) == ["first"] * 3
        assert gate.counter("left") == 0


# --- replay -------------------------------------------------------------------------------------


@contextlib.contextmanager
def overheard(keys: Keys, program: str, where: Path) -> Iterator[tuple[Router, Peer, Relay]]:
    """A signed node whose packets somebody records."""
    with checking(keys) as gate, Relay(gate.server) as relay:
        words = (*signed(relay.address, keys.private), "--subscribe-freq", "1")
        with node(where, *words, program=program) as instance:
            gate.joined(instance.address)
            gate.served()
            yield gate, instance, relay


def received(gate: Router, relay: Relay, *datagrams: bytes) -> None:
    """Send them, and wait until the router has looked at all; nothing else is sent meanwhile."""
    before = gate.counter("received")
    for datagram in datagrams:
        relay.send(datagram)
    wait_until(lambda: gate.counter("received") >= before + len(datagrams), "they have come")


def test_replay_while_the_node_serves(keys: Keys, program: str, tmp_path: Path) -> None:
    with overheard(keys, program, tmp_path) as (gate, instance, relay):
        first, later = relay.wait(1), relay.wait(3)
        wait_until(lambda: gate.counter("refreshed") >= 1, "a later one was accepted")
        # No more packets of the node's own: what follows is what the attacker sends.
        instance.process.send_signal(signal.SIGSTOP)
        try:
            before = gate.rejected("stale") + gate.rejected("repeated")
            received(gate, relay, first, later, flipped(first), flipped(later))
            refused = before + 4
            wait_until(
                lambda: gate.rejected("stale") + gate.rejected("repeated") == refused, "refused"
            )
            assert gate.counter("left") == 0
            assert set(gate.nodes()) == {instance.address}
        finally:
            instance.process.send_signal(signal.SIGCONT)
        gate.served()


def test_changed_packet(keys: Keys, program: str, tmp_path: Path) -> None:
    """A fresh packet that says something else than what was signed."""
    with overheard(keys, program, tmp_path) as (gate, instance, relay):
        datagram = relay.wait(2)
        port = instance.address.rpartition(":")[2]
        changed = datagram.replace(port.encode(), b"1" * len(port), 1)
        before = gate.rejected("bad-signature")
        relay.send(changed)
        wait_until(lambda: gate.rejected("bad-signature") == before + 1, "it is refused")
        assert set(gate.nodes()) == {instance.address}


def test_replay_after_the_goodbye(keys: Keys, program: str, tmp_path: Path) -> None:
    """Nothing that the node ever sent brings it back: not its goodbye turned around either."""
    with overheard(keys, program, tmp_path) as (gate, instance, relay):
        relay.wait(2)
        stop(instance)
        gate.left(instance.address)
        gate.unserved()
        goodbye = relay.wait(1, command=1)
        recorded = [each for each in relay.seen if each[3] == 0]
        received(gate, relay, *recorded, flipped(goodbye), goodbye)
        assert gate.ask().status == 503
        assert gate.counter("joined") == 1


def test_replay_after_the_node_was_dropped(keys: Keys, program: str, tmp_path: Path) -> None:
    with checking(keys, "--subscription-tolerance", "2") as gate, Relay(gate.server) as relay:
        words = (*signed(relay.address, keys.private), "--subscribe-freq", "1")
        with node(tmp_path, *words, program=program) as instance:
            gate.joined(instance.address)
            relay.wait(2)
        gate.logged(f"{KEY} => marking {instance.address} as failed (no announce received")
        received(gate, relay, *relay.seen)
        assert gate.ask().status == 503
        assert gate.counter("joined") == 1


# --- life ---------------------------------------------------------------------------------------


def test_comes_back_in_the_same_second(keys: Keys, program: str, tmp_path: Path) -> None:
    """A reload says goodbye with the time of the next second, and is back before that."""
    with (
        checking(keys) as gate,
        Relay(gate.server) as relay,
        node(tmp_path, *signed(relay.address, keys.private), program=program) as instance,
    ):
        gate.served()
        for times in (1, 2):
            relay.wait(2 * times)
            wait_idle(instance)
            instance.process.send_signal(signal.SIGTERM)
            gate.left(instance.address, times=times)
            gate.joined(instance.address, times=times + 1, seconds=4)
            gate.served()


def test_four_workers_know_signed_nodes(keys: Keys, program: str, tmp_path: Path) -> None:
    """uWSGI's processes other than the one that received the packet never hear of them."""
    with checking(keys, "--http-processes", "4") as gate:
        wait_ready(gate.stats_address, 4)
        with node(tmp_path, *signed(gate.server, keys.private), program=program) as instance:
            gate.joined(instance.address)
            gate.served()
            wait_until(lambda: "" not in gate.names(40), "all four serve")
            stop(instance)
            wait_until(lambda: set(gate.names(40)) == {""}, "all four have heard the goodbye")


def test_user_who_need_not_sign(keys: Keys, tmp_path: Path) -> None:
    """On a unix server, by the kernel's word; root is never exempt."""
    root = os.getuid() == 0
    uid = pwd.getpwnam("nobody").pw_uid if root else os.getuid()
    path = tmp_path / "subscriptions"
    options = ("--subscriptions-use-credentials", "--subscriptions-sign-skip-uid", str(uid))
    with checking(keys, *options, "--chmod-socket=666", server=str(path)) as gate:
        words = ["--subscribe-to", f"{path}:{KEY}", "--subscriptions-use-credentials"]
        if root:
            # Another user can read neither root's interpreter nor, without this, our directory.
            for parent in (tmp_path, *tmp_path.parents):
                if parent.stat().st_uid == 0 and parent != Path(tempfile.gettempdir()):
                    parent.chmod(parent.stat().st_mode | 0o055)
                else:
                    break
            words += ["--uid", str(uid)]
        with node(tmp_path, *words, name="exempt", application=not root) as instance:
            gate.joined(instance.address)
            wait_until(lambda: gate.ask().status == (500 if root else 200), "it is asked")
            assert gate.nodes()[instance.address]["uid"] == uid
            stop(instance)
            gate.unserved()
        if root:
            with node(tmp_path, *words[:-2], name="root"):
                wait_until(lambda: gate.rejected("unsigned") >= 1, "root has to sign")
                assert gate.ask().status == 503
