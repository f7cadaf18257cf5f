"""The master FIFO: letters, slots, whose file it is, and what passes over a re-execution."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.orders import Remembered
from support.waiting import wait_until

from uwgate.master.errors import StartError
from uwgate.master.fifo import Fifos, check_fifo
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop

ORDERS = {
    "c": "reload chain",
    "C": "cheap",
    "f": "fork",
    "l": "reopen",
    "L": "rotate",
    "p": "pause",
    "P": "pidfiles",
    "q": "stop",
    "Q": "cut",
    "r": "reload",
    "R": "reload",
    "s": "stats",
    "S": "subscriptions",
    "w": "workers",
    "W": "workers brutal",
}


class Master:
    """A loop, a log, and FIFOs in ``directory``."""

    def __init__(self, directory: Path, name: str = "log") -> None:
        self.directory = directory
        self._log_file = directory / name
        self.log = MainLog(str(self._log_file))
        self.loop = Loop(self.log)
        self.orders = Remembered()
        self._made: list[Fifos] = []

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def open(self, *names: str, slot: int = 0, inherited: object = None) -> Fifos:
        paths = [self.path(name) for name in names]
        fifos = Fifos(paths, self.loop, self.log, self.orders, slot=slot, inherited=inherited)
        self._made.append(fifos)
        return fifos

    @property
    def lines(self) -> list[str]:
        return [line.partition("] ")[2] for line in self._log_file.read_text().splitlines()]

    def write(self, name: str, data: str) -> None:
        """As a shell does it: without waiting for a reader, as there has to be one."""
        fd = os.open(self.path(name), os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, data.encode())
        os.close(fd)

    def run_until(self, condition: Callable[[], object]) -> None:
        def tried() -> object:
            self.loop.run_once(0.01)
            return condition()

        wait_until(tried)

    def obeyed(self, *expected: str) -> None:
        self.run_until(lambda: len(self.orders.seen) >= len(expected))
        self.loop.run_once(0)
        assert self.orders.seen == list(expected)
        self.orders.seen.clear()

    def close(self) -> None:
        for fifos in self._made:
            fifos.close()
        self.loop.close()
        self.log.close()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    master = Master(tmp_path)
    yield master
    master.close()


def test_every_letter_is_an_order(master: Master) -> None:
    master.open("a")
    for letter, order in ORDERS.items():
        master.write("a", letter)
        master.obeyed(f"{order}: FIFO {letter}")
    master.write("a", "".join(ORDERS))
    master.obeyed(*(f"{order}: FIFO {letter}" for letter, order in ORDERS.items()))


def test_every_letter_has_a_row_in_the_documentation() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "fifo.md"
    rows = re.findall(r"^\| `(.)`(?: to `9`)? \|", page.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted([*ORDERS, "0", *"+-BE"])


def test_what_means_nothing_here_is_said_once(master: Master) -> None:
    master.open("a")
    master.write("a", "x+x\n \0\xe9BE-s")
    master.obeyed("stats: FIFO s")
    told = [line.removeprefix("FIFO: ") for line in master.lines if "does nothing" in line]
    assert told == [
        "x does nothing here",
        "+ does nothing here: the number of workers is fixed",
        "B does nothing here: there is no emperor to ask",
        "E does nothing here: there is no emperor in a gateway",
        "- does nothing here: the number of workers is fixed",
    ]


def test_the_file(master: Master) -> None:
    old = os.umask(0o777)
    try:
        fifos = master.open("a")
    finally:
        os.umask(old)
    found = os.lstat(master.path("a"))
    assert stat.S_ISFIFO(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert fifos.path == master.path("a")
    assert not os.get_inheritable(int(str(fifos.state()["fd"])))
    assert sorted(os.listdir(master.directory)) == ["a", "log"]
    fifos.close()
    assert os.listdir(master.directory) == ["log"]
    fifos.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "nowhere"])
def test_other_files_are_left_alone(master: Master, kind: str) -> None:
    path = Path(master.path("a"))
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        os.mkfifo(master.path("b"))
        path.symlink_to("b")
    name = "a/b" if kind == "nowhere" else "a"
    reason = "" if kind == "nowhere" else "the file exists and is not a FIFO"
    with pytest.raises(StartError, match=f"^master-fifo = {master.path(name)}: {reason}"):
        master.open(name)
    with pytest.raises(StartError, match=f"^master-fifo = {master.path(name)}: {reason}"):
        check_fifo(master.path(name))
    if kind == "file":
        assert path.read_text() == "precious"
    assert not [name for name in os.listdir(master.directory) if name.startswith("a.")]


def test_check_changes_nothing(master: Master) -> None:
    check_fifo(master.path("a"))
    assert os.listdir(master.directory) == ["log"]


def test_slots(master: Master) -> None:
    fifos = master.open("a", "b", "c")
    assert sorted(os.listdir(master.directory)) == ["a", "log"]
    master.write("a", "s1s2\ns")
    master.obeyed(*["stats: FIFO s"] * 3)
    assert fifos.slot == 2
    assert sorted(os.listdir(master.directory)) == ["c", "log"]
    master.write("c", "2p")
    master.obeyed("pause: FIFO p")
    assert fifos.path == master.path("c")
    master.write("c", "7q")
    master.obeyed("stop: FIFO q")
    assert fifos.path == master.path("a")
    assert "FIFO: there is no slot 7, taking slot 0" in master.lines


def test_what_was_written_before_a_change_of_slot_is_obeyed(master: Master) -> None:
    """All of it, in order, and before what comes on the new slot."""
    master.open("a", "b")
    master.write("a", "1" + "s" * 1000 + "p")
    master.run_until(lambda: os.path.exists(master.path("b")))
    master.write("b", "w")
    master.obeyed(*["stats: FIFO s"] * 1000, "pause: FIFO p", "workers: FIFO w")


def test_a_slot_that_cannot_be_opened(master: Master) -> None:
    Path(master.path("b")).write_text("precious")
    fifos = master.open("a", "b")
    master.write("a", "1p")
    master.obeyed("pause: FIFO p")
    assert (fifos.slot, fifos.path) == (0, master.path("a"))
    assert f"FIFO: {master.path('b')}: the file exists and is not a FIFO" in master.lines
    master.write("a", "s")
    master.obeyed("stats: FIFO s")


def test_another_instance_takes_the_path_over(master: Master) -> None:
    """And the first one does not remove what is not its own (the zerg dance of uWSGI)."""
    old = master.open("a", "b")
    other = Master(master.directory, "log2")
    new = other.open("a")
    master.write("a", "p")
    other.obeyed("pause: FIFO p")
    master.loop.run_once(0)
    assert master.orders.seen == []
    old.close()
    assert os.path.exists(master.path("a"))
    new.close()
    assert not os.path.exists(master.path("a"))
    other.close()


def test_dance_of_two_instances(master: Master) -> None:
    """new, running, sleeping: the second instance puts the first to sleep."""
    names = ("new", "running", "sleeping")
    master.open(*names)
    master.write("new", "1")
    master.run_until(lambda: os.path.exists(master.path("running")))
    other = Master(master.directory, "log2")
    other.open(*names)
    master.write("running", "2p")
    master.obeyed("pause: FIFO p")
    other.write("new", "1")
    other.run_until(lambda: os.path.exists(master.path("running")))
    master.write("sleeping", "Q")
    master.obeyed("cut: FIFO Q")
    master.write("running", "s")
    other.obeyed("stats: FIFO s")
    assert not os.path.exists(master.path("new"))
    other.close()


def test_a_flood_leaves_others_their_turn(master: Master) -> None:
    master.open("a")
    fd = os.open(master.path("a"), os.O_WRONLY | os.O_NONBLOCK)
    assert os.write(fd, b"y\n" * (1 << 20)) < 2 << 20  # the pipe is full
    turns: list[int] = []
    for _ in range(50):
        master.loop.call_later(0, lambda: turns.append(1))
        master.loop.run_once(0)
    assert len(turns) == 50
    os.close(fd)
    assert 1 <= sum("y does nothing" in line for line in master.lines) < 10


def test_an_order_that_fails_does_not_cost_the_fifo(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(why: str) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(master.orders, "pause", fail)
    master.open("a")
    master.write("a", "ps")
    master.obeyed("stats: FIFO s")
    assert "FIFO p: RuntimeError: no" in master.lines
    master.write("a", "s")
    master.obeyed("stats: FIFO s")


def test_an_order_that_ends_it(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    fifos = master.open("a")
    monkeypatch.setattr(fifos, "_letters", {"Q": lambda why: fifos.close(), "s": pytest.fail})
    master.write("a", "Qs")
    master.run_until(lambda: not os.path.exists(master.path("a")))


# --- over a re-execution --------------------------------------------------------------------------


def executed(fifos: Fifos, tmp_path: Path) -> tuple[Master, object]:
    """The master after this one: the old one is gone without a word, the descriptor is not."""
    value = json.loads(json.dumps(fifos.state()))
    kept = os.dup(value["fd"])
    fifos._deafen()
    os.close(value["fd"])
    os.dup2(kept, value["fd"])
    os.close(kept)
    fifos._fd = -1  # exec forgets
    return Master(tmp_path, "log2"), value


def test_nothing_is_lost_over_a_re_execution(master: Master) -> None:
    fifos = master.open("a", "b", slot=1)
    master.write("b", "p")
    new, value = executed(fifos, master.directory)
    master.write("b", "s")
    after = new.open("a", "b", inherited=value)
    new.obeyed("pause: FIFO p", "stats: FIFO s")
    assert (after.slot, after.path) == (1, new.path("b"))
    new.close()
    assert not os.path.exists(master.path("b"))


def test_bytes_of_a_former_slot_pass_too(master: Master) -> None:
    fifos = master.open("a", "b")
    master.write("a", "1" + "s" * 299 + "p")
    master.run_until(lambda: len(master.orders.seen) == 255)
    new, value = executed(fifos, master.directory)
    new.open("a", "b", inherited=value)
    new.obeyed(*["stats: FIFO s"] * 44, "pause: FIFO p")
    new.close()


@pytest.mark.parametrize(
    ("names", "slot", "path"),
    [
        (("b", "a"), 0, "b"),
        (("a", "c"), 1, "c"),
        (("a",), 0, "a"),
        ((), 0, ""),
    ],
)
def test_other_paths_in_the_new_configuration(
    master: Master, names: tuple[str, ...], slot: int, path: str
) -> None:
    fifos = master.open("a", "b", slot=1)
    master.write("b", "p")
    new, value = executed(fifos, master.directory)
    after = new.open(*names, inherited=value)
    new.obeyed("pause: FIFO p")
    assert (after.slot, after.path) == (slot, new.path(path) if path else "")
    left = set(os.listdir(master.directory)) - {"log", "log2"}
    assert left == ({path} if path else set())
    new.close()


def test_the_path_belongs_to_another_meanwhile(master: Master) -> None:
    """It stays theirs as long as they read it."""
    fifos = master.open("a")
    other = Master(master.directory, "log3")
    theirs = other.open("a")
    new, value = executed(fifos, master.directory)
    first = new.open("a", inherited=value)
    assert f"FIFO: {new.path('a')} belongs to another instance now" in new.lines
    master.write("a", "p")
    other.obeyed("pause: FIFO p")
    os.close(int(str(theirs.state()["fd"])))  # killed
    theirs._fd = -1
    newer, value = executed(first, master.directory)
    newer.open("a", inherited=value)
    master.write("a", "s")
    newer.obeyed("stats: FIFO s")
    for each in (newer, new, other):
        each.close()


def test_the_file_is_gone_meanwhile(master: Master) -> None:
    fifos = master.open("a")
    os.unlink(master.path("a"))
    new, value = executed(fifos, master.directory)
    new.open("a", inherited=value)
    master.write("a", "s")
    new.obeyed("stats: FIFO s")
    new.close()


def test_a_successor_that_failed(master: Master) -> None:
    """It had other paths, and has made the old file go away."""
    fifos = master.open("a")
    before = os.lstat(master.path("a")).st_ino
    fifos.renew()
    assert os.lstat(master.path("a")).st_ino == before
    os.unlink(master.path("a"))
    fifos.renew()
    master.write("a", "s")
    master.obeyed("stats: FIFO s")


@pytest.mark.parametrize(
    "value", [{}, [], {"slot": 0, "path": "x", "fd": 0, "file": [1, 2]}, {"fd": -1}, "x"]
)
def test_nonsense_that_was_handed_over(master: Master, value: object) -> None:
    fifos = master.open("a", inherited=value)
    master.write("a", "s")
    master.obeyed("stats: FIFO s")
    assert fifos.slot == 0


def test_after_a_re_execution_a_failure_is_a_line(master: Master) -> None:
    Path(master.path("a")).write_text("precious")
    fifos = master.open("a", inherited={})
    assert fifos.path == ""
    assert f"FIFO: {master.path('a')}: the file exists and is not a FIFO" in master.lines
