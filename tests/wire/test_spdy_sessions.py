"""Sessions of SPDY/3.1: windows, whose turn it is, ends; and clients that want to be a burden."""

from __future__ import annotations

import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import spdy_client as spdy
from support import spdy_site
from support.certificates import Authority
from support.nodes import NODES, RawHttpNode, held, pieces, response, silent
from support.reloading import reloadable
from support.spdy_client import SpdyClient, data, fields, ping, rst_stream, window_update
from support.spdy_site import Site, listener, offering, speaking_spdy
from support.uwgate import running
from support.waiting import DEADLINE, wait_until

FOREVER = 2**31 - 1

authority, http_site = spdy_site.authority, spdy_site.http_site
site, client = spdy_site.site, spdy_site.client


# --- windows --------------------------------------------------------------------------------------


def test_what_a_session_begins_with(site: Site, client: SpdyClient) -> None:
    client.assert_alive()
    assert client.settings == {4: 40, 7: 65536}
    assert client.window == 1 << 20


def test_small_windows_are_those_that_clients_take_for_granted(authority: Authority) -> None:
    options = ("--http2-window=1024", "--http2-connection-window=65535")
    with (
        RawHttpNode() as node,
        speaking_spdy(authority, node, *options) as site,
        site.connect() as client,
    ):
        client.assert_alive()
        assert (client.settings[7], client.window) == (65536, 65536)
        assert client.ask(fields(b"POST"), b"x" * 200_000).status == 200


def test_the_windows_of_clients(site: Site) -> None:
    body = b"x" * 3_000_000
    with site.connect(greedy=False) as client:
        site.node.play(response(body), *[response(b"y" * 900) for _ in range(20)])
        client.send(spdy.settings((7, 10), flags=2))  # PERSISTED: not ours
        client.send(spdy.settings((7, 1000), (4, 100)), window_update(0, 10_000_000))
        stalled = client.begin()
        found = client.answer(stalled)
        client.until(lambda: len(found.body) == 1000)
        for _ in range(20):  # another stream does not wait for it
            assert client.ask().body == b"y" * 900
        client.send(spdy.settings((7, 500)), window_update(stalled, 1000))
        client.until(lambda: len(found.body) == 1500)
        client.assert_alive()
        assert len(found.body) == 1500
        client.send(window_update(stalled, 10_000_000))
        assert client.response(stalled).body == body


def test_the_window_of_the_session(site: Site) -> None:
    with site.connect(greedy=False) as client:
        site.node.play(response(b"x" * 200_000))
        client.send(spdy.settings((7, 1_000_000)))
        stream = client.begin()
        client.until(lambda: len(client.answer(stream).body) == 65536)
        client.assert_alive()
        assert len(client.answer(stream).body) == 65536
        client.send(window_update(0, 1_000_000))
        assert len(client.response(stream).body) == 200_000


@contextmanager
def before_nobody(authority: Authority, *options: str) -> Iterator[SpdyClient]:
    """A session whose requests go to a node that takes nothing but what fits its socket."""
    port, value = listener(authority)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"http://127.0.0.1:{server.getsockname()[1]}"
        with running("--https2", value, "--http-to", where, *options):
            context = offering(authority, "spdy/3.1")
            with SpdyClient(("127.0.0.1", port), context) as client:
                yield client


LARGE = fields(b"POST", b"/", (b"content-length", b"50000000"))


def test_a_node_that_takes_nothing_stops_an_upload(authority: Authority) -> None:
    """What a client may send ahead is bounded; and who sends more is stopped."""
    with before_nobody(authority) as client:
        stream = client.begin(LARGE, fin=False)
        client.until(lambda: client.settings)
        client.sock.settimeout(1.5)  # a busy machine may take a while for what there is
        with pytest.raises(TimeoutError):  # the window is used up, and does not grow
            client.upload(stream, bytes(20_000_000))
        assert client.window > 0  # that of the session is there for others
        client.sock.settimeout(DEADLINE)
        client.assert_alive()
        client.send(data(stream, b"x"))
        assert client.response(stream).reset == spdy.FLOW
        client.send(data(stream, bytes(100_000)))  # does not know yet
        client.send(window_update(client.begin(fin=False), FOREVER))
        assert client.response(client.stream).reset == spdy.FLOW
        client.assert_alive()


