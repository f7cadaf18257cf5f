"""One worker process: from the fork to the exit, read top to bottom.

``main`` turns the forked copy of the master into a worker (signals, descriptors, privileges), then
runs the gateway on uvloop until the master says that it is enough. It never returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import encodings.idna  # noqa: F401  later there may be no library to read, or no right to
import faulthandler
import gc
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

import uvloop

from uwgate.config.settings import ListenerSettings, Settings
from uwgate.master import capabilities, privileges, signals
from uwgate.master.control import Channel, ControlError, Message
from uwgate.master.errors import StartError, explain
from uwgate.master.heartbeat import DUMP, INTERVAL, Heartbeats
from uwgate.master.logs import MainLog
from uwgate.observe.requestlog import RequestLog, open_request_log
from uwgate.subscriptions.table import Change, Table

if TYPE_CHECKING:  # without TLS nobody has to wait for OpenSSL
    from uwgate.tls.cache import SharedCache
    from uwgate.tls.sync import SyncSender
    from uwgate.tls.terminator import Terminator

Listener = tuple[ListenerSettings, socket.socket]

EXIT_CRASHED = 1
# malloc.h, and the bytes of free heap that a worker may keep.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_HEAP = 4 << 20
# How often a draining gateway is asked whether it is done, and the log is written out; seconds.
_DRAIN_POLL = 0.02
# Seconds for those that are cut to take notice.
_PARTING = 1.0
_LOG_FLUSH = 0.1
# Beginnings of the names of variables: what is between the master and others.
_NOT_OURS = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "UWGATE_")
# How many different failures of one worker are written with their traceback.
_MAX_TRACEBACKS = 64


class Gateway(Protocol):
    """What a worker runs: ``HttpGateway`` and those that come after it."""

    async def start(self, listeners: Sequence[Listener], /) -> None:
        """Accept connections."""
        ...

    def drain(self, *, gently: bool = False) -> None:
        """Accept no more, close idle connections (``gently``: with their next response), let
        requests finish."""
        ...

    def pause(self) -> None:
        """Accept no more for now."""
        ...

    def resume(self) -> None:
        """Accept again."""
        ...

    @property
    def drained(self) -> bool:
        """Nothing is in flight any more."""
        ...

    def part(self) -> int:
        """End tunnels in order, which takes a moment, and cut the rest: how many clients."""
        ...

    async def close(self) -> None:
        """Cut what is left."""
        ...

    def inherit(self, table: Table, report: Callable[[Message], None]) -> None:
        """The subscriptions so far; ``report`` sends a message to the master."""
        ...

    def nodes_changed(self, changes: Sequence[Change]) -> None:
        """What changed in the subscriptions."""
        ...

    def use_tls(self, terminator: Terminator, /) -> None:
        """Terminate TLS with this; called before ``start``."""
        ...

    def snapshot(self) -> Message:
        """Counters: ``{"tally": …, "listeners": […], "nodes": […]}``."""
        ...


GatewayFactory = Callable[
    [Settings, asyncio.AbstractEventLoop, RequestLog | None, bytes, Callable[[str], None]], Gateway
]
"""``(settings, loop, request log, server name, main log's line) -> gateway``, in the worker."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the master hands to a new worker.

    ``table``: the subscriptions, if the gateway has any; ``terminator``: if it has a TLS listener.
    ``caches``: all of them; ``senders``: of those whose changes other machines are told, by name.
    ``control``: its end of the channel. ``master``: pid. ``uid``, ``gid``: whom to become.
    ``cell``: its place in memory that all share. ``heartbeats``: if somebody watches them.
    """

    name: str
    gateway: str
    id: int
    settings: Settings
    listeners: tuple[Listener, ...]
    control: socket.socket
    master: int
    log: MainLog
    uid: int | None
    gid: int | None
    drain_timeout: float
    table: Table | None = None
    terminator: Terminator | None = None
    caches: tuple[SharedCache, ...] = ()
    senders: Mapping[str, SyncSender] = field(default_factory=dict)
    cell: int = 0
    heartbeats: Heartbeats | None = None


def main(spec: WorkerSpec, gateway_factory: GatewayFactory) -> NoReturn:
    """Be the worker; ends the process: 0 drained or stopped, 1 failed (the log says why)."""
    code = EXIT_CRASHED
    try:
        channel = Channel(spec.control)
        try:
            _become_worker(spec)
            # With the rights of the worker: a link in a directory of that user must not lead root
            # anywhere.
            request_log = _open_request_log(spec)
            code = _run(spec, channel, request_log, gateway_factory)
        except (StartError, OSError) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            channel.send({"type": "failed", "reason": reason})
    except BaseException as error:
        spec.log.crash(f"{spec.name} crashed", error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # Not sys.exit: below us on the stack is the master's code, with its clean-up.
        os._exit(code)


def _open_request_log(spec: WorkerSpec) -> RequestLog | None:
    settings = spec.settings.request_log
    if not settings.enabled:
        return None
    try:
        return open_request_log(settings, worker=spec.id)
    except OSError as error:
        raise StartError(f"request log {settings.path}: {explain(error)}") from None


def _become_worker(spec: WorkerSpec) -> None:
    signals.enter_worker()
    privileges.set_name(spec.name)
    for cache in spec.caches:
        cache.cell = spec.cell
    listening = (sock.fileno() for _, sock in spec.listeners)
    keep = {spec.control.fileno(), spec.log.fileno(), *listening}
    take_rights(spec.settings, spec.gateway, spec.uid, spec.gid, keep)
    if spec.settings.life.no_orphans:
        privileges.die_with_parent()
    if os.getppid() != spec.master:
        # It died before we asked to be told.
        os._exit(EXIT_CRASHED)
    faulthandler.register(DUMP, file=spec.log.fileno(), all_threads=True)
    # What came with the fork stays: collecting it would only unshare its pages.
    gc.freeze()
    keep_heap()


def take_rights(
    settings: Settings, gateway: str, uid: int | None, gid: int | None, keep: Collection[int]
) -> None:
    """Let go of what a worker of that gateway must not have: descriptors that are not in ``keep``,
    the user and privileges of the master, its root directory. Raises StartError, OSError."""
    close_inherited(keep)
    for name in list(os.environ):
        if name.startswith(_NOT_OURS):
            del os.environ[name]
    privileges.raise_descriptor_limit()
    process = settings.process
    if process.chroot:
        _keep_memory_file()  # there is no /proc in it
        privileges.enter_root(process.chroot)
    privileges.drop(uid, gid, f"{gateway}-", add_gids=process.add_gids)
    if os.geteuid() != 0:
        capabilities.drop_all()
    privileges.hide()
    privileges.no_new_privileges()


def keep_heap() -> None:
    """Tell glibc to keep a few freed megabytes at hand.

    By default it gives the top of the heap back to the kernel after every large free and asks for
    it again for the next read buffer: page faults that cost more than the copying (measured:
    1.35 instead of 0.7 times nginx for bodies of 1 MB).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl, which has no such habit
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_HEAP // 4)


def close_inherited(keep: Collection[int]) -> None:
    """Let go of every inherited socket, pipe and pidfd above 2 that is not in ``keep``.

    Siblings' sockets would otherwise go on accepting, stats clients would never see the end of
    their connections, whoever can write to the FIFO commands the master, and what stands for a
    process is for the master alone. Each number is taken
    over by ``/dev/null`` rather than freed, because Python objects of the master still refer to it.
    """
    devnull = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for entry in os.listdir("/proc/self/fd"):
        number = int(entry)
        if number <= 2 or number in keep:
            continue
        with contextlib.suppress(OSError):
            mode = os.fstat(number).st_mode
            is_pidfd = os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[pidfd]"
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or is_pidfd:
                os.dup2(devnull, number, inheritable=False)
    os.close(devnull)


def _run(
    spec: WorkerSpec,
    channel: Channel,
    request_log: RequestLog | None,
    gateway_factory: GatewayFactory,
) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(_CrashLines(spec).handle)
        server_name = socket.gethostname().encode("ascii", "replace")
        gateway = gateway_factory(spec.settings, loop, request_log, server_name, spec.log.line)
        return runner.run(_Worker(spec, channel, gateway, request_log, loop).serve())


class _Worker:
    """The running worker: obeys the master, flushes the log, knows when it is done."""

    def __init__(
        self,
        spec: WorkerSpec,
        channel: Channel,
        gateway: Gateway,
        request_log: RequestLog | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._spec = spec
        self._channel = channel
        self._gateway = gateway
        self._request_log = request_log
        self._loop = loop
        self._started = time.time()
        self._draining = asyncio.Event()
        self._stopping = asyncio.Event()
        self._gently = False
        self._end = 0.0  # once it drains: when what is under way is cut, in the loop's time
        self._writing = False

    async def serve(self) -> int:
        """Run until drained or stopped; the exit code."""
        self._loop.add_signal_handler(signal.SIGTERM, self._drain, {})
        self._loop.add_signal_handler(signal.SIGQUIT, self._stop)
        if self._spec.table is not None:
            self._gateway.inherit(self._spec.table, self._send)
        if self._spec.terminator is not None:
            self._gateway.use_tls(self._spec.terminator)
        await self._gateway.start(self._spec.listeners)
        self._loop.add_reader(self._channel.fileno(), self._readable)
        self._send({"type": "ready"})
        if self._request_log is not None:
            self._loop.call_later(_LOG_FLUSH, self._flush)
        if self._spec.heartbeats is not None:
            self._beat(self._spec.heartbeats)
        await self._draining.wait()
        self._send({"type": "draining"})
        self._gateway.drain(gently=self._gently)
        await self._finish_requests()
        await self._gateway.close()
        if self._request_log is not None:
            self._request_log.close()
        # Last words, so that the instance's sums include them.
        self._send({"type": "stats", "round": 0, "snapshot": self._snapshot()})
        return 0

    async def _finish_requests(self) -> None:
        parted = False
        while not (self._gateway.drained or self._stopping.is_set()):
            if self._loop.time() >= self._end:
                if parted:
                    return
                parted = True
                await self._part()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _DRAIN_POLL)

    async def _part(self) -> None:
        """The time is over: see off those that only wait, and cut the others."""
        self._gateway.drain()
        await asyncio.sleep(_DRAIN_POLL)
        count = self._gateway.part()
        if count:
            plural = "s" if count > 1 else ""
            self._spec.log.line(f"{self._spec.name}: out of time, {count} connection{plural} cut")
        self._end = self._loop.time() + _PARTING

    def _stop(self) -> None:
        self._stopping.set()
        self._draining.set()

    def _readable(self) -> None:
        try:
            messages = self._channel.receive()
        except ControlError:
            self._channel.closed = True
            messages = []
        for message in messages:
            self._obey(message)
        if self._channel.closed:
            # Nobody can tell us to stop any more.
            self._loop.remove_reader(self._channel.fileno())
            self._spec.log.line(f"{self._spec.name}: the master is gone: draining")
            self._drain({})

    def _obey(self, message: Message) -> None:
        kind = message.get("type")
        if kind == "stats":
            answer = {"type": "stats", "round": message.get("round"), "snapshot": self._snapshot()}
            self._send(answer)
        elif kind == "drain":
            self._drain(message)
        elif kind == "hurry":
            self._hurry()
        elif kind == "pause":
            self._gateway.pause()
        elif kind == "resume":
            self._gateway.resume()
        elif kind == "stop":
            self._stop()
        elif kind == "reopen":
            self._reopen()
        elif kind == "nodes":
            self._gateway.nodes_changed(cast(list[Change], message["changes"]))

    def _drain(self, message: Message) -> None:
        """Begin, or go on with less patience."""
        gently = message.get("gently") is True
        limit = message.get("limit")
        if not isinstance(limit, (int, float)):
            limit = self._spec.drain_timeout
        end = self._loop.time() + limit
        if self._draining.is_set():
            self._end = min(self._end, end)
            if not gently:
                self._hurry()
            return
        self._gently = gently
        self._end = end
        self._draining.set()

    def _hurry(self) -> None:
        """No more gently, if it drains."""
        if self._gently:
            self._gently = False
            self._gateway.drain()

    def _beat(self, heartbeats: Heartbeats) -> None:
        heartbeats.beat(self._spec.cell, time.monotonic())
        self._loop.call_later(INTERVAL, self._beat, heartbeats)

    def _reopen(self) -> None:
        self._spec.log.reopen()
        if self._request_log is not None:
            try:
                self._request_log.reopen()
            except OSError as error:
                self._spec.log.line(f"cannot reopen the request log: {explain(error)}")

    def _send(self, message: Message) -> None:
        self._channel.send(message)
        if self._channel.wants_write and not self._writing:
            self._writing = True
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def _writable(self) -> None:
        self._channel.flush()
        if not self._channel.wants_write:
            self._writing = False
            self._loop.remove_writer(self._channel.fileno())

    def _flush(self) -> None:
        if self._request_log is not None:
            self._request_log.flush()
            self._loop.call_later(_LOG_FLUSH, self._flush)

    def _snapshot(self) -> Message:
        rss, vsz = memory()
        snapshot: Message = {
            "id": self._spec.id,
            "pid": os.getpid(),
            "started": self._started,
            "draining": self._draining.is_set(),
            "rss": rss,
            "vsz": vsz,
            "gateways": {self._spec.gateway: self._gateway.snapshot()},
        }
        if self._spec.senders:
            snapshot["sync"] = {
                name: {"sent": sender.sent, "failed": sender.failed}
                for name, sender in self._spec.senders.items()
            }
        return snapshot


class _CrashLines:
    """Errors that reach the event loop: each different one once with its traceback."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._seen: dict[str, int] = {}

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """``asyncio`` exception handler."""
        error = context.get("exception")
        what = f"{self._spec.name}: {context.get('message')}"
        key = repr(error if error is not None else what)[:200]
        count = self._seen.get(key, 0) + 1
        if count == 1 and len(self._seen) >= _MAX_TRACEBACKS:
            return
        self._seen[key] = count
        if count == 1 and isinstance(error, BaseException):
            self._spec.log.crash(what, error)
        elif count & (count - 1) == 0:
            # Again: at the 2nd, 4th, 8th … time, so that a flood of them cannot fill a disk.
            self._spec.log.line(f"{what}: {key} ({count} times)")


_statm = -1  # a descriptor of /proc/self/statm, where it cannot be opened any more


def _keep_memory_file() -> None:
    """Have ``memory`` read a descriptor that is opened now."""
    global _statm
    _statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def memory() -> tuple[int, int]:
    """Resident set and address space of this process in bytes (/proc/self/statm)."""
    if _statm >= 0:
        vsz, rss = os.pread(_statm, 256, 0).split()[:2]
    else:
        with open("/proc/self/statm", "rb") as file:
            vsz, rss = file.read().split()[:2]
    page = os.sysconf("SC_PAGESIZE")
    return int(rss) * page, int(vsz) * page
