"""The little HTTP that the stats server speaks: one request in, one response out, then close.

Requests are GET and HEAD without a body. Grammar: RFC 9112 §2.1, §3 (request line), §5 (fields);
a whole head either matches or is refused with 400, nothing is repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 8192

# RFC 9110 §5.6.2 token; RFC 9112 §3.2.1 origin-form and §3.2.2 absolute-form, split at the query;
# RFC 9110 §5.5 field values: visible characters, blanks, obs-text. The path is matched loosely:
# it is only compared with a few names.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD = _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n"
_AUTHORITY = rb"[Hh][Tt][Tt][Pp]://[!$-.0-;=@-~]+"
_HEAD = re.compile(
    rb"(?P<method>" + _TOKEN + rb") "
    rb"(?:" + _AUTHORITY + rb"|(?=/))"
    rb"(?P<path>/[!$-;=@-~]*)?(?:\?[!$-~]*)? "
    rb"HTTP/1\.(?P<minor>[01])\r\n"
    rb"(?P<fields>(?:" + _FIELD + rb")*)\r\n"
)
_HOST = re.compile(rb"(?:\A|\n)[Hh][Oo][Ss][Tt]:")

PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A valid request: ``path`` is the target without scheme, authority and query."""

    method: bytes
    path: bytes


class BadRequest(Exception):
    """The head is refused; ``status`` is 400 or 431, the text says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def parse(data: bytes | bytearray) -> Request | None:
    """The request that ``data`` begins with; None while its head is incomplete.

    Raises BadRequest: malformed, or no end within MAX_HEAD bytes.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        if len(data) >= MAX_HEAD:
            raise BadRequest(431, f"The request head is larger than {MAX_HEAD} bytes.")
        return None
    head = _HEAD.fullmatch(data, 0, end + 4)
    if head is None:
        raise BadRequest(400, "The request is malformed.")
    hosts = len(_HOST.findall(head["fields"]))
    if hosts > 1 or (hosts == 0 and head["minor"] == b"1"):  # RFC 9112 §3.2
        raise BadRequest(400, "Exactly one Host field is required.")
    return Request(bytes(head["method"]), bytes(head["path"] or b"/"))


def response_head(status: int, content_type: str, length: int | None, extra: str = "") -> bytes:
    """The head of a response that ends the connection; without a length that ends the body, too.

    ``extra``: further field lines, each ended by CRLF.
    """
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return (
        f"HTTP/1.1 {status} {PHRASES[status]}\r\n"
        "Connection: close\r\n"
        f"{extra}"
        "Cache-Control: no-store\r\n"
        f"Content-Type: {content_type}\r\n"
        f"{size}\r\n"
    ).encode("latin-1")


def response(
    status: int, content_type: str, body: bytes, *, head_only: bool = False, extra: str = ""
) -> bytes:
    """A complete HTTP/1.1 response that ends the connection. ``head_only``: answer to HEAD."""
    head = response_head(status, content_type, len(body), extra)
    return head if head_only else head + body


def plain(status: int, text: str, *, head_only: bool = False, extra: str = "") -> bytes:
    """A response with one line of text."""
    body = (text + "\n").encode("utf-8", "replace")
    return response(status, "text/plain; charset=utf-8", body, head_only=head_only, extra=extra)
