"""SPDY/3.1 as a server needs it: frames read and written (SPDY draft 3.1, 2.2 and 2.6).

Every frame, all integers big-endian::

    size    control frame                   data frame
    4       bit 1, 15 bits version 3,       bit 0, 31 bits stream id
            16 bits type
    1       flags                           flags: 1 FIN
    3       length of what follows          length of what follows
    length  by type, see below              data

    type  frame          flags      what follows
    1     SYN_STREAM     1 FIN, 2   u32 stream id, u32 associated stream id, 3 bits priority and
                         UNIDIREC-  5 unused, u8 unused, block
                         TIONAL
    2     SYN_REPLY      1 FIN      u32 stream id, block
    3     RST_STREAM                u32 stream id, u32 status
    4     SETTINGS       1 CLEAR    u32 number, then for each u8 flags, u24 id, u32 value
    6     PING                      u32 id, odd if the client asks
    7     GOAWAY                    u32 last good stream id, u32 status
    8     HEADERS        1 FIN      u32 stream id, block
    9     WINDOW_UPDATE             u32 stream id, 0 for the session; u32 bytes more

The first bit of a stream id, and of the bytes of WINDOW_UPDATE, is reserved and not looked at.
A *block* holds names and values, see spdy3_names.py. Other types are read over: the draft knows
types that are no more (5 NOOP, 10 CREDENTIAL), and clients have sent some of their own.

Which streams are open, whose turn it is and how much may be sent, the caller knows; here, one frame
is looked at, and of those before it only the compression and the last stream id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from typing import NamedTuple

from uwgate.protocols.spdy3_names import (
    DICTIONARY,
    MAX_BLOCK,
    BlockReader,
    BlockWriter,
    Field,
    SessionStatus,
    SpdyError,
    SpdyRequest,
    SpdyStreamError,
    StreamStatus,
    request_of,
)

__all__ = [
    "ALPN",
    "DICTIONARY",
    "INITIAL_WINDOW",
    "INITIAL_WINDOW_SIZE",
    "MAX_BLOCK",
    "MAX_CONCURRENT_STREAMS",
    "MAX_CONTROL",
    "MAX_WINDOW",
    "PERSIST",
    "PERSISTED",
    "ROUND_TRIP_TIME",
    "Data",
    "Field",
    "Frame",
    "Goaway",
    "Headers",
    "Ping",
    "RstStream",
    "SessionStatus",
    "Setting",
    "Settings",
    "SpdyError",
    "SpdyReader",
    "SpdyRequest",
    "SpdyStreamError",
    "SpdyWriter",
    "StreamStatus",
    "SynReply",
    "SynStream",
    "WindowUpdate",
    "data_frame",
    "data_header",
    "goaway_frame",
    "ping_frame",
    "request_of",
    "rst_stream_frame",
    "settings_frame",
    "window_update_frame",
]

ALPN = "spdy/3.1"
"""How it is called in TLS."""

MAX_CONTROL = 16384
"""Bytes behind the header of the longest control frame that is read, unless told otherwise; the
draft demands 8192 (2.2.1)."""

INITIAL_WINDOW = 65536
"""Bytes that may be sent on a new stream, and in a new session, before the first SETTINGS and
WINDOW_UPDATE (2.6.8)."""

MAX_WINDOW = 0x7FFFFFFF
"""Bytes that no window may exceed (2.6.8)."""

ROUND_TRIP_TIME, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4, 7
"""Ids of settings (2.6.4), in milliseconds, streams, bytes."""

PERSIST, PERSISTED = 1, 2
"""Flags of a setting (2.6.4): the client shall keep it; the client sends back what it has kept,
so the value is the server's own, of an earlier session."""

_MOST_SETTINGS = 32  # entries of a frame: there are eight ids
_CONTROL = 0x80000000
_VERSION = 3
_ID = 0x7FFFFFFF
_LENGTH = 0xFFFFFF
_FIN, _UNIDIRECTIONAL, _CLEAR = 1, 2, 1
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS = 1, 2, 3, 4
_PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = 6, 7, 8, 9

_U32 = Struct(">I")
_U64 = Struct(">II")  # the header of a frame, a setting, and what follows in most small frames
_SYN = Struct(">IIBx")


class SynStream(NamedTuple):
    """The client opens a stream (2.6.1). ``priority``: 0, the highest, to 7. ``fin``: nothing
    follows on it. ``unidirectional``: no reply may be sent. ``associated``: another stream's id,
    0 for none."""

    stream_id: int
    associated: int
    priority: int
    fin: bool
    unidirectional: bool
    fields: tuple[Field, ...]


