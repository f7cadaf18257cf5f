"""Statistics of TLS with the tools that operators use, and beside those of a real uWSGI."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority, Pair
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

from interop.observing import stats, wait_ready
from interop.peers import Peer, accepts, curl, needs, script, uwsgi
from interop.redis_peer import redis_server
from interop.test_observing import SAMPLE, read_screen

WORKERS = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Authority(tmp_path_factory.mktemp("ca")).issue("foobar")


class Scaled:
    """A gateway with so many workers: eight and one cache are the first setup of "Scaling SSL
    connections"."""

    def __init__(self, gateway: Gateway, port: int, address: str, workers: int = WORKERS) -> None:
        self.gateway = gateway
        self.port = port
        self.address = address
        wait_ready(address, workers)

    def cache(self) -> dict[str, Any]:
        (cache,) = stats(self.address)["caches"]
        return cache  # type: ignore[no-any-return]

    def connect(self, *options: str, version: str = "-tls1_2") -> str:
        """A client that reads one response; what ``openssl s_client`` says."""
        done = subprocess.run(
            [
                *(needs("openssl"), "s_client", "-connect", f"127.0.0.1:{self.port}"),
                *(version, "-ign_eof", *options),
            ],
            input=b"GET / HTTP/1.1\r\nHost: foobar\r\nConnection: close\r\n\r\n",
            capture_output=True,
            timeout=20,
        )
        text = done.stdout.decode(errors="replace")
        assert "HTTP/1.1 200" in text, text
        return text


@pytest.fixture(scope="module")
def scaled(
    files: Pair, uwsgi_app: Peer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scaled]:
    port, address = free_port(), f"127.0.0.1:{free_port()}"
    recipe = tmp_path_factory.mktemp("scaled") / "router.ini"
    recipe.write_text(
        f"""\
[uwsgi]
master = true
cache = 20000
cache-blocksize = 4096
ssl-sessions-use-cache = true
ssl-sessions-timeout = 300
https-session-context = foobar
https = 127.0.0.1:{port},{files.cert},{files.key}
http-processes = {WORKERS}
http-to = {uwsgi_app.address}
stats = {address}
"""
    )
    with running("--ini", str(recipe)) as gateway:
        yield Scaled(gateway, port, address)


def test_items_and_hits_increase(scaled: Scaled, tmp_path: Path) -> None:
    """As the chapter says: "items" and "hits" increase, "miss" with a session that is unknown."""
    before = scaled.cache()
    session = str(tmp_path / "session")
    assert "New, TLSv1.2" in scaled.connect("-sess_out", session)
    assert scaled.cache()["items"] == before["items"] + 1
    for _ in range(2 * WORKERS):
        assert "Reused, TLSv1.2" in scaled.connect("-sess_in", session)
    after = scaled.cache()
    assert after["hits"] == before["hits"] + 2 * WORKERS
    assert after["miss"] == before["miss"]
    assert after["items"] == before["items"] + 1
    tls = stats(scaled.address)["tls"]
    assert tls["resumed"]["TLSv1.2"] >= 2 * WORKERS


def test_a_session_of_somebody_else_is_a_miss(
    scaled: Scaled, files: Pair, uwsgi_app: Peer, tmp_path: Path
) -> None:
    session = str(tmp_path / "session")
    port, address = free_port(), f"127.0.0.1:{free_port()}"
    words = ["--cache", "100", "--ssl-sessions-use-cache", "--https-session-context", "foobar"]
    words += ["--https", f"127.0.0.1:{port},{files.cert},{files.key}", "--http-stats", address]
    words += ["--http-to", uwsgi_app.address, "--http-processes", str(WORKERS)]
    with running(*words) as gateway:
        Scaled(gateway, port, address).connect("-sess_out", session)
    before = scaled.cache()["miss"]
    assert "New, TLSv1.2" in scaled.connect("-sess_in", session)
    assert scaled.cache()["miss"] == before + 1


