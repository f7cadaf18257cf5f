"""``https-hsts``: Strict-Transport-Security on every response over TLS (RFC 6797 §7.1).

Clients must ignore the field in clear text, so only TLS listeners have this front; it costs others
nothing.
"""

from __future__ import annotations

import re
from copy import copy
from typing import TYPE_CHECKING

from uwgate.protocols.http1_response import ResponseHead
from uwgate.router.http1_front import Http1Front

if TYPE_CHECKING:
    from uwgate.router.http import HttpGateway

_HEADS = 256  # that are remembered
_SENT = re.compile(rb"(?i)\r\nstrict-transport-security:")


class Hsts:
    """Adds the field to response heads, and remembers the results, within bounds.

    ``line``: the field with its CRLF. Heads are shared and never changed (``ResponseHead``), so
    each has a copy here; those of nodes that repeat themselves are made once.
    """

    __slots__ = ("_marked", "line")

    def __init__(self, value: str) -> None:
        self.line = b"Strict-Transport-Security: %b\r\n" % value.encode("ascii")
        self._marked: dict[ResponseHead, ResponseHead] = {}

    def mark(self, head: ResponseHead) -> ResponseHead:
        """``head`` with the field, unless the node has sent one (RFC 6797 §8.1: the first one
        counts); of what this returned before, the same again."""
        marked = self._marked.get(head)
        if marked is None:
            if len(self._marked) >= _HEADS:
                self._marked.clear()
            marked = self._marked[head] = head if _SENT.search(head.lines) else self._copy(head)
            self._marked[marked] = marked
        return marked

    def _copy(self, head: ResponseHead) -> ResponseHead:
        marked = copy(head)
        marked.lines += self.line
        marked.count += 1
        marked.clean = False
        marked.http2 = b""
        if head.ready:
            marked.ready = b"%b%b\r\n" % (marked.lines, head.framing)
        if head.undated:
            marked.undated = marked.lines + head.framing
            marked.dated_with = marked.now_dated = b""
        return marked


class HstsFront(Http1Front):
    """A client of a TLS listener."""

    __slots__ = ("hsts",)

    def __init__(self, gateway: HttpGateway, constants: bytes, hsts: Hsts) -> None:
        super().__init__(gateway, constants)
        self.hsts = hsts

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """A response of known length in one piece."""
        super().whole(self.hsts.mark(head), data, end)

    def begin(self, head: ResponseHead, data: bytes, end: int) -> None:
        """Head and first body bytes of a response of known length."""
        super().begin(self.hsts.mark(head), data, end)

    def respond(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The head of any other response."""
        super().respond(self.hsts.mark(head), body, ended)

    def upgraded(self, head: ResponseHead | None) -> None:
        """Become a tunnel."""
        super().upgraded(self.hsts.mark(head) if head is not None else None)

    def error_lines(self) -> bytes:
        """The field, for a response of our own, unless the client spoke in clear text."""
        return self.hsts.line if self.tls is not None else b""
