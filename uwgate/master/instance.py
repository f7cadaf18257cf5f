"""One instance: how it starts, what it consists of, what it hands to its successor, how it ends.

What it is told to do meanwhile is in `supervisor`.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Mapping
from typing import Any

from uwgate import __version__
from uwgate.config.settings import Settings
from uwgate.master import privileges, signals, systemd
from uwgate.master.assembly import Assembly
from uwgate.master.cheap import Cheap
from uwgate.master.control_server import ControlServer
from uwgate.master.crew import EXIT_OK, Crew
from uwgate.master.daemon import Background
from uwgate.master.fifo import Fifos
from uwgate.master.gateways import Plan
from uwgate.master.guardian import Pledge
from uwgate.master.handover import Handover, Mode
from uwgate.master.heartbeat import Heartbeats
from uwgate.master.limits import Limits
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.orders import Orders
from uwgate.master.pidfile import PidFiles
from uwgate.master.pids import parent_of
from uwgate.master.reload import Order
from uwgate.master.slots import Generation
from uwgate.master.subscribing import registries
from uwgate.master.succession import Succession
from uwgate.master.touch import Watch
from uwgate.observe.server import StatsServer
from uwgate.observe.stats import StatsFacts

_STATS_TICK = 0.2


class Instance:
    """``start`` raises ``StartError``; ``serve`` returns the exit code."""

    def __init__(
        self,
        settings: Settings,
        log: MainLog,
        gateways: list[Plan],
        handed: Handover | None = None,
        pledge: Pledge | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self._handed = handed
        self._parts: Mapping[str, Any] = handed.parts if handed is not None else {}
        self._plans = {plan.name: plan for plan in gateways}
        self._loop = Loop(log)
        self._signals = signals.SignalPipe()
        self._reloads = handed.reloads if handed is not None else 0
        self._started = handed.started if handed is not None else time.time()
        self._notifier = systemd.Notifier(os.environ)
        self._background = Background(settings.process, log, again=handed is not None)
        self._pidfiles = PidFiles(settings.process, log, kept=self._parts.get("pidfiles", ()))
        self._generation = Generation(self._reloads + 1, settings, [])
        self._crew = Crew(self._loop, log, self._plans, self._generation)
        self._assembly = Assembly(
            settings,
            self._plans,
            self._loop,
            log,
            self._crew.publish,
            handed=handed,
            activated=systemd.inherited(os.environ, os.getpid()) if handed is None else (),
        )
        self._succession = Succession(
            self._crew,
            pledge,
            self._loop,
            chain=bool(self._parts.get("chain")),
            up=self._on_up,
            late=self._on_late,
        )
        self._cheap = Cheap(self._loop, self._assembly.all_traffic, self._on_connection)
        self._limits: Limits | None = None
        self._stats: StatsServer | None = None
        self._control: ControlServer | None = None
        self._fifos: Fifos | None = None
        self._watch: Watch | None = None
        # Instances beside this one: those that it has made, and the one that has made it.
        mine = [pid for pid in self._parts.get("forked", ()) if parent_of(pid) == os.getpid()]
        self._forked = set(mine)
        beside = os.environ.get(systemd.BESIDE, "")
        self._older = int(beside) if beside.isdecimal() else 0

    # -- to be provided ------------------------------------------------------------------------

    def _on_signals(self, mask: int) -> None:
        raise AssertionError

    def _on_up(self) -> None:
        """All workers serve."""
        raise AssertionError

    def _on_late(self) -> None:
        """Not all workers serve, after a long time."""
        raise AssertionError

    def _on_idle(self) -> None:
        """There was no request for as long as the settings say."""
        raise AssertionError

    def _on_connection(self) -> None:
        """Somebody has connected to the cheap instance."""
        raise AssertionError

    def _not_ready(self) -> str:
        """Why no request should be sent here, "" if it may."""
        raise AssertionError

    @property
    def _orders(self) -> Orders:
        raise AssertionError

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything that may fail for the operator's eyes, then the first workers."""
        process = self._settings.process
        self._loop.selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        # A reload has blocked them until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.HANDLED)
        privileges.set_name(process.procname)
        self._background.start()
        again = f", reload {self._reloads}" if self._reloads else ""
        self._log.line(f"*** starting uwgate {__version__} (pid {os.getpid()}{again}) ***")
        if self._handed is None:
            self._pidfiles.check()
        assembly = self._assembly
        assembly.make()
        self._adopt(assembly)
        self._pidfiles.early()
        assembly.drop_privileges()
        self._pidfiles.dropped()
        self._begin(assembly)
        cheap = self._settings.life.cheap if self._handed is None else self._parts.get("cheap")
        if cheap:
            self._log.line("cheap: no worker before the first connection")
            self._cheap.enter()
        self._log.take_streams()
        self._succession.start(cheap=self._cheap.on)

    def _adopt(self, assembly: Assembly) -> None:
        """What the crew needs of the assembly and of the master before."""
        crew = self._crew
        self._generation.slots += assembly.slots
        crew.terminators = assembly.tls.terminators
        crew.caches = tuple(assembly.tls.caches.values())
        crew.senders = assembly.tls.senders
        if assembly.subscriptions is not None:
            crew.subscriptions = assembly.subscriptions.gateways
        if self._settings.life.harakiri:
            crew.heartbeats = Heartbeats(int(self._parts.get("heartbeats", -1)))
        if self._parts.get("paused"):
            crew.paused = True
        if self._handed is not None:
            crew.ledger.restore(self._parts.get("ledger"))
            crew.adopt(self._handed.workers, chain=bool(self._parts.get("chain")))
            self._crew.reap()  # those that ended meanwhile

    def _begin(self, assembly: Assembly) -> None:
        """Hear of nodes, sessions and orders."""
        if assembly.subscriptions is not None:
            assembly.subscriptions.start()
            if self._forked:
                assembly.subscriptions.freeze()
        assembly.tls.start()
        life = self._settings.life
        if assembly.stats is not None:
            self._stats = StatsServer(
                assembly.stats.sockets[0],
                self._loop.selector,
                self._crew.collector.collect,
                self._stats_facts(),
                ledger=self._crew.ledger,
            )
        if assembly.control is not None:
            self._control = ControlServer(
                assembly.control.sockets[0], self._loop, self._log, self._orders,
                allowed=_owners(),
            )  # fmt: skip
            self._control.adopt(self._parts.get("control", ()))
        self._fifos = Fifos(
            life.fifos, self._loop, self._log, self._orders, inherited=self._parts.get("fifo")
        )
        self._watch = Watch(
            life.touches,
            self._loop,
            self._log,
            self._orders,
            self._limit_log,
            state=self._parts.get("touch"),
        )
        self._limits = Limits(
            life, self._crew, self._loop, self._log, self._crew.heartbeats, self._on_idle
        )
        self._limits.start()
        self._keep_alive()

    def _limit_log(self) -> None:
        if self._log.too_large():
            self._orders.rotate_logs("log-maxsize")

    def _keep_alive(self) -> None:
        """Tell systemd that we live, if it wants to be told."""
        if self._notifier.interval:
            self._notifier.watchdog()
            self._loop.call_later(self._notifier.interval, self._keep_alive)

    def _stats_facts(self) -> StatsFacts:
        assembly, process = self._assembly, self._settings.process
        return StatsFacts(
            started=self._started,
            not_ready=self._not_ready,
            sockets=lambda: list(assembly.all_traffic()),
            minified=process.stats_minified,
            http=process.stats_http,
            subscriptions=lambda: registries(assembly.subscriptions),
            caches=assembly.tls.snapshot,
            https=frozenset(bound.name for bound in assembly.encrypted),
        )

    # -- the next master -----------------------------------------------------------------------

    def _gather(self, mode: Mode, order: Order) -> Handover:
        """What the next master is given."""
        assembly = self._assembly
        given = Handover(__version__, self._reloads + 1, self._started)
        given.sockets = assembly.handed()
        parts = given.parts
        parts["log"] = log = self._log.state()
        given.fds += [fd for fd in (int(str(log["fd"])),) if fd >= 0]
        if assembly.subscriptions is not None:
            parts["subscriptions"] = assembly.subscriptions.written()
            given.made.append(parts["subscriptions"])
        parts["tls"] = assembly.tls.handed()
        if "tickets" in parts["tls"]:
            given.made.append(parts["tls"]["tickets"])
        given.fds += [*given.made, *assembly.tls.descriptors()]
        if mode == "fork":
            # It gets a control socket and a FIFO of its own.
            control = assembly.control.name if assembly.control is not None else None
            given.sockets = [each for each in given.sockets if each.name != control]
            given.started = time.time()
            return given
        parts["pidfiles"] = self._pidfiles.ours
        parts["forked"] = sorted(self._forked)
        parts["cheap"] = self._cheap.on
        parts["paused"] = self._crew.paused
        parts["chain"] = order.chain
        parts["again"] = order.again
        parts["asked"] = order.asked
        if mode == "rehearse":
            return given
        given.workers = self._crew.handed()
        if self._crew.heartbeats is not None:
            parts["heartbeats"] = self._crew.heartbeats.file
            given.fds.append(self._crew.heartbeats.file)
        parts["ledger"] = self._crew.ledger.state()
        if self._fifos is not None:
            parts["fifo"] = state = self._fifos.state()
            given.fds += [fd for fd in (int(str(state["fd"])),) if fd >= 0]
        if self._watch is not None:
            parts["touch"] = self._watch.state()
        if self._control is not None:
            parts["control"] = waiting = self._control.handover()
            given.fds += [int(str(each["fd"])) for each in waiting]
        if assembly.announcing is not None:
            assembly.announcing.reload()
        return given

    # -- serve and close -----------------------------------------------------------------------

    def serve(self) -> int:
        """Handle events until it is over."""
        while self._crew.exit is None:
            if self._stats is not None and self._stats.active:
                self._loop.run_once(_STATS_TICK)
                self._stats.tick()
            else:
                self._loop.run_once()
        if self._crew.exit == EXIT_OK:
            self._log.line("goodbye to uwgate.")
        return self._crew.exit

    @property
    def _has_company(self) -> bool:
        """Whether another instance lives that has the same sockets."""
        # Process 1 of a container has parent 0.
        return bool(self._forked) or (self._older > 0 and os.getppid() == self._older)

    def close(self, code: int) -> None:
        """Leave nothing behind: no child, no file of ours, no descriptor."""
        if not self._succession.secured:
            # The guardian goes on with all that is not of this process.
            self._crew.abandon()
            # What was ordered meanwhile is for it, too.
            signal.pthread_sigmask(signal.SIG_BLOCK, signals.HANDLED)
            self._signals.again()
            return
        if self._forked:
            self._notifier.main_pid(min(self._forked))
        self._crew.close()
        for each in (self._fifos, self._watch, self._stats, self._control):
            if each is not None:
                each.close()
        self._assembly.close(heirs=self._has_company)
        self._pidfiles.remove()
        self._background.failed(code)
        self._signals.close()
        self._loop.close()




def _owners() -> frozenset[int]:
    """Who may give orders beside root and us: the user that sudo was called by need not."""
    return frozenset({os.getuid(), os.geteuid()})
