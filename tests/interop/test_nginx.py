"""nginx as an HTTP node: compression, ranges, chunked, conditional requests, WebSockets."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator

import pytest
from support.uwgate import Gateway, running

from interop import peers
from interop.apps.workhorse import blob, blob_digest
from interop.clients import Client, WebSocket, fetch
from interop.peers import Peer

TEXT = b"all work and no play makes a dull page\n" * 500

LOCATIONS = """
        location = /ws {{
            proxy_pass http://{echo};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
        }}
        location = /seen {{
            set $hop "$connection|$connection_requests|$http_connection";
            set $who "$http_host|$http_x_forwarded_for|$http_x_forwarded_proto";
            return 200 "$who|$hop";
        }}
        location = /app {{
            uwsgi_pass unix:{app};
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param REQUEST_URI $request_uri;
            uwsgi_param PATH_INFO $document_uri;
            uwsgi_param QUERY_STRING $query_string;
            uwsgi_param SERVER_PROTOCOL $server_protocol;
        }}
        location /up/ {{ dav_methods PUT; create_full_put_path on; }}
"""


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, uwsgi_app: Peer, echo_server: str
) -> Iterator[Peer]:
    where = tmp_path_factory.mktemp("nginx")
    www = where / "www"
    www.mkdir()
    (www / "page.txt").write_bytes(TEXT)
    (www / "big.bin").write_bytes(b"".join(blob(10 << 20)))
    with peers.nginx(where, LOCATIONS.format(echo=echo_server, app=uwsgi_app.address)) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def front(node: Peer) -> Iterator[Gateway]:
    with running("--http-to", f"http://{node.address}") as gateway:
        yield gateway


def test_what_nginx_sees(front: Gateway) -> None:
    with Client(front.port) as client:
        seen = [client.request("GET", "/seen").body.decode().split("|") for _ in range(3)]
    for host, forwarded_for, proto, _, _, connection in seen:
        assert (host, forwarded_for, proto) == (f"127.0.0.1:{front.port}", "127.0.0.1", "http")
        assert connection in ("", "keep-alive")
    assert len({line[3] for line in seen}) == 1, "one pooled connection"
    numbers = [int(line[4]) for line in seen]
    assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_compressed_and_chunked(front: Gateway) -> None:
    with Client(front.port) as client:
        for _ in range(2):
            reply = client.request("GET", "/page.txt", [("Accept-Encoding", "gzip")])
            assert reply.get("content-encoding") == "gzip"
            assert reply.get("transfer-encoding") == "chunked"
            assert gzip.decompress(reply.body) == TEXT
            plain = client.request("GET", "/page.txt")
            assert (plain.body, plain.get("content-length")) == (TEXT, str(len(TEXT)))


def test_ranges(front: Gateway) -> None:
    with Client(front.port) as client:
        one = client.request("GET", "/big.bin", [("Range", "bytes=65530-65545")])
        assert (one.status, one.body) == (206, b"".join(blob(131072))[65530:65546])
        assert one.get("content-range") == f"bytes 65530-65545/{10 << 20}"
        many = client.request("GET", "/page.txt", [("Range", "bytes=0-3,10-12")])
        assert many.status == 206
        assert str(many.get("content-type")).startswith("multipart/byteranges")
        none = client.request("GET", "/page.txt", [("Range", "bytes=99999999-")])
        assert none.status == 416
        assert client.request("GET", "/page.txt").body == TEXT


def test_conditional_requests_and_head(front: Gateway) -> None:
    with Client(front.port) as client:
        tag = client.request("GET", "/page.txt").get("etag")
        assert tag is not None
        unchanged = client.request("GET", "/page.txt", [("If-None-Match", tag)])
        assert (unchanged.status, unchanged.body) == (304, b"")
        head = client.request("HEAD", "/page.txt")
        assert (head.get("content-length"), head.body) == (str(len(TEXT)), b"")
        assert client.request("GET", "/absent").status == 404


def test_large_file(front: Gateway) -> None:
    reply = fetch(front.port, "/big.bin", keep=False)
    assert (reply.size, reply.sha256) == (10 << 20, blob_digest(10 << 20))


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_upload(front: Gateway, node: Peer, chunked: bool) -> None:
    size = 10 << 20
    with Client(front.port) as client:
        framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))
        client.start("PUT", f"/up/{chunked}.bin", [framing])
        for part in blob(size):
            client.send(part)
        client.finish()
        assert client.response().status in (201, 204)
    stored = node.log.parent / "www" / "up" / f"{chunked}.bin"
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == blob_digest(size)


def test_websocket_through_two_proxies(front: Gateway) -> None:
    with WebSocket(front.port, "/ws") as client:
        for text in ("hello", "w" * 100000):
            assert client.echo(text) == text


def test_two_proxies_before_uwsgi(front: Gateway) -> None:
    assert fetch(front.port, "/app?x=1").json()["QUERY_STRING"] == "x=1"


def test_error_of_the_node_passes_through(front: Gateway) -> None:
    """An error of the node itself is the node's answer, not the gateway's."""
    reply = fetch(front.port, "/up/x", method="DELETE")
    assert reply.status == 405
    assert str(reply.get("server")).startswith("nginx")
