"""Requests of HTTP/2 as HTTP/1, responses of HTTP/1 as HTTP/2, priorities, states and windows."""

from __future__ import annotations

import hpack as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols import http2, http2_fields
from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.http1_request import (
    CHUNKED,
    RequestParser,
    RequestPolicy,
    parse_request_line,
)
from uwgate.protocols.http2 import ErrorCode, Http2Error, StreamError
from uwgate.protocols.http2_fields import (
    UNKNOWN,
    FieldError,
    RequestFields,
    field_block,
    response_block,
    trailer_lines,
)
from uwgate.protocols.http2_priority import Priority, parse_priority
from uwgate.protocols.http2_streams import State, Windows, judge

GET = ((b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/a?b"), (b":authority", b"h.x"))
POST = ((b":method", b"POST"), *GET[1:])
CONNECT = (
    (b":method", b"CONNECT"), (b":scheme", b"https"), (b":path", b"/chat"),
    (b":authority", b"h.x"), (b":protocol", b"websocket"),
)  # fmt: skip


def without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [field for field in GET if field[0] != name]


def test_a_usual_request() -> None:
    translator = RequestFields()
    fields = (*GET, (b"accept", b"*/*"), (b"cookie", b"a=1"), (b"x", b""), (b"cookie", b"b=2"))
    for _ in range(2):
        head = translator.head(fields, ended=True)
        assert head.line == b"GET /a?b HTTP/1.1"
        assert head.raw == b"\r\nHost: h.x\r\naccept: */*\r\nx: \r\ncookie: a=1; b=2\r\n\r\n"
        assert (head.length, head.priority, head.websocket) == (UNKNOWN, b"", False)
    assert RequestParser(RequestPolicy()).parse(head.raw).simple


def test_bodies() -> None:
    translator = RequestFields()
    assert translator.head(POST, ended=True).raw == b"\r\nHost: h.x\r\n\r\n"
    unknown = translator.head(POST, ended=False)
    assert RequestParser(RequestPolicy()).parse(unknown.raw).length == CHUNKED
    known = translator.head((*POST, (b"content-length", b"12")), ended=False)
    assert known.length == 12
    assert RequestParser(RequestPolicy()).parse(known.raw).length == 12
    assert translator.head((*POST, (b"content-length", b"0")), ended=True).length == 0


def test_authority_and_host() -> None:
    translator = RequestFields()
    for fields in (
        (*GET, (b"host", b"H.X")),
        (*without(b":authority"), (b"host", b"h.x")),
    ):
        assert b"\r\nHost: h.x\r\n" in translator.head(fields, ended=True).raw


def test_options_and_te_and_priority() -> None:
    translator = RequestFields()
    asterisk = [(b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*"), GET[3]]
    assert translator.head(asterisk, ended=True).line == b"OPTIONS * HTTP/1.1"
    head = translator.head((*GET, (b"te", b"trailers"), (b"priority", b"u=1")), ended=True)
    assert head.priority == b"u=1"
    assert head.raw == b"\r\nHost: h.x\r\npriority: u=1\r\n\r\n"
    plain = translator.head([(b":method", b"CONNECT"), (b":authority", b"h:1")], ended=False)
    assert plain.line == b"CONNECT h:1 HTTP/1.1"


def test_a_websocket() -> None:
    fields = (*CONNECT, (b"sec-websocket-version", b"13"), (b"sec-websocket-key", b"theirs"))
    head = RequestFields().head(fields, ended=False, key=b"k")
    assert b"theirs" not in head.raw
    assert head.websocket
    assert head.line == b"GET /chat HTTP/1.1"
    block = RequestParser(RequestPolicy()).parse(head.raw)
    assert (block.upgrade, block.length) == (b"websocket", 0)
    assert b"\r\nSec-WebSocket-Key: k\r\n" in head.raw
    other = RequestFields().head((*GET, (b"sec-websocket-key", b"x")), ended=True)
    assert other.raw == b"\r\nHost: h.x\r\nsec-websocket-key: x\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        without(b":method"),
        without(b":scheme"),
        without(b":path"),
        without(b":authority"),
        [*without(b":path"), (b":path", b"")],
        [*without(b":path"), (b":path", b"*")],
        [*without(b":path"), (b":path", b"http://h/")],
        [*without(b":scheme"), (b":scheme", b"ftp")],
        [*without(b":method"), (b":method", b"G T")],
        [*GET, GET[0]],
        [*GET, (b":path", b"/")],
        [*GET, (b":status", b"200")],
        [*GET, (b":unknown", b"x")],
        [(b"a", b"b"), *GET],
        [*GET, (b"host", b"other")],
        [*GET, (b"host", b"h.x"), (b"host", b"other")],
        [*without(b":authority"), (b"host", b"a"), (b"host", b"a")],
        [*GET, (b"Upper", b"x")],
        [*GET, (b"", b"x")],
        [*GET, (b"a b", b"x")],
        [*GET, (b"a:", b"x")],
        [*GET, (b"a\r\nb", b"x")],
        [*GET, (b"connection", b"close")],
        [*GET, (b"keep-alive", b"1")],
        [*GET, (b"proxy-connection", b"1")],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"upgrade", b"h2c")],
        [*GET, (b"te", b"gzip")],
        [*GET, (b"a", b"x\r\ny: z")],
        [*GET, (b"a", b"x\0")],
        [*GET, (b"a", b" x")],
        [*GET, (b"a", b"x\t")],
        [*GET, (b"cookie", b"a\nb")],
        [*without(b":authority"), (b":authority", b"h\r\nx: y")],
        [*GET, (b"content-length", b"5")],
        [*POST, (b"content-length", b"+5")],
        [*POST, (b"content-length", b"5"), (b"content-length", b"5")],
        [(b":method", b"CONNECT"), *GET[1:]],
        [*CONNECT],
    ],
)
def test_what_is_malformed(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(FieldError):
        RequestFields().head(fields, ended=True, key=b"k")


def test_other_protocols_are_malformed() -> None:
    for fields, key in (
        ([*CONNECT[:4], (b":protocol", b"connect-udp")], b"k"),
        ([*GET, (b":protocol", b"websocket")], b"k"),
        ([*CONNECT], b""),
        ([*CONNECT, (b"content-length", b"5")], b"k"),
    ):
        with pytest.raises(FieldError):
            RequestFields().head(fields, ended=False, key=key)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_fields, "_MOST_KEPT", 3)
    translator = RequestFields()
    for number in range(20):
        field = (b"x", b"%d" % (number % 6))
        head = translator.head((*GET, field, (b"long", b"y" * 600)), ended=True)
        assert b"\r\nx: %d\r\nlong: yyy" % (number % 6) in head.raw
    assert len(translator._known) <= 3


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=12) | st.sampled_from([name for name, _ in CONNECT]),
            st.binary(max_size=12),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_nothing_is_smuggled(extra: list[tuple[bytes, bytes]], ended: bool) -> None:
    """Whatever the fields are: what comes out is one head of HTTP/1 with one line a field."""
    try:
        head = RequestFields().head((*GET, *extra), ended=ended)
    except FieldError:
        return
    assert head.raw.startswith(b"\r\n")
    assert head.raw.endswith(b"\r\n\r\n")
    assert head.raw.find(b"\r\n\r\n") == len(head.raw) - 4
    lines = head.raw[2:-4].split(b"\r\n")
    assert len(lines) <= 2 + len(extra)
    try:
        parse_request_line(head.line)
        RequestParser(RequestPolicy()).parse(head.raw)
    except Http1Error:
        pass


