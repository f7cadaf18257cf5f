"""What workers counted of subscribed keys and nodes, summed when somebody looks.

Every worker may tell of thousands of nodes: reports are only put side by side here, and a node is
summed when it is asked for. What may take long is done in steps, a few milliseconds each, so that
the master can do something else in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from uwgate.observe.sums import NodeTotals, Snapshot, gateways, mapping, number
from uwgate.subscriptions.table import Table

# How many keys and nodes are carried over where nobody ever asks for totals.
_LIMIT = 50_000

STEP = 1_000
"""Nodes that are dealt with in one go."""


class SlotTotals:
    """A key over all workers. ``hits``: look-ups."""

    __slots__ = ("_parts", "hits")

    def __init__(self) -> None:
        self.hits = 0
        # By address: ``Node.snapshot()`` of live workers, sums of departed ones.
        self._parts: dict[str, list[Snapshot | NodeTotals]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def add(self, address: str, part: Snapshot | NodeTotals) -> None:
        """A worker's report of a node, or what workers counted that are gone."""
        parts = self._parts.get(address)
        if parts is None:
            self._parts[address] = [part]
        else:
            parts.append(part)

    def node(self, address: str) -> NodeTotals:
        """The sum of a node; zeros if no worker knows it."""
        totals = NodeTotals()
        for part in self._parts.get(address, ()):
            if isinstance(part, NodeTotals):
                totals.carry(part)
            else:
                totals.add(part, gauges=True)
        return totals

    def requests(self, address: str) -> int:
        """``node(address).requests``, for less."""
        count: int = 0
        for part in self._parts.get(address, ()):
            count += part.requests if isinstance(part, NodeTotals) else part.get("requests", 0)
        return count


Slots = dict[str, dict[str, SlotTotals]]
"""Gateway -> key -> totals."""


class Reports:
    """What workers tell, and what those told that are gone. ``slots``: complete after ``step``."""

    __slots__ = ("_steps", "slots")

    def __init__(self, slots: Slots, snapshots: Iterable[Snapshot]) -> None:
        self.slots = slots
        self._steps = self._merge(list(snapshots))

    def step(self) -> bool:
        """Do some of the work; True once all is done."""
        return next(self._steps, True)

    def _merge(self, snapshots: list[Snapshot]) -> Iterator[bool]:
        nodes = 0
        for snapshot in snapshots:
            for gateway, key, slot in _reported(snapshot):
                known = self.slots.setdefault(gateway, {})
                totals = known.get(key)
                if totals is None:
                    totals = known[key] = SlotTotals()
                totals.hits += number(slot, "hits")
                for address, node in mapping(slot, "nodes").items():
                    totals.add(address, node)
                    nodes += 1
                    if nodes % STEP == 0:
                        yield False


class _Past:
    """Counters of a key. ``nodes``: by address; never changed, only replaced: whoever sums has
    them."""

    __slots__ = ("hits", "nodes")

    def __init__(self) -> None:
        self.hits = 0
        self.nodes: dict[str, NodeTotals] = {}

    def add(self, slot: Snapshot) -> None:
        self.hits += number(slot, "hits")
        for address, node in mapping(slot, "nodes").items():
            totals = NodeTotals()
            totals.add(node, gauges=False)
            old = self.nodes.get(address)
            if old is not None:
                totals.carry(old)
            self.nodes[address] = totals


class Departed:
    """What workers counted that are gone; dropped with the nodes."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: dict[str, dict[str, _Past]] = {}

    def __len__(self) -> int:
        return sum(1 + len(slot.nodes) for known in self._slots.values() for slot in known.values())

    def add(self, snapshot: Snapshot) -> None:
        """The last report of a worker."""
        for gateway, key, slot in _reported(snapshot):
            self._slots.setdefault(gateway, {}).setdefault(key, _Past()).add(slot)
        self._shorten()

    def as_snapshot(self) -> Snapshot:
        """All of it, as `add` takes it: for the next master."""
        found: Snapshot = {}
        for gateway, known in self._slots.items():
            slots = {
                key: {
                    "hits": slot.hits,
                    "nodes": {name: node.counters() for name, node in slot.nodes.items()},
                }
                for key, slot in known.items()
            }
            found[gateway] = {"subscriptions": {"slots": slots}}
        return {"gateways": found}

    def _shorten(self) -> None:
        """Drop whole keys, the oldest first."""
        count = len(self)
        for known in self._slots.values():
            while count > _LIMIT and known:
                count -= 1 + len(known.pop(next(iter(known))).nodes)

    def forget(self, tables: Mapping[str, Table]) -> None:
        """Drop the keys and nodes that are in no table."""
        for gateway, known in self._slots.items():
            table = tables.get(gateway)
            if table is None:
                known.clear()
                continue
            for key in [key for key in known if key not in table.slots]:
                del known[key]
            for key, slot in known.items():
                for address in [each for each in slot.nodes if table.find(key, each) is None]:
                    del slot.nodes[address]

    def add_to(self, slots: Slots) -> None:
        """Add all of it to ``slots``."""
        for gateway, past in self._slots.items():
            known = slots.setdefault(gateway, {})
            for key, slot in past.items():
                totals = known.setdefault(key, SlotTotals())
                totals.hits += slot.hits
                for address, node in slot.nodes.items():
                    totals.add(address, node)


def _reported(snapshot: Snapshot) -> Iterator[tuple[str, str, Snapshot]]:
    """Gateway, key and what a worker says of it."""
    for name, gateway in gateways(snapshot):
        for key, slot in mapping(mapping(gateway, "subscriptions"), "slots").items():
            yield name, key, slot
