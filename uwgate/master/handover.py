"""What a master hands to the one that its own re-execution makes of it, and how.

A reload executes the program anew in the same process. Descriptors stay open over that, and what
they are is told by a JSON object in a sealed file in memory, whose number is in the environment::

    UWGATE_HANDOVER=FD[:MODE]     MODE: "" (a reload), "rehearse" (a child that only tries whether
                                  it would work) or "fork" (another instance beside this one)

    {"format": 1, "version": "0.1.0", "reloads": n, "started": epoch seconds,
     "sockets": [{"name": s, "kind": "stream"|"dgram", "fds": [n, …], "file": [dev, ino, mtime],
                  "text": s, "single": b, "foreign": b}],
     "workers": [{"gateway": s, "id": n, "number": n, "pid": n, "fd": n, "cell": n, "born": t,
                  "since": t, "spawns": n, "ready": b, "draining": b, "unread": s,
                  "unsent": s, "torn": b, "pidfd": n, "relieved": t}],
     "parts": {name: anything that one part of the master wants to know of itself}}

Any version of uwgate reads what any other wrote, as long as ``format`` is the same: unknown members
are ignored, missing ones have a default. Descriptors that the new configuration does not use are
closed once the new workers serve.

Signals are blocked from before the execution until the new master has its handlers: one that
arrives in between waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

VARIABLE = "UWGATE_HANDOVER"
FORMAT = 1

Mode = Literal["", "rehearse", "fork"]

_Handed = TypeVar("_Handed", "HandedSocket", "HandedWorker")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LONGEST = 256 << 20  # bytes; a table of a million nodes is a file of its own


class HandoverError(Exception):
    """What was handed over cannot be used; one line that says why."""


@dataclass(slots=True)
class HandedSocket:
    """A bound address. ``name``, ``single`` as in ``sockets.Bound``; ``file``: of a unix socket;
    ``text``: how the configuration has it; ``foreign``: systemd's, whose file is not ours."""

    name: str
    kind: str
    fds: list[int]
    file: list[int] | None = None
    text: str = ""
    single: bool = False
    foreign: bool = False


@dataclass(slots=True)
class HandedWorker:
    """A worker that serves on. ``fd``: our end of its channel; ``unread``, ``unsent``: pieces of
    messages (latin-1), ``torn``: the first of which is only the end of one. ``pidfd``: of the
    process, -1 without. ``born``: epoch seconds; ``since``, ``relieved`` (0: it is not): monotonic.
    """

    gateway: str
    id: int
    number: int
    pid: int
    fd: int
    cell: int
    born: float
    since: float
    spawns: int
    ready: bool
    draining: bool
    unread: str = ""
    unsent: str = ""
    torn: bool = False
    pidfd: int = -1
    relieved: float = 0.0


@dataclass(slots=True)
class Handover:
    """Everything. ``mode``: what for. ``parts``: by name, JSON values; descriptors that they name
    are in ``fds``, as those of sockets and workers need not be. ``made``: of these the ones that
    were made for this, and are to be closed where it comes to nothing."""

    version: str
    reloads: int = 0
    started: float = 0.0
    sockets: list[HandedSocket] = field(default_factory=list)
    workers: list[HandedWorker] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    fds: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    mode: Mode = ""

    def descriptors(self) -> set[int]:
        """All that have to stay open."""
        found = set(self.fds)
        found.update(fd for each in self.sockets for fd in each.fds)
        found.update(fd for each in self.workers for fd in (each.fd, each.pidfd) if fd >= 0)
        return found


# --- before the execution ----------------------------------------------------------------------


def write(handover: Handover) -> int:
    """A sealed file in memory that describes it -> its descriptor (not inheritable).

    Raises OSError; EFBIG if it were longer than what `take` reads.
    """
    value = {
        "format": FORMAT,
        "version": handover.version,
        "reloads": handover.reloads,
        "started": handover.started,
        "sockets": [_plain(each) for each in handover.sockets],
        "workers": [_plain(each) for each in handover.workers],
        "parts": handover.parts,
        "fds": handover.fds,
    }
    data = json.dumps(value, separators=(",", ":")).encode()
    if len(data) > _LONGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return memory_file("uwgate-handover", data)


