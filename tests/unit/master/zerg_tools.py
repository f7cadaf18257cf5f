"""Listening sockets by the dozen, and a zerg server that says whatever a test wants."""

from __future__ import annotations

import array
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Rights = tuple[int, int, bytes]
RECEIVE = socket.CMSG_SPACE(300 * 4)


def listener(family: int = socket.AF_INET, address: object = None) -> socket.socket:
    """A listening stream socket; without an address on one of the kernel's choice."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    if address is None:
        address = "" if family == socket.AF_UNIX else ("", 0)
    sock.bind(address)
    sock.listen(8)
    return sock


def rights(fds: Sequence[int]) -> list[Rights]:
    """One control message with these descriptors; none for none."""
    if not fds:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]


def inode(sock: socket.socket) -> int:
    """What tells one socket from any other."""
    return os.fstat(sock.fileno()).st_ino


def received(client: socket.socket) -> tuple[bytes, list[Rights], list[socket.socket]]:
    """Bytes, control messages and sockets of one message."""
    data, ancillary, flags, _ = client.recvmsg(100, RECEIVE, socket.MSG_CMSG_CLOEXEC)
    assert not flags & socket.MSG_CTRUNC
    fds = array.array("i")
    for _level, _kind, payload in ancillary:
        fds.frombytes(payload)
    return data, list(ancillary), [socket.socket(fileno=fd) for fd in fds]


def open_descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open at most so many more, and at least one if ``count`` is not 0."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # those before it are taken
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def answering(path: str | Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server on a unix socket that calls ``answer`` with its first client, then hangs up."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)

        def serve() -> None:
            client, _ = server.accept()
            with client:
                answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
