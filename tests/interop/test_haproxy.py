"""HAProxy on either side: as HTTP node, and as the load balancer in front (PROXY v1 and v2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.uwgate import running

from interop import peers
from interop.clients import Client, fetch
from interop.peers import Peer

SIZE = 1 << 20


def test_haproxy_as_node(tmp_path: Path, gunicorn_app: Peer) -> None:
    with (
        peers.haproxy(tmp_path, gunicorn_app.address) as node,
        running("--http-to", f"http://{node.address}") as gateway,
        Client(gateway.port) as client,
    ):
        for _ in range(3):
            assert client.request("GET", "/x?y").json()["QUERY_STRING"] == "y"
        assert client.request("POST", "/drain", body=iter([b"12", b"345"])).json()["length"] == 5
        reply = client.request("GET", f"/unframed?size={SIZE}", keep=False)
        assert reply.size == SIZE


@contextmanager
def balancer(where: Path, app: Peer, send: str) -> Iterator[str]:
    """HAProxy in TCP mode, sending PROXY headers to a gateway; yields its TCP address."""
    with (
        running("--http-to", app.address, "--http-enable-proxy-protocol") as gateway,
        peers.haproxy(where, f"{gateway.listen} {send}", mode="tcp", tcp=True) as front,
    ):
        yield front.address


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_proxy_protocol_names_the_client(tmp_path: Path, uwsgi_app: Peer, send: str) -> None:
    with balancer(tmp_path, uwsgi_app, send) as address:
        port = int(address.rpartition(":")[2])
        with Client(port) as client:
            for _ in range(2):
                seen = client.request("GET", "/").json()
                assert seen["REMOTE_ADDR"] == "127.0.0.1"
                assert seen["REMOTE_PORT"] == str(client.port), "for every request, not the first"


def test_health_checks_of_the_balancer(tmp_path: Path, uwsgi_app: Peer) -> None:
    """``check`` connects and leaves: no harm; the server counts as up."""
    with balancer(tmp_path, uwsgi_app, "send-proxy check inter 100ms") as address:
        port = int(address.rpartition(":")[2])
        assert fetch(port, "/").status == 200


def test_proxy_lines_are_an_attack_without_the_option(uwsgi_app: Peer) -> None:
    line = b"PROXY TCP4 203.0.113.1 203.0.113.2 1 2\r\n"
    with running("--http-to", uwsgi_app.address) as gateway, gateway.connect() as client:
        client.send(line + b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.read_response().status == 400


def test_local_command_keeps_the_socket_address(uwsgi_app: Peer) -> None:
    """PROXY v2 LOCAL (a balancer's own health check) says nothing about a client."""
    signature = b"\r\n\r\n\0\r\nQUIT\n"
    with (
        running("--http-to", uwsgi_app.address, "--http-enable-proxy-protocol") as gateway,
        gateway.connect() as client,
    ):
        client.send(signature + b"\x20\0\0\0")
        reply = client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b'"REMOTE_PORT": "%d"' % client.port in reply.body
