"""Byte ranges (RFC 9110 §14), clause by clause, and bodies of exactly the length that was said."""

from __future__ import annotations

import email
import email.policy
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols.ranges import (
    content_range,
    last_boundary,
    multipart_length,
    parse_range,
    part_head,
    unsatisfied,
)

DIGITS = b"9" * 50000


# --- §14.1, §14.1.1, §14.1.2: what a field says ------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        pytest.param(b"bytes=0-499", [(0, 500)], id="14.1.2 first 500"),
        pytest.param(b"bytes=500-999", [(500, 1000)], id="14.1.2 second 500"),
        pytest.param(b"bytes=-500", [(9500, 10000)], id="14.1.2 final 500"),
        pytest.param(b"bytes=9500-", [(9500, 10000)], id="14.1.2 final 500, open"),
        pytest.param(b"bytes=0-0,-1", [(0, 1), (9999, 10000)], id="14.1.2 first and last"),
        pytest.param(
            b"bytes= ,0-999, 4500-5499, -1000",
            [(0, 1000), (4500, 5500), (9000, 10000)],
            id="14.1.2 first, middle and last 1000",
        ),
        pytest.param(
            b"bytes=500-600,601-999", [(500, 1000)], id="14.1.2 not canonical: neighbours"
        ),
        pytest.param(b"bytes=500-700,601-999", [(500, 1000)], id="14.1.2 not canonical: overlap"),
        pytest.param(b"bYtEs=0-0", [(0, 1)], id="14.1 units are case-insensitive"),
        pytest.param(b"bytes=0-", [(0, 10000)], id="14.1.2 all"),
        pytest.param(b"bytes=9999-9999", [(9999, 10000)], id="14.1.2 the last byte"),
        pytest.param(b"bytes=0-99999", [(0, 10000)], id="14.1.2 last-pos beyond the end"),
        pytest.param(b"bytes=9990-10000", [(9990, 10000)], id="14.1.2 last-pos at the end"),
        pytest.param(b"bytes=-99999", [(0, 10000)], id="14.1.2 suffix longer than the file"),
        pytest.param(b"bytes=000-0007", [(0, 8)], id="14.1.1 leading zeros"),
        pytest.param(
            b"bytes=,,0-0 ,\t, 500-500,,", [(0, 1), (500, 501)], id="5.6.1 empty elements"
        ),
        pytest.param(
            b"bytes=0-0,20000-", [(0, 1)], id="14.1.2 what cannot be satisfied is left out"
        ),
        pytest.param(b"bytes=10000-", [], id="14.1.2 first-pos at the end"),
        pytest.param(b"bytes=20000-30000,10000-10000", [], id="15.5.17 none can be satisfied"),
        pytest.param(b"bytes=-0", [], id="14.1.2 suffix of nothing"),
        pytest.param(b"bytes=-000,10000-", [], id="14.1.2 suffix of nothing, longer"),
    ],
)
def test_satisfied(value: bytes, ranges: list[tuple[int, int]]) -> None:
    assert parse_range(value, 10000) == ranges


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"seconds=0-1", id="14.2 another unit"),
        pytest.param(b"none", id="14.2 no unit"),
        pytest.param(b"byte=0-1", id="14.2 part of the unit"),
        pytest.param(b"", id="empty"),
        pytest.param(b"bytes", id="no ranges"),
        pytest.param(b"bytes=", id="14.1.1 at least one"),
        pytest.param(b"bytes=,,", id="14.1.1 at least one that is not empty"),
        pytest.param(b"bytes=-", id="14.1.1 no number"),
        pytest.param(b"bytes=1", id="14.1.1 no dash"),
        pytest.param(b"bytes=2-1", id="14.1.1 last-pos before first-pos"),
        pytest.param(b"bytes=0-1,2-1", id="14.1.1 one invalid of two"),
        pytest.param(b"bytes=20000-19999", id="14.1.1 invalid beyond the end"),
        pytest.param(b"bytes=%d-%d" % (10**30, 10**29), id="14.1.1 invalid far beyond the end"),
        pytest.param(b"bytes=0-1 2-3", id="no comma"),
        pytest.param(b"bytes=0 - 1", id="14.1.1 spaces inside"),
        pytest.param(b"bytes= 0-1", id="14.1.1 a space without a comma"),
        pytest.param(b"bytes =0-1", id="14.1.1 a space before ="),
        pytest.param(b"bytes=0-1\n", id="a line end"),
        pytest.param(b"bytes=+0-1", id="a sign"),
        pytest.param(b"bytes=0-1_0", id="an underscore"),
        pytest.param(b"bytes=--1", id="two dashes"),
        pytest.param(b"bytes=0-1-2", id="three numbers"),
        pytest.param(b"bytes=0-0x1", id="hexadecimal"),
        pytest.param(b"bytes=0-1;q=1", id="a parameter"),
        pytest.param("bytes=٠-١".encode(), id="other digits"),
        pytest.param(b"bytes=0-1, bytes=2-3", id="two fields joined"),
    ],
)
def test_14_2_ignored(value: bytes) -> None:
    assert parse_range(value, 10000) is None


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        (b"bytes=0-" + DIGITS, [(0, 100)]),
        (b"bytes=-" + DIGITS, [(0, 100)]),
        (b"bytes=" + DIGITS + b"-", []),
        (b"bytes=" + DIGITS + b"-" + DIGITS, []),
        (b"bytes=" + DIGITS + b"-" + DIGITS[1:], None),
        (b"bytes=" + b"0" * 50000 + b"7-7", [(7, 8)]),
        (b"bytes=0-" + DIGITS + b"x", None),
        (b"bytes=" + b" ," * 25000 + b"x", None),
        (b"bytes=0-0" + b", " * 25000 + b"x", None),
    ],
    ids=range(9),
)
def test_absurd_lengths(value: bytes, ranges: list[tuple[int, int]] | None) -> None:
    # int() refuses more than 4300 digits, and quadratic time would be minutes.
    assert parse_range(value, 100) == ranges


