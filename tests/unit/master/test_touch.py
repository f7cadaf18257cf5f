"""Watched files: real files, a real loop, real commands; the orders are only remembered."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.orders import Remembered
from support.waiting import wait_until

from uwgate.config.settings_process import Touch, TouchAction
from uwgate.master import touch as module
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.touch import Watch, spawn_command


class Master:
    """A loop that looks often, a log, and what was ordered."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "logs").mkdir()
        self.log = MainLog(str(directory / "logs" / "log"))
        self.loop = Loop(self.log)
        self.orders = Remembered()
        self.looks = 0
        self.whys: list[str] = []
        self._made: list[Watch] = []

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def watch(self, *touches: Touch, state: object = None) -> Watch:
        watch = Watch(touches, self.loop, self.log, self.orders, self._look, state=state)
        self._made.append(watch)
        return watch

    def _look(self) -> None:
        self.looks += 1

    @property
    def lines(self) -> list[str]:
        text = (self.directory / "logs" / "log").read_text()
        return [line.partition("] ")[2] for line in text.splitlines()]

    def look(self) -> list[str]:
        """What two looks have brought: the orders; why is in ``whys``."""
        wanted = self.looks + 2
        wait_until(lambda: self.loop.run_once(0.01) or self.looks >= wanted)
        self.orders.seen, seen = [], self.orders.seen
        self.whys = [each.partition(": ")[2] for each in seen]
        return [each.partition(": ")[0] for each in seen]

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(lambda: self.loop.run_once(0.01) or condition())

    def close(self) -> None:
        for each in self._made:
            each.close()
        self.loop.close()
        self.log.close()


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    monkeypatch.setattr(module, "_TICK", 0.005)
    master = Master(tmp_path)
    yield master
    master.close()


def touched(path: Path, by: int = 1) -> None:
    """Another modification time, whatever the resolution of the file system."""
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now + by * 1_000_000_000))


@pytest.mark.parametrize(
    ("action", "order"),
    [
        ("reload", "reload"),
        ("chain-reload", "reload chain"),
        ("workers-reload", "workers"),
        ("logreopen", "reopen"),
        ("logrotate", "rotate"),
    ],
)
def test_each_action(master: Master, tmp_path: Path, action: TouchAction, order: str) -> None:
    path = tmp_path / "file"
    path.touch()
    master.watch(Touch(str(path), action))
    assert master.look() == []
    touched(path)
    assert master.look() == [order]
    assert master.whys == [f"touch-{action} {path}"]
    assert master.look() == []


def test_what_counts(master: Master, tmp_path: Path) -> None:
    path, link, other = (tmp_path / name for name in ("file", "link", "other"))
    master.watch(Touch(str(path), "reload"), Touch(str(link), "logreopen"))
    assert master.look() == []
    path.write_text("")
    assert master.look() == ["reload"]
    touched(path, -3600)
    assert master.look() == ["reload"]
    fresh = tmp_path / "fresh"
    fresh.write_text("")
    os.utime(fresh, ns=(path.stat().st_mtime_ns,) * 2)
    fresh.replace(path)
    assert master.look() == ["reload"]
    path.unlink()
    assert master.look() == ["reload"]
    other.touch()
    link.symlink_to(other)
    assert master.look() == ["reopen"]
    touched(other)
    assert master.look() == ["reopen"]


def test_one_file_for_several_orders_and_the_order_of_orders(
    master: Master, tmp_path: Path
) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.touch()
    two.touch()
    master.watch(
        Touch(str(two), "logrotate"), Touch(str(one), "reload"), Touch(str(two), "workers-reload")
    )
    touched(one)
    touched(two)
    assert master.look() == ["rotate", "reload", "workers"]


