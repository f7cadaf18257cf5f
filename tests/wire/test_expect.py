"""Expect: 100-continue, passed on and managed (RFC 9110 §10.1.1, uWSGI http-manage-expect)."""

from __future__ import annotations

import pytest
from support.client import Client
from support.nodes import NODES, RawHttpNode, response
from support.uwgate import StartGateway

from wire.conftest import Pair

HEAD = b"POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
BODY = HEAD + b"Content-Length: 5\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def _continued(client: Client, head: bytes, body: bytes) -> None:
    """Send ``head``, wait for 100, then ``body``; the answer must be 200."""
    client.send(head)
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    client.send(body)
    reply = client.read_response(b"POST")
    assert (reply.status, reply.body, reply.interim) == (200, b"POST /e 5", [])


@pytest.mark.parametrize(
    ("head", "body"), [(BODY, b"hello"), (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n")]
)
def test_the_client_is_told_to_continue(pair: Pair, head: bytes, body: bytes) -> None:
    with pair.connect() as client:
        _continued(client, head, body)
        client.assert_open()
    assert pair.node.seen[0].body == b"hello"


def test_an_http_node_gets_the_expectation(http_pair: Pair) -> None:
    with http_pair.connect() as client:
        _continued(client, BODY, b"hello")
    assert http_pair.node.only().field(b"expect") == [b"100-continue"]


@pytest.mark.parametrize("value", [b"100-Continue", b"100-CONTINUE"])
def test_the_expectation_is_case_insensitive(pair: Pair, value: bytes) -> None:
    with pair.connect() as client:
        _continued(client, BODY.replace(b"100-continue", value), b"hello")


def test_a_client_that_does_not_wait(pair: Pair) -> None:
    with pair.connect() as client:
        client.send(BODY + b"hello")
        reply = client.read_response(b"POST")
        assert (reply.status, reply.body) == (200, b"POST /e 5")
        client.assert_open()


def test_a_final_answer_instead_of_100(http_pair: Pair) -> None:
    assert isinstance(http_pair.node, RawHttpNode)
    http_pair.node.on_expect = response(b"no", status=b"401 Unauthorized")
    with http_pair.connect() as client:
        client.send(BODY)
        reply = client.read_response(b"POST")
        assert (reply.status, reply.body, reply.interim) == (401, b"no", [])
        # §10.1.1: the client may still send the body; it must never be taken for a request.
        http_pair.node.reset()
        client.send_willing(b"GET /")
        if reply.closes:
            client.assert_closed()
        else:
            client.assert_open()
            assert [each.target for each in http_pair.node.seen] == [b"/still-open"]


@pytest.mark.parametrize("value", [b"200-ok", b"100-continue, x", b"", b"x=y", b"100-continue;a"])
def test_another_expectation_fails(pair: Pair, value: bytes) -> None:
    request = b"POST /e HTTP/1.1\r\nHost: h\r\nExpect: " + value + b"\r\nContent-Length: 0\r\n\r\n"
    pair.refused(request, 417)


def test_an_expectation_of_http10_is_ignored(pair: Pair) -> None:
    # RFC 9110 §10.1.1: a server that receives it in HTTP/1.0 MUST ignore it.
    if isinstance(pair.node, RawHttpNode):
        pair.node.on_expect = b""
    with pair.connect() as client:
        client.send(BODY.replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello")
        reply = client.read_response(b"POST")
        assert (reply.status, reply.interim) == (200, [])
    assert pair.node.only().body == b"hello"


def test_no_body_no_continue(pair: Pair) -> None:
    with pair.connect() as client:
        client.send(b"GET /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n")
        assert client.read_response().status == 200
        client.assert_open()


def test_a_bad_request_is_not_told_to_continue(pair: Pair) -> None:
    reply = pair.refused(HEAD + b"Content-Length: x\r\n\r\n", 400)
    assert reply.interim == []


def test_managed(start_gateway: StartGateway, kind: str) -> None:
    with NODES[kind]() as node:
        if isinstance(node, RawHttpNode):
            node.on_expect = b""  # it never says 100: the gateway does
        gateway = start_gateway("--http-to", node.spec, "--http-manage-expect=10")
        with gateway.connect() as client:
            _continued(client, BODY, b"hello")
        with gateway.connect() as client:
            client.send(HEAD + b"Content-Length: 10\r\n\r\n")
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        with gateway.connect() as client:
            reply = client.ask(HEAD + b"Content-Length: 11\r\n\r\n", b"POST")
            assert (reply.status, reply.interim, reply.closes) == (413, [], True)
            client.assert_closed()
        assert [each.body for each in node.seen] == [b"hello"]
        with gateway.connect() as client:
            big = b"POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world"
            assert client.ask(big, b"POST").status == 200
