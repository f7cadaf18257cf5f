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
        with open(order.value, "rb") as file:
            match = _CONTENT.fullmatch(file.read(64))
        if match is None:
            return f"--{order.key} {order.value}: the file holds no process id"
        os.kill(int(match[1]), number)
    except OSError as error:
        return f"--{order.key} {order.value}: {error.strerror}"
    except OverflowError:
        return f"--{order.key} {order.value}: the file holds no process id"
    return ""
