"""Real uWSGI as the router of what ``uwgate announce`` announces."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.announced import Announce, Listener, announcing
from support.waiting import free_port, wait_until

from interop import peers

KEY = "app.example"


class Router:
    """uWSGI's HTTP router without nodes of its own."""

    def __init__(self, http: str, subscriptions: str, log: Path) -> None:
        self.http = http
        self.subscriptions = subscriptions
        self._log = log

    def dropped(self, address: str) -> None:
        """Wait until it has dropped that node: for its goodbye, as nobody asks for it meanwhile.
        The router reads that as soon as it gets to it."""
        line = f"{KEY} => marking {address} as failed\n"
        wait_until(lambda: line in self._log.read_text(errors="replace"), line)

    def get(self, path: str = "/name", key: str = KEY) -> str | None:
        """The body of a good answer; None if there is no node (uWSGI hangs up)."""
        connection = http.client.HTTPConnection(self.http, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": key})
            response = connection.getresponse()
            body = response.read().decode()
            return body if response.status == 200 else None
        except (http.client.HTTPException, ConnectionError):
            return None
        finally:
            connection.close()


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    log = tmp_path / "router.log"
    made = Router(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", log)
    argv = [peers.script("uwsgi"), "--master", "--die-on-term", "--http", made.http]
    argv += ["--http-subscription-server", made.subscriptions]
    with peers.peer(argv, [made.http], log):
        yield made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[str]:
    """A uWSGI application server that announces nothing itself."""
    address = f"127.0.0.1:{free_port()}"
    with peers.uwsgi(tmp_path, address, name="node"):
        yield address


@contextlib.contextmanager
def announced(router: Router, address: str, *more: str) -> Iterator[Announce]:
    words = ("--server", router.subscriptions, "--key", KEY, "--addr", address)
    with announcing(*words, "--check-interval", "100ms", *more) as running:
        yield running


def gunicorn_words(address: str, protocol: str) -> list[str]:
    return [
        "--", peers.script("gunicorn"), "--chdir", str(peers.APPS), "--bind", address,
        "--protocol", protocol, "--no-control-socket", "--graceful-timeout", "1",
        "workhorse:application",
    ]  # fmt: skip


def test_announced_routed_and_withdrawn(router: Router, node: str, tmp_path: Path) -> None:
    assert router.get() is None
    notify = tmp_path / "notify"
    with announced(router, node, "--check-http", "/name", "--notify", str(notify)) as running:
        running.logged(f"[notify-socket] [subscription ack] {KEY} => new node: {node}")
        assert json.loads(router.get() or "")["name"] == "node"
        assert router.get(key="other.example") is None
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    # uWSGI reads the goodbye as soon as it gets to it.
    wait_until(lambda: router.get() is None, "the router has dropped the node")


def test_taken_back_when_the_check_fails(router: Router, node: str, tmp_path: Path) -> None:
    flag = tmp_path / "well"
    flag.touch()
    with announced(router, node, "--check-command", f"test -e {flag}", "--fall", "1") as running:
        wait_until(lambda: router.get() is not None, "the node is routed to")
        flag.unlink()
        wait_until(lambda: router.get() is None, "the router has dropped the node")
        flag.touch()
        wait_until(lambda: router.get() is not None, "the node is routed to again")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


def test_gunicorn_behind_uwsgi(router: Router) -> None:
    """It speaks uwsgi, and so does the check."""
    address = f"127.0.0.1:{free_port()}"
    words = ("--check-http", "/name", "--drain", "2", *gunicorn_words(address, "uwsgi"))
    with announced(router, address, *words) as running:
        wait_until(lambda: router.get() is not None, "gunicorn is routed to")
        running.signal(signal.SIGTERM)
        wait_until(lambda: router.get() is None, "the router has dropped gunicorn")
        assert running.process.poll() is None  # it drains
        assert running.wait() == 0
        assert "Handling signal: term" in running.log


def test_gunicorn_is_killed(router: Router) -> None:
    address = f"127.0.0.1:{free_port()}"
    words = ("--check-http", "/name", *gunicorn_words(address, "uwsgi"))
    with announced(router, address, *words) as running:
        wait_until(lambda: router.get() is not None, "gunicorn is routed to")
        (master,) = running.children
        os.kill(master, signal.SIGKILL)
        assert running.wait() == 128 + signal.SIGKILL
        router.dropped(address)
        assert router.get() is None
        wait_until(lambda: not peers.accepts(address), "its workers are gone")


def test_gunicorn_over_http_and_its_reload() -> None:
    """SIGHUP reloads gunicorn under the same process; it stays announced."""
    address = f"127.0.0.1:{free_port()}"
    with Listener() as server, announcing(
        "--server", server.address, "--key", KEY, "--addr", address, "--proto", "http",
        "--check-http", "/name", "--check-interval", "100ms", "--fall", "20", "--drain", "0",
        *gunicorn_words(address, "http"),
    ) as running:  # fmt: skip
        server.wait(ups=1)
        assert running.log.index("Listening at") < running.log.index("well: announcing")
        running.signal(signal.SIGHUP)
        running.logged("Handling signal: hup")
        running.logged("Booting worker", times=2)
        assert server.downs() == 0
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        server.wait(downs=2)
        assert {each.packet.protocol for each in server.heard} == {"http"}
