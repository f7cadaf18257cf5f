"""The WSGI application behind the interop tests: runs under real uWSGI and under gunicorn.

Each path is one thing that a gateway can get wrong. A *gate* is a FIFO made by the test: the
application opens it for reading and so waits until the test opens it for writing. That puts both
sides in step without sleeping, and tells the test that the request has reached the application.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
Body = Iterable[bytes]

try:
    uwsgi: Any = importlib.import_module("uwsgi")
except ImportError:
    uwsgi = None  # gunicorn, or the tests themselves

BLOCK = 65536
PATTERN = random.Random(2).randbytes(BLOCK)


def blob(size: int) -> Iterator[bytes]:
    """``size`` bytes that are the same in every process, in blocks of at most 64 KB."""
    left = size
    while left > 0:
        yield PATTERN[: min(left, BLOCK)]
        left -= BLOCK


def blob_digest(size: int) -> str:
    """SHA-256 of ``blob(size)``, hexadecimal."""
    digest = hashlib.sha256()
    for block in blob(size):
        digest.update(block)
    return digest.hexdigest()


def query(environ: Environ, name: str, default: str = "") -> str:
    text: str = environ.get("QUERY_STRING", "")
    return parse_qs(text).get(name, [default])[0]


def wait_gate(environ: Environ) -> None:
    with open(query(environ, "gate"), "rb") as gate:
        gate.read()


def say(start: StartResponse, value: object) -> Body:
    body = json.dumps(value).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def env(environ: Environ, start: StartResponse) -> Body:
    """Every textual variable, as the application sees it."""
    return say(start, {k: v for k, v in environ.items() if isinstance(v, str)})


def name(environ: Environ, start: StartResponse) -> Body:
    return say(start, {"name": os.environ.get("NODE_NAME", ""), "pid": os.getpid()})


def read_body(environ: Environ) -> Iterator[bytes]:
    source = environ["wsgi.input"]
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0:
        block = source.read(min(left, BLOCK))
        if not block:
            return
        left -= len(block)
        yield block


def echo(environ: Environ, start: StartResponse) -> Body:
    body = b"".join(read_body(environ))
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def digest(environ: Environ, start: StartResponse) -> Body:
    """What arrived of the body: length, SHA-256, and how its length was announced."""
    seen, total = hashlib.sha256(), 0
    for block in read_body(environ):
        seen.update(block)
        total += len(block)
    return say(
        start,
        {
            "length": total,
            "sha256": seen.hexdigest(),
            "CONTENT_LENGTH": environ.get("CONTENT_LENGTH"),
            "HTTP_TRANSFER_ENCODING": environ.get("HTTP_TRANSFER_ENCODING"),
        },
    )


def drain(environ: Environ, start: StartResponse) -> Body:
    """Like ``digest`` for servers that end ``wsgi.input`` themselves: a length is not needed."""
    source, seen, total = environ["wsgi.input"], hashlib.sha256(), 0
    while block := source.read(BLOCK):
        seen.update(block)
        total += len(block)
    return say(start, {"length": total, "sha256": seen.hexdigest()})


def chunks(environ: Environ, start: StartResponse) -> Body:
    """The request body by uWSGI's own chunked API: one entry a chunk."""
    sizes, seen = [], hashlib.sha256()
    while True:
        chunk = uwsgi.chunked_read()
        if not chunk:
            break
        sizes.append(len(chunk))
        seen.update(chunk)
    return say(start, {"sizes": sizes, "sha256": seen.hexdigest()})


def first_chunk(environ: Environ, start: StartResponse) -> Body:
    """Answers with the first chunk at once and then waits for the rest."""
    write = start("200 OK", [("Content-Type", "text/plain")])
    write(uwsgi.chunked_read())
    try:
        while uwsgi.chunked_read():
            pass
    except OSError:
        pass
    return []


