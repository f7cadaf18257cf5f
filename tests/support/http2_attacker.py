"""A client of HTTP/2 that keeps no rules: raw frames over a real socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import hpack
from hyperframe import frame as frames

from support.uwgate import Gateway
from support.waiting import DEADLINE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GOAWAY = 7


class Attacker:
    """A connection on which the usual beginning is over."""

    def __init__(self, gateway: Gateway) -> None:
        self.sock = socket.create_connection(gateway.address, DEADLINE)
        self.encoder = hpack.Encoder()
        self.stream = -1
        self.sock.sendall(PREFACE + frames.SettingsFrame(0).serialize())

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def request(self, *extra: tuple[str, str], end: bool = True) -> bytes:
        """HEADERS of the next stream."""
        self.stream += 2
        fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "h")]
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        block = self.encoder.encode([*fields, *extra])
        return frames.HeadersFrame(self.stream, block, flags=flags).serialize()

    def frame(self, wanted: int) -> tuple[int, int, bytes]:
        """The next frame of that type -> type, stream, payload."""
        while True:
            head = self._take(9)
            payload = self._take(int.from_bytes(head[:3], "big"))
            if head[3] == wanted:
                return head[3], int.from_bytes(head[5:], "big"), payload

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            assert piece, "closed"
            data += piece
        return data

    def flood(self, make: Callable[[], bytes], most: int = 200_000) -> int:
        """Send what ``make`` makes again and again -> the code of the GOAWAY that ends it."""
        self.sock.settimeout(0.0)
        got = b""
        pending = b""
        for _ in range(most):
            pending = pending or make()
            try:
                pending = pending[self.sock.send(pending) :]
            except BlockingIOError:
                pass
            except OSError:
                break
            try:
                got += self.sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                break
            if goaway_in(got) is not None:
                break
        self.sock.settimeout(DEADLINE)
        try:
            while goaway_in(got) is None and (data := self.sock.recv(65536)):
                got += data
        except ConnectionError:
            pass
        code = goaway_in(got)
        assert code is not None, "nobody has told it to stop"
        return code


def goaway_in(data: bytes) -> int | None:
    """The code of the GOAWAY among frames."""
    while len(data) >= 9:
        size = int.from_bytes(data[:3], "big")
        if data[3] == GOAWAY and len(data) >= 17:
            code: int = struct.unpack_from(">L", data, 13)[0]
            return code
        data = data[9 + size :]
    return None
