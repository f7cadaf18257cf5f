"""What systemd says to a service and hears of it: sd_notify(3), sd_listen_fds(3).

Both are a few lines: datagrams to a unix socket, and descriptors from 3 on. The packages for it are
bindings of libsystemd, which an image of a container does not have.

The variables of notification stay in the environment: the master executes itself anew and has to
find them. Workers remove them, and a rehearsal does not get them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from uwgate.master.errors import StartError

BESIDE = "UWGATE_BESIDE"
"""Variable: pid of the instance that has made this one beside itself (FIFO ``f``)."""

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 1024
# Notifications an interval of the watchdog, as sd_watchdog_enabled(3) advises.
_SAFE = 2
# Seconds between them: the manager may say whatever it likes, a selector takes no centuries.
_SHORTEST, _LONGEST = 0.01, 3600.0
# Characters of a status. The manager drops a datagram above 4096 bytes, whatever else it says.
_STATUS = 1000
# What systemd calls descriptors that nobody has given a name.
_NAMELESS = ("unknown", "stored", "connection")


@dataclass(frozen=True, slots=True)
class Activated:
    """A descriptor that systemd passed. ``name``: FileDescriptorName=, "" where there is none."""

    fd: int
    name: str


class Notifier:
    """Speaks to the service manager, if there is one; never raises, never blocks.

    ``interval``: seconds between two calls of ``watchdog``, 0 if nobody expects them.

    An instance beside another one (``BESIDE``) says nothing as long as the other one lives: that
    is the service, and names this one when it ends (``main_pid``).
    """

    __slots__ = ("_address", "_beside", "interval")

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(os.fsencode(environ.get("NOTIFY_SOCKET", "")))
        self._beside = _number(environ.get(BESIDE, ""))
        self.interval = 0.0
        watched = environ.get("WATCHDOG_PID", "")
        for_us = not watched or _number(watched) in (os.getpid(), self._beside or -1)
        microseconds = _number(environ.get("WATCHDOG_USEC", ""))
        if self._address and for_us and microseconds:
            seconds = microseconds / 1e6 / _SAFE
            self.interval = min(max(seconds, _SHORTEST), _LONGEST)

    def ready(self, text: str) -> None:
        """The start, or a reload, is over."""
        self._say("READY=1", _status(text))

    def reloading(self) -> None:
        """A reload begins (Type=notify-reload wants the time, too)."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._say("STOPPING=1", _status("draining"))

    def extend(self, seconds: float) -> None:
        """What is under way may take that long from now on, whatever TimeoutStopSec= says."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._say(_status(text))

    def watchdog(self) -> None:
        """We live."""
        self._say("WATCHDOG=1")

    def main_pid(self, pid: int) -> None:
        """Another process is the service from now on."""
        # Its first sign of life may be an interval away, and so may be our last.
        self._say(f"MAINPID={pid}", *(["WATCHDOG=1"] if self.interval else []))

    def _say(self, *lines: str) -> None:
        if not self._address or self._is_another():
            return
        data = "\n".join(lines).encode("utf-8", "replace")
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, kind) as sock,
        ):
            sock.sendto(data, self._address)

    def _is_another(self) -> bool:
        """Whether another instance is the service."""
        if not self._beside:
            return False
        try:
            os.kill(self._beside, 0)
        except PermissionError:
            pass
        except (ProcessLookupError, OverflowError):
            self._beside = 0
        return self._beside != 0


def stand_beside(environ: MutableMapping[str, str], pid: int) -> None:
    """For the environment of an instance that ``pid``, the service, makes beside itself."""
    environ[BESIDE] = str(pid)
    if "WATCHDOG_PID" in environ:
        environ["WATCHDOG_PID"] = str(pid)


def take_over(environ: MutableMapping[str, str]) -> None:
    """This process is the service from now on, and so is what it executes in its place."""
    environ.pop(BESIDE, None)
    if "WATCHDOG_PID" in environ:
        environ["WATCHDOG_PID"] = str(os.getpid())


def inherited(environ: MutableMapping[str, str], pid: int) -> list[Activated]:
    """The sockets that systemd passed to this process; removes the variables, and keeps the
    descriptors from being inherited. Raises ``StartError``."""
    mine = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    environ.pop("LISTEN_PIDFDID", None)
    if mine and not _number(mine):
        raise StartError(f"LISTEN_PID = {mine}: expected a process id")
    if _number(mine) != pid:
        return []
    if not 0 < _number(count) <= _MOST:
        raise StartError(f"LISTEN_FDS = {count}: expected a number from 1 to {_MOST}")
    called = names.split(":") if names else [""] * _number(count)
    if len(called) != _number(count):
        raise StartError(f"LISTEN_FDNAMES = {names}: {len(called)} names, but LISTEN_FDS = {count}")
    found = []
    for fd, name in enumerate(called, _FIRST):
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            raise StartError(f"LISTEN_FDS = {count}: descriptor {fd} is not open") from None
        if not stat.S_ISSOCK(mode):
            raise StartError(f"LISTEN_FDS = {count}: descriptor {fd} is not a socket")
        os.set_inheritable(fd, False)
        found.append(Activated(fd, "" if name in _NAMELESS else name))
    return found


def _address(name: bytes) -> bytes:
    """That of a socket, b"" for anything that is none: sd_notify knows paths and ``@abstract``."""
    if len(name) < 2 or name[:1] not in (b"/", b"@"):
        return b""
    return b"\0" + name[1:] if name.startswith(b"@") else name


def _number(text: str) -> int:
    """A decimal number; 0 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


def _status(text: str) -> str:
    """One line, whatever it is: the next one would be an assignment of its own."""
    return f"STATUS={' '.join(text.split())[:_STATUS]}"
