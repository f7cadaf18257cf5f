"""An instance with a configuration file, so that it can be changed and read again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.uwgate import Gateway
from support.waiting import wait_until


class Reloadable(Gateway):
    """``text``: options of the file, a line each, beside the listener ``http``."""

    def __init__(self, where: Path, text: str, env: dict[str, str] | None = None) -> None:
        self.file = where / "gateway.ini"
        self.write(text)
        super().__init__("--ini", str(self.file), env=env)

    def write(self, text: str) -> None:
        """Another configuration for the next reload."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"[uwsgi]\n{text}\n")
        os.replace(fresh, self.file)

    def logged(self, text: str, times: int = 1) -> None:
        """Wait until the log has ``text`` that often."""
        try:
            wait_until(lambda: self.log.count(text) >= times, text, 20)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    def reload(self, text: str | None = None) -> None:
        """SIGHUP, and wait until the new workers serve."""
        if text is not None:
            self.write(text)
        before = self.log.count("] reloaded: ")
        self.process.send_signal(signal.SIGHUP)
        self.logged("] reloaded: ", before + 1)

    @property
    def workers(self) -> list[int]:
        """Pids of the master's children."""
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    """Pids of the children of a process that has one thread."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


@contextmanager
def reloadable(
    where: Path, text: str, env: dict[str, str] | None = None
) -> Iterator[Reloadable]:
    """One for the length of a ``with`` block; stopped and checked at its end."""
    gateway = Reloadable(where, text, env)
    try:
        yield gateway
    except BaseException:
        gateway.kill()
        raise
    gateway.stop()
