"""Byte ranges (RFC 9110 §14): the Range field read, Content-Range and multipart bodies written.

A range is ``(start, end)``: offsets in bytes, ``end`` excluded. On the wire the last byte is
included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "content_range",
    "last_boundary",
    "multipart_length",
    "parse_range",
    "part_head",
    "unsatisfied",
]

# int-range = first-pos "-" [ last-pos ], suffix-range = "-" suffix-length       RFC 9110 §14.1.1
_SPEC = rb"(?:[0-9]++-[0-9]*+|-[0-9]++)"
# An element, with the empty ones that a recipient has to take beside it          RFC 9110 §5.6.1
_COMMA = rb"(?:[\t ]*+,[\t ,]*+)"
# ranges-specifier = range-unit "=" 1#range-spec; units are case-insensitive      RFC 9110 §14.1
# Possessive, so that no value costs more than a few looks at each byte; classes only, because
# Python before 3.11.5 has possessive groups wrong.
_byte_ranges = re.compile(
    rb"[bB][yY][tT][eE][sS]=" + _COMMA + rb"?"
    rb"(" + _SPEC + rb"(?:" + _COMMA + _SPEC + rb")*)" + _COMMA + rb"?"
).fullmatch
_specs = re.compile(rb"([0-9]*+)-([0-9]*+)").findall

_MAX_SPECS = 100
# About what the head of a part costs (RFC 9110 §15.3.7.2).
_MAX_GAP = 80
# No file is longer; more digits are not even made a number (int() is quadratic).
_MAX_DIGITS = 18
_HUGE: int = 10**_MAX_DIGITS


def parse_range(value: bytes, size: int, limit: int = 16) -> list[tuple[int, int]] | None:
    """What of ``size`` bytes a Range field asks for: ranges, or None if it is to be ignored.

    The ranges lie within the size. Those that overlap or have at most 80 bytes between them are
    one; the first of them gives its place in the order of the request. An empty list means that
    nothing can be satisfied (416).

    Ignored are other units and malformed values; more than 100 specs, more than ``limit`` ranges,
    or a byte that is asked for more than twice, which make much work of a short request (§14.2);
    and every Range of an empty representation, because some clients send one with each request,
    and no Content-Range says "all of nothing" (§14.2 leaves it to us).
    """
    match = _byte_ranges(value)
    if match is None or not size:
        return None
    specs = _specs(match[1])
    if len(specs) > _MAX_SPECS:
        return None
    wanted = []
    for first, last in specs:
        if first and last and _order(last) < _order(first):
            return None
        start, end = _resolve(first, last, size)
        if start < end:
            wanted.append((start, end))
    if len(wanted) == 1:
        return wanted
    if _deepest_overlap(wanted) > 2:
        return None
    ranges = _coalesce(wanted)
    return ranges if len(ranges) <= limit else None


def content_range(start: int, end: int, size: int) -> bytes:
    """The Content-Range value of a part (RFC 9110 §14.4); ``start < end <= size``."""
    return b"bytes %d-%d/%d" % (start, end - 1, size)


def unsatisfied(size: int) -> bytes:
    """The Content-Range value of a 416 answer (RFC 9110 §14.4)."""
    return b"bytes */%d" % size


def part_head(
    boundary: bytes, content_type: bytes | None, start: int, end: int, size: int
) -> bytes:
    """What goes before the bytes of a part of multipart/byteranges (RFC 9110 §14.6).

    The boundary (RFC 2046 §5.1.1: 1 to 70 letters, digits and few others) must not occur in the
    content. There is no Content-Type line for None or nothing. The first part too begins with the
    CRLF of its delimiter, as §14.6 allows, so that all parts are made alike.
    """
    kind = b"Content-Type: %b\r\n" % content_type if content_type else b""
    return b"\r\n--%b\r\n%bContent-Range: %b\r\n\r\n" % (
        boundary,
        kind,
        content_range(start, end, size),
    )


def last_boundary(boundary: bytes) -> bytes:
    """What goes behind the bytes of the last part."""
    return b"\r\n--%b--\r\n" % boundary


def multipart_length(
    boundary: bytes, content_type: bytes | None, ranges: Iterable[tuple[int, int]], size: int
) -> int:
    """The bytes of a whole multipart/byteranges body: heads, contents and last boundary."""
    length = len(last_boundary(boundary))
    for start, end in ranges:
        length += len(part_head(boundary, content_type, start, end, size)) + end - start
    return length


def _order(digits: bytes) -> tuple[int, bytes]:
    """Compares like the number, however long it is."""
    digits = digits.lstrip(b"0")
    return len(digits), digits


def _number(digits: bytes) -> int:
    """The number, or one beyond every size."""
    digits = digits.lstrip(b"0")
    if len(digits) > _MAX_DIGITS:
        return _HUGE
    return int(digits or b"0")


def _resolve(first: bytes, last: bytes, size: int) -> tuple[int, int]:
    """One spec as a range within the size (§14.1.2); empty if it cannot be satisfied."""
    if not first:
        return max(0, size - _number(last)), size
    return _number(first), min(size, _number(last) + 1) if last else size


def _deepest_overlap(ranges: list[tuple[int, int]]) -> int:
    """How often the byte is asked for that is asked for most."""
    # An end sorts before a start at the same offset: neighbours do not overlap.
    edges = sorted([(start, 1) for start, _ in ranges] + [(end, -1) for _, end in ranges])
    depth = deepest = 0
    for _, step in edges:
        depth += step
        deepest = max(deepest, depth)
    return deepest


def _coalesce(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges with near ones made one, in the order of the first of each."""
    merged: list[tuple[int, int, int]] = []
    for start, end, place in sorted((start, end, i) for i, (start, end) in enumerate(ranges)):
        if merged and start - merged[-1][2] <= _MAX_GAP:
            before = merged[-1]
            merged[-1] = (min(before[0], place), before[1], max(before[2], end))
        else:
            merged.append((place, start, end))
    return [(start, end) for _, start, end in sorted(merged)]
