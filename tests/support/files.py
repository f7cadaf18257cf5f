"""Requests for static files, and trees of files for tests."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from support.client import Client, Reply

CHANGED = 1_500_000_000
"""The time of change of files that `write` makes: long ago, and the same in every run."""

CHANGED_DATE = b"Fri, 14 Jul 2017 02:40:00 GMT"
"""`CHANGED` as an HTTP-date."""


CANARY = b"canary: 5d1f0c9e outside of every served directory\n" * 131
HIDDEN = b"canary: b7e2a4d3 hidden by the dot in its name\n" * 157
GOOD = b"good: inside\n"


def write(file: Path, content: bytes, changed: int = CHANGED) -> Path:
    """Make a file, and the directories above it; ``changed``: its mtime."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (changed, changed))
    return file


def named(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Cases for ``parametrize``: the first value of each is its id."""
    return [pytest.param(*values, id=name) for name, *values in cases]


def request(target: bytes, *fields: bytes, method: bytes = b"GET") -> bytes:
    """A request with ``fields`` (``b"Name: value"`` each); the target as it is."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: h", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def ask(client: Client, target: bytes, *fields: bytes, method: bytes = b"GET") -> Reply:
    """Send such a request and read its response."""
    return client.ask(request(target, *fields, method=method), method)


def fill(base: Path) -> None:
    """Served directories (``served``, ``static``, ``map2``) with `GOOD` and `HIDDEN` files in them,
    `CANARY` around them, and links and special files of all kinds."""
    root, static, outside = base / "served", base / "static", base / "outside"
    for name in ("good.txt", "dir/page.txt", "dir/index.html", "dir/deep/x.txt", "plain.txt"):
        write(root / name, GOOD)
    for file in (
        root / ".well-known/acme",
        static / "app.css",
        static / "plain.css",
        base / "one.txt",
        base / "map2/whole/good.txt",
    ):
        write(file, GOOD)
    for place in (base / "secret.txt", outside / "index.html", outside / "canary.txt"):
        write(place, CANARY)
    for name in ("served-old", "static-old", "map2-old"):
        write(base / name / "canary.txt", CANARY)
    for name in (".git/config", ".env", "dir/.env", ".well-known/.env", ".well-known/.git/config"):
        write(root / name, HIDDEN)
    for name in (".well-known-old/config", ".well-knownX/config", "...hidden/config"):
        write(root / name, HIDDEN)
    write(root / "..hidden/config", HIDDEN)
    write(static / ".env", HIDDEN)
    _link(base)
    _make_special(root)


_LINKS = {
    "to-absolute": "{base}/secret.txt",
    "to-relative": "../secret.txt",
    "to-sibling": "../served-old/canary.txt",
    "to-chain": "to-relative",
    "to-long-chain": "dir/up/served/to-chain",
    "to-loop": "to-loop-back",
    "to-loop-back": "to-loop",
    "to-itself": "to-itself",
    "to-nothing": "../missing",
    "to-passwd": "/etc/passwd",
    "out": "{base}/outside",
    "out-relative": "../outside",
    "out-and-back": "../outside/../served",
    "above": "..",
    "dir/up": "../..",
    "proc-root-file": "/proc/self/root{base}/secret.txt",
    "proc-root": "/proc/self/root",
    "proc-cwd": "/proc/self/cwd",
    "proc-self": "/proc/self",
    "proc-environ": "/proc/self/environ",
    "proc-fd": "/proc/self/fd",
    "proc-fd-3": "/proc/self/fd/3",
    "to-fifo": "fifo",
    "to-device": "/dev/zero",
    "visible": ".git/config",
    "visible-chain": "visible",
    "visible-directory": ".git",
    "inner": "dir/page.txt",
    "inner-absolute": "{base}/served/good.txt",
    "inner-chain": "inner",
    "inner-directory": "dir",
    "index-out/index.html": "../../secret.txt",
    "index-hidden/index.html": "../.git/config",
    "index-loop/index.html": "index.html",
    "index-fifo/index.html": "../fifo",
    "plain.txt.gz": "../secret.txt",
    "plain.txt.br": "{base}/secret.txt",
    "plain.txt.zst": ".git/config",
}
"""Links in ``served``, and where they lead."""


def _link(base: Path) -> None:
    """The links: those that lead out, and those that do not."""
    root, static = base / "served", base / "static"
    for name, target in _LINKS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target.replace("{base}", str(base)))
    (static / "to-absolute").symlink_to(base / "secret.txt")
    (static / "up").symlink_to("..")
    (static / "plain.css.gz").symlink_to("../served/good.txt")  # another root is not this one
    (base / "map2/whole/to-absolute").symlink_to(base / "secret.txt")


def _make_special(root: Path) -> None:
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "fifo.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(root, os.O_PATH)  # the whole name may be too long for an address
        listener.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
    try:
        os.mknod(root / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pass  # not root: one target less that could be wrong
