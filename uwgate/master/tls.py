"""TLS in the master: what is made before the fork and shared by all workers, and kept up to date.

Caches, ticket keys and contexts are made before privileges are given up: that is when keys can be
read. After that the master hears of sessions on other machines, and changes the ticket keys.
"""

from __future__ import annotations

import functools
import selectors
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from uwgate.config.settings import HttpSettings, Settings
from uwgate.config.settings_tls import CacheSettings, TlsSettings
from uwgate.config.tls_values import is_store
from uwgate.master.errors import StartError, explain
from uwgate.master.handover import HandedSocket, adopt
from uwgate.master.inherited import Inherited
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.observe.stats import Cache
from uwgate.protocols.cache_sync import Update
from uwgate.tls.cache import SharedCache
from uwgate.tls.errors import TlsError

if TYPE_CHECKING:  # imported where they are needed: most of a start would be spent on them
    from uwgate.tls.redis_store import RedisStore
    from uwgate.tls.sessions import Store
    from uwgate.tls.sync import SyncReceiver, SyncSender
    from uwgate.tls.terminator import Terminator
    from uwgate.tls.tickets import TicketKeys

_REREAD = 2.0  # seconds between looks at a file of ticket keys
_GRACE = 3.0  # seconds for which a ticket key is good beyond the life of its tickets, and one more


