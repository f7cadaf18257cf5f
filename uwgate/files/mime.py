"""Media types of files, by the last extension of their name."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Sequence

from uwgate.config.static_values import mime_types

UNKNOWN = b"application/octet-stream"
"""The type of everything else. Files go out with ``nosniff``, so there has to be one."""

SYSTEM = "/etc/mime.types"
"""The system's table: lines of a type and its extensions, ``#`` begins a comment."""

# What browsers insist on with nosniff, or what tables of systems have not heard of, or know by
# another name.
_WEB = {
    b"avif": b"image/avif",
    b"css": b"text/css",
    b"gz": b"application/gzip",
    b"htm": b"text/html",
    b"html": b"text/html",
    b"ico": b"image/x-icon",
    b"js": b"text/javascript",
    b"json": b"application/json",
    b"map": b"application/json",
    b"md": b"text/markdown",
    b"mjs": b"text/javascript",
    b"mp4": b"video/mp4",
    b"svg": b"image/svg+xml",
    b"txt": b"text/plain",
    b"wasm": b"application/wasm",
    b"webm": b"video/webm",
    b"webmanifest": b"application/manifest+json",
    b"webp": b"image/webp",
    b"woff": b"font/woff",
    b"woff2": b"font/woff2",
    b"xml": b"application/xml",
}

# Besides text/*. JSON is UTF-8 and has no such parameter (RFC 8259 §11).
_TEXT = frozenset((b"application/javascript", b"application/xml", b"image/svg+xml"))

# type "/" subtype, and parameters of printable characters (RFC 9110 §8.3.1).
_media_type = re.compile(
    rb"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:[ \t]*;[ \t\x21-\x7e]*)?"
).fullmatch
_names_charset = re.compile(rb";[ \t]*charset[ \t]*=", re.IGNORECASE).search


class MimeTypes:
    """A table of media types.

    ``entries``: extension (with its dot or without) and type, later ones first; nothing else is
    known then. None: the system's table, ``system``, or without one Python's own, corrected for the
    web; read when the first file is asked for. ``charset``: what text says of itself unless its
    type does; may be empty. Entries whose type is none are left out.
    """

    __slots__ = ("_charset", "_entries", "_system", "_types")

    def __init__(
        self, entries: Sequence[tuple[bytes, bytes]] | None, charset: str, system: str = SYSTEM
    ) -> None:
        self._entries = entries
        self._charset = charset.encode("ascii")
        self._system = system
        self._types: dict[bytes, bytes] = {}

    def of(self, name: bytes) -> bytes:
        """The value of Content-Type for the file ``name``, a name or a path."""
        types = self._types or self._read()
        stem, _, extension = name.rpartition(b".")
        # A dot at the beginning hides a file and begins no extension. What has a slash behind its
        # last dot is in no table.
        if not stem or stem.endswith(b"/"):
            return UNKNOWN
        return types.get(extension.lower(), UNKNOWN)

    def _read(self) -> dict[bytes, bytes]:
        """The whole table, charsets and all: it is small, and then a look-up is all there is."""
        entries = self._entries
        if entries is None:
            table = dict(_system_entries(self._system)) | _WEB
        else:
            table = {extension.lower().removeprefix(b"."): kind for extension, kind in entries}
        types = {
            extension: self._with_charset(kind)
            for extension, kind in table.items()
            if _media_type(kind) is not None
        }
        types.setdefault(b"", UNKNOWN)  # a table is never empty, so it is read once
        self._types = types
        return types

    def _with_charset(self, kind: bytes) -> bytes:
        essence = kind.partition(b";")[0].rstrip().lower()
        textual = essence.startswith(b"text/") or essence in _TEXT
        if not self._charset or not textual or _names_charset(kind) is not None:
            return kind
        return kind + b"; charset=" + self._charset


def _system_entries(path: str) -> Iterator[tuple[bytes, bytes]]:
    """Extensions and types of the system, of several the first; those of Python if it has none."""
    try:
        with open(path, "rb") as file:
            found = mime_types(file.read())
    except OSError:
        found = {}
    if found:
        yield from found.items()
        return
    for name, known in mimetypes.MimeTypes().types_map[True].items():
        yield name.lower().removeprefix(".").encode(), known.encode()
