"""The facts of one finished request, as the request log wants them.

One object is made per request only if a request log is configured; without it the data path
creates nothing. ``observe.requestlog`` formats it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uwgate.router.errors import Failure


@dataclass(slots=True)
class RequestFacts:
    """Bytes are as received (not yet escaped). Times are ``time.time()``-based or microseconds."""

    method: bytes
    target: bytes  # as received, query included
    protocol: bytes  # b"HTTP/1.1"
    host: bytes  # Host value, b"" without one
    client: bytes  # address, b"" for unix peers
    client_port: int
    fields: bytes  # raw field lines of the request (CRLF separated); look up lazily
    status: int  # 0: nothing was sent
    started: float  # epoch seconds
    connect_micros: int  # from start to connected (0: connection reused; -1: never)
    first_byte_micros: int  # from start to first response byte (-1: never)
    total_micros: int
    request_body: int  # bytes
    response_head: int  # bytes sent
    response_body: int  # bytes sent
    response_fields: int  # number of header fields
    node: str  # "" if none was picked
    attempts: int  # connection attempts (and re-sends)
    failure: Failure | None  # None: success
    keepalive: bool  # connection stays open
    variables: int  # uwsgi variables sent (0 for HTTP nodes)
    packet: int  # size of the uwsgi packet
    modifier1: int
    modifier2: int


RequestLog = Callable[[RequestFacts], None]
