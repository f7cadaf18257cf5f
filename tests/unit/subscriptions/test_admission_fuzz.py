"""Registries against a naive model, and against whatever arrives.

The default run reads 20,000 datagrams. The million takes half a minute::

    UWGATE_FUZZ=1000000 python -m pytest tests/unit/subscriptions/test_admission_fuzz.py
"""

from __future__ import annotations

import copy
import gc
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from packet_tools import captured, datagram, plain
from registry_tools import KeyPair, World, contents, other_command, packet

from uwgate.subscriptions.identity import with_host
from uwgate.subscriptions.table import Kind, Table

COUNT = int(os.environ.get("UWGATE_FUZZ", "20000"))
KEYS = st.sampled_from(["a.example", "B.example", "a.example/app"])
ADDRESSES = st.sampled_from([f"10.0.0.{n}:80" for n in range(11)] + [":80", "/run/a.sock"])
SENDERS = st.sampled_from(["10.0.0.1", "10.0.0.2", "::1", "unix"])
TOLERANCE = 3


class Model:
    """The rules in the plainest form: dictionaries, no digests, no wheel."""

    def __init__(self, max_keys: int, max_nodes: int, max_sender: int) -> None:
        self.limits = max_keys, max_nodes, max_sender
        self.now = 0
        self.slots: dict[str, dict[str, dict[str, object]]] = {}

    def announce(self, key: str, address: str, sender: str, kind: Kind, weight: int) -> None:
        key, address = key.lower(), with_host(address, sender)
        slot = self.slots.get(key)
        if slot is None or address not in slot:
            all_nodes = [node for each in self.slots.values() for node in each.values()]
            theirs = sum(node["sender"] == sender for node in all_nodes)
            keys, nodes, most = self.limits
            if slot is None and len(self.slots) >= keys:
                return
            if (slot is not None and len(slot) >= nodes) or theirs >= most:
                return
            slot = self.slots.setdefault(key, {})
            slot[address] = {"sender": sender}
        slot[address].update(kind=kind, weight=weight, seen=self.now, marked=False)

    def leave(self, key: str, address: str) -> None:
        slot = self.slots.get(key.lower(), {})
        slot.pop(address, None)
        if not slot:
            self.slots.pop(key.lower(), None)

    def expire(self) -> None:
        for key, slot in list(self.slots.items()):
            for address, node in list(slot.items()):
                if self.now - node["seen"] > TOLERANCE:  # type: ignore[operator]
                    self.leave(key, address)


class Registries(RuleBasedStateMachine):
    """One registry, the model, and workers that were forked at any moment."""

    def __init__(self) -> None:
        super().__init__()
        limits: dict[str, Any] = {"max_keys": 2, "max_nodes": 10, "max_sender_nodes": 12}
        self.world = World(tolerance=float(TOLERANCE), **limits)
        self.model = Model(2, 10, 12)
        self.workers: list[Table] = []
        self.sent = 0
        self.last = (b"", "unix")

    @rule(
        key=KEYS,
        address=ADDRESSES,
        sender=SENDERS,
        weight=st.integers(1, 3),
        modifier1=st.integers(0, 1),
        http=st.booleans(),
        load=st.integers(0, 1),
    )
    def announce(
        self,
        key: str,
        address: str,
        sender: str,
        weight: int,
        modifier1: int,
        http: bool,
        load: int,
    ) -> None:
        protocol = "http" if http else "uwsgi"
        data = packet(
            key, address, weight=weight, modifier1=modifier1, protocol=protocol, load=load
        )
        self.world.receive(data, sender)
        self.model.announce(
            key, address, sender, Kind(modifier1, 0, 0, protocol), weight  # type: ignore[arg-type]
        )

    @rule(key=KEYS, address=ADDRESSES, sender=SENDERS)
    def goodbye(self, key: str, address: str, sender: str) -> None:
        self.world.receive(packet(key, address, command=1), sender)
        self.model.leave(key, with_host(address, sender))

    @rule(key=KEYS, address=ADDRESSES, back=st.booleans())
    def mark(self, key: str, address: str, back: bool) -> None:
        key = key.lower()
        if back:
            self.world.registry.reached(key, address)
        else:
            self.world.registry.mark(key, address, "test")
        node = self.model.slots.get(key, {}).get(address)
        if node is not None:
            node["marked"] = not back

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.world.pass_time(1)
            self.model.now += 1
            self.model.expire()

    @rule()
    def fork(self) -> None:
        if len(self.workers) < 4:
            self.workers.append(copy.deepcopy(self.world.registry.table))

    @invariant()
    def all_are_equal(self) -> None:
        registry, model = self.world.registry, self.model
        for change in self.world.published[self.sent :]:
            for worker in self.workers:
                worker.apply(json.loads(json.dumps(change)))
        self.sent = len(self.world.published)
        for worker in (self.world.worker, *self.workers):
            assert contents(worker) == contents(registry.table)
        assert {
            key: {
                m.address: {
                    "sender": m.sender,
                    "kind": m.kind,
                    "weight": m.weight,
                    "marked": m.marked,
                }
                for m in slot
            }
            for key, slot in registry.table.slots.items()
        } == {
            key: {
                address: {name: value for name, value in node.items() if name != "seen"}
                for address, node in slot.items()
            }
            for key, slot in model.slots.items()
        }
        assert sum(registry._by_sender.values()) == registry.table.members
        assert set(registry._digests.values()) <= set(registry.table)


