"""Which process is meant, whatever its number."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest
from support.waiting import DEADLINE, wait_until

from uwgate.master import guardian, pids
from uwgate.master.control import pair
from uwgate.master.crew import _adopted
from uwgate.master.handover import HandedWorker
from uwgate.master.slots import WorkerProcess


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def test_a_signal_goes_to_that_process(child: subprocess.Popen[bytes]) -> None:
    pidfd = pids.hold(child.pid)
    assert pids.stands_for(pidfd, child.pid)
    assert not pids.stands_for(pidfd, os.getpid())
    # The number is not looked at.
    pids.send(os.getpid(), pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], DEADLINE)[0]
    assert child.wait() == -signal.SIGKILL
    assert pids.stands_for(pidfd, child.pid)
    pids.send(os.getpid(), pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_without_a_descriptor_the_number_counts(child: subprocess.Popen[bytes]) -> None:
    pids.send(child.pid, -1, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    pids.send(child.pid, -1, signal.SIGKILL)
    assert pids.hold(child.pid) == -1
    assert not pids.stands_for(-1, child.pid)


def test_who_is_buried_gets_no_signal(child: subprocess.Popen[bytes]) -> None:
    channel, theirs = pair()
    process = WorkerProcess(child.pid, channel, pidfd=pids.hold(child.pid))
    process.bury()
    process.bury()
    process.send(signal.SIGKILL)
    assert child.poll() is None
    channel.close()
    theirs.close()


def handed(pid: int, fd: int, pidfd: int = -1) -> HandedWorker:
    return HandedWorker("http", 1, 1, pid, fd, 1, 1.0, 1.0, 1, True, False, pidfd=pidfd)


def test_only_relatives_are_adopted(child: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 100 & echo $!; wait"], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        stranger = int(parent.stdout.readline())
        for pid, pidfd, welcome in (
            (child.pid, -1, True),
            (stranger, -1, False),
            (stranger, pids.hold(child.pid), False),
            (stranger, pids.hold(stranger), True),
        ):
            channel, theirs = pair()
            process = _adopted(handed(pid, os.dup(channel.fileno()), pidfd))
            assert (process is not None) == welcome, (pid, pidfd)
            if process is not None:
                assert process.child == (pid == child.pid)
                process.channel.close()
                process.bury()
            elif pidfd >= 0:
                os.close(pidfd)
            channel.close()
            theirs.close()
        os.kill(stranger, signal.SIGKILL)
        parent.wait()


def test_a_guardian_is_our_child_behind_a_pipe(child: subprocess.Popen[bytes]) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    for text in (f"{null}:{child.pid}", f"{writer}:1", f"{writer}:{os.getppid()}", "9999:1", "٣:1"):
        environ = {guardian.VARIABLE: text}
        assert guardian.pledge(environ) is None, text
        assert not environ
    pledge = guardian.pledge({guardian.VARIABLE: f"{writer}:{child.pid}"})
    assert pledge is not None
    pledge.fulfil()
    assert os.read(reader, 10) == b"\0"
    os.close(reader)
    os.close(null)


def test_parents() -> None:
    assert pids.parent_of(os.getpid()) == os.getppid()
    with subprocess.Popen(["true"]) as ended:
        wait_until(lambda: pids.parent_of(ended.pid) == os.getpid(), "it is ours")
    assert pids.parent_of(ended.pid) == 0
