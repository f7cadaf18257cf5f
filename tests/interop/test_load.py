"""Load tools as clients: ab (HTTP/1.0 keep-alive), wrk, h2load, slowhttptest."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest
from support.uwgate import Gateway, running

from interop.clients import Client, fetch
from interop.peers import Peer, needs


@pytest.fixture(scope="module", params=["uwsgi", "http"])
def front(request: pytest.FixtureRequest, uwsgi_app: Peer, gunicorn_app: Peer) -> Iterator[Gateway]:
    node = uwsgi_app.address if request.param == "uwsgi" else f"http://{gunicorn_app.address}"
    with running("--http-to", node) as gateway:
        yield gateway


def run(*argv: str, limit: float = 60) -> str:
    """Output of a tool that has to succeed."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match, text
    return int(match[1])


def test_ab_with_keep_alive(front: Gateway) -> None:
    """ab speaks HTTP/1.0 with ``Connection: Keep-Alive`` and wants it answered in kind."""
    url = f"http://127.0.0.1:{front.port}/download?size=500"
    said = run(needs("ab"), "-q", "-k", "-n", "300", "-c", "8", url)
    assert number(r"Complete requests: +(\d+)", said) == 300
    assert number(r"Failed requests: +(\d+)", said) == 0
    assert number(r"Keep-Alive requests: +(\d+)", said) == 300
    assert "Non-2xx" not in said


def test_ab_without_keep_alive(front: Gateway) -> None:
    url = f"http://127.0.0.1:{front.port}/unframed?size=500"
    said = run(needs("ab"), "-q", "-n", "200", "-c", "8", url)
    assert number(r"Complete requests: +(\d+)", said) == 200
    assert number(r"Failed requests: +(\d+)", said) == 0


def test_wrk(front: Gateway) -> None:
    url = f"http://127.0.0.1:{front.port}/download?size=500"
    said = run(needs("wrk"), "-t", "1", "-c", "16", "-d", "1s", url)
    assert number(r"(\d+) requests in", said) > 50
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said


def test_h2load_over_http_1_1(front: Gateway) -> None:
    url = f"http://127.0.0.1:{front.port}/unframed?size=500"
    said = run(needs("h2load"), "--h1", "-n", "300", "-c", "8", url)
    assert number(r"(\d+) succeeded", said) == 300


@pytest.fixture(scope="module")
def strict(uwsgi_app: Peer) -> Iterator[Gateway]:
    """A gateway with a short deadline for heads."""
    options = ["--http-headers-timeout", "2", "--http-timeout", "30"]
    with running("--http-to", uwsgi_app.address, *options) as gateway:
        yield gateway


def slow(gateway: Gateway, *options: str) -> str:
    """slowhttptest's last words; it ends by itself once every connection is closed."""
    url = f"http://127.0.0.1:{gateway.port}/digest"
    tool = needs("slowhttptest")
    return run(tool, "-u", url, "-i", "1", "-p", "3", "-l", "50", *options, limit=70)


def test_slowloris_dies_by_the_deadline(strict: Gateway) -> None:
    """A byte now and then does not extend the time for the head."""
    said = slow(strict, "-H", "-c", "20", "-r", "50", "-x", "8")
    assert "No open connections left" in said, said
    assert number(r"Test ended on (\d+)(?:st|nd|rd|th) second", said) <= 12
    assert fetch(strict.port, "/").status == 200


def test_slow_body_dies_by_its_rate(strict: Gateway) -> None:
    """A few bytes a second are below the least rate, although no pause is long."""
    said = slow(strict, "-B", "-c", "4", "-r", "20", "-s", "8192", "-x", "5")
    assert "No open connections left" in said, said
    assert number(r"Test ended on (\d+)(?:st|nd|rd|th) second", said) <= 40
    assert fetch(strict.port, "/").status == 200


def test_slow_head_gets_a_408(strict: Gateway) -> None:
    with strict.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-")
        assert client.read_response().status == 408
        client.assert_closed()


def test_many_connections_at_once(strict: Gateway) -> None:
    """More at a time than uWSGI's backlog of 100 holds: they wait, nobody is turned away."""
    clients = [Client(strict.port) for _ in range(200)]
    try:
        for client in clients:
            client.start("GET", "/")
            client.finish()
        assert [client.response().status for client in clients] == [200] * 200
    finally:
        for client in clients:
            client.close()
