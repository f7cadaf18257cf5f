"""TLS in the master: what is made before the fork and shared by all workers, and kept up to date.

Caches, ticket keys and contexts are made before privileges are given up: that is when keys can be
read. After that the master hears of sessions on other machines, and changes the ticket keys.
"""

from __future__ import annotations

import selectors
from collections.abc import Mapping
from typing import Any

from uwgate.config.settings import HttpSettings, Settings
from uwgate.config.settings_tls import CacheSettings, TlsSettings
from uwgate.config.tls_values import is_store
from uwgate.master.errors import StartError, explain
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.protocols.cache_sync import Update
from uwgate.tls import openssl
from uwgate.tls.cache import SharedCache
from uwgate.tls.errors import TlsError
from uwgate.tls.redis_store import RedisStore, RedisTicketKeys
from uwgate.tls.sessions import Sessions, Store
from uwgate.tls.sync import SyncReceiver, SyncSender
from uwgate.tls.terminator import Terminator
from uwgate.tls.tickets import TicketKeys

_REREAD = 2.0  # seconds between looks at a file of ticket keys


class Tls:
    """``terminators``: by gateway. ``caches``: all of the configuration, by name."""

    def __init__(self, settings: Settings, loop: Loop, log: MainLog) -> None:
        self._settings = settings
        self._loop = loop
        self._log = log
        self._tickets: TicketKeys | None = None
        self._receivers: list[SyncReceiver] = []
        self._senders: dict[str, SyncSender] = {}
        self._timers: list[Any] = []
        self.caches: dict[str, SharedCache] = {}
        self.terminators: Mapping[str, Terminator] = {}

    def prepare(self) -> None:
        """Make everything; StartError where something of it cannot be used."""
        for cache in self._settings.caches:
            self._prepare_cache(cache)
        http = self._settings.http
        if http is None or http.tls is None:
            return
        try:
            self.terminators = {"http": self._terminator(http, http.tls)}
        except TlsError as error:
            raise StartError(str(error)) from None

    def _prepare_cache(self, settings: CacheSettings) -> None:
        try:
            cache = self.caches[settings.name] = SharedCache(settings)
        except (OSError, ValueError, OverflowError) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            raise StartError(f"cache {settings.name}: no memory for it: {reason}") from None
        self._log.line(f"cache {settings.name}: {settings.items} items of {settings.blocksize} B")
        if settings.nodes:
            self._senders[settings.name] = SyncSender(settings, self._log.line)

        def apply(update: Update) -> None:
            if update.value is None:
                cache.delete(update.key)
            else:
                cache.set(update.key, update.value, update.expires)

        for address in settings.udp:
            try:
                receiver = SyncReceiver(address, settings, apply, self._log.line)
            except OSError as error:
                raise StartError(f"cache {settings.name}: udp {address}: {explain(error)}") from None
            self._receivers.append(receiver)
            self._log.line(f"cache {settings.name} hears of changes on udp {address}")

    def _terminator(self, http: HttpSettings, tls: TlsSettings) -> Terminator:
        hooks = openssl.load(self._log.line)
        remote = sessions = None
        if hooks is not None:
            self._tickets = self._ticket_keys(tls)
            store, remote = self._store(tls)
            if store is not None:
                sender = self._senders.get(tls.sessions.cache)
                sessions = Sessions(hooks, store, tls.sessions.timeout, sender)
        listeners = [each.tls for each in http.listeners if each.tls is not None]
        terminator = Terminator(
            tls,
            listeners,
            hooks=hooks,
            tickets=self._tickets,
            sessions=sessions,
            remote=remote,
            log=self._log.line,
        )
        if is_store(tls.tickets.source) and self._tickets is not None:
            terminator.distributed = RedisTicketKeys(tls.tickets, self._tickets, self._log.line)
        return terminator

    def _ticket_keys(self, tls: TlsSettings) -> TicketKeys:
        source = tls.tickets.source
        file = "" if is_store(source) else source
        return TicketKeys(tls.tickets, tls.sessions.timeout, self._log.line, file=file)

    def _store(self, tls: TlsSettings) -> tuple[Store | None, RedisStore | None]:
        sessions = tls.sessions
        if sessions.cache:
            return self.caches[sessions.cache], None
        if sessions.url:
            remote = RedisStore(sessions, self._log.line)
            return remote, remote
        return None, None

    def start(self) -> None:
        """Hear of other machines, and begin to change the ticket keys."""
        for receiver in self._receivers:
            self._loop.selector.register(
                receiver, selectors.EVENT_READ, lambda _, receiver=receiver: receiver.read()
            )
        tls = self._settings.http.tls if self._settings.http is not None else None
        if self._tickets is None or tls is None or not tls.tickets.enabled:
            return
        if tls.tickets.source:
            if not is_store(tls.tickets.source):
                self._loop.call_later(_REREAD, self._reread)
        else:
            self._loop.call_later(tls.tickets.rotate, self._rotate)

    def _rotate(self) -> None:
        assert self._tickets is not None
        self._tickets.rotate()
        http = self._settings.http
        assert http is not None
        assert http.tls is not None
        # Keys change faster than sessions end: the one before the last goes then.
        life = min(http.tls.sessions.timeout + 2.0, http.tls.tickets.rotate * 0.9)
        self._loop.call_later(life, self._tickets.retire)
        self._loop.call_later(http.tls.tickets.rotate, self._rotate)

    def _reread(self) -> None:
        assert self._tickets is not None
        self._tickets.reread()
        self._loop.call_later(_REREAD, self._reread)

    def snapshot(self) -> list[dict[str, object]]:
        """The caches for the stats server."""
        return [cache.snapshot() for cache in self.caches.values()]

    def counts(self) -> dict[str, int]:
        """Datagrams of caches: ``{"received", "refused", "sent", "failed"}`` of the master."""
        total = {"received": 0, "refused": 0}
        for receiver in self._receivers:
            total["received"] += receiver.received
            total["refused"] += receiver.refused
        return total

    def close(self) -> None:
        """Give up the sockets."""
        for receiver in self._receivers:
            receiver.close()
