"""What tests of static files share beside `support.files`: ways to send, parts, workers."""

from __future__ import annotations

import email
import hashlib
import os
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.certificates import Authority
from support.client import Client, Reply
from support.tls import TlsClient, client_context
from support.uwgate import Gateway, running
from support.waiting import free_port

Connect = Callable[[], Client]

WAYS: dict[str, tuple[str, ...]] = {
    "sendfile": (),
    "reading": ("--disable-sendfile",),
    "threads": ("--offload-threads=2",),
}
"""The ways that bytes of large files may go, and the options for each. TLS is one more."""


@dataclass
class Ways:
    """``connect``: by way; ``gateways``: those that are connected to."""

    connect: dict[str, Connect] = field(default_factory=dict)
    gateways: list[Gateway] = field(default_factory=list)


@contextmanager
def every_way(authority: Authority, *options: str) -> Iterator[Ways]:
    """Gateways for all of `WAYS`, reached in clear text, and over TLS with and without threads."""
    pair = authority.issue("localhost")
    context = client_context(authority)
    with ExitStack() as stack:
        ways = Ways()
        for name, more in WAYS.items():
            port = free_port()
            https = ("--https", f"127.0.0.1:{port},{pair.cert},{pair.key}")
            gateway = stack.enter_context(running(*https, *options, *more))
            ways.gateways.append(gateway)
            ways.connect[name] = gateway.connect
            if name != "reading":
                ways.connect[f"tls-{name}"] = _tls(port, context)
        yield ways


def _tls(port: int, context: ssl.SSLContext) -> Connect:
    return lambda: TlsClient(("127.0.0.1", port), context)


def parts_of(reply: Reply) -> list[tuple[int, int, int, bytes, bytes]]:
    """The parts of multipart/byteranges: first byte, last byte, size, Content-Type, content.

    Parsed by `email`, which knows nothing of HTTP; AssertionError if there are defects.
    """
    kind = reply.get(b"content-type") or b""
    assert kind.startswith(b"multipart/byteranges; boundary="), kind
    raw = b"MIME-Version: 1.0\r\nContent-Type: " + kind + b"\r\n\r\n" + reply.body
    message = email.message_from_bytes(raw)
    assert message.is_multipart()
    assert message.defects == []
    found = []
    for part in message.get_payload():
        assert not isinstance(part, str)
        assert part.defects == []
        match = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)", part["Content-Range"])
        assert match is not None
        first, last, size = map(int, match.groups())
        content = part.get_payload(decode=False)
        assert isinstance(content, str)
        data = content.encode("ascii", "surrogateescape")
        found.append((first, last, size, part["Content-Type"].encode(), data))
    return found


def workers_of(gateway: Gateway) -> list[int]:
    """The processes that serve."""
    main = gateway.process.pid
    return list(map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split()))


def descriptors(gateway: Gateway) -> int:
    """How many descriptors the only worker has open."""
    (worker,) = workers_of(gateway)
    return len(os.listdir(f"/proc/{worker}/fd"))


def digest_of(client: Client, target: bytes) -> tuple[int, str]:
    """Ask for a file, and hash what comes, without keeping it: status and MD5."""
    client.send(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    head = client.read_until(b"\r\n\r\n")
    match = re.search(rb"\r\nContent-Length: ([0-9]+)\r\n", head)
    assert match is not None
    left, digest = int(match[1]), hashlib.md5(usedforsecurity=False)
    while left:
        data = client.receive()
        assert data, f"{left} bytes are missing"
        assert len(data) <= left
        digest.update(data)
        left -= len(data)
    return int(head[9:12]), digest.hexdigest()


def rest_of(client: Client, limit: int) -> bytes:
    """What comes until the gateway closes, cuts the connection, or ``limit`` bytes are here."""
    data = bytearray(client.buffer)
    client.buffer = b""
    try:
        while len(data) < limit and (more := client.sock.recv(1 << 18)):
            data += more
    except (ConnectionResetError, ssl.SSLError):
        pass
    return bytes(data)
