"""What spdy-transport, the SPDY of Node.js, writes and reads.

Captured once, with spdy-transport 3.0.0 and Node.js 20.20; no test runs it. Its client opened a
session (start(3.1)) with and without headerCompression, and made the requests below; then its
parser, as a client, read what SpdyWriter and the others had written, at levels 0 and 6.
"""

from __future__ import annotations

import pytest

from uwgate.protocols.spdy3 import (
    INITIAL_WINDOW_SIZE,
    PERSIST,
    ROUND_TRIP_TIME,
    Data,
    Frame,
    Goaway,
    Headers,
    Ping,
    RstStream,
    SessionStatus,
    Setting,
    Settings,
    SpdyReader,
    SpdyRequest,
    SpdyWriter,
    StreamStatus,
    SynReply,
    SynStream,
    WindowUpdate,
    data_frame,
    goaway_frame,
    ping_frame,
    request_of,
    rst_stream_frame,
    settings_frame,
    window_update_frame,
)

# headerCompression: false, then true. The third frame is one of its own, X_FORWARDED_FOR (0xf000).
CLIENT_PLAIN = bytes.fromhex(
    "800300040000000c000000010100000700100000800300090000000800000000000f00008003f0000000000d"
    "000000093139322e302e322e3780030001010000d9000000010000000060003830e3c6a7c200bf0040ff0000"
    "000900000006616363657074000000032a2f2a0000000a757365722d6167656e74000000066f7261636c6500"
    "000006636f6f6b696500000007613d3100623d3200000007782d656d70747900000000000000073a6d657468"
    "6f6400000003474554000000083a76657273696f6e00000008485454502f312e31000000053a706174680000"
    "00082f6f6e653f783d31000000073a736368656d65000000056874747073000000053a686f73740000000e61"
    "2e6578616d706c653a38343433000000ffff80030001000000c40000000300000000600000b0004fff000000"
    "080000000e636f6e74656e742d6c656e67746800000002313100000006616363657074000000032a2f2a0000"
    "000a757365722d6167656e74000000066f7261636c65000000073a6d6574686f6400000004504f5354000000"
    "083a76657273696f6e00000008485454502f312e31000000053a70617468000000042f74776f000000073a73"
    "6368656d65000000056874747073000000053a686f73740000000e612e6578616d706c653a38343433000000"
    "ffff000000030000000668656c6c6f20800300080000002600000003001800e7ff0000000100000009782d74"
    "7261696c657200000003796573000000ffff0000000300000005776f726c6400000003010000008003000600"
    "00000400000001800300010100007f00000005000000006000006b0094ff00000005000000073a6d6574686f"
    "6400000003474554000000083a76657273696f6e00000008485454502f312e31000000053a70617468000000"
    "062f7468726565000000073a736368656d65000000056874747073000000053a686f737400000009612e6578"
    "616d706c65000000ffff80030003000000080000000500000005800300090000000800000003000010008003"
    "0007000000080000006300000000"
)
CLIENT_DEFLATED = bytes.fromhex(
    "800300040000000c000000010100000700100000800300090000000800000000000f00008003f0000000000d"
    "000000093139322e302e322e3780030001010000800000000100000000600038ace3c6a7c2626060e044295d"
    "99b5f4b53072005b7e5162720e38d1c113237ba2ad214392ad118859a19b9a5b5002ca2320c06e85c802eeae"
    "21a0346e853dbdb35a1524820b400efdfcbc54fb0a5b43b0f6e2e48cd45c70d19c515252500c56082db0f812"
    "f5522b1241516f656162620c000000ffff800300010000002b000000030000000060000269c55aa232191a92"
    "e22d2427b304f80713e56616fd92f27c12dd0b000000ffff000000030000000668656c6c6f20800300080000"
    "00190000000362606060040579852ea23062ae4c2d06000000ffff0000000300000005776f726c6400000003"
    "010000008003000600000004000000018003000101000022000000050000000060000269212fe4d8f44b328a"
    "525309b98313ee0e00000000ffff800300030000000800000005000000058003000900000008000000030000"
    "100080030007000000080000006300000000"
)

