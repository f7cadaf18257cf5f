"""Attacks by whoever reaches a subscription server, and by nodes that announced themselves."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from support.nodes import Connection, Node, RawHttpNode, RawUwsgiNode, Seen, response
from support.uwgate import Gateway, StartGateway
from support.waiting import free_port, wait_until

from uwgate.nodes.rows import rows
from uwgate.nodes.table import render
from uwgate.subscriptions.packet import Announcement, encode
from uwgate.subscriptions.signing import Signer

KEY = "victim.example"

Nodes = Callable[..., Node]


class Target:
    """A gateway under attack, and the address of its subscription server."""

    def __init__(self, start: StartGateway, *options: str, **more: Any) -> None:
        self.server = ("127.0.0.1", free_port())
        server = f"127.0.0.1:{self.server[1]}"
        self.gateway: Gateway = start("--http-subscription-server", server, *options, **more)
        self.logged("subscription server on")

    def send(self, data: bytes, source: str = "127.0.0.1") -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(data, self.server)

    def announce(self, node: Node | str, key: str = KEY, **fields: Any) -> None:
        """Announce; it is in the workers' tables when this returns."""
        if isinstance(node, Node):
            fields.setdefault("protocol", node.kind)
            node = node.address
        self.send(encode(Announcement(key, node, **fields)))
        self.logged(f"{key} => new node: {node} ")
        wait_until(lambda: self.status(key) != 503, f"{key} is served")

    def status(self, key: str = KEY) -> int:
        with self.gateway.connect() as client:
            return client.ask(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % key.encode()).status

    def logged(self, text: str) -> None:
        try:
            wait_until(lambda: text in self.gateway.log, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.gateway.log}") from None


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Makes nodes: ``nodes()`` an HTTP one, ``nodes(RawUwsgiNode)`` another kind."""
    with ExitStack() as stack:
        yield lambda kind=RawHttpNode, *args, **more: stack.enter_context(kind(*args, **more))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """Signs for KEY; the public key is in ``tmp_path``."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / f"{KEY}.pem").write_bytes(public)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return Signer(pem, "sha256")


# --- becoming somebody else's node ----------------------------------------------------------------


@pytest.mark.parametrize("address", [":3031", "0.0.0.0:3031", "[::]:3031"])
def test_a_recorded_signed_packet_does_not_make_its_thief_the_node(
    start_gateway: StartGateway, tmp_path: Path, signer: Signer, address: str
) -> None:
    """Without a host in what is signed, the host is whoever sends it."""
    target = Target(start_gateway, f"--subscriptions-sign-check=sha256:{tmp_path}")
    unix = int(time.time())
    recorded = encode(Announcement(KEY, address, unix=unix), sign=signer.sign)
    target.send(recorded, "127.0.0.1")
    target.send(recorded, "127.0.0.2")
    target.send(encode(Announcement(KEY, "127.0.0.1:9", unix=unix), sign=signer.sign))
    target.logged(f"{KEY} => new node: 127.0.0.1:9 ")  # whoever names a host is let in
    assert target.gateway.log.count("=> new node") == 1
    assert target.gateway.log.count("refused: bad-address") == 2


def test_a_node_cannot_make_itself_the_end_of_a_shared_connection(
    start_gateway: StartGateway, nodes: Nodes
) -> None:
    """With modifier1 123 all that follows on the connection would go to the node of one key."""

    def answer(connection: Connection, seen: Seen) -> None:
        connection.send(response(b"mallory"))

    target, victim, mallory = Target(start_gateway), nodes(), nodes(RawUwsgiNode)
    mallory.otherwise = answer
    target.announce(victim)
    target.announce(mallory, "mallory.example", modifier1=123)
    with target.gateway.connect() as client:
        first = client.ask(b"GET / HTTP/1.1\r\nHost: mallory.example\r\n\r\n")
        assert first.body == b"mallory"
        second = client.ask(b"GET /secret HTTP/1.1\r\nHost: %b\r\n\r\n" % KEY.encode())
        assert second.body == b"GET /secret 0"
    assert not any(b"secret" in each.received for each in mallory.connections)


# --- the state file -------------------------------------------------------------------------------


def _planted(path: Path, key: str, address: str) -> str:
    lines = [
        ["uwgate subscriptions", 1, int(time.time())],
        ["table", "http"],
        ["key", key, ""],
        ["node", address, 0, 0, 0, "http", 1, 0, 0, 0, 0, 0, "10.0.0.1"],
        ["end", 4],
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.chmod(0o600)
    return str(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_state_file_of_somebody_else_is_not_believed(
    start_gateway: StartGateway, nodes: Nodes, tmp_path: Path
) -> None:
    """In a directory like /tmp anybody can be there first."""
    path = _planted(tmp_path / "state", KEY, nodes().address)
    os.chown(path, 4711, 4711)
    target = Target(start_gateway, "--subscription-state", path)
    target.logged("belongs to another user (4711); starting without it")
    assert target.status() == 503


@pytest.mark.parametrize(
    ("key", "address"),
    [(KEY, "\ud800x"), (KEY, "127.0.0.1:9\n"), ("a\x1b[31m", "127.0.0.1:9"), ("a\0", "/x")],
)
def test_a_state_file_says_nothing_that_no_packet_can(
    start_gateway: StartGateway, tmp_path: Path, key: str, address: str
) -> None:
    path = _planted(tmp_path / "state", key, address)
    target = Target(start_gateway, "--subscription-state", path)
    target.logged("is damaged; starting without it")
    assert target.status() == 503


# --- who looks at it ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [10**400, -(10**400), math.inf, math.nan])
def test_numbers_of_a_hostile_gateway_do_not_stop_the_table(number: float) -> None:
    node = dict.fromkeys(("latency_ms", "requests", "weight", "last_seen", "errors"), number)
    found = rows({"subscriptions": [{"key": "k", "nodes": [{**node, "name": "\x1b[2J"}]}]})
    text = render(found, 80, colour=False)
    assert "nan" not in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_keys_and_addresses_break_no_format(start_gateway: StartGateway) -> None:
    """All visible characters are allowed in a key."""
    stats = free_port()
    target = Target(start_gateway, "--http-stats", f"127.0.0.1:{stats}")
    key = 'k"},{"x":"\\u001b\\n}#{a="b",c="d"}'
    target.send(encode(Announcement(key, '/n"\\x\\"}', backup=1)))
    target.logged("=> new node: /n")
    with socket.create_connection(("127.0.0.1", stats)) as sock, sock.makefile("rb") as file:
        (slot,) = json.loads(file.read())["subscriptions"]
    assert (slot["key"], slot["nodes"][0]["name"]) == (key.lower(), '/n"\\x\\"}')
    with socket.create_connection(("127.0.0.1", stats)) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as file:
            text = file.read().decode().partition("\r\n\r\n")[2]
    value = r'"(?:[^"\\\n]|\\["\\n])*"'
    line = re.compile(rf"[a-z_]+(?:\{{[a-z_0-9]+={value}(?:,[a-z_0-9]+={value})*\}})? [0-9.e+-]+")
    for each in text.splitlines():
        assert each.startswith("# ") or line.fullmatch(each), each
