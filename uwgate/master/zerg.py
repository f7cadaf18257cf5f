"""Zerg servers and their clients: listening sockets that go from one instance to another.

A client connects to a unix stream socket, gets the descriptors of listening sockets in one message
(``protocols.zerg``) and is hung up on. From then on both instances accept from the same queues,
until one of them ends.

==============  ==============================================================================
``zerg-server``  hands out every listening socket of the instance
``zerg-pool``    hands out sockets that it has bound itself and that it never accepts on
==============  ==============================================================================

Whoever may connect gets the sockets: access is a matter of the mode of the socket's file.
"""

from __future__ import annotations

import array
import errno
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Sequence

from uwgate.config.settings import Endpoint
from uwgate.config.settings_process import ZergSettings
from uwgate.master.errors import StartError, explain
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop, Timer
from uwgate.master.sockets import Binder, abstract_address
from uwgate.protocols.zerg import MAX_DESCRIPTORS, SIZE, ZergError, decode, encode

ATTACH_TIMEOUT = 30.0
"""Seconds to connect, and again to be answered (as uWSGI)."""

Sockets = Callable[[], Iterable[socket.socket]]

_ACCEPT_BATCH = 16
# Out of descriptors or memory: a level-triggered listener would spin until some are free.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE = 0.25  # seconds
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_TIMEVAL = struct.Struct("ll")
_DESCRIPTOR = array.array("i").itemsize


# --- handing out -------------------------------------------------------------------------------

_LOGGED = 100  # clients


