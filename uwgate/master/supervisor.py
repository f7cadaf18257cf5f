"""The master: binds, gives up privileges, forks workers and keeps them alive until told to stop.

``run`` reads top to bottom: prepare, start, serve, close. Everything happens in one thread, in one
``selectors`` loop: signals, children, control channels and the stats listener.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Mapping

from uwgate import __version__
from uwgate.config.settings import Settings
from uwgate.master import handover, privileges, rehearsing, systemd
from uwgate.master.control import Message
from uwgate.master.daemon import log_file
from uwgate.master.errors import StartError
from uwgate.master.gateways import FACTORIES, Plan, plans
from uwgate.master.guardian import Pledge
from uwgate.master.handover import Handover, HandoverError
from uwgate.master.instance import Instance
from uwgate.master.logs import MainLog, complain, occupy_standard_streams
from uwgate.master.orders import Orders, Report
from uwgate.master.overview import listeners, stats_line, workers_status
from uwgate.master.pidfile import ANCHOR
from uwgate.master.rehearsal import Program
from uwgate.master.rehearsal import spawn as spawn_program
from uwgate.master.reload import Order, Reloading
from uwgate.master.subscribing import registries
from uwgate.master.worker import GatewayFactory
from uwgate.observe.backlog import queues
from uwgate.observe.counters import Totals
from uwgate.observe.stats import render_json
from uwgate.observe.subscriptions import tables

EXIT_OK = 0
EXIT_CONFIGURATION = 1

# Seconds on top of the drain timeout, for a worker's own clean-up, before it is killed.
_DRAIN_SLACK = 2.0
# Seconds a worker gets to end in order when everything is cut.
_STOP_PATIENCE = 1.0
# Signals closer together than this are one: Ctrl-C under make or timeout(1) arrives twice.
_ONE_SIGNAL = 0.1
# Seconds that clients of the statistics get before an execution.
_SETTLED = 1.0


def run(
    settings: Settings,
    factories: Mapping[str, GatewayFactory] = FACTORIES,
    pledge: Pledge | None = None,
) -> int:
    """Run an instance until it is told to stop; the exit code.

    0: stopped as asked; 1: the configuration cannot be put to work (one line on standard error);
    3: no worker could start (the log says why). ``factories``: gateway name -> its constructor.
    ``pledge``: of a master that has executed itself anew; if it is still open in the end, this one
    has failed, and has let go of everything but the processes before it.
    """
    occupy_standard_streams()
    program = Program()
    try:
        handed = handover.take(os.environ)
        gateways = plans(settings, factories)
        if handed is not None and handed.mode == "rehearse":
            rehearsing.rehearse(settings, {plan.name: plan for plan in gateways}, handed)
            return EXIT_OK
        log = MainLog(
            log_file(settings.process),
            settings.main_log,
            handed=handed.parts.get("log") if handed is not None else None,
        )
        supervisor = Supervisor(settings, log, gateways, program, handed, pledge)
    except (StartError, HandoverError) as error:
        complain(str(error))
        if pledge is not None:
            pledge.reason = str(error)
        return EXIT_CONFIGURATION
    code = EXIT_CONFIGURATION
    try:
        supervisor.start()
        code = supervisor.serve()
    except StartError as error:
        complain(str(error))
        if pledge is not None:
            pledge.reason = str(error)
        if log.path:
            log.line(str(error))
    except Exception as error:
        log.crash("the master failed", error)
    finally:
        supervisor.close(code)
        log.close()
    return code


class Supervisor(Instance):
    """An instance that obeys: the `Orders` of signals, the FIFO, the control socket and touched
    files."""

    def __init__(
        self,
        settings: Settings,
        log: MainLog,
        gateways: list[Plan],
        program: Program | None = None,
        handed: Handover | None = None,
        pledge: Pledge | None = None,
    ) -> None:
        super().__init__(settings, log, gateways, handed, pledge)
        self._program = program or Program()
        self._reloading = Reloading(
            self._loop,
            log,
            self._program,
            self._gather,
            self._not_reloaded,
            self._settling,
            self._signals.again,
            self._resumed,
        )
        self._stopping = ""  # "", "leaving" (not ready, but accepting), "draining", "cutting"
        self._last_stop = 0.0
        self._settle_until = 0.0

    @property
    def _orders(self) -> Orders:
        return self

    def _on_up(self) -> None:
        """All workers serve."""
        assembly = self._assembly
        for name in assembly.inherited.close_rest(vacuum=self._settings.process.vacuum):
            self._log.line(f"uwgate does not listen on {name} any more")
        if assembly.announcing is not None and not self._crew.paused:
            assembly.announcing.start()
        self._pidfiles.up()
        if self._handed is not None and not self._handed.mode:
            text = f"reloaded: uwgate {__version__} serves{_since(self._parts.get('asked'))}"
            self._log.line(text)
            again = self._parts.get("again")
            if again:
                # What had been read of the configuration by then may have changed since.
                self._reloading.order(Order(str(again)), wait=True)
            elif self._control is not None:
                for report in self._control.waiters:
                    report.done(0, text)
        self._notifier.ready(f"uwgate {__version__} is ready")
        self._background.ready()
        self._reloading.go_on()

    def _on_late(self) -> None:
        text = "not all workers serve yet; those of before serve on where they do not"
        self._log.line(text)
        for report in self._control.waiters if self._control is not None else ():
            report.done(1, text)
        self._notifier.ready(text)
        self._reloading.go_on()

    # -- signals -------------------------------------------------------------------------------

    def _on_signals(self, mask: int) -> None:
        for number in dict.fromkeys(self._signals.read()):
            try:
                self._on_signal(signal.Signals(number))
            except Exception as error:
                # Out of here it would cost us the registration: no child buried, no order heard.
                self._log.crash(f"{signal.Signals(number).name} failed", error)

    def _on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGCHLD:
            self._crew.reap(self._reaped)
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._asked_to_stop(number.name)
        elif number is signal.SIGQUIT:
            self.stop_at_once(number.name)
        elif number is signal.SIGHUP:
            self.reload(number.name)
        elif number is signal.SIGTSTP:
            self.pause(number.name)
        elif number is signal.SIGUSR1:
            self.reopen_logs(number.name)
            self.log_stats(number.name)
        else:
            self._log.line(f"{number.name}: means nothing to uwgate, ignored")

    def _reaped(self, pid: int, code: int) -> None:
        """A child has ended that is no worker."""
        if pid in self._forked:
            self._forked.discard(pid)
            self._log.line(f"the instance with pid {pid} has ended (exit code {code})")
            if not self._forked:
                self._alone()
        elif self._watch is None or not self._watch.reaped(pid, code):
            self._reloading.reaped(pid, code)

    def _alone(self) -> None:
        """The instance beside this one has ended: what it had taken over is ours again."""
        if self._stopping:
            return
        if self._assembly.subscriptions is not None:
            self._assembly.subscriptions.thaw()
        if self._fifos is not None:
            self._fifos.renew()
        self._pidfiles.rewrite()
        try:
            control = self._assembly.renew_control()
        except StartError as error:
            self._log.line(str(error))
        else:
            if control is not None and self._control is not None:
                self._control.move(control)

    # -- reload --------------------------------------------------------------------------------

    def reload(self, why: str, *, chain: bool = False, report: Report | None = None) -> None:
        """See `Orders`."""
        order = Order(why, chain, reports=[report] if report is not None else [])
        if self._stopping:
            order.done(1, "the instance ends")
            return
        if self._settings.life.exit_on_reload:
            self._log.line(f"{why}: exit-on-reload")
            order.done(0, "exit-on-reload: the instance ends")
            self.stop(why)
            return
        if not self._reloading.busy:
            self._notifier.reloading()
        if not self._succession.secured:
            self._succession.again()
        self._reloading.order(order, wait=not self._succession.secured)

    def fork_master(self, why: str) -> None:
        """See `Orders`."""
        if self._stopping:
            return
        try:
            given = self._gather("fork", Order(why))
        except OSError as error:
            self._log.line(f"{why}: no other instance: {error.strerror}")
            return
        try:
            pid = spawn_program(self._program, given, "fork", self._reloads + 1)
        except OSError as error:
            self._log.line(f"{why}: no other instance: {error.strerror}")
            return
        finally:
            for fd in given.made:
                os.close(fd)
        self._forked.add(pid)
        if self._assembly.subscriptions is not None:
            self._assembly.subscriptions.freeze()
        self._log.line(f"{why}: another instance beside this one (pid: {pid})")

    def _settling(self) -> bool:
        """Whether somebody is being told statistics; for a second at most that comes first."""
        if self._stats is None:
            return False
        self._stats.pause()
        now = time.monotonic()
        if not self._stats.active:
            self._settle_until = 0.0
            return False
        self._settle_until = self._settle_until or now + _SETTLED
        if now < self._settle_until:
            return True
        self._settle_until = 0.0
        return False

    def _not_reloaded(self, reason: str) -> None:
        if self._stats is not None:
            self._stats.resume()
        self._notifier.ready(f"reload failed: {reason}")
        if self._assembly.announcing is not None and not self._crew.paused:
            self._assembly.announcing.start()

    def _resumed(self, orphaned: bool) -> None:
        """This process is the guardian, and the master from now on."""
        systemd.take_over(os.environ)
        self._crew.disown()
        if self._fifos is not None:
            self._fifos.renew()
        privileges.set_name(self._settings.process.procname)
        if orphaned:
            self._log.line(f"the master is pid {os.getpid()} from now on")
            self._pidfiles.rewrite()
            self._notifier.main_pid(os.getpid())
        else:
            os.environ[ANCHOR] = str(os.getppid())

    # -- other orders --------------------------------------------------------------------------

    def reload_workers(self, why: str, *, brutal: bool = False) -> None:
        """See `Orders`."""
        if self._stopping or self._succession.open:
            self._log.line(f"{why}: not now")
            return
        self._log.line(f"{why}: fresh workers{', at once' if brutal else ''}")
        for slot in self._crew.slots_of_now:
            self._crew.renew(slot, brutal=brutal)

    def pause(self, why: str) -> None:
        """See `Orders`."""
        if self._stopping:
            return
        on = not self._crew.paused
        self._log.line(f"{why}: {'paused, no connection is accepted' if on else 'accepting again'}")
        self._crew.pause(on)
        if self._cheap.on and on:
            self._cheap.leave()
            self._cheap.on = True
        elif self._cheap.on:
            self._cheap.enter()
        announcing = self._assembly.announcing
        if announcing is not None:
            (announcing.stop if on else announcing.start)()
        self._notifier.status("paused" if on else f"uwgate {__version__} is ready")

    def go_cheap(self, why: str) -> None:
        """See `Orders`."""
        if self._stopping or self._cheap.on or self._succession.open:
            return
        self._log.line(f"{why}: cheap, no worker before the next connection")
        self._crew.empty()
        self._cheap.enter()

    def _on_connection(self) -> None:
        self._log.line("somebody has connected: leaving cheap mode")
        self._crew.start()

    def _on_idle(self) -> None:
        seconds = self._settings.life.idle
        if self._settings.life.die_on_idle:
            self._drain(f"no request for {seconds:g} s (die-on-idle)")
        else:
            self.go_cheap(f"no request for {seconds:g} s")

    def toggle_subscriptions(self, why: str) -> None:
        """See `Orders`."""
        if self._assembly.announcing is None:
            self._log.line(f"{why}: nothing is announced")
        elif self._assembly.announcing.toggle():
            self._log.line(f"{why}: announcements are blocked")
        else:
            self._log.line(f"{why}: announcing again")

    def log_stats(self, why: str) -> None:
        """See `Orders`."""
        self._totals(lambda totals: self._log.line(stats_line(totals)))

    def reopen_logs(self, why: str) -> None:
        """See `Orders`."""
        self._log.reopen()
        self._crew.tell({"type": "reopen"})

    def rotate_logs(self, why: str) -> None:
        """See `Orders`."""
        if self._log.rotate():
            self._crew.tell({"type": "reopen"})

    def write_pidfiles(self, why: str) -> None:
        """See `Orders`."""
        self._pidfiles.rewrite()

    def status(self, answer: Callable[[dict[str, object]], None]) -> None:
        """See `Orders`."""
        self._totals(lambda totals: answer(self._status(totals)))

    def _status(self, totals: Totals) -> dict[str, object]:
        gateways = {slot.process.pid: slot.gateway for slot in self._crew.slots if slot.process}
        names = [(gateway, bound.name) for gateway, bound in self._assembly.listening]
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": self._state(),
            "started": self._started,
            "reloads": self._reloads,
            "workers": workers_status(totals, gateways),
            "listeners": listeners(names),
        }

    def _state(self) -> str:
        if self._stopping:
            return "draining"
        if self._reloading.busy or self._succession.open:
            return "reloading"
        if self._crew.paused:
            return "paused"
        return "cheap" if self._cheap.on else "running"

    def stats(self, answer: Callable[[bytes], None]) -> None:
        """See `Orders`."""
        facts = self._stats_facts()

        def render(totals: Totals) -> None:
            waiting = queues(facts.sockets())
            answer(b"".join(piece for piece in render_json(totals, waiting, facts) if piece))

        self._totals(render)

    def _totals(self, answer: Callable[[Totals], None]) -> None:
        ledger, assembly = self._crew.ledger, self._assembly

        def collected(snapshots: list[Message]) -> None:
            answer(ledger.totals(snapshots, tables(registries(assembly.subscriptions))))

        self._crew.collector.collect(collected)

    # -- the end -------------------------------------------------------------------------------

    def stop(self, why: str, *, report: Report | None = None) -> None:
        """See `Orders`."""
        if report is not None:
            report.line("draining")
        self._drain(why)

    def stop_at_once(self, why: str) -> None:
        """See `Orders`."""
        if self._stopping != "cutting":
            self._log.line(f"{why} received: stopping at once")
            self._end("cutting", {"type": "stop"})
            self._loop.call_later(_STOP_PATIENCE, self._crew.kill_rest)

    def _asked_to_stop(self, why: str) -> None:
        now = time.monotonic()
        if now - self._last_stop < _ONE_SIGNAL:
            return
        self._last_stop = now
        if self._stopping:
            self.stop_at_once(why)
        else:
            self._drain(why)

    def _drain(self, why: str) -> None:
        if self._stopping:
            return
        self._succession.secure()
        self._reloading.cancel()
        delay = self._settings.life.drain_delay
        if delay:
            self._log.line(f"{why} received: not ready any more, draining in {delay:g} s")
            self._stopping = "leaving"
            self._say_goodbye()
            self._notifier.extend(delay + _DRAIN_SLACK)
            self._loop.call_later(delay, functools.partial(self._really_drain, why))
        else:
            self._really_drain(why)

    def _really_drain(self, why: str) -> None:
        if self._stopping not in ("", "leaving"):
            return
        patience = max((plan.drain_timeout for plan in self._plans.values()), default=0.0)
        self._log.line(f"{why} received: draining, at most {patience:g} s (again: stop at once)")
        order: Message = {"type": "drain"}
        if self._has_company:
            # Another instance serves the same sockets: clients need not notice.
            patience = self._settings.life.reload_mercy
            order |= {"gently": True, "limit": patience}
        self._end("draining", order)
        self._notifier.extend(patience + 2 * _DRAIN_SLACK)
        self._loop.call_later(patience + _DRAIN_SLACK, self._crew.kill_rest)

    def _say_goodbye(self) -> None:
        """Nobody shall come any more."""
        if self._forked:
            # For systemd the service goes on: `close` says with whom.
            self._notifier.status("draining, another instance serves")
        else:
            self._notifier.stopping()
        if self._assembly.subscriptions is not None and not self._has_company:
            self._assembly.subscriptions.retire()
        if self._assembly.announcing is not None and not self._has_company:
            self._assembly.announcing.stop()

    def _end(self, state: str, order: Message) -> None:
        self._stopping = state
        self._succession.secure()
        self._reloading.cancel()
        if self._limits is not None:
            self._limits.stop()
        self._cheap.leave()
        self._say_goodbye()
        self._crew.leave(order)
        # The workers have their own copies; with ours gone an address is free, and connections
        # to it are refused, as soon as its worker stops accepting.
        for bound in self._assembly.traffic:
            bound.close()

    def _not_ready(self) -> str:
        if self._stopping:
            return "draining"
        if self._crew.paused:
            return "paused"
        return "" if self._crew.accepting or self._cheap.on else "no worker"


def _since(asked: object) -> str:
    if not isinstance(asked, (int, float)):
        return ""
    return f" ({time.monotonic() - asked:.2f} s after the order)"
