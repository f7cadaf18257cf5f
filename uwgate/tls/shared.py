"""Memory that the processes of an instance share, as files without a name.

A worker has their descriptors, and whoever has taken a worker over could make such a file shorter:
every process that touches what is missing is killed by the kernel (SIGBUS). The size is sealed.
"""

from __future__ import annotations

import fcntl
import os

_ALL = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def memory_file(name: str, size: int) -> int:
    """A file in memory of ``size`` zero bytes for ever -> its descriptor. Raises OSError."""
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SIZE)
    except BaseException:
        os.close(file)
        raise
    return file


def seal(file: int) -> None:
    """Nobody can change it any more. Raises OSError."""
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _ALL)


def keeps_size(file: int, size: int) -> bool:
    """Whether it is a file that `memory_file` has made of that size."""
    try:
        sealed = fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SIZE == _SIZE
        return sealed and os.fstat(file).st_size == size
    except (OSError, ValueError):
        return False
