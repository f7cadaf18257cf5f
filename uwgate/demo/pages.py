"""What the demo nodes answer, whichever protocol the request came by."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html import escape

PATHS = ("/", "/seen", "/stream", "/events", "/ws")

_STREAM_LINES = 10
_PAUSE = 0.25  # seconds between the pieces of a stream

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 b { background: #dff0d8; padding: 0 .4rem; border-radius: .3rem }
td { font: 13px/1.4 monospace; vertical-align: top; padding: 0 1rem 0 0; word-break: break-all }
pre { background: #f4f4f4; padding: .6rem; min-height: 1.5rem }
"""

_SCRIPT = """
const events = document.getElementById("events"), echo = document.getElementById("echo");
const source = new EventSource("/events");
source.onmessage = (event) => { events.textContent = event.data; };
const socket = new WebSocket(`ws://${location.host}/ws`);
socket.onopen = () => socket.send("hello through the router");
socket.onmessage = (event) => { echo.textContent += event.data + "\\n"; };
document.getElementById("say").onsubmit = (event) => {
  event.preventDefault(); socket.send(event.target.text.value); event.target.reset();
};
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a node saw it.

    ``node`` names the node, ``protocol`` is what it was spoken to in. ``seen``: header fields or
    uwsgi variables in wire order. ``headers``: the same by lower-case field name.
    """

    node: str
    protocol: str
    method: str
    target: str
    seen: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Page:
    """A whole answer."""

    status: str
    content_type: str
    body: bytes


def page(request: Request) -> Page:
    """The answer to everything that is not a stream."""
    if request.path == "/":
        return Page("200 OK", "text/html; charset=utf-8", _html(request).encode())
    if request.path == "/seen":
        return Page("200 OK", "application/json", _seen(request).encode())
    text = f"404 Not Found: the demo has {', '.join(PATHS)}\n"
    return Page("404 Not Found", "text/plain; charset=utf-8", text.encode())


def stream(request: Request) -> tuple[str, AsyncIterator[bytes]] | None:
    """``(content type, pieces)`` where the answer is sent as it is made, else None."""
    if request.path == "/stream":
        return "text/plain; charset=utf-8", _lines(request)
    if request.path == "/events":
        return "text/event-stream", _events(request)
    return None


async def _lines(request: Request) -> AsyncIterator[bytes]:
    for number in range(1, _STREAM_LINES + 1):
        yield f"line {number} of {_STREAM_LINES} from {request.node}\n".encode()
        await asyncio.sleep(_PAUSE)


async def _events(request: Request) -> AsyncIterator[bytes]:
    number = 0
    while True:
        number += 1
        yield f"data: event {number} from {request.node}\n\n".encode()
        await asyncio.sleep(_PAUSE)


def _seen(request: Request) -> str:
    document = {
        "node": request.node,
        "protocol": request.protocol,
        "method": request.method,
        "target": request.target,
        "body": {
            "bytes": len(request.body),
            "sha256": hashlib.sha256(request.body).hexdigest(),
        },
        "seen": request.seen,
    }
    return json.dumps(document, indent=1) + "\n"


def _html(request: Request) -> str:
    rows = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in request.seen
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>uwgate demo</title>
<style>{_STYLE}</style></head><body>
<h1>Answered by <b>{escape(request.node)}</b></h1>
<p>The router spoke {escape(request.protocol)} to it. Load the page again: the other node's turn.
Look at <a href="/seen">/seen</a> (JSON) and <a href="/stream">/stream</a> (sent line by line).</p>
<h2>Events</h2><pre id="events"></pre>
<h2>WebSocket</h2><pre id="echo"></pre>
<form id="say"><input name="text" size="40"> <button>send</button></form>
<h2>What the node saw</h2><table>
{rows}
</table>
<script>{_SCRIPT}</script></body></html>
"""
