"""What a real uWSGI application sees of a request, on each kind of socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.uwgate import Gateway, running

from interop import peers
from interop.clients import Client, fetch
from interop.peers import Peer


@pytest.mark.parametrize("kind", ["unix", "abstract", "tcp"])
def test_each_kind_of_socket_serves(uwsgi_app: Peer, kind: str) -> None:
    address = uwsgi_app.addresses[["unix", "abstract", "tcp"].index(kind)]
    with running("--http-to", address) as gateway, Client(gateway.port) as client:
        for number in range(3):
            seen = client.request("GET", f"/seen/{number}?n={number}").json()
            assert seen["PATH_INFO"] == f"/seen/{number}"
            assert seen["QUERY_STRING"] == f"n={number}"


def test_variables_of_a_request(router: Gateway) -> None:
    with Client(router.port) as client:
        seen = client.request(
            "GET",
            "/a%20b/%C3%A9/c/../d?x=%20y&z",
            [("User-Agent", "interop/1"), ("X-Twice", "one"), ("x-twice", "two")],
        ).json()
        port = client.port
    assert seen["REQUEST_METHOD"] == "GET"
    assert seen["REQUEST_URI"] == "/a%20b/%C3%A9/c/../d?x=%20y&z"
    assert seen["PATH_INFO"] == "/a b/\xc3\xa9/d"
    assert seen["QUERY_STRING"] == "x=%20y&z"
    assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert seen["SCRIPT_NAME"] == ""
    assert seen["SERVER_NAME"] == socket.gethostname()
    assert seen["SERVER_PORT"] == str(router.port)
    assert seen["UWSGI_ROUTER"] == "http"
    assert seen["REMOTE_ADDR"] == "127.0.0.1"
    assert seen["REMOTE_PORT"] == str(port), "uWSGI's byte order mistake must not be copied"
    assert seen["HTTP_HOST"] == f"127.0.0.1:{router.port}"
    assert seen["HTTP_USER_AGENT"] == "interop/1"
    assert seen["HTTP_X_TWICE"] == "one, two"
    assert "HTTPS" not in seen
    assert "CONTENT_LENGTH" not in seen or seen["CONTENT_LENGTH"] == ""


def test_content_fields_have_no_prefix(router: Gateway) -> None:
    fields = [("Content-Type", "text/x-interop")]
    seen = fetch(router.port, "/env", method="POST", fields=fields, body=b"12345").json()
    assert seen["CONTENT_TYPE"] == "text/x-interop"
    assert seen["CONTENT_LENGTH"] == "5"
    assert "HTTP_CONTENT_TYPE" not in seen
    assert "HTTP_CONTENT_LENGTH" not in seen


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a/./b//c", "/a/b//c"),
        ("/a/../../../z", "/z"),
        ("/%2Fetc", "//etc"),
        ("/a+b", "/a+b"),
        ("/a%23x", "/a#x"),
        ("/..a/...", "/..a/..."),
    ],
)
def test_path_info(router: Gateway, target: str, path: str) -> None:
    seen = fetch(router.port, target).json()
    assert seen["PATH_INFO"] == path
    assert seen["REQUEST_URI"] == target


def test_encoded_dot_segments_do_not_escape(router: Gateway) -> None:
    seen = fetch(router.port, "/a/%2e%2e/%2E%2e/etc/passwd").json()
    assert ".." not in str(seen["PATH_INFO"]).split("/")


def test_fields_that_could_deceive_the_application_are_dropped(router: Gateway) -> None:
    seen = fetch(
        router.port,
        "/",
        fields=[
            ("Proxy", "http://evil"),
            ("X_Real_User", "root"),
            ("UWSGI_FILE", "/etc/passwd"),
            ("Uwsgi-Script", "x"),
            ("X-Kept", "yes"),
        ],
    ).json()
    assert seen["HTTP_X_KEPT"] == "yes"
    assert "HTTP_PROXY" not in seen
    assert "HTTP_X_REAL_USER" not in seen
    assert not [k for k in seen if k.startswith("UWSGI_") and k != "UWSGI_ROUTER"]


def test_http_1_0_and_absolute_form(router: Gateway) -> None:
    with router.connect() as client:
        reply = client.ask(b"GET http://example.test/abs?q=1 HTTP/1.1\r\nHost: other.test\r\n\r\n")
        assert b'"PATH_INFO": "/abs"' in reply.body
        assert b'"HTTP_HOST": "example.test"' in reply.body
    with router.connect() as client:
        reply = client.ask(b"GET /old HTTP/1.0\r\n\r\n")
        assert reply.status == 200
        assert b'"SERVER_PROTOCOL": "HTTP/1.0"' in reply.body


def test_http_var_reaches_the_application(uwsgi_app: Peer) -> None:
    options = ["--http-var", "DOCUMENT_ROOT=/var/www", "--http-var", "FORMULA=a=b"]
    with running("--http-to", uwsgi_app.address, *options) as gateway:
        seen = fetch(gateway.port, "/").json()
    assert seen["DOCUMENT_ROOT"] == "/var/www"
    assert seen["FORMULA"] == "a=b"


def test_http_modifier_selects_the_plugin(uwsgi_app: Peer) -> None:
    """uWSGI names the modifier for which it has no plugin in its log."""
    with running("--http-to", uwsgi_app.address, "--http-modifier1", "9") as gateway:
        reply = fetch(gateway.port, "/")
    assert reply.status == 502
    assert "unavailable modifier requested: 9" in uwsgi_app.logged


def test_server_name_as_http_host(uwsgi_app: Peer) -> None:
    with (
        running("--http-to", uwsgi_app.address, "--http-server-name-as-http-host", "1") as gateway,
        gateway.connect() as client,
    ):
        reply = client.ask(b"GET / HTTP/1.1\r\nHost: name.test\r\n\r\n")
    assert b'"SERVER_NAME": "name.test"' in reply.body


def test_large_request_head(router: Gateway) -> None:
    value = "c" * 7000
    seen = fetch(router.port, "/", fields=[(f"X-Big-{i}", value) for i in range(6)]).json()
    assert [seen[f"HTTP_X_BIG_{i}"] for i in range(6)] == [value] * 6


def test_head_above_the_limit_is_answered(router: Gateway) -> None:
    with router.connect() as client:
        head = b"GET / HTTP/1.1\r\nHost: h\r\n"
        client.send(head + b"X-Big: " + b"b" * 70000 + b"\r\n\r\n")
        assert client.read_response().status == 431


def test_packet_above_the_nodes_buffer_is_answered(tmp_path: Path) -> None:
    """uWSGI closes without a word on a packet above its buffer-size: the client gets a 502."""
    options = ["--buffer-size", "4096"]
    with (
        peers.uwsgi(tmp_path, str(tmp_path / "small.sock"), options=options) as small,
        running("--http-to", small.address) as gateway,
    ):
        assert fetch(gateway.port, "/").status == 200
        assert fetch(gateway.port, "/", fields=[("X-Big", "b" * 6000)]).status == 502
        assert fetch(gateway.port, "/").status == 200
