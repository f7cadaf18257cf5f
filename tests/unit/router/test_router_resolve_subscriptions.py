"""A worker's side of the table: look-ups, what becomes of changes, marks, what is reported."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from router_tools import resting_clock

from uwgate.config.settings import RouterSubscriptions, SubscriptionSettings
from uwgate.router import resolve_subscriptions
from uwgate.router.balance import Node
from uwgate.router.clock import Clock
from uwgate.router.resolve_subscriptions import SubscriptionResolver
from uwgate.subscriptions.table import Change, Slot, Table

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


@pytest.fixture
def clock() -> Iterator[Clock]:
    with resting_clock() as clock:
        yield clock


def join(
    key: str,
    address: str,
    *,
    modifier1: int = 0,
    weight: int = 1,
    backup: int = 0,
    protocol: str = "http",
    algo: str = "",
    joined: int = 1000,
) -> Change:
    return ["+", key, address, modifier1, 0, weight, backup, protocol, algo, joined]


class Worker:
    """A resolver, and what it told the master."""

    def __init__(self, clock: Clock, *changes: Change, fallback: str = "", **common: Any) -> None:
        self.told: list[dict[str, object]] = []
        wanted = RouterSubscriptions(SubscriptionSettings(**common), (), fallback_key=fallback)
        self.resolver = SubscriptionResolver(wanted, clock)
        self.resolver.inherit(Table(), self.told.append)
        self.apply(*changes)

    def apply(self, *changes: Change) -> list[Node]:
        """The nodes that are of no use any more."""
        found = [self.resolver.apply(change) for change in changes]
        return [node for node in found if node is not None]

    def pick(self, key: str, token: bytes = b"", tried: tuple[Node, ...] = ()) -> str:
        """The name of the node, "" for none."""
        node = self.resolver.pick(key, token, tried)
        return node.name if node is not None else ""

    def node(self, key: str) -> Node:
        node = self.resolver.pick(key, b"", ())
        assert node is not None
        return node

    def picks(self, key: str, count: int, token: bytes = b"") -> list[str]:
        return [self.pick(key, token) for _ in range(count)]


# --- look-ups -----------------------------------------------------------------------------------


def test_a_key_has_its_nodes_and_no_other(clock: Clock) -> None:
    worker = Worker(clock, join("a", A), join("a", B), join("b", C))
    assert sorted(worker.picks("a", 4)) == [A, A, B, B]
    assert worker.picks("b", 2) == [C, C]
    assert worker.pick("c") == worker.pick("") == worker.pick("a/app") == ""
    assert [worker.resolver.knows(key) for key in ("a", "b", "c", "")] == [True, True, False, False]


def test_nodes_are_made_as_announced(clock: Clock) -> None:
    worker = Worker(
        clock,
        join("a", "/run/a.sock", modifier1=5, weight=3, backup=0, protocol="uwsgi"),
        join("b", "@name"),
        join("c", "\\0name"),
        join("d", "[::1]:80"),
        join("e", "node.example:80"),
    )
    node = worker.node("a")
    assert (node.modifier1, node.weight, node.protocol, node.key) == (5, 3, "uwsgi", "a")
    assert (node.endpoint.kind, node.endpoint.path) == ("unix", "/run/a.sock")
    for key, address in (("b", "@name"), ("c", "\\0name")):
        node = worker.node(key)
        assert (node.endpoint.kind, node.endpoint.path) == ("abstract", "name")
        assert node.name == address
    assert worker.node("d").addresses[0][1] == ("::1", 80, 0, 0)
    named = worker.node("e")
    assert named.addresses == ()
    assert worker.resolver.named == {named}
    worker.apply(["-", "e", "node.example:80"])
    assert worker.resolver.named == set()


ORDERS = list(itertools.permutations(["h", "h/app", "h/app/x", "h/apple"]))


@pytest.mark.parametrize("order", ORDERS, ids=",".join)
def test_mountpoints_in_any_order(clock: Clock, order: tuple[str, ...]) -> None:
    """uWSGI 2.1 puts a mountpoint that comes after its host into the slot of the host."""
    port = {"h": 1, "h/app": 2, "h/app/x": 3, "h/apple": 4}
    worker = Worker(
        clock, *(join(key, f"10.0.0.1:{port[key]}") for key in order), mountpoints=3
    )
    for key, wanted in {
        "h": 1,
        "h/ap": 1,
        "h/other/app": 1,
        "h/app": 2,
        "h/app/y": 2,
        "h/app/y/x": 2,
        "h/app/x": 3,
        "h/app/x/z": 3,
        "h/apple": 4,
        "h/apple/x": 4,
    }.items():
        assert worker.pick(key) == f"10.0.0.1:{wanted}", key
        assert worker.resolver.knows(key)
    worker.apply(["-", "h/app", "10.0.0.1:2"])
    assert worker.pick("h/app/y") == "10.0.0.1:1"
    assert worker.pick("h/app/x") == "10.0.0.1:3"
    assert worker.pick("g/app") == ""


def test_a_dead_mountpoint_is_not_its_hosts(clock: Clock) -> None:
    worker = Worker(clock, join("h", A), join("h/app", B), mountpoints=1)
    worker.apply(["x", "h/app", B])
    assert worker.pick("h/app") == ""
    assert worker.resolver.knows("h/app")


def test_a_mountpoint_alone_is_not_the_host(clock: Clock) -> None:
    worker = Worker(clock, join("h/app", A), mountpoints=2)
    assert worker.pick("h") == worker.pick("h/other") == ""
    assert worker.pick("h/app/x") == A


def test_dotsplit(clock: Clock) -> None:
    """gateways.md §3.2: cut to the next dot, five look-ups in all."""
    worker = Worker(clock, join(".example.com", A), dotsplit=True)
    assert worker.pick("a.example.com") == worker.pick("a.b.c.example.com") == A
    assert worker.pick("a.b.c.d.e.example.com") == ""  # the sixth look-up would be needed
    assert worker.pick("b.c.d.example.com") == A
    assert worker.pick("example.com") == ""
    assert worker.pick(".example.com") == A
    assert worker.pick("a.example.com:80") == ""
    worker.apply(join("a.example.com", B))
    assert worker.pick("a.example.com") == B
    assert worker.pick("x.a.example.com") == A
    assert Worker(clock, join(".example.com", A)).pick("a.example.com") == ""


def test_dotsplit_counts_five(clock: Clock) -> None:
    host = "a.b.c.d.e.f.g"
    cuts = [".b.c.d.e.f.g", ".c.d.e.f.g", ".d.e.f.g", ".e.f.g", ".f.g"]
    found = [Worker(clock, join(cut, A), dotsplit=True).pick(host) for cut in cuts]
    assert found == [A, A, A, A, ""]


def test_dotsplit_and_mountpoints(clock: Clock) -> None:
    worker = Worker(
        clock, join(".example.com", A), join("a.example.com/app", B), dotsplit=True, mountpoints=1
    )
    assert worker.pick("a.example.com/app") == B
    assert worker.pick("a.example.com/other") == A


def test_fallback_key(clock: Clock) -> None:
    """uWSGI's dotsplit ignores it."""
    worker = Worker(clock, join("a", A), join("last", B), fallback="last", dotsplit=True)
    assert worker.pick("a") == A
    assert worker.pick("nobody") == worker.pick("x.y") == B
    assert worker.resolver.knows("nobody")
    assert [node.name for node in worker.resolver.candidates("nobody")] == [B]
    worker.apply(["x", "a", A])
    assert worker.pick("a") == B
    worker.apply(["-", "last", B])
    assert worker.pick("a") == worker.pick("nobody") == ""
    assert not worker.resolver.knows("nobody")
    assert worker.resolver.candidates("nobody") == ()


