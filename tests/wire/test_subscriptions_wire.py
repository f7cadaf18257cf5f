"""Nodes that announce themselves: real packets in, real requests through, processes killed.

How uWSGI's own instances do that is in tests/interop; the rules one by one are in tests/unit.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from support.client import Reply
from support.nodes import Node, RawHttpNode, RawUwsgiNode, held, response
from support.uwgate import Gateway, StartGateway
from support.waiting import dead_address, free_port, wait_until

from uwgate.subscriptions.packet import Announcement, encode
from uwgate.subscriptions.signing import Signer

KEY = "example.com"


class Router:
    """A gateway with a subscription server, and a sender of packets."""

    def __init__(self, start: StartGateway, *options: str, server: str = "", **more: Any) -> None:
        self.server = server or f"127.0.0.1:{free_port()}"
        self.gateway: Gateway = start("--http-subscription-server", self.server, *options, **more)
        self.logged("subscription server on")

    def send(self, data: bytes, server: str = "") -> None:
        to = server or self.server
        if to.startswith("/"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(data, to)
            return
        host, _, port = to.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(data, (host.strip("[]"), int(port)))

    def announce(self, node: Node | str, key: str = KEY, **fields: Any) -> None:
        """Announce, and wait until it is in the log."""
        if isinstance(node, Node):
            fields.setdefault("protocol", node.kind)
            node = node.address
        text = f"{key} => new node: {node} "
        before = self.gateway.log.count(text)
        self.send(encode(Announcement(key, node, **fields)))
        self.logged(text, before + 1)

    def goodbye(self, node: Node, key: str = KEY) -> None:
        self.send(encode(Announcement(key, node.address, command=1)))
        self.logged(f"{key} => node left: {node.address} ")

    def logged(self, text: str, times: int = 1) -> None:
        try:
            wait_until(lambda: self.gateway.log.count(text) >= times, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.gateway.log}") from None

    def get(
        self, host: str = KEY, target: str = "/", method: str = "GET", body: bytes = b"",
        fields: str = "",
    ) -> Reply:  # fmt: skip
        """One request over a connection of its own."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{length}{fields}\r\n"
        with self.gateway.connect() as client:
            return client.ask(head.encode() + body, method.encode())

    def heard(self) -> None:
        """Wait until all workers know what the log says: their counters come behind it."""
        before = self.gateway.log.count("stats: workers ")
        self.gateway.process.send_signal(signal.SIGUSR1)
        self.logged("stats: workers ", before + 1)

    def until(self, status: int, host: str = KEY, target: str = "/") -> None:
        """Workers hear of changes a moment after the log does."""
        wait_until(lambda: self.get(host, target).status == status, f"status {status}")

    def at(self, node: Node, host: str = KEY, target: str = "/", fields: str = "") -> bool:
        """Whether this node serves the request."""
        before = len(node.seen)
        return self.get(host, target, fields=fields).status == 200 and len(node.seen) > before

    @property
    def workers(self) -> list[int]:
        pid = self.gateway.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def place() -> Iterator[Path]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    """Makes nodes: ``nodes()`` an HTTP one, ``nodes(RawUwsgiNode)`` another kind."""
    with ExitStack() as stack:
        yield lambda kind=RawHttpNode, *args, **more: stack.enter_context(kind(*args, **more))


Nodes = Callable[..., Node]


# --- joining and leaving ------------------------------------------------------------------------


