"""Picking a node: algorithms, marks, and what is left when every node is marked."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_tools import node, resting_clock

from uwgate.config.settings import Endpoint, NodeSettings
from uwgate.router.balance import Node, NodeGroup, fixed_address, smooth_sequence
from uwgate.router.clock import Clock

CLIENTS = [b"10.0.%d.%d" % (i // 256, i % 256) for i in range(1000)]


@pytest.fixture
def clock() -> Iterator[Clock]:
    with resting_clock() as clock:
        yield clock


# --- smooth weighted round robin ------------------------------------------------------------------


def test_the_smooth_sequence_of_its_inventor() -> None:
    """nginx's own example: weights 5, 1, 1 give a a b a c a a, not a a a a a b c."""
    a, b, c = node(1, 5), node(2), node(3)
    assert smooth_sequence([a, b, c]) == [a, a, b, a, c, a, a]


def test_equal_weights_take_turns() -> None:
    nodes = [node(i) for i in range(3)]
    assert smooth_sequence(nodes) == nodes
    assert smooth_sequence([]) == []


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_every_node_as_often_as_its_weight_and_spread_out(weights: list[int]) -> None:
    nodes = [node(i, weight) for i, weight in enumerate(weights)]
    sequence = smooth_sequence(nodes)
    assert Counter(sequence) == dict(zip(nodes, weights, strict=True))
    total = sum(weights)
    for done in range(total):
        counts = Counter(sequence[:done])
        for each in nodes:  # never further than the others from the share that is due
            assert abs(counts[each] - done * each.weight / total) < len(nodes)


def test_huge_weights_keep_their_ratio_within_bounds() -> None:
    large, small, tiny = node(1, 1_000_000), node(2, 500_000), node(3, 1)
    sequence = smooth_sequence([large, small, tiny])
    counts = Counter(sequence)
    assert len(sequence) <= 4096 + 3
    assert counts[tiny] == 1
    assert counts[large] == pytest.approx(2 * counts[small], rel=0.01)


def test_round_robin_goes_round(clock: Clock) -> None:
    nodes = [node(1, 2), node(2)]
    group = NodeGroup(nodes, "wrr", clock)
    assert [group.pick() for _ in range(6)] == smooth_sequence(nodes) * 2


def test_the_bare_rotation(clock: Clock) -> None:
    nodes = [node(1, 2), node(2)]
    turn = NodeGroup(nodes, "wrr", clock).turns()
    assert turn is not None
    nodes[0].failed(clock, 30.0)
    assert [turn() for _ in range(6)] == smooth_sequence(nodes) * 2  # marks are the caller's affair


@pytest.mark.parametrize("algo", ["lrc", "wlrc", "iphash"])
def test_other_algorithms_have_no_rotation(clock: Clock, algo: str) -> None:
    assert NodeGroup([node(1)], algo, clock).turns() is None
    assert NodeGroup([], "wrr", clock).turns() is None


# --- least connections ----------------------------------------------------------------------------


def test_fewest_requests_under_way(clock: Clock) -> None:
    nodes = [node(i) for i in range(3)]
    group = NodeGroup(nodes, "lrc", clock)
    for each, active in zip(nodes, (2, 1, 3), strict=True):
        each.active = active
    assert {group.pick() for _ in range(5)} == {nodes[1]}
    nodes[1].active = 9
    assert group.pick() is nodes[0]


@pytest.mark.parametrize("algo", ["lrc", "wlrc"])
def test_idle_nodes_take_turns(clock: Clock, algo: str) -> None:
    nodes = [node(i) for i in range(3)]
    group = NodeGroup(nodes, algo, clock)
    assert Counter(group.pick() for _ in range(9)) == dict.fromkeys(nodes, 3)


def test_heavier_nodes_get_more(clock: Clock) -> None:
    heavy, light = node(1, 3), node(2)
    group = NodeGroup([light, heavy], "wlrc", clock)
    for _ in range(8):  # all of them stay under way
        picked = group.pick()
        assert picked is not None
        picked.active += 1
    assert (heavy.active, light.active) == (6, 2)


# --- client address -------------------------------------------------------------------------------


def test_a_client_stays_with_its_node(clock: Clock) -> None:
    nodes = [node(i) for i in range(4)]
    group, again = NodeGroup(nodes, "iphash", clock), NodeGroup(nodes, "iphash", clock)
    chosen = {client: group.pick(client) for client in CLIENTS}
    assert chosen == {client: again.pick(client) for client in reversed(CLIENTS)}
    counts = Counter(chosen.values())
    assert set(counts) == set(nodes)
    assert min(counts.values()) > len(CLIENTS) / 4 / 2


def test_only_the_clients_of_a_dead_node_move(clock: Clock) -> None:
    nodes = [node(i) for i in range(4)]
    group = NodeGroup(nodes, "iphash", clock)
    before = {client: group.pick(client) for client in CLIENTS}
    nodes[2].failed(clock, 30.0)
    for client, was in before.items():
        now = group.pick(client)
        assert now is not nodes[2]
        assert now is was or was is nodes[2]
    clock.now += 30.0
    assert before == {client: group.pick(client) for client in CLIENTS}


