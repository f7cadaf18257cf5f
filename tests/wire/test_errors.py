"""Bodies of our own error responses: by Accept, for HEAD, and by the operator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.nodes import NODES
from support.uwgate import StartGateway

from wire.conftest import Pair

BAD = b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (b"application/json", b"application/json"),
        (b"text/html", b"text/html"),
        (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", b"text/html"),
        (b"text/plain", b"text/plain"),
    ],
)
def test_the_body_follows_accept(pair: Pair, accept: bytes, media: bytes) -> None:
    pair.node.play(b"nonsense\r\n\r\n")
    with pair.connect() as client:
        reply = client.ask(b"POST / HTTP/1.1\r\nHost: h\r\nAccept: " + accept + b"\r\n\r\n")
    assert reply.status == 502
    content_type = reply.get(b"content-type") or b""
    assert content_type.split(b";")[0] == media
    assert reply.get(b"content-length") == b"%d" % len(reply.body)
    assert reply.get(b"date")
    if media == b"application/json":
        assert "502" in json.dumps(json.loads(reply.body))
    else:
        assert b"502" in reply.body
        assert (b"<html" in reply.body.lower()) == (media == b"text/html")


def test_a_refused_request_has_a_reason_and_a_length(pair: Pair) -> None:
    reply = pair.refused(BAD, 400)
    assert reply.get(b"content-length") == b"%d" % len(reply.body)
    assert reply.get(b"content-type")
    assert reply.get(b"date")
    assert reply.reason == b"Bad Request"
    assert b"400" in reply.body


@pytest.mark.parametrize("value", [b"<script>alert(1)</script>", b"\"'><x>"])
def test_nothing_of_the_request_is_echoed(pair: Pair, value: bytes) -> None:
    request = (
        b"GET /" + value.replace(b" ", b"") + b"# HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\n"
    )
    reply = pair.refused(request + b"X: " + value + b"\r\n\r\n", 400)
    assert value not in reply.body


def test_head_gets_no_error_body(pair: Pair) -> None:
    pair.node.play(b"nonsense\r\n\r\n")
    with pair.connect() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        reply = client.read_response(b"HEAD")
        assert (reply.status, reply.body) == (502, b"")
        if reply.closes:
            client.assert_closed()
        else:
            client.assert_open()


def test_an_error_page_of_the_operator(
    start_gateway: StartGateway, kind: str, tmp_path: Path
) -> None:
    page = tmp_path / "502.html"
    page.write_bytes(b"<html>sorry</html>")
    with NODES[kind]() as node:
        node.otherwise = b"nonsense\r\n\r\n"
        gateway = start_gateway("--http-to", node.spec, "--error-page-502", str(page))
        with gateway.connect() as client:
            reply = client.ask(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n", b"POST")
    assert (reply.status, reply.body) == (502, b"<html>sorry</html>")
    assert (reply.get(b"content-type") or b"").startswith(b"text/html")


def test_the_last_request_has_no_say_in_the_error_of_the_next(pair: Pair) -> None:
    with pair.connect() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n")
        assert client.read_response(b"HEAD").status == 200
        client.send(b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n")
        reply = client.read_response(b"GET")
        assert reply.status == 400
        assert reply.body.startswith(b"400")
        client.assert_closed()
