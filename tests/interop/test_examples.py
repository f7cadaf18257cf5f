"""Every example runs as it is, but for its addresses; no example is without a test."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from support.certificates import Pair
from support.client import Client as RawClient
from support.client import Reply, Truncated
from support.fast import post
from support.furnished import SITE, Furnished
from support.nodes import Node, RawHttpNode, RawUwsgiNode, SeenUwsgi
from support.tls import TlsClient, client_context
from support.waiting import free_port, wait_until

from interop.observing import probe, stats, wait_ready
from interop.peers import ROOT, Peer, check, uwgate
from interop.subscribing import Keys, announce_once
from interop.subscribing import address as free_datagram_address
from interop.subscribing import node as uwsgi_node
from uwgate.subscriptions.packet import decode

EXAMPLES = ROOT / "examples"
TCP = re.compile(r"(?<![0-9.])(127\.0\.0\.1|0\.0\.0\.0):([0-9]+)")
HTTP_PORTS = range(9000, 9010)
NODE_PORTS = range(3031, 3040)
DATAGRAM_PORTS = range(4040, 4050)
SOCKETS = ("blue", "green", "red", "one.example", "two.example")


class Stage:
    """The examples copied to ``where``, with ports, sockets and users that this machine has."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.nodes: dict[str, Node] = {}
        self.addresses: dict[str, str] = {}
        self.datagrams: dict[str, str] = {}
        self.run = where / "run"
        self.run.mkdir()
        self.furnished = Furnished(where)
        for name in SOCKETS:
            node = self._node(name, RawUwsgiNode("unix"))
            (self.run / f"{name}.sock").symlink_to(node.path)
        self._node("@app2", RawUwsgiNode("abstract"))
        for source in EXAMPLES.rglob("*"):
            target = where / source.relative_to(EXAMPLES)
            if source.is_dir():
                target.mkdir()
            elif "__pycache__" not in source.parts:
                target.write_text(self._adapt(source.read_text()))

    def _node(self, name: str, node: Node) -> Node:
        self.nodes[name] = node
        return node

    def _address(self, match: re.Match[str]) -> str:
        """A node for the ports of nodes, a free port for what the example listens on."""
        text, port = match[0], int(match[2])
        if port in DATAGRAM_PORTS:
            return self.datagrams.setdefault(text, free_datagram_address())
        if port not in HTTP_PORTS and port not in NODE_PORTS:
            return self.addresses.setdefault(text, f"127.0.0.1:{free_port()}")
        if text not in self.nodes:
            self._node(text, RawHttpNode() if port in HTTP_PORTS else RawUwsgiNode())
        return self.nodes[text].address

    def _adapt(self, text: str) -> str:
        own = {"uid": pwd.getpwuid(os.getuid()).pw_name, "gid": grp.getgrgid(os.getgid()).gr_name}
        text = TCP.sub(self._address, text)
        text = text.replace("/run/app", str(self.run))
        text = self.furnished.adapt(text).replace("/etc/uwgate/keys", str(self.where))
        text = text.replace("@app2", self.nodes["@app2"].address)
        return re.sub(r"(?m)^(uid|gid) = .*", lambda m: f"{m[1]} = {own[m[1]]}", text)

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
            node.check()

    def seen(self, name: str) -> list[SeenUwsgi]:
        return [each for each in self.nodes[name].seen if isinstance(each, SeenUwsgi)]

    def ask_tls(
        self, name: str, request: str = "GET / HTTP/1.1", *, at: str = "", pair: Pair | None = None
    ) -> tuple[Reply, x509.Certificate]:
        """One request over TLS to ``name``; the certificate that was shown (and verified)."""
        host, _, port = self.addresses[at or "127.0.0.1:8443"].rpartition(":")
        context = client_context(self.furnished.authority, pair=pair)
        with TlsClient((host, int(port)), context, name=name) as client:
            der = client.sock.getpeercert(binary_form=True)
            assert der is not None
            reply = client.ask(f"{request}\r\nHost: {name}\r\n\r\n".encode())
        return reply, x509.load_der_x509_certificate(der)

    def ask(
        self, head: str = "GET / HTTP/1.1", host: str = "h", at: str = "", raw: bytes = b""
    ) -> Reply:
        """One request to the example; ``raw``: bytes before it."""
        name, _, port = self.addresses[at or "127.0.0.1:8080"].rpartition(":")
        with RawClient((name, int(port))) as client:
            return client.ask(raw + f"{head}\r\nHost: {host}\r\n\r\n".encode())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def one_node(stage: Stage, running: Peer) -> None:
    assert stage.ask().status == 200
    assert len(stage.seen("127.0.0.1:3031")) == 1


