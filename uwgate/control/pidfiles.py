"""``uwgate --reload PIDFILE`` and its relatives: a signal to whom a pidfile names (as uWSGI)."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable

from uwgate.config.model import Item

_SIGNALS = {
    "reload": signal.SIGHUP,
    "stop": signal.SIGINT,
    "pause": signal.SIGTSTP,
    "suspend": signal.SIGTSTP,
    "resume": signal.SIGTSTP,
}
_CONTENT = re.compile(rb"\s*([1-9][0-9]{0,9})\s*")


def orders(items: Iterable[Item]) -> list[Item]:
    """Those of a command line that are such commands."""
    return [each for each in items if each.key in _SIGNALS and each.source == "command line"]


def send(order: Item) -> str:
    """Send the signal -> "", or one line that says why that was not possible."""
    number = _SIGNALS[order.key]
    try:
        with open(os.open(order.value, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            match = _CONTENT.fullmatch(file.read(64) or b"")
        if match is None:
            return f"--{order.key} {order.value}: the file holds no process id"
        if owner not in (0, os.geteuid(), _owner_of(int(match[1]))):
            # Of somebody who may not signal it, but would have us do so.
            return f"--{order.key} {order.value}: its owner is not that of process {int(match[1])}"
        os.kill(int(match[1]), number)
    except OSError as error:
        return f"--{order.key} {order.value}: {error.strerror}"
    except OverflowError:
        return f"--{order.key} {order.value}: the file holds no process id"
    return ""


def _owner_of(pid: int) -> int:
    """The user of a process; -1 if there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1