# What SpdyWriter(0) and SpdyWriter(6) wrote when spdy-transport read it: SETTINGS round_trip_time
# 30000, initial_window_size 8192; WINDOW_UPDATE; HEADERS 1 with status 200, set-cookie a=1 and b=2;
# DATA twice; HEADERS x-sum 42; HEADERS 3 with status 204, fin; DATA fin; WINDOW_UPDATE 3 8192; RST
# REFUSED_STREAM; PING 1 acknowledged; PING 2; GOAWAY PROTOCOL_ERROR.
SERVER_PLAIN = bytes.fromhex(
    "80030004010000140000000201000003000075300100000700002000800300090000000800000000000f0000"
    "80030002000000a2000000013830e3c6a7c2008e0071ff00000006000000083a76657273696f6e0000000848"
    "5454502f312e31000000073a73746174757300000006323030204f4b0000000c636f6e74656e742d74797065"
    "0000000a746578742f706c61696e0000000a7365742d636f6f6b696500000007613d3100623d320000000778"
    "2d656d7074790000000000000005782d6269670000000a76767676767676767676000000ffff000000010000"
    "000668656c6c6f200000000100000005776f726c64800300080100002100000001001300ecff000000010000"
    "0005782d73756d000000023432000000ffff800300020100005b00000003004d00b2ff00000003000000083a"
    "76657273696f6e00000008485454502f312e31000000073a7374617475730000000e323034204e6f20436f6e"
    "74656e740000000673657276657200000006757767617465000000ffff000000050100000080030009000000"
    "0800000003000020008003000300000008000000050000000380030006000000040000000180030006000000"
    "040000000280030007000000080000000500000001"
)
SERVER_DEFLATED = bytes.fromhex(
    "80030004010000140000000201000003000075300100000700002000800300090000000800000000000f0000"
    "80030002000000450000000138ace3c6a7c202a5235022b4c29e20d9adb0245ef492870be1648c24cb9e686b"
    "c890646b046256e8a6e6169480721208b056e8266582321157191c00000000ffff000000010000000668656c"
    "6c6f200000000100000005776f726c6480030008010000160000000102f2182152c5a5a0628ac9c408000000"
    "ffff800300020100001c0000000302e50ae21cc8879a1c514a00b6d2f27460f800000000ffff000000050100"
    "0000800300090000000800000003000020008003000300000008000000050000000380030006000000040000"
    "000180030006000000040000000280030007000000080000000500000001"
)

HTTP = b"HTTP/1.1"
HOST = b"a.example:8443"


def all_frames(data: bytes) -> list[Frame]:
    reader, buffer, frames = SpdyReader(), bytearray(data), []
    while (frame := reader.next_frame(buffer)) is not None:
        frames.append(frame)
    assert not buffer
    return frames


CLIENT_FRAMES: list[Frame] = [
    Settings(False, (Setting(INITIAL_WINDOW_SIZE, 1 << 20, PERSIST),)),
    WindowUpdate(0, 983040),
    SynStream(
        1,
        0,
        3,
        True,
        False,
        (
            (b"accept", b"*/*"),
            (b"user-agent", b"oracle"),
            (b"cookie", b"a=1"),
            (b"cookie", b"b=2"),
            (b"x-empty", b""),
            (b":method", b"GET"),
            (b":version", HTTP),
            (b":path", b"/one?x=1"),
            (b":scheme", b"https"),
            (b":host", HOST),
        ),
    ),
    SynStream(
        3,
        0,
        3,
        False,
        False,
        (
            (b"content-length", b"11"),
            (b"accept", b"*/*"),
            (b"user-agent", b"oracle"),
            (b":method", b"POST"),
            (b":version", HTTP),
            (b":path", b"/two"),
            (b":scheme", b"https"),
            (b":host", HOST),
        ),
    ),
    Data(3, False, b"hello "),
    Headers(3, False, ((b"x-trailer", b"yes"),)),
    Data(3, False, b"world"),
    Data(3, True, b""),
    Ping(1),
    SynStream(
        5,
        0,
        3,
        True,
        False,
        (
            (b":method", b"GET"),
            (b":version", HTTP),
            (b":path", b"/three"),
            (b":scheme", b"https"),
            (b":host", b"a.example"),
        ),
    ),
    RstStream(5, StreamStatus.CANCEL),
    WindowUpdate(3, 4096),
    Goaway(99, SessionStatus.OK),
]

