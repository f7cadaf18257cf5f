"""What systemd says to a service and hears of it: sd_notify(3), sd_listen_fds(3).

Both are a few lines: datagrams to a unix socket, and descriptors from 3 on. The packages for it are
bindings of libsystemd, which an image of a container does not have.

The variables of notification stay in the environment: the master executes itself anew and has to
find them. Workers remove them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from uwgate.master.errors import StartError

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 1024
_SAFE = 2.0  # notifications an interval of the watchdog, as sd_watchdog_enabled(3) advises


@dataclass(frozen=True, slots=True)
class Activated:
    """A descriptor that systemd passed. ``name``: FileDescriptorName=, "" where there is none."""

    fd: int
    name: str


class Notifier:
    """Speaks to the service manager, if there is one; never raises, never blocks.

    ``interval``: seconds between two calls of ``watchdog``, 0 if nobody expects them.
    """

    __slots__ = ("_address", "interval")

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.interval = 0.0
        for_us = environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        microseconds = environ.get("WATCHDOG_USEC", "")
        if self._address and for_us and microseconds.isascii() and microseconds.isdecimal():
            self.interval = int(microseconds) / 1e6 / _SAFE

    def ready(self, text: str) -> None:
        """The start, or a reload, is over."""
        self._say("READY=1", f"STATUS={text}")

    def reloading(self) -> None:
        """A reload begins (Type=notify-reload wants the time, too)."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._say("STOPPING=1", "STATUS=draining")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._say(f"STATUS={text}")

    def watchdog(self) -> None:
        """We live."""
        self._say("WATCHDOG=1")

    def main_pid(self, pid: int) -> None:
        """Another process is the service from now on."""
        self._say(f"MAINPID={pid}")

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        data = "\n".join(lines).encode("utf-8", "replace")
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, kind) as sock,
        ):
            sock.sendto(data, self._address)


def inherited(environ: MutableMapping[str, str], pid: int) -> list[Activated]:
    """The sockets that systemd passed to this process; removes the variables, and keeps the
    descriptors from being inherited. Raises ``StartError``."""
    mine = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    if mine != str(pid):
        return []
    if not (count.isascii() and count.isdecimal() and 0 < int(count) <= _MOST):
        raise StartError(f"LISTEN_FDS = {count}: expected a number from 1 to {_MOST}")
    called = names.split(":") if names else []
    found = []
    for index in range(int(count)):
        fd = _FIRST + index
        try:
            os.set_inheritable(fd, False)
        except OSError:
            raise StartError(f"LISTEN_FDS = {count}: descriptor {fd} is not open") from None
        name = called[index] if index < len(called) else ""
        # What systemd writes for those without a name.
        found.append(Activated(fd, "" if name in ("unknown", "stored", "connection") else name))
    return found
