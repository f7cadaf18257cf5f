"""Header blocks of requests: framing, Host, Connection, and what is passed on."""

from __future__ import annotations

import pytest
from http1_tools import PLAIN, block_of, decode, facts, fault, forwarded, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols.http1 import Fault, Http1Error
from uwgate.protocols.http1_request import CHUNKED, RequestParser, RequestPolicy

TRUSTED = RequestPolicy(trusted=True)

# --- framing (RFC 9112 §6) -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ((), 0),
        ((b"Content-Length: 0",), 0),
        ((b"Content-Length: 5",), 5),
        ((b"content-length:5",), 5),
        ((b"CONTENT-LENGTH: \t5 \t",), 5),
        ((b"Content-Length: 005",), 5),
        ((b"Transfer-Encoding: chunked",), CHUNKED),
        ((b"transfer-encoding:Chunked ",), CHUNKED),
        ((b"X-Content-Length: 5", b"X-Transfer-Encoding: chunked"), 0),
        ((b"Content_Length: 5", b"Transfer_Encoding: chunked"), 0),
    ],
)
def test_body_lengths(lines: tuple[bytes, ...], length: int) -> None:
    block = parse(b"Host: h", *lines)
    assert block.length == length
    assert block.simple is (length == 0)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: chunked", b"Content-Length: 5"), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: identity", b"Content-Length: 5"), Fault.BAD_FRAMING),
        ((b"Content-Length: 5", b"Content-Length: 6"), Fault.BAD_FRAMING),
        ((b"Content-Length: 5", b"content-length: 5"), Fault.BAD_FRAMING),
        ((b"Content-Length: 5, 5",), Fault.BAD_FRAMING),
        ((b"Content-Length:",), Fault.BAD_FRAMING),
        ((b"Content-Length: +5",), Fault.BAD_FRAMING),
        ((b"Content-Length: 5_0",), Fault.BAD_FRAMING),
        ((b"Content-Length: 9999999999999999999",), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: chunked, gzip",), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: gzip, chunked",), Fault.UNKNOWN_CODING),
        ((b"Transfer-Encoding:",), Fault.UNKNOWN_CODING),
        ((b"Transfer-Encoding : chunked",), Fault.BAD_MESSAGE),
        ((b" Transfer-Encoding: chunked",), Fault.BAD_MESSAGE),
        ((b"Transfer-Encoding: chunked\x0b",), Fault.BAD_MESSAGE),
        ((b"Transfer-Encoding:\n chunked",), Fault.BAD_MESSAGE),
        ((b"X: y\nTransfer-Encoding: chunked",), Fault.BAD_MESSAGE),
        ((b"X: y\rTransfer-Encoding: chunked",), Fault.BAD_MESSAGE),
        ((b"Content-Length: 5\x00",), Fault.BAD_MESSAGE),
    ],
)
def test_ambiguous_framing_is_refused(lines: tuple[bytes, ...], expected: Fault) -> None:
    assert fault(b"Host: h", *lines) is expected


def test_the_node_gets_one_canonical_length() -> None:
    block = parse(b"Host: h", b"cOnTeNt-LeNgTh:  0042 ")
    assert forwarded(block) == [b"Host: h", b"Content-Length: 42"]
    assert decode(block.variables) == [(b"HTTP_HOST", b"h"), (b"CONTENT_LENGTH", b"42")]
    assert forwarded(parse(b"Content-Length: 000")) == [b"Content-Length: 0"]


def test_the_node_gets_our_own_transfer_coding() -> None:
    block = parse(b"Host: h", b"tRansfer-encoding: CHUNKED", b"X: y")
    assert forwarded(block) == [b"Host: h", b"X: y", b"Transfer-Encoding: chunked"]
    assert decode(block.variables) == [(b"HTTP_HOST", b"h"), (b"HTTP_X", b"y")]


# --- limits ---------------------------------------------------------------------------------------


def test_number_of_fields() -> None:
    lines = [b"X-%d: y" % i for i in range(8)]
    policy = RequestPolicy(x_forwarded=False, max_fields=8)
    assert len(forwarded(parse(*lines, policy=policy))) == 8
    assert fault(*lines, b"X: y", policy=policy) is Fault.TOO_MANY_FIELDS


