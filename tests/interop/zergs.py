"""Zerg pools of ours, zergs of uWSGI, and clients that do not stop asking."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.waiting import wait_until

from interop import peers
from interop.clients import fetch
from interop.peers import Peer

STANDIN = peers.ROOT / "tests" / "unit" / "master" / "zerg_standin.py"


@contextmanager
def pool(where: Path, control: str, *addresses: str, **options: object) -> Iterator[Peer]:
    """A master that has nothing but a zerg pool, and what else ``options`` of the standin say."""
    words = json.dumps({"pools": [[control, *addresses]] if addresses else [], **options})
    log = where / "pool.log"
    environ = {"PYTHONPATH": str(peers.ROOT)}
    with peers.peer([sys.executable, str(STANDIN), words], [control], log, environ=environ) as it:
        yield it


@contextmanager
def uwsgi(
    where: Path,
    name: str,
    *options: str,
    program: str = "",
    addresses: Sequence[str] = (),
    application: bool = True,
) -> Iterator[Peer]:
    """A real uWSGI with these options, until it accepts on ``addresses``.

    At the end it is killed, as that is quick.
    """
    argv = [program or peers.script("uwsgi"), "--master"]
    if application:
        argv += ["--need-app", "--pythonpath", str(peers.APPS), "--module", "workhorse"]
    environ = {"NODE_NAME": name}
    log = where / f"{name}.log"
    with peers.peer(
        [*argv, *options], list(addresses), log, stop=signal.SIGKILL, environ=environ
    ) as started:
        yield started


def named(port: int) -> str:
    """Which node answers."""
    reply = fetch(port, "/name")
    assert reply.status == 200, reply
    return str(reply.json()["name"])


def logged(peer: Peer, text: str) -> None:
    """Wait until the peer has said so."""
    try:
        wait_until(lambda: text in peer.logged, text, 20)
    except AssertionError as error:
        raise AssertionError(f"{error}; log:\n{peer.logged}") from None


class Asking:
    """Clients that ask for the name of a node, each time on a new connection."""

    def __init__(self, port: int, clients: int = 3) -> None:
        self._port = port
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.names: list[str] = []
        self.failures: list[BaseException] = []

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._end.is_set():
            try:
                self.names.append(named(self._port))
            except (AssertionError, OSError, ValueError) as error:
                self.failures.append(error)
                return

    def wait_for(self, name: str, times: int = 20) -> None:
        """Wait until so many more answers have come, all of them from that node."""

        def only() -> bool:
            recent = self.names[-times:]
            return bool(self.failures) or recent.count(name) == times

        wait_until(only, f"{name} answers", 20)
        assert not self.failures, self.failures


def order(fifo: Path, letters: str) -> None:
    """Write to a master FIFO once somebody reads it."""
    opened: list[int] = []

    def read() -> list[int]:
        try:
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            pass
        return opened

    wait_until(read, f"{fifo} is read")
    os.write(opened[0], letters.encode())
    os.close(opened[0])
