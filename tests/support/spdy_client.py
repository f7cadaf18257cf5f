"""A client of SPDY/3.1 over real TLS that keeps only the rules it is told to keep.

It reads frames by itself, and takes nothing from the codec under test but the dictionary.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

from support.client import Address
from support.waiting import DEADLINE
from uwgate.protocols.spdy3 import DICTIONARY

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS = 1, 2, 3, 4
PING, GOAWAY, HEADERS, WINDOW_UPDATE = 6, 7, 8, 9
FIN, UNIDIRECTIONAL = 1, 2

# Of RST_STREAM and GOAWAY.
PROTOCOL, INVALID, REFUSED, CANCEL, INTERNAL, FLOW, ALREADY_CLOSED = 1, 2, 3, 5, 6, 7, 9
TOO_LARGE = 11

Fields = list[tuple[bytes, bytes]]


def control(kind: int, payload: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return struct.pack(">HHI", 0x8003, kind, flags << 24 | len(payload)) + payload


def data(stream: int, payload: bytes, *, fin: bool = False) -> bytes:
    """DATA."""
    return struct.pack(">II", stream, fin << 24 | len(payload)) + payload


def rst_stream(stream: int, status: int = CANCEL) -> bytes:
    """RST_STREAM."""
    return control(RST_STREAM, struct.pack(">II", stream, status))


def window_update(stream: int, delta: int) -> bytes:
    """WINDOW_UPDATE; of the session: 0."""
    return control(WINDOW_UPDATE, struct.pack(">II", stream, delta))


def ping(number: int) -> bytes:
    """PING."""
    return control(PING, struct.pack(">I", number))


def settings(*entries: tuple[int, int], flags: int = 0) -> bytes:
    """SETTINGS; ``flags``: of every entry."""
    body = b"".join(struct.pack(">II", flags << 24 | name, value) for name, value in entries)
    return control(SETTINGS, struct.pack(">I", len(entries)) + body)


def fields(
    method: bytes = b"GET", path: bytes = b"/", *extra: tuple[bytes, bytes], leave: bytes = b""
) -> Fields:
    """Of a request; ``leave``: the name of one that is left out."""
    all_of_them = [
        (b":method", method), (b":path", path), (b":version", b"HTTP/1.1"), (b":host", b"h"),
        (b":scheme", b"https"), *extra,
    ]  # fmt: skip
    return [each for each in all_of_them if each[0] != leave]


@dataclass
class Response:
    """What has come on a stream. ``reset``: the status of RST_STREAM; ``frames``: the kinds, None
    for DATA, with FIN or not."""

    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: int | None = None
    frames: list[tuple[int | None, bool]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """0 as long as there is none."""
        return int((self.value(b":status") or b"0")[:3])

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.ended or self.reset is not None

    def value(self, name: bytes) -> bytes | None:
        """Of the field of that name; None without it."""
        return dict(self.fields).get(name)


class SpdyClient:
    """One session. ``greedy`` False: windows do not grow by themselves. ``window``, ``windows``:
    what the server lets us send in the session and, once it has spoken, on a stream."""

    def __init__(self, address: Address, context: ssl.SSLContext, *, greedy: bool = True) -> None:
        raw = socket.create_connection(address, DEADLINE)
        self.sock = context.wrap_socket(raw, server_hostname="localhost")
        assert self.sock.selected_alpn_protocol() == "spdy/3.1"
        self.responses: dict[int, Response] = {}
        self.pongs: list[int] = []
        self.goaways: list[tuple[int, int]] = []
        self.settings: dict[int, int] = {}
        self.window = 65536
        self.windows: dict[int, int] = {}
        self.stream = -1
        self.closed = False
        self._greedy = greedy
        self._buffer = b""
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    # --- asking -----------------------------------------------------------------------------------

    def block(self, wanted: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Compressed; the order of calls is that of sending."""
        pairs = list(wanted)
        parts = [struct.pack(">I", len(pairs))]
        for pair in pairs:
            for text in pair:
                parts += (struct.pack(">I", len(text)), text)
        return self.squeeze(b"".join(parts))

    def squeeze(self, block: bytes) -> bytes:
        """A block as it is, compressed."""
        return self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def syn_stream(
        self,
        wanted: Fields | None = None,
        *,
        fin: bool = True,
        priority: int = 3,
        stream: int | None = None,
        associated: int = 0,
        flags: int = 0,
    ) -> bytes:
        """The next stream's, or that one's."""
        self.stream = self.stream + 2 if stream is None else stream
        head = struct.pack(">IIBx", self.stream, associated, priority << 5)
        block = self.block(fields() if wanted is None else wanted)
        return control(SYN_STREAM, head + block, flags | fin)

    def headers(self, stream: int, wanted: Fields, *, fin: bool = False) -> bytes:
        """HEADERS."""
        return control(HEADERS, struct.pack(">I", stream) + self.block(wanted), fin)

    def send(self, *frames: bytes) -> None:
        """In one piece. What the server has said to it is still there to read if it has closed."""
        try:
            self.sock.sendall(b"".join(frames))
        except (ConnectionError, ssl.SSLError):
            pass

    def begin(self, wanted: Fields | None = None, *, fin: bool = True, priority: int = 3) -> int:
        """Send a request -> its stream."""
        self.send(self.syn_stream(wanted, fin=fin, priority=priority))
        return self.stream

    def upload(self, stream: int, body: bytes) -> None:
        """DATA as the windows allow, and FIN."""
        self.until(lambda: self.settings)
        left = memoryview(body)
        while left:
            room = min(self.window, self.windows.setdefault(stream, self.settings[7]), 16384)
            if not room:
                self.receive()
                continue
            piece, left = bytes(left[:room]), left[room:]
            self.window -= len(piece)
            self.windows[stream] -= len(piece)
            self.send(data(stream, piece))
        self.send(data(stream, b"", fin=True))

    def response(self, stream: int) -> Response:
        """All of it."""
        self.until(lambda: self.answer(stream).over)
        return self.answer(stream)

    def ask(self, wanted: Fields | None = None, body: bytes | None = None) -> Response:
        """A request and its response."""
        stream = self.begin(wanted, fin=body is None)
        if body is not None:
            self.upload(stream, body)
        return self.response(stream)

    def answer(self, stream: int) -> Response:
        """What has come on that stream."""
        return self.responses.setdefault(stream, Response())

    # --- receiving --------------------------------------------------------------------------------

    def until(self, condition: Callable[[], object]) -> None:
        """Read until it is so."""
        while not condition():
            assert not self.closed, (self.responses, self.goaways)
            self.receive()

    def receive(self) -> None:
        """What comes next; at the end, ``closed``."""
        try:
            piece = self.sock.recv(65536)
        except ssl.SSLWantReadError:
            return  # half a record, in a flood
        except (ConnectionError, ssl.SSLEOFError):
            piece = b""
        self.closed = not piece
        self._buffer += piece
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from(">II", self._buffer)
            end = 8 + (second & 0xFFFFFF)
            if len(self._buffer) < end:
                break
            payload, self._buffer = self._buffer[8:end], self._buffer[end:]
            if first & 0x80000000:
                assert first >> 16 == 0x8003
                self._take(first & 0xFFFF, second >> 24, payload)
            else:
                self._take_data(first, bool(second >> 24), payload)

    def _take_data(self, stream: int, fin: bool, payload: bytes) -> None:
        found = self.answer(stream)
        assert found.fields, "DATA before SYN_REPLY"
        assert not found.ended
        found.frames.append((None, fin))
        found.body += payload
        found.ended = fin
        if self._greedy and payload:
            self.send(window_update(0, len(payload)), window_update(stream, len(payload)))

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        stream, *more = struct.unpack_from(">II" if len(payload) >= 8 else ">I", payload)
        if kind in (SYN_REPLY, HEADERS):
            found = self.answer(stream)
            assert not found.ended
            assert bool(found.fields) is (kind == HEADERS)
            (found.fields if kind == SYN_REPLY else found.trailers).extend(self._read(payload[4:]))
            found.frames.append((kind, bool(flags & FIN)))
            found.ended = bool(flags & FIN)
        elif kind == RST_STREAM:
            self.answer(stream).reset = more[0]
        elif kind == PING:
            self.pongs.append(stream)
        elif kind == GOAWAY:
            self.goaways.append((stream, more[0]))
        elif kind == SETTINGS:
            self.settings.update(struct.iter_unpack(">II", payload[4:]))
        else:
            assert kind == WINDOW_UPDATE
            assert more[0] > 0
            if stream:
                self.windows[stream] = self.windows.get(stream, self.settings[7]) + more[0]
            else:
                self.window += more[0]

    def _read(self, block: bytes) -> Fields:
        plain = self._inflate.decompress(block)
        (count,) = struct.unpack_from(">I", plain)
        pos, texts = 4, []
        for _ in range(2 * count):
            (size,) = struct.unpack_from(">I", plain, pos)
            texts.append(plain[pos + 4 : pos + 4 + size])
            pos += 4 + size
        assert pos == len(plain)
        return list(zip(texts[::2], texts[1::2], strict=True))

    # --- verdicts ---------------------------------------------------------------------------------

    def assert_alive(self) -> None:
        """The session goes on: a PING is answered."""
        number = 2 * len(self.pongs) + 1
        self.send(ping(number))
        self.until(lambda: number in self.pongs)
        assert not self.goaways

    def assert_over(self, *, status: int = PROTOCOL, last: int | None = None) -> None:
        """GOAWAY with that status, and the last good stream; then the end."""
        while not self.closed:
            self.receive()
        assert self.goaways, "closed without GOAWAY"
        assert self.goaways[-1][1] == status
        assert last in (None, self.goaways[-1][0])

    def flood(self, make: Callable[[], bytes], most: int = 20_000) -> None:
        """Send what ``make`` makes again and again, until a GOAWAY ends it."""
        self.sock.setblocking(False)
        pending = b""
        for _ in range(most):
            pending = pending or make()
            readable, _, _ = select.select([self.sock], [self.sock], [], DEADLINE)
            if readable:
                self.receive()
            if self.goaways or self.closed:
                break
            try:
                pending = pending[self.sock.send(pending) :]
            except ssl.SSLWantWriteError:
                pass
            except OSError:
                break
        self.sock.settimeout(DEADLINE)
        self.assert_over()
