"""SPDY/3.1 over TLS before HTTP and uwsgi nodes: requests and their responses, what is refused."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import spdy_client as spdy
from support import spdy_site
from support.certificates import Authority
from support.client import Client
from support.nodes import NODES, RawHttpNode, SeenHttp, SeenUwsgi, response, silent
from support.spdy_client import SpdyClient, data, fields, ping, rst_stream, window_update
from support.spdy_site import Site, listener, offering, speaking_spdy
from support.uwgate import running
from support.waiting import free_port, wait_until

FOREVER = 2**31 - 1

authority, http_site = spdy_site.authority, spdy_site.http_site
site, client = spdy_site.site, spdy_site.client


@pytest.fixture(scope="module", params=list(NODES))
def any_site(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Site]:
    """Before a node of each kind."""
    with NODES[request.param]() as node, speaking_spdy(authority, node) as site:
        yield site


@pytest.fixture
def pair(any_site: Site) -> Site:
    any_site.node.reset()
    return any_site


# --- requests and responses -----------------------------------------------------------------------


def test_a_request(pair: Site) -> None:
    pair.node.play(
        response(b"hello", b"X-Node: 1", b"Set-Cookie: a", b"Connection: x", b"X: y",
                 b"Set-Cookie: b")
    )  # fmt: skip
    with pair.connect() as client:
        found = client.ask(fields(b"GET", b"/a?b", (b"x-field", b"1"), (b"cookie", b"a\0b")))
    assert (found.status, found.body) == (200, b"hello")
    assert found.value(b":status") == b"200 OK"
    assert found.value(b":version") == b"HTTP/1.1"
    assert found.value(b"x-node") == b"1"
    assert found.value(b"set-cookie") == b"a\0b"
    assert found.value(b"content-length") == b"5"
    assert found.value(b"date")
    assert found.value(b"connection") is None
    (seen,) = pair.node.seen
    assert (seen.method, seen.target) == (b"GET", b"/a?b")
    assert seen.field(b"host") == [b"h"]
    assert seen.field(b"cookie") == [b"a; b"]
    assert seen.field(b"x-field") == [b"1"]
    assert seen.field(b"transfer-encoding") == []
    if isinstance(seen, SeenUwsgi):
        assert seen.var(b"SERVER_PROTOCOL") == b"HTTP/1.1"
    else:
        assert seen.field(b"via") == [b"SPDY/3.1 uwgate"]
        assert seen.field(b"x-forwarded-proto") == [b"https"]


def test_what_uwsgi_nodes_are_told(authority: Authority) -> None:
    with NODES["uwsgi"]() as node, speaking_spdy(authority, node) as site, site.connect() as client:
        for _ in range(3):
            client.ask()
        plain = Client(("127.0.0.1", site.port))
        plain.sock = offering(authority, "http/1.1").wrap_socket(
            plain.sock, server_hostname="localhost"
        )
        with plain:
            plain.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        seen = [each for each in node.seen if isinstance(each, SeenUwsgi)]
    for number, each in zip((1, 3, 5), seen, strict=False):
        assert each.var(b"HTTPS") == each.var(b"SPDY") == b"on"
        assert each.var(b"SPDY.version") == b"3"
        assert each.var(b"SPDY.stream") == b"%d" % number
        assert each.var(b"UWSGI_SCHEME") == b"https"
        assert each.var(b"REMOTE_ADDR") == b"127.0.0.1"
    assert len(seen) == 4
    assert seen[3].all(b"SPDY") == seen[3].all(b"SPDY.stream") == []


def test_many_at_once(pair: Site) -> None:
    with pair.connect() as client:
        streams = [client.begin(fields(b"GET", b"/%d" % number)) for number in range(60)]
        for stream in streams:
            assert client.response(stream).status == 200
    assert {each.target for each in pair.node.seen} == {b"/%d" % number for number in range(60)}


@pytest.mark.parametrize("size", [0, 1, 65536, 300_000])
@pytest.mark.parametrize("counted", [False, True])
def test_bodies(pair: Site, size: int, counted: bool) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    extra = [(b"content-length", b"%d" % size)] if counted else []
    with pair.connect() as client:
        assert client.ask(fields(b"POST", b"/", *extra), body).status == 200
        assert client.ask().status == 200
    assert pair.node.seen[0].body == body


def test_large_responses_side_by_side(pair: Site) -> None:
    body = bytes(range(256)) * 4000
    pair.node.play(*[response(body) for _ in range(5)])
    with pair.connect() as client:
        streams = [client.begin() for _ in range(5)]
        for stream in streams:
            assert client.response(stream).body == body


def test_head_and_bodiless(site: Site, client: SpdyClient) -> None:
    site.node.play(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    found = client.ask(fields(b"HEAD"))
    assert (found.status, found.body, found.value(b"content-length")) == (200, b"", b"5")
    site.node.play(b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n')
    found = client.ask()
    assert (found.status, found.body, found.value(b"etag")) == (304, b"", b'"x"')
    assert found.frames == [(spdy.SYN_REPLY, True)]


def test_an_empty_body(pair: Site) -> None:
    pair.node.play(response(b""))
    with pair.connect() as client:
        found = client.ask()
        assert (found.status, found.body, found.ended) == (200, b"", True)
        assert client.ask().body
    assert found.frames[0] == (spdy.SYN_REPLY, len(found.frames) == 1)


def test_a_status_without_a_reason(site: Site, client: SpdyClient) -> None:
    site.node.play(b"HTTP/1.1 299\r\nContent-Length: 0\r\n\r\n")
    assert client.ask().value(b":status") == b"299"


def test_chunked_responses_and_trailers(site: Site, client: SpdyClient) -> None:
    site.node.play(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
        b"Grpc-Status: 0\r\nContent-Length: 7\r\n\r\n"
    )
    found = client.ask()
    assert (found.body, found.trailers) == (b"hello", [(b"grpc-status", b"0")])
    assert found.frames[-2:] == [(spdy.HEADERS, False), (None, True)]
    assert found.value(b"transfer-encoding") is None


@pytest.mark.parametrize("how", ["FIN", "empty DATA", "DATA"])
def test_trailers_of_requests(site: Site, client: SpdyClient, how: str) -> None:
    stream = client.begin(fields(b"POST"), fin=False)
    client.send(data(stream, b"bo"))
    if how == "DATA":  # the fields of HEADERS in the middle are trailers as well
        client.send(client.headers(stream, [(b"x-sum", b"1")]), data(stream, b"dy", fin=True))
    else:
        client.send(data(stream, b"dy"), client.headers(stream, [(b"x-sum", b"1")], fin=how=="FIN"))
        if how == "empty DATA":
            client.send(data(stream, b"", fin=True))
    assert client.response(stream).status == 200
    assert client.ask().status == 200
    seen = site.node.seen[0]
    assert isinstance(seen, SeenHttp)
    assert (seen.body, seen.trailers) == (b"body", [(b"x-sum", b"1")])


def test_there_is_one_reply(site: Site, client: SpdyClient) -> None:
    """1xx have no place."""
    site.node.play(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + response(b"x")
    )
    found = client.ask(fields(b"POST", b"/", (b"expect", b"100-continue")), b"body")
    assert (found.status, found.body) == (200, b"x")


def test_slow_data_is_passed_on_before_its_frame_is_complete(
    site: Site, client: SpdyClient
) -> None:
    stream = client.begin(fields(b"POST", b"/", (b"content-length", b"6")), fin=False)
    whole = data(stream, b"abcdef", fin=True)
    client.send(whole[:11])

    def arrived() -> bool:
        return any(each.received.endswith(b"abc") for each in site.node.connections)

    wait_until(arrived, "the first half")
    client.send(whole[11:])
    assert client.response(stream).status == 200
    assert site.node.seen[0].body == b"abcdef"


def test_frames_in_pieces(site: Site, client: SpdyClient) -> None:
    frames = client.syn_stream(fields(b"POST"), fin=False)
    frames += data(1, b"ab") + data(1, b"c", fin=True)
    for position in range(0, len(frames), 7):
        client.send(frames[position : position + 7])
    assert client.response(1).status == 200
    assert site.node.seen[0].body == b"abc"


# --- with the rest of the gateway -----------------------------------------------------------------


def test_gzip_hsts_and_sticky(authority: Authority) -> None:
    options = ("--http-auto-gzip", "--https-hsts=max-age=1", "--http-sticky=where")
    with (
        RawHttpNode() as node,
        speaking_spdy(authority, node, *options) as site,
        site.connect() as client,
    ):
        node.play(response(b"a" * 1000, b"uWSGI-Encoding: gzip"))
        found = client.ask(fields(b"GET", b"/", (b"accept-encoding", b"gzip")))
        assert gzip.decompress(found.body) == b"a" * 1000
        assert found.value(b"content-encoding") == b"gzip"
        assert b"where=" in (found.value(b"set-cookie") or b"")
        assert found.value(b"strict-transport-security") == b"max-age=1"
        assert client.ask().value(b"strict-transport-security") == b"max-age=1"
        assert client.ask(fields(leave=b":host")).value(b"strict-transport-security")


def test_files(authority: Authority, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a.txt").write_bytes(content)
    options = (f"--static-map=/files={tmp_path}", "--http-sendfile=x-sendfile")
    with (
        RawHttpNode() as node,
        speaking_spdy(authority, node, *options) as site,
        site.connect() as client,
    ):
        found = client.ask(fields(b"GET", b"/files/a.txt"))
        assert found.body == content
        again = (b"if-none-match", found.value(b"etag") or b"")
        found = client.ask(fields(b"GET", b"/files/a.txt", again))
        assert (found.status, found.frames) == (304, [(spdy.SYN_REPLY, True)])
        found = client.ask(fields(b"HEAD", b"/files/a.txt"))
        assert (found.value(b"content-length"), found.body) == (b"256000", b"")
        found = client.ask(fields(b"GET", b"/files/a.txt", (b"range", b"bytes=1-3")))
        assert (found.status, found.body) == (206, b"\1\2\3")
        node.play(response(b"", b"X-Sendfile: %b/a.txt" % bytes(tmp_path)))
        found = client.ask(fields(b"GET", b"/named"))
        assert (found.status, found.body, found.value(b"x-sendfile")) == (200, content, None)


@pytest.mark.parametrize("first", [True, False])
def test_only_listeners_with_spdy_offer_it(authority: Authority, first: bool) -> None:
    """Whatever certificate is chosen."""
    named = authority.issue("named")
    values = [listener(authority, more) for more in (",spdy=1", ",spdy=0", "")]
    if not first:
        values.reverse()
    words = [word for _, value in values for word in ("--https2", value)]
    with RawHttpNode() as node:
        sni = f"named {named.cert},{named.key}"
        with running(*words, "--sni", sni, "--http-to", node.spec):
            for port, value in values:
                for name in ("localhost", "named"):
                    found = []
                    for protocols in (["spdy/3.1", "http/1.1"], ["spdy/3.1"], ["spdy/3.1", "h2"]):
                        context = offering(authority, *protocols)
                        with Client(("127.0.0.1", port)) as plain:
                            plain.sock = context.wrap_socket(plain.sock, server_hostname=name)
                            found.append(plain.sock.selected_alpn_protocol())
                    ours = value.endswith("spdy=1")
                    wanted = ["spdy/3.1", "spdy/3.1"] if ours else ["http/1.1", None]
                    assert found == [*wanted, "h2"], value


def test_without_http2(authority: Authority) -> None:
    with RawHttpNode() as node, speaking_spdy(authority, node, "--http2=false") as site:
        site.context = offering(authority, "h2", "spdy/3.1")
        with site.connect() as client:
            assert client.ask().status == 200


def test_what_is_seen_of_it(authority: Authority) -> None:
    port = free_port()
    stats = (f"--http-stats=127.0.0.1:{port}", "--http-log")
    with (
        RawHttpNode() as node,
        speaking_spdy(authority, node, *stats) as site,
        site.connect() as client,
    ):
        client.ask(fields(b"GET", b"/seen"))
        node.play(silent)
        stream = client.begin()
        node.wait_seen(2)
        client.send(rst_stream(stream), data(stream, b"", fin=True))
        client.response(stream)

        def shown(path: bytes) -> bytes:
            text = b""
            while not text.startswith(b"HTTP/"):  # who asks too late gets uWSGI's document
                with Client(("127.0.0.1", port)) as reader:
                    reader.send_willing(b"GET " + path + b" HTTP/1.0\r\n\r\n")
                    text = reader.read_to_end()
            return text.partition(b"\r\n\r\n")[2]

        assert json.loads(shown(b"/"))["spdy"] == {
            "connections": 1,
            "streams": 0,
            "requests": 2,
            "delayed": 0,
            "resets": {"client:CANCEL": 1, "gateway:INVALID_STREAM": 1},
            "goaways": {},
        }
        assert "http2" not in json.loads(shown(b"/"))
        metrics = shown(b"/metrics")
        assert b"\nuwgate_spdy_connections 1\n" in metrics
        assert b'\nuwgate_spdy_resets_total{side="client",code="CANCEL"} 1\n' in metrics
        client.send(ping(1), spdy.control(spdy.SYN_STREAM, bytes(10)))
        client.assert_over()
        assert json.loads(shown(b"/"))["spdy"]["goaways"] == {"PROTOCOL_ERROR": 1}
        wait_until(lambda: "GET /seen SPDY/3.1" in site.gateway.log, "the log")


def test_names_that_ask_for_certificates(authority: Authority) -> None:
    """A session for another name is no way around that."""
    named = authority.issue("named")
    sni = f"named {named.cert},{named.key},,!{authority.file}"
    with (
        RawHttpNode() as node,
        speaking_spdy(authority, node, "--sni", sni) as site,
        site.connect() as client,
    ):
        other = [*fields(leave=b":host"), (b":host", b"named")]
        assert client.ask(other).status == 421
        assert client.ask().status == 200
        assert len(node.seen) == 1


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        *[
            (fields(leave=name), 400)
            for name in (b":method", b":path", b":version", b":host", b":scheme")
        ],
        (fields(b"GET", b"/#"), 400),
        (fields(b"GET", b"/a b"), 400),
        (fields(b"GET", b"*"), 400),
        (fields(b"CONNECT", b"/"), 400),
        (fields(b"GET", b"/", (b":protocol", b"websocket")), 400),
        (fields(b"GET", b"/", (b"connection", b"upgrade")), 400),
        (fields(b"GET", b"/", (b"upgrade", b"websocket")), 400),
        (fields(b"GET", b"/", (b"transfer-encoding", b"chunked")), 400),
        (fields(b"GET", b"/", (b"host", b"other")), 400),
        (fields(b"GET", b"/", (b"content-length", b"5")), 400),
        (fields(b"POST", b"/", (b"content-length", b"1\x001")), 400),
        (fields(b"POST", b"/", (b"content-length", b"+1")), 400),
        (fields(b"GET", b"/", (b"x", b" y")), 400),
        (fields(b"GET", b"/", (b"expect", b"wonders")), 417),
        (fields(b"GET", b"/", (b"x", b"y" * 33_000)), 431),
        (fields(b"GET", b"/", *[(b"x%d" % each, b"") for each in range(200)]), 431),
        (fields(b"GET", b"/", (b"x", b"\0".join([b"y"] * 1000))), 431),
    ],
)
def test_refusals(
    site: Site, client: SpdyClient, wanted: list[tuple[bytes, bytes]], status: int
) -> None:
    found = client.ask(wanted)
    assert found.status == status
    assert found.value(b"connection") is None
    assert found.body
    # The session goes on.
    assert client.ask().status == 200
    assert len(site.node.seen) == 1


def test_a_refused_head_has_no_body(client: SpdyClient) -> None:
    found = client.ask(fields(b"HEAD", b"/#"))
    assert (found.status, found.frames) == (400, [(spdy.SYN_REPLY, True)])


def test_a_refused_body_is_read(site: Site, client: SpdyClient) -> None:
    stream = client.begin(fields(b"POST", leave=b":host"), fin=False)
    client.until(lambda: client.answer(stream).ended)
    client.send(data(stream, b"x" * 1000), data(stream, b"", fin=True))
    assert client.answer(stream).status == 400
    client.assert_alive()
    assert client.answer(stream).reset is None


@pytest.mark.parametrize("size", [3, 7])
def test_a_body_that_is_not_as_long_as_it_says(site: Site, client: SpdyClient, size: int) -> None:
    stream = client.begin(fields(b"POST", b"/", (b"content-length", b"5")), fin=False)
    client.send(data(stream, b"1234567"[:size], fin=True))
    assert client.response(stream).reset == spdy.PROTOCOL
    assert client.ask().status == 200
    assert [each.method for each in site.node.seen] == [b"GET"]


def test_trailers_have_a_limit(site: Site, client: SpdyClient) -> None:
    stream = client.begin(fields(b"POST"), fin=False)
    client.send(*[client.headers(stream, [(b"x%d" % each, b"y" * 9000)]) for each in range(4)])
    assert client.response(stream).reset == spdy.TOO_LARGE
    client.assert_alive()


@pytest.mark.parametrize(
    ("flags", "associated"), [(spdy.UNIDIRECTIONAL, 0), (0, 1), (spdy.UNIDIRECTIONAL, 2)]
)
def test_clients_do_not_push(client: SpdyClient, flags: int, associated: int) -> None:
    client.send(client.syn_stream(flags=flags, associated=associated))
    assert client.response(1).reset == spdy.PROTOCOL
    assert client.ask().status == 200


def test_syn_reply_of_a_client(site: Site, client: SpdyClient) -> None:
    site.node.play(silent)
    stream = client.begin(fields(b"POST"), fin=False)
    for number, status in ((7, spdy.INVALID), (stream, spdy.PROTOCOL)):
        block = client.block([(b":status", b"200"), (b":version", b"HTTP/1.1")])
        client.send(spdy.control(spdy.SYN_REPLY, struct.pack(">I", number) + block))
        assert client.response(number).reset == status
    client.assert_alive()


@pytest.mark.parametrize("second", [2, 1, 0])
def test_stream_ids_that_end_the_session(site: Site, client: SpdyClient, second: int) -> None:
    assert client.ask(None).status == 200
    assert client.ask(None).status == 200
    client.send(client.syn_stream(stream=second))
    client.assert_over(last=3)


def test_a_stream_opened_twice(site: Site, client: SpdyClient) -> None:
    site.node.play(silent)
    stream = client.begin()
    number = site.node.wait_seen()[0].connection
    client.send(client.syn_stream(stream=stream))
    assert client.response(stream).reset == spdy.PROTOCOL
    wait_until(
        lambda: any(each.number == number and each.saw_end for each in site.node.connections),
        "the node is let go",
    )
    assert client.ask().status == 200


def test_fields_that_are_malformed(client: SpdyClient) -> None:
    client.send(client.syn_stream(fields(b"GET", b"/", (b"Upper", b"1"))))
    assert client.response(1).reset == spdy.PROTOCOL
    client.send(data(1, b"does not know yet"))
    assert client.ask().status == 200
    assert client.goaways == []


def test_streams_that_are_not_open(site: Site, client: SpdyClient) -> None:
    site.node.play(silent)
    stream = client.begin()
    site.node.wait_seen()
    client.send(data(9, b"never"), client.headers(11, [(b"a", b"b")]))
    client.send(rst_stream(13), window_update(15, 100))
    client.assert_alive()
    assert {each: client.answer(each).reset for each in (9, 11, 13, 15)} == {
        9: spdy.INVALID, 11: spdy.INVALID, 13: None, 15: None,
    }  # fmt: skip
    client.send(data(stream, b"behind FIN"))
    assert client.response(stream).reset == spdy.ALREADY_CLOSED
    client.send(client.headers(stream, [(b"a", b"b")]))
    client.assert_alive()


def test_pings(client: SpdyClient) -> None:
    client.send(ping(2), ping(7), ping(0), ping(2**31 + 1))
    client.assert_alive()
    assert client.pongs[:2] == [7, 2**31 + 1]


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">HHI", 0x8002, spdy.PING, 4) + bytes(4),
        spdy.control(spdy.PING, bytes(5)),
        spdy.control(spdy.SYN_STREAM, struct.pack(">IIBx", 1, 0, 0) + b"no zlib"),
        spdy.control(spdy.SETTINGS, bytes(40_000))[:8],
        data(0, b"x"),
        window_update(0, 0),
        window_update(0, FOREVER),
    ],
)
def test_what_ends_a_session(client: SpdyClient, frame: bytes) -> None:
    client.send(frame)
    client.assert_over()
