"""``python -m benchmarks.reload_node``: an HTTP node of `benchmarks.reload` that announces itself.

::

    GET /echo/SIZE/WORD    SIZE bytes: WORD and a newline, again and again
    PUT /upload            "SHA-256 in hexadecimal, a space, bytes" of the body
    GET /ws                a WebSocket that says everything back

It stands behind a proxy: it reads what that sends and nothing else. At SIGTERM it prints when it
was not served by its processor, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
import signal
import socket
import sys
from typing import cast

import uvloop

from benchmarks.reload_client import Lag, repeated
from uwgate.demo import websocket
from uwgate.subscriptions.packet import Announcement, encode

EVERY = 0.5  # seconds between announcements
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,12})\r\n", re.IGNORECASE)
_KEY = re.compile(rb"\r\nsec-websocket-key: *([^\r]+)\r\n", re.IGNORECASE)
_FIN_AND_CLOSE = 0x88


class Node(asyncio.Protocol):
    """One connection of a proxy, a request at a time."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._buffer = bytearray()
        self._left = 0  # bytes of the body that are still to come
        self._size = 0
        self._hash = hashlib.sha256()
        self._tunnel = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        """From the loop."""
        if self._left:
            self._body(data)
            return
        self._buffer += data
        if self._tunnel:
            self._echo()
            return
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0 and not self._left:
            head = bytes(self._buffer[: end + 4])
            del self._buffer[: end + 4]
            self._request(head)

    def _request(self, head: bytes) -> None:
        target = head.split(b" ", 2)[1].decode()
        key = _KEY.search(head)
        if target == "/ws" and key is not None:
            self._tunnel = True
            self._transport.write(websocket.handshake(key[1].decode()))
        elif target == "/upload":
            length = _LENGTH.search(head)
            self._size = self._left = int(length[1]) if length else 0
            self._hash = hashlib.sha256()
            rest, self._buffer = bytes(self._buffer), bytearray()
            self._body(rest)
        else:
            _, kind, size, word = target.split("/")
            self._answer(repeated(word, int(size)) if kind == "echo" else b"")

    def _body(self, data: bytes) -> None:
        self._hash.update(data)
        self._left -= len(data)
        if not self._left:
            self._answer(f"{self._hash.hexdigest()} {self._size}".encode())

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nX-Node: %b\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (self._name, len(body)) + body)

    def _echo(self) -> None:
        """Every whole frame, unmasked; RFC 6455 §5.2, with payloads below 64 KB."""
        buffer = self._buffer
        while len(buffer) >= 6:
            size, start = buffer[1] & 0x7F, 2
            if size == 126:
                size, start = int.from_bytes(buffer[2:4]), 4
            end = start + 4 + size
            if len(buffer) < end:
                return
            plain = masked(bytes(buffer[start + 4 : end]), bytes(buffer[start : start + 4]))
            first = buffer[0]
            self._transport.write(bytes((first,)) + length_of(size) + plain)
            del buffer[:end]
            if first == _FIN_AND_CLOSE:
                self._transport.close()
                return


def masked(data: bytes, mask: bytes) -> bytes:
    """``data`` with a mask of four bytes put on or taken off (RFC 6455 §5.3)."""
    size = len(data)
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(pattern)).to_bytes(size)


def length_of(size: int, bit: int = 0) -> bytes:
    """The length of a frame below 64 KB, with ``bit`` 0x80 if a mask follows."""
    return bytes((bit | size,)) if size < 126 else bytes((bit | 126,)) + size.to_bytes(2)


async def serve(name: str, port: int, key: str, server: str, ended: asyncio.Event) -> list[float]:
    """Until told to end; see `Lag`. ``server``: "HOST:PORT" of announcements, or ""."""
    loop = asyncio.get_running_loop()
    lag = Lag()
    watching = loop.create_task(lag.watch())
    listening = await loop.create_server(lambda: Node(name), "127.0.0.1", port, backlog=1024)
    host, _, number = server.rpartition(":")
    packet = encode(Announcement(key, f"127.0.0.1:{port}", protocol="http"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while not ended.is_set():
            if server:
                sock.sendto(packet, (host, int(number)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), EVERY)
    watching.cancel()
    listening.close()
    return lag.flat()


async def run(options: argparse.Namespace) -> None:
    """The whole program."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    lags = await serve(options.name, options.port, options.key, options.server, ended)
    print(json.dumps(lags), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Always 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reload_node", description=__doc__)
    parser.add_argument("--name", default="node")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--server", default="", help="HOST:PORT that hears announcements")
    uvloop.run(run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