class Tls:
    """``caches``: all of the configuration, by name; ``senders``: of those with other machines to
    tell, which workers do. ``terminators``: by gateway. All made by ``prepare``.

    ``handed``: what `handed` of the master before said; ``inherited``: the sockets that it had."""

    def __init__(
        self,
        settings: Settings,
        loop: Loop,
        log: MainLog,
        handed: Mapping[str, Any] | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._log = log
        self._handed: Mapping[str, Any] = handed or {}
        self._inherited = inherited or Inherited()
        self._tickets: TicketKeys | None = None
        self._receivers: dict[str, list[SyncReceiver]] = {}
        self.caches: dict[str, SharedCache] = {}
        self.senders: dict[str, SyncSender] = {}
        self.terminators: Mapping[str, Terminator] = {}

    # --- start ------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make everything, while privileges last; StartError where something cannot be used."""
        for cache in self._settings.caches:
            self._prepare_cache(cache)
        http = self._settings.http
        if http is None or http.tls is None:
            return
        _warn_of_legacy(http.tls, self._log.line)
        try:
            self.terminators = {"http": self._terminator(http, http.tls)}
        except TlsError as error:
            raise StartError(str(error)) from None

    def _prepare_cache(self, settings: CacheSettings) -> None:
        from uwgate.tls.sync import SyncReceiver, SyncSender

        name = settings.name
        try:
            handed = self._handed.get("caches", {}).get(name)
            cache = self.caches[name] = SharedCache(settings, handed)
        except (OSError, ValueError, OverflowError) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            raise StartError(f"cache {name}: no memory for it: {reason}") from None
        kept = ", kept" if cache.inherited else ""
        self._log.line(f"cache {name}: {settings.items} items of {settings.blocksize} bytes{kept}")
        if settings.nodes:
            self.senders[name] = SyncSender(settings, self._log.line)
        self._receivers[name] = receivers = []
        for address in settings.udp:
            apply = functools.partial(_apply, cache)
            found = self._inherited.take_all(_text(name, address))
            try:
                sock = adopt(found[0].fds[0]) if found else None
                receiver = SyncReceiver(address, settings, apply, self._log.line, sock)
            except OSError as error:
                raise StartError(f"cache {name}: udp {address}: {explain(error)}") from None
            receivers.append(receiver)
            self._log.line(f"cache {name}: changes of other machines on udp {address}")

    def _terminator(self, http: HttpSettings, tls: TlsSettings) -> Terminator:
        from uwgate.tls import openssl
        from uwgate.tls.sessions import Sessions
        from uwgate.tls.terminator import Terminator
        from uwgate.tls.tickets import TicketKeys

        hooks = openssl.load(self._log.line)
        remote = sessions = None
        if hooks is not None:
            if tls.tickets.enabled:
                self._tickets = TicketKeys(
                    tls.tickets,
                    tls.sessions.timeout,
                    self._log.line,
                    inherited=self._handed.get("tickets"),
                )
            store, remote = self._store(tls)
            if store is not None:
                sender = self.senders.get(tls.sessions.cache)
                sessions = Sessions(hooks, store, tls.sessions.timeout, sender)
            self._log.line(f"uwgate https with {ssl.OPENSSL_VERSION}, {_shared(tls)}")
        terminator = Terminator(
            tls,
            [each.tls for each in http.listeners if each.tls is not None],
            hooks=hooks,
            tickets=self._tickets,
            sessions=sessions,
            remote=remote,
            log=self._log.line,
        )
        if is_store(tls.tickets.source) and self._tickets is not None:
            from uwgate.tls.redis_store import RedisTicketKeys

            terminator.distributed = RedisTicketKeys(
                tls.tickets, self._tickets, self._log.line, timeout=tls.sessions.timeout
            )
        return terminator

    def _store(self, tls: TlsSettings) -> tuple[Store | None, RedisStore | None]:
        sessions = tls.sessions
        if sessions.cache:
            return self.caches[sessions.cache], None
        if sessions.url:
            from uwgate.tls.redis_store import RedisStore

            remote = RedisStore(sessions, self._log.line)
            return remote, remote
        return None, None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Hear of other machines, and begin to change the ticket keys."""
        for receivers in self._receivers.values():
            for receiver in receivers:
                handler = functools.partial(_read, receiver)
                self._loop.selector.register(receiver, selectors.EVENT_READ, handler)
        tls = self._settings.http.tls if self._settings.http is not None else None
        if self._tickets is None or tls is None:
            return
        if not tls.tickets.source:
            if len(self._tickets) > 1:  # of the master before
                self._loop.call_later(tls.sessions.timeout + _GRACE, self._tickets.retire)
            self._rotate_later(self._tickets, tls)
        elif not is_store(tls.tickets.source):
            self._reread_later(self._tickets)

    def _rotate_later(self, tickets: TicketKeys, tls: TlsSettings) -> None:
        def rotate() -> None:
            tickets.rotate()
            self._rotate_later(tickets, tls)
            self._loop.call_later(tls.sessions.timeout + _GRACE, tickets.retire)

        # Counted from the birth of the key: an instance that is often reloaded rotates as well.
        self._loop.call_later(max(0.0, tickets.next_rotation - time.monotonic()), rotate)

    def _reread_later(self, tickets: TicketKeys) -> None:
        def reread() -> None:
            self._reread_later(tickets)
            tickets.reread()

        self._loop.call_later(_REREAD, reread)

    def handed(self) -> dict[str, Any]:
        """For the next master, as JSON; `descriptors` have to stay open. ``tickets`` was made for
        this, and is to be closed. Raises OSError."""
        value: dict[str, Any] = {
            "caches": {name: cache.handed() for name, cache in self.caches.items()}
        }
        if self._tickets is not None:
            value["tickets"] = self._tickets.handover()
        return value

    def descriptors(self) -> list[int]:
        """Those of the caches that `handed` names."""
        return [int(cache.handed()["fd"]) for cache in self.caches.values()]

    def sockets(self) -> list[HandedSocket]:
        """Those on which other machines are heard, for the next master."""
        return [
            HandedSocket("", "dgram", [receiver.fileno()], None, _text(name, address))
            for name, receivers in self._receivers.items()
            for address, receiver in zip(self.caches[name].settings.udp, receivers, strict=True)
        ]

    def snapshot(self) -> list[Cache]:
        """The caches for the stats server, with the datagrams that the master has received."""
        shown: list[Cache] = []
        for name, cache in self.caches.items():
            each: Cache = cache.snapshot()
            receivers = self._receivers.get(name, ())
            if receivers or name in self.senders:
                each["sync"] = {
                    "received": sum(receiver.received for receiver in receivers),
                    "refused": sum(receiver.refused for receiver in receivers),
                }
            shown.append(each)
        return shown

    def close(self) -> None:
        """Give up the sockets."""
        for receivers in self._receivers.values():
            for receiver in receivers:
                receiver.close()


def _apply(cache: SharedCache, update: Update) -> None:
    """Do what another machine did; nobody else is told (uWSGI)."""
    if update.value is None:
        cache.delete(update.key)
    else:
        cache.set(update.key, update.value, update.expires)


def _text(cache: str, address: str) -> str:
    return f"cache {cache} udp {address}"


def _read(receiver: SyncReceiver, mask: int) -> None:
    receiver.read()


def _warn_of_legacy(settings: TlsSettings, log: Callable[[str], None]) -> None:
    """A loud line for each protocol that nobody should speak any more (RFC 7568, RFC 8996)."""
    for option, enabled, name, possible in (
        ("ssl-enable-sslv3", settings.enable_sslv3, "SSL 3.0", ssl.HAS_SSLv3),
        ("ssl-enable-tlsv1", settings.enable_tlsv1, "TLS 1.0", ssl.HAS_TLSv1),
        ("ssl-enable-tlsv11", settings.enable_tlsv11, "TLS 1.1", ssl.HAS_TLSv1_1),
    ):
        if enabled and possible:
            log(f"*** INSECURE: {option}: {name} is accepted, which is broken ***")
        elif enabled:
            log(f"*** {option}: this OpenSSL has no {name} any more ***")


def _shared(settings: TlsSettings) -> str:
    """What of sessions is shared, for the log; addresses may hold a password."""
    sessions, tickets = settings.sessions, settings.tickets
    kept = "no session ids"
    if sessions.url:
        kept = "session ids in the distributed store"
    elif sessions.cache:
        kept = f"session ids in cache {sessions.cache}"
    if not tickets.enabled:
        return f"{kept}, no tickets"
    if is_store(tickets.source):
        return f"{kept}, ticket keys from the distributed store"
    if tickets.source:
        return f"{kept}, ticket keys from {tickets.source}"
    return f"{kept}, a new ticket key every {tickets.rotate:g} s"
