"""What the outside may order: by signal, FIFO letter, control socket or touched file.

The supervisor carries the orders out; ``why`` is how an order arrived, for the log (``SIGHUP``,
``FIFO r``, ``touch-reload /path``, ``uwgate reload (uid 0)``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Report(Protocol):
    """Who wants to know how an order went, and is told while it is carried out."""

    def line(self, text: str) -> None:
        """Something worth knowing."""
        ...

    def done(self, code: int, text: str) -> None:
        """The end: 0 for success, 1 for failure, and one line that says so."""
        ...


class Orders(Protocol):
    """All of them return at once. ``report`` is None where nobody waits."""

    def reload(self, why: str, *, chain: bool = False, report: Report | None = None) -> None:
        """New configuration and new code; ``chain``: one worker after the other."""
        ...

    def reload_workers(self, why: str, *, brutal: bool = False) -> None:
        """Fresh workers with the same configuration and code."""
        ...

    def fork_master(self, why: str) -> None:
        """Start another instance beside this one, on the same sockets."""
        ...

    def stop(self, why: str, *, report: Report | None = None) -> None:
        """Drain, then end."""
        ...

    def stop_at_once(self, why: str) -> None:
        """Cut what is under way, and end."""
        ...

    def pause(self, why: str) -> None:
        """Accept no more, or accept again."""
        ...

    def go_cheap(self, why: str) -> None:
        """No workers until somebody connects."""
        ...

    def toggle_subscriptions(self, why: str) -> None:
        """Stop announcing this instance to subscription servers, or go on."""
        ...

    def log_stats(self, why: str) -> None:
        """Some numbers to the log."""
        ...

    def reopen_logs(self, why: str) -> None:
        """Open the log files again under their names."""
        ...

    def rotate_logs(self, why: str) -> None:
        """Rename the file of the main log and begin a new one."""
        ...

    def write_pidfiles(self, why: str) -> None:
        """Write all of them again."""
        ...

    def status(self, answer: Callable[[dict[str, object]], None]) -> None:
        """Call ``answer`` with the state of the instance: ``{"version", "pid", "state"
        ("running", "paused", "cheap", "reloading", "draining"), "started", "reloads", "workers":
        [{"gateway", "id", "pid", "status", "draining", "requests", "rss", "started"}], "listeners":
        {gateway: [name]}}``."""
        ...

    def stats(self, answer: Callable[[bytes], None]) -> None:
        """Call ``answer`` with the JSON of the stats server."""
        ...
