"""h11 as the judge: what we accept it accepts too, and what we pass on it reads as we do.

Where h11 refuses we refuse as well, without exception. The other way round we are stricter, on
purpose: obs-fold, control characters and DEL in values, bare LF, lists in Content-Length, "#" in
targets, forms of targets, user names and strange bytes in Host, versions other than 1.0 and 1.1,
both Content-Length and Transfer-Encoding, Transfer-Encoding in HTTP/1.0, elements of Connection
that are not tokens, expectations other than 100-continue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.http1_request import (
    CHUNKED,
    RequestBlock,
    RequestLine,
    RequestParser,
    RequestPolicy,
    parse_request_line,
)
from uwgate.protocols.http1_response import (
    UNTIL_CLOSE,
    ResponseHead,
    ResponseParser,
    ResponsePolicy,
)

POLICIES = [
    RequestPolicy(),
    RequestPolicy(x_forwarded=False, via=b"me"),
    RequestPolicy(trusted=True, allow_underscores=True),
]


class Heard(NamedTuple):
    """What h11 understood."""

    first: tuple[bytes, ...]  # method and target, or status
    length: int  # bytes, CHUNKED, or ``absent``
    hosts: list[bytes]


def _framing(headers: Iterable[tuple[bytes, bytes]], absent: int) -> int:
    fields = dict(headers)
    if b"transfer-encoding" in fields:
        return CHUNKED
    return int(fields[b"content-length"]) if b"content-length" in fields else absent


def hear_request(head: bytes) -> Heard | None:
    """A request head as h11 reads it, or None."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request):
        return None
    hosts = [value for name, value in event.headers if name == b"host"]
    return Heard((event.method, event.target), _framing(event.headers, 0), hosts)


