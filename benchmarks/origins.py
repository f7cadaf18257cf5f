"""The servers behind the proxies: nginx for HTTP, real uWSGI for uwsgi."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.procs import Process, free_port, wait_connect, wait_http
from benchmarks.tools import Tools
from benchmarks.workloads import HELLO, KB64, MB1, MB10, MB100, MB300

APP = Path(__file__).with_name("app.py")
_FILES = {"64k": KB64, "1m": MB1, "10m": MB10, "100m": MB100, "300m": MB300}

NGINX_HEAD = """
daemon off;
worker_processes 1;
{user}
pid {directory}/nginx.pid;
error_log stderr crit;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
http {{
  default_type text/plain;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  client_header_timeout 600s;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  uwsgi_temp_path {directory}/uwsgi;
  fastcgi_temp_path {directory}/fastcgi;
  scgi_temp_path {directory}/scgi;
"""

_HTTP_ORIGIN = """
  access_log off;
  open_file_cache max=16 inactive=600s;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{hello}"; }}
    location /body/ {{ root {directory}; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the nodes listen: ``http`` and ``uwsgi_tcp`` are ports, ``uwsgi_unix`` a path.

    ``files``: the directory of what contenders send themselves.
    """

    http: int = 0
    uwsgi_tcp: int = 0
    uwsgi_unix: str = ""
    files: str = ""


def nginx_head(directory: Path) -> str:
    """The part of an nginx configuration that proxies and origin share, up to ``http {``'s rest."""
    user = "user root;" if os.geteuid() == 0 else ""
    return NGINX_HEAD.format(directory=directory, user=user, files=18000)


def start_http_origin(tools: Tools, directory: Path, core: int) -> tuple[Process, int]:
    """nginx with a constant answer and files under /body/; (process, port). StartError."""
    body = directory / "body"
    body.mkdir(parents=True)
    for name, size in _FILES.items():
        with (body / name).open("wb") as file:
            file.truncate(size)  # sparse: read from the page cache like any other
    port = free_port()
    config = directory / "origin.conf"
    config.write_text(
        nginx_head(directory)
        + _HTTP_ORIGIN.format(port=port, hello=HELLO.decode(), directory=directory)
    )
    argv = [*tools.commands["nginx"], "-p", str(directory), "-c", str(config)]
    process = Process("nginx as origin", argv, directory / "origin.log", core=core)
    try:
        wait_http(process, ("127.0.0.1", port))
    except BaseException:
        process.stop()
        raise
    return process, port


def uwsgi_command(tools: Tools, *options: str, processes: int = 1) -> list[str]:
    """uWSGI as the application server of `benchmarks.app`, quiet."""
    return [
        *tools.commands["uwsgi"],
        "--master",
        f"--processes={processes}",
        "--die-on-term",
        "--need-app",
        "--disable-logging",
        "--socket-timeout=600",  # its 4 seconds would cut a response whose reader stands still
        f"--listen={backlog()}",
        f"--wsgi-file={APP}",
        *options,
    ]


def backlog() -> int:
    """The longest accept queue that the kernel allows, at most 1024 (uWSGI refuses more)."""
    return min(1024, int(Path("/proc/sys/net/core/somaxconn").read_text()))


def start_uwsgi_origin(tools: Tools, directory: Path, core: int) -> tuple[Process, int, str]:
    """Real uWSGI on TCP and a unix socket at once; (process, port, path). StartError."""
    directory.mkdir(parents=True)
    port, path = free_port(), str(directory / "app.sock")
    argv = uwsgi_command(tools, f"--socket=127.0.0.1:{port}", f"--socket={path}")
    process = Process("uWSGI as origin", argv, directory / "origin.log", core=core)
    try:
        wait_connect(process, path)
        wait_connect(process, ("127.0.0.1", port))
    except BaseException:
        process.stop()
        raise
    return process, port, path
