"""The ``%(variables)`` of uWSGI's ``log-format``, plus our own.

Names and meanings are uWSGI's (documentation: "Formatting uWSGI requests logs"); what an HTTP
router cannot know (coroutine switches, application variables) has uWSGI's empty value. Ours:
``port`` (of the client), ``node``, ``attempts``, ``reason``, ``connect``, ``first`` and ``total``
(milliseconds, ``-1`` = never), ``keepalive`` (0/1), ``query`` and ``path``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from uwgate.observe.escape import escape, escape_word
from uwgate.router.errors import Failure
from uwgate.router.facts import RequestFacts

Raw = Callable[[RequestFacts], bytes]
"""From the facts of a request to bytes as received."""
Value = Callable[[RequestFacts], str]
"""From the facts of a request to text that is safe in a log line."""

_READ_ERRORS = frozenset({Failure.HEAD_TIMEOUT, Failure.BODY_TIMEOUT})
_WRITE_ERRORS = frozenset({Failure.CLIENT_CLOSED, Failure.CLIENT_TIMEOUT})
_HEADER_NAME = re.compile(r"[A-Za-z0-9_]+")
_DIGITS = re.compile(rb"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Environment:
    """What is the same for all requests of a worker.

    ``x_forwarded_for``: ``addr`` is the X-Forwarded-For field if the request has one.
    """

    pid: int
    worker: int
    x_forwarded_for: bool = False


def variable(name: str, environment: Environment) -> Value:
    """The value function of ``%(name)``, escaped; ``-`` for a name that nobody knows."""
    if name == "addr":
        return _text(address(environment.x_forwarded_for))
    if name in ("pid", "wid"):
        constant = str(environment.pid if name == "pid" else environment.worker)
        return lambda facts: constant
    if name in _NUMBERS:
        return _integer(_NUMBERS[name])
    if name in _TEXTS:
        return _text(_TEXTS[name])
    if name in _SAFE:
        return _SAFE[name]
    if name in _STAMPS:
        return timestamp(_STAMPS[name])
    if name.startswith("metric."):
        return lambda facts: "0"
    if name.startswith("var."):
        return _text(_request_variable(name[4:]))
    return lambda facts: "-"


def header(name: bytes) -> Raw:
    """Function to the raw value of the first field with this name; ``b""`` without one."""
    pattern = re.compile(rb"\n" + re.escape(name) + rb":[ \t]*([^\r\n]*)", re.IGNORECASE)

    def value(facts: RequestFacts) -> bytes:
        # A literal first character lets the search skip: three times as fast as "\A|\n".
        found = pattern.search(b"\n" + facts.fields)
        return found[1].rstrip(b" \t") if found else b""

    return value


forwarded_for = header(b"X-Forwarded-For")
_content_length = header(b"Content-Length")


def address(x_forwarded_for: bool) -> Raw:
    """Raw client address; with ``x_forwarded_for`` that field's value where there is one."""
    if not x_forwarded_for:
        return lambda facts: facts.client
    return lambda facts: forwarded_for(facts) or facts.client


def timestamp(pattern: str, *, utc: bool = False) -> Value:
    """The request's start by strftime ``pattern``, made once a second."""
    second = -1
    text = ""

    def value(facts: RequestFacts) -> str:
        nonlocal second, text
        started = int(facts.started)
        if started != second:
            second = started
            text = time.strftime(pattern, time.gmtime(started) if utc else time.localtime(started))
        return text

    return value


def millis(micros: int) -> str:
    """Milliseconds with three decimals; ``-1`` for what never happened."""
    return "-1" if micros < 0 else f"{micros // 1000}.{micros % 1000:03d}"


@lru_cache(maxsize=1024)
def node_name(name: str) -> str:
    """A node's name as an escaped word."""
    return escape_word(name.encode("utf-8", "surrogateescape"))


def _text(raw: Raw) -> Value:
    return lambda facts: escape(raw(facts)) or "-"


