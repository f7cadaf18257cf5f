"""A server's companion: runs it, watches its health, announces it, and sees it off.

::

    waiting ──well──► announced ──unwell──► taken back ──well──► announced …
       any of them ──SIGTERM──► goodbye, drain ──► SIGTERM to the child ──► SIGKILL
       any of them ──the child ends──► goodbye, exit

One thread, one ``selectors`` loop.
"""

from __future__ import annotations

import functools
import os
import selectors
import signal
import time

from uwgate.announce.checks import Checker, make_check
from uwgate.announce.options import Options
from uwgate.announce.processes import Processes, cause
from uwgate.master.announcing import Announcing
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop, Timer
from uwgate.master.signals import SignalPipe
from uwgate.subscriptions.lookup import Lookups

STOPPING = (signal.SIGTERM, signal.SIGINT)
PASSED_ON = (
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)
HANDLED = (signal.SIGCHLD, signal.SIGQUIT, *STOPPING, *PASSED_ON)

# Signals closer together than this are one: Ctrl-C under make or timeout(1) arrives twice.
_ONE_SIGNAL = 0.1
# What a shell says of a command that is not there, or that it may not run (POSIX).
_EXIT_NOT_FOUND = 127
_EXIT_CANNOT_RUN = 126


class Agent:
    """``run`` until everything is over. The constructor raises StartError."""

    def __init__(self, options: Options, log: MainLog) -> None:
        self._options = options
        self._log = log
        self._loop = Loop(log)
        self._announcing = Announcing(options.settings, self._loop, log, cores=options.cores)
        self._signals = SignalPipe(HANDLED)
        self._loop.selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self._processes = Processes(HANDLED)
        self._lookups = Lookups(self._loop.selector, log.line, lambda: None)
        self._checker: Checker | None = None
        if options.check.kind != "none":
            check = make_check(options.check, self._loop, self._processes, self._lookups)
            self._checker = Checker(options.check, check, self._loop, self._up, self._down)
        self._child = 0
        self._stage = ""  # "", "draining", "stopping"
        self._timer: Timer | None = None
        self._last_stop = float("-inf")
        self._exit: int | None = None

    def run(self) -> int:
        """Start, serve, stop; the exit code."""
        try:
            self._start()
            while self._exit is None:
                self._loop.run_once()
            return self._exit
        finally:
            self._close()

    # -- start -----------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._options.command and not self._start_child():
            return
        if self._checker is not None:
            self._checker.start()
        else:
            self._up()

    def _start_child(self) -> bool:
        command = self._options.command
        try:
            self._child = self._processes.start(command, self._on_child_ended)
        except OSError as error:
            self._log.line(f"cannot start {command[0]}: {error.strerror}")
            missing = isinstance(error, FileNotFoundError)
            self._exit = _EXIT_NOT_FOUND if missing else _EXIT_CANNOT_RUN
            return False
        self._log.line(f"started {' '.join(command)} (pid: {self._child})")
        return True

    # -- health ----------------------------------------------------------------------------------

    def _up(self) -> None:
        entries = self._options.settings.entries
        keys = dict.fromkeys(entry.key or f"@{entry.key_file}" for entry in entries)
        servers = dict.fromkeys(entry.server.text for entry in entries)
        word = "announcing" if self._checker is None else "well: announcing"
        self._log.line(
            f"{word} {', '.join(keys)} at {entries[0].address} to {', '.join(servers)}"
        )
        self._announcing.start()

    def _down(self, reason: str) -> None:
        announced = self._announcing.announced
        # In any case: what it could not announce yet must not be announced now.
        self._announcing.stop()
        if announced:
            self._log.line(f"not well ({reason}): said goodbye")
        else:
            self._log.line(f"not well yet: {reason}")

    # -- signals ---------------------------------------------------------------------------------

    def _on_signals(self, mask: int) -> None:
        for number in dict.fromkeys(self._signals.read()):
            self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGCHLD:
            self._processes.reap()
        elif number in PASSED_ON:
            self._signal_child(number)
        elif number is signal.SIGQUIT:
            self._say_goodbye(number)
            self._stop_child(number)
        else:
            self._asked_to_stop(number)

    def _asked_to_stop(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if now - self._last_stop < _ONE_SIGNAL:
            return
        self._last_stop = now
        if self._stage:
            self._log.line(f"{number.name} received again")
            self._stop_child(signal.SIGTERM)
            return
        # Whoever was not announced has nobody to wait for.
        drain = self._options.drain if self._announcing.announced and self._child else 0.0
        self._say_goodbye(number)
        if drain > 0:
            self._log.line(f"draining for {drain:g} s (again: stop at once)")
            self._stage = "draining"
            self._timer = self._loop.call_later(
                drain, functools.partial(self._stop_child, signal.SIGTERM)
            )
        else:
            self._stop_child(signal.SIGTERM)

    def _say_goodbye(self, number: signal.Signals) -> None:
        announced = self._announcing.announced
        self._announcing.stop()
        if self._checker is not None:
            self._checker.stop()
        self._log.line(f"{number.name} received{': said goodbye' if announced else ''}")

    # -- the end ---------------------------------------------------------------------------------

    def _stop_child(self, number: signal.Signals) -> None:
        if not self._child:
            self._exit = 0
            return
        self._log.line(f"{number.name} to pid {self._child}")
        self._signal_child(number)
        if self._stage == "stopping":
            return
        self._stage = "stopping"
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._options.stop_timeout, self._kill_child)

    def _signal_child(self, number: signal.Signals) -> None:
        try:
            self._processes.signal(self._child, number)
        except PermissionError:
            # It changed its user, and we are not root.
            self._log.line(f"{number.name} to pid {self._child}: not permitted")

    def _kill_child(self) -> None:
        timeout = self._options.stop_timeout
        self._log.line(f"pid {self._child} did not end within {timeout:g} s: killed")
        self._processes.signal_group(self._child, signal.SIGKILL)

    def _on_child_ended(self, code: int) -> None:
        # First of all: nobody may be sent to it any more.
        announced = self._announcing.announced
        self._announcing.stop()
        if self._checker is not None:
            self._checker.stop()
        goodbye = ", said goodbye" if announced else ""
        self._log.line(f"pid {self._child} ended: {cause(code)}{goodbye}")
        # Helpers that it left behind would keep its address.
        self._processes.signal_group(self._child, signal.SIGTERM)
        self._exit = code if code >= 0 else 128 - code

    def _close(self) -> None:
        if self._checker is not None:
            self._checker.stop()
        self._announcing.close()
        self._lookups.close()
        self._signals.close()
        self._loop.close()


def run(options: Options, log: MainLog) -> int:
    """Run an agent; the exit code. Raises StartError."""
    agent = Agent(options, log)
    log.line(f"uwgate announce (pid {os.getpid()})")
    return agent.run()
