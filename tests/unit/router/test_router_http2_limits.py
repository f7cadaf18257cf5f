"""What a connection may spend, and when that is there again."""

from __future__ import annotations

import asyncio

import pytest

from uwgate.config.settings import Http2Settings
from uwgate.protocols.http2 import ErrorCode, Http2Error
from uwgate.router.clock import Clock
from uwgate.router.http2_limits import Limits

CALM = 8


@pytest.fixture
def clock() -> Clock:
    """One that does not tick."""
    loop = asyncio.new_event_loop()
    loop.close()
    return Clock(loop)


@pytest.mark.parametrize("most", [10, 14, 300])
@pytest.mark.parametrize("step", [0.01, 0.3, 1.0])
def test_nobody_is_wary_for_ever(clock: Clock, most: int, step: float) -> None:
    limits = Limits(clock, Http2Settings(max_resets=most))
    for _ in range(CALM):
        assert not limits.wary
        limits.spend_reset()
    assert not limits.wary
    limits.spend_reset()
    assert limits.wary
    began = clock.now
    while limits.wary:  # asked all the time, each time for a fraction of a stream
        clock.now += step
        assert clock.now < began + 15


@pytest.mark.parametrize("step", [0.005, 1.0])
def test_allowances_come_back(clock: Clock, step: float) -> None:
    limits = Limits(clock, Http2Settings(max_resets=10, max_frames=100))
    for _ in range(10):
        limits.spend_reset()
    limits.spend(100)
    with pytest.raises(Http2Error) as caught:
        limits.spend()
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM
    with pytest.raises(Http2Error):
        limits.spend_reset()
    until = clock.now + 60
    while clock.now < until:
        clock.now += step
        limits.wary  # noqa: B018
    limits.spend(100)
    for _ in range(10):
        limits.spend_reset()
    with pytest.raises(Http2Error):
        limits.spend_reset()
