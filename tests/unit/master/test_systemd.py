"""What is said to systemd, byte for byte, and what is taken from it."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uwgate.master.errors import StartError
from uwgate.master.systemd import BESIDE, Notifier, inherited, stand_beside, take_over


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def environ(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(manager.getsockname()), **more}


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(65536).decode().split("\n")


def silent(manager: socket.socket) -> bool:
    try:
        manager.recv(65536)
    except BlockingIOError:
        return True
    return False


def test_each_word_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier(environ(manager))
    notifier.ready("ready to serve")
    assert heard(manager) == ["READY=1", "STATUS=ready to serve"]
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    word, when = heard(manager)
    assert word == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.stopping()
    assert heard(manager) == ["STOPPING=1", "STATUS=draining"]
    notifier.extend(1.5)
    assert heard(manager) == ["EXTEND_TIMEOUT_USEC=1500000"]
    notifier.status("paused")
    assert heard(manager) == ["STATUS=paused"]
    notifier.watchdog()
    assert heard(manager) == ["WATCHDOG=1"]
    notifier.main_pid(4711)
    assert heard(manager) == ["MAINPID=4711"]
    assert silent(manager)


def test_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0uwgate-notify-{os.getpid()}")
        manager.setblocking(False)
        Notifier({"NOTIFY_SOCKET": f"@uwgate-notify-{os.getpid()}"}).status("here")
        assert heard(manager) == ["STATUS=here"]


@pytest.mark.parametrize("text", ["a\nMAINPID=1", "a\r\n MAINPID=1\n"])
def test_a_status_is_no_other_word(manager: socket.socket, text: str) -> None:
    Notifier(environ(manager)).status(text)
    assert heard(manager) == ["STATUS=a MAINPID=1"]


@pytest.mark.parametrize("letter", ["x", "\U0001f600", "\udcff"])
def test_a_long_status_fits(manager: socket.socket, letter: str) -> None:
    Notifier(environ(manager)).ready(letter * 5000)
    data = manager.recv(65536)
    assert data.startswith(b"READY=1\nSTATUS=")
    assert 1000 < len(data) <= 4096
    data.decode()


@pytest.mark.parametrize(
    "name", ["", "@", "/", "relative", "vsock:2:1234", "/nobody/there", "/" + "x" * 200]
)
def test_without_a_manager_nothing_happens(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    notifier.ready("ready")
    notifier.watchdog()


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    notifier = Notifier(environ(manager))
    for _ in range(2000):  # more than any net.unix.max_dgram_qlen of a default kernel
        notifier.watchdog()
    assert heard(manager) == ["WATCHDOG=1"]


def test_no_descriptor_stays(manager: socket.socket) -> None:
    before = os.listdir("/proc/self/fd")
    Notifier(environ(manager)).ready("ready")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getppid())}, 0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "nobody"}, 0),
        ({"WATCHDOG_USEC": "0"}, 0),
        ({"WATCHDOG_USEC": "-5"}, 0),
        ({"WATCHDOG_USEC": "1e6"}, 0),
        ({"WATCHDOG_USEC": "٣"}, 0),
        ({"WATCHDOG_USEC": "1"}, 0.01),
        ({"WATCHDOG_USEC": "9999999999999999999"}, 3600),
        ({"WATCHDOG_USEC": str(2**64 - 1)}, 0),  # no limit
    ],
)
def test_watchdog(manager: socket.socket, variables: dict[str, str], interval: float) -> None:
    assert Notifier(environ(manager, **variables)).interval == interval


def test_nobody_to_tell_is_no_watchdog() -> None:
    assert Notifier({"WATCHDOG_USEC": "3000000"}).interval == 0


def test_the_successor_gets_time_for_its_first_word(manager: socket.socket) -> None:
    Notifier(environ(manager, WATCHDOG_USEC="3000000")).main_pid(4711)
    assert heard(manager) == ["MAINPID=4711", "WATCHDOG=1"]


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that lives until its standard input ends."""
    command = [sys.executable, "-Sc", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as found:
        yield found


def test_beside_another_instance_silent_as_long_as_that_lives(manager: socket.socket) -> None:
    variables = environ(manager, WATCHDOG_USEC="3000000", WATCHDOG_PID="1")
    with process() as service:
        stand_beside(variables, service.pid)
        notifier = Notifier(variables)
        assert notifier.interval == 1.5
        notifier.ready("ready")
        notifier.stopping()
        assert silent(manager)
    notifier.watchdog()
    assert heard(manager) == ["WATCHDOG=1"]
    # And so is the program that it executes in its place.
    take_over(variables)
    assert BESIDE not in variables
    assert variables["WATCHDOG_PID"] == str(os.getpid())
    again = Notifier(variables)
    assert again.interval == 1.5
    again.status("here")
    assert heard(manager) == ["STATUS=here"]


def test_without_a_watchdog_there_is_none_later() -> None:
    variables: dict[str, str] = {}
    stand_beside(variables, 1)
    assert variables == {BESIDE: "1"}
    take_over(variables)
    assert variables == {}


# --- sockets ------------------------------------------------------------------------------------


def take(variables: dict[str, str], *files: str) -> str:
    """What ``inherited`` finds in a process of its own, where descriptors 3… are what they are."""
    code = (
        "import os\n"
        "from uwgate.master.systemd import inherited\n"
        "from uwgate.master.errors import StartError\n"
        "environ = {**dict(os.environ), 'LISTEN_PID': str(os.getpid()), **VARIABLES}\n"
        "try:\n"
        "    found = inherited(environ, os.getpid())\n"
        "    print([(each.fd, each.name, os.get_inheritable(each.fd)) for each in found],\n"
        "        [name for name in environ if name.startswith('LISTEN_')])\n"
        "except StartError as error:\n"
        "    print(error)\n"
    ).replace("VARIABLES", repr(variables))
    kept: list[int] = []
    high: list[int] = []
    try:
        for kind in files:
            if kind == "file":
                kept.append(os.open(os.devnull, os.O_RDONLY))
            else:
                kept.append(socket.socket().detach())
        # As systemd does: in order, from 3 on.
        high += [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in kept]
        moves = " ".join(f"{3 + index}<&{fd} {fd}<&-" for index, fd in enumerate(high))
        script = f'exec "$0" -c "$1" {moves}'
        found = subprocess.run(
            ["/bin/bash", "-c", script, sys.executable, code],
            pass_fds=high,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    finally:
        for fd in [*kept, *high]:
            os.close(fd)
    return found.stdout.strip()


def test_sockets_with_names() -> None:
    found = take({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:unknown"}, "socket", "socket")
    assert found == "[(3, 'web', False), (4, '', False)] []"


def test_sockets_without_names() -> None:
    assert take({"LISTEN_FDS": "1"}, "socket") == "[(3, '', False)] []"


@pytest.mark.parametrize(
    ("variables", "files", "reason"),
    [
        ({"LISTEN_FDS": "2"}, ["socket"], "LISTEN_FDS = 2: descriptor 4 is not open"),
        ({"LISTEN_FDS": "1"}, ["file"], "LISTEN_FDS = 1: descriptor 3 is not a socket"),
        (
            {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"},
            ["socket"],
            "LISTEN_FDNAMES = a:b: 2 names, but LISTEN_FDS = 1",
        ),
    ],
)
def test_what_is_not_there(variables: dict[str, str], files: list[str], reason: str) -> None:
    assert take(variables, *files) == reason


@pytest.mark.parametrize("count", ["", "0", "-1", "1025", "x", "1_0", "٣"])
def test_a_number_that_is_none(count: str) -> None:
    variables = {"LISTEN_PID": "7", "LISTEN_FDS": count}
    with pytest.raises(StartError, match=f"LISTEN_FDS = {count}: expected a number from 1"):
        inherited(variables, 7)
    assert variables == {}


def test_a_process_id_that_is_none() -> None:
    with pytest.raises(StartError, match="LISTEN_PID = seven: expected a process id"):
        inherited({"LISTEN_PID": "seven", "LISTEN_FDS": "1"}, 7)


@pytest.mark.parametrize("pid", ["8", ""])
def test_what_is_for_another_process_is_not_taken(pid: str) -> None:
    variables = {
        "LISTEN_PID": pid, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "LISTEN_PIDFDID": "1", "A": "b"
    }  # fmt: skip
    assert inherited(variables, 7) == []
    assert variables == {"A": "b"}


def test_nothing_there() -> None:
    assert inherited({}, 7) == []
