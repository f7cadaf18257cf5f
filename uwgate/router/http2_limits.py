"""What an HTTP/2 client may cost: frames that are cheap to send and of no use to anybody.

PING, SETTINGS, empty DATA, WINDOW_UPDATE, PRIORITY and unknown frames (CVE-2019-9512 and its
siblings) cost credit, which responses and time bring back: an honest client earns more than it
spends, as it needs one WINDOW_UPDATE for some frames of DATA. Streams that are given up, by the
client (rapid reset, CVE-2023-44487) or because it made us (CVE-2025-8671), have an allowance of
their own: a browser that leaves a page gives up a hundred at once. What a header section costs
beyond the usual is credit, too: a few compressed bytes may stand for hundreds of fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uwgate.protocols.http2 import ErrorCode, Http2Error
from uwgate.router.clock import Clock

if TYPE_CHECKING:
    from uwgate.config.settings import Http2Settings

FREE_FIELDS = 128  # of a header section; cookies come one by one
FREE_BYTES = 8192

_EARNED = 4
# Both allowances are there again after so many seconds.
_FRAMES_AGAIN = 40
_RESETS_AGAIN = 15
_FIELDS = 16  # for a frame's credit
_CALM = 8  # streams that were given up lately, and mean nothing yet
_BYTES = 2048


class Limits:
    """Of one connection. All methods that spend raise Http2Error (ENHANCE_YOUR_CALM)."""

    __slots__ = ("_clock", "_credit", "_most", "_most_resets", "_resets", "_since")

    def __init__(self, clock: Clock, settings: Http2Settings) -> None:
        self._clock = clock
        self._most, self._most_resets = settings.max_frames, settings.max_resets
        self._credit: float = self._most
        self._resets: float = self._most_resets
        self._since = clock.now

    def earn(self, frames: int = 1) -> None:
        """So many frames of a response were sent."""
        if self._credit < self._most:
            self._credit = min(self._credit + frames * _EARNED, self._most)

    def spend(self, frames: int = 1) -> None:
        """Frames that are no requests, or work that is worth as many."""
        self._credit -= frames
        if self._credit < 0:
            self._refill()
            if self._credit < 0:
                raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames")

    def spend_section(self, fields: int, size: int) -> None:
        """A header section with so many fields, in so many bytes: what is beyond the usual."""
        more, longer = max(0, fields - FREE_FIELDS), max(0, size - FREE_BYTES)
        self.spend(more // _FIELDS + longer // _BYTES)

    def spend_reset(self) -> None:
        """A stream was given up."""
        self._resets -= 1
        if self._resets < 0:
            self._refill()
            if self._resets < 0:
                raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams given up")

    @property
    def wary(self) -> bool:
        """Whether so many streams were given up lately that the next ones may be, too."""
        if self._resets >= self._most_resets - _CALM:
            return False
        self._refill()
        return self._resets < self._most_resets - _CALM

    def _refill(self) -> None:
        now = self._clock.now
        seconds, self._since = now - self._since, now
        most, resets = self._most, self._most_resets
        self._credit = min(self._credit + seconds * most / _FRAMES_AGAIN, most)
        self._resets = min(self._resets + seconds * resets / _RESETS_AGAIN, resets)
