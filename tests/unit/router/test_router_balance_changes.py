"""Groups of nodes that change: who joins, leaves, comes back or is new."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from balance_tools import CLIENTS, names, nodes_of
from router_tools import node, resting_clock

from uwgate.router.balance import NodeGroup
from uwgate.router.clock import Clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    random.seed(1)  # p2c
    with resting_clock() as clock:
        yield clock


# --- other nodes than before ----------------------------------------------------------------------


def test_round_robin_goes_on_where_it_was(clock: Clock) -> None:
    a, b, c, d = nodes_of(1, 1, 1, 1)
    group = NodeGroup([a, b, c], "wrr", clock)
    assert [group.pick(), group.pick()] == [a, b]
    group.replace([d, a, b, c])
    assert group.pick() is c
    group.replace([d, b])
    assert [group.pick() for _ in range(3)] == [d, b, d]
    group.replace([])
    assert group.pick() is None
    group.replace([a])
    assert group.pick() is a


def test_new_weights(clock: Clock) -> None:
    nodes = nodes_of(1, 1)
    group = NodeGroup(nodes, "wrr", clock)
    names(group, 2)
    nodes[0].weight = 3
    assert names(group, 4) == "ABAB"  # nobody was told
    group.reweigh()
    assert Counter(names(group, 40)) == {"A": 30, "B": 10}


@pytest.mark.parametrize("algo", ["lrc", "wlrc"])
def test_a_newcomer_is_not_flooded(clock: Clock, algo: str) -> None:
    nodes = nodes_of(1, 1, 1)
    group = NodeGroup(nodes[:2], algo, clock)
    names(group, 100)
    group.replace(nodes)
    assert Counter(names(group, 30)) == {"A": 10, "B": 10, "C": 10}


@pytest.mark.parametrize("algo", ["lrc", "wlrc"])
@pytest.mark.parametrize("away", [0, 1, 2])
@pytest.mark.parametrize("slow_start", [0.0, 3600.0])
def test_who_was_away_is_not_flooded(
    clock: Clock, algo: str, away: int, slow_start: float
) -> None:
    nodes = nodes_of(1, 1, 1, 1)
    nodes[3].since = clock.now - 1800.0
    group = NodeGroup(nodes, algo, clock, slow_start=slow_start)
    nodes[away].failed(clock, 30.0)
    names(group, 600)
    nodes[away].works()
    counts = Counter(names(group, 40))
    assert 8 <= counts["ABC"[away]] <= 20


# --- slow start -----------------------------------------------------------------------------------

SLOW = ["wrr", "lrc", "wlrc", "p2c"]


def with_newcomer(clock: Clock, algo: str, weight: int = 1) -> NodeGroup:
    nodes = [*nodes_of(1, 1, 1), node(1, weight)]
    group = NodeGroup(nodes[:3], algo, clock, slow_start=60.0)
    names(group, 99)
    nodes[3].since = clock.now
    group.replace(nodes)
    return group


@pytest.mark.parametrize("algo", SLOW)
def test_the_share_of_a_new_node_grows(clock: Clock, algo: str) -> None:
    group = with_newcomer(clock, algo)
    got = []
    for _ in range(7):
        counts = Counter(names(group, 3100))
        got.append(counts["D"])
        others = (3100 - counts["D"]) / 3
        assert [counts[each] for each in "ABC"] == pytest.approx([others] * 3, rel=0.15)
        clock.now += 10.0
    assert 60 <= got[0] <= 110  # 1 : 10 : 10 : 10
    assert got[3] == pytest.approx(3100 / 7, rel=0.2)  # 1 : 2 : 2 : 2
    assert got[6] == pytest.approx(3100 / 4, rel=0.15)
    assert got == sorted(got)


@pytest.mark.parametrize("algo", ["lrc", "wlrc"])
def test_a_new_node_is_held_back_under_load(clock: Clock, algo: str) -> None:
    group = with_newcomer(clock, algo)
    names(group, 310, held=True)
    assert group.nodes[3].active == pytest.approx(10, abs=3)
    clock.now += 60.0
    names(group, 400, held=True)
    assert {each.active for each in group.nodes} <= {177, 178}


@pytest.mark.parametrize("algo", SLOW)
def test_if_all_are_equally_new_nothing_changes(clock: Clock, algo: str) -> None:
    nodes = nodes_of(1, 1, 1)
    for each in nodes:
        each.since = clock.now
    group = NodeGroup(nodes, algo, clock, slow_start=60.0)
    for _ in range(3):
        counts = Counter(names(group, 300))
        assert [counts[each] for each in "ABC"] == pytest.approx([100] * 3, rel=0.3)
        clock.now += 7.0


@pytest.mark.parametrize("algo", SLOW)
def test_a_new_node_alone_or_with_marked_ones_gets_everything(clock: Clock, algo: str) -> None:
    group = with_newcomer(clock, algo)
    for each in group.nodes[:3]:
        each.failed(clock, 30.0)
    assert names(group, 20) == "D" * 20
    assert group.pick(b"", group.nodes[3:]) is None


@pytest.mark.parametrize("algo", SLOW)
def test_slow_start_ends(clock: Clock, algo: str) -> None:
    group = with_newcomer(clock, algo)
    names(group, 50)
    clock.now += 60.0
    counts = Counter(names(group, 400))
    assert [counts[each] for each in "ABCD"] == pytest.approx([100] * 4, rel=0.3)
    if algo == "wrr":
        assert names(group, 4) in "ABCDABCD"  # the plain sequence again


def test_slow_start_looks_again_once_a_second_only(clock: Clock) -> None:
    group = with_newcomer(clock, "wrr")
    names(group, 1)
    group.nodes[0].weight = 100  # shows when the sequence is made anew
    clock.now += 0.9
    assert Counter(names(group, 310))["A"] == 100
    clock.now += 0.1
    assert Counter(names(group, 310))["A"] > 290


@pytest.mark.parametrize("algo", ["wrr-uwsgi", "iphash", "hash"])
def test_other_algorithms_know_no_slow_start(clock: Clock, algo: str) -> None:
    nodes = nodes_of(1, 1)
    nodes[1].since = clock.now
    slow, plain = (NodeGroup(nodes, algo, clock, slow_start=seconds) for seconds in (60.0, 0.0))
    one = [slow.pick(client) for client in CLIENTS[:100]]
    assert one == [plain.pick(client) for client in CLIENTS[:100]]