def test_the_fallback_key_asked_for_itself(clock: Clock) -> None:
    worker = Worker(clock, join("last", B), fallback="last")
    worker.apply(["x", "last", B])
    assert worker.pick("last") == ""


# --- algorithms ---------------------------------------------------------------------------------


def test_algorithms_of_keys(clock: Clock) -> None:
    nodes = [join(key, node, algo=algo) for key, algo in (("i", "iphash"), ("h", "hash"), ("d", ""))
             for node in (A, B, C)]  # fmt: skip
    worker = Worker(clock, *nodes)
    # spec §13: 127.0.0.1 -> C, 127.0.0.2 -> A, 127.0.0.3 -> B.
    assert [worker.pick("i", b"127.0.0.%d" % n) for n in (1, 2, 3)] == [C, A, B]
    assert len(set(worker.picks("h", 9, b"token"))) == 1
    assert len(set(worker.picks("d", 9, b"token"))) == 3
    assert [worker.resolver.hashes(key) for key in "ihdx"] == [False, True, False, False]


def test_the_gateways_own_algorithm(clock: Clock) -> None:
    worker = Worker(clock, join("a", A), join("a", B), join("w", A, algo="wrr"), algo="hash")
    assert worker.resolver.hashes("a")
    assert not worker.resolver.hashes("w")
    assert len(set(worker.picks("a", 9, b"token"))) == 1


def test_whether_a_key_hashes_is_seen_where_it_is_found(clock: Clock) -> None:
    worker = Worker(
        clock, join("h", A, algo="hash"), join("f", A, algo="hash"), mountpoints=1, fallback="f"
    )
    assert worker.resolver.hashes("h/app")
    assert worker.resolver.hashes("nobody")


