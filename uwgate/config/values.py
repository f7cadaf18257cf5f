"""Text -> value, for everything that is not an address.

Every function raises ``ValueError`` with one sentence that says what is wrong and what is expected.
Numbers are matched byte class by byte class before ``int`` sees them, because ``int`` also takes
``1_0``, ``+1`` and the digits of every script.
"""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
import re
from collections.abc import Callable

from uwgate.config.settings import HashBy, Network

_FALSE = ("false", "off", "no", "0")  # uWSGI; any case
_TRUE = ("true", "on", "yes", "1", "")
_DIGITS = re.compile(r"[0-9]{1,18}")
_SIGNED = re.compile(r"-[0-9]+")
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?")
_SIZE = re.compile(r"([0-9]{1,15})([kKmMgG]?)")
_OCTAL = re.compile(r"0?[0-7]{3}")
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2
_TOKEN = re.compile(_WORD)
_PSEUDONYM = re.compile(rf"{_WORD}(?::[0-9]{{1,5}})?")  # RFC 9110 section 7.6.3, received-by
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,254}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_TIME_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def is_false(text: str) -> bool:
    """Whether uWSGI takes this text as "off"."""
    return text.lower() in _FALSE


def boolean(text: str) -> bool:
    """A flag as uWSGI reads it: false, off, no and 0 in any case are off, all else is on."""
    return not is_false(text)


def odd_boolean(text: str) -> bool:
    """Whether a flag's value is neither of the words one would expect (it then means on)."""
    return text.lower() not in _TRUE and not is_false(text)


def _number(text: str, what: str) -> int:
    if _DIGITS.fullmatch(text):
        return int(text)
    if not text:
        raise ValueError(f"a value is missing; expected {what}")
    if _SIGNED.fullmatch(text):
        raise ValueError(f"{text!r} is negative; expected {what}")
    raise ValueError(f"{text!r} is not a number; expected {what}")


