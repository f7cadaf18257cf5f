"""What clients get: framing, heads, compression, error bodies; h11 reads them all."""

from __future__ import annotations

import gzip
import json
import zlib

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config.settings import ErrorPage
from uwgate.protocols.http1_response import ResponseHead, ResponseParser, ResponsePolicy
from uwgate.router.errors import PHRASES, Failure
from uwgate.router.responder import (
    CHUNKED,
    CONTINUE,
    NONE,
    PLAIN,
    UNTIL_CLOSE,
    Gzip,
    choose_framing,
    error_response,
    response_head,
    switch_head,
)

DATE = b"Date: Sat, 21 Nov 2026 09:00:00 GMT\r\n"
ANSWERED = [failure for failure in Failure if failure.status]


def head_of(*lines: bytes, status: bytes = b"200 OK") -> ResponseHead:
    """A node's head as the router has it."""
    raw = b"".join(line + b"\r\n" for line in (b"HTTP/1.1 " + status, *lines)) + b"\r\n"
    return ResponseParser(ResponsePolicy(gzip=True)).parse(raw)


def fields(
    head: ResponseHead,
    framing: int,
    *,
    minor: int = 1,
    persist: bool = True,
    gzip: bool = False,
) -> list[bytes]:
    """The lines of the head that a client gets."""
    out = response_head(head, framing, DATE, minor=minor, persist=persist, gzip=gzip)
    assert out.endswith(b"\r\n\r\n")
    return out[:-4].split(b"\r\n")


# --- framing (RFC 9112 §6) ------------------------------------------------------------------------

LENGTH = head_of(b"Content-Length: 5")
CHUNKS = head_of(b"Transfer-Encoding: chunked")
BARE = head_of()
NO_CONTENT = head_of(status=b"204 No Content")
NOT_MODIFIED = head_of(b"Content-Length: 5", status=b"304 Not Modified")


@pytest.mark.parametrize(
    ("head", "is_head", "minor", "auto_chunked", "framing"),
    [
        (LENGTH, False, 1, True, PLAIN),
        (LENGTH, False, 0, False, PLAIN),
        (LENGTH, True, 1, True, NONE),
        (CHUNKS, False, 1, True, CHUNKED),
        (CHUNKS, False, 1, False, CHUNKED),
        (CHUNKS, False, 0, True, UNTIL_CLOSE),  # HTTP/1.0 knows no chunks
        (CHUNKS, True, 1, True, NONE),
        (BARE, False, 1, True, CHUNKED),
        (BARE, False, 1, False, UNTIL_CLOSE),
        (BARE, False, 0, True, UNTIL_CLOSE),
        (BARE, True, 1, True, NONE),
        (NO_CONTENT, False, 1, True, NONE),
        (NO_CONTENT, False, 0, True, NONE),
        (NOT_MODIFIED, False, 1, True, NONE),
    ],
)
def test_how_a_body_is_framed(
    head: ResponseHead, is_head: bool, minor: int, auto_chunked: bool, framing: int
) -> None:
    chosen = choose_framing(
        head, is_head=is_head, minor=minor, gzip=False, auto_chunked=auto_chunked
    )
    assert chosen == framing


def test_compressed_bodies_have_no_length_that_could_be_known() -> None:
    for head in (LENGTH, CHUNKS, BARE):
        for is_head, framing in ((False, CHUNKED), (True, NONE)):
            chosen = choose_framing(head, is_head=is_head, minor=1, gzip=True, auto_chunked=False)
            assert chosen == framing
    assert choose_framing(NO_CONTENT, is_head=False, minor=1, gzip=True, auto_chunked=True) == NONE


# --- heads ----------------------------------------------------------------------------------------

OK, DATED = b"HTTP/1.1 200 OK", DATE[:-2]


