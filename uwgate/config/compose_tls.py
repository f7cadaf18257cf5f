"""Accepted values -> the settings of TLS."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from uwgate.config import tls_values
from uwgate.config.found import Found, Value
from uwgate.config.masking import PEM
from uwgate.config.model import Problems
from uwgate.config.settings import HttpSettings, ListenerSettings
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
from uwgate.config.tls_values import Https, ToHttps

_MIN_BLOCK = 4096  # bytes of a value in a cache for sessions (uWSGI)
_MIN_KEY = 32  # bytes of a session id
_LONGEST_TICKET = 604_800  # seconds (RFC 8446 section 4.6.1)
_NO_TICKET = 0x4000  # SSL_OP_NO_TICKET
_TLS = ("https", "https2")
_CONTEXT = "https-session-context"
_WEAK = {
    "ssl-enable-sslv3": "INSECURE: SSL 3.0 is broken (POODLE, RFC 7568); OpenSSL has it no more,"
    " so that only TLS 1.0 and 1.1 are allowed by this",
    "ssl-enable-tlsv1": "INSECURE: TLS 1.0 and 1.1 are obsolete (RFC 8996): SHA-1 signatures and"
    " ciphers with known attacks",
    "ssl-enable-tlsv11": "INSECURE: TLS 1.1 is obsolete (RFC 8996): SHA-1 signatures and ciphers"
    " with known attacks",
}

_Report = Callable[[str, str, str], None]


# --- Listeners -------------------------------------------------------------------------------


def listener(each: Value, found: Found, problems: Problems) -> ListenerSettings:
    """What ``https``, ``https2`` or ``http-to-https`` says. The files have to exist."""
    value, item = each.value, each.item
    if isinstance(value, ToHttps):
        return ListenerSettings(value.endpoint, redirect=Redirect(value.port))
    assert isinstance(value, Https)
    for note in value.notes:
        problems.warn(item.origin, item.key, note)
    _check_pair(each, value.pair, found, problems.error)
    context = _contexts(found).get(id(each)) or f"http-{value.endpoint.text}"
    return ListenerSettings(value.endpoint, tls=ListenerTls(value.pair, context, value.spdy))


def asks_clients(http: HttpSettings) -> bool:
    """Whether client certificates are asked for by anything that the configuration names."""
    pairs = [each.tls.pair for each in http.listeners if each.tls is not None]
    if http.tls is not None:
        pairs += [each.pair for each in (*http.tls.sni, *http.tls.sni_regexps)]
    return any(pair.client_ca for pair in pairs)


def _contexts(found: Found) -> dict[int, str]:
    """Identity of a listener's value -> its ``https-session-context``.

    That is the last one before the listener. One that stands behind all of them is meant for all,
    if no other is given (uWSGI would not use it at all).
    """
    named: dict[int, str] = {}
    context = ""
    used = True
    for each in found.accepted:
        if each.row.name == _CONTEXT:
            context, used = str(each.value), False
        elif each.row.name in _TLS:
            named[id(each)] = context
            used = True
    if not used and not any(named.values()):
        return dict.fromkeys(named, context)
    return named


def _check_contexts(found: Found, problems: Problems) -> None:
    """A context behind the last listener, where others are given, is for nothing."""
    order = [each for each in found.accepted if each.row.name in (*_TLS, _CONTEXT)]
    last = order[-1]
    if last.row.name == _CONTEXT and str(last.value) not in _contexts(found).values():
        message = "has no effect, as no https stands behind it"
        problems.warn(last.item.origin, last.item.key, message)


def _check_pair(each: Value, pair: PairSettings, found: Found, report: _Report) -> None:
    """Whether the files exist (who may read them, the master finds out), and the ciphers."""
    item = each.item
    files = (("certificate", pair.cert), ("key", pair.key), ("client CA", pair.client_ca))
    for what, path in files:
        if path.startswith(PEM):
            if found.last("ssl-tmp-dir") is None:
                message = f"PEM text as {what}; this needs ssl-tmp-dir"
                report(item.origin, item.key, message)
        elif path:
            why = _missing(path)
            if why:
                report(item.origin, item.key, f"{what} {path}: {why}")
    _check_ciphers(each, pair.ciphers, report)


def _missing(path: str) -> str:
    """Why there is no such file, or "". What may not be looked at may be there."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return "is a directory" if stat.S_ISDIR(mode) else ""


