"""Real peers: uWSGI, gunicorn, nginx and HAProxy as processes that live as long as a ``with``.

uWSGI and gunicorn come with the development dependencies and are always there; what only a
distribution installs goes through ``needs``, the single reason for which an interop test may skip.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.waiting import free_port, wait_until

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
APPS = Path(__file__).parent / "apps"
ROOT = Path(__file__).resolve().parents[2]


def needs(program: str) -> str:
    """Path of a program that pip cannot install; the test is skipped if it is absent."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def script(name: str) -> str:
    """A console script of the interpreter that runs the tests."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is missing beside {sys.executable}: install the dev extra"
    return str(path)


def wire_address(address: str) -> tuple[int, str | bytes | tuple[str, int]]:
    """uWSGI's notation → (family, address): ``@name`` carries uWSGI's trailing NUL."""
    if address.startswith("@"):
        return socket.AF_UNIX, b"\0" + address[1:].encode() + b"\0"
    if "/" in address:
        return socket.AF_UNIX, address
    host, _, port = address.rpartition(":")
    return socket.AF_INET, (host, int(port))


def accepts(address: str) -> bool:
    """Whether something accepts connections there."""
    family, target = wire_address(address)
    with socket.socket(family) as probe:
        probe.settimeout(1)
        try:
            probe.connect(target)
        except OSError:
            return False
        return True


def start_browser(url: str, profile: Path, *options: str) -> subprocess.Popen[bytes]:
    """A Chromium without a window, in a process group of its own; skips where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--mute-audio", "--disable-background-networking",
             f"--user-data-dir={profile}", "--remote-debugging-port=0", *options, url]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([browser, *words], **quiet, start_new_session=True)


