"""Text -> ``Endpoint``: the address forms of uWSGI, read strictly.

Listening forms: ``=N``, ``fd://N``, ``[v6]:port``, ``:port``, ``host:port``, ``prefix*:port``,
``@abstract``, path. Connecting forms: ``host:port``, ``[v6]:port``, ``:port`` (this machine),
``@abstract``, path. Whatever begins with ``/``, ``./`` or ``../`` is a path; other text with a
colon is TCP. A word without a colon is a path in the current directory, except a bare number or a
bare IP address, which nobody means that way. (uWSGI core/socket.c; uWSGI 2.0 itself takes neither
names nor IPv6 on the connecting side.)
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import re
import socket
import struct

from uwgate.config import values
from uwgate.config.settings import Endpoint, NodeSettings

_NUMBER = re.compile(r"[0-9]{1,5}")
_BRACKETED = re.compile(r"\[([^\[\]]*)\]:([^:]*)")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}\.?")
_DOTTED = re.compile(r"[0-9.]+")
_PREFIX = re.compile(r"[0-9.]*\*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATH_LIMIT = 107  # sun_path holds 108 bytes, one of them the closing NUL
_SIOCGIFADDR = 0x8915  # linux/sockios.h


def _port(text: str, whole: str, low: int) -> int:
    if not text:
        raise ValueError(f"{whole!r} has no port after the colon; expected HOST:PORT")
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port; expected {low} to 65535")
    return int(text)


def _host(text: str, whole: str) -> str:
    """A literal or name; what looks like an IPv4 address has to be one."""
    if _DOTTED.fullmatch(text):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv4 address") from None
    if ":" in text:
        raise ValueError(f"{whole!r}: an IPv6 address needs brackets, as in [::1]:8080")
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a host name; expected HOST:PORT")
    return text


def _v6(text: str) -> str:
    address, percent, zone = text.partition("%")
    try:
        literal = str(ipaddress.IPv6Address(address))
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 address") from None
    return literal + percent + zone


def local_addresses() -> list[str]:
    """The first IPv4 address of every interface, in the kernel's order."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # the interface has no IPv4 address
                continue
            found.append(socket.inet_ntoa(request.tobytes()[20:24]))
    return found


def _detect(pattern: str) -> str:
    """``192.168.*`` -> the first local IPv4 address that begins so (uWSGI)."""
    prefix = pattern[:-1]
    for address in local_addresses():
        if address.startswith(prefix):
            return address
    raise ValueError(f"no network interface has an IPv4 address that begins with {prefix!r}")


def _unix(text: str, name: str) -> Endpoint:
    length = len(name.encode("utf-8", "surrogateescape"))
    if length > _PATH_LIMIT:
        raise ValueError(f"the socket path has {length} bytes; at most {_PATH_LIMIT} are possible")
    return Endpoint("unix", text, path=name)


def _abstract(name: str) -> Endpoint:
    length = len(name.encode("utf-8", "surrogateescape"))
    if not length:
        raise ValueError("the name of the abstract socket is missing after '@'")
    if length > _PATH_LIMIT - 1:  # NUL + name + NUL (uWSGI binds it with the trailing NUL)
        raise ValueError(f"the socket name has {length} bytes; {_PATH_LIMIT - 1} are possible")
    return Endpoint("abstract", "@" + name, path=name)


# LISTEN_FDNAMES of systemd; one of digits only is a number.
_SOCKET_NAME = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9._-]{1,255}")


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../"))


def _local(text: str) -> Endpoint | None:
    """The forms without a network: abstract names and paths."""
    if text.startswith("@"):
        return _abstract(text[1:])
    if text.startswith("\\0"):  # written out: backslash, zero
        return _abstract(text[2:])
    if _is_path(text):
        return _unix(text, text)
    if ":" in text:
        return None
    if _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not an address (uWSGI makes a unix socket); write :{text}")
    if _DOTTED.fullmatch(text) or _PREFIX.fullmatch(text):
        raise ValueError(f"{text!r} has no port; write {text}:PORT")
    return _unix(text, text)


def _check(text: str) -> None:
    if not text:
        raise ValueError("an address is missing; expected HOST:PORT, :PORT, @NAME or a path")
    if _CONTROL.search(text):
        raise ValueError(f"{text!r} has control characters in it")
    values.for_system(text)


def _tcp(text: str, low: int) -> Endpoint:
    if text.startswith("["):
        match = _BRACKETED.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not an address; expected [IPV6]:PORT")
        return Endpoint("tcp", text, host=_v6(match[1]), port=_port(match[2], text, low))
    host, _, port = text.rpartition(":")
    number = _port(port, text, low)
    if not host:
        return Endpoint("tcp", text, host="", port=number)
    if _PREFIX.fullmatch(host):
        host = _detect(host)
        return Endpoint("tcp", f"{host}:{number}", host=host, port=number)
    return Endpoint("tcp", text, host=_host(host, text), port=number)