def several_nodes(stage: Stage, running: Peer) -> None:
    for _ in range(5):
        assert stage.ask().status == 200
        assert stage.ask(at="127.0.0.1:8081").status == 200
    shares = [len(stage.nodes[n].seen) for n in ("127.0.0.1:3031", "blue", "@app2")]
    assert shares == [2, 2, 6]
    for name in ("127.0.0.1:3031", "blue", "@app2"):
        stage.nodes.pop(name).close()
    assert stage.ask().status == 200
    assert len(stage.nodes["127.0.0.1:3039"].seen) == 1


def fastrouter(stage: Stage, running: Peer) -> None:
    name, _, port = stage.addresses["127.0.0.1:3017"].rpartition(":")
    for _ in range(4):
        with RawClient((name, int(port))) as client:
            client.send(post(b"body"))
            assert client.read_response().body == b"POST /x 4"
    assert len(stage.seen("127.0.0.1:3031")) + len(stage.seen("blue")) == 4
    assert stage.seen("127.0.0.1:3031")


def http_nodes(stage: Stage, running: Peer) -> None:
    for _ in range(6):
        assert stage.ask().status == 200
    nodes = [stage.nodes["127.0.0.1:9000"], stage.nodes["127.0.0.1:9001"]]
    assert sum(len(node.seen) for node in nodes) == 6
    assert sum(node.accepted for node in nodes) <= 2, "connections are used again"


def websockets(stage: Stage, running: Peer) -> None:
    head = "GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade"
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    assert stage.ask(f"{head}\r\n{key}").status == 200  # this node does not switch
    (seen,) = stage.seen("127.0.0.1:3031")
    assert seen.var(b"HTTP_UPGRADE") == b"websocket"


def virtual_hosts(stage: Stage, running: Peer) -> None:
    assert stage.ask(host="one.example").status == 200
    assert stage.ask(host="Two.Example").status == 200
    assert (len(stage.seen("one.example")), len(stage.seen("two.example"))) == (1, 1)
    assert stage.ask(host="nobody.example").status == 502
    assert stage.ask(host="..").status in (400, 503)


def code_router(stage: Stage, running: Peer) -> None:
    assert stage.ask(host="blue.example").status == 200
    assert stage.ask(host="green.example").status == 200
    assert stage.ask(host="red.example").status == 503
    assert len(stage.nodes["127.0.0.1:3031"].seen) == len(stage.nodes["127.0.0.1:9000"].seen) == 1


def privileged_port(stage: Stage, running: Peer) -> None:
    assert stage.ask(at="0.0.0.0:80").status == 200


def behind_a_balancer(stage: Stage, running: Peer) -> None:
    line = b"PROXY TCP4 203.0.113.7 203.0.113.1 4711 80\r\n"
    assert stage.ask("GET / HTTP/1.1\r\nX-Forwarded-For: 8.8.8.8", raw=line).status == 200
    (seen,) = stage.seen("127.0.0.1:3031")
    assert (seen.var(b"REMOTE_ADDR"), seen.var(b"REMOTE_PORT")) == (b"203.0.113.7", b"4711")
    assert b"8.8.8.8" not in b"".join(seen.all(b"HTTP_X_FORWARDED_FOR"))


def limits(stage: Stage, running: Peer) -> None:
    assert stage.ask("POST / HTTP/1.1\r\nContent-Length: 0").status == 200
    large = stage.ask("POST / HTTP/1.1\r\nAccept: text/html\r\nContent-Length: 100001")
    assert (large.status, large.body) == (413, (EXAMPLES / "pages" / "413.html").read_bytes())
    assert stage.ask("GET / HTTP/1.1\r\nX-Big: " + "b" * 33000).status == 431