class SynReply(NamedTuple):
    """A stream is accepted (2.6.2). As only servers are asked here, no client has reason to."""

    stream_id: int
    fin: bool
    fields: tuple[Field, ...]


class RstStream(NamedTuple):
    """A stream is no more (2.6.3). ``status``: a StreamStatus, or any other number."""

    stream_id: int
    status: int


class Setting(NamedTuple):
    """An entry of SETTINGS. ``setting_id``: 24 bits. ``flags``: PERSIST, PERSISTED."""

    setting_id: int
    value: int
    flags: int = 0


class Settings(NamedTuple):
    """SETTINGS (2.6.4): the first entry of each id, in order. ``clear``: what was kept is void."""

    clear: bool
    entries: tuple[Setting, ...]


class Ping(NamedTuple):
    """PING (2.6.5). Odd: send it back. Even: the answer to one of the server's, or nothing."""

    ping_id: int


class Goaway(NamedTuple):
    """The client will take no more streams (2.6.6). ``status``: a SessionStatus, or any other
    number."""

    last_stream_id: int
    status: int


class Headers(NamedTuple):
    """More fields of a stream (2.6.7): after its data, trailers."""

    stream_id: int
    fin: bool
    fields: tuple[Field, ...]


class WindowUpdate(NamedTuple):
    """``delta`` bytes more may be sent (2.6.8), 1 to MAX_WINDOW. ``stream_id``: 0 for the session.
    """

    stream_id: int
    delta: int


class Data(NamedTuple):
    """Content of a stream (2.2.2)."""

    stream_id: int
    fin: bool
    data: bytes


Frame = (
    SynStream | SynReply | RstStream | Settings | Ping | Goaway | Headers | WindowUpdate | Data
)
"""What `SpdyReader` returns."""


