"""Properties over generated traffic: splits change nothing, and h11 never disagrees with us."""

from __future__ import annotations

import itertools
import re

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.client import Client, Truncated
from support.nodes import CLOSE, Connection, Script, Seen, SeenHttp, closing

from wire.conftest import Pair

Message = tuple[bytes, bytes, bytes]  # method, target, body

relaxed = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

REQUESTS = [
    b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nAccept: */*\r\nX-A: 1\r\n\r\n",
    b"POST /l HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\nX-A: 1\r\n\r\nhello world",
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n",
    b"PUT http://other:80/p HTTP/1.1\r\nX-A: 1\r\nHost: h\r\nContent-Length: 2\r\n\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /s HTTP/1.1\r\nHost: h\r\nConnection: X-A\r\nX-A: 1\r\nCookie: a=b\r\n\r\n",
]


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def _facts(seen: Seen) -> tuple[object, ...]:
    if isinstance(seen, SeenHttp):
        return (seen.head, seen.body, seen.trailers)
    return (re.sub(rb"REMOTE_PORT..[0-9]+", b"", seen.raw, flags=re.DOTALL)[4:],)


@relaxed
@given(
    order=st.lists(st.sampled_from(range(len(REQUESTS))), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_no_split_of_the_requests_changes_what_is_forwarded(
    pair: Pair, order: list[int], cuts: list[int]
) -> None:
    stream = b"".join(REQUESTS[index] for index in order)
    results = []
    for parts in ([stream], _pieces(stream, cuts)):
        pair.node.reset()
        with pair.connect() as client:
            client.send_pieces(parts)
            replies = [client.read_response(REQUESTS[index].split()[0]) for index in order]
        assert all(reply.status == 200 for reply in replies)
        results.append([_facts(seen) for seen in pair.node.seen])
    assert results[0] == results[1]
    assert len(results[0]) == len(order)


@pytest.mark.parametrize("request_", REQUESTS)
def test_nor_does_sending_byte_by_byte(pair: Pair, request_: bytes) -> None:
    results = []
    for bytewise in (False, True):
        pair.node.reset()
        with pair.connect() as client:
            client.send_bytewise(request_) if bytewise else client.send(request_)
            assert client.read_response(request_.split()[0]).status == 200
        results.append(_facts(pair.node.only()))
    assert results[0] == results[1]


SPLICES = [
    *(bytes([byte]) for byte in b'\r\n\t :;,#_+-0159afx/\x00\x0b\x7f\x80\xa0\xff"\\'),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\n ", b"\r\r\n", b"0\r\n\r\n"),
    *(b"chunked", b"identity", b"gzip", b"100-continue", b"close", b"keep-alive", b"upgrade"),
    *(b"Host: x\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length:11\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n", b"transfer-encoding:\r\n"),
    *(b"Content_Length: 3\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n"),
    *(b"Connection: content-length\r\n", b"Connection: upgrade\r\nUpgrade: x\r\n", b" HTTP/1.1"),
    *(b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"http://h", b"HTTP/1.0", b"*", b"OPTIONS"),
]
mutation = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "double", "swap"]),
    st.integers(0, 400),
    st.sampled_from(SPLICES),
)


def _mutate(data: bytes, mutations: list[tuple[str, int, bytes]]) -> bytes:
    for how, where, what in mutations:
        at = where % (len(data) + 1)
        lines = data.split(b"\r\n")
        row = where % len(lines)
        if how == "insert":
            data = data[:at] + what + data[at:]
        elif how == "replace":
            data = data[:at] + what + data[at + len(what) :]
        elif how == "delete":
            data = data[:at] + data[at + 1 + where % 3 :]
        elif how == "double":
            data = b"\r\n".join([*lines[: row + 1], *lines[row:]])
        else:
            lines[row], lines[-1 - row] = lines[-1 - row], lines[row]
            data = b"\r\n".join(lines)
    return data


def _h11_requests(data: bytes) -> list[Message]:
    """What h11 makes of a client's stream, up to its first objection.

    A fresh parser for each message, so that persistence is ours to decide. One documented
    tolerance: an empty line before a request line, which h11 refuses and RFC 9112 §2.2 wants
    ignored.
    """
    messages: list[Message] = []
    while data:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        parser.receive_data(data.removeprefix(b"\r\n"))
        parser.receive_data(b"")
        method = target = body = b""
        try:
            while True:
                event = parser.next_event()
                if isinstance(event, h11.Request):
                    method, target = event.method, event.target
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return messages
        except h11.RemoteProtocolError:
            return messages
        messages.append((method, _origin_form(method, target), body))
        data = parser.trailing_data[0]
    return messages


def _origin_form(method: bytes, target: bytes) -> bytes:
    match = re.fullmatch(rb"(?i:https?)://[^/?]*(.*)", target)
    if match is None:
        return target
    if not match[1]:
        return b"*" if method == b"OPTIONS" else b"/"
    return match[1] if match[1].startswith(b"/") else b"/" + match[1]


@settings(relaxed, max_examples=150)
@given(
    indices=st.lists(st.sampled_from(range(len(REQUESTS))), min_size=1, max_size=3),
    mutations=st.lists(mutation, min_size=1, max_size=4),
)
@example(indices=[1, 0], mutations=[("insert", 36, b"Transfer-Encoding: chunked\r\n")])
@example(indices=[0, 0], mutations=[("insert", 0, b"\r\n")])
def test_h11_reads_what_we_forward_as_it_reads_what_we_got(
    pair: Pair, indices: list[int], mutations: list[tuple[str, int, bytes]]
) -> None:
    stream = _mutate(b"".join(REQUESTS[index] for index in indices), mutations)
    pair.node.reset()
    with pair.gateway.connect(timeout=3) as client:
        client.send_willing(stream)
        _half_close(client)
        client.read_to_end()
    understood = _h11_requests(stream)
    forwarded = [(seen.method, seen.target, seen.body) for seen in pair.node.seen]
    assert forwarded == understood[: len(forwarded)], stream
    for seen, message in zip(pair.node.seen, understood, strict=False):
        if isinstance(seen, SeenHttp):
            assert _h11_requests(seen.raw) == [message], (stream, seen.raw)


def _half_close(client: Client) -> None:
    try:
        client.half_close()
    except OSError:
        client.ended = True


RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-A: 1\r\n\r\nhello world",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n"
    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\nServer: x\r\n\r\nuntil the end",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
]
ASK = b"POST /r HTTP/1.1\r\nHost: h\r\n\r\n"


@relaxed
@given(
    index=st.sampled_from(range(len(RESPONSES))), cuts=st.lists(st.integers(0, 300), max_size=10)
)
def test_no_split_of_a_response_changes_what_the_client_gets(
    pair: Pair, index: int, cuts: list[int]
) -> None:
    def sending(parts: list[bytes]) -> Script:
        def script(connection: Connection, seen: Seen) -> str | None:
            for part in parts:
                connection.send(part)
            # A close without notice would race with the next POST, which may not be sent again.
            return CLOSE if raw.endswith(b"the end") else None

        return script

    raw = RESPONSES[index]
    results = []
    pair.node.reset()
    for parts in ([raw], _pieces(raw, cuts)):
        pair.node.play(sending(parts))
        with pair.connect() as client:
            reply = client.ask(ASK, b"POST")
        headers = [header for header in reply.headers if header[0] != b"date"]
        results.append((reply.status, headers, reply.body, reply.trailers, len(reply.interim)))
    assert results[0] == results[1]


def _h11_response(data: bytes) -> tuple[int, bytes] | None:
    """Status and body as h11 reads them up to the end of ``data``, or None if it objects."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    parser.send(h11.Request(method="POST", target="/", headers=[("Host", "h")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    parser.receive_data(b"")
    status, body = 0, b""
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None


@settings(relaxed, max_examples=120)
@given(
    index=st.sampled_from(range(len(RESPONSES))),
    mutations=st.lists(mutation, min_size=1, max_size=3),
)
def test_h11_reads_what_the_client_gets_as_it_reads_what_the_node_sent(
    pair: Pair, index: int, mutations: list[tuple[str, int, bytes]]
) -> None:
    raw = _mutate(RESPONSES[index], mutations)
    pair.node.reset()
    pair.node.play(closing(raw))
    with pair.connect() as client:
        client.send(ASK)
        try:
            reply = client.read_response(b"POST")
        except Truncated:
            return
    if reply.status != 502:
        assert (reply.status, reply.body) == _h11_response(raw), raw
