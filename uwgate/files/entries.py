"""What is known of a path: the file itself, its compressed forms, and their ready-made heads."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Literal

from uwgate.files.opening import Root
from uwgate.protocols.http1_response import ResponseHead

KEPT_SIZE = 65536
"""Bytes up to which a file is kept in memory; larger ones keep their descriptor, for sendfile."""

_YOUNG = 0.1  # seconds in which a file may change once more without its time being another

Identity = tuple[int, int, int, int, int]
"""(device, inode, size, mtime in ns, ctime in ns): what changes when a file does, or when who may
read it changes."""


def identity(stat: os.stat_result) -> Identity:
    """The identity that a ``stat`` shows."""
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class File:
    """An open regular file. ``fd``: -1 where ``data`` is all of it; closed with the last reference.

    ``young``: it may have been written to in the same instant that its time names, so that this is
    no strong validator (RFC 9110 §8.8.1). Raises OSError (``read_whole``) if it cannot be read.
    """

    __slots__ = ("data", "fd", "identity", "mtime", "path", "size", "young")

    def __init__(self, fd: int, identity: Identity, path: bytes) -> None:
        self.fd = fd
        self.identity = identity
        self.size = identity[2]
        self.mtime = identity[3] // 1_000_000_000
        self.path = path
        self.young = abs(time.time() - identity[3] / 1e9) < _YOUNG
        self.data: bytes | None = None

    @classmethod
    def made(cls, data: bytes) -> File:
        """A file that is on no disk."""
        file = cls(-1, (0, 0, len(data), 0, 0), b"")
        file.data = data
        return file

    def read_whole(self) -> None:
        """Take a small file into memory, unless it changed meanwhile."""
        data = os.pread(self.fd, self.size + 1, 0)
        if len(data) == self.size and not self.changed():
            self.data = data
            self.close()

    def changed(self) -> bool:
        """Whether the file was written to since it was looked at: it is not what its head says. Its
        ctime says nothing of that: it is another one when a new file has been renamed over it.
        Raises OSError."""
        stat = os.fstat(self.fd)
        return stat.st_mtime_ns != self.identity[3] or stat.st_size != self.size

    def close(self) -> None:
        """Give up the descriptor."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


_NO_FILE = File.made(b"")


@dataclass(slots=True)
class Expiry:
    """Expires and Cache-Control: ``seconds`` from now, or ``fixed`` seconds since the epoch."""

    seconds: int
    fixed: int | None = None


class Answer:
    """One representation of a path. ``lines``: fields of a 200 without Date, Content-Length and
    Expires, each with its CRLF; ``kept_lines``: those that a 304 repeats (RFC 9110 §15.4.5).
    ``etag``: as in the field. ``content_type``: for the parts of a multipart response."""

    __slots__ = (
        "content_type", "dated_at", "entry", "etag", "expiry", "file", "head", "kept_lines",
        "last_modified", "lines",
    )  # fmt: skip

    def __init__(self, entry: Entry, file: File) -> None:
        self.entry = entry
        self.file = file
        self.etag = b""
        self.last_modified: int | None = None
        self.content_type = b""
        self.lines = b""
        self.kept_lines = b""
        self.expiry: Expiry | None = None
        self.head: ResponseHead
        self.dated_at = -1  # the second in which ``head`` was made, where it says when it expires


class Entry:
    """What a path leads to, as it was in the second ``checked`` of the site's clock.

    ``kind``: ``file``, ``listing`` (a made file), or ``redirect`` (to the path with a slash).
    ``answers``: by coding, b"" for none, and expiry, as far as they were asked for. ``plain``: the
    one there is, if it is the same whatever fields a request has. ``made``: the second in which a
    listing was. ``direct``: the place of the file, if that is the only one to look at.
    ``variants``: compressed forms beside the file, by coding; None: this file has none, and no
    Vary. ``signature``: what the names on the way showed, to be compared; None: look again from
    the beginning.
    """

    __slots__ = (
        "answers", "checked", "direct", "file", "gone", "kind", "made", "path", "plain",
        "signature", "size", "variants",
    )  # fmt: skip

    def __init__(self, path: bytes, kind: Literal["file", "listing", "redirect"]) -> None:
        self.path = path
        self.kind = kind
        self.file: File | None = None
        self.variants: dict[bytes, File] | None = None
        self.answers: dict[tuple[bytes, int], Answer] = {}
        self.plain: Answer | None = None
        self.direct: tuple[Root, bytes] | None = None
        self.signature: tuple[object, ...] | None = None
        self.checked = self.made = -1
        self.gone = False
        self.size = 0  # bytes in memory, roughly

    @property
    def is_young(self) -> bool:
        """Whether one of the files is (``File.young``)."""
        return any(file.young for file in self.files())

    @property
    def is_named(self) -> bool:
        """Whether an application has named the file, so that ``path`` is none that clients have."""
        return self.path.startswith(b"\0")

    def release(self) -> None:
        """It is not remembered any more. Whoever still knows of it must not keep files open."""
        self.gone = True
        self.checked = -1
        for answer in self.answers.values():
            answer.file = _NO_FILE
        self.answers.clear()
        self.file = self.plain = self.variants = self.direct = None

    def files(self) -> list[File]:
        """All open or kept files."""
        found = [] if self.file is None else [self.file]
        return found + list((self.variants or {}).values())


def make_head(status: int, phrase: bytes, lines: bytes, length: int | None) -> ResponseHead:
    """A head of ours without Date, in the form of those of nodes; ``length``: None for none."""
    head = ResponseHead()
    head.status = status
    head.bodiless = status == 304
    head.persistent = True
    head.lines = b"HTTP/1.1 %d %b\r\n%b" % (status, phrase, lines)
    head.length = length or 0
    if length is not None:
        head.framing = b"Content-Length: %d\r\n" % length
    head.undated = head.lines + head.framing
    head.whole = not head.bodiless
    head.count = lines.count(b"\r\n") + (length is not None)
    return head