def test_more_than_the_window_of_the_session(authority: Authority) -> None:
    with before_nobody(authority, "--http2-connection-window", "65535") as client:
        stream = client.begin(LARGE, fin=False)
        frame = data(stream, bytes(65536))
        client.flood(lambda: frame, 400)


# --- whose turn it is, and what is given up -------------------------------------------------------


def test_priorities(site: Site) -> None:
    """What is urgent overtakes, once a window lets something go again."""
    with site.connect(greedy=False) as client:
        site.node.otherwise = response(b"x" * 60_000)
        client.send(spdy.settings((7, 1_000_000)))
        assert client.ask().status == 200  # which leaves 5,536 bytes of the session's window
        streams = [client.begin(priority=each) for each in (7, 0, 4)]
        client.until(lambda: all(client.answer(each).status for each in streams))
        client.assert_alive()  # and by now the rest of the nodes' bytes are here, too
        order: list[int] = []
        while not all(client.answer(each).ended for each in streams):
            client.send(window_update(0, 30_000))
            before = {each: len(client.answer(each).body) for each in streams}
            client.receive()
            order += [each for each in streams if len(client.answer(each).body) > before[each]]
        last = [max(i for i, each in enumerate(order) if each == stream) for stream in streams]
        assert last[1] < last[2] < last[0]


def test_too_many_streams(site: Site, client: SpdyClient) -> None:
    gate = threading.Event()
    site.node.otherwise = held(gate, response(b"x"))
    try:
        streams = [client.begin() for _ in range(41)]
        assert client.response(streams[40]).reset == spdy.REFUSED
        gate.set()
        assert all(client.response(each).status == 200 for each in streams[:40])
    finally:
        gate.set()


def test_who_is_reset_lets_go_of_the_node(site: Site, client: SpdyClient) -> None:
    site.node.play(silent)
    stream = client.begin()
    number = site.node.wait_seen()[0].connection
    (connection,) = [each for each in site.node.connections if each.number == number]
    client.send(rst_stream(stream))
    wait_until(lambda: connection.saw_end, "the node is let go")
    assert client.ask().status == 200


def test_who_is_gone_lets_go_of_the_node(site: Site) -> None:
    site.node.play(silent)
    with site.connect() as client:
        client.begin()
        number = site.node.wait_seen()[0].connection
    (connection,) = [each for each in site.node.connections if each.number == number]
    wait_until(lambda: connection.saw_end, "the node is let go")


def test_a_node_that_dies_in_the_middle(site: Site, client: SpdyClient) -> None:
    site.node.play(pieces(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))
    found = client.ask()
    assert (found.body, found.reset) == (b"half", spdy.INTERNAL)
    assert client.ask().status == 200


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(NODES))
def test_drain(authority: Authority, kind: str) -> None:
    """SIGTERM: GOAWAY, what is under way is finished, then the end."""
    gate = threading.Event()
    with NODES[kind]() as node, speaking_spdy(authority, node) as site:
        node.play(held(gate, response(b"late")))
        with site.connect() as client, site.connect() as idle:
            stream = client.begin()
            idle.until(lambda: idle.settings)
            wait_until(lambda: node.accepted, "the request is under way")
            site.gateway.process.send_signal(signal.SIGTERM)
            client.until(lambda: client.goaways)
            idle.assert_over(status=0, last=0)
            client.send(client.syn_stream())  # not any more
            gate.set()
            assert client.response(stream).body == b"late"
            client.assert_over(status=0, last=stream)
            assert not client.answer(stream + 2).frames
        assert site.gateway.process.wait(10) == 0


def test_a_reload_is_announced_in_two_steps(authority: Authority, tmp_path: Path) -> None:
    port, value = listener(authority)
    with (
        RawHttpNode() as node,
        reloadable(tmp_path, f"http-to = {node.spec}\nhttps2 = {value}") as gateway,
    ):
        context = offering(authority, "spdy/3.1")
        with SpdyClient(("127.0.0.1", port), context) as client:
            assert client.ask().status == 200
            gateway.reload()
            client.until(lambda: client.goaways)
            assert client.goaways == [(FOREVER, 0)]
            # On its way before the client could know.
            stream = client.begin()
            assert client.response(stream).status == 200
            client.assert_over(status=0, last=stream)


