"""The deadline wheel on a running loop: never early, at most a few ticks late, once."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import pytest
from router_tools import run

from uwgate.router.clock import TICK, Clock

LATEST = 3 * TICK + 0.75
"""A tick until the deadline is whole ticks back, one for its bucket, one for a lagging ``now``."""


class Item:
    """A timed object that notes when it expired."""

    def __init__(self, clock: Clock, limit: float) -> None:
        self.clock = clock
        self.deadline = clock.now + limit
        self.due = 0
        self.set_at = time.monotonic()
        self.limit = limit
        self.expiries: list[float] = []
        self.done = asyncio.Event()
        self.then: Callable[[], None] = lambda: None
        clock.watch(self)

    def expired(self) -> None:
        assert not self.due
        self.expiries.append(time.monotonic())
        self.done.set()
        self.then()

    def move(self, limit: float) -> None:
        """Move the deadline; ``watch`` has to be called for an earlier one."""
        self.deadline = self.clock.now + limit
        self.set_at, self.limit = time.monotonic(), limit

    def check(self) -> None:
        (at,) = self.expiries
        # ``now`` may lag by a tick when the deadline is made; the wheel allows for that.
        assert self.limit - 0.01 <= at - self.set_at <= self.limit + LATEST


class Story:
    """Everything at once, so that the wall clock is waited for only once."""

    def __init__(self) -> None:
        self.nows: list[float] = []
        self.dates: list[bytes] = []

    async def play(self) -> None:
        clock = self.clock = Clock(asyncio.get_running_loop())
        clock.start()
        self.plain = [Item(clock, i / 10) for i in range(25)]
        self.later = Item(clock, 0.2)
        self.later.move(3.0)  # storing it is all that it takes
        self.earlier = Item(clock, 100.0)
        self.earlier.move(0.5)
        clock.watch(self.earlier)
        self.twice = Item(clock, 0.5)
        clock.watch(self.twice)
        self.removed = Item(clock, 0.5)
        self.removed.deadline = 0.0
        self.forgotten = Item(clock, 0.5)
        clock.forget(self.forgotten)
        clock.forget(self.forgotten)
        self.rivals = [Item(clock, 0.0), Item(clock, 0.0)]
        self.rivals[0].then = lambda: clock.forget(self.rivals[1])
        self.rivals[1].then = lambda: clock.forget(self.rivals[0])
        self.again = Item(clock, 0.0)
        self.again.then = self._once_more
        self.rounds = 0
        end = Item(clock, 3.5)
        while not end.done.is_set():
            if not self.nows or clock.now != self.nows[-1]:
                self.nows.append(clock.now)
                self.dates.append(clock.date)
            await asyncio.sleep(0.02)
        self.lagging = time.monotonic() - clock.now
        clock.stop()
        self.stopped = clock.now

    def _once_more(self) -> None:
        self.rounds += 1
        if self.rounds < 3:
            self.again.deadline = self.clock.now
            self.clock.watch(self.again)


@pytest.fixture(scope="module")
def story() -> Story:
    story = Story()
    run(story.play)
    return story


def test_deadlines_are_never_early_and_not_very_late(story: Story) -> None:
    for item in story.plain:
        item.check()


def test_a_deadline_that_moves_to_later_needs_no_word(story: Story) -> None:
    story.later.check()


def test_a_deadline_that_moves_to_earlier(story: Story) -> None:
    story.earlier.check()


def test_an_object_that_is_watched_twice_expires_once(story: Story) -> None:
    story.twice.check()


def test_an_object_without_a_deadline_leaves_the_wheel(story: Story) -> None:
    assert story.removed.expiries == []
    assert story.removed.due == 0


def test_a_forgotten_object_never_expires(story: Story) -> None:
    assert story.forgotten.expiries == []
    assert story.forgotten.due == 0


def test_what_expires_may_make_another_forgotten(story: Story) -> None:
    """Of two that are due in the same tick too: whichever comes first."""
    assert sum(len(item.expiries) for item in story.rivals) == 1
    assert [item.due for item in story.rivals] == [0, 0]


def test_an_expired_object_may_be_watched_again(story: Story) -> None:
    assert story.rounds >= 2


def test_now_and_date_advance_once_a_second(story: Story) -> None:
    steps = [b - a for a, b in itertools.pairwise(story.nows)]
    assert len(steps) >= 3
    assert all(TICK * 0.9 <= step <= TICK * 2 for step in steps)
    assert story.lagging <= TICK * 2
    assert len(set(story.dates)) >= 3


def test_the_date_line(story: Story) -> None:
    """RFC 9110 §5.6.7: IMF-fixdate."""
    for line in story.dates:
        match = re.fullmatch(
            rb"Date: ([A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT)\r\n", line
        )
        assert match
        when = parsedate_to_datetime(match[1].decode()).timestamp()
        assert abs(time.time() - when) < 60


def test_a_stopped_clock_stands_still(story: Story) -> None:
    async def watch() -> None:
        clock = Clock(asyncio.get_running_loop())
        clock.start()
        item = Item(clock, 0.0)
        clock.stop()
        clock.stop()
        other = Clock(asyncio.get_running_loop())
        other.start()
        late = Item(other, 0.0)
        await late.done.wait()
        assert item.expiries == []
        assert clock.now < other.now
        other.stop()

    run(watch)
    assert story.clock.now == story.stopped
