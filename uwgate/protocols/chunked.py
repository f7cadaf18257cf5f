"""The chunked transfer coding (RFC 9112 §7.1), read incrementally and written.

The grammar that is accepted::

    chunked-body = *( 1*15HEXDIG [ chunk-ext ] CRLF chunk-data CRLF ) 1*15"0" [ chunk-ext ] CRLF
                   *( field-line CRLF ) CRLF
    chunk-ext    = *( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )

Stricter than the RFC, because two readers that disagree about a length are how requests are
smuggled: a size has at most 15 digits (it fits 63 bits everywhere), a size line at most 256 bytes,
every line ends with CRLF and never with a bare LF, trailer fields obey the same grammar as header
fields (no obs-fold, no control bytes).
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = [
    "LAST_CHUNK",
    "ChunkedError",
    "ChunkedReader",
    "encode_chunk",
    "filter_trailer",
    "last_chunk",
]

LAST_CHUNK = b"0\r\n\r\n"
"""The end of a chunked message without trailer fields."""

_CRLF = b"\r\n"
_CR = 0x0D
_LF = 0x0A

_MAX_SIZE_LINE = 256
# Extension bytes that a sender may waste on top of what its data pays for (see _spend).
_MAX_EXCESS = 16384

# RFC 9110 §5.6.2: token. §5.6.4: quoted-string, without the whitespace that HTTP calls bad.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
# RFC 9112 §7.1.1. BWS must be understood (RFC 9110 §5.6.3); it is cut out with its extension.
_EXTENSION = (
    rb"[\t ]*;[\t ]*" + _TOKEN + rb"(?:[\t ]*=[\t ]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
)
_SIZE = rb"([0-9A-Fa-f]{1,15})"

_plain_size_line = re.compile(_SIZE + rb"\r\n").match
_size_line = re.compile(_SIZE + rb"((?:" + _EXTENSION + rb")*)\r\n").fullmatch
# RFC 9110 §5.5, §5.6.2: field-line, without obs-fold.
_field_line = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n").fullmatch

# RFC 9110 §6.5.1: what frames, routes, authenticates, conditions or describes a message must be
# known before its content. "_" counts as "-", because CGI environments see one name in both.
# Content-Digest is made for trailers (RFC 9530 §2) and passes.
_forbidden_fields = re.compile(
    rb"""^(?:
        transfer[-_]encoding | te | trailers? | connection | keep[-_]alive
      | upgrade | http2[-_]settings | content[-_](?!digest:)[^:\r\n]*
      | host | forwarded | x[-_](?:forwarded|ssl[-_])[^:\r\n]* | x[-_]real[-_]ip
      | proxy(?:[-_][^:\r\n]*)?
      | authorization | www[-_]authenticate | cookie2? | set[-_]cookie2?
      | cache[-_]control | expect | max[-_]forwards | pragma | range
      | if[-_](?:match | none[-_]match | modified[-_]since | unmodified[-_]since | range)
      | age | date | expires | location | retry[-_]after | vary | warning
    ):[^\n]*\n""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


class ChunkedError(ValueError):
    """The bytes are not a chunked message; its length is unknown from here on."""


