"""Acknowledgements: a node that asked for it (``notify``) is told that it was taken in.

One datagram of text, without any framing, to a unix datagram socket (uWSGI core/notify.c)::

    [subscription ack] KEY => new node: ADDRESS
"""

from __future__ import annotations

import os
import socket

# Places where a file may be a device or a control of the kernel. Whoever can send a packet chooses
# the path, and this process may be root.
_FORBIDDEN = ("/dev", "/proc", "/sys")


class Acknowledger:
    """Sends acknowledgements and waits for nothing. ``sent``, ``failed``: how many."""

    __slots__ = ("_socket", "failed", "sent")

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.sent = 0
        self.failed = 0

    def send(self, path: str, key: str, address: str) -> bool:
        """Tell the socket ``path`` that ``address`` is a new node of ``key``; False if it failed.

        Whatever keeps it from arriving is the receiver's business: nobody there, no permission, a
        queue that nobody empties. Only absolute paths are used, as in what directory this process
        runs is nothing that a node knows; abstract names are not, as in uWSGI.
        """
        text = f"[subscription ack] {key} => new node: {address}"
        try:
            if not _permitted(path):
                raise OSError
            self._socket.sendto(text.encode("utf-8", "surrogateescape"), path)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            self.failed += 1
            return False
        self.sent += 1
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _permitted(path: str) -> bool:
    if not path.startswith("/"):
        return False
    real = os.path.realpath(path)
    return not any(real == place or real.startswith(place + "/") for place in _FORBIDDEN)