def observability(stage: Stage, running: Peer) -> None:
    address = stage.addresses["127.0.0.1:9191"]
    wait_ready(address, 2)
    assert stage.ask("GET /seen HTTP/1.1").status == 200
    assert len(stats(address)["workers"]) == 2
    assert probe(address, "/metrics") == 200
    wait_until(lambda: '"/seen"' in running.logged, "the log line")
    (line,) = [each for each in running.logged.splitlines() if '"/seen"' in each]
    assert isinstance(json.loads(line), dict)


def many_sites(stage: Stage, running: Peer) -> None:
    for _ in range(3):
        assert stage.ask().status == 200
    for name in ("blue", "green", "red"):
        (seen,) = stage.seen(name)
        assert (seen.modifier1, seen.var(b"DEPLOYMENT")) == (5, b"many-sites")


def subscriptions(stage: Stage, running: Peer) -> None:
    server = stage.datagrams["127.0.0.1:4040"]
    with uwsgi_node(stage.where, "--subscribe-to", f"{server}:example.com") as instance:
        wait_until(lambda: stage.ask(host="example.com").status == 200, "it is served")
        address = stage.addresses["127.0.0.1:9191"]
        (slot,) = stats(address)["subscriptions"]
        assert (slot["key"], slot["algo"]) == ("example.com", "lrc")
        assert [each["name"] for each in slot["nodes"]] == [instance.address]
    assert stage.ask(host="other.example").status == 503
    wait_until((stage.run / "subscriptions.state").exists, "the state is written")


def signed_subscriptions(stage: Stage, running: Peer) -> None:
    server = stage.datagrams["127.0.0.1:4040"]
    private = Keys(stage.where, stage.where).make("mine", key="example.com")
    announced = stage.nodes["blue"]
    announce_once(server, "example.com", announced.address)
    wait_until(lambda: "refused: unsigned" in running.logged, "it has to be signed")
    assert stage.ask(host="example.com").status == 503
    announce_once(server, "example.com", announced.address, "--sign", f"SHA256:{private}")
    wait_until(lambda: stage.ask(host="example.com").status == 200, "it is served")
    assert stage.seen("blue")


def federation(stage: Stage, running: Peer) -> None:
    host, _, port = stage.datagrams["127.0.0.1:4040"].rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as above:
        above.bind((host, int(port)))
        above.settimeout(10)
        announce_once(stage.datagrams["127.0.0.1:4041"], "example.com", "127.0.0.1:1")
        heard = decode(above.recv(65536))
    assert (heard.key, heard.address) == ("example.com", stage.addresses["127.0.0.1:3017"])


def https(stage: Stage, running: Peer) -> None:
    reply, _ = stage.ask_tls("example.com", at="0.0.0.0:443")
    assert reply.status == 200
    assert reply.get(b"strict-transport-security") == b"max-age=31536000"
    (seen,) = stage.seen("127.0.0.1:3031")
    assert seen.var(b"HTTPS") == b"on"
    reply = stage.ask("POST /x HTTP/1.1", "example.com:80", at="0.0.0.0:80")
    assert (reply.status, reply.get(b"location")) == (301, b"https://example.com/x")


def sni(stage: Stage, running: Peer) -> None:
    for name, subject in (
        ("example.com", "example.com"),
        ("one.example", "one.example"),
        ("www.shop.example", "shop.example"),
        ("www.blog.example", "blog.example"),
        ("a.www.blog.example", "blog.example"),
        ("m.two.example", "two.example"),
        (SITE, SITE),
    ):
        reply, certificate = stage.ask_tls(name)
        assert reply.status == 200
        assert certificate.subject.rfc4514_string() == f"CN={subject}", name


