"""Changes of a cache to and from other machines, over UDP (uWSGI's cache synchronisation).

uWSGI's datagrams are in the clear and from anybody: whoever sees the network sees the sessions.
With a secret, uwgate seals them, and hears only sealed ones. A sealed datagram has uWSGI's head
with command 201, which a uWSGI passes over, and as body::

    offset  size  field
    0       8     seconds of the epoch, little-endian
    8       12    nonce
    20      …     AES-256-GCM of the datagram inside, with the first eight bytes as associated data

The key is HKDF-SHA-256 of the secret. One that is older or newer than a minute, or seen before, is
refused.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address

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
        self._minute = 0

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
        minute = now // (2 * _WINDOW)
        if minute != self._minute:
            self._before = self._seen if minute == self._minute + 1 else set()
            self._seen, self._minute = set(), minute
        if nonce in self._seen or nonce in self._before:
            raise SyncError("seen before")
        if len(self._seen) < _SEEN:
            self._seen.add(nonce)


def _split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _set_multicast(sock: socket.socket, settings: CacheSettings) -> None:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, settings.multicast_loop)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, settings.multicast_ttl)


class SyncSender:
    """Sends to the nodes of a cache. Works in any process: the socket is opened when it is first
    used. Never raises; ``failed`` counts what could not be sent."""

    def __init__(self, settings: CacheSettings, log: Callable[[str], None]) -> None:
        self._settings = settings
        self._sealer = Sealer(settings.secret) if settings.secret else None
        self._nodes: list[tuple[socket.AddressFamily, tuple[object, ...]]] = []
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._owner = 0
        self.sent = self.failed = 0
        for node in settings.nodes:
            host, port = _split_address(node)
            try:
                found = socket.getaddrinfo(host or "127.0.0.1", port, type=socket.SOCK_DGRAM)
            except OSError as error:
                log(f"cache {settings.name}: node {node}: {error.strerror}; left out")
                continue
            self._nodes.append((found[0][0], found[0][4]))

    def set(self, key: bytes, value: bytes, expires: int) -> None:
        """Tell of a new value."""
        self._send(Update(key, value, expires))

    def delete(self, key: bytes) -> None:
        """Tell that there is none any more."""
        self._send(Update(key, None))

    def _send(self, update: Update) -> None:
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self._sockets.clear()  # those of the parent
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
            if family == socket.AF_INET:
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

    An address of 224.0.0.0/4 means that group: all addresses of this machine are bound, and the
    group is joined. ``received``, ``refused``: datagrams so far.
    """

    def __init__(
        self,
        address: str,
        settings: CacheSettings,
        apply: Callable[[Update], None],
        log: Callable[[str], None],
    ) -> None:
        self._apply = apply
        self._log = log
        self._name = settings.name
        self._sealer = Sealer(settings.secret) if settings.secret else None
        self._complained = False
        self.received = self.refused = 0
        host, port = _split_address(address)
        found = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        family, target = found[0][0], found[0][4]
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._bind(family, target, settings)
        except OSError:
            self.sock.close()
            raise

    def _bind(self, family: int, target: tuple[object, ...], settings: CacheSettings) -> None:
        sock = self.sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        if family == socket.AF_INET:
            group = ip_address(str(target[0]))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if group.is_multicast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("", target[1]))
                member = struct.pack("4s4s", group.packed, bytes(4))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
                _set_multicast(sock, settings)
                return
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
                    self._log(f"cache {self._name}: a datagram was refused ({error})")

    def close(self) -> None:
        """Hear no more."""
        self.sock.close()
