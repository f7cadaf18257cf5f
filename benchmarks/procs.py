"""Start processes on a chosen core, read what they cost from /proc, and always end them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

START_DEADLINE = 15.0  # seconds a server may take until it answers
STOP_GRACE = 3.0  # seconds between SIGTERM and SIGKILL


class StartError(Exception):
    """A server did not come up; the text holds the end of its output."""


class Process:
    """A server in a session of its own, so that the whole family can be ended at once.

    ``core`` is the CPU number it is bound to (None: wherever the scheduler likes). Standard output
    and error go to ``log``.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        core: int | None = None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as sink, on_core(core):
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def running(self) -> bool:
        """Whether the first process of the family still lives."""
        return self._popen.poll() is None

    def tail(self, lines: int = 5) -> str:
        """The end of what it has written."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join(text.strip().splitlines()[-lines:]) or "(no output)"

    def stop(self) -> int | None:
        """SIGTERM, a grace, then SIGKILL to the whole session; the exit code of the first."""
        if self.running():
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_GRACE)
        self.kill()
        return self._popen.returncode

    def kill(self) -> None:
        """SIGKILL to every process of the session at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Bind this process for a moment: what it starts meanwhile inherits the binding."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores() -> tuple[int, int]:
    """(core of the proxy, core of origin and load generator); the same one if there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[1 % len(usable)]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """``pid`` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The command name (field 2) may hold spaces and parentheses: count from its end.
            fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] != b"Z":
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        found.append(parent)
        todo += children.get(parent, [])
    return found


def cpu_nanos(pids: Iterable[int]) -> int:
    """CPU nanoseconds that all tasks of these processes have used (field 1 of schedstat)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                text = Path(f"/proc/{pid}/task/{task}/schedstat").read_text()
                total += int(text.split()[0])
    return total


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident bytes of these processes, added up (shared pages count once in each)."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
    return total


def descriptors(pids: Iterable[int]) -> dict[int, list[str]]:
    """Open descriptors of each of these processes that still lives: what each refers to."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            numbers = os.listdir(f"/proc/{pid}/fd")
            found[pid] = [_target(f"/proc/{pid}/fd/{number}") for number in numbers]
    return found


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "closed meanwhile"


def wait_http(
    process: Process, address: tuple[str, int], target: str = "/", *, tls: bool = False
) -> None:
    """Wait until ``GET target`` gets a 200; StartError after START_DEADLINE seconds.

    ``address`` is (host, port).
    """
    deadline = time.monotonic() + START_DEADLINE
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    answer = b""
    while time.monotonic() < deadline:
        if not process.running():
            raise StartError(f"{process.name} ended at once: {process.tail()}")
        with contextlib.suppress(OSError), _connected(address, tls=tls) as sock:
            sock.sendall(request)
            answer = sock.recv(256)
            if answer.startswith(b"HTTP/1.") and answer[9:12] == b"200":
                return
        time.sleep(0.05)
    raise StartError(f"{process.name} does not answer ({answer[:60]!r}): {process.tail()}")


def _connected(address: tuple[str, int], *, tls: bool) -> socket.socket:
    sock = socket.create_connection(address, timeout=2)
    return trusting().wrap_socket(sock) if tls else sock


def trusting() -> ssl.SSLContext:
    """A TLS client that believes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def wait_connect(process: Process, address: tuple[str, int] | str) -> None:
    """Wait until ``address`` ((host, port) or a unix path) accepts a connection; StartError."""
    deadline = time.monotonic() + START_DEADLINE
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    while time.monotonic() < deadline:
        if not process.running():
            raise StartError(f"{process.name} ended at once: {process.tail()}")
        with contextlib.suppress(OSError), socket.socket(kind) as sock:
            sock.connect(address)
            return
        time.sleep(0.05)
    raise StartError(f"{process.name} does not accept connections: {process.tail()}")
