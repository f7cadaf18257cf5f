"""The subscriptions of an instance in the master: sockets, tables of record, what workers are told.

Each packet is received, checked and applied once. What changes goes to the workers of the gateway,
gathered over one round of the loop; a new worker inherits the table with the fork.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import secrets
import selectors
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from uwgate.config.addresses import local_addresses
from uwgate.config.settings import AnnounceSettings, RouterSubscriptions, SubscriptionSettings
from uwgate.master.errors import StartError, explain
from uwgate.master.handover import HandedSocket, adopt
from uwgate.master.inherited import Inherited
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.subscriptions.admission import Registry
from uwgate.subscriptions.lookup import Lookups
from uwgate.subscriptions.notify import Acknowledger
from uwgate.subscriptions.resubscribe import Resubscriber
from uwgate.subscriptions.server import DatagramServer, wanted_name
from uwgate.subscriptions.state import (
    Floor,
    State,
    StateError,
    StateKeeper,
    load,
    read,
    save,
    write,
)
from uwgate.subscriptions.table import Change, Table

Publish = Callable[[str, list[Change]], None]
"""Sends changes to the workers of a gateway."""

_TICK = 1.0
_SOON = 0.01  # when there is more to expire than is done in one go
_BATCH = 1000  # changes in one message
_FREEZE = 20_000  # new members after which the collector is told to leave them alone


class GatewaySubscriptions(Registry):
    """One gateway's registry with its sockets."""

    def __init__(
        self,
        name: str,
        settings: RouterSubscriptions,
        log: MainLog,
        acknowledger: Acknowledger,
        announce: AnnounceSettings,
        mode: int | None,
        lookups: Lookups,
        inherited: Inherited,
    ) -> None:
        self.changes: list[Change] = []
        self.listener = ""  # the name of the first traffic listener
        self.told: Callable[[], None] = lambda: None  # changes came from a worker
        self.resubscriber: Resubscriber | None = None
        if settings.resubscribe:
            self.resubscriber = self._federate(name, settings, log, announce, lookups)
        super().__init__(
            name,
            settings,
            publish=self.changes.append,
            log=log.line,
            acknowledge=acknowledger.send,
            forwarder=self.resubscriber,
        )
        self.sockets: list[DatagramServer] = []
        common = settings.common
        for endpoint in settings.servers:
            try:
                handed = inherited.take(endpoint, "dgram", wanted_name(endpoint))
                server = DatagramServer(
                    endpoint,
                    self.receive,
                    credentials=common.use_credentials,
                    max_rate=common.max_rate,
                    mode=mode,
                    crash=log.crash,
                    inherited=adopt(handed.fds[0]) if handed is not None else None,
                )
            except OSError as error:
                self.close()
                option = f"{name}-subscription-server = {endpoint.text}"
                raise StartError(f"{option}: {explain(error)}") from None
            self.sockets.append(server)
            self.servers.append(server.name)

    def _federate(
        self,
        name: str,
        settings: RouterSubscriptions,
        log: MainLog,
        announce: AnnounceSettings,
        lookups: Lookups,
    ) -> Resubscriber:
        try:
            return Resubscriber(
                settings.resubscribe,
                bind=settings.resubscribe_bind,
                address=lambda: self.listener,
                weight=announce.weight,
                modifier1=announce.modifier1,
                notify=announce.announced_notify_socket,
                instance=secrets.token_hex(8),
                log=log.line,
                protocol="http" if name == "http" else "uwsgi",
                resolve=lookups.address,
            )
        except OSError as error:
            bind = settings.resubscribe_bind
            text = bind.text if bind is not None else ""
            raise StartError(f"{name}-resubscribe-bind = {text}: {explain(error)}") from None

    def mark(self, key: str, address: str, reason: str) -> None:
        super().mark(key, address, reason)
        self.told()

    def reached(self, key: str, address: str) -> None:
        super().reached(key, address)
        self.told()

    def count_unread(self) -> None:
        """Count packets that were not even looked at among those refused: ``rate``, over the limit
        of their sender; ``lost``, dropped by the kernel, whose queue was full."""
        for word, count in (
            ("rate", sum(server.dropped for server in self.sockets)),
            ("lost", sum(server.lost for server in self.sockets)),
        ):
            if count:
                self.rejected[word] = count

    def retire(self) -> None:
        """Tell other routers that we are gone. What nodes still say does not bring us back."""
        self._forwarder = None
        if self.resubscriber is not None:
            self.resubscriber.withdraw_all()

    def let_go(self) -> None:
        """Close our copies of the sockets, as if we had never been."""
        for server in self.sockets:
            server.close()

    def close(self) -> None:
        """Tell other routers that we are gone, and close the sockets."""
        if self.resubscriber is not None:
            self.resubscriber.withdraw_all()
            self.resubscriber.close()
            self.resubscriber = None
        for server in self.sockets:
            server.vacuum()
            server.close()


