"""The zerg dance of "The Art of Graceful Reloading": three master FIFOs, a new instance, the
running one and a sleeping one, all on one pool of ours, behind a router of ours."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.uwgate import running
from support.waiting import free_port, wait_until

from interop import peers, zergs
from interop.peers import Peer
from interop.zergs import Asking, logged, named, order
from uwgate.config.addresses import connecting
from uwgate.master.zerg import attach
from uwgate.observe.backlog import queues

# As in the document, but for the application and the directory.
CONFIG = """
[uwsgi]
master = true
; fifo '0'
master-fifo = {where}/new.fifo
; fifo '1'
master-fifo = {where}/running.fifo
; fifo '2'
master-fifo = {where}/sleeping.fifo
; attach to zerg
zerg = {where}/pool1
; hooks

; destroy the currently sleeping instance
if-exists = {where}/sleeping.fifo
hook-accepting1-once = writefifo:{where}/sleeping.fifo Q
endif =
; force the currently running instance to became sleeping (slot 2) and place it in pause mode
if-exists = {where}/running.fifo
hook-accepting1-once = writefifo:{where}/running.fifo 2p
endif =
; force this instance to became the running one (slot 1)
hook-accepting1-once = writefifo:{where}/new.fifo 1

; other options
pythonpath = {apps}
module = workhorse
need-app = true
processes = 2
disable-logging = true
; a worker that is told to end at a bad moment hangs
worker-reload-mercy = 2
"""


@pytest.fixture
def where() -> Iterator[Path]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as path:
        yield Path(path)


class Dance:
    """The instances, each begun with the same file."""

    def __init__(self, where: Path, stack: ExitStack) -> None:
        self.where = where
        self._stack = stack
        (where / "app.ini").write_text(CONFIG.format(where=where, apps=peers.APPS))

    def begin(self, name: str) -> Peer:
        """One more, until it is the running one."""
        words = [peers.script("uwsgi"), "--ini", str(self.where / "app.ini")]
        log = self.where / f"{name}.log"
        one = self._stack.enter_context(
            peers.peer(
                words,
                [],
                log,
                stop=signal.SIGKILL,
                environ={"NODE_NAME": name},
                cwd=self.where,
            )
        )
        # The worker runs the hook as soon as it accepts, now and then before its master has made
        # the FIFO.
        missed = f'open("{self.where}/new.fifo"): '
        wait_until(lambda: missed in one.logged or self._has(one, "running.fifo"), one.logged)
        if missed in one.logged:
            order(self.where / "new.fifo", "1")
        self.reads(one, "running.fifo")
        return one

    def reads(self, one: Peer, fifo: str) -> None:
        """Wait until that instance has that FIFO open."""
        wait_until(lambda: self._has(one, fifo), f"somebody reads {fifo}; log:\n{one.logged}")

    def _has(self, one: Peer, fifo: str) -> bool:
        for fd in Path(f"/proc/{one.process.pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if os.readlink(fd) == str(self.where / fifo):
                    return True
        return False

    def ends(self, one: Peer) -> None:
        """Wait until that instance has ended, with exit code 0."""
        process = one.process
        wait_until(lambda: process.poll() is not None, f"it ends; log:\n{one.logged}")
        assert process.returncode == 0, one.logged

    def sleeps(self, one: Peer) -> None:
        """Wait until that instance sleeps."""
        for worker in (1, 2):
            logged(one, f"*** worker {worker} suspended ***")


def test_zerg_dance(where: Path) -> None:
    port = free_port()
    with (
        zergs.pool(where, f"{where}/pool1", f"127.0.0.1:{port}"),
        running("--http-to", f"127.0.0.1:{port}") as router,
        ExitStack() as stack,
    ):
        dance = Dance(where, stack)
        first = dance.begin("first")
        with Asking(router.port) as asking:
            asking.wait_for("first")
            second = dance.begin("second")
            dance.sleeps(first)
            dance.reads(first, "sleeping.fifo")
            asking.wait_for("second")
        assert not asking.failures
        assert set(asking.names) == {"first", "second"}

        # "if you want to bring back a sleeping instance". Nobody accepts for a while, and the pool
        # keeps what arrives.
        order(where / "running.fifo", "Q")
        dance.ends(second)
        with ThreadPoolExecutor() as pool, ExitStack() as held:
            early = pool.submit(named, router.port)
            sockets = [held.enter_context(s) for s in attach(connecting(f"{where}/pool1"))]
            wait_until(lambda: queues(sockets)[0].waiting, "a request waits in the pool")
            order(where / "sleeping.fifo", "p1")
            assert early.result(10) == "first"
        dance.reads(first, "running.fifo")

        with Asking(router.port) as asking:
            asking.wait_for("first")
            third = dance.begin("third")
            dance.sleeps(first)
            dance.reads(first, "sleeping.fifo")
            asking.wait_for("third")
            assert first.process.poll() is None
            # The first instance gets its Q, the third sleeps, the fourth runs.
            dance.begin("fourth")
            dance.sleeps(third)
            asking.wait_for("fourth")
            dance.ends(first)
        assert not asking.failures
        assert set(asking.names) == {"first", "third", "fourth"}
        assert third.process.poll() is None
