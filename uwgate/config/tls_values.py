"""Values of TLS options: listeners with certificates, names, caches, HSTS."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uwgate.config import addresses, values
from uwgate.config.settings import Endpoint
from uwgate.config.settings_tls import PairSettings, SniSettings

_PEM = "-----BEGIN "
_NAME = re.compile(r"(?:\*\.|\.)?(?:[a-z0-9_][a-z0-9_-]*\.)*[a-z0-9_][a-z0-9_-]*")
_HSTS = re.compile(r"max-age=[0-9]+(?:;[ \t]*includeSubDomains)?(?:;[ \t]*preload)?", re.IGNORECASE)
_DATAGRAM = re.compile(r"(?:\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})")
_STORES = ("redis://", "rediss://", "unix://")
_HTTPS2 = {
    "addr": "addr", "cert": "cert", "crt": "cert", "key": "key", "ciphers": "ciphers",
    "clientca": "client_ca", "client_ca": "client_ca", "spdy": "spdy",
}  # fmt: skip
_CACHE2 = {
    "name": "name", "max_items": "items", "maxitems": "items", "items": "items",
    "blocks": "blocks", "blocksize": "blocksize", "keysize": "keysize", "key_size": "keysize",
    "hash": "hash", "hashsize": "hashsize", "hash_size": "hashsize",
    "udp": "udp", "udp_server": "udp", "udp_servers": "udp", "udpserver": "udp",
    "udpservers": "udp", "node": "nodes", "nodes": "nodes", "secret": "secret",
}  # fmt: skip
_CACHE2_IDLE = frozenset(
    ["store", "store_sync", "storesync", "store_delete", "bitmap", "lastmod", "math_initial", "ignore_full", "purge_lru", "lru", "sweep_on_full", "clear_on_full", "no_expire", "lazy_expire", "lazy", "sync"]
)
_MIN_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Https:
    """One ``https`` or ``https2``; ``unknown``: names of it that mean nothing."""

    endpoint: Endpoint
    pair: PairSettings
    spdy: bool = False
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToHttps:
    """One ``http-to-https``."""

    endpoint: Endpoint
    port: int


@dataclass(frozen=True, slots=True)
class Cache2:
    """One ``cache2``: fields of CacheSettings; ``idle``: names of it without effect here."""

    fields: dict[str, Any]
    idle: tuple[str, ...]


def secret_free(text: str) -> str:
    """``text`` without what nobody should see: keys inside of it, passwords of addresses."""
    if _PEM in text:
        return "(PEM text)"
    text = re.sub(r"(?<=://)[^@/\s]*@", "***@", text)
    return re.sub(r"(?<![A-Za-z_])(secret=)(?:\\.|[^,])*", r"\1***", text)


def path(text: str) -> str:
    """A file name, made absolute; PEM text stays as it is."""
    return text if text.startswith(_PEM) else os.path.abspath(text)


def _pair(cert: str, key: str, ciphers: str, authority: str) -> PairSettings:
    required = authority.startswith("!")
    authority = authority.removeprefix("!")
    if required and not authority:
        raise ValueError("the client CA behind '!' is missing; expected !FILE")
    return PairSettings(path(cert), path(key), ciphers, authority and path(authority), required)


def https(text: str) -> Https:
    """``ADDRESS,CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]``, at the commas (uWSGI: no quoting)."""
    words = text.split(",", 4)
    if len(words) < 3 or not all(words[:3]):
        raise ValueError(
            f"{secret_free(text)!r} is not complete; expected ADDRESS,CERT,KEY[,CIPHERS[,CLIENT_CA]]"
        )
    ciphers, authority = (*words[3:], "", "")[:2]
    return Https(addresses.listening(words[0]), _pair(words[1], words[2], ciphers, authority))


def key_values(text: str) -> list[tuple[str, str]]:
    """``name=value,…``; a backslash takes the special meaning from the character behind it."""
    found = []
    for word in re.findall(r"(?:\\.|[^,\\]|\\$)+", text, re.DOTALL):
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{secret_free(word)!r} has no value; expected NAME=VALUE")
        found.append((name.strip(), re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)))
    return found


def https2(text: str) -> Https:
    """``addr=…,cert=…,key=…[,ciphers=…][,clientca=[!]…][,spdy=1]``."""
    found = {"addr": "", "cert": "", "key": "", "ciphers": "", "client_ca": ""}
    unknown = []
    for name, value in key_values(text):
        field = _HTTPS2.get(name)
        if field is None:
            near = difflib.get_close_matches(name, _HTTPS2, 1)
            unknown.append(f"{name} (did you mean {near[0]}?)" if near else name)
        else:
            found[field] = value
    missing = [name for name in ("addr", "cert", "key") if not found[name]]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; expected addr=…,cert=…,key=…")
    pair = _pair(found["cert"], found["key"], found["ciphers"], found["client_ca"])
    endpoint = addresses.listening(found["addr"])
    return Https(endpoint, pair, "spdy" in found, tuple(unknown))


def to_https(text: str) -> ToHttps:
    """``ADDRESS[,PORT]``."""
    address, comma, port = text.partition(",")
    number = values.integer(1, 65535)(port) if comma else 0
    return ToHttps(addresses.listening(address), number)


def _sni_pair(text: str) -> tuple[str, PairSettings]:
    name, _, rest = text.strip().partition(" ")
    words = rest.strip().split(",", 3)
    if not name or len(words) < 2 or not all(words[:2]):
        raise ValueError(
            f"{secret_free(text)!r} is not complete; expected NAME CERT,KEY[,CIPHERS[,CLIENT_CA]]"
        )
    ciphers, authority = (*words[2:], "", "")[:2]
    return name, _pair(words[0], words[1], ciphers, authority)


def sni(text: str) -> SniSettings:
    """``NAME CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]``; NAME may be ``*.x`` or ``.x``."""
    name, pair = _sni_pair(text)
    name = name.lower().rstrip(".")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a server name; expected www.example.com or *.example.com")
    return SniSettings(name, pair)


def sni_regexp(text: str) -> SniSettings:
    """``REGEXP CERT,KEY…``. ``*.x``, which is none, is taken as the wildcard that it looks like."""
    name, pair = _sni_pair(text)
    try:
        re.compile(name)
    except re.error as error:
        if _NAME.fullmatch(name.lower()):
            return SniSettings(name.lower(), pair)
        raise ValueError(f"{name!r} is not a regular expression: {error}") from None
    return SniSettings(name, pair)


def is_wildcard(settings: SniSettings) -> bool:
    """Whether a ``sni-regexp`` was a wildcard."""
    return settings.name.startswith("*.")


def hsts(text: str) -> str:
    """Strict-Transport-Security (RFC 6797 §6.1), or seconds alone; false: none."""
    if values.is_false(text) and text != "0":
        return ""
    if text.isdecimal():
        return f"max-age={text}"
    if not _HSTS.fullmatch(text):
        raise ValueError(f"{text!r} is not max-age=SECONDS[; includeSubDomains][; preload]")
    return text


def datagram(text: str) -> str:
    """``HOST:PORT`` for datagrams; an empty host means all addresses."""
    match = _DATAGRAM.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"{text!r} is not an address for datagrams; expected HOST:PORT")
    return text


def store(text: str) -> str:
    """Name of a cache (``true``: the first), or ``redis://…``."""
    return "true" if not text or text.lower() in ("true", "1", "yes", "on") else text


