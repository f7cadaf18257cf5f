"""From the first fork of a master to the moment when all its workers serve.

A new master of a reload finds workers at work. They serve on until their successors do: all at
once, or in a chain reload one after the other. Then nobody needs the master before any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from uwgate.master.crew import Crew
from uwgate.master.guardian import Pledge
from uwgate.master.loop import Loop
from uwgate.master.slots import Slot

PATIENCE = 60.0
"""Seconds until the workers of a reload have to serve."""


class Succession:
    """``chain``: one worker after the other. ``up`` is told once all serve. ``open`` until then.

    ``late`` is told if they do not within PATIENCE seconds: with what there is, orders are taken
    again, and workers that have no successor serve on. If there is none at all, the start failed.

    ``secured``: the word to the guardian is given, as a worker serves that can; in a reload that
    is no chain: as all of them do.
    """

    def __init__(
        self,
        crew: Crew,
        pledge: Pledge | None,
        loop: Loop,
        *,
        chain: bool,
        up: Callable[[], None],
        late: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._late = late
        self._crew = crew
        self._pledge = pledge
        self._chain = chain
        self._up = up
        self._missing: deque[Slot] = deque()
        self.open = True
        crew.came = self._came
        crew.went = self._went

    def start(self, *, cheap: bool = False) -> None:
        """Fork the first workers; with ``cheap`` none."""
        if self._pledge is not None:
            self._loop.call_later(PATIENCE, self._hurry)
        if cheap or not self._crew.slots_of_now:
            self._finish()
        elif self._chain and self._crew.retired.slots:
            self._missing.extend(self._crew.slots_of_now)
            self._next()
        else:
            self._crew.start()

    @property
    def secured(self) -> bool:
        """Whether nobody waits for our word any more."""
        return self._pledge is None or not self._pledge.open

    def secure(self) -> None:
        """There is no way back."""
        if self._pledge is not None and self._pledge.open:
            self._pledge.fulfil()

    def again(self) -> None:
        """Another reload was ordered of us; should we fail, the guardian has to know."""
        if self._pledge is not None:
            self._pledge.again = True

    def _hurry(self) -> None:
        if not self.open or self.secured:
            return
        if self._crew.served:
            self.secure()
            self._late()
        else:
            self._crew.give_up()

    def _came(self, slot: Slot) -> None:
        if not self.open:
            return
        if self._missing:
            self.secure()
            self._next()
        elif self._crew.complete:
            self._finish()

    def _went(self, slot: Slot) -> None:
        """A worker of the master before has ended early: its successor is needed now."""
        heir = slot.heir
        if heir is not None and heir in self._missing:
            self._missing.remove(heir)
            self._crew.fill(heir)

    def _next(self) -> None:
        if self._missing:
            self._crew.fill(self._missing.popleft())

    def _finish(self) -> None:
        self.open = False
        self._crew.retired.relieve(serving=len(self._crew.slots_of_now))
        self.secure()
        self._up()