class SpdyReader:
    """Reads what a client sends in one session.

    ``max_control``, ``max_data``: bytes behind the header of a control frame, of a data frame;
    whole frames are waited for, so these bound what a caller has to hold. A client may fill its
    window with one data frame, so ``max_data`` is at least INITIAL_WINDOW, and the largest window
    that was ever announced. ``limit``: bytes of a decompressed block.

    ``last_stream_id``: of the last SYN_STREAM, erroneous or not, 0 before: what GOAWAY tells.
    ``skipped``: frames of unknown types so far, which cost the sender nothing: for who counts them.
    """

    __slots__ = ("_blocks", "_ended", "_max_control", "_max_data", "last_stream_id", "skipped")

    def __init__(
        self,
        *,
        max_control: int = MAX_CONTROL,
        max_data: int = INITIAL_WINDOW,
        limit: int = MAX_BLOCK,
    ) -> None:
        self.last_stream_id = 0
        self.skipped = 0
        self._max_control = max_control
        self._max_data = max_data
        self._blocks = BlockReader(limit)
        self._ended = False

    def next_frame(self, buffer: bytearray) -> Frame | None:
        """Take one frame from the start of ``buffer``; None, and nothing taken but frames of
        unknown types, if there is no whole one.

        Raises SpdyStreamError: the frame is taken, go on with the next.
        Raises SpdyError as soon as it is certain, and from then on always. Both are for frames
        that are malformed: a wrong version, size, stream id or flag ends the session, as it is
        unclear what else the peer means; so does a stream id below an earlier one (2.3.2). Fields
        that are wrong end the stream, as does a SYN_STREAM for the last one again, and a
        WINDOW_UPDATE of a stream by nothing.
        """
        if self._ended:
            raise SpdyError("the session was malformed before")
        try:
            return self._next(buffer)
        except SpdyError:
            self._ended = True
            raise

    def _next(self, buffer: bytearray) -> Frame | None:
        while len(buffer) >= 8:
            first, second = _U64.unpack_from(buffer)
            flags, length = second >> 24, second & _LENGTH
            if first & _CONTROL:
                self._check_control(first, flags, length)
            else:
                self._check_data(first, flags, length)
            end = 8 + length
            if len(buffer) < end:
                return None
            with memoryview(buffer) as view:
                body = bytes(view[8:end])
            del buffer[:end]
            if not first & _CONTROL:
                return Data(first, flags == _FIN, body)
            kind = _KINDS.get(first & 0xFFFF)
            if kind is not None:
                return kind.read(self, flags, body)
            self.skipped += 1
        return None

    @staticmethod
    def slow(buffer: bytearray) -> bool:
        """Whether a frame other than data has begun and is not complete; for what ``next_frame``
        has left."""
        return 0 < len(buffer) < 8 or buffer[:1] >= b"\x80"

    @staticmethod
    def part(buffer: bytearray) -> Data | None:
        """Take from ``buffer``, in which ``next_frame`` has found no whole frame, what is there of
        the content of a data frame, and leave a frame with the rest; None if there is nothing."""
        if len(buffer) <= 8 or buffer[0] & 0x80:
            return None
        stream_id, second = _U64.unpack_from(buffer)
        data = bytes(memoryview(buffer)[8:])
        buffer[:] = _U64.pack(stream_id, second - len(data))
        return Data(stream_id, False, data)

    def _check_data(self, stream_id: int, flags: int, length: int) -> None:
        if not stream_id:
            raise SpdyError("data of stream 0")
        if flags > _FIN:
            raise SpdyError(f"flags {flags} of a data frame")
        if length > self._max_data:
            raise SpdyError(f"a data frame has more than {self._max_data} bytes")

    def _check_control(self, first: int, flags: int, length: int) -> None:
        if first >> 16 & 0x7FFF != _VERSION:
            raise SpdyError(f"a frame of version {first >> 16 & 0x7FFF}")
        if length > self._max_control:
            # Never a mere stream error: its block would be lost, and zlib's state (2.6.3).
            raise SpdyError(f"a control frame has more than {self._max_control} bytes")
        kind = _KINDS.get(first & 0xFFFF)
        if kind is None:
            return
        if not kind.shortest <= length <= kind.longest:
            raise SpdyError(f"{length} bytes in a frame of type {first & 0xFFFF}")
        if flags & ~kind.flags:
            raise SpdyError(f"flags {flags} of a frame of type {first & 0xFFFF}")

    def _on_syn_stream(self, flags: int, body: bytes) -> Frame:
        stream_id, associated, priority = _SYN.unpack_from(body)
        stream_id &= _ID
        last = self.last_stream_id
        if not stream_id & 1:
            raise SpdyError(f"a stream of a client with id {stream_id}")
        if stream_id < last:
            raise SpdyError(f"stream {stream_id} after stream {last}")
        self.last_stream_id = stream_id
        # First, whatever becomes of the stream: zlib must have seen every block.
        fields = self._blocks.read(body[10:], stream_id)
        if stream_id == last:
            raise SpdyStreamError(stream_id, StreamStatus.PROTOCOL_ERROR, "a stream opened twice")
        return SynStream(
            stream_id,
            associated & _ID,
            priority >> 5,
            bool(flags & _FIN),
            bool(flags & _UNIDIRECTIONAL),
            fields,
        )

    def _on_syn_reply(self, flags: int, body: bytes) -> Frame:
        stream_id = _stream_of(body)
        return SynReply(stream_id, bool(flags), self._blocks.read(body[4:], stream_id))

    def _on_headers(self, flags: int, body: bytes) -> Frame:
        stream_id = _stream_of(body)
        return Headers(stream_id, bool(flags), self._blocks.read(body[4:], stream_id))

    def _on_rst_stream(self, flags: int, body: bytes) -> Frame:
        return RstStream(_stream_of(body), _U64.unpack(body)[1])

    def _on_settings(self, flags: int, body: bytes) -> Frame:
        if len(body) != 4 + 8 * _U32.unpack_from(body)[0]:
            raise SpdyError("a SETTINGS frame does not have the length that it tells")
        if len(body) > 4 + 8 * _MOST_SETTINGS:
            raise SpdyError("too many entries of SETTINGS")
        entries: dict[int, Setting] = {}
        for first, value in _U64.iter_unpack(body[4:]):
            setting_id = first & _LENGTH
            if setting_id == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
                raise SpdyError(f"an initial window of {value} bytes")
            entries.setdefault(setting_id, Setting(setting_id, value, first >> 24))
        return Settings(bool(flags), tuple(entries.values()))

    def _on_ping(self, flags: int, body: bytes) -> Frame:
        return Ping(_U32.unpack(body)[0])

    def _on_goaway(self, flags: int, body: bytes) -> Frame:
        last_stream_id, status = _U64.unpack(body)
        return Goaway(last_stream_id & _ID, status)

    def _on_window_update(self, flags: int, body: bytes) -> Frame:
        stream_id, delta = (word & _ID for word in _U64.unpack(body))
        if delta:
            return WindowUpdate(stream_id, delta)
        message = "a window is enlarged by nothing"
        if stream_id:
            raise SpdyStreamError(stream_id, StreamStatus.FLOW_CONTROL_ERROR, message)
        raise SpdyError(message)


def _stream_of(body: bytes) -> int:
    """The stream id at the start of what follows a header; there is no stream 0 to be reset."""
    stream_id: int = _U32.unpack_from(body)[0] & _ID
    if not stream_id:
        raise SpdyError("a frame for stream 0")
    return stream_id