def download(environ: Environ, start: StartResponse) -> Body:
    size = int(query(environ, "size"))
    start(
        "200 OK",
        [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))],
    )
    return blob(size)


def unframed(environ: Environ, start: StartResponse) -> Body:
    """A body without a length: its end is the end of the uwsgi connection."""
    start("200 OK", [("Content-Type", "application/octet-stream")])
    return blob(int(query(environ, "size")))


def stream(environ: Environ, start: StartResponse) -> Body:
    """Two parts; the second only once the test has opened the gate."""
    start("200 OK", [("Content-Type", "text/plain")])

    def parts() -> Iterator[bytes]:
        yield b"first\n"
        wait_gate(environ)
        yield b"second\n"

    return parts()


def slow(environ: Environ, start: StartResponse) -> Body:
    """Nothing at all until the gate opens."""
    wait_gate(environ)
    return say(start, {"slow": "done", "pid": os.getpid()})


def status(environ: Environ, start: StartResponse) -> Body:
    """``?code=``: that status and no body; ``length=`` adds a Content-Length (for 304, HEAD)."""
    fields = [("X-Status", "yes")]
    length = query(environ, "length")
    if length:
        fields.append(("Content-Length", length))
    start(query(environ, "code") + " Status", fields)
    return []


def fields(environ: Environ, start: StartResponse) -> Body:
    """``count`` response fields of ``size`` bytes each."""
    value = "v" * int(query(environ, "size"))
    lines = [(f"X-Big-{i}", value) for i in range(int(query(environ, "count")))]
    start("200 OK", [*lines, ("Content-Length", "2")])
    return [b"ok"]


def named(environ: Environ, start: StartResponse) -> Body:
    """``?file=``: have it sent in place of a body."""
    own = [("Content-Disposition", "attachment"), ("Set-Cookie", "seen=1")]
    start("200 OK", [("X-Sendfile", query(environ, "file")), *own, ("Content-Length", "5")])
    return [b"never"]


def squeeze(environ: Environ, start: StartResponse) -> Body:
    """Asks the router to compress (``uWSGI-Encoding: gzip``); no length, as uWSGI requires."""
    start("200 OK", [("Content-Type", "text/plain"), ("uWSGI-Encoding", "gzip")])
    return blob(int(query(environ, "size")))


def late(environ: Environ, start: StartResponse) -> Body:
    """Reads the request body only once the gate is open."""
    wait_gate(environ)
    return digest(environ, start)


def deaf(environ: Environ, start: StartResponse) -> Body:
    """Answers without reading the request body."""
    start("403 Forbidden", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"deaf"]


def websocket(environ: Environ, start: StartResponse) -> Body:
    """Echo by uWSGI's WebSocket API.

    The wheel of uWSGI has no TLS library, so ``uwsgi.websocket_handshake`` has no SHA-1 and
    refuses: the answer is made here, the frames are uWSGI's.
    """
    key = environ["HTTP_SEC_WEBSOCKET_KEY"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    write = start(
        "101 Switching Protocols",
        [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)],
    )
    write(b"")
    while True:
        try:
            message = uwsgi.websocket_recv()
        except OSError:
            return []
        if message == b"bye":
            return []
        uwsgi.websocket_send(message)


ROUTES: dict[str, Callable[[Environ, StartResponse], Body]] = {
    "/name": name,
    "/echo": echo,
    "/digest": digest,
    "/drain": drain,
    "/chunks": chunks,
    "/first-chunk": first_chunk,
    "/download": download,
    "/unframed": unframed,
    "/stream": stream,
    "/slow": slow,
    "/status": status,
    "/fields": fields,
    "/named": named,
    "/squeeze": squeeze,
    "/late": late,
    "/deaf": deaf,
    "/websocket": websocket,
}


def application(environ: Environ, start_response: StartResponse) -> Body:
    """The WSGI entry point: a path that is no route shows its variables."""
    return ROUTES.get(environ["PATH_INFO"], env)(environ, start_response)
