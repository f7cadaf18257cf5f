"""A request in uwsgi variables said in HTTP/1.1, for nodes that speak nothing else.

The variables come from clients by way of a front server that may not have looked at them: they are
written out as a request head, and that head is read again by the parser for HTTP clients. So
whatever may not reach a node from there may not from here.
"""

from __future__ import annotations

import re

from uwgate.protocols.http1 import HOST, VALUE, Fault, Http1Error
from uwgate.protocols.http1_request import (
    RequestBlock,
    RequestLine,
    RequestParser,
    RequestPolicy,
    parse_request_line,
)
from uwgate.protocols.uwsgi_request import UwsgiRequest

_FIELD = re.compile(rb"HTTP_([A-Z0-9_]+)")
# Said by CONTENT_LENGTH and CONTENT_TYPE (nginx sends both forms); what the front server has dealt
# with: it has read the body of a chunked request, and answered the expectation.
_NOT_FIELDS = frozenset(
    (
        b"HTTP_CONTENT_LENGTH",
        b"HTTP_CONTENT_TYPE",
        b"HTTP_EXPECT",
        b"HTTP_HOST",
        b"HTTP_TRANSFER_ENCODING",
    )
)


class Translator:
    """``x_forwarded``: as in `RequestPolicy`. Field values that say who the client is are dropped:
    the client may have sent them; REMOTE_ADDR is the front server's word."""

    __slots__ = ("_parser",)

    def __init__(self, *, x_forwarded: bool, forwarded: bool) -> None:
        self._parser = RequestParser(
            RequestPolicy(x_forwarded=x_forwarded, forwarded=forwarded, max_fields=1 << 16)
        )

    def translate(self, request: UwsgiRequest) -> tuple[RequestLine, RequestBlock]:
        """Request line and fields; Http1Error if a part has no form in HTTP."""
        target = request.target
        line = parse_request_line(b"%b %b HTTP/1.1" % (request.method, target))
        if request.method == b"CONNECT":
            raise Http1Error(Fault.BAD_MESSAGE, "CONNECT")
        # What decided on the node is the host, not what a client wrote into an absolute target:
        # else one host's node could be asked for another host, past whoever looked at HTTP_HOST.
        host = request.host or line.authority or request.get(b"SERVER_NAME")
        lines = [b"", b"Host: " + host] if HOST.fullmatch(host) else [b""]
        if request.host and len(lines) == 1:
            raise Http1Error(Fault.BAD_HOST, repr(request.host[:60]))
        for name, value in request.items:
            field = _field(name)
            if field and (value or name.startswith(b"HTTP_")):
                # What a line end in here would make is not for the parser to find out.
                if VALUE.fullmatch(value) is None:
                    raise Http1Error(Fault.BAD_MESSAGE, f"value of {name[:40]!r}")
                lines.append(b"%b: %b" % (field, value))
        block = self._parser.parse(b"\r\n".join((*lines, b"", b"")))
        return line, block


def _field(name: bytes) -> bytes:
    """The field name of a variable, b"" if it is none: ``HTTP_USER_AGENT`` is ``User-Agent``."""
    if name == b"CONTENT_TYPE":
        return b"Content-Type"
    if name == b"CONTENT_LENGTH":
        return b"Content-Length"
    if name in _NOT_FIELDS:
        return b""
    match = _FIELD.fullmatch(name)
    return match[1].replace(b"_", b"-").title() if match is not None else b""
