"""Nodes that left and came back: what happens to the old object is nothing to the new one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from router_tools import resting_clock

from uwgate.config.settings import RouterSubscriptions, SubscriptionSettings
from uwgate.router.balance import Node
from uwgate.router.clock import Clock
from uwgate.router.resolve_subscriptions import SubscriptionResolver
from uwgate.subscriptions.table import Change, Table

A = "10.0.0.1:80"


@pytest.fixture
def clock() -> Iterator[Clock]:
    with resting_clock() as clock:
        yield clock


def join(modifier1: int = 0) -> Change:
    return ["+", "k", A, modifier1, 0, 1, 0, "uwsgi", "", 1000]


@pytest.mark.parametrize("asked", [True, False], ids=["asked for again", "not asked for yet"])
@pytest.mark.parametrize("changes", [[["-", "k", A], join()], [join(7)]], ids=["left", "changed"])
def test_a_mark_of_a_former_life(clock: Clock, changes: list[Change], asked: bool) -> None:
    told: list[dict[str, object]] = []
    table = SubscriptionResolver(RouterSubscriptions(SubscriptionSettings(), ()), clock)
    table.inherit(Table(), told.append)

    def picked() -> Node | None:
        return table.pick("k", b"", ())

    table.apply(join())
    old = picked()
    assert old is not None
    for change in changes:
        table.apply(change)
    new = picked() if asked else None
    old.failed(clock, 30.0)
    table.mark(old, "timed out")
    assert not told
    later = picked()
    assert later is not None
    assert later is not old
    assert new is None or later is new
    table.mark(later, "refused")
    assert [each["reason"] for each in told] == ["refused"]
    assert picked() is None
