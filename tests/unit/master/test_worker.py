"""What becomes of a copy of the master before it serves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.waiting import wait_until
from support.workers import Worker, links, worker

MAPPER = """
import os

with open({file!r}, "w") as file:
    file.write("\\n".join(sorted(os.environ)))

def find(key):
    return "127.0.0.1:1"
"""

BETWEEN_MASTER_AND_OTHERS = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "UWGATE_BESIDE",
    "UWGATE_HANDOVER",
)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Those of a gateway whose mapper writes down what variables there are."""
    mapper = tmp_path / "mapper.py"
    mapper.write_text(MAPPER.format(file=str(tmp_path / "environ")))
    return ["--http", "127.0.0.1:0", "--http-use-code-string", f"0:{mapper}:find"]


def test_what_is_for_the_master_is_not_for_workers(tmp_path: Path, words: list[str]) -> None:
    given = dict.fromkeys((*BETWEEN_MASTER_AND_OTHERS, "LISTENER", "APP_UWGATE_X"), "1")
    with worker(tmp_path, *words, environ=given):
        seen = (tmp_path / "environ").read_text().split("\n")
    assert not set(seen) & set(BETWEEN_MASTER_AND_OTHERS)
    assert {"LISTENER", "APP_UWGATE_X"} <= set(seen)


def test_inherited_sockets_and_pipes_are_let_go(tmp_path: Path, words: list[str]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with worker(tmp_path, *words, inherits=str(fifo)) as it:
        wait_until(lambda: it.has_sockets(), "it serves")
        found = links(it.pid)
    assert str(fifo) not in found
    # Its channel, its listening socket and a duplicate, uvloop's pair for signals.
    assert sum(link.startswith("socket:") for link in found) == 5
    # Those of the log stay, and so does what is in memory.
    assert str(tmp_path / "worker.log") in found
    assert "/memfd:kept (deleted)" in found


def test_a_worker_without_a_master_ends_at_once(tmp_path: Path, words: list[str]) -> None:
    """It died between the fork and the moment from which the channel tells."""
    with pytest.raises(AssertionError, match="ended without ready"):
        Worker(tmp_path, *words, master=1)


def test_usr2_has_it_write_its_stacks(tmp_path: Path, words: list[str]) -> None:
    with worker(tmp_path, *words) as it:
        os.kill(it.pid, signal.SIGUSR2)
        wait_until(lambda: "worker.py" in it.log, "its stacks are in the log")
        assert "Current thread" in it.log
        it.snapshot()  # and it goes on
