"""A master that only remembers what it was told, as the far side of FIFO and control socket."""

from __future__ import annotations

from collections.abc import Callable

from uwgate.master.orders import Orders, Report


class Remembered(Orders):
    """``seen``: each order as ``name[ word…]: why``. ``reports``: of those who wait."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.reports: list[Report | None] = []
        self.statuses: list[Callable[[dict[str, object]], None]] = []
        self.documents: list[Callable[[bytes], None]] = []

    def reload(self, why: str, *, chain: bool = False, report: Report | None = None) -> None:
        self._note("reload chain" if chain else "reload", why)
        self.reports.append(report)

    def reload_workers(self, why: str, *, brutal: bool = False) -> None:
        self._note("workers brutal" if brutal else "workers", why)

    def fork_master(self, why: str) -> None:
        self._note("fork", why)

    def stop(self, why: str, *, report: Report | None = None) -> None:
        self._note("stop", why)
        self.reports.append(report)

    def stop_at_once(self, why: str) -> None:
        self._note("cut", why)

    def pause(self, why: str) -> None:
        self._note("pause", why)

    def go_cheap(self, why: str) -> None:
        self._note("cheap", why)

    def toggle_subscriptions(self, why: str) -> None:
        self._note("subscriptions", why)

    def log_stats(self, why: str) -> None:
        self._note("stats", why)

    def reopen_logs(self, why: str) -> None:
        self._note("reopen", why)

    def rotate_logs(self, why: str) -> None:
        self._note("rotate", why)

    def write_pidfiles(self, why: str) -> None:
        self._note("pidfiles", why)

    def status(self, answer: Callable[[dict[str, object]], None]) -> None:
        self.statuses.append(answer)

    def stats(self, answer: Callable[[bytes], None]) -> None:
        self.documents.append(answer)

    def _note(self, order: str, why: str) -> None:
        self.seen.append(f"{order}: {why}")
