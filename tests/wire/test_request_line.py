"""Request lines: RFC 9112 §2.2, §3, §3.1 to §3.3; what is refused, what passes and how."""

from __future__ import annotations

import pytest

from wire.conftest import Pair

REST = b"\r\nHost: h\r\n\r\n"

MALFORMED = [
    b"GET  / HTTP/1.1",
    b"GET /  HTTP/1.1",
    b"GET\t/ HTTP/1.1",
    b"GET /\tHTTP/1.1",
    b"GET / HTTP/1.1 ",
    b"GET / HTTP/1.1\t",
    b" GET / HTTP/1.1",
    b"\tGET / HTTP/1.1",
    b"GET /\x0bHTTP/1.1",
    b"GET /\x0cHTTP/1.1",
    b"GET",
    b"GET ",
    b"GET /",
    b"GET HTTP/1.1",
    b"GET  HTTP/1.1",
    b"/ HTTP/1.1",
    b" / HTTP/1.1",
    b"GET / a HTTP/1.1",
    b"GET / HTTP/1.1 HTTP/1.1",
    b"get / http/1.1",
    b"GET / http/1.1",
    b"GET / Http/1.1",
    b"GET / HTTP",
    b"GET / HTTP/",
    b"GET / HTTP/1",
    b"GET / HTTP/1.",
    b"GET / HTTP/.1",
    b"GET / HTTP/1.1.1",
    b"GET / HTTP/1.1x",
    b"GET / HTTP/1.x",
    b"GET / HTTP/1,1",
    b"GET / HTTP 1.1",
    b"GET / HTTP/ 1.1",
    b"GET / HTTP/1.1;",
    b"GET / HTTP/\xc2\xb9.1",
    b"GET / XTTP/1.1",
    b"GET / RTSP/1.0",
    b"G(T / HTTP/1.1",
    b"G:T / HTTP/1.1",
    b"G\xe9T / HTTP/1.1",
    b"G\x00T / HTTP/1.1",
    b"GE\rT / HTTP/1.1",
    b"GET /\r HTTP/1.1",
    b"GET /a\rb HTTP/1.1",
    b"GET / HTTP/1.1\r",
    b"GET /a\nb HTTP/1.1",
    b"GET / HTTP/1.1\nX: y",
    b"\rGET / HTTP/1.1",
    b"\x00GET / HTTP/1.1",
    b"\xef\xbb\xbfGET / HTTP/1.1",
]

