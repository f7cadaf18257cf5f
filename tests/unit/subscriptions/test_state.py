"""The state file, and the process that writes it."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.waiting import wait_until

from uwgate.subscriptions.state import (
    INTERVAL,
    RETRY,
    Floor,
    State,
    StateError,
    StateKeeper,
    load,
    save,
)
from uwgate.subscriptions.table import NOTHING, Extra, Kind, Member, Table

NOW = 10_000.7


def filled(count: int = 3, key: str = "k") -> Table:
    table = Table()
    for number in range(count):
        member = table.add(f"{key}{number // 2}", f"10.0.0.{number}:3031")
        member.seen = int(NOW) - number
        member.weight = number + 1
    return table


def facts(member: Member) -> tuple[object, ...]:
    slot = member.slot
    who = (slot.key, slot.algo, member.address, member.kind, member.extra, member.sender)
    numbers = (member.weight, member.cores, member.load, member.unix, member.joined, member.seen)
    return (*who, *numbers)


def everything(table: Table) -> list[tuple[object, ...]]:
    return [facts(member) for member in table]


def loaded(path: str) -> State:
    state = load(path, NOW)
    assert state is not None
    return state


# --- round trip --------------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**63 - 1)
PRINTABLE = st.characters(exclude_categories=["C", "Z"])  # as all of an announcement is
TEXTS = st.text(PRINTABLE, max_size=20)
NAMES = st.text(PRINTABLE, min_size=1, max_size=20)
KINDS = st.builds(
    Kind, st.integers(0, 255), st.integers(0, 255), NUMBERS, st.sampled_from(["uwsgi", "http"])
)
EXTRAS = st.just(NOTHING) | st.builds(
    Extra, **{name: TEXTS if value == "" else NUMBERS for name, value in NOTHING._asdict().items()}
)
NODES = st.dictionaries(
    st.tuples(NAMES, NAMES),
    st.tuples(KINDS, EXTRAS, st.integers(1, 10**6), NUMBERS, NUMBERS, NUMBERS, NUMBERS,
              st.integers(0, int(NOW)), TEXTS),
    max_size=20,
)  # fmt: skip


FLOORS = st.lists(st.tuples(TEXTS, TEXTS, NUMBERS, NUMBERS))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    table = Table()
    for (key, address), values in draw(NODES).items():
        member = table.add(key, address)
        kind, member.extra, member.weight, member.cores, member.load, *rest = values
        member.kind = table.kind(kind)
        member.unix, member.joined, member.seen, member.sender = rest
    for slot in table.slots.values():
        slot.algo = draw(st.sampled_from(["", "lrc"]) | TEXTS)
    return table


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(
    made=st.dictionaries(TEXTS, st.tuples(tables(), FLOORS)),
)
def test_round_trip(made: dict[str, tuple[Table, list[Floor]]], tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    before = {name: table for name, (table, _) in made.items()}
    floors = {name: floor for name, (_, floor) in made.items()}
    save(path, before, floors, NOW)
    state = loaded(path)
    assert list(state.tables) == list(before)
    for name, table in state.tables.items():
        # Slots come in the order of their making, nodes in the order of their slot.
        assert everything(table) == everything(before[name])
        assert table.members == before[name].members
    assert state.floors == floors
    assert abs(state.saved - time.time()) < 60


def test_age(tmp_path: Path) -> None:
    """The clock that ``seen`` is of starts anew with the machine."""
    path = str(tmp_path / "state")
    save(path, {"http": filled()}, {}, NOW)
    state = load(path, 50)
    assert state is not None
    assert [member.seen for member in state.tables["http"]] == [50, 49, 48]
    state = load(path)
    assert state is not None
    assert abs(next(iter(state.tables["http"])).seen - time.monotonic()) < 60


def test_many(tmp_path: Path) -> None:
    table = filled(2345)
    path = str(tmp_path / "state")
    save(path, {"http": table}, {}, NOW)
    assert everything(loaded(path).tables["http"]) == everything(table)


def test_shared_values_are_shared_again(tmp_path: Path) -> None:
    table = filled(4)
    for member in table:
        member.sender = f"10.0.0.{7}"
        member.kind = Kind(5)
    path = str(tmp_path / "state")
    save(path, {"http": table}, {}, NOW)
    first, *others = loaded(path).tables["http"]
    for member in others:
        assert member.sender is first.sender
        assert member.kind is first.kind
        assert member.extra is NOTHING
    assert gc.isenabled()


# --- writing -----------------------------------------------------------------------------------


def test_the_file_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "state"
    before = os.umask(0)
    try:
        save(str(path), {}, {}, NOW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "state"
    target.write_text("precious")
    path.symlink_to(target)
    (tmp_path / f"state.{os.getpid()}.tmp").symlink_to(target)
    save(str(path), {}, {}, NOW)
    assert target.read_text() == "precious"
    assert not path.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["state", "target"]


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save(str(path), {"http": filled()}, {}, NOW)
    before = path.read_bytes()

    def floors() -> Iterator[Floor]:
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(OSError, match="No space"):
        save(str(path), {"http": filled(1)}, {"http": floors()}, NOW)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state"]
    with pytest.raises(FileNotFoundError):
        save(str(tmp_path / "no" / "state"), {}, {}, NOW)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        save(str(path), {}, {}, NOW)
    assert os.listdir(tmp_path) == ["state"]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("state", {}, {}, NOW)
    assert loaded("state").tables == {}


# --- reading -----------------------------------------------------------------------------------


def why(path: Path) -> str:
    with pytest.raises(StateError) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert load(str(tmp_path / "state")) is None


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    assert why(tmp_path / "fifo") == "is not a regular file"
    assert why(tmp_path) == "is not a regular file"
    assert why(tmp_path / "socket") == "no such device or address"
    assert why(tmp_path / "a\0b") == "embedded null byte"
    (tmp_path / "loop").symlink_to("loop")
    assert why(tmp_path / "loop") == "too many levels of symbolic links"


def test_what_others_may_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save(str(path), {}, {}, NOW)
    for mode in (0o620, 0o602):
        path.chmod(mode)
        assert why(path) == "may be written by others than its owner"
    path.chmod(0o644)
    assert load(str(path))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save(str(path), {"http": filled()}, {"http": [("k", "a", 1, 2)]}, NOW)
    whole = path.read_bytes()
    assert load(str(path))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert why(path)
    lines = whole.splitlines(keepends=True)
    for number in range(len(lines)):
        path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
        assert why(path)
    path.write_bytes(whole + b"\n")
    assert why(path) == "has lost lines"


HEAD = ["uwgate subscriptions", 1, 5]
NODE: list[Any] = ["node", "a:1", 0, 0, 0, "uwsgi", 1, 0, 0, 0, 0, 0, "s"]
EXTRA: list[Any] = list(NOTHING)


def with_item(line: list[Any], index: int, value: object) -> list[Any]:
    return [*line[:index], value, *line[index + 1 :]]


@pytest.mark.parametrize(
    "lines",
    [
        [["table"]],
        [["table", 5]],
        [["table", "t"], ["table", "t"]],
        [["key", "k", ""]],
        [NODE],
        [["floor", "k", "a", 1, 1]],
        [["table", "t"], NODE],
        [["table", "t"], ["other"]],
        [["table", "t"], [5]],
        [["table", "t"], []],
        [["table", "t"], {}],
        [["table", "t"], "node"],
        [["table", "t"], ["key", "k"]],
        [["table", "t"], ["key", "", ""]],
        [["table", "t"], ["key", "k", None]],
        [["table", "t"], ["key", "k", ""], NODE, ["key", "k", ""]],
        [["table", "t"], ["key", "k", ""], NODE, ["table", "u"], NODE],
        [["table", "t"], ["key", "k", ""], NODE, NODE],
        [["table", "t"], ["floor", "k", "a", 1]],
        [["table", "t"], ["floor", "k", "a", 1, -1]],
        [["table", "t"], ["floor", "k", 1, 1, 1]],
        *(
            [["table", "t"], ["key", "k", ""], node]
            for node in (
                NODE[:-1],
                [*NODE, EXTRA, EXTRA],
                [*NODE, EXTRA[:-1]],
                [*NODE, {}],
                [*NODE, with_item(EXTRA, 0, 5)],
                [*NODE, with_item(EXTRA, -1, "x")],
                with_item(NODE, 1, ""),
                with_item(NODE, 1, 5),
                with_item(NODE, 2, 256),
                with_item(NODE, 3, 256),
                with_item(NODE, 4, 1.0),
                with_item(NODE, 4, True),
                with_item(NODE, 5, "h2"),
                with_item(NODE, 5, []),
                with_item(NODE, 6, 0),
                with_item(NODE, 7, 2**63),
                with_item(NODE, 8, -1),
                with_item(NODE, 9, "1"),
                with_item(NODE, 12, None),
            )
        ),
    ],
)
def test_damage_is_noticed(lines: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "state"

    def write(lines: list[Any]) -> None:
        lines = [HEAD, *lines, ["end", len(lines) + 1]]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write([["table", "t"], ["key", "k", ""], NODE, [*with_item(NODE, 1, "b:1"), EXTRA]])
    path.chmod(0o600)
    assert loaded(str(path)).tables["t"].members == 2
    write(lines)
    assert why(path) == f"line {len(lines) + 1} is damaged"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not complete"),
        ("[]\n", "line 1 is damaged"),
        ('["x"]\n', "is not a file of subscriptions"),
        ('["uwgate subscriptions",2,5]\n', "is of another version"),
        ('["uwgate subscriptions",1,"5"]\n', "line 1 is damaged"),
        ('["uwgate subscriptions",1,5]\n["end",1]', "line 2 is damaged"),
        ('["uwgate subscriptions",1,5]\n["end",2]\n', "has lost lines"),
        ('["' + "x" * 20_000 + '"]\n', "line 1 is damaged"),
        ("[" * 10_000 + "\n", "line 1 is damaged"),
        ("\udcff\n", "line 1 is damaged"),
    ],
)
def test_other_files(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    assert why(path) == reason


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_flipped_byte_does_harm(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "state"
    save(str(path), {"http": filled()}, {"http": [("k", "a", 1, 2)]}, NOW)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        state = loaded(str(path))
    except StateError:
        return
    assert state.tables.keys() <= {"http"} or len(state.tables) == 1


# --- the keeper --------------------------------------------------------------------------------


class Kept:
    """A keeper whose ``write`` can be made to wait or to fail, in whatever process it runs."""

    def __init__(self, path: Path, interval: float = INTERVAL) -> None:
        self.path = path
        self.log: list[str] = []
        self.table = filled()
        self.before: Callable[[], None] = lambda: None
        self.keeper = StateKeeper(str(path), self.write, self.log.append, interval=interval)

    def write(self) -> None:
        self.before()
        save(str(self.path), {"http": self.table}, {}, NOW)

    def wait(self, now: float) -> None:
        """Until the child is done; it is reaped here, as the master would."""
        pid = self.keeper._child
        assert pid

        def done() -> bool:
            self.keeper.tick(now)
            return not self.keeper.writing

        wait_until(done, "the child")
        assert os.waitpid(pid, 0)[0] == pid

    def members(self) -> int:
        return loaded(str(self.path)).tables["http"].members


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "state")
    before = len(os.listdir("/proc/self/fd"))
    yield made
    assert not made.keeper.writing
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_written_without_a_change(kept: Kept) -> None:
    kept.keeper.tick(0)
    kept.keeper.finish()
    assert not kept.keeper.writing
    assert not kept.path.exists()


def test_changes_are_written_at_most_every_interval(kept: Kept) -> None:
    kept.keeper.changed()
    kept.keeper.tick(0)
    assert kept.keeper.writing
    # What comes now is not in the file, and waits.
    kept.table = filled(5)
    kept.keeper.changed()
    kept.wait(0)
    assert kept.members() == 3
    kept.keeper.tick(INTERVAL - 0.1)
    assert not kept.keeper.writing
    kept.keeper.tick(INTERVAL)
    assert kept.keeper.writing
    kept.wait(INTERVAL)
    assert (kept.members(), kept.keeper.writes, kept.log) == (5, 2, [])
    kept.keeper.tick(100)
    assert not kept.keeper.writing


def test_the_child_sees_the_table_as_it_was(kept: Kept, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    kept.before = lambda: (tmp_path / "gate").read_bytes() and None  # waits for a writer
    kept.keeper.changed()
    kept.keeper.tick(0)
    for number in range(100):
        kept.table.add("more", f"10.1.0.{number}:1").weight = 1
    kept.keeper.changed()
    kept.keeper.tick(100)  # there is one writer at a time, however long it takes
    (tmp_path / "gate").write_bytes(b"x")
    kept.wait(100)
    assert kept.members() == 3
    # A tenth of the time at most is spent on writing.
    kept.keeper.tick(999)
    assert not kept.keeper.writing
    kept.before = lambda: None
    kept.keeper.tick(1000)
    kept.wait(1000)
    assert kept.members() == 103


def test_the_end_is_written_at_once(kept: Kept) -> None:
    kept.keeper.changed()
    kept.keeper.finish()
    assert (kept.members(), kept.keeper.writes) == (3, 1)


def test_the_end_while_a_child_writes(kept: Kept, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    parent = os.getpid()

    def wait_in_child() -> None:
        if os.getpid() != parent:
            Path(f"{kept.path}.{os.getpid()}.tmp").touch()
            (tmp_path / "gate").read_bytes()

    kept.before = wait_in_child
    kept.keeper.changed()
    kept.keeper.tick(0)
    wait_until(lambda: len(os.listdir(tmp_path)) == 2, "the child's file")
    pid = kept.keeper._child
    kept.table = filled(5)
    kept.keeper.finish()
    assert kept.members() == 5
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert sorted(os.listdir(tmp_path)) == ["gate", "state"]


def test_a_failure_is_told_once_and_tried_again(kept: Kept) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    kept.before = fail
    kept.keeper.changed()
    for now in (0, RETRY, 2 * RETRY):
        kept.keeper.tick(now)
        kept.wait(now)
        kept.keeper.tick(now + RETRY - 1)
        assert not kept.keeper.writing
    what = f"writing {kept.path}"
    assert kept.log == [f"{what}: no space left on device"]
    kept.keeper.finish()
    assert kept.keeper.writes == 0
    kept.before = lambda: None
    kept.keeper.finish()
    assert kept.log[1:] == [f"{what}: works again"]
    assert kept.members() == 3


def test_a_child_that_is_killed(kept: Kept, tmp_path: Path) -> None:
    def die() -> None:
        Path(f"{kept.path}.{os.getpid()}.tmp").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    kept.before = die
    kept.keeper.changed()
    kept.keeper.tick(0)
    kept.wait(0)
    assert kept.log == [f"writing {kept.path}: the writing process died"]
    assert os.listdir(tmp_path) == []


def test_the_child_keeps_nothing_open(kept: Kept, tmp_path: Path) -> None:
    """Or an address would stay taken after the parent has gone."""
    report = tmp_path / "report"

    def look() -> None:
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        open_files = []
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the one that lists them is gone
                open_files.append(os.readlink(f"/proc/self/fd/{number}") * (int(number) > 2))
        report.write_text(json.dumps([signal.SIGTERM in signals, open_files, gc.isenabled()]))

    kept.before = look
    kept.keeper.changed()
    with socket.create_server(("127.0.0.1", 0)):
        kept.keeper.tick(0)
        kept.wait(0)
    assert kept.log == []
    blocked, open_files, collects = json.loads(report.read_text())
    assert (blocked, collects) == (True, False)
    assert [name.partition(":")[0] for name in open_files if name] == ["pipe"]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_fork_that_fails(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    kept.keeper.changed()
    kept.keeper.tick(0)
    assert kept.log == [f"writing {kept.path}: resource temporarily unavailable"]
    kept.keeper.finish()
    assert kept.members() == 3


def test_leftovers_go(tmp_path: Path) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    stay = [f"state.{os.getpid()}.tmp", "state.1.tmp", "state.x.tmp", "other.99.tmp", "state"]
    for name in (*stay, f"state.{gone}.tmp", "state.4000000000.tmp"):
        (tmp_path / name).touch()
    Kept(tmp_path / "state")
    assert sorted(os.listdir(tmp_path)) == sorted(stay)
    Kept(tmp_path / "no" / "state")
