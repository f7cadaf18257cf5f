"""Routing key -> one of the nodes that announced themselves for it.

The table came with the fork and is kept current by changes of the master. What balancing needs of a
key (``_View``) is made when the key is asked for first, so that a table of a million keys costs a
worker what is used of it.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from uwgate.config.settings import NodeSettings, RouterSubscriptions
from uwgate.router.balance import Node, NodeGroup, is_named
from uwgate.router.clock import Clock
from uwgate.router.resolve import Resolver, parse_mapped
from uwgate.subscriptions.table import JOIN, LEAVE, MARK, Change, Member, Slot, Table

Report = Callable[[dict[str, object]], None]
"""Sends a message to the master."""

_DOTSPLITS = 5  # look-ups of one key (uWSGI)
_MAX_REPORTED = 5_000  # nodes in a snapshot
_LOOKED_AT = 10_000  # keys that one looks at: more would stop the loop for too long


class _View(NodeGroup):
    """What a worker keeps of a key: a group that counts look-ups and knows its nodes by address.

    One object, as with many keys each one that is looked at is a wait for memory.
    """

    __slots__ = ("by_address", "hits")

    def __init__(
        self, by_address: dict[str, Node], algo: str, clock: Clock, slow_start: float
    ) -> None:
        super().__init__(list(by_address.values()), algo, clock, slow_start=slow_start)
        self.by_address = by_address
        self.hits = 0

    def turn(self) -> Node | None:
        """Whose turn it is, where nodes simply take turns and that one is not marked."""
        rotation = self._quick
        if rotation is None:
            return None
        cursor, turns = rotation.cursor, rotation.turns
        node = turns[cursor]
        if node.dead_until:
            return None
        cursor += 1
        if cursor < len(turns):
            rotation.cursor = cursor
        else:
            rotation.wrap()
        self.hits += 1
        return node

    def update(self) -> None:
        """``by_address`` was changed."""
        self.replace(list(self.by_address.values()))


class SubscriptionResolver(Resolver):
    """``…-subscription-server``: the nodes of the table. ``mark`` and ``reached`` tell the master
    what became of them."""

    __slots__ = (
        "_busiest",
        "_clock",
        "_fallback",
        "_further",
        "_opened",
        "_report",
        "_settings",
        "is_own",
        "named",
        "table",
    )
    several = True

    def __init__(self, settings: RouterSubscriptions, clock: Clock) -> None:
        self.table = Table()
        self._settings = settings.common
        self._fallback = settings.fallback_key
        self._clock = clock
        self._report: Report = _nobody
        self.is_own: Callable[[Node], bool] = _is_not  # the gateway's, as soon as it listens
        # Keys that were asked for, so that nobody has to go through the others.
        self._opened: OrderedDict[str, None] = OrderedDict()
        self._busiest: list[str] = []  # of those, as far as snapshots have looked at them
        self.named: set[Node] = set()  # those whose address is a host name
        self._further = bool(
            settings.fallback_key or self._settings.dotsplit or self._settings.mountpoints
        )

    def inherit(self, table: Table, report: Report) -> None:
        """Use this table, which the master filled before the fork."""
        self.table = table
        self._report = report

    # --- picking ------------------------------------------------------------------------------

    def turn(self, key: str) -> Node | None:
        """The usual case of ``pick``, in which nothing but the key is looked at; None where there
        is more to it."""
        slot = self.table.slots.get(key)
        if slot is None:
            return None
        view: _View | None = slot.view
        return view.turn() if view is not None else None

    def pick(self, key: str, token: bytes, tried: Sequence[Node]) -> Node | None:
        slot = self.table.slots.get(key)
        if slot is not None:
            view: _View = slot.view
            if view is None:
                view = self._open(slot)
            view.hits += 1
            node = view.pick(token, tried)
            if node is not None:
                return node
        return self._pick_further(key, token, tried) if self._further else None

    def _pick_further(self, key: str, token: bytes, tried: Sequence[Node]) -> Node | None:
        """The key is not there, or none of its nodes is alive."""
        slot = self._slot(key)
        if slot is not None and slot.key != key:
            view = slot.view or self._open(slot)
            view.hits += 1
            node: Node | None = view.pick(token, tried)
            if node is not None:
                return node
        last = self.table.slots.get(self._fallback) if self._fallback else None
        if last is None or last is slot:
            return None
        view = last.view or self._open(last)
        view.hits += 1
        picked: Node | None = view.pick(token, tried)
        return picked

    def _slot(self, key: str) -> Slot | None:
        """The slot for a key, or the nearest one above it.

        A slot that exists decides, alive or not: the requests of one application are not for
        another. Mountpoints go from the longest path to the host alone, whichever was announced
        first; then dotsplit goes from dot to dot.
        """
        slots = self.table.slots
        slot = slots.get(key)
        if slot is not None:
            return slot
        host, _, path = key.partition("/")
        while path:
            path = path.rpartition("/")[0]
            slot = slots.get(f"{host}/{path}" if path else host)
            if slot is not None:
                return slot
        if self._settings.dotsplit:
            for _ in range(_DOTSPLITS - 1):
                dot = host.find(".", 1)
                if dot < 0:
                    break
                host = host[dot:]
                slot = slots.get(host)
                if slot is not None:
                    return slot
        return None

    def knows(self, key: str) -> bool:
        return self._slot(key) is not None or self._fallback in self.table.slots

    def candidates(self, key: str) -> Sequence[Node]:
        slot = self._slot(key) or self.table.slots.get(self._fallback)
        if slot is None:
            return ()
        view = slot.view or self._open(slot)
        nodes: list[Node] = view.nodes
        return nodes

    def hashes(self, key: str) -> bool:
        """Whether the key's nodes are picked by ``hash``; announcements may say so."""
        slot = self.table.slots.get(key)
        if slot is None and self._further:
            slot = self._slot(key) or self.table.slots.get(self._fallback)
        return slot is not None and (slot.algo or self._settings.algo) == "hash"

    def last_resort(self, key: str, tried: Sequence[Node]) -> Node | None:
        slot = self._slot(key) or self.table.slots.get(self._fallback)
        if slot is None:
            return None
        view = slot.view or self._open(slot)
        node: Node | None = view.last_resort(tried)
        return node

    # --- views --------------------------------------------------------------------------------

    def _open(self, slot: Slot) -> _View:
        nodes: dict[str, Node] = {}
        for member in slot:
            node = self._node(slot.key, member)
            if node is not None:
                nodes[member.address] = node
        algo = slot.algo or self._settings.algo
        view = slot.view = _View(nodes, algo, self._clock, self._settings.slow_start)
        self._opened[slot.key] = None
        return view

    def _node(self, key: str, member: Member) -> Node | None:
        kind, text = member.kind, member.address
        try:
            endpoint, _ = parse_mapped("@" + text[2:] if text.startswith("\\0") else text)
        except ValueError:  # the codec has looked at it already
            return None
        settings = NodeSettings(
            endpoint, kind.protocol, kind.modifier1, kind.modifier2, member.weight, kind.backup
        )
        node = Node(settings)
        node.name = text
        node.key = key
        if self.is_own(node):
            return None
        if is_named(endpoint):
            self.named.add(node)
        if self._settings.slow_start:
            age = max(0.0, time.time() - member.joined)
            if age < self._settings.slow_start:
                node.since = max(self._clock.now - age, 0.001)
        if member.marked:
            self._set_mark(node)
        return node

    def _set_mark(self, node: Node) -> None:
        """Until the node announces itself; only ``last_resort`` tries it before."""
        node.dead_until = math.inf
        node.tried_at = self._clock.now
        if not node.grace:
            node.grace = int(time.time())

    # --- changes ------------------------------------------------------------------------------

    def apply(self, change: Change) -> Node | None:
        """A change of the table; the node that is of no use any more, if there is one."""
        member = self.table.apply(change)
        if member is None:
            return None
        slot, operation = member.slot, change[0]
        view: _View | None = slot.view
        if view is None:
            return None
        node = view.by_address.get(member.address)
        if operation == JOIN:
            return self._joined(view, member, node)
        if operation == LEAVE and not slot.count:
            self._opened.pop(slot.key, None)
        if node is None:
            return None
        if operation == LEAVE:
            del view.by_address[member.address]
            view.update()
            self.named.discard(node)
            node.dead_until = math.inf  # for requests that were about to use it
            return node
        if operation == MARK:
            self._set_mark(node)
        else:
            node.works()
            node.failing = 0
        return None

    def _joined(self, view: _View, member: Member, node: Node | None) -> Node | None:
        """A new node, or another way to talk to one: packets that were made for it are not right
        any more, and so it becomes a new object."""
        kind = member.kind
        same = node is not None and (node.modifier1, node.modifier2, node.protocol) == (
            kind.modifier1,
            kind.modifier2,
            kind.protocol,
        )
        if node is not None and same:
            node.weight, node.backup = member.weight, kind.backup
            node.works()
            view.reweigh()
            return None
        made = self._node(member.slot.key, member)
        if made is None:
            return None
        if node is not None:
            self.named.discard(node)
            for name in ("requests", "failures", "tx", "rx", "latency", "since"):
                setattr(made, name, getattr(node, name))
        view.by_address[member.address] = made
        view.update()
        return node

    def mark(self, node: Node, reason: str) -> None:
        """The node could not be reached: nobody uses it until it is heard of again."""
        self._set_mark(node)
        member = self.table.find(node.key, node.name)
        if member is None or member.marked:
            return
        view: _View | None = member.slot.view
        if view is None or view.by_address.get(node.name) is not node:
            return  # it left meanwhile, and who came in its place has not failed
        member.marked = True
        self._report({"type": "mark", "key": node.key, "address": node.name, "reason": reason})

    def reached(self, node: Node) -> None:
        """A marked node was reached after all."""
        member = self.table.find(node.key, node.name)
        if member is not None and member.marked:
            member.marked = False
            self._report({"type": "reached", "key": node.key, "address": node.name})

    # --- stats --------------------------------------------------------------------------------

    def nodes(self) -> Sequence[Node]:
        return [node for view in self._views() for node in view.nodes]

    def _views(self) -> Iterator[_View]:
        slots = self.table.slots
        for key in self._opened:
            slot = slots.get(key)
            if slot is not None and slot.view is not None:
                yield slot.view

    def snapshot(self) -> dict[str, object]:
        """``{"slots": {key: {"hits": n, "nodes": {address: Node.snapshot()}}}}``: what was asked
        for, the busiest keys if that is too much."""
        shown: dict[str, object] = {}
        left = _MAX_REPORTED
        for slot in self._reported():
            if left <= 0:
                break
            nodes = slot.view.nodes[:left]
            left -= len(nodes)
            shown[slot.key] = {
                "hits": slot.view.hits,
                "nodes": {node.name: node.snapshot() for node in nodes},
            }
        return {"slots": shown}

    def _reported(self) -> list[Slot]:
        """Where there are too many, the busiest of the last snapshot and of those whose turn it is
        to be looked at: after a few snapshots these are the busiest of all."""
        opened, slots = self._opened, self.table.slots
        keys = list(islice(opened, _LOOKED_AT))
        if len(opened) > _LOOKED_AT:
            for key in keys:
                opened.move_to_end(key)
            keys = list(dict.fromkeys((*self._busiest, *keys)))
        found = [slot for key in keys if (slot := slots.get(key)) is not None]
        found = [slot for slot in found if slot.view is not None]
        if len(found) > _MAX_REPORTED:
            found = heapq.nlargest(_MAX_REPORTED, found, key=lambda slot: slot.view.hits)
        self._busiest = [slot.key for slot in found]
        return found


def _nobody(message: dict[str, object]) -> None:
    """Stands for the master until there is one."""


def _is_not(node: Node) -> bool:
    """Stands for the gateway where there is none."""
    return False
