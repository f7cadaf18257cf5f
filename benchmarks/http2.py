"""``python -m benchmarks.http2``: HTTP/2 clients before an HTTP node, beside nginx and HAProxy.

h2load (Debian: nghttp2-client) sends browser-like requests for 3,000 paths; what counts is the CPU
time of each proxy, which run one process or thread on a core of their own, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import certificates
from benchmarks.certificates import Pair
from benchmarks.figures import paired_ratios, per_gigabyte_seconds, per_request_micros, spread
from benchmarks.heads import CHROME_FIELDS
from benchmarks.memory import raise_file_limit
from benchmarks.origins import nginx_head, start_http_origin
from benchmarks.peers import ROOT
from benchmarks.procs import (
    Process,
    StartError,
    cores,
    cpu_nanos,
    family,
    free_port,
    on_core,
    rss_bytes,
    trusting,
    wait_connect,
)
from benchmarks.tools import Tools, find_tools
from uwgate.protocols.hpack import encode
from uwgate.protocols.http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    Frame,
    FrameReader,
    frame,
)

PATHS = 3_000
IDLE = 1_000
IDLE_LIMIT = 64  # KB
MB = 1 << 20

_DONE = re.compile(r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed")
_DATA = re.compile(r"\((\d+)\) data")


class LoadError(Exception):
    """The load failed, or some of its requests did."""


@dataclass(frozen=True, slots=True)
class Work:
    """``connections`` with ``streams`` each. ``body``: bytes that are asked for, 0: a greeting.
    ``limits``: of our CPU time to that of a peer."""

    name: str
    connections: int
    streams: int
    tls: bool = False
    body: int = 0
    limits: dict[str, float] = field(default_factory=dict)


WORKS = (
    Work("h2c", 16, 10, limits={"nginx": 0.75, "haproxy": 1.25}),
    Work("h2", 16, 10, tls=True, limits={"nginx": 0.75, "haproxy": 1.1}),
    Work("h2c-single", 64, 1, limits={"nginx": 0.95}),
    Work("h2c-1m", 4, 4, body=MB, limits={"nginx": 1.0}),
)


def _nginx(directory: Path, port: int, node: int, pair: Pair | None) -> list[str]:
    tls = f"ssl_certificate {pair.cert}; ssl_certificate_key {pair.key};" if pair else ""
    config = directory / "nginx.conf"
    config.write_text(
        f"{nginx_head(directory)}  access_log off;\n"
        f"  upstream node {{ server 127.0.0.1:{node}; keepalive 128;"
        " keepalive_requests 1000000000; }\n"
        f"  server {{ listen 127.0.0.1:{port}{' ssl' if pair else ''} http2 backlog=4096; {tls}\n"
        "    keepalive_requests 1000000000;\n"
        "    location / { proxy_pass http://node; proxy_http_version 1.1;"
        ' proxy_set_header Connection ""; proxy_set_header Host $http_host;'
        " proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
        " proxy_set_header X-Forwarded-Proto $scheme;"
        " proxy_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k;"
        " proxy_busy_buffers_size 128k; }\n  }\n}\n"
    )
    return ["-p", str(directory), "-c", str(config)]


def _haproxy(directory: Path, port: int, node: int, pair: Pair | None) -> list[str]:
    bind = f"ssl crt {pair.both} alpn h2" if pair else "proto h2"
    config = directory / "haproxy.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 15000\n  no strict-limits\n"
        "defaults\n  mode http\n  option http-keep-alive\n  http-reuse always\n"
        "  option forwardfor\n  timeout connect 10s\n  timeout client 600s\n"
        "  timeout server 600s\n"
        f"frontend front\n  bind 127.0.0.1:{port} backlog 4096 {bind}\n"
        f"  http-request set-header X-Forwarded-Proto {'https' if pair else 'http'}\n"
        f"  default_backend nodes\nbackend nodes\n  server node 127.0.0.1:{node}\n"
    )
    return ["-db", "-q", "-f", str(config)]


def _uwgate(directory: Path, port: int, node: int, pair: Pair | None) -> list[str]:
    listen = f"--https=127.0.0.1:{port},{pair.cert},{pair.key}" if pair else ""
    listen = listen or f"--http=127.0.0.1:{port}"
    return [listen, f"--http-to=http://127.0.0.1:{node}", "--http-processes=1"]


PEERS = {"uwgate": _uwgate, "nginx": _nginx, "haproxy": _haproxy}


@contextlib.contextmanager
def proxy(
    tools: Tools, name: str, directory: Path, core: int, node: int, pair: Pair | None
) -> Iterator[tuple[Process, int]]:
    """One of them, listening."""
    directory.mkdir(parents=True)
    port = free_port()
    argv = [*tools.commands[name], *PEERS[name](directory, port, node, pair)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = Process(name, argv, directory / "output.log", core=core, env=env)
    try:
        wait_connect(process, ("127.0.0.1", port))
        yield process, port
    finally:
        process.stop()


def write_load(directory: Path, work: Work, port: int) -> list[str]:
    """The words of h2load that ask ``port`` for that."""
    scheme = "https" if work.tls else "http"
    base = f"{scheme}://127.0.0.1:{port}"
    if work.body:
        paths = ["/body/1m"]
    else:
        paths = [f"/shop/item/{number}?ref=list" for number in range(PATHS)]
    uris = directory / f"uris-{port}"
    uris.write_text("".join(f"{base}{path}\n" for path in paths))
    words = ["-t1", f"-c{work.connections}", f"-m{work.streams}", "-i", str(uris)]
    for line in CHROME_FIELDS.replace("\\\n", "").splitlines():
        name, _, value = line.partition(": ")
        if name.lower() not in ("host", "connection"):
            words += ["-H", f"{name.lower()}: {value}"]
    return words


def load(words: list[str], seconds: int, core: int) -> tuple[int, int]:
    """Requests that succeeded, and bytes of bodies; LoadError."""
    argv = ["h2load", *words, f"-D{seconds}", "--warm-up-time=0"]
    with on_core(core):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60)
    counts, data = _DONE.search(done.stdout), _DATA.search(done.stdout)
    if done.returncode or counts is None or data is None:
        raise LoadError(f"h2load: {done.stdout[-300:]} {done.stderr[-300:]}")
    if int(counts[2]):
        raise LoadError(f"{counts[2]} requests failed")
    return int(counts[1]), int(data[1])


def measure(options: argparse.Namespace, tools: Tools, directory: Path) -> bool:
    """All of it, printed as it comes; whether every limit held."""
    proxy_core, load_core = cores()
    pair = certificates.make(directory / "pair")
    names = [name for name in options.peers if tools.has(name)]
    kept = True
    origin, node = start_http_origin(tools, directory / "origin", load_core)
    with origin:
        for work in options.works:
            spent: dict[str, dict[int, float]] = {name: {} for name in names}
            with contextlib.ExitStack() as stack:
                running = {}
                for name in names:
                    place = directory / f"{work.name}-{name}"
                    process, port = stack.enter_context(
                        proxy(tools, name, place, proxy_core, node, pair if work.tls else None)
                    )
                    words = write_load(directory, work, port)
                    load(words, 1, load_core)
                    running[name] = process, words
                for number in range(options.rounds):
                    for name, (process, words) in running.items():
                        before = cpu_nanos(family(process.pid))
                        requests, size = load(words, options.seconds, load_core)
                        cost = cpu_nanos(family(process.pid)) - before
                        spent[name][number] = (
                            per_gigabyte_seconds(cost, size)
                            if work.body
                            else per_request_micros(cost, requests)
                        )
            kept &= _say(work, spent)
    return kept


def _idle_connection(port: int, tls: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection that has made a request."""
    plain = socket.create_connection(("127.0.0.1", port), 10)
    sock = tls.wrap_socket(plain, server_hostname=certificates.HOST)
    settings = frame(SETTINGS, 0, 0)
    block = encode([(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"),
                    (b":authority", certificates.HOST.encode())])  # fmt: skip
    sock.sendall(PREFACE + settings + frame(HEADERS, END_STREAM | END_HEADERS, 1, block))
    reader = FrameReader()
    while not any(each.stream == 1 and each.flags & END_STREAM for each in _frames(sock, reader)):
        pass
    sock.sendall(frame(SETTINGS, ACK, 0))
    return sock


def _frames(sock: ssl.SSLSocket, reader: FrameReader) -> list[Frame]:
    data = sock.recv(65536)
    if not data:
        raise LoadError("a connection that should be idle was closed")
    return reader.feed(data)


def measure_idle(tools: Tools, names: list[str], directory: Path) -> bool:
    """Memory for each connection over TLS that has made a request; whether the limit held."""
    proxy_core, load_core = cores()
    pair, kept = certificates.make(directory / "idle-pair"), True
    tls = trusting()
    tls.set_alpn_protocols(["h2"])
    raise_file_limit()
    print(f"idle: {IDLE} connections over TLS")
    origin, node = start_http_origin(tools, directory / "idle-origin", load_core)
    with origin:
        for name in names:
            place = directory / f"idle-{name}"
            with (
                proxy(tools, name, place, proxy_core, node, pair) as (process, port),
                contextlib.ExitStack() as held,
            ):
                for _ in range(10):
                    held.enter_context(_idle_connection(port, tls))
                before = rss_bytes(family(process.pid))
                for _ in range(IDLE):
                    held.enter_context(_idle_connection(port, tls))
                each = (rss_bytes(family(process.pid)) - before) / IDLE / 1000
                over = name == "uwgate" and each > IDLE_LIMIT
                kept &= not over
                verdict = f"  limit {IDLE_LIMIT}" if name == "uwgate" else ""
                verdict += "  OVER" if over else ""
                print(f"  {name:8} {each:.1f} KB each{verdict}", flush=True)
    return kept


def _say(work: Work, spent: dict[str, dict[int, float]]) -> bool:
    unit = "s/GB" if work.body else "us a request"
    kept = True
    print(f"{work.name}: {work.connections} connections of {work.streams} streams, CPU in {unit}")
    for name, values in spent.items():
        found = spread(list(values.values()))
        line = f"  {name:8} {found.median:8.3g} ({found.low:.3g} to {found.high:.3g})"
        if name != "uwgate" and "uwgate" in spent:
            ratio = spread(paired_ratios(spent["uwgate"], values))
            limit = work.limits.get(name)
            good = limit is None or ratio.median <= limit
            kept &= good
            line += f"  uwgate / {name}: {ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
            line += f"  limit {limit}{'' if good else '  OVER'}" if limit else ""
        print(line, flush=True)
    return kept


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 if a limit was not kept, 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http2", description=__doc__)
    known = {work.name: work for work in WORKS}
    parser.add_argument("--only", default=",".join(known), help="names, with commas")
    parser.add_argument("--peers", default="uwgate,nginx,haproxy", help="names, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a cell (2)")
    parser.add_argument("--idle", action="store_true", help="memory of idle connections, too")
    options = parser.parse_args(argv)
    options.peers = options.peers.split(",")
    try:
        options.works = [known[name] for name in options.only.split(",") if name]
    except KeyError as error:
        parser.error(f"no work is called {error}; there are {', '.join(known)}")
    if shutil.which("h2load") is None:
        print("h2load is missing (Debian: nghttp2-client)", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="uwgate-http2-") as directory:
            kept = measure(options, find_tools(), Path(directory))
            if options.idle:
                kept &= measure_idle(find_tools(), options.peers, Path(directory))
            return 0 if kept else 1
    except (StartError, LoadError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
