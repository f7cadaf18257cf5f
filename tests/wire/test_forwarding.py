"""What a node gets of a good request: RFC 9110 §7.6, RFC 9112 §9.6, RFC 7239, our header policy."""

from __future__ import annotations

import pytest
from support.nodes import RawHttpNode, RawUwsgiNode, SeenHttp
from support.uwgate import StartGateway

from wire.conftest import Pair

START = b"GET /f HTTP/1.1\r\nHost: h\r\n"


def test_an_http_node_gets_exactly_this(http_pair: Pair) -> None:
    seen = http_pair.forwarded(START + b"X-A: 1\r\nAccept: */*\r\n\r\n")
    assert isinstance(seen, SeenHttp)
    names = [name.lower() for name, _ in seen.fields]
    assert sorted(names) == sorted(
        [
            b"host",
            b"x-a",
            b"accept",
            b"x-forwarded-for",
            b"x-forwarded-proto",
            b"x-forwarded-host",
            b"via",
        ]
    )
    assert seen.field(b"via") == [b"1.1 uwgate"]
    assert seen.field(b"x-forwarded-for") == [b"127.0.0.1"]
    assert seen.field(b"x-forwarded-proto") == [b"http"]
    assert seen.field(b"x-forwarded-host") == [b"h"]


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: keep-alive",
        b"Keep-Alive: timeout=5, max=100",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Upgrade: h2c",
        b"Proxy: http://evil",
        b"proxy: http://evil",
    ],
)
def test_a_hop_by_hop_field_stops_here(pair: Pair, line: bytes) -> None:
    name, _, value = line.partition(b": ")
    seen = pair.forwarded(START + line + b"\r\nX-Kept: 1\r\n\r\n")
    assert value not in seen.field(name)
    assert seen.field(b"x-kept") == [b"1"]


