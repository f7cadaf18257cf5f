"""Acknowledgements: a node that asked for it (``notify``) is told that it was taken in.

One datagram of text, without any framing, to a unix datagram socket (uWSGI core/notify.c)::

    [subscription ack] KEY => new node: ADDRESS
"""

from __future__ import annotations

import errno
import os
import socket
import time

# Places where a file may be a device or a control of the kernel. Whoever can send a packet chooses
# the path, and this process may be root.
_FORBIDDEN = ("/dev", "/proc", "/sys")
# More at once is a flood, which must not make us busy with looking for sockets.
_A_SECOND = 1000


class Acknowledger:
    """Sends acknowledgements and waits for nothing. ``sent``, ``failed``: how many."""

    __slots__ = ("_count", "_second", "_socket", "failed", "sent")

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._second = self._count = 0
        self.sent = 0
        self.failed = 0

    def send(self, path: str, key: str, address: str) -> bool:
        """Tell the socket ``path`` that ``address`` is a new node of ``key``; False if it failed.

        Whatever keeps it from arriving is the receiver's business: nobody there, no permission, a
        queue that nobody empties, more than 1,000 in a second. Only absolute paths are used, as in
        what directory this process runs is nothing that a node knows; abstract names are not, as in
        uWSGI.
        """
        text = f"[subscription ack] {key} => new node: {address}"
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        try:
            if self._count > _A_SECOND:
                raise OSError(errno.EAGAIN, "too many in one second")
            self._send(text.encode("utf-8", "surrogateescape"), path)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            self.failed += 1
            return False
        self.sent += 1
        return True

    def _send(self, text: bytes, path: str) -> None:
        if not path.startswith("/"):
            raise OSError(errno.EINVAL, "not an absolute path")
        # Opened as a mere place: the kernel goes along the path, once, instead of us step by step
        # (which was what a flood of such packets kept this process busy with), and nobody can put
        # another file there between the look and the use.
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            link = f"/proc/self/fd/{place}"
            if _forbidden(os.readlink(link)):
                raise OSError(errno.EACCES, "not a place for sockets")
            self._socket.sendto(text, link)
        finally:
            os.close(place)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _forbidden(real: str) -> bool:
    return any(real == place or real.startswith(place + "/") for place in _FORBIDDEN)
