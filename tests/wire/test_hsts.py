"""https-hsts: every response over TLS says it, and none in clear text."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.certificates import Authority
from support.client import Client, Reply
from support.nodes import NODES, Node
from support.uwgate import Gateway, running
from support.waiting import free_port

NAME = b"strict-transport-security"
VALUE = b"max-age=31536000; includeSubDomains"
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass
class Site:
    """A gateway with a listener in clear text and one with TLS, before one node."""

    gateway: Gateway
    node: Node
    port: int
    context: ssl.SSLContext

    def connect(self) -> Client:
        """A client over TLS."""
        client = Client(("127.0.0.1", self.port))
        client.sock = self.context.wrap_socket(client.sock, server_hostname="localhost")
        return client

    def ask(self, request: bytes = GET, method: bytes = b"GET") -> Reply:
        with self.connect() as client:
            return client.ask(request, method)


@pytest.fixture(scope="module", params=["http", "uwsgi"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    pair, port = authority.issue("localhost"), free_port()
    options = ("--https", f"127.0.0.1:{port},{pair.cert},{pair.key}", "--http-auto-chunked=true")
    with (
        NODES[request.param]() as node,
        running(*options, f"--https-hsts={VALUE.decode()}", "--http-to", node.spec) as gateway,
    ):
        context = ssl.create_default_context(cafile=str(authority.file))
        yield Site(gateway, node, port, context)


@pytest.fixture(autouse=True)
def fresh(site: Site) -> None:
    site.node.reset()


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 10:00:00 GMT\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n',
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
]


@pytest.mark.parametrize(
    "answer", ANSWERS, ids=["plain", "dated", "large", "chunked", "304", "404"]
)
def test_every_kind_of_response_has_it_once(site: Site, answer: bytes) -> None:
    status = int(answer[9:12])
    with site.connect() as client:
        for _ in range(3):  # the third one's head is remembered
            site.node.play(answer)
            reply = client.ask(GET)
            assert (reply.status, reply.get(NAME)) == (status, VALUE)
            assert reply.get(b"date")
            if b"\r\n\r\nok" in answer:
                assert reply.body == b"ok"


def test_what_the_node_says_counts(site: Site) -> None:
    for name in (b"Strict-Transport-Security", b"strict-TRANSPORT-security"):
        site.node.play(b"HTTP/1.1 200 OK\r\n" + name + b": max-age=0\r\nContent-Length: 0\r\n\r\n")
        assert site.ask().get(NAME) == b"max-age=0"


def test_responses_of_our_own_have_it(site: Site) -> None:
    reply = site.ask(b"GET / HTTP/1.1\r\n\r\n")
    assert (reply.status, reply.get(NAME)) == (400, VALUE)
    site.node.play(b"nonsense\r\n\r\n")
    reply = site.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", b"POST")
    assert (reply.status, reply.get(NAME)) == (502, VALUE)


def test_http_1_0_and_head_have_it(site: Site) -> None:
    reply = site.ask(b"GET /x HTTP/1.0\r\nHost: h\r\n\r\n")
    assert (reply.status, reply.get(NAME)) == (200, VALUE)
    reply = site.ask(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n", b"HEAD")
    assert (reply.status, reply.get(NAME), reply.body) == (200, VALUE, b"")


def test_never_in_clear_text(site: Site) -> None:
    for _ in range(3):  # also after the same head went out over TLS
        with site.gateway.connect() as client:
            assert client.ask(GET).all(NAME) == []
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert client.read_response().all(NAME) == []
        assert site.ask().get(NAME) == VALUE


def test_not_in_the_answer_to_clear_text_on_the_port_of_tls(site: Site) -> None:
    with Client(("127.0.0.1", site.port)) as client:
        client.send_willing(GET)
        reply = client.read_response()
    assert reply.status == 400
    assert reply.all(NAME) == []
