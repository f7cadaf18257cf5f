"""Peers that are started once for all interop tests, and gateways in front of them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.uwgate import Gateway, running
from support.waiting import free_port
from support.zygote import untraced

from interop import peers
from interop.echoserver import serve_echo
from interop.peers import Gate, Peer


@pytest.fixture(scope="module", autouse=True)
def unmeasured() -> Iterator[None]:
    """Coverage of processes doubles the cost of each start, and tests/wire shows the same lines."""
    with untraced(), pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session")
def uwsgi_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Real uWSGI on a unix socket, an abstract one (its trailing NUL) and TCP, in that order."""
    where = tmp_path_factory.mktemp("uwsgi")
    addresses = [
        str(where / "app.sock"),
        f"@uwgate-interop-{os.getpid()}",
        f"127.0.0.1:{free_port()}",
    ]
    with peers.uwsgi(where, *addresses) as app:
        yield app


@pytest.fixture(scope="module")
def router(uwsgi_app: Peer) -> Iterator[Gateway]:
    """A gateway with default options before the uWSGI application's unix socket."""
    with running("--http-to", uwsgi_app.address) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def gunicorn_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """gunicorn with threads, speaking HTTP on TCP."""
    with peers.gunicorn(tmp_path_factory.mktemp("gunicorn"), tcp=True) as app:
        yield app


@pytest.fixture(scope="session")
def echo_server() -> Iterator[str]:
    """``host:port`` of a WebSocket echo server that speaks HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_echo, args=(listener,))
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate for ``?gate=``."""
    return Gate(tmp_path / "gate")
