"""Counters of one worker: plain integers on slotted objects; the data path only does ``+=``.

Nothing here is summed or formatted while requests flow: ``snapshot`` turns a tally into plain JSON
values when the master asks (schema in its docstring), ``observe.counters`` sums over workers.
"""

from __future__ import annotations

from enum import IntEnum

from uwgate.protocols.http2 import ErrorCode
from uwgate.protocols.spdy3 import StreamStatus
from uwgate.router.errors import Failure

_TABLES = frozenset(
    (
        *("errors", "handshakes", "http2_goaways", "http2_resets", "responses", "resumed"),
        *("seconds", "spdy_goaways", "spdy_resets"),
    )
)


class Tally:
    """What one gateway counted since its worker started."""

    __slots__ = (
        "accepted",
        "active_requests",
        "connections",
        "errors",
        "handshakes",
        "http2_connections",
        "http2_delayed",
        "http2_goaways",
        "http2_requests",
        "http2_resets",
        "http2_streams",
        "node_connects",
        "node_reuses",
        "requests",
        "responses",
        "resumed",
        "retries",
        "rx",
        "seconds",
        "spdy_connections",
        "spdy_delayed",
        "spdy_goaways",
        "spdy_requests",
        "spdy_resets",
        "spdy_streams",
        "tunnels",
        "tx",
    )

    def __init__(self) -> None:
        self.accepted = 0  # client connections since start
        self.connections = 0  # client connections open now (uWSGI: active_sessions)
        self.active_requests = 0
        self.requests = 0  # requests whose head was understood
        self.responses = [0] * 600  # by status code; own error responses included
        self.errors = dict.fromkeys(Failure, 0)
        self.retries = 0
        self.node_connects = 0
        self.node_reuses = 0
        self.tunnels = 0  # upgraded connections since start
        self.rx = 0  # bytes received from clients
        self.tx = 0  # bytes sent to clients
        self.handshakes: dict[str, int] = {}  # TLS handshakes completed, by version
        self.resumed: dict[str, int] = {}  # of these, those that resumed a session
        self.http2_connections = 0  # open now
        self.http2_streams = 0  # not over
        self.http2_requests = 0  # requests that came over HTTP/2
        self.http2_delayed = 0  # of these, those that waited for others of their connection
        self.http2_resets: dict[str, int] = {}  # streams ended early, by side and code
        self.http2_goaways: dict[str, int] = {}  # connections that we have ended, by code
        self.spdy_connections = 0  # the same of SPDY
        self.spdy_streams = 0
        self.spdy_requests = 0
        self.spdy_delayed = 0
        self.spdy_resets: dict[str, int] = {}
        self.spdy_goaways: dict[str, int] = {}
        self.seconds = 0.0  # sum of request durations, where they are measured

    def count_reset(self, side: str, code: int) -> None:
        """A stream of HTTP/2 was ended early by ``side``, client or gateway."""
        _count(self.http2_resets, f"{side}:{_name(ErrorCode, code)}")

    def count_goaway(self, code: int) -> None:
        """A connection of HTTP/2 was ended by us."""
        _count(self.http2_goaways, _name(ErrorCode, code))

    def count_spdy_reset(self, side: str, status: int) -> None:
        """A stream of SPDY was ended early by ``side``, client or gateway."""
        _count(self.spdy_resets, f"{side}:{_name(StreamStatus, status)}")

    def count_spdy_goaway(self, code: int) -> None:
        """A session of SPDY was ended by us; ``code``: of HTTP/2, which has more of them."""
        _count(self.spdy_goaways, _name(ErrorCode, code))

    def snapshot(self) -> dict[str, object]:
        """Plain values for JSON.

        ``{"accepted": int, "connections": int, "active_requests": int, "requests": int,
        "retries": int, "node_connects": int, "node_reuses": int, "tunnels": int, "rx": int,
        "tx": int, "time_micros": int, "responses": {"200": int, …} (non-zero only),
        "errors": {log word: int, …} (every word),
        "tls_handshakes": {"TLSv1.3": int, …}, "tls_resumed": {"TLSv1.3": int, …},
        "http2_connections": int, "http2_streams": int, "http2_requests": int,
        "http2_delayed": int,
        "http2_resets": {"client:CANCEL": int, …}, "http2_goaways": {"NO_ERROR": int, …},
        "spdy_…": as ``http2_…``}``
        """
        plain: dict[str, object] = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in _TABLES
        }
        plain["time_micros"] = int(self.seconds * 1e6)
        plain["responses"] = {str(i): n for i, n in enumerate(self.responses) if n}
        plain["tls_handshakes"] = dict(self.handshakes)
        plain["tls_resumed"] = dict(self.resumed)
        plain["http2_resets"] = dict(self.http2_resets)
        plain["http2_goaways"] = dict(self.http2_goaways)
        plain["spdy_resets"] = dict(self.spdy_resets)
        plain["spdy_goaways"] = dict(self.spdy_goaways)
        plain["errors"] = {failure.word: n for failure, n in self.errors.items()}
        return plain


def _count(table: dict[str, int], name: str) -> None:
    table[name] = table.get(name, 0) + 1


def _name(codes: type[IntEnum], code: int) -> str:
    try:
        return codes(code).name
    except ValueError:
        return "UNKNOWN"