def test_relative_name_stays_where_it_was(
    master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watch = master.watch(Touch("file", "reload"))
    monkeypatch.chdir("/")
    (tmp_path / "file").touch()
    assert master.look() == ["reload"]
    assert list(watch.state()) == [str(tmp_path / "file")]


def test_touched_while_the_master_executed_itself(master: Master, tmp_path: Path) -> None:
    names = ["same", "changed", "gone", "appeared"]
    paths = [tmp_path / name for name in names]
    for path in paths[:3]:
        path.touch()
    first = master.watch(*(Touch(str(path), "reload") for path in paths))
    state = json.loads(json.dumps(first.state()))
    first.close()
    touched(paths[1])
    paths[2].unlink()
    paths[3].touch()
    later = tmp_path / "new in the configuration"
    later.touch()
    master.watch(*(Touch(str(path), "reload") for path in [*paths, later]), state=state)
    assert master.look() == ["reload"] * 3
    assert [why.rsplit("/", 1)[1] for why in master.whys] == names[1:]
    assert master.look() == []


@pytest.mark.parametrize("state", [7, [], {"PATH": 1}, {"PATH": [1, 2]}, {"PATH": [1, 2, "x"]}])
def test_nonsense_for_a_state_is_none(master: Master, tmp_path: Path, state: object) -> None:
    path = tmp_path / "file"
    path.touch()
    if isinstance(state, dict):
        state = {str(path): value for value in state.values()}
    master.watch(Touch(str(path), "reload"), state=state)
    assert master.look() == []
    touched(path)
    assert master.look() == ["reload"]


def test_what_cannot_be_looked_at_is_said_once(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(path)  # for root there is no forbidden directory
    master.watch(Touch(str(path), "reload"))
    assert master.look() == []
    assert master.look() == []
    assert master.lines == [f"touch-reload = {path}: too many levels of symbolic links"]
    path.unlink()
    path.touch()
    assert master.look() == ["reload"]


def test_closed_looks_no_more(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "file"
    watch = master.watch(Touch(str(path), "reload"))
    other = master.watch()
    watch.close()
    path.touch()
    assert master.look() == []
    other.close()
    other.close()


def test_signal(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        master.watch(
            Touch(str(path), "signal", str(int(signal.SIGUSR2))), Touch(str(path), "signal", "999")
        )
        path.touch()
        master.until(lambda: seen)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [signal.SIGUSR2]
    assert master.look() == []
    why = f"touch-signal {path}"
    assert master.lines == [
        f"{why}: signal {int(signal.SIGUSR2)}",
        f"{why}: signal 999",
        f"{why}: no such signal as 999: invalid argument",
    ]


def test_command(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "file"
    command = "echo from $0; echo to stderr >&2; kill -PIPE $$"
    watch = master.watch(Touch(str(path), "exec", command))
    _create(path)
    # At a line's start: the line that says what is run has these words, too.
    master.until(lambda: "\nto stderr" in _raw(master))
    why = f"touch-exec {path}"
    running = next(line for line in master.lines if line.startswith(f"{why}: running {command} "))
    pid = int(running.rpartition("(pid: ")[2][:-1])
    code = _reap(pid)
    assert watch.reaped(pid, code)
    assert not watch.reaped(pid, code)
    raw = _raw(master).splitlines()
    # The command may have written before the line that says so.
    assert [line for line in raw if "]" not in line] == ["from sh", "to stderr"]
    # Python ignores SIGPIPE; the command does not.
    assert raw[3].endswith(f"] {why}: the command (pid: {pid}) ended with signal 13")


def test_exit_code_of_a_command(master: Master, tmp_path: Path) -> None:
    for code, said in ((3, 1), (0, 0)):
        path = tmp_path / f"file{code}"
        watch = master.watch(Touch(str(path), "exec", f"exit {code}"))
        _create(path)
        master.until(lambda path=path: any(str(path) in line for line in master.lines))
        pid = int(next(line for line in master.lines if str(path) in line).rpartition(" ")[2][:-1])
        assert watch.reaped(pid, _reap(pid))
        ends = [line for line in master.lines if str(path) in line and "ended" in line]
        assert len(ends) == said
        assert all("ended with exit code 3" in line for line in ends)


def test_command_that_cannot_be_run(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "file"
    master.watch(Touch(str(path), "exec", "a\0b"))
    _create(path)
    assert master.look() == []
    assert master.lines == [rf"touch-exec {path}: cannot run a\x00b: embedded null byte"]


def test_command_has_nothing_of_ours_and_a_session_of_its_own(tmp_path: Path) -> None:
    output = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with socket.socket() as leaked, socket.socket():
        leaked.set_inheritable(True)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        try:
            pid = spawn_command(
                "readlink /proc/$$/fd/0; ls /proc/$$/fd; cut -d' ' -f1,6 /proc/$$/stat; "
                "exec grep Sig[BI] /proc/self/status",
                output,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        assert _reap(pid) == 0
    with open(output) as file:
        file.seek(0)
        lines = file.read().splitlines()
    assert lines[0] == "/dev/null"
    assert lines[1:4] == ["0", "1", "2"]
    assert lines[4] == f"{pid} {pid}"
    blocked, ignored = (int(line.split()[1], 16) for line in lines[5:])
    assert blocked == 0
    assert ignored & 0x7FFFFFFF == 0  # above are the C library's own


def _raw(master: Master) -> str:
    return (master.directory / "logs" / "log").read_text()


def _create(path: Path) -> None:
    """In one step: ``touch`` makes the file, and then sets its time, which are two changes."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def _reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
