"""In the background: what the command that was started says, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.client import Client
from support.nodes import RawHttpNode
from support.uwgate import ROOT
from support.waiting import DEADLINE, dead_address, free_port, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


class Daemon:
    """The command, run to its end; ``log``, ``pid`` (a pidfile) and ``http`` of what it starts."""

    def __init__(self, where: Path, *options: str, port: int = 0) -> None:
        self.log_file = where / "log"
        self.pidfile = where / "pid"
        self.address = ("127.0.0.1", port or free_port())
        listen = f"127.0.0.1:{self.address[1]}"
        command = ["--http", listen, "--pidfile", str(self.pidfile), *options]
        # That the output comes to its end says that the daemon has let go of the terminal.
        self.done = subprocess.run(
            [sys.executable, "-m", "uwgate", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    @property
    def pid(self) -> int:
        return int(self.pidfile.read_text())

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def logged(self, text: str) -> None:
        try:
            wait_until(lambda: text in self.log, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    def serves(self) -> None:
        with Client(self.address) as client:
            assert client.ask(GET).status == 200

    def stop(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
            self.logged("goodbye to uwgate.")
        wait_until(lambda: not self.pidfile.exists(), "end")
        assert "Traceback" not in self.log


@pytest.fixture
def where() -> Iterator[Path]:
    """A directory that another user may enter."""
    with TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.mark.parametrize("option", ["--daemonize", "--daemonize2"])
def test_daemon(where: Path, http_node: RawHttpNode, option: str) -> None:
    daemon = Daemon(
        where, option, str(where / "log"), "--http-to", http_node.spec,
        "--safe-pidfile", str(where / "safe"), "--http-log",
    )  # fmt: skip
    try:
        assert daemon.done.returncode == 0, daemon.done.stderr
        assert daemon.done.stderr == ""
        # At once: when the command ends, everything is up.
        daemon.serves()
        pid = daemon.pid
        assert (where / "safe").read_text() == f"{pid}\n"
        assert os.getsid(pid) not in (pid, os.getsid(0))
        links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]
        assert links == [os.devnull, str(where / "log"), str(where / "log")]
        daemon.logged('"GET / HTTP/1.1" 200')
        if option == "--daemonize2":
            return
        os.kill(pid, signal.SIGHUP)
        daemon.logged("] reloaded: ")
        daemon.serves()
        assert daemon.pid == pid
        assert daemon.log.count("*** starting uwgate") == 2
    finally:
        daemon.stop()
    wait_until(lambda: not (where / "safe").exists(), "the end of the other file")


def test_address_in_use(where: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon = Daemon(
            where, "--daemonize", str(where / "log"), "--http-to", dead_address(), port=port
        )
    assert daemon.done.returncode == 1
    line = f"http = 127.0.0.1:{port}: address already in use"
    assert daemon.done.stderr.splitlines() == [
        f"uwgate: error: {line}",
        f"uwgate: error: not started (exit code 1); its log is {where}/log",
    ]
    assert f"] {line}\n" in daemon.log
    assert not daemon.pidfile.exists()


def test_log_that_cannot_be_written(where: Path) -> None:
    daemon = Daemon(where, "--daemonize", str(where / "no" / "log"), "--http-to", dead_address())
    assert daemon.done.returncode == 1
    assert "no such file or directory" in daemon.done.stderr


def test_workers_that_cannot_start(where: Path) -> None:
    daemon = Daemon(
        where, "--daemonize", str(where / "log"), "--http-to", dead_address(),
        "--http-log-file", str(where / "no" / "log"),
    )  # fmt: skip
    assert daemon.done.returncode in (1, 3)
    assert f"not started (exit code {daemon.done.returncode})" in daemon.done.stderr
    assert "no such file or directory" in daemon.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_pidfiles_and_another_user(where: Path, http_node: RawHttpNode) -> None:
    (where / "open").mkdir()
    (where / "open").chmod(0o777)
    pidfile2, safe, safe2 = (where / "open" / name for name in ("2", "safe", "safe2"))
    daemon = Daemon(
        where, "--daemonize", str(where / "log"), "--http-to", http_node.spec,
        "--uid", "nobody", "--gid", "54321", "--add-gid", "54322", "--pidfile2", str(pidfile2),
        "--safe-pidfile", str(safe), "--safe-pidfile2", str(safe2),
        "--logfile-chown=nobody:54321", "--cap", "net_bind_service",
        "--master-fifo", str(where / "open" / "fifo"),
    )  # fmt: skip
    try:
        assert daemon.done.returncode == 0, daemon.done.stderr
        daemon.serves()
        nobody = pidfile2.stat().st_uid
        assert [path.stat().st_uid for path in (daemon.pidfile, pidfile2, safe, safe2)] == [
            0, nobody, nobody, nobody
        ]  # fmt: skip
        assert {path.read_text() for path in (daemon.pidfile, pidfile2, safe, safe2)} == {
            f"{daemon.pid}\n"
        }
        assert (daemon.log_file.stat().st_uid, daemon.log_file.stat().st_gid) == (nobody, 54321)
        status = _status(daemon.pid)
        assert status["CapAmb"] == status["CapPrm"] == f"{1 << 10:016x}"
        assert "54322" in status["Groups"].split()
        for child in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split():
            status = _status(int(child))
            assert status["CapAmb"] == status["CapPrm"] == f"{0:016x}"
            assert "54322" in status["Groups"].split()
        # Somebody else's now, until the instance is told to take it back.
        pidfile2.write_text("1\n")
        fd = os.open(where / "open" / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"P")
        os.close(fd)
        wait_until(lambda: pidfile2.read_text() == f"{daemon.pid}\n", "FIFO P")
        assert f"cannot write a pidfile: pidfile = {daemon.pidfile}" in daemon.log
    finally:
        # The pidfile of root stays behind: the user has no right to remove it.
        with contextlib.suppress(FileNotFoundError):
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.logged("goodbye to uwgate.")
            wait_until(lambda: not any(path.exists() for path in (pidfile2, safe, safe2)), "end")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root directory")
def test_workers_in_a_root_directory_of_their_own(where: Path, http_node: RawHttpNode) -> None:
    jail = where / "jail"
    jail.mkdir()
    daemon = Daemon(
        where, "--daemonize", str(where / "log"), "--http-to", http_node.spec,
        "--chroot", str(jail), "--http-uid", "65534", "--http-gid", "65534",
        "--http-stats", f"127.0.0.1:{(port := free_port())}", "--stats-http",
    )  # fmt: skip
    try:
        assert daemon.done.returncode == 0, daemon.done.stderr
        daemon.serves()
        (child,) = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        assert os.readlink(f"/proc/{child}/root") == str(jail)
        assert os.readlink(f"/proc/{child}/cwd") == str(jail)
        assert os.readlink(f"/proc/{daemon.pid}/root") == "/"
        with Client(("127.0.0.1", port)) as client:
            reply = client.ask(b"GET / HTTP/1.1\r\nHost: stats\r\n\r\n")
        assert b'"rss"' in reply.body
    finally:
        daemon.stop()


def _status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}