def is_store(text: str) -> bool:
    """Whether a value names the distributed store."""
    return text.startswith(_STORES)


def keys(text: str) -> str:
    """File of ticket keys, or ``redis://…``."""
    return text if is_store(text) else os.path.abspath(values.filename(text))


def _datagrams(text: str) -> tuple[str, ...]:
    return tuple(datagram(each.strip()) for each in text.split(";") if each.strip())


def _word(text: str) -> str:
    return text


_CACHE_VALUES: dict[str, Callable[[str], object]] = {
    "items": values.integer(1, 1 << 26),
    "blocks": values.integer(1, 1 << 26),
    "blocksize": values.integer(_MIN_BLOCK, 1 << 24),
    "keysize": values.integer(1, 65535),
    "hashsize": values.integer(1, 1 << 30),
    "hash": values.choice("djb33x", "murmur2"),
    "udp": _datagrams,
    "nodes": _datagrams,
    "name": _word,
    "secret": _word,
}


def cache2(text: str) -> Cache2:
    """``name=…,items=…[,blocksize=…][,udp=ADDRESS;…][,node=ADDRESS;…][,secret=…]``."""
    fields: dict[str, Any] = {}
    idle = []
    for name, value in key_values(text):
        field = _CACHE2.get(name)
        if field is not None:
            fields[field] = _CACHE_VALUES[field](value)
        elif name in _CACHE2_IDLE:
            idle.append(name)
        else:
            near = difflib.get_close_matches(name, _CACHE2, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name!r} is no part of a cache{hint}")
    if "items" not in fields:
        raise ValueError("items missing; expected name=…,items=NUMBER")
    return Cache2(fields, tuple(idle))
