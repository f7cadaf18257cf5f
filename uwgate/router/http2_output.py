"""What an HTTP/2 connection sends: many frames a write, bodies in the order of their urgency."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import TYPE_CHECKING

from uwgate.protocols.http2 import (
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    ErrorCode,
    Http2Error,
    data_header,
    header_frames,
    window_update,
)
from uwgate.protocols.http2_streams import Windows
from uwgate.router.client import KnownClient

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway
    from uwgate.router.http2_limits import Limits
    from uwgate.router.http2_stream import Http2Stream

_MOST_FRAME = 32768
_TURN = 262144  # bytes of bodies a turn of the loop
_WORTH = 256  # bytes: who takes less of what there is has no credit for it


class Output(KnownClient):
    """``out``: pieces of the next write; ``bulky``: it is too large to be copied; ``finished``:
    there is none; ``eof``: the client sends no more. ``writers``: streams with something to send
    that may be sent as far as their own windows go. ``queued``: bytes that wait in all streams.
    ``delayed``: streams that have not begun. ``windows``: of the connection. ``prefix``: what the
    next header block has to begin with."""

    __slots__ = (
        "blocked", "bulky", "delayed", "eof", "finished", "initial_window", "limits", "max_frame",
        "most_queued", "out", "prefix", "queued", "scheduled", "streams", "transport", "windows",
        "writers",
    )  # fmt: skip

    limits: Limits
    most_frame = _MOST_FRAME
    # What the frames are: SPDY has others.
    data_head = staticmethod(data_header)
    window_update = staticmethod(window_update)

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        super().__init__(gateway, constants)
        self.transport: asyncio.Transport
        self.out: list[bytes | memoryview] = []
        self.scheduled = False
        self.blocked = False
        self.bulky = False
        self.eof = False
        self.finished = False
        self.streams: dict[int, Http2Stream] = {}
        self.delayed: dict[int, Http2Stream] = {}
        self.writers: dict[Http2Stream, None] = {}
        self.queued = 0
        self.prefix = b""
        self.most_queued = gateway.settings.http2.max_queued
        self.initial_window = DEFAULT_WINDOW  # of new streams, as the client says
        self.max_frame = DEFAULT_FRAME
        self.windows = Windows(DEFAULT_WINDOW, gateway.settings.http2.connection_window)

    # --- to be provided ---------------------------------------------------------------------------

    def sent_all(self, stream: Http2Stream) -> None:
        """The last byte of a response is on its way."""
        raise AssertionError

    def give_up(self, number: int) -> None:
        """A stream will never be over."""
        raise AssertionError

    def less(self, size: int) -> None:
        """So many bytes that waited do so no more."""
        raise AssertionError

    def ready(self) -> None:
        """Requests that wait may have their turn."""
        raise AssertionError

    @property
    def stalled(self) -> bool:
        """Whether much waits, and the client's windows let none of it go."""
        if self.queued < self.most_queued or self.blocked:
            return False
        return not self.writers or self.windows.send <= 0

    def is_shut(self, stream: Http2Stream) -> bool:
        """Whether the client has to take more before another byte of the stream may be sent."""
        return stream.windows.send <= 0 or self.windows.send <= 0

    def is_behind(self, stream: Http2Stream) -> bool:
        """Whether what waits in the stream will not leave at the end of this turn."""
        size = stream.queued
        return (
            self.blocked
            or size > stream.windows.send
            or size > self.windows.send
            or self.queued > _TURN
            or self.queued > self.most_queued
        )

    # --- collecting -------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Whole frames, for the next write."""
        self.out.append(data)
        if not self.scheduled:
            self.schedule()

    def schedule(self) -> None:
        """Write at the end of this turn of the loop."""
        if not self.scheduled:
            self.scheduled = True
            self.gateway.loop.call_soon(self.flush)

    def enqueue(self, stream: Http2Stream) -> None:
        """The stream has something to send, or its end."""
        if stream.end_sent:
            return
        self.writers[stream] = None
        if not self.scheduled:
            self.schedule()

    def send_whole(self, stream: Http2Stream, block: bytes, body: bytes, size: int) -> bool:
        """A whole response, if nothing is in its way; the usual case."""
        windows, own = self.windows, stream.windows
        most = self.max_frame
        if (
            self.writers
            or self.blocked
            or size > most
            or size > windows.send
            or size > own.send
            or len(block) > most
            or self.prefix
        ):
            return False
        out = self.out
        if size:
            out += (
                header_frames(stream.id, block, most, end=False),
                data_header(stream.id, size, end=True),
                body,
            )
            windows.send -= size
            own.send -= size
        else:
            out.append(header_frames(stream.id, block, most, end=True))
        self.limits.earn()
        if not self.scheduled:
            self.schedule()
        self.sent_all(stream)
        return True

    # --- sending ----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what there is."""
        self.scheduled = False
        if self.delayed:
            self.ready()
        if self.writers and not self.blocked:
            self._bodies()
        out = self.out
        if out:
            if self.finished or self.transport.is_closing():
                out.clear()
                return
            if self.bulky:  # the system copies it once more in any case
                self.bulky = False
                self.out = []
                self.gateway.tally.tx += sum(map(len, out))
                self.transport.writelines(out)
            else:
                data = b"".join(out)
                out.clear()
                self.gateway.tally.tx += len(data)
                self.transport.write(data)
        if self.writers and not self.blocked and self.windows.send > 0:
            self.schedule()  # others have their turn first

    def _bodies(self) -> None:
        """RFC 9218 §10: the most urgent first; but an end needs no window (RFC 9113 §6.9.1)."""
        if len(self.writers) == 1:
            self._pump(next(iter(self.writers)), _TURN)
            return
        shut = self.eof and self.windows.send <= 0
        for stream in [each for each in self.writers if shut or not each.queue]:
            self._pump(stream, 0)
        left = _TURN
        for _, group in groupby(sorted(self.writers, key=_rank), urgency):
            left = self._share(list(group), left)
            if left <= 0 or self.windows.send <= 0:
                break

    def _share(self, group: list[Http2Stream], left: int) -> int:
        """Send up to ``left`` bytes of streams of one urgency -> what is left: one after the other,
        in the order in which they came, and those that are of use in parts by turns."""
        turns = []
        for stream in group:
            if stream.priority.incremental:
                turns.append(stream)
            elif left > 0:
                left -= self._pump(stream, left)
        while turns and left > 0 and self.windows.send > 0:
            for stream in list(turns):
                left -= self._pump(stream, self.max_frame)
                if stream not in self.writers:
                    turns.remove(stream)
        return left

    def _pump(self, stream: Http2Stream, most: int) -> int:
        """Send up to ``most`` bytes of a stream's body -> how many. It is no writer any more if all
        was sent, or its window is used up."""
        queue, windows, own = stream.queue, self.windows, stream.windows
        sent = frames = 0
        while queue:
            room = min(own.send, windows.send, most - sent)
            if room <= 0:
                break
            piece = queue.popleft()
            size = len(piece)
            if size > room:
                view = memoryview(piece)  # a slice of bytes would copy what is left each time
                queue.appendleft(view[room:])
                piece, size = view[:room], room
            last = stream.ended and not queue and not stream.trailer
            frames += self._frames(stream.id, piece, size, last=last)
            own.send -= size
            windows.send -= size
            sent += size
            if last:
                self.limits.earn(frames)
                self._finish(stream, sent)
                return sent
        out = self.out
        if not queue and stream.ended:
            if stream.trailer:
                out.append(self.trailer_frames(stream))
            else:
                out.append(self.data_head(stream.id, 0, end=True))
            self.limits.earn(frames + 1)
            self._finish(stream, sent)
            return sent
        if not queue or own.send <= 0:
            self.writers.pop(stream, None)
        if self.eof and queue and self.is_shut(stream):
            self.gateway.loop.call_soon(self.give_up, stream.id)
        if sent:
            if sent >= _WORTH or not queue:
                self.limits.earn(frames)
            self.less(sent)
            stream.sent_some(sent)
        return sent

    def _frames(self, number: int, piece: bytes | memoryview, size: int, *, last: bool) -> int:
        """Put ``size`` bytes of a body into frames -> how many."""
        out, most = self.out, self.max_frame
        if size <= most:
            out += (self.data_head(number, size, end=last), piece)
            return 1
        self.bulky = True
        view = memoryview(piece)
        header = self.data_head(number, most, end=False)
        rest = size % most or most
        for start in range(0, size - rest, most):
            out += (header, view[start : start + most])
        out += (self.data_head(number, rest, end=last), view[size - rest :])
        return (size + most - 1) // most

    def trailer_frames(self, stream: Http2Stream) -> bytes:
        """The end of a response that has trailers."""
        return self.heads(stream.id, stream.trailer, end=True)

    def heads(self, number: int, block: bytes, *, end: bool) -> bytes:
        """HEADERS of the stream with that number."""
        if self.prefix:
            block, self.prefix = self.prefix + block, b""
        return header_frames(number, block, self.max_frame, end=end)

    def _finish(self, stream: Http2Stream, sent: int) -> None:
        self.less(sent)
        stream.queued = 0
        self.writers.pop(stream, None)
        self.sent_all(stream)

    # --- windows ----------------------------------------------------------------------------------

    def credit(self, size: int) -> None:
        """Received bytes that are not held any more, of the connection's window."""
        increment = self.windows.done(size)
        if increment:
            self.put(self.window_update(0, increment))

    def resize_windows(self, size: int) -> None:
        """The client has another initial window; also for the streams that there are (RFC 9113
        §6.9.2). Raises Http2Error."""
        change, self.initial_window = size - self.initial_window, size
        for stream in self.streams.values():
            try:
                stream.windows.grant(change)
            except OverflowError:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window too large") from None
            if change > 0 and (stream.queue or stream.ended):
                self.enqueue(stream)


def urgency(stream: Http2Stream) -> int:
    """The lower, the more urgent (RFC 9218 §4.1)."""
    return stream.priority.urgency


def _rank(stream: Http2Stream) -> tuple[int, bool, int]:
    return stream.priority.urgency, stream.priority.incremental, stream.id
