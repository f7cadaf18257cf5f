"""Datagram sockets that subscription packets arrive at: UDP, multicast, unix.

The owner is a `selectors` loop. What is done here comes before any look at the packet: who sent
it, and whether that sender sends too much. Facts about what uWSGI binds: its core/socket.c and
plugins/corerouter; a multicast group is bound as itself, so that nothing else arrives.
"""

from __future__ import annotations

import array
import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from uwgate.config.settings import Endpoint
from uwgate.subscriptions.packet import MAX_DATAGRAM
from uwgate.subscriptions.socketfile import identity, remove_stale, set_rights

Credentials = tuple[int, int, int]
"""pid, uid and gid of a sender on this machine, as the kernel tells them."""

Receive = Callable[[bytes, str, Credentials | None], None]
"""Is given the datagram, the name of its sender, and the sender's credentials."""

# Datagrams read in one go; others of the loop wait that long, which is less than a millisecond.
BATCH = 256
# Senders that are counted one by one. There are more only if addresses are made up, and then
# those that came too late are not counted: dropping them would hit the true ones among them.
MAX_SENDERS = 1 << 16

_BUFFER = 4 << 20  # of the kernel, bytes: 10,000 small datagrams, as every one counts 400 or more
_SIZE = MAX_DATAGRAM + 1  # one more shows that there was more
_BROADCAST = "255.255.255.255"
_EMPTY = (errno.EAGAIN, errno.EINTR)

# <asm-generic/socket.h>, <linux/sock_diag.h>; Python has no names for them.
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8

_CREDENTIALS = struct.Struct("3i")
# Room for exactly one message with credentials: descriptors that somebody sends along find none,
# and the kernel closes them.
_ANCILLARY = socket.CMSG_SPACE(_CREDENTIALS.size)


class DatagramServer:
    """One address; OSError with the reason if it cannot be bound.

    ``endpoint``: kind ``tcp`` (meaning UDP; an empty host is 0.0.0.0) or ``unix``. ``credentials``:
    ask the kernel who the sender is; it knows on unix sockets only. ``max_rate``: datagrams a
    second that one sender may send, 0 = any number. ``mode``: permissions of a unix socket's file.
    ``crash`` is told when ``receive`` raises, at most once a second; the datagram is lost then.
    ``inherited``: the socket, if the master before has bound it.

    Senders are named by IP address (``10.0.0.7``, ``::1``), or ``unix``, or ``uid 1000``.

    ``name``: the address as bound. ``received``: datagrams given to ``receive``. ``dropped``: those
    above ``max_rate``. ``truncated``: those longer than ``packet.MAX_DATAGRAM``; they are given
    to ``receive`` too, one byte too long, and so refused there. ``errors``: failed reads.
    ``crashes``: exceptions of ``receive``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        receive: Receive,
        *,
        credentials: bool,
        max_rate: int,
        mode: int | None = None,
        crash: Callable[[str, Exception], None] | None = None,
        inherited: socket.socket | None = None,
    ) -> None:
        self._receive = receive
        self._max_rate = max_rate
        self._crash = crash
        self._crash_told = False
        self._counts: dict[str, int] = {}
        self.received = 0
        self.dropped = 0
        self.truncated = 0
        self.errors = 0
        self.crashes = 0
        self._path = ""
        if endpoint.kind == "tcp":
            self._socket = inherited or _udp(endpoint.host, endpoint.port)
            self._read = self._read_udp
        elif endpoint.kind == "unix":
            self._path = endpoint.path
            self._socket = inherited or _unix(endpoint.path, mode, credentials=credentials)
            if inherited is not None:
                inherited.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, credentials)
            self._read = self._read_credentials if credentials else self._read_unix
        else:
            raise OSError(errno.EINVAL, "a subscription server is HOST:PORT or a path")
        self._file = identity(self._path) if self._path else None
        self.name = _name(self._socket)

    def fileno(self) -> int:
        """Descriptor for a selector; -1 once closed."""
        return self._socket.fileno()

    @property
    def file(self) -> tuple[int, int, int] | None:
        """What tells the file of a unix socket from others at its path."""
        return self._file

    @property
    def buffer(self) -> int:
        """Bytes of the kernel's buffer, as the kernel counts them: twice what was asked for."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    @property
    def lost(self) -> int:
        """Datagrams that the kernel threw away because the buffer was full; 0 if it cannot tell."""
        try:
            found = self._socket.getsockopt(
                socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_SK_MEMINFO_DROPS + 1)
            )
        except OSError:
            return 0
        values = array.array("I", found[: len(found) // 4 * 4])
        return values[_SK_MEMINFO_DROPS] if len(values) > _SK_MEMINFO_DROPS else 0

    def on_readable(self, mask: int) -> None:
        """Read what is there, `BATCH` datagrams at most; never raises for what a peer can do."""
        try:
            self._read()
        except OSError as error:
            # A selector tells again if there is more. Memory may be short for the moment, or an
            # error of an earlier datagram is reported here; neither says anything about the next.
            if error.errno not in _EMPTY:
                self.errors += 1

    def tick(self) -> None:
        """To be called once a second: every sender may send again."""
        self._counts.clear()
        self._crash_told = False

    def close(self) -> None:
        """Close the socket; the file of a unix socket stays."""
        self._socket.close()

    def vacuum(self) -> None:
        """Remove the file of a unix socket, unless another has taken its place."""
        if self._file is not None and identity(self._path) == self._file:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    # -- reading -------------------------------------------------------------------------------

    def _read_udp(self) -> None:
        read, pass_on = self._socket.recvfrom, self._pass_on
        for _ in range(BATCH):
            datagram, peer = read(_SIZE)
            pass_on(datagram, peer[0], None)

    def _read_unix(self) -> None:
        read, pass_on = self._socket.recv, self._pass_on
        for _ in range(BATCH):
            pass_on(read(_SIZE), "unix", None)

    def _read_credentials(self) -> None:
        read, pass_on = self._socket.recvmsg, self._pass_on
        for _ in range(BATCH):
            datagram, ancillary, _, _ = read(_SIZE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            who = _credentials(ancillary)
            pass_on(datagram, "unix" if who is None else f"uid {who[1]}", who)

    def _pass_on(self, datagram: bytes, sender: str, who: Credentials | None) -> None:
        if self._max_rate:
            counts = self._counts
            count = counts.get(sender, 0)
            if count >= self._max_rate:
                self.dropped += 1
                return
            if count or len(counts) < MAX_SENDERS:
                counts[sender] = count + 1
        if len(datagram) > MAX_DATAGRAM:
            self.truncated += 1
        self.received += 1
        try:
            self._receive(datagram, sender, who)
        except Exception as error:
            # Left to the loop, it would cost the socket: one datagram, and nobody is heard again.
            self.crashes += 1
            if self._crash is not None and not self._crash_told:
                self._crash_told = True
                self._crash(f"a subscription packet from {sender} made trouble", error)


def _credentials(ancillary: list[tuple[int, int, bytes]]) -> Credentials | None:
    """What the kernel says about the sender. Whatever else came is let go of."""
    found: Credentials | None = None
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS and len(data) == _CREDENTIALS.size:
            pid, uid, gid = _CREDENTIALS.unpack(data)
            found = pid, uid, gid
        elif kind == socket.SCM_RIGHTS:
            descriptors = array.array("i", data[: len(data) // 4 * 4])
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
    return found


# --- binding -----------------------------------------------------------------------------------


def _udp(host: str, port: int) -> socket.socket:
    family, address = _resolve(host, port)
    group = ipaddress.ip_address(address[0].partition("%")[0])
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        _enlarge(sock)
        if family == socket.AF_INET6:
            # As for TCP: 0.0.0.0 and [::] are two addresses, and may both be given.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if group.is_multicast:
            # All members of a group on this machine get every datagram.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif address[0] == _BROADCAST:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if _is_local_group(group) and not address[3]:
            # Such a group is one on each interface, and a socket is bound to one or to any.
            sock.bind(("::", port))
        else:
            sock.bind(address)
        if group.is_multicast:
            _join(sock, group.packed, address)
    except OSError:
        sock.close()
        raise
    return sock


def _is_local_group(group: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """IPv6 multicast of the scopes interface and link (RFC 4291, 2.7)."""
    return group.version == 6 and group.is_multicast and group.packed[1] & 0x0F <= 2


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """Family and address to bind: IPv4 if the name has one, else IPv6."""
    if not host:
        return socket.AF_INET, ("0.0.0.0", port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise OSError(errno.EADDRNOTAVAIL, f'host name "{host}" cannot be resolved') from None
    best = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return best[0], best[4]


def _join(sock: socket.socket, group: bytes, address: tuple[Any, ...]) -> None:
    """Become a member of a group: on the kernel's choice of an interface, and on all there are.

    An IPv6 address with a zone names its interface. OSError if no interface takes us.
    """
    failure: OSError | None = None
    joined = 0
    for level, option, request in _memberships(group, address):
        try:
            sock.setsockopt(level, option, request)
            joined += 1
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # the kernel's choice was this one
                joined += 1
            failure = failure or error
    if failure is not None and not joined:
        raise failure


def _memberships(group: bytes, address: tuple[Any, ...]) -> Iterator[tuple[int, int, bytes]]:
    indexes = [0, *(index for index, _ in socket.if_nameindex())]
    if len(group) == 16:
        if address[3]:
            indexes = [address[3]]
        for index in indexes:
            # struct ipv6_mreq: group, interface index.
            yield socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index)
        return
    for index in indexes:
        # struct ip_mreqn: group, local address, interface index.
        request = group + bytes(4) + struct.pack("@i", index)
        yield socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request


def _unix(path: str, mode: int | None, *, credentials: bool) -> socket.socket:
    remove_stale(path, socket.SOCK_DGRAM)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    # The mode is there from the first moment on: nobody's packet gets in between.
    mask = None if mode is None else os.umask(0o777 & ~mode)
    try:
        sock.setblocking(False)
        _enlarge(sock)
        if credentials:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.bind(path)
        set_rights(path, mode)
    except OSError:
        sock.close()
        raise
    finally:
        if mask is not None:
            os.umask(mask)
    return sock


def _enlarge(sock: socket.socket) -> None:
    """Ask for a large buffer: all nodes may announce themselves in the same moment."""
    for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            return


def wanted_name(endpoint: Endpoint) -> str:
    """The name of a UDP socket once it is bound there; "" for others. Raises OSError."""
    if endpoint.kind != "tcp":
        return ""
    family, address = _resolve(endpoint.host, endpoint.port)
    host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    return f"{host}:{address[1]}"


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_INET:
        return f"{name[0]}:{name[1]}"
    if sock.family == socket.AF_INET6:
        return f"[{name[0]}]:{name[1]}"
    return str(name)