def hear_response(head: bytes) -> Heard | None:
    """A response head as h11 reads it, or None."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        return None
    return Heard((b"%d" % event.status_code,), _framing(event.headers, UNTIL_CLOSE), [])


def understand(
    parser: RequestParser, line: bytes, raw: bytes
) -> tuple[RequestLine, RequestBlock] | None:
    """A request as the router takes it, or None."""
    try:
        request = parse_request_line(line)
        block = parser.parse(raw)
        if block.host is None and request.minor:
            return None  # RFC 9112 §3.2: with absolute-form too
        if request.authority:
            block = parser.with_host(block, request.authority)
    except Http1Error:
        return None
    if request.method == b"CONNECT":
        return None
    if block.length == CHUNKED and not request.minor:
        return None
    return request, block


def judge_request(parser: RequestParser, line: bytes, lines: list[bytes]) -> None:
    raw = b"".join(b"\r\n" + field for field in lines) + b"\r\n\r\n"
    if raw.find(b"\r\n\r\n") + 4 != len(raw):
        return  # not one head: the router would not have cut it out like this
    understood = understand(parser, line, raw)
    if understood is None:
        return
    request, block = understood
    received = hear_request(line + raw)
    assert received is not None, "h11 refuses what we accept"
    assert received.first[0] == request.method
    assert received.length == block.length

    host = b"" if block.host is not None else b"\r\nHost: own"
    sent = hear_request(request.line + block.forward + host + b"\r\n\r\n")
    assert sent is not None, "h11 refuses what we pass on"
    assert sent.first == (request.method, request.target)
    assert sent.length == block.length
    assert sent.hosts == [block.host or b"own"]


_tokens = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=5).map(str.encode)
_noise = st.binary(max_size=8)
_names = st.one_of(
    st.sampled_from(
        [
            b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding",
            b"Connection",
            b"Expect", b"Upgrade", b"TE", b"Via", b"X-Forwarded-For", b"X_A", b"X-A", b"Cookie",
            b"Content_Length", b"Trailer", b" X", b"Host ",
        ]
    ),
    _tokens,
    _noise,
)  # fmt: skip
_values = st.one_of(
    st.sampled_from(
        [
            b"h", b"h:80", b"[::1]", b"5", b"05", b"5, 5", b"+5", b"0", b"chunked", b"Chunked ",
            b"gzip, chunked", b"close", b"X-A, upgrade", b"content-length", b"100-continue", b"",
            b"\tx\t", b"a\r\n b", b"1" * 18, b"1" * 21, b"\x7f", b"\xa05", b"host",
        ]
    ),
    _noise,
)  # fmt: skip
_colons = st.sampled_from([b":", b": ", b":\t ", b" :"])
_field = st.builds(lambda name, colon, value: name + colon + value, _names, _colons, _values)
_fields = st.lists(_field | st.sampled_from([b"Host: h", b"Content-Length: 5"]), max_size=6)
_targets = st.one_of(
    st.sampled_from([b"/", b"/a?b", b"*", b"http://o:1/p", b"http://o", b"//x", b"/#f", b"o:443"]),
    _noise.map(lambda noise: b"/" + noise),
)
_methods = (
    st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"get"]) | _tokens | _noise
)
_versions = st.sampled_from(
    [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"]
)
_lines = st.builds(lambda *parts: b" ".join(parts), _methods, _targets, _versions)


@settings(max_examples=500, deadline=None)
@given(policy=st.sampled_from(POLICIES), line=_lines, fields=_fields)
@example(policy=POLICIES[0], line=b"GET / HTTP/1.0", fields=[])
@example(policy=POLICIES[0], line=b"POST / HTTP/1.1", fields=[b"Host: h", b"Content-Length: 05"])
@example(policy=POLICIES[0], line=b"GET http://o HTTP/1.1", fields=[b"Host: h"])
@example(policy=POLICIES[0], line=b"GET http://o HTTP/1.0", fields=[])
@example(
    policy=POLICIES[0], line=b"PUT /a HTTP/1.1", fields=[b"Host: h", b"Transfer-Encoding: Chunked"]
)
@example(policy=POLICIES[2], line=b"GET / HTTP/1.1", fields=[b"Host: h", b"Content_Length: 7"])
def test_requests(policy: RequestPolicy, line: bytes, fields: list[bytes]) -> None:
    judge_request(RequestParser(policy), line, fields)


@settings(max_examples=150, deadline=None)
@given(requests=st.lists(st.tuples(_lines, _fields), max_size=6))
def test_requests_through_one_parser(requests: list[tuple[bytes, list[bytes]]]) -> None:
    parser = RequestParser(POLICIES[0])
    for line, fields in requests * 3:
        judge_request(parser, line, fields)


def test_every_byte_everywhere_in_a_request() -> None:
    """A byte put into each place of a usual head, or over each of its bytes."""
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-A: b"
    parser = RequestParser(POLICIES[0])
    accepted = 0
    for place in range(len(head) + 1):
        for byte in (bytes((i,)) for i in range(256)):
            for changed in (
                head[:place] + byte + head[place:],
                head[:place] + byte + head[place + 1 :],
            ):
                line, *fields = changed.split(b"\r\n")
                judge_request(parser, line, fields)
                accepted += understand(parser, line, changed[len(line) :] + b"\r\n\r\n") is not None
    assert accepted > 1000


def judge_response(parser: ResponseParser, raw: bytes) -> ResponseHead | None:
    if raw.find(b"\r\n\r\n") + 4 != len(raw):
        return None
    try:
        head = parser.parse(raw)
    except Http1Error:
        return None
    if head.status == 101:
        return head  # h11 refuses it where no upgrade was asked for
    status = b"%d" % head.status
    received = hear_response(raw)
    assert received is not None, "h11 refuses what we accept"
    assert (received.first[0], received.length) == (status, head.length)
    sent = hear_response(head.lines + head.framing + b"\r\n")
    assert sent is not None, "h11 refuses what we pass on"
    expected = head.length if head.framing else UNTIL_CLOSE
    assert (sent.first[0], sent.length) == (status, expected)
    if head.ready:
        ready = hear_response(head.ready)
        assert ready is not None
        assert (ready.first[0], ready.length) == (status, expected)
    return head


_statuses = st.builds(
    lambda version, status, reason: version + b" " + status + reason,
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2"]),
    st.sampled_from(
        [b"200", b"204", b"304", b"100", b"101", b"103", b"404", b"600", b"2x0", b"099"]
    ),
    st.sampled_from([b" OK", b" ", b"", b" a\tb"]) | _noise,
)
_date = st.sampled_from([[], [b"Date: Sat, 21 Nov 2026 09:00:00 GMT"]])


@settings(max_examples=500, deadline=None)
@given(status=_statuses, fields=_fields, date=_date)
def test_responses(status: bytes, fields: list[bytes], date: list[bytes]) -> None:
    raw = b"\r\n".join([status, *fields, *date]) + b"\r\n\r\n"
    judge_response(ResponseParser(ResponsePolicy()), raw)


def test_every_byte_everywhere_in_a_response() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x"
    parser = ResponseParser(ResponsePolicy())
    accepted = 0
    for place in range(len(head) + 1):
        for byte in (bytes((i,)) for i in range(256)):
            for changed in (
                head[:place] + byte + head[place:],
                head[:place] + byte + head[place + 1 :],
            ):
                accepted += judge_response(parser, changed + b"\r\n\r\n") is not None
    assert accepted > 1000
