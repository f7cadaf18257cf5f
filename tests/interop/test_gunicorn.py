"""gunicorn as a node: over HTTP with pooled connections, and over the uwsgi protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.uwgate import Gateway, running

from interop import peers
from interop.apps.workhorse import blob, blob_digest
from interop.clients import Client, fetch
from interop.peers import Gate, Peer

SIZE = 10 << 20


@pytest.fixture(scope="module")
def pooled(gunicorn_app: Peer) -> Iterator[Gateway]:
    with running("--http-to", f"http://{gunicorn_app.address}") as gateway:
        yield gateway


@pytest.fixture(scope="module", params=["http-gthread", "http-sync", "uwsgi-gthread", "uwsgi-sync"])
def any_gunicorn(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """gunicorn on a unix socket, in each of its protocols and with two kinds of worker."""
    protocol, worker = str(request.param).split("-")
    where = tmp_path_factory.mktemp(request.param)
    with peers.gunicorn(where, protocol=protocol, worker=worker) as app:
        prefix = "http://" if protocol == "http" else ""
        with running("--http-to", prefix + app.address) as gateway:
            yield gateway


def test_connections_are_reused(pooled: Gateway) -> None:
    """The port gunicorn sees is that of the pooled connection."""
    ports = {fetch(pooled.port, "/").json()["REMOTE_PORT"] for _ in range(10)}
    assert len(ports) == 1


def test_forwarded_fields(pooled: Gateway) -> None:
    seen = fetch(pooled.port, "/", fields=[("X-Forwarded-For", "203.0.113.9")]).json()
    assert seen["HTTP_X_FORWARDED_FOR"] == "127.0.0.1", "an untrusted client's own is not kept"
    assert seen["HTTP_X_FORWARDED_PROTO"] == "http"
    assert seen["HTTP_HOST"] == f"127.0.0.1:{pooled.port}"


def test_node_that_expects_and_continues(pooled: Gateway) -> None:
    """``Expect`` passes through; gunicorn's 100 comes back before the body is sent."""
    with Client(pooled.port) as client:
        client.start("POST", "/echo", [("Content-Length", "4"), ("Expect", "100-continue")])
        event = client.event()
        assert getattr(event, "status_code", 0) == 100
        client.send(b"body")
        client.finish()
        assert client.response().body == b"body"


def test_basic_exchanges(any_gunicorn: Gateway) -> None:
    with Client(any_gunicorn.port) as client:
        seen = client.request("GET", "/a%20b?q=1").json()
        assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/a b", "q=1")
        assert client.request("POST", "/echo", body=b"posted").body == b"posted"
        assert client.request("HEAD", "/download?size=9").body == b""
        assert client.request("GET", "/status?code=204").status == 204
        assert client.request("GET", "/status?code=304").status == 304
        assert client.request("GET", "/after").json()["PATH_INFO"] == "/after"


def test_chunked_request(any_gunicorn: Gateway) -> None:
    """To an HTTP node it stays chunked, to a uwsgi node it gets a length."""
    parts = [b"abc", b"d" * 10000]
    reply = fetch(any_gunicorn.port, "/drain", method="POST", body=iter(parts))
    assert reply.json()["length"] == 10003


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_upload(any_gunicorn: Gateway, chunked: bool) -> None:
    with Client(any_gunicorn.port) as client:
        framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(SIZE))
        client.start("POST", "/drain", [framing])
        for part in blob(SIZE):
            client.send(part)
        client.finish()
        seen = client.response().json()
    assert (seen["length"], seen["sha256"]) == (SIZE, blob_digest(SIZE))


def test_downloads(any_gunicorn: Gateway) -> None:
    with Client(any_gunicorn.port) as client:
        for kind in ("download", "unframed"):
            reply = client.request("GET", f"/{kind}?size={SIZE}", keep=False)
            assert (reply.size, reply.sha256) == (SIZE, blob_digest(SIZE)), kind


def test_stream(any_gunicorn: Gateway, gate: Gate) -> None:
    with Client(any_gunicorn.port) as client:
        client.start("GET", f"/stream?gate={gate.path}")
        client.finish()
        assert client.head().status == 200
        parts = client.parts()
        assert next(parts) == b"first\n"
        gate.open()
        assert b"".join(parts) == b"second\n"


def test_recycled_workers_cost_no_request(tmp_path: Path) -> None:
    """A worker that ends after a few requests closes pooled connections: no GET may notice."""
    with (
        peers.gunicorn(tmp_path, options=["--max-requests", "5"]) as app,
        running("--http-to", f"http://{app.address}") as gateway,
        Client(gateway.port) as client,
    ):
        pids = set()
        for _ in range(40):
            reply = client.request("GET", "/name")
            assert reply.status == 200
            pids.add(reply.json()["pid"])
    assert len(pids) > 2
