"""uwsgi variables said in HTTP: what an HTTP node gets, and what cannot be said."""

from __future__ import annotations

import pytest
from support.fast import packed, variables

from uwgate.protocols.http1 import Fault, Http1Error
from uwgate.protocols.http1_request import RequestBlock, RequestLine
from uwgate.protocols.uwsgi_request import PacketReader
from uwgate.protocols.uwsgi_to_http import Translator


def translate(pairs: list[tuple[bytes, bytes]]) -> tuple[RequestLine, RequestBlock]:
    translator = Translator(x_forwarded=True, forwarded=False)
    return translator.translate(PacketReader().read(packed(pairs)))


def fields(*more: tuple[bytes, bytes]) -> list[bytes]:
    _, block = translate(variables(b"/x", b"GET", b"h", *more))
    return block.forward.split(b"\r\n")[1:]


def fault_of(pairs: list[tuple[bytes, bytes]]) -> Fault:
    with pytest.raises(Http1Error) as caught:
        translate(pairs)
    return caught.value.fault


def test_request_line_and_host() -> None:
    line, block = translate(variables(b"/a%20b?c=d", b"PUT", b"www.example.com:80"))
    assert line.line == b"PUT /a%20b?c=d HTTP/1.1"
    assert block.host == b"www.example.com:80"
    assert block.forward == b"\r\nHost: www.example.com:80\r\nX-Forwarded-Host: www.example.com:80"


def test_fields_get_their_names_back() -> None:
    found = fields((b"HTTP_USER_AGENT", b"curl"), (b"HTTP_X_A", b""), (b"HTTPS", b"on"))
    assert found == [b"Host: h", b"User-Agent: curl", b"X-A: ", b"X-Forwarded-Host: h"]


def test_length_and_type() -> None:
    pairs = [
        (name, {b"CONTENT_LENGTH": b"2", b"CONTENT_TYPE": b"a/b"}.get(name, value))
        for name, value in variables()
    ]
    more = [
        (b"HTTP_CONTENT_LENGTH", b"2"),
        (b"HTTP_CONTENT_TYPE", b"a/b"),
        (b"HTTP_TRANSFER_ENCODING", b"chunked"),
        (b"HTTP_EXPECT", b"100-continue"),
    ]
    _, block = translate(pairs + more)
    assert block.length == 2
    assert block.forward.split(b"\r\n")[1:4] == [
        b"Host: h",
        b"Content-Type: a/b",
        b"Content-Length: 2",
    ]
    assert b"chunked" not in block.forward
    assert not block.expect


def test_claims_of_the_client_and_hop_by_hop_fields_are_dropped() -> None:
    found = fields(
        (b"HTTP_X_FORWARDED_FOR", b"203.0.113.1"),
        (b"HTTP_FORWARDED", b"for=x"),
        (b"HTTP_PROXY", b"http://evil"),
        (b"HTTP_CONNECTION", b"keep-alive, X-Secret"),
        (b"HTTP_X_SECRET", b"1"),
        (b"HTTP_TE", b"trailers"),
    )
    assert found == [b"Host: h", b"X-Forwarded-Host: h"]


def test_names_that_are_no_field_names_are_left_out() -> None:
    assert fields((b"HTTP_", b"x"), (b"HTTP_A\r\nB", b"x"), (b"HTTP_A:B", b"x"))[1:] == [
        b"X-Forwarded-Host: h"
    ]


@pytest.mark.parametrize("value", [b"a\r\nX-Evil: 1", b"a\nb", b"a\rb", b"a\0b", b"a\x7fb"])
def test_values_do_not_make_lines(value: bytes) -> None:
    assert fault_of(variables(b"/x", b"GET", b"h", (b"HTTP_A", value))) is Fault.BAD_MESSAGE


@pytest.mark.parametrize(
    ("target", "method"),
    [
        (b"/a b", b"GET"),
        (b"/a\r\nHost: evil", b"GET"),
        (b"", b"GET"),
        (b"x", b"GET"),
        (b"/", b"GE T"),
        (b"/", b""),
        (b"/", b"GET\r\n"),
        (b"/a#b", b"GET"),
        (b"h:80", b"CONNECT"),
    ],
)
def test_lines_that_cannot_be_said(target: bytes, method: bytes) -> None:
    assert fault_of(variables(target, method)) is Fault.BAD_MESSAGE


def test_hosts() -> None:
    pairs = [each for each in variables() if each[0] != b"HTTP_HOST"]
    assert translate(pairs)[1].host == b"front"  # SERVER_NAME
    pairs = [(name, b"_" * 300 if name == b"SERVER_NAME" else value) for name, value in pairs]
    key = (b"UWSGI_FASTROUTER_KEY", b"k")
    assert translate([*pairs, key])[1].host is None
    assert fault_of([*variables(b"/x", b"GET", b"a/b"), key]) is Fault.BAD_HOST
    line, block = translate(variables(b"http://other/p", b"GET", b"h"))
    assert (line.line, block.host) == (b"GET /p HTTP/1.1", b"h")  # the key of the request
    pairs = [each for each in variables(b"http://other/p") if each[0] != b"HTTP_HOST"]
    assert translate(pairs)[1].host == b"other"


def test_path_info_serves_without_request_uri() -> None:
    pairs = [each for each in variables(b"/p") if each[0] != b"REQUEST_URI"]
    assert translate(pairs)[0].target == b"/p"
