"""``python -m benchmarks.slow_disk DIRECTORY MILLISECONDS SIZE``: a file system of slow reads.

It is served through /dev/fuse, from a process of its own; mounting it takes root. In it lies a file
of SIZE bytes under every number (``/0``, ``/1``, ...), so that there is always one that nobody has
read before. Names and attributes are answered at once, every read after MILLISECONDS, any number
of them at the same time: what a far or spun-down disk looks like from above.
Source: include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import heapq
import os
import select
import signal
import stat
import struct
import sys
import time
from pathlib import Path
from types import FrameType

from benchmarks.procs import START_DEADLINE, Process, StartError

ROOT = Path(__file__).resolve().parent.parent
_DEVICE = "/dev/fuse"
_IN = struct.Struct("<IIQQIIII")  # length, operation, unique, node, uid, gid, pid, unused
_OUT = struct.Struct("<IiQ")  # length, error, unique
_INIT = struct.Struct("<IIIIHHIIHH32x")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")  # node, generation, two times and their nanoseconds
_READ = struct.Struct("<QQI")  # handle, offset, size; more follows
_LOOKUP, _FORGET, _GETATTR, _STATFS, _OPEN, _READ_FILE, _RELEASE = 1, 2, 3, 17, 14, 15, 18
_INTERRUPT, _BATCH_FORGET, _DO_INIT, _OPENDIR, _RELEASEDIR, _FLUSH = 36, 42, 26, 27, 29, 25
_SILENT = (_FORGET, _BATCH_FORGET, _INTERRUPT)
_ASYNC_READ = 1
_READ_AHEAD = 128 << 10
_FIRST = 2  # node of the file "0"; the directory is 1
_KEPT = 3600  # seconds for which names and attributes hold
_MS_SAFE = 1 | 2 | 4  # read-only, nosuid, nodev
_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def mount(directory: Path, device: int) -> None:
    """Mount what ``device`` serves; OSError."""
    data = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},allow_other"
    name = str(directory).encode()
    if _LIBC.mount(b"uwgate-slow", name, b"fuse", _MS_SAFE, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))


def unmount(directory: Path) -> None:
    """Take it away, in use or not; nothing happens if there is none."""
    _LIBC.umount2(str(directory).encode(), _MNT_DETACH)


class Server:
    """Answers requests (bytes in, bytes out); reads become due ``delay`` seconds later."""

    def __init__(self, delay: float, size: int) -> None:
        self._delay = delay
        self._size = size
        self._block = os.urandom(_READ_AHEAD)
        self._due: list[tuple[float, int, int]] = []  # when, unique, size

    def answer(self, request: bytes, now: float) -> bytes | None:
        """What is said at once; None if nothing is."""
        _, operation, unique, node, *_ = _IN.unpack_from(request)
        body = request[_IN.size :]
        if operation in _SILENT:
            return None
        if operation == _READ_FILE:
            _, offset, size = _READ.unpack_from(body)
            size = max(0, min(size, self._size - offset))
            heapq.heappush(self._due, (now + self._delay, unique, size))
            return None
        try:
            said = self._say(operation, node, body)
        except OSError as error:
            return _OUT.pack(_OUT.size, -(error.errno or errno.EIO), unique)
        return _OUT.pack(_OUT.size + len(said), 0, unique) + said

    def wait(self, now: float) -> float:
        """Seconds until a read is due, at most one."""
        return min(1.0, max(0.0, self._due[0][0] - now)) if self._due else 1.0

    def ready(self, now: float) -> list[bytes]:
        """Answers to reads that are due."""
        found = []
        while self._due and self._due[0][0] <= now:
            _, unique, size = heapq.heappop(self._due)
            data = (self._block * (size // len(self._block) + 1))[:size]
            found.append(_OUT.pack(_OUT.size + size, 0, unique) + data)
        return found

    def _say(self, operation: int, node: int, body: bytes) -> bytes:
        if operation == _DO_INIT:
            return _INIT.pack(7, 31, _READ_AHEAD, _ASYNC_READ, 64, 48, 4096, 1, 0, 0)
        if operation == _LOOKUP:
            name = body.rstrip(b"\0")
            if not name.isdigit() or len(name) > 12:
                raise OSError(errno.ENOENT, "no such file")
            node = _FIRST + int(name)
            return _ENTRY.pack(node, 0, _KEPT, _KEPT, 0, 0) + self._attributes(node)
        if operation == _GETATTR:
            return struct.pack("<QII", _KEPT, 0, 0) + self._attributes(node)
        if operation in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if operation in (_RELEASE, _RELEASEDIR, _FLUSH):
            return b""
        if operation == _STATFS:
            return bytes(80)
        raise OSError(errno.ENOSYS, "not served")

    def _attributes(self, node: int) -> bytes:
        directory = node < _FIRST
        mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o644
        size = 0 if directory else self._size
        return _ATTR.pack(
            node, size, size // 512, 0, 1_700_000_000, 1_700_000_000, 0, 0, 0,
            mode, 1, os.geteuid(), os.getegid(), 0, 4096, 0,
        )  # fmt: skip


def serve(directory: Path, delay: float, size: int) -> None:
    """Mount, serve until the parent is gone or SIGTERM comes, unmount; OSError."""
    server, parent = Server(delay, size), os.getppid()
    device = os.open(_DEVICE, os.O_RDWR)
    mount(directory, device)
    try:
        poll = select.poll()
        poll.register(device, select.POLLIN)
        while os.getppid() == parent:
            if poll.poll(1000 * server.wait(time.monotonic())):
                said = server.answer(os.read(device, 1 << 18), time.monotonic())
                if said is not None:
                    os.write(device, said)
            for said in server.ready(time.monotonic()):
                with contextlib.suppress(FileNotFoundError):  # who asked has gone
                    os.write(device, said)
    finally:
        unmount(directory)


class SlowDisk:
    """The file system, mounted on ``directory``, which is made; StartError where it cannot be."""

    def __init__(self, directory: Path, delay: float, size: int, log: Path, core: int) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        argv = [sys.executable, "-m", "benchmarks.slow_disk", str(directory)]
        argv += [str(round(1000 * delay)), str(size)]
        self._process = Process("slow disk", argv, log, core=core, cwd=ROOT)

    def __enter__(self) -> SlowDisk:
        deadline = time.monotonic() + START_DEADLINE
        while not os.path.ismount(self.directory):
            if not self._process.running() or time.monotonic() > deadline:
                self.__exit__()
                raise StartError(f"no file system through {_DEVICE}: {self._process.tail(1)}")
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stop()
        unmount(self.directory)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # it stands for a disk, which waits for no processor
    serve(Path(sys.argv[1]), int(sys.argv[2]) / 1000, int(sys.argv[3]))
