import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.observe.http import MAX_HEAD, BadRequest, Request, parse, plain


@pytest.mark.parametrize(
    ("head", "path"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"/"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"/metrics"),
        (b"GET http://a:1/healthz HTTP/1.1\r\nhOST:a\r\nX: \xff\r\n\r\n", b"/healthz"),
        (b"GET http://a HTTP/1.0\r\n\r\n", b"/"),
        (b"GET http://a?q HTTP/1.0\r\n\r\n", b"/"),
        (b"GET /x HTTP/1.0\r\n\r\nrest of the stream", b"/x"),
    ],
)
def test_requests_that_are_understood(head: bytes, path: bytes) -> None:
    assert parse(head) == Request(b"GET", path)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.0\r\n folded: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.0\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.0\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.0\nX: a\r\n\r\n",
        b"GET  / HTTP/1.0\r\n\r\n",
        b"GET  HTTP/1.0\r\n\r\n",
        b"GET ?x HTTP/1.0\r\n\r\n",
        b"GET x HTTP/1.0\r\n\r\n",
        b"GET /\xff HTTP/1.0\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.0 \r\n\r\n",
        b"GET /\r\n\r\n",
        b"G(T / HTTP/1.0\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_requests_that_are_refused(head: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(head)
    assert caught.value.status == 400


def test_an_endless_head_is_refused() -> None:
    assert parse(b"GET / HTTP/1.0\r\nX: " + b"a" * 100) is None
    with pytest.raises(BadRequest) as caught:
        parse(b"GET / HTTP/1.0\r\nX: ".ljust(MAX_HEAD, b"a"))
    assert caught.value.status == 431


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_refused_or_incomplete(data: bytes) -> None:
    try:
        request = parse(data + b"\r\n\r\n")
    except BadRequest:
        return
    assert request is not None


def test_head_of_a_response_tells_the_length_of_what_get_would_send() -> None:
    assert plain(200, "ok", head_only=True) + b"ok\n" == plain(200, "ok")
