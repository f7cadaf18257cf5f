"""What an exchange needs of the client's side, whatever protocol the client speaks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from uwgate.protocols.http1_request import RequestBlock, RequestLine
from uwgate.protocols.http1_response import ResponseHead
from uwgate.router.errors import Failure

if TYPE_CHECKING:
    from uwgate.router.exchange import Exchange


def field_of(block: bytes, name: bytes) -> bytes:
    """The value of the field ``name`` (lower case; several joined) in ``CRLF field CRLF …``."""
    found = re.findall(rb"(?i)\r\n%b:[ \t]*([^\r\n]*)" % re.escape(name), block)
    return b"; ".join(found) if name == b"cookie" else b", ".join(found)


class Front(Protocol):
    """What an exchange needs of the client's side."""

    deadline: float
    client: bytes
    http_tail: bytes
    scheme: bytes
    tls_lines: bytes
    uwsgi_constants: bytes

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """The complete response in one piece: ``data[:end]`` is the head, the rest the body."""
        ...

    def begin(self, head: ResponseHead, data: bytes, end: int) -> None:
        """Head and first body bytes of a response of known length, as received."""
        ...

    def respond(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The head of the final response, with the first body bytes."""
        ...

    def informational(self, head: ResponseHead) -> None:
        """A 1xx response other than 101."""
        ...

    def send_continue(self) -> None:
        """Ask for the body (100 Continue), once."""
        ...

    def data(self, payload: bytes) -> None:
        """Body bytes, without framing."""
        ...

    def end(self, trailer: bytes) -> None:
        """The response is complete."""
        ...

    def fail(self, failure: Failure) -> None:
        """Answer with an error; nothing of a response was sent yet."""
        ...

    def abort(self, failure: Failure) -> None:
        """Cut the connection in the middle of a response."""
        ...

    def upgraded(self, head: ResponseHead | None) -> None:
        """Become a tunnel; with a head, answer 101 first."""
        ...

    def tunnel_data(self, data: bytes) -> None:
        """Bytes of the node in a tunnel."""
        ...

    def tunnel_eof(self) -> None:
        """The node sends no more in a tunnel."""
        ...

    def forget_response(self) -> None:
        """A new request begins (only called where a request log wants every fact)."""
        ...

    def tunnel_broken(self) -> None:
        """The node has reset its connection in a tunnel."""
        ...

    def end_tunnel(self) -> None:
        """The node's connection is gone in a tunnel."""
        ...

    def pause(self) -> None:
        """Stop reading the request body."""
        ...

    def resume(self) -> None:
        """Go on reading the request body."""
        ...

    def field(self, name: bytes) -> bytes:
        """The value of the request's field ``name`` (lower case; several joined), b"" without."""
        ...

    def watch(self) -> None:
        """The deadline was moved to an earlier time."""
        ...


class Connection(Front, Protocol):
    """What a gateway needs of a client connection: to end it, and to log its requests."""

    block: RequestBlock
    client_port: int
    exchange: Exchange
    fields: int
    head_bytes: int
    persist: bool
    request: RequestLine | None
    sent_bytes: int
    status: int

    @property
    def active(self) -> int:
        """Requests under way."""
        ...

    def drain(self) -> None:
        """The gateway is stopping: close when idle, else after the response."""
        ...

    def leave(self) -> None:
        """Others serve from now on: close with the next response that can still say so."""
        ...

    def part(self) -> None:
        """The time is over: end a tunnel in order, and cut whatever else is under way."""
        ...

    def cut(self) -> None:
        """End now, whatever is under way."""
        ...
