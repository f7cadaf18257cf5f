"""The short way to a node of a key: the same nodes in the same order, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from router_tools import resting_clock

from uwgate.config.settings import RouterSubscriptions, SubscriptionSettings
from uwgate.router.clock import Clock
from uwgate.router.resolve_subscriptions import SubscriptionResolver
from uwgate.subscriptions.table import Change, Table

ADDRESSES = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")


@pytest.fixture
def clock() -> Iterator[Clock]:
    with resting_clock() as clock:
        yield clock


def join(address: str, weight: int = 1, backup: int = 0, algo: str = "") -> Change:
    return ["+", "a", address, 0, 0, weight, backup, "http", algo, 1000]


def resolver(clock: Clock, *changes: Change, slow_start: float = 0.0) -> SubscriptionResolver:
    wanted = RouterSubscriptions(SubscriptionSettings(slow_start=slow_start), ())
    found = SubscriptionResolver(wanted, clock)
    found.inherit(Table(), lambda message: None)
    for change in changes:
        found.apply(change)
    return found


def turn(table: SubscriptionResolver, key: str = "a") -> str:
    node = table.turn(key)
    return node.name if node is not None else ""


def pick(table: SubscriptionResolver) -> str:
    node = table.pick("a", b"", ())
    assert node is not None
    return node.name


@pytest.mark.parametrize("weights", [(1,), (1, 1, 1), (4, 3, 2), (900, 1, 99)])
def test_turns_are_those_of_pick(clock: Clock, weights: tuple[int, ...]) -> None:
    changes = [join(*pair) for pair in zip(ADDRESSES, weights, strict=False)]
    short, long = resolver(clock, *changes), resolver(clock, *changes)
    assert pick(short) == pick(long)
    expected = [pick(long) for _ in range(2000)]
    assert [turn(short) if n % 3 else pick(short) for n in range(2000)] == expected
    assert short.snapshot() == long.snapshot()  # the look-ups are counted as well


def test_the_first_look_up_of_a_key_goes_the_long_way(clock: Clock) -> None:
    table = resolver(clock, join(ADDRESSES[0]))
    assert turn(table) == turn(table, "b") == ""
    assert pick(table) == turn(table) == ADDRESSES[0]


@pytest.mark.parametrize("algo", ["lrc", "wlrc", "iphash", "hash", "p2c", "wrr-uwsgi"])
def test_no_turns_where_an_algorithm_looks_at_more(clock: Clock, algo: str) -> None:
    table = resolver(clock, *(join(address, algo=algo) for address in ADDRESSES))
    pick(table)
    assert turn(table) == ""


def test_no_turns_with_backups_or_newcomers(clock: Clock) -> None:
    table = resolver(clock, join(ADDRESSES[0]), join(ADDRESSES[1], backup=1))
    pick(table)
    assert turn(table) == ""
    clock.now = 1000.0
    table = resolver(clock, join(ADDRESSES[0]), slow_start=10.0)
    (slot,) = table.table.slots.values()
    (member,) = slot
    member.joined = 1 << 40  # it will have come
    pick(table)
    assert turn(table) == ""


def test_marks_and_goodbyes_count_at_once(clock: Clock) -> None:
    first, second = ADDRESSES[:2]
    table = resolver(clock, join(first), join(second))
    pick(table)
    assert {turn(table), turn(table)} == {first, second}
    table.apply(["x", "a", first])
    found = [turn(table) for _ in range(4)]
    assert first not in found
    table.apply(["o", "a", first])
    pick(table)
    assert {turn(table), turn(table)} == {first, second}
    table.apply(["-", "a", first])
    pick(table)
    assert [turn(table) for _ in range(3)] == [second] * 3
    table.apply(["-", "a", second])
    assert turn(table) == ""
