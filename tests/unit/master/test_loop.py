"""The master's event loop."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MainLog]:
    """A log in a file."""
    log = MainLog(str(tmp_path / "log"))
    yield log
    log.close()


@pytest.fixture
def loop(log: MainLog) -> Iterator[Loop]:
    """A loop that logs there."""
    loop = Loop(log)
    yield loop
    loop.close()


def test_timers_run_in_order_and_can_be_cancelled(loop: Loop) -> None:
    seen: list[str] = []
    started = time.monotonic()
    loop.call_later(0.02, lambda: seen.append("late"))
    loop.call_later(0.0, lambda: seen.append("first"))
    loop.call_later(0.0, lambda: seen.append("second"))
    loop.call_later(0.0, lambda: seen.append("never")).cancel()
    while len(seen) < 3:
        loop.run_once()
    assert seen == ["first", "second", "late"]
    assert time.monotonic() - started >= 0.02


def test_waits_no_longer_than_told(loop: Loop) -> None:
    began = time.monotonic()
    loop.call_later(60, lambda: None)
    loop.run_once(0.01)
    loop.call_later(0, lambda: None).cancel()
    loop.run_once(0)
    assert time.monotonic() - began < 30, "waited for the timer, not for as long as told"


def test_failing_handler_is_logged_and_let_go(loop: Loop, tmp_path: Path) -> None:
    left, right = socket.socketpair()
    reading, writing = os.pipe()

    def fail(mask: int) -> None:
        raise RuntimeError("broken handler")

    loop.selector.register(left, selectors.EVENT_READ, fail)
    loop.selector.register(reading, selectors.EVENT_READ, fail)
    right.send(b"x")
    os.write(writing, b"x")
    loop.run_once()
    loop.run_once(0)
    assert not loop.selector.get_map()
    assert left.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    assert (tmp_path / "log").read_text().count("event handler failed") == 2
    right.close()
    os.close(writing)


def test_failing_timer_is_logged(loop: Loop, tmp_path: Path) -> None:
    loop.call_later(0, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    loop.run_once()
    assert "timer failed: ZeroDivisionError" in (tmp_path / "log").read_text()


def test_event_of_a_descriptor_closed_meanwhile_is_dropped(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    seen: list[int] = []

    def close_other(mine: int) -> None:
        seen.append(mine)
        other = pairs[1 - mine][0]
        loop.selector.unregister(other)

    for index, (left, right) in enumerate(pairs):
        loop.selector.register(left, selectors.EVENT_READ, lambda mask, i=index: close_other(i))
        right.send(b"x")
    loop.run_once()
    assert len(seen) == 1
    for pair in pairs:
        for sock in pair:
            sock.close()