VERSIONS = [b"HTTP/0.9", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/2", b"HTTP/3.0", b"HTTP/9.9"]
VERSIONS += [b"HTTP/11.1", b"HTTP/1.10", b"HTTP/1.01", b"HTTP/01.1", b"HTTP/10.1", b"HTTP/0.0"]

BAD_TARGETS = [
    b"a",
    b"a/b",
    b"../x",
    b"?x",
    b"*",  # GET: asterisk-form is for OPTIONS only (§3.2.4)
    b"h:80",  # authority-form is for CONNECT only (§3.2.3)
    b"h",
    b"/a#b",
    b"/#",
    b"#",
    b"http://",
    b"http:///x",
    b"http:/x",
    b"http:x",
    b"http://h#f",
    b"http://h/x#f",
    b"http://u@h/",
    b"http://u:p@h/",
    b"http://h:x/",
    b"http://h:80:80/",
    b"http://[::1/",
    b"http://h,i/",
    b"http://h\\i/",
    b"http://%00/",
    b"http://:80/",
    b"http://?x",
    b"://h/",
    b"ftp://h/",
    b"javascript:x",
]

GOOD_TARGETS = [
    b"/",
    b"/?",
    b"/a?b=c&d",
    b"/a?b?c",
    b"/%2e%2E/%41%c3%A9",
    b"//a//b",
    b"/a/../b/./c",
    b"/;a=b,c:d@e!$&'()*+",
    b'/[]{}|\\^`<>"',
    b"/?http://other/",
    b"/" + b"a" * 4000,
]

METHODS = [b"GET", b"DELETE", b"PATCH", b"PROPFIND", b"M-SEARCH", b"TRACE", b"FOO", b"get", b"PRI"]
METHODS += [b"!#$%&'*+-.^_`|~09azAZ", b"X" * 200]


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_request_line_is_refused(pair: Pair, line: bytes) -> None:
    pair.refused(line + REST, 400, 414, 505)


@pytest.mark.parametrize("version", VERSIONS)
def test_another_version_is_refused(pair: Pair, version: bytes) -> None:
    pair.refused(b"GET / " + version + REST, 400, 505)


@pytest.mark.parametrize("byte", [*range(0x21), *range(0x7F, 0x100, 8), 0xFF])
def test_no_control_space_or_high_byte_in_the_target(pair: Pair, byte: int) -> None:
    pair.refused(b"GET /a%cb HTTP/1.1" % byte + REST, 400)


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_a_malformed_target_is_refused(pair: Pair, target: bytes) -> None:
    pair.refused(b"GET " + target + b" HTTP/1.1" + REST, 400)


@pytest.mark.parametrize("target", [b"h:443", b"h", b"[::1]:443", b"/", b"*", b"http://h/"])
def test_connect_is_not_served(pair: Pair, target: bytes) -> None:
    reply = pair.refused(b"CONNECT " + target + b" HTTP/1.1" + REST, 405, 400)
    if target == b"h:443":
        assert reply.status == 405
        assert reply.get(b"allow"), "RFC 9110 §15.5.6: a 405 MUST carry Allow"


@pytest.mark.parametrize("target", GOOD_TARGETS)
def test_the_target_is_forwarded_byte_for_byte(pair: Pair, target: bytes) -> None:
    assert pair.forwarded(b"GET " + target + b" HTTP/1.1" + REST).target == target


def test_even_a_broken_escape(http_pair: Pair) -> None:
    target = b"/%00/%zz%"
    assert http_pair.forwarded(b"GET " + target + b" HTTP/1.1" + REST).target == target


@pytest.mark.parametrize("method", METHODS)
def test_any_method_is_forwarded_as_it_is(pair: Pair, method: bytes) -> None:
    assert pair.forwarded(method + b" /m HTTP/1.1" + REST, method).method == method


def test_asterisk_form_of_options(pair: Pair) -> None:
    seen = pair.forwarded(b"OPTIONS * HTTP/1.1" + REST, b"OPTIONS")
    assert (seen.method, seen.target) == (b"OPTIONS", b"*")


@pytest.mark.parametrize(
    ("absolute", "host", "target"),
    [
        (b"http://Example.COM:8080/x?y", b"Example.COM:8080", b"/x?y"),
        (b"HTTP://other/", b"other", b"/"),
        (b"http://other", b"other", b"/"),
        (b"http://other?q", b"other", b"/?q"),
        (b"http://[::1]:9/p", b"[::1]:9", b"/p"),
        (b"https://other/s", b"other", b"/s"),
        (b"http://other//a", b"other", b"//a"),
    ],
)
def test_absolute_form_replaces_host(
    pair: Pair, absolute: bytes, host: bytes, target: bytes
) -> None:
    # RFC 9112 §3.2.2: a proxy MUST ignore the received Host and replace it with the target's.
    seen = pair.forwarded(b"GET " + absolute + b" HTTP/1.1\r\nA: b\r\nHost: h\r\nC: d\r\n\r\n")
    assert (seen.target, seen.field(b"host")) == (target, [host])
    assert (seen.field(b"a"), seen.field(b"c")) == ([b"b"], [b"d"])


def test_absolute_form_of_options_without_a_path_is_the_asterisk(pair: Pair) -> None:
    seen = pair.forwarded(b"OPTIONS http://other HTTP/1.1" + REST, b"OPTIONS")
    assert (seen.target, seen.field(b"host")) == (b"*", [b"other"])


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n", b"Host: a b\r\n"])
def test_absolute_form_does_not_excuse_a_bad_host(pair: Pair, hosts: bytes) -> None:
    # RFC 9112 §3.2: 400 to any HTTP/1.1 request that lacks Host, repeats it or malforms it.
    pair.refused(b"GET http://other/ HTTP/1.1\r\n" + hosts + b"\r\n", 400)


@pytest.mark.parametrize("bytewise", [False, True])
def test_one_empty_line_before_a_request_is_ignored(pair: Pair, bytewise: bool) -> None:
    # §2.2: at least one empty line (CRLF) received prior to the request-line SHOULD be ignored.
    request = b"\r\nGET /%d HTTP/1.1" + REST
    stream = request % 1 + request % 2
    with pair.connect() as client:
        if bytewise:
            client.send_bytewise(stream)
        else:
            client.send(stream)
        assert client.read_response().body == b"GET /1 0"
        assert client.read_response().body == b"GET /2 0"
    assert [each.target for each in pair.node.seen] == [b"/1", b"/2"]


@pytest.mark.parametrize("before", [b"\n", b"\r", b"\n\r\n", b" \r\n", b"\r\n ", b"\r\n\n"])
def test_anything_else_before_a_request_is_not(pair: Pair, before: bytes) -> None:
    pair.refused(before + b"GET / HTTP/1.1" + REST, 400)


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_an_http_node_always_gets_our_own_version(http_pair: Pair, version: bytes) -> None:
    # RFC 9112 §2.3: an intermediary sends its own HTTP-version.
    with http_pair.connect() as client:
        assert client.ask(b"GET /v " + version + REST).status == 200
    assert http_pair.node.only().raw.startswith(b"GET /v HTTP/1.1\r\n")


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_a_response_always_has_our_own_version(pair: Pair, version: bytes) -> None:
    with pair.connect() as client:
        reply = client.ask(b"GET /v " + version + REST)
        assert (reply.status, reply.version) == (200, b"1.1")