def test_join_and_leave(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, node = Router(start_gateway), nodes()
    assert router.get().status == 503
    router.announce(node)
    router.until(200)
    assert node.seen[-1].target == b"/"
    assert router.get("other.example").status == 503
    router.send(encode(Announcement(KEY, node.address, protocol="http")))  # a refresh
    router.goodbye(node)
    router.until(503)


def test_a_node_that_leaves_while_a_body_is_taken_in(
    start_gateway: StartGateway, nodes: Nodes
) -> None:
    """The body had to be complete for a uwsgi node; by then there is another one."""
    router, one, two = Router(start_gateway), nodes(RawUwsgiNode), nodes(RawUwsgiNode)
    router.announce(one)
    router.until(200)
    with router.gateway.connect() as client:
        head = f"POST /body HTTP/1.1\r\nHost: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(f"{head}2\r\nab\r\n".encode())
        router.until(200)  # so the node for that was picked as well
        router.goodbye(one)
        router.until(503)
        router.announce(two)
        router.until(200)
        client.send(b"1\r\nc\r\n0\r\n\r\n")
        assert client.read_response().status == 200
    assert two.seen[-1].target == b"/body"


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (RawHttpNode, "tcp"),
        (RawHttpNode, "unix"),
        (RawUwsgiNode, "tcp"),
        (RawUwsgiNode, "unix"),
        (RawUwsgiNode, "abstract"),
    ],
)
def test_kinds_of_nodes(
    start_gateway: StartGateway, nodes: Nodes, kind: type[Node], where: str
) -> None:
    router, node = Router(start_gateway), nodes(kind, where)
    modifier1 = 5 if kind is RawUwsgiNode else 0
    router.announce(node, modifier1=modifier1)
    router.until(200)
    if kind is RawUwsgiNode:
        assert node.seen[-1].raw[0] == 5
    # The same node speaks otherwise from now on.
    if kind is RawUwsgiNode:
        router.send(encode(Announcement(KEY, node.address, modifier1=7)))
        wait_until(lambda: router.get().status == 200 and node.seen[-1].raw[0] == 7)


