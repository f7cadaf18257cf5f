"""The main log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uwgate.config.settings_process import MainLogSettings
from uwgate.master.errors import StartError, explain
from uwgate.master.logs import PIPE_BUF, MainLog, check_log, complain, create_log, escape

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4} \[\d+\] "


def test_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path))
    log.line("plain é")
    log.line("a\nb\x1b[0m\x7f\u2028\udc80")
    log.close()
    first, second = path.read_text().splitlines()
    assert re.fullmatch(LINE + "plain é", first)
    assert re.fullmatch(LINE + re.escape(r"a\nb\x1b[0m\x7f\u2028\udc80"), second)
    assert path.stat().st_mode & 0o777 == 0o640


def test_escape_leaves_text_alone() -> None:
    assert escape('C:\\path "quoted" ü') == 'C:\\path "quoted" ü'


def test_long_lines_are_cut_so_that_one_write_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path))
    log.line("x" * 10_000)
    log.close()
    data = path.read_bytes()
    assert len(data) == PIPE_BUF
    assert data.endswith(b"xxx ...\n")


def test_crash_has_a_prefix_on_every_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path))
    try:
        raise ValueError("one\ntwo\x00")
    except ValueError as error:
        log.crash("worker 1", error)
    log.close()
    lines = path.read_text().splitlines()
    assert all(re.match(LINE, line) for line in lines)
    assert lines[0].endswith(r"worker 1: ValueError: one\ntwo\x00")
    assert any(line.endswith("| Traceback (most recent call last):") for line in lines)


def test_reopen(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path))
    number = log.fileno()
    path.rename(tmp_path / "old")
    log.line("into the old one")
    log.reopen()
    log.line("into the new one")
    assert log.fileno() == number
    assert "new" in path.read_text()
    path.unlink()
    path.mkdir()
    log.reopen()
    log.line("still there")
    log.close()
    assert "old" in (tmp_path / "old").read_text()


def test_failed_reopen_is_said_in_the_old_file(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    log = MainLog(str(directory / "log"))
    (directory / "log").rename(tmp_path / "old")
    directory.rmdir()
    log.reopen()
    log.close()
    text = (tmp_path / "old").read_text()
    assert f"cannot reopen the log {directory}/log: no such file or directory" in text


def test_unwritable_path(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"logto = .*: is a directory"):
        MainLog(str(tmp_path))


def test_lost_lines_are_counted() -> None:
    log = MainLog("/dev/full")
    log.line("nobody gets this")
    assert log.lost == 1
    log.close()


def test_standard_error_is_never_reopened_nor_closed() -> None:
    log = MainLog()
    assert log.fileno() == 2
    log.reopen()
    log.close()
    os.fstat(2)


def test_complain(capsys: pytest.CaptureFixture[str]) -> None:
    complain("http = \x1b: bad")
    assert capsys.readouterr().err == "uwgate: error: http = \\x1b: bad\n"


def test_create_log_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old")
    path.chmod(0o604)
    create_log(str(path), os.geteuid(), os.getegid())
    assert path.read_text() == "old"
    assert path.stat().st_mode & 0o777 == 0o604


def test_create_log_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "log"
    # Only root can give files away.
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    create_log(str(path), owner, None)
    assert path.stat().st_uid == owner


def test_explain() -> None:
    assert explain(OSError(2, "No such file")) == "no such file"
    assert explain(OSError("Odd")) == "odd"


# -- rotation, mode, owner, what is handed on --------------------------------------------------


def lines(path: Path) -> list[str]:
    return [re.sub(LINE, "", line) for line in path.read_text().splitlines()]


def test_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path), MainLogSettings(max_size=50))
    assert not log.too_large()
    log.line("x" * 50)
    assert log.too_large()
    number = log.fileno()
    path.chmod(0o604)
    assert log.rotate()
    assert not log.too_large()
    assert log.fileno() == number
    (backup,) = tmp_path.glob("log.*")
    assert re.fullmatch(r"log\.\d{10}", backup.name)
    assert lines(backup) == ["x" * 50, f"log rotated: this file is {backup} now"]
    assert path.read_text() == ""
    assert path.stat().st_mode & 0o777 == 0o604
    log.close()


def test_rotations_within_a_second_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path))
    monkeypatch.setattr("time.time", lambda: 1700000000.0)
    (tmp_path / "log.1700000000").symlink_to("nowhere")
    assert log.rotate()
    assert log.rotate()
    log.close()
    assert sorted(os.listdir(tmp_path)) == [
        "log", "log.1700000000", "log.1700000000.1", "log.1700000000.2"
    ]  # fmt: skip


def test_named_backup_is_replaced(tmp_path: Path) -> None:
    path, backup = tmp_path / "log", tmp_path / "old"
    log = MainLog(str(path), MainLogSettings(backup_name=str(backup)))
    for word in ("first", "second"):
        log.line(word)
        assert log.rotate()
    log.close()
    assert lines(backup)[:1] == ["second"]
    assert sorted(os.listdir(tmp_path)) == ["log", "old"]


def test_backup_beside_the_file(tmp_path: Path) -> None:
    log = MainLog(str(tmp_path / "log"), MainLogSettings(backup_name="old"))
    assert log.rotate()
    log.close()
    assert sorted(os.listdir(tmp_path)) == ["log", "old"]


def test_file_that_was_renamed_already_is_only_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path))
    log.line("old")
    path.rename(tmp_path / "by-logrotate")
    path.write_text("somebody else's\n")
    assert log.rotate()
    log.line("new")
    log.close()
    assert sorted(os.listdir(tmp_path)) == ["by-logrotate", "log"]
    assert lines(path) == ["somebody else's", "new"]


@pytest.mark.parametrize("backup", ["directory", "log", "missing/old"])
def test_rotation_that_fails_changes_nothing(tmp_path: Path, backup: str) -> None:
    path = tmp_path / "log"
    (tmp_path / "directory").mkdir()
    log = MainLog(str(path), MainLogSettings(max_size=1, backup_name=str(tmp_path / backup)))
    log.line("before")
    assert log.too_large()
    assert not log.rotate()
    log.close()
    before, complaint = lines(path)
    assert before == "before"
    assert complaint.startswith(f"cannot rotate the log {path}: ")
    assert sorted(os.listdir(tmp_path)) == ["directory", "log"]


def test_rotation_that_failed_is_not_tried_every_second(tmp_path: Path) -> None:
    log = MainLog(str(tmp_path / "log"), MainLogSettings(max_size=1, backup_name="log"))
    log.line("long enough")
    assert log.too_large()
    assert not log.rotate()
    assert not log.too_large()
    log.close()


def test_what_is_no_file_is_not_rotated(capfd: pytest.CaptureFixture[str]) -> None:
    assert not MainLog().rotate()
    assert not MainLog("/dev/stdout").rotate()
    out, err = capfd.readouterr()
    assert "cannot rotate the log: it is not a file" in err
    assert "cannot rotate the log: it is not a file" in out
    log = MainLog("/dev/null", MainLogSettings(max_size=1, mode=0o600))
    assert not log.too_large()
    assert not log.rotate()
    log.close()
    assert os.stat("/dev/null").st_mode & 0o777 == 0o666


def test_mode_owner_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    root = os.geteuid() == 0
    owner = (65534, 65533) if root else (os.geteuid(), os.getegid())
    settings = MainLogSettings(truncate=True, mode=0o620, uid=owner[0], gid=owner[1])
    log = MainLog(str(path), settings)
    for _ in range(2):
        info = path.stat()
        assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (*owner, 0o620)
        assert "old" not in path.read_text()
        assert log.rotate()
    path.unlink()
    log.reopen()
    assert path.stat().st_mode & 0o777 == 0o620
    log.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could do harm")
def test_root_gives_no_file_away_that_has_another_name(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret", tmp_path / "log"
    secret.write_text("secret")
    secret.chmod(0o600)
    os.link(secret, path)
    for settings in (
        MainLogSettings(mode=0o666),
        MainLogSettings(uid=65534),
        MainLogSettings(truncate=True),
    ):
        with pytest.raises(StartError, match=r"^log.*the file has another name, too$"):
            MainLog(str(path), settings)
    info = secret.stat()
    assert (info.st_uid, info.st_mode & 0o777, secret.read_text()) == (0, 0o600, "secret")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could do harm")
def test_root_follows_no_link_of_others_in_a_rotation(tmp_path: Path) -> None:
    path, target = tmp_path / "log", tmp_path / "target"
    target.write_text("precious")
    log = MainLog(str(path))
    path.unlink()
    path.symlink_to(target)
    os.chown(path, 65534, 65534, follow_symlinks=False)
    assert not log.rotate()
    log.line("unharmed")
    log.close()
    assert target.read_text() == "precious"
    assert path.is_symlink()


def test_fifo_without_a_reader_is_an_error_and_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(StartError, match=r"logto = .*: no such device or address"):
        MainLog(str(path))


def test_streams_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    code = (
        "import os, sys\n"
        "from uwgate.master.logs import MainLog\n"
        f"log = MainLog({str(path)!r})\n"
        "print('for the terminal')\n"
        "log.take_streams()\n"
        "print('printed', flush=True)\n"
        "log.rotate()\n"
        "os.write(2, b'written\\n')\n"
        "log.close()\n"
        "print('after the end')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "for the terminal\n"
    (backup,) = tmp_path.glob("log.*")
    assert lines(backup)[0] == "printed"
    assert lines(path) == ["written", "after the end"]


def test_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    first = MainLog(str(path))
    state = {"path": str(path), "fd": os.dup(first.fileno())}
    assert first.state() == {"path": str(path), "fd": first.fileno()}
    path.rename(tmp_path / "old")
    second = MainLog(str(path), MainLogSettings(truncate=True), handed=state)
    second.line("same file")
    assert lines(tmp_path / "old") == ["before", "same file"]
    state = {"path": str(path), "fd": os.dup(second.fileno())}
    third = MainLog(str(path), MainLogSettings(reopen=True, truncate=True), handed=state)
    third.line("new file")
    assert lines(path) == ["new file"]
    state = {"path": str(path), "fd": os.dup(third.fileno())}
    fourth = MainLog(str(tmp_path / "missing" / "log"), handed=state)
    assert [line.split(":")[0] for line in lines(path)] == [
        "new file",
        f"cannot open the log {tmp_path}/missing/log",
    ]
    fifth = MainLog("", handed={"path": str(path), "fd": os.dup(third.fileno())})
    assert fifth.fileno() == 2
    for log in (first, second, third, fourth, fifth):
        log.close()


@pytest.mark.parametrize("state", [{}, 7, {"path": "x", "fd": 99999}, {"path": "x", "fd": "no"}])
def test_handed_nonsense_is_as_nothing(tmp_path: Path, state: object) -> None:
    path = tmp_path / "log"
    log = MainLog(str(path), handed=state)
    log.line("here")
    log.close()
    assert lines(path) == ["here"]


def test_check_changes_nothing(tmp_path: Path) -> None:
    plain = MainLogSettings()
    for path in ("", "/dev/stdout", str(tmp_path / "log"), "/dev/null"):
        check_log(path, plain)
    assert os.listdir(tmp_path) == []
    with pytest.raises(StartError, match="is a directory"):
        check_log(str(tmp_path), plain)
    with pytest.raises(StartError, match="no such file"):
        check_log(str(tmp_path / "missing" / "log"), plain)
    kept = {"path": str(tmp_path / "missing" / "log"), "fd": 2}
    check_log(str(tmp_path / "missing" / "log"), plain, kept)