@dataclass(slots=True)
class Peer:
    """A running peer. ``addresses``: where it listens, in the order they were asked for."""

    process: subprocess.Popen[bytes]
    addresses: list[str]
    log: Path

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def logged(self) -> str:
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def peer(
    argv: Sequence[str],
    addresses: list[str],
    log: Path,
    *,
    stop: signal.Signals = signal.SIGTERM,
    environ: dict[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    stdin: Path | None = None,
) -> Iterator[Peer]:
    """Starts ``argv``, waits until every address accepts, ends the whole process group after."""
    with log.open("wb") as sink, (stdin or Path(os.devnull)).open("rb") as source:
        process = subprocess.Popen(
            argv,
            stdin=source,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            pass_fds=pass_fds,
            cwd=cwd,
            start_new_session=True,
        )
    running = Peer(process, addresses, log)
    try:
        for address in addresses:

            def settled(address: str = address) -> bool:
                return process.poll() is not None or accepts(address)

            wait_until(settled, f"{argv[0]} listening on {address}", 20)
            assert process.poll() is None, f"{argv[0]} ended at once:\n{running.logged}"
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(stop)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def uwsgi(
    where: Path,
    *addresses: str,
    name: str = "uwsgi",
    module: str = "workhorse",
    threads: int = 8,
    options: Sequence[str] = (),
) -> Iterator[Peer]:
    """Real uWSGI with an application of ``apps``, listening in the uwsgi protocol."""
    argv = [script("uwsgi"), "--master", "--die-on-term", "--need-app", "--vacuum"]
    argv += ["--pythonpath", str(APPS), "--module", module]
    argv += ["--threads", str(threads), "--buffer-size", "65535", "--max-vars", "256"]
    for address in addresses:
        argv += ["--uwsgi-socket", address]
    with peer(
        [*argv, *options],
        list(addresses),
        where / f"{name}.log",
        environ={"NODE_NAME": name},
    ) as running:
        yield running


@contextlib.contextmanager
def gunicorn(
    where: Path,
    *,
    protocol: str = "http",
    worker: str = "gthread",
    tcp: bool = False,
    name: str = "gunicorn",
    options: Sequence[str] = (),
) -> Iterator[Peer]:
    """gunicorn with the workhorse application; ``protocol``: ``http`` or ``uwsgi``."""
    argv = [script("gunicorn"), "--chdir", str(APPS), "--worker-class", worker]
    argv += ["--threads", "8" if worker == "gthread" else "1", "--graceful-timeout", "1"]
    argv += ["--protocol", protocol, "--no-control-socket", *options]
    with contextlib.ExitStack() as held:
        fds: tuple[int, ...] = ()
        if tcp:
            listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            fds = (listener.fileno(),)
            argv += ["--bind", f"fd://{listener.fileno()}"]
        else:
            address = str(where / f"{name}.sock")
            argv += ["--bind", f"unix:{address}"]
        running = held.enter_context(
            peer(
                [*argv, "workhorse:application"],
                [address],
                where / f"{name}.log",
                environ={"NODE_NAME": name},
                pass_fds=fds,
            )
        )
        yield running


@contextlib.contextmanager
def uwgate(
    where: Path,
    argv: Sequence[str],
    *addresses: str,
    environ: dict[str, str] | None = None,
    stdin: Path | None = None,
) -> Iterator[Peer]:
    """uwgate with exactly these words, until it accepts on ``addresses``.

    At the end: SIGTERM, and then exit code 0 and no traceback are asserted.
    """
    command = [sys.executable, "-m", "uwgate", *argv]
    log = where / "uwgate.log"
    with peer(command, list(addresses), log, environ=environ, cwd=ROOT, stdin=stdin) as running:
        yield running
        running.process.terminate()
        assert running.process.wait(10) == 0, running.logged
        assert "Traceback" not in running.logged, running.logged


def check(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """``uwgate --check`` on these words: configuration only, nothing is bound."""
    return subprocess.run(
        [sys.executable, "-m", "uwgate", "--check", *argv],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


NGINX = """
daemon off;
master_process off;
pid {where}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    access_log {where}/nginx-access.log;
    default_type application/octet-stream;
    types {{ text/plain txt; }}
    client_body_temp_path {where}/body;
    proxy_temp_path {where}/proxy;
    fastcgi_temp_path {where}/fastcgi;
    uwsgi_temp_path {where}/uwsgi;
    scgi_temp_path {where}/scgi;
    client_max_body_size 100m;
    server {{
        listen unix:{socket};
        root {where}/www;
        gzip on;
        gzip_types text/plain;
        gzip_min_length 100;
        gzip_http_version 1.1;
        gzip_proxied any;
{locations}
    }}
}}
"""


@contextlib.contextmanager
def nginx(where: Path, locations: str = "") -> Iterator[Peer]:
    """nginx as an HTTP node on a unix socket; serves ``where/www``."""
    path = where / "nginx.sock"
    (where / "www").mkdir(exist_ok=True)
    config = where / "nginx.conf"
    config.write_text(NGINX.format(where=where, socket=path, locations=locations))
    argv = [needs("nginx"), "-e", "stderr", "-p", str(where), "-c", str(config)]
    with peer(argv, [str(path)], where / "nginx.log") as running:
        yield running


HAPROXY = """
global
    log stderr local0
defaults
    mode {mode}
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend front
    bind {front}
    default_backend back
backend back
    server node {server}
"""


@contextlib.contextmanager
def haproxy(where: Path, server: str, *, mode: str = "http", tcp: bool = False) -> Iterator[Peer]:
    """HAProxy, on a unix socket or TCP, in front of ``server`` (its line after the name)."""
    path = f"127.0.0.1:{free_port()}" if tcp else str(where / "haproxy.sock")
    config = where / "haproxy.cfg"
    config.write_text(HAPROXY.format(mode=mode, front=path, server=server))
    argv = [needs("haproxy"), "-db", "-f", str(config)]
    with peer(argv, [path], where / "haproxy.log") as running:
        yield running


def curl(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """curl without the user's configuration or proxies; 20 s at most."""
    argv = [needs("curl"), "-q", "--silent", "--show-error", "--noproxy", "*"]
    return subprocess.run(
        [*argv, "--max-time", "20", *arguments], input=stdin, capture_output=True, check=False
    )


def curl_json(*arguments: str, stdin: bytes = b"") -> dict[str, object]:
    """The JSON body of a request that has to succeed."""
    done = curl("--fail", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


class Gate:
    """A FIFO on which the workhorse application waits (``?gate=path``)."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = -1
        self._done = False

    def reached(self) -> None:
        """Returns once the application waits on the gate (so the request has arrived there)."""

        def opened() -> bool:
            with contextlib.suppress(OSError):
                self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            return self._fd >= 0

        wait_until(opened, f"the application waits on {self.path}")

    def open(self) -> None:
        """Lets the application go on; once is enough."""
        if self._done:
            return
        if self._fd < 0:
            self.reached()
        os.close(self._fd)
        self._done = True
