"""Attacks on a running fastrouter: by web servers' clients, by nodes, by whoever announces them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.fast import ask, fastrouter, request
from support.nodes import RawHttpNode, SeenHttp
from support.waiting import free_port, wait_until

from uwgate.subscriptions.packet import Announcement, encode


@pytest.mark.parametrize(
    ("listen", "node"),
    [
        ("127.0.0.1:{port}", "localhost:{port}"),
        ("127.0.0.1:{port}", "[::ffff:127.0.0.1]:{port}"),
        ("127.0.0.1:{port}", "[0::ffff:0.0.0.0]:{port}"),
        ("0.0.0.0:{port}", "127.0.0.3:{port}"),
        ("{place}/router.sock", "{place}/../{name}/router.sock"),
        ("{place}/router.sock", "{place}/link"),
        ("@uwgate-{name}", "\\0uwgate-{name}"),
    ],
)
def test_a_router_is_not_its_own_node_however_it_is_spelled(listen: str, node: str) -> None:
    """One such request would come back until no descriptor is left, and hold them all."""
    with TemporaryDirectory() as place:
        words = {"port": free_port(), "place": place, "name": os.path.basename(place)}
        os.symlink("router.sock", Path(place) / "link")
        server = ("127.0.0.1", free_port())
        options = ("--fastrouter-subscription-server", f"127.0.0.1:{server[1]}")
        with fastrouter(*options, listen=listen.format(**words)) as gateway:
            packet = encode(Announcement("h", node.format(**words)))

            def refused() -> bool:
                """The traffic listener is there before the subscription server is."""
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(packet, server)
                assert ask(gateway, request()).status in (502, 503)
                return "is this router" in gateway.log

            wait_until(refused, "the node is seen through")


def test_the_host_that_was_routed_by_is_the_host_that_the_node_gets() -> None:
    """A client may write another one into its target, past whoever looked at Host."""
    with RawHttpNode() as node:
        with fastrouter("--fastrouter-to", f"http://{node.address}") as gateway:
            assert ask(gateway, request(b"http://evil/x", b"GET", b"h")).status == 200
        seen = node.only()
        assert isinstance(seen, SeenHttp)
        assert (seen.target, seen.field(b"host")) == (b"/x", [b"h"])
        assert b"evil" not in seen.raw
