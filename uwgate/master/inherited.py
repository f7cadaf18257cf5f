"""Sockets that are bound already: those of the master before, and those of systemd."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

from uwgate.config.settings import Endpoint
from uwgate.master.handover import HandedSocket
from uwgate.subscriptions.socketfile import identity


class Inherited:
    """A store of them. ``rehearsal``: another process uses them; nothing of them is changed."""

    def __init__(self, sockets: Iterable[HandedSocket] = (), *, rehearsal: bool = False) -> None:
        self._sockets = list(sockets)
        self.rehearsal = rehearsal

    def take(self, endpoint: Endpoint, kind: str, name: str = "") -> HandedSocket | None:
        """That of an address, if there is one; nobody else gets it then.

        ``kind``: stream or dgram. ``name``: what it is called once it is bound.
        """
        for each in self._sockets:
            if each.kind == kind and _is_it(each, endpoint, name):
                self._sockets.remove(each)
                return each
        return None

    def take_all(self, text: str) -> list[HandedSocket]:
        """Those with that text, in order."""
        found = [each for each in self._sockets if each.text == text]
        self._sockets = [each for each in self._sockets if each.text != text]
        return found

    def close_rest(self, *, vacuum: bool = False) -> list[str]:
        """Close what nobody has asked for -> the names. ``vacuum``: with the files of unix ones.

        Those of systemd stay open: it does not pass them again, should they be asked for later.
        """
        closing = [each for each in self._sockets if not each.foreign]
        for each in closing:
            for fd in each.fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            if vacuum and each.file is not None and identity(each.name) == tuple(each.file):
                with contextlib.suppress(OSError):
                    os.unlink(each.name)
        self._sockets = [each for each in self._sockets if each.foreign]
        return [each.name for each in closing]

    def kept(self) -> list[HandedSocket]:
        """What nobody has asked for, for the next master."""
        return list(self._sockets)


def _is_it(each: HandedSocket, endpoint: Endpoint, name: str) -> bool:
    if endpoint.kind == "fd":
        # Numbers of ours are whatever was free; only systemd's mean something to an operator.
        return endpoint.text == each.text or (each.foreign and each.fds == [endpoint.number])
    if endpoint.kind == "unix":
        # Whatever the path is called now: it leads to the file of that very socket.
        return each.file is not None and identity(endpoint.path) == tuple(each.file)
    if name and name in (each.name, _other_name(each)):
        return True
    # One of systemd may be called otherwise than what it was taken for.
    return each.text == endpoint.text and (each.single or not name)


def _other_name(each: HandedSocket) -> str:
    """``ListenStream=80`` of systemd is called as ``:80`` is, and takes what ``[::]:80`` does."""
    if not (each.foreign and each.name.startswith("0.0.0.0:")):
        return ""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(each.fds[0])) as sock:
        if sock.family == socket.AF_INET6:
            return each.name.replace("0.0.0.0:", "[::]:", 1)
    return ""
