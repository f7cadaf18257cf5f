"""Asks a stats address for its document: uwgate's, or that of a uWSGI router.

A plain address is asked as uWSGI's are, by connecting and saying nothing; who answers that with
nothing or with HTTP (option ``stats-http``) is asked again with a request. Without an address the
control socket of an instance is asked.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

from uwgate.config.addresses import connecting
from uwgate.config.settings import Endpoint
from uwgate.control.client import OrderError, ask_once

PATIENCE = 10.0
"""Seconds from connecting to the end of the answer."""

LIMIT = 256 * 1024 * 1024
"""Most bytes of an answer."""

_URL = re.compile(r"[Hh][Tt][Tt][Pp]://(?P<authority>[!-.0-~]+)(?P<path>/[!-~]*)?")
_PORT = re.compile(r":[0-9]+\Z")
# RFC 9112 §4; fields are of no interest, as the body ends with the connection.
_STATUS = re.compile(rb"HTTP/1\.[01] (?P<status>[0-9]{3})(?: [^\r\n]*)?\r\n")


class FetchError(Exception):
    """One sentence without a full stop: why there is no document."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask. ``path``: "" for an address that is no URL."""

    text: str
    endpoint: Endpoint
    host: str
    path: str


def parse_target(text: str) -> Target:
    """``host:port``, ``/path``, ``@abstract`` or ``http://host[:port][/path]``; ValueError."""
    url = _URL.fullmatch(text)
    if url is None:
        return Target(text, connecting(text), "localhost", "")
    authority = url["authority"]
    address = authority if _PORT.search(authority) else f"{authority}:80"
    return Target(text, connecting(address), authority, url["path"] or "/")


def fetch(target: Target) -> dict[str, Any]:
    """The document; FetchError."""
    try:
        answer = b"" if target.path else _ask(target.endpoint, b"")
        if not answer or _STATUS.match(answer):
            path = target.path or "/"
            request = f"GET {path} HTTP/1.0\r\nHost: {target.host}\r\n\r\n"
            answer = _body(_ask(target.endpoint, request.encode("ascii")))
    except TimeoutError:
        raise FetchError("no answer in time") from None
    except OSError as error:
        raise FetchError(error.strerror or str(error)) from None
    return _document(answer)


def fetch_by_control(paths: list[str]) -> dict[str, Any]:
    """The document of the instance whose control socket is one of these; FetchError, NoInstance."""
    try:
        answer = ask_once(paths, "stats", PATIENCE).get("stats")
    except OrderError as error:
        raise FetchError(str(error)) from None
    return _document(answer if isinstance(answer, str) else "")


def _document(answer: bytes | str) -> dict[str, Any]:
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise FetchError("the answer is not the statistics of a gateway") from None
    if not isinstance(document, dict):
        raise FetchError("the answer is not the statistics of a gateway")
    return document


def _connect(endpoint: Endpoint) -> socket.socket:
    if endpoint.kind == "tcp":
        return socket.create_connection((endpoint.host, endpoint.port), PATIENCE)
    path: str | bytes = endpoint.path
    if endpoint.kind == "abstract":
        # uWSGI's names carry a trailing NUL.
        path = b"\0" + endpoint.path.encode("utf-8", "surrogateescape") + b"\0"
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _ask(endpoint: Endpoint, request: bytes) -> bytes:
    limit = time.monotonic() + PATIENCE
    answer = bytearray()
    with _connect(endpoint) as sock:
        if request:
            sock.sendall(request)
        else:
            sock.shutdown(socket.SHUT_WR)  # nothing will come: no need to wait for it
        while True:
            left = limit - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            data = sock.recv(1 << 20)
            if not data:
                return bytes(answer)
            answer += data
            if len(answer) > LIMIT:
                raise FetchError(f"the answer is larger than {LIMIT >> 20} MB")


def _body(answer: bytes) -> bytes:
    if not answer:
        raise FetchError("the connection was closed without an answer")
    status = _STATUS.match(answer)
    if status is None:
        raise FetchError("the answer is not HTTP")
    if status["status"] != b"200":
        raise FetchError(f"the answer has status {status['status'].decode('ascii')}")
    return answer.partition(b"\r\n\r\n")[2]
