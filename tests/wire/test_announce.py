"""``uwgate announce``: processes, signals and health, on real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.announced import ROOT, Listener, announcing
from support.nodes import RawUwsgiNode, SeenUwsgi
from support.waiting import free_port, wait_until

PYTHON = sys.executable

# Serves HTTP, writes a JSON line for each event, with the wall clock's time.
# The status that it answers is in the file STATUS; it does not listen before there is one.
CHILD = """
import http.server, json, os, signal, sys, time
port, log, status = int(sys.argv[1]), sys.argv[2], sys.argv[3]
stubborn = "stubborn" in sys.argv

def note(event):
    with open(log, "a") as file:
        file.write(json.dumps([time.time(), event]) + "\\n")

def heard(number, frame):
    note(signal.Signals(number).name)
    if number == signal.SIGTERM and not stubborn:
        os._exit(3)

for name in "HUP USR1 USR2 WINCH TTIN TTOU INT QUIT TERM".split():
    signal.signal(getattr(signal, "SIG" + name), heard)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = int(open(status).read())
        note("GET " + self.path + " " + self.headers["Host"])
        self.send_response(answer)
        self.end_headers()
    def log_message(self, *args): pass

while not os.path.exists(status):
    time.sleep(0.01)
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
note("started session=%d" % (os.getsid(0) == os.getpid()))
server.serve_forever()
"""


class Child:
    """The words of a child and what it noted."""

    def __init__(self, where: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.script = where / "child.py"
        self.script.write_text(CHILD)
        self.notes = where / "notes"
        self.status_file = where / "status"
        self.status = 200

    @property
    def status(self) -> int:
        return int(self.status_file.read_text())

    @status.setter
    def status(self, value: int) -> None:
        fresh = self.status_file.with_suffix(".new")
        fresh.write_text(str(value))
        fresh.rename(self.status_file)

    @property
    def words(self) -> list[str]:
        return [PYTHON, *map(str, (self.script, self.port, self.notes, self.status_file))]

    @property
    def events(self) -> list[tuple[float, str]]:
        if not self.notes.exists():
            return []
        lines = self.notes.read_text().splitlines()
        return [(when, event) for when, event in map(json.loads, lines)]

    def when(self, event: str) -> float:
        wait_until(lambda: event in [each for _, each in self.events], event)
        return next(when for when, each in self.events if each == event)


@pytest.fixture
def server() -> Iterator[Listener]:
    with Listener() as made:
        yield made


@pytest.fixture
def child(tmp_path: Path) -> Child:
    return Child(tmp_path)


def words(server: Listener, address: str, *more: str) -> list[str]:
    return ["--server", server.address, "--key", "k.example", "--addr", address, *more]


HTTP = ("--proto", "http", "--check-http", "/healthz", "--check-interval", "50ms")


# --- without a command -----------------------------------------------------------------------


def test_announces_until_told_to_stop(server: Listener) -> None:
    with announcing(
        *words(server, "10.0.0.7:80", "--freq", "100ms", "--proto", "http", "--weight", "4"),
        *("--backup", "1", "--modifier1", "5", "--modifier2", "6", "--algo", "lrc"),
        *("--cores", "8", "--sni-key", "/k", "--sni-crt", "/c", "--sni-ca", "/a"),
    ) as running:
        server.wait(ups=3)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        server.wait(downs=2)
    packet = server.heard[0].packet
    assert (packet.key, packet.address, packet.protocol) == ("k.example", "10.0.0.7:80", "http")
    assert (packet.weight, packet.backup, packet.algo, packet.cores) == (4, 1, "lrc", 8)
    assert (packet.modifier1, packet.modifier2) == (5, 6)
    assert (packet.sni_key, packet.sni_crt, packet.sni_ca) == ("/k", "/c", "/a")
    assert [each.up for each in server.heard[-2:]] == [False, False]
    assert server.heard[-1].when - server.heard[-2].when < 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_other_signals_that_stop(server: Listener, number: signal.Signals) -> None:
    with announcing(*words(server, ":80", "--drain", "60")) as running:
        server.wait(ups=1)
        running.signal(number)
        assert running.wait() == 0
        server.wait(downs=2)
    assert server.heard[0].packet.address == "127.0.0.1:80"  # the way to this server


def test_every_server_hears_of_every_key(server: Listener, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("c\nd,3\n")
    with Listener(str(tmp_path / "subs")) as other, announcing(
        *words(server, "/run/app.sock", "--key", "b", "--key", f"@{keys}"),
        *("--server", other.address, "--server", f"localhost:{server.port}"),
    ) as running:
        server.wait(ups=8)
        other.wait(ups=4)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        server.wait(downs=16)
        other.wait(downs=8)
    assert {each.packet.key for each in other.heard} == {"k.example", "b", "c", "d"}
    assert {each.packet.address for each in other.heard} == {"/run/app.sock"}


def test_gone_servers_are_told_of_once(tmp_path: Path, server: Listener) -> None:
    path = tmp_path / "nobody"
    with announcing(
        *words(server, ":80", "--server", str(path), "--freq", "100ms")
    ) as running:
        server.wait(ups=4)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        assert running.log.count(f"announcing to {path}: No such file or directory") == 1


def test_acknowledgements_are_logged(server: Listener, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with announcing(*words(server, ":80", "--notify", str(path))) as running:
        server.wait(ups=1)
        assert server.heard[0].packet.notify == str(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"[subscription ack] k => new node: a\n\x1b[2J", str(path))
            sock.sendto(b"x" * 5000, str(path))
        running.logged("[notify-socket] [subscription ack] k => new node: a\\n\\x1b[2J\n")
        running.logged("[notify-socket] " + "x" * 1024 + "\n")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert not path.exists()


# --- with a command --------------------------------------------------------------------------


def test_goodbye_first_then_drain_then_sigterm(server: Listener, child: Child) -> None:
    with announcing(
        *words(server, child.address, *HTTP, "--drain", "1500ms", "--freq", "100ms"),
        "--", *child.words,
    ) as running:  # fmt: skip
        server.wait(ups=3)
        told = time.time()
        running.signal(signal.SIGTERM)
        server.wait(downs=2)
        assert running.process.poll() is None
        with socket.create_connection(("127.0.0.1", child.port)):  # it still serves
            pass
        assert running.wait() == 3  # what the child said
    goodbyes = [each.when for each in server.heard if not each.up]
    assert len(goodbyes) == 2
    assert not any(each.up for each in server.heard if each.when > goodbyes[0])
    stopped = child.when("SIGTERM")
    assert told < goodbyes[0] < goodbyes[1] < stopped
    assert stopped - goodbyes[0] > 1.45
    assert child.when("started session=1") < server.heard[0].when


def test_nothing_is_announced_before_it_is_well(server: Listener, child: Child) -> None:
    child.status_file.unlink()
    with announcing(
        *words(server, child.address, *HTTP, "--rise", "3", "--drain", "0"), "--", *child.words
    ) as running:
        running.logged("not well yet: connection refused")
        child.status = 503
        running.logged("not well yet: status 503")
        assert server.heard == []
        before = len(child.events)
        child.status = 302
        server.wait(ups=1)
        gets = [when for when, event in child.events[before:] if event.startswith("GET")]
        assert len(gets) >= 3
        assert gets[2] < server.heard[0].when
        assert child.events[-1][1] == "GET /healthz k.example"
        running.signal(signal.SIGTERM)
        assert running.wait() == 3


def test_taken_back_when_unwell_and_announced_again(server: Listener, child: Child) -> None:
    with announcing(
        *words(server, child.address, *HTTP, "--fall", "2", "--drain", "0", "--freq", "60"),
        "--", *child.words,
    ) as running:  # fmt: skip
        server.wait(ups=2)
        child.status = 500
        server.wait(downs=2)
        running.logged("not well (status 500): said goodbye")
        ups = server.ups()
        child.status = 204
        server.wait(ups=ups + 1)
        assert [each.up for each in server.heard[2:5]] == [False, False, True]
        running.logged("well: announcing k.example", times=2)
        running.signal(signal.SIGTERM)
        assert running.wait() == 3
        server.wait(downs=4)


def test_no_drain_for_what_is_not_announced(server: Listener, child: Child) -> None:
    child.status = 500
    with announcing(
        *words(server, child.address, *HTTP, "--drain", "60"), "--", *child.words
    ) as running:
        running.logged("not well yet: status 500")
        running.signal(signal.SIGTERM)
        assert running.wait() == 3
    assert server.heard == []


def test_killed_child(server: Listener, child: Child) -> None:
    with announcing(*words(server, child.address, *HTTP), "--", *child.words) as running:
        server.wait(ups=1)
        (pid,) = running.children
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        server.wait(downs=2)
        assert running.wait() == 128 + signal.SIGKILL
        assert "ended: SIGKILL, said goodbye" in running.log
    goodbye = next(each.when for each in server.heard if not each.up)
    assert goodbye - killed < 3


def test_exit_code_of_the_child(server: Listener) -> None:
    with announcing(*words(server, ":80"), "--", "sh", "-c", "exit 42") as running:
        assert running.wait() == 42
        server.wait(ups=1, downs=2)


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc", 126)])
def test_a_command_that_cannot_be_started(server: Listener, command: str, code: int) -> None:
    with announcing(*words(server, ":80"), "--", command, "--server") as running:
        assert running.wait() == code
        assert f"cannot start {command}: " in running.log
    assert server.heard == []


def test_signals_are_passed_on(server: Listener, child: Child) -> None:
    with announcing(
        *words(server, child.address, *HTTP, "--drain", "60"), "--", *child.words
    ) as running:
        server.wait(ups=1)
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTTIN", "SIGTTOU"):
            running.signal(signal.Signals[name])
            child.when(name)
        assert server.downs() == 0
        running.signal(signal.SIGQUIT)
        server.wait(downs=2)
        assert child.when("SIGQUIT") > next(each.when for each in server.heard if not each.up)
        running.signal(signal.SIGTERM)
        assert running.wait() == 3


def test_ctrl_c_reaches_the_child_as_sigterm_after_the_goodbye(
    server: Listener, child: Child
) -> None:
    with announcing(
        *words(server, child.address, *HTTP, "--drain", "100ms"), "--", *child.words
    ) as running:
        server.wait(ups=1)
        os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
        assert running.wait() == 3
        server.wait(downs=2)
    assert [event for _, event in child.events if event.startswith("SIG")] == ["SIGTERM"]


def test_a_second_sigterm_skips_the_drain(server: Listener, child: Child) -> None:
    with announcing(
        *words(server, child.address, *HTTP, "--drain", "60"), "--", *child.words
    ) as running:
        server.wait(ups=1)
        running.signal(signal.SIGTERM)
        running.logged("draining for 60 s")
        time.sleep(0.11)  # closer together they are one
        running.signal(signal.SIGTERM)
        assert running.wait() == 3


def test_who_does_not_end_is_killed(server: Listener, child: Child) -> None:
    with announcing(
        *words(server, child.address, *HTTP, "--drain", "0", "--stop-timeout", "300ms"),
        "--", *child.words, "stubborn",
    ) as running:  # fmt: skip
        server.wait(ups=1)
        running.signal(signal.SIGTERM)
        child.when("SIGTERM")
        assert running.wait() == 128 + signal.SIGKILL
        assert "did not end within 0.3 s: killed" in running.log


def test_check_by_command(server: Listener, tmp_path: Path) -> None:
    flag = tmp_path / "well"
    check = ("--check-command", f"test -e {flag}", "--check-interval", "50ms", "--fall", "1")
    with announcing(*words(server, ":80", *check)) as running:
        running.logged("not well yet: exit code 1")
        flag.touch()
        server.wait(ups=1)
        flag.unlink()
        server.wait(downs=2)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


def test_a_check_that_hangs_has_failed(server: Listener, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.touch()  # the first ones may be killed before they come to it
    hang = f"sleep 60 & echo $$ $! >> {pids}; wait"
    check = ("--check-command", hang, "--check-interval", "100ms", "--check-timeout", "150ms")
    with announcing(*words(server, ":80", *check)) as running:
        running.logged("not well yet: no answer within 0.15 s")
        wait_until(lambda: len(pids.read_text().split()) >= 4)
        killed = pids.read_text().split()[:4:2]
        for pid in killed:
            wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), pid)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert server.heard == []


@pytest.mark.parametrize("kind", ["unix", "abstract", "name"])
def test_check_by_connection(server: Listener, tmp_path: Path, kind: str) -> None:
    check = ("--check-tcp", "--check-interval", "50ms", "--fall", "1")
    family = socket.AF_INET if kind == "name" else socket.AF_UNIX
    target: str | bytes | tuple[str, int]
    if kind == "unix":
        address = target = str(tmp_path / "s")
    elif kind == "abstract":
        address = f"@uwgate-announce-{os.getpid()}"
        target = b"\0" + address[1:].encode() + b"\0"
    else:
        port = free_port()
        address, target = f"localhost:{port}", ("127.0.0.1", port)
    with announcing(*words(server, address, *check)) as running:
        running.logged("not well yet: ")
        with socket.socket(family) as listening:
            listening.bind(target)
            listening.listen(64)
            server.wait(ups=1)
        server.wait(downs=2)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "the answer is not HTTP/1"),
        (b"x" * 2000, "the answer is not HTTP/1"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "the connection was closed in the middle of the response"),
        (b"", "no answer, the connection was closed"),
    ],
)
def test_answers_that_are_not_well(server: Listener, answer: bytes, reason: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    options = "--proto http --check-http / --check-timeout 10 --check-addr"
    check = (*options.split(), address)
    with listening, announcing(*words(server, "*:80", *check)) as running:
        listening.settimeout(10)
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(8192).startswith(b"GET / HTTP/1.0\r\nHost: k.example\r\n")
            connection.sendall(answer)
        running.logged(f"not well yet: {reason}")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


def test_the_check_of_a_uwsgi_server_is_a_uwsgi_packet(
    server: Listener, uwsgi_node: RawUwsgiNode
) -> None:
    check = ("--check-http", "/up%20?x=1", "--modifier1", "7")
    with announcing(*words(server, uwsgi_node.address, *check)) as running:
        server.wait(ups=1)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    (seen, *_) = uwsgi_node.seen
    assert isinstance(seen, SeenUwsgi)
    assert (seen.modifier1, seen.method, seen.target) == (7, b"GET", b"/up%20?x=1")
    wanted = {b"PATH_INFO": b"/up ", b"QUERY_STRING": b"x=1", b"HTTP_HOST": b"k.example"}
    assert wanted.items() <= dict(seen.variables).items()


SUBREAPER = (
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0;"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_orphans_are_buried(server: Listener, tmp_path: Path) -> None:
    """As process 1 of a container it inherits the children of the dead."""
    end = tmp_path / "end"
    wait = f"until test -e {end}; do sleep 0.02; done"
    orphan = f"(sh -c '{wait}; exit 5' & echo orphan); exec sleep 60"
    with announcing(
        *words(server, ":80", "--drain", "0"), "--", "sh", "-c", orphan,
        prefix=[PYTHON, "-c", SUBREAPER],
    ) as running:  # fmt: skip
        wait_until(lambda: len(running.children) == 2, "the orphan is ours")
        end.touch()
        wait_until(lambda: len(running.children) == 1, "the orphan is buried")
        running.signal(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM


def test_helpers_left_behind_are_ended(server: Listener, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = f"sleep 60 & echo $! > {pid_file}; exit 4"
    with announcing(*words(server, ":80"), "--", "sh", "-c", command) as running:
        assert running.wait() == 4
        pid = pid_file.read_text().strip()
        wait_until(lambda: not _alive(pid), "the helper is gone")


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- once ------------------------------------------------------------------------------------


def run(*given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-m", "uwgate", "announce", *given],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_once_and_goodbye(server: Listener) -> None:
    named = ["--server", f"localhost:{server.port}", "--key", "k", "--addr", "*:80"]
    done = run(*named, "--once", "--notify", "/run/n")
    assert (done.returncode, done.stderr) == (0, "")
    server.wait(ups=1)
    assert server.heard[0].packet.notify == "/run/n"
    done = run(*named, "--goodbye")
    assert (done.returncode, done.stderr) == (0, "")
    server.wait(ups=1, downs=2)
    assert {each.packet.address for each in server.heard} == {"127.0.0.1:80"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/no/such/socket", "announcing to /no/such/socket: No such file or directory"),
        ("no-such-name.invalid:1", "looking up no-such-name.invalid: "),
    ],
)
def test_once_fails_if_it_could_not_be_sent(target: str, message: str) -> None:
    done = run("--server", target, "--key", "k", "--addr", "*:80", "--once")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--kee", "k"], "--kee: unknown option; did you mean --key?"),
        ([], "--server is missing; see uwgate announce --help"),
        (
            ["--server", "127.0.0.1:1", "--key", "k", "--addr", ":1", "--sign", "sha256:/none"],
            "--sign: private key /none: No such file or directory",
        ),
        (
            ["--server", "127.0.0.1:1", "--key", "k", "--addr", ":1", "--notify", "/etc"],
            "notify-socket = /etc: the file exists and is not a socket",
        ),
    ],
)
def test_mistakes_are_one_line(given: list[str], message: str) -> None:
    done = run(*given)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"uwgate: error: announce: {message}\n"


def test_help() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: uwgate announce")


def test_a_notify_socket_in_use_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(path)
        done = run("--server", "127.0.0.1:1", "--key", "k", "--addr", ":1", "--notify", path)
        assert done.returncode == 1
        assert "address already in use" in done.stderr
    # Nobody listens there any more: it is replaced.
    with announcing(
        "--server", "127.0.0.1:1", "--key", "k", "--addr", ":1", "--notify", path
    ) as running:
        running.logged("announcing k")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
