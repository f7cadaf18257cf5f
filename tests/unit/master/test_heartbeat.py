"""Cells that a worker writes and the master looks at."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.waiting import DEADLINE, wait_until

from uwgate.master.heartbeat import CELLS, INTERVAL, Heartbeats, dump_and_kill
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop

LIMIT = 5.0


def looking(beats: Heartbeats, begin: float, end: float) -> float:
    """Look once a second, and nobody is late; the time of the next look."""
    now = begin
    while now < end:
        assert not beats.late(1, now, LIMIT)
        now += 1.0
    return now


def test_who_does_not_beat_is_late() -> None:
    beats = Heartbeats()
    beats.late(1, 98.0, LIMIT)
    beats.beat(1, 100.0)
    now = looking(beats, 99.0, 100 + LIMIT + INTERVAL)
    assert beats.late(1, now, LIMIT)
    beats.beat(1, now)
    assert not beats.late(1, now + 1, LIMIT)


def test_each_has_a_cell_of_its_own() -> None:
    beats = Heartbeats()
    beats.late(1, 100.0, LIMIT)
    beats.beat(1, 100.0)
    beats.beat(2, 106.0)
    beats.beat(CELLS - 1, 106.0)
    for now in (102.0, 104.0, 106.0):
        late = [cell for cell in range(CELLS) if beats.late(cell, now, LIMIT)]
    assert late == [1]


def test_who_has_never_beaten_or_is_not_watched_is_not_late() -> None:
    beats = Heartbeats()
    beats.beat(2, 100.0)
    for now in range(100, 200):
        assert not beats.late(1, float(now), LIMIT)
        assert not beats.late(2, float(now), 0)


def test_a_master_that_was_stopped_itself_blames_nobody() -> None:
    beats = Heartbeats()
    beats.late(1, 99.0, LIMIT)
    beats.beat(1, 100.0)
    now = looking(beats, 100.0, 103.0)
    # Everything was frozen for a minute. The worker gets its time anew, and not for ever.
    now = looking(beats, now + 60, now + 60 + LIMIT)
    while not beats.late(1, now, LIMIT):
        now += 1.0
        assert now < 103 + 60 + LIMIT + 3


STUCK = """
import faulthandler, os, signal, sys, threading
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
faulthandler.register(signal.SIGUSR2, file=log, all_threads=True)
os.write(log, b"ready\\n")
def stuck_here():
    threading.Event().wait()
stuck_here()
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MainLog]:
    """A log in a file."""
    log = MainLog(str(tmp_path / "main.log"))
    yield log
    log.close()


@pytest.fixture
def loop(log: MainLog) -> Iterator[Loop]:
    """A loop that logs there."""
    loop = Loop(log)
    yield loop
    loop.close()


def run(loop: Loop, until: Callable[[], object]) -> None:
    limit = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < limit
        loop.run_once(0.01)


def test_who_is_stuck_says_where_and_is_killed(
    tmp_path: Path, loop: Loop, log: MainLog
) -> None:
    file = tmp_path / "worker.log"
    with subprocess.Popen([sys.executable, "-c", STUCK, str(file)]) as process:
        wait_until(lambda: file.exists() and "ready" in file.read_text(), "it is stuck")
        dump_and_kill(loop, log, "uwgate http 1", process.pid, process.send_signal)
        wait_until(lambda: "in stuck_here" in file.read_text(), "its stacks are in the log")
        assert process.poll() is None
        run(loop, lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGKILL
    line = f"*** HARAKIRI ON GATEWAY uwgate http 1 (pid: {process.pid}) ***"
    assert line in (tmp_path / "main.log").read_text()


def test_who_is_gone_already_is_no_problem(tmp_path: Path, loop: Loop, log: MainLog) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        dump_and_kill(loop, log, "uwgate http 1", process.pid, process.send_signal)
        done: list[bool] = []
        loop.call_later(0.35, lambda: done.append(True))
        run(loop, lambda: done)
    assert "failed" not in (tmp_path / "main.log").read_text()