def test_weights_count_for_client_addresses_too(clock: Clock) -> None:
    heavy, light = node(1, 4), node(2)
    group = NodeGroup([heavy, light], "iphash", clock)
    counts = Counter(group.pick(client) for client in CLIENTS)
    assert counts[heavy] == pytest.approx(800, rel=0.15)
    assert counts[light] == pytest.approx(200, rel=0.4)


def test_clients_without_an_address(clock: Clock) -> None:
    assert NodeGroup([node(1), node(2)], "iphash", clock).pick(b"") is not None


# --- marks ----------------------------------------------------------------------------------------

ALGORITHMS = ["wrr", "lrc", "wlrc", "iphash"]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_failed_node_is_skipped_for_its_grace_time(clock: Clock, algo: str) -> None:
    bad, good = node(1), node(2)
    group = NodeGroup([bad, good], algo, clock)
    bad.failed(clock, 30.0)
    clock.now += 29.9
    assert {group.pick(client) for client in CLIENTS[:20]} == {good}
    clock.now += 0.1
    assert {group.pick(client) for client in CLIENTS[:20]} == {bad, good}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_nodes_that_were_tried_are_not_picked(clock: Clock, algo: str) -> None:
    nodes = [node(i) for i in range(3)]
    group = NodeGroup(nodes, algo, clock)
    tried: list[Node] = []
    for _ in nodes:
        picked = group.pick(b"1.2.3.4", tried)
        assert picked is not None
        assert picked not in tried
        tried.append(picked)
    assert group.pick(b"1.2.3.4", tried) is None


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_no_node_at_all(clock: Clock, algo: str) -> None:
    assert NodeGroup([], algo, clock).pick(b"1.2.3.4") is None
    assert NodeGroup([], algo, clock).last_resort() is None


def test_a_failure_is_noted_and_a_success_forgets_it(clock: Clock) -> None:
    each = node(1)
    each.works()
    assert each.alive(clock.now)
    each.requests = 3
    before = int(time.time())
    each.failed(clock, 30.0)
    assert not each.alive(clock.now)
    assert before <= each.grace <= time.time()
    assert each.snapshot()["failures"] == 1
    assert each.snapshot()["hits"] == 2
    each.works()
    assert each.alive(clock.now)
    assert each.snapshot()["grace"] == 0
    assert each.snapshot()["failures"] == 1


def test_the_name_of_a_failed_node_is_looked_up_again(clock: Clock) -> None:
    named = Node(NodeSettings(Endpoint("tcp", "app:80", host="app", port=80)))
    assert len(named.addresses) == 0
    named.addresses = ((socket.AF_INET, ("127.0.0.1", 80)),)
    named.failed(clock, 30.0)
    assert len(named.addresses) == 0
    literal = node(80)
    literal.failed(clock, 30.0)
    assert literal.addresses == ((socket.AF_INET, ("127.0.0.1", 80)),)


def test_last_resort(clock: Clock) -> None:
    first, second = node(1), node(2)
    group = NodeGroup([first, second], "wrr", clock)
    first.failed(clock, 30.0)
    clock.now += 0.5
    second.failed(clock, 30.0)
    assert group.pick() is None
    assert group.last_resort() is None  # both failed less than a second ago
    clock.now += 0.5
    assert group.last_resort() is first
    assert group.last_resort() is None  # at most once a second
    clock.now += 0.5
    assert group.last_resort([second]) is None
    assert group.last_resort() is second
    clock.now += 5.0
    assert group.last_resort([first]) is second
    assert group.last_resort() is first


# --- addresses and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "addresses"),
    [
        (
            Endpoint("tcp", "", host="10.0.0.1", port=80),
            ((socket.AF_INET, ("10.0.0.1", 80)),),
        ),
        (
            Endpoint("tcp", "", host="::1", port=80),
            ((socket.AF_INET6, ("::1", 80, 0, 0)),),
        ),
        (Endpoint("tcp", "", port=80), ((socket.AF_INET, ("127.0.0.1", 80)),)),
        (Endpoint("tcp", "", host="localhost", port=80), ()),
        (Endpoint("unix", "", path="/run/a.sock"), ((socket.AF_UNIX, "/run/a.sock"),)),
        (Endpoint("abstract", "", path="app"), ((socket.AF_UNIX, b"\0app\0"),)),
    ],
)
def test_addresses_that_need_no_look_up(endpoint: Endpoint, addresses: object) -> None:
    assert fixed_address(endpoint) == addresses


def test_the_snapshot_of_a_node() -> None:
    endpoint = Endpoint("unix", "/run/a.sock", path="/run/a.sock")
    each = Node(NodeSettings(endpoint, modifier1=5, modifier2=6, weight=7), fallback=True)
    each.requests, each.failures, each.active, each.tx, each.rx = 10, 3, 2, 100, 200
    assert each.snapshot() == {
        "name": "/run/a.sock",
        "protocol": "uwsgi",
        "hits": 7,
        "grace": 0,
        "active": 2,
        "requests": 10,
        "failures": 3,
        "tx": 100,
        "rx": 200,
        "idle": 0,
        "weight": 7,
        "modifier1": 5,
        "modifier2": 6,
        "fallback": 1,
    }
