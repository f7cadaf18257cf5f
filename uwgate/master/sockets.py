"""From addresses to listening sockets.

A TCP address gets one socket a worker (SO_REUSEPORT: the kernel spreads connections over them),
and the master keeps them all, so that the connections queued on one wait for the next worker with
its number. Sockets that exist once (unix, abstract, ``fd://``, those of systemd and of a zerg
server) are shared by all workers.

No listening socket is closed while its address is in use: the kernel would reset the connections
that wait in its queue. On a reload the new master takes over the sockets of each address that it
still has; with fewer workers than sockets each worker accepts from several of them, with more,
sockets are added.

Address forms: ``config.settings.Endpoint``. Facts about what uWSGI binds: its core/socket.c and
documentation; abstract names are NUL + name + NUL on the wire.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from uwgate.config.settings import Endpoint, ProcessSettings
from uwgate.master.errors import StartError, explain
from uwgate.master.handover import HandedSocket
from uwgate.master.inherited import Inherited
from uwgate.observe.backlog import socket_name
from uwgate.subscriptions.socketfile import identity, remove_stale, set_rights

# <linux/in.h>, <linux/in6.h>; Python has no names for them.
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
# sockaddr_un.sun_path without its final NUL; abstract names carry two NULs of ours.
_MAX_ABSTRACT = 106


@dataclass(frozen=True, slots=True)
class Bound:
    """One address and its listening, non-blocking sockets: one a worker, or one for all.

    ``name`` is the address as bound (``0.0.0.0:8080``, ``[::1]:80``, ``/path``, ``@name``).
    ``file`` identifies the file of a unix socket, so that only that one is ever removed. ``fresh``:
    bound by this process. ``single``: shared by the workers, whatever their number. ``foreign``: of
    systemd, which keeps it and its file.
    """

    option: str
    endpoint: Endpoint
    name: str
    sockets: tuple[socket.socket, ...]
    file: tuple[int, int, int] | None = None
    fresh: bool = True
    single: bool = False
    foreign: bool = False

    def for_worker(self, index: int, workers: int) -> tuple[socket.socket, ...]:
        """Sockets of worker ``index`` (0-based) of so many."""
        if len(self.sockets) <= workers:
            return (self.sockets[index % len(self.sockets)],)
        return self.sockets[index::workers]

    def handed(self) -> HandedSocket:
        """For the next master."""
        return HandedSocket(
            self.name,
            "stream",
            [sock.fileno() for sock in self.sockets],
            list(self.file) if self.file is not None else None,
            self.endpoint.text,
            self.single,
            self.foreign,
        )

    def close(self) -> None:
        """Close this process's copies."""
        for sock in self.sockets:
            sock.close()

    def vacuum(self) -> None:
        """Remove the file of a unix socket, unless another has taken its place."""
        if self.foreign:
            return
        if self.file is not None and identity(self.endpoint.path) == self.file:
            with contextlib.suppress(OSError):
                os.unlink(self.endpoint.path)


