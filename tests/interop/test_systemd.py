"""Under systemd: what it hears, the sockets that it passes, and the unit that it is given.

The manager is a socket of the test that speaks its side of the protocol; sockets are passed by
systemd-socket-activate. Those tests skip that need a program of systemd where there is none.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.client import Address, Client
from support.furnished import Furnished
from support.nodes import RawHttpNode, held, response
from support.reloading import Reloadable, children, reloadable
from support.tls import TlsClient
from support.uwgate import ROOT
from support.waiting import DEADLINE, free_port, wait_until

from interop.manager import Manager
from interop.observing import probe, workers
from interop.peers import needs
from uwgate import __version__

UNITS = ROOT / "deploy" / "systemd"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
READY = f"uwgate {__version__} is ready"

# Whom the watchdog means is not known before the start. A new master of a reload cannot serve as
# long as the file exists.
CUSTOM = """
import os, sys
os.environ.setdefault("WATCHDOG_PID", str(os.getpid()))
if "UWGATE_GUARDIAN" in os.environ and os.path.exists({flag!r}):
    sys.argv.append("--http-timeout=soon")
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path) as found:
        yield found


@pytest.fixture
def node() -> Iterator[RawHttpNode]:
    with RawHttpNode() as found:
        yield found


def customised(where: Path, flag: Path) -> dict[str, str]:
    """The environment of a service that does as ``CUSTOM`` says."""
    package = where / "custom"
    package.mkdir()
    (package / "sitecustomize.py").write_text(CUSTOM.format(flag=str(flag)))
    return {"PYTHONPATH": str(package)}


# --- notification -------------------------------------------------------------------------------


def test_ready_means_that_all_workers_serve(
    tmp_path: Path, manager: Manager, node: RawHttpNode
) -> None:
    stats = f"127.0.0.1:{free_port()}"
    text = f"http-to = {node.spec}\nhttp-processes = 3\nhttp-stats = {stats}"
    with reloadable(tmp_path, text, manager.environ) as gateway:
        said = manager.next()
        assert said.words == {"READY": "1", "STATUS": READY}
        assert probe(stats, "/readyz") == 200
        assert [each["status"] for each in workers(stats)] == ["idle"] * 3
        assert said.pid == gateway.process.pid


def test_a_life(tmp_path: Path, manager: Manager, node: RawHttpNode) -> None:
    text = f"http-to = {node.spec}"
    with reloadable(tmp_path, text, manager.environ) as gateway:
        pid = gateway.process.pid
        assert manager.next().words["READY"] == "1"
        manager.beating(pid)
        # The same process goes on speaking after it has executed itself anew.
        gateway.process.send_signal(signal.SIGHUP)
        said = manager.next()
        assert (said.words["RELOADING"], said.pid) == ("1", pid)
        assert said.words["MONOTONIC_USEC"].isdecimal()
        said = manager.next()
        assert (said.words, said.pid) == ({"READY": "1", "STATUS": READY}, pid)
        assert "] reloaded: " in gateway.log
        manager.beating(pid)
        # One that changes nothing is over, too.
        gateway.write("http-timeout = soon")
        gateway.process.send_signal(signal.SIGHUP)
        assert manager.next().words["RELOADING"] == "1"
        said = manager.next()
        assert said.words["READY"] == "1"
        assert said.words["STATUS"].startswith("reload failed: ")
        gateway.process.send_signal(signal.SIGTSTP)
        assert manager.next().words == {"STATUS": "paused"}
        gateway.process.send_signal(signal.SIGTSTP)
        assert manager.next().words == {"STATUS": READY}
        gateway.terminate()
        said = manager.next()
        assert (said.words["STOPPING"], said.pid) == ("1", pid)
        gateway.process.wait(DEADLINE)
        manager.listen()
        assert {each.pid for each in manager.heard} <= {pid}, "nobody else speaks"
        assert set(manager.beats) <= {pid}


