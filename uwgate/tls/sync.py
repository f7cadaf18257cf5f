"""Changes of a cache to and from other machines, over UDP (uWSGI's cache synchronisation).

uWSGI's datagrams are in the clear and from anybody: whoever sees the network sees the sessions.
With a secret, uwgate seals them, and hears only sealed ones. A sealed datagram has uWSGI's head
with command 201, which a uWSGI passes over, and as body::

    offset  size  field
    0       8     seconds of the epoch, little-endian
    8       12    nonce
    20      …     AES-256-GCM of the datagram inside, with the first eight bytes as associated data

The key is HKDF-SHA-256 of the secret. One that is older or newer than a minute is refused, and so
is one that was seen before: of at least the last two minutes 100000 are remembered, by address.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from uwgate.config.settings_tls import CacheSettings
from uwgate.protocols.cache_sync import SyncError, Update, datagram, decode, encode, split

SEALED = 201
_WINDOW = 60  # seconds
_NONCE = 12
_BATCH = 256  # datagrams a turn
_BUFFER = 1 << 21  # bytes that the kernel may hold for us
_SEEN = 100_000  # nonces remembered a minute


class Sealer:
    """Seals and opens datagrams with a secret; SyncError for what is not good."""

    def __init__(self, secret: str) -> None:
        kdf = HKDF(SHA256(), 32, salt=None, info=b"uwgate cache synchronisation 1")
        self._cipher = AESGCM(kdf.derive(secret.encode()))
        self._seen: set[bytes] = set()
        self._before: set[bytes] = set()
        self._period = 0

    def seal(self, data: bytes, now: int) -> bytes:
        """A datagram around ``data``."""
        stamp, nonce = now.to_bytes(8, "little"), os.urandom(_NONCE)
        return datagram(SEALED, stamp + nonce + self._cipher.encrypt(nonce, data, stamp))

    def open(self, data: bytes, now: int) -> bytes:
        """What was sealed."""
        command, body = split(data)
        if command != SEALED:
            raise SyncError("not sealed")
        stamp, nonce, rest = body[:8], body[8 : 8 + _NONCE], body[8 + _NONCE :]
        if abs(int.from_bytes(stamp, "little") - now) > _WINDOW:
            raise SyncError("too old, or of the future")
        try:
            inside = self._cipher.decrypt(nonce, rest, stamp)
        except (InvalidTag, ValueError):
            raise SyncError("not sealed with our secret") from None
        self._once(nonce, now)
        return inside

    def _once(self, nonce: bytes, now: int) -> None:
        """Refuse what was seen before. ``before`` and ``seen`` are of this period and the last:
        together they reach back further than a datagram is good for."""
        period = now // (2 * _WINDOW)
        gone = period - self._period
        if gone == 1:
            self._before, self._seen, self._period = self._seen, set(), period
        elif gone not in (0, -1):  # what was seen is out of time; -1: a clock that was put back
            self._before, self._seen, self._period = set(), set(), period
        if nonce in self._seen or nonce in self._before:
            raise SyncError("seen before")
        if len(self._seen) < _SEEN:
            self._seen.add(nonce)


_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def _resolve(address: str, default: str) -> _Address:
    """Family and socket address of ``host:port``; ``default``: host of ``:port``. Of the addresses
    of a name an IPv4 one is taken if there is any: uWSGI has no other. OSError if there is none."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]") or default, int(port), type=socket.SOCK_DGRAM)
    except UnicodeError:
        raise OSError(errno.EINVAL, "no name of a host") from None
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return found[0][0], found[0][4]


def _set_multicast(sock: socket.socket, settings: CacheSettings) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, settings.multicast_loop)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, settings.multicast_ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, settings.multicast_loop)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, settings.multicast_ttl)


def _join(sock: socket.socket, group: IPv4Address | IPv6Address, target: tuple[Any, ...]) -> None:
    """Have what is sent to the group; on the interface that the kernel chooses, or (IPv6) that the
    address names (``[ff02::1%eth0]:port``)."""
    if isinstance(group, IPv4Address):
        member = struct.pack("4s4s", group.packed, bytes(4))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    else:
        member = struct.pack("16sI", group.packed, target[3])
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)


class SyncSender:
    """Sends to the nodes of a cache. Works in any process: the socket is opened when it is first
    used. Never raises; ``failed`` counts what could not be sent."""

    def __init__(self, settings: CacheSettings, log: Callable[[str], None]) -> None:
        self._settings = settings
        self._sealer = Sealer(settings.secret) if settings.secret else None
        self._nodes: list[_Address] = []
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._owner = 0
        self.sent = self.failed = 0
        for node in settings.nodes:
            try:
                self._nodes.append(_resolve(node, "127.0.0.1"))
            except OSError as error:
                log(f"cache {settings.name}: node {node}: {error.strerror}; left out")

    def set(self, key: bytes, value: bytes, expires: int) -> None:
        """Tell of a new value."""
        self._send(Update(key, value, expires))

    def delete(self, key: bytes) -> None:
        """Tell that there is none any more."""
        self._send(Update(key, None))

    def _send(self, update: Update) -> None:
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self.close()  # those of the parent
        try:
            data = encode(update)
            if self._sealer is not None:
                data = self._sealer.seal(data, int(time.time()))
        except SyncError:
            self.failed += len(self._nodes)
            return
        for family, address in self._nodes:
            try:
                self._socket(family).sendto(data, socket.MSG_DONTWAIT, address)
                self.sent += 1
            except OSError:
                self.failed += 1

    def _socket(self, family: socket.AddressFamily) -> socket.socket:
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._sockets[family] = socket.socket(family, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            _set_multicast(sock, self._settings)
        return sock

    def close(self) -> None:
        """Give up the sockets of this process."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()


class SyncReceiver:
    """Hears changes at ``address`` and has ``apply`` do them. OSError if it cannot be bound.

    An address of 224.0.0.0/4 or ff00::/8 means that group: all addresses of this machine are bound,
    and the group is joined. 255.255.255.255 and broadcast addresses of a network hear what is sent
    to all there. ``received``, ``refused``: datagrams so far. ``inherited``: the socket, if the
    master before has bound it.
    """

    def __init__(
        self,
        address: str,
        settings: CacheSettings,
        apply: Callable[[Update], None],
        log: Callable[[str], None],
        inherited: socket.socket | None = None,
    ) -> None:
        self._apply = apply
        self._log = log
        self._name = settings.name
        self._sealer = Sealer(settings.secret) if settings.secret else None
        self._complained = False
        self.received = self.refused = 0
        if inherited is not None:
            self.sock = inherited
            return
        family, target = _resolve(address, "0.0.0.0")
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._bind(target, settings)
        except OSError:
            self.sock.close()
            raise

    def _bind(self, target: tuple[Any, ...], settings: CacheSettings) -> None:
        sock = self.sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        group = ip_address(target[0])
        if group.is_multicast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", target[1]))
            _join(sock, group, target)
            _set_multicast(sock, settings)
        else:
            sock.bind(target)

    def fileno(self) -> int:
        """For a selector."""
        return self.sock.fileno()

    def read(self) -> None:
        """Do what has come, up to a batch of it. Never raises."""
        for _ in range(_BATCH):
            try:
                data = self.sock.recv(65536)
            except OSError:
                return
            self.received += 1
            try:
                if self._sealer is not None:
                    data = self._sealer.open(data, int(time.time()))
                self._apply(decode(data))
            except SyncError as error:
                self.refused += 1
                if not self._complained:
                    self._complained = True
                    self._log(
                        f"cache {self._name}: a datagram was refused ({error}); others are counted"
                    )

    def close(self) -> None:
        """Hear no more."""
        self.sock.close()
