"""A client of HTTP/2 that sends whatever it is told and says how the server took it.

Frames are made and read with ``hyperframe``, header blocks with ``hpack``; what neither would make
is sent as bytes. Silence is never an answer: every wait ends with an AssertionError that lists the
frames that have come.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import hpack
from h2.errors import ErrorCodes
from hyperframe import frame as frames

from support.uwgate import Gateway
from support.waiting import DEADLINE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, WINDOW, FRAME_SIZE, LIST_SIZE = range(1, 7)
MOST = 2**31 - 1  # of a window
END_IS_ENOUGH = False
"""A connection error may be the end alone, as for h2spec; False: GOAWAY must say why before it."""

Fields = list[tuple[str, str]]
Piece = bytes | frames.Frame


def fields(method: str = "GET", path: str = "/", *extra: tuple[str, str]) -> Fields:
    """Of a request: ``:method``, ``:scheme``, ``:path``, ``:authority``, then others."""
    return [
        (":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost"),
        *extra,
    ]  # fmt: skip


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame with that header, however wrong. ``stream``: 32 bits, the reserved one included."""
    return struct.pack(">LBBL", len(payload), kind, flags, stream)[1:] + payload


def data(stream: int, payload: bytes = b"test", *, end: bool = True) -> bytes:
    """DATA."""
    return raw(DATA, END_STREAM if end else 0, stream, payload)


