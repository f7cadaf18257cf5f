"""Dead and dying nodes: retry, fallback, grace time, and what must never be sent twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from support.client import Truncated
from support.nodes import NODES, Node, closing, resetting, response
from support.uwgate import Gateway, StartGateway
from support.waiting import dead_address, free_port, wait_until

from wire.conftest import Pair

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok"
EMPTY_POST = b"POST /x HTTP/1.1\r\nHost: h\r\n\r\n"


def _scheme(kind: str, address: str) -> str:
    return f"http://{address}" if kind == "http" else address


def _dead(kind: str, where: str) -> str:
    if where == "tcp":
        address = dead_address()
    elif where == "unix":
        address = f"{tempfile.gettempdir()}/uwgate-nobody-{free_port()}.sock"
    else:
        address = f"@uwgate-nobody-{free_port()}"
    return _scheme(kind, address)


def _status(gateway: Gateway, request: bytes = GET) -> int:
    with gateway.connect() as client:
        return client.ask(request, request.split()[0]).status


@pytest.mark.parametrize("where", ["tcp", "unix", "abstract"])
def test_a_dead_node_is_skipped_whatever_the_method(
    start_gateway: StartGateway, kind: str, where: str
) -> None:
    with NODES[kind]() as node:
        gateway = start_gateway(
            *("--http-to", _dead(kind, where), "--http-to", node.spec),
            *("--http-to", _dead(kind, where)),
        )
        assert [_status(gateway, request) for request in (POST, POST, POST, GET, GET)] == [200] * 5
        assert len(node.seen) == 5
        node.check()


def test_no_living_node(start_gateway: StartGateway, kind: str) -> None:
    specs = [_dead(kind, "tcp"), _dead(kind, "unix")]
    gateway = start_gateway("--http-to", specs[0], "--http-to", specs[1])
    assert _status(gateway) in (502, 503)
    assert _status(gateway, POST) == 503


def test_fallback(start_gateway: StartGateway, kind: str) -> None:
    with NODES[kind]() as node:
        gateway = start_gateway("--http-to", _dead(kind, "tcp"), "--http-fallback", node.spec)
        assert [_status(gateway, request) for request in (POST, GET, POST)] == [200] * 3
        assert len(node.seen) == 3


def test_a_node_that_comes_back(start_gateway: StartGateway, kind: str) -> None:
    port = free_port()
    spec = _scheme(kind, f"127.0.0.1:{port}")
    gateway = start_gateway("--http-to", spec, "--http-gracetime", "1")
    assert _status(gateway) in (502, 503)
    with NODES[kind](port=port):
        wait_until(lambda: _status(gateway) == 200, "the node to be used again")


def test_no_node_for_a_key(start_gateway: StartGateway, tmp_path: Path, kind: str) -> None:
    with NODES[kind]() as node:
        code = tmp_path / "mapper.py"
        code.write_text(f"def find(key):\n    return {node.spec!r} if key == 'known' else None\n")
        gateway = start_gateway("--http-use-code-string", f"0:{code}:find")
        assert _status(gateway) == 503
        assert _status(gateway, GET.replace(b"Host: h", b"Host: known")) == 200
        assert _status(gateway, GET.replace(b"Host: h", b"Host: KNOWN")) == 200


def test_requests_go_round(start_gateway: StartGateway, kind: str) -> None:
    with NODES[kind]() as one, NODES[kind]() as two:
        gateway = start_gateway("--http-to", one.spec, "--http-to", two.spec)
        assert [_status(gateway) for _ in range(6)] == [200] * 6
        assert (len(one.seen), len(two.seen)) == (3, 3)


@pytest.mark.parametrize("request_", [POST, EMPTY_POST])
@pytest.mark.parametrize("end", [closing, resetting])
def test_a_post_is_never_sent_twice(pair: Pair, request_: bytes, end: object) -> None:
    assert callable(end)
    pair.node.play(response(b"warm"), end(b""))
    with pair.connect() as client:
        assert client.ask(GET).status == 200  # leaves a pooled connection towards HTTP nodes
        assert client.ask(request_, b"POST").status == 502
    assert [each.method for each in pair.node.seen] == [b"GET", b"POST"]


def test_nor_to_another_node(start_gateway: StartGateway, kind: str) -> None:
    with NODES[kind]() as one, NODES[kind]() as two:
        one.otherwise = two.otherwise = resetting()
        gateway = start_gateway("--http-to", one.spec, "--http-to", two.spec)
        assert _status(gateway, POST) == 502
        assert len(one.seen) + len(two.seen) == 1


@pytest.mark.parametrize("end", [closing, resetting])
def test_a_get_on_a_stale_connection_is_sent_once_more(http_pair: Pair, end: object) -> None:
    assert callable(end)
    http_pair.node.play(response(b"warm"), end(b""))
    with http_pair.connect() as client:
        assert client.ask(GET).body == b"warm"
        assert client.ask(GET).body == b"GET /x 0"
    assert len(http_pair.node.seen) == 3
    assert http_pair.node.seen[1].raw == http_pair.node.seen[2].raw


def test_but_only_once(pair: Pair) -> None:
    pair.node.play(response(b"warm"), *[closing(b"")] * 5)
    with pair.connect() as client:
        assert client.ask(GET).status == 200
        assert client.ask(GET).status == 502
    assert len(pair.node.seen) == 3


def test_a_get_with_a_body_is_not(pair: Pair) -> None:
    pair.node.play(response(b"warm"), closing(b""))
    with pair.connect() as client:
        assert client.ask(GET).status == 200
        request = b"GET /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok"
        assert client.ask(request).status == 502
    assert len(pair.node.seen) == 2


@pytest.mark.parametrize(
    "raw", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na"]
)
def test_never_after_a_byte_of_the_answer(pair: Pair, raw: bytes) -> None:
    pair.node.play(response(b"warm"), closing(raw))
    with pair.connect() as client:
        assert client.ask(GET).status == 200
        if raw.endswith(b"a"):
            with pytest.raises(Truncated):
                client.ask(GET)
        else:
            assert client.ask(GET).status == 502
    assert len(pair.node.seen) == 2


def test_idle_connections_that_a_node_closes_cost_nothing(http_pair: Pair) -> None:
    for _ in range(5):
        http_pair.sentinel()
        _drop(http_pair.node)
    with http_pair.connect() as client:
        assert client.ask(GET).status == 200


def _drop(node: Node) -> None:
    for each in node.connections:
        each.shut()
    wait_until(lambda: node.open_connections() == 0, "idle connections to end")
