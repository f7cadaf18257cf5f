"""uwsgi clients of the fastrouter: packets made byte by byte, and a running fastrouter."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from support.client import Reply
from support.uwgate import Gateway, running

Variables = list[tuple[bytes, bytes]]


def string(text: bytes) -> bytes:
    """A length-prefixed string."""
    return struct.pack("<H", len(text)) + text


def raw_packet(block: bytes, modifier1: int = 0, modifier2: int = 0, size: int = -1) -> bytes:
    """A packet around ``block``, which may lie about its ``size``."""
    size = len(block) if size < 0 else size
    return struct.pack("<BHB", modifier1, size, modifier2) + block


def packed(variables: Variables, modifier1: int = 0, modifier2: int = 0) -> bytes:
    """A whole packet."""
    block = b"".join(string(name) + string(value) for name, value in variables)
    return raw_packet(block, modifier1, modifier2)


def variables(
    target: bytes = b"/x", method: bytes = b"GET", host: bytes = b"h", *more: tuple[bytes, bytes]
) -> Variables:
    """What nginx sends, in its order; ``more`` is put behind HTTP_HOST."""
    path, _, query = target.partition(b"?")
    return [
        (b"QUERY_STRING", query),
        (b"REQUEST_METHOD", method),
        (b"CONTENT_TYPE", b""),
        (b"CONTENT_LENGTH", b""),
        (b"REQUEST_URI", target),
        (b"PATH_INFO", path),
        (b"DOCUMENT_ROOT", b"/srv/www"),
        (b"SERVER_PROTOCOL", b"HTTP/1.1"),
        (b"REQUEST_SCHEME", b"http"),
        (b"REMOTE_ADDR", b"192.0.2.7"),
        (b"REMOTE_PORT", b"4711"),
        (b"SERVER_PORT", b"80"),
        (b"SERVER_NAME", b"front"),
        (b"HTTP_HOST", host),
        *more,
    ]


def request(
    target: bytes = b"/x", method: bytes = b"GET", host: bytes = b"h", *more: tuple[bytes, bytes]
) -> bytes:
    """A packet as nginx sends it."""
    return packed(variables(target, method, host, *more))


def post(body: bytes, target: bytes = b"/x", *, length: bytes | None = None) -> bytes:
    """A packet with a body behind it; ``length``: what CONTENT_LENGTH says instead of the truth."""
    said = b"%d" % len(body) if length is None else length
    changed = [
        (name, said if name == b"CONTENT_LENGTH" else value)
        for name, value in variables(target, b"POST")
    ]
    return packed(changed) + body


@contextmanager
def fastrouter(*options: str, listen: str = "") -> Iterator[Gateway]:
    """A fastrouter for the length of a ``with`` block."""
    with running(*options, listen=listen, option="--fastrouter") as gateway:
        yield gateway


def ask(gateway: Gateway, data: bytes, method: bytes = b"GET") -> Reply:
    """Send ``data`` on a new connection and read its response, behind which the router closes."""
    with gateway.connect() as client:
        client.send_willing(data)
        reply = client.read_response(method)
        client.assert_closed()
    return reply
