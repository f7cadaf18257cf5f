"""The uwsgi packet: variables, their order and values, modifiers, body; uWSGI's wire format."""

from __future__ import annotations

import socket

import pytest
from support.nodes import RawUwsgiNode, SeenUwsgi
from support.uwgate import StartGateway

from wire.conftest import Pair


def _seen(pair: Pair, request: bytes, method: bytes = b"GET") -> SeenUwsgi:
    seen = pair.forwarded(request, method)
    assert isinstance(seen, SeenUwsgi)
    return seen


def test_variables_come_in_uwsgis_order(uwsgi_pair: Pair) -> None:
    request = (
        b"POST /hi%20x?y=1 HTTP/1.1\r\nHost: ex.com\r\nX-B: 2\r\nContent-Type: text/x\r\n"
        b"Content-Length: 2\r\nX-A: 1\r\n\r\nok"
    )
    with uwsgi_pair.connect() as client:
        assert client.ask(request, b"POST").status == 200
        port = client.port
    seen = uwsgi_pair.node.only()
    assert isinstance(seen, SeenUwsgi)
    assert seen.variables == [
        (b"REQUEST_METHOD", b"POST"),
        (b"PATH_INFO", b"/hi x"),
        (b"REQUEST_URI", b"/hi%20x?y=1"),
        (b"QUERY_STRING", b"y=1"),
        (b"SERVER_PROTOCOL", b"HTTP/1.1"),
        (b"SCRIPT_NAME", b""),
        (b"SERVER_NAME", socket.gethostname().encode()),
        (b"SERVER_PORT", b"%d" % uwsgi_pair.gateway.port),
        (b"UWSGI_ROUTER", b"http"),
        (b"REMOTE_ADDR", b"127.0.0.1"),
        (b"REMOTE_PORT", b"%d" % port),
        (b"HTTP_HOST", b"ex.com"),
        (b"HTTP_X_B", b"2"),
        (b"CONTENT_TYPE", b"text/x"),
        (b"CONTENT_LENGTH", b"2"),
        (b"HTTP_X_A", b"1"),
    ]
    assert (seen.modifier1, seen.modifier2, seen.body) == (0, 0, b"ok")


def test_without_a_query_request_uri_comes_first(uwsgi_pair: Pair) -> None:
    seen = _seen(uwsgi_pair, b"GET /p HTTP/1.1\r\nHost: h\r\n\r\n")
    assert seen.variables[:5] == [
        (b"REQUEST_METHOD", b"GET"),
        (b"REQUEST_URI", b"/p"),
        (b"PATH_INFO", b"/p"),
        (b"QUERY_STRING", b""),
        (b"SERVER_PROTOCOL", b"HTTP/1.1"),
    ]
    assert seen.all(b"CONTENT_LENGTH") == seen.all(b"CONTENT_TYPE") == []