def test_while_it_drains_it_lives_and_asks_for_time(
    tmp_path: Path, manager: Manager, node: RawHttpNode
) -> None:
    gate = threading.Event()
    node.play(held(gate, response(b"late")))
    text = f"http-to = {node.spec}\ndrain-delay = 1\nhttp-drain-timeout = 200"
    with reloadable(tmp_path, text, manager.environ) as gateway, gateway.connect() as client:
        client.send(GET)
        wait_until(lambda: node.accepted, "the request is under way")
        gateway.terminate()
        manager.wait(STOPPING="1")
        assert int(manager.next().words["EXTEND_TIMEOUT_USEC"]) > 1_000_000
        while "EXTEND_TIMEOUT_USEC" not in (said := manager.next()).words:
            assert said.words["STOPPING"] == "1"
        assert int(said.words["EXTEND_TIMEOUT_USEC"]) > 200_000_000
        manager.beating(gateway.process.pid)
        gate.set()
        assert client.read_response().body == b"late"


def test_a_guardian_is_the_service(tmp_path: Path, manager: Manager, node: RawHttpNode) -> None:
    """Systemd believes the main process only: it says who is it from now on."""
    flag = tmp_path / "fail"
    environ = {**manager.environ, **customised(tmp_path, flag)}
    gateway = Reloadable(tmp_path, f"http-to = {node.spec}", environ)
    try:
        pid = gateway.process.pid
        manager.wait(READY="1")
        served = gateway.workers
        flag.touch()
        gateway.process.send_signal(signal.SIGHUP)
        manager.wait(RELOADING="1")
        said = manager.next()
        (guardian,) = set(children(pid)) - set(served)
        assert (said.pid, said.words["MAINPID"]) == (pid, str(guardian))
        said = manager.next()
        assert (said.pid, said.words["READY"]) == (guardian, "1")
        assert said.words["STATUS"].startswith("reload failed: ")
        manager.beating(guardian)
        # Of a reload of its own no less.
        flag.unlink()
        gateway.process.send_signal(signal.SIGHUP)
        assert manager.wait(RELOADING="1").pid == guardian
        assert manager.wait(READY="1").pid == guardian
        manager.beating(guardian)
        gateway.terminate()
        assert manager.wait(STOPPING="1").pid == guardian
        assert gateway.process.wait(DEADLINE) == 0
    finally:
        gateway.kill()


def test_of_two_instances_one_is_the_service(
    tmp_path: Path, manager: Manager, node: RawHttpNode
) -> None:
    fifo = tmp_path / "fifo"
    text = f"http-to = {node.spec}\nmaster-fifo = {fifo}"
    environ = {**manager.environ, **customised(tmp_path, tmp_path / "never")}
    gateway = Reloadable(tmp_path, text, environ)
    other = 0
    try:
        pid = gateway.process.pid
        manager.wait(READY="1")
        fifo.write_text("f")
        gateway.logged("another instance beside this one (pid: ")
        (found,) = re.findall(r"another instance beside this one \(pid: (\d+)\)", gateway.log)
        other = int(found)
        gateway.logged("] spawned uwgate http 1 ", 2)
        manager.beating(pid)
        assert set(manager.beats) == {pid}
        gateway.terminate()
        # To systemd the service does not stop: it goes on with the other one.
        said = manager.next()
        while "MAINPID" not in said.words:
            assert "STOPPING" not in said.words
            assert said.pid == pid
            said = manager.next()
        assert (said.pid, said.words["MAINPID"], said.words["WATCHDOG"]) == (pid, found, "1")
        assert gateway.process.wait(DEADLINE) == 0
        manager.beating(other)
        os.kill(other, signal.SIGHUP)
        assert manager.wait(RELOADING="1").pid == other
        assert manager.wait(READY="1").pid == other
        manager.beating(other)
        os.kill(other, signal.SIGTERM)
        assert manager.wait(STOPPING="1").pid == other
        gateway.logged("goodbye to uwgate.", 2)
    finally:
        if other and gateway.log.count("goodbye to uwgate.") < 2:
            os.kill(other, signal.SIGKILL)
        gateway.kill()


# --- sockets ------------------------------------------------------------------------------------


