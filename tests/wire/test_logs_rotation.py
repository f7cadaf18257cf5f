"""The file of the main log: as it grows, and as others rename it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.reloading import Reloadable
from support.waiting import dead_address, wait_until


def text_of(path: Path) -> str:
    """What is in a file; between two files of that name, nothing."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


class Logged(Reloadable):
    """Writes to ``where/log``; ``log`` is what is in it and in the files that it was before."""

    def __init__(self, where: Path, text: str = "") -> None:
        self.where = where
        self.main = where / "log"
        if "http-use" not in text:
            text += f"\nhttp-to = {dead_address()}"
        lines = [f"logto = {self.main}", "http-log = true", text]
        self.asked = 0
        super().__init__(where, "\n".join(lines))

    @property
    def log(self) -> str:
        files = sorted(self.where.glob("log*"), key=lambda path: (path == self.main, path))
        return "".join(map(text_of, files))

    def ask(self) -> str:
        """A request whose line in the log can be told from others -> what it has."""
        self.asked += 1
        target = f"/request-{self.asked}"
        with Client(self.address) as client:
            client.ask(f"GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode())
        return f'"GET {target} HTTP/1.1"'

    def writes_to(self, path: Path) -> None:
        """The request log of the workers and the master's lines are there from now on. Workers
        hear of another file a moment after it is there."""

        def is_there() -> bool:
            line = self.ask()
            self.logged(line)
            return line in text_of(path)

        wait_until(is_there, f"requests in {path}")
        before = text_of(path).count("stats: workers ")
        self.order("s")
        wait_until(lambda: text_of(path).count("stats: workers ") > before, "stats")

    def reload(self, text: str | None = None) -> None:
        """And wait until the workers from before have gone: they write to the file of before."""
        before = set(self.workers)
        super().reload(text)
        wait_until(lambda: not before & set(self.workers), "end of the old workers")

    def order(self, letter: str) -> None:
        fd = os.open(self.where / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, letter.encode())
        os.close(fd)

    def nothing_lost(self) -> None:
        """Every request has its line, once."""
        text = self.log
        for number in range(1, self.asked + 1):
            assert text.count(f'"GET /request-{number} HTTP/1.1"') == 1


Start = Callable[[str], Logged]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Logged] = []

    def make(text: str = "") -> Logged:
        made.append(Logged(tmp_path, f"master-fifo = {tmp_path}/fifo\n{text}"))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def backups(gateway: Logged) -> list[Path]:
    return sorted(gateway.where.glob("log.*"))


def test_too_large(start: Start) -> None:
    gateway = start("log-maxsize = 5000\nlogfile-chmod = 604")
    # Whichever file it is in: the rotation may come at any time.
    while len(text_of(gateway.main)) < 6000 and not backups(gateway):
        for _ in range(20):
            line = gateway.ask()
        gateway.logged(line)
    wait_until(lambda: backups(gateway), "rotation")
    gateway.writes_to(gateway.main)
    (backup,) = backups(gateway)
    assert backup.suffix[1:].isdigit()
    assert "*** starting uwgate" in backup.read_text()
    assert f"log rotated: this file is {backup} now" in backup.read_text()
    assert gateway.main.stat().st_mode & 0o777 == 0o604
    gateway.stop()
    gateway.nothing_lost()


def test_orders(start: Start, tmp_path: Path) -> None:
    touched, rotate = tmp_path / "reopen", tmp_path / "rotate"
    gateway = start(f"touch-logreopen = {touched}\ntouch-logrotate = {rotate}")
    for count, order in enumerate(("L", "rotate", "l", "reopen", "USR1"), 1):
        if order in ("L", "rotate"):
            if order == "L":
                gateway.order(order)
            else:
                rotate.touch()
            wait_until(lambda count=count: len(backups(gateway)) == count, order)
            gateway.writes_to(gateway.main)
            continue
        # As logrotate does it, with "create" or with "nocreate".
        gateway.main.rename(tmp_path / f"log.{count}")
        if order == "l":
            gateway.main.touch(mode=0o640)
        gateway.writes_to(tmp_path / f"log.{count}")
        if order == "reopen":
            touched.touch()
        elif order == "USR1":
            gateway.process.send_signal(signal.SIGUSR1)
        else:
            gateway.order(order)
        wait_until(gateway.main.exists, order)
        gateway.writes_to(gateway.main)
    gateway.stop()
    gateway.nothing_lost()


def test_reloads(start: Start, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of the last run\n")
    gateway = start("log-truncate = true")
    text = gateway.file.read_text().partition("\n")[2]
    first = gateway.ask()
    gateway.logged(first)
    assert "of the last run" not in gateway.log
    # Written on, wherever it is.
    gateway.main.rename(tmp_path / "log.1")
    gateway.reload()
    gateway.writes_to(tmp_path / "log.1")
    assert not gateway.main.exists()
    # Opened again, and not truncated.
    gateway.main.write_text("of logrotate\n")
    gateway.reload(f"{text}\nlog-reopen = true")
    gateway.writes_to(gateway.main)
    assert "of logrotate" in gateway.log
    # Another file, and one that cannot be.
    gateway.reload(text.replace(str(gateway.main), str(tmp_path / "log.new")))
    gateway.writes_to(tmp_path / "log.new")
    gateway.write(text.replace(str(gateway.main), str(tmp_path / "missing" / "log")))
    gateway.process.send_signal(signal.SIGHUP)
    gateway.logged("reload failed")
    assert f"logto = {tmp_path}/missing/log: no such file or directory" in gateway.log
    gateway.writes_to(tmp_path / "log.new")
    gateway.stop()
    gateway.nothing_lost()


def test_printed_by_code_goes_to_the_file(start: Start, tmp_path: Path) -> None:
    code = tmp_path / "mapper.py"
    code.write_text(
        "import sys\n"
        "def where(key):\n"
        "    print('printed', key, file=sys.stderr, flush=True)\n"
    )
    gateway = start(f"http-use-code-string = 0:{code}:where")
    gateway.ask()
    gateway.logged("printed a.example")
    gateway.stop()