def test_host_names_and_missing_hosts(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, node = Router(start_gateway), nodes()
    port = node.address.rpartition(":")[2]
    router.announce(f"localhost:{port}", protocol="http")
    router.until(200)
    router.send(encode(Announcement("second.example", f":{port}", protocol="http")))
    router.logged(f"second.example => new node: 127.0.0.1:{port} ")
    router.until(200, "second.example")
    router.announce(f"no-such-host.invalid:{port}", "third.example", protocol="http")
    assert router.get("third.example").status in (502, 503)


def test_words_of_503(start_gateway: StartGateway, nodes: Nodes) -> None:
    """Nobody ever announced the key, or none of its nodes is alive."""
    router = Router(start_gateway, "--http-log")
    assert router.get().status == 503
    router.logged(" no-node\n")
    router.announce(dead_address(), protocol="http")
    wait_until(lambda: router.get().status in (502, 503) and "marking" in router.gateway.log)
    router.heard()
    assert router.get().status in (502, 503)
    router.logged(" no-node-alive\n")


def test_weights(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, heavy, light = Router(start_gateway), nodes(), nodes()
    router.announce(heavy, weight=3)
    router.announce(light)
    router.heard()
    heavy.reset()
    light.reset()
    for _ in range(20):
        assert router.get().status == 200
    assert (len(heavy.seen), len(light.seen)) == (15, 5)


# --- servers ------------------------------------------------------------------------------------


def test_servers_of_all_kinds(start_gateway: StartGateway, nodes: Nodes, place: Path) -> None:
    more = [f"[::1]:{free_port()}", str(place / "subs.sock"), f"127.0.0.1:{free_port()}"]
    options = [word for each in more for word in ("--http-subscription-server", each)]
    router, node = Router(start_gateway, *options), nodes()
    router.logged("subscription server on", 4)
    for number, server in enumerate([router.server, *more]):
        key = f"k{number}.example"
        router.send(encode(Announcement(key, node.address, protocol="http")), server)
        router.logged(f"{key} => new node")
        router.until(200, key)


def test_acknowledgement(start_gateway: StartGateway, nodes: Nodes, place: Path) -> None:
    router, node = Router(start_gateway), nodes()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(place / "notify"))
        sock.settimeout(10)
        router.announce(node, notify=str(place / "notify"))
        wanted = f"[subscription ack] {KEY} => new node: {node.address}"
        assert sock.recv(1000).decode() == wanted
        router.send(encode(Announcement(KEY, node.address, notify=str(place / "notify"))))
        router.goodbye(node)
        router.announce(node, notify=str(place / "notify"))
        assert sock.recv(1000).decode() == wanted  # the refresh was not told


def test_garbage_does_not_disturb(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, node = Router(start_gateway), nodes()
    for data in (b"", b"\xe0", os.urandom(300), b"\xe0" * 9000, b"\xe0\0\0\0"):
        router.send(data)
    router.logged("refused", 4)
    router.announce(node)
    router.until(200)


# --- several workers ----------------------------------------------------------------------------


@pytest.mark.parametrize("signs", [False, True])
def test_all_workers_know_a_node_after_one_packet(
    start_gateway: StartGateway, nodes: Nodes, tmp_path: Path, signs: bool
) -> None:
    """uWSGI's other processes lose signed nodes. With 4 workers and 100 connections spread by
    SO_REUSEPORT, one that knew nothing would answer some of them with 503."""
    options, sign = ["--http-processes", "4"], None
    if signs:
        private = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / f"{KEY}.pem").write_bytes(
            private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        sign = Signer(pem, "sha256").sign
        options += [f"--subscriptions-sign-check=sha256:{tmp_path}"]
    router, node = Router(start_gateway, *options), nodes()
    wait_until(lambda: len(router.workers) == 4)
    unix = int(time.time()) if signs else 0
    router.send(encode(Announcement(KEY, node.address, protocol="http", unix=unix), sign=sign))
    router.logged("new node")
    streak = 0

    def all_know() -> bool:
        nonlocal streak
        streak = streak + 1 if router.get().status == 200 else 0
        return streak >= 100

    wait_until(all_know)
    router.send(encode(Announcement(KEY, node.address, command=1)))
    if signs:
        router.logged("unsigned")
        assert router.get().status == 200
    else:
        router.logged("node left")
        router.until(503)


def test_a_respawned_worker_serves_at_once(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, node = Router(start_gateway, "--http-processes", "2"), nodes()
    router.announce(node)
    router.until(200)
    for number in range(1, 4):
        (victim, *_) = router.workers
        os.kill(victim, signal.SIGKILL)
        router.logged("respawned", number)
        wait_until(lambda: len(router.workers) == 2)
        for _ in range(30):
            with router.gateway.connect() as client:
                client.send_willing(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
                data = client.receive()  # nothing, if its worker was killed just now
            assert data == b"" or data.startswith(b"HTTP/1.1 200"), data


# --- nodes that vanish --------------------------------------------------------------------------


def test_a_dead_node_is_marked_and_nobody_notices(
    start_gateway: StartGateway, nodes: Nodes
) -> None:
    router, alive = Router(start_gateway, "--subscription-algo", "wrr-uwsgi"), nodes()
    dead = dead_address()
    router.announce(dead, protocol="http")
    router.announce(alive)
    router.until(200)
    for number in range(6):
        method, body = ("POST", b"x" * 100_000) if number % 2 else ("GET", b"")
        reply = router.get(method=method, body=body, target=f"/{number}")
        wanted = b"%s /%d %d" % (method.encode(), number, len(body))
        assert (reply.status, reply.body) == (200, wanted)
    router.logged(f"{KEY} => marking {dead} as failed")
    assert router.gateway.log.count("marking") == 1


def test_a_marked_node_is_back_with_its_next_announcement(
    start_gateway: StartGateway, nodes: Nodes
) -> None:
    router, alive = Router(start_gateway), nodes()
    port = free_port()
    address = f"127.0.0.1:{port}"
    router.announce(alive)
    router.announce(address, protocol="http")
    wait_until(lambda: router.get().status == 200 and "marking" in router.gateway.log)
    router.heard()
    node = nodes(RawHttpNode, "tcp", port)
    for _ in range(6):
        assert router.at(alive)
    router.send(encode(Announcement(KEY, address, protocol="http")))
    router.logged("is back (it announced itself)")
    wait_until(lambda: router.at(node))


def test_the_last_node_is_tried_again_without_an_announcement(
    start_gateway: StartGateway, nodes: Nodes
) -> None:
    router = Router(start_gateway)
    port = free_port()
    router.announce(f"127.0.0.1:{port}", protocol="http")
    wait_until(lambda: router.get().status in (502, 503) and "marking" in router.gateway.log)
    nodes(RawHttpNode, "tcp", port)
    router.until(200)
    router.logged("is back (it was reached)")


def test_silence_without_traffic(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, node = Router(start_gateway, "--subscription-tolerance", "1"), nodes()
    router.announce(node)
    router.logged(f"{KEY} => marking {node.address} as failed (no announce received in 2 seconds)")
    router.until(503)


def test_a_goodbye_while_a_request_is_under_way(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, first, second = Router(start_gateway), nodes(), nodes()
    gate = threading.Event()
    router.announce(first)
    router.until(200)
    first.reset()
    first.play(held(gate, response(b"slow")))
    with router.gateway.connect() as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: example.com\r\n\r\n")
        first.wait_seen()
        router.announce(second)
        router.goodbye(first)
        router.heard()
        for _ in range(10):
            assert router.at(second)
        gate.set()
        assert client.read_response().body == b"slow"
        assert client.ask(b"GET /next HTTP/1.1\r\nHost: example.com\r\n\r\n").status == 200
    assert [seen.target for seen in first.seen] == [b"/slow"]
    wait_until(lambda: first.open_connections() == 0, "idle connections to be closed")


# --- cheap --------------------------------------------------------------------------------------


def test_cheap(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, node = Router(start_gateway, "--http-cheap", "--http-processes", "2"), nodes()
    router.logged("spawned", 2)
    request = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
    with ExitStack() as stack:
        waiting = [stack.enter_context(router.gateway.connect()) for _ in range(8)]
        for client in waiting:
            client.send(request)
        router.announce(node)
        assert [client.read_response().status for client in waiting] == [200] * 8
    gate = threading.Event()
    with router.gateway.connect() as busy, router.gateway.connect() as idle:
        idle.ask(request)
        node.reset()
        node.play(held(gate, response(b"slow")))
        busy.send(request)
        node.wait_seen()
        router.goodbye(node)
        wait_until(lambda: idle.ask(request).status == 503, "its worker to know")
        # Whoever comes now waits, until there is a node again.
        with router.gateway.unanswered(request) as late:
            gate.set()
            assert busy.read_response().body == b"slow"
            late.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.sock.recv(1)
            late.sock.settimeout(10)
            router.announce(node)
            assert late.read_response().status == 200


# --- state --------------------------------------------------------------------------------------


def test_a_restarted_router_serves_before_any_announcement(
    start_gateway: StartGateway, nodes: Nodes, place: Path
) -> None:
    state, node = str(place / "state"), nodes()
    first = Router(start_gateway, "--subscription-state", state)
    first.announce(node)
    first.gateway.stop()
    second = Router(start_gateway, "--subscription-state", state)
    assert second.get().status == 200
    second.logged("1 nodes of 1 keys as they were")
    second.goodbye(node)
    second.until(503)


def test_a_killed_router_has_its_state_as_well(
    start_gateway: StartGateway, nodes: Nodes, place: Path
) -> None:
    state, node = place / "state", nodes()
    with ExitStack() as stack:
        gateway = Gateway(
            "--http-subscription-server", (server := f"127.0.0.1:{free_port()}"),
            "--subscription-state", str(state),
        )  # fmt: skip
        stack.callback(gateway.kill)
        router = Router(lambda *words: gateway, server=server)
        router.announce(node)
        wait_until(lambda: state.exists() and node.address in state.read_text())
        gateway.process.kill()
        gateway.process.wait()
    assert Router(start_gateway, "--subscription-state", str(state)).get().status == 200


# --- keys ---------------------------------------------------------------------------------------


def test_mountpoints(start_gateway: StartGateway, nodes: Nodes) -> None:
    router = Router(start_gateway, "--subscription-mountpoints=2")
    host, app, deep = nodes(), nodes(), nodes()
    router.announce(deep, f"{KEY}/app/x")
    router.announce(host)
    router.announce(app, f"{KEY}/app")
    wait_until(lambda: router.at(app, target="/app"))
    for target, node in {
        "/": host,
        "/apple": host,
        "/app/": app,
        "/app/y?z": app,
        "/%61pp": app,
        "/x/../app": app,
        "/app%2Fx": deep,
        "/app/x/y/z": deep,
        "/app/x/../../other": host,
    }.items():
        assert router.at(node, target=target), target
    router.goodbye(app, f"{KEY}/app")
    wait_until(lambda: router.at(host, target="/app"))
    assert router.at(deep, target="/app/x")


def test_dotsplit_and_fallback_key(start_gateway: StartGateway, nodes: Nodes) -> None:
    router = Router(
        start_gateway, "--subscription-dotsplit", "--http-subscription-fallback-key", "last"
    )
    wild, last = nodes(), nodes()
    router.announce(wild, ".example.com")
    router.announce(last, "last")
    wait_until(lambda: router.at(last, "nobody"))
    assert router.at(wild, "A.B.Example.com")
    assert router.at(last, "example.com")


# --- affinity -----------------------------------------------------------------------------------


def test_sticky(start_gateway: StartGateway, nodes: Nodes) -> None:
    router = Router(start_gateway, "--http-sticky", "srv", "--http-processes", "2")
    both = [nodes(), nodes()]
    for node in both:
        router.announce(node)
    router.heard()
    reply = router.get()
    cookie = (reply.get(b"set-cookie") or b"").decode().partition(";")[0]
    assert re.fullmatch(r"srv=[0-9a-f]{16}", cookie)
    fields = f"Cookie: a=1; {cookie}\r\n"
    mine, other = both if router.at(both[0], fields=fields) else reversed(both)
    for _ in range(20):
        assert router.at(mine, fields=fields)
        assert router.get(fields=fields).get(b"set-cookie") is None
    router.goodbye(mine)
    router.heard()
    assert router.at(other, fields=fields)
    assert router.get(fields=fields).get(b"set-cookie") is not None


def test_sticky_static_nodes(start_gateway: StartGateway, nodes: Nodes) -> None:
    both = [nodes(), nodes()]
    words = [word for node in both for word in ("--http-to", node.spec)]
    gateway = start_gateway(*words, "--http-sticky", "srv")
    with gateway.connect() as client:
        reply = client.ask(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        cookie = (reply.get(b"set-cookie") or b"").partition(b";")[0]
        request = b"GET / HTTP/1.1\r\nHost: example.com\r\nCookie: " + cookie + b"\r\n\r\n"
        for _ in range(9):
            assert client.ask(request).get(b"set-cookie") is None
    assert sorted(len(node.seen) for node in both) == [0, 10]


@pytest.mark.parametrize(
    ("by", "one"),
    [
        ("path", {"target": "/a?{}"}),
        ("header:x-user", {"target": "/{}", "fields": "X-User: me\r\n"}),
        ("cookie:sid", {"target": "/{}", "fields": "Cookie: x=1; sid=me\r\n"}),
    ],
)
def test_hash(start_gateway: StartGateway, nodes: Nodes, by: str, one: dict[str, str]) -> None:
    options = ("--subscription-algo", "hash", "--http-hash-by", by, "--http-processes", "2")
    router, three = Router(start_gateway, *options), [nodes() for _ in range(3)]
    for node in three:
        router.announce(node)
    router.heard()

    def served(target: str, fields: str = "") -> list[int]:
        before = [len(node.seen) for node in three]
        assert router.get(target=target, fields=fields).status == 200
        return [len(node.seen) - count for node, count in zip(three, before, strict=True)]

    target, fields = one["target"], one.get("fields", "")
    assert len({tuple(served(target.format(number), fields)) for number in range(30)}) == 1
    others = {
        tuple(served(f"/{n}", f"X-User: {n}\r\nCookie: sid={n}\r\n")) for n in range(30)
    }
    assert len(others) == 3


def test_iphash_is_by_client(start_gateway: StartGateway, nodes: Nodes) -> None:
    router, three = Router(start_gateway, "--subscription-algo", "iphash"), [nodes() for _ in "abc"]
    for node in three:
        router.announce(node)
    wait_until(lambda: router.at(three[2]))  # 127.0.0.1 -> C (2.1-dev)
    for number in range(6):
        assert router.at(three[2], target=f"/{number}")