def test_a_value_that_no_uwsgi_variable_can_hold() -> None:
    assert fault(b"Host: h", b"X: " + b"a" * 65536) is Fault.TOO_MANY_FIELDS
    assert fault(b"Cookie: " + b"a" * 40000, b"Cookie: " + b"b" * 40000) is Fault.TOO_MANY_FIELDS
    largest = RequestParser(PLAIN).parse(block_of(b"X: " + b"a" * 65535))
    assert len(largest.variables) == 2 + len(b"HTTP_X") + 2 + 65535


# --- Host (RFC 9112 §3.2) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "key"),
    [(b"h", "h"), (b"Ex.COM:8080", "ex.com:8080"), (b"[::A]", "[::a]"), (b" h \t", "h")],
)
def test_the_routing_key_is_the_host_in_lower_case(value: bytes, key: str) -> None:
    block = parse(b"Host:" + value)
    assert (block.host, block.key) == (value.strip(b" \t"), key)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Host: a", b"Host: b"),
        (b"Host: a", b"host: a"),
        (b"Host:",),
        (b"Host: a, b",),
        (b"Host: a/../b",),
        (b"Host: u@h",),
        (b"Host: h:99999999",),
    ],
)
def test_hosts_that_are_refused(lines: tuple[bytes, ...]) -> None:
    assert fault(*lines) is Fault.BAD_HOST


def test_without_a_host() -> None:
    block = parse(b"X: y")
    assert (block.host, block.key, block.simple) == (None, "", False)
    assert parse().forward == b""
    assert parse().variables == b""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"Host: a",), [b"Host: b:1"]),
        ((), [b"Host: b:1"]),
        ((b"X: y", b"hOST:a", b"Z: w"), [b"Host: b:1", b"X: y", b"Z: w"]),
        ((b"X-Host: a", b"Hosts: c"), [b"Host: b:1", b"X-Host: a", b"Hosts: c"]),
    ],
)
def test_the_authority_of_the_target_replaces_host(
    lines: tuple[bytes, ...], expected: list[bytes]
) -> None:
    """RFC 9112 §3.2.2: a proxy ignores the received Host field of an absolute-form request."""
    parser = RequestParser(PLAIN)
    block = parser.with_host(parser.parse(block_of(*lines)), b"b:1")
    assert (block.host, block.key) == (b"b:1", "b:1")
    assert forwarded(block) == expected


# --- Connection (RFC 9110 §7.6.1) ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "close", "keep_alive"),
    [
        ((), False, False),
        ((b"Connection: close",), True, False),
        ((b"Connection: CLOSE",), True, False),
        ((b"Connection: keep-alive",), False, True),
        ((b"Connection: Keep-Alive, x",), False, True),
        ((b"Connection: keep-alive, close",), True, False),
        ((b"Connection: keep-alive", b"Connection: close"), True, False),
        ((b"Connection: x, ,close,",), True, False),
        ((b"Connection:",), False, False),
        ((b"X-Connection: close",), False, False),
        ((b"Proxy-Connection: close",), False, False),
        ((b"Keep-Alive: timeout=5",), False, False),
    ],
)
def test_persistence(lines: tuple[bytes, ...], close: bool, keep_alive: bool) -> None:
    block = parse(b"Host: h", *lines)
    assert (block.close, block.keep_alive, block.simple) == (close, keep_alive, True)


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: close",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"Proxy: http://evil",  # httpoxy
        b"HTTP2-Settings: AAMAAABk",
        b"X-Forwarded-For: 1.2.3.4",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: evil",
        b"Forwarded: for=1.2.3.4",
    ],
)
def test_fields_that_stop_here(line: bytes) -> None:
    block = parse(b"Host: h", line, b"X: y")
    assert forwarded(block) == [b"Host: h", b"X: y"]
    assert decode(block.variables) == [(b"HTTP_HOST", b"h"), (b"HTTP_X", b"y")]


@pytest.mark.parametrize(
    "lines",
    [
        (b"Connection: X-A", b"X-A: 1"),
        (b"X-A: 1", b"Connection: x-a"),
        (b"x-a: 1", b"X-A: 2", b"Connection: close, X-a ,keep-alive"),
        (b"Connection: x-b", b"Connection: x-a", b"X-A: 1", b"X-B: 1"),
        (b"Connection: Accept-Encoding", b"Accept-Encoding: gzip"),
    ],
)
def test_fields_that_connection_names_stop_here(lines: tuple[bytes, ...]) -> None:
    block = parse(b"Host: h", *lines, b"X: y")
    assert forwarded(block) == [b"Host: h", b"X: y"]
    assert decode(block.variables) == [(b"HTTP_HOST", b"h"), (b"HTTP_X", b"y")]


