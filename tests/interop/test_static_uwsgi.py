"""Files before a real uWSGI application, and files that it names by uWSGI's own recipe."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.uwgate import Gateway, running

from interop.clients import fetch
from interop.peers import Peer

BIG = random.Random(8).randbytes(1_000_000)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("files").resolve()
    for name, content in (
        ("private/small.txt", b"small"),
        ("private/big.bin", BIG),
        ("public/page.html", b"<p>page"),
        ("outside.txt", b"secret"),
    ):
        path = base / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return base / "private"


@pytest.fixture(scope="module", params=["here", "threads"])
def gateway(request: pytest.FixtureRequest, uwsgi_app: Peer, private: Path) -> Iterator[Gateway]:
    """Configured as one would configure uWSGI."""
    ini = private.parent / f"{request.param}.ini"
    ini.write_text(
        f"""[uwsgi]
        http-to = {uwsgi_app.address}
        check-static = {private.parent}/public
        static-safe = {private}
        collect-header = X-Sendfile X_SENDFILE
        response-route-if-not = empty:${{X_SENDFILE}} static:${{X_SENDFILE}}
        offload-threads = {2 if request.param == "threads" else 0}
        """.replace("        ", "")
    )
    with running(str(ini)) as gateway:
        yield gateway


def test_what_the_application_names(gateway: Gateway, private: Path) -> None:
    for name, content in (("small.txt", b"small"), ("big.bin", BIG)):
        for _ in range(2):
            reply = fetch(gateway.port, f"/named?file={private}/{name}")
            assert (reply.status, reply.body == content) == (200, True)
            assert reply.all("content-disposition") == ["attachment"]
            assert reply.all("set-cookie") == ["seen=1"]
            assert not reply.all("x-sendfile")
        part = fetch(
            gateway.port, f"/named?file={private}/{name}", fields=[("Range", "bytes=1-3")]
        )
        assert (part.status, part.body) == (206, content[1:4])


def test_what_it_must_not_name(gateway: Gateway, private: Path) -> None:
    for name in (f"{private.parent}/outside.txt", f"{private}/../outside.txt", f"{private}/none"):
        reply = fetch(gateway.port, f"/named?file={name}")
        assert reply.status == 404
        assert b"secret" not in reply.body


def test_files_and_the_application(gateway: Gateway) -> None:
    assert fetch(gateway.port, "/page.html").body == b"<p>page"
    assert fetch(gateway.port, "/other").json()["PATH_INFO"] == "/other"
    reply = fetch(gateway.port, "/page.html", method="POST", body=b"x")
    assert reply.json()["PATH_INFO"] == "/page.html"
