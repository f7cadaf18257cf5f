"""One worker process whose master is the test: it gives the orders and holds the same sockets.

Workers are forked, as in an instance, from a process that has imported everything (that of
``multiprocessing``), so that one costs some tens of milliseconds.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.client import Client
from support.waiting import DEADLINE, wait_until
from uwgate.config.argv import parse_argv
from uwgate.config.build import configure
from uwgate.config.model import Problems
from uwgate.config.settings import ListenerSettings, Settings
from uwgate.master.control import Message, pair
from uwgate.master.gateways import FACTORIES, plans
from uwgate.master.heartbeat import Heartbeats
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.tls import Tls
from uwgate.master.worker import WorkerSpec, main

_FORKING = multiprocessing.get_context("forkserver")
# Not this module, which Python 3.11 does not find there.
_FORKING.set_forkserver_preload(
    ["h11", "ssl", "uwgate.config.build", "uwgate.master.gateways", "uwgate.master.tls"]
)

Listeners = tuple[tuple[ListenerSettings, socket.socket], ...]


def _be_worker(
    settings: Settings,
    gateway: str,
    listeners: Listeners,
    control: socket.socket,
    log: str,
    environ: Mapping[str, str],
    inherits: str,
    master: int,
) -> None:
    os.environ.update(environ)
    if inherits:
        os.open(inherits, os.O_RDWR)
        os.memfd_create("kept")
        socket.socket().detach()
    main_log = MainLog(log)
    loop = Loop(main_log)
    tls = Tls(settings, loop, main_log)
    tls.prepare()
    loop.close()
    (plan,) = (each for each in plans(settings, FACTORIES) if each.name == gateway)
    spec = WorkerSpec(
        name=f"uwgate {gateway} 1",
        gateway=gateway,
        id=1,
        settings=settings,
        listeners=listeners,
        control=control,
        master=master or os.getppid(),
        log=main_log,
        uid=None,
        gid=None,
        drain_timeout=plan.drain_timeout,
        terminator=tls.terminators.get(gateway),
        caches=tuple(tls.caches.values()),
        cell=1,
        heartbeats=Heartbeats(),
    )
    main(spec, plan.factory)


def settings_of(words: list[str]) -> Settings:
    """What these words of a command line mean."""
    problems = Problems()
    command = parse_argv(words, problems)
    found = configure(command, {}, io.BytesIO(), sys.argv[0], problems)
    assert found.settings is not None, [str(error) for error in problems.errors]
    return found.settings


class Worker:
    """``options``: words of a command line. Its listeners are bound to free ports of 127.0.0.1,
    whatever they say: ``listening`` has the sockets, in the order of the options. ``environ``,
    ``inherits`` (a FIFO): what it finds at its birth; ``master``: whom it takes for its parent.

    ``messages``: what it has said so far, but for its answers to ``snapshot``.
    """

    def __init__(
        self,
        where: Path,
        *options: str,
        gateway: str = "http",
        environ: Mapping[str, str] | None = None,
        inherits: str = "",
        master: int = 0,
    ) -> None:
        settings = settings_of(list(options))
        of_gateway = settings.http if gateway == "http" else settings.fastrouter
        assert of_gateway is not None
        self.listening = [
            socket.create_server(("127.0.0.1", 0), backlog=64) for _ in of_gateway.listeners
        ]
        self.listeners: Listeners = tuple(zip(of_gateway.listeners, self.listening, strict=True))
        self._log = where / "worker.log"
        self.messages: list[Message] = []
        self._snapshots: list[dict[str, Any]] = []
        self._gateway = gateway
        self.channel, theirs = pair()
        with theirs:
            self.process = _FORKING.Process(
                target=_be_worker,
                args=(
                    settings,
                    gateway,
                    self.listeners,
                    theirs,
                    str(self._log),
                    environ or {},
                    inherits,
                    master,
                ),
            )
            self.process.start()
        try:
            self.heard("ready")
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def address(self, listener: int = 0) -> tuple[str, int]:
        """Of one of its listeners."""
        host, port = self.listening[listener].getsockname()
        return host, port

    def connect(self, listener: int = 0) -> Client:
        """A connection, which it has accepted."""
        before = self.snapshot()["tally"]["accepted"]
        client = Client(self.address(listener))
        wait_until(lambda: self.snapshot()["tally"]["accepted"] > before, "accepted")
        return client

    def order(self, kind: str, **more: object) -> None:
        """Send it a message."""
        assert self.channel.send({"type": kind, **more})

    def drain(self, limit: float = 60, *, gently: bool = True) -> None:
        """Have it drain, and wait until it does."""
        self.order("drain", gently=gently, limit=limit)
        self.heard("draining")
        # It accepts for a moment longer.
        wait_until(lambda: not self.has_sockets(), "accepts no more")

    def has_sockets(self) -> bool:
        """Whether it holds a listening socket, be it in a pause."""
        listening = {f"socket:[{os.fstat(each.fileno()).st_ino}]" for each in self.listening}
        return bool(listening & set(links(self.pid)))

    def heard(self, kind: str) -> Message:
        """Its first message of that kind, once it is here."""
        found: list[Message] = []

        def arrived() -> bool:
            self._listen()
            found.extend(each for each in self.messages if each["type"] == kind)
            assert found or not self.channel.closed, f"ended without {kind}; log:\n{self.log}"
            return bool(found)

        wait_until(arrived, kind)
        return found[0]

    def snapshot(self) -> Any:
        """What it counts now."""
        count = len(self._snapshots)
        self.order("stats", round=1)

        def arrived() -> bool:
            self._listen()
            assert not self.channel.closed, f"it has ended; log:\n{self.log}"
            return len(self._snapshots) > count

        wait_until(arrived, "a snapshot")
        return self._snapshots[-1]["gateways"][self._gateway]

    def _listen(self) -> None:
        for message in self.channel.receive():
            if message["type"] == "stats" and message["round"]:
                self._snapshots.append(message["snapshot"])  # type: ignore[arg-type]
            else:
                self.messages.append(message)

    def received(self, size: int) -> None:
        """Wait until it has read so many bytes of its clients."""
        wait_until(lambda: self.snapshot()["tally"]["rx"] >= size, f"{size} bytes are read")

    def term(self) -> None:
        """SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Its exit code."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"it does not end; log:\n{self.log}"
        return code

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.process.exitcode is not None

    def close(self) -> None:
        """Let go of it, dead or alive."""
        self.process.kill()
        self.process.join(DEADLINE)
        self.process.close()
        self.channel.close()
        for sock in self.listening:
            sock.close()


def links(pid: int) -> list[str]:
    """What the descriptors of a process are."""
    found = []
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended
    for number in numbers:
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            pass
    return found


def stuff(client: Client) -> None:
    """Send until nobody takes any more."""
    client.sock.settimeout(0.5)
    try:
        while True:
            client.send(bytes(100_000))
    except TimeoutError:
        client.sock.settimeout(DEADLINE)


@contextmanager
def worker(where: Path, *options: str, **more: Any) -> Iterator[Worker]:
    """One for the length of a ``with`` block, without a traceback in its log."""
    it = Worker(where, *options, **more)
    try:
        yield it
        assert "Traceback" not in it.log, it.log
    finally:
        it.close()