@pytest.mark.parametrize(
    "name", [b"Host", b"content-length", b"Content-Type", b"Cookie", b"AUTHORIZATION"]
)
def test_connection_must_not_name_what_the_request_means(name: bytes) -> None:
    assert fault(b"Host: h", b"Connection: close, " + name) is Fault.BAD_MESSAGE


@pytest.mark.parametrize("value", [b"close;q=1", b"a b", b'"close"', b"clo\xe9"])
def test_connection_must_be_a_list_of_tokens(value: bytes) -> None:
    assert fault(b"Host: h", b"Connection: " + value) is Fault.BAD_MESSAGE


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        ((b"Connection: Upgrade", b"Upgrade: websocket"), b"websocket"),
        ((b"Upgrade: WebSocket", b"Connection: keep-alive, upgrade"), b"WebSocket"),
        ((b"Connection: upgrade", b"Upgrade: a/1, b"), b"a/1, b"),
        ((b"Upgrade: websocket",), b""),  # not nominated: of another connection
        ((b"Connection: upgrade",), b""),
        ((b"Connection: upgrade", b"Upgrade: a", b"Upgrade: b"), b""),
        ((b"Connection: upgrade", b"Upgrade:"), b""),
        ((b"Connection: upgrade, http2-settings", b"Upgrade: h2c"), b""),
        ((b"Connection: upgrade", b"Upgrade: websocket, H2C"), b""),
        ((b"Connection: upgrade", b"Upgrade: websocket,\th2/2"), b""),
    ],
)
def test_upgrade(lines: tuple[bytes, ...], upgrade: bytes) -> None:
    block = parse(b"Host: h", *lines)
    assert block.upgrade == upgrade
    assert block.simple is (not upgrade)
    assert forwarded(block) == [b"Host: h"]  # the head of an upgrade is put together elsewhere


# --- Expect (RFC 9110 §10.1.1) -------------------------------------------------------------------


def test_expect_continue() -> None:
    assert parse(b"Host: h", b"Expect: 100-Continue", b"Content-Length: 5").expect
    assert not parse(b"Host: h").expect
    assert not parse(b"Host: h", b"Expect: 100-continue").simple


@pytest.mark.parametrize("value", [b"", b"200-ok", b"100-continue, x", b"100-continue;x"])
def test_other_expectations_are_refused(value: bytes) -> None:
    assert fault(b"Host: h", b"Expect: " + value) is Fault.BAD_EXPECTATION
    assert fault(b"Expect: 100-continue", b"Expect: " + value) is Fault.BAD_EXPECTATION


# --- what is passed on ---------------------------------------------------------------------------


def test_end_to_end_fields_pass_byte_for_byte_in_their_order() -> None:
    lines = [
        b"Host: h",
        b"user-agent:\tx  y\t",
        b"Accept: */*",
        b"X-Empty:",
        b"x: 1",
        b"X: \xff\x80",
        b"Trailer: X-T",
        b"Cookie: a=b",
    ]
    assert forwarded(parse(*lines)) == lines


def test_gzip_is_remembered_and_passed_on() -> None:
    lines = [b"Host: h", b"Accept-Encoding: br", b"accept-encoding: gzip"]
    block = parse(*lines)
    assert block.gzip
    assert forwarded(block) == lines
    assert not parse(b"Host: h", b"Accept-Encoding: br").gzip


@pytest.mark.parametrize("lines", [(b"Host: H:1",), (b"Host: H:1", b"X-Forwarded-Host: evil")])
def test_the_host_that_the_client_asked_for(lines: tuple[bytes, ...]) -> None:
    block = parse(*lines, policy=RequestPolicy())
    assert forwarded(block) == [b"Host: H:1", b"X-Forwarded-Host: H:1"]
    assert decode(block.variables) == [(b"HTTP_HOST", b"H:1")]