class Binder:
    """Binds the addresses of one instance; ``warn`` gets one line for each thing worth knowing.

    ``inherited``: sockets of the master before, and those of systemd; what is there is not bound
    anew. All methods raise ``StartError`` with the option, its value and the reason.
    """

    def __init__(
        self,
        process: ProcessSettings,
        warn: Callable[[str], None],
        inherited: Inherited | None = None,
    ) -> None:
        self._process = process
        self._warn = warn
        self._inherited = inherited or Inherited()
        self._shared: list[Bound] = []
        self._taken: set[Endpoint] = set()
        self.bound: list[Bound] = []

    def bind_shared(self, workers: int) -> None:
        """Bind every ``shared-socket``; to be called once, before ``listen``."""
        self._check_backlog()
        undeferred = self._process.undeferred
        for index, endpoint in enumerate(self._process.shared_sockets):
            plain = index < len(undeferred) and undeferred[index]
            option = "undeferred-shared-socket" if plain else "shared-socket"
            self._shared.append(self._bind(option, endpoint, workers, defer=not plain))

    def listen(self, option: str, endpoint: Endpoint, workers: int, *, defer: bool = True) -> Bound:
        """Sockets listening on ``endpoint`` for that many workers.

        ``defer`` False: no TCP_DEFER_ACCEPT, for protocols where the server speaks first.
        """
        if endpoint.kind not in ("fd", "shared"):
            return self._bind(option, endpoint, workers, defer=defer)
        if endpoint in self._taken:
            raise _failure(option, endpoint, "is listened on twice")
        self._taken.add(endpoint)
        if endpoint.kind == "fd":
            return self._bind(option, endpoint, workers, defer=defer)
        if endpoint.number >= len(self._shared):
            raise _failure(
                option, endpoint, f"there are {len(self._shared)} shared sockets, counted from 0"
            )
        shared = self._shared[endpoint.number]
        return Bound(option, shared.endpoint, shared.name, shared.sockets)

    def attach(
        self, option: str, endpoint: Endpoint, sockets: Sequence[socket.socket]
    ) -> list[Bound]:
        """Take sockets that another instance has handed out, one address each."""
        found = [
            Bound(option, endpoint, socket_name(sock), (sock,), fresh=False, single=True)
            for sock in sockets
        ]
        self.bound += found
        return found

    def close(self) -> None:
        """Close this process's copies of everything bound."""
        for bound in self.bound:
            bound.close()

    def vacuum(self, *, fresh: bool = False) -> None:
        """Remove the files of unix sockets that are still ours; ``fresh``: that we have bound."""
        for bound in self.bound:
            if bound.fresh or not fresh:
                bound.vacuum()

    def _check_backlog(self) -> None:
        try:
            with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
                most = int(file.read())
        except (OSError, ValueError):
            return
        if self._process.listen <= most:
            return
        reason = f"listen = {self._process.listen}: more than net.core.somaxconn ({most})"
        if self._process.listen != ProcessSettings().listen:
            raise StartError(f"{reason}; raise that, or lower listen")
        self._warn(f"{reason}, to which the kernel cuts it")

    def _bind(self, option: str, endpoint: Endpoint, workers: int, *, defer: bool) -> Bound:
        try:
            bound = self._taken_over(option, endpoint, workers, defer=defer)
            if bound is None:
                bound = self._bound_anew(option, endpoint, workers, defer=defer)
        except OSError as error:
            raise _failure(option, endpoint, explain(error)) from None
        self.bound.append(bound)
        return bound

    def _bound_anew(
        self, option: str, endpoint: Endpoint, workers: int, *, defer: bool
    ) -> Bound:
        if endpoint.kind == "tcp":
            sockets = self._tcp(endpoint, workers, defer=defer)
        elif endpoint.kind == "fd":
            sockets = [_adopt(endpoint.number)]
        else:
            sockets = [self._unix(endpoint)]
        file = identity(endpoint.path) if endpoint.kind == "unix" else None
        single = endpoint.kind != "tcp"
        name = socket_name(sockets[0])
        return Bound(
            option, endpoint, name, tuple(sockets), file, endpoint.kind != "fd", single
        )

    # -- what is there already -----------------------------------------------------------------

    def _taken_over(
        self, option: str, endpoint: Endpoint, workers: int, *, defer: bool
    ) -> Bound | None:
        handed = self._inherited.take(endpoint, "stream", self._wanted_name(endpoint))
        if handed is None:
            return None
        sockets = [_adopt(fd) for fd in handed.fds if handed.foreign or _is_whole(fd)]
        if not sockets:
            self._warn(f"{handed.name}: somebody has shut it down; it is bound anew")
            for fd in handed.fds:
                os.close(fd)
            return None
        file = (handed.file[0], handed.file[1], handed.file[2]) if handed.file else None
        if not self._inherited.rehearsal:
            for sock in sockets:
                self._tune(sock, defer=defer)
                sock.listen(self._process.listen)
        if file is not None and endpoint.kind == "unix":
            self._give_away_again(endpoint.path)
        # Not in a rehearsal: what the kernel would put into their queues would be lost.
        grows = not handed.single and endpoint.kind == "tcp" and not self._inherited.rehearsal
        if grows and len(sockets) < workers:
            sockets += self._more(sockets, workers - len(sockets), defer=defer)
        name = socket_name(sockets[0])
        return Bound(
            option, endpoint, name, tuple(sockets), file, False, handed.single, handed.foreign
        )

    def _wanted_name(self, endpoint: Endpoint) -> str:
        """The name that a socket of this address has once it is bound; "" if nobody can know."""
        if endpoint.kind == "tcp" and endpoint.port:
            family, address = _resolve(endpoint.host, endpoint.port)
            host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
            return f"{host}:{address[1]}"
        return f"@{endpoint.path}" if endpoint.kind == "abstract" else ""

    def _more(
        self, sockets: Sequence[socket.socket], count: int, *, defer: bool
    ) -> list[socket.socket]:
        """Further sockets of an address; it may have been bound for one worker alone."""
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first = sockets[0]
        return self._row(first.family, first.getsockname(), count, reuse_port=True, defer=defer)

    # -- making --------------------------------------------------------------------------------

    def _tcp(self, endpoint: Endpoint, workers: int, *, defer: bool) -> list[socket.socket]:
        family, address = _resolve(endpoint.host, endpoint.port)
        several = workers > 1
        if several and not self._process.reuse_port and endpoint.port != 0:
            # SO_REUSEPORT lets us join whatever other instance of the same user has the
            # address with it too, and takes half of its connections: look without it first.
            with self._tcp_socket(family, reuse_port=False) as probe:
                probe.bind(address)
        reuse_port = several or self._process.reuse_port
        return self._row(family, address, max(workers, 1), reuse_port=reuse_port, defer=defer)

    def _row(
        self, family: int, address: tuple[Any, ...], count: int, *, reuse_port: bool, defer: bool
    ) -> list[socket.socket]:
        """So many sockets of one address."""
        sockets: list[socket.socket] = []
        try:
            for _ in range(count):
                sock = self._tcp_socket(family, reuse_port=reuse_port)
                sockets.append(sock)
                sock.bind(address)
                # Port 0: the kernel chose one, and the others take the same.
                address = sock.getsockname()
                self._tune(sock, defer=defer)
                if not (self._inherited.rehearsal and reuse_port):
                    # Else another instance may have the address, and clients would come to us.
                    sock.listen(self._process.listen)
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    def _tune(self, sock: socket.socket, *, defer: bool) -> None:
        """What may change with the configuration; accepted sockets inherit it."""
        process = self._process
        for option, size in (
            (socket.SO_SNDBUF, process.send_buffer),
            (socket.SO_RCVBUF, process.receive_buffer),
        ):
            if size:
                sock.setsockopt(socket.SOL_SOCKET, option, size)
        if sock.family == socket.AF_UNIX:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, process.keepalive_probes)
        defer_accept = process.defer_accept if defer else 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, defer_accept)
        if process.fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, process.fast_open)

    def _tcp_socket(self, family: int, *, reuse_port: bool) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if self._process.freebind:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        return sock

    def _unix(self, endpoint: Endpoint) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if endpoint.kind == "abstract":
                sock.bind(abstract_address(endpoint.path))
            else:
                remove_stale(endpoint.path, socket.SOCK_STREAM)
                sock.bind(endpoint.path)
                # Before listen: until then nobody gets in with the mode of the umask.
                self._give_away(endpoint.path)
            self._tune(sock, defer=False)
            sock.listen(self._process.listen)
        except OSError:
            sock.close()
            raise
        return sock

    def _give_away_again(self, path: str) -> None:
        """The same for a socket of before, where something has changed. Who has given up root may
        not be allowed to, and the socket works as it is."""
        mode, owner = self._process.chmod_socket, self._process.chown_socket
        found = os.stat(path)
        same_owner = owner is None or all(
            wanted in (-1, have)
            for wanted, have in zip(owner, (found.st_uid, found.st_gid), strict=True)
        )
        if same_owner and mode in (None, stat.S_IMODE(found.st_mode)):
            return
        try:
            if not self._inherited.rehearsal:
                self._give_away(path)
        except OSError as error:
            self._warn(f"{path}: mode and owner stay as they are: {explain(error)}")

    def _give_away(self, path: str) -> None:
        set_rights(path, self._process.chmod_socket, self._process.chown_socket)


