"""Announcements over a real UDP socket: how many one process verifies and applies.

Three processes: the receiver is the master's own code (loop, sockets, registry) bound to a core; on
the other core are the sender, which has all datagrams ready, and a worker that applies the
changes which the receiver tells it.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import random
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from benchmarks.measured import MeasureError, Said
from benchmarks.procs import cpu_nanos
from uwgate.config.settings import (
    AnnounceSettings,
    Endpoint,
    RouterSubscriptions,
    SubscriptionSettings,
)
from uwgate.master.control import Channel, pair
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.subscribing import GatewaySubscriptions, Subscriptions
from uwgate.router.clock import Clock
from uwgate.router.resolve_subscriptions import SubscriptionResolver
from uwgate.subscriptions.packet import Announcement, encode
from uwgate.subscriptions.table import Change

NAME = "http"
PATIENCE = 60.0  # seconds for anything that has to come to an end
_MANY = 1 << 30
_PORT, _RECEIVED, _STOP, _WINDOW, _LOST, _JOINED, _UPDATED, _REFUSED = range(8)
_MOST_WINDOW = 2048  # datagrams on their way
_BYTES_EACH = 2048  # of the kernel's buffer, for one of them


def settings(
    *, tolerance: float = 100_000.0, digest: str = "", directory: str = ""
) -> RouterSubscriptions:
    """The usual settings but for the limits of what one sender may do; they are still looked at."""
    common = SubscriptionSettings(
        tolerance=tolerance,
        sign_digest=digest,
        sign_directory=directory,
        max_keys=_MANY,
        max_rate=_MANY,
        max_sender_nodes=_MANY,
    )
    return RouterSubscriptions(common, (Endpoint("tcp", "127.0.0.1:0", host="127.0.0.1"),))


def announcements(
    nodes: int, keys: int, *, load: int = 0, unix: int = 0, sign: Callable[[bytes], bytes] | None
) -> Iterator[bytes]:
    """A datagram of each of ``nodes`` nodes, which serve ``keys`` keys."""
    for number in range(nodes):
        yield encode(
            Announcement(
                key=f"app{number % keys}.example.com",
                address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:3031",
                cores=4,
                load=load,
                weight=1,
                unix=unix,
            ),
            sign=sign,
        )


class Master:
    """The subscriptions of a master as they are in a running instance, with one worker.

    ``channel``: to the worker. ``pause``: the longest round of the loop, seconds.
    """

    def __init__(self, wanted: RouterSubscriptions, channel: Channel) -> None:
        self._log = MainLog(os.devnull)
        self.loop = Loop(self._log)
        self._channel = channel
        self.subscriptions = Subscriptions(
            {NAME: wanted}, wanted.common, AnnounceSettings(), self.loop, self._log, self._publish
        )
        self.gateway: GatewaySubscriptions = self.subscriptions.gateways[NAME]
        self.server = self.gateway.sockets[0]
        self.published = 0
        self.pause = 0.0
        self.subscriptions.start()

    def _publish(self, name: str, changes: list[Change]) -> None:
        self.published += len(changes)
        if not self._channel.send({"type": "nodes", "changes": changes}):
            raise MeasureError("the worker does not read")
        self.watch()

    def watch(self) -> None:
        """Write to the worker when it has room, as ``Crew`` does."""
        known = self._channel.fileno() in self.loop.selector.get_map()
        if self._channel.wants_write and not known:
            self.loop.selector.register(
                self._channel, selectors.EVENT_WRITE, lambda mask: self._flush()
            )
        elif known and not self._channel.wants_write:
            self.loop.selector.unregister(self._channel)

    def _flush(self) -> None:
        self._channel.flush()
        self.watch()

    def run(self, until: Callable[[], bool]) -> None:
        """The master's loop until that is true."""
        while not until():
            began = time.perf_counter()
            self.loop.run_once(0.001)
            self.pause = max(self.pause, time.perf_counter() - began - 0.001)


def be_worker(sock: socket.socket, report: Callable[[int, float], None]) -> None:
    """Apply the master's changes until it hangs up; ``report`` is told of each round: changes,
    seconds."""
    channel = Channel(sock)
    resolver = SubscriptionResolver(settings(), cast(Clock, NoClock()))
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while not channel.closed:
            selector.select()
            began, count = time.perf_counter(), 0
            for message in channel.receive():
                for change in message["changes"]:  # type: ignore[attr-defined]
                    resolver.apply(change)
                    count += 1
            report(count, time.perf_counter() - began)


