"""WebSockets through the gateway: uWSGI's own API, and an HTTP node; no option is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import wsproto
from support.uwgate import Gateway, running
from wsproto import events as ws

from interop.clients import WebSocket, fetch
from interop.peers import Peer


@pytest.fixture(params=["uwsgi", "uwsgi-with-option", "http"])
def front(request: pytest.FixtureRequest, uwsgi_app: Peer, echo_server: str) -> Iterator[Gateway]:
    node = f"http://{echo_server}" if request.param == "http" else uwsgi_app.address
    options = ["--http-websockets"] if request.param == "uwsgi-with-option" else []
    with running("--http-to", node, *options) as gateway:
        yield gateway


def test_echo(front: Gateway) -> None:
    with WebSocket(front.port, "/websocket") as client:
        for text in ("hello", "", "\N{SNOWMAN}" * 50):
            assert client.echo(text) == text


def test_large_message(front: Gateway) -> None:
    text = "0123456789abcdef" * 16384
    with WebSocket(front.port, "/websocket") as client:
        assert client.echo(text) == text


def test_many_messages_in_one_segment(front: Gateway) -> None:
    with WebSocket(front.port, "/websocket") as client:
        frames = b"".join(client.wsproto.send(ws.TextMessage(data=f"m{i}")) for i in range(100))
        client.socket.sendall(frames)
        assert [client.message() for _ in range(100)] == [f"m{i}" for i in range(100)]


def test_close_handshake(front: Gateway) -> None:
    with WebSocket(front.port, "/websocket") as client:
        client.send(ws.CloseConnection(code=1000))
        assert isinstance(client.event(), ws.CloseConnection)
        assert client.ended()


def test_first_frame_in_the_segment_of_the_handshake(front: Gateway) -> None:
    """A client may not know yet whether it is accepted; the bytes wait for the node's 101."""
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    request = client.send(ws.Request(host="h", target="/websocket"))
    masked = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"
    with front.connect() as raw:
        raw.send(request + masked)
        raw.read_until(b"\r\n\r\n")
        assert raw.read_exactly(4) == b"\x81\x02hi"


def test_application_that_ends_the_connection(router: Gateway) -> None:
    with WebSocket(router.port, "/websocket") as client:
        client.send(ws.TextMessage(data="bye"))
        assert client.ended()


def test_requests_go_on_beside_a_websocket(router: Gateway) -> None:
    with WebSocket(router.port, "/websocket") as client:
        assert client.echo("before") == "before"
        assert fetch(router.port, "/").status == 200
        assert client.echo("after") == "after"
