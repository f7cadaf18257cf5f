"""What a client gets: response heads for HTTP/1 clients, framing, compression, error bodies."""

from __future__ import annotations

import json
import re
import zlib
from html import escape

from uwgate.config.settings import ErrorPage
from uwgate.protocols.http1_response import ResponseHead
from uwgate.router.errors import PHRASES, Failure

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# How the body of a response is framed towards the client.
NONE, PLAIN, CHUNKED, UNTIL_CLOSE = range(4)

_STRONG_ETAG = re.compile(rb'(?i)(\r\nETag: *)(")')
_CONTENT_DIGEST = re.compile(rb"(?i)\r\n(?:Content-MD5|Accept-Ranges):[^\r]*")


def choose_framing(
    head: ResponseHead, *, is_head: bool, minor: int, gzip: bool, auto_chunked: bool
) -> int:
    """NONE, PLAIN (Content-Length), CHUNKED or UNTIL_CLOSE for this response and this client."""
    if is_head or head.bodiless:
        return NONE
    if gzip:
        return CHUNKED
    if head.length >= 0:
        return PLAIN
    if not minor or (head.length == -2 and not auto_chunked):
        return UNTIL_CLOSE
    return CHUNKED


def response_head(
    head: ResponseHead, framing: int, date: bytes, *, minor: int, persist: bool, gzip: bool
) -> bytes:
    """The head for an HTTP/1 client, blank line included."""
    lines = head.lines
    if gzip:
        lines = _CONTENT_DIGEST.sub(b"", _STRONG_ETAG.sub(rb"\1W/\2", lines))
    parts = [lines]
    if framing in (PLAIN, NONE) and not gzip:
        parts.append(head.framing)
    if framing == CHUNKED:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if gzip:
        parts.append(b"Content-Encoding: gzip\r\n")
        if not head.vary:
            parts.append(b"Vary: Accept-Encoding\r\n")
    if not head.dated:
        parts.append(date)
    if head.upgrade and head.status == 426:
        parts.append(b"Upgrade: " + head.upgrade + b"\r\n")
        parts.append(b"Connection: upgrade\r\n" if persist else b"Connection: upgrade, close\r\n")
    elif not persist:
        parts.append(b"Connection: close\r\n")
    elif not minor:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def switch_head(head: ResponseHead) -> bytes:
    """A 101 response (RFC 9110 §15.2.2)."""
    return head.lines + b"Connection: upgrade\r\nUpgrade: " + head.upgrade + b"\r\n\r\n"


class Gzip:
    """http-auto-gzip: every piece is flushed, so that a streamed response still streams."""

    __slots__ = ("_compressor",)

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, 31)

    def data(self, payload: bytes) -> bytes:
        """The compressed form of ``payload``, complete up to here."""
        return self._compressor.compress(payload) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        """The last bytes: final block, CRC and size."""
        return self._compressor.flush(zlib.Z_FINISH)


def _media_type(accept: bytes) -> str:
    """The kind of error body for an Accept value: html, json or plain."""
    wanted = accept.lower()
    html, as_json = wanted.find(b"text/html"), wanted.find(b"application/json")
    if html >= 0 and (as_json < 0 or html < as_json):
        return "html"
    return "json" if as_json >= 0 else "plain"


def error_response(
    failure: Failure,
    accept: bytes,
    date: bytes,
    pages: dict[int, ErrorPage],
    *,
    persist: bool,
    is_head: bool,
    extra: bytes = b"",
) -> tuple[bytes, int]:
    """``(response, length of its body)`` for a failure; the body suits the client's Accept.

    ``extra``: field lines to add, each with its CRLF.
    """
    status = failure.status
    phrase = PHRASES[status]
    page = pages.get(status)
    if page is not None:
        body, content_type = page.body, page.content_type
    else:
        kind = _media_type(accept)
        if kind == "html":
            text = (
                f"<!DOCTYPE html>\n<html><head><title>{status} {phrase}</title></head>\n"
                f"<body><h1>{status} {phrase}</h1><p>{escape(failure.text)}</p></body></html>\n"
            )
            content_type = "text/html; charset=utf-8"
        elif kind == "json":
            problem = {"status": status, "title": phrase, "reason": failure.word}
            text = json.dumps({**problem, "detail": failure.text}) + "\n"
            content_type = "application/json"
        else:
            text = f"{status} {phrase}: {failure.text}\n"
            content_type = "text/plain; charset=utf-8"
        body = text.encode()
    lines = [
        b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode()),
        date,
        b"Content-Type: %b\r\nContent-Length: %d\r\n" % (content_type.encode(), len(body)),
        b"Cache-Control: no-store\r\n",
        extra,
    ]
    if status == 405:
        more = b"" if failure is Failure.STATIC_METHOD else b", POST, PUT, DELETE, OPTIONS, PATCH"
        lines.append(b"Allow: GET, HEAD%b\r\n" % more)
    if status == 503:
        lines.append(b"Retry-After: 1\r\n")
    lines.append(b"\r\n" if persist else b"Connection: close\r\n\r\n")
    if is_head:
        return b"".join(lines), 0
    return b"".join((*lines, body)), len(body)
