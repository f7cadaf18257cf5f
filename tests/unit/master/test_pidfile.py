"""The pidfile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from uwgate.config.settings import ProcessSettings
from uwgate.master.errors import StartError
from uwgate.master.logs import MainLog
from uwgate.master.pidfile import PidFile, PidFiles

ROOT = Path(__file__).resolve().parents[3]


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


# -- all of an instance ------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MainLog]:
    directory = tmp_path / "logs"
    directory.mkdir()
    log = MainLog(str(directory / "log"))
    yield log
    log.close()


def four(directory: Path) -> ProcessSettings:
    return ProcessSettings(
        pidfile=str(directory / "1"),
        pidfile2=str(directory / "2"),
        safe_pidfile=str(directory / "3"),
        safe_pidfile2=str(directory / "4"),
    )


def there(directory: Path) -> list[str]:
    """Names of files with our process id."""
    ours = f"{os.getpid()}\n"
    return sorted(p.name for p in directory.iterdir() if p.is_file() and p.read_text() == ours)


def test_each_at_its_time(tmp_path: Path, log: MainLog) -> None:
    files = PidFiles(four(tmp_path), log)
    files.check()
    files.rehearse()
    assert there(tmp_path) == []
    files.early()
    assert there(tmp_path) == ["1"]
    files.dropped()
    assert there(tmp_path) == ["1", "2"]
    files.up()
    assert there(tmp_path) == ["1", "2", "3", "4"]
    assert files.ours == [str(tmp_path / name) for name in "1243"]
    files.remove()
    assert there(tmp_path) == []


def test_reload_leaves_them_alone_but_for_what_is_new_or_gone(tmp_path: Path, log: MainLog) -> None:
    first = PidFiles(four(tmp_path), log)
    first.early()
    first.dropped()
    first.up()
    (tmp_path / "1").write_text("1\n")  # another instance has taken it
    process = ProcessSettings(pidfile=str(tmp_path / "1"), safe_pidfile=str(tmp_path / "new"))
    second = PidFiles(process, log, first.ours)
    second.check()
    second.early()
    second.dropped()
    assert there(tmp_path) == ["2", "3", "4"]
    second.up()
    second.up()  # workers have been replaced
    assert there(tmp_path) == ["new"]
    assert (tmp_path / "1").read_text() == "1\n"
    assert second.ours == [str(tmp_path / "1"), str(tmp_path / "new")]
    second.rewrite()
    assert there(tmp_path) == ["1", "new"]
    second.remove()
    assert there(tmp_path) == []


def test_end_in_the_middle_of_a_reload_removes_the_old_ones(tmp_path: Path, log: MainLog) -> None:
    first = PidFiles(four(tmp_path), log)
    first.early()
    PidFiles(ProcessSettings(), log, first.ours).remove()
    assert there(tmp_path) == []


def test_what_could_not_be_written_in_the_end_is_said_before(tmp_path: Path, log: MainLog) -> None:
    path = tmp_path / "missing" / "pid"
    files = PidFiles(ProcessSettings(safe_pidfile=str(path)), log)
    for check in (files.rehearse, files.dropped):
        with pytest.raises(StartError, match=r"^safe-pidfile = .*: no such file or directory$"):
            check()
    files.up()
    files.rewrite()
    text = (tmp_path / "logs" / "log").read_text()
    assert f"] safe-pidfile = {path}: no such file or directory\n" in text
    assert f"] cannot write a pidfile: safe-pidfile = {path}: no such file" in text


def test_directory_in_the_way(tmp_path: Path, log: MainLog) -> None:
    files = PidFiles(ProcessSettings(pidfile2=str(tmp_path)), log)
    with pytest.raises(StartError, match=r"^pidfile2 = .*: is a directory$"):
        files.rehearse()
    with pytest.raises(StartError, match=r"^pidfile2 = .*: is a directory$"):
        files.dropped()


def test_file_is_overwritten_where_the_directory_is_closed() -> None:
    code = (
        "import os, sys\n"
        "from uwgate.master.errors import StartError\n"
        "from uwgate.master.pidfile import PidFile\n"
        "if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n"
        "os.chdir(sys.argv[1])\n"
        "PidFile('pid').check_writable()\n"
        "PidFile('pid').write()\n"
        "print(os.getpid())\n"
        "for act in PidFile('other').check_writable, PidFile('other').write:\n"
        "    try: act()\n"
        "    except StartError as error: print(error)\n"
    )
    with TemporaryDirectory() as directory:  # not below a directory that is ours alone
        path = Path(directory, "pid")
        path.write_text("1234567 or something longer\n")
        path.chmod(0o666)
        path.parent.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", code, directory],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        path.parent.chmod(0o755)
        pid, *errors = done.stdout.splitlines()
        assert path.read_text() == f"{pid}\n"
        assert errors == [f"pidfile = {directory}/other: permission denied"] * 2
        assert done.stderr == ""
