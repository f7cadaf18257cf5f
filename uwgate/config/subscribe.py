"""``subscribe-to`` and ``subscribe2``: what this instance announces, to whom.

::

    subscribe-to = [ADDRESS=]SERVER:KEY[,MODIFIER1[,DIGEST:PRIVATE_KEY_FILE]]
    subscribe-to = [=N=]SERVER:KEY…        N: number of a shared-socket
    subscribe-to = [ADDRESS=]SERVER:@FILE  a key a line, read at every announcement
    subscribe2   = server=SERVER,key=KEY[,name=value…]   a comma in a value is written \\,

SERVER is ``HOST:PORT``, ``[IPV6]:PORT`` (UDP) or the path of a unix datagram socket. The syntax is
uWSGI's (core/subscription.c); what uWSGI passes over in silence is an error here, and host names
and IPv6 are understood.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

from uwgate.config import addresses, values
from uwgate.config.settings import Algo, Endpoint, SubscribeSettings

MAX_TEXT = 255
"""Bytes of a key, an address or a path in an announcement."""
MAX_NOTIFY = 101
"""Bytes of the path of a notify socket; servers pass longer ones over (uWSGI)."""
MAX_WEIGHT = 1_000_000

_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9\-]{1,31}")
_ANY_HOST = re.compile(r"(?:\*|\[\*\]):([0-9]{1,5})")
_SHARED = re.compile(r"=([0-9]{1,4})=(.*)", re.DOTALL)
# Not "(.*):": a path holds no colon here, a host outside brackets neither.
_SERVER = re.compile(
    r"((?:/|\./|\.\./)[^:]*|\[[^\[\]]*\]:[^:]*|[^:\[]*:[^:]*)(?::(.*))?", re.DOTALL
)
_UNESCAPED_COMMA = re.compile(r"(?<!\\),")


@dataclass(frozen=True, slots=True)
class Subscription:
    """One option's value. ``socket``: number of a ``socket`` option whose address is announced;
    ``shared``: number of a ``shared-socket``."""

    settings: SubscribeSettings
    socket: int | None = None
    shared: int | None = None


def server(text: str) -> Endpoint:
    """The address of a subscription server: ``tcp`` (meaning UDP) or ``unix``."""
    found = addresses.connecting(text)
    if found.kind == "abstract":
        raise ValueError(f"{text!r} is no datagram address; expected HOST:PORT or a socket path")
    return found


def key(text: str) -> str:
    """A routing key: 1 to 255 visible ASCII characters."""
    if not text:
        raise ValueError("the key is missing; expected SERVER:KEY, as in 10.0.0.1:4040:k.example")
    if not _PRINTABLE.fullmatch(text):
        raise ValueError(f"the key {text!r} may only have visible ASCII characters")
    if len(text) > MAX_TEXT:
        raise ValueError(f"the key has {len(text)} characters; at most {MAX_TEXT} are possible")
    return text


def address(text: str) -> str:
    """An address to announce -> as it is sent.

    ``:PORT`` is sent as it is (uWSGI), and means the router's own machine to the router;
    ``*:PORT`` and ``[*]:PORT`` mean the address that this machine has on the way to the server.
    """
    any_host = _ANY_HOST.fullmatch(text)
    if any_host is not None:
        if not 1 <= int(any_host[1]) <= 65535:
            raise ValueError(f"{any_host[1]!r} is not a port; expected 1 to 65535")
        return text
    found = addresses.connecting(text).text
    if not _PRINTABLE.fullmatch(found):
        raise ValueError(f"the address {text!r} may only have visible ASCII characters")
    if len(found) > MAX_TEXT:
        raise ValueError(f"the address has {len(found)} characters; {MAX_TEXT} are possible")
    return found


def modifier(text: str) -> int:
    """A modifier of the uwsgi protocol."""
    return values.integer(0, 255)(text)


def weight(text: str) -> int:
    """A weight; 0 stands for 1."""
    return values.integer(0, MAX_WEIGHT)(text)


def sign(text: str) -> tuple[str, str]:
    """``DIGEST:FILE`` -> both; the file (a private key) has to be readable."""
    digest, colon, path = text.partition(":")
    if not colon or not path or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{text!r} is not complete; expected DIGEST:PRIVATE_KEY_FILE")
    path = os.path.abspath(path)
    try:
        with open(path, "rb"):
            return digest, path
    except OSError as error:
        raise ValueError(f"private key {path}: {error.strerror}") from None


def notify_path(text: str) -> str:
    """The path of a unix datagram socket that acknowledgements go to."""
    values.filename(text)
    if _CONTROL.search(text):
        raise ValueError(f"{text!r} has control characters in it")
    length = len(os.fsencode(text))
    if length > MAX_NOTIFY:
        raise ValueError(f"the path has {length} bytes; servers take {MAX_NOTIFY} at most")
    return text


def path_text(text: str) -> str:
    """A path that the router (perhaps on another machine) will open: only its form is checked."""
    values.filename(text)
    length = len(text.encode("utf-8", "surrogateescape"))
    if _CONTROL.search(text) or length > MAX_TEXT:
        raise ValueError(f"{text!r} is not a path of at most {MAX_TEXT} bytes")
    return text


# --- subscribe-to ----------------------------------------------------------------------------


def subscribe_to(text: str) -> Subscription:
    """The value of ``subscribe-to``."""
    shared, announced, rest = _announced(text)
    match = _SERVER.fullmatch(rest)
    if match is None:
        raise ValueError(f"{rest!r} names no server; expected HOST:PORT:KEY or /PATH:KEY")
    found = SubscribeSettings(server(match[1]), address=announced)
    words = match[2] or ""
    if words.startswith("@"):
        found = replace(found, key_file=_key_file(words[1:]))
    else:
        found = replace(found, **_key_words(words))
    return Subscription(found, shared=shared)


def _announced(text: str) -> tuple[int | None, str, str]:
    """``[ADDRESS=]REST`` or ``=N=REST`` -> (N, ADDRESS, REST)."""
    if text.startswith("="):
        match = _SHARED.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not complete; expected =N=SERVER:KEY with a number N")
        return int(match[1]), "", match[2]
    before, equals, rest = text.partition("=")
    if not equals:
        return None, "", text
    try:
        return None, address(before), rest
    except ValueError as error:
        raise ValueError(f"before the first '=' stands the announced address: {error}") from None


def _key_file(text: str) -> str:
    if not text:
        raise ValueError("the file name is missing after '@'")
    return os.path.abspath(text)


def _key_words(text: str) -> dict[str, Any]:
    name, *rest = text.split(",", 2)
    found: dict[str, Any] = {"key": key(name)}
    if rest and not rest[0]:
        what = "write 0 before the signature" if len(rest) > 1 else "expected KEY,MODIFIER1"
        raise ValueError(f"the modifier is missing after {name!r}; {what}")
    if rest:
        found["modifier1"] = modifier(rest[0])
    if len(rest) > 1:
        found["sign_digest"], found["sign_key"] = sign(rest[1])
    return found


# --- subscribe2 ------------------------------------------------------------------------------

_FIELDS: dict[str, tuple[str, Callable[[str], object]]] = {
    "server": ("server", server),
    "key": ("key", key),
    "addr": ("address", address),
    "address": ("address", address),
    "socket": ("socket", values.integer(0, 1023)),
    "weight": ("weight", weight),
    "modifier1": ("modifier1", modifier),
    "modifier2": ("modifier2", modifier),
    "backup": ("backup", values.integer(0, 1000)),
    "algo": ("algo", values.choice(*get_args(Algo))),
    "proto": ("protocol", values.choice("uwsgi", "http")),
    "sign": ("sign", sign),
    "check": ("check", lambda text: os.path.abspath(values.filename(text))),
    "sni_key": ("sni_key", path_text),
    "sni_crt": ("sni_crt", path_text),
    "sni_ca": ("sni_ca", path_text),
    "vassal": ("vassal", path_text),
    "inactive": ("", str),
}
"""Name in ``subscribe2`` -> field, converter. ``inactive`` has no effect in any uWSGI."""


def subscribe2(text: str) -> Subscription:
    """The value of ``subscribe2``."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for word in _UNESCAPED_COMMA.split(text):
        name, equals, value = word.replace("\\,", ",").partition("=")
        field, convert = _field(name, equals, word)
        if name in seen or (field and field in found):
            raise ValueError(f"{name} is given twice")
        seen.add(name)
        try:
            converted = convert(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if field:
            found[field] = converted
    for name in ("server", "key"):
        if name not in found:
            raise ValueError(f"{name}= is missing; expected server=SERVER,key=KEY")
    found["sign_digest"], found["sign_key"] = found.pop("sign", ("", ""))
    if bool(found.get("sni_key")) != bool(found.get("sni_crt")):
        raise ValueError("sni_key and sni_crt belong together; one of them is missing")
    socket = found.pop("socket", None)
    return Subscription(SubscribeSettings(**found, clearable=True), socket=socket)


def _field(name: str, equals: str, word: str) -> tuple[str, Callable[[str], object]]:
    if not equals:
        raise ValueError(f"{word!r} has no '='; expected name=value")
    if name not in _FIELDS:
        near = difflib.get_close_matches(name, _FIELDS, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(_FIELDS)}"
        raise ValueError(f"{name!r} is not known{hint}")
    return _FIELDS[name]
