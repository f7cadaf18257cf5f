"""Nodes and how one of several is picked: health marks, grace time, algorithms.

A node that could not be reached is skipped for ``gracetime`` seconds. Health is passive: live
traffic finds out. When every node of a group is marked, one of them is tried again at most once a
second, so that a single node that restarts is back at once instead of after its grace time.

The algorithms themselves are in ``subscriptions.algorithms``.
"""

from __future__ import annotations

import itertools
import math
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from uwgate.config.settings import Endpoint, NodeSettings
from uwgate.protocols.http1_response import ResponseHead
from uwgate.router.clock import TICK, Clock
from uwgate.subscriptions.algorithms import (
    ALGORITHMS,
    FAILING,
    FULL,
    Ramp,
    Ring,
    Rotation,
    by_address,
    least_connections,
    ramped_connections,
    share_of,
    two_choices,
    uwsgi_round_robin,
)

if TYPE_CHECKING:
    from uwgate.router.upstream_http import HttpBack

Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes
NO_HEAD = ResponseHead()
_LAST_RESORT = 1.0  # seconds between tries of a marked node when no other is left
_SLOW_STARTING = ("wrr", "lrc", "wlrc", "p2c")
_SMOOTHING = 8  # a response changes the average latency by an eighth of the difference


class Node:
    """One place where requests can be sent.

    ``addresses``: ``(family, sockaddr)`` to connect to, re-resolved for host names; empty while a
    name does not resolve. ``dead_until``: clock time, 0 = alive. ``grace``: epoch seconds of the
    last failure (uWSGI's stats). ``tx``/``rx``: bytes from/to the node (uWSGI's direction).

    ``key``: the subscription key, "" for static nodes. ``since``: clock time at which it joined,
    for slow start; 0.0 = long ago. ``latency``: average seconds until a response, 0 = unknown.
    ``errors``: failures by log word. ``weight``, ``backup``, ``since``: the group has to be told of
    changes (``NodeGroup.reweigh``). The algorithms' own: ``last_requests``, ``credits`` (uWSGI's
    "wrr"), ``failing`` (failures in a row), ``passed``.
    """

    __slots__ = (
        "active",
        "addresses",
        "backup",
        "credits",
        "dead_until",
        "endpoint",
        "errors",
        "failing",
        "failures",
        "fallback",
        "grace",
        "idle",
        "key",
        "last_head",
        "last_parsed",
        "last_requests",
        "latency",
        "modifier1",
        "modifier2",
        "name",
        "one_shot",
        "passed",
        "protocol",
        "requests",
        "rx",
        "since",
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
        self.backup = settings.backup
        self.key = ""
        self.since = 0.0
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
        self.errors: dict[str, int] | None = None
        self.latency = 0.0
        self.failing = 0
        self.passed = 0
        self.last_requests = 0
        self.credits = 0
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

    def note_latency(self, seconds: float) -> None:
        """A response came after so many seconds, and it was a good one."""
        self.failing = 0
        latency = self.latency
        self.latency = latency + (seconds - latency) / _SMOOTHING if latency else seconds

    def note_error(self, word: str) -> None:
        """A request failed at this node; ``word``: what the log calls it (``router/errors.py``)."""
        if self.errors is None:
            self.errors = {}
        self.errors[word] = self.errors.get(word, 0) + 1
        if self.failing < FAILING:
            self.failing += 1

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
            "backup": self.backup,
            "latency": round(self.latency * 1e6),  # microseconds
            "errors": dict(self.errors) if self.errors else {},
            "credits": self.credits,
            "last_requests": self.last_requests,
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


def is_named(endpoint: Endpoint) -> bool:
    """Whether a name has to be looked up to connect."""
    return endpoint.kind == "tcp" and not fixed_address(endpoint)


class _Level:
    """The nodes of one backup level, and what the algorithm made of them."""

    __slots__ = ("backup", "nodes", "ramp", "ring", "rotation")

    def __init__(self, backup: int, nodes: list[Node]) -> None:
        self.backup = backup
        self.nodes = nodes
        self.ramp: Ramp[Node] | None = None  # while some of them are new
        self.ring: Ring[Node] | None = None
        self.rotation: Rotation[Node] | None = None


class NodeGroup:
    """Candidates for one key and the algorithm that picks among them.

    ``algo``: one of ``settings.Algo``; an unknown one means wrr, as in uWSGI. ``slow_start``:
    seconds in which the share of a node that has just joined (``Node.since``) grows from a tenth to
    the whole; for wrr, lrc, wlrc and p2c.
    Whatever has to be worked out of the nodes is worked out at the first pick after a change.
    """

    __slots__ = (
        "_changed",
        "_clock",
        "_levels",
        "_quick",
        "_review",
        "_slow_start",
        "algo",
        "nodes",
    )

    def __init__(
        self, nodes: Sequence[Node], algo: str, clock: Clock, *, slow_start: float = 0.0
    ) -> None:
        self.nodes = list(nodes)
        self.algo = algo if algo in ALGORITHMS else "wrr"
        self._clock = clock
        self._slow_start = slow_start if self.algo in _SLOW_STARTING else 0.0
        self._levels: list[_Level] = []
        self._changed = False  # other nodes than before
        self._review = 0.0  # clock time from which on the levels are out of date
        self._quick: Rotation[Node] | None = None  # plain wrr: one level, nobody new

    def pick(self, token: bytes = b"", tried: Sequence[Node] = ()) -> Node | None:
        """A node that is alive and not in ``tried``, or None.

        ``token``: the client's address as text for ``iphash``, what the request is known by for
        ``hash`` (without any, nodes take turns); the others do not look at it.
        """
        rotation = self._quick
        if rotation is not None and not tried:
            cursor = rotation.cursor
            turns = rotation.turns
            node = turns[cursor]
            if not node.dead_until:
                cursor += 1
                if cursor < len(turns):
                    rotation.cursor = cursor
                else:
                    rotation.wrap()
                return node
        return self._pick(token, tried)

    def turns(self) -> Callable[[], Node] | None:
        """The bare rotation of round robin, marks not looked at, for groups that never change.

        None for other algorithms, with several backup levels, and where there is slow start.
        """
        if self.algo != "wrr" or self._slow_start or not self.nodes:
            return None
        self._build(self._clock.now)
        rotation = self._quick
        if rotation is None:
            return None
        if len(rotation.turns) < rotation.total:
            weights = [node.weight for node in self.nodes]
            return Rotation(self.nodes, weights).advance
        return itertools.cycle(rotation.turns).__next__

    def last_resort(self, tried: Sequence[Node] = ()) -> Node | None:
        """The marked node that was left alone longest, if that is a second or more."""
        now = self._clock.now
        waiting = [n for n in self.nodes if n not in tried and n.tried_at + _LAST_RESORT <= now]
        if not waiting:
            return None
        node = min(waiting, key=lambda n: n.tried_at)
        node.tried_at = now
        return node

    def replace(self, nodes: Sequence[Node]) -> None:
        """These are the nodes from now on. Who stays has to be the same object as before.

        Round robin goes on where it was. uWSGI's counters for lrc and wlrc begin anew: whoever has
        just come would be behind, and would get every request until it has caught up.
        """
        self.nodes = list(nodes)
        self._changed = True
        self.reweigh()

    def reweigh(self) -> None:
        """``weight``, ``backup`` or ``since`` of some node was changed."""
        self._review = 0.0
        self._quick = None

    def _pick(self, token: bytes, tried: Sequence[Node]) -> Node | None:
        """The general way: whatever the algorithm, with marks, levels and newcomers."""
        now = self._clock.now
        if self.algo == "iphash":
            return by_address(self.nodes, token, now, tried)
        if now >= self._review:
            self._build(now)
        for level in self._levels:
            node = self._pick_of(level, token, now, tried)
            if node is not None:
                return node
        return None

    def _pick_of(
        self, level: _Level, token: bytes, now: float, tried: Sequence[Node]
    ) -> Node | None:
        algo, nodes = self.algo, level.nodes
        if algo == "wrr" or (algo == "hash" and not token):
            if level.rotation is None:
                level.rotation = Rotation(nodes, [node.weight for node in nodes])
            return level.rotation.pick(nodes, now, tried)
        if algo == "p2c":
            return two_choices(nodes, now, tried, level.ramp)
        if algo == "hash":
            if level.ring is None:
                level.ring = Ring()
                level.ring.update(nodes)
            return level.ring.pick(token, now, tried)
        if algo == "wrr-uwsgi":
            return uwsgi_round_robin(nodes, self.nodes, now, tried)
        if level.ramp is not None:
            return ramped_connections(nodes, now, tried, level.ramp, weighted=algo == "wlrc")
        return least_connections(nodes, now, tried, weighted=algo == "wlrc")

    def _build(self, now: float) -> None:
        """Sort the nodes into levels and work out what the algorithm needs of each."""
        before = {level.backup: level for level in self._levels}
        by_backup: dict[int, list[Node]] = {}
        for node in self.nodes:
            by_backup.setdefault(node.backup, []).append(node)
        self._levels = [_Level(backup, by_backup[backup]) for backup in sorted(by_backup)]
        if self._changed:
            for node in self.nodes:
                node.last_requests = 0
        self._review = math.inf
        for level in self._levels:
            self._prepare(level, before.get(level.backup), now)
        self._changed = False
        plain = self.algo == "wrr" and len(self._levels) == 1 and self._review == math.inf
        self._quick = self._levels[0].rotation if plain else None

    def _prepare(self, level: _Level, before: _Level | None, now: float) -> None:
        nodes = level.nodes
        shares: list[int] | None = None
        if self._slow_start:
            shares = [share_of(node.since, now, self._slow_start) for node in nodes]
            if min(shares) < FULL:
                self._review = now + TICK
        if self.algo == "wrr":
            weights = [node.weight for node in nodes]
            if shares is not None:
                weights = [w * share for w, share in zip(weights, shares, strict=True)]
            level.rotation = Rotation(nodes, weights, before.rotation if before else None)
        elif self.algo == "hash" and before is not None and before.ring is not None:
            level.ring = before.ring
            level.ring.update(nodes)
            level.rotation = before.rotation and Rotation(
                nodes, [node.weight for node in nodes], before.rotation
            )
        elif shares is not None and min(shares) < (top := max(shares)):
            relative = [FULL * share / top for share in shares]
            ramp = before.ramp if before is not None else None
            level.ramp = Ramp(dict(zip(nodes, relative, strict=True)), ramp)
        elif before is not None and before.ramp is not None:
            for node in nodes:  # counted by the ramp until now
                node.last_requests = 0
