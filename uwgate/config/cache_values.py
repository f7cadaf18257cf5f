"""Text -> value, for the options of caches.

::

    cache2 = name=NAME,items=N[,blocksize=N][,keysize=N][,udp=ADDRESS[;…]][,node=ADDRESS[;…]]…

The names, their aliases and defaults are uWSGI's (core/cache.c); ``secret`` is ours. In a value a
backslash takes the special meaning from the character behind it.

Every function raises ``ValueError`` with one sentence that says what is wrong and what is expected.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uwgate.config import addresses, values
from uwgate.config.settings import Endpoint
from uwgate.config.tls_values import key_values, unknown

MAX_ITEMS = 1 << 26
MAX_BLOCK = 1 << 24

# Names that say something about the caches of applications, or about files.
_IDLE = (
    "store", "store_sync", "storesync", "store_delete", "bitmap", "lastmod", "math_initial",
    "ignore_full", "purge_lru", "lru", "sweep_on_full", "clear_on_full", "no_expire",
    "lazy_expire", "lazy", "sync",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cache2:
    """One ``cache2``. ``fields``: of CacheSettings. ``notes``: what was passed over."""

    fields: dict[str, Any]
    notes: tuple[str, ...] = ()


def _datagram(endpoint: Endpoint, text: str, any_host: str) -> str:
    if endpoint.kind != "tcp" or not endpoint.port:
        raise ValueError(f"{text!r} is no address for datagrams; expected HOST:PORT")
    host = endpoint.host or any_host
    if ":" not in host:
        return f"{host}:{endpoint.port}"
    if ipaddress.IPv6Address(host).is_multicast:
        raise ValueError(f"{text!r} is a group of IPv6; expected one of IPv4, or no group")
    return f"[{host}]:{endpoint.port}"


def receiver(text: str) -> str:
    """Where updates arrive -> ``host:port``; no host means all addresses of this machine."""
    return _datagram(addresses.listening(text), text, "0.0.0.0")


def target(text: str) -> str:
    """Where updates are sent -> ``host:port``; no host means this machine."""
    return _datagram(addresses.connecting(text), text, "127.0.0.1")


def _several(convert: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    def each(text: str) -> tuple[str, ...]:
        return tuple(convert(word.strip()) for word in text.split(";") if word.strip())

    return each


def items(text: str) -> int:
    """The number of slots, of which uWSGI keeps the first for itself."""
    return values.integer(2, MAX_ITEMS)(text)


def blocksize(text: str) -> int:
    """The size of the largest value."""
    return values.size(1, MAX_BLOCK)(text)


def secret(text: str) -> str:
    """The secret that updates are sealed with; it is never in a message."""
    if not text:
        raise ValueError("the secret is empty")
    return text


def _name(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("expected printable text")
    return text


_FIELDS: dict[str, tuple[tuple[str, ...], Callable[[str], object]]] = {
    "name": (("name",), _name),
    "items": (("items", "max_items", "maxitems"), items),
    "blocks": (("blocks",), values.integer(1, MAX_ITEMS)),
    "blocksize": (("blocksize",), blocksize),
    "keysize": (("keysize", "key_size"), values.integer(1, 65535)),
    "hash": (("hash",), values.choice("djb33x", "murmur2")),
    "hashsize": (("hashsize", "hash_size"), values.integer(1, 1 << 30)),
    "udp": (
        ("udp", "udp_server", "udp_servers", "udpserver", "udpservers"),
        _several(receiver),
    ),
    "nodes": (("node", "nodes"), _several(target)),
    "secret": (("secret",), secret),
}
_KNOWN = {
    name: (field, convert) for field, (names, convert) in _FIELDS.items() for name in names
}


def cache2(text: str) -> Cache2:
    """The value of ``cache2``. Names that uWSGI would pass over, too, are notes."""
    fields: dict[str, Any] = {}
    notes = []
    idle = []
    for name, value in key_values(text):
        if name in _IDLE:
            idle.append(name)
        elif name not in _KNOWN:
            notes.append(unknown(name, _KNOWN, _FIELDS))
        else:
            field, convert = _KNOWN[name]
            if field in fields:
                notes.append(f"{name!r} is given twice; the last one counts")
            try:
                fields[field] = convert(value or "")
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    if "items" not in fields:
        raise ValueError("items= is missing; expected name=NAME,items=NUMBER")
    if idle:
        notes.append(f"{', '.join(idle)} without effect here")
    if "sync" in idle:
        notes.append(NO_COPY)
    return Cache2(fields, tuple(notes))


NO_COPY = "there is no full copy from another machine at start; only changes arrive"
"""What ``cache-sync`` and ``sync=`` ask for."""
