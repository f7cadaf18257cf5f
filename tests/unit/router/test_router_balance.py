"""Picking a node: algorithms, marks, and what is left when every node is marked."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

import pytest
from balance_tools import CLIENTS, names, nodes_of, spare
from hypothesis import given
from hypothesis import strategies as st
from router_tools import node, resting_clock

from uwgate.config.settings import Algo, Endpoint, NodeSettings
from uwgate.router.balance import Node, NodeGroup, fixed_address
from uwgate.router.clock import Clock
from uwgate.subscriptions.algorithms import FAILING


@pytest.fixture
def clock() -> Iterator[Clock]:
    random.seed(1)  # p2c
    with resting_clock() as clock:
        yield clock


# --- round robin ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "weights", "held", "order"),
    [
        ("wrr", (1, 1, 1), False, "ABCABC"),
        ("wrr", (4, 3, 2), False, "ABCABACBA" * 2),
        ("unheard-of", (2, 1), False, "ABAABA"),
        ("wrr-uwsgi", (1, 1), False, "BABABA"),
        ("wrr-uwsgi", (3, 1), False, "BAAABAAA"),
        ("wrr-uwsgi", (4, 3, 2), False, "CAABCAAB"),
        ("wrr-uwsgi", (1, 1, 2), False, "CABCCABC"),
        ("lrc", (1, 1, 1), False, "CBACBA"),
        ("lrc", (1, 1, 1), True, "CBAABCABC"),
        ("wlrc", (1, 1, 1), False, "CBACBA"),
        ("wlrc", (3, 1, 1), True, "CBAAAABCAA"),
    ],
)
def test_orders(
    clock: Clock, algo: str, weights: tuple[int, ...], held: bool, order: str
) -> None:
    group = NodeGroup(nodes_of(*weights), algo, clock)
    assert names(group, len(order), held=held) == order


def test_iphash(clock: Clock) -> None:
    group = NodeGroup(nodes_of(5, 1, 1), "iphash", clock)
    picked = [names(group, 2, token=b"127.0.0.%d" % i) for i in (1, 2, 3)]
    assert picked == ["CC", "AA", "BB"]
    group.nodes[0].failed(clock, 30.0)  # modulo two of them now
    assert [names(group, 1, token=b"127.0.0.%d" % i) for i in (1, 2, 3)] == ["C"] * 3
    assert names(group, 1, token=b"10.0.0.1") == "B"


WEIGHTS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@given(WEIGHTS)
def test_the_fast_way_gives_what_the_general_one_does(weights: list[int]) -> None:
    with resting_clock() as clock:
        group, other = (NodeGroup(nodes_of(*weights), "wrr", clock) for _ in range(2))
        stranger = node(1)  # was tried: keeps to the general way
        turn = group.turns()
        assert turn is not None
        for _ in range(2 * sum(weights)):
            quick, general = group.pick(), other.pick(b"", (stranger,))
            assert quick is not None
            assert general is not None
            assert quick.name == general.name == turn().name


def test_a_long_round_the_fast_way(clock: Clock) -> None:
    nodes = nodes_of(5000, 3000, 1)
    group = NodeGroup(nodes, "wrr", clock)
    turn = group.turns()
    assert turn is not None
    for _ in range(8001):
        each = group.pick()
        assert each is turn()
        assert each is not None
        each.requests += 1
    assert [each.requests for each in nodes] == [5000, 3000, 1]


def test_the_bare_rotation(clock: Clock) -> None:
    nodes = nodes_of(2, 1)
    turn = NodeGroup(nodes, "wrr", clock).turns()
    assert turn is not None
    nodes[0].failed(clock, 30.0)
    a, b = nodes
    assert [turn() for _ in range(6)] == [a, b, a] * 2  # marks are the caller's affair


@pytest.mark.parametrize("algo", ["wrr-uwsgi", "lrc", "wlrc", "iphash", "p2c", "hash"])
def test_other_algorithms_have_no_rotation(clock: Clock, algo: str) -> None:
    assert NodeGroup([node(1)], algo, clock).turns() is None


def test_groups_without_a_bare_rotation(clock: Clock) -> None:
    assert NodeGroup([], "wrr", clock).turns() is None
    assert NodeGroup([node(1)], "wrr", clock, slow_start=10.0).turns() is None
    assert NodeGroup([node(1), spare(2)], "wrr", clock).turns() is None
    assert NodeGroup([spare(1), spare(2)], "wrr", clock).turns() is not None


def test_turns_of_marked_nodes_are_shared_out(clock: Clock) -> None:
    nodes = nodes_of(1, 1, 1)
    group = NodeGroup(nodes, "wrr", clock)
    nodes[0].failed(clock, 30.0)
    assert names(group, 6) == "BCBCBC"


def test_a_living_node_is_found_among_many_dead(clock: Clock) -> None:
    nodes = [node(i, 1 + i % 7) for i in range(1, 3000)]
    group = NodeGroup(nodes, "wrr", clock)
    for each in nodes[:-1]:
        each.failed(clock, 30.0)
    assert group.pick() is nodes[-1]
    assert group.pick(b"", nodes[-1:]) is None


# --- least connections, p2c -----------------------------------------------------------------------


def test_fewest_requests_under_way(clock: Clock) -> None:
    nodes = [node(i) for i in range(3)]
    group = NodeGroup(nodes, "lrc", clock)
    for each, active in zip(nodes, (2, 1, 3), strict=True):
        each.active = active
    assert {group.pick() for _ in range(5)} == {nodes[1]}
    nodes[1].active = 9
    assert group.pick() is nodes[0]


def test_heavier_nodes_get_more(clock: Clock) -> None:
    light, heavy = nodes_of(1, 3)
    group = NodeGroup([light, heavy], "wlrc", clock)
    names(group, 8, held=True)
    assert (heavy.active, light.active) == (6, 2)


def test_p2c_shares_out_evenly_and_by_weight(clock: Clock) -> None:
    nodes = nodes_of(1, 1, 2)
    group = NodeGroup(nodes, "p2c", clock)
    names(group, 400, held=True)
    assert [each.active for each in nodes] == pytest.approx([100, 100, 200], rel=0.1)


def serve(group: NodeGroup, latencies: Sequence[float], count: int) -> list[int]:
    """Requests each node gets, one every 10 ms, if it needs so many seconds for each; a negative
    one is the time after which it fails."""
    nodes = group.nodes
    won = [0] * len(nodes)
    ends: list[tuple[float, int]] = []
    for step in range(count):
        now = step / 100
        for end in sorted(end for end in ends if end[0] <= now):
            ends.remove(end)
            each, seconds = nodes[end[1]], latencies[end[1]]
            each.active -= 1
            if seconds < 0:
                each.note_error("node-empty")
            else:
                each.note_latency(seconds)
        picked = group.pick()
        assert picked is not None
        index = nodes.index(picked)
        won[index] += 1
        picked.active += 1
        ends.append((now + abs(latencies[index]), index))
    for _, index in ends:
        nodes[index].active -= 1
    return won


def test_p2c_prefers_the_faster_node_and_finds_out_when_that_changes(clock: Clock) -> None:
    group = NodeGroup(nodes_of(1, 1, 1), "p2c", clock)
    won = serve(group, [0.02, 0.02, 0.5], 2000)
    assert won[0] == pytest.approx(won[1], rel=0.2)
    assert 5 < won[2] < 200
    won = serve(group, [0.02, 0.02, 0.02], 4000)
    assert won[2] > 500


def test_p2c_does_not_send_everything_to_who_fails_at_once(clock: Clock) -> None:
    group = NodeGroup(nodes_of(1, 1, 1), "p2c", clock)
    won = serve(group, [0.02, 0.02, -0.001], 3000)
    assert won[2] < 100
    assert group.nodes[2].errors == {"node-empty": won[2]}
    won = serve(group, [0.02, 0.02, 0.02], 4000)  # it works again
    assert won[2] > 500


def test_p2c_neither_floods_nor_starves_a_new_node(clock: Clock) -> None:
    nodes = nodes_of(1, 1, 1)
    group = NodeGroup(nodes[:2], "p2c", clock)
    serve(group, [0.05, 0.05], 500)
    group.replace(nodes)
    won = serve(group, [0.05, 0.05, 0.05], 300)
    assert 60 < won[2] < 140


# --- consistent hashing ---------------------------------------------------------------------------


def test_a_token_stays_with_its_node(clock: Clock) -> None:
    nodes = [node(i) for i in range(4)]
    group, again = NodeGroup(nodes, "hash", clock), NodeGroup(nodes[::-1], "hash", clock)
    chosen = {client: group.pick(client) for client in CLIENTS}
    assert chosen == {client: again.pick(client) for client in reversed(CLIENTS)}
    counts = Counter(chosen.values())
    assert set(counts) == set(nodes)
    assert min(counts.values()) > len(CLIENTS) / 4 / 2


def test_only_the_tokens_of_a_dead_node_move(clock: Clock) -> None:
    nodes = [node(i) for i in range(4)]
    group = NodeGroup(nodes, "hash", clock)
    before = {client: group.pick(client) for client in CLIENTS}
    nodes[2].failed(clock, 30.0)
    for client, was in before.items():
        now = group.pick(client)
        assert now is not nodes[2]
        assert now is was or was is nodes[2]
    clock.now += 30.0
    assert before == {client: group.pick(client) for client in CLIENTS}
    group.replace(nodes[:3])
    for client, was in before.items():
        assert group.pick(client) is was or was is nodes[3]
    nodes[0].weight = 3
    group.reweigh()
    assert {group.pick(c) for c, was in before.items() if was is nodes[0]} == {nodes[0]}


def test_requests_without_a_token_take_turns(clock: Clock) -> None:
    nodes = nodes_of(2, 1)
    group = NodeGroup(nodes, "hash", clock)
    assert names(group, 6) == "ABAABA"
    assert group.pick(b"x") is not None
    group.replace([*nodes, node(1)])
    assert Counter(names(group, 40)) == {"A": 20, "B": 10, "C": 10}


# --- backup levels --------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["wrr", "wrr-uwsgi", "lrc", "wlrc", "p2c", "hash"])
def test_only_the_lowest_level_with_a_living_node_is_used(clock: Clock, algo: str) -> None:
    last, second, *first = [spare(1, 7), spare(2, 3), node(3), node(4)]
    group = NodeGroup([last, *first, second], algo, clock)

    def used() -> set[Node | None]:
        return {group.pick(client) for client in CLIENTS[:60]}

    assert used() == set(first)
    first[0].failed(clock, 30.0)
    assert used() == {first[1]}
    assert group.pick(b"1.2.3.4", first[1:]) is second
    first[1].failed(clock, 20.0)
    assert used() == {second}
    second.failed(clock, 30.0)
    assert used() == {last}
    clock.now += 20.0
    assert used() == {first[1]}
    last.backup = 0
    group.reweigh()
    assert used() == {first[1], last}


def test_iphash_does_not_look_at_levels(clock: Clock) -> None:
    group = NodeGroup([spare(1, 9), node(2)], "iphash", clock)
    assert {group.pick(client) for client in CLIENTS[:20]} == set(group.nodes)


# --- marks ----------------------------------------------------------------------------------------

ALGORITHMS = get_args(Algo)


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


@given(
    st.sampled_from(ALGORITHMS),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), max_size=6),
    st.data(),
)
def test_never_a_marked_or_tried_node(
    algo: str, kinds: list[tuple[int, int]], data: st.DataObject
) -> None:
    with resting_clock() as clock:
        nodes = []
        for i, (weight, backup) in enumerate(kinds):
            nodes.append(spare(9000 + i, backup))
            nodes[-1].weight = weight
            nodes[-1].since = data.draw(st.sampled_from((0.0, clock.now, clock.now - 5.0)))
        group = NodeGroup(nodes, algo, clock, slow_start=data.draw(st.sampled_from((0.0, 10.0))))
        flags = st.lists(st.booleans(), min_size=len(nodes), max_size=len(nodes))
        for token in CLIENTS[:8]:
            marks, tries = data.draw(flags), data.draw(flags)
            for each, marked in zip(nodes, marks, strict=True):
                each.dead_until = clock.now + 1.0 if marked else 0.0
            tried = [each for each, was in zip(nodes, tries, strict=True) if was]
            usable = [each for each in nodes if each.alive(clock.now) and each not in tried]
            picked = group.pick(token, tried)
            if not usable:
                assert picked is None
                continue
            assert picked in usable
            if algo != "iphash":
                assert picked.backup == min(each.backup for each in usable)
            clock.now += 0.5


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


def test_errors_and_latency_of_a_node() -> None:
    each = node(1)
    assert each.errors is None
    each.note_error("node-empty")
    each.note_error("node-timeout")
    each.note_error("node-empty")
    assert each.failing == 3
    each.note_latency(0.008)
    assert (each.failing, each.latency) == (0, 0.008)
    each.note_latency(0.016)
    assert each.latency == pytest.approx(0.009)
    shown = each.snapshot()
    assert shown["latency"] == 9000
    assert shown["errors"] == {"node-empty": 2, "node-timeout": 1}
    for _ in range(100):
        each.note_error("node-empty")
    assert each.failing == FAILING


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
    each = Node(NodeSettings(endpoint, modifier1=5, modifier2=6, weight=7, backup=2), fallback=True)
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
        "backup": 2,
        "latency": 0,
        "errors": {},
        "credits": 0,
        "last_requests": 0,
        "modifier1": 5,
        "modifier2": 6,
        "fallback": 1,
    }
