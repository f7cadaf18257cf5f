"""http-to-https: where clients in clear text are sent, with no node at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client, Reply
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

OPTION = "--http-to-https"


@pytest.fixture(scope="module")
def plain() -> Iterator[Gateway]:
    """Redirects to the standard port; nothing else is configured."""
    with running(option=OPTION) as gateway:
        yield gateway


def where(gateway: Gateway, request: bytes, method: bytes = b"GET") -> bytes | None:
    """Location of the answer to ``request``, which must be a 301 without a body."""
    with gateway.connect() as client:
        reply = client.ask(request, method)
    check(reply)
    return reply.get(b"location")


def check(reply: Reply) -> None:
    assert (reply.status, reply.reason) == (301, b"Moved Permanently"), reply
    assert reply.get(b"content-length") == b"0"
    assert reply.get(b"date")
    assert reply.body == b""


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"example.com", b"example.com"),
        (b"Example.com:8080", b"Example.com"),
        (b"192.0.2.7:80", b"192.0.2.7"),
        (b"[2001:db8::7]", b"[2001:db8::7]"),
        (b"[2001:db8::7]:8080", b"[2001:db8::7]"),
    ],
)
def test_the_host_is_kept_and_its_port_is_not(plain: Gateway, host: bytes, expected: bytes) -> None:
    request = b"GET /a/b%2Fc?d=e&f HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    assert where(plain, request) == b"https://" + expected + b"/a/b%2Fc?d=e&f"


def test_the_port_of_the_option_is_named() -> None:
    port = free_port()
    request = b"GET /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"
    with (
        running(OPTION, f"127.0.0.1:{port},8443", option=OPTION) as gateway,
        Client(("127.0.0.1", port)) as client,
    ):
        assert client.ask(request).get(b"location") == b"https://[::1]:8443/x"
        assert where(gateway, request) == b"https://[::1]/x"


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PURGE"])
def test_every_method_gets_the_same_answer(plain: Gateway, method: bytes) -> None:
    request = method + b" /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    assert where(plain, request, method) == b"https://h/x"


def test_absolute_form_names_the_host(plain: Gateway) -> None:
    request = b"GET http://one.example:80/x?y HTTP/1.1\r\nHost: two.example\r\n\r\n"
    assert where(plain, request) == b"https://one.example/x?y"
    request = b"GET http://one.example HTTP/1.1\r\nHost: one.example\r\n\r\n"
    assert where(plain, request) == b"https://one.example/"


def test_an_asterisk_is_no_path(plain: Gateway) -> None:
    request = b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"
    assert where(plain, request, b"OPTIONS") == b"https://h"


def test_without_host_it_is_this_machine(plain: Gateway) -> None:
    with plain.connect() as client:
        reply = client.ask(b"GET /x HTTP/1.0\r\n\r\n")
        check(reply)
        assert reply.get(b"location") == b"https://%b/x" % socket.gethostname().encode()
        assert reply.closes
        client.assert_closed()


def test_http_1_0_may_keep_its_connection(plain: Gateway) -> None:
    with plain.connect() as client:
        for _ in range(2):
            reply = client.ask(b"GET /x HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n")
            check(reply)
            assert reply.get(b"connection") == b"keep-alive"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/evil\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /\rX-Injected: 1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
def test_what_is_wrong_is_refused_as_anywhere(plain: Gateway, head: bytes, status: int) -> None:
    with plain.connect() as client:
        client.send_willing(head)
        reply = client.read_response()
        assert reply.status == status
        assert not reply.all(b"location")
        client.assert_closed()


def test_connections_are_kept_and_pipelined(plain: Gateway) -> None:
    with plain.connect() as client:
        for number in range(3):
            reply = client.ask(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
            assert (reply.get(b"location"), reply.closes) == (b"https://h/%d" % number, False)
        again = b"GET /same HTTP/1.1\r\nHost: h\r\n\r\n"
        assert client.ask(again).headers[1:] == client.ask(again).headers[1:]
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(50)))
        for number in range(50):
            assert client.read_response().get(b"location") == b"https://h/%d" % number
        assert client.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").closes
        client.assert_closed()


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Content-Length: 5\r\n\r\n",
        b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Content-Length: 10000000\r\n\r\n" + b"x" * 10_000_000,
    ],
    ids=["here", "coming", "expected", "chunked", "large"],
)
def test_a_body_is_not_waited_for_nor_taken_for_a_request(plain: Gateway, body: bytes) -> None:
    with plain.connect() as client:
        client.send_willing(b"POST /x HTTP/1.1\r\nHost: h\r\n" + body)
        reply = client.read_response(b"POST")
        check(reply)
        assert reply.interim == []
        assert reply.closes
        client.assert_closed()


def test_a_head_in_pieces_and_one_that_stalls() -> None:
    with (
        running("--http-headers-timeout=1", option=OPTION) as gateway,
        gateway.connect() as client,
    ):
        client.send_bytewise(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        check(client.read_response())
        client.send(b"GET /x HTTP/1.1\r\n")
        assert client.read_response().status == 408


def test_it_is_counted_and_logged(tmp_path: Path) -> None:
    socket_path = str(tmp_path / "stats.sock")
    with running("--http-log", f"--http-stats={socket_path}", option=OPTION) as gateway:
        with gateway.connect() as client:
            check(client.ask(b"GET /seen HTTP/1.1\r\nHost: h\r\n\r\n"))
        wait_until(lambda: "/seen" in gateway.log, "the log line")
        (line,) = [each for each in gateway.log.splitlines() if "/seen" in each]
        assert " 301 " in line
        with Client(socket_path) as client:
            assert b'"301":1' in client.read_to_end().replace(b" ", b"")


def test_beside_a_listener_that_has_a_node(tmp_path: Path) -> None:
    from support.nodes import NODES

    with NODES["http"]() as node:
        other = f"127.0.0.1:{free_port()}"
        options = ("--http", other, "--http-to", node.spec)
        with running(*options, option=OPTION) as gateway:
            assert where(gateway, b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n") == b"https://h/x"
            assert node.seen == []
            host, _, port = other.rpartition(":")
            with Client((host, int(port))) as client:
                assert client.ask(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n").status == 200