@pytest.mark.parametrize("value", [b"bytes=0-", b"bytes=0-0", b"bytes=-5", b"bytes=-0", b"x=1"])
def test_14_2_a_range_of_nothing_is_ignored(value: bytes) -> None:
    assert parse_range(value, 0) is None


def test_size_of_one() -> None:
    assert parse_range(b"bytes=0-0", 1) == parse_range(b"bytes=-1", 1) == [(0, 1)]
    assert parse_range(b"bytes=1-1", 1) == []


# --- §14.2, §15.3.7.2: many ranges -------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        pytest.param(b"bytes=0-9,90-99", [(0, 100)], id="80 bytes between"),
        pytest.param(b"bytes=0-9,91-99", [(0, 10), (91, 100)], id="81 bytes between"),
        pytest.param(b"bytes=91-99,0-9", [(91, 100), (0, 10)], id="order of the request"),
        pytest.param(
            b"bytes=5000-5009,0-9,5010-5019", [(5000, 5020), (0, 10)], id="place of the first"
        ),
        pytest.param(
            b"bytes=5010-5019,0-9,5000-5009", [(5000, 5020), (0, 10)], id="place of the first, back"
        ),
        pytest.param(b"bytes=0-999,100-199", [(0, 1000)], id="one within another"),
        pytest.param(b"bytes=0-9,0-9", [(0, 10)], id="the same twice"),
        pytest.param(b"bytes=0-10,5-20,15-30", [(0, 31)], id="a chain"),
        pytest.param(b"bytes=0-,0-0,-1", [(0, 10000)], id="all, and both ends again"),
        pytest.param(b"bytes=0-,0-0,0-0", None, id="14.2 a byte three times"),
        pytest.param(b"bytes=0-9,9-20,9-9", None, id="14.2 one byte three times"),
        pytest.param(b"bytes=0-,5-5,5-6,5-7,5-8", None, id="17.15 the attack of 2011"),
    ],
)
def test_15_3_7_2_coalesced(value: bytes, ranges: list[tuple[int, int]] | None) -> None:
    assert parse_range(value, 10000) == ranges


def far(count: int) -> bytes:
    """Ranges that stay apart."""
    return b"bytes=" + b",".join(b"%d-%d" % (1000 * i, 1000 * i) for i in range(count))


def near(count: int) -> bytes:
    """Ranges that become one."""
    return b"bytes=" + b",".join(b"%d-%d" % (2 * i, 2 * i) for i in range(count))


def test_14_2_more_ranges_than_the_limit() -> None:
    assert len(parse_range(far(16), 10**6) or ()) == 16
    assert parse_range(far(17), 10**6) is None
    assert len(parse_range(far(17), 10**6, 17) or ()) == 17
    assert parse_range(far(2), 10**6, 1) is None
    assert parse_range(near(17), 10**6) == [(0, 33)]
    # Those that cannot be satisfied do not count.
    assert len(parse_range(far(50), 10000) or ()) == 10


def test_14_2_more_than_100_specs() -> None:
    assert parse_range(near(100), 10**6) == [(0, 199)]
    assert parse_range(near(101), 10**6) is None
    assert parse_range(near(101), 1) is None


# --- §14.4, §14.6: what is written -------------------------------------------------------------


def test_14_4_content_range() -> None:
    assert content_range(42, 1234, 1234) == b"bytes 42-1233/1234"
    assert content_range(0, 1, 1) == b"bytes 0-0/1"
    assert unsatisfied(1234) == b"bytes */1234"


