"""Clients of the interop tests: h11 (strict, sans-I/O) and wsproto over plain sockets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h11
import wsproto
from wsproto import events as ws

Fields = list[tuple[str, str]]


@dataclass(slots=True)
class Reply:
    """A response; names of ``fields`` are lower case. ``body`` is empty if it was only hashed."""

    status: int
    version: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    size: int = 0
    sha256: str = ""
    informational: list[int] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def get(self, name: str) -> str | None:
        """The one value of a field; None without it; two of them are an error."""
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None

    def json(self) -> dict[str, Any]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


class Client:
    """One connection, spoken by h11: whatever h11 refuses raises ``h11.RemoteProtocolError``."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        try:
            self.socket.connect((host, port))
        except BaseException:
            self.socket.close()
            raise
        self.port = self.socket.getsockname()[1]
        self.host = f"{host}:{port}"
        self.h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, event: h11.Event) -> None:
        data = self.h11.send(event)
        if data:
            self.socket.sendall(data)

    def start(self, method: str, target: str, fields: Fields | None = None) -> None:
        """Sends a request head; Host is added."""
        if self.h11.our_state is h11.DONE:
            self.h11.start_next_cycle()
        lines = [("Host", self.host), *(fields or [])]
        self._send(h11.Request(method=method, target=target, headers=lines))

    def send(self, data: bytes) -> None:
        self._send(h11.Data(data=data))

    def finish(self, trailers: Fields | None = None) -> None:
        self._send(h11.EndOfMessage(headers=trailers or []))

    def event(self) -> h11.Event:
        """The next event of the response."""
        while True:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                assert not isinstance(event, type)
                return event
            self.h11.receive_data(self.socket.recv(65536))

    def head(self) -> Reply:
        """Reads up to and including the final response head."""
        informational = []
        while True:
            event = self.event()
            if isinstance(event, h11.InformationalResponse):
                informational.append(event.status_code)
                if event.status_code == 101:
                    return self._reply(event, informational)
                continue
            assert isinstance(event, h11.Response), event
            return self._reply(event, informational)

    @staticmethod
    def _reply(event: h11.Response | h11.InformationalResponse, info: list[int]) -> Reply:
        return Reply(
            event.status_code,
            event.http_version.decode(),
            [(k.decode(), v.decode("latin-1")) for k, v in event.headers],
            informational=info,
        )

    def parts(self) -> Iterator[bytes]:
        """The pieces of the response body as they arrive."""
        while True:
            event = self.event()
            if isinstance(event, h11.EndOfMessage):
                return
            assert isinstance(event, h11.Data), event
            yield bytes(event.data)

    def response(self, *, keep: bool = True) -> Reply:
        """The whole response; ``keep=False`` only counts and hashes the body."""
        reply = self.head()
        digest, kept = hashlib.sha256(), []
        for part in self.parts():
            digest.update(part)
            reply.size += len(part)
            if keep:
                kept.append(part)
        reply.body, reply.sha256 = b"".join(kept), digest.hexdigest()
        return reply

    def request(
        self,
        method: str,
        target: str,
        fields: Fields | None = None,
        body: bytes | Iterable[bytes] | None = None,
        *,
        keep: bool = True,
    ) -> Reply:
        """One exchange: bytes get a Content-Length, an iterable of bytes is sent chunked."""
        lines = list(fields or [])
        if isinstance(body, bytes):
            lines.append(("Content-Length", str(len(body))))
        elif body is not None:
            lines.append(("Transfer-Encoding", "chunked"))
        self.start(method, target, lines)
        for part in [body] if isinstance(body, bytes) else body or ():
            self.send(part)
        self.finish()
        return self.response(keep=keep)

    def ended(self) -> bool:
        """Whether the peer closes the connection now (waits for it at most the time limit)."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def fetch(
    port: int,
    target: str,
    *,
    method: str = "GET",
    fields: Fields | None = None,
    body: bytes | Iterable[bytes] | None = None,
    keep: bool = True,
) -> Reply:
    """One request on a connection of its own."""
    with Client(port) as client:
        return client.request(method, target, fields, body, keep=keep)


class WebSocket:
    """A WebSocket client on a raw socket: the handshake and all frames are checked by wsproto."""

    def __init__(self, port: int, target: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(20)
        self.wsproto = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._events: list[ws.Event] = []
        try:
            self.send(ws.Request(host=f"127.0.0.1:{port}", target=target))
            answer = self.event()
            assert isinstance(answer, ws.AcceptConnection), answer
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, event: ws.Event) -> None:
        self.socket.sendall(self.wsproto.send(event))

    def event(self) -> ws.Event:
        while not self._events:
            data = self.socket.recv(65536)
            self.wsproto.receive_data(data or None)
            self._events.extend(self.wsproto.events())
        return self._events.pop(0)

    def message(self) -> str | bytes:
        """The next complete message, its fragments joined; pings are answered on the way."""
        parts: list[str | bytes] = []
        while True:
            event = self.event()
            if isinstance(event, ws.Ping):
                self.send(event.response())
                continue
            if isinstance(event, ws.Pong):
                continue
            assert isinstance(event, ws.TextMessage | ws.BytesMessage), event
            data = event.data
            parts.append(data if isinstance(data, str) else bytes(data))
            if event.message_finished:
                first = parts[0]
                if isinstance(first, str):
                    return "".join(str(part) for part in parts)
                return b"".join(bytes(part) for part in parts if isinstance(part, bytes))

    def echo(self, text: str) -> str | bytes:
        self.send(ws.TextMessage(data=text))
        return self.message()

    def ended(self) -> bool:
        """Whether the connection ends without a Close frame of the peer."""
        with contextlib.suppress(ConnectionResetError):
            return self.socket.recv(65536) == b""
        return True
