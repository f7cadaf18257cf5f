"""The fastrouter with nodes that announce themselves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.fast import ask, fastrouter, packed, request, variables
from support.nodes import Node, RawHttpNode, RawUwsgiNode, held, response
from support.uwgate import Gateway
from support.waiting import dead_address, free_port, wait_until

from uwgate.subscriptions.packet import Announcement, encode


class Router:
    """A fastrouter with a subscription server."""

    def __init__(self, gateway: Gateway, server: str) -> None:
        self.gateway = gateway
        self.server = server

    def send(self, announcement: Announcement, logged: str) -> None:
        """Send a packet and wait for the line that it makes."""
        before = self.gateway.log.count(logged)
        host, _, port = self.server.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(encode(announcement), (host, int(port)))
        wait_until(lambda: self.gateway.log.count(logged) > before, logged)

    def announce(self, key: str, node: Node | str, modifier1: int = 0) -> None:
        protocol = "uwsgi" if isinstance(node, str) else node.kind
        address = node if isinstance(node, str) else node.address
        packet = Announcement(key, address, modifier1=modifier1, protocol=protocol)  # type: ignore[arg-type]
        self.send(packet, f"{key} => new node: {address} ")

    def goodbye(self, key: str, node: Node) -> None:
        packet = Announcement(key, node.address, command=1)
        self.send(packet, f"{key} => node left: {node.address} ")

    def served(self, host: bytes, target: bytes = b"/x") -> None:
        """Wait for the worker to know; the log's line was the master's."""
        wait_until(lambda: self.status(host, target) == 200, "the worker to know")

    def status(self, host: bytes, target: bytes = b"/x") -> int:
        return ask(self.gateway, request(target, b"GET", host)).status


@contextmanager
def routing(*options: str) -> Iterator[Router]:
    server = f"127.0.0.1:{free_port()}"
    with fastrouter("--fastrouter-subscription-server", server, *options) as gateway:
        wait_until(lambda: "subscription server on" in gateway.log, "the subscription server")
        yield Router(gateway, server)


def test_nodes_join_and_leave() -> None:
    with RawUwsgiNode("unix") as one, RawUwsgiNode() as two, RawHttpNode() as three:
        with routing() as router:
            assert router.status(b"one.test") == 503
            router.announce("one.test", one, modifier1=7)
            router.announce("two.test", two)
            router.announce("two.test", three)
            router.served(b"one.test")
            wait_until(lambda: router.status(b"two.test") == 200 and three.seen, "both to be known")
            for node in (one, two, three):
                node.reset()
            for _ in range(4):
                assert router.status(b"One.TEST") == 200
                assert router.status(b"two.test") == 200
            key = (b"UWSGI_FASTROUTER_KEY", b"one.test")
            assert ask(router.gateway, packed([*variables(b"/k"), key])).status == 200
            router.goodbye("one.test", one)
            wait_until(lambda: router.status(b"one.test") == 503, "the worker to know")
        assert {each.modifier1 for each in one.seen} == {7}  # type: ignore[attr-defined]
        assert len(one.seen) >= 5
        assert (len(two.seen), len(three.seen)) == (2, 2)


def test_a_node_that_died_is_left_out() -> None:
    with RawUwsgiNode() as node, routing() as router:
        router.announce("h", dead_address())
        router.announce("h", node)
        router.served(b"h")
        node.reset()
        for _ in range(6):
            assert router.status(b"h") == 200
        assert len(node.seen) == 6


def test_the_key_stays_when_a_head_is_made_of_the_packet() -> None:
    """The first node is an HTTP one that is gone: the next is one of the same key, not of Host."""
    with RawHttpNode() as node, routing("--subscription-algo=lrc") as router:
        packet = packed([*variables(b"/x", b"GET", b"other.test"), (b"UWSGI_FASTROUTER_KEY", b"k")])
        router.announce("k", node)
        wait_until(lambda: ask(router.gateway, packet).status == 200, "the worker to know")
        gone = dead_address()
        joins = Announcement("k", gone, protocol="http")
        router.send(joins, f"k => new node: {gone} ")

        def dead_was_asked() -> bool:
            assert ask(router.gateway, packet).status == 200
            return "unable to connect" in router.gateway.log

        wait_until(dead_was_asked, "the dead node to be asked")


def test_mountpoints_are_of_the_uri() -> None:
    with RawUwsgiNode() as app, RawUwsgiNode() as rest, routing(
        "--subscription-mountpoints=1"
    ) as router:
        router.announce("h/app", app)
        router.announce("h", rest)
        router.served(b"h", b"/app/x")
        wait_until(lambda: router.status(b"h") == 200 and rest.seen, "both to be known")
        app.reset()
        rest.reset()
        for _ in range(3):
            assert router.status(b"h", b"/app/x") == 200
            assert router.status(b"h", b"/other") == 200
        assert {each.target for each in app.seen} == {b"/app/x"}
        assert {each.target for each in rest.seen} == {b"/other"}


@pytest.mark.parametrize("by", ["path", "header:X-User", "cookie:user", "client"])
def test_hash(by: str) -> None:
    nodes = [RawUwsgiNode() for _ in range(3)]
    with ExitStack() as stack:
        options = []
        for node in nodes:
            stack.enter_context(node)
            options += ["--fastrouter-to", node.spec]
        options += ["--fastrouter-algo", "hash", "--fastrouter-hash-by", by]
        gateway = stack.enter_context(fastrouter(*options))
        users = range(24)  # so many that they are not all of one node, whatever the ports are
        for user in users:
            name = b"u%d" % user
            more = [(b"HTTP_X_USER", name), (b"HTTP_COOKIE", b"a=b; user=" + name)]
            pairs = [
                (key, b"192.0.2.%d" % user if key == b"REMOTE_ADDR" else value)
                for key, value in [*variables(b"/" + name), *more]
            ]
            for _ in range(3):
                assert ask(gateway, packed(pairs)).status == 200
        for user in users:
            counts = [sum(s.target == b"/u%d" % user for s in node.seen) for node in nodes]
            assert sorted(counts) == [0, 0, 3]
        assert sum(bool(node.seen) for node in nodes) > 1


def test_cheap() -> None:
    with RawUwsgiNode("unix") as node, routing("--fastrouter-cheap") as router:
        with router.gateway.connect() as waiting:
            waiting.send(request())
            router.announce("h", node)
            assert waiting.read_response().status == 200
        gate = threading.Event()
        node.play(held(gate, response(b"slow")))
        with router.gateway.connect() as busy:
            busy.send(request())
            node.wait_seen(2)
            router.goodbye("h", node)
            with router.gateway.unanswered(request()) as late:
                gate.set()
                assert busy.read_response().body == b"slow"
                late.sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    late.sock.recv(1)
                late.sock.settimeout(10)
                router.announce("h", node)
                assert late.read_response().status == 200
