"""An instance that announces itself: the options of the subscription client at work."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.announced import ROOT, Listener
from support.nodes import RawHttpNode, held, response
from support.uwgate import StartGateway
from support.waiting import free_port, wait_until


@pytest.fixture
def server() -> Iterator[Listener]:
    with Listener() as made:
        yield made


def test_an_instance_announces_itself(
    server: Listener, http_node: RawHttpNode, start_gateway: StartGateway, tmp_path: Path
) -> None:
    notify = tmp_path / "n"
    gateway = start_gateway(
        "--http-to", http_node.spec, "--subscribe-to", f"{server.address}:one.example,3",
        "--subscribe2", f"server=localhost:{server.port},key=two,addr=10.0.0.7:1,weight=2",
        "--subscribe-freq", "200ms", "--weight", "5", "--notify-socket", str(notify),
        "--http-processes", "2",
    )  # fmt: skip
    wait_until(lambda: {each.packet.key for each in server.heard} == {"one.example", "two"})
    packets = {each.packet.key: each.packet for each in server.heard}
    one, two = packets["one.example"], packets["two"]
    assert (one.address, one.protocol, one.modifier1) == (gateway.listen, "http", 3)
    assert (one.weight, one.cores, one.notify) == (5, 2, str(notify))
    assert (two.address, two.protocol, two.weight) == ("10.0.0.7:1", "uwsgi", 2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"ack\n", str(notify))
    wait_until(lambda: "[notify-socket] ack\\n" in gateway.log)

    gate = threading.Event()
    http_node.play(held(gate, response(b"ok")))
    with gateway.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: one.example\r\n\r\n")
        http_node.wait_seen()
        gateway.terminate()
        server.wait(downs=4)  # the goodbye waits for nobody; the request in flight ends in peace
        heard = len(server.heard)
        gate.set()
        assert client.read_response().body == b"ok"
    assert gateway.process.wait(10) == 0
    assert not any(each.up for each in server.heard[heard:])
    assert not notify.exists()


def test_shared_sockets_and_every_interface(
    server: Listener, http_node: RawHttpNode, start_gateway: StartGateway
) -> None:
    port, other = free_port(), free_port()
    gateway = start_gateway(
        "--shared-socket", f"127.0.0.1:{other}", "--http", "=0", "--http-to", http_node.spec,
        "--st", f"{server.address}:first", "--st", f"=0={server.address}:shared",
        "--st", f":7={server.address}:literal",
        listen=f":{port}",
    )  # fmt: skip
    server.wait(ups=3)
    assert {each.packet.key: each.packet.address for each in server.heard} == {
        "first": f"127.0.0.1:{port}",
        "shared": f"127.0.0.1:{other}",
        "literal": ":7",
    }
    assert {each.packet.protocol for each in server.heard[:2]} == {"http"}
    gateway.stop()


def test_an_instance_does_not_start_with_a_key_that_cannot_sign(
    server: Listener, tmp_path: Path
) -> None:
    pem = tmp_path / "key.pem"
    pem.write_text("no key")
    done = subprocess.run(
        [
            sys.executable, "-m", "uwgate", "--http", f"127.0.0.1:{free_port()}", "--http-to", ":1",
            "--st", f"{server.address}:k,0,sha256:{pem}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"uwgate: error: private key {pem}: " in done.stderr
    assert "Traceback" not in done.stderr
