"""Request lines (RFC 9112 §3): four forms of target, one form to pass on."""

from __future__ import annotations

import pytest

from uwgate.protocols.http1 import Fault, Http1Error
from uwgate.protocols.http1_request import RequestLine, parse_request_line

ALL_BYTES = [bytes((i,)) for i in range(256)]
TCHAR = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
# A target is ASCII without white space, controls and "#" (RFC 3986 §2, RFC 9112 §3.2).
TARGET_BYTES = set(range(0x21, 0x7F)) - {0x23}


def _fault(line: bytes) -> Fault:
    with pytest.raises(Http1Error) as caught:
        parse_request_line(line)
    return caught.value.fault


def _facts(request: RequestLine) -> tuple[bytes, bytes, int, bytes, bytes]:
    return request.method, request.target, request.minor, request.authority, request.line


# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("byte", ALL_BYTES)
def test_methods_are_tokens(byte: bytes) -> None:
    line = b"G" + byte + b"T / HTTP/1.1"
    if byte[0] in TCHAR:
        assert parse_request_line(line).method == b"G" + byte + b"T"
    else:
        assert _fault(line) is Fault.BAD_MESSAGE


@pytest.mark.parametrize("byte", ALL_BYTES)
def test_targets_are_printable_ascii(byte: bytes) -> None:
    line = b"GET /a" + byte + b"b HTTP/1.1"
    if byte[0] in TARGET_BYTES:
        assert parse_request_line(line).target == b"/a" + byte + b"b"
    else:
        assert _fault(line) is Fault.BAD_MESSAGE


@pytest.mark.parametrize("minor", [b"0", b"1"])
def test_methods_are_case_sensitive(minor: bytes) -> None:
    assert parse_request_line(b"get / HTTP/1." + minor).method == b"get"


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version",
    [
        b"HTTP/2",
        b"HTTP/2.0",
        b"HTTP/3",
        b"HTTP/0.9",
        b"HTTP/1.2",
        b"HTTP/1.10",
        b"HTTP/1",
        b"HTTP/9.9",
    ],
)
def test_other_versions_are_told_from_garbage(version: bytes) -> None:
    assert _fault(b"GET / " + version) is Fault.BAD_VERSION


@pytest.mark.parametrize(
    "version",
    [
        b"http/1.1", b"HTTP/1.", b"HTTP/.1", b"HTTP/1.1 ", b"HTTP/1.1\r", b"HTTP 1.1", b"HTTP/+1.1",
        b"HTTP/1,1", b"HTTP/1.1x", b"HTTPS/1.1", b"", b"HTTP/\xb9.1", b"HTTP/1.1\n",
    ],
)  # fmt: skip
def test_versions_that_are_no_versions(version: bytes) -> None:
    assert _fault(b"GET / " + version) is Fault.BAD_MESSAGE


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET",
        b"GET /",  # HTTP/0.9
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\tHTTP/1.1",
        b"GET /\x0bHTTP/1.1",
        b"GET / HTTP/1.1 HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /#f HTTP/1.1",
        b"GET /#f HTTP/1.0",
        b" / HTTP/1.1",
        b"GET  HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: h",
    ],
)
def test_lines_that_are_refused(line: bytes) -> None:
    assert _fault(line) is Fault.BAD_MESSAGE


# --- forms of the target (§3.2) ------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [b"/", b"//", b"/a//b", b"/?", b"/a?b=c?d", b"/%zz", b"/\\", b'/"<>']
)
def test_origin_form_is_passed_on_byte_for_byte(target: bytes) -> None:
    line = b"GET " + target + b" HTTP/1.1"
    assert _facts(parse_request_line(line)) == (b"GET", target, 1, b"", line)
    # The node always gets HTTP/1.1 (RFC 9110 §2.5: a gateway speaks its own version).
    assert _facts(parse_request_line(line[:-1] + b"0")) == (b"GET", target, 0, b"", line)


