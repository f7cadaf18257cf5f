"""Accepted values -> the settings of TLS and of the caches."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from uwgate.config import tls_values
from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings import ListenerSettings
from uwgate.config.settings_tls import (
    CacheSettings,
    ListenerTls,
    PairSettings,
    Redirect,
    SessionSettings,
    SniSettings,
    TicketSettings,
    TlsSettings,
)
from uwgate.config.tls_values import Cache2, Https, ToHttps

_MIN_BLOCK = 4096  # bytes of a cache for sessions (uWSGI)
_CONTEXT = "https-session-context"
_DEFAULTS = TlsSettings()
_WEAK = {
    "ssl-enable-sslv3": "INSECURE: SSL 3.0 (which no OpenSSL of today still has), TLS 1.0 and 1.1",
    "ssl-enable-tlsv1": "INSECURE: TLS 1.0 and 1.1 are broken (RFC 8996)",
    "ssl-enable-tlsv11": "INSECURE: TLS 1.1 is broken (RFC 8996)",
}


def listener(each: Value, found: Found, problems: Problems) -> ListenerSettings:
    """A TLS listener, or one that redirects to it."""
    value = each.value
    if isinstance(value, ToHttps):
        return ListenerSettings(value.endpoint, redirect=Redirect(value.port))
    assert isinstance(value, Https)
    item = each.item
    for name in value.unknown:
        problems.warn(item.origin, item.key, f"{name} means nothing here")
    if value.spdy:
        problems.warn(item.origin, item.key, "spdy has no effect yet: HTTP/1.1 is spoken")
    _check_files(each, value.pair, problems, fatal=True)
    tls = ListenerTls(value.pair, _context_of(each, found), value.spdy)
    return ListenerSettings(value.endpoint, tls=tls)


def _context_of(each: Value, found: Found) -> str:
    """The last one given before the listener. One that is given after all of them is meant for all
    (uWSGI would not use it at all)."""
    assert isinstance(each.value, Https)
    name = ""
    for other in found.accepted:
        if other is each:
            break
        if other.row.name == _CONTEXT:
            name = str(other.value)
    if not name:
        listeners = found.all("https", "https2")
        contexts = found.all(_CONTEXT)
        order = found.accepted
        if contexts and order.index(contexts[0]) > order.index(listeners[-1]):
            name = str(contexts[0].value)
    return name or f"http-{each.value.endpoint.text}"


def _check_files(each: Value, pair: PairSettings, problems: Problems, *, fatal: bool) -> None:
    for path in (pair.cert, pair.key, pair.client_ca):
        if path and not path.startswith("-----BEGIN ") and not os.path.exists(path):
            item = each.item
            if fatal:
                problems.error(item.origin, item.key, f"{path}: no such file")
            else:
                problems.warn(item.origin, item.key, f"{path}: no such file; left out")


def tls_settings(found: Found, caches: tuple[CacheSettings, ...], problems: Problems) -> TlsSettings:
    """What all TLS listeners share."""
    for name, text in _WEAK.items():
        if found.is_on(name):
            each = found.last(name)
            assert each is not None
            problems.warn(each.item.origin, each.item.key, text)
    options = 0
    for each in found.all("ssl-option"):
        assert isinstance(each.value, int)
        options |= each.value
    sessions = _sessions(found, caches, problems)
    names, patterns = _names(found, problems)
    return TlsSettings(
        sni=names,
        sni_regexps=patterns,
        sni_dirs=tuple(_directories(found, problems)),
        sni_dir_ciphers=_scalar(found, "sni-dir-ciphers", ""),
        sni_strict=found.is_on("sni-strict"),
        sni_max_contexts=_scalar(found, "sni-max-contexts", _DEFAULTS.sni_max_contexts),
        dotsplit=found.is_on("subscription-dotsplit"),
        enable_sslv3=found.is_on("ssl-enable-sslv3"),
        enable_tlsv1=found.is_on("ssl-enable-tlsv1"),
        enable_tlsv11=found.is_on("ssl-enable-tlsv11"),
        options=options,
        verify_depth=_scalar(found, "ssl-verify-depth", _DEFAULTS.verify_depth),
        tmp_dir=os.path.abspath(_scalar(found, "ssl-tmp-dir", "") or ".")
        if found.last("ssl-tmp-dir")
        else "",
        verbose=found.is_on("ssl-verbose"),
        sessions=sessions,
        tickets=_tickets(found, sessions),
    )


def _scalar(found: Found, name: str, default: Any) -> Any:
    each = found.last(name)
    return default if each is None else each.value


def _directories(found: Found, problems: Problems) -> list[str]:
    directories = []
    for each in found.all("sni-dir"):
        path = os.path.abspath(str(each.value))
        if not os.path.isdir(path):
            problems.warn(each.item.origin, each.item.key, f"{path} is not a directory")
        directories.append(path)
    return directories


def _names(
    found: Found, problems: Problems
) -> tuple[tuple[SniSettings, ...], tuple[SniSettings, ...]]:
    names, patterns = [], []
    for each in found.all("sni", "sni-regexp"):
        settings, item = each.value, each.item
        assert isinstance(settings, SniSettings)
        _check_files(each, settings.pair, problems, fatal=False)
        if each.row.name == "sni":
            names.append(settings)
        elif tls_values.is_wildcard(settings):
            message = f"{settings.name} is no regular expression; taken as sni = {settings.name}"
            problems.warn(item.origin, item.key, message)
            names.append(settings)
        else:
            patterns.append(settings)
    return tuple(names), tuple(patterns)


def _sessions(
    found: Found, caches: tuple[CacheSettings, ...], problems: Problems
) -> SessionSettings:
    settings = SessionSettings(
        timeout=_scalar(found, "ssl-sessions-timeout", SessionSettings().timeout),
        deadline=_scalar(found, "ssl-sessions-deadline", SessionSettings().deadline),
    )
    each = found.last("ssl-sessions-use-cache")
    if each is None:
        return settings
    name, item = str(each.value), each.item
    if tls_values.is_store(name):
        return replace(settings, url=name)
    cache = next((cache for cache in caches if name in (cache.name, "true")), None)
    if cache is None:
        message = (
            "there is no cache; add cache = 20000" if name == "true"
            else f"there is no cache {name!r}"
        )  # fmt: skip
        problems.error(item.origin, item.key, message)
        return settings
    if cache.blocksize < _MIN_BLOCK:
        message = f"the blocksize of cache {cache.name!r} has to be at least {_MIN_BLOCK} bytes"
        problems.error(item.origin, item.key, message)
    return replace(settings, cache=cache.name)


def _tickets(found: Found, sessions: SessionSettings) -> TicketSettings:
    kept = bool(sessions.cache or sessions.url)
    # As in uWSGI: with tickets a client would leave the cache alone, and come with one that
    # another machine cannot read.
    source = str(_scalar(found, "ssl-ticket-keys", ""))
    each = found.last("ssl-tickets")
    enabled = (not kept or bool(source)) if each is None else each.value is True
    return TicketSettings(
        enabled=enabled,
        rotate=_scalar(found, "ssl-ticket-rotate", TicketSettings().rotate),
        source=source,
    )


def cache_settings(found: Found, problems: Problems) -> tuple[CacheSettings, ...]:
    """All caches; the one of ``cache`` comes first."""
    shared: dict[str, Any] = {
        "multicast_loop": _scalar(found, "multicast-loop", 1),
        "multicast_ttl": _scalar(found, "multicast-ttl", 1),
    }
    caches = []
    each = found.last("cache")
    if each is not None:
        assert isinstance(each.value, int)
        caches.append(
            CacheSettings(
                items=each.value,
                blocksize=_scalar(found, "cache-blocksize", CacheSettings().blocksize),
                udp=tuple(str(one.value) for one in found.all("cache-udp-server")),
                nodes=tuple(str(one.value) for one in found.all("cache-udp-node")),
                secret=_scalar(found, "cache-secret", ""),
                **shared,
            )
        )
    for each in found.all("cache2"):
        value = each.value
        assert isinstance(value, Cache2)
        if value.idle:
            names = ", ".join(value.idle)
            problems.warn(each.item.origin, each.item.key, f"{names}: without effect here")
        cache = CacheSettings(**value.fields, **shared)
        if any(cache.name == other.name for other in caches):
            message = f"there is a cache {cache.name!r} already"
            problems.error(each.item.origin, each.item.key, message)
            continue
        caches.append(cache)
    return tuple(caches)