def test_14_6_parts() -> None:
    assert part_head(b"SEP", b"text/plain", 500, 1000, 8000) == (
        b"\r\n--SEP\r\nContent-Type: text/plain\r\nContent-Range: bytes 500-999/8000\r\n\r\n"
    )
    for nothing in (None, b""):
        assert part_head(b"SEP", nothing, 0, 1, 8000) == (
            b"\r\n--SEP\r\nContent-Range: bytes 0-0/8000\r\n\r\n"
        )
    assert last_boundary(b"SEP") == b"\r\n--SEP--\r\n"
    assert multipart_length(b"SEP", None, [], 1) == len(last_boundary(b"SEP"))


Spec = tuple[int | None, int | None]

SPECS: st.SearchStrategy[Spec] = st.one_of(
    st.tuples(st.integers(0, 3000), st.none() | st.integers(0, 3000)),
    st.tuples(st.none(), st.integers(0, 3000)),
)


def written(specs: list[Spec]) -> bytes:
    return b"bytes=" + b",".join(
        b"%b-%b" % (*(b"" if n is None else b"%d" % n for n in spec),) for spec in specs
    )


def bytes_asked_for(specs: list[Spec], size: int) -> list[set[int]]:
    """Byte by byte, as §14.1.2 says it."""
    asked = []
    for first, last in specs:
        if first is None:
            assert last is not None
            asked.append({i for i in range(size) if i >= size - last})
        else:
            asked.append({i for i in range(size) if i >= first and (last is None or i <= last)})
    return asked


@settings(max_examples=100)
@given(st.lists(SPECS, min_size=1, max_size=6), st.integers(1, 2500))
def test_ranges_are_those_that_were_asked_for(specs: list[Spec], size: int) -> None:
    ranges = parse_range(written(specs), size)
    asked = bytes_asked_for(specs, size)
    invalid = any(a is not None and b is not None and b < a for a, b in specs)
    thrice = any(sum(i in some for some in asked) > 2 for i in range(size))
    assert (ranges is None) == (invalid or thrice)
    if ranges is None:
        return
    covered = {i for start, end in ranges for i in range(start, end)}
    everything = set().union(*asked)
    assert everything <= covered
    assert len(covered) == sum(end - start for start, end in ranges)
    assert all({start, end - 1} <= everything for start, end in ranges)
    in_order = sorted(ranges)
    for (_, end), (start, _) in pairwise(in_order):
        assert start - end > 80
    if len(ranges) == len([some for some in asked if some]):
        assert ranges == [(min(some), max(some) + 1) for some in asked if some]


@settings(max_examples=100)
@given(
    st.from_regex(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}", fullmatch=True),
    st.sampled_from([None, b"text/html; charset=utf-8", b"application/octet-stream"]),
    st.lists(SPECS, min_size=1, max_size=6).map(written),
    st.binary(min_size=1, max_size=2500),
)
def test_14_6_the_length_is_exact(
    boundary: bytes, content_type: bytes | None, value: bytes, content: bytes
) -> None:
    size = len(content)
    ranges = parse_range(value, size) or []
    body = b"".join(
        part_head(boundary, content_type, start, end, size) + content[start:end]
        for start, end in ranges
    ) + last_boundary(boundary)
    assert multipart_length(boundary, content_type, ranges, size) == len(body)
    assert multipart_length(boundary, content_type, iter(ranges), size) == len(body)


def test_14_6_email_reads_the_body() -> None:
    content = bytes(range(32, 127)) * 10
    ranges = parse_range(b"bytes=0-9,500-599,-20", len(content)) or []
    body = b"".join(
        part_head(b"x1", b"text/plain", start, end, len(content)) + content[start:end]
        for start, end in ranges
    ) + last_boundary(b"x1")
    message = email.message_from_bytes(
        b'Content-Type: multipart/byteranges; boundary="x1"\r\n\r\n' + body,
        policy=email.policy.HTTP,
    )
    parts = list(message.iter_parts())
    assert [part.get_content().encode() for part in parts] == [content[a:b] for a, b in ranges]
    assert [part["Content-Range"] for part in parts] == [
        content_range(a, b, len(content)).decode() for a, b in ranges
    ]


@settings(max_examples=100)
@given(
    st.binary(max_size=40)
    | st.text("0123456789-, \t=", max_size=40).map(lambda t: b"bytes=" + t.encode()),
    st.integers(0, 10**15),
    st.integers(1, 20),
)
def test_any_bytes(value: bytes, size: int, limit: int) -> None:
    ranges = parse_range(value, size, limit)
    assert ranges is None or len(ranges) <= limit
    assert all(0 <= start < end <= size for start, end in ranges or ())
