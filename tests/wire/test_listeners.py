"""Where clients come from: unix and abstract listeners, IPv6, PROXY protocol, stud prefix."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.nodes import NODES, RawHttpNode, RawUwsgiNode, SeenUwsgi
from support.uwgate import StartGateway, running
from support.waiting import free_port

from wire.conftest import Pair

GET = b"GET /p HTTP/1.1\r\nHost: h\r\n\r\n"
MAGIC = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.mark.parametrize(
    ("listen", "where"), [("unix", "unix"), ("abstract", "abstract"), ("ipv6", "tcp")]
)
def test_every_kind_of_socket(
    start_gateway: StartGateway, tmp_path: Path, kind: str, listen: str, where: str
) -> None:
    port = free_port()
    address = {
        "unix": str(tmp_path / "listen.sock"),
        "abstract": f"@uwgate-listen-{port}",
        "ipv6": f"[::1]:{port}",
    }[listen]
    with NODES[kind](where) as node:
        gateway = start_gateway("--http-to", node.spec, listen=address)
        with gateway.connect() as client:
            assert client.ask(GET).status == 200
            client.assert_open()
        seen = node.seen[0]
        if isinstance(seen, SeenUwsgi):
            expected = (b"::1", b"%d" % port) if listen == "ipv6" else (b"0.0.0.0", b"")
            assert (seen.var(b"REMOTE_ADDR"), seen.var(b"SERVER_PORT")) == expected
        elif listen == "ipv6":
            assert seen.field(b"x-forwarded-for") == [b"::1"]


@pytest.fixture(scope="module", params=["http", "uwsgi"])
def proxied_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A gateway that understands the PROXY protocol."""
    with (
        NODES[request.param]() as node,
        running("--http-to", node.spec, "--http-enable-proxy-protocol") as gateway,
    ):
        yield Pair(request.param, gateway, node)


@pytest.fixture
def proxied(proxied_pair: Pair) -> Pair:
    """The same, its node reset."""
    proxied_pair.node.reset()
    return proxied_pair


def _v2(command: int, family: int, payload: bytes) -> bytes:
    return MAGIC + struct.pack(">BBH", 0x20 | command, family, len(payload)) + payload


V4 = socket.inet_aton("1.2.3.4") + socket.inet_aton("5.6.7.8") + struct.pack(">HH", 1111, 80)
V6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "::2")
    + struct.pack(">HH", 2222, 80)
)
PREFIXES = [
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 80\r\n", b"1.2.3.4", b"1111"),
    (b"PROXY TCP6 2001:db8::1 ::2 2222 80\r\n", b"2001:db8::1", b"2222"),
    (b"PROXY UNKNOWN\r\n", b"127.0.0.1", b""),
    (b"PROXY UNKNOWN anything at all\r\n", b"127.0.0.1", b""),
    (_v2(1, 0x11, V4), b"1.2.3.4", b"1111"),
    (_v2(1, 0x21, V6), b"2001:db8::1", b"2222"),
    (_v2(1, 0x11, V4 + b"\x04\x00\x03abc"), b"1.2.3.4", b"1111"),  # with a TLV
    (_v2(0, 0x00, b""), b"127.0.0.1", b""),  # LOCAL
    (_v2(1, 0x00, b""), b"127.0.0.1", b""),  # UNSPEC
    (b"", b"127.0.0.1", b""),  # optional, as in uWSGI
]


@pytest.mark.parametrize(("prefix", "address", "port"), PREFIXES)
@pytest.mark.parametrize("bytewise", [False, True])
def test_the_announced_client(
    proxied: Pair, prefix: bytes, address: bytes, port: bytes, bytewise: bool
) -> None:
    with proxied.connect() as client:
        if bytewise:
            client.send_bytewise(prefix + GET)
        else:
            client.send(prefix + GET)
        assert client.read_response().status == 200
        assert client.ask(GET).status == 200  # it holds for the whole connection
        own = b"%d" % client.port
    for seen in proxied.node.wait_seen(2):
        if isinstance(seen, SeenUwsgi):
            assert (seen.var(b"REMOTE_ADDR"), seen.var(b"REMOTE_PORT")) == (address, port or own)
        else:
            assert seen.field(b"x-forwarded-for") == [address]