def _check_ciphers(each: Value, ciphers: str, report: _Report) -> None:
    if ciphers and not _known_ciphers(ciphers):
        report(each.item.origin, each.item.key, f"OpenSSL knows no cipher of {ciphers!r}")


@lru_cache(maxsize=64)
def _known_ciphers(text: str) -> bool:
    import ssl  # only here: without TLS nobody has to wait for OpenSSL

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(text)
    except ssl.SSLError:
        return False
    return True


# --- What all listeners share ----------------------------------------------------------------


def tls_settings(
    found: Found,
    dotsplit: bool,
    caches: Mapping[str, CacheSettings],
    problems: Problems,
) -> TlsSettings:
    """The settings of all TLS listeners. ``caches``: by name, the first of them is the default."""
    for name, message in _WEAK.items():
        each = found.last(name)
        if each is not None and each.value is True:
            problems.warn(each.item.origin, each.item.key, message)
    _check_contexts(found, problems)
    fields: dict[str, Any] = found.fields("tls")
    fields["dotsplit"] = dotsplit
    for each in found.all("ssl-option"):
        assert isinstance(each.value, int)
        fields["options"] = fields.get("options", 0) | each.value
    # A range of versions has no holes.
    if fields.get("enable_sslv3") or fields.get("enable_tlsv1"):
        fields["enable_tlsv1"] = fields["enable_tlsv11"] = True
    if "tmp_dir" in fields:
        fields["tmp_dir"] = _temporary(found, problems)
    ciphers = found.last("sni-dir-ciphers")
    if ciphers is not None:
        _check_ciphers(ciphers, str(ciphers.value), problems.error)
    fields["sni"], fields["sni_regexps"] = _names(found, problems)
    fields["sni_dirs"] = _directories(found, problems)
    fields["sessions"] = _sessions(found, caches, problems)
    fields["tickets"] = _tickets(found, fields["sessions"], fields.get("options", 0), problems)
    return TlsSettings(**fields)


def _temporary(found: Found, problems: Problems) -> str:
    each = found.last("ssl-tmp-dir")
    assert each is not None
    path = os.path.abspath(str(each.value))
    if not os.path.isdir(path):
        problems.error(each.item.origin, each.item.key, f"{path} is not a directory")
    return path


def _directories(found: Found, problems: Problems) -> tuple[str, ...]:
    paths = []
    for each in found.all("sni-dir"):
        path = os.path.abspath(str(each.value))
        if not os.path.isdir(path):
            problems.warn(each.item.origin, each.item.key, f"{path} is not a directory")
        paths.append(path)
    return tuple(dict.fromkeys(paths))


def _names(
    found: Found, problems: Problems
) -> tuple[tuple[SniSettings, ...], tuple[SniSettings, ...]]:
    """The entries of ``sni`` and of ``sni-regexp``. A file that is missing is no error (uWSGI)."""
    names: list[SniSettings] = []
    patterns: list[SniSettings] = []
    seen: dict[str, str] = {}
    for each in found.all("sni", "sni-regexp"):
        entry, item = each.value, each.item
        assert isinstance(entry, SniSettings)
        _check_pair(each, entry.pair, found, problems.warn)
        if each.row.name == "sni-regexp" and not tls_values.is_wildcard(entry.name):
            patterns.append(entry)
            continue
        if each.row.name == "sni-regexp":
            message = f"{entry.name} is not a regular expression; taken as sni = {entry.name} …"
            problems.warn(item.origin, item.key, message)
        if entry.name in seen:
            message = f"{entry.name} is given already ({seen[entry.name]}); the first one counts"
            problems.warn(item.origin, item.key, message)
            continue
        seen[entry.name] = item.origin
        names.append(entry)
    return tuple(names), tuple(patterns)


