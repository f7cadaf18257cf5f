"""Settings of static files (``static-*``, ``check-static``, ``http-sendfile`` and relatives).

Directories and files are absolute paths. Nothing here has been looked at on the disk, but for the
MIME files, which are read at the start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StaticMap:
    """``static-map``, or with ``whole`` ``static-map2``: paths below ``prefix`` (``/a/b``, no slash
    at the end; empty for all) are looked for below ``path``, without ``prefix``, or ``whole``.
    ``path`` may be a file."""

    prefix: bytes
    path: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class ExpiresRule:
    """One ``static-expires…``: ``seconds`` from now, or from the file's ``mtime``.

    ``by``: what ``pattern`` is searched in: ``file`` (absolute path of the file that is sent),
    ``path-info`` (decoded path), ``uri`` (target with query). For ``type`` it is the whole media
    type, without parameters."""

    by: Literal["file", "path-info", "uri", "type"]
    pattern: re.Pattern[bytes]
    seconds: int
    mtime: bool = False


@dataclass(frozen=True, slots=True)
class Compressed:
    """For which files a ``.br``, ``.zst`` or ``.gz`` beside them is looked for (``static-gzip*``);
    all that are given are alternatives, tested against the absolute path."""

    everything: bool = False
    prefixes: tuple[bytes, ...] = ()
    suffixes: tuple[bytes, ...] = ()
    regexps: tuple[re.Pattern[bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class SendfileField:
    """A response field of nodes that names a file to send instead (lower case). ``uri``: the value
    is a path that ``static-accel`` maps, as of X-Accel-Redirect; else an absolute file name."""

    name: bytes
    uri: bool = False


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """Everything about static files of one gateway."""

    checks: tuple[str, ...] = ()  # check-static: directories
    maps: tuple[StaticMap, ...] = ()  # static-map in order, then static-map2 in order
    docroot: str = ""  # check-static-docroot: the DOCUMENT_ROOT of http-var
    index: tuple[bytes, ...] = ()  # static-index: file names
    skip_ext: tuple[bytes, ...] = ()  # static-skip-ext: suffixes
    safe: tuple[str, ...] = ()  # static-safe: where links may lead, and X-Sendfile point
    dotfiles: bool = False
    autoindex: bool = False
    mime: tuple[tuple[bytes, bytes], ...] | None = None  # (extension, type) of mime-file; None:
    # the system's table
    charset: str = "utf-8"  # of text without one in its type; "" = none is named
    expires: tuple[ExpiresRule, ...] = ()
    compressed: Compressed = Compressed()
    ranges: bool = True  # honour-range
    sendfile: bool = True  # not disable-sendfile
    offload_threads: int = 0
    cache_paths: float = 1.0  # seconds for which what was found is not looked for again
    accel: tuple[StaticMap, ...] = ()  # static-accel, for fields with ``uri``
    sendfile_fields: tuple[SendfileField, ...] = ()
