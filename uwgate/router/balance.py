"""Nodes and how one of several is picked: health marks, grace time, algorithms.

A node that could not be reached is skipped for ``gracetime`` seconds. Health is passive: live
traffic finds out. When every node of a group is marked, one of them is tried again at most once a
second, so that a single node that restarts is back at once instead of after its grace time.
"""

from __future__ import annotations

import itertools
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from uwgate.config.settings import Endpoint, NodeSettings
from uwgate.protocols.http1_response import ResponseHead
from uwgate.router.clock import Clock

if TYPE_CHECKING:
    from uwgate.router.upstream_http import HttpBack

Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes
NO_HEAD = ResponseHead()
_LAST_RESORT = 1.0  # seconds between tries of a marked node when no other is left
_MAX_SEQUENCE = 4096


class Node:
    """One place where requests can be sent.

    ``addresses``: ``(family, sockaddr)`` to connect to, re-resolved for host names; empty while a
    name does not resolve. ``dead_until``: clock time, 0 = alive. ``grace``: epoch seconds of the
    last failure (uWSGI's stats). ``tx``/``rx``: bytes from/to the node (uWSGI's direction).
    """

    __slots__ = (
        "active",
        "addresses",
        "dead_until",
        "endpoint",
        "failures",
        "fallback",
        "grace",
        "idle",
        "last_head",
        "last_parsed",
        "modifier1",
        "modifier2",
        "name",
        "one_shot",
        "protocol",
        "requests",
        "rx",
        "tried_at",
        "tx",
        "weight",
    )

    def __init__(self, settings: NodeSettings, *, fallback: bool = False) -> None:
        self.endpoint: Endpoint = settings.endpoint
        self.name = settings.endpoint.text
        self.protocol: Literal["uwsgi", "http"] = settings.protocol
        self.modifier1 = settings.modifier1 or 0
        self.modifier2 = settings.modifier2 or 0
        self.weight = settings.weight
        # A uwsgi node whose address needs no looking up.
        self.one_shot = self.protocol == "uwsgi" and bool(fixed_address(settings.endpoint))
        self.fallback = fallback
        self.addresses: tuple[tuple[int, Address], ...] = fixed_address(settings.endpoint)
        self.dead_until = 0.0
        self.tried_at = 0.0
        self.grace = 0
        self.active = 0
        self.requests = 0
        self.failures = 0
        self.tx = 0
        self.rx = 0
        self.idle: list[HttpBack] = []
        self.last_head = b"\n"  # of the last usual response; no response begins like this
        self.last_parsed: ResponseHead = NO_HEAD

    def failed(self, clock: Clock, gracetime: float) -> None:
        """A connection could not be made: skip the node for a while."""
        self.failures += 1
        self.grace = int(time.time())
        self.dead_until = clock.now + gracetime
        self.tried_at = clock.now
        if self.endpoint.kind == "tcp":
            self.addresses = fixed_address(self.endpoint)  # a name is looked up again

    def works(self) -> None:
        """A connection was made: forget the mark."""
        if self.dead_until:
            self.dead_until = 0.0
            self.grace = 0

    def alive(self, now: float) -> bool:
        """Whether the node may be used at clock time ``now``."""
        return not self.dead_until or self.dead_until <= now

    def snapshot(self) -> dict[str, object]:
        """Plain values for the stats (keys as in uWSGI where it has them)."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "hits": self.requests - self.failures,
            "grace": self.grace,
            "active": self.active,
            "requests": self.requests,
            "failures": self.failures,
            "tx": self.tx,
            "rx": self.rx,
            "idle": len(self.idle),
            "weight": self.weight,
            "modifier1": self.modifier1,
            "modifier2": self.modifier2,
            "fallback": int(self.fallback),
        }


def fixed_address(endpoint: Endpoint) -> tuple[tuple[int, Address], ...]:
    """``((family, sockaddr),)`` where no name has to be looked up, else ``()``."""
    if endpoint.kind == "unix":
        return ((socket.AF_UNIX, endpoint.path),)
    if endpoint.kind == "abstract":
        # uWSGI's names carry a trailing NUL.
        return ((socket.AF_UNIX, b"\0" + endpoint.path.encode() + b"\0"),)
    host = endpoint.host or "127.0.0.1"
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        if family == socket.AF_INET6:
            return ((family, (host, endpoint.port, 0, 0)),)
        return ((family, (host, endpoint.port)),)
    return ()


def smooth_sequence(nodes: Sequence[Node]) -> list[Node]:
    """One round of smooth weighted round robin: each node ``weight`` times, spread out evenly."""
    weights = [node.weight for node in nodes]
    total = sum(weights)
    if total > _MAX_SEQUENCE:
        weights = [max(1, weight * _MAX_SEQUENCE // total) for weight in weights]
        total = sum(weights)
    current = [0] * len(nodes)
    sequence = []
    for _ in range(total):
        for i, weight in enumerate(weights):
            current[i] += weight
        best = max(range(len(nodes)), key=current.__getitem__)
        current[best] -= total
        sequence.append(nodes[best])
    return sequence


class NodeGroup:
    """Candidates for one key and the algorithm that picks among them.

    ``wrr`` weighted round robin, ``lrc`` fewest requests under way, ``wlrc`` the same divided by
    weight, ``iphash`` by client address (uWSGI 2.1's names).
    """

    __slots__ = ("_algo", "_clock", "_cursor", "_sequence", "nodes")

    def __init__(self, nodes: Sequence[Node], algo: str, clock: Clock) -> None:
        self.nodes = list(nodes)
        self._clock = clock
        self._algo = algo
        self._sequence = smooth_sequence(self.nodes)
        self._cursor = 0

    def pick(self, client: bytes = b"", tried: Sequence[Node] = ()) -> Node | None:
        """A node that is alive and not in ``tried``, or None."""
        if self._algo == "wrr":
            return self._round_robin(tried)
        if self._algo == "iphash":
            return self._by_address(client, tried)
        return self._least_busy(tried)

    def turns(self) -> Callable[[], Node] | None:
        """The bare rotation of round robin, marks not looked at; None for other algorithms."""
        if self._algo != "wrr" or not self._sequence:
            return None
        return itertools.cycle(self._sequence).__next__

    def last_resort(self, tried: Sequence[Node] = ()) -> Node | None:
        """The marked node that was left alone longest, if that is a second or more."""
        now = self._clock.now
        waiting = [n for n in self.nodes if n not in tried and n.tried_at + _LAST_RESORT <= now]
        if not waiting:
            return None
        node = min(waiting, key=lambda n: n.tried_at)
        node.tried_at = now
        return node

    def _round_robin(self, tried: Sequence[Node]) -> Node | None:
        sequence = self._sequence
        size = len(sequence)
        cursor = self._cursor
        now = self._clock.now
        for _ in range(size):
            node = sequence[cursor]
            cursor += 1
            if cursor == size:
                cursor = 0
            if (not node.dead_until or node.dead_until <= now) and node not in tried:
                self._cursor = cursor
                return node
        return None

    def _least_busy(self, tried: Sequence[Node]) -> Node | None:
        now = self._clock.now
        candidates = [n for n in self.nodes if n.alive(now) and n not in tried]
        if not candidates:
            return None
        # Start behind the last pick, so that equals take turns.
        self._cursor = (self._cursor + 1) % len(candidates)
        candidates = candidates[self._cursor :] + candidates[: self._cursor]
        if self._algo == "wlrc":
            return min(candidates, key=lambda n: (n.active + 1) / n.weight)
        return min(candidates, key=lambda n: n.active)

    def _by_address(self, client: bytes, tried: Sequence[Node]) -> Node | None:
        now = self._clock.now
        start = zlib.crc32(client) % len(self._sequence) if self._sequence else 0
        for node in self._sequence[start:] + self._sequence[:start]:
            if node.alive(now) and node not in tried:
                return node
        return None
