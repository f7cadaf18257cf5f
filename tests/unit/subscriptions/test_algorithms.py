"""The picking functions: uWSGI's published orders, and what must hold for any weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from random import Random, seed
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.subscriptions.algorithms import (
    FAILING,
    FULL,
    LEAST,
    WHOLE,
    WINDOW,
    Ring,
    Rotation,
    address_number,
    better,
    by_address,
    least_connections,
    share_of,
    spread,
    two_choices,
    uwsgi_round_robin,
)

WEIGHTS = st.lists(st.integers(1, 30), min_size=1, max_size=6)
NOW = 1000.0


@dataclass(slots=True, eq=False)
class Item:
    """A node as the algorithms see it."""

    name: str
    weight: int = 1
    dead_until: float = 0.0
    active: int = 0
    failing: int = 0
    last_requests: int = 0
    credits: int = 0
    latency: float = 0.0
    passed: int = 0


def items(*weights: int) -> list[Item]:
    """A, B, C… with these weights."""
    return [Item(chr(65 + i), weight) for i, weight in enumerate(weights)]


def names(picked: Sequence[Item | None]) -> str:
    return "".join(item.name if item is not None else "-" for item in picked)


def picks(choose: Callable[[], Item | None], count: int, *, held: bool = False) -> str:
    """What is picked ``count`` times; ``held``: no request ever ends."""
    picked = []
    for _ in range(count):
        item = choose()
        if held and item is not None:
            item.active += 1
        picked.append(item)
    return names(picked)


# --- uWSGI's orders, as they were seen ------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "order"),
    [
        ((1, 1), "BABABA"),
        ((3, 1), "BAAABAAA"),
        ((4, 3, 2), "CAABCAAB"),
        ((1, 1, 2), "CABCCABC"),
    ],
)
def test_uwsgi_round_robin(weights: tuple[int, ...], order: str) -> None:
    nodes = items(*weights)
    assert picks(lambda: uwsgi_round_robin(nodes, nodes, NOW, ()), len(order)) == order


def test_uwsgi_round_robin_who_comes_later_joins_at_the_next_round() -> None:
    nodes = items(3, 1)

    def choose() -> Item | None:
        return uwsgi_round_robin(nodes, nodes, NOW, ())

    assert picks(choose, 2) == "BA"
    nodes.append(Item("C"))
    assert picks(choose, 2) == "AA"
    assert picks(choose, 5) == "CAAAB"


def test_uwsgi_round_robin_counts_the_smallest_weight_of_all_levels() -> None:
    main, spare = items(6, 4), Item("S", 2)
    nodes = main
    assert picks(lambda: uwsgi_round_robin(nodes, [*main, spare], NOW, ()), 5) == "BAAAB"
    spare.dead_until = NOW + 1
    for each in main:
        each.credits = 0
    assert picks(lambda: uwsgi_round_robin(nodes, [*main, spare], NOW, ()), 4) == "BABA"


@pytest.mark.parametrize(
    ("weighted", "weights", "held", "order"),
    [
        (False, (1, 1, 1), False, "CBACBACBA"),
        (False, (1, 1, 1), True, "CBAABCABC"),
        (True, (1, 1, 1), False, "CBACBA"),
        (True, (3, 1, 1), False, "CBACBA"),
        (True, (3, 1, 1), True, "CBAAAABCAA"),
    ],
)
def test_least_connections(
    weighted: bool, weights: tuple[int, ...], held: bool, order: str
) -> None:
    nodes = items(*weights)
    picked = picks(
        lambda: least_connections(nodes, NOW, (), weighted=weighted), len(order), held=held
    )
    assert picked == order


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
def test_least_connections_is_what_uwsgi_does(counts: list[tuple[int, int]]) -> None:
    """Beside the walk as the specification tells it, with its look at the next node."""
    nodes = items(*[1] * len(counts))
    for node, (active, served) in zip(nodes, counts, strict=True):
        node.active, node.last_requests = active, served
    best, least = nodes[0], 0
    for i, node in enumerate(nodes):
        if least == 0 or node.active < least:
            best, least = node, node.active
            after = nodes[i + 1] if i + 1 < len(nodes) else None
            if least == 0 and not (
                after is not None
                and after.active <= node.active
                and after.last_requests <= node.last_requests
            ):
                break
    assert least_connections(nodes, NOW, (), weighted=False) is best
    assert best.active == min(node.active for node in nodes)


def test_an_idle_node_before_a_marked_one_is_not_passed_over() -> None:
    idle, marked, busy = items(1, 1, 1)
    marked.dead_until = NOW + 1
    busy.active = 5
    assert least_connections([idle, marked, busy], NOW, (), weighted=False) is idle


def test_by_address() -> None:
    nodes = items(1, 1, 1)
    picked = [by_address(nodes, b"127.0.0.%d" % i, NOW, ()) for i in (1, 2, 3)]
    assert names(picked) == "CAB"


@pytest.mark.parametrize(
    ("address", "number"),
    [
        (b"1.2.3.4", 1 + 2 * 256 + 3 * 65536 + 4 * 16777216),
        (b"255.255.255.255", 0xFFFFFFFF),
        (b"", 0),
        (b"unix", 0),
        (b"1.2.3", 0),
        (b"1.2.3.4.5", 0),
        (b"\xff", 0),
        (b"1.2.3.4\0", 0),
        (b":", 0),
    ],
)
def test_number_of_an_address(address: bytes, number: int) -> None:
    assert address_number(address) == number


def test_number_of_an_ipv6_address() -> None:
    number = 5381
    for byte in [0] * 15 + [1]:
        number = (number * 33 ^ byte) % 2**32
    assert address_number(b"::1") == number
    assert address_number(b"0:0:0:0:0:0:0:1%eth0") == number


# --- smooth weighted round robin ------------------------------------------------------------------


def test_weights_interleave() -> None:
    rotation = Rotation(items(4, 3, 2), (4, 3, 2))
    assert picks(rotation.advance, 18) == "ABCABACBA" * 2
    assert picks(Rotation(items(5, 1, 1), (5, 1, 1)).advance, 7) == "ABAAACA"


@given(st.integers(1, 40), st.integers(1, 10**6))
def test_equal_weights_take_turns_in_order(count: int, weight: int) -> None:
    nodes = items(*[weight] * count)
    assert Rotation(nodes, [weight] * count).turns == nodes


@given(WEIGHTS, st.floats(0, 1))
def test_each_as_often_as_its_weight(weights: list[int], phase: float) -> None:
    nodes = items(*weights)
    divisor = math.gcd(*weights)
    total = sum(weights) // divisor
    turns = spread(nodes, weights, phase)
    list(islice(turns, sum(islice_rest(weights, phase))))
    for _ in range(2):  # behind the rest of the first round: whole rounds, all alike
        counts = Counter(islice(turns, total))
        assert counts == {node: node.weight // divisor for node in nodes}


def islice_rest(weights: list[int], phase: float) -> list[int]:
    """How many turns of each class are left in a round of which ``phase`` has passed."""
    divisor = math.gcd(*weights)
    shares = [w // divisor * count for w, count in Counter(weights).items()]
    return [share - min(share, max(0, math.ceil(share * phase - 0.5))) for share in shares]


@given(WEIGHTS)
def test_spread_out(weights: list[int]) -> None:
    """Between two turns of a node are at most its due, and one for each other weight."""
    nodes = items(*weights)
    rotation = Rotation(nodes, weights)
    turns = [rotation.advance() for _ in range(2 * rotation.total)]
    for node in nodes:
        at = [i for i, turn in enumerate(turns) if turn is node]
        gap = max(b - a for a, b in pairwise(at))
        due = sum(weights) / node.weight
        assert gap <= math.ceil(due) + len(set(weights))
        for count, i in enumerate(at):  # never far from its share, neither way
            assert abs(count - i / due) <= 1 + len(set(weights)) / 2


@given(WEIGHTS, st.integers(2, 10**4))
def test_a_common_factor_changes_nothing(weights: list[int], factor: int) -> None:
    nodes = items(*weights)
    more = [weight * factor for weight in weights]
    assert Rotation(nodes, weights).turns == Rotation(nodes, more).turns


def test_a_long_round_is_made_as_it_goes_and_is_exact() -> None:
    weights = (WHOLE, 3000, 7)
    nodes = items(*weights)
    rotation = Rotation(nodes, weights)
    assert len(rotation.turns) == WINDOW
    expected = list(islice(spread(nodes, weights), 2 * rotation.total))
    assert [rotation.advance() for _ in expected] == expected
    assert Counter(expected) == {node: 2 * node.weight for node in nodes}


@pytest.mark.parametrize("weights", [[5, 3, 1], [500, 30, 1], [1, 1, 1]])
def test_the_place_is_kept(weights: list[int]) -> None:
    """Made anew with the same nodes at any moment, the order is the same."""
    nodes = items(*weights)
    expected = picks(Rotation(nodes, weights).advance, 600)
    rotation, seen = Rotation(nodes, weights), ""
    for count in (1, 2, 1, 5, 1, 90, 500):
        seen += picks(rotation.advance, count)
        rotation = Rotation(nodes, weights, rotation)
    assert seen == expected


def test_the_place_in_a_long_round_is_kept_nearly() -> None:
    weights = [5000, 3000, 11]
    nodes = items(*weights)
    rotation = Rotation(nodes, weights)
    counts: Counter[Item] = Counter()
    for _ in range(rotation.total // 90):
        counts.update(rotation.advance() for _ in range(90))
        rotation = Rotation(nodes, weights, rotation)
    for node in nodes:
        assert counts[node] == pytest.approx(node.weight, rel=0.02, abs=3)


def test_the_next_one_stays_the_next_one() -> None:
    a, b, c, d = items(1, 1, 1, 1)
    rotation = Rotation([a, b, c], (1, 1, 1))
    assert rotation.advance() is a
    rotation = Rotation([d, a, b, c], (1, 1, 1, 1), rotation)
    assert rotation.advance() is b
    rotation = Rotation([d, a, b], (1, 1, 1), rotation)  # it would have been c's turn
    assert picks(rotation.advance, 3) == "DAB"
    assert picks(Rotation([c], (1,), rotation).advance, 2) == "CC"


@pytest.mark.parametrize("weights", [(1, 1, 1), (9, 3, 1), (16, 57, 9, 53, 1, 4)])
def test_changes_starve_nobody(weights: tuple[int, ...]) -> None:
    """Who stays keeps about its share although others come and go between turns."""
    nodes = items(*weights)
    random = Random(1)
    rotation = Rotation(nodes, weights)
    counts: Counter[Item] = Counter()
    for _ in range(20 * sum(weights)):
        counts[rotation.advance()] += 1
        if random.random() < 0.5:
            visitors = [Item("v", random.randint(1, 4)) for _ in range(random.randint(0, 2))]
            present = random.sample(visitors + nodes, len(visitors) + len(nodes))
            rotation = Rotation(present, [item.weight for item in present], rotation)
    for node in nodes:
        assert counts[node] > 20 * node.weight / 3


@pytest.mark.parametrize(
    "weights",
    [
        [1] * 10_000,
        [1 + i % 10 for i in range(10_000)],
        list(range(1, 10_001)),
        [1_000_000 - i for i in range(10_000)],
    ],
    ids=["equal", "ten weights", "all different", "large"],
)
def test_many_nodes_cost_little(weights: list[int]) -> None:
    """A sequence of n times total steps would take minutes or all memory."""
    nodes = items(*weights)
    began = process_time()
    rotation = Rotation(nodes, weights)
    for _ in range(1000):
        rotation.advance()
    assert process_time() - began < 1.0
    assert len(rotation.turns) <= max(len(nodes), WHOLE)


# --- power of two choices -------------------------------------------------------------------------


def test_better_is_less_busy_faster_or_heavier() -> None:
    a, b = items(1, 1)
    a.latency = b.latency = 0.01
    a.active = 1
    assert better(a, b) is b
    a.weight = 3
    assert better(a, b) is a
    a.latency = 0.04
    assert better(a, b) is b


def test_a_node_of_unknown_latency_is_an_average_one() -> None:
    known, fresh = items(1, 1)
    for known.latency in (0.001, 10.0):
        known.active, fresh.active = 1, 0
        assert better(known, fresh) is fresh
        known.active, fresh.active = 0, 1
        assert better(known, fresh) is known


def test_who_fails_fast_does_not_draw_traffic() -> None:
    good, bad = items(1, 1)
    good.latency, bad.latency = 0.05, 0.001
    bad.failing = FAILING
    won = Counter(better(*pair) for pair in [(good, bad), (bad, good)] * 500)
    assert 0 < won[bad] < 10  # asked again now and then
    bad.failing = 0
    assert better(good, bad) is bad


def test_who_was_slow_once_is_asked_again() -> None:
    usual, slow = items(1, 1)
    usual.latency, slow.latency = 0.01, 5.0
    lost = 0
    while better(usual, slow) is usual:
        lost += 1
        usual.active = 1  # so that equals would be preferred
        assert lost < 1000
    assert lost > 64
    assert usual.latency <= slow.latency < 2 * usual.latency
    assert slow.passed == 0


def test_two_different_nodes_are_compared() -> None:
    seed(1)
    idle, *others = items(1, 1, 1)
    for each in others:
        each.active = 9
    won = Counter(two_choices([idle, *others], NOW, ()) for _ in range(3000))
    assert won[idle] == pytest.approx(2000, rel=0.1)  # whenever it takes part
    assert set(won) == {idle, *others}
    assert two_choices([idle], NOW, ()) is idle


# --- consistent hashing ---------------------------------------------------------------------------

TOKENS = [b"/item/%d" % i for i in range(2000)]
NAMES = st.lists(st.integers(0, 10**6), min_size=2, max_size=8, unique=True)


def ring_of(nodes: Sequence[Item]) -> Ring[Item]:
    ring: Ring[Item] = Ring()
    ring.update(nodes)
    return ring


def owners(ring: Ring[Item], tried: Sequence[Item] = ()) -> list[Item | None]:
    return [ring.pick(token, NOW, tried) for token in TOKENS[:300]]


def test_places_are_fixed() -> None:
    """Machines of different versions have to agree: this must never change."""
    nodes = [Item(f"10.0.0.{i}:3031") for i in range(3)]
    ring = ring_of(nodes)
    picked = [ring.pick(token, NOW, ()) for token in (b"/", b"/a", b"/b", b"/c", b"/d", b"")]
    assert "".join(str(nodes.index(each)) for each in picked if each is not None) == "110010"


def test_shares_of_a_ring() -> None:
    nodes = [Item("one", 4), Item("two", 2), Item("three", 1), Item("four", 1)]
    won = Counter(ring_of(nodes).pick(token, NOW, ()) for token in TOKENS)
    for node in nodes:
        assert won[node] == pytest.approx(len(TOKENS) * node.weight / 8, rel=0.35)


@given(NAMES)
def test_the_order_of_arrival_does_not_matter(numbers: list[int]) -> None:
    nodes = [Item(f"node{number}", 1 + number % 3) for number in numbers]
    grown: Ring[Item] = Ring()
    for count in range(1, len(nodes) + 1):
        grown.update(nodes[:count][::-1])
    assert owners(grown) == owners(ring_of(nodes))


@given(NAMES)
def test_only_the_tokens_of_who_leaves_move(numbers: list[int]) -> None:
    nodes = [Item(f"node{number}", 1 + number % 3) for number in numbers]
    ring = ring_of(nodes)
    gone, before = nodes[0], owners(ring)
    without = owners(ring, [gone])
    ring.update(nodes[1:])
    after = owners(ring)
    assert after == without  # walked over is the same as not there
    for was, now in zip(before, after, strict=True):
        assert was is gone or now is was
        assert now is not gone
    ring.update(nodes)
    assert owners(ring) == before


def test_a_new_weight_moves_only_the_difference() -> None:
    nodes = [Item(f"n{i}", 2) for i in range(4)]
    ring = ring_of(nodes)
    before = owners(ring)
    nodes[0].weight = 3
    ring.update(nodes)
    after = owners(ring)
    moved = [now for was, now in zip(before, after, strict=True) if now is not was]
    assert set(moved) == {nodes[0]}
    assert len(moved) < 60
    nodes[0].weight = 2
    ring.update(nodes)
    assert owners(ring) == before


def test_two_nodes_of_one_name() -> None:
    twins = [Item("same"), Item("same")]
    ring = ring_of(twins)
    assert set(owners(ring)) == set(twins)
    assert set(owners(ring, twins[:1])) == {twins[1]}


def test_a_ring_is_bounded() -> None:
    weights = (1_000_000, 500_000, 1)
    nodes = items(*weights)
    won = Counter(owners(ring_of(nodes)))
    assert won[nodes[0]] == pytest.approx(2 * won[nodes[1]], rel=0.25)
    few = [Item(f"n{i}") for i in range(500)]  # 128 points each
    many = [Item(f"n{i}") for i in range(600)]  # 64 points each
    pairs = zip(owners(ring_of(few)), owners(ring_of(many)), strict=True)
    same = [a.name == b.name for a, b in pairs if a is not None and b is not None]
    assert sum(same) > 100  # of 300: the smaller set of points is part of the larger one


def test_many_nodes_on_a_ring_that_come_and_go() -> None:
    nodes = [Item(f"10.0.{i // 256}.{i % 256}:3031") for i in range(10_000)]
    began = process_time()
    ring = ring_of(nodes)
    for i in range(10):
        ring.update(nodes[i:])
        assert ring.pick(b"/%d" % i, NOW, ()) in nodes[i:]
    assert process_time() - began < 12.0
    for node in nodes:
        node.dead_until = NOW + 1
    nodes[-1].dead_until = 0.0
    assert ring.pick(b"/", NOW, ()) is nodes[-1]
    nodes[-1].dead_until = NOW + 1
    assert ring.pick(b"/", NOW, ()) is None


# --- slow start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "share"),
    [
        (0.0, FULL),
        (NOW, LEAST),
        (NOW + 1.0, LEAST),  # not yet
        (NOW - 6.0, LEAST),
        (NOW - 30.0, FULL // 2),
        (NOW - 59.9, FULL - 1),
        (NOW - 60.0, FULL),
    ],
)
def test_share_of_a_new_node(since: float, share: int) -> None:
    assert share_of(since, NOW, 60.0) == share
