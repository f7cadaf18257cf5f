"""Federation: what is announced to this router, it announces to others, as a node itself.

uWSGI sends every packet on (plugins/corerouter/cr_common.c), and two of its routers that do so to
each other never stop (uwsgi#871). Here a packet says which instances it has passed (``via``), a key
is sent on once in a while however often it is announced, and a withdrawal only when the key has no
node left.

A uWSGI in the circle does not know ``via`` and drops it, but copies ``sni_ca`` as it is, and looks
at that only beside the two other ``sni_`` items. So in packets without these the list is in
``sni_ca`` too, as ``via:ID,ID``; for a circle whose keys come with certificates there is only the
bounded rate.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from uwgate.config.settings import Endpoint
from uwgate.subscriptions.outbox import (
    Log,
    Resolve,
    SocketAddress,
    Troubles,
    numeric_address,
    resolve_now,
)
from uwgate.subscriptions.packet import UNSUBSCRIBE, Announcement, AnnouncementError, encode
from uwgate.subscriptions.table import Kind, Member

SPACING = 3.0
"""Seconds between two packets that say the same of a key: nodes announce every 10 s."""
CHANGE_SPACING = 1.0
"""Seconds between any two packets of a key: two nodes of one key may differ in what they say."""

# Seconds that a way through fewer routers is preferred after it was last heard of. More than the 10
# s between announcements, and little enough for the next router not to drop the key (17 s).
_PREFERENCE = 12.0
_LOOK_UP = 60.0  # seconds after which a host name is looked up again, without a need
_MAX_VIA = 16  # as `packet.decode` has it
_MAX_MARK = 255
_MAX_PENDING = 10_000  # withdrawals that wait for room
_MAX_SHARED = 1000
_FULL = (errno.EAGAIN, errno.ENOBUFS)

_ID = re.compile(r"[0-9a-z]{1,32}")
_MARK = re.compile(r"via:([0-9a-z]{1,32}(?:,[0-9a-z]{1,32})*)")
_ANYWHERE = re.compile(r"(?:0\.0\.0\.0|\[::\]|):([0-9]+)")


class _Said(NamedTuple):
    """What a packet tells about a key, apart from the address."""

    kind: Kind
    sni_key: str
    sni_crt: str
    sni_ca: str
    via: str


class _Record:
    """A key that was sent on: when last, and what."""

    __slots__ = ("said", "when")

    def __init__(self, said: _Said, when: float) -> None:
        self.said = said
        self.when = when


class _Target:
    """A router to tell. ``address``: None while its name is not resolved."""

    __slots__ = ("address", "due", "endpoint", "is_peer", "local")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.address: SocketAddress | None = None
        self.due = float("-inf")  # when to look its name up again
        self.is_peer = False  # on another machine: what comes from its host is itself
        self.local = ""  # address of this machine on the way to it


def resolve_or_none(host: str, port: int) -> SocketAddress | None:
    """`outbox.resolve_now`, None where it fails. It waits: no loop may use it while it runs."""
    with contextlib.suppress(OSError, UnicodeError):
        return resolve_now(host, port)
    return None


class Resubscriber:
    """Tells ``targets`` (kind ``tcp``, meaning UDP, or ``unix``) what keys can be had here.

    ``bind``: UDP address that the packets come from; OSError if that cannot be. ``address``: the
    name of our first traffic listener, ``""`` while there is none; for one that listens on every
    address (``0.0.0.0:80``) each target is told the one that this machine has on the way to it.
    ``weight``: of this router as a node. ``modifier1``: instead of the nodes' own, if not None.
    ``protocol``: what our listener speaks. ``notify``: socket for the targets' acknowledgements, or
    "". ``instance``: our id, ``[0-9a-z]{1,32}``, unlike that of any other router. ``resolve``: how
    names are looked up; it is asked again and again, and may say None until it knows.

    It is an `admission.Forwarder`. ``sent``, ``failed``: packets. ``suppressed``: announcements
    that were not worth one.
    """

    def __init__(
        self,
        targets: Sequence[Endpoint],
        *,
        bind: Endpoint | None,
        address: Callable[[], str],
        weight: int,
        modifier1: int | None,
        notify: str,
        instance: str,
        log: Log,
        protocol: Literal["uwsgi", "http"] = "uwsgi",
        resolve: Resolve = resolve_or_none,
    ) -> None:
        if not _ID.fullmatch(instance):
            raise ValueError(f"{instance!r} is not an instance id")
        self._address = address
        self._weight = weight
        self._modifier1 = modifier1
        self._notify = notify
        self._instance = instance
        self._protocol = protocol
        self._resolve = resolve
        self._troubles = Troubles(log)
        self._records: dict[str, _Record] = {}
        self._saids: dict[_Said, _Said] = {}
        self._pending: deque[tuple[_Target, bytes]] = deque()
        self._sockets: dict[int, socket.socket] = {}
        self._peers: frozenset[str] = frozenset()
        self.sent = 0
        self.failed = 0
        self.suppressed = 0
        if bind is not None:
            sock = _bound(bind)
            self._sockets[sock.family] = sock
        self._targets = [_Target(endpoint) for endpoint in targets]
        for target in self._targets:
            self._look_up(target)
        self._know_peers()

    @property
    def keys(self) -> int:
        """How many keys the targets know from us."""
        return len(self._records)

    def is_loop(self, announcement: Announcement) -> bool:
        """Whether the packet has passed this router already: it says nothing new then."""
        via, sni_ca = announcement.via, announcement.sni_ca
        if not via and not sni_ca:
            return False
        return self._instance in via.split(",") or self._instance in _marked(sni_ca)

    def is_target(self, address: str) -> bool:
        """Whether a node's ``address`` is one of the targets, as far as its host tells that.

        A target on this machine cannot be told from a node by its host, so none of those is.
        """
        return bool(self._peers) and address.rpartition(":")[0] in self._peers

    def forward(self, key: str, member: Member, now: float) -> None:
        """``member`` of ``key`` announced itself: tell the targets, if they should hear of it.

        ``now``: the monotonic clock. What is a target's own announcement is not told.
        """
        record = self._records.get(key)
        if record is not None and now - record.when < CHANGE_SPACING:
            self.suppressed += 1
            return
        said = None if self.is_target(member.address) else self._say(member)
        if said is None or (record is not None and not _worth(record, said, now)):
            self.suppressed += 1
            return
        said = self._shared(said)
        # Sent or not: a target that cannot be reached is not tried more often than others.
        if record is None:
            self._records[key] = _Record(said, now)
        else:
            record.said, record.when = said, now
        self._tell(self._announcement(key, said))

    def withdraw(self, key: str) -> None:
        """The last node of ``key`` is gone: tell the targets, if they knew it."""
        record = self._records.pop(key, None)
        if record is not None:
            said = record.said._replace(via=self._instance)
            self._tell(self._announcement(key, said, UNSUBSCRIBE))

    def withdraw_all(self) -> None:
        """We stop: tell the targets to use us no more for any key."""
        for key in list(self._records):
            self.withdraw(key)

    def tick(self, now: float) -> None:
        """To be called once a second: names that are due, withdrawals that found no room."""
        for target in self._targets:
            if target.address is None or now >= target.due:
                self._look_up(target)
                target.due = now + _LOOK_UP
        self._know_peers()
        for _ in range(len(self._pending)):
            target, datagram = self._pending.popleft()
            self._send(target, datagram, keep=True)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self._pending.clear()

    # -- what to say ---------------------------------------------------------------------------

    def _say(self, member: Member) -> _Said | None:
        """None if the announcement has passed as many routers as it may, or us."""
        extra = member.extra
        passed = extra.via.split(",") if extra.via else []
        marked = _marked(extra.sni_ca)
        passed += [name for name in marked if name not in passed]
        if len(passed) >= _MAX_VIA or self._instance in passed:
            return None
        passed.append(self._instance)
        kind = member.kind
        if self._modifier1 is not None:
            kind = kind._replace(modifier1=self._modifier1)
        sni_ca = "" if marked else extra.sni_ca
        return _Said(kind, extra.sni_key, extra.sni_crt, sni_ca, ",".join(passed))

    def _shared(self, said: _Said) -> _Said:
        """The same for all keys of which nothing else is said: there may be a million."""
        if len(self._saids) >= _MAX_SHARED:
            self._saids.clear()
        return self._saids.setdefault(said, said)

    def _announcement(self, key: str, said: _Said, command: int = 0) -> Announcement:
        sni_ca = said.sni_ca
        if not (said.sni_key or said.sni_crt or sni_ca):
            mark = "via:" + said.via
            # Ours at least: that it comes back to us is what has to be noticed.
            sni_ca = mark if len(mark) <= _MAX_MARK else "via:" + self._instance
        return Announcement(
            key,
            "",
            command,
            modifier1=said.kind.modifier1,
            modifier2=said.kind.modifier2,
            weight=self._weight,
            protocol=self._protocol,
            sni_key=said.sni_key,
            sni_crt=said.sni_crt,
            sni_ca=sni_ca,
            notify=self._notify,
            via=said.via,
        )

    # -- sending -------------------------------------------------------------------------------

    def _tell(self, announcement: Announcement) -> None:
        """Send to all targets."""
        name = self._address()
        datagrams: dict[str, bytes] = {}
        for target in self._targets:
            address = self._own_address(name, target)
            if not address:
                self.failed += 1
                continue
            datagram = datagrams.get(address)
            if datagram is None:
                announcement.address = address
                try:
                    datagram = datagrams[address] = encode(announcement)
                except AnnouncementError as error:
                    self.failed += 1
                    self._troubles.report("resubscribing", str(error))
                    return
            self._send(target, datagram, keep=announcement.command == UNSUBSCRIBE)

    def _send(self, target: _Target, datagram: bytes, *, keep: bool) -> None:
        """``keep``: it is not said again soon, so it waits if there is no room."""
        if target.address is None:
            self.failed += 1
            return
        what = f"resubscribing to {target.endpoint.text}"
        family, address = target.address
        try:
            self._socket(family).sendto(datagram, address)
        except OSError as error:
            if error.errno in _FULL and keep and len(self._pending) < _MAX_PENDING:
                self._pending.append((target, datagram))
                return
            self.failed += 1
            self._troubles.report(what, error.strerror or str(error))
            if error.errno not in _FULL:
                target.due = float("-inf")
            return
        self.sent += 1
        self._troubles.over(what)

    def _socket(self, family: int) -> socket.socket:
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._sockets[family] = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
        return sock

    def _own_address(self, name: str, target: _Target) -> str:
        match = _ANYWHERE.fullmatch(name)
        if match is None:
            return name
        if not target.local and target.address is not None:
            target.local = _local_host(target.address)
        return f"{target.local}:{match[1]}" if target.local else ""

    # -- names ---------------------------------------------------------------------------------

    def _look_up(self, target: _Target) -> None:
        endpoint = target.endpoint
        if endpoint.kind == "unix":
            target.address = socket.AF_UNIX, endpoint.path
            return
        found = numeric_address(endpoint.host, endpoint.port)
        if found is None:
            found = self._resolve(endpoint.host, endpoint.port)
        what = f"resubscribing to {endpoint.text}"
        if found is None:
            if target.address is None:
                self._troubles.report(what, "the host name is not known yet")
            return
        if target.address is None:
            self._troubles.over(what)
        if found != target.address:
            target.address = found
            target.is_peer = not _is_ours(*found)
        target.local = ""  # the way to it may have changed, too

    def _know_peers(self) -> None:
        peers = set()
        for target in self._targets:
            if target.is_peer and target.address is not None:
                family, address = target.address
                host = str(address[0])
                peers.add(f"[{host}]" if family == socket.AF_INET6 else host)
                peers.add(target.endpoint.host)
        if peers != self._peers:
            self._peers = frozenset(peers)


def _marked(sni_ca: str) -> list[str]:
    match = _MARK.fullmatch(sni_ca)
    return match[1].split(",") if match is not None else []


def _worth(record: _Record, said: _Said, now: float) -> bool:
    """Whether a packet has to follow the last one of the key."""
    age = now - record.when
    longer = said.via.count(",") - record.said.via.count(",")
    if longer > 0:
        # The same key through more routers: only if the short way has fallen silent.
        return age >= _PREFERENCE
    # A way of the same length is nothing new: two neighbours may announce the key in turn.
    return age >= SPACING or longer < 0 or said[:-1] != record.said[:-1]


def _bound(bind: Endpoint) -> socket.socket:
    if bind.kind != "tcp":
        raise OSError(errno.EINVAL, "packets are sent from HOST:PORT")
    host = bind.host or "0.0.0.0"
    found = numeric_address(host, bind.port) or resolve_or_none(host, bind.port)
    if found is None:
        raise OSError(errno.EADDRNOTAVAIL, f'host name "{host}" cannot be resolved')
    sock = socket.socket(found[0], socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(found[1])
    except OSError:
        sock.close()
        raise
    return sock


def _is_ours(family: int, address: Any) -> bool:
    """Whether an address is one of this machine: only those can be bound."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def _local_host(target: SocketAddress) -> str:
    """The address that packets to ``target`` have as their source; "" without a way there."""
    family, address = target
    if family == socket.AF_UNIX:
        return "127.0.0.1"
    # Connecting a datagram socket sends nothing: it only asks the routing table.
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            host = str(probe.getsockname()[0])
    except OSError:  # no way there, or no descriptor left
        return ""
    return f"[{host}]" if family == socket.AF_INET6 else host
