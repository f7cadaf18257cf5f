"""One gateway before an HTTP node and one before a uwsgi node, shared by the whole run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.client import Client, Reply
from support.nodes import NODES, Node, Seen
from support.uwgate import Gateway, running
from support.zygote import untraced

_sentinels = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def _untraced() -> Iterator[None]:
    with untraced():
        yield


@dataclass
class Pair:
    """A gateway and the only node behind it; ``kind`` is "http" or "uwsgi"."""

    kind: str
    gateway: Gateway
    node: Node

    def connect(self) -> Client:
        """A new client connection."""
        return self.gateway.connect()

    def sentinel(self) -> bytes:
        """Send one good request on a new connection; its target, unique."""
        target = b"/sentinel-%d" % next(_sentinels)
        with self.connect() as client:
            reply = client.ask(b"GET " + target + b" HTTP/1.1\r\nHost: sentinel\r\n\r\n")
        assert reply.status == 200, reply
        return target

    def assert_no_request(self) -> None:
        """The node saw no complete request (it may have seen the beginning of one)."""
        target = self.sentinel()
        assert [each.target for each in self.node.seen] == [target], self.node.seen

    def assert_untouched(self) -> None:
        """Not one byte reached the node since its reset."""
        self.assert_no_request()
        received = b"".join(each.received for each in self.node.connections)
        assert received == self.node.seen[0].raw, received

    def refused(self, request: bytes, *statuses: int, touched: bool = False) -> Reply:
        """``request`` is answered by the gateway alone, then the connection ends.

        With ``touched`` the node may have got a beginning of it, never the whole.
        """
        with self.connect() as client:
            client.send_willing(request)
            reply = client.read_response()
            assert reply.status in statuses, reply
            assert reply.closes, reply
            client.assert_closed()
        if touched:
            self.assert_no_request()
        else:
            self.assert_untouched()
        return reply

    def forwarded(self, request: bytes, method: bytes = b"GET") -> Seen:
        """What the node saw of ``request``, which must be answered 200 and keep the connection."""
        with self.connect() as client:
            reply = client.ask(request, method)
            assert reply.status == 200, reply
            seen = self.node.only()
            self.node.reset()
            client.assert_open()
        self.node.reset()
        return seen


@pytest.fixture(scope="session")
def pairs() -> Iterator[dict[str, Pair]]:
    """Both pairs; use ``pair``, ``http_pair`` or ``uwsgi_pair`` instead, which reset the node."""
    with (
        NODES["http"]() as http,
        NODES["uwsgi"]() as uwsgi,
        running("--http-to", http.spec, "--http-timeout", "10") as one,
        running("--http-to", uwsgi.spec, "--http-timeout", "10") as two,
    ):
        yield {"http": Pair("http", one, http), "uwsgi": Pair("uwsgi", two, uwsgi)}


def _fresh(pair: Pair) -> Iterator[Pair]:
    pair.node.reset()
    yield pair
    pair.node.check()


@pytest.fixture(params=["http", "uwsgi"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Iterator[Pair]:
    """The gateway before an HTTP node, then the one before a uwsgi node."""
    yield from _fresh(pairs[request.param])


@pytest.fixture
def http_pair(pairs: dict[str, Pair]) -> Iterator[Pair]:
    """The gateway before an HTTP node."""
    yield from _fresh(pairs["http"])


@pytest.fixture
def uwsgi_pair(pairs: dict[str, Pair]) -> Iterator[Pair]:
    """The gateway before a uwsgi node."""
    yield from _fresh(pairs["uwsgi"])


@pytest.fixture(params=["http", "uwsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    """Either kind of node, for tests that start a gateway of their own."""
    return str(request.param)