def memory_file(name: str, data: bytes) -> int:
    """A sealed file in memory with that content -> its descriptor."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def prepare(handover: Handover, file: int, environ: MutableMapping[str, str], mode: Mode) -> None:
    """In the process that is about to execute: let the descriptors pass, and name the file.

    A descriptor that is closed is left out: the reader will notice.
    """
    for fd in {file, *handover.descriptors()}:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, True)
    environ[VARIABLE] = f"{file}:{mode}" if mode else str(file)


def undo(handover: Handover, file: int, environ: MutableMapping[str, str]) -> None:
    """The execution failed: nothing has happened."""
    environ.pop(VARIABLE, None)
    for fd in handover.descriptors():
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    os.close(file)


# --- after it ----------------------------------------------------------------------------------


def take(environ: MutableMapping[str, str]) -> Handover | None:
    """What was handed to this process, None for a first start. Removes the variable.

    No descriptor is inheritable afterwards. Raises HandoverError.
    """
    text = environ.pop(VARIABLE, None)
    if text is None:
        return None
    number, _, mode = text.partition(":")
    if not number.isascii() or not number.isdecimal() or mode not in ("", "rehearse", "fork"):
        raise HandoverError(f"{VARIABLE}={text}: not as uwgate writes it")
    file = int(number)
    try:
        handover = _decode(_read(file))
    except OSError as error:
        raise HandoverError(f"descriptor {file}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            os.close(file)
    handover.mode = mode  # type: ignore[assignment]
    _close_unknown(handover.descriptors())
    for fd in handover.descriptors():
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    return handover


def _close_unknown(known: set[int]) -> None:
    """Of what only a newer uwgate knows the name, and an older one has passed on with it: processes
    and memory of ours, nothing else that came with the start."""
    for entry in os.listdir("/proc/self/fd"):
        number = int(entry)
        with contextlib.suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{number}")
            ours = what == "anon_inode:[pidfd]" or what.startswith("/memfd:uwgate-")
            if ours and number not in known and os.get_inheritable(number):
                os.close(number)


def _read(file: int) -> bytes:
    # Only what the kernel says is a sealed file in memory was written by a uwgate; of another user,
    # who cannot make one of ours, it would be an order to kill what that user may not.
    if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise HandoverError(f"descriptor {file} is not what uwgate writes")
    found = os.fstat(file)
    if found.st_uid not in (0, os.geteuid()):
        raise HandoverError(f"descriptor {file} was written by another user")
    size = found.st_size
    if size > _LONGEST:
        raise HandoverError("too long")
    # From the start, wherever a rehearsal has left the common offset.
    return b"".join(_pieces(file, size))


def _pieces(file: int, size: int) -> Iterator[bytes]:
    place = 0
    while place < size:
        piece = os.pread(file, size - place, place)
        if not piece:
            return
        place += len(piece)
        yield piece


def _decode(data: bytes) -> Handover:
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise HandoverError(f"written by uwgate {value.get('version')}, in another format")
        return Handover(
            version=str(value["version"]),
            reloads=int(value["reloads"]),
            started=float(value["started"]),
            sockets=[_known(HandedSocket, each) for each in value["sockets"]],
            workers=[_known(HandedWorker, each) for each in value["workers"]],
            parts=dict(value["parts"]),
            fds=[int(fd) for fd in value["fds"]],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HandoverError(f"cannot be read: {error}") from None


def _known(kind: type[_Handed], value: Any) -> _Handed:
    return kind(**{name: value[name] for name in kind.__slots__ if name in value})


def _plain(value: HandedSocket | HandedWorker) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def adopt(fd: int) -> socket.socket:
    """The socket behind a descriptor that was handed over. Raises OSError."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock
