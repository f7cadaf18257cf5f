"""A registry with everything around it noted: what it publishes, logs and acknowledges."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from uwgate.config.settings import RouterSubscriptions, SubscriptionSettings
from uwgate.subscriptions.admission import Credentials, Forwarder, Registry
from uwgate.subscriptions.packet import Announcement, encode
from uwgate.subscriptions.signing import Signer
from uwgate.subscriptions.table import Change, Member, Table

KEY = "example.com"
NODE = "10.0.0.1:3031"


class KeyPair:
    """An EC key: fast to make. ``sign``: as `packet.encode` wants it."""

    def __init__(self, digest: str = "sha256") -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        form = PrivateFormat.PKCS8
        self.private = key.private_bytes(Encoding.PEM, form, NoEncryption())
        self.public = key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self.sign = Signer(self.private, digest).sign


def packet(
    key: str = KEY, address: str = NODE, *, signer: KeyPair | None = None, **fields: Any
) -> bytes:
    """A datagram; ``command=1`` is a goodbye."""
    sign = signer.sign if signer is not None else None
    return encode(Announcement(key, address, **fields), sign=sign)


def other_command(datagram: bytes) -> bytes:
    """The same packet, subscribe as unsubscribe and the reverse: the header is not signed."""
    return datagram[:3] + bytes((1 - datagram[3],)) + datagram[4:]


class World:
    """``registry`` and a worker's table that is fed with what it publishes."""

    def __init__(self, forwarder: Forwarder | None = None, **settings: Any) -> None:
        self.published: list[Change] = []
        self.log: list[str] = []
        self.told: list[tuple[str, str, str]] = []
        self.worker = Table()
        self.now = time.monotonic()
        self.registry = Registry(
            "http",
            RouterSubscriptions(SubscriptionSettings(**settings), ()),
            publish=self._publish,
            log=self.log.append,
            acknowledge=lambda *what: self.told.append(what),
            forwarder=forwarder,
        )
        self.registry.tick(self.now)

    def _publish(self, change: Change) -> None:
        self.published.append(change)
        self.worker.apply(change)

    def receive(
        self,
        datagram: bytes,
        sender: str = "10.0.0.7",
        credentials: Credentials | None = None,
    ) -> str:
        """What a datagram is refused with, "" if it is not."""
        before = dict(self.registry.rejected)
        self.registry.receive(datagram, sender, credentials)
        after = self.registry.rejected
        refused = [word for word, count in after.items() if count != before.get(word, 0)]
        assert len(refused) < 2
        return refused[0] if refused else ""

    def send(self, key: str = KEY, address: str = NODE, **fields: Any) -> str:
        """Make a packet and receive it."""
        return self.receive(packet(key, address, **fields))

    def pass_time(self, seconds: int) -> None:
        """Second by second, as the master's loop does."""
        for _ in range(seconds):
            self.now += 1
            while self.registry.tick(self.now):
                pass

    def find(self, key: str = KEY, address: str = NODE) -> Member | None:
        return self.registry.table.find(key, address)

    def member(self, key: str = KEY, address: str = NODE) -> Member:
        member = self.find(key, address)
        assert member is not None
        return member

    @property
    def counters(self) -> dict[str, int]:
        """After a tick of the same second: some are only summed up then."""
        self.registry.tick(self.now)
        return self.registry.counters

    def logged(self, text: str) -> bool:
        return any(text in line for line in self.log)


def contents(table: Table) -> dict[str, tuple[str, list[tuple[object, ...]]]]:
    """What workers know of a table, in its order."""
    return {
        key: (slot.algo, [(m.address, m.kind, m.weight, m.joined, m.marked) for m in slot])
        for key, slot in table.slots.items()
    }


def signed_world(directory: Path, pair: KeyPair, *keys: str, **settings: Any) -> World:
    """A world that checks signatures; the key files of ``keys`` are those of ``pair``."""
    for key in keys or (KEY,):
        (directory / f"{key}.pem").write_bytes(pair.public)
    return World(sign_digest="sha256", sign_directory=str(directory), **settings)
