"""The master: binds, gives up privileges, forks workers and keeps them alive until told to stop.

``run`` reads top to bottom: prepare, start, serve, close. Everything happens in one thread, in one
``selectors`` loop: signals, children, control channels and the stats listener.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Mapping

from uwgate import __version__
from uwgate.config.settings import ListenerSettings, Settings
from uwgate.master import privileges, signals
from uwgate.master.announcing import Announcing, placed
from uwgate.master.control import Message
from uwgate.master.crew import EXIT_OK, Crew
from uwgate.master.errors import StartError, explain
from uwgate.master.gateways import FACTORIES, Plan, plans
from uwgate.master.logs import MainLog, complain, create_log, occupy_standard_streams
from uwgate.master.loop import Loop
from uwgate.master.pidfile import PidFile
from uwgate.master.slots import Generation, make_slots
from uwgate.master.sockets import Binder, Bound
from uwgate.master.subscribing import Subscriptions, registries
from uwgate.master.tls import Tls
from uwgate.master.worker import GatewayFactory
from uwgate.observe.server import StatsServer
from uwgate.observe.stats import StatsFacts

EXIT_CONFIGURATION = 1

# Seconds on top of the drain timeout, for a worker's own clean-up, before it is killed.
_DRAIN_SLACK = 2.0
# Seconds a worker gets to end in order when everything is cut.
_STOP_PATIENCE = 1.0
# Signals closer together than this are one: Ctrl-C under make or timeout(1) arrives twice.
_ONE_SIGNAL = 0.1
_STATS_TICK = 0.2


def run(settings: Settings, factories: Mapping[str, GatewayFactory] = FACTORIES) -> int:
    """Run an instance until it is told to stop; the exit code.

    0: stopped as asked; 1: the configuration cannot be put to work (one line on standard error);
    3: no worker could start (the log says why). ``factories``: gateway name -> its constructor.
    """
    occupy_standard_streams()
    try:
        gateways = plans(settings, factories)
        log = MainLog(settings.process.log_file)
    except StartError as error:
        complain(str(error))
        return EXIT_CONFIGURATION
    supervisor = Supervisor(settings, log, gateways)
    try:
        supervisor.start()
        return supervisor.serve()
    except StartError as error:
        complain(str(error))
        if settings.process.log_file:
            log.line(str(error))
        return EXIT_CONFIGURATION
    except Exception as error:
        log.crash("the master failed", error)
        return EXIT_CONFIGURATION
    finally:
        supervisor.close()
        log.close()


class Supervisor:
    """One instance. ``start`` raises ``StartError``; ``serve`` returns the exit code."""

    def __init__(self, settings: Settings, log: MainLog, gateways: list[Plan]) -> None:
        self._settings = settings
        self._log = log
        self._plans = {plan.name: plan for plan in gateways}
        self._loop = Loop(log)
        self._signals = signals.SignalPipe()
        self._binder = Binder(settings.process, log.line)
        self._traffic: list[Bound] = []
        self._listening: list[tuple[str, Bound]] = []  # gateway, address
        self._encrypted: list[Bound] = []  # of those the ones with TLS
        self._announcing: Announcing | None = None
        self._pidfile = PidFile(settings.process.pidfile)
        self._generation = Generation(1, settings, [])
        self._crew = Crew(self._loop, log, self._plans, self._generation)
        self._tls = Tls(settings, self._loop, log)
        self._stats: StatsServer | None = None
        self._subscriptions: Subscriptions | None = None
        self._started = time.time()
        self._stopping = ""  # "", "draining", "cutting"
        self._last_stop = 0.0

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything that may fail for the operator's eyes, then the first workers."""
        process = self._settings.process
        self._loop.selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        privileges.set_name(process.procname)
        self._log.line(f"*** starting uwgate {__version__} (pid {os.getpid()}) ***")
        self._pidfile.check()
        self._settle()
        self._bind()
        self._prepare_tls()
        self._subscribe()
        self._listen_for_stats()
        self._prepare_announcing()
        self._create_logs()
        self._pidfile.write()
        self._drop_privileges()
        if self._subscriptions is not None:
            self._subscriptions.start()
        self._tls.start()
        self._crew.start()
        if self._announcing is not None:
            self._announcing.start()

    def _settle(self) -> None:
        # After the log and the pidfile got their names, before the sockets: as in uWSGI.
        process = self._settings.process
        if process.umask is not None:
            os.umask(process.umask)
        if process.chdir:
            try:
                os.chdir(process.chdir)
            except OSError as error:
                raise StartError(f"chdir = {process.chdir}: {explain(error)}") from None

    def _bind(self) -> None:
        most = max(plan.workers for plan in self._plans.values())
        self._binder.bind_shared(most)
        slots = self._generation.slots
        for plan in self._plans.values():
            listening = []
            for listener in plan.listeners:
                word = _option_of(plan.name, listener)
                bound = self._binder.listen(word, listener.endpoint, plan.workers)
                listening.append((listener, bound))
                self._listening.append((plan.name, bound))
                if listener.tls is not None:
                    self._encrypted.append(bound)
                numbers = ", ".join(str(sock.fileno()) for sock in bound.sockets)
                self._log.line(f"uwgate {word} bound on {bound.name} fd {numbers}")
            slots += make_slots(plan.name, plan.workers, listening, len(slots) + 1)
        self._traffic = list(self._binder.bound)

    def _prepare_tls(self) -> None:
        """While keys may still be read, make what the workers share."""
        self._tls.prepare()
        self._crew.terminators = self._tls.terminators
        self._crew.caches = tuple(self._tls.caches.values())
        self._crew.senders = self._tls.senders

    def _subscribe(self) -> None:
        """Bind the subscription servers, and read what is left of the last run."""
        settings = self._settings
        wanted = {
            name: plan.subscriptions
            for name, plan in self._plans.items()
            if plan.subscriptions is not None
        }
        if not wanted:
            return
        self._subscriptions = Subscriptions(
            wanted,
            settings.subscriptions,
            settings.announce,
            self._loop,
            self._log,
            self._crew.publish,
            mode=settings.process.chmod_socket,
            uid=settings.process.uid,
        )
        for name in wanted:
            names = [bound.name for gateway, bound in self._listening if gateway == name]
            self._subscriptions.listens(name, names)
        self._crew.subscriptions = self._subscriptions.gateways

    def _listen_for_stats(self) -> None:
        process = self._settings.process
        if process.stats is None:
            return
        # Clients of a stats socket need not say a word, so acceptance must not wait for one.
        bound = self._binder.listen("http-stats", process.stats, 1, defer=False)
        self._log.line(f"uwgate stats on {bound.name} fd {bound.sockets[0].fileno()}")
        facts = StatsFacts(
            started=self._started,
            not_ready=self._not_ready,
            sockets=lambda: [sock for bound in self._traffic for sock in bound.sockets],
            minified=process.stats_minified,
            http=process.stats_http,
            subscriptions=lambda: registries(self._subscriptions),
            caches=self._tls.snapshot,
            https=frozenset(bound.name for bound in self._encrypted),
        )
        self._stats = StatsServer(
            bound.sockets[0],
            self._loop.selector,
            self._crew.collector.collect,
            facts,
            ledger=self._crew.ledger,
        )

    def _prepare_announcing(self) -> None:
        settings = self._settings.announce
        if not settings.entries and not settings.notify_socket:
            return
        shared = [bound for bound in self._traffic if bound.option.endswith("shared-socket")]
        self._announcing = Announcing(
            placed(settings, self._listening, shared),
            self._loop,
            self._log,
            cores=sum(plan.workers for plan in self._plans.values()),
            mode=self._settings.process.chmod_socket,
        )

    def _create_logs(self) -> None:
        """While it is still allowed: the workers will open it as somebody else."""
        settings, process = self._settings, self._settings.process
        if settings.request_log.enabled and settings.request_log.path:
            plan = next(iter(self._plans.values()))
            uid = process.uid if process.uid is not None else plan.uid
            gid = process.gid if process.gid is not None else plan.gid
            create_log(settings.request_log.path, uid, gid)

    def _drop_privileges(self) -> None:
        process = self._settings.process
        privileges.drop(process.uid, process.gid)
        if os.geteuid() != 0:
            for plan in self._plans.values():
                for kind, wanted, have in (
                    ("uid", plan.uid, os.geteuid()),
                    ("gid", plan.gid, os.getegid()),
                ):
                    if wanted not in (None, have):
                        raise StartError(f"{plan.name}-{kind} = {wanted}: only root may change it")
        elif any(plan.uid in (None, 0) for plan in self._plans.values()):
            self._log.line("running as root: set uid and gid, or those of each gateway")

    # -- signals -------------------------------------------------------------------------------

    def _on_signals(self, mask: int) -> None:
        for number in dict.fromkeys(self._signals.read()):
            self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGCHLD:
            self._crew.reap()
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._asked_to_stop(number.name)
        elif number is signal.SIGQUIT:
            self._cut(number.name)
        elif number is signal.SIGUSR1:
            self._reopen_logs()
            self._crew.collector.collect(self._log_stats)
        else:
            self._log.line(f"{number.name}: reload is not available in this version, ignored")

    def _reopen_logs(self) -> None:
        self._log.reopen()
        self._crew.tell({"type": "reopen"})

    def _log_stats(self, snapshots: list[Message]) -> None:
        totals = self._crew.ledger.totals(snapshots)
        states = [worker.status for worker in totals.workers]
        counters = totals.sums.counters
        numbers = ", ".join(
            f"{name} {counters.get(name, 0)}"
            for name in ("connections", "active_requests", "accepted", "requests", "rx", "tx")
        )
        if totals.sums.tls is not None:
            full, resumed = totals.sums.handshakes, totals.sums.resumed
            numbers += f", TLS {sum(full.values())} of which {sum(resumed.values())} resumed"
        errors = sum(totals.sums.errors.values())
        self._log.line(f"stats: workers {' '.join(states)}; {numbers}, errors {errors}")

    # -- the end -------------------------------------------------------------------------------

    def _asked_to_stop(self, why: str) -> None:
        now = time.monotonic()
        if now - self._last_stop < _ONE_SIGNAL:
            return
        self._last_stop = now
        if self._stopping:
            self._cut(why)
        else:
            self._drain(why)

    def _drain(self, why: str) -> None:
        patience = max(plan.drain_timeout for plan in self._plans.values())
        self._log.line(f"{why} received: draining, at most {patience:g} s (again: stop at once)")
        self._end("draining", "drain")
        self._loop.call_later(patience + _DRAIN_SLACK, self._crew.kill_rest)

    def _cut(self, why: str) -> None:
        if self._stopping != "cutting":
            self._log.line(f"{why} received: stopping at once")
            self._end("cutting", "stop")
            self._loop.call_later(_STOP_PATIENCE, self._crew.kill_rest)

    def _end(self, state: str, order: str) -> None:
        self._stopping = state
        if self._subscriptions is not None:
            self._subscriptions.retire()
        if self._announcing is not None:
            self._announcing.stop()  # first of all: nobody shall come any more
        self._crew.leave({"type": order})
        # The workers have their own copies; with ours gone an address is free, and connections
        # to it are refused, as soon as its worker stops accepting.
        for bound in self._traffic:
            bound.close()

    def _not_ready(self) -> str:
        if self._stopping:
            return "draining"
        return "" if self._crew.accepting else "no worker"

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

    def close(self) -> None:
        """Leave nothing behind: no child, no file of ours, no descriptor."""
        if self._announcing is not None:
            self._announcing.close()
        self._crew.close()
        if self._subscriptions is not None:
            self._subscriptions.close()
        self._tls.close()
        if self._stats is not None:
            self._stats.close()
        if self._settings.process.vacuum:
            self._binder.vacuum()
        self._binder.close()
        self._pidfile.remove()
        self._signals.close()
        self._loop.close()


def _option_of(gateway: str, listener: ListenerSettings) -> str:
    """The option that asks for such a listener."""
    if listener.tls is not None:
        return "https"
    return "http-to-https" if listener.redirect is not None else gateway
