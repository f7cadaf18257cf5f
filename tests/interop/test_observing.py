"""http-stats with the tools that operators use: uwsgitop, curl, a Prometheus scraper's eyes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

from interop.clients import fetch
from interop.observing import probe, stats, wait_ready
from interop.peers import Peer, curl, script

SAMPLE = re.compile(r'[a-z_:][a-z0-9_:]*(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)*\})? [0-9.eE+-]+')


@pytest.fixture(scope="module")
def watched(uwsgi_app: Peer) -> Iterator[tuple[Gateway, str]]:
    """A gateway with two workers and ``http-stats``; 20 requests were made."""
    address = f"127.0.0.1:{free_port()}"
    options = ["--http-to", uwsgi_app.address, "--http-processes", "2", "--http-stats", address]
    with running(*options) as gateway:
        wait_ready(address, 2)
        for _ in range(20):
            assert fetch(gateway.port, "/").status == 200
        yield gateway, address


def test_json_on_a_plain_connection(watched: tuple[Gateway, str], uwsgi_app: Peer) -> None:
    gateway, address = watched
    document = stats(address)
    assert f"127.0.0.1:{gateway.port}" in document["http"]
    node = document["static_nodes"][0]
    assert (node["name"], node["hits"], node["grace"]) == (uwsgi_app.address, 20, 0)
    assert document["cheap"] == 0
    assert sum(worker["requests"] for worker in document["workers"]) == 20


def test_the_same_address_answers_http(watched: tuple[Gateway, str]) -> None:
    _, address = watched
    assert json.loads(curl("--fail", f"http://{address}/").stdout)["pid"] > 0
    assert probe(address, "/healthz") == 200
    assert probe(address, "/readyz") == 200
    assert probe(address, "/nothing") == 404


def test_prometheus_text(watched: tuple[Gateway, str]) -> None:
    _, address = watched
    done = curl("--fail", "-D", "-", f"http://{address}/metrics")
    head, body = done.stdout.decode().split("\r\n\r\n", 1)
    assert "text/plain; version=0.0.4" in head.lower()
    samples = [line for line in body.splitlines() if line and not line.startswith("#")]
    assert samples
    for line in samples:
        assert SAMPLE.fullmatch(line), line
    requests = [line for line in samples if line.startswith("uwgate_requests_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in requests) == 20


def read_screen(fd: int, wanted: bytes) -> bytes:
    """What a full-screen program wrote until ``wanted`` appeared (or 10 s passed)."""
    screen, end = b"", time.monotonic() + 10
    while wanted not in screen and time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            screen += os.read(fd, 65536)
    return screen


def test_uwsgitop(watched: tuple[Gateway, str]) -> None:
    _, address = watched
    pid = stats(address)["workers"][0]["pid"]
    main, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    process = subprocess.Popen(
        [script("uwsgitop"), address],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(terminal)
    try:
        screen = read_screen(main, str(pid).encode())
        assert str(pid).encode() in screen, screen.decode(errors="replace")
        os.write(main, b"q")
        read_screen(main, b"\x1b[?1049l")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


def test_request_log(uwsgi_app: Peer) -> None:
    """uWSGI's ``log-format``; control bytes of a client are escaped."""
    line = "%(method) %(uri) %(status) %(rsize) ref=%(referer)"
    with running("--http-to", uwsgi_app.address, "--log-format", line) as gateway:
        target = "/download?size=321"
        reply = fetch(gateway.port, target, fields=[("Referer", "a\tb")])
        assert reply.status == 200
        wanted = f"GET {target} 200 321 ref=a"
        wait_until(lambda: wanted in gateway.log, "the log line")
        assert "a\tb" not in gateway.log