def test_trailers() -> None:
    fields = [(b"x-checksum", b"1"), (b"content-length", b"5"), (b"grpc-status", b"0")]
    assert trailer_lines(fields) == b"x-checksum: 1\r\ngrpc-status: 0\r\n"
    assert trailer_lines([]) == b""
    for field in ((b":path", b"/"), (b"A", b"b"), (b"a", b"b\n"), (b"connection", b"x")):
        with pytest.raises(FieldError):
            trailer_lines([field])


def test_responses() -> None:
    head = (
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nX:  y \r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\nSet-Cookie: a=b\r\n"
    )
    for end in (b"", b"\r\n"):
        assert oracle.Decoder().decode(response_block(head + end)) == [
            (":status", "404"), ("content-type", "text/html"), ("x", "y"), ("set-cookie", "a=b"),
        ]  # fmt: skip
    assert oracle.Decoder().decode(field_block(b"Date: now\r\n")) == [("date", "now")]


@pytest.mark.parametrize(
    ("value", "priority"),
    [
        (b"", (3, False)),
        (b"u=0", (0, False)),
        (b"u=7, i", (7, True)),
        (b"i, u=1", (1, True)),
        (b"i=?0", (3, False)),
        (b"i=?1;x=y,u=2;z", (2, True)),
        (b"u=1, u=5", (5, False)),
        (b"u=8", (3, False)),
        (b"u=-1", (3, False)),
        (b"xu=1", (3, False)),
        (b"foo, u=4 ,i ", (4, True)),
        (b"u=1," * 100, (3, False)),
    ],
)
def test_priorities(value: bytes, priority: tuple[int, bool]) -> None:
    assert parse_priority(value) == Priority(*priority)


def test_states() -> None:
    for state in State:
        assert judge(state, http2.PRIORITY, 1)
        assert not judge(state, 0xBE, 1)
    assert judge(State.OPEN, http2.DATA, 1)
    assert not judge(State.RESET, http2.DATA, 1)
    assert judge(State.IDLE, http2.HEADERS, 1)
    with pytest.raises(StreamError) as stream:
        judge(State.HALF_CLOSED, http2.DATA, 5)
    assert (stream.value.stream, stream.value.code) == (5, ErrorCode.STREAM_CLOSED)
    for state, code in (
        (State.CLOSED, ErrorCode.STREAM_CLOSED),
        (State.IDLE, ErrorCode.PROTOCOL_ERROR),
    ):
        with pytest.raises(Http2Error) as connection:
            judge(state, http2.DATA, 5)
        assert connection.value.code == code


def test_windows() -> None:
    windows = Windows(10, 100)
    windows.grant(5)
    assert windows.send == 15
    with pytest.raises(OverflowError):
        windows.grant(http2.MAX_WINDOW)
    windows.received(60)
    assert windows.done(39) == 0
    assert windows.done(21) == 60
    assert windows.receive == 100
    windows.received(100)
    with pytest.raises(OverflowError):
        windows.received(1)


def test_a_window_that_others_hold_is_made_wider_at_once() -> None:
    """What is left of it may be too little for half of it to become free."""
    windows = Windows(0, 100)
    windows.received(60)
    assert windows.done(20) == 0
    windows.received(30)
    assert (windows.receive, windows.done(5)) == (10, 25)
    assert (windows.receive, windows.done(5)) == (35, 0)
