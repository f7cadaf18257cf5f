"""The two nodes of the demonstration: one speaks HTTP/1.1, the other the uwsgi protocol.

They stand behind the router, so they read what it sends and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator

from uwgate.demo import websocket
from uwgate.demo.pages import Page, Request, page, stream
from uwgate.protocols.chunked import ChunkedReader, encode_chunk, last_chunk
from uwgate.protocols.uwsgi import PacketError, parse_packet
from uwgate.subscriptions.packet import UNSUBSCRIBE, Announcement, encode

_READ = 65536
_HEAD_LIMIT = 1 << 20
# Seconds between announcements: at first the router may not be there yet.
_FIRST_PAUSE, _PAUSE = 0.1, 5.0


async def serve(
    http: socket.socket, uwsgi: socket.socket, key: str, server: tuple[str, int]
) -> None:
    """Serve both nodes on bound, listening sockets until SIGTERM, and announce them for ``key``
    to the subscription server."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await asyncio.start_server(_http_connection, sock=http, limit=_HEAD_LIMIT)
    await asyncio.start_server(_uwsgi_connection, sock=uwsgi, limit=_HEAD_LIMIT)
    await _announce(stopped, http, uwsgi, key, server)


async def _announce(
    stopped: asyncio.Event,
    http: socket.socket,
    uwsgi: socket.socket,
    key: str,
    server: tuple[str, int],
) -> None:
    """What any node does to join: a small packet now and then, and one more to say goodbye."""
    host, port = http.getsockname()
    nodes = [Announcement(key, f"{host}:{port}", protocol="http")]
    host, port = uwsgi.getsockname()
    nodes.append(Announcement(key, f"{host}:{port}"))
    pause = _FIRST_PAUSE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while not stopped.is_set():
            for node in nodes:
                sock.sendto(encode(node), server)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), pause)
            pause = min(2 * pause, _PAUSE)
        for node in nodes:
            node.command = UNSUBSCRIBE
            sock.sendto(encode(node), server)


@contextlib.asynccontextmanager
async def _connection(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close at the end; a peer that goes early, or the end of the demo, is nothing to report."""
    try:
        yield
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


# --- HTTP ----------------------------------------------------------------------------------------


async def _http_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with _connection(writer):
        while True:
            request = await _read_http(reader)
            if request.path == "/ws" and "sec-websocket-key" in request.headers:
                await _echo(request, reader, writer)
                return
            pieces = stream(request)
            if pieces is None:
                writer.write(_whole(page(request), request.method, b"keep-alive"))
            else:
                await _send_chunked(writer, request.method, *pieces)
            await writer.drain()


async def _read_http(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head[:-4].split("\r\n")
    method, target, _version = line.split(" ")
    seen = tuple((name, value.strip()) for name, _, value in (one.partition(":") for one in lines))
    headers = {name.lower(): value for name, value in seen}
    body = b""
    if "transfer-encoding" in headers:
        body = await _read_chunked(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    return Request("the HTTP node", "HTTP/1.1", method, target, seen, headers, body)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    """A chunked body; the router sends no byte of a next request before this one is answered."""
    chunks = ChunkedReader()
    parts: list[bytes] = []
    while not chunks.done:
        data = await reader.read(_READ)
        if not data:
            raise ConnectionError("the body is incomplete")
        chunks.feed(data)
        parts += chunks.payload
    return b"".join(parts)


async def _send_chunked(
    writer: asyncio.StreamWriter, method: str, content_type: str, pieces: AsyncIterator[bytes]
) -> None:
    writer.write(_head("200 OK", content_type, b"Transfer-Encoding: chunked\r\n"))
    if method == "HEAD":
        return
    async for piece in pieces:
        writer.write(encode_chunk(piece))
        await writer.drain()
    writer.write(last_chunk(b""))


# --- uwsgi ---------------------------------------------------------------------------------------


async def _uwsgi_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with _connection(writer):
        request = await _read_uwsgi(reader)
        if request.path == "/ws" and "sec-websocket-key" in request.headers:
            await _echo(request, reader, writer)
            return
        pieces = stream(request)
        if pieces is None:
            writer.write(_whole(page(request), request.method, b"close"))
        else:
            content_type, parts = pieces
            writer.write(_head("200 OK", content_type, b""))  # ends where the connection ends
            if request.method != "HEAD":
                async for piece in parts:
                    writer.write(piece)
                    await writer.drain()
        await writer.drain()


async def _read_uwsgi(reader: asyncio.StreamReader) -> Request:
    data = await reader.readexactly(4)
    data += await reader.readexactly(int.from_bytes(data[1:3], "little"))
    try:
        packet = parse_packet(data)
    except PacketError as error:
        raise ConnectionError(str(error)) from error
    assert packet is not None
    seen = tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in packet.variables)
    variables = dict(seen)
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in seen
        if name.startswith(("HTTP_", "CONTENT_"))
    }
    body = await reader.readexactly(int(variables.get("CONTENT_LENGTH") or 0))
    method, target = variables["REQUEST_METHOD"], variables["REQUEST_URI"]
    return Request("the uwsgi node", "uwsgi", method, target, seen, headers, body)


# --- both ----------------------------------------------------------------------------------------


async def _echo(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(websocket.handshake(request.headers["sec-websocket-key"]))
    await websocket.echo(reader, writer)
    await writer.drain()


def _head(status: str, content_type: str, framing: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%b\r\n" % (
        status.encode(),
        content_type.encode(),
        framing,
    )


def _whole(answer: Page, method: str, connection: bytes) -> bytes:
    framing = b"Content-Length: %d\r\nConnection: %b\r\n" % (len(answer.body), connection)
    head = _head(answer.status, answer.content_type, framing)
    return head if method == "HEAD" else head + answer.body
