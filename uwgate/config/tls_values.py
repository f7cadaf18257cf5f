"""Text -> value, for the options of TLS.

::

    https         = ADDRESS,CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]
    https2        = addr=ADDRESS,cert=CERT,key=KEY[,ciphers=…][,clientca=[!]CA][,spdy=1]
    http-to-https = ADDRESS[,PORT]
    sni           = NAME CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]
    sni-regexp    = REGEXP CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]

The syntax is uWSGI's (plugins/http/https.c, core/ssl.c). ``https`` and ``sni`` are cut at commas
without any quoting; in ``https2`` a backslash takes the meaning from the character behind it. File
names become absolute, except for PEM texts, which begin with ``-----BEGIN ``.

Every function raises ``ValueError`` with one sentence that says what is wrong and what is expected.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from uwgate.config import addresses, values
from uwgate.config.masking import PEM
from uwgate.config.settings import Endpoint
from uwgate.config.settings_tls import PairSettings, SniSettings

DEFAULT_CACHE = "true"
"""Value of ``ssl-sessions-use-cache`` that means the first cache (uWSGI)."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_\-]{0,61}[a-z0-9_])?"
_SERVER_NAME = re.compile(rf"(?=.{{1,255}}\Z)(?:\*?\.)?(?:{_LABEL}\.)*{_LABEL}")
_ESCAPED_WORDS = re.compile(r"(?:\\.|[^,\\]|\\\Z)+", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SECONDS = re.compile(r"[0-9]{1,12}")
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105  (RFC 9110 section 5.6.2)
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*"'
_DIRECTIVE = re.compile(rf"[ \t]*(?:({_TOKEN})[ \t]*(?:=[ \t]*({_TOKEN}|{_QUOTED}))?)?[ \t]*")
_SCHEMES = {
    "redis": "redis", "rediss": "rediss", "unix": "unix",
    "valkey": "redis", "valkeys": "rediss",
}  # fmt: skip
_DATABASE = re.compile(r"/?|/[0-9]{1,5}")
_HTTPS2 = {
    "addr": "addr", "cert": "cert", "crt": "cert", "key": "key", "ciphers": "ciphers",
    "clientca": "clientca", "client_ca": "clientca", "spdy": "spdy",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Https:
    """One ``https`` or ``https2``. ``notes``: what was passed over, for warnings."""

    endpoint: Endpoint
    pair: PairSettings
    spdy: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToHttps:
    """One ``http-to-https``; ``port``: 0 = none is named."""

    endpoint: Endpoint
    port: int = 0


def key_values(text: str) -> list[tuple[str, str | None]]:
    """``name=value,…`` -> pairs; the value of a word without ``=`` is None.

    A backslash takes the special meaning from the character behind it (uWSGI's lists).
    """
    found: list[tuple[str, str | None]] = []
    for word in _ESCAPED_WORDS.findall(text):
        name, equals, value = word.partition("=")
        if word.strip():
            found.append((name.strip(), _ESCAPE.sub(r"\1", value) if equals else None))
    return found


def unknown(name: str, known: Collection[str], listed: Iterable[str] = ()) -> str:
    """A note about a name that means nothing: the one that may be meant, or those that there are
    (``listed`` without the aliases)."""
    near = difflib.get_close_matches(name, known, 1, 0.6)
    hint = f"; did you mean {near[0]}?" if near else f"; expected {', '.join(listed or known)}"
    return f"{name!r} is not known{hint}"


# --- Certificates and listeners --------------------------------------------------------------


def _path(text: str) -> str:
    return text if text.startswith(PEM) else os.path.abspath(text)


def _pair(cert: str, key: str, ciphers: str, authority: str) -> PairSettings:
    for what, text in (("certificate", cert), ("key", key)):
        if not text:
            raise ValueError(f"the file name of the {what} is missing")
    required = authority.startswith("!")
    authority = authority.removeprefix("!")
    if required and not authority:
        raise ValueError("the file name of the client CA is missing after '!'")
    ca = _path(authority) if authority else ""
    return PairSettings(_path(cert), _path(key), ciphers, ca, required)


def https(text: str) -> Https:
    """The value of ``https``; what is behind the fourth comma is the client CA."""
    words = text.split(",", 4)
    if len(words) < 3:
        form = "ADDRESS,CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]"
        raise ValueError(f"{text!r} is not complete; expected {form}")
    address, cert, key, ciphers, authority = (*words, "", "")[:5]
    return Https(addresses.listening(address), _pair(cert, key, ciphers, authority))


def https2(text: str) -> Https:
    """The value of ``https2``. uWSGI passes over names that it does not know: they are notes."""
    found = dict.fromkeys(_HTTPS2.values(), "")
    notes = []
    for name, value in key_values(text):
        if name not in _HTTPS2:
            notes.append(unknown(name, _HTTPS2))
        elif value is None:
            notes.append(f"{name!r} has no value and is passed over")
        else:
            if found[_HTTPS2[name]]:
                notes.append(f"{name!r} is given twice; the last one counts")
            found[_HTTPS2[name]] = value
    missing = [f"{name}=" for name in ("addr", "cert", "key") if not found[name]]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; expected addr=ADDRESS,cert=FILE,key=FILE")
    spdy = bool(found["spdy"]) and not values.is_false(found["spdy"])
    pair = _pair(found["cert"], found["key"], found["ciphers"], found["clientca"])
    return Https(addresses.listening(found["addr"]), pair, spdy, tuple(notes))


def to_https(text: str) -> ToHttps:
    """The value of ``http-to-https``."""
    address, comma, port = text.partition(",")
    return ToHttps(
        addresses.listening(address), values.integer(1, 65535)(port.strip()) if comma else 0
    )


def session_context(text: str) -> str:
    """The name that listeners with common sessions share."""
    if not text or not text.isprintable():
        raise ValueError(f"{text!r} is no name; expected printable text")
    return text


def verify_depth(text: str) -> int:
    """The length of a chain of certificates; nothing at all is 1 (uWSGI)."""
    return 1 if not text else values.integer(0, 100)(text)


# --- Server names ----------------------------------------------------------------------------


def _named_pair(text: str, what: str) -> tuple[str, PairSettings]:
    name, _, rest = text.strip().partition(" ")
    words = rest.strip().split(",", 3)
    if len(words) < 2:
        form = f"{what} CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]"
        raise ValueError(f"{text!r} is not complete; expected {form}")
    cert, key, ciphers, authority = (*words, "", "")[:4]
    return name, _pair(cert, key, ciphers, authority)


def _server_name(text: str) -> str:
    """In lower case, without a dot at the end; other scripts in their ASCII form."""
    name = text
    if not text.isascii():
        try:
            name = text.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError(f"{text!r} is not a server name") from None
    name = name.lower().removesuffix(".")
    if not _SERVER_NAME.fullmatch(name):
        expected = "www.example.com, *.example.com or .example.com"
        raise ValueError(f"{text!r} is not a server name; expected {expected}")
    return name


def sni(text: str) -> SniSettings:
    """The value of ``sni``; NAME may begin with ``*.`` (one label more) or ``.`` (any number)."""
    name, pair = _named_pair(text, "NAME")
    return SniSettings(_server_name(name), pair)


def sni_regexp(text: str) -> SniSettings:
    """The value of ``sni-regexp``.

    ``*.example.com``, which is no regular expression, is in uWSGI's documentation: it is taken as
    the wildcard that it looks like (see ``is_wildcard``).
    """
    pattern, pair = _named_pair(text, "REGEXP")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        if is_wildcard(pattern):
            return SniSettings(_server_name(pattern), pair)
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return SniSettings(pattern, pair)


def is_wildcard(text: str) -> bool:
    """Whether the name of a ``sni-regexp`` is a wildcard: no expression begins so."""
    return text.startswith("*.")


# --- Strict-Transport-Security ---------------------------------------------------------------


def hsts(text: str) -> str:
    """The value of Strict-Transport-Security (RFC 6797 section 6.1), or its ``max-age`` alone.

    A word that means off -> "".
    """
    if _SECONDS.fullmatch(text):
        return f"max-age={text}"
    if values.is_false(text):
        return ""
    seen: dict[str, str] = {}
    position = 0
    while True:
        match = _DIRECTIVE.match(text, position)
        assert match is not None
        name = (match[1] or "").lower()
        if name in seen:
            raise ValueError(f"{match[1]} is given twice")
        if name:
            seen[name] = match[2] or ""
        position = match.end() + 1
        if text[match.end() :] == "":
            break
        if text[match.end()] != ";":
            raise ValueError(f"{text!r} is not such a value; expected max-age=SECONDS[; …]")
    if not _SECONDS.fullmatch(seen.get("max-age", "").strip('"')):
        raise ValueError(f"{text!r} has no max-age; expected e.g. max-age=31536000")
    if seen.get("includesubdomains"):
        raise ValueError("includeSubDomains has no value")
    return text.strip()


# --- Sessions and tickets --------------------------------------------------------------------


def is_store(text: str) -> bool:
    """Whether a value is the address of the distributed store."""
    return "://" in text


def _store(text: str) -> str:
    """``redis://``, ``rediss://`` (TLS) or ``unix://``; ``valkey`` is another name of the first.

    What it holds is never in a message: it may be a password.
    """
    scheme, _, rest = text.partition("://")
    known = _SCHEMES.get(scheme.lower())
    form = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], rediss://… or unix:///PATH"
    if known is None:
        raise ValueError(f"{scheme}:// is not a store for sessions; expected {form}")
    wrong = ValueError(f"the address of the store is not complete; expected {form}")
    try:
        parts = urlsplit(f"{known}://{rest}")
        port = parts.port
    except ValueError:
        raise wrong from None
    if re.search(r"\s|[\x00-\x1f\x7f]", rest):
        raise wrong
    if known == "unix":
        if len(parts.path) < 2:
            raise wrong
    elif not parts.hostname or port == 0 or not _DATABASE.fullmatch(parts.path):
        raise wrong
    return f"{known}://{rest}"


def sessions(text: str) -> str | None:
    """``ssl-sessions-use-cache``: the name of a cache, ``DEFAULT_CACHE``, an address of the
    distributed store, or None where a word says off."""
    if is_store(text):
        return _store(text)
    if values.is_false(text):
        return None
    return DEFAULT_CACHE if text.lower() in ("", "true", "on", "yes", "1") else text


def ticket_keys(text: str) -> str:
    """A file of ticket keys, or the address of the distributed store."""
    return _store(text) if is_store(text) else os.path.abspath(values.filename(text))
