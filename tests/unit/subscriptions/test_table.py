"""The table: order, indexes, changes, and that copies that are fed with changes are equal."""

from __future__ import annotations

import copy
import gc
import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from registry_tools import contents

from uwgate.subscriptions.table import (
    FILES,
    LEAVE,
    MARK,
    NOTHING,
    PLAIN,
    REVIVE,
    Change,
    Extra,
    Kind,
    Member,
    Table,
    certificate,
    joining,
)

KEYS = ["a", "b"]
ADDRESSES = [f"10.0.0.{number}:80" for number in range(20)]  # more than a short slot has


def join(key: str = "k", address: str = "a:1", **changed: Any) -> Change:
    values = {
        "modifier1": 0,
        "modifier2": 0,
        "weight": 1,
        "backup": 0,
        "protocol": "uwsgi",
        "algo": "",
        "joined": 1000,
    }
    return ["+", key, address, *{**values, **changed}.values()]


def addresses(table: Table, key: str = "k") -> list[str]:
    slot = table.slots.get(key)
    return [] if slot is None else [member.address for member in slot]


def check(table: Table) -> None:
    """Links, counts and indexes fit each other."""
    total = 0
    for key, slot in table.slots.items():
        forward = list(slot)
        backward: list[Member] = []
        member = slot.last
        while member is not None:
            backward.append(member)
            member = member.previous
        assert slot.key == key
        assert forward
        assert forward == backward[::-1]
        assert len(forward) == slot.count
        assert all(member.slot is slot for member in forward)
        assert all(table.find(key, member.address) is member for member in forward)
        total += len(forward)
    assert table.members == total
    assert len(list(table)) == total


def test_members_are_in_the_order_of_their_coming() -> None:
    table = Table()
    for name in ("c", "a", "b"):
        table.add("k", name)
    assert addresses(table) == ["c", "a", "b"]
    a = table.find("k", "a")
    assert a is not None
    assert not table.remove(a)
    table.add("k", "a")
    assert addresses(table) == ["c", "b", "a"]
    check(table)


@pytest.mark.parametrize("size", [1, 2, 8, 9, 30])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_slot_of_any_length_finds_and_loses_each(size: int, backwards: bool) -> None:
    table = Table()
    names = [f"n{number}" for number in range(size)]
    for name in names:
        table.add("k", name)
        check(table)
    assert table.find("k", "n") is None
    assert table.find("other", "n0") is None
    order = names[::-1] if backwards else names
    for left, name in enumerate(order, 1):
        member = table.find("k", name)
        assert member is not None
        assert table.remove(member) is (left == size)
        assert table.find("k", name) is None
        check(table)
    assert not table.slots


def test_whoever_goes_through_a_slot_may_remove() -> None:
    table = Table()
    for number in range(20):
        table.add("k", f"n{number}")
    for member in table.slots["k"]:
        table.remove(member)
    assert not table.slots
    assert table.members == 0


def test_kinds_are_shared_and_bounded() -> None:
    table = Table()
    first, second = table.kind(Kind(backup=3)), table.kind(Kind(backup=3))
    assert first is second
    assert table.kind(Kind()) is PLAIN
    for backup in range(25_000):  # of hostile announcements
        table.kind(Kind(backup=backup))
    assert sys.getsizeof(table._kinds) < 1_000_000


def test_a_change_says_all() -> None:
    table = Table()
    change = join(
        modifier1=5, modifier2=6, weight=7, backup=2, protocol="http", algo="lrc", joined=99
    )
    member = table.apply(change)
    assert member is not None
    assert member.kind == Kind(5, 6, 2, "http")
    assert (member.weight, member.joined, member.slot.algo) == (7, 99, "lrc")
    assert joining(member) == change
    assert json.loads(json.dumps(change)) == change


def test_marks() -> None:
    table = Table()
    table.apply(join())
    for operation, marked in ((MARK, True), (MARK, True), (REVIVE, False), (MARK, True)):
        member = table.apply([operation, "k", "a:1"])
        assert member is not None
        assert member.marked is marked
    # Whoever announces itself anew is alive.
    member = table.apply(join(weight=2))
    assert member is not None
    assert not member.marked


