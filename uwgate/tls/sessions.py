"""Sessions that are kept outside of the process that made them (RFC 5246 §F.1.4, RFC 8446 §4.6.1).

A session is named by its id, and kept as what ``i2d_SSL_SESSION`` makes of it: ASN.1, with the
master secret inside. Only OpenSSL understands that, so machines that share sessions need the same.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Protocol


class Hooks(Protocol):
    """What is needed of OpenSSL (``openssl.OpenSsl``)."""

    def external_sessions(
        self,
        context: ssl.SSLContext,
        new: Callable[[bytes, bytes], None],
        get: Callable[[bytes], bytes | None],
        remove: Callable[[bytes], None],
    ) -> None:
        """Have OpenSSL keep the sessions of ``context`` there: by id, as DER."""
        ...


class Store(Protocol):
    """Where sessions are kept (``SharedCache``, ``RedisStore``). Nothing here may block."""

    def get(self, key: bytes) -> bytes | None:
        """The session ``key``."""
        ...

    def set(self, key: bytes, value: bytes, expires: int) -> bool:
        """Keep a session until ``expires``, a second of the epoch; whether it is kept."""
        ...

    def delete(self, key: bytes) -> object:
        """Forget a session."""
        ...


class Announcer(Protocol):
    """Tells other machines (``sync.SyncSender``). Nothing here may block or raise."""

    def set(self, key: bytes, value: bytes, expires: int) -> None:
        """A session was made."""
        ...

    def delete(self, key: bytes) -> None:
        """A session must not be used any more."""
        ...


class Sessions:
    """The store of all contexts of an instance. ``timeout``: life of a session in seconds.
    ``sender``: tells other machines what is kept here; with a store that all share there is none.

    OpenSSL takes a session for a bad one, and has it removed, if its connection ended with a fatal
    alert (RFC 5246 §7.2.2), but also if its ``SSL`` is freed before ``SSL_shutdown`` was called. So
    whoever drops a connection calls ``unwrap`` or ``shutdown`` first, also after a client that went
    without a word.
    """

    def __init__(
        self, hooks: Hooks, store: Store, timeout: int, sender: Announcer | None = None
    ) -> None:
        self._hooks = hooks
        self._store = store
        self._timeout = timeout
        self._sender = sender

    def attach(self, context: ssl.SSLContext) -> None:
        """Keep the sessions of ``context`` here."""
        self._hooks.external_sessions(context, self._new, self._store.get, self._remove)

    def _new(self, key: bytes, session: bytes) -> None:
        """A session was made. What the store does not take (too large, full) nobody hears of."""
        expires = int(time.time()) + self._timeout
        if key and self._store.set(key, session, expires) and self._sender is not None:
            self._sender.set(key, session, expires)

    def _remove(self, key: bytes) -> None:
        """OpenSSL says that a session is bad."""
        if not key:
            return
        self._store.delete(key)
        if self._sender is not None:
            self._sender.delete(key)