def test_weights_and_backups(clock: Clock) -> None:
    worker = Worker(clock, join("a", A, weight=3), join("a", B), join("a", C, backup=1))
    assert sorted(worker.picks("a", 8)) == [A] * 6 + [B] * 2
    worker.apply(join("a", A, weight=1))
    assert sorted(worker.picks("a", 8)) == [A] * 4 + [B] * 4
    worker.apply(["x", "a", A], ["x", "a", B])
    assert worker.picks("a", 2) == [C, C]
    worker.apply(["o", "a", B])
    assert worker.picks("a", 2) == [B, B]
    worker.apply(join("a", B, backup=2))
    assert worker.picks("a", 2) == [C, C]


def test_slow_start(clock: Clock) -> None:
    worker = Worker(
        clock, join("a", A), join("a", B, joined=int(time.time())), slow_start=100.0
    )
    picks = worker.picks("a", 110)
    assert 5 <= picks.count(B) <= 20
    assert picks.count(A) > 80


# --- changes ------------------------------------------------------------------------------------


def test_a_goodbye_counts_from_that_moment(clock: Clock) -> None:
    worker = Worker(clock, join("a", A), join("a", B))
    worker.picks("a", 2)
    gone = worker.apply(["-", "a", A])
    assert [node.name for node in gone] == [A]
    assert set(worker.picks("a", 6)) == {B}
    worker.apply(["-", "a", B])
    assert worker.pick("a") == ""
    assert not worker.resolver.knows("a")
    assert worker.resolver.nodes() == []
    worker.apply(join("a", C))
    assert worker.pick("a") == C


def test_changes_of_keys_that_nobody_asked_for_make_no_nodes(clock: Clock) -> None:
    worker = Worker(clock, join("a", A))
    assert worker.apply(["x", "a", A], ["o", "a", A], join("a", B), ["-", "a", A]) == []
    assert worker.resolver.nodes() == []
    assert worker.resolver.table.slots["a"].view is None
    assert worker.pick("a") == B


def test_a_node_that_speaks_differently_is_another_object(clock: Clock) -> None:
    worker = Worker(clock, join("a", A))
    before = worker.node("a")
    before.requests, before.failures, before.tx = 7, 2, 99
    assert worker.apply(join("a", A, modifier1=5)) == [before]
    after = worker.node("a")
    assert after is not before
    assert (after.modifier1, after.requests, after.failures, after.tx) == (5, 7, 2, 99)
    assert worker.apply(join("a", A, modifier1=5, weight=9)) == []
    assert worker.node("a") is after
    assert after.weight == 9


def test_hits(clock: Clock) -> None:
    worker = Worker(clock, join("a", A), join("b", B), join("last", C), fallback="last")
    worker.picks("a", 3)
    worker.picks("nobody", 2)
    found = worker.resolver.snapshot()["slots"]
    assert isinstance(found, dict)
    assert {key: slot["hits"] for key, slot in found.items()} == {"a": 3, "last": 2}
    assert list(found["a"]["nodes"]) == [A]
    # With the last node goes the slot, and with it its hits (§6.1).
    worker.apply(["-", "a", A], join("a", A))
    worker.pick("a")
    found = worker.resolver.snapshot()["slots"]
    assert isinstance(found, dict)
    assert found["a"]["hits"] == 1


def test_a_snapshot_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_subscriptions, "_MAX_REPORTED", 3)
    worker = Worker(clock, *(join(f"k{n}", A) for n in range(5)), join("k4", B), join("k4", C))
    for number in range(5):
        worker.picks(f"k{number}", number + 1)
    found = worker.resolver.snapshot()["slots"]
    assert isinstance(found, dict)
    assert sum(len(slot["nodes"]) for slot in found.values()) == 3
    assert "k4" in found


class _Counting(dict[str, Slot]):
    """Slots of a table that count look-ups."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)


def test_a_snapshot_of_many_keys_looks_at_some_at_a_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with a million keys has requests to serve, too."""
    monkeypatch.setattr(resolve_subscriptions, "_MAX_REPORTED", 3)
    monkeypatch.setattr(resolve_subscriptions, "_LOOKED_AT", 10)
    worker = Worker(clock, *(join(f"k{n}", A) for n in range(100)))
    for number in range(100):
        worker.picks(f"k{number}", 1 + number * 37 % 100)  # 1 to 100
    busiest = {f"k{number}" for number in range(100) if number * 37 % 100 >= 97}
    slots = worker.resolver.table.slots = _Counting(worker.resolver.table.slots)
    for _ in range(10):
        slots.looks = 0
        shown = worker.resolver.snapshot()["slots"]
        assert slots.looks <= 13
    assert isinstance(shown, dict)
    assert shown.keys() == busiest
    # Whoever leaves is not looked for any more.
    worker.apply(*(["-", key, A] for key in busiest))
    shown = worker.resolver.snapshot()["slots"]
    assert isinstance(shown, dict)
    assert len(shown) == 3
    assert not shown.keys() & busiest


