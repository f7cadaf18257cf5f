"""uWSGI's recipes for subscriptions: real uWSGI nodes, uwgate as the router."""

from __future__ import annotations

import shlex
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.client import Reply
from support.waiting import wait_until

from interop import subscription_recipes as recipes
from interop.peers import APPS, Peer, check, uwgate, uwsgi
from interop.subscribing import (
    Router,
    Traffic,
    address,
    fast_router,
    node,
    node_logged,
    router,
    stop,
    subscribe,
)
from interop.subscription_recipes import adapted


@pytest.fixture
def gate() -> Iterator[Router]:
    with router() as started:
        yield started


def written(where: Path, text: str, name: str = "node.ini") -> str:
    path = where / name
    path.write_text(text)
    return str(path)


def test_graceful_reloading(gate: Router, tmp_path: Path) -> None:
    """No request reaches an instance from its goodbye until it is back; none fails."""
    text = adapted(recipes.GRACEFUL, ("192.168.0.1:4040", gate.server))
    path = written(tmp_path, text)
    with ExitStack() as stack:
        one = stack.enter_context(node(tmp_path, path, name="one"))
        two = stack.enter_context(node(tmp_path, path, name="two"))
        gate.joined(one.address, "unbit.it")
        gate.joined(two.address, "unbit.it")
        gate.served("unbit.it")
        with Traffic(gate, "unbit.it") as traffic:
            for instance in (one, two):
                instance.process.send_signal(signal.SIGHUP)
                gate.left(instance.address, "unbit.it")
                gate.joined(instance.address, "unbit.it", times=2)
            traffic.comes_from({"one", "two"})


def test_broodlord(gate: Router, tmp_path: Path) -> None:
    """An instance and its reinforcement on ports of the kernel's choice."""
    text = adapted(
        recipes.BROODLORD,
        ("127.0.0.1:4040", gate.server),
        ("psgi = app.pl", f"pythonpath = {APPS}\nmodule = workhorse"),
    )
    path = written(tmp_path, text, "vassal.ini")
    with ExitStack() as stack:
        for section in ("uwsgi", "zerg"):
            words = ("--ini", f"{path}:{section}")
            stack.enter_context(
                node(tmp_path, *words, name=section, socket_address=None, application=False)
            )
        wait_until(lambda: set(gate.names(10, "foobar.it")) == {"uwsgi", "zerg"}, "both serve")
        cores = {each["cores"] for each in gate.nodes("foobar.it").values()}
        assert cores == {4, 1}


def test_resolve(gate: Router, tmp_path: Path) -> None:
    port = gate.server.rpartition(":")[2]
    text = adapted(
        recipes.RESOLVE,
        ("resolve = myserver=example.com", "resolve = myserver=localhost"),
        ("server=%(myserver),", f"server=%(myserver):{port},"),
    )
    with node(tmp_path, written(tmp_path, text)) as instance:
        gate.joined(instance.address, "foobar")
        gate.served("foobar")


def test_notify(gate: Router, tmp_path: Path) -> None:
    text = adapted(recipes.NOTIFY, ("/tmp/notify.socket", str(tmp_path / "notify.socket")))
    words = ("--subscribe-to", f"{gate.server}:foobar.it")
    with node(tmp_path, written(tmp_path, text), *words) as instance:
        ack = f"[subscription ack] foobar.it => new node: {instance.address}"
        node_logged(instance, f"[notify-socket] {ack}")


def test_certificates_are_no_obstacle(gate: Router, tmp_path: Path) -> None:
    """The paths are taken note of; this router has no TLS."""
    text = adapted(recipes.SNI, (" key=", f" server={gate.server},key="))
    _, *words = shlex.split(text)
    with node(tmp_path, *words) as instance:
        gate.joined(instance.address, "mydomain.it")
        gate.served("mydomain.it")


# --- the fastrouter -----------------------------------------------------------------------------


def test_federation_literally(tmp_path: Path) -> None:
    done = check([written(tmp_path, recipes.FEDERATION, "router.ini")])
    assert done.returncode == 0, done.stderr
    assert "unknown" not in done.stdout + done.stderr


def test_federation(tmp_path: Path) -> None:
    """The other fastrouter has all records of this one, with this one as their node."""
    fast, server = address(), address()
    with fast_router() as other:
        text = adapted(
            recipes.FEDERATION,
            ("192.168.0.1:3031", fast),
            ("127.0.0.1:5000", server),
            ("192.168.0.2:5000", other.server),
        )
        path = written(tmp_path, text, "router.ini")
        with uwgate(tmp_path, [path], fast) as lower:
            words = ("--subscribe-to", f"{server}:foobar.it")
            with node(tmp_path, *words) as instance:
                other.joined(fast, "foobar.it")
                other.served("foobar.it")
                assert set(other.nodes("foobar.it")) == {fast}
                assert f"foobar.it => new node: {instance.address} (" in lower.logged
                stop(instance)
                other.left(fast, "foobar.it")


def ask_without_key(target: str) -> bytes:
    """A uwsgi request that says nothing of a host; all of the answer."""
    variables = {"REQUEST_METHOD": "GET", "PATH_INFO": "/name", "QUERY_STRING": ""}
    packet = b""
    for text in (word for pair in variables.items() for word in pair):
        packet += struct.pack("<H", len(text)) + text.encode()
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(struct.pack("<BHB", 0, len(packet), 0) + packet)
        answer = b""
        while data := client.recv(65536):
            answer += data
    return answer


def test_fallback_on_no_key(tmp_path: Path) -> None:
    """``fastrouter-fallback-on-no-key``: the spare serves requests without a key, too."""
    spare = address()
    with uwsgi(tmp_path, spare, name="spare", threads=1):
        fallback = ("--fastrouter-fallback", spare)
        with fast_router(*fallback) as gate:
            assert gate.name("nobody.example") == "spare"
            assert b"spare" not in ask_without_key(gate.address)
        with fast_router(*fallback, "--fastrouter-fallback-on-no-key") as gate:
            assert gate.name("nobody.example") == "spare"
            assert b'"spare"' in ask_without_key(gate.address)


def test_post_buffering(tmp_path: Path) -> None:
    """``fastrouter-post-buffering``: a slow upload does not occupy the node's only process."""
    with ExitStack() as stack:
        gate = stack.enter_context(fast_router("--fastrouter-post-buffering", "8192"))
        instance: Peer = stack.enter_context(node(tmp_path, *subscribe(gate)))
        gate.joined(instance.address)
        gate.served()
        client = stack.enter_context(gate.gate.connect())
        body = b"0123456789abcdef" * 65536
        head = f"POST /echo HTTP/1.1\r\nHost: app.example\r\nContent-Length: {len(body)}\r\n\r\n"
        client.send(head.encode() + body[: len(body) // 2])
        assert gate.names(3) == ["node"] * 3  # the process is free
        client.send(body[len(body) // 2 :])
        reply: Reply = client.read_response(b"POST")
        assert (reply.status, reply.body == body) == (200, True)
