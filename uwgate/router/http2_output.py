"""What an HTTP/2 connection sends: many frames a write, bodies in the order of their urgency."""

from __future__ import annotations

import asyncio
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


class Output(KnownClient):
    """``out``: pieces of the next write. ``writers``: streams with something to send that may be
    sent as far as their own windows go. ``queued``: bytes that wait in all streams.
    ``windows``: of the connection."""

    __slots__ = (
        "blocked", "initial_window", "limits", "max_frame", "most_queued", "out", "queued",
        "scheduled", "streams", "transport", "windows", "writers",
    )  # fmt: skip

    limits: Limits
    most_frame = _MOST_FRAME

    def __init__(self, gateway: HttpGateway, constants: bytes) -> None:
        super().__init__(gateway, constants)
        self.transport: asyncio.Transport
        self.out: list[bytes | memoryview] = []
        self.scheduled = False
        self.blocked = False
        self.streams: dict[int, Http2Stream] = {}
        self.writers: dict[Http2Stream, None] = {}
        self.queued = 0
        self.most_queued = gateway.settings.http2.max_queued
        self.initial_window = DEFAULT_WINDOW  # of new streams, as the client says
        self.max_frame = DEFAULT_FRAME
        self.windows = Windows(DEFAULT_WINDOW, gateway.settings.http2.connection_window)

    # --- to be provided ---------------------------------------------------------------------------

    def sent_all(self, stream: Http2Stream) -> None:
        """The last byte of a response is on its way."""
        raise AssertionError

    @property
    def stalled(self) -> bool:
        """Whether much waits, and the client's windows let none of it go."""
        if self.queued < self.most_queued or self.blocked:
            return False
        return not self.writers or self.windows.send <= 0

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
        if self.writers and not self.blocked:
            self._bodies()
        out = self.out
        if out:
            data = b"".join(out)
            out.clear()
            if self.transport.is_closing():
                return
            self.gateway.tally.tx += len(data)
            self.transport.write(data)
        if self.writers and not self.blocked and self.windows.send > 0:
            self.schedule()  # others have their turn first

    def _bodies(self) -> None:
        """RFC 9218 §10: the most urgent first; of the same urgency one after the other, in the
        order in which they came, and those that are of use in parts by turns."""
        left = _TURN
        writers = list(self.writers)
        if len(writers) > 1:
            writers.sort(key=_rank)
        again = []
        for stream in writers:
            if left <= 0:
                break
            parts = stream.priority.incremental and len(writers) > 1
            left -= self._pump(stream, self.max_frame if parts else left)
            if parts and stream in self.writers:
                again.append(stream)
        while again and left > 0 and self.windows.send > 0:
            for stream in list(again):
                left -= self._pump(stream, self.max_frame)
                if stream not in self.writers:
                    again.remove(stream)

    def _pump(self, stream: Http2Stream, most: int) -> int:
        """Send up to ``most`` bytes of a stream's body -> how many. It is no writer any more if all
        was sent, or its window is used up."""
        queue, windows, own, out = stream.queue, self.windows, stream.windows, self.out
        sent = frames = 0
        while queue:
            room = min(own.send, windows.send, self.max_frame, most - sent)
            if room <= 0:
                break
            piece = queue[0]
            size = len(piece)
            if size > room:
                view = memoryview(piece)  # a slice of bytes would copy what is left each time
                queue[0] = view[room:]
                piece, size = view[:room], room
            else:
                queue.popleft()
            last = stream.ended and not queue and not stream.trailer
            out += (data_header(stream.id, size, end=last), piece)
            own.send -= size
            windows.send -= size
            sent += size
            frames += 1
            if last:
                self.limits.earn(frames)
                self._finish(stream, sent)
                return sent
        if not queue and stream.ended:
            if stream.trailer:
                out.append(header_frames(stream.id, stream.trailer, self.max_frame, end=True))
            else:
                out.append(data_header(stream.id, 0, end=True))
            self._finish(stream, sent)
            return sent
        if not queue or own.send <= 0:
            self.writers.pop(stream, None)
        if sent:
            self.limits.earn(frames)
            self.queued -= sent
            stream.sent_some(sent)
        return sent

    def _finish(self, stream: Http2Stream, sent: int) -> None:
        self.queued -= sent
        stream.queued = 0
        self.writers.pop(stream, None)
        self.sent_all(stream)

    # --- windows ----------------------------------------------------------------------------------

    def credit(self, size: int) -> None:
        """Received bytes that are not held any more, of the connection's window."""
        increment = self.windows.done(size)
        if increment:
            self.put(window_update(0, increment))

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


def _rank(stream: Http2Stream) -> tuple[int, bool, int]:
    return stream.priority.urgency, stream.priority.incremental, stream.id
