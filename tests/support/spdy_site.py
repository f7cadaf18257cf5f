"""Gateways that speak SPDY, for tests."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from support.certificates import Authority
from support.nodes import Node, RawHttpNode
from support.spdy_client import SpdyClient
from support.uwgate import Gateway, running
from support.waiting import free_port


@dataclass
class Site:
    """A gateway that speaks SPDY on ``port``, before one node."""

    gateway: Gateway
    node: Node
    port: int
    context: ssl.SSLContext

    def connect(self, *, greedy: bool = True) -> SpdyClient:
        """A new session."""
        return SpdyClient(("127.0.0.1", self.port), self.context, greedy=greedy)


def offering(authority: Authority, *protocols: str) -> ssl.SSLContext:
    """Of clients, that trust ``authority`` and offer these (ALPN)."""
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_alpn_protocols(protocols)
    return context


def listener(authority: Authority, more: str = ",spdy=1") -> tuple[int, str]:
    """A port, and the value of https2."""
    pair, port = authority.issue("localhost"), free_port()
    return port, f"addr=127.0.0.1:{port},cert={pair.cert},key={pair.key}{more}"


@contextmanager
def speaking_spdy(authority: Authority, node: Node, *options: str) -> Iterator[Site]:
    """One of one's own, stopped and checked at the end."""
    port, value = listener(authority)
    with running("--https2", value, "--http-to", node.spec, *options) as gateway:
        yield Site(gateway, node, port, offering(authority, "spdy/3.1", "http/1.1"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Of the certificates."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def http_site(authority: Authority) -> Iterator[Site]:
    """Before an HTTP node, where that makes no difference. 40 streams; 3 s for a header section,
    of which a handshake has half a second at least."""
    options = ("--http-headers-timeout", "3", "--http2-max-streams", "40")
    with RawHttpNode() as node, speaking_spdy(authority, node, *options) as site:
        yield site


@pytest.fixture
def site(http_site: Site) -> Site:
    """The same, fresh."""
    http_site.node.reset()
    return http_site


@pytest.fixture
def client(site: Site) -> Iterator[SpdyClient]:
    """A session there."""
    with site.connect() as client:
        yield client