class Service:
    """A uwgate that systemd-socket-activate starts with the first connection to ``listen``."""

    def __init__(self, where: Path, listen: list[str], *words: str, options: str = "") -> None:
        activate = needs("systemd-socket-activate")
        sockets = [word for each in listen for word in ("-l", each)]
        self._log = (where / "service.log").open("w+")
        self.process = subprocess.Popen(
            [activate, *options.split(), *sockets, sys.executable, "-m", "uwgate", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.logged("Listening on ", len(listen))

    @property
    def log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def logged(self, text: str, times: int = 1) -> None:
        try:
            wait_until(lambda: self.log.count(text) >= times, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)
        self.logged("] reloaded: ")

    def close(self) -> int:
        """Its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._log.close()


@contextmanager
def service(
    where: Path, listen: list[str], *words: str, options: str = ""
) -> Iterator[Service]:
    found = Service(where, listen, *words, options=options)
    try:
        yield found
        assert "Traceback" not in found.log, found.log
    finally:
        code = found.close()
    assert code == 0


def served(address: Address) -> bool:
    with Client(address) as client:
        return client.ask(GET).status == 200


@pytest.mark.parametrize(
    ("listen", "http", "client", "reloads"),
    [
        ("0.0.0.0:{port}", ":{port}", "127.0.0.1", 0),
        # ListenStream=80: the IPv6 socket that takes IPv4, too.
        ("{port}", ":{port}", "127.0.0.1", 1),
        ("[::1]:{port}", "[::1]:{port}", "::1", 0),
        ("@uwgate-activated-{port}", "@uwgate-activated-{port}", "@", 1),
        ("127.0.0.1:{port}", "fd://web", "127.0.0.1", 1),
        ("127.0.0.1:{port}", "fd://3", "127.0.0.1", 0),
    ],
)
def test_a_socket_of_systemd(
    tmp_path: Path, node: RawHttpNode, listen: str, http: str, client: str, reloads: int
) -> None:
    """The client that woke it is served, and so is one after a reload; both workers have this one
    socket and make no other."""
    port = free_port()
    listen = listen.format(port=port)
    words = ["--http", http.format(port=port), "--http-to", node.spec, "--http-processes", "2"]
    # Systemd binds it without the NUL that uWSGI's names end in.
    address: Address = "\0" + listen[1:] if client == "@" else (client, port)
    with service(tmp_path, [listen], *words, options="--fdname=web") as it:
        assert served(address)
        for _ in range(reloads):
            it.reload()
            assert served(address)
        assert it.log.count(" fd 3\n") == 1 + reloads


def test_sockets_by_name(tmp_path: Path, node: RawHttpNode) -> None:
    one, two, stats = (free_port() for _ in range(3))
    listen = [f"127.0.0.1:{port}" for port in (one, two, stats)]
    words = ["--http", "fd://b", "--http", "fd://a", "--http-stats", listen[2]]
    options = "--fdname=a:b:statistics"
    with service(tmp_path, listen, *words, "--http-to", node.spec, options=options) as it:
        assert probe(listen[2], "/healthz") == 200
        assert served(("127.0.0.1", one))
        assert served(("127.0.0.1", two))
        assert f"{listen[1]} fd 4\n" in it.log
        assert f"{listen[0]} fd 3\n" in it.log


def test_the_file_of_a_socket_of_systemd_is_not_removed(
    tmp_path: Path, node: RawHttpNode
) -> None:
    """Systemd holds the socket, and starts the service again when somebody connects."""
    paths = [str(tmp_path / name) for name in ("used.sock", "unused.sock")]
    with service(tmp_path, paths, "--http", paths[0], "--http-to", node.spec, "--vacuum") as it:
        assert served(paths[0])
        it.reload()
    assert [Path(path).is_socket() for path in paths] == [True, True]


@pytest.mark.parametrize(
    ("http", "options", "reason"),
    [
        ("fd://other", "", "http = fd://other: no such descriptor is open"),
        ("fd://3", "--datagram", "http = fd://3: the socket is not a stream socket"),
        ("fd://3", "--fdname=a:b", "LISTEN_FDNAMES = a:b: 2 names, but LISTEN_FDS = 1"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, http: str, options: str, reason: str) -> None:
    port = free_port()
    words = ["--http", http, "--http-to", "127.0.0.1:1"]
    it = Service(tmp_path, [f"127.0.0.1:{port}"], *words, options=options)
    kind = socket.SOCK_DGRAM if "datagram" in options else socket.SOCK_STREAM
    try:
        with socket.socket(socket.AF_INET, kind) as client:
            client.connect(("127.0.0.1", port))
            if kind == socket.SOCK_DGRAM:  # to the other one nobody may listen any more
                client.send(b"x")
            it.logged(f"uwgate: error: {reason}\n")
            assert it.process.wait(DEADLINE) == 1
        assert "Traceback" not in it.log
    finally:
        it.close()


# --- the unit -----------------------------------------------------------------------------------


def unit(where: Path) -> Path:
    """The units with programs that this machine has."""
    for source in UNITS.iterdir():
        text = source.read_text().replace("/opt/uwgate/bin/uwgate", sys.executable)
        (where / source.name).write_text(text)
    return where / "uwgate.service"


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    analyze = needs("systemd-analyze")
    service_file = unit(tmp_path)
    words = [analyze, "verify", "--man=no", str(service_file), str(tmp_path / "uwgate.socket")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_is_locked_in(tmp_path: Path) -> None:
    analyze = needs("systemd-analyze")
    words = [analyze, "security", "--offline=true", "--no-pager", "--threshold=20"]
    done = subprocess.run(
        [*words, str(unit(tmp_path))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Memory that is writable or executable, and never both: what MemoryDenyWriteExecute= asks for.
DENY = """
import ctypes, mmap, os, sys
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0):
    sys.exit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    os.execv(sys.executable, [sys.executable, "-m", "uwgate", *sys.argv[1:]])
sys.exit(78)
"""


def test_tls_needs_no_memory_that_is_written_and_executed(
    tmp_path: Path, manager: Manager, node: RawHttpNode
) -> None:
    """The session cache is called by OpenSSL through ctypes."""
    pair = Furnished(tmp_path).authority.issue("h")
    port = free_port()
    words = ["--https", f"127.0.0.1:{port},{pair.cert},{pair.key}", "--http-to", node.spec]
    words += ["--cache", "100", "--ssl-sessions-use-cache"]
    with subprocess.Popen(
        [sys.executable, "-c", DENY, *words], cwd=ROOT, env={**os.environ, **manager.environ}
    ) as process:
        try:
            wait_until(lambda: manager.told() or process.poll() is not None, "the start")
            if process.poll() == 77:
                pytest.skip("this kernel cannot deny it (before 6.3)")
            manager.wait(READY="1")
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            session = None
            for again in (False, True):
                address = ("127.0.0.1", port)
                with TlsClient(address, context, name="h", session=session) as client:
                    assert client.ask(GET).status == 200
                    assert client.sock.session_reused is again
                    session = client.sock.session
        finally:
            process.terminate()
    assert process.returncode in (0, 77)


def command(name: str, where: Path) -> list[str]:
    """A command of the unit, for a directory of our own instead of /run and /etc."""
    text = (UNITS / "uwgate.service").read_text()
    (line,) = re.findall(rf"(?m)^{name}=(.*)$", text)
    line = line.replace("/run/uwgate", str(where)).replace("/etc/uwgate", str(where))
    program, *words = line.split()
    assert program == "/opt/uwgate/bin/uwgate"
    return [sys.executable, "-m", "uwgate", *words]


def test_reload_of_the_unit_fails_if_the_configuration_does_not_work(
    tmp_path: Path, manager: Manager, node: RawHttpNode
) -> None:
    port = free_port()
    file = tmp_path / "uwgate.ini"
    good = f"[uwsgi]\nhttp = 127.0.0.1:{port}\nhttp-to = {node.spec}\n"
    file.write_text(good)
    environ = {**os.environ, **manager.environ}
    with subprocess.Popen(command("ExecStart", tmp_path), cwd=ROOT, env=environ) as process:
        try:
            manager.wait(READY="1")
            reload = command("ExecReload", tmp_path)

            def reloaded() -> subprocess.CompletedProcess[str]:
                return subprocess.run(reload, cwd=ROOT, capture_output=True, text=True, timeout=30)

            done = reloaded()
            assert (done.returncode, "reloaded: uwgate" in done.stdout) == (0, True), done.stderr
            file.write_text(good + "http-timeout = soon\n")
            done = reloaded()
            assert done.returncode == 1
            assert "http-timeout" in done.stderr
        finally:
            process.terminate()
    assert process.returncode == 0