class ZergServer:
    """Hands ``sockets()`` to whoever connects to ``listener``, a listening unix stream socket.

    ``option``, ``text``: what the configuration calls it, for the log. The listener belongs to the
    caller. Raises StartError if it is not a unix socket, or for more sockets than one message
    holds.
    """

    def __init__(
        self,
        option: str,
        text: str,
        listener: socket.socket,
        sockets: Sockets,
        loop: Loop,
        log: MainLog,
    ) -> None:
        self._name = f"{option} = {text}"
        self._listener = listener
        self._sockets = sockets
        self._loop = loop
        self._log = log
        self._timer: Timer | None = None
        self._listening = False
        self._exhausted = False
        self._served = 0
        if listener.family != socket.AF_UNIX:
            raise StartError(f"{self._name}: not a unix socket; sockets pass through no other")
        count = len(_distinct(sockets()))
        if count > MAX_DESCRIPTORS:
            raise StartError(
                f"{self._name}: {count} sockets, but at most {MAX_DESCRIPTORS} can be handed out;"
                " listen on fewer addresses or with fewer processes"
            )
        listener.setblocking(False)
        self._listen(True)

    def close(self) -> None:
        """Hand out no more; the listener stays open."""
        self._listen(False)
        if self._timer is not None:
            self._timer.cancel()

    def _listen(self, on: bool) -> None:
        if on and not self._listening:
            self._loop.selector.register(self._listener, selectors.EVENT_READ, self._on_accept)
        elif not on and self._listening:
            self._loop.selector.unregister(self._listener)
        self._listening = on

    def _on_accept(self, mask: int) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                client, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(error)
                    return
                continue  # this client is gone already
            self._exhausted = False
            with client:
                self._serve(client)

    def _rest(self, error: OSError) -> None:
        """Clients wait in the queue meanwhile."""
        if not self._exhausted:
            self._log.line(f"{self._name}: clients have to wait: {explain(error)}")
        self._exhausted = True
        self._listen(False)
        self._timer = self._loop.call_later(_PAUSE, lambda: self._listen(True))

    def _serve(self, client: socket.socket) -> None:
        # The message fits the buffer of a new connection, so nothing waits for a slow client.
        client.setblocking(False)
        try:
            fds = array.array("i", [sock.fileno() for sock in _distinct(self._sockets())])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            client.sendmsg([encode(len(fds))], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            # ETOOMANYREFS: others have not picked up theirs; EPIPE: gone.
            self._say(f"not handed to {_peer(client)}: {explain(error)}")
        except ZergError as error:
            self._say(f"nothing for {_peer(client)}: {error}")
        else:
            noun = "socket" if len(fds) == 1 else "sockets"
            self._say(f"{len(fds)} {noun} to {_peer(client)}")

    def _say(self, text: str) -> None:
        """The first hundred, then the 128th, 256th …: nobody shall fill a disk."""
        self._served += 1
        if self._served <= _LOGGED or self._served & (self._served - 1) == 0:
            self._log.line(f"{self._name}: {text}")


def serve_zergs(
    settings: ZergSettings, binder: Binder, listening: Sockets, loop: Loop, log: MainLog
) -> list[ZergServer]:
    """Bind and serve what the settings ask for, pools first; raises StartError.

    ``listening``: the sockets that the instance itself accepts on, in the order of its
    configuration; called for each client.
    """
    found: list[ZergServer] = []
    for pool in settings.pools:
        control = binder.listen("zerg-pool", pool.control, 1, defer=False)
        sockets: list[socket.socket] = []
        for address in pool.addresses:
            sockets += binder.listen("zerg-pool", address, 1).sockets
        found.append(
            ZergServer(
                "zerg-pool", pool.control.text, control.sockets[0], _constant(sockets), loop, log
            )
        )
    for server in settings.servers:
        control = binder.listen("zerg-server", server, 1, defer=False)
        found.append(
            ZergServer("zerg-server", server.text, control.sockets[0], listening, loop, log)
        )
    return found


def _constant(sockets: Sequence[socket.socket]) -> Sockets:
    return lambda: sockets


def _distinct(sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """Every open socket once.

    The name would not tell: the sockets of several workers have the same one (SO_REUSEPORT), and
    each has a queue that somebody has to serve.
    """
    found = {os.fstat(sock.fileno()).st_ino: sock for sock in sockets if sock.fileno() >= 0}
    return list(found.values())


def _peer(client: socket.socket) -> str:
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(data)
    return f"pid {pid} (uid {uid})"


# --- taking ------------------------------------------------------------------------------------


def attach(server: Endpoint, timeout: float = ATTACH_TIMEOUT) -> list[socket.socket]:
    """The sockets that the zerg server hands out: listening, non-blocking, not inheritable.

    Blocks for twice ``timeout`` seconds at most. Raises OSError if the server cannot be reached or
    does not answer, ZergError for an answer that is not of a zerg server or has anything but
    listening stream sockets (TCP, unix) with it; no descriptor is left open then. ``strerror`` and
    the text of the ZergError are one line without the address.
    """
    if server.kind not in ("unix", "abstract"):
        raise ZergError("not a unix socket; sockets pass through no other")
    try:
        data, fds, flags = _receive(server, timeout)
    except OSError as error:
        reason = f"no answer in {timeout:g} s" if error.errno == errno.EAGAIN else explain(error)
        raise OSError(error.errno, f"unable to connect to zerg server: {reason}") from None
    sockets: list[socket.socket] = []
    try:
        count = decode(data)
        if flags & socket.MSG_CTRUNC:
            raise ZergError(f"only {len(fds)} of {count} could be taken: too many open files")
        # A uWSGI takes what comes. Fewer or more than announced would mean that it is not known
        # what has to be served.
        if len(fds) != count:
            raise ZergError(f"{count} sockets announced, {len(fds)} received")
        while fds:
            sockets.append(_listener(fds))
    except BaseException as error:
        for sock in sockets:
            sock.close()
        for fd in fds:
            os.close(fd)
        if isinstance(error, ZergError):
            raise ZergError(f"invalid data received from zerg server: {error}") from None
        raise
    return sockets


def attached(
    option: str, server: Endpoint, log: MainLog, *, fallback: bool = False
) -> list[socket.socket]:
    """``attach`` at start; raises StartError.

    With ``fallback`` a server that is away is a line in the log and no sockets; one that answers
    nonsense is an error all the same, as in uWSGI.
    """
    name = f"{option} = {server.text}"
    try:
        return attach(server)
    except OSError as error:
        if not fallback:
            raise StartError(f"{name}: {explain(error)}") from None
        log.line(f"{name}: {explain(error)}; starting without it (zerg-fallback)")
        return []
    except ZergError as error:
        raise StartError(f"{name}: {error}") from None


def _receive(server: Endpoint, timeout: float) -> tuple[bytes, list[int], int]:
    """``(bytes, descriptors, flags)`` of the server's message."""
    path = abstract_address(server.path) if server.kind == "abstract" else server.path
    limit = _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # Not settimeout: a non-blocking connect does not wait until there is room in the queue.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.connect(path)
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * _DESCRIPTOR)
        # One byte more than it should be, to see it.
        data, ancillary, flags, _ = sock.recvmsg(SIZE + 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) // _DESCRIPTOR * _DESCRIPTOR])
    return data, fds.tolist(), flags


def _listener(fds: list[int]) -> socket.socket:
    """The socket of the first descriptor, which leaves the list; ZergError if it cannot be used."""
    if not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
        raise ZergError("a descriptor is not a socket")
    sock = socket.socket(fileno=fds[0])
    del fds[0]
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        reason = "a socket is neither TCP nor unix"
    elif sock.type != socket.SOCK_STREAM:
        reason = "a socket is not a stream socket"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        reason = "a socket is not listening"
    else:
        # Common to all who have the socket; a uWSGI does the same.
        sock.setblocking(False)
        return sock
    sock.close()
    raise ZergError(reason)