Registries.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestRegistries = Registries.TestCase


# --- whatever arrives ---------------------------------------------------------------------------

PAIR = KeyPair()
SEEDS = [
    captured("subscribe_basic"),
    captured("subscribe2_weight_sni"),
    captured("subscribe_notify"),
    captured("unsubscribe_basic"),
    captured("subscribe_signed_sha1"),
    captured("v21_subscribe2_all_keys"),
    captured("v21_clear_on_shutdown"),
    plain(address=":3031", via="a,b", backup="1", proto="http"),
    datagram(("address", "/run/x"), ("key", "k/mount")),
]


def mutated(dice: random.Random, data: bytes) -> bytes:
    """One to three changes, most of which leave the frame as it is."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        what = dice.random()
        at = dice.randrange(len(changed)) if changed else 0
        if what < 0.6 and changed:
            changed[at] = dice.choice(b"0123456789abcxyz:/.@[]\x00\x01\xff\xe0 ")
        elif what < 0.75:
            changed[at:at] = dice.randbytes(dice.randint(1, 4))
        elif what < 0.9:
            del changed[at : at + dice.randint(1, 4)]
        else:
            return dice.randbytes(dice.randint(0, 300))
    if dice.random() < 0.7 and len(changed) >= 4:
        changed[1:3] = (len(changed) - 4).to_bytes(2, "little")
    return bytes(changed)


@pytest.mark.parametrize("signs", [False, True])
def test_whatever_arrives(signs: bool, tmp_path: Path) -> None:
    """No exception, every datagram counted, the table whole, and nothing that grows."""
    dice = random.Random(COUNT)
    directory: dict[str, Any] = {}
    if signs:
        directory = {"sign_digest": "sha256", "sign_directory": str(tmp_path)}
    for key in ("example.com", "k"):
        (tmp_path / f"{key}.pem").write_bytes(PAIR.public)
    world = World(max_keys=500, max_nodes=50, tolerance=3.0, **directory)
    count = COUNT // 4 if signs else COUNT
    sizes = []
    for number in range(count):
        if signs and dice.random() < 0.3:
            seed = packet("k", f"10.0.0.{number % 99}:1", signer=PAIR, unix=int(time.time()))
            data = other_command(seed) if dice.random() < 0.5 else seed
        else:
            data = dice.choice(SEEDS)
        if dice.random() < 0.8:
            data = mutated(dice, data)
        credentials = (1, dice.randrange(3), 1) if dice.random() < 0.1 else None
        world.registry.receive(data, dice.choice(("10.0.0.7", "unix", "fe80::1")), credentials)
        if number % 500 == 499:
            world.pass_time(1)
            world.published.clear()
            world.log.clear()
            world.told.clear()
        if number % (count // 4) == count // 4 - 1:
            gc.collect()
            sizes.append(len(gc.get_objects()))
    registry, counters = world.registry, world.counters
    assert counters["received"] == count
    assert sum(registry.rejected.values()) > count // 4
    assert set(registry.rejected) <= WORDS
    assert counters["joined"] > 10
    gone = counters["left"] + counters["expired"]
    assert counters["joined"] - gone == registry.table.members
    assert contents(world.worker) == contents(registry.table)
    assert max(sizes) - sizes[0] < 20_000
    world.pass_time(5)
    assert registry.table.members == 0
    assert not registry._digests
    assert not registry._by_sender


WORDS = {
    "too-long", "not-a-subscription", "malformed", "bad-key", "no-address", "bad-address",
    "bad-number", "bad-signature", "unsigned", "no-key-file", "stale", "repeated",
    "too-many-keys", "too-many-nodes",
}  # fmt: skip
