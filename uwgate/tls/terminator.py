"""All that a gateway needs to terminate TLS: which context a connection gets, kept up to date.

The master makes it before it gives up privileges, which reads the keys of listeners and of ``sni``
entries; workers inherit it with the fork. Certificates of directories and of subscriptions are
read by the worker that is first asked for them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from uwgate.config.settings_tls import ListenerTls, PairSettings, TlsSettings
from uwgate.protocols.tls_hello import ClientHello
from uwgate.tls.contexts import Context, Maker, domain_of
from uwgate.tls.errors import TlsError
from uwgate.tls.names import Entry, Names, host_name
from uwgate.tls.openssl import OpenSsl
from uwgate.tls.redis_store import RedisStore, RedisTicketKeys
from uwgate.tls.sessions import Sessions
from uwgate.tls.tickets import TicketKeys

_MEMO = 10_000  # names remembered a listener
_LONGEST_HOST = 300  # characters of a Host value that is remembered
_FRESH = 1.0  # seconds for which a context's files are taken to be unchanged


_Key = tuple[str, str, str]
"""Source and name of an entry, and the client CA that it inherits."""


class _Live:
    """An entry's context, and the state of the files that it was made of. ``below``: the pair of
    the listener, whose client CA it inherits; ``key``: its own in the registry."""

    __slots__ = ("below", "checked", "context", "entry", "key", "stamps")

    def __init__(self, entry: Entry, below: PairSettings, key: _Key = ("", "", "")) -> None:
        self.entry = replace(entry, pair=_inherit(entry.pair, below))
        self.below = below
        self.key = key
        self.context: Context | None = None
        self.stamps: tuple[object, ...] = ()
        self.checked = 0.0


class Terminator:
    """``any_domain``: whether client certificates are asked for anywhere."""

    def __init__(
        self,
        settings: TlsSettings,
        listeners: Sequence[ListenerTls],
        *,
        hooks: OpenSsl | None = None,
        tickets: TicketKeys | None = None,
        sessions: Sessions | None = None,
        remote: RedisStore | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.settings = settings
        self.verbose = settings.verbose
        self._listeners = list(listeners)
        self._tickets = tickets
        self._remote = remote
        self.distributed: RedisTicketKeys | None = None
        self._log = log
        self._now = time.monotonic()
        self._maker = Maker(
            settings, hooks=hooks, tickets=tickets, sessions=sessions, log=self._complain
        )
        self._names = Names(settings)
        self._lives: dict[_Key, _Live] = {}
        self._lazy: OrderedDict[_Key, _Live] = OrderedDict()
        self._memo: dict[int, dict[str, _Live]] = {}
        self._misses: set[str] = set()
        self._domains: dict[int, dict[str, str]] = {}
        self._defaults = {id(each): self._default(each) for each in self._listeners}
        self._make_static()
        self._forget()

    def _complain(self, line: str) -> None:
        self._log(line)

    def _default(self, listener: ListenerTls) -> _Live:
        live = _Live(Entry("listener", listener.context, listener.pair), listener.pair)
        self._make(live)  # raises: a listener has to work
        return live

    def _make_static(self) -> None:
        """What can be made now is: later, privileges may be gone."""
        for entry in list(self._names.static()):
            for listener in self._listeners:
                try:
                    self._make(self._live(entry, listener))
                except TlsError as error:
                    self._log(f"DANGER: no certificate for {entry.source} {entry.name}: {error}")
                    self._names.drop(entry)
                    break

    # --- in a worker ------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop, log: Callable[[str], None]) -> None:
        """This process serves; ``log`` takes complaints that clients can cause."""
        self._log = log
        for part in (self._remote, self.distributed):
            if part is not None:
                part.start(loop)

    def close(self) -> None:
        """No more connections."""
        for part in (self._remote, self.distributed):
            if part is not None:
                part.close()

    def tick(self, now: float) -> None:
        """Once a second."""
        self._now = now
        self._misses.clear()
        if self._settings_change_by_themselves:
            self._domains.clear()
        if self._tickets is not None:
            self._tickets.refresh()

    @property
    def _settings_change_by_themselves(self) -> bool:
        return bool(self.settings.sni_dirs)

    def choose(self, listener: ListenerTls, name: str) -> Context | None:
        """The context for a connection that asks for ``name`` ("": for none); None: refuse it."""
        memo = self._memo.setdefault(id(listener), {})
        live = memo.get(name)
        if live is None:
            live = self._find(listener, name, memo)
            if live is None:
                return self._fallback(listener, name)
        context = self._current(live)
        if context is None:
            memo.pop(name, None)
            return self._fallback(listener, name)
        if live.entry.lazy:
            self._lazy.move_to_end(live.key)
        return context

    def _fallback(self, listener: ListenerTls, name: str) -> Context | None:
        context = self._current(self._defaults[id(listener)])
        if self.settings.sni_strict and (context is None or not context.covers(name)):
            return None
        return context

    def _find(self, listener: ListenerTls, name: str, memo: dict[str, _Live]) -> _Live | None:
        if not name or name in self._misses:
            return None
        entry = self._names.find(name)
        if entry is None:
            if len(self._misses) < _MEMO:
                self._misses.add(name)
            return None
        live = self._live(entry, listener)
        if len(memo) >= _MEMO:
            memo.clear()
        memo[name] = live
        return live

    def _live(self, entry: Entry, listener: ListenerTls) -> _Live:
        """The one object for an entry, which asks for what the listener asks for, if the entry
        says nothing of client certificates: a name must not be a way around them."""
        inherited = "" if entry.pair.client_ca else domain_of(listener.pair)
        key = (entry.source, entry.name, inherited)
        store = self._lazy if entry.lazy else self._lives
        live = store.get(key)
        if live is None:
            live = store[key] = _Live(entry, listener.pair, key)
            if entry.lazy:
                self._bound()
        return live

    def _bound(self) -> None:
        """The least recently used go first."""
        while len(self._lazy) > self.settings.sni_max_contexts:
            self._lazy.popitem(last=False)
            self._memo.clear()

    def _current(self, live: _Live) -> Context | None:
        """The context, made anew if its files have changed; None if there never was one."""
        if self._now - live.checked >= _FRESH:
            live.checked = self._now
            stamps = _stamps(live.entry)
            if stamps != live.stamps:
                self._remake(live, stamps)
        return live.context

    def _remake(self, live: _Live, stamps: tuple[object, ...]) -> None:
        entry = live.entry
        if entry.source == "sni-dir":
            found = self._names.in_directory(entry.name)
            if found is None:
                live.context = None  # taken away
                live.stamps = ()
                return
            live.entry = entry = replace(found, pair=_inherit(found.pair, live.below))
        before = live.context
        try:
            self._make(live)
        except TlsError as error:
            live.stamps = stamps  # not again until something has changed
            kept = "; the old one stays" if before is not None else ""
            self._log(f"no new certificate for {entry.source} {entry.name}: {error}{kept}")
            return
        if before is not None:
            self._log(f"certificate of {entry.source} {entry.name} read anew")

    def _make(self, live: _Live) -> None:
        stamps = _stamps(live.entry)
        live.context = self._maker.make(live.entry.pair, live.entry.identity)
        live.stamps = stamps
        live.checked = self._now
        if live.context.not_after < time.time():
            self._log(f"warning: the certificate of {live.entry.name} has expired")

    # --- client certificates ----------------------------------------------------------------------

    def domain_of(self, listener: ListenerTls, host: str) -> str:
        """``Context.domain`` of the context that a connection for this Host value would get."""
        memo = self._domains.setdefault(id(listener), {})
        domain = memo.get(host)
        if domain is None:
            entry = self._names.find(host_name(host))
            pair = listener.pair if entry is None else _inherit(entry.pair, listener.pair)
            domain = domain_of(pair)
            if len(memo) >= _MEMO:
                memo.clear()
            if len(host) <= _LONGEST_HOST:
                memo[host] = domain
        return domain

    def _forget(self) -> None:
        """Names have changed."""
        self._memo.clear()
        self._misses.clear()
        self._domains.clear()
        self.any_domain = self._names.asks_clients() or any(
            each.pair.client_ca for each in self._listeners
        )

    # --- certificates of subscriptions ------------------------------------------------------------

    def announce(self, key: str, crt: str, key_file: str, authority: str) -> None:
        """A subscription says which files its key has; other files than before count at once."""
        if self._names.announce(key, crt, key_file, authority):
            self._drop_lazy(host_name(key))
            self._forget()

    def withdraw(self, key: str) -> None:
        """The last node of a key is gone, and its certificate with it."""
        if self._names.withdraw(key):
            self._drop_lazy(host_name(key))
            self._forget()

    def _drop_lazy(self, name: str) -> None:
        for key in [key for key in self._lazy if key[:2] == ("subscription", name)]:
            del self._lazy[key]

    # --- sessions on other machines ---------------------------------------------------------------

    def wants(self, hello: ClientHello) -> list[bytes]:
        """Session ids to look up before the handshake."""
        if self._remote is None:
            return []
        # With TLS 1.3, a session that the server keeps is named by the ticket itself (32 bytes).
        ids = [each for each in hello.psk_identities if len(each) == 32]
        if hello.session_id and 0x0304 not in hello.versions:
            ids.append(hello.session_id)
        return ids

    def prefetch(self, ids: Sequence[bytes], done: Callable[[], None]) -> None:
        """Look them up; ``done`` is called when they are here, or it has taken too long."""
        assert self._remote is not None
        self._remote.prefetch(ids, done)

    # --- statistics -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """``{"contexts": int (alive), "certificates": [{"source", "name", "not_after"}], …}``"""
        lives = [*self._defaults.values(), *self._lives.values()]
        snapshot: dict[str, object] = {
            "contexts": len(lives) + sum(live.context is not None for live in self._lazy.values()),
            "certificates": [
                {
                    "source": live.entry.source,
                    "name": live.entry.name,
                    "not_after": live.context.not_after,
                }
                for live in lives
                if live.context is not None
            ],
        }
        if self._remote is not None:
            snapshot["store"] = self._remote.snapshot()
        return snapshot


def _inherit(pair: PairSettings, listener: PairSettings) -> PairSettings:
    if pair.client_ca:
        return pair
    return replace(
        pair, client_ca=listener.client_ca, client_required=listener.client_required
    )


def _stamps(entry: Entry) -> tuple[object, ...]:
    """What tells whether the files have changed; in a directory a CA may come or go."""
    pair = entry.pair
    paths = [pair.cert, pair.key, pair.client_ca]
    if entry.source == "sni-dir":
        paths.append(pair.cert.removesuffix(".crt") + ".ca")
    return tuple(map(_stamp, paths))


def _stamp(path: str) -> object:
    if not path or path.startswith("-----BEGIN "):
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