def test_via_is_appended_to() -> None:
    policy = RequestPolicy(x_forwarded=False, via=b"me")
    block = parse(b"Host: h", b"Via: 1.0 fred", policy=policy)
    assert forwarded(block) == [b"Host: h", b"Via: 1.0 fred", b"Via: 1.1 me"]
    assert decode(block.variables)[1] == (b"HTTP_VIA", b"1.0 fred")


def test_forwarding_fields_of_a_trusted_peer() -> None:
    block = parse(
        b"Host: h",
        b"X-Forwarded-For: 1.1.1.1",
        b"x-forwarded-for: 2.2.2.2, 3.3.3.3",
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: outside",
        b"Forwarded: for=1.1.1.1",
        b"Forwarded: for=2.2.2.2",
        policy=TRUSTED,
    )
    assert block.x_for == b"1.1.1.1, 2.2.2.2, 3.3.3.3"
    assert block.x_proto == b"https"
    assert block.forwarded_in == b"for=1.1.1.1, for=2.2.2.2"
    assert forwarded(block) == [b"Host: h", b"X-Forwarded-Host: outside"]
    assert dict(decode(block.variables)) == {
        b"HTTP_HOST": b"h",
        b"HTTP_X_FORWARDED_HOST": b"outside",
        b"HTTP_X_FORWARDED_FOR": b"1.1.1.1, 2.2.2.2, 3.3.3.3",
        b"HTTP_X_FORWARDED_PROTO": b"https",
        b"HTTP_FORWARDED": b"for=1.1.1.1, for=2.2.2.2",
    }


def test_a_trusted_peer_that_says_nothing() -> None:
    block = parse(b"Host: h", policy=TRUSTED)
    assert (block.x_for, block.x_proto, block.forwarded_in) == (b"", b"", b"")
    assert forwarded(block) == [b"Host: h", b"X-Forwarded-Host: h"]
    assert decode(block.variables) == [(b"HTTP_HOST", b"h")]


def test_forwarding_fields_of_anybody_else_are_not_read() -> None:
    block = parse(b"Host: h", b"X-Forwarded-For: 1.1.1.1", b"Forwarded: for=1.1.1.1")
    assert (block.x_for, block.x_proto, block.forwarded_in) == (b"", b"", b"")


@pytest.mark.parametrize(
    ("policy", "lines", "simple"),
    [
        (RequestPolicy(), (), True),
        (RequestPolicy(), (b"X-Forwarded-For: 1.1.1.1",), True),
        (TRUSTED, (), True),
        (TRUSTED, (b"X-Forwarded-Host: h",), True),
        (TRUSTED, (b"X-Forwarded-For: 1.1.1.1",), False),  # to be extended
        (TRUSTED, (b"X-Forwarded-Proto: https",), False),
        (RequestPolicy(forwarded=True), (), False),
    ],
)
def test_blocks_that_leave_something_to_say(
    policy: RequestPolicy, lines: tuple[bytes, ...], simple: bool
) -> None:
    assert parse(b"Host: h", *lines, policy=policy).simple is simple


# --- uwsgi variables ------------------------------------------------------------------------------


def test_variables_of_fields() -> None:
    block = parse(
        b"Host: h", b"Content-Type: text/plain", b"content-length: 3", b"X-a.b: \t1 ", b"Empty:"
    )
    assert decode(block.variables) == [
        (b"HTTP_HOST", b"h"),
        (b"CONTENT_TYPE", b"text/plain"),
        (b"CONTENT_LENGTH", b"3"),
        (b"HTTP_X_A.B", b"1"),
        (b"HTTP_EMPTY", b""),
    ]


def test_fields_of_one_name_become_one_variable() -> None:
    """RFC 9110 §5.3: joined by commas in order; cookies by semicolons (RFC 6265 §5.4)."""
    lines = [b"X-A: 1", b"Cookie: a=1", b"X-B: 2", b"x-a:3", b"cookie: b=2", b"X-A:"]
    block = parse(*lines)
    assert decode(block.variables) == [
        (b"HTTP_X_A", b"1, 3, "),
        (b"HTTP_COOKIE", b"a=1; b=2"),
        (b"HTTP_X_B", b"2"),
    ]
    assert forwarded(block) == lines


