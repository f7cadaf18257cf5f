"""The workers of an instance: forked, heard, buried and replaced.

A worker that dies is replaced at once if it had served for a while, and after ``respawn_delay`` if
it had not, so that one that cannot live costs one fork a ``respawn_delay``. One that is replaced
although it lives serves until its successor does (`retired`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from uwgate.master import pids, signals
from uwgate.master.collect import Collector, describe
from uwgate.master.control import Channel, ControlError, Message, pair
from uwgate.master.errors import explain
from uwgate.master.gateways import Plan
from uwgate.master.handover import HandedWorker, adopt
from uwgate.master.heartbeat import Heartbeats
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.retired import Retired
from uwgate.master.slots import Generation, Slot, WorkerProcess
from uwgate.master.worker import WorkerSpec, main
from uwgate.observe.counters import Ledger
from uwgate.subscriptions.table import Change, Table

if TYPE_CHECKING:  # without TLS nobody has to wait for OpenSSL
    from uwgate.tls.cache import SharedCache
    from uwgate.tls.sync import SyncSender
    from uwgate.tls.terminator import Terminator

EXIT_OK = 0
EXIT_NO_WORKER = 3

# A worker that ends before it served this long (or ``respawn_delay``, if that is more) died early.
_SETTLED = 1.0
# So often in a row, without any worker ever having been ready: the start has failed.
_MAX_EARLY_DEATHS = 3
_SHORTEST_DELAY = 0.1
# Seconds that a worker may live without its channel.
_LAST_MOMENT = 5.0
# Characters of a worker's excuse, in the log.
_LONGEST_REASON = 1000
# Places of processes in memory that all share, but for that of the master, 0.
_CELLS = 256


class Subscribed(Protocol):
    """The subscriptions of a gateway: what a new worker inherits, and what workers say of it."""

    table: Table

    def mark(self, key: str, address: str, reason: str) -> None:
        """A worker could not reach the node."""
        ...

    def reached(self, key: str, address: str) -> None:
        """A worker reached a marked node after all."""
        ...


class Crew:
    """``generation`` at work. ``exit``: the instance's exit code once there is nobody left.

    ``ledger`` is told the last words of every worker. ``collector`` asks all of them.
    ``subscriptions``, ``terminators``: by gateway, for those that have any. ``came`` is told when
    a worker begins to serve, ``went`` when one has ended.
    """

    def __init__(
        self, loop: Loop, log: MainLog, plans: Mapping[str, Plan], generation: Generation
    ) -> None:
        self._loop = loop
        self._log = log
        self._plans = plans
        self._generation = generation
        self._leaving = False
        self.subscriptions: Mapping[str, Subscribed] = {}
        self.terminators: Mapping[str, Terminator] = {}
        self.caches: tuple[SharedCache, ...] = ()
        self.senders: Mapping[str, SyncSender] = {}
        self.heartbeats: Heartbeats | None = None
        self.exit: int | None = None
        self.paused = False
        self.came: Callable[[Slot], None] = _nothing
        self.went: Callable[[Slot], None] = _nothing
        self.ledger = Ledger()
        mercy = generation.settings.life.reload_mercy
        self.retired = Retired(loop, log, mercy, self._watch, _kill)
        self.collector = Collector(loop, lambda: self.slots, self._watch)

    @property
    def slots(self) -> list[Slot]:
        """All there are, those of retired workers behind."""
        return self._generation.slots + self.retired.slots

    @property
    def slots_of_now(self) -> list[Slot]:
        """Those of this generation."""
        return self._generation.slots

    @property
    def alive(self) -> list[WorkerProcess]:
        """All processes."""
        return self._generation.alive + self.retired.alive

    @property
    def accepting(self) -> bool:
        """Whether a worker takes new connections."""
        return any(process.ready and not process.draining for process in self.alive)

    @property
    def complete(self) -> bool:
        """Whether every slot has a worker that serves."""
        return self._generation.complete

    @property
    def served(self) -> bool:
        """Whether a worker of this generation ever served."""
        return self._generation.served

    def start(self) -> None:
        """Fork the first worker of every slot."""
        for slot in self._generation.slots:
            self.fill(slot)

    def fill(self, slot: Slot) -> None:
        """Fork a worker for an empty slot, now."""
        if slot.respawn is not None:
            slot.respawn.cancel()
        if slot.process is None:
            self._spawn(slot)

    def tell(self, message: Message) -> None:
        """Send a message to every worker."""
        for process in self.alive:
            process.channel.send(message)
            self._watch(process)

    def pause(self, on: bool) -> None:
        """Have all workers, and those to come, accept no more connections, or accept again."""
        self.paused = on
        self.tell({"type": "pause" if on else "resume"})

    def renew(self, slot: Slot, *, brutal: bool = False) -> None:
        """A fresh worker for the slot. The one that is there serves on until that does;
        ``brutal``: it is cut at once."""
        if self._leaving or slot.process is None:
            return
        old = self.retired.displace(slot)
        if brutal:
            self.retired.dismiss(old)
        self._spawn(slot)

    def empty(self) -> None:
        """Send every worker home, and do not replace it: the instance goes cheap."""
        for slot in self._generation.slots:
            if slot.respawn is not None:
                slot.respawn.cancel()
            if slot.process is not None:
                self.retired.displace(slot).heir = None
        self.retired.relieve()

    # -- from one master to the next -----------------------------------------------------------

    def handed(self) -> list[HandedWorker]:
        """All workers, for the next master."""
        handed = []
        for slot in self.slots:
            process = slot.process
            if process is None:
                continue
            if process.channel.closed:  # in its last moment; nobody would watch it any more
                _kill(process)
                continue
            unread, unsent, torn = process.channel.pieces()
            handed.append(
                HandedWorker(
                    slot.gateway, slot.id, slot.number, process.pid, process.channel.fileno(),
                    process.cell, process.born, process.since, slot.spawns, process.ready,
                    process.draining, unread.decode("latin-1"), unsent.decode("latin-1"), torn,
                    process.pidfd, process.relieved,
                )
            )  # fmt: skip
        return handed

    def adopt(self, workers: Iterable[HandedWorker], *, chain: bool = False) -> None:
        """Take over workers of the master before: they serve until they are relieved, all together
        or (``chain``) each as soon as there is another one in its place."""
        heirs: dict[tuple[str, int], Slot] = {}
        if chain:
            heirs = {(slot.gateway, slot.number): slot for slot in self._generation.slots}
        for each in workers:
            process = _adopted(each)
            if process is None:
                continue
            slot = Slot(each.gateway, each.id, each.number, (), process, spawns=each.spawns)
            slot.heir = heirs.get((each.gateway, each.number))
            self.retired.add(slot)
            self._hear(slot, process)
            self._await(process)

    def disown(self) -> None:
        """This process is a copy of their parent, which lives on: they are not its children."""
        for process in self.alive:
            process.child = False
            process.channel.resume()
            self._await(process)

    def give_up(self) -> None:
        """No worker serves that should."""
        self._log.line("no worker came to serve: giving up")
        self.exit = EXIT_NO_WORKER

    def abandon(self) -> None:
        """Kill the workers of this generation, and leave those before it as they are."""
        self._leaving = True
        for slot in self._generation.slots:
            if slot.respawn is not None:
                slot.respawn.cancel()
            if slot.process is not None:
                _kill(slot.process)

    def publish(self, gateway: str, changes: list[Change]) -> None:
        """Send changes of its subscriptions to the workers of a gateway.

        One that has not read 16 MB of them is of no use any more: its successor inherits all.
        """
        message: Message = {"type": "nodes", "changes": changes}
        for slot in self.slots:
            process = slot.process
            if process is None or slot.gateway != gateway:
                continue
            if not process.channel.send(message) and not process.channel.closed:
                self._log.line(f"{slot.name} (pid: {process.pid}) does not listen: killed")
                _kill(process)
            self._watch(process)

    def leave(self, order: Message) -> None:
        """Replace nobody any more, and give the workers that order (drain or stop)."""
        self._leaving = True
        for slot in self._generation.slots:
            if slot.respawn is not None:
                slot.respawn.cancel()
        for process in self.alive:
            process.draining = True
        self.tell(order)
        if not self.alive:
            self.exit = EXIT_OK

    def kill_rest(self) -> None:
        """End those who did not leave in time."""
        for slot in self.slots:
            if slot.process is not None:
                self._log.line(f"{slot.name} (pid: {slot.process.pid}) does not end: killed")
                _kill(slot.process)

    def close(self) -> None:
        """Leave no child behind."""
        for process in self.alive:
            _kill(process)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
            process.channel.close()

    # -- life ----------------------------------------------------------------------------------

    def _spawn(self, slot: Slot) -> None:
        slot.respawn = None
        try:
            self._fork(slot)
        except OSError as error:
            self._log.line(f"cannot start {slot.name}: {explain(error)}")
            self._respawn_later(slot, self._delay())

    def _fork(self, slot: Slot) -> None:
        channel, theirs = pair()
        master = os.getpid()
        cell = self._free_cell()
        if self.heartbeats is not None:
            self.heartbeats.beat(cell, 0.0)
        try:
            with signals.blocked():
                pid = os.fork()
                if pid == 0:
                    # Its own copy of the epoll descriptor; the registrations are the parent's.
                    self._loop.close()
                    plan = self._plans[slot.gateway]
                    main(
                        WorkerSpec(
                            name=slot.name,
                            gateway=slot.gateway,
                            id=slot.id,
                            settings=self._generation.settings,
                            listeners=slot.listeners,
                            control=theirs,
                            master=master,
                            log=self._log,
                            uid=plan.uid,
                            gid=plan.gid,
                            drain_timeout=plan.drain_timeout,
                            table=self._table_of(slot.gateway),
                            terminator=self.terminators.get(slot.gateway),
                            caches=self.caches,
                            senders=self.senders,
                            cell=cell,
                            heartbeats=self.heartbeats,
                        ),
                        plan.factory,
                    )
        except OSError:
            channel.close()
            raise
        finally:
            theirs.close()
        process = WorkerProcess(pid, channel, cell, pidfd=pids.hold(pid))
        slot.process = process
        slot.spawns += 1
        word = "spawned" if slot.spawns == 1 else "respawned"
        self._log.line(f"{word} {slot.name} (pid: {pid})")
        self._hear(slot, process)
        if self.paused:
            channel.send({"type": "pause"})

    def _free_cell(self) -> int:
        used = {process.cell for process in self.alive}
        return next((cell for cell in range(1, _CELLS) if cell not in used), _CELLS - 1)

    def _hear(self, slot: Slot, process: WorkerProcess) -> None:
        handler = functools.partial(self._on_channel, process)
        self._loop.selector.register(process.channel, selectors.EVENT_READ, handler)
        self._watch(process)

    def _await(self, process: WorkerProcess) -> None:
        """One that is no child: nobody else tells us of its end."""
        if not process.child and process.pidfd >= 0:
            handler = functools.partial(self._on_end, process)
            self._loop.selector.register(process.pidfd, selectors.EVENT_READ, handler)

    def _on_end(self, process: WorkerProcess, mask: int) -> None:
        slot = self._slot_of(process)
        if slot is not None:
            self._bury(slot, process, "somewhere else")

    def _table_of(self, gateway: str) -> Table | None:
        subscribed = self.subscriptions.get(gateway)
        return subscribed.table if subscribed is not None else None

    def _watch(self, process: WorkerProcess) -> None:
        """Wait for room if a message could not be sent in one go."""
        events = selectors.EVENT_READ
        if process.channel.wants_write:
            events |= selectors.EVENT_WRITE
        with contextlib.suppress(KeyError, ValueError):  # closed: its end is known already
            key = self._loop.selector.get_key(process.channel)
            if key.events != events:
                self._loop.selector.modify(process.channel, events, key.data)

    def _on_channel(self, process: WorkerProcess, mask: int) -> None:
        slot = self._slot_of(process)
        if slot is None:
            self._hang_up(process)
            return
        if mask & selectors.EVENT_WRITE:
            process.channel.flush()
        if mask & selectors.EVENT_READ:
            self._listen_to(slot, process)
        if not process.channel.closed:
            self._watch(process)
            return
        self._hang_up(process)
        if process.child or process.pidfd >= 0:
            # Usually its last moment. One that lives on without us would never be told to go.
            self._loop.call_later(_LAST_MOMENT, functools.partial(_kill, process))
        else:
            self._bury(slot, process, "somewhere else")

    def _slot_with(self, pid: int) -> Slot | None:
        alive = (slot for slot in self.slots if slot.process is not None)
        return next((slot for slot in alive if slot.process and slot.process.pid == pid), None)

    def _slot_of(self, process: WorkerProcess) -> Slot | None:
        return next((slot for slot in self.slots if slot.process is process), None)

    def _listen_to(self, slot: Slot, process: WorkerProcess, *, last: bool = False) -> None:
        try:
            messages = process.channel.receive(last=last)
            process.allowance.take(len(messages), process.channel.size)
            for message in messages:
                self._heed(slot, process, message)
        except ControlError as error:
            self._log.line(f"{slot.name} (pid: {process.pid}) talks nonsense ({error}): killed")
            _kill(process)
            process.channel.closed = True

    def _heed(self, slot: Slot, process: WorkerProcess, message: Message) -> None:
        kind = message.get("type")
        if kind == "stats":
            self.collector.received(slot, process, message)
        elif kind == "ready":
            self._serves(slot, process)
        elif kind == "draining":
            process.draining = True
        elif kind in ("mark", "reached"):
            self._heed_node(slot, message)
        elif kind == "failed" and not slot.hopeless:
            slot.hopeless = True
            reason = str(message.get("reason"))[:_LONGEST_REASON]
            self._log.line(f"{slot.name} cannot start: {reason}")

    def _serves(self, slot: Slot, process: WorkerProcess) -> None:
        process.ready = True
        if slot not in self._generation.slots:
            return
        self._generation.served = True
        self.came(slot)
        self.retired.relieve(slot, len(self._generation.slots))

    def _heed_node(self, slot: Slot, message: Message) -> None:
        subscribed = self.subscriptions.get(slot.gateway)
        if subscribed is None:
            return
        key, address = str(message.get("key")), str(message.get("address"))
        if message.get("type") == "reached":
            subscribed.reached(key, address)
        else:
            subscribed.mark(key, address, str(message.get("reason"))[:200])

    def _hang_up(self, process: WorkerProcess) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._loop.selector.unregister(process.channel)
        process.channel.close()

    def _let_go(self, process: WorkerProcess) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._loop.selector.unregister(process.pidfd)
        process.bury()

    # -- deaths --------------------------------------------------------------------------------

    def reap(self, other: Callable[[int, int], None] | None = None) -> None:
        """Children have ended (SIGCHLD): bury and replace. ``other`` is told pid and exit code of
        one that is no worker."""
        while True:
            try:
                # Any child: as process 1 of a container we inherit orphans, too.
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            slot = self._slot_with(pid)
            if slot is not None and slot.process is not None:
                self._bury(slot, slot.process, _cause(code))
            elif other is not None:
                other(pid, code)

    def _bury(self, slot: Slot, process: WorkerProcess, cause: str) -> None:
        if not process.channel.closed:
            self._listen_to(slot, process, last=True)
        self._hang_up(process)
        self._let_go(process)
        slot.last, slot.process = process, None
        self._remember(slot, process)
        self.collector.gone(process)
        retired = slot in self.retired.slots
        self.retired.gone(slot)
        if self._leaving or (retired and process.draining):
            self._log.line(f'gateway "{slot.name}" has been buried (pid: {process.pid})')
        else:
            self._log.line(f"{slot.name} (pid: {process.pid}) died: {cause}")
        self.went(slot)
        if self._leaving:
            if not self.alive:
                self.exit = EXIT_OK
        elif not retired:
            self._replace(slot, process)

    def _remember(self, slot: Slot, process: WorkerProcess) -> None:
        """What it had counted. Whatever that was: it is to be buried, and replaced."""
        if process.snapshot is None:
            return
        try:
            self.ledger.retire(describe(slot))
        except Exception as error:
            self._log.crash(f"{slot.name}: what it counted is lost", error)

    def _replace(self, slot: Slot, process: WorkerProcess) -> None:
        lived = time.monotonic() - process.since
        settled = process.ready and lived >= max(self._respawn_delay, _SETTLED)
        slot.early_deaths = 0 if settled else slot.early_deaths + 1
        if self.failed:
            self._log.line("no worker could start: giving up")
            self.exit = EXIT_NO_WORKER
            return
        # One death of a worker that did serve may be an accident; the second in a row is not.
        at_once = settled or (process.ready and slot.early_deaths == 1)
        self._respawn_later(slot, 0 if at_once else self._delay())

    @property
    def failed(self) -> bool:
        """Whether no worker of this generation can start; in a chain some were not tried yet."""
        tried = [slot for slot in self._generation.slots if slot.spawns]
        return not self._generation.served and bool(tried) and all(map(_given_up, tried))

    @property
    def _respawn_delay(self) -> float:
        return self._generation.settings.process.respawn_delay

    def _delay(self) -> float:
        return max(self._respawn_delay, _SHORTEST_DELAY)

    def _respawn_later(self, slot: Slot, seconds: float) -> None:
        slot.hopeless = slot.hopeless and not self._generation.served
        slot.respawn = self._loop.call_later(seconds, functools.partial(self._spawn, slot))


def _nothing(slot: Slot) -> None:
    """Nobody wants to know."""


def _kill(process: WorkerProcess) -> None:
    process.send(signal.SIGKILL)


def _adopted(each: HandedWorker) -> WorkerProcess | None:
    """A worker of the master before; None if it cannot be heard any more, or is none."""
    try:
        channel = Channel(adopt(each.fd))
    except OSError:
        return None
    # Our child, or, as we were the guardian, of who was the master then, or of who adopts orphans.
    parent = pids.parent_of(each.pid)
    pidfd = each.pidfd if pids.stands_for(each.pidfd, each.pid) else -1
    if pidfd < 0 and parent not in (os.getpid(), os.getppid()):
        channel.close()
        return None
    channel.restore(
        each.unread.encode("latin-1"), each.unsent.encode("latin-1"), torn=each.torn
    )
    process = WorkerProcess(each.pid, channel, each.cell, each.born, each.since)
    process.pidfd = pidfd if pidfd >= 0 else pids.hold(each.pid)
    process.ready, process.draining = each.ready, each.draining
    process.relieved = each.relieved
    process.child = parent == os.getpid()
    return process


def _given_up(slot: Slot) -> bool:
    return slot.hopeless or slot.early_deaths >= _MAX_EARLY_DEATHS


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
