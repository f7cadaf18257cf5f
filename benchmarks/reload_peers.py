"""Who is reloaded in `benchmarks.reload`, and how: uwgate in four ways, nginx, HAProxy.

All have the same addresses, certificate, nodes and files, and say ``/marker``, which is the number
of their configuration.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from benchmarks.certificates import Pair
from benchmarks.origins import nginx_head
from benchmarks.peers import ROOT
from benchmarks.procs import Process, StartError
from benchmarks.tools import Tools

HOW = ("hup", "chain", "fork", "version")
PEERS = ("nginx", "haproxy", "haproxy-idle")
_VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)
_FORKED = re.compile(r"another instance beside this one \(pid: ([0-9]+)\)")


@dataclass(frozen=True, slots=True)
class Scene:
    """What every contender gets. ``plain``, ``tls``, ``nodes``: ports. ``server``: "HOST:PORT" of
    announcements; ``mercy``: seconds that old workers get."""

    directory: Path
    plain: int
    tls: int
    server: str
    nodes: tuple[int, ...]
    host: str
    pair: Pair
    files: Path
    mercy: int
    processes: int
    options: tuple[str, ...] = ()
    other: str = ""


class Contender:
    """Somebody who can be reloaded. ``static``: whether it serves files."""

    name = ""
    static = True

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.process: Process

    def start(self, tools: Tools, core: int | None) -> None:
        """With configuration 0; StartError."""
        raise AssertionError

    def configure(self, number: int) -> None:
        """Write that configuration."""
        raise AssertionError

    def reload(self) -> None:
        """Order it."""
        os.kill(self.master, signal.SIGHUP)

    def seen(self) -> None:
        """The configuration that was ordered last has answered."""

    @property
    def master(self) -> int:
        """Pid of the process that gets the orders."""
        return self.process.pid

    def problems(self) -> list[str]:
        """What its log complains of."""
        return []

    def facts(self) -> dict[str, int]:
        """What its log counts."""
        return {}

    def stop(self) -> None:
        """Whatever is left of it."""
        self.process.stop()

    def _log(self) -> str:
        return self.process.log.read_text(errors="replace")


def session(leader: int) -> list[int]:
    """Living processes of that session (field 4 behind the name in proc(5) stat)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[3]) == leader and fields[0] != b"Z":
                    found.append(int(entry))
    return found


# --- uwgate ---------------------------------------------------------------------------------------

_UWGATE = """[uwsgi]
http = 127.0.0.1:{scene.plain}
https = 127.0.0.1:{scene.tls},{scene.pair.cert},{scene.pair.key}
http-processes = {scene.processes}
http-subscription-server = {scene.server}
http-keepalive = 600
http-drain-timeout = {scene.mercy}
reload-mercy = {scene.mercy}
master-fifo = {scene.directory}/fifo
static-map = /static={scene.files}
static-map = /marker={scene.directory}/marker-{number}
"""


class Uwgate(Contender):
    """SIGHUP."""

    name = "hup"

    def start(self, tools: Tools, core: int | None) -> None:
        """See `Contender`."""
        self.configure(0)
        argv = [*tools.commands["uwgate"], "--ini", str(self._file)]
        env = {**os.environ, "PYTHONPATH": str(self._code())}
        where = self.scene.directory
        self.process = Process(self.name, argv, where / "log", core=core, cwd=where, env=env)

    @property
    def _file(self) -> Path:
        return self.scene.directory / "uwgate.ini"

    def _code(self) -> Path:
        return ROOT

    def configure(self, number: int) -> None:
        """See `Contender`."""
        (self.scene.directory / f"marker-{number}").write_text(f"{number}\n")
        text = _UWGATE.format(scene=self.scene, number=number)
        replace(self._file, text + "".join(f"{each}\n" for each in self.scene.options))

    def problems(self) -> list[str]:
        """See `Contender`."""
        bad = ("Traceback", "reload failed", "does not end", ") died", "the master failed", "crash")
        lines = self._log().splitlines()
        return [line for line in lines if any(word in line for word in bad)]

    def facts(self) -> dict[str, int]:
        """See `Contender`."""
        return {"reloaded": self._log().count("] reloaded: ")}


class Chain(Uwgate):
    """One worker after the other: c, on the FIFO."""

    name = "chain"

    def reload(self) -> None:
        """See `Contender`."""
        write_fifo(self.scene.directory / "fifo", b"c")


