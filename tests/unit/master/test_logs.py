"""The main log."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from uwgate.master.errors import StartError, explain
from uwgate.master.logs import PIPE_BUF, MainLog, complain, create_log, escape

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