@pytest.mark.parametrize(
    "connection",
    [
        b"Connection: x-one, X-Two",
        b"Connection: X-ONE,x-two",
        b"Connection: , x-one ,, x-two,",
        b"Connection: x-one\r\nConnection: x-two",
        b"connection: keep-alive, x-one\r\nX-Mid: 1\r\nCONNECTION: x-two",
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_what_connection_names_is_removed(pair: Pair, connection: bytes, before: bool) -> None:
    # RFC 9110 §7.6.1: an intermediary MUST remove the fields that Connection names.
    fields = b"X-One: 1\r\nx-two: 2\r\nX-Three: 3"
    both = [connection, fields] if before else [fields, connection]
    seen = pair.forwarded(START + b"\r\n".join(both) + b"\r\n\r\n")
    assert seen.field(b"x-one") == seen.field(b"x-two") == []
    assert seen.field(b"x-three") == [b"3"]
    assert b"x-one" not in b",".join(seen.field(b"connection")).lower()


@pytest.mark.parametrize(
    "name", [b"Host", b"Content-Length", b"X-Forwarded-For", b"Via", b"Cookie"]
)
def test_connection_cannot_take_away_what_we_rely_on(pair: Pair, name: bytes) -> None:
    # Naming an end-to-end field is against §7.6.1; refusing and ignoring are both safe.
    request = b"POST /c HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\nContent-Length: 2\r\n"
    with pair.connect() as client:
        reply = client.ask(request + b"Connection: " + name + b"\r\n\r\nok", b"POST")
        if reply.status == 400:
            pair.assert_untouched()
            return
    assert reply.status == 200
    seen = pair.node.only()
    assert seen.body == b"ok"
    assert seen.field(b"host") == [b"h"]
    assert seen.field(b"content-length") == [b"2"]
    if pair.kind == "http":
        assert seen.field(b"x-forwarded-for") == [b"127.0.0.1"]
        assert seen.field(b"via") == [b"1.1 uwgate"]


@pytest.mark.parametrize("value", [b"a b", b'"x"', b"x;y", b"x\xff", b"close,\x7f"])
def test_a_malformed_connection_option_takes_nothing_away(pair: Pair, value: bytes) -> None:
    with pair.connect() as client:
        client.send(START + b"X-Kept: 1\r\nConnection: " + value + b"\r\n\r\n")
        reply = client.read_response()
    if reply.status == 400:
        pair.assert_untouched()
    else:
        assert pair.node.only().field(b"x-kept") == [b"1"]


def test_via_is_appended(http_pair: Pair) -> None:
    # RFC 9110 §7.6.3: a proxy MUST send Via; its own entry comes last.
    seen = http_pair.forwarded(START + b"Via: 1.0 fred, 1.1 p\r\n\r\n")
    assert b", ".join(seen.field(b"via")) == b"1.0 fred, 1.1 p, 1.1 uwgate"


def test_via_names_the_version_received(http_pair: Pair) -> None:
    with http_pair.connect() as client:
        client.ask(b"GET /v HTTP/1.0\r\nHost: h\r\n\r\n")
    (via,) = http_pair.node.only().field(b"via")
    assert via in (b"1.0 uwgate", b"1.1 uwgate")


SPOOFED = (
    b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n"
    b"Forwarded: for=6.6.6.6;proto=https\r\nX-FORWARDED-FOR: 7.7.7.7\r\n"
)


def test_forwarding_fields_of_a_stranger_are_replaced(pair: Pair) -> None:
    seen = pair.forwarded(START + SPOOFED + b"\r\n")
    assert b"6.6.6.6" not in seen.raw
    assert b"7.7.7.7" not in seen.raw
    assert b"evil" not in seen.raw
    assert b"https" not in seen.raw
    if pair.kind == "http":
        assert seen.field(b"x-forwarded-for") == [b"127.0.0.1"]
        assert seen.field(b"x-forwarded-proto") == [b"http"]
        assert seen.field(b"x-forwarded-host") == [b"h"]


@pytest.mark.parametrize(
    "name", [b"X_Forwarded_For", b"X-Forwarded_For", b"x_forwarded-for", b"X_FORWARDED_PROTO"]
)
def test_nor_by_an_underscore_twin(pair: Pair, name: bytes) -> None:
    assert b"6.6.6.6" not in pair.forwarded(START + name + b": 6.6.6.6\r\n\r\n").raw


@pytest.mark.parametrize("spec", ["127.0.0.0/8", "127.0.0.1", "10.0.0.0/8"])
def test_a_trusted_peer_keeps_its_forwarding_fields(
    start_gateway: StartGateway, http_node: RawHttpNode, spec: str
) -> None:
    trusted = spec.startswith("127")
    gateway = start_gateway("--http-to", http_node.spec, "--http-trusted-proxy", spec)
    with gateway.connect() as client:
        assert client.ask(START + SPOOFED + b"\r\n").status == 200
    seen = http_node.only()
    if trusted:
        chain = b", ".join(seen.field(b"x-forwarded-for"))
        assert chain == b"6.6.6.6, 7.7.7.7, 127.0.0.1"
        assert seen.field(b"x-forwarded-proto") == [b"https"]
        assert seen.field(b"x-forwarded-host") == [b"evil"]
    else:
        assert seen.field(b"x-forwarded-for") == [b"127.0.0.1"]
        assert seen.field(b"x-forwarded-proto") == [b"http"]
        assert seen.field(b"x-forwarded-host") == [b"h"]


@pytest.mark.parametrize("name", [b"X-Forwarded-Proto", b"X-Forwarded-Host"])
def test_each_of_a_trusted_peers_fields_stands_alone(
    start_gateway: StartGateway, http_node: RawHttpNode, name: bytes
) -> None:
    gateway = start_gateway("--http-to", http_node.spec, "--http-trusted-proxy", "127.0.0.1")
    with gateway.connect() as client:
        assert client.ask(START + name + b": https\r\n\r\n").status == 200
    seen = http_node.only()
    assert seen.field(name) == [b"https"]
    assert seen.field(b"x-forwarded-for") == [b"127.0.0.1"]


def test_a_uwsgi_node_gets_a_trusted_peers_fields(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode
) -> None:
    gateway = start_gateway("--http-to", uwsgi_node.spec, "--http-trusted-proxy", "127.0.0.1")
    with gateway.connect() as client:
        assert client.ask(START + b"X-Forwarded-For: 6.6.6.6\r\n\r\n").status == 200
    (chain,) = uwsgi_node.only().field(b"x-forwarded-for")
    assert chain.startswith(b"6.6.6.6")


def test_forwarded_is_set_on_request(start_gateway: StartGateway, http_node: RawHttpNode) -> None:
    gateway = start_gateway("--http-to", http_node.spec, "--http-forwarded")
    with gateway.connect() as client:
        reply = client.ask(START + b"Forwarded: for=6.6.6.6\r\n\r\n")
        assert reply.status == 200
    (value,) = http_node.only().field(b"forwarded")
    parts = dict(part.split(b"=", 1) for part in value.lower().split(b";"))
    assert parts[b"for"].strip(b'"').split(b":")[0] == b"127.0.0.1"
    assert parts[b"proto"] == b"http"
    assert parts[b"host"].strip(b'"') == b"h"


def test_x_forwarded_for_names_each_client_on_a_shared_node_connection(http_pair: Pair) -> None:
    for _ in range(3):
        http_pair.sentinel()
    assert {seen.connection for seen in http_pair.node.seen} == {http_pair.node.seen[0].connection}
    for seen in http_pair.node.seen:
        assert seen.field(b"x-forwarded-for") == [b"127.0.0.1"]


def test_an_http_node_sees_names_with_underscores(http_pair: Pair) -> None:
    assert http_pair.forwarded(START + b"X_Plain: 1\r\n\r\n").field(b"x_plain") == [b"1"]


def test_a_uwsgi_node_does_not(uwsgi_pair: Pair) -> None:
    seen = uwsgi_pair.forwarded(START + b"X_A: evil\r\nX-A: good\r\nX_B: evil\r\n\r\n")
    assert seen.field(b"x-a") == [b"good"]
    assert seen.field(b"x-b") == []


def test_unless_they_are_allowed(start_gateway: StartGateway, uwsgi_node: RawUwsgiNode) -> None:
    gateway = start_gateway("--http-to", uwsgi_node.spec, "--http-allow-underscores")
    with gateway.connect() as client:
        assert client.ask(START + b"X_B: 1\r\nContent_Length: 7\r\n\r\n").status == 200
    assert uwsgi_node.only().field(b"x-b") == [b"1"]
    assert uwsgi_node.only().field(b"content-length") == []


def test_a_request_remembered_is_still_read_in_full(pair: Pair) -> None:
    """Nothing kept from earlier requests of a connection may change how the next one is read."""
    varying = START + b"X-Id: %s\r\nX-B: b\r\n%s\r\n"
    with pair.connect() as client:
        for number in range(12):
            assert client.ask(varying % (b"%d" % number, b"")).status == 200
        # The same shape with a field that now matters, a second value, and a forged line.
        assert client.ask(varying % (b"a", b"Connection: X-Id\r\n")).status == 200
        assert client.ask(varying % (b"a", b"X-Id: b\r\n")).status == 200
        assert client.ask(varying % (b"a", b"X_Id: evil\r\n")).status == 200
        assert client.ask(varying % (b"a", b"x-id: c\r\n")).status == 200
        client.send(varying % (b"a\x00b", b""))
        assert client.read_response().status == 400
        client.assert_closed()
    seen = pair.node.seen
    assert [each.field(b"x-id") for each in seen[:12]] == [[b"%d" % n] for n in range(12)]
    joined = [b", ".join(each.field(b"x-id")) for each in seen[12:]]
    assert joined == [b"", b"a, b", b"a", b"a, c"]
    assert all(each.field(b"x-b") == [b"b"] for each in seen)
    assert len(seen) == 16


def test_framing_is_never_remembered(pair: Pair) -> None:
    with pair.connect() as client:
        for length in (1, 2, 30, 4, 0, 600, 7):
            body = b"z" * length
            head = b"POST /n HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length
            assert client.ask(head + body, b"POST").body == b"POST /n %d" % length
    assert [len(each.body) for each in pair.node.seen] == [1, 2, 30, 4, 0, 600, 7]