def _in_range(value: float, text: str, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        of = f" {unit}" if unit else ""
        raise ValueError(f"{text!r} is out of range; expected {low:.16g} to {high:.16g}{of}")


def integer(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """A converter for whole numbers from ``low`` to ``high``."""
    of = f" {unit}" if unit else ""

    def convert(text: str) -> int:
        value = _number(text, f"a whole number of{of}" if unit else "a whole number")
        _in_range(value, text, low, high, unit)
        return value

    return convert


def switch_or_number(text: str) -> int:
    """An ``I?`` value: a number; nothing, true, yes and on mean 1; false, no and off mean 0.

    (uWSGI reads the words with ``atoi``, so that ``true`` is 0 there.) A size suffix is accepted.
    """
    if text.lower() in _TRUE:
        return 1
    if is_false(text):
        return 0
    return size(0)(text)


def socket_number(text: str) -> int:
    """An index of a ``socket`` option; nothing, or a word that means on, is the first."""
    return 0 if text.lower() in ("", "true", "on", "yes") else integer(0, 1023)(text)


def seconds(low: float = 0.001, high: float = 31_536_000.0) -> Callable[[str], float]:
    """A converter for durations in seconds: ``60``, ``1.5``, ``500ms``, ``5m``, ``1h``."""

    def convert(text: str) -> float:
        match = _SECONDS.fullmatch(text)
        if match is None:
            what = "seconds, or a number with ms, s, m or h"
            _number(text, what)
            raise ValueError(f"{text!r} is out of range; expected {what}")
        value = float(match[1]) * _TIME_UNITS[match[2] or "s"]
        _in_range(value, text, low, high, "seconds")
        return value

    return convert


def size(low: int = 0, high: int = 1 << 50) -> Callable[[str], int]:
    """A converter for sizes in bytes: ``65536``, ``64k``, ``10m``, ``1g`` (powers of 1024)."""

    def convert(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            what = "bytes, or a number with k, m or g"
            _number(text, what)
            raise ValueError(f"{text!r} is out of range; expected {what}")
        value = int(match[1]) * _SIZE_UNITS[match[2].lower()]
        _in_range(value, text, low, high, "bytes")
        return value

    return convert


def choice(*words: str) -> Callable[[str], str]:
    """A converter that takes one of the given words."""

    def convert(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not known; expected one of {', '.join(words)}")
        return text

    return convert


def filename(text: str) -> str:
    """A path; it may not be empty."""
    if not text:
        raise ValueError("a file name is missing")
    return for_system(text)


def for_system(text: str) -> str:
    """Text that the system takes: no NUL, no lone surrogates (JSON may hold either)."""
    try:
        if b"\0" not in os.fsencode(text):
            return text
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{text!r} has characters in it that the system does not take")


def mode(text: str) -> int:
    """Permission bits in octal; nothing at all means 666, as in uWSGI."""
    if not text:
        return 0o666
    if not _OCTAL.fullmatch(text):
        raise ValueError(f"{text!r} is not a mode; expected three octal digits such as 660")
    return int(text, 8)


def creation_mask(text: str) -> int:
    """A umask in octal."""
    if not _OCTAL.fullmatch(text):
        raise ValueError(f"{text!r} is not a umask; expected three octal digits such as 022")
    return int(text, 8)


def _identity(text: str, what: str, look_up: Callable[[str], int]) -> int:
    if _DIGITS.fullmatch(text):
        value = int(text)
        _in_range(value, text, 0, (1 << 32) - 2, f"{what} numbers")
        return value
    try:
        return look_up(text)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"there is no {what} named {text!r} on this machine") from None


def user(text: str) -> int:
    """A user name or number -> uid."""
    return _identity(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group(text: str) -> int:
    """A group name or number -> gid."""
    return _identity(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def network(text: str) -> Network | None:
    """A CIDR block or an address -> network; the word ``unix`` -> None."""
    if text == "unix":
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a network; expected e.g. 10.0.0.0/8, ::1/128, 127.0.0.1 or unix"
        ) from None
    raise ValueError(f"{text!r} has bits set right of its prefix; did you mean {loose}?")


def address_literal(text: str) -> str:
    """An IPv4 or IPv6 address without port -> its usual spelling."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address; expected e.g. 10.0.0.7") from None


def variable(text: str) -> tuple[bytes, bytes]:
    """``KEY=VALUE`` -> bytes for a uwsgi packet (keys and values there are 16-bit counted)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} has no '='; expected KEY=VALUE")
    if not _VARIABLE.fullmatch(key):
        raise ValueError(f"{key!r} is not a variable name; expected letters, digits and _")
    if _CONTROL.search(value):
        raise ValueError(f"the value of {key} has control characters in it")
    raw = value.encode("utf-8", "surrogateescape")
    if len(raw) > 65000:
        raise ValueError(f"the value of {key} is longer than 65000 bytes")
    return key.encode("ascii"), raw


def pseudonym(text: str) -> str:
    """The name in ``Via``: a token, optionally with a port; nothing or "off" means no ``Via``."""
    if not text or is_false(text):
        return ""
    if not _PSEUDONYM.fullmatch(text):
        raise ValueError(f"{text!r} cannot stand in a Via field; expected a word such as gw1")
    return text


def hash_by(text: str) -> HashBy:
    """``path``, ``uri``, ``client``, ``header:NAME`` or ``cookie:NAME``; names are tokens."""
    kind, _, name = text.partition(":")
    plain = {"path": HashBy("path"), "uri": HashBy("uri"), "client": HashBy("client")}
    if text in plain:
        return plain[text]
    if kind not in ("header", "cookie"):
        raise ValueError(
            f"{text!r} is not known; expected path, uri, header:NAME, cookie:NAME or client"
        )
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a name; expected {kind}:NAME, as in {kind}:x-user")
    return HashBy("header", name.lower()) if kind == "header" else HashBy("cookie", name)


def cookie_name(text: str) -> str:
    """The name of a cookie (a token, RFC 6265 section 4.1.1)."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is not a cookie name; expected letters, digits and -_.")
    return text


def process_name(text: str) -> str:
    """A part of the process title: printable, not empty."""
    if not text or not text.isprintable():
        raise ValueError(f"{text!r} cannot be shown as a process name; expected printable text")
    return text


def log_format(text: str) -> str:
    """``default``, ``json`` or a template of uWSGI's ``log-format``."""
    if not text:
        raise ValueError("a format is missing; expected default, json or a template")
    if _CONTROL.search(text):
        raise ValueError("a log format may not hold control characters")
    return text