@pytest.mark.parametrize("operation", [LEAVE, MARK, REVIVE])
def test_changes_of_members_that_are_not_there_do_nothing(operation: str) -> None:
    table = Table()
    assert table.apply([operation, "k", "a:1"]) is None
    table.apply(join())
    assert table.apply([operation, "k", "b:1"]) is None
    assert addresses(table) == ["a:1"]


def test_who_left_is_freed_without_a_collection() -> None:
    """The master tells the collector to leave its tables alone."""
    gc.disable()
    try:
        table = Table()
        for number in range(20):
            table.add("k", f"n{number}")
        before = len(gc.get_objects())
        for _ in range(50):
            for number in range(20):
                table.add("other", f"n{number}")
            for member in table.slots["other"]:
                table.remove(member)
        del member
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


CHANGES = st.one_of(
    st.builds(
        join,
        st.sampled_from(KEYS),
        st.sampled_from(ADDRESSES),
        weight=st.integers(1, 3),
        modifier1=st.integers(0, 1),
        algo=st.sampled_from(["", "lrc"]),
    ),
    st.tuples(
        st.sampled_from([LEAVE, MARK, REVIVE]),
        st.sampled_from(KEYS),
        st.sampled_from(ADDRESSES),
    ).map(list),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANGES, max_size=60), st.data())
def test_doing_the_last_changes_again_ends_at_the_same(
    changes: list[Change], data: st.DataObject
) -> None:
    """What was gathered at the moment of a fork is in the inherited table and is sent as well."""
    table = Table()
    for change in changes:
        table.apply(change)
    fork = copy.deepcopy(table)
    again = data.draw(st.integers(0, len(changes)))
    for change in changes[len(changes) - again :]:
        fork.apply(change)
        check(fork)

    def unordered(each: Table) -> dict[str, tuple[str, set[tuple[object, ...]]]]:
        return {key: (algo, set(rows)) for key, (algo, rows) in contents(each).items()}

    assert unordered(fork) == unordered(table)


class Tables(RuleBasedStateMachine):
    """A table against dictionaries, and copies made at any moment that are fed from then on."""

    copies = Bundle("copies")

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.model: dict[str, dict[str, list[object]]] = {}
        self.fed: list[Table] = []

    @rule()
    def fork(self) -> None:
        if len(self.fed) < 4:
            self.fed.append(copy.deepcopy(self.table))

    @rule(change=CHANGES)
    def change(self, change: Change) -> None:
        for table in (self.table, *self.fed):
            table.apply(json.loads(json.dumps(change)))
        operation, key, address, *values = change
        slot = self.model.get(key, {})
        if operation == "+":
            self.model.setdefault(key, {})[address] = [*values, False]
        elif address in slot:
            if operation == LEAVE:
                del slot[address]
                if not slot:
                    del self.model[key]
            else:
                slot[address][-1] = operation == MARK

    @invariant()
    def all_are_equal(self) -> None:
        check(self.table)
        for table in self.fed:
            assert contents(table) == contents(self.table)
        assert {key: list(slot) for key, slot in self.model.items()} == {
            key: [member.address for member in slot] for key, slot in self.table.slots.items()
        }
        for key, rows in self.model.items():
            for address, (m1, m2, weight, backup, protocol, _, joined, marked) in rows.items():
                member = self.table.find(key, address)
                assert member is not None
                assert member.kind == Kind(m1, m2, backup, protocol)  # type: ignore[arg-type]
                assert (member.weight, member.joined) == (weight, joined)
                assert member.marked is marked


Tables.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTables = Tables.TestCase


def test_a_change_carries_the_files_of_a_certificate() -> None:
    files = ["/c.pem", "/k.pem", "!/ca.pem"]
    table, copied = Table(), Table()
    table.apply(join())
    member = table.apply([*join(), *files])
    assert member is not None
    assert certificate(member.extra) == files == joining(member)[3:][FILES:]
    copied.apply(json.loads(json.dumps(joining(member))))
    again = copied.find("k", "a:1")
    assert again is not None
    assert again.extra == member.extra
    copied.apply(join())  # without them
    assert again.extra == NOTHING
    # A mark that went round a circle of routers is no file.
    assert certificate(Extra(sni_ca="via:a,b")) == []
    assert certificate(Extra(sni_crt="/c.pem")) == []