def _integer(number: Callable[[RequestFacts], int]) -> Value:
    return lambda facts: str(number(facts))


def _path(facts: RequestFacts) -> bytes:
    return facts.target.partition(b"?")[0]


def _query(facts: RequestFacts) -> bytes:
    return facts.target.partition(b"?")[2]


def _length(facts: RequestFacts) -> int:
    value = _content_length(facts)
    return int(value) if _DIGITS.fullmatch(value) else 0


def _request_variable(name: str) -> Raw:
    """``var.NAME``: the CGI variables that can be told from the facts."""
    known = _CGI.get(name)
    if known is not None:
        return known
    if name.startswith("HTTP_") and _HEADER_NAME.fullmatch(name):
        return header(name[5:].replace("_", "-").encode("ascii"))
    return lambda facts: b""


_TEXTS: dict[str, Raw] = {
    "uri": lambda f: f.target,
    "method": lambda f: f.method,
    "proto": lambda f: f.protocol,
    "host": lambda f: f.host,
    "uagent": header(b"User-Agent"),
    "referer": header(b"Referer"),
    "node": lambda f: f.node.encode("utf-8", "surrogateescape"),
    "path": _path,
    "query": _query,
}

_NUMBERS: dict[str, Callable[[RequestFacts], int]] = {
    "status": lambda f: f.status,
    "rsize": lambda f: f.response_body,
    "hsize": lambda f: f.response_head,
    "size": lambda f: f.response_head + f.response_body,
    "cl": _length,
    "micros": lambda f: f.total_micros,
    "msecs": lambda f: f.total_micros // 1000,
    "tmsecs": lambda f: int(f.started * 1000),
    "tmicros": lambda f: int(f.started * 1_000_000),
    "time": lambda f: int(f.started),
    "epoch": lambda f: int(time.time()),
    "core": lambda f: 0,
    "switches": lambda f: 0,
    "vars": lambda f: 2 * f.variables,  # uWSGI counts names and values
    "pktsize": lambda f: f.packet,
    "modifier1": lambda f: f.modifier1,
    "modifier2": lambda f: f.modifier2,
    "headers": lambda f: f.response_fields,
    "rerr": lambda f: int(f.failure in _READ_ERRORS),
    "werr": lambda f: int(f.failure in _WRITE_ERRORS),
    "ioerr": lambda f: int(f.failure in _READ_ERRORS or f.failure in _WRITE_ERRORS),
    "vsz": lambda f: 0,  # as uWSGI without memory-report
    "rss": lambda f: 0,
    "vszM": lambda f: 0,
    "rssM": lambda f: 0,
    "port": lambda f: f.client_port,
    "attempts": lambda f: f.attempts,
    "keepalive": lambda f: int(f.keepalive),
}

_SAFE: dict[str, Value] = {
    "secs": lambda f: f"{f.total_micros / 1e6:.6f}",
    "connect": lambda f: millis(f.connect_micros),
    "first": lambda f: millis(f.first_byte_micros),
    "total": lambda f: millis(f.total_micros),
    "reason": lambda f: "ok" if f.failure is None else f.failure.word,
}

_STAMPS = {
    "ctime": "%a %b %d %H:%M:%S %Y",
    "ltime": "%d/%b/%Y:%H:%M:%S %z",
    "ftime": "%d/%b/%Y:%H:%M:%S %z",
}

_CGI: dict[str, Raw] = {
    "REQUEST_METHOD": _TEXTS["method"],
    "REQUEST_URI": _TEXTS["uri"],
    "PATH_INFO": lambda f: unquote_to_bytes(_path(f)),
    "QUERY_STRING": _query,
    "SERVER_PROTOCOL": _TEXTS["proto"],
    "REMOTE_ADDR": lambda f: f.client,
    "REMOTE_PORT": lambda f: b"%d" % f.client_port if f.client else b"",
    "CONTENT_LENGTH": _content_length,
    "CONTENT_TYPE": header(b"Content-Type"),
    "HTTP_HOST": _TEXTS["host"],
}