def client_certificates(stage: Stage, running: Peer) -> None:
    with pytest.raises((ssl.SSLError, OSError, Truncated)):
        stage.ask_tls("example.com")
    alice = stage.furnished.authority.issue("alice")
    forged = "GET / HTTP/1.1\r\nX-SSL-Client-S-DN: /CN=root"
    reply, _ = stage.ask_tls("example.com", forged, pair=alice)
    assert reply.status == 200
    (seen,) = stage.seen("127.0.0.1:3031")
    assert seen.var(b"HTTPS_DN") == b"/CN=alice"
    assert seen.var(b"HTTPS_CLIENT_CERTIFICATE") == alice.der
    assert seen.var(b"HTTPS_CC") == alice.cert.read_bytes()
    assert b"/CN=root" not in seen.raw


def scaling_tls(stage: Stage, running: Peer) -> None:
    host, _, port = stage.addresses["127.0.0.1:8443"].rpartition(":")
    context = client_context(stage.furnished.authority, version=ssl.TLSVersion.TLSv1_2)
    stats_address = stage.addresses["127.0.0.1:9191"]
    wait_ready(stats_address, 8)
    session = None
    for number in range(10):
        with TlsClient((host, int(port)), context, name="example.com", session=session) as client:
            assert client.ask(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").status == 200
            assert client.sock.session_reused is (number > 0)
            session = client.sock.session
    found = stats(stats_address)
    (cache,) = found["caches"]
    assert (cache["items"], cache["hits"], cache["miss"], cache["max_items"]) == (1, 9, 0, 20000)
    assert cache["sync"]["sent"] >= 1
    assert found["tls"]["resumed"] == {"TLSv1.2": 9}


def http_to_https(stage: Stage, running: Peer) -> None:
    assert stage.ask(host="h:8080").get(b"location") == b"https://h/"
    reply = stage.ask(host="h:8081", at="127.0.0.1:8081")
    assert reply.get(b"location") == b"https://h:8443/"


def static_files(stage: Stage, running: Peer) -> None:
    page = stage.ask()
    assert (page.status, page.body) == (200, (stage.where / "site" / "index.html").read_bytes())
    assert page.get(b"content-type") == b"text/html; charset=utf-8"
    style = stage.ask("GET /assets/style.css HTTP/1.1\r\nRange: bytes=0-3")
    assert (style.status, style.body) == (206, b"body")
    assert style.get(b"cache-control") == b"max-age=3600"
    assert not stage.seen("127.0.0.1:3031")
    assert stage.ask("GET /app HTTP/1.1").status == 200
    assert stage.ask("POST /assets/style.css HTTP/1.1\r\nContent-Length: 0").status == 200
    assert len(stage.seen("127.0.0.1:3031")) == 2


TESTS: dict[str, Callable[[Stage, Peer], None]] = {
    "one-node.ini": one_node,
    "static-files.ini": static_files,
    "fastrouter.ini": fastrouter,
    "several-nodes.ini": several_nodes,
    "http-nodes.yaml": http_nodes,
    "websockets.json": websockets,
    "virtual-hosts.ini": virtual_hosts,
    "code-router.ini": code_router,
    "privileged-port.ini": privileged_port,
    "behind-a-balancer.xml": behind_a_balancer,
    "limits.ini": limits,
    "observability.ini": observability,
    "many-sites.ini": many_sites,
    "subscriptions.ini": subscriptions,
    "signed-subscriptions.ini": signed_subscriptions,
    "federation.ini": federation,
    "https.ini": https,
    "sni.ini": sni,
    "client-certificates.ini": client_certificates,
    "scaling-tls.ini": scaling_tls,
    "http-to-https.yaml": http_to_https,
}


def test_every_example_has_a_test() -> None:
    configurations = {
        path.name
        for path in EXAMPLES.iterdir()
        if path.suffix in (".ini", ".yaml", ".json", ".xml")
    }
    assert configurations == set(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_example(name: str, stage: Stage, tmp_path: Path) -> None:
    path = str(stage.where / name)
    checked = check([path])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    text = (stage.where / name).read_text()
    listening = [address for address in stage.addresses.values() if address in text]
    with uwgate(tmp_path, [path], *listening) as running:
        TESTS[name](stage, running)
