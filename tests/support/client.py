"""A client that sends exactly the bytes it is told and reads responses with h11's strictness."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

import h11

from support.waiting import DEADLINE

Address = tuple[str, int] | str


@dataclass
class Reply:
    """One response as h11 understood it; names in ``headers`` are lower-case."""

    status: int
    version: bytes
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    interim: list[tuple[int, list[tuple[bytes, bytes]]]] = field(default_factory=list)

    def all(self, name: bytes) -> list[bytes]:
        """Every value of the field ``name`` (any case), in order."""
        return [value for key, value in self.headers if key == name.lower()]

    def get(self, name: bytes) -> bytes | None:
        """The only value of the field ``name``; None without one, AssertionError with several."""
        values = self.all(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        """Whether the response announces that the connection ends after it."""
        options = b",".join(self.all(b"connection")).lower().split(b",")
        return b"close" in [option.strip() for option in options]


class Truncated(AssertionError):
    """The connection ended before the response did; ``data`` is what arrived of it."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(f"{message}: {data[:2000]!r}")
        self.data = data


class Client:
    """One connection to ``address``: ``(host, port)``, a unix path, or ``@abstract``.

    An abstract name is framed as uWSGI does it: NUL + name + NUL.
    """

    def __init__(self, address: Address, timeout: float = DEADLINE) -> None:
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            target: Address = f"\0{address[1:]}\0" if address[0] == "@" else address
        else:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self.sock = socket.socket(family)
            target = address
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(target)
            if self.sock.family != socket.AF_UNIX:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.sock.close()
            raise
        self.buffer = b""
        self.ended = False
        self.was_reset = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Our own TCP port."""
        return int(self.sock.getsockname()[1])

    def close(self) -> None:
        """Close the socket (FIN, or RST with unread data)."""
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        self.sock.sendall(data)

    def send_willing(self, data: bytes) -> None:
        """Send as much of ``data`` as the peer takes: it may answer and close before the end."""
        try:
            self.sock.sendall(data)
        except OSError:
            pass

    def send_pieces(self, pieces: Iterable[bytes]) -> None:
        """Send each piece on its own, so that the peer may see them apart.

        Loopback delivers each ``send`` as a segment of its own (TCP_NODELAY); whether the peer
        reads them one by one is up to it, and both must give the same result.
        """
        for piece in pieces:
            self.sock.sendall(piece)

    def send_bytewise(self, data: bytes) -> None:
        """Send ``data`` byte by byte."""
        self.send_pieces(data[i : i + 1] for i in range(len(data)))

    def half_close(self) -> None:
        """Send FIN; keep reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def receive(self) -> bytes:
        """Some bytes, or b"" at the end; a reset counts as an end and is remembered."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            self.was_reset = True
            data = b""
        self.ended = self.ended or not data
        return data

    def read_exactly(self, count: int) -> bytes:
        """``count`` bytes, or Truncated."""
        data = b""
        while len(data) < count:
            more = self.receive()
            if not more:
                raise Truncated(f"wanted {count} bytes", data)
            data += more
        self.buffer = data[count:] + self.buffer
        return data[:count]

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and including ``mark``, or Truncated."""
        data = b""
        while mark not in data:
            more = self.receive()
            if not more:
                raise Truncated(f"wanted {mark!r}", data)
            data += more
        end = data.index(mark) + len(mark)
        self.buffer = data[end:] + self.buffer
        return data[:end]

    def read_to_end(self) -> bytes:
        """Everything until the peer closes (or resets: see ``was_reset``)."""
        data = b""
        while more := self.receive():
            data += more
        return data

    def read_response(self, method: bytes = b"GET", *, upgrade: bytes = b"") -> Reply:
        """One whole final response to a ``method`` request, parsed by h11.

        Interim responses are gathered in ``Reply.interim``. With ``upgrade`` (a protocol name) a
        101 ends the response; what follows it stays unread. Raises Truncated if the connection ends
        too early, AssertionError if h11 finds the response malformed.
        """
        parser = _client_parser(method, upgrade)
        interim: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        reply: Reply | None = None
        raw = b""
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                if self.ended:
                    raise Truncated(str(error), raw) from error
                raise AssertionError(f"malformed response: {error}: {raw[:2000]!r}") from error
            if event is h11.NEED_DATA:
                data = self.receive()
                raw += data
                parser.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                interim.append((event.status_code, list(event.headers)))
                if event.status_code == 101:
                    self.buffer = parser.trailing_data[0] + self.buffer
                    return _reply(event, interim)
            elif isinstance(event, h11.Response):
                reply = _reply(event, interim)
            elif isinstance(event, h11.Data):
                assert reply is not None
                reply.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert reply is not None
                reply.trailers = list(event.headers)
                self.buffer = parser.trailing_data[0] + self.buffer
                return reply
            else:
                raise Truncated(f"no response ({event!r})", raw)

    def ask(self, request: bytes, method: bytes = b"GET") -> Reply:
        """Send ``request`` and read its response."""
        self.send(request)
        return self.read_response(method)

    def assert_open(self, host: bytes = b"still.open") -> None:
        """Assert that the connection still serves requests, with a new one."""
        assert not self.buffer, self.buffer
        reply = self.ask(b"GET /still-open HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert reply.status == 200, reply

    def assert_closed(self) -> None:
        """Assert that the peer ends the connection without another byte."""
        rest = self.read_to_end()
        assert rest == b"", rest


def _client_parser(method: bytes, upgrade: bytes) -> h11.Connection:
    """An h11 connection that has just sent a ``method`` request."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    headers: list[tuple[bytes, bytes]] = [(b"Host", b"h")]
    if upgrade:
        headers += [(b"Connection", b"upgrade"), (b"Upgrade", upgrade)]
    parser.send(h11.Request(method=method, target=b"/", headers=headers))
    parser.send(h11.EndOfMessage())
    return parser


def _reply(
    event: h11.Response | h11.InformationalResponse,
    interim: list[tuple[int, list[tuple[bytes, bytes]]]],
) -> Reply:
    return Reply(
        status=event.status_code,
        version=event.http_version,
        reason=event.reason,
        headers=list(event.headers),
        interim=interim,
    )