class NoClock:
    """Stands for the clock of a worker's loop where nobody asks for the time."""

    now = 1000.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Datagrams taken in: ``received`` of them in ``cpu`` and ``wall`` seconds of the receiver.

    ``sent``, ``lost``: by the sender, in the kernel. ``joined``, ``updated``, ``refused``: of those
    received.
    """

    received: int
    sent: int
    lost: int
    joined: int
    updated: int
    refused: int
    cpu: float
    wall: float

    @property
    def per_cpu(self) -> float:
        """Datagrams a CPU-second."""
        return self.received / self.cpu

    @property
    def per_wall(self) -> float:
        """Datagrams a second."""
        return self.received / self.wall


class Receiver:
    """The receiving process on ``core`` and its worker on ``load_core``, for a ``with`` block."""

    def __init__(self, wanted: RouterSubscriptions, core: int, load_core: int) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._values = memoryview(self._shared).cast("Q")
        channel, theirs = pair()
        self._worker = os.fork()
        if self._worker == 0:
            channel.close()
            _end_with(load_core, lambda: be_worker(theirs, lambda count, seconds: None))
        theirs.close()
        self.pid = os.fork()
        if self.pid == 0:
            _end_with(core, functools.partial(self._receive, wanted, channel))
        channel.close()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        _wait(lambda: self._values[_PORT] > 0, "the receiver to listen")
        self._sock.connect(("127.0.0.1", self._values[_PORT]))
        self._sent = 0

    def _receive(self, wanted: RouterSubscriptions, channel: Channel) -> None:
        master, values = Master(wanted, channel), self._values
        gateway, server = master.gateway, master.server
        # Half as much again is said to be there as was asked for: each datagram costs its frame.
        values[_WINDOW] = max(16, min(_MOST_WINDOW, server.buffer // 2 // _BYTES_EACH))
        values[_PORT] = int(server.name.rpartition(":")[2])
        while not values[_STOP]:
            master.loop.run_once(0.05)
            values[_JOINED] = gateway.counters["joined"]
            values[_UPDATED] = gateway.counters["updated"]
            values[_REFUSED] = sum(gateway.rejected.values())
            values[_LOST] = server.lost
            values[_RECEIVED] = server.received

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *exc: object) -> None:
        self._values[_STOP] = 1
        for pid in (self.pid, self._worker):
            os.waitpid(pid, 0)
        self._sock.close()
        self._values.release()
        self._shared.close()

    def take_in(self, datagrams: Sequence[bytes]) -> None:
        """Send all of them once, none may get lost, and wait until they are applied."""
        self._send(iter(datagrams), flood=False)
        self._settle(self._sent)

    def measure(
        self, datagrams: Sequence[bytes], seconds: float = 0.0, *, flood: bool = False
    ) -> Rate:
        """Send ``datagrams`` once, or again and again for ``seconds``.

        ``flood``: as fast as it goes; else no faster than they are taken in, so that none is lost.
        """
        before, sent, cpu = list(self._values[:8]), self._sent, cpu_nanos([self.pid])
        began = time.perf_counter()
        if seconds:
            end = began + seconds
            self._send(itertools.cycle(datagrams), flood=flood, until=end)
        else:
            self._send(iter(datagrams), flood=flood)
        if not flood:
            self._settle(self._sent)
        spent, wall = cpu_nanos([self.pid]) - cpu, time.perf_counter() - began
        after = list(self._values[:8])
        return Rate(
            received=after[_RECEIVED] - before[_RECEIVED],
            sent=self._sent - sent,
            lost=after[_LOST] - before[_LOST],
            joined=after[_JOINED] - before[_JOINED],
            updated=after[_UPDATED] - before[_UPDATED],
            refused=after[_REFUSED] - before[_REFUSED],
            cpu=spent / 1e9,
            wall=wall,
        )

    def _send(self, datagrams: Iterator[bytes], *, flood: bool, until: float = 0.0) -> None:
        send, values, window = self._sock.send, self._values, self._values[_WINDOW]
        while chunk := list(itertools.islice(datagrams, 16)):
            for datagram in chunk:
                send(datagram)
            self._sent += len(chunk)
            if until and time.perf_counter() > until:
                return
            if not flood:
                limit = time.monotonic() + PATIENCE
                while self._sent - values[_RECEIVED] > window:
                    os.sched_yield()
                    if time.monotonic() > limit:
                        raise MeasureError("datagrams got lost on the way")

    def _settle(self, count: int) -> None:
        _wait(lambda: self._values[_RECEIVED] >= count, f"{count} datagrams to be received")


def _wait(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            raise MeasureError(f"waited in vain for {what}")
        time.sleep(0.0005)


def _end_with(core: int, work: Callable[[], None]) -> None:
    """What a forked child does; it never returns."""
    code = 1
    try:
        os.sched_setaffinity(0, {core})
        work()
        code = 0
    finally:
        os._exit(code)


# --- what is measured ----------------------------------------------------------------------------


def unsigned(kind: str, core: int, load_core: int, seconds: float, nodes: int) -> Rate:
    """``kind``: refresh, flood, load, join or garbage."""
    keys = max(1, nodes // 10)
    usual = list(announcements(nodes, keys, sign=None))
    with Receiver(settings(), core, load_core) as receiver:
        if kind == "join":
            rate = receiver.measure(usual)
            _check(rate.joined == rate.received == nodes, kind, rate)
            return rate
        receiver.take_in(usual)
        if kind == "load":
            loads = [list(announcements(nodes, keys, load=n, sign=None)) for n in (1, 2, 3)]
            rate = receiver.measure([*usual, *itertools.chain(*loads)], seconds)
        elif kind == "garbage":
            rate = receiver.measure(list(_garbage(nodes)), seconds)
            _check(rate.refused == rate.received, kind, rate)
            return rate
        else:
            rate = receiver.measure(usual, seconds, flood=kind == "flood")
        _check(rate.joined == rate.updated == rate.refused == 0, kind, rate)
        return rate


def signed(core: int, load_core: int, directory: Path, nodes: int, packets: int) -> Rate:
    """Announcements of ``nodes`` nodes, ``packets`` in all, each signed with RSA-2048, SHA-256."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    from uwgate.subscriptions.signing import Signer, key_file

    keys = max(1, nodes // 10)
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for number in range(keys):
        Path(key_file(str(directory), f"app{number}.example.com")).write_bytes(public)
    sign, start = Signer(pem, "sha256").sign, int(time.time())
    rounds = [
        list(announcements(nodes, keys, unix=start + number, sign=sign))
        for number in range(1 + packets // nodes)
    ]
    wanted = settings(digest="sha256", directory=str(directory))
    with Receiver(wanted, core, load_core) as receiver:
        receiver.take_in(rounds[0])
        rate = receiver.measure(list(itertools.chain(*rounds[1:])))
    _check(rate.joined == rate.refused == 0 and rate.received > 0, "signed", rate)
    return rate


def expiry(load_core: int, nodes: int) -> Said:
    """``nodes`` nodes fall silent in the same second: longest rounds of the master and a worker.

    To be run in a process of its own, on the master's core.
    """
    channel, theirs = pair()
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        channel.close()
        pauses: list[tuple[float, int]] = []
        try:
            os.sched_setaffinity(0, {load_core})
            be_worker(theirs, lambda count, seconds: pauses.append((seconds, count)))
            os.write(writer, f"{max(pauses)[0]}".encode())
        finally:
            os._exit(0)
    theirs.close()
    os.close(writer)
    master = Master(settings(tolerance=2.0), channel)
    gateway = master.gateway
    # Received in one go, they have the same second.
    for datagram in announcements(nodes, max(1, nodes // 10), sign=None):
        gateway.receive(datagram, "127.0.0.1", None)
    # The worker is not told of them as a crowd: it inherits what is there.
    gateway.changes.clear()
    joining = [["+", m.slot.key, m.address, 0, 0, 1, 0, "uwsgi", "", 0] for m in gateway.table]
    for start in range(0, nodes, 200):
        gateway.changes.extend(joining[start : start + 200])
        master.subscriptions.flush()
        master.run(lambda: not channel.wants_write)
        time.sleep(0.001)
    master.pause = 0.0
    began = time.process_time()
    master.run(lambda: not gateway.table.members and not channel.wants_write)
    spent = time.process_time() - began
    if gateway.counters["expired"] != nodes:
        raise MeasureError(f"{gateway.counters['expired']} of {nodes} nodes expired")
    channel.close()
    with os.fdopen(reader) as pipe:
        worker_pause = float(pipe.read())
    os.waitpid(worker, 0)
    return {"master": master.pause, "worker": worker_pause, "cpu": spent}


def _garbage(count: int) -> Iterator[bytes]:
    """Random bytes behind a right header, and announcements with one byte changed."""
    dice = random.Random(7)
    for datagram in announcements(count, count, sign=None):
        spoilt = bytearray(datagram)
        if dice.random() < 0.5:
            spoilt[4:] = dice.randbytes(len(spoilt) - 4)
        else:
            spoilt[4 + dice.randrange(2)] ^= 0x40  # the length of the first name
        yield bytes(spoilt)


def _check(right: bool, kind: str, rate: Rate) -> None:
    if not right or rate.cpu <= 0:
        raise MeasureError(f"{kind}: not what was to be measured: {rate}")
