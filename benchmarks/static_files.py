"""The files that contenders send: written byte by byte, on a disk, and in its cache afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.heads import MANY
from benchmarks.workloads import HELLO, MB1, Workload

ROOM = 256 << 20  # bytes that are to stay free
_BLOCK = 4096  # what a small file takes
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
_MANY_MARK = "/<file>"


def target(row: Workload) -> str:
    """The path that the workload asks for, without its first slash."""
    return row.heads[0].split(" ")[1].removeprefix("/")


def needed(rows: Iterable[Workload]) -> int:
    """Bytes that the files of these workloads take."""
    sizes = {target(row): row.body for row in rows}
    return sum(
        max(size, _BLOCK) * (MANY if name.endswith(_MANY_MARK) else 1)
        for name, size in sizes.items()
    )


def file_system(path: Path) -> str:
    """The type of the file system on which ``path`` lies, "" if that is not known."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if fields.split()[2] == number:
            return kind.split()[0]
    return ""


@contextlib.contextmanager
def on_disk(size: int) -> Iterator[Path]:
    """A temporary directory on a disk with room for ``size`` bytes: where $TMPDIR says, or in
    /var/tmp; OSError."""
    for place in dict.fromkeys((Path(tempfile.gettempdir()), Path("/var/tmp"))):
        if not place.is_dir() or file_system(place) in _IN_MEMORY:
            continue
        if shutil.disk_usage(place).free >= size + ROOM:
            break
    else:
        raise OSError(errno.ENOSPC, f"no disk has room for {size / 1e6:,.0f} MB (see TMPDIR)")
    with tempfile.TemporaryDirectory(prefix="uwgate-files-", dir=place) as name:
        yield Path(name)


def write(directory: Path, rows: Iterable[Workload]) -> None:
    """The files of these workloads and ``index.html``; OSError."""
    (directory / "index.html").write_bytes(HELLO)
    for name, size in {target(row): row.body for row in rows}.items():
        if name.endswith(_MANY_MARK):
            many = directory / name.removesuffix(_MANY_MARK)
            many.mkdir()
            for number in range(MANY):
                (many / f"{number:04d}").write_bytes(os.urandom(size))
        else:
            fill(directory / name, size)
    os.sync()  # what is still to be written would disturb what is measured


def fill(path: Path, size: int) -> None:
    """A file of ``size`` bytes, none of them a hole, on the disk and in its cache."""
    block = os.urandom(MB1)
    with path.open("wb") as file:
        while size > 0:
            size -= file.write(block[:size])
        file.flush()
        os.fsync(file.fileno())
