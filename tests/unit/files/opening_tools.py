"""What was opened, read; and what must never be."""

from __future__ import annotations

import os

from uwgate.files.opening import Opened, Root

SECRET = b"secret"


def descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


def content(opened: Opened | None) -> bytes | None:
    """What is in the file, closed then; a directory's names, comma-separated."""
    if opened is None:
        return None
    try:
        assert os.fstat(opened.fd).st_ino == opened.stat.st_ino
        assert not os.get_inheritable(opened.fd)
        if os.path.isdir(opened.path):
            return ",".join(sorted(entry.name for entry in os.scandir(opened.fd))).encode()
        return os.read(opened.fd, 100)
    finally:
        os.close(opened.fd)


def read(root: Root, relative: bytes, dotfiles: bool = False) -> bytes | None:
    """The content of what is found."""
    return content(root.open(relative, dotfiles))