def encode_chunk(data: bytes) -> bytes:
    """``data`` as one chunk; nothing for no data, since an empty chunk would end the message."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailer: bytes) -> bytes:
    """The end of a message; ``trailer`` is valid lines ``Name: value CRLF``, or nothing."""
    return b"0\r\n%b\r\n" % trailer


def filter_trailer(trailer: bytes) -> bytes:
    """Valid trailer lines without the fields that may not be sent as trailers (RFC 9110 §6.5.1).

    Dropped: framing and hop-by-hop fields, content-* (but Content-Digest), host and forwarding
    fields, authentication and cookies, request conditions and modifiers, response control data.
    """
    return _forbidden_fields.sub(b"", trailer) if trailer else b""


class ChunkedReader:
    """Reads one chunked message, however it is split.

    After each `feed`, about the bytes of that feed:

    ``payload``
        Slices of content, in order.
    ``wire``
        The same piece of the message to be passed on as chunked: a slice of what was fed, with
        extensions cut out, incomplete lines held back until they are complete, and the trailer
        held back until it is complete and then sent through `filter_trailer`. The ``wire`` of all
        feeds, joined, is a chunked message with the same content. It ends with the last chunk and
        the trailer once ``done``.
    ``verbatim``
        The feed consisted of whole chunks (at the end: and the plain last chunk), without
        extensions or trailer fields: the bytes consumed are chunks in their own right.
        A caller who writes chunks of its own may mix them with such bytes; a feed that begins or
        ends inside a chunk is never ``verbatim``, use ``wire`` for it.

    About the message so far: ``size`` (bytes of content), ``done``, and once done ``trailer``:
    the valid trailer lines ``Name: value CRLF`` as received, unfiltered.

    ``max_trailer`` bounds the bytes of the trailer lines, and so, with 256 bytes for a size line,
    what is held between two feeds.
    """

    __slots__ = (
        "_excess",
        "_left",
        "_line",
        "_mark",
        "_max_trailer",
        "_state",
        "done",
        "payload",
        "size",
        "trailer",
        "verbatim",
        "wire",
    )

    def __init__(self, max_trailer: int = 16384) -> None:
        self.payload: list[bytes] = []
        self.wire: list[bytes] = []
        self.verbatim = True
        self.done = False
        self.trailer = b""
        self.size = 0
        self._max_trailer = max_trailer
        self._state = _SIZE_LINE
        self._left = 0  # bytes of the current chunk that are still to come
        self._line = b""  # the part of a size line, or of the trailer, that has come
        self._mark = 0  # what lies before it in the current feed is already in wire, or cut out
        self._excess = 0

    def feed(self, data: bytes, pos: int = 0) -> int:
        """Consume ``data`` from ``pos``; the position after the last byte consumed.

        That is ``len(data)`` unless the message ended before. Nothing is consumed once ``done``.
        Raises ChunkedError; from then on every feed raises.
        """
        self.payload = []
        self.wire = wire = []
        self.verbatim = self._state == _SIZE_LINE and not self._line
        self._mark = pos
        end = len(data)
        while pos < end and not self.done:
            pos = _STEPS[self._state](self, data, pos)
        if pos > self._mark:
            wire.append(data[self._mark : pos])
        if self._line or (self._state != _SIZE_LINE and not self.done):
            self.verbatim = False
        return pos

    def _fail(self, message: str) -> ChunkedError:
        self._state = _BROKEN
        return ChunkedError(message)

    def _hold_back(self, data: bytes, pos: int, end: int) -> None:
        """Move data[pos:end] to the line in progress, and what was before it to the wire."""
        if pos > self._mark:
            self.wire.append(data[self._mark : pos])
        self._mark = end
        self._line += data[pos:end]

    def _on_size_line(self, data: bytes, pos: int) -> int:
        """Whole chunks with plain size lines, as many as there are; then whatever else comes."""
        if self._line:
            return self._on_hard_size_line(data, pos)
        match = _plain_size_line(data, pos)
        while match is not None:
            size = int(match[1], 16)
            pos = match.end()
            if not size:
                self._state = _TRAILER
                return pos
            end = pos + size
            if not data.startswith(_CRLF, end):
                self._left = size
                self._state = _DATA
                return pos
            self.payload.append(data[pos:end])
            self.size += size
            pos = end + 2
            match = _plain_size_line(data, pos)
        return self._on_hard_size_line(data, pos) if pos < len(data) else pos

    def _on_hard_size_line(self, data: bytes, pos: int) -> int:
        """A size line that comes in parts, has extensions or is wrong."""
        end = data.find(b"\n", pos, pos + _MAX_SIZE_LINE + 1) + 1
        complete = end > 0
        if not complete:
            end = min(len(data), pos + _MAX_SIZE_LINE + 1)
        self._hold_back(data, pos, end)
        line = self._line
        if len(line) > _MAX_SIZE_LINE:
            raise self._fail(f"a chunk size line has more than {_MAX_SIZE_LINE} bytes")
        if not complete:
            return end
        self._line = b""
        match = _size_line(line)
        if match is None:
            raise self._fail("malformed chunk size line")
        digits, extensions = match.groups()
        self.verbatim = False
        self.wire.append(digits + _CRLF)
        size = int(digits, 16)
        if extensions:
            self._spend(len(extensions), size)
        self._left = size
        self._state = _DATA if size else _TRAILER
        return end

    def _spend(self, extensions: int, size: int) -> None:
        """Account for extensions: a chunk pays for its own, up to twice its data and 16 bytes.

        Extensions are read and thrown away, so a message made of them would be work for nothing.
        """
        self._excess = max(0, self._excess + extensions - 2 * size - 16)
        if self._excess > _MAX_EXCESS:
            raise self._fail("the chunk extensions outweigh the content")

    def _on_data(self, data: bytes, pos: int) -> int:
        end = pos + self._left
        length = len(data)
        if end > length:
            end = length
        else:
            self._state = _DATA_CR
        piece = data[pos:end]
        self.payload.append(piece)
        self.size += len(piece)
        self._left -= len(piece)
        return end

    def _on_data_cr(self, data: bytes, pos: int) -> int:
        if data[pos] != _CR:
            raise self._fail("chunk data is not followed by CRLF")
        self._state = _DATA_LF
        return pos + 1

    def _on_data_lf(self, data: bytes, pos: int) -> int:
        if data[pos] != _LF:
            raise self._fail("chunk data is not followed by CRLF")
        self._state = _SIZE_LINE
        return pos + 1

    def _on_trailer(self, data: bytes, pos: int) -> int:
        """One line of the trailer section, or the part of it that has come."""
        if not self._line and not self.trailer and data.startswith(_CRLF, pos):
            self.done = True
            return pos + 2
        end = data.find(b"\n", pos) + 1
        complete = end > 0
        if not complete:
            end = len(data)
        self._hold_back(data, pos, end)
        line = self._line
        if not complete:
            # The blank line is not part of what is bounded.
            if len(self.trailer) + len(line) > self._max_trailer + 2:
                raise self._trailer_too_long()
            return end
        self._line = b""
        self.verbatim = False
        if line == _CRLF:
            self.done = True
            self.wire.append(filter_trailer(self.trailer) + _CRLF)
            return end
        if len(self.trailer) + len(line) > self._max_trailer:
            raise self._trailer_too_long()
        if _field_line(line) is None:
            raise self._fail("malformed trailer field")
        self.trailer += line
        return end

    def _trailer_too_long(self) -> ChunkedError:
        return self._fail(f"the trailer has more than {self._max_trailer} bytes")

    def _on_broken(self, data: bytes, pos: int) -> int:
        raise ChunkedError("the chunked message was malformed before")


_SIZE_LINE, _DATA, _DATA_CR, _DATA_LF, _TRAILER, _BROKEN = range(6)
_STEPS: tuple[Callable[[ChunkedReader, bytes, int], int], ...] = (
    ChunkedReader._on_size_line,
    ChunkedReader._on_data,
    ChunkedReader._on_data_cr,
    ChunkedReader._on_data_lf,
    ChunkedReader._on_trailer,
    ChunkedReader._on_broken,
)
