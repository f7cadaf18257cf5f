"""How many connections wait in the queues of listening sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

# struct tcp_info (linux/tcp.h): eight 1-byte fields, then u32 rto, ato, snd_mss, rcv_mss,
# unacked, sacked. For a listening socket the kernel reports the queue in the last two.
_TCP_INFO = struct.Struct("=8x16xII")


@dataclass(slots=True)
class Queue:
    """One listening address: ``waiting`` connections of at most ``limit``.

    ``sockets``: how many sockets (SO_REUSEPORT) make up the address.
    """

    name: str
    waiting: int = 0
    limit: int = 0
    sockets: int = 0


def queues(sockets: Iterable[socket.socket]) -> list[Queue]:
    """Queues by address, in order of first appearance; closed sockets are left out.

    The kernel tells the queue of TCP sockets only; a unix socket is listed with 0 of 0.
    """
    found: dict[str, Queue] = {}
    for sock in sockets:
        try:
            name = socket_name(sock)
            waiting, limit = _queue(sock)
        except OSError:
            continue
        queue = found.setdefault(name, Queue(name))
        queue.waiting += waiting
        queue.limit += limit
        queue.sockets += 1
    return list(found.values())


def socket_name(sock: socket.socket) -> str:
    """``host:port``, ``[v6]:port``, ``/path`` or ``@abstract``; OSError if the socket is closed."""
    name = sock.getsockname()
    if sock.family == socket.AF_INET:
        return f"{name[0]}:{name[1]}"
    if sock.family == socket.AF_INET6:
        return f"[{name[0]}]:{name[1]}"
    if isinstance(name, bytes):
        return "@" + name.strip(b"\0").decode("utf-8", "replace")
    return str(name)


def _queue(sock: socket.socket) -> tuple[int, int]:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0, 0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    waiting, limit = _TCP_INFO.unpack(info)
    return int(waiting), int(limit)
