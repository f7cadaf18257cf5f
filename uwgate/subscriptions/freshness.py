"""What makes a signed packet fresh: nothing that was ever accepted can be used again.

A signature covers the key, the address and a time in seconds, but not the command: who records a
packet may send it again, as the other command too. uWSGI compares the time with that of the first
announcement only, does not look at it for goodbyes, and forgets it with the node. Here:

* a member keeps the newest time that was accepted for it, and only newer packets count;
* a goodbye carries its sender's time plus one second, so that it is newer than an announcement of
  the same second. What is remembered of a node that left allows it to come back within that second,
  but neither by a packet that it sent before, nor by its goodbye with the command changed;
* times outside the tolerance count for nothing, in the past or in the future.
"""

from __future__ import annotations

import re
from collections import OrderedDict

_LIMIT = 100_000
_NOT_IN_FILE_NAMES = re.compile(r"[^0-9a-z._-]")


class Departed:
    """Times of members that left. Bounded: what falls out raises the floor for all members that
    the same key file speaks for. Whoever has a private key harms nobody else with it: neither with
    many nodes that come and go, nor with times in the future.

    ``tolerance``: seconds a packet may be old; what is older needs not be remembered.
    """

    __slots__ = ("_floors", "_known", "_limit", "_tolerance")

    def __init__(self, tolerance: float, limit: int = _LIMIT) -> None:
        self._tolerance = tolerance
        self._limit = limit
        self._floors: dict[str, int] = {}  # by ``_owner``
        # (key, address) -> (newest time of an announcement, time of the goodbye or 0)
        self._known: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def left(self, key: str, address: str, announced: int, goodbye: int = 0) -> None:
        """A member is gone, whose newest signed time was ``announced``.

        Without an address: a floor, as ``entries`` has it.
        """
        if not address:
            self._floors[key] = max(self._floors.get(key, 0), announced)
            return
        self._known[key, address] = (announced, goodbye)
        self._known.move_to_end((key, address))
        while len(self._known) > self._limit:
            (out, _), (last, bye) = self._known.popitem(last=False)
            owner = _owner(out)
            self._floors[owner] = max(self._floors.get(owner, 0), last, bye)

    def knows(self, key: str, address: str) -> bool:
        """Whether the member left not too long ago."""
        return (key, address) in self._known

    def newest(self, key: str, address: str) -> int:
        """The newest time of a packet of the member; 0 if it is not known."""
        return max(self._known.get((key, address), (0, 0)))

    def _floor(self, key: str) -> int:
        return self._floors.get(_owner(key), 0) if self._floors else 0

    def allows(self, key: str, address: str, unix: int) -> bool:
        """Whether an announcement of that time may bring the member (back)."""
        known = self._known.get((key, address))
        if known is None:
            return unix > self._floor(key)
        announced, goodbye = known
        return unix > max(announced, goodbye - 2) and unix != goodbye

    def returned(self, key: str, address: str, unix: int) -> int:
        """The member is back: the newest time that counts as seen now."""
        announced, goodbye = self._known.pop((key, address), (0, 0))
        return max(unix, announced, goodbye, self._floor(key))

    def forget_old(self, now: float) -> None:
        """Drop what the tolerance refuses anyway; ``now``: epoch seconds."""
        limit = now - self._tolerance
        while self._known:
            identity, (announced, goodbye) = next(iter(self._known.items()))
            if max(announced, goodbye) >= limit:
                break
            del self._known[identity]
        for owner, floor in list(self._floors.items()):
            if floor < limit:
                del self._floors[owner]

    def entries(self) -> list[tuple[str, str, int, int]]:
        """All of it, for the state file: (key, address, announced, goodbye)."""
        floors = [(owner, "", floor, 0) for owner, floor in self._floors.items()]
        return floors + [(*identity, *times) for identity, times in self._known.items()]


def _owner(key: str) -> str:
    """Whose members share a floor: those of one key file (``signing.key_file``)."""
    return _NOT_IN_FILE_NAMES.sub("_", key.partition("/")[0])