class Subscriptions:
    """All registries of an instance. To be made before privileges are dropped: it binds.

    ``gateways``: by name. ``mode``: permission bits of unix sockets. ``uid``: whom the master will
    be when it writes the state, if it is root now. ``inherited``: sockets of the master before,
    ``handed``: descriptor of its tables. StartError with the option and the reason.
    """

    def __init__(
        self,
        wanted: Mapping[str, RouterSubscriptions],
        settings: SubscriptionSettings,
        announce: AnnounceSettings,
        loop: Loop,
        log: MainLog,
        publish: Publish,
        *,
        mode: int | None = None,
        uid: int | None = None,
        inherited: Inherited | None = None,
        handed: int | None = None,
    ) -> None:
        self._uid = uid
        self._loop = loop
        self._log = log
        self._publish = publish
        self._settings = settings
        self._acknowledger = Acknowledger()
        # A name server that is away must not stop the loop.
        self._lookups = Lookups(loop.selector, log.line, _nothing)
        self._flushing = False
        self._frozen = False
        self._thawed = 0  # members at the last freeze
        self._next_second = 0.0
        self._keeper: StateKeeper | None = None
        self.gateways: dict[str, GatewaySubscriptions] = {}
        try:
            for name, router in wanted.items():
                self.gateways[name] = GatewaySubscriptions(
                    name, router, log, self._acknowledger, announce, mode, self._lookups,
                    inherited or Inherited(),
                )  # fmt: skip
        except StartError:
            self.close(save_state=False)
            raise
        if handed is not None:
            self._take_over(handed)
        elif settings.state:
            self._restore()

    # --- life ---------------------------------------------------------------------------------

    def listens(self, name: str, addresses: Iterable[str]) -> None:
        """The traffic addresses of a gateway, as bound."""
        gateway = self.gateways.get(name)
        if gateway is not None:
            found = tuple(addresses)
            gateway.own = frozenset(each for name in found for each in _spellings(name))
            gateway.listener = found[0] if found else ""

    def start(self) -> None:
        """Begin to receive."""
        for gateway in self.gateways.values():
            gateway.told = self._flush_soon
            for server in gateway.sockets:
                self._log.line(
                    f"uwgate {gateway.name} subscription server on {server.name}"
                    f" fd {server.fileno()}"
                )
        self._listen()
        if self._settings.state:
            self._keeper = StateKeeper(self._settings.state, self._save, self._log.line)
        self._tick()

    def freeze(self) -> None:
        """Another instance hears the nodes now, on the same sockets: nothing comes or expires."""
        self._frozen = True
        for gateway in self.gateways.values():
            for server in gateway.sockets:
                with contextlib.suppress(KeyError, ValueError):
                    self._loop.selector.unregister(server)

    def thaw(self) -> None:
        """The other instance has ended: hear again; nobody is late yet."""
        if not self._frozen:
            return
        self._frozen = False
        now = int(time.monotonic())
        for gateway in self.gateways.values():
            for member in gateway.table:
                member.seen = now
        self._listen()

    def sockets(self) -> list[HandedSocket]:
        """Those of all servers, for the next master."""
        return [
            HandedSocket(
                server.name, "dgram", [server.fileno()], list(server.file) if server.file else None
            )
            for gateway in self.gateways.values()
            for server in gateway.sockets
        ]

    def written(self) -> int:
        """The tables, as a file in memory, for the next master -> its descriptor."""
        descriptor = os.memfd_create("uwgate-subscriptions", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "w", encoding="ascii", newline="\n", closefd=False) as file:
                write(file, *self._tables(), time.monotonic())
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def let_go(self) -> None:
        """This was a rehearsal."""
        for gateway in self.gateways.values():
            gateway.let_go()
        self._acknowledger.close()
        self._lookups.close()

    def retire(self) -> None:
        """The instance ends: other routers have to know before its sockets are closed."""
        for gateway in self.gateways.values():
            gateway.retire()

    def close(self, *, save_state: bool = True) -> None:
        """Stop receiving; keep the tables for the next start."""
        for gateway in self.gateways.values():
            gateway.close()
        if self._keeper is not None and save_state:
            self._keeper.changed()
            self._keeper.finish()
        self._acknowledger.close()
        self._lookups.close()

    def _listen(self) -> None:
        for gateway in self.gateways.values():
            for server in gateway.sockets:
                self._loop.selector.register(
                    server, selectors.EVENT_READ, functools.partial(self._readable, server)
                )

    # --- receiving ----------------------------------------------------------------------------

    def _readable(self, server: DatagramServer, mask: int) -> None:
        server.on_readable(mask)
        self.flush()

    def _flush_soon(self) -> None:
        """A worker said something: its siblings hear of it behind what it says besides."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_later(0, self.flush)

    def flush(self) -> None:
        """Tell the workers what has changed."""
        self._flushing = False
        for gateway in self.gateways.values():
            changes = gateway.changes
            for start in range(0, len(changes), _BATCH):
                self._publish(gateway.name, changes[start : start + _BATCH])
            if changes:
                changes.clear()

    # --- time ---------------------------------------------------------------------------------

    def _tick(self) -> None:
        more = False
        try:
            more = self._work()
        finally:  # an error of one second must not be the end of them all
            self._loop.call_later(_SOON if more else _TICK, self._tick)

    def _work(self) -> bool:
        """What is due; whether there is more than should be done in one go."""
        now = time.monotonic()
        more = False
        members = 0
        # More often than that only while many expire; limits are a second's all the same.
        second = now >= self._next_second
        if second:
            self._next_second = now + _TICK - _SOON
        for gateway in self.gateways.values():
            if not self._frozen:
                more = gateway.tick(now) or more
            members += gateway.table.members
            if second:
                gateway.count_unread()
                for server in gateway.sockets:
                    server.tick()
            if gateway.resubscriber is not None:
                gateway.resubscriber.tick(now)
            if gateway.dirty and self._keeper is not None:
                gateway.dirty = False
                self._keeper.changed()
        if self._keeper is not None:
            self._keeper.tick(now)
        self.flush()
        self._thawed = min(self._thawed, members)
        if members > self._thawed + _FREEZE:
            # A full collection over a million of them would stop the loop for a third of a second,
            # and there is nothing in them that needs one.
            gc.freeze()
            self._thawed = members
        return more

    # --- state --------------------------------------------------------------------------------

    def _restore(self) -> None:
        path = self._settings.state
        try:
            state = load(path, owners=(self._uid,))
        except StateError as error:
            self._log.line(f"subscription-state {path}: {error}; starting without it")
            return
        if state is None:
            return
        for name, gateway in self.gateways.items():
            self._fill(gateway, name, state, f" ({self._settings.state})")

    def _take_over(self, descriptor: int) -> None:
        try:
            # Not from where the offset is: a rehearsal, which shares it, has read as well.
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                state = read(file)
        except (StateError, OSError) as error:
            self._log.line(f"subscriptions of the master before are lost: {error}")
            return
        finally:
            os.close(descriptor)
        for name, gateway in self.gateways.items():
            self._fill(gateway, name, state, "")

    def _fill(self, gateway: GatewaySubscriptions, name: str, state: State, source: str) -> None:
        table = state.tables.get(name)
        if table is None:
            return
        gateway.table = table
        for member in table:
            gateway.restore(member)
        for key, address, announced, goodbye in state.floors.get(name, ()):
            gateway.departed.left(key, address, announced, goodbye)
        age = max(0, int(time.time() - state.saved))
        self._log.line(
            f"uwgate {name}: {table.members} nodes of {len(table.slots)} keys"
            f" as they were {age} s ago{source}"
        )

    def _save(self) -> None:
        save(self._settings.state, *self._tables(), time.monotonic())

    def _tables(self) -> tuple[dict[str, Table], dict[str, list[Floor]]]:
        tables = {name: gateway.table for name, gateway in self.gateways.items()}
        floors = {name: list(gateway.departed.entries()) for name, gateway in self.gateways.items()}
        return tables, floors


def _spellings(name: str) -> list[str]:
    """The addresses of this machine that lead to a listener; one on any host has several."""
    host, _, port = name.rpartition(":")
    if host == "0.0.0.0":
        return [name, f"127.0.0.1:{port}", *(f"{each}:{port}" for each in local_addresses())]
    return [name, f"[::1]:{port}"] if host == "[::]" else [name]


def _nothing() -> None:
    """Who waits for a name asks again."""


def registries(subscriptions: Subscriptions | None) -> Sequence[GatewaySubscriptions]:
    """Those of all gateways, for the stats."""
    return tuple(subscriptions.gateways.values()) if subscriptions is not None else ()
