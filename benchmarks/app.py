"""The WSGI application behind every uwsgi node (and gunicorn) of the benchmarks.

=====================  ==========================================================================
``GET /body/SIZE``     that many bytes, streamed in 64 KB blocks (SIZE: number with k or m)
``GET /pattern/N``     N bytes that depend on N and position, streamed; see `pattern`
``GET /wait/MS``       13 bytes after that many milliseconds
``POST /echo``         the length and SHA-256 of the body it received, as text
anything else          13 bytes
=====================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

HELLO = b"Hello, world!"
_BLOCK = 65536
_SIZE = re.compile(r"/body/([0-9]{1,9})([km]?)")
_PATTERN = re.compile(r"/pattern/([0-9]{1,9})")
_WAIT = re.compile(r"/wait/([0-9]{1,5})")
_ZEROS = bytes(_BLOCK)

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def pattern(size: int) -> bytes:
    """``size`` bytes: a 32-byte digest of the size and a counter, again and again.

    A body cut, repeated, swapped with another's or shifted by one byte differs from it.
    """
    seed = hashlib.sha256(b"%d" % size).digest()
    return (seed * (size // 32 + 1))[:size]


def _blocks(size: int) -> Iterator[bytes]:
    whole, rest = divmod(size, _BLOCK)
    for _ in range(whole):
        yield _ZEROS
    yield _ZEROS[:rest]


def _read_all(stream: Any) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI entry point."""
    path = environ["PATH_INFO"]
    body: Iterable[bytes]
    if found := _SIZE.fullmatch(path):
        size = int(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[found[2]]
        body = _blocks(size)
    elif found := _PATTERN.fullmatch(path):
        size = int(found[1])
        whole = pattern(size)
        body = (whole[at : at + _BLOCK] for at in range(0, size, _BLOCK))
    elif path == "/echo":
        text = "{} {}".format(*_read_all(environ["wsgi.input"])).encode()
        size, body = len(text), [text]
    else:
        if found := _WAIT.fullmatch(path):
            time.sleep(int(found[1]) / 1000)
        size, body = len(HELLO), [HELLO]
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(size))]
    if environ.get("HTTP_CONNECTION") == "close":
        # uWSGI's router closes without saying so; the load generator must be told.
        headers.append(("Connection", "close"))
    start_response("200 OK", headers)
    return body
