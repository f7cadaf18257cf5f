"""Extensible priorities (RFC 9218): what a client says of the order of its responses."""

from __future__ import annotations

import re
from typing import NamedTuple

# Structured Fields Dictionary (RFC 8941 §3.2); other members and parameters are skipped.
_URGENCY = re.compile(rb"(?:^|,)[ \t]*u=([0-7])[ \t]*(?:;[^,]*)?(?=,|$)")
_INCREMENTAL = re.compile(rb"(?:^|,)[ \t]*i(?:=\?([01]))?[ \t]*(?:;[^,]*)?(?=,|$)")
_LONGEST = 256


class Priority(NamedTuple):
    """``urgency``: 0 first, 7 last; ``incremental``: parts of it are of use (RFC 9218 §4)."""

    urgency: int = 3
    incremental: bool = False


DEFAULT = Priority()


def parse_priority(value: bytes) -> Priority:
    """The last ``u`` and ``i`` of a Priority value; the default for what is not understood."""
    if not value or len(value) > _LONGEST:
        return DEFAULT
    urgencies, increments = _URGENCY.findall(value), list(_INCREMENTAL.finditer(value))
    urgency = int(urgencies[-1]) if urgencies else DEFAULT.urgency
    return Priority(urgency, bool(increments) and increments[-1][1] != b"0")
