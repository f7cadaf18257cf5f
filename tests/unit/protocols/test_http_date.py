"""HTTP-date (RFC 9110 §5.6.7): three forms, one meaning, email.utils agrees."""

from __future__ import annotations

import calendar
import email.utils
import locale
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols.http_date import LATEST, format_date, parse_date

EXAMPLE = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
NOW = calendar.timegm((2026, 11, 26, 12, 0, 0))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"Sun, 06 Nov 1994 08:49:37 GMT", id="5.6.7 IMF-fixdate"),
        pytest.param(b"Sunday, 06-Nov-94 08:49:37 GMT", id="5.6.7 rfc850-date"),
        pytest.param(b"Sun Nov  6 08:49:37 1994", id="5.6.7 asctime-date"),
        pytest.param(b"Sun Nov 06 08:49:37 1994", id="5.6.7 date3 with two digits"),
        pytest.param(b"Mon, 06 Nov 1994 08:49:37 GMT", id="the wrong name of a day"),
    ],
)
def test_the_three_forms(value: bytes) -> None:
    assert parse_date(value) == parse_date(value, NOW) == EXAMPLE


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0),
        (b"Wed, 31 Dec 1969 23:59:59 GMT", -1),
        (b"Thu, 29 Feb 2024 00:00:00 GMT", calendar.timegm((2024, 2, 29, 0, 0, 0))),
        (b"Sat, 31 Dec 2016 23:59:60 GMT", calendar.timegm((2017, 1, 1, 0, 0, 0))),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", LATEST),
    ],
)
def test_edges(value: bytes, seconds: int) -> None:
    assert parse_date(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"784111777",
        b"sun, 06 nov 1994 08:49:37 gmt",  # "HTTP-date is case sensitive"
        b" Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:37 GMT\n",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 06 Nov 1994 08:49:37 +0000",
        b"Sun, 06 Nov 1994 08:49 GMT",
        b"Sun, 06  Nov 1994 08:49:37 GMT",
        b"Day, 06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nix 1994 08:49:37 GMT",
        b"Sun, 06-Nov-94 08:49:37 GMT",
        b"Sunday, 06-Nov-1994 08:49:37 GMT",
        b"Sun Nov 6 08:49:37 1994",
        b"Sun Nov  6 08:49:37 1994 GMT",
        b"Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT".encode(),
    ],
)
def test_what_is_no_date(value: bytes) -> None:
    assert parse_date(value) is None


@pytest.mark.parametrize(
    "value",
    [
        b"Sun, 00 Nov 1994 08:49:37 GMT",
        b"Sun, 31 Nov 1994 08:49:37 GMT",
        b"Thu, 29 Feb 2023 00:00:00 GMT",
        b"Thu, 01 Jan 0000 00:00:00 GMT",
        b"Sun, 06 Nov 1994 24:00:00 GMT",
        b"Sun, 06 Nov 1994 08:60:00 GMT",
        b"Sun, 06 Nov 1994 08:49:60 GMT",
        b"Sun, 06 Nov 1994 08:49:61 GMT",
        b"Thursday, 30-Feb-23 00:00:00 GMT",
        b"Thu Feb  0 00:00:00 2023",
    ],
)
def test_what_no_calendar_has(value: bytes) -> None:
    assert parse_date(value) is None
    assert parse_date(value, NOW) is None


@pytest.mark.parametrize(
    ("date", "year"),
    [
        (b"26-Nov-26 12:00:00", 2026),
        (b"26-Nov-27 12:00:00", 2027),
        (b"01-Jan-76 00:00:00", 2076),
        pytest.param(b"26-Nov-76 12:00:00", 2076, id="just 50 years ahead"),
        pytest.param(b"26-Nov-76 12:00:01", 1976, id="a second more"),
        (b"01-Jan-77 00:00:00", 1977),
        (b"31-Dec-99 00:00:00", 1999),
        (b"31-Dec-00 00:00:00", 2000),
        (b"29-Feb-00 00:00:00", 2000),
    ],
)
def test_5_6_7_two_digits_are_at_most_50_years_ahead(date: bytes, year: int) -> None:
    seconds = parse_date(b"Monday, " + date + b" GMT", NOW)
    assert seconds is not None
    assert time.gmtime(seconds).tm_year == year


def test_two_digits_at_the_end_of_a_century() -> None:
    now = calendar.timegm((2099, 12, 31, 0, 0, 0))
    assert parse_date(b"Friday, 01-Jan-01 00:00:00 GMT", now) == calendar.timegm(
        (2101, 1, 1, 0, 0, 0)
    )


@pytest.mark.parametrize(("digits", "year"), [(69, 1969), (99, 1999), (0, 2000), (68, 2068)])
def test_two_digits_without_a_clock(digits: int, year: int) -> None:
    value = b"Monday, 01-Jan-%02d 00:00:00 GMT" % digits
    assert parse_date(value) == calendar.timegm((year, 1, 1, 0, 0, 0))


@pytest.mark.parametrize("seconds", [LATEST + 1, -62135596801, 10**30, -(10**30)])
def test_what_cannot_be_written(seconds: int) -> None:
    with pytest.raises(ValueError, match="four digits"):
        format_date(seconds)


def test_the_first_year() -> None:
    assert format_date(-62135596800) == b"Mon, 01 Jan 0001 00:00:00 GMT"
    assert parse_date(b"Mon, 01 Jan 0001 00:00:00 GMT") == -62135596800


def test_names_do_not_depend_on_the_locale() -> None:
    before = locale.setlocale(locale.LC_ALL)
    try:
        for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C"):
            try:
                locale.setlocale(locale.LC_ALL, name)
            except locale.Error:  # not on this machine
                continue
            assert format_date(EXAMPLE) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    finally:
        locale.setlocale(locale.LC_ALL, before)


@settings(max_examples=100)
@given(st.integers(-62135596800, LATEST))
def test_round_trip(seconds: int) -> None:
    assert parse_date(format_date(seconds)) == seconds


@settings(max_examples=100)
@given(st.integers(0, LATEST))
def test_email_utils_agrees(seconds: int) -> None:
    value = format_date(seconds)
    assert value.decode() == email.utils.formatdate(seconds, usegmt=True)
    assert int(email.utils.parsedate_to_datetime(value.decode()).timestamp()) == seconds


@settings(max_examples=100)
@given(st.integers(-(10**9), LATEST))
def test_asctime_agrees(seconds: int) -> None:
    assert parse_date(time.asctime(time.gmtime(seconds)).encode()) == seconds


@settings(max_examples=100)
@given(st.integers(0, 4 * 10**9), st.integers(-49, 49))
def test_rfc850_round_trip_within_50_years(now: int, years: int) -> None:
    seconds = now + years * 365 * 86400
    moment = time.gmtime(seconds)
    day = ("Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur", "Sun")[moment.tm_wday]
    month = calendar.month_abbr[moment.tm_mon]
    value = (
        f"{day}day, {moment.tm_mday:02}-{month}-{moment.tm_year % 100:02}"
        f" {moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02} GMT"
    )
    assert parse_date(value.encode(), now) == seconds


@settings(max_examples=100)
@given(
    st.binary(max_size=40) | st.from_regex(rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9:]+ GMT")
)
def test_any_bytes_are_a_date_or_none(value: bytes) -> None:
    parsed = parse_date(value, NOW)
    assert parsed is None or parse_date(format_date(parsed)) == parsed
