"""How one of several nodes is picked: pure data and functions, no socket and no clock of their own.

``now`` is clock time in seconds. A node is *usable* if its ``dead_until`` is not in the future and
it is not among ``tried``; all functions here pick usable nodes only, and return None without one.
The order of ``nodes`` is that of their arrival.

=========  ========================================================================================
wrr        ``Rotation``: smooth weighted round robin
wrr-uwsgi  ``uwsgi_round_robin``: uWSGI's own order
lrc, wlrc  ``least_connections``: fewest requests under way (uWSGI), ``ramped_connections`` while
           somebody is new
iphash     ``by_address``: uWSGI 2.1's choice by client address
p2c        ``two_choices``: the better of two
hash       ``Ring``: consistent hashing
=========  ========================================================================================
"""

from __future__ import annotations

import heapq
import math
import socket
import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b, shake_128
from itertools import islice
from random import random, sample
from typing import Generic, Protocol, TypeVar, get_args

from uwgate.config.settings import Algo

ALGORITHMS: tuple[str, ...] = get_args(Algo)
WHOLE = 4096  # turns of a round that is kept whole; longer ones are made as they go
WINDOW = 512  # turns made at a time then
FULL = 20  # share of a node that is not new: shares are counted in twentieths
LEAST = 2  # share of a node that has just come
FAILING = 8  # failures in a row that still make a difference
_BEHIND = 4  # requests that lrc and wlrc let a node catch up
_POINTS = 128  # on the ring per unit of weight
_MOST_POINTS = 1 << 16  # of a whole ring, and at least 16 for each of its nodes
_AGING = 64  # comparisons lost after which the latency of a node counts half
_HESITATION = 16  # turns, or points of a ring, before one asks whether there is any usable node


class Candidate(Protocol):
    """What the algorithms look at, and ``last_requests`` to ``passed`` what they change.

    ``weight`` >= 1. ``active``: requests under way (uWSGI's ``ref``). ``latency``: seconds, 0 =
    unknown. ``failing``: failures in a row. ``last_requests``, ``credits``: uWSGI's counters.
    ``passed``: comparisons of p2c lost since the node was last picked.
    """

    name: str
    weight: int
    dead_until: float
    active: int
    failing: int
    last_requests: int
    credits: int
    latency: float
    passed: int


N = TypeVar("N", bound=Candidate)


def usable_nodes(nodes: Sequence[N], now: float, tried: Sequence[N]) -> list[N]:
    """Those that are neither marked nor tried."""
    if not tried:
        return [node for node in nodes if node.dead_until <= now]
    return [node for node in nodes if node.dead_until <= now and node not in tried]


# --- wrr ------------------------------------------------------------------------------------------


