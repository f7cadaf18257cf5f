"""What becomes of an announcement: who may say what, and how the table changes.

A registry is the table of record of one gateway, in the master. It gets every datagram once, checks
it, and publishes what changes; the common case, a node that repeats itself byte for byte, costs a
hash and a look-up. Source: "uWSGI subscription protocol", uWSGI 2.0.31; where it is laxer, the
words of ``Refused`` say what is not accepted here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, get_args

from uwgate.config.settings import Algo, RouterSubscriptions
from uwgate.subscriptions.expiry import Expiry
from uwgate.subscriptions.freshness import Departed
from uwgate.subscriptions.identity import Identity, Refused, with_host
from uwgate.subscriptions.packet import UNSUBSCRIBE, Announcement, AnnouncementError, decode
from uwgate.subscriptions.table import (
    LEAVE,
    MARK,
    NOTHING,
    REVIVE,
    Change,
    Extra,
    Kind,
    Member,
    Table,
    certificate,
    joining,
)

Credentials = tuple[int, int, int]
"""pid, uid and gid of the sender of a unix datagram."""

_COUNTERS = (
    "received",
    "refreshed",
    "joined",
    "updated",
    "left",
    "expired",
    "marked",
    "revived",
    "acknowledged",
    "forwarded",
)
_LINES = 50  # log lines a second of joins, leaves and the like; the rest is summed up
_COMPLAINTS = 5  # and of refusals
_TIMES = 60  # seconds between two writings of signed times
_SLICE = 2_000  # members looked at in one go when many expire together
_PAUSE = 5.0  # seconds between two ticks from which on the process must have been stopped
_ALGORITHMS = frozenset(get_args(Algo))


class Forwarder(Protocol):
    """Tells other routers (``resubscribe.Resubscriber``). ``sent``: packets."""

    sent: int

    def is_loop(self, announcement: Announcement) -> bool:
        """Whether this came from us."""
        ...

    def forward(self, key: str, member: Member, now: float) -> None:
        """``member`` announced itself."""
        ...

    def withdraw(self, key: str) -> None:
        """The key has no node any more."""
        ...


class Registry:
    """The table of record of the gateway ``name``.

    ``publish`` is called with every change that workers have to know, ``acknowledge`` with
    ``(path, key, address)`` when a new node wants to be told. ``own``: addresses that this gateway
    listens on itself. ``servers``: names of the datagram sockets. ``cheap`` gateways need not know.
    """

    def __init__(
        self,
        name: str,
        settings: RouterSubscriptions,
        *,
        publish: Callable[[Change], None],
        log: Callable[[str], None],
        acknowledge: Callable[[str, str, str], object] | None = None,
        forwarder: Forwarder | None = None,
    ) -> None:
        common = settings.common
        self.name = name
        self.settings = common
        self.table = Table()
        self.servers: list[str] = []
        self.own: frozenset[str] = frozenset()
        self.departed = Departed(common.sign_tolerance)
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self.rejected: dict[str, int] = {}
        self.dirty = False  # changed since the state was written
        self._received = self._refreshed = 0
        self._publish = publish
        self._log = log
        self._acknowledge = acknowledge
        self._forwarder = forwarder
        self._identity = Identity(common)
        self._digests: dict[int, Member] = {}  # hash of a datagram -> who sent it last
        self._by_sender: dict[str, int] = {}  # nodes
        self._now = int(time.monotonic())
        self._epoch = time.time() - time.monotonic()
        self._tolerance = int(common.tolerance)
        self._spared_until = 0
        self._expiry = Expiry(self._tolerance)
        self._lines = self._complaints = 0

    @property
    def counters(self) -> dict[str, int]:
        """What became of packets and members, by name."""
        counters = self._counters
        counters["received"] = self._received
        counters["refreshed"] = self._refreshed
        if self._forwarder is not None:
            counters["forwarded"] = self._forwarder.sent
        return counters

    # --- datagrams ----------------------------------------------------------------------------

    def receive(self, datagram: bytes, sender: str, credentials: Credentials | None) -> None:
        """One datagram. ``sender``: its IP address, or ``unix``, or ``uid N``. Never raises."""
        self._received += 1
        # A 64-bit keyed hash: whoever could make two alike could as well send the packet itself.
        member = self._digests.get(hash(datagram))
        if member is not None and credentials is None:
            member.seen = self._now
            self._refreshed += 1
            if self._forwarder is not None:
                self._forwarder.forward(member.slot.key, member, self._now)
            return
        try:
            announcement = decode(datagram)
            if self._forwarder is not None and self._forwarder.is_loop(announcement):
                raise Refused("loop", f"{announcement.key} was announced by this router itself")
            announcement.key = announcement.key.rstrip("/") or announcement.key
            told = announcement.address
            announcement.address = with_host(told, sender)
            if announcement.address != told and self._must_sign(credentials):
                # Else whoever recorded the packet would send it again, and be the node.
                text = f"{announcement.key}: the signature covers no host in {told}"
                raise AnnouncementError("bad-address", f"{text}; expected HOST:PORT")
            if announcement.command == UNSUBSCRIBE:
                self._withdraw(announcement, credentials)
            else:
                # The same bytes of another sender mean another node where they leave the host to
                # it, and the kernel's word on who it is may be another next time.
                whole = credentials is None and announcement.address == told
                digest = hash(datagram) if whole and not self._identity.signs else None
                self._announce(announcement, digest, sender, credentials)
        except AnnouncementError as error:
            self._refuse(error.word, f"{error} (from {sender})")

    def _must_sign(self, credentials: Credentials | None) -> bool:
        return self._identity.signs and not self._identity.exempt(credentials)

    def _announce(
        self,
        announcement: Announcement,
        digest: int | None,
        sender: str,
        credentials: Credentials | None,
    ) -> None:
        key, address = announcement.key, announcement.address
        if address in self.own:
            raise Refused("self", f"{key}: {address} is this router")
        slot = self.table.slots.get(key)
        member = self.table.find(key, address) if slot is not None else None
        if member is None and slot is None and len(self.table.slots) >= self.settings.max_keys:
            raise Refused("too-many-keys", f"{key}: there are {self.settings.max_keys} keys")
        identity = self._identity
        identity.check_credentials(key, credentials)
        signed = self._must_sign(credentials)
        if signed:
            # First what costs nothing.
            identity.check_time(announcement, member.unix if member is not None else 0)
            public = identity.verify(announcement, slot.verifier if slot is not None else None)
        if member is None:
            member = self._join(announcement, sender, signed=signed)
        if signed:
            member.unix = max(member.unix, announcement.unix)
            member.slot.verifier = public
        self._refresh(member, announcement, credentials)
        self._remember(member, digest)
        if self._forwarder is not None:
            self._forwarder.forward(key, member, self._now)

    def _join(self, announcement: Announcement, sender: str, *, signed: bool) -> Member:
        """A new member, not yet filled in."""
        key, address, settings = announcement.key, announcement.address, self.settings
        slot = self.table.slots.get(key)
        if slot is not None and slot.count >= settings.max_nodes:
            raise Refused("too-many-nodes", f"{key}: there are {settings.max_nodes} nodes")
        here = self._by_sender.get(sender, 0)
        if settings.max_sender_nodes and here >= settings.max_sender_nodes:
            raise Refused("too-many-from-sender", f"{sender} has announced {here} nodes")
        if signed and not self.departed.allows(key, address, announcement.unix):
            raise Refused("stale", f"{key}: {address} sent this before it left")
        member = self.table.add(key, address)
        if slot is None:
            self._say(f"new pool: {key}")
            if key.count("/") > settings.mountpoints:
                why = f"its path is longer than subscription-mountpoints = {settings.mountpoints}"
                self._say(f"{key} is never looked up: {why}")
            # Whoever comes first decides (uWSGI 2.1); what nobody knows means the gateway's own.
            member.slot.algo = announcement.algo if announcement.algo in _ALGORITHMS else ""
        # Whoever is exempt brings no time, but what was signed before does not count anew.
        member.unix = self.departed.returned(key, address, announcement.unix if signed else 0)
        member.sender = sender
        member.seen = self._now
        member.joined = int(self._now + self._epoch)
        self._by_sender[sender] = here + 1
        self._expiry.watch(member)
        self._counters["joined"] += 1
        if self._lines < _LINES:
            details = f"weight: {announcement.weight}, backup: {announcement.backup}, from {sender}"
            self._say(f"{key} => new node: {address} ({details})")
        else:  # when many come together, a line that nobody gets costs a tenth of it all
            self._lines += 1
        self.dirty = True
        if announcement.notify and self._acknowledge is not None and _local(sender):
            self._counters["acknowledged"] += 1
            self._acknowledge(announcement.notify, key, address)
        return member

    def _refresh(
        self, member: Member, announcement: Announcement, credentials: Credentials | None
    ) -> None:
        """Take over what the announcement says, and tell the workers if it matters to them."""
        member.seen = self._now
        member.cores = announcement.cores
        member.load = announcement.load
        # Plain tuples, which are equal to named ones and a good deal cheaper: most say nothing new.
        kind = (
            announcement.modifier1,
            announcement.modifier2,
            announcement.backup,
            announcement.protocol,
        )
        extra = (
            announcement.notify,
            announcement.vassal,
            announcement.sni_key,
            announcement.sni_crt,
            announcement.sni_ca,
            announcement.via,
            *(credentials or (0, 0, 0)),
        )
        files = certificate(member.extra)
        member.extra = NOTHING if extra == NOTHING else Extra(*extra)
        fresh = not member.weight
        if (
            kind != member.kind
            or announcement.weight != member.weight
            or certificate(member.extra) != files
        ):
            member.kind = self.table.kind(Kind(*kind))
            member.weight = announcement.weight
            member.marked = False
            self._publish(joining(member))
            if not fresh:
                self._counters["updated"] += 1
                self.dirty = True
        elif member.marked:
            member.marked = False
            self.revived(member, "it announced itself")
        else:
            self._refreshed += 1

    def _withdraw(self, announcement: Announcement, credentials: Credentials | None) -> None:
        key, address = announcement.key, announcement.address
        member = self.table.find(key, address)
        identity = self._identity
        signed = self._must_sign(credentials)
        if member is None and not (signed and self.departed.knows(key, address)):
            return
        identity.check_credentials(key, credentials)
        goodbye = 0
        if signed:
            newest = self.departed.newest(key, address) if member is None else member.unix
            identity.check_time(announcement, newest)
            slot = self.table.slots.get(key)
            identity.verify(announcement, slot.verifier if slot is not None else None)
            goodbye = announcement.unix
        if member is None:
            # It was dropped before it said goodbye, which must not come back as an announcement.
            self.departed.left(key, address, newest, goodbye)
            return
        self._say(f"{key} => node left: {address} (it said goodbye)")
        self._counters["left"] += 1
        self._remove(member, member.unix, goodbye)

    # --- members ------------------------------------------------------------------------------

    def _remember(self, member: Member, digest: int | None) -> None:
        """``digest``: of the datagram that said all of this, None if it has to be read again."""
        if digest != member.digest:
            self._forget_digest(member)
            member.digest = digest
        if digest is not None:
            self._digests[digest] = member

    def _forget_digest(self, member: Member) -> None:
        if member.digest is not None and self._digests.get(member.digest) is member:
            del self._digests[member.digest]
        member.digest = None

    def _remove(self, member: Member, announced: int = 0, goodbye: int = 0) -> None:
        key, address = member.slot.key, member.address
        self._forget_digest(member)
        if announced or goodbye:
            self.departed.left(key, address, announced, goodbye)
        left = self._by_sender.get(member.sender, 1) - 1
        if left > 0:
            self._by_sender[member.sender] = left
        else:
            self._by_sender.pop(member.sender, None)
        gone = self.table.remove(member)
        self._expiry.forget(member)
        self._publish([LEAVE, key, address])
        self.dirty = True
        if gone and self._forwarder is not None:
            self._forwarder.withdraw(key)

    def mark(self, key: str, address: str, reason: str) -> None:
        """A worker could not reach the member."""
        member = self.table.find(key, address)
        if member is None:
            return
        member.failures += 1
        if member.marked:
            return
        member.marked = True
        self._forget_digest(member)  # its next announcement is more than a repetition
        self._counters["marked"] += 1
        self._say(f"{key} => marking {address} as failed ({reason})")
        self._publish([MARK, key, address])

    def reached(self, key: str, address: str) -> None:
        """A worker reached a marked member after all."""
        member = self.table.find(key, address)
        if member is not None and member.marked:
            member.marked = False
            self.revived(member, "it was reached")

    def revived(self, member: Member, reason: str) -> None:
        """A marked member is of use again."""
        self._counters["revived"] += 1
        self._say(f"{member.slot.key} => {member.address} is back ({reason})")
        self._publish([REVIVE, member.slot.key, member.address])

    def restore(self, member: Member) -> None:
        """Take in a member that was added to ``table`` by whoever read the state file."""
        member.seen = self._now
        self._by_sender[member.sender] = self._by_sender.get(member.sender, 0) + 1
        self._expiry.watch(member)

    def last_check(self, member: Member) -> int:
        """When the member announced itself last, in epoch seconds."""
        return int(member.seen + self._epoch)

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Once a second, ``now`` of the monotonic clock: drop members that have been silent.

        True if there is more to do than should be done in one go: call again soon.
        """
        if int(now) != self._now:
            if now - self._now > _PAUSE:
                # Nobody was heard for that long, because nobody listened.
                self._spared_until = int(now) + self._tolerance + 1
            self._now = int(now)
            self._epoch = time.time() - now
            self._limit_lines()
            if self._identity.signs and not self._now % _TIMES:
                self.dirty = True  # a crash must not make old packets count again
            self.departed.forget_old(now + self._epoch)
        if self._now < self._spared_until:
            return False
        for member in self._expiry.due(self._now, _SLICE):
            silent = self._now - member.seen
            text = f"no announce received in {silent} seconds"
            self._say(f"{member.slot.key} => marking {member.address} as failed ({text})")
            self._counters["expired"] += 1
            self._remove(member, member.unix)
        return self._expiry.pending

    def _limit_lines(self) -> None:
        if self._lines > _LINES:
            self._log(f"[subscriptions {self.name}] ({self._lines - _LINES} more changes)")
        if self._complaints > _COMPLAINTS:
            count = self._complaints - _COMPLAINTS
            self._log(f"[subscriptions {self.name}] ({count} more refused packets)")
        self._lines = self._complaints = 0

    def _say(self, text: str) -> None:
        self._lines += 1
        if self._lines <= _LINES:
            self._log(f"[subscriptions {self.name}] {text}")

    def _refuse(self, word: str, text: str) -> None:
        self.rejected[word] = self.rejected.get(word, 0) + 1
        # Two packets of one second, as at every start of a node, are nothing to talk about, nor is
        # what comes back in a circle of routers, every few seconds for every key.
        if word in ("repeated", "loop"):
            return
        self._complaints += 1
        if self._complaints <= _COMPLAINTS:
            self._log(f"[subscriptions {self.name}] refused: {text}")


def _local(sender: str) -> bool:
    """Whether the sender is on this machine, and so may have a socket to be told at."""
    if ":" in sender:
        return sender == "::1"
    return not sender[:1].isdigit() or sender.startswith("127.")
