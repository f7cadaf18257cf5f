"""Announcing this instance to subscription servers: which packets, and when.

An announcement is repeated for as long as the node may be used; it is taken back by a goodbye.
Packets go out at the start, one second later, and then every ``frequency`` seconds (uWSGI
core/master.c, core/subscription.c). Datagrams get lost, so a goodbye is said twice.

`Announcer` has no socket and no clock: its caller says what time it is (``now``, monotonic
seconds), asks ``due`` when to come back, and the datagrams go into an `outbox.Outbox`.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uwgate.config.settings import AnnounceSettings, Endpoint, SubscribeSettings
from uwgate.subscriptions.outbox import Log, Outbox
from uwgate.subscriptions.packet import (
    SUBSCRIBE,
    UNSUBSCRIBE,
    Announcement,
    AnnouncementError,
    encode,
)

if TYPE_CHECKING:
    from uwgate.subscriptions.signing import Signer

_SECOND = 1.0  # after the first announcement comes another, whatever the frequency
_REPEAT = 0.005  # from a goodbye to its repetition
_FINISH = 0.5  # a stop waits for the last datagrams no longer than this

_MAX_KEY_FILE = 1 << 24
_KEY_LINE = re.compile(rb"([\x21-\x2b\x2d-\x7e]{1,255})(?:,([0-9]{1,3}))?")
_ANY_HOST = re.compile(r"(\*|\[\*\]):([0-9]{1,5})")


class AnnounceError(ValueError):
    """What is to be announced cannot be: one sentence for the operator."""


@dataclass(slots=True)
class _Part:
    """One entry. ``sent``: key -> (address, modifier1) of the announcements in force."""

    entry: SubscribeSettings
    signer: Signer | None
    sent: dict[str, tuple[str, int]] = field(default_factory=dict)


class Announcer:
    """Announces ``settings.entries``, whose addresses are final: none is empty or ``=N``.

    ``wall``: the time that signed packets carry. ``cores``: what this instance says about its size.
    Raises AnnounceError if a private key cannot be used.
    """

    def __init__(
        self,
        settings: AnnounceSettings,
        outbox: Outbox,
        log: Log,
        *,
        cores: int = 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._log = log
        self._cores = cores
        self._wall = wall
        self._parts = [_Part(entry, _signer(entry)) for entry in settings.entries]
        self._blocked = settings.start_unsubscribed
        self._running = False
        self._unix = 0  # of the packet before; it never goes back
        self._next: float | None = None  # announcement
        self._period = settings.frequency
        self._second = 0.0
        self._farewell: list[tuple[Endpoint, bytes]] = []
        self._farewell_at = 0.0
        self._pump_at: float | None = None

    @property
    def announced(self) -> bool:
        """Whether servers have been told of something that was not taken back."""
        return any(part.sent for part in self._parts)

    @property
    def blocked(self) -> bool:
        """Whether nothing may be announced (``start-unsubscribed``, `toggle`)."""
        return self._blocked

    @property
    def due(self) -> float | None:
        """When ``tick`` has something to do; None for never."""
        times = [when for when in (self._next, self._pump_at) if when is not None]
        if self._farewell:
            times.append(self._farewell_at)
        return min(times, default=None)

    # -- what happens ----------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Announce from now on (unless it starts unsubscribed)."""
        self._running = True
        self._farewell.clear()  # it would take back what is announced now
        if not self._blocked:
            self._begin(now)

    def tick(self, now: float) -> None:
        """Send what is due."""
        if self._farewell and now >= self._farewell_at:
            for server, datagram in self._farewell:
                self._outbox.put(server, datagram)
            self._farewell.clear()
        if self._next is not None and now >= self._next:
            first = now < self._second
            self._announce()
            self._next = self._second if first else now + self._period
        self._pump(now)

    def hurry(self, now: float) -> None:
        """Announce at once instead of when it is due: a server's name was resolved."""
        if self._next is not None:
            self._announce()
            self._pump(now)

    def goodbye(self, now: float) -> None:
        """Take back everything, and be silent until ``start``. While blocked, only be silent."""
        self._running = False
        self._withdraw(now)

    def withdraw(self, now: float) -> None:
        """Take back what another process announced."""
        for part in self._parts:
            part.sent = dict(self._wanted(part) or {})
        self._withdraw(now)

    def reload(self, now: float) -> None:
        """A graceful reload begins: goodbye if so configured, in any case silence.

        What was announced then belongs to the successor: ``goodbye`` does not take it back.
        """
        self._running = False
        self._next = None
        if self._settings.unsubscribe_on_reload:
            self._withdraw(now)
        for part in self._parts:
            part.sent.clear()

    def toggle(self, now: float) -> None:
        """Block announcements, or let them go on (FIFO command S).

        Blocking says goodbye first, where uWSGI lets the server wait until the node is overdue.
        """
        self._blocked = not self._blocked
        if self._blocked:
            self._withdraw(now)
        elif self._running:
            self._begin(now)

    def finish(self) -> None:
        """Send what is still to be sent (the repeated goodbye); takes half a second at most."""
        if self._farewell:
            time.sleep(max(0.0, min(_REPEAT, self._farewell_at - time.monotonic())))
            self.tick(self._farewell_at)
        self._outbox.finish(_FINISH)
        self._pump_at = None

    # -- when ------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        self._farewell.clear()
        self._second = now + min(_SECOND, self._period)
        self._next = now
        self.tick(now)

    def _withdraw(self, now: float) -> None:
        self._next = None
        goodbyes = list(self._goodbyes())
        if goodbyes:
            # Others may still wait for their repetition.
            self._farewell += goodbyes
            self._farewell_at = now + _REPEAT
        for server, datagram in goodbyes:
            self._outbox.put(server, datagram)
        self._pump(now)

    def _pump(self, now: float) -> None:
        pause = self._outbox.pump()
        self._pump_at = None if pause is None else now + pause

    # -- what ------------------------------------------------------------------------------------

    def _announce(self) -> None:
        unix = self._unix = max(self._unix, int(self._wall()))
        for part in self._parts:
            if part.entry.check and os.path.exists(part.entry.check):
                continue
            wanted = self._wanted(part)
            if wanted is None:
                continue
            for key, (address, modifier1) in list(part.sent.items()):
                if key not in wanted or wanted[key][0] != address:
                    self._put(part, key, address, modifier1, UNSUBSCRIBE, unix)
            part.sent.clear()
            for key, (address, modifier1) in wanted.items():
                if self._put(part, key, address, modifier1, SUBSCRIBE, unix):
                    part.sent[key] = (address, modifier1)

    def _goodbyes(self) -> Iterator[tuple[Endpoint, bytes]]:
        """Packets that take back what is announced. A clock that stood still must not make them
        older than the announcement: servers refuse what is not newer."""
        unix = self._unix = max(self._unix, int(self._wall())) + 1
        for part in self._parts:
            sent, part.sent = part.sent, {}
            if part.entry.check and os.path.exists(part.entry.check):
                continue
            for key, (address, modifier1) in sent.items():
                datagram = self._packet(part, key, address, modifier1, UNSUBSCRIBE, unix)
                if datagram:
                    yield part.entry.server, datagram

    def _wanted(self, part: _Part) -> Mapping[str, tuple[str, int]] | None:
        """Key -> address, modifier1. None: leave things as they are."""
        entry = part.entry
        address = self._address(entry)
        if not address:
            return None
        if not entry.key_file:
            return {entry.key: (address, self._modifier1(entry.modifier1))}
        keys = self._keys(entry)
        if keys is None:
            return None
        return {key: (address, self._modifier1(modifier1)) for key, modifier1 in keys.items()}

    def _modifier1(self, own: int) -> int:
        forced = self._settings.modifier1
        return own if forced is None else forced

    def _address(self, entry: SubscribeSettings) -> str:
        """The address to announce; "" if it is not known yet."""
        match = _ANY_HOST.fullmatch(entry.address)
        if match is None:
            return entry.address
        bracketed = match[1] != "*"
        family = socket.AF_INET6 if bracketed else socket.AF_INET
        if entry.server.kind == "tcp" and self._outbox.target(entry.server) is None:
            return ""  # the resolver is being asked, or has said why not
        host = self._outbox.local_host(entry.server, family)
        what = f"announcing {entry.address} to {entry.server.text}"
        if not host:
            version = "IPv6" if bracketed else "IPv4"
            reason = f"this machine has no {version} address on the way there; announce one by name"
            self._outbox.troubles.report(what, reason)
            return ""
        self._outbox.troubles.over(what)
        return f"[{host}]:{match[2]}" if bracketed else f"{host}:{match[2]}"

    def _keys(self, entry: SubscribeSettings) -> dict[str, int] | None:
        """The keys of a key file: ``KEY[,MODIFIER1]`` a line, ``#`` begins a comment line."""
        what = f"keys of {entry.key_file}"
        try:
            # A FIFO in its place must not stop the loop.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(entry.key_file, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                data = file.read(_MAX_KEY_FILE + 1)
        except OSError as error:
            self._outbox.troubles.report(what, error.strerror or str(error))
            return None
        wrong = "" if len(data) <= _MAX_KEY_FILE else f"only {_MAX_KEY_FILE} bytes are read"
        keys: dict[str, int] = {}
        for number, line in enumerate(data[:_MAX_KEY_FILE].split(b"\n"), 1):
            line = line.strip(b" \t\r")
            if not line or line.startswith(b"#"):
                continue
            match = _KEY_LINE.fullmatch(line)
            if match is None or (match[2] and int(match[2]) > 255):
                wrong = wrong or f"line {number} is not understood; expected KEY[,MODIFIER1]"
            else:
                keys[match[1].decode("ascii")] = int(match[2] or b"0")
        if wrong:
            self._outbox.troubles.report(what, wrong)
        else:
            self._outbox.troubles.over(what)
        return keys

    def _put(
        self, part: _Part, key: str, address: str, modifier1: int, command: int, unix: int
    ) -> bool:
        datagram = self._packet(part, key, address, modifier1, command, unix)
        if datagram:
            self._outbox.put(part.entry.server, datagram)
        return bool(datagram)

    def _packet(
        self, part: _Part, key: str, address: str, modifier1: int, command: int, unix: int
    ) -> bytes:
        """The datagram; empty, with a line in the log, if there cannot be one."""
        entry, settings = part.entry, self._settings
        clear = command == UNSUBSCRIBE and settings.clear_on_shutdown and entry.clearable
        announcement = Announcement(
            key,
            address,
            SUBSCRIBE if clear else command,
            modifier1,
            entry.modifier2,
            self._cores,
            weight=entry.weight or settings.weight,
            backup=entry.backup,
            protocol=entry.protocol,
            algo=entry.algo,
            vassal=entry.vassal,
            clear=clear,
            sni_key=entry.sni_key,
            sni_crt=entry.sni_crt,
            sni_ca=entry.sni_ca,
            notify=settings.announced_notify_socket,
            unix=unix if part.signer is not None else 0,
        )
        what = f"announcing {key} as {address} to {entry.server.text}"
        try:
            return encode(announcement, sign=part.signer.sign if part.signer else None)
        except AnnouncementError as error:
            self._outbox.troubles.report(what, str(error))
            return b""


def _signer(entry: SubscribeSettings) -> Signer | None:
    if not entry.sign_digest:
        return None
    # Only here: the library costs 25 ms and 6 MB, and few sign.
    from uwgate.subscriptions.signing import Signer, SigningError

    try:
        with open(entry.sign_key, "rb") as file:
            return Signer(file.read(), entry.sign_digest)
    except OSError as error:
        raise AnnounceError(f"private key {entry.sign_key}: {error.strerror}") from None
    except SigningError as error:
        raise AnnounceError(f"private key {entry.sign_key}: {error}") from None
