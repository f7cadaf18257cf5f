"""The server's side of a WebSocket that says back what it is told (RFC 6455)."""

from __future__ import annotations

import asyncio
import base64
import hashlib

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_FIN = 0x80
_MASKED = 0x80
_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA
_LIMIT = 1 << 20  # bytes of a frame


def handshake(key: str) -> bytes:
    """The 101 response for a ``Sec-WebSocket-Key`` (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send every frame back until the client closes; IncompleteReadError if it just goes."""
    while True:
        first, opcode, payload = await _read_frame(reader)
        if opcode == _PONG:
            continue
        answer = _PONG if opcode == _PING else opcode
        writer.write(_frame((first & _FIN) | answer, payload))
        await writer.drain()
        if opcode == _CLOSE:
            return


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """``(first byte, opcode, unmasked payload)``; ConnectionError for what no client may send."""
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    elif size == 127:
        size = int.from_bytes(await reader.readexactly(8))
    if not second & _MASKED or size > _LIMIT:
        raise ConnectionError("the frame is unmasked or too large")
    mask = await reader.readexactly(4)
    masked = await reader.readexactly(size)
    pattern = (mask * (size // 4 + 1))[:size]
    plain = int.from_bytes(masked) ^ int.from_bytes(pattern)
    return first, first & 0x0F, plain.to_bytes(size)


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((first, size))
    elif size < 1 << 16:
        head = bytes((first, 126)) + size.to_bytes(2)
    else:
        head = bytes((first, 127)) + size.to_bytes(8)
    return head + payload
