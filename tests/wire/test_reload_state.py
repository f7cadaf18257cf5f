"""What a new master knows from the one before: nodes, counters, sessions of TLS."""

from __future__ import annotations

import re
import signal
import ssl
from pathlib import Path

import pytest
from support.certificates import Authority
from support.client import Client
from support.nodes import RawHttpNode, RawUwsgiNode
from support.reloading import children
from support.tls import Terminating, TlsClient, client_context, terminating
from support.uwgate import Gateway, StartGateway
from support.waiting import free_port, wait_until

from wire.test_subscriptions_wire import Router

GET = b"GET / HTTP/1.1\r\nHost: tls.example\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def reload(gateway: Gateway) -> None:
    before = gateway.log.count("] reloaded: ")
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: gateway.log.count("] reloaded: ") > before, "the reload", 20)


def metric(port: int, name: str) -> int:
    text = ""
    while not text.startswith("HTTP/"):  # who asks too late gets uWSGI's document
        with Client(("127.0.0.1", port)) as client:
            client.send_willing(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = client.read_to_end().decode()
    return sum(int(float(each)) for each in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))


@pytest.mark.parametrize("server", ["", "unix"])
def test_nodes_are_known_at_once(
    start_gateway: StartGateway, tmp_path: Path, server: str
) -> None:
    where = f"{tmp_path}/s" if server else ""
    with RawHttpNode() as node, RawUwsgiNode() as other:
        router = Router(start_gateway, server=where)
        router.announce(node)
        router.announce(other, "other.example", modifier1=7)
        router.until(200)
        reload(router.gateway)
        # The very first request, of whichever worker.
        assert router.at(node)
        assert router.at(other, "other.example")
        # And the socket still hears.
        router.goodbye(node)
        router.until(503)


def test_nodes_announce_themselves_while_the_master_changes(start_gateway: StartGateway) -> None:
    """Datagrams wait in the queue of the socket, which is never closed."""
    with RawHttpNode() as node:
        router = Router(start_gateway)
        router.gateway.process.send_signal(signal.SIGHUP)
        router.logged("] executing ")
        router.announce(node)
        router.logged("] reloaded: ")
        router.until(200)


def test_counters_never_go_backwards(start_gateway: StartGateway) -> None:
    port = free_port()
    with RawHttpNode() as node:
        gateway = start_gateway("--http-to", node.spec, "--http-stats", f"127.0.0.1:{port}")
        names = ("uwgate_requests_total", "uwgate_responses_total", "uwgate_node_requests_total")
        for round_number in range(3):
            for _ in range(5):
                with gateway.connect() as client:
                    assert client.ask(GET).status == 200
            wanted = 5 * (round_number + 1)
            for name in names:
                assert metric(port, name) == wanted, name
            reload(gateway)
            for name in names:
                assert metric(port, name) == wanted, name


def test_counters_of_subscribed_nodes(start_gateway: StartGateway) -> None:
    port = free_port()
    with RawHttpNode() as node:
        router = Router(start_gateway, "--http-stats", f"127.0.0.1:{port}")
        router.announce(node)
        router.until(200)
        count = len(node.seen)
        for _ in range(2):
            reload(router.gateway)
            assert metric(port, "uwgate_subscription_node_requests_total") == count
            assert router.get().status == 200
            count += 1
        assert metric(port, "uwgate_subscription_node_requests_total") == count


def session_of(it: Terminating, version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLSession]:
    context = client_context(it.authority, version=version)
    with TlsClient(it.address, context) as client:
        assert client.ask(GET).status == 200
        session = client.sock.session
        assert session is not None
        return context, session


def resumed(it: Terminating, context: ssl.SSLContext, session: ssl.SSLSession) -> bool:
    with TlsClient(it.address, context, session=session) as client:
        assert client.ask(GET).status == 200
        return bool(client.sock.session_reused)


TICKETS = ()
USE = "--ssl-sessions-use-cache=ssl"  # and no tickets
CACHE = ("--cache2=name=ssl,items=64,blocksize=4096", USE)


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (TICKETS, ssl.TLSVersion.TLSv1_2),
        (TICKETS, ssl.TLSVersion.TLSv1_3),
        (CACHE, ssl.TLSVersion.TLSv1_2),
    ],
    ids=["ticket-1.2", "ticket-1.3", "cache-1.2"],
)
def test_sessions_are_resumed_after_a_reload(
    authority: Authority, options: tuple[str, ...], version: ssl.TLSVersion
) -> None:
    with RawHttpNode() as node, terminating(authority, node, *options) as it:
        context, session = session_of(it, version)
        for _ in range(2):
            reload(it.gateway)
            assert resumed(it, context, session)


def test_a_cache_of_other_measures_begins_empty(authority: Authority, tmp_path: Path) -> None:
    file = tmp_path / "cache.ini"
    file.write_text("[uwsgi]\ncache2 = name=ssl,items=64,blocksize=4096\n")
    with RawHttpNode() as node, terminating(authority, node, "--ini", str(file), USE) as it:
        context, session = session_of(it, ssl.TLSVersion.TLSv1_2)
        reload(it.gateway)
        assert resumed(it, context, session)
        assert "cache ssl: 64 items of 4096 bytes, kept" in it.gateway.log
        file.write_text("[uwsgi]\ncache2 = name=ssl,items=640,blocksize=4096\n")
        reload(it.gateway)
        wait_until(lambda: len(children(it.gateway.process.pid)) == 1, "the old worker is gone")
        assert not resumed(it, context, session)



def test_a_node_that_left_meanwhile_is_gone(start_gateway: StartGateway) -> None:
    with RawHttpNode() as node:
        router = Router(start_gateway)
        router.announce(node)
        router.until(200)
        router.gateway.process.send_signal(signal.SIGHUP)
        router.logged("] executing ")
        router.goodbye(node)
        router.logged("] reloaded: ")
        # The worker of before may take one more connection, and the new one hear of it behind us.
        router.until(503)
