"""The proxies that are compared: how each is configured for the same work.

All add X-Forwarded-For and -Proto (uwgate does so by default), pass the client's Host on, keep
connections to HTTP nodes, run one process or thread for the data path, and log nothing unless
the workload says so.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.certificates import Pair
from benchmarks.origins import Origin, backlog, nginx_head
from benchmarks.procs import (
    START_DEADLINE,
    Process,
    StartError,
    free_port,
    wait_connect,
    wait_http,
)
from benchmarks.tools import Tools
from benchmarks.workloads import GatewayKind, NodeKind
from uwgate.subscriptions.packet import Announcement, encode

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Setup:
    """What a proxy needs to know to be configured; ``directory`` is its own.

    ``port``: where it is to serve HTTP; for a fastrouter that is the port of the nginx before it.
    ``pair``: of HTTPS, which it is to serve there instead.
    """

    directory: Path
    port: int
    node: NodeKind
    origin: Origin
    log: bool
    gateway: GatewayKind = "http"
    fast_port: int = 0
    pair: Pair | None = None

    @property
    def fast_address(self) -> str:
        """Where a fastrouter listens: on the same kind of socket as its node."""
        if self.node == "uwsgi-unix":
            return str(self.directory / "fast.sock")
        return f"127.0.0.1:{self.fast_port}"

    @property
    def node_address(self) -> str:
        """The node as uWSGI's options write it."""
        if self.node == "uwsgi-unix":
            return self.origin.uwsgi_unix
        port = self.origin.http if self.node == "http" else self.origin.uwsgi_tcp
        return f"127.0.0.1:{port}"


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy: the program it needs, the nodes it can speak to, and its arguments.

    ``arguments`` writes the configuration into the directory and returns what follows the command.
    ``announced``: its node is told by packet, once it listens for that.
    """

    name: str
    program: str
    nodes: frozenset[NodeKind]
    arguments: Callable[[Setup], list[str]]
    announced: bool = False


_UWSGI_PARAMS = """
      uwsgi_param QUERY_STRING $query_string;
      uwsgi_param REQUEST_METHOD $request_method;
      uwsgi_param CONTENT_TYPE $content_type;
      uwsgi_param CONTENT_LENGTH $content_length;
      uwsgi_param REQUEST_URI $request_uri;
      uwsgi_param PATH_INFO $document_uri;
      uwsgi_param DOCUMENT_ROOT $document_root;
      uwsgi_param SERVER_PROTOCOL $server_protocol;
      uwsgi_param REQUEST_SCHEME $scheme;
      uwsgi_param REMOTE_ADDR $remote_addr;
      uwsgi_param REMOTE_PORT $remote_port;
      uwsgi_param SERVER_PORT $server_port;
      uwsgi_param SERVER_NAME $server_name;
