"""Waiting for a condition with a deadline, and free ports."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable

DEADLINE = 10.0
"""Seconds after which any wait of a test gives up."""


def wait_until(
    condition: Callable[[], object], what: str = "condition", seconds: float = DEADLINE
) -> None:
    """Return once ``condition()`` is true; AssertionError after ``seconds``."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.002)


_given: set[int] = set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 nobody listens on, outside the ephemeral range.

    Outside, because an outgoing connection of a test could otherwise take it before its listener.
    No port is given twice, neither here nor in another process of the same run (pytest-xdist).
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    size = 12000 // count
    while True:
        port = 20000 + number * size + random.randrange(size)
        if port in _given:
            continue
        if len(_given) > size // 2:
            _given.clear()  # the first ones are long free again
        _given.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def dead_address() -> str:
    """``127.0.0.1:PORT`` that refuses connections."""
    return f"127.0.0.1:{free_port()}"
