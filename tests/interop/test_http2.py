"""HTTP/2 of real clients (curl, nghttp, h2load) before real uWSGI and gunicorn."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

from interop.peers import Peer, accepts, needs


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module", params=["uwsgi", "gunicorn"])
def gateway(
    request: pytest.FixtureRequest, uwsgi_app: Peer, gunicorn_app: Peer, authority: Authority
) -> Iterator[tuple[Gateway, int]]:
    """In clear text, and with TLS on the port that comes with it."""
    app = uwsgi_app.address if request.param == "uwsgi" else f"http://{gunicorn_app.address}"
    pair, port = authority.issue("one.test"), free_port()
    secure = ("--https", f"127.0.0.1:{port},{pair.cert},{pair.key}")
    with running("--http-to", app, *secure) as found:
        wait_until(lambda: accepts(f"127.0.0.1:{port}"), "the listener")
        yield found, port


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_curl(gateway: tuple[Gateway, int], tmp_path: Path) -> None:
    it, port = gateway
    body = tmp_path / "body"
    body.write_bytes(bytes(range(256)) * 4000)
    curl = [needs("curl"), "-sk", "--max-time", "20", "-w", "\n%{http_code} %{http_version}"]
    for where in (
        ["--http2-prior-knowledge", f"http://{it.authority}"],
        ["--http2", f"https://127.0.0.1:{port}"],
    ):
        *options, base = where
        text, _, code = run(*curl, *options, f"{base}/env?a=b").rpartition("\n")
        assert code == "200 2"
        seen = json.loads(text)
        assert seen["QUERY_STRING"] == "a=b"
        assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"
        # Of an application that reads it: curl 7 gets stuck in a body whose answer comes early.
        assert run(*curl, *options, "-T", str(body), f"{base}/digest").endswith("\n200 2")
        assert run(*curl, *options, "-I", f"{base}/env").endswith("\n200 2")


def test_nghttp(gateway: tuple[Gateway, int]) -> None:
    """Many resources at once, as of a page."""
    it, port = gateway
    nghttp = needs("nghttp")
    for base in (f"http://{it.authority}", f"https://127.0.0.1:{port}"):
        words = [f"{base}/env?n={number}" for number in range(60)]
        found = run(nghttp, "-nv", "--no-verify-peer", *words)
        assert len(re.findall(r"recv \(stream_id=\d+\) :status: 200", found)) == 60


def test_h2load(gateway: tuple[Gateway, int], tmp_path: Path) -> None:
    it, port = gateway
    body = tmp_path / "body"
    body.write_bytes(b"x" * 100_000)
    h2load = needs("h2load")
    for base in (f"http://{it.authority}", f"https://127.0.0.1:{port}"):
        for options in (["-n", "600", "-m", "100"], ["-n", "60", "-m", "10", "-d", str(body)]):
            found = run(h2load, "-c", "4", *options, f"{base}/digest")
            assert re.search(r"requests: (\d+) total, .* \1 succeeded, 0 failed", found), found
