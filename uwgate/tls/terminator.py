"""All that a gateway needs to terminate TLS: which context a connection gets, kept up to date.

The master makes it before it gives up privileges, which reads the keys of listeners and of ``sni``
entries; workers inherit it with the fork. Certificates of directories and of subscriptions are
read by the worker that is first asked for them, and changed files by each worker that is: that
blocks it for the millisecond which reading a pair takes, at most once a second a name.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from uwgate.config.settings_tls import ListenerTls, TlsSettings
from uwgate.protocols.tls_hello import ClientHello
from uwgate.tls.contexts import Context, Maker, domain_of
from uwgate.tls.errors import TlsError
from uwgate.tls.live import OWN, STRICTER, Key, Live, inherit
from uwgate.tls.names import Entry, Names, host_name
from uwgate.tls.openssl import OpenSsl
from uwgate.tls.sessions import Sessions
from uwgate.tls.tickets import TicketKeys

if TYPE_CHECKING:  # nobody else has to wait for its client
    from uwgate.tls.redis_store import RedisStore, RedisTicketKeys

_MEMO = 10_000  # names remembered a listener
_LONGEST_HOST = 300  # characters of a Host value that is remembered
_FRESH = 1.0  # seconds for which a context's files are taken to be unchanged
_MOST_IDS = 4  # sessions of one ClientHello that are looked up; clients offer one or two
_STATEFUL_TICKET = 32  # bytes of a ticket that is only a session id (OpenSSL, TLS 1.3)
_TLS_1_3 = 0x0304
_BOTH = (False, True)


class Terminator:
    """Contexts by listener and server name.

    ``any_domain``: whether client certificates are asked for anywhere; once true it stays so.
    ``needs_hello``: whether what a ClientHello says makes any difference.
    ``distributed``: keeps ticket keys the same on all machines, if somebody set it. ``log``: takes
    lines for the main log. Raises TlsError, with the option and the file, if a listener's own
    certificate cannot be used; one of ``sni`` or ``sni-regexp`` only costs a line.
    """

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
        self._lives: dict[Key, Live] = {}
        self._lazy: OrderedDict[Key, Live] = OrderedDict()
        self._memo: dict[int, dict[str, Live]] = {id(each): {} for each in self._listeners}
        self._misses: set[str] = set()
        self._brief: set[tuple[int, str]] = set()
        self._domains: dict[int, dict[str, str]] = {id(each): {} for each in self._listeners}
        self._inherited = {OWN, STRICTER, *(domain_of(each.pair) for each in self._listeners)}
        self.any_domain = self._names.asks_clients() or any(
            each.pair.client_ca for each in self._listeners
        )
        self.needs_hello = bool(
            settings.sni
            or settings.sni_regexps
            or settings.sni_dirs
            or settings.sni_strict
            or self.any_domain
            or remote is not None
        )
        self._defaults = {id(each): self._default(each) for each in self._listeners}
        self._make_static()

    def _complain(self, line: str) -> None:
        self._log(line)

    def _default(self, listener: ListenerTls) -> Live:
        context = listener.context
        key = ("", "", "", listener.spdy)
        live = Live(Entry("listener", context, listener.pair), listener.pair, key)
        try:
            self._make(live)
        except TlsError as error:  # a listener has to work
            address = context.removeprefix("http-")
            option = f"https ({context})" if address == context else f"https = {address},…"
            raise TlsError(f"{option}: {error}") from None
        return live

    def _make_static(self) -> None:
        """What can be made now is: later, privileges may be gone."""
        for entry in list(self._names.static()):
            try:
                for listener in self._listeners:
                    live = self._live(entry, listener)
                    if live.context is None:
                        self._make(live)
            except TlsError as error:
                self._pass_over(entry, error)

    def _pass_over(self, entry: Entry, error: TlsError) -> None:
        """Clients get the listener's certificate. A name that asks for client certificates stays
        known, so that requests for it are refused: the listener's may be a way around them."""
        text = f"DANGER: no certificate for {entry.source} {entry.name}: {error}"
        if entry.pair.client_ca:
            self._log(f"{text}; requests for it are refused")
            for spdy in _BOTH:
                live = self._lives.get((entry.source, entry.name, OWN, spdy))
                if live is not None:
                    live.stamps = live.look()
            return
        self._log(text)
        self._names.drop(entry)
        for inherited, spdy in product(self._inherited, _BOTH):
            self._lives.pop((entry.source, entry.name, inherited, spdy), None)

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
        """Once a second; ``now``: seconds of the monotonic clock."""
        self._now = now
        self._misses.clear()
        if self.settings.sni_dirs:  # they change without a word
            self._forget_brief()
            self._forget_domains()
        if self._tickets is not None:
            self._tickets.refresh()

    def choose(self, listener: ListenerTls, name: str) -> Context | None:
        """The context for a connection that asks for ``name`` ("": for none); None: refuse it."""
        memo = self._memo[id(listener)]
        live = memo.get(name)
        if live is not None:
            context = self._current(live)
            if context is not None:
                if live.entry.lazy:
                    self._lazy.move_to_end(live.key)
                return context
        return self._search(listener, name, memo) or self._fallback(listener, name)

    def _search(self, listener: ListenerTls, name: str, memo: dict[str, Live]) -> Context | None:
        """The context of an entry, found from the beginning."""
        for _ in range(2):
            live = self._find(listener, name, memo)
            if live is None:
                return None
            context = self._current(live)
            if not live.gone:
                return context
        return None  # its files changed under our eyes

    def _fallback(self, listener: ListenerTls, name: str) -> Context | None:
        context = self._current(self._defaults[id(listener)])
        if self.settings.sni_strict and (context is None or not context.covers(name)):
            return None
        return context

    def _find(self, listener: ListenerTls, name: str, memo: dict[str, Live]) -> Live | None:
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
        if entry.source == "sni-dir" and entry.name != name:
            # A file of its own counts more than one of all its neighbours, as soon as it is there.
            if len(self._brief) >= _MEMO:
                self._forget_brief()
            self._brief.add((id(listener), name))
        return live

    def _live(self, entry: Entry, listener: ListenerTls) -> Live:
        """The one object for an entry, which asks for what the listener asks for, if the entry
        says nothing of client certificates: a name must not be a way around them."""
        key = _key(entry, listener)
        store = self._lazy if entry.lazy else self._lives
        live = store.get(key)
        if live is None:
            live = store[key] = Live(entry, listener.pair, key)
            while len(self._lazy) > self.settings.sni_max_contexts:
                self._lazy.popitem(last=False)[1].end()
        return live

    def _current(self, live: Live) -> Context | None:
        """The context, made anew if its files have changed; None if there is none."""
        if self._now - live.checked >= _FRESH and not live.gone:
            live.checked = self._now
            stamps = live.look()
            if stamps != live.stamps:
                self._remake(live, stamps)
        return live.context

    def _remake(self, live: Live, stamps: tuple[object, ...]) -> None:
        entry = live.entry
        if entry.source == "sni-dir":
            found = self._names.in_directory(entry.name)
            if found is None or bool(found.pair.client_ca) != (live.key[2] in (OWN, STRICTER)):
                self._lazy.pop(live.key, None)
                live.end()  # taken away, or with a client CA of its own from now on, or without
                return
            live.entry = entry = replace(found, pair=inherit(found, live.below))
        before = live.context
        try:
            self._make(live)
        except TlsError as error:
            live.stamps = stamps  # not again until something has changed
            new, kept = (" new", "; the old one stays") if before is not None else ("", "")
            self._log(f"no{new} certificate for {entry.source} {entry.name}: {error}{kept}")
            return
        if before is not None:
            self._log(f"certificate of {entry.source} {entry.name} read anew")

    def _make(self, live: Live) -> None:
        stamps = live.look()
        live.context = context = self._maker.make(
            live.entry.pair, live.entry.identity, spdy=live.key[3]
        )
        live.stamps = stamps
        live.checked = self._now
        if 0 < context.not_after < time.time():
            entry = live.entry
            self._log(f"warning: the certificate of {entry.source} {entry.name} has expired")

    # --- client certificates ----------------------------------------------------------------------

    def domain_of(self, listener: ListenerTls, host: str) -> str:
        """``Context.domain`` of the context that a connection for this Host value would get."""
        memo = self._domains[id(listener)]
        domain = memo.get(host)
        if domain is None:
            entry = self._names.find(host_name(host))
            pair = listener.pair if entry is None else inherit(entry, listener.pair)
            domain = domain_of(pair)
            if len(host) <= _LONGEST_HOST:
                if len(memo) >= _MEMO:
                    memo.clear()
                memo[host] = domain
        return domain

    def _forget_domains(self) -> None:
        for memo in self._domains.values():
            memo.clear()

    def _forget_brief(self) -> None:
        for listener, name in self._brief:
            self._memo[listener].pop(name, None)
        self._brief.clear()

    def _forget(self, name: str) -> None:
        """``name`` has another certificate now, and so may those that are looked up by it."""
        for inherited, spdy in product(self._inherited, _BOTH):
            self._lazy.pop(("subscription", name, inherited, spdy), None)
        for memo in self._memo.values():
            memo.clear()
        self._misses.clear()
        self._brief.clear()
        self._forget_domains()

    # --- certificates of subscriptions ------------------------------------------------------------

    def announce(
        self, key: str, address: str, crt: str, key_file: str, authority: str
    ) -> bool:
        """The node ``address`` says which files its key has; others than before count at once.
        Whether anything has changed."""
        if not self._names.announce(key, address, crt, key_file, authority):
            return False
        self._forget(host_name(key))
        self.any_domain = self.any_domain or bool(authority)
        self.needs_hello = True
        return True

    def withdraw(self, key: str, address: str) -> bool:
        """A node is gone, and its certificate with it; whether it had one."""
        if not self._names.withdraw(key, address):
            return False
        self._forget(host_name(key))
        return True

    # --- sessions on other machines ---------------------------------------------------------------

    def wants(self, hello: ClientHello) -> list[bytes]:
        """Session ids to look up before the handshake, as OpenSSL will ask for them."""
        if self._remote is None:
            return []
        options = self.settings.options
        if _TLS_1_3 in hello.versions and not options & ssl.OP_NO_TLSv1_3:
            # A session that the server keeps is named by the ticket itself.
            ids = [each for each in hello.psk_identities if len(each) == _STATEFUL_TICKET]
            return ids[:_MOST_IDS]
        stateless = self.settings.tickets.enabled and not options & ssl.OP_NO_TICKET
        if not hello.session_id or (hello.ticket and stateless):
            return []  # with a ticket the id says only whether it was taken (RFC 5077 §3.4)
        return [hello.session_id]

    def prefetch(self, ids: Sequence[bytes], done: Callable[[], None]) -> None:
        """Look them up; ``done`` is called when they are here, or it has taken too long."""
        assert self._remote is not None
        self._remote.prefetch(ids, done)

    # --- statistics -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """``{"contexts": int (alive), "certificates": [{"source", "name", "not_after"}], …}``"""
        lives = [*self._defaults.values(), *self._lives.values()]
        alive = sum(live.context is not None for live in (*lives, *self._lazy.values()))
        snapshot: dict[str, object] = {
            "contexts": alive,
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


def _key(entry: Entry, listener: ListenerTls) -> Key:
    inherited = OWN
    if not entry.pair.client_ca:
        inherited = domain_of(listener.pair)
    elif entry.lazy and listener.pair.client_required:
        inherited = STRICTER
    return entry.source, entry.name, inherited, listener.spdy
