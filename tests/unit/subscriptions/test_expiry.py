"""Silence: nodes are dropped by the clock, whether anybody asks for them or not."""

from __future__ import annotations

import random

import pytest
from registry_tools import KEY, NODE, World, packet

from uwgate.subscriptions import admission
from uwgate.subscriptions.expiry import Expiry
from uwgate.subscriptions.table import Member, Table

OTHER = "10.0.0.2:3031"


@pytest.mark.parametrize("tolerance", [1, 3, 17])
def test_strictly_more_than_the_tolerance(tolerance: int) -> None:
    """§6.2: strictly greater, whole seconds. uWSGI looks at that when the key is asked for only."""
    world = World(tolerance=float(tolerance))
    world.send()
    world.pass_time(tolerance)
    assert world.find() is not None
    world.pass_time(1)
    assert world.find() is None
    assert world.published[-1] == ["-", KEY, NODE]
    assert world.counters["expired"] == 1
    assert world.counters["left"] == 0
    assert world.logged(
        f"{KEY} => marking {NODE} as failed (no announce received in {tolerance + 1} seconds)"
    )


def test_a_fraction_of_a_second_is_cut() -> None:
    world = World(tolerance=1.9)
    world.send()
    world.pass_time(2)
    assert world.find() is None


@pytest.mark.parametrize("same", [True, False])
def test_each_announcement_counts(same: bool) -> None:
    world = World(tolerance=3.0)
    for number in range(20):
        world.send(load=0 if same else number)
        world.pass_time(3)
        assert world.find() is not None
    world.pass_time(1)
    assert world.find() is None


def test_only_the_silent_one_is_dropped() -> None:
    world = World(tolerance=3.0)
    for second in range(10):
        world.send(address=OTHER)
        if second < 4:
            world.send()
        world.pass_time(1)
    assert [member.address for member in world.registry.table.slots[KEY]] == [OTHER]


def test_who_left_and_came_back_is_another() -> None:
    world = World(tolerance=3.0)
    world.send()
    world.pass_time(2)
    world.send(command=1)
    world.send()
    world.pass_time(3)
    assert world.find() is not None
    assert world.counters["expired"] == 0
    world.pass_time(1)
    assert world.find() is None
    assert world.counters["expired"] == 1


def test_many_expire_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_SLICE", 10)
    world = World(tolerance=1.0)
    for number in range(25):
        world.send(f"k{number}")
    world.pass_time(1)
    world.now += 1
    left = []
    while world.registry.tick(world.now):
        left.append(world.registry.table.members)
    assert left == [15, 5]
    assert world.registry.table.members == 0


def test_a_pause_of_the_process_is_nobodys_silence() -> None:
    """A machine that was suspended, or a process that was stopped, has heard nobody."""
    world = World(tolerance=3.0)
    world.send()
    world.send(address=OTHER)
    world.pass_time(1)
    world.now += 600
    assert not world.registry.tick(world.now)
    assert world.registry.table.members == 2
    world.pass_time(2)
    world.send()
    world.pass_time(1)
    assert world.registry.table.members == 2
    world.pass_time(1)
    assert [member.address for member in world.registry.table.slots[KEY]] == [NODE]
    world.pass_time(3)
    assert world.registry.table.members == 0


def test_a_restored_node_has_the_whole_tolerance_again() -> None:
    world = World(tolerance=3.0)
    table = Table()
    member = table.add(KEY, NODE)
    member.weight, member.seen, member.sender = 1, 5, "10.0.0.7"
    world.registry.table = table
    world.registry.restore(member)
    world.pass_time(3)
    assert world.find() is member
    world.pass_time(1)
    assert world.find() is None
    assert not world.registry._by_sender


# --- the wheel itself ---------------------------------------------------------------------------


def members(count: int) -> list[Member]:
    table = Table()
    return [table.add("k", str(number)) for number in range(count)]


def test_the_wheel_against_a_scan() -> None:
    """Random refreshes and departures: the same members at the same second as by going through."""
    dice = random.Random(7)
    expiry = Expiry(5)
    alive = dict.fromkeys(members(300), 0)
    for member in alive:
        expiry.watch(member)
    for now in range(1, 60):
        for member in list(alive):
            if dice.random() < 0.6:
                member.seen = alive[member] = now
            elif dice.random() < 0.01:
                del alive[member]
                expiry.forget(member)
        wanted = {member for member, seen in alive.items() if now - seen > 5}
        found = set()
        while True:
            for member in expiry.due(now, 7):
                found.add(member)
                expiry.forget(member)
            if not expiry.pending:
                break
        assert found == wanted
        for member in found:
            del alive[member]
    assert 0 < len(alive) < 300
    assert expiry._watched - expiry._gone == len(alive)


def test_the_wheel_lets_go_of_who_left() -> None:
    expiry = Expiry(86_400)
    staying = members(100)
    for member in staying:
        expiry.watch(member)
    for member in members(200_000):
        expiry.watch(member)
        expiry.forget(member)
        assert expiry._watched <= 30_000
    held = sum(map(len, expiry._buckets.values()))
    assert held == expiry._watched
    assert [m for m in expiry._buckets[86_401] if m.seen >= 0] == staying


def test_bytes_seen_before_expiry_join_again() -> None:
    world = World(tolerance=1.0)
    data = packet()
    world.receive(data)
    world.receive(data)
    world.pass_time(2)
    assert world.find() is None
    world.receive(data)
    assert world.member().seen >= 0
    assert world.counters["joined"] == 2
