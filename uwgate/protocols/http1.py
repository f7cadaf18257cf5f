"""HTTP/1.x grammar shared by requests and responses (RFC 9110 §5, RFC 9112 §2–5).

The rules are quoted above the expressions that match them. Where we are stricter than the RFC, the
reason stands beside it; the common one is that a gateway must never pass on a message that the next
parser could read differently.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Generic, TypeVar

# token = 1*tchar                                                       RFC 9110 §5.6.2
TOKEN_CHARS = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
TOKEN = re.compile(rb"[" + TOKEN_CHARS + rb"]+")

# field-line = field-name ":" OWS field-value OWS                       RFC 9112 §5
# field-value = *field-content; VCHAR, obs-text, SP, HTAB               RFC 9110 §5.5
# No obs-fold (§5.2), no space before the colon (§5.1), no CR, LF, NUL or other control.
FIELD = re.compile(
    rb"([" + TOKEN_CHARS + rb"]+):[\t ]*([\x21-\x7e\x80-\xff]?[\t\x20-\x7e\x80-\xff]*)"
)
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

# request-line = method SP request-target SP HTTP-version               RFC 9112 §3
# Only single SP separators (§3 lets a recipient be lenient; we are not), no "#" (a fragment is
# never sent, §3.2), no byte above 0x7e (URIs are ASCII, RFC 3986 §2).
REQUEST_LINE = re.compile(
    rb"([" + TOKEN_CHARS + rb"]+) ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])"
)
OTHER_VERSION = re.compile(
    rb"[" + TOKEN_CHARS + rb"]+ [\x21-\x7e]+ HTTP/[0-9]+(?:\.[0-9]+)?"
)

# status-line = HTTP-version SP status-code SP [ reason-phrase ]        RFC 9112 §4
# A missing SP before an absent reason is common and unambiguous: taken, and repaired by us.
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")

# Content-Length = 1*DIGIT                                              RFC 9110 §8.6
# Lists ("5, 5") may be collapsed by a recipient; we refuse them. 18 digits fit any integer type.
CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")

# Host = uri-host [ ":" port ]                                          RFC 9110 §7.2
# Narrower than reg-name (RFC 3986 §3.2.2): the value becomes a lookup key, part of file names and
# log lines, so only what names and addresses are made of.
HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")

# absolute-form: scheme "://" authority path-abempty [ "?" query ]      RFC 9112 §3.2.2
ABSOLUTE = re.compile(rb"[hH][tT][tT][pP][sS]?://([^/?]*)(.*)")

# Something that can never become part of a valid head: a bare LF, a bare CR, a NUL.
BROKEN_LINE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\x00")

# Fields that belong to one connection (RFC 9110 §7.6.1), whatever ``Connection`` names.
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)


class Fault(Enum):
    """What is wrong with a message; the router turns it into a status."""

    BAD_MESSAGE = "malformed message"
    BAD_FRAMING = "ambiguous or malformed body length"
    BAD_HOST = "missing, repeated or malformed Host"
    TOO_MANY_FIELDS = "too many fields"
    BAD_VERSION = "HTTP version not supported"
    UNKNOWN_CODING = "transfer coding not supported"
    BAD_EXPECTATION = "unknown expectation"


class Http1Error(ValueError):
    """A message that is refused; ``fault`` says why, the text says where."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(f"{fault.value}: {detail}")
        self.fault = fault


def split_field(line: bytes) -> tuple[bytes, bytes]:
    """``(lower-case name, value without surrounding whitespace)`` of one field line.

    Raises Http1Error(BAD_MESSAGE) unless the line is exactly RFC 9112 §5.
    """
    match = FIELD.fullmatch(line)
    if match is None:
        raise Http1Error(Fault.BAD_MESSAGE, f"field line {line[:60]!r}")
    return match[1].lower(), match[2].rstrip(b" \t")


def split_list(value: bytes) -> list[bytes]:
    """Lower-case tokens of a ``#token`` list (RFC 9110 §5.6.1); empty elements are skipped.

    Raises Http1Error(BAD_MESSAGE) for an element that is not a token.
    """
    tokens = []
    for element in value.split(b","):
        token = element.strip(b" \t")
        if not token:
            continue
        if TOKEN.fullmatch(token) is None:
            raise Http1Error(Fault.BAD_MESSAGE, f"list element {token[:40]!r}")
        tokens.append(token.lower())
    return tokens


def content_length(value: bytes) -> int:
    """The value of a Content-Length field in bytes; raises Http1Error(BAD_FRAMING)."""
    if CONTENT_LENGTH.fullmatch(value) is None:
        raise Http1Error(Fault.BAD_FRAMING, f"Content-Length {value[:30]!r}")
    return int(value)


def transfer_coding(value: bytes) -> None:
    """Accept exactly ``chunked`` (case-insensitive, RFC 9112 §7) and raise Http1Error otherwise.

    A list with ``chunked`` anywhere but alone has no single meaning among parsers (BAD_FRAMING);
    other codings are not implemented (UNKNOWN_CODING, RFC 9112 §6.1).
    """
    if value.lower() == b"chunked":
        return
    if b"chunked" in value.lower().replace(b"\t", b" ").replace(b",", b" ").split():
        codings = [coding.strip(b" \t") for coding in value.lower().split(b",")]
        if codings.count(b"chunked") != 1 or codings[-1] != b"chunked":
            raise Http1Error(Fault.BAD_FRAMING, f"Transfer-Encoding {value[:40]!r}")
    raise Http1Error(Fault.UNKNOWN_CODING, f"Transfer-Encoding {value[:40]!r}")


def upgrade_protocols(value: bytes) -> list[bytes]:
    """The lower-case protocols that an Upgrade value names (RFC 9110 §7.8)."""
    return [name for name in (item.strip(b" \t") for item in value.lower().split(b",")) if name]


MOST_ENCODINGS = 1024
"""Bytes of Accept-Encoding: to read more would take longer than it saves."""


def accepts_gzip(value: bytes) -> bool:
    """Whether an Accept-Encoding value allows gzip (RFC 9110 §12.5.3): named and q above 0, in no
    more than MOST_ENCODINGS."""
    if len(value) > MOST_ENCODINGS:
        return False
    verdict = False
    for element in value.lower().split(b","):
        coding, *parameters = (part.strip(b" \t") for part in element.split(b";"))
        allowed = all(not re.fullmatch(rb"q=0(?:\.0*)?", p) for p in parameters)
        if coding == b"gzip":
            return allowed
        if coding == b"*":
            verdict = allowed
    return verdict


_Kept = TypeVar("_Kept")


class LineMemo(Generic[_Kept]):
    """A bounded set of things seen twice: the first sight only leaves a hash (the "doorkeeper").

    Unique keys therefore never push out useful ones; both generations are cleared when full, so
    that a hostile client can only make us parse, never grow.
    """

    __slots__ = ("entries", "limit", "seen")

    def __init__(self, limit: int) -> None:
        self.entries: dict[bytes, _Kept] = {}
        self.seen: set[int] = set()
        self.limit = limit

    def worth_keeping(self, key: bytes) -> bool:
        """True the second time a key comes by; makes room first if needed."""
        mark = hash(key)
        if mark in self.seen:
            if len(self.entries) >= self.limit:
                self.entries.clear()
            return True
        if len(self.seen) >= self.limit * 4:
            self.seen.clear()
        self.seen.add(mark)
        return False
