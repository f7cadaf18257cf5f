"""The two halves of a reload: the old master's, up to the execution, and the new one's, after it.

::

    order ─► rehearsal in a child ─► guardian forked ─► execve: the same process, new code
             │ fails: nothing has                       │ configuration read, sockets taken over,
             │ changed, and it                          │ workers forked
             ▼ says why                                 ▼ they serve
             serves on                                  old workers relieved, guardian dismissed

What a failure after the execution means is in `guardian`.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from uwgate import __version__
from uwgate.master import handover, signals
from uwgate.master.guardian import Guardian
from uwgate.master.handover import Handover, Mode
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.orders import Report
from uwgate.master.rehearsal import Program, Rehearsal

_SETTLE = 0.02  # seconds until it is looked again

Gather = Callable[[Mode, "Order"], Handover]
"""Makes what is handed over, for a purpose."""


@dataclass(slots=True, eq=False)
class Order:
    """A reload that was ordered. ``asked``: when, monotonic. ``again``: why another one is to
    follow, which the new master has to know."""

    why: str
    chain: bool = False
    again: str = ""
    asked: float = field(default_factory=time.monotonic)
    reports: list[Report] = field(default_factory=list)

    def line(self, text: str) -> None:
        """Tell who waits."""
        for report in self.reports:
            report.line(text)

    def done(self, code: int, text: str) -> None:
        """Tell who waits that it is over."""
        for report in self.reports:
            report.done(code, text)
        self.reports.clear()


class Reloading:
    """Carries reloads out, one at a time. ``settling``: whether something is to be finished first.

    ``gather``: see `Gather`. ``failed``: nothing has changed, told why. ``keep_signals``: make
    those that were noticed, but not acted on, pending again (they are blocked by then).
    ``resumed``: this process, the guardian, is the master from now on; whether the one before is
    gone.
    """

    def __init__(
        self,
        loop: Loop,
        log: MainLog,
        program: Program,
        gather: Gather,
        failed: Callable[[str], None],
        settling: Callable[[], bool],
        keep_signals: Callable[[], None],
        resumed: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._program = program
        self._gather = gather
        self._failed = failed
        self._settling = settling
        self._keep_signals = keep_signals
        self._resumed = resumed
        self._current: Order | None = None
        self._next: Order | None = None
        self._rehearsal: Rehearsal | None = None

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._current is not None

    @property
    def pending(self) -> bool:
        """Whether another one was ordered meanwhile."""
        return self._next is not None

    def order(self, order: Order, *, wait: bool = False) -> None:
        """Begin, or remember for later (``wait``, or one is under way: what that has read of the
        configuration may have changed since)."""
        if self._current is None and not wait:
            self._begin(order)
            return
        if self._next is None:
            self._log.line(f"{order.why}: another reload follows the one under way")
            self._next = order
        else:
            self._next.reports += order.reports
            self._next.chain = self._next.chain and order.chain

    def go_on(self) -> None:
        """What was under way is over: do what was ordered meanwhile."""
        if self._current is None and self._next is not None:
            order, self._next = self._next, None
            self._begin(order)

    def reaped(self, pid: int, code: int) -> bool:
        """A child has ended; whether it was ours."""
        return self._rehearsal is not None and self._rehearsal.reaped(pid, code)

    def cancel(self) -> None:
        """The instance ends."""
        if self._rehearsal is not None:
            self._rehearsal.cancel()
        for order in (self._current, self._next):
            if order is not None:
                order.done(1, "the instance ends")
        self._current = self._next = None

    # -- steps ---------------------------------------------------------------------------------

    def _begin(self, order: Order) -> None:
        self._current = order
        word = "chain reload" if order.chain else "reload"
        self._log.line(f"{order.why}: {word}, trying the configuration first")
        order.line("trying the configuration")
        try:
            given = self._gather("rehearse", order)
            try:
                self._rehearsal = Rehearsal(self._loop, self._program, given, self._rehearsed)
            finally:
                _close(given)
        except Exception as error:  # in the middle of signals, which nobody must stop to hear
            self._fail(f"no rehearsal: {getattr(error, 'strerror', None) or error}")

    def _rehearsed(self, good: bool, lines: Iterable[str]) -> None:
        self._rehearsal = None
        order = self._current
        if order is None:
            return
        for line in lines:
            # What a start that goes well has to say, the new master will say.
            if not good or line.startswith("uwgate: "):
                self._log.line(f"reload: {line}")
                order.line(line)
        if not good:
            self._fail("the new configuration does not work")
            return
        order.line("executing uwgate anew")
        # Not from here: below us on the stack are handlers of events that nobody will get.
        self._loop.call_later(0, functools.partial(self._execute, order))

    def _execute(self, order: Order) -> None:
        if self._current is not order:
            return  # cancelled meanwhile
        if self._settling():
            self._loop.call_later(_SETTLE, functools.partial(self._execute, order))
            return
        self._log.line(f"executing {' '.join(self._program.arguments)}")
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.HANDLED)
        self._keep_signals()
        try:
            reason = self._become(order)
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.HANDLED)
        self._fail(reason)

    def _become(self, order: Order) -> str:
        """Returns only if it failed: here if nothing has happened, or in the guardian."""
        order.again = self._next.why if self._next is not None else ""
        given = self._gather("", order)
        try:
            guardian = Guardian()
        except OSError:
            _close(given)
            raise
        if guardian.pid == 0:
            reason = guardian.wait()
            _close(given)
            self._resumed(guardian.orphaned)
            return reason
        environ = dict(os.environ)
        environ["UWSGI_RELOADS"] = str(given.reloads)
        try:
            file = self._written(given)
            handover.prepare(given, file, environ, "")
            guardian.announce(environ)
            error = self._program.execute(environ)
        except BaseException:
            guardian.dismiss(environ)
            _close(given)
            raise
        guardian.dismiss(environ)
        handover.undo(given, file, environ)
        _close(given)
        return f"{self._program.path}: {error.strerror}"

    def _written(self, given: Handover) -> int:
        try:
            return handover.write(given)
        except (OSError, ValueError) as error:
            # The only part that grows with what workers say.
            if given.parts.pop("ledger", None) is None:
                raise
            self._log.line(f"the counters of ended workers are lost: {error}")
            return handover.write(given)

    def _fail(self, reason: str) -> None:
        order, self._current = self._current, None
        self._log.line(f"reload failed: {reason}; nothing has changed")
        if order is not None:
            order.done(1, f"{reason}; nothing has changed")
        self._failed(reason)
        self.go_on()


def _close(given: Handover) -> None:
    """Descriptors that were made to be handed over, and are not needed any more."""
    for fd in given.made:
        os.close(fd)
    given.made.clear()


def new_handover(reloads: int, started: float) -> Handover:
    """An empty one of this version."""
    return Handover(__version__, reloads, started)
