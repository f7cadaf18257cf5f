"""Sessions that are kept outside of the process that made them (RFC 5246 §F.1.4, RFC 8446 §4.6.1).

A session is named by its id, and kept as what ``i2d_SSL_SESSION`` makes of it: ASN.1, with the
master secret inside. Only OpenSSL understands that, so machines that share sessions need the same.
"""

from __future__ import annotations

import ssl
import time
from typing import Protocol

from uwgate.tls.openssl import OpenSsl


class Store(Protocol):
    """Where sessions are kept. ``expires``: seconds of the epoch. Nothing here may block."""

    def get(self, key: bytes) -> bytes | None:
        """The session ``key``."""
        ...

    def set(self, key: bytes, value: bytes, expires: int) -> object:
        """Keep a session."""
        ...

    def delete(self, key: bytes) -> object:
        """Forget a session."""
        ...


class Announcer(Protocol):
    """Tells other machines."""

    def set(self, key: bytes, value: bytes, expires: int) -> None:
        """A session was made."""
        ...

    def delete(self, key: bytes) -> None:
        """A session must not be used any more."""
        ...


class Sessions:
    """The store of all contexts of an instance. ``timeout``: life of a session in seconds."""

    def __init__(
        self, hooks: OpenSsl, store: Store, timeout: int, announcer: Announcer | None = None
    ) -> None:
        self._hooks = hooks
        self._store = store
        self._timeout = timeout
        self._announcer = announcer

    def attach(self, context: ssl.SSLContext) -> None:
        """Keep the sessions of ``context`` here."""
        self._hooks.external_sessions(context, self._new, self._store.get, self._remove)

    def _new(self, key: bytes, session: bytes) -> None:
        expires = int(time.time()) + self._timeout
        if key and self._store.set(key, session, expires) and self._announcer is not None:
            self._announcer.set(key, session, expires)

    def _remove(self, key: bytes) -> None:
        """OpenSSL says that a session is bad: its connection ended with a fatal alert."""
        self._store.delete(key)
        if self._announcer is not None:
            self._announcer.delete(key)