def test_the_protocol_is_the_clients(uwsgi_pair: Pair) -> None:
    with uwsgi_pair.connect() as client:
        client.ask(b"GET /p HTTP/1.0\r\n\r\n")
    seen = uwsgi_pair.node.only()
    assert isinstance(seen, SeenUwsgi)
    assert seen.var(b"SERVER_PROTOCOL") == b"HTTP/1.0"
    assert seen.all(b"HTTP_HOST") == []


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", b"/", b""),
        (b"/?", b"/", b""),
        (b"/a?b?c", b"/a", b"b?c"),
        (b"/a%20b/../c/./d//e?x", b"/c/d//e", b"x"),
        (b"/a/b/..", b"/a/", b""),
        (b"/a/b/.", b"/a/b/", b""),
        (b"/a/../../../z", b"/z", b""),
        (b"/a+b", b"/a+b", b""),
        (b"/...", b"/...", b""),
        (b"/.a", b"/.a", b""),
        (b"/..a", b"/..a", b""),
        (b"/a%23x", b"/a#x", b""),
        (b"/a%3Fx", b"/a?x", b""),
        (b"/caf%C3%A9", b"/caf\xc3\xa9", b""),
        (b"/%e2%82%ac", b"/\xe2\x82\xac", b""),
        (b"/x?%2e%2e/%00", b"/x", b"%2e%2e/%00"),
    ],
)
def test_path_and_query(uwsgi_pair: Pair, target: bytes, path: bytes, query: bytes) -> None:
    seen = _seen(uwsgi_pair, b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (seen.var(b"PATH_INFO"), seen.var(b"QUERY_STRING")) == (path, query)
    assert seen.var(b"REQUEST_URI") == target


@pytest.mark.parametrize(
    "target",
    [
        b"/..",
        b"/%2e%2e/x",
        b"/%2E%2E/x",
        b"/.%2e/x",
        b"/%2e./x",
        b"/a/%2e%2e/%2e%2e/x",
        b"/a/%2e%2e%2f%2e%2e%2fetc",
        b"/a/..%2f..%2fetc",
        b"/..%2fetc",
        b"/%2e%2e%2fetc",
        b"/a%2f..%2f..%2fetc",
        b"/%2e",
        b"/%2e/%2e%2e",
        b"/%5c..%5c../x",
    ],
)
def test_no_dot_segment_survives_in_path_info(uwsgi_pair: Pair, target: bytes) -> None:
    with uwsgi_pair.connect() as client:
        reply = client.ask(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    if reply.status == 400:
        uwsgi_pair.assert_untouched()
        return
    assert reply.status == 200
    seen = uwsgi_pair.node.only()
    assert isinstance(seen, SeenUwsgi)
    path = seen.var(b"PATH_INFO")
    assert b".." not in path.split(b"/")
    assert b"." not in path.split(b"/")


@pytest.mark.parametrize("target", [b"/a%00b", b"/%zz", b"/a%4", b"/a%", b"/%%41", b"/a%0d%0ab"])
def test_a_strange_escape_is_refused_or_harmless(uwsgi_pair: Pair, target: bytes) -> None:
    with uwsgi_pair.connect() as client:
        reply = client.ask(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    if reply.status == 400:
        uwsgi_pair.assert_untouched()
        return
    assert reply.status == 200
    seen = uwsgi_pair.node.only()
    assert isinstance(seen, SeenUwsgi)
    assert seen.var(b"REQUEST_URI") == target
    assert seen.var(b"PATH_INFO").startswith(b"/")


@pytest.mark.parametrize(
    "name",
    [
        b"UWSGI_FILE",
        b"UWSGI-FILE",
        b"Uwsgi_Router",
        b"UWSGI_SCRIPT",
        b"REMOTE_ADDR",
        b"Remote-Addr",
        b"HTTPS",
        b"SCRIPT_NAME",
        b"PATH_INFO",
        b"Server-Port",
        b"REMOTE_USER",
        b"HTTP_HOST",
        b"wsgi.input",
    ],
)
def test_no_field_can_forge_a_variable(uwsgi_pair: Pair, name: bytes) -> None:
    seen = _seen(uwsgi_pair, b"GET / HTTP/1.1\r\nHost: h\r\n" + name + b": evil\r\n\r\n")
    evil = [key for key, value in seen.variables if value == b"evil"]
    assert evil in ([], [b"HTTP_" + name.upper().replace(b"-", b"_")])
    assert [k for k, _ in seen.variables if k.startswith(b"UWSGI_")] == [b"UWSGI_ROUTER"]


def test_httpoxy(uwsgi_pair: Pair) -> None:
    seen = _seen(uwsgi_pair, b"GET / HTTP/1.1\r\nHost: h\r\nProxy: evil\r\nPROXY: evil\r\n\r\n")
    assert seen.all(b"HTTP_PROXY") == []


def test_repeated_fields_are_joined_at_the_first(uwsgi_pair: Pair) -> None:
    request = (
        b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\na: 3\r\nCookie: x=1\r\nCookie: y=2\r\n\r\n"
    )
    seen = _seen(uwsgi_pair, request)
    assert seen.variables[-3:] == [
        (b"HTTP_A", b"1, 3"),
        (b"HTTP_B", b"2"),
        (b"HTTP_COOKIE", b"x=1; y=2"),  # RFC 6265 §5.4: one Cookie field; RFC 9113 §8.2.3 joins so
    ]


def test_modifiers_and_variables_of_the_operator(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode
) -> None:
    gateway = start_gateway(
        *("--http-to", uwsgi_node.spec, "--http-modifier1", "5", "--http-modifier2", "9"),
        *("--http-var", "K=v=w", "--http-var", "EMPTY="),
    )
    with gateway.connect() as client:
        assert client.ask(b"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n").status == 200
    seen = uwsgi_node.only()
    assert isinstance(seen, SeenUwsgi)
    assert (seen.modifier1, seen.modifier2) == (5, 9)
    assert seen.variables[-3:] == [(b"HTTP_X", b"y"), (b"K", b"v=w"), (b"EMPTY", b"")]


def test_server_name_as_http_host(start_gateway: StartGateway, uwsgi_node: RawUwsgiNode) -> None:
    gateway = start_gateway("--http-to", uwsgi_node.spec, "--http-server-name-as-http-host", "true")
    with gateway.connect() as client:
        assert client.ask(b"GET / HTTP/1.1\r\nX: y\r\nHost: Ex.com:80\r\n\r\n").status == 200
    seen = uwsgi_node.only()
    assert isinstance(seen, SeenUwsgi)
    keys = [key for key, _ in seen.variables]
    assert seen.var(b"SERVER_NAME") == b"Ex.com:80"
    assert keys[keys.index(b"SERVER_NAME") + 1] == b"HTTP_HOST"


def test_a_packet_over_64_kb_has_a_reason(uwsgi_pair: Pair) -> None:
    head = b"GET /%s HTTP/1.1\r\nHost: h\r\n" % (b"a" * 30_000)
    reply = uwsgi_pair.refused(head + b"X: %s\r\n\r\n" % (b"b" * 20_000), 431)
    assert b"packet" in reply.body.lower()


def test_chunked_input_stays_chunked_if_asked(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode
) -> None:
    gateway = start_gateway("--http-to", uwsgi_node.spec, "--http-chunked-input")
    head = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    with gateway.connect() as client:
        client.send(head + b"3\r\nabc\r\n")
        client.send(b"2;x=y\r\nde\r\n0\r\n\r\n")
        assert client.read_response(b"POST").status == 200
    seen = uwsgi_node.only()
    assert isinstance(seen, SeenUwsgi)
    assert seen.body == b"abcde"
    assert seen.var(b"HTTP_TRANSFER_ENCODING") == b"chunked"
    assert seen.all(b"CONTENT_LENGTH") == []
