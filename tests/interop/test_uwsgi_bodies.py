"""Bodies in both directions through a gateway to a real uWSGI application."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import pytest
from support.uwgate import Gateway, running

from interop.apps.workhorse import blob, blob_digest
from interop.clients import Client, fetch
from interop.peers import Gate, Peer

MEGABYTE = 1 << 20
SIZE = 10 * MEGABYTE


def test_post_with_content_length(router: Gateway) -> None:
    reply = fetch(router.port, "/echo", method="POST", body=b"a=1&b=2")
    assert (reply.status, reply.body) == (200, b"a=1&b=2")


def test_post_without_a_body(router: Gateway) -> None:
    with Client(router.port) as client:
        for _ in range(2):
            reply = client.request("POST", "/digest", body=b"")
            assert reply.json()["length"] == 0


def test_chunked_post_reaches_the_application_with_a_length(router: Gateway) -> None:
    """The default: the body is gathered, so that plain CGI applications can read it."""
    parts = [b"one,", b"two,", b"x" * 5000, b"end"]
    seen = fetch(router.port, "/digest", method="POST", body=iter(parts)).json()
    whole = b"".join(parts)
    assert seen == {
        "length": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
        "CONTENT_LENGTH": str(len(whole)),
        "HTTP_TRANSFER_ENCODING": None,
    }


def test_empty_chunked_post(router: Gateway) -> None:
    seen = fetch(router.port, "/digest", method="POST", body=iter(())).json()
    assert (seen["length"], seen["CONTENT_LENGTH"]) == (0, "0")


def test_chunked_post_with_trailers_keeps_the_connection(router: Gateway) -> None:
    with Client(router.port) as client:
        client.start("POST", "/digest", [("Transfer-Encoding", "chunked")])
        client.send(b"abc")
        client.finish([("X-Checksum", "1")])
        assert client.response().json()["length"] == 3
        assert client.request("GET", "/after").json()["PATH_INFO"] == "/after"


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_upload_of_ten_megabytes(router: Gateway, chunked: bool) -> None:
    with Client(router.port) as client:
        framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(SIZE))
        client.start("PUT", "/digest", [framing])
        for part in blob(SIZE):
            client.send(part)
        client.finish()
        seen = client.response().json()
    assert (seen["length"], seen["sha256"]) == (SIZE, blob_digest(SIZE))
    assert seen["CONTENT_LENGTH"] == str(SIZE)


def test_chunked_input_reaches_uwsgis_chunked_api(uwsgi_app: Peer) -> None:
    with running("--http-to", uwsgi_app.address, "--http-chunked-input") as gateway:
        parts = [b"a" * 10, b"b" * 300, b"c" * 70000]
        seen = fetch(gateway.port, "/chunks", method="POST", body=iter(parts)).json()
        assert seen["sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()
        assert sum(seen["sizes"]) == sum(map(len, parts))
        plain = fetch(gateway.port, "/digest", method="POST", body=b"with a length").json()
        assert plain["length"] == 13


def test_chunked_input_arrives_while_it_is_sent(uwsgi_app: Peer) -> None:
    """The first chunk gets through although the last one never comes."""
    with (
        running("--http-to", uwsgi_app.address, "--http-chunked-input") as gateway,
        Client(gateway.port) as client,
    ):
        client.start("POST", "/first-chunk", [("Transfer-Encoding", "chunked")])
        client.send(b"hello")
        assert client.head().status == 200
        assert next(client.parts()) == b"hello"


def test_download_of_ten_megabytes(router: Gateway) -> None:
    with Client(router.port) as client:
        for _ in range(2):
            reply = client.request("GET", f"/download?size={SIZE}", keep=False)
            assert reply.get("content-length") == str(SIZE)
            assert (reply.size, reply.sha256) == (SIZE, blob_digest(SIZE))


def test_unframed_response_is_chunked_for_http_1_1(router: Gateway) -> None:
    with Client(router.port) as client:
        for size in (0, 1, 3 * MEGABYTE):
            reply = client.request("GET", f"/unframed?size={size}", keep=False)
            assert reply.get("transfer-encoding") == "chunked"
            assert reply.get("content-length") is None
            assert (reply.size, reply.sha256) == (size, blob_digest(size))


def test_unframed_response_ends_with_the_connection_for_http_1_0(router: Gateway) -> None:
    with router.connect() as client:
        client.send(b"GET /unframed?size=100000 HTTP/1.0\r\nHost: h\r\n\r\n")
        head, body = client.read_to_end().split(b"\r\n\r\n", 1)
    assert b"transfer-encoding" not in head.lower()
    assert body == b"".join(blob(100000))


def test_a_stream_arrives_as_it_is_made(router: Gateway, gate: Gate) -> None:
    with Client(router.port) as client:
        client.start("GET", f"/stream?gate={gate.path}")
        client.finish()
        reply = client.head()
        parts = client.parts()
        assert (reply.status, reply.get("transfer-encoding")) == (200, "chunked")
        assert next(parts) == b"first\n"
        gate.open()
        assert b"".join(parts) == b"second\n"
        assert client.request("GET", "/after").status == 200


@pytest.mark.parametrize("code", [204, 304])
def test_statuses_without_a_body(router: Gateway, code: int) -> None:
    with Client(router.port) as client:
        for _ in range(2):
            reply = client.request("GET", f"/status?code={code}")
            assert (reply.status, reply.body, reply.get("x-status")) == (code, b"", "yes")
            assert reply.get("transfer-encoding") is None
        assert client.request("GET", "/after").json()["PATH_INFO"] == "/after"


def test_304_keeps_its_length_field(router: Gateway) -> None:
    with Client(router.port) as client:
        reply = client.request("GET", "/status?code=304&length=77")
        assert (reply.status, reply.get("content-length"), reply.body) == (304, "77", b"")
        assert client.request("GET", "/after").status == 200


@pytest.mark.parametrize("target", ["/download?size=500", "/unframed?size=500"])
def test_head_has_no_body_even_if_the_application_sends_one(router: Gateway, target: str) -> None:
    with Client(router.port) as client:
        for _ in range(2):
            reply = client.request("HEAD", target)
            assert (reply.status, reply.body) == (200, b"")
        assert client.request("GET", "/after").json()["PATH_INFO"] == "/after"


def test_large_response_head(router: Gateway) -> None:
    reply = fetch(router.port, "/fields?count=20&size=1000")
    assert [reply.get(f"x-big-{i}") for i in range(20)] == ["v" * 1000] * 20
    assert reply.body == b"ok"


def test_answer_before_the_body_was_read(router: Gateway) -> None:
    """The application refuses without reading: its answer gets through, nothing hangs."""

    def endless() -> Iterator[bytes]:
        return itertools.repeat(b"x" * 65536, 400)

    with Client(router.port) as client:
        client.start("POST", "/deaf", [("Content-Length", str(400 * 65536))])
        try:
            for part in endless():
                client.send(part)
            client.finish()
        except (BrokenPipeError, ConnectionResetError):
            pass
        reply = client.response()
        assert (reply.status, reply.body) == (403, b"deaf")


def test_pipelined_requests_are_answered_in_order(router: Gateway) -> None:
    with router.connect() as client:
        client.send(b"".join(b"GET /pipe/%d HTTP/1.1\r\nHost: h\r\n\r\n" % i for i in range(10)))
        for i in range(10):
            assert b'"PATH_INFO": "/pipe/%d"' % i in client.read_response().body


def test_half_closed_client_gets_its_answer(router: Gateway, gate: Gate) -> None:
    with router.connect() as client:
        client.send(f"GET /slow?gate={gate.path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        client.half_close()
        gate.open()
        assert b'"slow": "done"' in client.read_response().body


def test_client_that_leaves_does_no_harm(router: Gateway, gate: Gate) -> None:
    with router.connect() as client:
        client.send(f"GET /slow?gate={gate.path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        gate.reached()
        client.reset()
    gate.open()
    assert fetch(router.port, "/after").status == 200