BAD_PREFIXES = [
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1111\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 80 9\r\n",
    b"PROXY TCP4  1.2.3.4 5.6.7.8 1111 80\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 80\n",
    b"PROXY TCP4 1.2.3 5.6.7.8 1111 80\r\n",
    b"PROXY TCP4 1.2.3.256 5.6.7.8 1111 80\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 80\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 80\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1_1 80\r\n",
    b"PROXY TCP4 ::1 ::1 1111 80\r\n",
    b"PROXY TCP6 1.2.3.4 5.6.7.8 1111 80\r\n",
    b"PROXY TCP5 1.2.3.4 5.6.7.8 1111 80\r\n",
    b"PROXY \r\n",
    b'PROXY TCP4 evil" 5.6.7.8 1111 80\r\n',
    b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 80\r\n" * 2,
    MAGIC + b"\x31\x11\x00\x0c" + V4,  # version 3
    MAGIC + b"\x2f\x11\x00\x0c" + V4,  # unknown command
    MAGIC + b"\x21\x11\x00\x0b" + V4[:-1],  # too short for its family
    MAGIC[:-1] + b"X" + b"\x21\x11\x00\x0c" + V4,
]


@pytest.mark.parametrize("prefix", BAD_PREFIXES)
def test_a_malformed_announcement_is_refused(proxied: Pair, prefix: bytes) -> None:
    with proxied.connect() as client:
        client.send_willing(prefix + GET)
        answer = client.read_to_end()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer
    proxied.assert_untouched()


def test_only_the_first_bytes_of_a_connection_can_announce(proxied: Pair) -> None:
    with proxied.connect() as client:
        assert client.ask(GET).status == 200
        proxied.node.reset()
        client.send(b"PROXY TCP4 6.6.6.6 5.6.7.8 1111 80\r\n" + GET)
        assert client.read_response().status == 400
        client.assert_closed()
    proxied.assert_untouched()


@pytest.mark.parametrize("prefix", [PREFIXES[0][0], PREFIXES[4][0]])
def test_a_stranger_announces_nothing(pair: Pair, prefix: bytes) -> None:
    pair.refused(prefix + GET, 400)


STUD = b"\x02" + socket.inet_aton("1.2.3.4")


@pytest.mark.parametrize("bytewise", [False, True])
def test_the_stud_prefix_means_https(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode, bytewise: bool
) -> None:
    gateway = start_gateway("--http-to", uwsgi_node.spec, "--http-stud-prefix", "127.0.0.1")
    with gateway.connect() as client:
        if bytewise:
            client.send_bytewise(STUD + GET)
        else:
            client.send(STUD + GET)
        assert client.read_response().status == 200
        assert client.ask(GET).status == 200
    for seen in uwsgi_node.wait_seen(2):
        assert isinstance(seen, SeenUwsgi)
        assert (seen.var(b"HTTPS"), seen.var(b"REMOTE_ADDR")) == (b"on", b"1.2.3.4")
        keys = [key for key, _ in seen.variables]
        assert keys[keys.index(b"UWSGI_ROUTER") + 1] == b"HTTPS"


def test_and_https_towards_an_http_node(
    start_gateway: StartGateway, http_node: RawHttpNode
) -> None:
    gateway = start_gateway("--http-to", http_node.spec, "--http-stud-prefix", "127.0.0.1")
    with gateway.connect() as client:
        assert client.ask(STUD + GET).status == 200
    assert http_node.only().field(b"x-forwarded-proto") == [b"https"]
    assert http_node.only().field(b"x-forwarded-for") == [b"1.2.3.4"]


@pytest.mark.parametrize("prefix", [b"", b"\x0a" + b"\x00" * 4, b"\x00" * 5, b"\x02\x01"])
def test_an_offloader_must_send_its_prefix(
    start_gateway: StartGateway, kind: str, prefix: bytes
) -> None:
    with NODES[kind]() as node:
        gateway = start_gateway("--http-to", node.spec, "--http-stud-prefix", "127.0.0.1")
        with gateway.connect() as client:
            client.send(prefix + GET)
            answer = client.read_to_end()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        assert node.seen == []


def test_others_send_none(start_gateway: StartGateway, kind: str) -> None:
    with NODES[kind]() as node:
        gateway = start_gateway("--http-to", node.spec, "--http-stud-prefix", "192.0.2.1")
        with gateway.connect() as client:
            assert client.ask(GET).status == 200
        with gateway.connect() as client:
            assert client.ask(STUD + GET).status == 400
