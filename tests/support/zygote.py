"""``python -m uwgate`` without importing it each time: a process that has, forks.

The tests start the program more than a thousand times, and importing it is most of what a start
costs. What is forked runs as the command does: its arguments, directory, output and descriptors
are its own, and a reload executes the program anew.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_SERVE = "from support.zygote import main; main()"
_LONGEST = 1 << 16


class Forked:
    """What ``subprocess.Popen`` is of a program that was executed."""

    def __init__(self, words: Sequence[str], log: int) -> None:
        """``words`` follow ``uwgate``; ``log``: descriptor for both outputs."""
        self.args = [sys.executable, "-m", "uwgate", *words]
        self.returncode: int | None = None
        self._reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Who writes into every socket that this process has fails here: what the zygote does not
        # read would be a reset when it closes its end, and the exit code be lost.
        self._reports.shutdown(socket.SHUT_WR)
        measured = bool(_measured) and _is_early()
        with theirs:
            message, descriptors = [json.dumps(words).encode()], [log, theirs.fileno()]
            try:
                socket.send_fds(_server(measured), message, descriptors)
            except ConnectionError:
                said = _end((os.getpid(), measured))
                print(f"\nthe zygote is gone; another one\n{said}", file=sys.__stderr__)
                socket.send_fds(_server(measured), message, descriptors)
        self.pid = self._number()

    def _number(self) -> int:
        data = self._reports.recv(16)
        if not data:
            raise ConnectionError("the zygote is gone")
        return int(data)

    def poll(self) -> int | None:
        """The exit code (of a signal: negative), None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._reports, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._number()
            self._reports.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """As of Popen: not to one that has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # buried, and not reported yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


_MEASURING = "COVERAGE_PROCESS_CONFIG"
_MOST_MEASURED = 2
_measured: dict[str, str] = {}
_starts: Counter[str] = Counter()


def measure_little() -> None:
    """From here on, of the processes that tests start only the first few of each file are measured:
    coverage costs three times what a gateway does in most tests, and the others run the same."""
    if _MEASURING in os.environ:
        _measured[_MEASURING] = os.environ.pop(_MEASURING)


def _is_early() -> bool:
    file = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
    _starts[file] += 1
    return _starts[file] <= _MOST_MEASURED and "/interop/" not in file


_Key = tuple[int, bool]
"""Whose zygote it is, a process's, and whether it is measured."""

_servers: dict[_Key, tuple[subprocess.Popen[bytes], socket.socket, int]] = {}


def _server(measured: bool) -> socket.socket:
    """The socket of this process's zygote, which begins with the first use."""
    key = os.getpid(), measured
    if key not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors = os.memfd_create("said")
        with theirs:
            environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
            process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, "uwgate"],
                cwd=ROOT,
                env={**environ, **_measured} if measured else environ,
                stdin=theirs,
                stderr=errors,
            )
        _servers[key] = process, ours, errors
        atexit.register(_end, key)
    return _servers[key][1]


def _end(key: _Key) -> str:
    """-> what it has said."""
    if key[0] != os.getpid() or key not in _servers:
        return ""
    process, ours, errors = _servers.pop(key)
    ours.close()
    code = process.wait(10)
    said = os.pread(errors, _LONGEST, 0).decode(errors="replace")
    os.close(errors)
    return f"exit code {code}: {said}"


def main() -> None:
    """The zygote: forks for every message on standard input, until that ends."""
    for name in (_MEASURING, "PYTHONPATH"):
        os.environ.pop(name, None)
    sys.path[:] = [str(ROOT), *(each for each in sys.path if each not in ("", str(ROOT / "tests")))]
    import uwgate.cli
    import uwgate.master.supervisor
    import uwgate.router.fast
    import uwgate.router.http

    words = _serve(socket.socket(fileno=os.dup(0)))
    if words is not None:  # in a child
        sys.argv = [str(ROOT / "uwgate/__main__.py"), *words]
        sys.orig_argv = [sys.executable, "-m", "uwgate", *words]
        sys.exit(uwgate.cli.main())


def _serve(requests: socket.socket) -> list[str] | None:
    """Returns None at the end, and in each child its words."""
    ended, wake = socket.socketpair()
    for each in (ended, wake):
        each.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    reports: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(ended, selectors.EVENT_READ)
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if ended in ready:
            with contextlib.suppress(BlockingIOError):
                ended.recv(_LONGEST)
            _reap(reports)
        if requests in ready:
            data, descriptors, _, _ = socket.recv_fds(requests, _LONGEST, 2)
            if not data:
                return None
            if len(descriptors) != 2:  # from a test that writes into whatever is open
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            pid = os.fork()
            if not pid:
                for each in (requests, ended, wake, selector, *reports.values()):
                    each.close()
                os.close(descriptors[1])
                _become(descriptors[0])
                return [str(word) for word in json.loads(data)]
            os.close(descriptors[0])
            reports[pid] = socket.socket(fileno=descriptors[1])
            with contextlib.suppress(ConnectionError):
                reports[pid].sendall(b"%d" % pid)


def _reap(reports: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            with reports.pop(found[0]) as report, contextlib.suppress(ConnectionError):
                report.sendall(b"%d" % os.waitstatus_to_exitcode(found[1]))


def _become(log: int) -> None:
    """A process as if it had been executed: no descriptor or signal is left of the zygote."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """What runs in this process is not measured: the program runs in others."""
    current = None
    if _measured or _MEASURING in os.environ:
        import coverage

        current = coverage.Coverage.current()
    if current is not None:
        current.stop()
    yield
    if current is not None:
        current.start()
