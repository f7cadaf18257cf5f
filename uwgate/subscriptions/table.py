"""Who serves which key: slots (a key each) and their members (an address each).

The master keeps the table of record. A worker inherits it with the fork, so that it serves every
key from its first request on, and is sent the changes that come after. Both sides apply the same
changes, and applying one twice is harmless.

A change is a list, ready for JSON; ``key`` and ``address`` say which member::

    ["+", key, address, modifier1, modifier2, weight, backup, protocol, algo, joined]
                              a member joined, or something about it changed; behind that, if it
                              brought them, the files of a certificate: sni_crt, sni_key, sni_ca
    ["-", key, address]       it left
    ["x", key, address]       it could not be reached: no requests until the next announcement
    ["o", key, address]       it is back

Memory is the point of the form: members of a slot are a linked list, as most slots have one or a
few, numbers that most members share are shared, and what few members have is in ``extra``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

Change = list[Any]

JOIN, LEAVE, MARK, REVIVE = "+", "-", "x", "o"
FILES = 7  # where the files of a certificate begin, behind the address

_LONG = 8  # members of a slot from which on their addresses are indexed


class Kind(NamedTuple):
    """What is seldom different between members, and therefore shared by them."""

    modifier1: int = 0
    modifier2: int = 0
    backup: int = 0
    protocol: Literal["uwsgi", "http"] = "uwsgi"


class Extra(NamedTuple):
    """What few announcements carry. ``via``: routers that passed it on. ``pid``, ``uid``, ``gid``:
    of the sender, with credentials."""

    notify: str = ""
    vassal: str = ""
    sni_key: str = ""
    sni_crt: str = ""
    sni_ca: str = ""
    via: str = ""
    pid: int = 0
    uid: int = 0
    gid: int = 0


PLAIN = Kind()
NOTHING = Extra()


def certificate(extra: Extra) -> list[str]:
    """``[sni_crt, sni_key, sni_ca]``, or nothing where one of the first two is missing: an sni_ca
    alone may be a mark of ``resubscribe``."""
    if not (extra.sni_crt and extra.sni_key):
        return []
    return [extra.sni_crt, extra.sni_key, extra.sni_ca]


class Member:
    """A node as it was announced.

    ``seen``: when it announced itself last, ``joined``: when it did first, both whole seconds, of
    the monotonic clock and of the epoch. ``unix``: the newest signed time. ``marked``: it could
    not be reached. ``failures``: how often that happened. ``digest``: ``hash`` of its last
    datagram, if that was unsigned. ``sender``: who announced it.
    """

    __slots__ = (
        "address",
        "cores",
        "digest",
        "extra",
        "failures",
        "joined",
        "kind",
        "load",
        "marked",
        "next",
        "previous",
        "seen",
        "sender",
        "slot",
        "unix",
        "weight",
    )

    def __init__(self, slot: Slot, address: str) -> None:
        self.slot = slot
        self.address = address
        self.next: Member | None = None
        self.previous: Member | None = None
        self.kind = PLAIN
        self.extra = NOTHING
        self.weight = 0  # not told yet
        self.cores = 0
        self.load = 0
        self.seen = 0
        self.joined = 0
        self.unix = 0
        self.failures = 0
        self.marked = False
        self.digest: int | None = None
        self.sender = ""


class Slot:
    """A key. ``algo``: "" for the gateway's own. ``verifier``: its public key, where signatures are
    checked. ``view``: whatever a worker's resolver keeps for the key."""

    __slots__ = ("algo", "count", "first", "key", "last", "verifier", "view")

    def __init__(self, key: str) -> None:
        self.key = key
        self.first: Member | None = None
        self.last: Member | None = None
        self.count = 0
        self.algo = ""
        self.verifier: Any = None
        self.view: Any = None

    def __iter__(self) -> Iterator[Member]:
        member = self.first
        while member is not None:
            # The current one may be removed meanwhile.
            following = member.next
            yield member
            member = following


class Table:
    """All slots and members of one gateway. ``members``: how many there are."""

    __slots__ = ("_indexes", "_kinds", "members", "slots")

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.members = 0
        self._indexes: dict[str, dict[str, Member]] = {}  # of long slots: address -> member
        self._kinds: dict[Kind, Kind] = {PLAIN: PLAIN}

    def __iter__(self) -> Iterator[Member]:
        for slot in self.slots.values():
            yield from slot

    def find(self, key: str, address: str) -> Member | None:
        """The member ``address`` of ``key``, or None."""
        slot = self.slots.get(key)
        if slot is None:
            return None
        if slot.count > _LONG:
            return self._index(slot).get(address)
        member = slot.first
        while member is not None and member.address != address:
            member = member.next
        return member

    def _index(self, slot: Slot) -> dict[str, Member]:
        index = self._indexes.get(slot.key)
        if index is None:
            index = self._indexes[slot.key] = {member.address: member for member in slot}
        return index

    def add(self, key: str, address: str) -> Member:
        """A new member, which must not be there yet, at the end of its slot."""
        slot = self.slots.get(key)
        if slot is None:
            slot = self.slots[key] = Slot(key)
        member = Member(slot, address)
        member.previous = slot.last
        if slot.last is None:
            slot.first = member
        else:
            slot.last.next = member
        slot.last = member
        slot.count += 1
        self.members += 1
        index = self._indexes.get(key)
        if index is not None:
            index[address] = member
        return member

    def remove(self, member: Member) -> bool:
        """Take a member out; True if its slot went with it."""
        slot, before, after = member.slot, member.previous, member.next
        if before is None:
            slot.first = after
        else:
            before.next = after
        if after is None:
            slot.last = before
        else:
            after.previous = before
        slot.count -= 1
        self.members -= 1
        index = self._indexes.get(slot.key)
        if index is not None:
            del index[member.address]
            if slot.count <= _LONG // 2:
                del self._indexes[slot.key]
        if slot.first is None:
            del self.slots[slot.key]
            return True
        return False

    def kind(self, kind: Kind) -> Kind:
        """The shared copy of ``kind``."""
        if len(self._kinds) > 10_000:  # only hostile announcements differ so much
            self._kinds.clear()
        return self._kinds.setdefault(kind, kind)

    def apply(self, change: Change) -> Member | None:
        """Do what a change says; the member concerned, or None if there is nothing to do."""
        operation, key, address, *values = change
        member = self.find(key, address)
        if operation == JOIN:
            if member is None:
                member = self.add(key, address)
            fill(member, self, values)
            return member
        if member is None:
            return None
        if operation == LEAVE:
            self.remove(member)
        else:
            member.marked = operation == MARK
        return member


def fill(member: Member, table: Table, values: list[Any]) -> None:
    """Set what a JOIN change says behind the address; the member is alive then."""
    modifier1, modifier2, weight, backup, protocol, algo, joined, *files = values
    member.kind = table.kind(Kind(modifier1, modifier2, backup, protocol))
    member.weight = weight
    member.joined = joined
    member.marked = False
    member.slot.algo = algo
    if files != certificate(member.extra):
        crt, key, authority = files or ("", "", "")
        member.extra = member.extra._replace(sni_crt=crt, sni_key=key, sni_ca=authority)


def joining(member: Member) -> Change:
    """The change that says all that workers have to know of ``member``."""
    kind, slot = member.kind, member.slot
    return [
        JOIN,
        slot.key,
        member.address,
        kind.modifier1,
        kind.modifier2,
        member.weight,
        kind.backup,
        kind.protocol,
        slot.algo,
        member.joined,
        *certificate(member.extra),
    ]