"""
_FORWARDED = """
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
"""
_NGINX_TLS = """
    ssl_certificate {pair.cert};
    ssl_certificate_key {pair.key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:SSL:20m;
    ssl_session_tickets on;
    ssl_session_timeout 300s;
"""
_BUFFERS = """
      {0}_buffering off;
      {0}_buffer_size 64k;
      {0}_buffers 8 64k;
      {0}_busy_buffers_size 128k;
"""


_NGINX_FILES = """
    root {0};
    index index.html;
    open_file_cache max=20000 inactive=60s;
    open_file_cache_valid 60s;
"""
# Over TLS the kernel does not send by itself: what is read at once, and in how many pieces.
_OUTPUT_BUFFERS = "    output_buffers 2 256k;\n"


@dataclass(frozen=True, slots=True)
class _Nginx:
    """Variants of nginx: kept node connections or its default, bulk buffers, no added fields."""

    keepalive: bool = True
    bulk: bool = False
    bare: bool = False

    def __call__(self, setup: Setup) -> list[str]:
        config = setup.directory / "nginx.conf"
        tls = " ssl" if setup.pair else ""
        serving = self._files(setup) if setup.node == "files" else self._proxying(setup)
        log = f"{setup.directory}/access.log combined buffer=64k flush=1s" if setup.log else "off"
        config.write_text(
            f"{nginx_head(setup.directory)}  access_log {log};\n"
            f"{'' if setup.node == 'files' else self._upstream(setup)}"
            f"  server {{ listen 127.0.0.1:{setup.port}{tls} backlog=4096;\n"
            f"    {_NGINX_TLS.format(pair=setup.pair) if setup.pair else ''}\n"
            f"{serving}  }}\n}}\n"
        )
        return ["-p", str(setup.directory), "-c", str(config)]

    def _files(self, setup: Setup) -> str:
        return _NGINX_FILES.format(setup.origin.files) + (_OUTPUT_BUFFERS if self.bulk else "")

    def _upstream(self, setup: Setup) -> str:
        unix = setup.node == "uwsgi-unix"
        where = f"unix:{setup.node_address}" if unix else setup.node_address
        kept = self.keepalive and setup.node == "http"
        return (
            f"  upstream node {{ server {where}; {'keepalive 128;' if kept else ''}\n"
            f"{'    keepalive_requests 1000000000;' if kept else ''} }}\n"
        )

    def _proxying(self, setup: Setup) -> str:
        if setup.node == "http":
            module = "proxy"
            location = "proxy_pass http://node;" + ("" if self.bare else _FORWARDED)
            if self.keepalive:
                location += 'proxy_http_version 1.1; proxy_set_header Connection "";'
        else:
            module, location = "uwsgi", "uwsgi_pass node;" + _UWSGI_PARAMS
        buffers = _BUFFERS.format(module) if self.bulk else ""
        return f"    location / {{ {location} {buffers} }}\n"


def _haproxy(setup: Setup) -> list[str]:
    log = "log stdout format raw local0" if setup.log else ""
    tls = f" ssl crt {setup.pair.both} ssl-min-ver TLSv1.2" if setup.pair else ""
    config = setup.directory / "haproxy.cfg"
    config.write_text(
        f"global\n  nbthread 1\n  maxconn 15000\n  no strict-limits\n  {log}\n"
        "  tune.ssl.cachesize 20000\n  tune.ssl.lifetime 300\n"
        "defaults\n  mode http\n  option http-keep-alive\n  http-reuse always\n"
        f"  option forwardfor\n  {'log global' if setup.log else ''}\n"
        f"  {'option httplog' if setup.log else ''}\n"
        "  timeout connect 10s\n  timeout client 600s\n  timeout server 600s\n"
        "  timeout http-keep-alive 600s\n"
        f"frontend front\n  bind 127.0.0.1:{setup.port} backlog 4096{tls}\n"
        f"  http-request set-header X-Forwarded-Proto {'https' if tls else 'http'}\n"
        "  default_backend nodes\n"
        f"backend nodes\n  server node 127.0.0.1:{setup.origin.http}\n"
    )
    return ["-db", "-q", "-f", str(config)]


def _uwgate(setup: Setup) -> list[str]:
    if setup.gateway == "fastrouter":
        return ["--fastrouter", setup.fast_address, "--fastrouter-to", setup.node_address]
    node = f"http://{setup.node_address}" if setup.node == "http" else setup.node_address
    listen = ["--http", f"127.0.0.1:{setup.port}"]
    if setup.pair is not None:
        listen = ["--https", f"127.0.0.1:{setup.port},{setup.pair.cert},{setup.pair.key}"]
    arguments = [*listen, "--http-keepalive=600", "--http-processes", "1"]
    if setup.node == "files":
        return [*arguments, "--check-static", setup.origin.files, "--static-index", "index.html"]
    arguments += ["--http-to", node]
    if setup.log:
        arguments += ["--http-log", "--http-log-file", str(setup.directory / "access.log")]
    return arguments


def _subscribed(setup: Setup) -> list[str]:
    arguments = ["--http", f"127.0.0.1:{setup.port}", "--http-keepalive=600"]
    arguments += ["--http-processes=1", f"--http-subscription-server=127.0.0.1:{setup.port}"]
    return [*arguments, "--subscription-tolerance=100000"]


def _uwsgi(setup: Setup) -> list[str]:
    if setup.gateway == "fastrouter":
        arguments = ["--fastrouter", setup.fast_address, "--fastrouter-to", setup.node_address]
    else:
        arguments = ["--http", f"127.0.0.1:{setup.port}", "--http-to", setup.node_address]
        arguments += ["--http-keepalive=600", "--http-auto-chunked"]
    arguments += ["--master", "--die-on-term"]
    return [*arguments, "--disable-logging", f"--listen={backlog()}"]


_ALL: frozenset[NodeKind] = frozenset({"http", "uwsgi-unix", "uwsgi-tcp"})
_SENDERS: frozenset[NodeKind] = _ALL | {"files"}
_HTTP_ONLY: frozenset[NodeKind] = frozenset({"http"})
_UWSGI_ONLY: frozenset[NodeKind] = frozenset({"uwsgi-unix", "uwsgi-tcp"})

PEERS = {
    peer.name: peer
    for peer in (
        Peer("uwgate", "uwgate", _SENDERS, _uwgate),
        Peer("uwgate-subscribed", "uwgate", _ALL, _subscribed, announced=True),
        Peer("nginx", "nginx", _SENDERS, _Nginx()),
        Peer("nginx-fresh", "nginx", _HTTP_ONLY, _Nginx(keepalive=False)),
        Peer("nginx-bulk", "nginx", _SENDERS, _Nginx(bulk=True)),
        Peer("nginx-bare", "nginx", _HTTP_ONLY, _Nginx(bare=True)),
        Peer("haproxy", "haproxy", _HTTP_ONLY, _haproxy),
        Peer("uwsgi", "uwsgi", _UWSGI_ONLY, _uwsgi),
    )
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy. ``before``: the web server through which a fastrouter is reached; its CPU
    time is not that of the proxy."""

    name: str
    process: Process
    port: int
    before: Process | None = None

    def stop(self) -> None:
        """End it and what stands before it."""
        if self.before is not None:
            self.before.stop()
        self.process.stop()


def _start_before(tools: Tools, setup: Setup, core: int) -> Process:
    """nginx with ``uwsgi_pass`` to a fastrouter; StartError."""
    where = setup.fast_address
    target = f"unix:{where}" if setup.node == "uwsgi-unix" else where
    directory = setup.directory / "before"
    directory.mkdir()
    config = directory / "nginx.conf"
    fields = _UWSGI_PARAMS + _BUFFERS.format("uwsgi")
    config.write_text(
        f"{nginx_head(directory)}  access_log off;\n"
        f"  server {{ listen 127.0.0.1:{setup.port} backlog=4096;\n"
        f"    location / {{ uwsgi_pass {target}; {fields} }}\n  }}\n}}\n"
    )
    argv = [*tools.commands["nginx"], "-p", str(directory), "-c", str(config)]
    process = Process("nginx before", argv, directory / "output.log", core=core)
    try:
        wait_http(process, ("127.0.0.1", setup.port))
    except BaseException:
        process.stop()
        raise
    return process


def _announce(process: Process, setup: Setup) -> None:
    """Say where the node is, under the names that the load and `wait_http` use; StartError."""
    kind: Literal["http", "uwsgi"] = "http" if setup.node == "http" else "uwsgi"
    packets = [
        encode(Announcement(key, setup.node_address, protocol=kind))
        for key in ("www.example.com", "localhost")
    ]
    wait_connect(process, ("127.0.0.1", setup.port))
    deadline = time.monotonic() + START_DEADLINE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", setup.port))
        while True:
            try:
                for packet in packets * 2:  # sent to nobody, one makes the next fail
                    sock.send(packet)
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise StartError(f"{process.name} takes no announcements") from None
                time.sleep(0.02)


def start_proxy(
    tools: Tools,
    peer: Peer,
    directory: Path,
    core: int,
    origin: Origin,
    node: NodeKind,
    *,
    log: bool = False,
    files: int = 0,
    gateway: GatewayKind = "http",
    load_core: int = 0,
    pair: Pair | None = None,
) -> Proxy:
    """Start ``peer`` on ``core`` and wait until a request through it succeeds; StartError.

    ``files``: its RLIMIT_NOFILE, soft and hard (0: this process's own). ``load_core``: where the
    web server before a fastrouter runs. ``pair``: with it HTTPS is served, not HTTP.
    """
    directory.mkdir(parents=True)
    setup = Setup(directory, free_port(), node, origin, log, gateway, free_port(), pair)
    argv = [*tools.commands[peer.program], *peer.arguments(setup)]
    if files:
        argv = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(files), *argv]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = Process(peer.name, argv, directory / "output.log", core=core, cwd=directory, env=env)
    before = None
    try:
        if gateway == "fastrouter":
            unix = node == "uwsgi-unix"
            wait_connect(
                process, setup.fast_address if unix else ("127.0.0.1", setup.fast_port)
            )
            before = _start_before(tools, setup, load_core)
        else:
            if peer.announced:
                _announce(process, setup)
            wait_http(process, ("127.0.0.1", setup.port), tls=pair is not None)
    except BaseException:
        process.stop()
        raise
    return Proxy(peer.name, process, setup.port, before)