def abstract_address(name: str) -> bytes:
    """Address of an abstract socket as uWSGI makes it: NUL, the name, NUL."""
    encoded = os.fsencode(name)
    if len(encoded) > _MAX_ABSTRACT:
        raise OSError(errno.ENAMETOOLONG, f"name is longer than {_MAX_ABSTRACT} bytes")
    return b"\0" + encoded + b"\0"


def _failure(option: str, endpoint: Endpoint, reason: str) -> StartError:
    return StartError(f"{option} = {endpoint.text}: {reason}")


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """Family and address to bind: IPv4 if the name has one (uWSGI takes no other), else IPv6."""
    if not host:
        return socket.AF_INET, ("0.0.0.0", port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise OSError(errno.EADDRNOTAVAIL, f'host name "{host}" cannot be resolved') from None
    best = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return best[0], best[4]


def _adopt(number: int) -> socket.socket:
    """The inherited descriptor ``number``, which must be a listening stream socket."""
    try:
        kind = os.fstat(number)
    except OSError:
        raise OSError(errno.EBADF, "no such descriptor is open") from None
    if not stat.S_ISSOCK(kind.st_mode):
        raise OSError(errno.ENOTSOCK, "the descriptor is not a socket")
    sock = socket.socket(fileno=number)
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        reason = "the socket is neither TCP nor unix"
    elif sock.type != socket.SOCK_STREAM:
        reason = "the socket is not a stream socket"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        reason = "the socket is not listening"
    else:
        sock.setblocking(False)
        sock.set_inheritable(False)
        return sock
    sock.detach()
    raise OSError(errno.EINVAL, reason)


def _is_whole(fd: int) -> bool:
    """Whether a listening socket still is one: whoever has a copy of it, a worker or a client of a
    zerg pool, can shut it down for all."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        ended = any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(0))
        return not ended and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
