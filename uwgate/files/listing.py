"""Lists of what is in a directory, for people and for programs (``static-autoindex``).

The page needs nothing but its own style: ``Content-Security-Policy: default-src 'none'; style-src
'unsafe-inline'``. Names are anybody's: they are escaped where they are shown, without characters
that reorder or hide text, and encoded byte by byte where they are linked.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple
from urllib.parse import quote

from uwgate.protocols.http_date import LATEST, format_date

# Control characters, line separators and what turns the direction of text (Unicode TR 36 §2.5).
_misleading = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
).sub

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.25rem; overflow-wrap: anywhere }
a { text-decoration: none }
a:hover, a:focus { text-decoration: underline }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600 }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #8884; vertical-align: top }
td:first-child { overflow-wrap: anywhere; white-space: pre-wrap }
td + td, th + th { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
td + td { opacity: .75 }
@media (max-width: 36rem) {
  body { padding: .5rem }
  td + td + td, th + th + th { display: none }
  td { padding: .55rem .25rem }
}
"""


class Entry(NamedTuple):
    """A file or a directory. ``size``: bytes. ``mtime``: seconds since the epoch."""

    name: bytes
    is_dir: bool
    size: int
    mtime: int


def entries(
    fd: int,
    dotfiles: bool,
    limit: int = 10_000,
    is_served: Callable[[bytes], bool] = lambda name: True,
) -> tuple[list[Entry], bool]:
    """What is in the directory ``fd``, directories first, by name; whether there was more than
    ``limit``, and then it is any ``limit`` of it.

    Regular files and directories, and links to such that ``is_served`` agrees to, with the size and
    time of what they lead to; without ``dotfiles`` nothing hidden. Raises OSError if the directory
    cannot be read.
    """
    found: list[Entry] = []
    truncated = False
    with os.scandir(fd) as scan:
        for entry in scan:
            if entry.name.startswith(".") and not dotfiles:
                continue
            try:
                stat = entry.stat()
            except OSError:  # a link that leads nowhere, or gone meanwhile
                continue
            if entry.is_symlink() and not is_served(os.fsencode(entry.name)):
                continue
            is_dir = S_ISDIR(stat.st_mode)
            if not is_dir and not S_ISREG(stat.st_mode):
                continue
            if len(found) >= limit:
                truncated = True
                break
            seconds = stat.st_mtime_ns // 1_000_000_000
            found.append(Entry(os.fsencode(entry.name), is_dir, stat.st_size, seconds))
    found.sort(key=_order)
    return found, truncated


def html(path: bytes, entries: Sequence[Entry], truncated: bool) -> bytes:
    """A page, UTF-8. ``path``: that of the request, decoded, with a slash at its end: all links
    are relative to it."""
    segments = [segment for segment in path.split(b"/") if segment]
    title = f"Index of {_shown(b'/'.join([b'', *segments, b'']))}"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Index of {_crumbs(segments)}</h1>\n<table>\n"
        "<thead><tr><th>Name</th><th>Size</th><th>Changed (UTC)</th></tr></thead>\n<tbody>\n"
    ]
    if segments:
        parts.append('<tr><td><a href="../">../</a></td><td></td><td></td></tr>\n')
    parts += map(_row, entries)
    parts.append("</tbody>\n</table>\n")
    if truncated:
        parts.append(f"<p>There is more: this list ends after {len(entries)} entries.</p>\n")
    parts.append("</body>\n</html>\n")
    return "".join(parts).encode()


def as_json(path: bytes, entries: Sequence[Entry], truncated: bool) -> bytes:
    """An array of objects as nginx makes them (``autoindex_format json``), ASCII. What is not
    UTF-8 in a name is U+FFFD. In such an array there is no place for the path, nor for the news
    that there is more."""
    del path, truncated
    lines = ",\n".join(json.dumps(dict(_fields(entry))) for entry in entries)
    return f"[\n{lines}\n]\n".encode() if lines else b"[]\n"


def _order(entry: Entry) -> tuple[bool, bytes]:
    return not entry.is_dir, entry.name


def _fields(entry: Entry) -> Iterator[tuple[str, str | int]]:
    yield "name", entry.name.decode("utf-8", "replace")
    yield "type", "directory" if entry.is_dir else "file"
    yield "mtime", format_date(_second(entry)).decode()
    if not entry.is_dir:
        yield "size", entry.size


def _crumbs(segments: Sequence[bytes]) -> str:
    """The path, each directory above a link up to it."""
    depth = len(segments)
    if not depth:
        return "/"
    links = [f'<a href="{"../" * depth}">/</a>']
    for number, segment in enumerate(segments[:-1], 1):
        links.append(f'<a href="{"../" * (depth - number)}"><bdi>{_shown(segment)}</bdi></a>/')
    return "".join((*links, f"<bdi>{_shown(segments[-1])}</bdi>/"))


def _row(entry: Entry) -> str:
    # "./" so that nothing in front of a colon is a scheme, whoever decodes first.
    slash = "/" if entry.is_dir else ""
    href = f"./{quote(entry.name, safe='')}{slash}"
    size = "" if entry.is_dir else f'<span title="{entry.size} bytes">{_human(entry.size)}</span>'
    moment = time.gmtime(_second(entry))
    date, clock = time.strftime("%Y-%m-%d", moment), time.strftime("%H:%M:%S", moment)
    return (
        f'<tr><td><a href="{href}"><bdi>{_shown(entry.name)}</bdi>{slash}</a></td><td>{size}</td>'
        f'<td><time datetime="{date}T{clock}Z">{date} {clock[:5]}</time></td></tr>\n'
    )


def _second(entry: Entry) -> int:
    """When it was changed. File systems know years that neither HTTP nor HTML can write."""
    return min(max(entry.mtime, 0), LATEST)


def _shown(name: bytes) -> str:
    """``name`` as text in HTML, also in attributes."""
    return escape(_misleading("\ufffd", name.decode("utf-8", "replace")))


def _human(size: int) -> str:
    """``size`` in bytes, three digits of it: ``17 B``, ``1.5 KiB``, ``230 MiB``."""
    if size < 1024:
        return f"{size} B"
    number, units = size / 1024, iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while number >= 999.5:
        number, unit = number / 1024, next(units, "EiB")
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