class Fork(Uwgate):
    """Another master beside (f, on the FIFO); the old one is told to end once that serves."""

    name = "fork"
    _old = 0

    def reload(self) -> None:
        """See `Contender`."""
        self._old = self.master
        write_fifo(self.scene.directory / "fifo", b"f")

    def seen(self) -> None:
        """See `Contender`."""
        if self._old and self.master != self._old:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._old, signal.SIGTERM)
            self._old = 0
            self.process.running()  # its parent is this process

    @property
    def master(self) -> int:
        """See `Contender`."""
        forked = _FORKED.findall(self._log())
        return int(forked[-1]) if forked else self.process.pid

    def facts(self) -> dict[str, int]:
        """See `Contender`."""
        return {"forked": len(_FORKED.findall(self._log()))}

    def stop(self) -> None:
        """See `Contender`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.master, signal.SIGTERM)
        deadline = time.monotonic() + 3
        while session(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        super().stop()


class Version(Uwgate):
    """SIGHUP, and the program is another one each time: a link to its directory is changed."""

    name = "version"
    _turn = 0

    def _code(self) -> Path:
        here, link = self.scene.directory, self.scene.directory / "code"
        copy(here / "one")
        if self.scene.other:
            unpack(here / "two", self.scene.other)
        else:
            copy(here / "two")
            init = here / "two" / "uwgate" / "__init__.py"
            init.write_text(_VERSION.sub(r'__version__ = "\1.other"', init.read_text()))
        link.symlink_to("one")
        return link

    def reload(self) -> None:
        """See `Contender`."""
        self._turn = 1 - self._turn
        fresh = self.scene.directory / "code.new"
        fresh.symlink_to(("one", "two")[self._turn])
        os.replace(fresh, self.scene.directory / "code")
        super().reload()

    def facts(self) -> dict[str, int]:
        """See `Contender`."""
        found = re.findall(r"\] reloaded: uwgate (\S+) serves", self._log())
        return {f"reloaded to {version}": found.count(version) for version in sorted(set(found))}


def copy(directory: Path) -> None:
    """The code of the working tree."""
    shutil.copytree(
        ROOT / "uwgate", directory / "uwgate", ignore=shutil.ignore_patterns("__pycache__")
    )


def unpack(directory: Path, revision: str) -> None:
    """The code of that revision; StartError."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, "uwgate"], capture_output=True, check=False
    )
    if done.returncode:
        raise StartError(f"no code of {revision}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")


def replace(file: Path, text: str) -> None:
    """In one step."""
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, file)


def write_fifo(path: Path, order: bytes) -> None:
    """Give an order; OSError if nobody reads it."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(fd, order)
    finally:
        os.close(fd)


# --- others ---------------------------------------------------------------------------------------

_NGINX = """
  access_log off;
  client_max_body_size 0;
  upstream nodes {{ {servers} keepalive 64; }}
  server {{
    listen 127.0.0.1:{scene.plain} backlog=4096;
    listen 127.0.0.1:{scene.tls} ssl backlog=4096;
    ssl_certificate {scene.pair.cert};
    ssl_certificate_key {scene.pair.key};
    ssl_session_cache shared:SSL:20m;
    location = /marker {{ return 200 "{number}\\n"; }}
    location /static/ {{ alias {scene.files}/; }}
    location / {{
      proxy_pass http://nodes;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Connection "";
      proxy_request_buffering off;
    }}
    location = /ws {{
      proxy_pass http://nodes;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


class Nginx(Contender):
    """nginx -s reload, which is a SIGHUP to the master."""

    name = "nginx"

    def start(self, tools: Tools, core: int | None) -> None:
        """See `Contender`."""
        self.configure(0)
        where = self.scene.directory
        argv = [*tools.commands["nginx"], "-p", str(where), "-c", str(where / "nginx.conf")]
        self.process = Process(self.name, argv, where / "log", core=core, cwd=where)

    def configure(self, number: int) -> None:
        """See `Contender`."""
        head = nginx_head(self.scene.directory)
        head = head.replace("worker_processes 1;", f"worker_processes {self.scene.processes};")
        mercy = f"worker_shutdown_timeout {self.scene.mercy}s;\nevents"
        servers = " ".join(f"server 127.0.0.1:{port};" for port in self.scene.nodes)
        rest = _NGINX.format(scene=self.scene, number=number, servers=servers)
        replace(self.scene.directory / "nginx.conf", head.replace("events", mercy, 1) + rest)


_HAPROXY = """
global
  nbthread {scene.processes}
  maxconn 8000
  no strict-limits
  tune.ssl.cachesize 20000
  hard-stop-after {scene.mercy}s
  stats socket {scene.directory}/stats.sock level admin expose-fd listeners
defaults
  mode http
  option http-keep-alive
  {more}
  http-reuse always
  timeout connect 10s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
frontend front
  bind 127.0.0.1:{scene.plain} backlog 4096
  bind 127.0.0.1:{scene.tls} backlog 4096 ssl crt {scene.pair.both}
  http-request return status 200 content-type text/plain string "{number}\\n" if {{ path /marker }}
  default_backend nodes
backend nodes
"""


class Haproxy(Contender):
    """Master-worker mode, SIGUSR2."""

    name = "haproxy"
    static = False
    _more = ""

    def start(self, tools: Tools, core: int | None) -> None:
        """See `Contender`."""
        self.configure(0)
        where = self.scene.directory
        argv = [*tools.commands["haproxy"], "-W", "-db", "-f", str(where / "haproxy.cfg")]
        self.process = Process(self.name, argv, where / "log", core=core, cwd=where)

    def configure(self, number: int) -> None:
        """See `Contender`."""
        text = _HAPROXY.format(scene=self.scene, number=number, more=self._more)
        servers = (f"  server n{port} 127.0.0.1:{port}\n" for port in self.scene.nodes)
        replace(self.scene.directory / "haproxy.cfg", text + "".join(servers))

    def reload(self) -> None:
        """See `Contender`."""
        os.kill(self.master, signal.SIGUSR2)


class HaproxyIdle(Haproxy):
    """The same with ``option idle-close-on-response``: idle connections are not closed at once."""

    name = "haproxy-idle"
    _more = "option idle-close-on-response"


CONTENDERS: dict[str, type[Contender]] = {
    each.name: each for each in (Uwgate, Chain, Fork, Version, Nginx, Haproxy, HaproxyIdle)
}


def program(name: str) -> str:
    """Which of `tools` a contender needs."""
    return {"nginx": "nginx", "haproxy": "haproxy", "haproxy-idle": "haproxy"}.get(name, "uwgate")


def interpreter() -> list[str]:
    """The running one, for parts of the benchmark in processes of their own."""
    return [sys.executable, "-m"]
