"""Conditional requests (RFC 9110 §13), clause by clause."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols.conditional import Conditions, evaluate, find_conditions, range_applies
from uwgate.protocols.http_date import format_date

MTIME = 784111777
BEFORE, SAME, AFTER = (format_date(MTIME + seconds) for seconds in (-1, 0, 1))
STRONG, WEAK = b'"xyzzy"', b'W/"xyzzy"'


def block(*lines: bytes) -> bytes:
    return b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# --- §13.1.1 If-Match --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "etag", "status"),
    [
        pytest.param(b"*", STRONG, 200, id="13.1.1 star: there is a representation"),
        pytest.param(b"*", None, 200, id="13.1.1 star: even without an entity tag"),
        pytest.param(b'"xyzzy"', STRONG, 200, id="13.1.1 one member"),
        pytest.param(b'"xyzzy", "r2d2xxxx", "c3piozzzz"', STRONG, 200, id="13.1.1 first of a list"),
        pytest.param(b'"r2d2xxxx", "c3piozzzz", "xyzzy"', STRONG, 200, id="13.1.1 last of a list"),
        pytest.param(b'"r2d2xxxx"', STRONG, 412, id="13.1.1 no member matches"),
        pytest.param(b'"xyzzy"', None, 412, id="13.1.1 no entity tag"),
        pytest.param(b'W/"xyzzy"', STRONG, 412, id="8.8.3.2 strong comparison: weak member"),
        pytest.param(b'"xyzzy"', WEAK, 412, id="8.8.3.2 strong comparison: weak representation"),
        pytest.param(b'W/"xyzzy"', WEAK, 412, id="8.8.3.2 strong comparison: both weak"),
        pytest.param(b'"XYZZY"', STRONG, 412, id="8.8.3.2 character by character"),
        pytest.param(b'"a,b"', b'"a,b"', 200, id="8.8.3 a comma inside"),
        pytest.param(b'"a,b"', b'"a', 412, id="8.8.3 a comma does not divide"),
        pytest.param(b'"", "b"', b'""', 200, id="8.8.3 an empty tag"),
        pytest.param(b'"a\\", "b"', b'"b"', 200, id="8.8.3 a backslash escapes nothing"),
        pytest.param(b'"\xe9"', b'"\xe9"', 200, id="8.8.3 obs-text"),
        pytest.param(b', ,"a" ,\t,"xyzzy",,', STRONG, 200, id="5.6.1 empty elements"),
        pytest.param(b"", STRONG, 412, id="5.6.1 an empty list"),
        pytest.param(b" , ,", STRONG, 412, id="5.6.1 only empty elements"),
        pytest.param(b"xyzzy", STRONG, 412, id="malformed: no quotes"),
        pytest.param(b'"xyzzy" "b"', STRONG, 412, id="malformed: no comma"),
        pytest.param(b'"xyzzy", b', STRONG, 412, id="malformed: the second"),
        pytest.param(b'"xyzzy", "b', STRONG, 412, id="malformed: an open quote"),
        pytest.param(b'"xyzzy", "b c"', STRONG, 412, id="malformed: a space in a tag"),
        pytest.param(b'"xyzzy", w/"b"', STRONG, 412, id="8.8.3 W is case-sensitive"),
        pytest.param(b'"xyzzy", *', STRONG, 412, id="malformed: star in a list"),
        pytest.param(b"*, *", STRONG, 412, id="malformed: two stars"),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"PUT"])
def test_if_match(method: bytes, value: bytes, etag: bytes | None, status: int) -> None:
    assert evaluate(method, Conditions(if_match=value), etag, MTIME) == status


# --- §13.1.2 If-None-Match ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "etag", "matches"),
    [
        pytest.param(b"*", STRONG, True, id="13.1.2 star: there is a representation"),
        pytest.param(b"*", None, True, id="13.1.2 star: even without an entity tag"),
        pytest.param(b'"xyzzy"', STRONG, True, id="13.1.2 one member"),
        pytest.param(b'"a", "xyzzy"', STRONG, True, id="13.1.2 last of a list"),
        pytest.param(b'"a"', STRONG, False, id="13.1.2 no member matches"),
        pytest.param(b'"a"', None, False, id="13.1.2 no entity tag"),
        pytest.param(b'W/"xyzzy"', STRONG, True, id="8.8.3.2 weak comparison: weak member"),
        pytest.param(b'"xyzzy"', WEAK, True, id="8.8.3.2 weak comparison: weak representation"),
        pytest.param(b'W/"xyzzy"', WEAK, True, id="8.8.3.2 weak comparison: both weak"),
        pytest.param(b'W/"1"', b'W/"2"', False, id="8.8.3.2 weak comparison: other tags"),
        pytest.param(b'W/"a,b", W/"c"', b'"c"', True, id="8.8.3 a comma inside"),
        pytest.param(b',,W/"a",,"xyzzy"', STRONG, True, id="5.6.1 empty elements"),
        pytest.param(b"", STRONG, False, id="5.6.1 an empty list"),
        pytest.param(b"xyzzy", STRONG, False, id="malformed: no quotes"),
        pytest.param(b'"xyzzy", b', STRONG, False, id="malformed: the second"),
        pytest.param(b'*, "xyzzy"', STRONG, False, id="malformed: star in a list"),
    ],
)
@pytest.mark.parametrize(
    ("method", "status"), [(b"GET", 304), (b"HEAD", 304), (b"PUT", 412), (b"get", 412)]
)
def test_if_none_match(
    value: bytes, etag: bytes | None, matches: bool, method: bytes, status: int
) -> None:
    expected = status if matches else 200
    assert evaluate(method, Conditions(if_none_match=value), etag, MTIME) == expected


# --- §13.1.3 If-Modified-Since, §13.1.4 If-Unmodified-Since ------------------------------------

NO_DATES = [b"", b"yesterday", b"0", SAME + b", " + SAME, b"Sun, 31 Nov 1994 08:49:37 GMT"]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_13_1_3_not_modified_if_not_later_than_the_date(method: bytes) -> None:
    statuses = [
        evaluate(method, Conditions(if_modified_since=date), STRONG, MTIME)
        for date in (BEFORE, SAME, AFTER)
    ]
    assert statuses == [200, 304, 304]


@pytest.mark.parametrize("value", NO_DATES)
def test_13_1_3_what_is_no_date_is_ignored(value: bytes) -> None:
    assert evaluate(b"GET", Conditions(if_modified_since=value), STRONG, MTIME) == 200


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE"])
def test_13_1_3_other_methods_ignore_it(method: bytes) -> None:
    assert evaluate(method, Conditions(if_modified_since=SAME), STRONG, MTIME) == 200


def test_13_1_3_without_a_modification_date_it_is_ignored() -> None:
    assert evaluate(b"GET", Conditions(if_modified_since=SAME), STRONG, None) == 200


@pytest.mark.parametrize("method", [b"GET", b"PUT"])
def test_13_1_4_failed_if_later_than_the_date(method: bytes) -> None:
    statuses = [
        evaluate(method, Conditions(if_unmodified_since=date), STRONG, MTIME)
        for date in (BEFORE, SAME, AFTER)
    ]
    assert statuses == [412, 200, 200]


@pytest.mark.parametrize("value", NO_DATES)
def test_13_1_4_what_is_no_date_is_ignored(value: bytes) -> None:
    assert evaluate(b"PUT", Conditions(if_unmodified_since=value), STRONG, MTIME) == 200


def test_13_1_4_without_a_modification_date_it_is_ignored() -> None:
    assert evaluate(b"PUT", Conditions(if_unmodified_since=BEFORE), STRONG, None) == 200


@pytest.mark.parametrize(("years", "status"), [(None, 200), (20, 200), (30, 304)])
def test_5_6_7_the_clock_tells_the_century_of_old_dates(years: int | None, status: int) -> None:
    now = None if years is None else MTIME + years * 365 * 86400
    date = b"Sunday, 05-Nov-70 08:49:37 GMT"
    assert evaluate(b"GET", Conditions(if_modified_since=date), None, MTIME, now) == status
    assert evaluate(b"PUT", Conditions(if_unmodified_since=date), None, MTIME, now) == (
        412 if status == 200 else 200
    )
    assert range_applies(date, None, MTIME - 24 * 365 * 86400 - 7 * 86400, now) is (status == 200)


# --- §13.2.1, §13.2.2 --------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE", b"CONNECT"])
def test_13_2_1_methods_without_a_selected_representation(method: bytes) -> None:
    fields = Conditions(if_match=b'"other"', if_none_match=b"*", if_unmodified_since=BEFORE)
    assert evaluate(method, fields, STRONG, MTIME) == 200


@pytest.mark.parametrize(
    ("fields", "get", "put"),
    [
        pytest.param(Conditions(), 200, 200, id="nothing"),
        pytest.param(
            Conditions(range=b"bytes=0-0", if_range=b'"a"'), 200, 200, id="step 5 not here"
        ),
        pytest.param(
            Conditions(if_match=STRONG, if_unmodified_since=BEFORE), 200, 200, id="step 1 before 2"
        ),
        pytest.param(
            Conditions(if_match=b'"a"', if_unmodified_since=AFTER), 412, 412, id="step 1 false"
        ),
        pytest.param(
            Conditions(if_match=b"bad", if_unmodified_since=AFTER), 412, 412, id="step 1 malformed"
        ),
        pytest.param(
            Conditions(if_match=STRONG, if_none_match=STRONG), 304, 412, id="step 1 true, 3 false"
        ),
        pytest.param(
            Conditions(if_match=b'"a"', if_none_match=STRONG), 412, 412, id="step 1 before 3"
        ),
        pytest.param(
            Conditions(if_unmodified_since=BEFORE, if_none_match=STRONG), 412, 412, id="2 before 3"
        ),
        pytest.param(
            Conditions(if_unmodified_since=SAME, if_modified_since=SAME), 304, 200, id="step 2, 4"
        ),
        pytest.param(
            Conditions(if_none_match=b'"a"', if_modified_since=SAME), 200, 200, id="step 3 before 4"
        ),
        pytest.param(
            Conditions(if_none_match=b"bad", if_modified_since=SAME), 200, 200, id="3 malformed"
        ),
        pytest.param(
            Conditions(if_none_match=STRONG, if_modified_since=BEFORE), 304, 412, id="3 alone"
        ),
    ],
)
def test_13_2_2_precedence(fields: Conditions, get: int, put: int) -> None:
    assert evaluate(b"GET", fields, STRONG, MTIME) == get
    assert evaluate(b"HEAD", fields, STRONG, MTIME) == get
    assert evaluate(b"PUT", fields, STRONG, MTIME) == put


# --- §13.1.5 If-Range --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "etag", "mtime", "applies"),
    [
        pytest.param(None, STRONG, MTIME, True, id="absent"),
        pytest.param(STRONG, STRONG, MTIME, True, id="13.1.5 the same entity tag"),
        pytest.param(b'"other"', STRONG, MTIME, False, id="13.1.5 another entity tag"),
        pytest.param(WEAK, WEAK, MTIME, False, id="13.1.5 strong comparison: weak"),
        pytest.param(STRONG, WEAK, MTIME, False, id="13.1.5 strong comparison: weak one here"),
        pytest.param(WEAK, STRONG, MTIME, False, id="13.1.5 strong comparison: weak one there"),
        pytest.param(STRONG, None, MTIME, False, id="13.1.5 no entity tag"),
        pytest.param(SAME, STRONG, MTIME, True, id="13.1.5 the same date"),
        pytest.param(b"Sunday, 06-Nov-94 08:49:37 GMT", None, MTIME, True, id="5.6.7 old form"),
        pytest.param(BEFORE, STRONG, MTIME, False, id="13.1.5 an earlier date"),
        pytest.param(AFTER, STRONG, MTIME, False, id="13.1.5 a later date does not do"),
        pytest.param(SAME, STRONG, None, False, id="13.1.5 no date that is a strong validator"),
        pytest.param(b"", STRONG, MTIME, False, id="malformed: empty"),
        pytest.param(b"*", STRONG, MTIME, False, id="malformed: star"),
        pytest.param(b"xyzzy", b"xyzzy", MTIME, False, id="malformed: no quotes"),
        pytest.param(b'"a", "xyzzy"', STRONG, MTIME, False, id="13.1.5 no list"),
        pytest.param(b"nonsense", None, None, False, id="malformed: nothing equals nothing"),
    ],
)
def test_if_range(
    value: bytes | None, etag: bytes | None, mtime: int | None, applies: bool
) -> None:
    assert range_applies(value, etag, mtime) is applies


# --- finding the fields ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"Host: a", b"Accept: */*"],
        [b"X-Range: bytes=0-1", b"If: x", b"Accept-Ranges: bytes", b"X: If-Match: *"],
        [b"If_None_Match: *", b"If-None-Matches: *", b"If-Matc: *", b"Ranges: 1"],
    ],
)
def test_no_conditions(lines: list[bytes]) -> None:
    assert find_conditions(block(*lines)) is None


def test_every_field_is_found_in_any_case() -> None:
    found = find_conditions(
        block(
            b"Host: a",
            b'IF-MATCH:"a"',
            b'if-none-match: \t"b" \t',
            b"If-Modified-Since: " + SAME,
            b"If-unmodified-since: " + AFTER,
            b'If-Range:   "c"',
            b"RANGE: bytes=0-1",
        )
    )
    assert found == Conditions(b'"a"', b'"b"', SAME, AFTER, b'"c"', b"bytes=0-1")


def test_an_empty_field_is_there() -> None:
    assert find_conditions(block(b"If-Match:", b"Range: ")) == Conditions(if_match=b"", range=b"")


def test_5_3_repeated_lists_are_one() -> None:
    found = find_conditions(
        block(b'If-None-Match: "a"', b"X: y", b'if-none-match: "b"', b'If-Match: "c"', b"If-Match:")
    )
    assert found == Conditions(if_match=b'"c", ', if_none_match=b'"a", "b"')
    assert evaluate(b"GET", found, b'"c"', None) == 200
    assert evaluate(b"PUT", Conditions(if_none_match=found.if_none_match), b'"b"', None) == 412


@pytest.mark.parametrize(
    "name", [b"If-Modified-Since", b"If-Unmodified-Since", b"If-Range", b"Range"]
)
def test_repeated_others_are_ignored(name: bytes) -> None:
    assert find_conditions(block(name + b": x", name.lower() + b": x")) == Conditions()


def test_13_1_5_a_repeated_if_range_takes_range_with_it() -> None:
    lines = (b"Range: bytes=0-1", b'If-Range: "a"')
    assert find_conditions(block(*lines)) == Conditions(range=b"bytes=0-1", if_range=b'"a"')
    assert find_conditions(block(*lines, b'If-Range: "b"')) == Conditions()


# --- any bytes ---------------------------------------------------------------------------------

VALUES = st.none() | st.binary(max_size=30) | st.text('"W/*, a', max_size=12).map(str.encode)
TAGS = st.text("aW/,\\!é", max_size=6).map(lambda text: b'"' + text.encode() + b'"')


@settings(max_examples=100)
@given(
    st.sampled_from([b"GET", b"PUT", b"TRACE"]),
    st.builds(Conditions, VALUES, VALUES, VALUES, VALUES, VALUES, VALUES),
    st.none() | TAGS,
    st.none() | st.integers(),
)
def test_any_values(
    method: bytes, fields: Conditions, etag: bytes | None, mtime: int | None
) -> None:
    assert evaluate(method, fields, etag, mtime) in (200, 304, 412)
    assert range_applies(fields.if_range, etag, mtime) in (True, False)


@settings(max_examples=100)
@given(st.binary(max_size=100))
def test_any_block(data: bytes) -> None:
    assert find_conditions(data) is None
    assert find_conditions(b"\r\nRange: x\r\n" + data) is not None


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.booleans(), TAGS), min_size=1, max_size=5),
    st.lists(st.sampled_from([b",", b" , ", b",,", b"\t,\t, "]), min_size=6, max_size=6),
)
def test_members_of_any_list_are_found(tags: list[tuple[bool, bytes]], commas: list[bytes]) -> None:
    members = [b"W/" * weak + tag for weak, tag in tags]
    value = b"".join(comma + member for comma, member in zip(commas, members, strict=False))
    for weak, tag in tags:
        assert evaluate(b"GET", Conditions(if_none_match=value), tag, None) == 304
        if not weak:
            assert evaluate(b"PUT", Conditions(if_match=value), tag, None) == 200
    assert evaluate(b"GET", Conditions(if_none_match=value), b'"none of them"', None) == 200
    assert evaluate(b"PUT", Conditions(if_match=value), b'"none of them"', None) == 412


@pytest.mark.parametrize(
    "value", [b" " * 60000 + b"x", b'"a",' * 20000 + b"x", b'"' + b"a" * 60000]
)
def test_long_lists_are_read_in_linear_time(value: bytes) -> None:
    # Quadratic time would be minutes; pytest's own patience ends before.
    assert evaluate(b"PUT", Conditions(if_match=value), STRONG, None) == 412
