"""Signals as the master reads them, and what is left of that in a worker."""

from __future__ import annotations

import signal
import subprocess
import sys

_BEGIN = """
import os, select, signal, sys
from uwgate.master.signals import HANDLED, IGNORED_BY_WORKERS, SignalPipe, blocked, enter_worker

pipe = SignalPipe()

def read(count):
    found = []
    while len(found) < count:
        select.select([pipe], [], [], 10)[0] or sys.exit("nothing came")
        found += pipe.read()
    return found

def child(work):
    with blocked():
        pid = os.fork()
        if not pid:
            try:
                work()
            finally:
                os._exit(99)
    return pid

def end(pid):
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
"""


def run(code: str) -> str:
    """The output of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + code], capture_output=True, text=True, timeout=20
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_each_signal_is_read_in_its_order() -> None:
    code = """
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
    os.kill(os.getpid(), number)
print(read(3), pipe.read())
"""
    assert run(code) == "[1, 15, 1] []\n"


def test_blocked_signals_come_later() -> None:
    code = """
with blocked():
    os.kill(os.getpid(), signal.SIGTERM)
    print(pipe.read())
print(read(1))
"""
    assert run(code) == "[]\n[15]\n"


def test_at_the_end_signals_mean_nothing_any_more() -> None:
    code = """
pipe.close()
for number in HANDLED:
    os.kill(os.getpid(), number)
print("alive")
"""
    assert run(code) == "alive\n"


def test_a_worker_ignores_what_its_master_acts_on() -> None:
    code = """
def work():
    enter_worker()
    for number in IGNORED_BY_WORKERS:
        os.kill(os.getpid(), number)
    os._exit(7)

print(end(child(work)), [number for number in pipe.read() if number != signal.SIGCHLD])
"""
    assert run(code) == "7 []\n"


def test_a_worker_without_handlers_can_be_ended() -> None:
    code = """
def work():
    os.kill(os.getpid(), {number})  # blocked so far
    enter_worker()
    os._exit(7)

print(end(child(work)))
"""
    for number in (signal.SIGTERM, signal.SIGQUIT):
        assert run(code.format(number=int(number))) == f"-{int(number)}\n"
