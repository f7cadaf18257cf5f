"""The path of a request target, decoded and without detours (RFC 3986 §2.1, §3.3, §5.2.4).

For those who look for files: what comes out has no empty, ``.`` or ``..`` segment and no control
byte, so that joining it to a directory stays in that directory (but for symbolic links).
"""

from __future__ import annotations

import re

__all__ = ["decoded_path"]

# pchar = unreserved / pct-encoded / sub-delims / ":" / "@"                     RFC 3986 §3.3
_PLAIN = rb"A-Za-z0-9_~!$&'()*+,;=:@-"
# A segment that is what it looks like: nothing encoded, at most one dot before something else.
_SEGMENT = rb"\.?[" + _PLAIN + rb"][." + _PLAIN + rb"]*+"
# None of them empty. The query is not looked at.
_plain_path = re.compile(
    rb"(/(?:" + _SEGMENT + rb"/)*(?:" + _SEGMENT + rb")?)(?:\?.*)?", re.DOTALL
).fullmatch

# Every "%" begins an escape. No "#": a fragment is never sent (RFC 9112 §3.2), and who finds one
# nevertheless may think that the path ends there.
_whole_escapes = re.compile(rb"/(?:[^%#]++|%[0-9A-Fa-f]{2})*").fullmatch
# Control bytes belong to no name of a file that is meant to be served. A backslash is a slash for
# some (WHATWG URL, Windows), so that "\.." would be a way up.
_refused = re.compile(rb"[\x00-\x1f\x7f\\]").search

_DIGITS = "0123456789abcdefABCDEF"
_BYTES = {(a + b).encode(): bytes.fromhex(a + b) for a in _DIGITS for b in _DIGITS}


def decoded_path(target: bytes) -> bytes | None:
    """The path of a target in origin-form (RFC 9112 §3.2.1), without the query; None to refuse.

    Decoded once: ``%252e`` is ``%2e``. Then cleaned, so that ``%2e`` and ``%2f`` are no way around
    it: empty segments and ``.`` fall away, ``..`` takes the segment before it, and what ended with
    one of them ends with a slash. Refused are targets that do not begin with a slash, malformed
    escapes, fragments, control bytes and backslashes, encoded or not, and paths that climb above
    the root (RFC 3986 §5.2.4 would let them stop there; nobody who means well sends them).
    """
    match = _plain_path(target)
    if match is not None:
        return match[1]
    path = target.partition(b"?")[0]
    if _whole_escapes(path) is None:
        return None
    first, *escaped = path.split(b"%")
    if escaped:
        path = first + b"".join([_BYTES[part[:2]] + part[2:] for part in escaped])
    return None if _refused(path) is not None else _without_detours(path)


def _without_detours(path: bytes) -> bytes | None:
    """``path`` without empty and dot segments; None if it climbs above the root.

    Empty segments fall first, as file systems have it: ``/a//../b`` is ``/b``.
    """
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            if not kept:
                return None
            kept.pop()
        elif segment not in (b"", b"."):
            kept.append(segment)
    slash = b"/" if kept and segments[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(kept) + slash
