"""Waiting for a condition with a deadline, and free ports."""

from __future__ import annotations

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


def free_port() -> int:
    """A TCP port of 127.0.0.1 nobody listens on, outside the ephemeral range.

    Outside, because an outgoing connection of a test could otherwise take it before its listener.
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def dead_address() -> str:
    """``127.0.0.1:PORT`` that refuses connections."""
    return f"127.0.0.1:{free_port()}"
