"""The fastrouter's express way where a kernel is short of something."""

from __future__ import annotations

import asyncio
import socket
from _socket import socket as new_socket

import pytest
from router_tools import run
from support.client import Client, Reply
from support.fast import request
from support.nodes import RawUwsgiNode

from uwgate.config import addresses
from uwgate.config.settings import Endpoint, FastSettings, ListenerSettings
from uwgate.router import fast_express
from uwgate.router.fast import FastGateway


def cramped(family: int, kind: int) -> new_socket:
    """A socket whose buffer takes no whole packet, as where memory for sockets is short."""
    sock = new_socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # some 4.5 KB are the least
    return sock


async def ask(gateway: FastGateway, sock: socket.socket, packet: bytes, times: int) -> list[Reply]:
    """Send the packet that often, each time on a connection that brings it along."""
    settings = ListenerSettings(Endpoint("tcp", "127.0.0.1:0", host="127.0.0.1"))
    await gateway.start([(settings, sock)])
    replies = []
    for _ in range(times):
        with Client(sock.getsockname()) as client:
            client.send(packet)
            replies.append(await asyncio.to_thread(client.read_response))
    await gateway.close()
    return replies


def test_a_packet_that_is_sent_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_express, "new_socket", cramped)
    packet = request(b"/" + b"p" * 400, b"GET", b"h", (b"HTTP_COOKIE", b"c" * 3780))
    with RawUwsgiNode("unix") as node, socket.create_server(("127.0.0.1", 0)) as listening:
        settings = FastSettings(listeners=(), nodes=(addresses.node(node.spec),), timeout=5)

        async def story() -> list[Reply]:
            gateway = FastGateway(settings, loop=asyncio.get_running_loop())
            replies = await ask(gateway, listening, packet, 5)
            assert [each.active for each in gateway.static_nodes] == [0]
            return replies

        assert [reply.status for reply in run(story)] == [200] * 5
        assert {each.raw for each in node.seen} == {packet}