class _Kind(NamedTuple):
    """A type of control frames: bytes that follow the header, flags that it knows, its reader."""

    shortest: int
    longest: int
    flags: int
    read: Callable[[SpdyReader, int, bytes], Frame]


_KINDS = {
    _SYN_STREAM: _Kind(10, _LENGTH, _FIN | _UNIDIRECTIONAL, SpdyReader._on_syn_stream),
    _SYN_REPLY: _Kind(4, _LENGTH, _FIN, SpdyReader._on_syn_reply),
    _RST_STREAM: _Kind(8, 8, 0, SpdyReader._on_rst_stream),
    _SETTINGS: _Kind(4, _LENGTH, _CLEAR, SpdyReader._on_settings),
    _PING: _Kind(4, 4, 0, SpdyReader._on_ping),
    _GOAWAY: _Kind(8, 8, 0, SpdyReader._on_goaway),
    _HEADERS: _Kind(4, _LENGTH, _FIN, SpdyReader._on_headers),
    _WINDOW_UPDATE: _Kind(8, 8, 0, SpdyReader._on_window_update),
}


class SpdyWriter:
    """Writes the frames of a server that have fields; to be sent in the order of the calls, since
    they share their compression. ``level``: of it, 0 to 9; see `BlockWriter` before any but 0."""

    __slots__ = ("_blocks",)

    def __init__(self, level: int = 0) -> None:
        self._blocks = BlockWriter(level)

    def syn_reply(
        self,
        stream_id: int,
        status: bytes,
        fields: Iterable[Field],
        *,
        version: bytes = b"HTTP/1.1",
        fin: bool = False,
    ) -> bytes:
        """SYN_REPLY: the head of a response (2.6.2, 3.2.2). ``status``: code and reason, as in
        ``200 OK``. ``fields``: names in any case; repeated ones are joined, those of a connection
        left out. ``fin``: no data follows.

        Raises ValueError: a field is malformed; or there is more than a frame takes.
        """
        pseudo = ((b":version", version), (b":status", status))
        block = self._blocks.write(pseudo, fields)
        return _control(_SYN_REPLY, _U32.pack(stream_id) + block, fin)

    def headers(self, stream_id: int, fields: Iterable[Field], *, fin: bool = False) -> bytes:
        """HEADERS: trailers (2.6.7); ``fields`` and errors as in `syn_reply`."""
        block = self._blocks.write((), fields)
        return _control(_HEADERS, _U32.pack(stream_id) + block, fin)


def _control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return _framed(_CONTROL | _VERSION << 16 | kind, flags, body)


def _framed(first: int, flags: int, body: bytes) -> bytes:
    if len(body) > _LENGTH:
        raise ValueError(f"a frame takes {_LENGTH} bytes, not {len(body)}")
    return _U64.pack(first, flags << 24 | len(body)) + body


def data_frame(stream_id: int, data: bytes, *, fin: bool = False) -> bytes:
    """DATA (2.2.2): at most what both windows leave. Raises ValueError: 16 MiB or more."""
    return _framed(stream_id, fin, data)


def data_header(stream_id: int, size: int, *, end: bool) -> bytes:
    """The header of a DATA frame of ``size`` bytes, below 16 MiB. ``end``: FIN."""
    return _U64.pack(stream_id, end << 24 | size)


def rst_stream_frame(stream_id: int, status: int) -> bytes:
    """RST_STREAM (2.6.3). ``status``: a StreamStatus."""
    return _control(_RST_STREAM, _U64.pack(stream_id, status))


def settings_frame(entries: Iterable[Setting], *, clear: bool = False) -> bytes:
    """SETTINGS (2.6.4): ``entries`` in the order of their ids, each id once. ``clear``: the client
    shall forget what it has kept."""
    body = [_U64.pack(each.flags << 24 | each.setting_id, each.value) for each in entries]
    return _control(_SETTINGS, _U32.pack(len(body)) + b"".join(body), clear)


def ping_frame(ping_id: int) -> bytes:
    """PING (2.6.5): a client's, with its id, or one of the server's, with an even one."""
    return _control(_PING, _U32.pack(ping_id))


def goaway_frame(last_stream_id: int, status: int = SessionStatus.OK) -> bytes:
    """GOAWAY (2.6.6). ``last_stream_id``: the last that was accepted, 0 if none was. ``status``: a
    SessionStatus."""
    return _control(_GOAWAY, _U64.pack(last_stream_id, status))


def window_update_frame(stream_id: int, delta: int) -> bytes:
    """WINDOW_UPDATE (2.6.8): the client may send ``delta`` bytes more, 1 to MAX_WINDOW, on this
    stream, or with 0 in the session."""
    return _control(_WINDOW_UPDATE, _U64.pack(stream_id, delta))
