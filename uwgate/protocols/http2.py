"""HTTP/2 frames of the server's side (RFC 9113 §4, §6): read from bytes, and made.

Frame, 9 bytes and a payload: length (24 bits), type (8), flags (8), reserved bit, stream (31).
Nothing here knows which streams there are: see ``http2_streams``; header blocks are ``hpack``'s.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends before its first frame (RFC 9113 §3.4)."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
PRIORITY_UPDATE = 16
"""RFC 9218 §7.1."""

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20
SELF_DEPENDENT = 0x100
"""No flag of the wire: HEADERS that depends on its own stream (RFC 9113 §5.3.2, formerly)."""
_ALONE = END_HEADERS | PADDED | PRIORITISED

MAX_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384
LARGEST_FRAME = (1 << 24) - 1

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = range(1, 5)
MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 5, 6
ENABLE_CONNECT_PROTOCOL = 8
"""RFC 8441 §3."""
NO_RFC7540_PRIORITIES = 9
"""RFC 9218 §2.1."""

_HEADER = Struct(">HBBBL")
_LONG = Struct(">L")
_SETTING = Struct(">HL")
_WINDOW = Struct(">HBBBLL")

# Frames of a header block behind the first: more are no request, however small (CVE-2024-27316).
_MOST_CONTINUATIONS = 16
_MOST_SETTINGS = 32  # entries of a frame: there are ten names
_MOST_BYTES = 65536  # at once, without DATA
_REQUEST = 3072  # bytes of another frame that cost as much as a request

MOST_AT_ONCE = 128
"""Frames of a connection that are dealt with before others have their turn."""


class ErrorCode(IntEnum):
    """RFC 9113 §7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Http2Error(Exception):
    """The connection cannot go on: GOAWAY with ``code`` (RFC 9113 §5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class StreamError(Exception):
    """One stream is over: RST_STREAM with ``code`` (RFC 9113 §5.4.2)."""

    def __init__(self, stream: int, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.stream = stream
        self.code = code


class Frame(NamedTuple):
    """``payload``: without padding and priority; of HEADERS the whole block, CONTINUATION
    included. ``size``: bytes of the payload as sent, which is what flow control counts."""

    type: int
    flags: int
    stream: int
    payload: bytes
    size: int


_new = tuple.__new__  # the constructor of a NamedTuple takes twice as long
# type -> (fewest, most) bytes of the payload
_SIZES = {
    PRIORITY: (5, 5),
    RST_STREAM: (4, 4),
    SETTINGS: (0, LARGEST_FRAME),
    PING: (8, 8),
    GOAWAY: (8, LARGEST_FRAME),
    WINDOW_UPDATE: (4, 4),
    PRIORITY_UPDATE: (4, LARGEST_FRAME),
}
_ON_STREAMS = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION))
_ON_CONNECTION = frozenset((SETTINGS, PING, GOAWAY, PRIORITY_UPDATE))


class FrameReader:
    """Bytes of a client behind the preface -> frames. ``max_frame``: bytes of a payload that we
    have announced; ``max_block``: bytes of a header block, compressed. ``more``: frames that came
    are left for the next call.

    Every frame that is returned has a valid size and, as to zero or not, stream.
    """

    __slots__ = (
        "_at", "_block", "_buffer", "_continuations", "_first", "max_block", "max_frame", "more",
    )  # fmt: skip

    def __init__(self, max_frame: int = DEFAULT_FRAME, max_block: int = 65536) -> None:
        self.max_frame = max_frame
        self.max_block = max_block
        self.more = False
        self._buffer = b""
        self._at = 0  # what comes before was read
        self._first: Frame | None = None  # HEADERS whose block goes on
        self._block: list[bytes] = []
        self._continuations = 0

    @property
    def slow(self) -> bool:
        """Whether a frame other than DATA, or a header block, has begun and is not complete."""
        if self._first is not None:
            return True
        at = self._at
        return len(self._buffer) > at and self._buffer[at + 3 : at + 4] != b"\0"

    def feed(self, data: bytes) -> list[Frame]:
        """Frames that are complete now: at most 128, or about 20 requests, or 64 KB without DATA,
        so that a flood takes turns with others; ``feed(b"")`` goes on. Raises FrameError, behind
        which nothing may be read."""
        pos = self._at
        if self._buffer:
            data, pos = (self._buffer[pos:] + data, 0) if data else (self._buffer, pos)
        frames: list[Frame] = []
        end, left = len(data), _MOST_BYTES
        self.more = True
        try:
            for _ in range(MOST_AT_ONCE):
                if end - pos < 9:
                    self.more = False
                    break
                high, low, kind, flags, stream = _HEADER.unpack_from(data, pos)
                size = high << 8 | low
                stream &= MAX_WINDOW  # a reserved bit
                if size > self.max_frame:
                    raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                if end - pos - 9 < size:
                    self.more = False
                    break
                payload = data[pos + 9 : pos + 9 + size]
                pos += 9 + size
                if kind == HEADERS and flags & _ALONE == END_HEADERS and stream and not self._first:
                    frames.append(_new(Frame, (HEADERS, flags, stream, payload, size)))
                    size += _REQUEST
                else:
                    frame = self._frame(kind, flags, stream, payload, size)
                    if frame is None:
                        continue
                    frames.append(frame)
                    if kind == DATA:
                        continue
                    size = frame.size + _REQUEST if frame.type == HEADERS else frame.size
                left -= size
                if left < 0:
                    break
        except Http2Error as error:
            self._buffer, self._at, self.more = b"", 0, False
            raise FrameError(error.code, str(error), frames) from None
        if self.more:
            self._buffer, self._at = data, pos
        else:
            self._buffer, self._at = data[pos:], 0
        return frames

    def _frame(
        self, kind: int, flags: int, stream: int, payload: bytes, size: int
    ) -> Frame | None:
        if self._first is not None:
            return self._continued(self._first, kind, flags, stream, payload)
        if kind == DATA:
            if not stream:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
            if flags & PADDED:
                payload = _unpadded(payload)
            return Frame(DATA, flags, stream, payload, size)
        if kind == HEADERS:
            return self._headers(flags, stream, payload, size)
        if kind in (CONTINUATION, PUSH_PROMISE):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"unexpected frame of type {kind}")
        _check(kind, flags, stream, size)
        return Frame(kind, flags, stream, payload, size)

    def _headers(self, flags: int, stream: int, payload: bytes, size: int) -> Frame | None:
        if not stream:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & PADDED:
            payload = _unpadded(payload)
        flags &= 0xFF
        if flags & PRIORITISED:
            if len(payload) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            if _LONG.unpack_from(payload)[0] & MAX_WINDOW == stream:
                flags |= SELF_DEPENDENT
            payload = payload[5:]
        frame = Frame(HEADERS, flags, stream, payload, size)
        if flags & END_HEADERS:
            return frame
        self._first = frame
        self._block = [payload]
        self._continuations = 0
        return None

    def _continued(
        self, first: Frame, kind: int, flags: int, stream: int, payload: bytes
    ) -> Frame | None:
        """The next frame of a header block: nothing may come between (RFC 9113 §6.10)."""
        if kind != CONTINUATION or stream != first.stream:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a frame in the middle of a header block")
        self._block.append(payload)
        self._continuations += 1
        length = sum(map(len, self._block))
        if self._continuations > _MOST_CONTINUATIONS or length > self.max_block:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if not flags & END_HEADERS:
            return None
        self._first = None
        block, self._block = b"".join(self._block), []
        return first._replace(flags=first.flags | END_HEADERS, payload=block, size=length)


class FrameError(Http2Error):
    """``frames``: those that were complete and good before the one that is not."""

    def __init__(self, code: ErrorCode, reason: str, frames: list[Frame]) -> None:
        super().__init__(code, reason)
        self.frames = frames


def _unpadded(payload: bytes) -> bytes:
    """RFC 9113 §6.1: pad length, content, padding."""
    if not payload:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "no pad length")
    padding = payload[0]
    if padding >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - padding]


def _check(kind: int, flags: int, stream: int, size: int) -> None:
    """Sizes and streams of the frames without a body."""
    limits = _SIZES.get(kind)
    if limits is not None and not limits[0] <= size <= limits[1]:
        # RFC 9113 §6.3: of PRIORITY it would be one of the stream alone; the frame means nothing
        # any more, and who sends it wrong is not to be trusted with the rest.
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of type {kind} with {size} bytes")
    if kind == SETTINGS and (size % 6 or (flags & ACK and size)):
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {size} bytes")
    if (kind in _ON_STREAMS and not stream) or (kind in _ON_CONNECTION and stream):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"type {kind} on stream {stream}")


# --- what a frame says ----------------------------------------------------------------------------


def number(payload: bytes) -> int:
    """The first 32 bits: a code (RST_STREAM), or with the reserved bit cleared by `& MAX_WINDOW` a
    stream or an increment."""
    value: int = _LONG.unpack_from(payload)[0]
    return value


def settings(payload: bytes) -> list[tuple[int, int]]:
    """The entries of SETTINGS in order, unknown ones included. Raises Http2Error for a value that
    is not allowed (RFC 9113 §6.5.2), and for more than 32 entries."""
    if len(payload) > _MOST_SETTINGS * _SETTING.size:
        raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many entries of SETTINGS")
    entries: list[tuple[int, int]] = list(_SETTING.iter_unpack(payload))
    for name, value in entries:
        if name in (ENABLE_PUSH, ENABLE_CONNECT_PROTOCOL, NO_RFC7540_PRIORITIES) and value > 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"setting {name} = {value}")
        if name == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {value}")
        if name == MAX_FRAME_SIZE and not DEFAULT_FRAME <= value <= LARGEST_FRAME:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"frames of {value} bytes")
    return entries


# --- frames to send -------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def header_frames(stream: int, block: bytes, most: int, *, end: bool) -> bytes:
    """HEADERS, and CONTINUATION where the block has more than ``most`` bytes."""
    flags = END_STREAM if end else 0
    size = len(block)
    if size <= most:
        return _HEADER.pack(size >> 8, size & 0xFF, HEADERS, flags | END_HEADERS, stream) + block
    pieces = [frame(HEADERS, flags, stream, block[:most])]
    for start in range(most, size, most):
        last = END_HEADERS if start + most >= size else 0
        pieces.append(frame(CONTINUATION, last, stream, block[start : start + most]))
    return b"".join(pieces)


def data_header(stream: int, size: int, *, end: bool) -> bytes:
    """The 9 bytes before ``size`` bytes of DATA."""
    return _HEADER.pack(size >> 8, size & 0xFF, DATA, int(end), stream)


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE; stream 0 is the connection."""
    return _WINDOW.pack(0, 4, WINDOW_UPDATE, 0, stream, increment)


def rst_stream(stream: int, code: int) -> bytes:
    """RST_STREAM."""
    return _WINDOW.pack(0, 4, RST_STREAM, 0, stream, code)


def goaway(last: int, code: int, text: bytes = b"") -> bytes:
    """GOAWAY; ``last``: the highest stream that was, or may be, acted on."""
    return frame(GOAWAY, 0, 0, _LONG.pack(last) + _LONG.pack(code) + text)


def settings_frame(entries: list[tuple[int, int]]) -> bytes:
    """SETTINGS with these entries."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*entry) for entry in entries))
