"""A page of 200 resources and a WebSocket, whose script says at the end how they came."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from workhorse import websocket

PARTS = 200
_SAID: list[str] = []

_PAGE = """<!doctype html><title>parts</title><body><script>
let parts = 0;
const script = (number) => new Promise((done, failed) => {
  const part = document.createElement("script");
  part.src = "/part/" + number + ".js";
  part.onload = done;
  part.onerror = failed;
  document.body.append(part);
});
const MESSAGES = ["first", "x".repeat(100000), "last"];
const talk = () => new Promise((done, failed) => {
  const socket = new WebSocket("wss://" + location.host + "/websocket");
  const echoes = [];
  socket.onopen = () => MESSAGES.forEach((each) => socket.send(each));
  socket.onmessage = (event) => {
    echoes.push(event.data);
    if (echoes.length === MESSAGES.length) {
      done(echoes.every((each, place) => each === MESSAGES[place]));
      socket.close();
    }
  };
  socket.onerror = failed;
});
performance.setResourceTimingBufferSize(1000);
Promise.all([...Array(%d).keys()].map(script)).then(talk).then((echoed) => {
  const entries = performance.getEntriesByType("resource");
  const protocols = [...new Set(entries.map((each) => each.nextHopProtocol))];
  return fetch("/said?value=" + encodeURIComponent(JSON.stringify([parts, protocols, echoed])));
});
</script>
"""


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
    path = environ["PATH_INFO"]
    kind, body = "text/plain", b""
    if path.startswith("/part/"):
        kind, body = "text/javascript", b"parts += 1;" + b" " * (len(path) * 1_000)
    elif path == "/said":
        _SAID.extend(parse_qs(environ["QUERY_STRING"])["value"])
    elif path == "/heard":
        kind, body = "application/json", json.dumps(_SAID).encode()
    elif path == "/websocket":
        return websocket(environ, start_response)
    else:
        kind, body = "text/html", (_PAGE % PARTS).encode()
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
