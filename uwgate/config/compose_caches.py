"""Accepted values -> the settings of caches."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from uwgate.config.cache_values import NO_COPY, Cache2
from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings_tls import CacheSettings

_MAX_SIZE = 1 << 42  # bytes; more than any machine has, less than addresses can tell apart
_SHORT_SECRET = 16  # characters


def cache_settings(found: Found, problems: Problems) -> dict[str, CacheSettings]:
    """All caches by name; that of ``cache`` is the first one (uWSGI)."""
    shared: dict[str, Any] = {}
    for option in ("multicast-loop", "multicast-ttl"):
        each = found.last(option)
        if each is not None:
            shared[option.replace("-", "_")] = each.value
    caches: dict[str, CacheSettings] = {}
    each = found.last("cache")
    if each is not None:
        old = CacheSettings(items=_items(each), **_old_fields(found), **shared)
        _add(each, old, caches, problems)
    for each in found.all("cache2"):
        assert isinstance(each.value, Cache2)
        _add(each, CacheSettings(**each.value.fields, **shared), caches, problems)
    return caches


def _items(each: Value) -> int:
    assert isinstance(each.value, int)
    return each.value


def _old_fields(found: Found) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "udp": tuple(str(each.value) for each in found.all("cache-udp-server")),
        "nodes": tuple(str(each.value) for each in found.all("cache-udp-node")),
    }
    for option, field in (("cache-blocksize", "blocksize"), ("cache-secret", "secret")):
        each = found.last(option)
        if each is not None:
            fields[field] = each.value
    return fields


def _add(
    each: Value, cache: CacheSettings, caches: dict[str, CacheSettings], problems: Problems
) -> None:
    item = each.item
    if cache.name in caches:
        problems.error(item.origin, item.key, f'there is a cache "{cache.name}" already')
    elif cache.items * (cache.blocksize + cache.keysize) > _MAX_SIZE:
        message = f"{cache.items} items of {cache.blocksize} bytes are more than {_MAX_SIZE} bytes"
        problems.error(item.origin, item.key, message)
    else:
        caches[cache.name] = cache


def used_caches(
    found: Found,
    caches: dict[str, CacheSettings],
    used: Collection[str],
    asks_clients: bool,
    problems: Problems,
) -> tuple[CacheSettings, ...]:
    """The caches that something is kept in here, with warnings about what they cannot do.

    ``asks_clients``: whether client certificates are asked for, which sessions then stand for.
    The others are those of applications: neither memory nor a port is taken for them.
    """
    for each in found.all("cache", "cache2"):
        item, value = each.item, each.value
        name = value.fields.get("name", "default") if isinstance(value, Cache2) else "default"
        if name not in caches:
            continue
        if name not in used:
            message = f'nothing here uses the cache "{name}"; those of applications are uWSGI\'s'
            problems.warn(item.origin, item.key, message)
            continue
        for note in value.notes if isinstance(value, Cache2) else ():
            problems.warn(item.origin, item.key, note)
        _check_exchange(each, caches[name], asks_clients, problems)
    copy = found.last("cache-sync")
    if copy is not None and "default" in used:
        problems.warn(copy.item.origin, copy.item.key, NO_COPY)
    return tuple(cache for name, cache in caches.items() if name in used)


def _check_exchange(
    each: Value, cache: CacheSettings, asks_clients: bool, problems: Problems
) -> None:
    item = each.item
    itself = sorted(set(cache.udp) & set(cache.nodes) - {a for a in cache.udp if _is_group(a)})
    if itself:
        message = f'the cache "{cache.name}" sends its changes to itself ({", ".join(itself)})'
        problems.warn(item.origin, item.key, message)
    if not cache.secret and not all(map(_is_here, (*cache.udp, *cache.nodes))):
        message = (
            f'sessions of the cache "{cache.name}" travel in clear text, and whoever can send to'
            " it changes them (as with uWSGI); between uwgate instances a secret protects them"
        )
        problems.warn(item.origin, item.key, message)
    if not cache.secret and cache.udp and asks_clients:
        message = (
            f'whoever can send to the cache "{cache.name}" can plant a session in it, and'
            " resume it as any client without a certificate: a secret is needed where certificates"
            " are asked for"
        )
        problems.error(item.origin, item.key, message)
    if cache.secret and len(cache.secret) < _SHORT_SECRET:
        message = f"the secret is short; {_SHORT_SECRET} random characters and more are safe"
        problems.warn(item.origin, item.key, message)


def _is_group(address: str) -> bool:
    first = address.partition(".")[0]
    return first.isdecimal() and 224 <= int(first) <= 239


def _is_here(address: str) -> bool:
    return address.startswith(("127.", "[::1]:", "localhost:"))