# The SETTINGS with which uWSGI begins.
KEPT = (Setting(ROUND_TRIP_TIME, 30000, PERSIST), Setting(INITIAL_WINDOW_SIZE, 8192, PERSIST))

SERVER_FRAMES: list[Frame] = [
    Settings(True, KEPT),
    WindowUpdate(0, 983040),
    SynReply(
        1,
        False,
        (
            (b":version", HTTP),
            (b":status", b"200 OK"),
            (b"content-type", b"text/plain"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"x-empty", b""),
            (b"x-big", b"vvvvvvvvvv"),
        ),
    ),
    Data(1, False, b"hello "),
    Data(1, False, b"world"),
    Headers(1, True, ((b"x-sum", b"42"),)),
    SynReply(
        3, True, ((b":version", HTTP), (b":status", b"204 No Content"), (b"server", b"uwgate"))
    ),
    Data(5, True, b""),
    WindowUpdate(3, 8192),
    RstStream(5, StreamStatus.REFUSED_STREAM),
    Ping(1),
    Ping(2),
    Goaway(5, SessionStatus.PROTOCOL_ERROR),
]


def written(level: int) -> bytes:
    """What the oracle was given to read."""
    writer = SpdyWriter(level)
    fields = (
        (b"Content-Type", b"text/plain"),
        (b"Set-Cookie", b"a=1"),
        (b"Connection", b"close"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Empty", b""),
        (b"x-big", b"vvvvvvvvvv"),
    )
    return b"".join(
        (
            settings_frame(KEPT, clear=True),
            window_update_frame(0, 983040),
            writer.syn_reply(1, b"200 OK", fields),
            data_frame(1, b"hello "),
            data_frame(1, b"world"),
            writer.headers(1, [(b"X-Sum", b"42")], fin=True),
            writer.syn_reply(3, b"204 No Content", [(b"server", b"uwgate")], fin=True),
            data_frame(5, b"", fin=True),
            window_update_frame(3, 8192),
            rst_stream_frame(5, StreamStatus.REFUSED_STREAM),
            ping_frame(1),
            ping_frame(2),
            goaway_frame(5, SessionStatus.PROTOCOL_ERROR),
        )
    )


@pytest.mark.parametrize("captured", [CLIENT_PLAIN, CLIENT_DEFLATED], ids=["plain", "deflated"])
def test_a_session_of_its_client_is_read(captured: bytes) -> None:
    assert all_frames(captured) == CLIENT_FRAMES


def test_its_requests_are_requests() -> None:
    streams = [frame for frame in all_frames(CLIENT_DEFLATED) if isinstance(frame, SynStream)]
    assert [request_of(each.fields, each.stream_id)[:5] for each in streams] == [
        (b"GET", b"/one?x=1", HTTP, HOST, b"https"),
        (b"POST", b"/two", HTTP, HOST, b"https"),
        (b"GET", b"/three", HTTP, b"a.example", b"https"),
    ]
    assert request_of(streams[2].fields, 5) == SpdyRequest(
        b"GET", b"/three", HTTP, b"a.example", b"https", ()
    )


def test_what_it_has_read_is_still_what_is_written() -> None:
    assert written(0) == SERVER_PLAIN


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_what_is_written_means_the_same_at_every_level(level: int) -> None:
    assert all_frames(written(level)) == SERVER_FRAMES


def test_what_it_has_read_compressed_is_read_alike() -> None:
    # Not compared with what is written: another zlib may find other matches.
    assert all_frames(SERVER_DEFLATED) == SERVER_FRAMES
