"""The node's side of the wire: a buffered connection and two small independent parsers."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


class PeerGone(Exception):
    """The gateway closed the connection; no fault of anyone."""


class Connection:
    """One accepted connection; ``received`` is every byte that came since the node's reset."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.buffer = b""
        self.received = b""
        self.closed = False
        self.saw_end = False
        self.go = threading.Event()  # for scripts that wait for the test

    def receive(self) -> bytes:
        """Some new bytes; PeerGone at the end."""
        try:
            data = self.sock.recv(262144)
        except (ConnectionError, OSError) as error:
            raise PeerGone from error
        if not data:
            self.saw_end = True
            raise PeerGone
        self.received += data
        return data

    def fill(self, count: int) -> None:
        """Read until the buffer holds at least ``count`` bytes."""
        parts = [self.buffer]
        have = len(self.buffer)
        while have < count:
            parts.append(self.receive())
            have += len(parts[-1])
        self.buffer = b"".join(parts)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self.fill(count)
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def take_until(self, mark: bytes) -> bytes:
        """The next bytes up to and including ``mark``."""
        while mark not in self.buffer:
            self.buffer += self.receive()
        return self.take(self.buffer.index(mark) + len(mark))

    def take_some(self) -> bytes:
        """Whatever is there, at least one byte; PeerGone at the end."""
        data, self.buffer = self.buffer or self.receive(), b""
        return data

    def take_to_end(self) -> bytes:
        """Everything until the gateway sends FIN (or resets)."""
        data, self.buffer = self.buffer, b""
        try:
            while True:
                data += self.receive()
        except PeerGone:
            return data

    def drain(self) -> None:
        """Wait for the gateway to close; what it still sends is kept in ``received`` only."""
        self.take_to_end()

    def send(self, data: bytes) -> None:
        """Send all of ``data``; PeerGone if the gateway closed."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise PeerGone from error

    def half_close(self) -> None:
        """Send FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Make the coming close an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def shut(self) -> None:
        """End the connection from another thread: its reader wakes up and closes it."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()
        self.closed = True


@dataclass
class Seen:
    """A request as a node saw it, the same face for both protocols."""

    raw: bytes
    method: bytes
    target: bytes
    body: bytes
    connection: int

    def field(self, name: bytes) -> list[bytes]:
        """Every value of the request field ``name``."""
        return []


@dataclass
class SeenHttp(Seen):
    """``raw``: exact bytes, head and framed body. ``body``: chunked decoded."""

    version: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    head: bytes = b""

    def field(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name.lower()]


@dataclass
class SeenUwsgi(Seen):
    """``variables`` in wire order; ``raw``: exact bytes, packet and body."""

    modifier1: int = 0
    modifier2: int = 0
    variables: list[tuple[bytes, bytes]] = field(default_factory=list)

    def field(self, name: bytes) -> list[bytes]:
        key = name.upper().replace(b"-", b"_")
        if key not in (b"CONTENT_LENGTH", b"CONTENT_TYPE"):
            key = b"HTTP_" + key
        return self.all(key)

    def all(self, key: bytes) -> list[bytes]:
        """Every value of the variable ``key``."""
        return [value for name, value in self.variables if name == key]

    def var(self, key: bytes) -> bytes:
        """The only value of the variable ``key``."""
        (value,) = self.all(key)
        return value


_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.DOTALL)
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ \r\n]+) (HTTP/1\.1)")


def _parse_fields(block: bytes) -> list[tuple[bytes, bytes]]:
    fields = []
    for line in block.split(b"\r\n"):
        match = _FIELD.fullmatch(line)
        assert match, f"malformed field line from the gateway: {line!r}"
        assert not re.search(rb"[\x00\r\n]", match[2]), f"control byte in {line!r}"
        fields.append((match[1], match[2]))
    return fields


def read_http_request(
    connection: Connection, on_expect: Callable[[], bytes] = lambda: b""
) -> SeenHttp:
    """One request. AssertionError if it is malformed, PeerGone at the end.

    What ``on_expect`` says is sent as soon as a head with Expect is complete, before its body is
    read.
    """
    head = connection.take_until(b"\r\n\r\n")
    line, _, block = head[:-4].partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    assert match, f"malformed request line from the gateway: {line!r}"
    fields = _parse_fields(block) if block else []
    seen = SeenHttp(
        raw=head,
        method=match[1],
        target=match[2],
        body=b"",
        connection=connection.number,
        version=match[3],
        fields=fields,
        head=head,
    )
    lengths = seen.field(b"content-length")
    codings = seen.field(b"transfer-encoding")
    if seen.field(b"expect"):
        connection.send(on_expect())
    assert len(lengths) + len(codings) < 2, f"ambiguous framing from the gateway: {head!r}"
    if lengths:
        assert re.fullmatch(rb"[0-9]+", lengths[0]), lengths
        seen.body = connection.take(int(lengths[0]))
        seen.raw += seen.body
    elif codings:
        assert codings == [b"chunked"], codings
        raw, seen.body, seen.trailers = read_chunked(connection)
        seen.raw += raw
    return seen


def read_chunked(connection: Connection) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """``(raw bytes, decoded body, trailer fields)`` of a chunked body."""
    raw: list[bytes] = []
    body: list[bytes] = []
    while True:
        line = connection.take_until(b"\r\n")
        raw.append(line)
        assert re.fullmatch(rb"[0-9A-Fa-f]+(;[^\r\n]*)?\r\n", line), f"chunk line {line!r}"
        size = int(line.split(b";")[0], 16)
        if not size:
            break
        data = connection.take(size + 2)
        assert data[-2:] == b"\r\n", f"chunk end {data[-2:]!r}"
        raw.append(data)
        body.append(data[:-2])
    trailers: list[tuple[bytes, bytes]] = []
    while True:
        line = connection.take_until(b"\r\n")
        raw.append(line)
        if line == b"\r\n":
            return b"".join(raw), b"".join(body), trailers
        trailers += _parse_fields(line[:-2])


def read_uwsgi_request(connection: Connection) -> SeenUwsgi:
    """One packet and its body. AssertionError if it is malformed, PeerGone at the end."""
    header = connection.take(4)
    modifier1, size, modifier2 = struct.unpack("<BHB", header)
    block = connection.take(size)
    variables: list[tuple[bytes, bytes]] = []
    at = 0

    def string() -> bytes:
        nonlocal at
        assert at + 2 <= size, f"cut string in {block!r}"
        (length,) = struct.unpack_from("<H", block, at)
        at += 2 + length
        assert at <= size, f"string leaves the packet in {block!r}"
        return block[at - length : at]

    while at < size:
        key = string()
        assert key, "empty key"
        variables.append((key, string()))
    seen = SeenUwsgi(
        raw=header + block,
        method=b"",
        target=b"",
        body=b"",
        connection=connection.number,
        modifier1=modifier1,
        modifier2=modifier2,
        variables=variables,
    )
    seen.method = seen.var(b"REQUEST_METHOD")
    seen.target = seen.var(b"REQUEST_URI")
    _read_uwsgi_body(connection, seen)
    return seen


def _read_uwsgi_body(connection: Connection, seen: SeenUwsgi) -> None:
    lengths = seen.all(b"CONTENT_LENGTH")
    assert len(lengths) < 2, lengths
    if lengths and lengths[0]:
        assert re.fullmatch(rb"[0-9]+", lengths[0]), lengths
        seen.body = connection.take(int(lengths[0]))
        seen.raw += seen.body
    elif seen.all(b"HTTP_TRANSFER_ENCODING") == [b"chunked"]:
        raw, seen.body, _ = read_chunked(connection)
        seen.raw += raw
