"""A client of HTTP/2 over a real socket: python-hyper's ``h2``, blocking."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.settings
from h2.errors import ErrorCodes

from support.client import Address
from support.waiting import DEADLINE

Fields = list[tuple[bytes, bytes]]


@dataclass
class Response:
    """What has come of one. ``reset``: the code of RST_STREAM; ``ended``: all of it is here."""

    status: int = 0
    fields: Fields = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: ErrorCodes | None = None

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.ended or self.reset is not None

    def value(self, name: bytes) -> bytes | None:
        """Of the field of that name; None without it."""
        return dict(self.fields).get(name)


class Http2Client:
    """One connection. ``goaways``: (last stream, code) of those that have come. ``greedy`` False:
    windows do not grow by themselves.

    ``context``: TLS. ``window``: of every stream, as SETTINGS says; None: the default.
    """

    def __init__(
        self,
        address: Address,
        *,
        context: ssl.SSLContext | None = None,
        greedy: bool = True,
        window: int | None = None,
        scheme: bytes = b"http",
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str | bytes) else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(address)
        self.scheme = scheme
        if context is not None:
            self.scheme = b"https"
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
            assert self.sock.selected_alpn_protocol() == "h2"
        config = h2.config.H2Configuration(header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.responses: dict[int, Response] = {}
        self.goaways: list[tuple[int, int]] = []
        self.pongs: list[bytes] = []
        self.settings: dict[int, int] = {}
        self.closed = False
        self._greedy = greedy
        self._rest = b""
        if window is not None:
            # Not by assignment: that would be sent later than it counts.
            values = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=values)
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sock.close()

    # --- asking -----------------------------------------------------------------------------------

    def fields(
        self, method: bytes = b"GET", path: bytes = b"/", *extra: tuple[bytes, bytes]
    ) -> Fields:
        """Of a request."""
        pseudo = [(b":method", method), (b":scheme", self.scheme), (b":path", path)]
        return [*pseudo, (b":authority", b"h"), *extra]

    def begin(self, fields: Fields | None = None, *, end: bool = True) -> int:
        """Send HEADERS -> the stream."""
        stream: int = self.h2.get_next_available_stream_id()
        self.responses[stream] = Response()
        self.h2.send_headers(stream, fields or self.fields(), end_stream=end)
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send body bytes as the windows allow."""
        while len(data) > (room := self.h2.local_flow_control_window(stream)):
            piece = min(room, self.h2.max_outbound_frame_size)
            if piece:
                self.h2.send_data(stream, data[:piece])
                data = data[piece:]
                self.flush()
            else:
                self.receive()
        most = self.h2.max_outbound_frame_size
        while len(data) > most:
            self.h2.send_data(stream, data[:most])
            data = data[most:]
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def ask(self, fields: Fields | None = None, body: bytes | None = None) -> Response:
        """A request, and its response."""
        stream = self.begin(fields, end=body is None)
        if body is not None:
            self.data(stream, body, end=True)
        return self.response(stream)

    def response(self, stream: int) -> Response:
        """Wait for the whole of it."""
        self.until(lambda: self.responses[stream].over)
        return self.responses[stream]

    def until(self, condition: Callable[[], object]) -> None:
        """Receive until that is so."""
        while not condition():
            assert not self.closed, (self.goaways, self.responses)
            self.receive()

    def flush(self) -> None:
        """Send what the state machine wants sent."""
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    # --- receiving --------------------------------------------------------------------------------

    def receive(self) -> None:
        """What comes next; ``closed`` at the end."""
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(self._without_goaways(data)):
            self._note(event)
        if not self.closed:
            self.flush()

    def _without_goaways(self, data: bytes) -> bytes:
        """h2 takes GOAWAY for the end of everything; it is the end of new streams."""
        data, kept = self._rest + data, b""
        while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3], "big")):
            if data[3] == 7:
                last, code = struct.unpack_from(">LL", data, 9)
                self.goaways.append((last, code))
            else:
                kept += data[:size]
            data = data[size:]
        self._rest = data
        return kept

    def _note(self, event: Any) -> None:
        found = self.responses.setdefault(getattr(event, "stream_id", 0) or 0, Response())
        match event:
            case h2.events.ResponseReceived():
                found.fields = list(event.headers)
                found.status = int(dict(event.headers)[b":status"])
            case h2.events.InformationalResponseReceived():
                found.interim.append(int(dict(event.headers)[b":status"]))
            case h2.events.DataReceived():
                found.body += event.data
                if self._greedy:
                    size = event.flow_controlled_length
                    self.h2.acknowledge_received_data(size, event.stream_id)
            case h2.events.TrailersReceived():
                found.trailers = list(event.headers)
            case h2.events.StreamEnded():
                found.ended = True
            case h2.events.StreamReset():
                found.reset = ErrorCodes(event.error_code)
            case h2.events.PingAckReceived():
                self.pongs.append(event.ping_data)
            case h2.events.RemoteSettingsChanged():
                for name, change in event.changed_settings.items():
                    self.settings[int(name)] = change.new_value
