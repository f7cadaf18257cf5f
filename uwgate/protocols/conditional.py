"""Conditional requests (RFC 9110 §13): which fields there are, and what they say of a file.

An entity tag is bytes as in the ETag field: ``"xyz"`` or ``W/"xyz"``, with the quotes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uwgate.protocols.http_date import parse_date

__all__ = ["Conditions", "evaluate", "find_conditions", "range_applies"]

# entity-tag = [ %s"W/" ] DQUOTE *( %x21 / %x23-7E / obs-text ) DQUOTE           RFC 9110 §8.8.3
_ENTITY_TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*+"'
_entity_tag = re.compile(_ENTITY_TAG).fullmatch
_entity_tags = re.compile(_ENTITY_TAG).findall
# #entity-tag, with the empty elements that a recipient has to take              RFC 9110 §5.6.1
# Possessive, so that no list costs more than a few looks at each byte; classes only, because
# Python before 3.11.5 has possessive groups wrong.
_entity_tag_list = re.compile(
    rb"[\t ,]*+(?:" + _ENTITY_TAG + rb"(?:[\t ]*+,[\t ,]*+|\Z))*"
).fullmatch

_conditions = re.compile(
    rb"\r\n(If-(?:None-Match|Modified-Since|Match|Unmodified-Since|Range)|Range):"
    rb"[\t ]*+([^\r\n]*+)",
    re.IGNORECASE,
)

# Methods that select no representation: conditions mean nothing for them       RFC 9110 §13.2.1
_UNCONDITIONAL = frozenset((b"CONNECT", b"OPTIONS", b"TRACE"))
_SAFE = frozenset((b"GET", b"HEAD"))
_LONGEST = 8192  # bytes of a list of entity tags: real ones are a few


@dataclass(frozen=True, slots=True)
class Conditions:
    """Values of the conditional fields of a request, and of Range; None for a field to ignore."""

    if_match: bytes | None = None
    if_none_match: bytes | None = None
    if_modified_since: bytes | None = None
    if_unmodified_since: bytes | None = None
    if_range: bytes | None = None
    range: bytes | None = None


def find_conditions(block: bytes) -> Conditions | None:
    r"""The conditional fields of a valid header block, CRLF before the first field and after all.

    None if there is no such field. Repeated If-Match and If-None-Match fields are one list
    (RFC 9110 §5.3). The others are no lists, repeated ones are ignored (§13.1.3, §13.1.4); a
    repeated If-Range takes Range with it, because a part without its condition could be glued to a
    part of another file.
    """
    first = _conditions.search(block)
    if first is None:
        return None
    found: dict[bytes, list[bytes]] = {}
    for name, value in _conditions.findall(block, first.start()):
        found.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    if_range, byte_range = found.get(b"if-range", ()), _only(found, b"range")
    return Conditions(
        _joined(found, b"if-match"),
        _joined(found, b"if-none-match"),
        _only(found, b"if-modified-since"),
        _only(found, b"if-unmodified-since"),
        _only(found, b"if-range"),
        byte_range if len(if_range) < 2 else None,
    )


def evaluate(
    method: bytes,
    fields: Conditions,
    etag: bytes | None,
    mtime: int | None,
    now: int | None = None,
) -> int:
    """What to answer for a representation that exists: 200 (go on), 304 or 412.

    In the order of RFC 9110 §13.2.2. ``etag`` and ``mtime`` (seconds since the epoch) are what the
    answer has as ETag and Last-Modified, None for what it has not; ``now`` is for `parse_date`.
    A date that is none is ignored. A list of entity tags that is malformed, or of more than 8 KB,
    matches nothing.
    """
    if method in _UNCONDITIONAL:
        return 200
    if fields.if_match is not None:
        if not _strongly_matches(fields.if_match, etag):
            return 412
    elif mtime is not None and fields.if_unmodified_since is not None:
        limit = parse_date(fields.if_unmodified_since, now)
        if limit is not None and mtime > limit:
            return 412
    if fields.if_none_match is not None:
        if _weakly_matches(fields.if_none_match, etag):
            return 304 if method in _SAFE else 412
    elif mtime is not None and fields.if_modified_since is not None and method in _SAFE:
        limit = parse_date(fields.if_modified_since, now)
        if limit is not None and mtime <= limit:
            return 304
    return 200


def range_applies(
    if_range: bytes | None, etag: bytes | None, mtime: int | None, now: int | None = None
) -> bool:
    """Whether a Range may be served as a part, by If-Range (RFC 9110 §13.1.5).

    True without If-Range. Weak entity tags never match. A date matches the very same ``mtime``
    (seconds since the epoch) only; ``mtime`` has to be None if it is no strong validator
    (§8.8.2.2): the file was written in the second in which its date was sent. ``now`` is for
    `parse_date`.
    """
    if if_range is None:
        return True
    if _entity_tag(if_range) is not None:
        return not if_range.startswith(b"W/") and if_range == etag
    return mtime is not None and parse_date(if_range, now) == mtime


def _joined(found: dict[bytes, list[bytes]], name: bytes) -> bytes | None:
    values = found.get(name)
    return None if values is None else b", ".join(values)


def _only(found: dict[bytes, list[bytes]], name: bytes) -> bytes | None:
    values = found.get(name, ())
    return values[0] if len(values) == 1 else None


def _strongly_matches(value: bytes, etag: bytes | None) -> bool:
    """If-Match (§13.1.1): strong comparison, that is the same and not weak (§8.8.3.2)."""
    if value == b"*":
        return True
    if len(value) > _LONGEST or etag is None or etag.startswith(b"W/"):
        return False
    if _entity_tag_list(value) is None:
        return False
    return etag in _entity_tags(value)


def _weakly_matches(value: bytes, etag: bytes | None) -> bool:
    """If-None-Match (§13.1.2): weak comparison, that is the same but for ``W/`` (§8.8.3.2)."""
    if value == b"*":
        return True
    if len(value) > _LONGEST or etag is None or _entity_tag_list(value) is None:
        return False
    opaque = etag.removeprefix(b"W/")
    return any(tag.removeprefix(b"W/") == opaque for tag in _entity_tags(value))
