"""The files of unix sockets: which may be replaced, and which one is ours."""

from __future__ import annotations

import errno
import os
import socket
import stat

MAX_PATH = 107
"""Bytes of sockaddr_un.sun_path without its final NUL."""

Identity = tuple[int, int, int]


def remove_stale(path: str, kind: socket.SocketKind) -> None:
    """Make room for a unix socket of that kind: remove one that nobody has open, and nothing else.

    OSError: the path is too long (ENAMETOOLONG), the file is no socket (EEXIST), it is in use
    (EADDRINUSE), also as a socket of another kind, or nobody may ask (EACCES).
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"path is longer than {MAX_PATH} bytes")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        # One in use is connected to, or has a full queue (EAGAIN), or is of another kind
        # (EPROTOTYPE).
        result = probe.connect_ex(path)
    if result == errno.EACCES:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    if result == errno.ENOENT:
        return  # gone meanwhile
    if result != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(path)


def identity(path: str) -> Identity | None:
    """What tells this socket's file from any other at the same path; None if there is no socket."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    # The time, too: a number that became free is often given to the very next file.
    this = (found.st_dev, found.st_ino, found.st_mtime_ns)
    return this if stat.S_ISSOCK(found.st_mode) else None


def set_rights(path: str, mode: int | None, owner: tuple[int, int] | None = None) -> None:
    """Owner (user, group; -1: as it is) and then mode of the file of a unix socket; None: as it is.

    Whoever may write to its directory can put something else there at any time, even a link to a
    file of ours: what is there is opened first, and only a socket is changed. Raises OSError.
    """
    if mode is None and owner is None:
        return
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(file).st_mode):
            raise OSError(errno.ENOTSOCK, "the file was replaced by something else")
        this = f"/proc/self/fd/{file}"
        if owner is not None:
            os.chown(this, *owner)
        if mode is not None:
            os.chmod(this, mode)
    finally:
        os.close(file)