@pytest.mark.parametrize(
    ("target", "authority", "origin"),
    [
        (b"http://h", b"h", b"/"),
        (b"http://h/", b"h", b"/"),
        (b"http://h:81/p?q", b"h:81", b"/p?q"),
        (b"HTTP://H/p", b"H", b"/p"),
        (b"https://h/p", b"h", b"/p"),
        (b"http://h?q", b"h", b"/?q"),
        (b"http://[::1]:8/x", b"[::1]:8", b"/x"),
        (b"http://h//evil/..", b"h", b"//evil/.."),
        (b"http://h/http://i/", b"h", b"/http://i/"),
    ],
)
@pytest.mark.parametrize("minor", [0, 1])
def test_absolute_form_becomes_origin_form(
    target: bytes, authority: bytes, origin: bytes, minor: int
) -> None:
    request = parse_request_line(b"GET %b HTTP/1.%d" % (target, minor))
    line = b"GET " + origin + b" HTTP/1.1"
    assert _facts(request) == (b"GET", origin, minor, authority, line)
    assert not request.plain


@pytest.mark.parametrize(
    "target",
    [
        b"*", b"h", b"h:80", b"p/q", b"?q", b"http:/h/", b"http:h", b"http://", b"http:///p",
        b"http://?q", b"http://u@h/", b"http://u:p@h/", b"http://h:x/", b"http://h\\/", b"ftp://h/",
        b"file:///etc/passwd", b"http://[::1/", b"http://h:80:80/", b"httpx://h/", b"javascript:1",
    ],
)  # fmt: skip
def test_targets_of_no_form(target: bytes) -> None:
    assert _fault(b"GET " + target + b" HTTP/1.1") is Fault.BAD_MESSAGE


def test_asterisk_form_is_for_options() -> None:
    line = b"OPTIONS * HTTP/1.1"
    assert _facts(parse_request_line(line)) == (b"OPTIONS", b"*", 1, b"", line)
    assert _fault(b"options * HTTP/1.1") is Fault.BAD_MESSAGE
    assert _fault(b"OPTIONS ** HTTP/1.1") is Fault.BAD_MESSAGE


def test_options_of_a_whole_server_through_a_proxy() -> None:
    """RFC 9112 §3.2.4: an absolute-form target without path and query means ``*``."""
    request = parse_request_line(b"OPTIONS http://h:1 HTTP/1.1")
    assert _facts(request) == (b"OPTIONS", b"*", 1, b"h:1", b"OPTIONS * HTTP/1.1")
    assert parse_request_line(b"OPTIONS http://h/ HTTP/1.1").target == b"/"
    assert parse_request_line(b"OPTIONS http://h?q HTTP/1.1").target == b"/?q"


def test_connect_keeps_its_authority_form() -> None:
    request = parse_request_line(b"CONNECT h:443 HTTP/1.1")
    assert (request.method, request.target, request.plain) == (b"CONNECT", b"h:443", False)


# --- what is said about a request ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        (b"GET / HTTP/1.1", True),
        (b"POST / HTTP/1.1", True),
        (b"BREW / HTTP/1.1", True),
        (b"GET / HTTP/1.0", False),
        (b"HEAD / HTTP/1.1", False),
        (b"CONNECT / HTTP/1.1", False),
        (b"SOURCE / HTTP/1.1", False),
        (b"GET http://h/ HTTP/1.1", False),
        (b"OPTIONS * HTTP/1.1", False),
    ],
)
def test_plain_requests(line: bytes, plain: bool) -> None:
    assert parse_request_line(line).plain is plain


@pytest.mark.parametrize(
    ("method", "repeatable"),
    [
        (b"GET", True), (b"HEAD", True), (b"OPTIONS", True), (b"TRACE", True), (b"PUT", True),
        (b"DELETE", True), (b"POST", False), (b"PATCH", False), (b"CONNECT", False),
        (b"get", False),
    ],
)  # fmt: skip
def test_idempotent_methods(method: bytes, repeatable: bool) -> None:
    """RFC 9110 §9.2.2; an unknown method promises nothing."""
    assert parse_request_line(method + b" / HTTP/1.1").repeatable is repeatable


@pytest.mark.parametrize("minor", [0, 1])
def test_the_protocol_is_that_of_the_client(minor: int) -> None:
    request = parse_request_line(b"GET / HTTP/1.%d" % minor)
    assert request.protocol == b"HTTP/1.%d" % minor
    assert request.variables == b""