def test_an_underscore_does_not_shadow_a_dash() -> None:
    lines = [b"X-User: good", b"X_User: evil", b"X_Only: evil", b"Host: h"]
    block = parse(*lines)
    assert decode(block.variables) == [(b"HTTP_X_USER", b"good"), (b"HTTP_HOST", b"h")]
    assert forwarded(block) == lines  # HTTP nodes can tell them apart


def test_underscores_may_be_allowed() -> None:
    policy = RequestPolicy(x_forwarded=False, allow_underscores=True)
    block = parse(b"X_User: a", b"X-User: b", b"X_Only: c", policy=policy)
    assert decode(block.variables) == [(b"HTTP_X_USER", b"a, b"), (b"HTTP_X_ONLY", b"c")]


@pytest.mark.parametrize(
    "line",
    [
        b"X_Forwarded_For: 1.2.3.4", b"X-Forwarded_For: 1.2.3.4", b"Content_Length: 7",
        b"Transfer_Encoding: chunked", b"HTTP2_Settings: x", b"x_forwarded_proto: https",
    ],
)  # fmt: skip
@pytest.mark.parametrize("allowed", [False, True])
def test_steering_fields_have_no_underscore_twins(line: bytes, allowed: bool) -> None:
    block = parse(b"Host: h", line, policy=RequestPolicy(allow_underscores=allowed, via=b""))
    assert decode(block.variables) == [(b"HTTP_HOST", b"h")]
    assert forwarded(block) == [b"Host: h", b"X-Forwarded-Host: h"]


def test_no_field_makes_a_uwsgi_variable() -> None:
    block = parse(b"UWSGI-File: /x", b"UWSGI_FILE: /x", b"uwsgi-scheme: https", b"Https: on")
    assert {key for key, _value in decode(block.variables)} == {
        b"HTTP_UWSGI_FILE",
        b"HTTP_UWSGI_SCHEME",
        b"HTTP_HTTPS",
    }


def test_the_host_as_server_name() -> None:
    policy = RequestPolicy(x_forwarded=False, server_name_as_host=True)
    block = parse(b"X: y", b"Host: h", policy=policy)
    assert decode(block.variables) == [
        (b"HTTP_X", b"y"),
        (b"SERVER_NAME", b"h"),
        (b"HTTP_HOST", b"h"),
    ]
    assert decode(parse(b"X: y", policy=policy).variables) == [(b"HTTP_X", b"y")]


# --- what is remembered ---------------------------------------------------------------------------


def test_a_large_block_is_parsed_every_time() -> None:
    parser = RequestParser(PLAIN)
    raw = block_of(b"Host: h", *(b"X-%d: " % i + b"a" * 600 for i in range(8)))
    results = [parser.parse(raw) for _ in range(4)]
    assert len({id(result) for result in results}) == 4
    assert len({result.forward for result in results}) == 1


_LINES = [
    b"Host: h", b"Host: other", b"Content-Length: 5", b"Transfer-Encoding: chunked",
    b"Connection: x-a", b"Connection: close", b"X-A: 1", b"x-a:2", b"X_A: 3", b"Cookie: a", b"bad",
    b"Expect: 100-continue", b"Accept-Encoding: gzip", b"X-Forwarded-For: 1.1.1.1", b"Via: 1.1 a",
]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(st.sampled_from(_LINES), max_size=5), max_size=8))
def test_a_parser_that_remembers_says_what_a_new_one_says(blocks: list[list[bytes]]) -> None:
    old = RequestParser(TRUSTED)
    for raw in [block_of(*lines) for lines in blocks] * 2:
        results = []
        for parser in (old, RequestParser(TRUSTED)):
            try:
                results.append(facts(parser.parse(raw)))
            except Http1Error as error:
                results.append({"fault": error.fault})
        assert results[0] == results[1]


def test_ten_thousand_different_blocks_change_no_result() -> None:
    parser = RequestParser(PLAIN)
    usual = block_of(b"Host: h", b"X: usual")
    expected = parser.parse(usual).forward
    for i in range(10_000):
        block = parser.parse(block_of(b"Host: h", b"X-Id: %d" % i))
        assert block.forward == b"\r\nHost: h\r\nX-Id: %d" % i
        if i % 1000 == 0:
            assert parser.parse(usual).forward == expected
    assert parser.parse(usual) is parser.parse(usual)