def settings(*entries: tuple[int, int]) -> bytes:
    """SETTINGS, entries in that order; a name may come twice."""
    return raw(SETTINGS, 0, 0, b"".join(struct.pack(">HL", *entry) for entry in entries))


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE; 0 is possible."""
    return raw(WINDOW_UPDATE, 0, stream, struct.pack(">L", increment))


def priority(stream: int, on: int = 0, weight: int = 255, *, exclusive: bool = False) -> bytes:
    """PRIORITY. ``weight``: as on the wire, one less than it means."""
    return raw(PRIORITY, 0, stream, struct.pack(">LB", exclusive << 31 | on, weight))


def rst_stream(stream: int, code: int = ErrorCodes.CANCEL) -> bytes:
    """RST_STREAM."""
    return raw(RST_STREAM, 0, stream, struct.pack(">L", code))


def goaway(code: int, debug: bytes = b"", stream: int = 0) -> bytes:
    """GOAWAY; last stream 0."""
    return raw(GOAWAY, 0, stream, struct.pack(">LL", 0, code) + debug)


def continuation(stream: int, block: bytes, *, end: bool = True) -> bytes:
    """CONTINUATION."""
    return raw(CONTINUATION, END_HEADERS if end else 0, stream, block)


@dataclass
class Answer:
    """What has come on a stream. ``reset``: the code of RST_STREAM; ``size``: bytes that count
    for the windows."""

    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    size: int = 0
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        """0 as long as there is none."""
        return int(dict(self.fields).get(b":status", 0))


class RawHttp2:
    """One connection. ``settings``: the server's; ``answers``: by stream; ``seen``: every frame."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(address)
        self.encoder = hpack.Encoder()
        self.settings: dict[int, int] = {}
        self.answers: dict[int, Answer] = {}
        self.seen: list[frames.Frame] = []
        self.closed = False
        self._decoder = hpack.Decoder()
        self._block = b""
        self._buffer = b""
        self._pings = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    # --- sending ----------------------------------------------------------------------------------

    def send(self, *pieces: Piece) -> None:
        """Frames and bytes, in one piece. Whether they arrive is seen from what comes back."""
        made = [piece if isinstance(piece, bytes) else piece.serialize() for piece in pieces]
        try:
            self.sock.sendall(b"".join(made))
        except ConnectionError:
            pass  # what the server has said before is still there to read

    def block(self, wanted: Fields | None = None) -> bytes:
        """A header block; the order of calls is that of sending, for the dynamic table's sake."""
        return self.encoder.encode(fields() if wanted is None else wanted)

    def headers(
        self,
        stream: int = 1,
        wanted: Fields | None = None,
        *,
        end: bool = True,
        end_headers: bool = True,
    ) -> bytes:
        """HEADERS with the block of these fields; without: GET /."""
        flags = (END_STREAM if end else 0) | (END_HEADERS if end_headers else 0)
        return raw(HEADERS, flags, stream, self.block(wanted))

    def opened(self, stream: int = 1, *extra: tuple[str, str]) -> bytes:
        """HEADERS of a POST whose body is still to come."""
        return self.headers(stream, fields("POST", "/", *extra), end=False)

    def handshake(self, entries: dict[int, int] | None = None) -> None:
        """Preface and SETTINGS -> the server's SETTINGS, first of all, and its acknowledgement."""
        self.send(PREFACE, settings(*(entries or {}).items()))
        first = self.wait(lambda frame: True, "the first frame")
        assert isinstance(first, frames.SettingsFrame), first
        assert "ACK" not in first.flags, first
        self.send(raw(SETTINGS, ACK, 0))
        self.acknowledged()

    # --- receiving --------------------------------------------------------------------------------

    def receive(self, limit: float) -> frames.Frame | None:
        """The next frame; None at the end; AssertionError at that time (``time.monotonic``)."""
        head = self._take(9, limit)
        if head is None:
            return None
        frame, size = frames.Frame.parse_frame_header(memoryview(head))
        payload = self._take(size, limit)
        if payload is None:
            return None
        frame.parse_body(memoryview(payload))
        self.seen.append(frame)
        self._note(frame)
        return frame

    def wait(self, wanted: Callable[[frames.Frame], bool], what: str) -> frames.Frame:
        """The next frame that is so; AssertionError at the end and at the deadline."""
        limit = time.monotonic() + DEADLINE
        while (frame := self.receive(limit)) is not None:
            if wanted(frame):
                return frame
        raise AssertionError(f"closed before {what}; {self.story()}")

    def acknowledged(self) -> None:
        """SETTINGS with ACK comes."""
        self.wait(
            lambda frame: isinstance(frame, frames.SettingsFrame) and "ACK" in frame.flags,
            "SETTINGS with ACK",
        )

    def rest(self) -> bytes:
        """All bytes to the end of the connection."""
        limit = time.monotonic() + DEADLINE
        while not self.closed:
            self._more(limit)
        return self._buffer

    def to_the_end(self) -> None:
        """Take frames until the connection ends."""
        limit = time.monotonic() + 2 * DEADLINE
        while self.receive(limit) is not None:
            pass

    def story(self) -> str:
        """The frames that have come, for messages."""
        return f"came: {self.seen}"

    def answer(self, stream: int) -> Answer:
        """What has come on that stream."""
        return self.answers.setdefault(stream, Answer())

    def _take(self, size: int, limit: float) -> bytes | None:
        while len(self._buffer) < size:
            if self.closed:
                assert not self._buffer, f"half a frame, then the end; {self.story()}"
                return None
            self._more(limit)
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _more(self, limit: float) -> None:
        remaining = limit - time.monotonic()
        try:
            self.sock.settimeout(max(remaining, 0.001))
            piece = self.sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"nothing more happens; {self.story()}") from None
        except ConnectionError:
            piece = b""
        self.sock.settimeout(DEADLINE)
        self.closed = not piece
        self._buffer += piece

    def _note(self, frame: frames.Frame) -> None:
        answer = self.answer(frame.stream_id)
        match frame:
            case frames.SettingsFrame() if "ACK" not in frame.flags:
                self.settings.update(frame.settings)
            case frames.RstStreamFrame():
                answer.reset = frame.error_code
            case frames.DataFrame():
                answer.size += frame.flow_controlled_length
            case frames.HeadersFrame() | frames.ContinuationFrame():
                self._block += frame.data
                if "END_HEADERS" in frame.flags:
                    answer.fields += self._decoder.decode(self._block, raw=True)
                    self._block = b""
        answer.ended |= "END_STREAM" in frame.flags

    # --- verdicts ---------------------------------------------------------------------------------

    def assert_alive(self) -> None:
        """A PING is answered, with the same bytes; nothing that comes before says an error."""
        payload = b"alive%03d" % next(self._pings)
        self.send(raw(PING, 0, 0, payload))
        self.assert_pong(payload)

    def assert_read(self) -> None:
        """What was sent has been read."""
        self.send(raw(PING, 0, 0, b"are read"))
        self.assert_pong(b"are read")

    def assert_pong(self, payload: bytes) -> None:
        """The answer to a PING comes."""
        found = self.wait(_of(frames.PingFrame, frames.GoAwayFrame), "the answer to PING")
        assert isinstance(found, frames.PingFrame), self.story()
        assert ("ACK" in found.flags, found.opaque_data) == (True, payload), self.story()

    def assert_alive_or_finished(self) -> None:
        """A PING is answered, or the connection ends in peace: no GOAWAY that names an error."""
        payload = b"still%03d" % next(self._pings)
        self.send(raw(PING, 0, 0, payload))
        limit = time.monotonic() + DEADLINE
        while (frame := self.receive(limit)) is not None:
            if isinstance(frame, frames.GoAwayFrame):
                assert frame.error_code == ErrorCodes.NO_ERROR, self.story()
            if isinstance(frame, frames.PingFrame):
                assert ("ACK" in frame.flags, frame.opaque_data) == (True, payload), self.story()
                return

    def assert_answered(self, stream: int = 1) -> Answer:
        """A whole response with status 200 comes on that stream, and the connection goes on."""
        answer = self.finished(stream)
        assert answer.status == 200, (answer, self.story())
        self.assert_alive()
        return answer

    def finished(self, stream: int = 1) -> Answer:
        """Wait until the server has ended its side of the stream, without an error."""
        answer = self.answer(stream)
        while not answer.ended:
            self.wait(lambda frame: frame.stream_id in (0, stream), f"the end of stream {stream}")
            assert answer.ended or answer.reset is None, self.story()
        return answer

    def assert_connection_error(self, *codes: ErrorCodes, silent: bool = END_IS_ENOUGH) -> None:
        """GOAWAY with one of the codes, then the end; or, ``silent``, the end alone."""
        limit = time.monotonic() + DEADLINE
        told = False
        while (frame := self.receive(limit)) is not None:
            if isinstance(frame, frames.GoAwayFrame):
                assert frame.error_code in codes, (codes, self.story())
                told = True
        assert told or silent, f"closed without GOAWAY; {self.story()}"

    def assert_stream_error(self, stream: int, *codes: ErrorCodes, gentle: bool = False) -> None:
        """RST_STREAM of that stream with one of the codes, and the connection goes on; or, unless
        ``gentle``, the connection error.

        RST_STREAM with NO_ERROR says that the answer is complete: the error is still to come.
        """
        limit = time.monotonic() + DEADLINE
        told = False
        while (frame := self.receive(limit)) is not None:
            if isinstance(frame, frames.GoAwayFrame):
                assert frame.error_code in codes, (codes, self.story())
                told = True
            elif isinstance(frame, frames.RstStreamFrame) and frame.error_code:
                assert frame.stream_id == stream, (codes, self.story())
                assert frame.error_code in codes, (codes, self.story())
                self.assert_alive()
                return
        assert not gentle, f"the connection has ended, not only the stream; {self.story()}"
        assert told or END_IS_ENOUGH, f"closed without GOAWAY; {self.story()}"

    def assert_window_kept(self, stream: int, size: int) -> None:
        """So many body bytes come on the stream, and not one more as long as nothing is granted."""
        answer = self.answer(stream)
        while answer.size < size:
            self.wait(_of(frames.DataFrame), f"{size} bytes")
        self.assert_alive()
        assert answer.size == size, self.story()
        assert not answer.ended, "the body is too short for this test"


def _of(*kinds: type[frames.Frame]) -> Callable[[frames.Frame], bool]:
    return lambda frame: isinstance(frame, kinds)


@contextmanager
def connected(
    address: tuple[str, int], entries: dict[int, int] | None = None
) -> Iterator[RawHttp2]:
    """A connection on which SETTINGS have been exchanged; ``entries``: ours."""
    with RawHttp2(address) as client:
        client.handshake(entries)
        yield client


def at(gateway: Gateway, entries: dict[int, int] | None = None) -> RawHttp2:
    """A connection to ``gateway``, behind the handshake. ``entries``: of our SETTINGS."""
    client = RawHttp2(gateway.address)
    client.handshake(entries)
    return client
