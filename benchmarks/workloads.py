"""What is measured: one row a workload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from benchmarks import heads
from benchmarks.heads import MANY

NodeKind = Literal["http", "uwsgi-unix", "uwsgi-tcp", "files"]
GatewayKind = Literal["http", "fastrouter"]
HELLO = b"Hello, world!"
KB64, MB1, MB10, MB100, MB300, GB1 = 65536, 1 << 20, 10 << 20, 100 << 20, 300 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Handshake:
    """TLS ``version`` ("1.2", "1.3"), and whether a session is resumed."""

    version: str
    resume: bool


@dataclass(frozen=True, slots=True)
class Workload:
    """One row: the heads that are sent, to which kind of node, over how many connections.

    ``unit`` says what CPU time is divided by. ``body`` is the size that every response body must
    have, in bytes. ``limits`` are the ratios uwgate / peer that the project promises, by peer.
    ``gateway``: what is compared; fastrouters have nginx with ``uwsgi_pass`` before them, on the
    core of the load. ``ours``: the peer that the others are compared with. ``tls``: clients speak
    it to the proxy. ``handshake``: every request has a connection of its own, whose handshake is a
    full one or resumes a session (`benchmarks.tls_client`, not wrk, makes them). ``seconds``: the
    least that a cell takes. ``node`` "files": there is none, the contenders send files themselves.
    """

    name: str
    title: str
    node: NodeKind
    heads: tuple[str, ...]
    peers: tuple[str, ...]
    connections: int = 64
    unit: Literal["request", "GB"] = "request"
    body: int = len(HELLO)
    log: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    p99_limits: Mapping[str, float] = field(default_factory=dict)
    gateway: GatewayKind = "http"
    ours: str = "uwgate"
    tls: bool = False
    handshake: Handshake | None = None
    seconds: int = 0


_HTTP = ("uwgate", "nginx", "nginx-fresh", "haproxy")
_LEAN = ("uwgate", "nginx", "haproxy")
_BULK = ("uwgate", "nginx-bulk", "nginx", "haproxy")
_UWSGI = ("uwgate", "nginx", "uwsgi")
_UWSGI_BULK = ("uwgate", "nginx-bulk", "nginx", "uwsgi")
_FAST = ("uwgate", "uwsgi")
_FILES = ("uwgate", "nginx")
_FASTROUTER = {"uwsgi": 0.9}
# Durations are measured where nodes are subscribed, and the key is looked up.
_ANNOUNCED = {"uwgate": 1.15}
_SUBSCRIBED = ("uwgate-subscribed", "uwgate", "nginx")
_EQUAL = {"nginx": 1.0, "haproxy": 1.0}
_BROWSER = {"nginx": 1.05, "haproxy": 1.05}
_UNIQUE = {"nginx": 1.2, "haproxy": 1.2}
_BODY = {"nginx-bulk": 0.95, "haproxy": 0.8}
_UNIX = {"nginx": 0.95, "uwsgi": 0.8}
_TCP = {"nginx": 1.0, "uwsgi": 0.95}
_P99 = {"nginx": 1.2}


_TLS_FULL = {"nginx": 1.2}
_TLS_RESUMED = {"1.3": {"nginx": 1.25}, "1.2": {"nginx": 1.5}}


def _handshakes(version: str, *, resume: bool) -> Workload:
    kind = "resumed" if resume else "full"
    return Workload(
        f"tls-{kind}-{version.replace('.', '')[-2:]}",
        f"a new TLS {version} connection for every request, {kind} handshakes",
        "http",
        (heads.TINY,),
        _LEAN,
        16,
        limits=_TLS_RESUMED[version] if resume else _TLS_FULL,
        tls=True,
        handshake=Handshake(version, resume),
    )


def _get(target: str, *, close: bool = False) -> tuple[str, ...]:
    lines = f"GET {target} HTTP/1.1\nHost: www.example.com\n"
    return (lines + ("Connection: close\n" if close else ""),)


def _static(name: str, what: str, limit: float, body: int, connections: int = 64) -> Workload:
    """Files that nginx sends as well, named as the workload is; TLS where its name says so."""
    tls = name.startswith("tls-")
    target = name.removeprefix("tls-")
    return Workload(
        name,
        what,
        "files",
        _get(f"/{target}/<file>" if target == "static-many" else f"/{target}"),
        ("uwgate", "nginx-bulk", "nginx") if tls else _FILES,
        connections,
        "GB" if body >= KB64 else "request",
        body,
        limits={"nginx": limit},
        tls=tls,
        seconds=4 if body >= GB1 else 0,
    )


_BROWSER_HEAD = "Chrome's head (about 640 bytes)"

WORKLOADS = (
    Workload(
        "tiny",
        "13-byte response, keep-alive, head of one line",
        "http",
        (heads.TINY,),
        _HTTP,
        limits=_EQUAL,
        p99_limits=_P99,
    ),
    Workload(
        "browser",
        f"{_BROWSER_HEAD}, one path",
        "http",
        (heads.BROWSER,),
        _LEAN,
        limits=_BROWSER,
        p99_limits=_P99,
    ),
    Workload(
        "varying",
        f"{_BROWSER_HEAD}, a new path in every request",
        "http",
        (heads.VARYING,),
        _LEAN,
        limits=_BROWSER,
        p99_limits=_P99,
    ),
    Workload(
        "unique",
        "the same plus a unique X-Request-Id",
        "http",
        (heads.UNIQUE,),
        _LEAN,
        limits=_UNIQUE,
        p99_limits=_P99,
    ),
    Workload(
        "unique2",
        "the same plus a unique traceparent as well",
        "http",
        (heads.UNIQUE2,),
        _LEAN,
        p99_limits=_P99,
    ),
    Workload(
        "mixed",
        "heads of curl, health checks and SDKs in turn",
        "http",
        heads.MIXED,
        _LEAN,
        p99_limits=_P99,
    ),
    Workload(
        "log",
        f"{_BROWSER_HEAD}, new paths, request log to a file",
        "http",
        (heads.VARYING,),
        _LEAN,
        log=True,
        p99_limits=_P99,
    ),
    Workload(
        "close",
        "a new connection for every request",
        "http",
        _get("/", close=True),
        _LEAN,
    ),
    Workload(
        "body64k",
        "64 KB bodies",
        "http",
        _get("/body/64k"),
        _BULK,
        64,
        "GB",
        KB64,
        limits=_BODY,
    ),
    Workload("body1m", "1 MB bodies", "http", _get("/body/1m"), _BULK, 16, "GB", MB1, limits=_BODY),
    Workload(
        "body100m",
        "100 MB bodies",
        "http",
        _get("/body/100m"),
        _BULK,
        4,
        "GB",
        MB100,
        limits=_BODY,
    ),
    Workload(
        "uwsgi-tiny",
        "13-byte response, unix socket",
        "uwsgi-unix",
        (heads.TINY,),
        _UWSGI,
        limits=_UNIX,
        p99_limits=_P99,
    ),
    Workload(
        "uwsgi-varying",
        f"{_BROWSER_HEAD}, new paths, unix socket",
        "uwsgi-unix",
        (heads.VARYING,),
        _UWSGI,
        p99_limits=_P99,
    ),
    Workload(
        "uwsgi-unique",
        "the same plus a unique X-Request-Id",
        "uwsgi-unix",
        (heads.UNIQUE,),
        _UWSGI,
        p99_limits=_P99,
    ),
    Workload(
        "uwsgi-mixed",
        "heads of curl, health checks and SDKs in turn, unix socket",
        "uwsgi-unix",
        heads.MIXED,
        _UWSGI,
        p99_limits=_P99,
    ),
    Workload(
        "uwsgi-close",
        "a new connection for every request, unix socket",
        "uwsgi-unix",
        _get("/", close=True),
        _UWSGI,
    ),
    Workload(
        "uwsgi-body64k",
        "64 KB bodies, unix socket",
        "uwsgi-unix",
        _get("/body/64k"),
        _UWSGI_BULK,
        64,
        "GB",
        KB64,
    ),
    Workload(
        "uwsgi-body1m",
        "1 MB bodies, unix socket",
        "uwsgi-unix",
        _get("/body/1m"),
        _UWSGI_BULK,
        16,
        "GB",
        MB1,
    ),
    Workload(
        "uwsgi-tcp-tiny",
        "13-byte response, TCP node",
        "uwsgi-tcp",
        (heads.TINY,),
        _UWSGI,
        limits=_TCP,
        p99_limits=_P99,
    ),
    Workload(
        "fast-unix",
        f"fastrouter, {_BROWSER_HEAD}, new paths, unix sockets",
        "uwsgi-unix",
        (heads.VARYING,),
        _FAST,
        limits=_FASTROUTER,
        gateway="fastrouter",
    ),
    Workload(
        "fast-tcp",
        f"fastrouter, {_BROWSER_HEAD}, new paths, TCP",
        "uwsgi-tcp",
        (heads.VARYING,),
        _FAST,
        limits=_FASTROUTER,
        gateway="fastrouter",
    ),
    Workload(
        "fast-tiny",
        "fastrouter, head of one line, unix sockets",
        "uwsgi-unix",
        (heads.TINY,),
        _FAST,
        limits=_FASTROUTER,
        gateway="fastrouter",
    ),
    Workload(
        "fast-body64k",
        "fastrouter, 64 KB bodies, unix sockets",
        "uwsgi-unix",
        _get("/body/64k"),
        _FAST,
        64,
        "GB",
        KB64,
        gateway="fastrouter",
    ),
    Workload(
        "subscribed-tiny",
        "a node that announced itself beside one of http-to, head of one line",
        "http",
        (heads.TINY,),
        _SUBSCRIBED,
        limits=_ANNOUNCED,
        ours="uwgate-subscribed",
    ),
    Workload(
        "subscribed-uwsgi-tiny",
        "the same, unix socket",
        "uwsgi-unix",
        (heads.TINY,),
        _SUBSCRIBED,
        limits=_ANNOUNCED,
        ours="uwgate-subscribed",
    ),
    Workload(
        "tls-keepalive",
        f"{_BROWSER_HEAD} over TLS, one path",
        "http",
        (heads.BROWSER,),
        _LEAN,
        limits=_EQUAL,
        tls=True,
    ),
    _handshakes("1.3", resume=False),
    _handshakes("1.2", resume=False),
    _handshakes("1.3", resume=True),
    _handshakes("1.2", resume=True),
    Workload(
        "tls-10m",
        "10 MB bodies over TLS",
        "http",
        _get("/body/10m"),
        _BULK,
        8,
        "GB",
        MB10,
        limits={"nginx": 0.85},
        tls=True,
    ),
    _static("static-1k", "a file of 1 KB", 0.8, 1024),
    _static("static-64k", "a file of 64 KB", 0.85, KB64),
    _static("static-10m", "a file of 10 MB", 0.85, MB10, 8),
    _static("static-1g", "a file of 1 GB", 0.85, GB1, 2),
    _static("static-many", f"{MANY:,} files of 4 KB, another in every request", 1.0, 4096),
    _static("tls-static-10m", "a file of 10 MB over TLS", 0.85, MB10, 8),
)

EXTRAS = ("idle", "tls-idle", "stalled", "files")  # measured apart: memory, not speed


def select(names: Iterable[str]) -> tuple[list[Workload], list[str]]:
    """(workloads, extras) whose name matches one of the shell patterns ``names``; ValueError."""
    wanted: set[str] = set()
    everything = [row.name for row in WORKLOADS] + list(EXTRAS)
    for pattern in names:
        hits = [name for name in everything if fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(
                f"no workload is called {pattern!r}; there are {', '.join(everything)}"
            )
        wanted.update(hits)
    return [row for row in WORKLOADS if row.name in wanted], [n for n in EXTRAS if n in wanted]