# --- abuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        ping(1),
        ping(2),
        spdy.settings((7, 65536)),
        window_update(0, 1),
        window_update(5, 1),
        rst_stream(5),
        spdy.control(spdy.GOAWAY, bytes(8)),
        spdy.control(0xF000, b""),
    ],
    ids=["PING", "pong", "SETTINGS", "WINDOW_UPDATE", "WINDOW_UPDATE of nothing", "RST_STREAM",
         "GOAWAY", "unknown"],
)  # fmt: skip
def test_frames_that_are_of_no_use(site: Site, client: SpdyClient, frame: bytes) -> None:
    client.flood(lambda: frame * 100)
    served(site)


@pytest.mark.parametrize("what", ["DATA", "HEADERS"])
def test_frames_that_say_nothing(site: Site, client: SpdyClient, what: str) -> None:
    stream = client.begin(fields(b"POST"), fin=False)
    frame = data(stream, b"")
    if what == "HEADERS":
        frame = spdy.control(spdy.HEADERS, struct.pack(">I", stream))
    client.flood(lambda: frame * 100)
    served(site)


@pytest.mark.parametrize("how", ["client", "length", "window", "closed", "large", "malformed"])
def test_streams_that_are_given_up(site: Site, client: SpdyClient, how: str) -> None:
    """By the client (rapid reset), or because it made the gateway do so."""
    long = fields(b"GET", b"/", (b"x", b"\0".join([b"y"] * 1200)))
    upper = fields(b"GET", b"/", (b"X", b"y"))

    def one() -> bytes:
        number = client.stream + 2
        if how == "client":
            return client.syn_stream() + rst_stream(number)
        if how == "length":
            wanted = fields(b"POST", b"/", (b"content-length", b"1"))
            return client.syn_stream(wanted, fin=False) + data(number, b"too much", fin=True)
        if how == "window":
            return client.syn_stream(fields(b"POST"), fin=False) + window_update(number, 0)
        if how == "closed":
            return data(number, b"")
        return client.syn_stream(long if how == "large" else upper)

    client.flood(one, 5000)
    served(site)


def test_a_bomb(site: Site, client: SpdyClient) -> None:
    """A few bytes that would be very many."""
    wanted = fields(b"GET", b"/", (b"x", b"y" * 8_000_000))
    client.send(client.syn_stream(wanted))
    client.assert_over(last=0)
    served(site)


def test_very_many_fields(site: Site, client: SpdyClient) -> None:
    client.send(client.syn_stream(fields(b"GET", b"/", (b"x", b"\0".join([b"y"] * 30_000)))))
    client.assert_over(last=0)
    served(site)


def test_windows_that_stay_shut(authority: Authority) -> None:
    """What waits for a client that takes nothing is bounded; then no further request is taken."""
    options = ("--http2-max-queued", "65536")
    with RawHttpNode() as node, speaking_spdy(authority, node, *options) as site:
        node.otherwise = response(b"z" * 60_000)
        with site.connect(greedy=False) as client:
            client.send(spdy.settings((7, 0)))
            streams: list[int] = []
            while not any(client.answer(each).reset for each in streams):
                assert len(streams) < 99
                streams.append(client.begin())
                number = 2 * len(client.pongs) + 1
                client.send(ping(number))
                client.until(lambda number=number: number in client.pongs)
                client.until(lambda: client.answer(streams[0]).fields)
            assert client.answer(streams[-1]).reset == spdy.REFUSED
            client.send(spdy.settings((7, 65536)), window_update(0, 1 << 30))
            assert all(client.response(each).status == 200 for each in streams[:-1])


def served(site: Site) -> None:
    """Somebody else."""
    with site.connect() as client:
        assert client.ask().status == 200


# --- time -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def slow_ones(http_site: Site) -> Iterator[list[Future[None]]]:
    """Sessions that do nothing, and that do not end a frame: while the other tests run."""

    def idle() -> None:
        with http_site.connect() as client:
            client.assert_over(status=0, last=0)

    def trickling() -> None:
        with http_site.connect() as client:
            client.send(client.syn_stream()[:-1])
            client.assert_over()

    with ThreadPoolExecutor(2) as pool:
        yield [pool.submit(idle), pool.submit(trickling)]


def test_who_is_slow_is_sent_away(slow_ones: list[Future[None]]) -> None:
    for each in slow_ones:
        each.result(DEADLINE)