def spread(nodes: Sequence[N], weights: Sequence[int], phase: float = 0.0) -> Iterator[N]:
    """Endless turns: ``weights[i]`` for ``nodes[i]`` in each round, spread out evenly.

    A round's length is the sum of the weights after division by their greatest common divisor.
    ``phase`` (0 to 1): how much of the first round is left out, to within a turn of each class.

    Nodes of equal weight share the turns of their class in order; turn k (from 0) of a class that
    has s turns in a round is due at (k + 1/2) / s of it. So no turn is more than half the number
    of distinct weights away from where it is due, and a step costs O(log of that number).
    """
    divisor = math.gcd(*weights)
    classes: dict[int, list[N]] = {}
    for node, weight in zip(nodes, weights, strict=True):
        classes.setdefault(weight, []).append(node)
    shares = [(weight // divisor * len(some), some) for weight, some in classes.items()]
    while shares:
        heap = []
        for number, (share, _) in enumerate(shares):
            done = max(0, math.ceil(share * phase - 0.5))
            if done < share:
                heap.append(((done + 0.5) / share, number, done))
        heapq.heapify(heap)
        phase = 0.0
        while heap:
            _, number, done = heap[0]
            share, members = shares[number]
            yield members[done % len(members)]
            done += 1
            if done < share:
                heapq.heapreplace(heap, ((done + 0.5) / share, number, done))
            else:
                heapq.heappop(heap)


class Rotation(Generic[N]):
    """Smooth weighted round robin, as a list of turns to walk through.

    ``turns[cursor]`` is next; whoever takes the last turn calls ``wrap``. The list is a whole round
    of ``total`` turns where that is short or all weights are equal, else the next part of one.
    """

    __slots__ = ("_before", "_source", "cursor", "total", "turns")

    def __init__(
        self, nodes: Sequence[N], weights: Sequence[int], after: Rotation[N] | None = None
    ) -> None:
        """``nodes`` is not empty. ``after``: what was used before, whose place is kept."""
        phase = after.phase if after is not None else 0.0
        self.total = total = sum(weights) // math.gcd(*weights)
        self._source: Iterator[N] | None = None
        self._before = 0.0  # turns of this round before ``turns[0]``
        self.cursor = round(phase * total) % total
        if total == len(nodes):
            self.turns = list(nodes)
            if after is not None:
                self._go_on(after)
        elif total <= WHOLE:
            self.turns = list(islice(spread(nodes, weights), total))
        else:
            self._source = spread(nodes, weights, phase)
            self._before = phase * total
            self.turns = list(islice(self._source, WINDOW))
            self.cursor = 0

    def _go_on(self, after: Rotation[N]) -> None:
        """Next is who was next before, or if that one is gone, who would have followed."""
        turns, cursor = after.turns, after.cursor
        for node in (turns[cursor:] + turns[:cursor])[:8]:
            if node in self.turns:
                self.cursor = self.turns.index(node)
                return

    @property
    def phase(self) -> float:
        """How much of the round has passed, 0 to 1."""
        return (self._before + self.cursor) / self.total % 1.0

    def wrap(self) -> None:
        """The last of ``turns`` was taken: begin again, or go on with the round."""
        self.cursor = 0
        if self._source is not None:
            self._before = (self._before + len(self.turns)) % self.total
            self.turns = list(islice(self._source, WINDOW))

    def advance(self) -> N:
        """Whose turn it is, usable or not."""
        node = self.turns[self.cursor]
        self.cursor += 1
        if self.cursor == len(self.turns):
            self.wrap()
        return node

    def pick(self, nodes: Sequence[N], now: float, tried: Sequence[N]) -> N | None:
        """The next usable one of ``nodes``, which are those of the rotation."""
        size = len(self.turns)
        for _ in range(min(size, _HESITATION)):
            node = self.advance()
            if node.dead_until <= now and node not in tried:
                return node
        usable = usable_nodes(nodes, now, tried)
        if not usable:
            return None
        for _ in range(size):
            node = self.advance()
            if node.dead_until <= now and node not in tried:
                return node
        return usable[self.cursor % len(usable)]  # its turn is far away


def uwsgi_round_robin(
    nodes: Sequence[N], everyone: Sequence[N], now: float, tried: Sequence[N]
) -> N | None:
    """uWSGI's weighted round robin, with its loss of precision (4/3/2 is 2/1/1).

    The first node with credits spends one. When nobody has any, all living nodes get their weight
    divided by the smallest weight, and the last one spends the first credit. ``everyone``: the
    nodes of all backup levels, which take part in the smallest weight (uWSGI 2.1).
    """
    last = None
    for node in nodes:
        if node.dead_until <= now and node not in tried:
            if node.credits > 0:
                node.credits -= 1
                return node
            last = node
    if last is None:
        return None
    least = min(node.weight for node in everyone if node.dead_until <= now)
    for node in nodes:
        if node.dead_until <= now:
            node.credits = node.weight // least
    last.credits -= 1
    return last


# --- lrc, wlrc ------------------------------------------------------------------------------------


def least_connections(
    nodes: Sequence[N], now: float, tried: Sequence[N], *, weighted: bool
) -> N | None:
    """uWSGI's lrc and wlrc: fewest requests under way, in wlrc divided by the weight.

    Among equals the first wins, but where a node is idle, the next ones in a row take over as long
    as they are idle too and have not served more. (uWSGI also lets a marked node take part in that
    for one moment, before it removes it, and may then pass over an idle node. Here a marked node
    stays in the list for its grace time, so it has to count as absent.)

    Unlike in uWSGI, who has served far less than the node beside it, because it was away or busy,
    does not catch up: it would get all requests for a long time.
    """
    best = None
    least = 0.0
    for node in nodes:
        if node.dead_until > now or node in tried:
            continue
        if best is None:
            best = node
            least = node.active / node.weight if weighted else node.active
        elif least:
            load = node.active / node.weight if weighted else node.active
            if load < least:
                best = node
                least = load
        elif node.active:
            break
        elif node.last_requests > best.last_requests:
            if best.last_requests < node.last_requests - _BEHIND:
                best.last_requests = node.last_requests - _BEHIND
            break
        else:
            if node.last_requests < best.last_requests - _BEHIND:
                node.last_requests = best.last_requests - _BEHIND
            best = node
    if best is not None:
        best.last_requests += 1
    return best


class Ramp(Generic[N]):
    """The shares of nodes while some of them are new.

    ``shares``: 1 to ``FULL`` twentieths, relative to the node that is new least. ``paces``:
    requests since some node joined, divided by share (and weight): equal while all get their due.
    """

    __slots__ = ("paces", "shares")

    def __init__(self, shares: dict[N, float], before: Ramp[N] | None = None) -> None:
        """``before``: the last one; where it was for the same nodes, its paces go on."""
        self.shares = shares
        self.paces: dict[N, float] = dict.fromkeys(shares, 0.0)
        if before is not None and before.paces.keys() == shares.keys():
            self.paces = before.paces


def share_of(since: float, now: float, slow_start: float) -> int:
    """Twentieths of its weight that a node gets which joined at ``since`` (0 = long ago)."""
    if not since or now - since >= slow_start:
        return FULL
    return max(LEAST, int(FULL * (now - since) / slow_start))


def ramped_connections(
    nodes: Sequence[N], now: float, tried: Sequence[N], ramp: Ramp[N], *, weighted: bool
) -> N | None:
    """lrc and wlrc while some nodes are new: those are held back both in number of requests under
    way and in rate, as an idle newcomer would otherwise get whatever comes."""
    usable = usable_nodes(nodes, now, tried)
    if not usable:
        return None
    shares, paces = ramp.shares, ramp.paces
    top = max(shares[node] for node in usable)
    ahead = [paces[node] for node in usable if shares[node] == top]
    mean = math.fsum(ahead) / len(ahead)

    def load(node: N) -> tuple[float, float]:
        share = shares[node] * node.weight if weighted else shares[node]
        return node.active / share, paces[node]

    due = [node for node in usable if shares[node] == top or paces[node] <= mean]
    best = min(due, key=load)
    step = FULL / (shares[best] * best.weight if weighted else shares[best])
    paces[best] = max(paces[best], mean - _BEHIND * step) + step
    return best


# --- iphash ---------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def address_number(address: bytes) -> int:
    """The number that uWSGI 2.1 makes of a client's address (text; a zone is not looked at).

    IPv4: the four bytes as a little-endian number. IPv6: djb33x of the sixteen bytes. Other: 0.
    """
    try:
        text = address.decode("ascii").partition("%")[0]
        if ":" not in text:
            return int.from_bytes(socket.inet_pton(socket.AF_INET, text), "little")
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return 0
    number = 5381
    for byte in packed:
        number = (number * 33 ^ byte) & 0xFFFFFFFF
    return number


def by_address(nodes: Sequence[N], address: bytes, now: float, tried: Sequence[N]) -> N | None:
    """uWSGI 2.1's iphash: weights do not count, and most clients move when a node comes or goes."""
    usable = usable_nodes(nodes, now, tried)
    return usable[address_number(address) % len(usable)] if usable else None


# --- p2c ------------------------------------------------------------------------------------------


def two_choices(
    nodes: Sequence[N], now: float, tried: Sequence[N], ramp: Ramp[N] | None = None
) -> N | None:
    """The better one of two nodes taken at random (``better``)."""
    size = len(nodes)
    if size > 1:
        i = int(random() * size)
        j = int(random() * (size - 1))
        a, b = nodes[i], nodes[j if j < i else j + 1]
        if (
            a.dead_until <= now
            and b.dead_until <= now
            and not (tried and (a in tried or b in tried))
        ):
            return _better_of_new(a, b, ramp) if ramp is not None else better(a, b)
    usable = usable_nodes(nodes, now, tried)
    if len(usable) < 2:
        return usable[0] if usable else None
    a, b = sample(usable, 2)
    return _better_of_new(a, b, ramp) if ramp is not None else better(a, b)


def _better_of_new(a: N, b: N, ramp: Ramp[N]) -> N:
    """A new node takes part as often as its share says: then it gets that part of its due."""
    takes_part = random() * FULL < ramp.shares[a]
    if takes_part is (random() * FULL < ramp.shares[b]):
        return better(a, b)
    return a if takes_part else b


def better(a: N, b: N) -> N:
    """Whoever has the smaller (active + 1) * latency / weight, where ``latency`` is

    * that of the other node if it is unknown: a new node gets what is due to an average one;
    * four times as long for every failure in a row: a node that fails fast is not a fast node;
    * half as long for every 64 comparisons that the node has lost in a row, but not shorter than
      the other's: a node that was slow, or failing, is asked again now and then.

    The loser's ``passed`` grows, the winner's is forgotten and what it did to the latency is kept.
    """
    first, second = a.latency, b.latency
    if not first or not second:
        first = second = first or second or 1.0
    cost_a = _cost(a, first, second)
    cost_b = _cost(b, second, first)
    if (a.active + 1) * cost_a * b.weight <= (b.active + 1) * cost_b * a.weight:
        winner, loser, cost = a, b, cost_a
    else:
        winner, loser, cost = b, a, cost_b
    loser.passed += 1
    if winner.passed >= _AGING:
        winner.latency = min(winner.latency, cost)
    winner.passed = 0
    return winner


def _cost(node: Candidate, latency: float, other: float) -> float:
    failing, passed = node.failing, node.passed
    if not failing and passed < _AGING:
        return latency
    cost = math.ldexp(latency, 2 * failing)
    return min(cost, max(other, math.ldexp(cost, -(passed // _AGING))))


# --- hash -----------------------------------------------------------------------------------------


class Ring(Generic[N]):
    """Consistent hashing: each node owns points on a ring of 2^64 places, as many as its weight
    says; a token belongs to the first point at or behind it.

    Points are made of the node's name alone, so that all machines that know the same nodes agree,
    and a node that comes or goes moves only its own tokens. Nodes have 128 points per unit of
    weight, halved for all (and all nodes keep a subset) until a ring has at most 65536, or 16 a
    node: only at such a step other tokens move.
    """

    __slots__ = ("_counts", "_members", "_owners", "_places")

    def __init__(self) -> None:
        self._places: list[int] = []  # sorted
        self._owners: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._members: dict[str, N] = {}

    def update(self, nodes: Sequence[N]) -> None:
        """From now on these are the nodes; costs little if most of them were there before."""
        members: dict[str, N] = {}
        seen: Counter[str] = Counter()
        for node in nodes:
            name = node.name
            if name in members:  # the same address with another modifier, say
                seen[name] += 1
                name = f"{name}\0{seen[name]}"
            members[name] = node
        counts = _points({name: node.weight for name, node in members.items()})
        old, owners = self._counts, self._owners
        shrunk = [name for name, count in old.items() if count > counts.get(name, 0)]
        for name in shrunk:
            for place in _places(name, old[name])[counts.get(name, 0) :]:
                # Another's by the odds of 2^-64, and whoever came first has it.
                if owners.get(place) == name:
                    del owners[place]
        if shrunk:
            self._places = [place for place in self._places if place in owners]
        added = []
        for name, count in counts.items():
            if count > old.get(name, 0):
                for place in _places(name, count)[old.get(name, 0) :]:
                    if owners.setdefault(place, name) is name:
                        added.append(place)
        if added:
            self._places += added
            self._places.sort()
        self._counts, self._members = counts, members

    def pick(self, token: bytes, now: float, tried: Sequence[N]) -> N | None:
        """The usable node that is next on the ring from the token's place."""
        places = self._places
        size = len(places)
        number = int.from_bytes(blake2b(token, digest_size=8).digest(), "little")
        start = bisect_left(places, number)
        owners, members = self._owners, self._members
        for step in range(size):
            at = start + step
            node = members[owners[places[at if at < size else at - size]]]
            if node.dead_until <= now and node not in tried:
                return node
            if step == _HESITATION and not usable_nodes(list(members.values()), now, tried):
                return None
        return None


def _points(weights: dict[str, int]) -> dict[str, int]:
    """How many points each name gets."""
    limit = max(_MOST_POINTS, 16 * len(weights))
    total = _POINTS * sum(weights.values())
    shift = max(0, (-(-total // limit) - 1).bit_length())
    return {name: max(1, _POINTS * weight >> shift) for name, weight in weights.items()}


def _places(name: str, count: int) -> tuple[int, ...]:
    """The first ``count`` points of a name; more points begin with the same ones."""
    stream = shake_128(name.encode("utf-8", "surrogateescape")).digest(8 * count)
    return struct.unpack(f"<{count}Q", stream)