def test_caches_look_like_those_of_a_real_uwsgi(scaled: Scaled, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    options = ("--cache", "20000", "--cache-blocksize", "4096", "--stats", address)
    with uwsgi(tmp_path, f"127.0.0.1:{free_port()}", options=options):
        wait_until(lambda: accepts(address), "stats")
        (theirs,) = stats(address)["caches"]
    ours = scaled.cache()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
        if name not in ("items", "hits", "miss", "full", "last_modified_at"):
            assert ours[name] == value, name


def test_metrics_are_well_formed(scaled: Scaled, files: Pair) -> None:
    body = curl("--fail", f"http://{scaled.address}/metrics").stdout.decode()
    samples = [line for line in body.splitlines() if not line.startswith("#")]
    for line in samples:
        assert SAMPLE.fullmatch(line), line
    ends = [line for line in samples if "certificate_not_after" in line]
    assert ends == [
        'uwgate_tls_certificate_not_after_seconds{source="listener",name="foobar"}'
        f" {int(files.certificate.not_valid_after_utc.timestamp())}"
    ]
    items = re.compile(r'uwgate_cache_items\{cache="default"\} \d+')
    assert any(map(items.fullmatch, samples))


def test_uwsgitop(scaled: Scaled) -> None:
    document = stats(scaled.address)
    main, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    process = subprocess.Popen(
        [script("uwsgitop"), scaled.address],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(terminal)
    try:
        wanted = str(document["workers"][0]["pid"]).encode()
        assert wanted in read_screen(main, wanted)
        os.write(main, b"q")
        read_screen(main, b"\x1b[?1049l")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


@contextmanager
def of_redis(files: Pair, node: Peer, *options: str) -> Iterator[Scaled]:
    """One machine of several, with two workers."""
    port, address = free_port(), f"127.0.0.1:{free_port()}"
    words = ["--https-session-context", "foobar", "--http-processes", "2"]
    words += ["--https", f"127.0.0.1:{port},{files.cert},{files.key}", "--http-stats", address]
    with running(*words, "--http-to", node.address, *options) as gateway:
        yield Scaled(gateway, port, address, 2)


def store(machine: Scaled) -> dict[str, int]:
    return stats(machine.address)["tls"]["store"]  # type: ignore[no-any-return]


def test_sessions_in_redis(files: Pair, uwsgi_app: Peer, tmp_path: Path) -> None:
    session = str(tmp_path / "session")
    with redis_server(tmp_path) as redis:
        # A handshake that does not wait for Redis is a full one: patience for a busy machine.
        words = (f"--ssl-sessions-use-cache={redis.url}", "--ssl-sessions-deadline", "10")
        with (
            of_redis(files, uwsgi_app, *words) as one,
            of_redis(files, uwsgi_app, *words) as two,
        ):
            for machine in (one, two):
                wait_until(lambda machine=machine: store(machine)["connected"] == 2, "Redis")
            assert "New, TLSv1.2" in one.connect("-sess_out", session)
            # It is written behind the handshake.
            wait_until(lambda: redis.command("DBSIZE") == b":1\r\n", "the session is there")
            for _ in range(4):
                assert "Reused, TLSv1.2" in two.connect("-sess_in", session)
            counts = store(two)
            assert counts["hits"] == 4
            assert counts["misses"] == counts["timeouts"] == 0
            body = curl("--fail", f"http://{two.address}/metrics").stdout.decode()
            assert 'uwgate_tls_store_events_total{event="hits"} 4' in body
            assert "uwgate_tls_store_connected_workers 2" in body


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_ticket_keys_in_redis(
    files: Pair, uwsgi_app: Peer, tmp_path: Path, version: str
) -> None:
    session = str(tmp_path / "session")
    with redis_server(tmp_path) as redis:
        option = f"--ssl-ticket-keys={redis.url}"
        with (
            of_redis(files, uwsgi_app, option) as one,
            of_redis(files, uwsgi_app, option) as two,
        ):
            for machine in (one, two):
                found = machine.gateway
                wait_until(lambda found=found: found.log.count("are those in Redis") == 2, "keys")
            assert "New, " in one.connect("-sess_out", session, version=version)
            for _ in range(4):
                assert "Reused, " in two.connect("-sess_in", session, version=version)
