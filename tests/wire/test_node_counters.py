"""What the statistics count of connections to nodes."""

from __future__ import annotations

import json
import socket

from support.nodes import RawHttpNode
from support.uwgate import running
from support.waiting import free_port

_GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok"


def _counters(port: int) -> dict[str, int]:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.shutdown(socket.SHUT_WR)
        document = b"".join(iter(lambda: sock.recv(65536), b""))
    counters = json.loads(document)["counters"]
    assert isinstance(counters, dict)
    return counters


def test_connections_that_are_used_again() -> None:
    port = free_port()
    with (
        RawHttpNode() as node,
        running("--http-to", node.spec, "--http-stats", f"127.0.0.1:{port}") as gateway,
        gateway.connect() as client,
    ):
        for request in (_GET, _GET, _POST, _POST, _GET):
            assert client.ask(request, request[:4].strip()).status == 200
        counters = _counters(port)
        assert (counters["node_connects"], counters["node_reuses"]) == (1, 4)
        assert node.accepted == 1
