"""Response heads of nodes: strict parse, framing, and the bytes to pass on (RFC 9112 §4, §6).

A head is everything up to and including the blank line. Nodes repeat themselves (only Date changes,
once a second), so results are remembered under the exact bytes, as for requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from uwgate.protocols.http1 import (
    HOP_BY_HOP,
    STATUS_LINE,
    Fault,
    Http1Error,
    LineMemo,
    content_length,
    split_field,
    split_list,
    transfer_coding,
)

CHUNKED = -1
UNTIL_CLOSE = -2

_LINE_LIMIT = 512
_LINES_LIMIT = 4096
_HEAD_LIMIT = 4096
_HEADS_LIMIT = 1024

_STEERING = frozenset(
    (
        *HOP_BY_HOP,
        b"content-length",
        b"content-encoding",
        b"date",
        b"trailer",
        b"uwsgi-encoding",
        b"vary",
    )
)


@dataclass(frozen=True, slots=True)
class ResponsePolicy:
    """``gzip``: ``uWSGI-Encoding: gzip`` asks us to compress (http-auto-gzip). ``files``: fields
    (lower case) that name a file to send instead, and whether they do so by a path of URIs
    (X-Accel-Redirect) or by a file name (X-Sendfile)."""

    gzip: bool = False
    files: Mapping[bytes, bool] = field(default_factory=dict)
    max_fields: int = 256


class ResponseHead:
    """What one response head means. Shared between responses: never changed after parsing.

    ``length``: Content-Length in bytes, CHUNKED, or UNTIL_CLOSE (RFC 9112 §6.3; the request's
    method is not considered, so a HEAD response still shows what GET would have).
    ``bodiless``: 1xx, 204, 304: no body whatever the fields say.
    ``persistent``: the node keeps the connection.
    ``lines``: ``HTTP/1.1 200 OK CRLF field CRLF …`` to pass on, without the framing fields, the
    hop-by-hop fields and the final blank line; ``framing``: the Content-Length line or b"".
    ``ready``: the whole head for a persistent HTTP/1.1 client; b"" if the node sent no Date or the
    length is not known. ``clean``: ``ready`` is exactly what the node sent. ``usual``: ``ready``,
    with a body of known length, and the node keeps the connection. ``undated``: ``ready`` but for
    Date and the blank line, where the node sent no Date and the length is known, else b"".
    ``now_dated``, ``dated_with``: room for ``undated`` with the Date line of this second.
    ``whole``: ``ready`` or ``undated``, with a body of known length: all that a plain request
    needs. ``count``: number of fields passed on. ``file``: what a field of ``ResponsePolicy.files``
    says, and whether that is a path of URIs; the field itself is not passed on. ``http2``: room for
    the same as a header block of HTTP/2 (HPACK), without Date where the node sent none.
    """

    __slots__ = (
        "bodiless",
        "clean",
        "count",
        "dated",
        "dated_with",
        "file",
        "framing",
        "gzip",
        "http2",
        "length",
        "lines",
        "now_dated",
        "persistent",
        "ready",
        "status",
        "undated",
        "upgrade",
        "usual",
        "vary",
        "whole",
    )

    def __init__(self) -> None:
        self.status = 0
        self.length = UNTIL_CLOSE
        self.bodiless = False
        self.persistent = False
        self.lines = b""
        self.framing = b""
        self.ready = b""
        self.clean = False
        self.dated = False
        self.upgrade = b""
        self.gzip = False
        self.usual = False
        self.undated = b""
        self.http2 = b""
        self.dated_with = self.now_dated = b""
        self.whole = False
        self.vary = False  # Vary already names Accept-Encoding or *
        self.count = 0
        self.file: tuple[bytes, bool] | None = None


class ResponseParser:
    """Parses response heads and remembers the results, within bounds."""

    __slots__ = ("_memo", "_plain", "policy")

    def __init__(self, policy: ResponsePolicy) -> None:
        self.policy = policy
        self._memo: LineMemo[ResponseHead] = LineMemo(_HEADS_LIMIT)
        self._plain: dict[bytes, bytes] = {}  # line -> lower-case name

    def parse(self, raw: bytes) -> ResponseHead:
        """The meaning of ``raw`` (status line … CRLF CRLF); raises Http1Error."""
        known = self._memo.entries.get(raw)
        if known is not None:
            return known
        head = self._parse(raw)
        if len(raw) <= _HEAD_LIMIT and self._memo.worth_keeping(raw):
            self._memo.entries[raw] = head
        return head

    def _parse(self, raw: bytes) -> ResponseHead:
        status_line, *lines = raw[:-4].split(b"\r\n")
        match = STATUS_LINE.fullmatch(status_line)
        if match is None:
            raise Http1Error(Fault.BAD_MESSAGE, f"status line {status_line[:60]!r}")
        if len(lines) > self.policy.max_fields:
            raise Http1Error(Fault.TOO_MANY_FIELDS, str(len(lines)))
        head = ResponseHead()
        head.status = int(match[2])
        head.bodiless = head.status < 200 or head.status in (204, 304)
        values: dict[bytes, list[bytes]] = {}
        kept = self._sort_lines(lines, values)
        self._framing(head, values, minor=match[1])
        options = self._connection(head, values, minor=match[1])
        if options:
            kept = [(name, line) for name, line in kept if name not in options]
        if self.policy.files:
            kept = self._file(head, kept)
        self._gzip(head, values)
        if head.gzip:
            kept = [(name, line) for name, line in kept if name != b"uwsgi-encoding"]
        head.dated = b"date" in values
        head.count = len(kept)
        head.lines = b"\r\n".join(
            (b"HTTP/1.1 %b %b" % (match[2], match[3] or b""), *(line for _name, line in kept), b"")
        )
        if head.length >= 0 and head.status >= 200 and head.status != 204:
            head.framing = b"Content-Length: %d\r\n" % head.length
        self._ready(head, raw, lines)
        return head

    def _sort_lines(
        self, lines: list[bytes], values: dict[bytes, list[bytes]]
    ) -> list[tuple[bytes, bytes]]:
        """``(name, line)`` of the fields to pass on; steering fields go to ``values``."""
        plain = self._plain
        kept = []
        for line in lines:
            known = plain.get(line)
            if known is not None:
                kept.append((known, line))
                continue
            name, value = split_field(line)
            if name in _STEERING:
                values.setdefault(name, []).append(value)
                if name in HOP_BY_HOP or name == b"content-length":
                    continue
            elif len(line) <= _LINE_LIMIT:
                if len(plain) >= _LINES_LIMIT:
                    plain.clear()
                plain[line] = name
            kept.append((name, line))
        return kept

    def _framing(self, head: ResponseHead, values: dict[bytes, list[bytes]], minor: bytes) -> None:
        """RFC 9112 §6.3, strict: a response that two parsers could frame differently is refused."""
        lengths, codings = values.get(b"content-length"), values.get(b"transfer-encoding")
        if codings is not None:
            if lengths is not None:
                raise Http1Error(Fault.BAD_FRAMING, "both Content-Length and Transfer-Encoding")
            if len(codings) > 1 or minor != b"1":
                raise Http1Error(Fault.BAD_FRAMING, "repeated or HTTP/1.0 Transfer-Encoding")
            transfer_coding(codings[0])
            head.length = CHUNKED
        elif lengths is not None:
            if len(lengths) > 1:
                raise Http1Error(Fault.BAD_FRAMING, "repeated Content-Length")
            head.length = content_length(lengths[0])

    def _connection(
        self, head: ResponseHead, values: dict[bytes, list[bytes]], minor: bytes
    ) -> set[bytes]:
        """Persistence (RFC 9112 §9.3) and Upgrade; returns the names that Connection lists."""
        options: set[bytes] = set()
        for value in values.get(b"connection", ()):
            options.update(split_list(value))
        if minor == b"1":
            head.persistent = b"close" not in options
        else:
            head.persistent = b"keep-alive" in options and b"close" not in options
        if b"upgrade" in values:
            head.upgrade = b", ".join(values[b"upgrade"])
        return options - {b"close", b"keep-alive", b"upgrade", b"date"}

    def _file(
        self, head: ResponseHead, kept: list[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        """The file that a successful response names; the fields that are left."""
        files = self.policy.files
        named = [(name, line) for name, line in kept if name in files]
        if not named:
            return kept
        if head.status < 300 and head.status >= 200:
            if len(named) > 1:
                raise Http1Error(Fault.BAD_MESSAGE, "several files")
            name, line = named[0]
            head.file = (split_field(line)[1], files[name])
        return [(name, line) for name, line in kept if name not in files]

    def _gzip(self, head: ResponseHead, values: dict[bytes, list[bytes]]) -> None:
        if self.policy.gzip and b"content-encoding" not in values:
            wanted = values.get(b"uwsgi-encoding")
            head.gzip = wanted is not None and wanted[0].lower() == b"gzip"
            listed = b",".join(values.get(b"vary", ())).lower()
            head.vary = b"*" in listed or b"accept-encoding" in listed

    def _ready(self, head: ResponseHead, raw: bytes, lines: list[bytes]) -> None:
        if head.gzip or head.status < 200:
            return
        if not head.dated:
            if head.framing and not head.bodiless:
                head.undated = head.lines + head.framing
                head.whole = True
            return
        if head.framing or head.bodiless:
            # The field order is kept where nothing had to go: the node's own bytes.
            plain = head.status != 204 and not any(
                line.split(b":", 1)[0].lower() in HOP_BY_HOP for line in lines
            )
            whole = head.lines + head.framing + b"\r\n"
            head.clean = (
                plain
                and len(whole) == len(raw)
                and raw.startswith(b"HTTP/1.1")
                and raw[12:13] == b" "
            )
            head.ready = raw if head.clean else whole
            head.whole = head.length >= 0 and not head.bodiless
            head.usual = head.persistent and head.length >= 0 and not head.bodiless
