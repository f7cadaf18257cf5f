"""What RFC 9113 and RFC 7541 have a server do with frames that must not come, and with odd ones
that may: the cases of h2spec's list, named as there."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hyperframe import frame as frames
from support.http2_attacker import PREFACE, Attacker
from support.nodes import RawHttpNode
from support.uwgate import Gateway, running

from uwgate.protocols.http2 import ErrorCode, frame

PROTOCOL, FLOW, CLOSED = (
    ErrorCode.PROTOCOL_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.STREAM_CLOSED,
)  # fmt: skip
SIZE, COMPRESSION = ErrorCode.FRAME_SIZE_ERROR, ErrorCode.COMPRESSION_ERROR
GET = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "h")]
POST = [(":method", "POST"), *GET[1:]]

Send = Callable[[Attacker], bytes]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with RawHttpNode() as node, running("--http-to", node.spec) as found:
        yield found


def headers(
    a: Attacker, fields: list[tuple[str, str]], stream: int = 1, *, end: bool = True
) -> bytes:
    flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
    return frames.HeadersFrame(stream, a.encoder.encode(fields), flags=flags).serialize()


def opened(a: Attacker) -> bytes:
    return headers(a, POST, end=False)


def data(payload: bytes = b"x", stream: int = 1, *, end: bool = True) -> bytes:
    return frames.DataFrame(stream, payload, flags=["END_STREAM"] if end else []).serialize()


def closed(a: Attacker) -> bytes:
    """A request that is answered before what follows is sent."""
    a.sock.sendall(headers(a, GET))
    while (found := a.verdict())[0] == "ok":
        pass
    assert found == ("status", 200)
    return b""


def reset(a: Attacker) -> bytes:
    return opened(a) + frames.RstStreamFrame(1, 8).serialize()


def raw(kind: int, flags: int, stream: int, payload: bytes) -> Send:
    return lambda a: frame(kind, flags, stream, payload)


def settings(*entries: tuple[int, int]) -> Send:
    return raw(4, 0, 0, b"".join(struct.pack(">HL", *each) for each in entries))


GOAWAY: list[tuple[str, Send, ErrorCode]] = [
    ("http2/4.2/2: DATA above the maximum", lambda a: opened(a) + data(bytes(16385)), SIZE),
    ("http2/4.2/3: HEADERS above it", raw(1, 5, 1, bytes(16385)), SIZE),
    ("http2/4.3/1: a block that cannot be decoded", raw(1, 5, 1, b"\xff\xff\xff\xff\xff"),
     COMPRESSION),
    ("http2/4.3/2: PRIORITY in a header block",
     lambda a: frame(1, 1, 1) + frame(2, 0, 1, bytes(4) + b"\1"), PROTOCOL),
    ("http2/4.3/3: HEADERS of another stream in a block",
     lambda a: frame(1, 1, 1) + headers(a, GET, 3), PROTOCOL),
    ("http2/5.1/1: DATA on an idle stream", raw(0, 1, 1, b"x"), PROTOCOL),
    ("http2/5.1/2: RST_STREAM on an idle stream", raw(3, 0, 1, bytes(4)), PROTOCOL),
    ("http2/5.1/3: WINDOW_UPDATE on an idle stream", raw(8, 0, 1, b"\0\0\0\1"), PROTOCOL),
    ("http2/5.1/4: CONTINUATION on an idle stream", raw(9, 4, 1, b""), PROTOCOL),
    ("http2/5.1/8: DATA behind RST_STREAM", lambda a: reset(a) + data(), CLOSED),
    ("http2/5.1/9: HEADERS behind RST_STREAM", lambda a: reset(a) + headers(a, GET), CLOSED),
    ("http2/5.1/10: CONTINUATION behind RST_STREAM", lambda a: reset(a) + frame(9, 4, 1), PROTOCOL),
    ("http2/5.1/11: DATA on a closed stream", lambda a: closed(a) + data(), CLOSED),
    ("http2/5.1/12: HEADERS on a closed stream", lambda a: closed(a) + headers(a, GET), CLOSED),
    ("http2/5.1.1/1: an even stream", lambda a: headers(a, GET, 2), PROTOCOL),
    ("http2/5.1.1/2: a stream behind a higher one",
     lambda a: headers(a, GET, 5) + headers(a, GET, 3), CLOSED),
    ("http2/6.1/1: DATA on stream 0", raw(0, 1, 0, b"x"), PROTOCOL),
    ("http2/6.1/3: more padding than payload", lambda a: opened(a) + frame(0, 9, 1, b"\6xxxxx"),
     PROTOCOL),
    ("http2/6.2/2: HEADERS in the middle of another",
     lambda a: frame(1, 1, 1) + frame(1, 5, 1), PROTOCOL),
    ("http2/6.2/3: HEADERS on stream 0", raw(1, 5, 0, b"\x82"), PROTOCOL),
    ("http2/6.2/4: HEADERS with too much padding", raw(1, 13, 1, b"\6\x82"), PROTOCOL),
    ("http2/6.3/1: PRIORITY on stream 0", raw(2, 0, 0, bytes(5)), PROTOCOL),
    ("http2/6.3/2: PRIORITY of another length", raw(2, 0, 1, bytes(4)), SIZE),
    ("http2/6.4/1: RST_STREAM on stream 0", raw(3, 0, 0, bytes(4)), PROTOCOL),
    ("http2/6.4/3: RST_STREAM of another length", lambda a: opened(a) + frame(3, 0, 1, bytes(3)),
     SIZE),
    ("http2/6.5/1: SETTINGS with ACK and payload", raw(4, 1, 0, bytes(6)), SIZE),
    ("http2/6.5/2: SETTINGS on a stream", raw(4, 0, 1, bytes(6)), PROTOCOL),
    ("http2/6.5/3: SETTINGS of another length", raw(4, 0, 0, bytes(3)), SIZE),
    ("http2/6.5.2/1: ENABLE_PUSH 2", settings((2, 2)), PROTOCOL),
    ("http2/6.5.2/2: INITIAL_WINDOW_SIZE above 2^31-1", settings((4, 1 << 31)), FLOW),
    ("http2/6.5.2/3: MAX_FRAME_SIZE below 2^14", settings((5, 16383)), PROTOCOL),
    ("http2/6.5.2/4: MAX_FRAME_SIZE above 2^24-1", settings((5, 1 << 24)), PROTOCOL),
    ("http2/6.7/3: PING on a stream", raw(6, 0, 1, bytes(8)), PROTOCOL),
    ("http2/6.7/4: PING of another length", raw(6, 0, 0, bytes(6)), SIZE),
    ("http2/6.8/1: GOAWAY on a stream", raw(7, 0, 1, bytes(8)), PROTOCOL),
    ("http2/6.9/1: WINDOW_UPDATE by 0", raw(8, 0, 0, bytes(4)), PROTOCOL),
    ("http2/6.9/3: WINDOW_UPDATE of another length", raw(8, 0, 0, bytes(3)), SIZE),
    ("http2/6.9.1/2: the connection's window above 2^31-1",
     lambda a: 2 * frame(8, 0, 0, struct.pack(">L", (1 << 31) - 1)), FLOW),
    ("http2/6.10/2: CONTINUATION behind END_HEADERS",
     lambda a: headers(a, GET) + frame(9, 4, 1), PROTOCOL),
    ("http2/6.10/4: CONTINUATION on stream 0",
     lambda a: frame(1, 1, 1) + frame(9, 4, 0), PROTOCOL),
    ("http2/6.10/5: CONTINUATION behind DATA",
     lambda a: opened(a) + data(end=False) + frame(9, 4, 1), PROTOCOL),
    ("http2/6.6: PUSH_PROMISE of a client", raw(5, 4, 1, b"\0\0\0\2"), PROTOCOL),
    ("hpack/2.3.3/1: index 0 or beyond the table", raw(1, 5, 1, b"\xfe"), COMPRESSION),
    ("hpack/4.2/1: a size update behind a field", raw(1, 5, 1, b"\x82\x20"), COMPRESSION),
    ("hpack/5.2/1: padding of more than 7 bits", raw(1, 5, 1, b"\x00\x82\x1f\xff\x00"),
     COMPRESSION),
    ("hpack/5.2/2: padding with zeros", raw(1, 5, 1, b"\x00\x81\x18\x00"), COMPRESSION),
    ("hpack/5.2/3: EOS in a string", raw(1, 5, 1, b"\x00\x84\xff\xff\xff\xff\x00"), COMPRESSION),
    ("hpack/6.3/1: a table above the limit", raw(1, 5, 1, b"\x3f\xff\x7f"), COMPRESSION),
]  # fmt: skip

RESET: list[tuple[str, Send, ErrorCode]] = [
    ("http2/5.1/5: DATA on a half-closed stream",
     lambda a: opened(a) + data() + data(), CLOSED),
    ("http2/5.1/6: HEADERS on a half-closed stream",
     lambda a: opened(a) + data() + headers(a, [("x", "y")]), CLOSED),
    ("http2/5.3.1/1: HEADERS that depend on themselves",
     lambda a: frames.HeadersFrame(
         1, a.encoder.encode(GET), depends_on=1,
         flags=["END_HEADERS", "END_STREAM", "PRIORITY"]).serialize(), PROTOCOL),
    ("http2/5.3.1/2: PRIORITY that depends on itself",
     lambda a: opened(a) + frame(2, 0, 1, b"\0\0\0\1\0"), PROTOCOL),
    ("http2/6.9/2: WINDOW_UPDATE of a stream by 0",
     lambda a: opened(a) + frame(8, 0, 1, bytes(4)), PROTOCOL),
    ("http2/6.9.1/3: a stream's window above 2^31-1",
     lambda a: opened(a) + 2 * frame(8, 0, 1, struct.pack(">L", (1 << 31) - 1)), FLOW),
    ("http2/8.1/1: HEADERS in the middle",
     lambda a: opened(a) + headers(a, [("x", "y")], end=False), PROTOCOL),
    ("http2/8.1.2/1: upper case", lambda a: headers(a, [*GET, ("X-Upper", "1")]), PROTOCOL),
    ("http2/8.1.2.1/1: an unknown pseudo-field", lambda a: headers(a, [*GET, (":x", "1")]),
     PROTOCOL),
    ("http2/8.1.2.1/2: one of responses", lambda a: headers(a, [*GET, (":status", "200")]),
     PROTOCOL),
    ("http2/8.1.2.1/3: a pseudo-field in trailers",
     lambda a: opened(a) + headers(a, [(":method", "GET")]), PROTOCOL),
    ("http2/8.1.2.1/4: one behind others", lambda a: headers(a, [*GET[:3], ("x", "1"), GET[3]]),
     PROTOCOL),
    ("http2/8.1.2.2/1: Connection", lambda a: headers(a, [*GET, ("connection", "x")]), PROTOCOL),
    ("http2/8.1.2.2/2: TE other than trailers", lambda a: headers(a, [*GET, ("te", "gzip")]),
     PROTOCOL),
    ("http2/8.1.2.3/1: an empty path", lambda a: headers(a, [*GET[:2], (":path", ""), GET[3]]),
     PROTOCOL),
    ("http2/8.1.2.3/2: no method", lambda a: headers(a, GET[1:]), PROTOCOL),
    ("http2/8.1.2.3/3: no scheme", lambda a: headers(a, [GET[0], *GET[2:]]), PROTOCOL),
    ("http2/8.1.2.3/4: no path", lambda a: headers(a, [*GET[:2], GET[3]]), PROTOCOL),
    ("http2/8.1.2.3/5: two methods", lambda a: headers(a, [GET[0], *GET]), PROTOCOL),
    ("http2/8.1.2.3/6: two schemes", lambda a: headers(a, [GET[1], *GET]), PROTOCOL),
    ("http2/8.1.2.3/7: two paths", lambda a: headers(a, [GET[2], *GET]), PROTOCOL),
    ("http2/8.1.2.6/1: not Content-Length bytes",
     lambda a: headers(a, [*POST, ("content-length", "9")], end=False) + data(b"x"), PROTOCOL),
    ("http2/8.1.2.6/2: nor in several frames",
     lambda a: headers(a, [*POST, ("content-length", "9")], end=False) + data(b"x", end=False)
     + data(b"y"), PROTOCOL),
]  # fmt: skip

FINE: list[tuple[str, Send, tuple[str, int]]] = [
    ("generic/1: a request", lambda a: headers(a, GET), ("status", 200)),
    ("generic/2: the same with padding",
     lambda a: frames.HeadersFrame(1, a.encoder.encode(GET), pad_length=9,
                                   flags=["END_HEADERS", "END_STREAM", "PADDED"]).serialize(),
     ("status", 200)),
    ("generic/3: with a priority",
     lambda a: frames.HeadersFrame(1, a.encoder.encode(GET), depends_on=0, stream_weight=255,
                                   flags=["END_HEADERS", "END_STREAM", "PRIORITY"]).serialize(),
     ("status", 200)),
    ("generic/3.10: CONTINUATION",
     lambda a: frames.HeadersFrame(1, a.encoder.encode(GET), flags=["END_STREAM"]).serialize()
     + frame(9, 0, 1, a.encoder.encode([("x", "1")]))
     + frame(9, 4, 1, a.encoder.encode([("y", "1")])), ("status", 200)),
    ("generic/4: trailers", lambda a: opened(a) + data(end=False) + headers(a, [("x", "1")]),
     ("status", 200)),
    ("http2/4.1/1: an unknown type", raw(0xBE, 0xFF, 0, b"12345678"), ("ok", 0)),
    ("http2/4.1/2: an undefined flag", raw(6, 0x16, 0, bytes(8)), ("ok", 0)),
    ("http2/4.1/3: a reserved bit", lambda a: b"\0\0\x08\6\0\x80\0\0\0" + bytes(8), ("ok", 0)),
    ("http2/4.2/1: a frame of 2^14 bytes", lambda a: opened(a) + data(bytes(16384)),
     ("status", 200)),
    ("http2/5.5/1: unknown types between", lambda a: opened(a) + frame(0xBE, 0, 1, b"x") + data(),
     ("status", 200)),
    ("http2/6.4: RST_STREAM, and goes on", lambda a: reset(a) + headers(a, GET, 3),
     ("status", 200)),
    ("http2/6.5.3/2: SETTINGS again", settings((1, 0), (3, 5), (6, 1000), (0xFFFF, 1)), ("ok", 0)),
    ("http2/6.5: a value again", settings((4, 100), (4, 200)), ("ok", 0)),
    ("http2/6.7/2: PING with ACK", raw(6, 1, 0, b"12345678"), ("ok", 0)),
    ("http2/6.9.1/1: a window of one byte",
     lambda a: frame(4, 0, 0, struct.pack(">HL", 4, 1)) + headers(a, GET), ("status", 200)),
    ("hpack/4.2: a table of nothing",
     lambda a: frames.HeadersFrame(1, b"\x20" + a.encoder.encode(GET),
                                   flags=["END_HEADERS", "END_STREAM"]).serialize(),
     ("status", 200)),
    ("PRIORITY_UPDATE", raw(16, 0, 0, b"\0\0\0\1u=1"), ("ok", 0)),
]  # fmt: skip


def cases(rows: list[tuple[str, Send, Any]]) -> list[Any]:
    return [pytest.param(*values, id=name) for name, *values in rows]


@pytest.mark.parametrize(("send", "code"), cases(GOAWAY))
def test_errors_of_the_connection(gateway: Gateway, send: Send, code: ErrorCode) -> None:
    with Attacker(gateway) as attacker:
        attacker.sock.sendall(send(attacker))
        found = attacker.verdict()
        while found[0] in ("status", "reset"):  # of what came before
            found = attacker.verdict()
        assert found == ("goaway", code)
        attacker.ends()


@pytest.mark.parametrize(("send", "code"), cases(RESET))
def test_errors_of_a_stream(gateway: Gateway, send: Send, code: ErrorCode) -> None:
    """And the connection goes on."""
    with Attacker(gateway) as attacker:
        attacker.sock.sendall(send(attacker))
        assert attacker.verdict() == ("reset", code)
        attacker.sock.sendall(headers(attacker, GET, 7))
        found = attacker.verdict()
        while found[0] == "ok":
            found = attacker.verdict()
        assert found == ("status", 200)


@pytest.mark.parametrize(("send", "found"), cases(FINE))
def test_what_is_fine(gateway: Gateway, send: Send, found: tuple[str, int]) -> None:
    with Attacker(gateway) as attacker:
        attacker.sock.sendall(send(attacker))
        verdict = attacker.verdict()
        while verdict == ("ok", 0) and found[0] == "status":
            verdict = attacker.verdict()
        assert verdict == found


@pytest.mark.parametrize(
    "first", [frames.PingFrame(0, bytes(8)), frames.SettingsFrame(0, flags=["ACK"])]
)
def test_the_first_frame_is_settings(gateway: Gateway, first: frames.Frame) -> None:
    """http2/3.5."""
    attacker = Attacker(gateway, preface=PREFACE + first.serialize())
    with attacker:
        assert attacker.verdict() == ("goaway", PROTOCOL)
