"""What a node says beside a file that it names: which of its header fields go with it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from uwgate.protocols.http1_response import ResponseHead

# Of the response of a node that names a file: what describes the body that is not sent.
_REPLACED = re.compile(
    rb"(?i)(?:Accept-Ranges|Content-(?:Encoding|Range|MD5|Digest)|ETag|Last-Modified|Date"
    rb"|X-Content-Type-Options|(?:Repr-)?Digest|Location|Trailer):"
)
_REPEATED = re.compile(
    rb"(?i)(?:Cache-Control|Content-Location|ETag|Expires|Last-Modified|Set-Cookie|Vary):"
)
_FRESHNESS = frozenset((b"cache-control", b"expires"))
KIND = re.compile(rb"(?i)Content-Type:[ \t]*([^\r\n]*)")
"""The Content-Type line at the beginning of field lines."""


def with_fields_of(head: ResponseHead, lines: bytes) -> bytes:
    """The fields of a file, with those of the node's response that say nothing of its body."""
    kept = [line for line in head.lines.split(b"\r\n")[1:] if line and not _REPLACED.match(line)]
    named = {line.partition(b":")[0].lower() for line in kept}
    if not named.isdisjoint(_FRESHNESS):  # what the node says of it must not be mended
        named |= _FRESHNESS
    named.discard(b"vary")  # a list
    ours = [
        line
        for line in lines.split(b"\r\n")
        if line and line.partition(b":")[0].lower() not in named
    ]
    # Content-Type first: it is what parts of a multipart response have instead.
    ours += kept
    ours.sort(key=lambda line: not line.lower().startswith(b"content-type:"))
    return b"".join(line + b"\r\n" for line in ours)


def repeated_fields_of(head: ResponseHead, lines: bytes) -> bytes:
    """The fields of a 304 for a file (``lines``), with those of the node's response that a 304
    repeats (RFC 9110 §15.4.5): a cache takes them over."""
    said = with_fields_of(head, lines).split(b"\r\n")
    return b"".join(line + b"\r\n" for line in said if _REPEATED.match(line))


def without_files(trailer: bytes, files: Mapping[bytes, bool]) -> bytes:
    """Trailer lines without the fields that name files: no client is to see them."""
    if not trailer or not files:
        return trailer
    lines = trailer.split(b"\r\n")
    return b"\r\n".join(
        line for line in lines if line.partition(b":")[0].strip().lower() not in files
    )
