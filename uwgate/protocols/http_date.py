"""HTTP-date (RFC 9110 §5.6.7): read in its three forms, written in the preferred one.

Case-sensitive, as the RFC wants it, and independent of the locale. The name of the day says nothing
that the date does not say; nobody else compares the two, so it has to be a name and no more.
"""

from __future__ import annotations

import re
import time
from datetime import date

__all__ = ["LATEST", "format_date", "parse_date"]

LATEST = 253402300799
"""The last second of the year 9999, in seconds since the epoch: what four digits can write."""

_EARLIEST = -62135596800  # the first second of the year 1
_EPOCH = date(1970, 1, 1).toordinal()

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBERS = {name.encode(): number for number, name in enumerate(_MONTHS, 1)}

_DAY = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = rb"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTH = rb"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
# hour ":" minute ":" second. The second 60 is for leap seconds, and those end a day of UTC.
_TIME = rb"((?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]|23:59:60)"

# IMF-fixdate = day-name "," SP day SP month SP year SP time-of-day SP GMT
_imf = re.compile(_DAY + rb", ([0-9]{2}) " + _MONTH + rb" ([0-9]{4}) " + _TIME + rb" GMT").fullmatch
# rfc850-date = day-name-l "," SP day "-" month "-" 2DIGIT SP time-of-day SP GMT
_rfc850 = re.compile(
    _LONG_DAY + rb", ([0-9]{2})-" + _MONTH + rb"-([0-9]{2}) " + _TIME + rb" GMT"
).fullmatch
# asctime-date = day-name SP month SP ( 2DIGIT / ( SP 1DIGIT ) ) SP time-of-day SP year
_asctime = re.compile(
    _DAY + rb" " + _MONTH + rb" ([0-9]{2}| [0-9]) " + _TIME + rb" ([0-9]{4})"
).fullmatch


def parse_date(value: bytes, now: int | None = None) -> int | None:
    """Seconds since the epoch (UTC) of an HTTP-date without surrounding whitespace.

    None if it is none, or a day that no calendar has. ``now``, in seconds since the epoch, tells
    the century of an rfc850-date: its year is the last one with these digits that is not more than
    50 years ahead. Without ``now`` the years are 1969 to 2068, as POSIX has them.
    """
    match = _imf(value)
    if match is not None:
        day, month, year, clock = match.groups()
        return _seconds(int(year), _MONTH_NUMBERS[month], int(day), clock)
    match = _rfc850(value)
    if match is not None:
        day, month, year, clock = match.groups()
        number = _MONTH_NUMBERS[month]
        full_year = _full_year(int(year), number, int(day), clock, now)
        return _seconds(full_year, number, int(day), clock)
    match = _asctime(value)
    if match is not None:
        month, day, clock, year = match.groups()
        return _seconds(int(year), _MONTH_NUMBERS[month], int(day), clock)
    return None


def format_date(seconds: int) -> bytes:
    """``seconds`` since the epoch as IMF-fixdate; always the same for the same argument.

    Raises ValueError before the year 1 and after `LATEST`.
    """
    if not _EARLIEST <= seconds <= LATEST:
        raise ValueError(f"no HTTP-date has four digits for {seconds} seconds since the epoch")
    year, month, day, hour, minute, second, weekday = time.gmtime(seconds)[:7]
    text = (
        f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04}"
        f" {hour:02}:{minute:02}:{second:02} GMT"
    )
    return text.encode()


def _full_year(digits: int, month: int, day: int, clock: bytes, now: int | None) -> int:
    """The year that an rfc850-date means by two digits."""
    if now is None:
        return digits + (1900 if digits >= 69 else 2000)
    this_year, *today = time.gmtime(now)[:6]
    hour, minute, second = _hms(clock)
    latest = this_year + 50
    year = latest - (latest - digits) % 100
    if year == latest and [month, day, hour, minute, second] > today:
        year -= 100
    return year


def _hms(clock: bytes) -> tuple[int, int, int]:
    return int(clock[:2]), int(clock[3:5]), int(clock[6:])


def _seconds(year: int, month: int, day: int, clock: bytes) -> int | None:
    hour, minute, second = _hms(clock)
    try:
        days = date(year, month, day).toordinal() - _EPOCH
    except ValueError:
        return None
    return days * 86400 + hour * 3600 + minute * 60 + second
