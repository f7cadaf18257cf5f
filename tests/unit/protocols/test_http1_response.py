"""Response heads of nodes: strict parse, framing (RFC 9112 §6.3), and what clients get."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols.http1 import Fault, Http1Error
from uwgate.protocols.http1_response import (
    CHUNKED,
    UNTIL_CLOSE,
    ResponseHead,
    ResponseParser,
    ResponsePolicy,
)

DATE = b"Date: Sat, 21 Nov 2026 09:00:00 GMT"
PLAIN = ResponsePolicy()
GZIP = ResponsePolicy(gzip=True)


def head_of(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"".join(line + b"\r\n" for line in (status, *lines)) + b"\r\n"


def facts(head: ResponseHead) -> dict[str, object]:
    return {name: getattr(head, name) for name in ResponseHead.__slots__}


def parse(
    *lines: bytes, status: bytes = b"HTTP/1.1 200 OK", policy: ResponsePolicy = PLAIN
) -> ResponseHead:
    """The meaning of a head, the same when it is remembered."""
    raw = head_of(*lines, status=status)
    parser = ResponseParser(policy)
    first = parser.parse(raw)
    for _ in range(3):
        again = parser.parse(raw)
        assert facts(again) == facts(first)
    assert parser.parse(raw) is again
    return first


def fault(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK", most: int = 256) -> Fault:
    """Why a head is refused, every time."""
    parser = ResponseParser(ResponsePolicy(max_fields=most))
    faults = []
    for _ in range(3):
        with pytest.raises(Http1Error) as caught:
            parser.parse(head_of(*lines, status=status))
        faults.append(caught.value.fault)
    assert len(set(faults)) == 1
    return faults[0]


# --- status line (RFC 9112 §4) -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status", "first"),
    [
        (b"HTTP/1.1 200 OK", 200, b"HTTP/1.1 200 OK"),
        (b"HTTP/1.0 200 OK", 200, b"HTTP/1.1 200 OK"),
        (b"HTTP/1.1 404 ", 404, b"HTTP/1.1 404 "),
        (b"HTTP/1.1 404", 404, b"HTTP/1.1 404 "),
        (b"HTTP/1.1 599 a\tb  \xff", 599, b"HTTP/1.1 599 a\tb  \xff"),
    ],
)
def test_status_lines(line: bytes, status: int, first: bytes) -> None:
    head = parse(status=line)
    assert (head.status, head.lines) == (status, first + b"\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 099 x",
        b"HTTP/1.1 600 x", b"HTTP/1.1 +20 x", b"HTTP/1.1 2_0 x", b"HTTP/1.1 \xb2\xb2\xb2 x",
        b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK", b"HTTP/1.2 200 OK", b"HTTP/2 200",
        b"HTTP/2.0 200 OK",
        b"http/1.1 200 OK", b"ICY 200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 200OK",
        b"HTTP/1.1 200 a\x00",
        b"HTTP/1.1 200 a\nb", b"HTTP/1.1 200 a\rb", b"HTTP/1.1 200 \x7f", b"HTTP/1.1 200 a\x0bb",
    ],
)  # fmt: skip
def test_status_lines_that_are_refused(line: bytes) -> None:
    assert fault(status=line) is Fault.BAD_MESSAGE


# --- framing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ((), UNTIL_CLOSE),
        ((b"Content-Length: 0",), 0),
        ((b"content-length:\t12 ",), 12),
        ((b"Transfer-Encoding: Chunked",), CHUNKED),
    ],
)
def test_body_lengths(lines: tuple[bytes, ...], length: int) -> None:
    assert parse(*lines).length == length


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), Fault.BAD_FRAMING),
        ((b"Content-Length: 5", b"Content-Length: 5"), Fault.BAD_FRAMING),
        ((b"Content-Length: 5, 5",), Fault.BAD_FRAMING),
        ((b"Content-Length: 5x",), Fault.BAD_FRAMING),
        ((b"Content-Length:",), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: chunked", b"transfer-encoding: chunked"), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: chunked, gzip",), Fault.BAD_FRAMING),
        ((b"Transfer-Encoding: gzip",), Fault.UNKNOWN_CODING),
        ((b"Transfer-Encoding: gzip, chunked",), Fault.UNKNOWN_CODING),
        ((b"Content-Length : 5",), Fault.BAD_MESSAGE),
        ((b"X: y", b" folded"), Fault.BAD_MESSAGE),
        ((b"no colon",), Fault.BAD_MESSAGE),
        ((b"X: a\nSet-Cookie: b",), Fault.BAD_MESSAGE),
        ((b"X: a\rb",), Fault.BAD_MESSAGE),
        ((b"X: \x00",), Fault.BAD_MESSAGE),
        ((b"Connection: a b",), Fault.BAD_MESSAGE),
    ],
)
def test_heads_that_are_refused(lines: tuple[bytes, ...], expected: Fault) -> None:
    assert fault(*lines) is expected


def test_http_1_0_knows_no_transfer_coding() -> None:
    assert fault(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK") is Fault.BAD_FRAMING


def test_number_of_fields() -> None:
    lines = [b"X-%d: y" % i for i in range(5)]
    assert fault(*lines, most=4) is Fault.TOO_MANY_FIELDS
    assert parse(*lines, policy=ResponsePolicy(max_fields=5)).count == 5


@pytest.mark.parametrize(
    ("status", "bodiless", "framing"),
    [
        (b"100", True, b""), (b"101", True, b""), (b"103", True, b""), (b"204", True, b""),
        (b"304", True, b"Content-Length: 5\r\n"), (b"200", False, b"Content-Length: 5\r\n"),
        (b"205", False, b"Content-Length: 5\r\n"), (b"500", False, b"Content-Length: 5\r\n"),
    ],
)  # fmt: skip
def test_statuses_without_a_body(status: bytes, bodiless: bool, framing: bytes) -> None:
    """RFC 9110 §8.6: no Content-Length in 1xx and 204; in 304 it tells what 200 would say."""
    head = parse(b"Content-Length: 005", status=b"HTTP/1.1 " + status + b" x")
    assert (head.bodiless, head.framing) == (bodiless, framing)
    assert b"ength" not in head.lines


# --- Connection -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "lines", "persistent"),
    [
        (b"HTTP/1.1", (), True),
        (b"HTTP/1.1", (b"Connection: x, Close",), False),
        (b"HTTP/1.1", (b"Connection: keep-alive",), True),
        (b"HTTP/1.0", (), False),
        (b"HTTP/1.0", (b"Connection: Keep-Alive",), True),
        (b"HTTP/1.0", (b"Connection: keep-alive", b"Connection: close"), False),
    ],
)
def test_persistence(version: bytes, lines: tuple[bytes, ...], persistent: bool) -> None:
    head = parse(b"Content-Length: 0", DATE, *lines, status=version + b" 200 OK")
    assert head.persistent is persistent
    assert head.usual is persistent


def test_fields_of_the_connection_stop_here() -> None:
    head = parse(
        b"Connection: x-a, keep-alive, Date",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: close",
        b"TE: trailers",
        b"X-A: 1",
        b"X-B: 2",
        DATE,
    )
    assert head.lines == head_of(b"X-B: 2", DATE)[:-2]
    assert (head.count, head.dated) == (2, True)


def test_an_offered_upgrade_is_known() -> None:
    status = b"HTTP/1.1 101 Switching Protocols"
    head = parse(b"Upgrade: a", b"Connection: upgrade", b"Upgrade: b", b"X: y", status=status)
    assert head.upgrade == b"a, b"
    assert head.lines == status + b"\r\nX: y\r\n"


# --- the head in one piece ------------------------------------------------------------------------


def test_a_clean_head_is_passed_on_as_it_came() -> None:
    lines = (b"Server: x", DATE, b"Set-Cookie: a", b"set-cookie: b", b"Content-Length: 5")
    head = parse(*lines)
    assert head.ready == head_of(*lines)
    assert (head.clean, head.usual, head.count) == (True, True, 4)


def test_the_length_keeps_its_place_in_a_clean_head() -> None:
    lines = (b"Content-Length: 5", DATE)
    assert parse(*lines).ready == head_of(*lines)


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (b"HTTP/1.0 200 OK", (b"Content-Length: 5", DATE)),
        (b"HTTP/1.1 200 OK", (b"Content-Length: 05", DATE)),
        (b"HTTP/1.1 200 OK", (b"Content-Length:5", DATE)),
        (b"HTTP/1.1 200 OK", (b"Connection: keep-alive", b"Content-Length: 5", DATE)),
        (b"HTTP/1.1 200 OK", (b"Connection: x", b"X: y", b"Content-Length: 5", DATE)),
        (b"HTTP/1.1 200 OK", (b"Keep-Alive: 5", b"Content-Length: 5", DATE)),
    ],
)
def test_other_heads_are_put_together_anew(status: bytes, lines: tuple[bytes, ...]) -> None:
    head = parse(*lines, status=status)
    assert head.ready == head_of(DATE, b"Content-Length: 5")
    assert not head.clean


def test_a_missing_space_is_repaired_even_if_the_sizes_agree() -> None:
    head = parse(b"Content-Length: 05", DATE, status=b"HTTP/1.1 200")
    assert head.ready == head_of(DATE, b"Content-Length: 5", status=b"HTTP/1.1 200 ")
    assert not head.clean


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (b"HTTP/1.1 200 OK", (b"Content-Length: 5",)),  # a Date is to be added
        (b"HTTP/1.1 200 OK", (DATE,)),  # its length depends on the client
        (b"HTTP/1.1 200 OK", (DATE, b"Transfer-Encoding: chunked")),
        (b"HTTP/1.1 103 Early Hints", (DATE, b"Content-Length: 5")),
    ],
)
def test_heads_that_are_not_ready(status: bytes, lines: tuple[bytes, ...]) -> None:
    head = parse(*lines, status=status)
    assert (head.ready, head.clean, head.usual) == (b"", False, False)


def test_a_head_that_lacks_nothing_but_its_date() -> None:
    lines = (b"X: y", b"Content-Length: 5")
    head = parse(b"Content-Length: 05", b"X: y", b"Connection: keep-alive")
    assert head.undated + DATE + b"\r\n\r\n" == head_of(*lines, DATE)
    assert parse(*lines, DATE).undated == b""
    for line in (b"X: y", b"Transfer-Encoding: chunked"):
        assert parse(line).undated == b""  # the client decides about its framing
    assert parse(b"uWSGI-Encoding: gzip", *lines, policy=GZIP).undated == b""
    assert parse(*lines, status=b"HTTP/1.1 103 x").undated == b""


def test_bodiless_heads() -> None:
    status = b"HTTP/1.1 204 No Content"
    head = parse(DATE, b"Content-Length: 5", status=status)
    assert (head.ready, head.usual) == (head_of(DATE, status=status), False)
    status = b"HTTP/1.1 304 Not Modified"
    head = parse(DATE, b"Content-Length: 5", status=status)
    assert (head.ready, head.usual) == (head_of(DATE, b"Content-Length: 5", status=status), False)
    assert parse(DATE, status=status).ready == head_of(DATE, status=status)


# --- http-auto-gzip -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "gzip"),
    [
        ((), False),
        ((b"uWSGI-Encoding: gzip",), True),
        ((b"uwsgi-encoding: GZip",), True),
        ((b"uWSGI-Encoding: deflate",), False),
        ((b"uWSGI-Encoding: gzip", b"Content-Encoding: br"), False),
    ],
)
def test_a_node_asks_for_compression(lines: tuple[bytes, ...], gzip: bool) -> None:
    head = parse(*lines, DATE, b"Content-Length: 5", policy=GZIP)
    assert head.gzip is gzip
    assert (b"uwsgi-encoding" in head.lines.lower()) is (bool(lines) and not gzip)
    assert bool(head.ready) is not gzip
    assert not parse(*lines, DATE).gzip  # not without the option


@pytest.mark.parametrize(
    ("lines", "vary"),
    [
        ((), False),
        ((b"Vary: Cookie",), False),
        ((b"Vary: *",), True),
        ((b"Vary: Cookie, Accept-Encoding",), True),
        ((b"Vary: Cookie", b"vary: accept-encoding"), True),
    ],
)
def test_what_vary_says_already(lines: tuple[bytes, ...], vary: bool) -> None:
    head = parse(b"uWSGI-Encoding: gzip", *lines, policy=GZIP)
    assert head.vary is vary
    assert head.count == len(lines)


# --- what is remembered ---------------------------------------------------------------------------


def test_a_large_head_is_parsed_every_time() -> None:
    parser = ResponseParser(ResponsePolicy())
    raw = head_of(*(b"X-%d: " % i + b"a" * 600 for i in range(8)))
    results = [parser.parse(raw) for _ in range(4)]
    assert len({id(result) for result in results}) == 4
    assert {result.lines for result in results} == {raw[:-2]}


def test_ten_thousand_different_heads_change_no_result() -> None:
    parser = ResponseParser(ResponsePolicy())
    usual = head_of(DATE, b"Content-Length: 5")
    for i in range(10_000):
        raw = head_of(DATE, b"Content-Length: %d" % i, b"X-Id: %d" % i)
        head = parser.parse(raw)
        assert (head.length, head.ready) == (i, raw)
        if i % 1000 == 0:
            assert parser.parse(usual).ready == usual
    assert parser.parse(usual) is parser.parse(usual)


_LINES = [
    b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: close",
    b"Connection: x-a, date", b"X-A: 1", b"x-a:2", DATE, b"Keep-Alive: x", b"Set-Cookie: a", b"bad",
    b"Vary: *",
    b"uWSGI-Encoding: gzip", b"Upgrade: b",
]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(_LINES), max_size=5).map(lambda ls: head_of(*ls)), max_size=8)
)
def test_a_parser_that_remembers_says_what_a_new_one_says(heads: list[bytes]) -> None:
    old = ResponseParser(GZIP)
    for raw in heads * 2:
        results = []
        for parser in (old, ResponseParser(GZIP)):
            try:
                results.append(facts(parser.parse(raw)))
            except Http1Error as error:
                results.append({"fault": error.fault})
        assert results[0] == results[1]


# --- files that are named -------------------------------------------------------------------------

FILES = ResponsePolicy(files={b"x-sendfile": False, b"x-accel-redirect": True})


def test_a_file_is_named() -> None:
    length = b"Content-Length: 0"
    for line, file in (
        (b"X-Sendfile: /srv/a b", (b"/srv/a b", False)),
        (b"x-accel-redirect:/a%20b ", (b"/a%20b", True)),
    ):
        head = parse(DATE, length, line, b"X-Other: 1", policy=FILES)
        assert head.file == file
        assert not head.clean
        assert head.lines.count(b"\r\n") == 3
        assert b"X-Other: 1\r\n" in head.lines
        assert head.count == 2
        assert parse(DATE, length, line).file is None
        for status in (b"302 Found", b"404 Not Found", b"500 Oh", b"103 Early Hints"):
            head = parse(DATE, length, line, status=b"HTTP/1.1 " + status, policy=FILES)
            assert head.file is None
            assert line not in head.lines
    assert parse(DATE, length, policy=FILES).file is None


def test_two_files_are_named() -> None:
    for lines in (
        (b"X-Sendfile: /a", b"X-Accel-Redirect: /b"),
        (b"X-Sendfile: /a", b"X-Sendfile: /a"),
    ):
        with pytest.raises(Http1Error) as caught:
            parse(DATE, *lines, policy=FILES)
        assert caught.value.fault is Fault.BAD_MESSAGE
        assert parse(DATE, *lines, status=b"HTTP/1.1 404 No", policy=FILES).file is None