@pytest.mark.parametrize(
    ("head", "framing", "minor", "persist", "expected"),
    [
        (LENGTH, PLAIN, 1, True, [OK, b"Content-Length: 5", DATED]),
        (LENGTH, NONE, 1, True, [OK, b"Content-Length: 5", DATED]),  # HEAD: what GET would have
        (LENGTH, PLAIN, 1, False, [OK, b"Content-Length: 5", DATED, b"Connection: close"]),
        (LENGTH, PLAIN, 0, True, [OK, b"Content-Length: 5", DATED, b"Connection: keep-alive"]),
        (LENGTH, PLAIN, 0, False, [OK, b"Content-Length: 5", DATED, b"Connection: close"]),
        (CHUNKS, CHUNKED, 1, True, [OK, b"Transfer-Encoding: chunked", DATED]),
        (CHUNKS, NONE, 1, True, [OK, DATED]),
        (CHUNKS, UNTIL_CLOSE, 0, False, [OK, DATED, b"Connection: close"]),
        (BARE, CHUNKED, 1, True, [OK, b"Transfer-Encoding: chunked", DATED]),
        (NO_CONTENT, NONE, 1, True, [b"HTTP/1.1 204 No Content", DATED]),
        (
            NOT_MODIFIED, NONE, 1, True,
            [b"HTTP/1.1 304 Not Modified", b"Content-Length: 5", DATED],
        ),
    ],
)  # fmt: skip
def test_heads(
    head: ResponseHead, framing: int, minor: int, persist: bool, expected: list[bytes]
) -> None:
    assert fields(head, framing, minor=minor, persist=persist) == expected


def test_the_date_of_the_node_is_kept() -> None:
    head = head_of(b"Date: yesterday", b"Content-Length: 0")
    assert fields(head, PLAIN) == [OK, b"Date: yesterday", b"Content-Length: 0"]


@pytest.mark.parametrize(
    ("persist", "connection"),
    [(True, b"Connection: upgrade"), (False, b"Connection: upgrade, close")],
)
def test_upgrade_required_says_to_what(persist: bool, connection: bytes) -> None:
    """RFC 9110 §15.5.22: 426 must carry Upgrade, and Connection names it."""
    head = head_of(b"Upgrade: websocket", b"Content-Length: 0", status=b"426 Upgrade Required")
    assert fields(head, PLAIN, persist=persist)[-2:] == [b"Upgrade: websocket", connection]
    other = head_of(b"Upgrade: h2c", b"Content-Length: 0")
    assert b"Upgrade: h2c" not in fields(other, PLAIN)


def test_switching_protocols() -> None:
    head = head_of(
        b"Upgrade: websocket", b"Connection: Upgrade", b"X: y", status=b"101 Switching Protocols"
    )
    assert switch_head(head) == (
        b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n"
        b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )


# --- compression ----------------------------------------------------------------------------------


def test_the_head_of_a_compressed_response() -> None:
    head = head_of(
        b"uWSGI-Encoding: gzip",
        b'ETag: "a"',
        b"Content-MD5: x",
        b"accept-ranges: bytes",
        b"Content-Length: 5",
        b"X: y",
    )
    assert head.gzip
    assert fields(head, CHUNKED, gzip=True) == [
        OK,
        b'ETag: W/"a"',  # RFC 9110 §8.8.1: the bytes are others now
        b"X: y",
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Vary: Accept-Encoding",
        DATED,
    ]
    assert not any(line.startswith(b"Content-Length") for line in fields(head, NONE, gzip=True))


def test_a_weak_etag_and_a_vary_that_says_it_already() -> None:
    head = head_of(b"uWSGI-Encoding: gzip", b'ETag: W/"a"', b"Vary: accept-encoding")
    lines = fields(head, CHUNKED, gzip=True)
    assert lines[1:3] == [b'ETag: W/"a"', b"Vary: accept-encoding"]
    assert len([line for line in lines if line.lower().startswith(b"vary")]) == 1


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_every_compressed_piece_can_be_read_at_once(pieces: list[bytes]) -> None:
    compressor, reader = Gzip(), zlib.decompressobj(31)
    whole = b""
    for piece in pieces:
        out = compressor.data(piece)
        whole += out
        assert reader.decompress(out) == piece
    end = compressor.end()
    assert reader.decompress(end) == b""
    assert reader.eof
    assert gzip.decompress(whole + end) == b"".join(pieces)


# --- errors ---------------------------------------------------------------------------------------