def listening(text: str) -> Endpoint:
    """An address of a gateway's listening socket; port 0 lets the kernel choose."""
    _check(text)
    for start, kind in (("=", "shared"), ("fd://", "fd")):
        if text.startswith(start):
            number = text[len(start) :]
            if kind == "fd" and _SOCKET_NAME.fullmatch(number):
                return Endpoint("fd", text, path=number, number=-1)
            if not _NUMBER.fullmatch(number):
                what = "fd://N or fd://NAME" if kind == "fd" else "=N with a number N"
                raise ValueError(f"{text!r} is not complete; expected {what}")
            value = int(number)
            if kind == "fd":
                return Endpoint("fd", text, number=value)
            return Endpoint("shared", text, number=value)
    if _SCHEME.fullmatch(text):
        raise ValueError(f"{text!r} is not an address; write it without a scheme, as in :8080")
    return _local(text) or _tcp(text, 0)


def bindable(text: str) -> Endpoint:
    """An address of a ``shared-socket``: not ``=N``; the port may be empty, which means 0."""
    if text.startswith("="):
        raise ValueError(f"{text!r} refers to a shared socket; expected an address")
    if text.endswith(":") and not _is_path(text):
        text += "0"
    return listening(text)


def connecting(text: str) -> Endpoint:
    """An address to connect to. An empty host means this machine, as in uWSGI."""
    _check(text)
    local = _local(text)
    if local is not None:
        return local
    if text.startswith("fd://"):
        raise ValueError(f"{text!r} cannot be connected to; expected HOST:PORT or a socket path")
    found = _tcp(text, 1)
    if not found.host:
        return Endpoint("tcp", text, host="127.0.0.1", port=found.port)
    return found


def _node_parameters(words: list[str], address: str) -> dict[str, int]:
    known = {
        "weight": (1, 1_000_000),
        "backup": (0, 100),
        "modifier1": (0, 255),
        "modifier2": (0, 255),
    }
    found: dict[str, int] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and _NUMBER.fullmatch(name):
            raise ValueError(f"',{word}' is not understood; write {address},modifier1={word}")
        if name not in known:
            expected = "weight=N, backup=N or modifier1=N"
            raise ValueError(f"',{word}' is not understood; expected {expected}")
        low, high = known[name]
        digits = re.fullmatch(r"[0-9]{1,7}", value)
        if digits is None or not low <= int(value) <= high:
            raise ValueError(f"{name} is {value!r}; expected {low} to {high}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = int(value)
    return found


def _without_scheme(text: str) -> tuple[str, str]:
    """``(protocol, address)``; an address without a scheme speaks uwsgi, as in uWSGI."""
    match = _SCHEME.fullmatch(text)
    if match is None:
        return "uwsgi", text
    scheme, address = match[1].lower(), match[2]
    if scheme in ("https", "suwsgi", "uwsgis"):
        raise ValueError(f"{text!r}: TLS towards nodes is not supported; use http:// or uwsgi://")
    if scheme not in ("http", "uwsgi"):
        raise ValueError(f"{text!r}: unknown scheme; expected uwsgi:// or http://")
    return scheme, address


def node(text: str) -> NodeSettings:
    """``[uwsgi://|http://]ADDRESS[,weight=N][,backup=N][,modifier1=N]...`` -> a static node."""
    address, *words = text.split(",")
    protocol, address = _without_scheme(address)
    path_start = address.find("/")
    if path_start > 0 and not _is_path(address) and ":" in address and not address.startswith("@"):
        path = address[path_start:]
        hint = f"write {address[:path_start]}"
        raise ValueError(f"a node has no path, but {path!r} follows the port; {hint}")
    endpoint = connecting(address)
    if protocol == "http" and endpoint.kind == "unix" and not _is_path(address):
        raise ValueError(f"{text!r} has no port; write http://{address}:80 (or http:///PATH)")
    found = _node_parameters(words, address)
    if protocol == "http" and {"modifier1", "modifier2"} & found.keys():
        raise ValueError("modifiers belong to the uwsgi protocol; an http:// node has none")
    return NodeSettings(
        endpoint,
        protocol="http" if protocol == "http" else "uwsgi",
        modifier1=found.get("modifier1"),
        modifier2=found.get("modifier2"),
        weight=found.get("weight", 1),
        backup=found.get("backup", 0),
    )