# --- Sessions and tickets --------------------------------------------------------------------


def _sessions(
    found: Found, caches: Mapping[str, CacheSettings], problems: Problems
) -> SessionSettings:
    fields: dict[str, Any] = found.fields("sessions")
    settings = SessionSettings(**fields)
    if settings.timeout > _LONGEST_TICKET:
        each = found.last("ssl-sessions-timeout")
        assert each is not None
        message = f"sessions of TLS 1.3 live for {_LONGEST_TICKET} seconds at most"
        problems.warn(each.item.origin, each.item.key, message)
    use = found.last("ssl-sessions-use-cache")
    name = "" if use is None or use.value is None else str(use.value)
    if use is not None and name and not tls_values.is_store(name):
        return replace(settings, cache=_cache(use, name, caches, found, problems))
    deadline = found.last("ssl-sessions-deadline")
    if deadline is not None and not name:
        message = "has no effect without ssl-sessions-use-cache = redis://…"
        problems.warn(deadline.item.origin, deadline.item.key, message)
    return replace(settings, url=name)


def _cache(
    use: Value,
    name: str,
    caches: Mapping[str, CacheSettings],
    found: Found,
    problems: Problems,
) -> str:
    """The name of the cache that sessions are kept in, "" if it will not do."""
    item = use.item
    if name == tls_values.DEFAULT_CACHE and name not in caches:
        name = next(iter(caches), "")
    cache = caches.get(name)
    if cache is None:
        if not found.refused.intersection(("cache", "cache2")):
            what = f'there is no cache "{name}"' if name else "there is no cache"
            given = ", ".join(caches)
            hint = f"given: {given}" if given else "add e.g. cache = 20000, cache-blocksize = 4096"
            problems.error(item.origin, item.key, f"{what}; {hint}")
        return ""
    if cache.blocksize < _MIN_BLOCK:
        message = (
            f'blocks of the cache "{name}" have {cache.blocksize} bytes;'
            f" sessions need {_MIN_BLOCK} at least"
        )
        problems.error(item.origin, item.key, message)
    if cache.keysize < _MIN_KEY:
        message = (
            f'keys of the cache "{name}" have {cache.keysize} bytes;'
            f" sessions need {_MIN_KEY} at least"
        )
        problems.error(item.origin, item.key, message)
    return name


def _tickets(
    found: Found, sessions: SessionSettings, options: int, problems: Problems
) -> TicketSettings:
    """With a store for sessions there are no tickets (uWSGI), unless they are asked for."""
    fields: dict[str, Any] = found.fields("tickets")
    keys = found.last("ssl-ticket-keys")
    if keys is not None:
        fields["source"] = str(keys.value)
        why = "" if tls_values.is_store(fields["source"]) else _missing(fields["source"])
        if why:
            problems.error(keys.item.origin, keys.item.key, f"{fields['source']}: {why}")
    fields.setdefault("enabled", keys is not None or not (sessions.cache or sessions.url))
    wanted = found.last("ssl-tickets")
    if options & _NO_TICKET:
        if wanted is not None and fields["enabled"]:
            message = f"has no effect beside ssl-option = {_NO_TICKET}, which switches tickets off"
            problems.warn(wanted.item.origin, wanted.item.key, message)
        fields["enabled"] = False
    settings = TicketSettings(**fields)
    _check_rotation(found, settings, problems)
    return settings


def _check_rotation(found: Found, settings: TicketSettings, problems: Problems) -> None:
    if not settings.enabled:
        for name in ("ssl-ticket-rotate", "ssl-ticket-keys"):
            each = found.last(name)
            if each is not None:
                problems.warn(each.item.origin, each.item.key, "has no effect: tickets are off")
        return
    each = found.last("ssl-ticket-rotate")
    if each is not None and settings.source and not tls_values.is_store(settings.source):
        message = "has no effect beside a file of keys: they change when the file does"
        problems.warn(each.item.origin, each.item.key, message)
