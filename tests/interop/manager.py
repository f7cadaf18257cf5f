"""Systemd's side of sd_notify(3): a socket that tells who said what."""

from __future__ import annotations

import select
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from support.waiting import wait_until

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(slots=True)
class Said:
    """One datagram."""

    pid: int
    words: dict[str, str]


@dataclass(slots=True)
class Manager:
    """Bound at ``where``/notify. ``heard``: all so far, but for the watchdog's.

    A thread reads whatever else is waited for: the kernel keeps ten datagrams (max_dgram_qlen), a
    second of the watchdog, a start may take longer, and uwgate does not wait for room.
    """

    where: Path
    heard: list[Said] = field(default_factory=list)
    beats: list[int] = field(default_factory=list)
    sock: socket.socket = field(
        default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    )
    lock: threading.Lock = field(default_factory=threading.Lock)
    end: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def __enter__(self) -> Manager:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.bind(str(self.where / "notify"))
        self.sock.setblocking(False)
        self.thread = threading.Thread(target=self._keep_listening)
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end.set()
        if self.thread is not None:
            self.thread.join()
        self.sock.close()

    @property
    def environ(self) -> dict[str, str]:
        """For a service with ``WatchdogSec=0.2``."""
        return {"NOTIFY_SOCKET": str(self.where / "notify"), "WATCHDOG_USEC": "200000"}

    def _keep_listening(self) -> None:
        while not self.end.is_set():
            if select.select([self.sock], [], [], 0.05)[0]:
                self.listen()

    def listen(self) -> None:
        """Read what is there."""
        with self.lock:
            self._read()

    def _read(self) -> None:
        while True:
            try:
                data, more, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            pid = _CREDENTIALS.unpack(more[0][2])[0]
            words = dict(line.split("=", 1) for line in data.decode().split("\n"))
            if words == {"WATCHDOG": "1"}:
                self.beats.append(pid)
            else:
                self.heard.append(Said(pid, words))

    def told(self) -> bool:
        """Whether there is one that was not looked at, but for the watchdog's."""
        self.listen()
        return bool(self.heard)

    def next(self) -> Said:
        """The next one that is not the watchdog's."""
        wait_until(self.told, "a notification")
        return self.heard.pop(0)

    def wait(self, **words: str) -> Said:
        """The next one with these."""
        while True:
            said = self.next()
            if words.items() <= said.words.items():
                return said

    def beating(self, pid: int) -> None:
        """Wait until this process has said three times that it lives."""
        self.listen()
        self.beats.clear()

        def heard() -> bool:
            self.listen()
            return self.beats.count(pid) >= 3

        wait_until(heard, f"the watchdog of {pid}; heard: {self.beats}")
