"""The pidfile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uwgate.master.errors import StartError
from uwgate.master.pidfile import PidFile


def test_written_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pidfile = PidFile(str(path))
    pidfile.check()
    pidfile.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == ["pid"]
    pidfile.check()
    pidfile.write()
    pidfile.remove()
    assert os.listdir(tmp_path) == []
    pidfile.remove()


@pytest.mark.parametrize("content", ["", "junk", "0\n", "-1\n", "1 2\n", "99999999999999\n"])
def test_junk_is_stale(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pid"
    path.write_text(content)
    pidfile = PidFile(str(path))
    pidfile.check()
    pidfile.write()
    assert path.read_text() == f"{os.getpid()}\n"


def test_running_uwgate_is_respected_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "uwgate"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        path.write_text(f"{other.pid}\n")
        with pytest.raises(StartError, match=rf"already runs there \(pid {other.pid}\)"):
            PidFile(str(path)).check()
        other.stdin.close()
        other.wait()
        PidFile(str(path)).check()


def test_another_program_with_that_number_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        path.write_text(f"{other.pid}\n")
        PidFile(str(path)).check()
        assert other.stdin is not None
        other.stdin.close()


def test_somebody_elses_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n")
    PidFile(str(path)).remove()
    assert path.exists()


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    path = tmp_path / "pid"
    path.symlink_to(target)
    (tmp_path / f"pid.{os.getpid()}").symlink_to(target)
    PidFile(str(path)).write()
    assert target.read_text() == "precious"
    assert not path.is_symlink()


def test_none() -> None:
    pidfile = PidFile("")
    pidfile.check()
    pidfile.write()
    pidfile.remove()
