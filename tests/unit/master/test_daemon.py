"""Into the background: real processes; what they are is asked of the kernel.

Each daemon holds a pipe of the test: it has ended when the pipe has.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import DEADLINE, wait_until

from uwgate.config.settings import ProcessSettings
from uwgate.master.daemon import log_file

ROOT = Path(__file__).resolve().parents[3]
# {0}: the log's file, {1}: options of ProcessSettings, {2}: what comes then.
PROGRAM = """
import os, signal, sys, time
from uwgate.config.settings import ProcessSettings
from uwgate.master import signals
from uwgate.master.daemon import Background
from uwgate.master.logs import MainLog
log = MainLog({0!r})
pipe = signals.SignalPipe()
background = Background(ProcessSettings({1}), log, again={3})
print("buffered")
before = os.getpid(), os.umask(0o027)
background.start()
def facts():
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    log.line(f"session {{fields[3]}} {{os.getsid(0)}} leader {{os.getsid(0) == os.getpid()}}")
    log.line(f"stdin {{os.readlink('/proc/self/fd/0')}} umask {{os.umask(0):o}}")
    log.line(f"moved {{before[0] != os.getpid()}}")
{2}
"""


class Command:
    """The command as a shell starts it, and the daemon that it leaves behind."""

    def __init__(
        self, tmp_path: Path, options: str, code: str, again: bool = False, env: str = ""
    ) -> None:
        self.log_file = tmp_path / "log"
        self.alive, held = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(str(self.log_file), options, code, again)],
            cwd=ROOT,
            env={**os.environ, **({env: "7"} if env else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[held],
            text=True,
        )
        os.close(held)

    def result(self) -> tuple[int, str, str]:
        """Exit code, standard output and error; both are at their end, so nobody has them."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err

    @property
    def lines(self) -> list[str]:
        return [line.rpartition("] ")[2] for line in self.log_file.read_text().splitlines()]

    def over(self) -> None:
        """The daemon has ended."""
        assert select.select([self.alive], [], [], DEADLINE)[0]
        assert os.read(self.alive, 1) == b""

    def close(self) -> None:
        with self.process:
            self.process.kill()
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
        os.close(self.alive)


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    made: list[Command] = []
    yield made
    for each in made:
        each.close()


@pytest.mark.parametrize("option", ["daemonize", "daemonize2"])
def test_daemon(commands: list[Command], tmp_path: Path, option: str) -> None:
    code = (
        "print('seen', flush=True)\n"
        "log.take_streams()\n"
        "background.ready()\n"
        "facts()\n"
        "print('not seen', flush=True)\n"
        "background.failed(3)\n"  # too late
    )
    command = Command(tmp_path, f"{option}='x'", code)
    commands.append(command)
    assert command.result() == (0, "buffered\nseen\n", "")
    command.over()
    session, stdin, moved, printed = command.lines
    assert session.split()[1] == session.split()[2]
    assert session.endswith("leader False")
    assert session.split()[1] != str(os.getsid(0))
    assert stdin == "stdin /dev/null umask 27"
    assert moved == "moved True"
    assert printed == "not seen"


def test_command_waits_until_it_is_up(commands: list[Command], tmp_path: Path) -> None:
    code = (
        "log.take_streams()\n"
        "log.line(f'pid {os.getpid()}')\n"
        "while not pipe.read(): time.sleep(0.001)\n"
        "background.ready()\n"
    )
    command = Command(tmp_path, "daemonize='x'", code)
    commands.append(command)
    wait_until(lambda: command.log_file.exists() and command.lines)
    assert command.process.poll() is None
    os.kill(int(command.lines[0].split()[1]), signal.SIGUSR1)
    assert command.result()[0] == 0
    command.over()


def test_failed_start_is_seen(commands: list[Command], tmp_path: Path) -> None:
    code = (
        "from uwgate.master.logs import complain\n"
        "complain('http = x: bad')\n"
        "log.take_streams()\n"
        "background.failed(3)\n"
    )
    command = Command(tmp_path, "daemonize='x'", code)
    commands.append(command)
    result, _, err = command.result()
    assert result == 3
    assert err.splitlines() == [
        "uwgate: error: http = x: bad",
        f"uwgate: error: not started (exit code 3); its log is {command.log_file}",
    ]
    command.over()


@pytest.mark.parametrize("code", ["background.failed(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_end_before_it_was_up_is_a_failure(
    commands: list[Command], tmp_path: Path, code: str
) -> None:
    command = Command(tmp_path, "daemonize='x'", code)
    commands.append(command)
    result, _, err = command.result()
    assert result == 1
    assert err.startswith("uwgate: error: not started (exit code 1); ")
    command.over()


def test_interrupted_command_takes_the_daemon_along(
    commands: list[Command], tmp_path: Path
) -> None:
    code = (
        "log.line('up to here')\n"
        "while not (numbers := pipe.read()): time.sleep(0.001)\n"
        "log.line(f'got {numbers}')\n"
    )
    command = Command(tmp_path, "daemonize='x'", code)
    commands.append(command)
    wait_until(lambda: command.log_file.exists() and command.lines)
    command.process.send_signal(signal.SIGINT)
    assert command.result()[0] == 130
    command.over()
    assert command.lines[1:] == [f"got [{int(signal.SIGTERM)}]"]


@pytest.mark.parametrize(
    ("options", "again", "env"),
    [("", False, ""), ("daemonize='x'", True, ""), ("daemonize='x'", False, "UWSGI_EMPEROR_FD")],
)
def test_in_the_foreground(
    commands: list[Command], tmp_path: Path, options: str, again: bool, env: str
) -> None:
    code = "background.ready(); facts(); background.failed(3)"
    command = Command(tmp_path, options, code, again, env)
    commands.append(command)
    assert command.result() == (0, "buffered\n", "")
    assert command.lines[2] == "moved False"
    command.over()


def test_log_file() -> None:
    assert log_file(ProcessSettings()) == ""
    assert log_file(ProcessSettings(daemonize2="/2")) == "/2"
    assert log_file(ProcessSettings(daemonize="/1", daemonize2="/2")) == "/1"
    assert log_file(ProcessSettings(log_file="/0", daemonize="/1")) == "/0"

