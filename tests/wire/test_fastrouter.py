"""The fastrouter on the wire: what goes on to nodes, what comes back, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client
from support.fast import ask, fastrouter, packed, post, raw_packet, request, string, variables
from support.nodes import (
    NODES,
    Node,
    RawUwsgiNode,
    SeenUwsgi,
    closing,
    held,
    pieces,
    resetting,
    response,
    silent,
)
from support.uwgate import Gateway
from support.waiting import dead_address, wait_until


class Fast:
    """A fastrouter before one uwsgi node."""

    def __init__(self, gateway: Gateway, node: RawUwsgiNode) -> None:
        self.gateway = gateway
        self.node = node

    def passed(self, data: bytes) -> SeenUwsgi:
        """What the node saw of ``data``, which must be answered 200."""
        self.node.reset()
        reply = ask(self.gateway, data)
        assert reply.status == 200, reply
        seen = self.node.only()
        assert isinstance(seen, SeenUwsgi)
        return seen

    def refused(self, data: bytes, status: int) -> None:
        """``data`` is answered by the router alone."""
        self.node.reset()
        reply = ask(self.gateway, data)
        assert reply.status == status, reply
        assert reply.closes
        assert not self.node.seen


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fast]:
    listen = str(tmp_path_factory.mktemp("fast") / "router.sock")
    with (
        RawUwsgiNode("unix") as node,
        fastrouter("--fastrouter-to", node.spec, listen=listen) as gateway,
    ):
        yield Fast(gateway, node)


@pytest.fixture
def unix(shared: Fast) -> Iterator[Fast]:
    shared.node.reset()
    yield shared
    shared.node.check()


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, shared: Fast) -> Iterator[Fast]:
    if request.param == "unix":
        shared.node.reset()
        yield shared
        shared.node.check()
        return
    with RawUwsgiNode() as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        yield Fast(gateway, node)
        node.check()


# --- packets ----------------------------------------------------------------------------------


def test_packets_go_on_untouched_but_for_the_modifiers(pair: Fast) -> None:
    pairs = [*variables(b"/a?b"), (b"ODD \xff\0 NAME", b"\0\r\n\xff"), (b"HTTP_EMPTY", b"")]
    for _ in range(3):
        seen = pair.passed(packed(pairs, 5, 9))
        assert seen.raw == packed(pairs, 0, 0)


def test_the_same_connection_memory_serves_different_requests(unix: Fast) -> None:
    for number in range(20):
        target = b"/item/%d" % (number * 7)
        assert unix.passed(request(target)).raw == request(target)


def test_bytewise(pair: Fast) -> None:
    with pair.gateway.connect() as client:
        client.send_bytewise(request(b"/slow"))
        assert client.read_response().body == b"GET /slow 0"
        client.assert_closed()


def test_modifiers_of_the_node(tmp_path: Path) -> None:
    with RawUwsgiNode("unix") as node:
        with fastrouter("--fastrouter-to", f"{node.spec},modifier1=7,modifier2=3") as gateway:
            for _ in range(3):
                assert ask(gateway, packed(variables(), 5, 9)).status == 200
        assert {each.raw for each in node.seen} == {packed(variables(), 7, 3)}


@pytest.mark.parametrize("size", [4096, 20000, 65000])
def test_large_packets(pair: Fast, size: int) -> None:
    packet = request(b"/x", b"GET", b"h", (b"HTTP_COOKIE", b"c" * size))
    assert pair.passed(packet).raw == packet


@pytest.mark.parametrize(
    ("packet", "status"),
    [
        (raw_packet(b""), 400),
        (packed([(b"A", b"b")]), 400),
        (raw_packet(string(b"HTTP_HOST") + b"\xff\x00h"), 400),
        (raw_packet(string(b"") + string(b"h")), 400),
        (packed([(b"HTTP_HOST", b"a b")]), 400),
        (packed([(b"HTTP_HOST", b"h"), (b"CONTENT_LENGTH", b"1x")]), 400),
        (raw_packet(string(b"HTTP_HOST") + string(b"h"), size=8), 400),
    ],
)
def test_malformed_packets(pair: Fast, packet: bytes, status: int) -> None:
    pair.refused(packet, status)


def test_a_packet_that_ends_too_early(pair: Fast) -> None:
    with pair.gateway.connect() as client:
        client.send(request()[:-3])
        client.half_close()
        assert client.read_response().status == 400
        client.assert_closed()
    assert not pair.node.seen


def test_a_client_that_says_nothing(pair: Fast) -> None:
    with pair.gateway.connect() as client:
        client.half_close()
        client.assert_closed()


# --- bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5000, 300_000, 3_000_000])
def test_bodies(pair: Fast, size: int) -> None:
    data = post(b"b" * size)
    assert pair.passed(data).raw == data


def test_a_body_in_pieces(pair: Fast) -> None:
    data = post(b"0123456789")
    with pair.gateway.connect() as client:
        client.send_pieces([data[:-10], data[-10:-5], data[-5:]])
        assert client.read_response().body == b"POST /x 10"
    assert pair.node.only().raw == data


def test_what_follows_the_body_is_not_passed_on(pair: Fast) -> None:
    for data in (post(b"ok"), post(b""), request()):
        pair.node.reset()
        reply = ask(pair.gateway, data + b"GET /smuggled")
        assert reply.status == 200
        assert pair.node.only().raw == data
        assert pair.node.connections[-1].received == data


def test_a_body_cut_short(pair: Fast) -> None:
    with pair.gateway.connect() as client:
        client.send(post(b"only half")[:-4])
        client.half_close()
        client.assert_closed()
    assert not pair.node.seen


def test_half_closed_clients_get_their_answer(pair: Fast) -> None:
    gate = threading.Event()
    pair.node.play(held(gate, response(b"late")))
    with pair.gateway.connect() as client:
        client.send(request())
        client.half_close()
        pair.node.wait_seen(1)
        gate.set()
        assert client.read_response().body == b"late"
        client.assert_closed()


def test_a_client_that_leaves_is_noticed(unix: Fast) -> None:
    unix.node.play(silent)
    client = unix.gateway.connect()
    client.send(request())
    unix.node.wait_seen(1)
    client.close()
    wait_until(lambda: unix.node.connections[-1].saw_end, "the node's connection to be closed", 5)


def test_early_answers_end_the_request(pair: Fast) -> None:
    """The node answers before it has read the body; what the client sends on is let go."""

    class Early(RawUwsgiNode):
        def serve(self, connection):  # type: ignore[no-untyped-def]
            connection.fill(200)
            connection.send(response(b"no", status=b"403 Forbidden"))

    with Early("unix") as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        data = post(b"x" * 1_000_000)
        with gateway.connect() as client:
            client.send(data[:1000])
            reply = client.read_response()
            assert (reply.status, reply.body) == (403, b"no")
            client.send_willing(data[1000:])


def test_body_limit(tmp_path: Path) -> None:
    with RawUwsgiNode() as node:
        with fastrouter("--fastrouter-to", node.spec, "--fastrouter-max-body", "10") as gateway:
            assert ask(gateway, post(b"0123456789")).status == 200
            assert ask(gateway, post(b"0123456789A")).status == 413
        assert len(node.seen) == 1


@pytest.mark.parametrize("size", [10, 5000])
def test_post_buffering_takes_the_whole_body_first(tmp_path: Path, size: int) -> None:
    options = ["--fastrouter-post-buffering", "1000"]
    options += ["--fastrouter-post-buffering-dir", str(tmp_path)]
    data = post(b"x" * size)
    with (
        RawUwsgiNode("unix") as node,
        fastrouter("--fastrouter-to", node.spec, *options) as gateway,
    ):
        with gateway.connect() as client:
            client.send(data[:-1])
            assert ask(gateway, request()).status == 200
            assert node.accepted == 1  # no connection yet for the body
            client.send(data[-1:])
            assert client.read_response().status == 200
        assert node.seen[1].raw == data
        assert not list(tmp_path.iterdir())  # unlinked from the start


def test_a_buffered_body_is_sent_to_another_node(tmp_path: Path) -> None:
    data = post(b"x" * 100_000)
    for kind in ("uwsgi", "http"):
        with NODES[kind]("unix") as node:
            options = ["--fastrouter-to", dead_address(), "--fastrouter-to", node.spec]
            with fastrouter(*options, "--fastrouter-post-buffering", "1000") as gateway:
                for _ in range(2):
                    reply = ask(gateway, data)
                    assert (reply.status, reply.body) == (200, b"POST /x 100000")
            node.check()


def test_buffered_bodies_are_bounded() -> None:
    options = ["--fastrouter-post-buffering", "1000", "--fastrouter-max-spool", "2000"]
    with RawUwsgiNode() as node, fastrouter("--fastrouter-to", node.spec, *options) as gateway:
        assert ask(gateway, post(b"x" * 2000)).status == 200
        assert ask(gateway, post(b"x" * 2001)).status == 413
        with gateway.connect() as client:
            client.send(post(b"", length=b"2001"))
            assert client.read_response().status == 413  # nobody waits for the body
        assert len(node.seen) == 1


def test_a_limit_of_bodies_is_none_of_buffered_ones() -> None:
    options = ["--fastrouter-post-buffering", "1000", "--fastrouter-max-spool", "2000"]
    options += ["--fastrouter-max-body", "5000"]
    with RawUwsgiNode() as node, fastrouter("--fastrouter-to", node.spec, *options) as gateway:
        assert ask(gateway, post(b"x" * 2001)).status == 413
        assert ask(gateway, post(b"x" * 2000)).status == 200


# --- responses --------------------------------------------------------------------------------


def test_responses_are_passed_on_as_they_are(pair: Fast) -> None:
    raw = response(b"body", b"X-A:  b ", b"Set-Cookie: a=b", status=b"201 Made", length=True)
    for _ in range(3):
        pair.node.play(closing(raw))
        with pair.gateway.connect() as client:
            client.send(request())
            assert client.read_to_end() == raw


def test_the_length_ends_a_response_not_the_node(pair: Fast) -> None:
    gate = threading.Event()

    def script(connection, seen):  # type: ignore[no-untyped-def]
        connection.send(response(b"ok"))
        assert gate.wait(10)

    for first in (b"", b"HTTP/1.1 200 OK\r\nContent-Le"):
        gate.clear()

        def in_two(connection, seen, first=first):  # type: ignore[no-untyped-def]
            connection.send(first)
            connection.send(response(b"ok")[len(first) :])
            assert gate.wait(10)

        pair.node.play(in_two)
        assert ask(pair.gateway, request()).body == b"ok"
        gate.set()


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nuntil the end",
            b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nuntil the end",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        ),
        (
            b"HTTP/1.1 304 Not Modified\r\nX: y\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nX: y\r\n\r\n",
        ),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"ok"),
            response(b"ok"),
        ),
    ],
)
def test_responses_are_framed_for_the_front_server(
    pair: Fast, sent: bytes, received: bytes
) -> None:
    for _ in range(2):
        pair.node.play(closing(sent))
        with pair.gateway.connect() as client:
            client.send(request())
            assert client.read_to_end() == received


def test_streams(pair: Fast) -> None:
    parts = [b"x" * 100_000 for _ in range(30)]
    pair.node.play(pieces(b"HTTP/1.1 200 OK\r\n\r\n", *parts))
    with pair.gateway.connect() as client:
        client.send(request())
        data = client.read_to_end()
    assert data == b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(parts)


def test_large_responses_to_a_reader_that_takes_its_time(pair: Fast) -> None:
    body = bytes(range(256)) * 40_000
    pair.node.play(closing(response(body)))
    with pair.gateway.connect() as client:
        client.send(request())
        assert client.read_until(b"\r\n\r\n")
        wait_until(lambda: pair.node.seen)
        got = client.read_to_end()
    assert got == body


def test_head_responses_have_no_body(pair: Fast) -> None:
    with pair.gateway.connect() as client:
        client.send(request(b"/x", b"HEAD"))
        reply = client.read_response(b"HEAD")
        assert (reply.status, reply.get(b"content-length")) == (200, b"9")
        client.assert_closed()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", 502),
        (b"HTTP/1.1 200 OK\r\nContent-", 502),
        (b"nonsense\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 502),
    ],
)
def test_bad_answers(pair: Fast, answer: bytes, status: int) -> None:
    pair.node.otherwise = closing(answer)
    assert ask(pair.gateway, request()).status == status
    assert ask(pair.gateway, post(b"ok")).status == status


def test_a_reset_by_the_node(pair: Fast) -> None:
    pair.node.otherwise = resetting()
    assert ask(pair.gateway, request()).status == 502
    assert len(pair.node.seen) == 2  # sent again, once
    assert ask(pair.gateway, post(b"ok")).status == 502
    assert len(pair.node.seen) == 3


def test_a_response_cut_short_does_not_look_complete() -> None:
    with RawUwsgiNode() as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\na"
        for raw in (response(b"abc")[:-1], chunks):
            node.play(closing(raw))
            with gateway.connect() as client:
                client.send(request())
                client.read_to_end()
                assert client.was_reset or b"Content-Length: 3" in raw


@pytest.mark.parametrize("body", [b"", b"some of it"])
def test_a_response_without_a_length_that_is_reset(body: bytes) -> None:
    """Its end would say that it is complete."""
    with RawUwsgiNode() as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        for _ in range(5):
            node.play(resetting(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + body))
            with gateway.connect() as client:
                client.send(request())
                data = client.read_to_end()
                assert client.was_reset or data.startswith(b"HTTP/1.1 502")


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("cut", [1, 40, 64, 66])
def test_heads_and_bodies_that_come_apart(pair: Fast, length: bool, cut: int) -> None:
    """As applications write them: the head, then the body, then the end."""
    raw = response(b"x" * 30, b"X-A: b", b"X-C: " + b"d" * 30, length=length)
    for _ in range(5):
        pair.node.play(pieces(raw[:cut], raw[cut:]))
        with pair.gateway.connect() as client:
            client.send(request())
            assert client.read_to_end() == raw


def test_errors_suit_the_client(unix: Fast) -> None:
    unix.node.otherwise = closing(b"")
    reply = ask(unix.gateway, request(b"/", b"GET", b"h", (b"HTTP_ACCEPT", b"text/html")))
    assert (reply.status, reply.get(b"content-type")) == (502, b"text/html; charset=utf-8")
    assert reply.get(b"connection") == b"close"


# --- nodes ------------------------------------------------------------------------------------


def test_dead_nodes_are_left_out() -> None:
    for where in ("unix", "tcp"):
        with RawUwsgiNode(where) as node:
            dead = dead_address() if where == "tcp" else "/nonexistent/node.sock"
            options = ["--fastrouter-to", dead, "--fastrouter-to", node.spec]
            with fastrouter(*options, "--fastrouter-quiet", "true") as gateway:
                for _ in range(4):
                    assert ask(gateway, request()).status == 200
                    assert ask(gateway, post(b"ok")).status == 200
            assert len(node.seen) == 8


def test_no_node_alive() -> None:
    with fastrouter("--fastrouter-to", dead_address()) as gateway:
        assert ask(gateway, request()).status == 502
        assert ask(gateway, request()).status == 503


def test_fallback() -> None:
    with RawUwsgiNode() as node:
        options = ["--fastrouter-to", dead_address(), "--fastrouter-fallback", node.spec]
        with fastrouter(*options) as gateway:
            assert ask(gateway, request()).status == 200
            assert ask(gateway, packed([(b"A", b"b")])).status == 400


def test_fallback_on_no_key() -> None:
    with RawUwsgiNode() as node, RawUwsgiNode() as spare:
        options = ["--fastrouter-to", node.spec, "--fastrouter-fallback", spare.spec]
        with fastrouter(*options, "--fastrouter-fallback-on-no-key") as gateway:
            assert ask(gateway, request(b"/keyed")).status == 200
            pairs = [each for each in variables(b"/not") if "HOST" not in str(each[0])]
            pairs = [each for each in pairs if each[0] != b"SERVER_NAME"]
            assert ask(gateway, packed(pairs)).status == 200
        assert [each.target for each in node.seen] == [b"/keyed"]
        assert [each.target for each in spare.seen] == [b"/not"]


def test_keys_find_their_nodes(tmp_path: Path) -> None:
    nodes: dict[str, Node] = {}
    base = str(tmp_path) + "/"
    with RawUwsgiNode("unix") as one, RawUwsgiNode("unix") as two:
        for name, node in (("one.test", one), ("two.test:81", two)):
            (tmp_path / name).symlink_to(node.path)
            nodes[name] = node
        for option in (("--fastrouter-use-base", base), ("--fastrouter-use-pattern", base + "%s")):
            with fastrouter(*option) as gateway:
                assert ask(gateway, request(b"/1", b"GET", b"One.TEST")).status == 200
                assert ask(gateway, request(b"/2", b"GET", b"two.test:81")).status == 200
                key = (b"UWSGI_FASTROUTER_KEY", b"two.test:81")
                assert ask(gateway, request(b"/k", b"GET", b"one.test", key)).status == 200
                assert ask(gateway, request(b"/3", b"GET", b"three")).status == 502
                assert ask(gateway, request(b"/4", b"GET", b"../one.test")).status == 503
        assert [each.target for each in one.seen] == [b"/1", b"/1"]
        assert [each.target for each in two.seen] == [b"/2", b"/k", b"/2", b"/k"]


def test_code_and_socket(tmp_path: Path) -> None:
    with RawUwsgiNode() as node:
        code = tmp_path / "code.py"
        code.write_text(
            f"def find(key):\n    return {node.spec!r} + ',9' if key == 'known' else None\n"
        )
        with fastrouter("--fastrouter-use-code-string", f"0:{code}:find") as gateway:
            assert ask(gateway, request(b"/c", b"GET", b"known")).status == 200
            assert ask(gateway, request(b"/c", b"GET", b"other")).status == 503
        with fastrouter("--socket", node.spec, "--fastrouter-use-socket") as gateway:
            assert ask(gateway, request(b"/s")).status == 200
        seen = node.seen
        assert [(each.target, each.modifier1) for each in seen] == [(b"/c", 9), (b"/s", 0)]  # type: ignore[attr-defined]


def test_client_addresses_decide(tmp_path: Path) -> None:
    with RawUwsgiNode() as one, RawUwsgiNode() as two:
        options = ["--fastrouter-to", one.spec, "--fastrouter-to", two.spec]
        with fastrouter(*options, "--fastrouter-algo", "iphash") as gateway:
            for address in (b"192.0.2.1", b"192.0.2.2", b"2001:db8::1", b"192.0.2.9"):
                pairs = [
                    (name, address if name == b"REMOTE_ADDR" else value)
                    for name, value in variables(b"/" + address)
                ]
                for _ in range(3):
                    assert ask(gateway, packed(pairs)).status == 200
        targets = [{each.target for each in node.seen} for node in (one, two)]
        assert not targets[0] & targets[1]
        assert len(one.seen) + len(two.seen) == 12


def test_a_slow_node_is_given_up() -> None:
    with RawUwsgiNode() as node:
        node.otherwise = silent
        with fastrouter("--fastrouter-to", node.spec, "--fastrouter-timeout", "1") as gateway:
            assert ask(gateway, request()).status == 504
            with gateway.connect() as client:
                client.send(request()[:20])
                assert client.read_response().status == 408
            with gateway.connect() as client:
                client.send(post(b"ok")[:-1])
                assert client.read_response().status == 408


def test_requests_in_flight_finish_when_it_stops(pair: Fast) -> None:
    gate = threading.Event()
    with RawUwsgiNode() as node, fastrouter("--fastrouter-to", node.spec) as gateway:
        node.play(held(gate, response(b"late")))
        with gateway.connect() as client:
            client.send(request())
            node.wait_seen(1)
            gateway.terminate()
            wait_until(lambda: "draining" in gateway.log, "the router to drain")
            gate.set()
            assert client.read_response().body == b"late"


# --- beside HTTP --------------------------------------------------------------------------------


def test_both_gateways_in_one_instance() -> None:
    with RawUwsgiNode("unix") as node:
        listen = "@uwgate-fast-beside-http"
        options = ["--http", listen, "--http-to", node.spec]
        with fastrouter("--fastrouter-to", node.spec, *options) as gateway:
            assert ask(gateway, request()).body == b"GET /x 0"
            with Client(listen) as client:
                assert client.ask(b"GET /y HTTP/1.1\r\nHost: h\r\n\r\n").body == b"GET /y 0"