# --- marks --------------------------------------------------------------------------------------


def test_a_failed_node_is_reported_once(clock: Clock) -> None:
    worker = Worker(clock, join("a", A), join("a", B))
    first = worker.node("a")
    for _ in range(2):
        worker.resolver.mark(first, "refused")
    other = {A: B, B: A}[first.name]
    assert worker.told == [{"type": "mark", "key": "a", "address": first.name, "reason": "refused"}]
    assert set(worker.picks("a", 4)) == {other}
    assert first.dead_until == math.inf
    clock.now += 10_000
    assert set(worker.picks("a", 4)) == {other}  # no grace time: until it announces itself
    worker.apply(["o", "a", first.name])
    assert set(worker.picks("a", 4)) == {A, B}


def test_the_last_resort(clock: Clock) -> None:
    worker = Worker(clock, join("a", A))
    node = worker.node("a")
    worker.resolver.mark(node, "refused")
    assert worker.pick("a") == ""
    assert worker.resolver.last_resort("a", ()) is None
    assert worker.resolver.last_resort("nobody", ()) is None
    clock.now += 1.0
    assert worker.resolver.last_resort("a", (node,)) is None
    assert worker.resolver.last_resort("a", ()) is node
    assert worker.resolver.last_resort("a", ()) is None
    node.works()
    worker.resolver.reached(node)
    worker.resolver.reached(node)
    assert worker.told[1:] == [{"type": "reached", "key": "a", "address": A}]
    assert worker.pick("a") == A


def test_marks_that_came_with_the_table(clock: Clock) -> None:
    worker = Worker(clock, join("a", A), join("a", B), ["x", "a", A])
    assert set(worker.picks("a", 4)) == {B}
    worker.apply(["x", "a", B])
    assert worker.pick("a") == ""
    worker.apply(join("a", A, weight=2))
    assert worker.pick("a") == A


def test_a_node_that_left_is_nobodys_business(clock: Clock) -> None:
    worker = Worker(clock, join("a", A))
    node = worker.node("a")
    worker.apply(["-", "a", A])
    worker.resolver.mark(node, "refused")
    worker.resolver.reached(node)
    assert worker.told == []


# --- a worker that was fed, and one that begins now ---------------------------------------------

KEYS = st.sampled_from(["a", "b"])
NODES = st.sampled_from([f"10.0.0.{n}:80" for n in range(12)])


class Workers(RuleBasedStateMachine):
    """Whatever was opened when: a worker picks among what its table says."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = resting_clock()
        self.clock = self._clock.__enter__()
        self.worker = Worker(self.clock)

    def teardown(self) -> None:
        self._clock.__exit__(None, None, None)

    @rule(key=KEYS, address=NODES, weight=st.integers(1, 2), modifier1=st.integers(0, 1))
    def join(self, key: str, address: str, weight: int, modifier1: int) -> None:
        self.worker.apply(join(key, address, weight=weight, modifier1=modifier1))

    @rule(key=KEYS, address=NODES, what=st.sampled_from("-xo"))
    def change(self, key: str, address: str, what: str) -> None:
        self.worker.apply([what, key, address])

    @rule(key=KEYS)
    def use(self, key: str) -> None:
        node = self.worker.resolver.pick(key, b"", ())
        slot = self.worker.resolver.table.slots.get(key)
        alive = [] if slot is None else [m.address for m in slot if not m.marked]
        assert (node is None) is (not alive)
        assert node is None or node.name in alive

    @invariant()
    def views_are_what_a_new_worker_would_make(self) -> None:
        table = self.worker.resolver.table
        opened = {key for key, slot in table.slots.items() if slot.view is not None}
        bare = copy.deepcopy(
            [(m.slot.key, m.address, m.kind, m.weight, m.marked) for m in table
             if m.slot.key in opened]
        )  # fmt: skip
        nodes = [
            (n.key, n.name, (n.modifier1, n.protocol), n.weight, n.dead_until == math.inf)
            for n in self.worker.resolver.nodes()
        ]
        assert sorted(nodes) == sorted(
            (key, address, (kind.modifier1, kind.protocol), weight, marked)
            for key, address, kind, weight, marked in bare
        )


Workers.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestWorkers = Workers.TestCase
