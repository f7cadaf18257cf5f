"""What a zerg server says before it hands out sockets: 14 bytes (uWSGI zerg protocol).

The integer is in the byte order of the machine: this never leaves it::

    offset  size  field
    0       10    "uwsgi-zerg"
    10      4     i32: number of descriptors

All of it is one message on a unix stream socket, and the descriptors travel with it as one
SCM_RIGHTS control message. The client says nothing. Names are not sent: whoever gets a socket asks
the kernel for its address.
"""

from __future__ import annotations

from struct import Struct

MAGIC = b"uwsgi-zerg"
SIZE = 14
MAX_DESCRIPTORS = 253
"""SCM_MAX_FD: what the kernel takes in one message."""

_MESSAGE = Struct("=10si")


class ZergError(ValueError):
    """Not what a zerg server sends, or more than one can send; one line that says why."""


def encode(count: int) -> bytes:
    """The message before ``count`` descriptors; ZergError unless 1 <= count <= 253."""
    _check(count)
    return _MESSAGE.pack(MAGIC, count)


def decode(data: bytes) -> int:
    """Number of descriptors that belong to the message ``data``; ZergError if it is none."""
    if len(data) != SIZE:
        raise ZergError(f"{len(data)} bytes instead of {SIZE}" if data else "nothing was sent")
    magic, count = _MESSAGE.unpack(data)
    if magic != MAGIC:
        raise ZergError(f"it does not begin with {MAGIC.decode()}")
    _check(count)
    return int(count)


def _check(count: int) -> None:
    if not 1 <= count <= MAX_DESCRIPTORS:
        raise ZergError(f"{count} sockets; 1 to {MAX_DESCRIPTORS} can be handed out")