def heard(out: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    """An error response as h11 reads it."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(out)
    connection.receive_data(b"")
    response = connection.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return response, body


def error(
    failure: Failure,
    accept: bytes = b"",
    pages: dict[int, ErrorPage] | None = None,
    *,
    persist: bool = False,
    is_head: bool = False,
) -> tuple[dict[bytes, bytes], bytes]:
    """``(fields, body)`` of an error response."""
    out, size = error_response(failure, accept, DATE, pages or {}, persist=persist, is_head=is_head)
    response, body = heard(out, "HEAD" if is_head else "GET")
    assert response.status_code == failure.status
    assert response.reason == PHRASES[failure.status].encode()
    assert len(body) == size
    headers = dict(response.headers)
    assert headers[b"date"] == DATED.removeprefix(b"Date: ")
    assert headers[b"cache-control"] == b"no-store"
    return headers, body


@pytest.mark.parametrize("failure", ANSWERED)
@pytest.mark.parametrize("persist", [False, True])
def test_every_failure_has_an_answer(failure: Failure, persist: bool) -> None:
    headers, body = error(failure, persist=persist)
    assert headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert body.decode() == f"{failure.status} {PHRASES[failure.status]}: {failure.text}\n"
    assert (headers.get(b"connection") == b"close") is not persist
    assert (b"allow" in headers) is (failure.status == 405)  # RFC 9110 §15.5.6
    assert (b"retry-after" in headers) is (failure.status == 503)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (b"", b"text/plain"),
        (b"*/*", b"text/plain"),
        (b"text/plain", b"text/plain"),
        (b"image/png", b"text/plain"),
        (b"text/html", b"text/html"),
        (b"Text/HTML;q=0.9", b"text/html"),
        (b"text/html,application/xhtml+xml,*/*;q=0.8", b"text/html"),
        (b"application/json", b"application/json"),
        (b"application/json, text/plain, */*", b"application/json"),
        (b"application/json, text/html;q=0.5", b"application/json"),
        (b"text/html, application/json;q=0.5", b"text/html"),
        (b"\xff\x00", b"text/plain"),
    ],
)
def test_the_body_suits_the_client(accept: bytes, content_type: bytes) -> None:
    headers, body = error(Failure.NO_NODE_ALIVE, accept)
    assert headers[b"content-type"].partition(b";")[0] == content_type
    assert b"503" in body
    assert Failure.NO_NODE_ALIVE.text.encode() in body


def test_json_errors() -> None:
    for failure in ANSWERED:
        _headers, body = error(failure, b"application/json")
        assert json.loads(body) == {
            "status": failure.status,
            "title": PHRASES[failure.status],
            "reason": failure.word,
            "detail": failure.text,
        }


def test_html_errors_are_escaped() -> None:
    for failure in ANSWERED:
        body = error(failure, b"text/html")[1].decode()
        assert body.startswith("<!DOCTYPE html>")
        assert f"<h1>{failure.status} {PHRASES[failure.status]}</h1>" in body
        assert "'" not in body  # "application's" would be the first to slip through


@pytest.mark.parametrize("accept", [b"", b"text/html", b"application/json"])
def test_head_gets_the_fields_without_the_body(accept: bytes) -> None:
    headers, body = error(Failure.NODE_TIMEOUT, accept, is_head=True)
    assert body == b""
    assert headers == error(Failure.NODE_TIMEOUT, accept)[0]
    assert int(headers[b"content-length"]) > 0


def test_pages_of_the_operator() -> None:
    pages = {503: ErrorPage(b"<b>back soon</b>\xff", "text/html; charset=latin-1")}
    headers, body = error(Failure.NO_NODE, b"application/json", pages)
    assert body == b"<b>back soon</b>\xff"
    assert headers[b"content-type"] == b"text/html; charset=latin-1"
    assert headers[b"retry-after"] == b"1"
    assert b"json" in error(Failure.NODE_EMPTY, b"application/json", pages)[0][b"content-type"]
    assert error(Failure.NO_NODE, b"", pages, is_head=True)[0] == headers


def test_an_empty_page() -> None:
    headers, body = error(Failure.NO_NODE, b"", {503: ErrorPage(b"", "text/plain")})
    assert (headers[b"content-length"], body) == (b"0", b"")


def test_continue() -> None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(
        h11.Request(method="PUT", target="/", headers=[("Host", "h"), ("Content-Length", "5")])
    )
    connection.receive_data(CONTINUE)
    event = connection.next_event()
    assert isinstance(event, h11.InformationalResponse)
    assert event.status_code == 100
