"""Frames of HTTP/2, with python-hyper's hyperframe as the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hyperframe import frame as oracle
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols import http2
from uwgate.protocols.http2 import ErrorCode, Frame, FrameError, FrameReader, Http2Error

CASES: list[tuple[oracle.Frame, Frame]] = [
    (
        oracle.DataFrame(1, b"hello", flags=["END_STREAM"]),
        Frame(http2.DATA, 1, 1, b"hello", 5),
    ),
    (
        oracle.DataFrame(3, b"hello", pad_length=7, flags=["PADDED"]),
        Frame(http2.DATA, 8, 3, b"hello", 13),
    ),
    (
        oracle.HeadersFrame(1, b"block", flags=["END_HEADERS"]),
        Frame(http2.HEADERS, 4, 1, b"block", 5),
    ),
    (
        oracle.HeadersFrame(
            5, b"block", depends_on=3, stream_weight=7, exclusive=True, pad_length=2,
            flags=["END_HEADERS", "END_STREAM", "PRIORITY", "PADDED"],
        ),
        Frame(http2.HEADERS, 0x2D, 5, b"block", 13),
    ),
    (
        oracle.HeadersFrame(5, b"", depends_on=5, flags=["END_HEADERS", "PRIORITY"]),
        Frame(http2.HEADERS, 0x124, 5, b"", 5),
    ),
    (oracle.RstStreamFrame(1, 8), Frame(http2.RST_STREAM, 0, 1, b"\0\0\0\x08", 4)),
    (oracle.PingFrame(0, b"12345678"), Frame(http2.PING, 0, 0, b"12345678", 8)),
    (
        oracle.WindowUpdateFrame(0, 77),
        Frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\0\x4d", 4),
    ),
    (
        oracle.GoAwayFrame(0, 3, 0, b"bye"),
        Frame(http2.GOAWAY, 0, 0, b"\0\0\0\x03\0\0\0\0bye", 11),
    ),
    (
        oracle.PriorityFrame(7, 3, 1),
        Frame(http2.PRIORITY, 0, 7, b"\0\0\0\x03\x01", 5),
    ),
    (
        oracle.SettingsFrame(0, {3: 100, 4: 65536}),
        Frame(http2.SETTINGS, 0, 0, bytes.fromhex("000300000064000400010000"), 12),
    ),
    (oracle.SettingsFrame(0, flags=["ACK"]), Frame(http2.SETTINGS, 1, 0, b"", 0)),
]


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return http2.frame(kind, flags, stream, payload)


@pytest.mark.parametrize(("sent", "found"), CASES)
def test_a_frame(sent: oracle.Frame, found: Frame) -> None:
    assert FrameReader().feed(sent.serialize()) == [found]


@given(st.lists(st.sampled_from(range(len(CASES))), max_size=8), st.data())
def test_frames_however_they_are_split(numbers: Sequence[int], data: st.DataObject) -> None:
    unknown = http2.frame(0xBE, 0x42, 9, b"anything")
    wire = unknown + b"".join(CASES[number][0].serialize() for number in numbers)
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=10))
    reader, found = FrameReader(), []
    places = [0, *sorted(cuts), len(wire)]
    for start, end in itertools.pairwise(places):
        found += reader.feed(wire[start:end])
    extension = Frame(0xBE, 0x42, 9, b"anything", 8)
    assert found == [extension, *(CASES[number][1] for number in numbers)]
    assert not reader.slow


def test_a_block_in_pieces() -> None:
    reader = FrameReader()
    first = oracle.HeadersFrame(1, b"one", flags=["END_STREAM"]).serialize()
    assert reader.feed(first) == []
    assert reader.slow
    assert reader.feed(oracle.ContinuationFrame(1, b"two").serialize()) == []
    (found,) = reader.feed(oracle.ContinuationFrame(1, b"3", flags=["END_HEADERS"]).serialize())
    assert found == Frame(http2.HEADERS, 5, 1, b"onetwo3", 7)
    assert not reader.slow


@given(
    st.lists(st.sampled_from([*range(len(CASES))] * 8), max_size=200),
    st.integers(0, 40), st.integers(0, 500), st.data(),
)
def test_many_frames_take_turns(
    numbers: list[int], requests: int, pings: int, data: st.DataObject
) -> None:
    """None is lost, whatever comes behind those that wait."""
    request = raw(http2.HEADERS, 5, 1, b"block")
    ping = raw(http2.PING, 0, 0, bytes(8))
    many = [*(CASES[number][0].serialize() for number in numbers), *[request] * requests]
    wire = b"".join([*many, *[ping] * pings])
    cut = data.draw(st.integers(0, len(wire)))
    reader, turns = FrameReader(), []
    for piece in (wire[:cut], wire[cut:]):
        turns.append(reader.feed(piece))
        if data.draw(st.booleans()):
            while reader.more:
                turns.append(reader.feed(b""))
    while reader.more:
        turns.append(reader.feed(b""))
    assert max(map(len, turns)) <= 128
    assert max(sum(frame.type == http2.HEADERS for frame in turn) for turn in turns) <= 22
    found = [frame for turn in turns for frame in turn]
    assert found[: len(numbers)] == [CASES[number][1] for number in numbers]
    assert [frame.type for frame in found[len(numbers) :]] == [1] * requests + [6] * pings
    assert not reader.slow


def test_long_frames_take_turns() -> None:
    one = raw(http2.HEADERS, 0, 1, bytes(16384)) + raw(http2.CONTINUATION, 4, 1, bytes(16384))
    reader = FrameReader()
    assert [len(reader.feed(one * 4)), reader.more] == [2, True]
    assert [len(reader.feed(b"")), reader.more] == [2, True]
    assert [reader.feed(b""), reader.more] == [[], False]
    bodies = raw(http2.DATA, 0, 1, bytes(16384)) * 16
    assert [len(reader.feed(bodies)), reader.more] == [16, False]


def test_an_error_behind_those_that_wait() -> None:
    reader = FrameReader()
    ping = raw(http2.PING, 0, 0, bytes(8))
    assert len(reader.feed(ping * 130 + raw(http2.DATA, 0, 0))) == 128
    with pytest.raises(FrameError) as caught:
        reader.feed(ping)
    assert len(caught.value.frames) == 2
    assert not reader.more


def test_who_is_slow() -> None:
    data, headers = CASES[0][0].serialize(), CASES[2][0].serialize()
    for wire, slow in ((data[:10], False), (headers[:10], True), (data[:2], True)):
        reader = FrameReader()
        reader.feed(wire)
        assert reader.slow == slow


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (raw(http2.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.DATA, 8, 1, b""), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.DATA, 8, 1, b"\x06hello"), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.HEADERS, 4, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.HEADERS, 12, 1, b"\x06hello"), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.HEADERS, 0x24, 1, b"\0\0\0\1"), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.SETTINGS, 0, 1, bytes(6)), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.SETTINGS, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.PUSH_PROMISE, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.WINDOW_UPDATE, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.CONTINUATION, 4, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.PRIORITY_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.PRIORITY_UPDATE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (raw(http2.HEADERS, 0, 1, b"x") + raw(http2.PING, 0, 0, bytes(8)),
         ErrorCode.PROTOCOL_ERROR),
        (raw(http2.HEADERS, 0, 1) + raw(http2.CONTINUATION, 4, 3), ErrorCode.PROTOCOL_ERROR),
        (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", ErrorCode.FRAME_SIZE_ERROR),
        (raw(http2.HEADERS, 0, 1) + 20 * raw(http2.CONTINUATION, 0, 1),
         ErrorCode.ENHANCE_YOUR_CALM),
        (raw(http2.HEADERS, 0, 1, bytes(16384)) + 5 * raw(http2.CONTINUATION, 0, 1, bytes(16384)),
         ErrorCode.ENHANCE_YOUR_CALM),
    ],
)  # fmt: skip
def test_what_must_not_come(wire: bytes, code: ErrorCode) -> None:
    good = raw(http2.PING, 0, 0, bytes(8))
    with pytest.raises(FrameError) as caught:
        FrameReader().feed(good + wire + good)
    assert caught.value.code == code
    assert [frame.type for frame in caught.value.frames] == [http2.PING]


def test_settings() -> None:
    frame = http2.settings_frame([(3, 100), (0xABCD, 7)])
    (found,) = FrameReader().feed(frame)
    assert http2.settings(found.payload) == [(3, 100), (0xABCD, 7)]
    parsed, _ = oracle.Frame.parse_frame_header(memoryview(frame[:9]))
    parsed.parse_body(memoryview(frame[9:]))
    assert dict(parsed.settings) == {3: 100, 0xABCD: 7}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (http2.ENABLE_PUSH, 2, ErrorCode.PROTOCOL_ERROR),
        (http2.ENABLE_CONNECT_PROTOCOL, 2, ErrorCode.PROTOCOL_ERROR),
        (http2.INITIAL_WINDOW_SIZE, 1 << 31, ErrorCode.FLOW_CONTROL_ERROR),
        (http2.MAX_FRAME_SIZE, 16383, ErrorCode.PROTOCOL_ERROR),
        (http2.MAX_FRAME_SIZE, 1 << 24, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_settings_that_are_wrong(name: int, value: int, code: ErrorCode) -> None:
    with pytest.raises(Http2Error) as caught:
        http2.settings(http2.settings_frame([(name, value)])[9:])
    assert caught.value.code == code


def test_more_settings_than_there_are() -> None:
    assert len(http2.settings(http2.settings_frame([(3, 100)] * 32)[9:])) == 32
    with pytest.raises(Http2Error) as caught:
        http2.settings(http2.settings_frame([(3, 100)] * 33)[9:])
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


def parsed(wire: bytes) -> list[oracle.Frame]:
    found = []
    while wire:
        frame, length = oracle.Frame.parse_frame_header(memoryview(wire[:9]))
        frame.parse_body(memoryview(wire[9 : 9 + length]))
        found.append(frame)
        wire = wire[9 + length :]
    return found


@pytest.mark.parametrize("size", [0, 5, 100, 101, 250])
@pytest.mark.parametrize("end", [False, True])
def test_header_frames(size: int, end: bool) -> None:
    block = bytes(range(250))[:size]
    frames = parsed(http2.header_frames(9, block, 100, end=end))
    assert b"".join(frame.data for frame in frames) == block
    assert len(frames) == max(1, -(-size // 100))
    assert ("END_STREAM" in frames[0].flags) == end
    assert ["END_HEADERS" in frame.flags for frame in frames] == [
        index == len(frames) - 1 for index in range(len(frames))
    ]


def test_other_frames_that_we_send() -> None:
    frames = parsed(
        http2.data_header(1, 300, end=True)
        + bytes(300)
        + http2.window_update(0, 5)
        + http2.rst_stream(7, ErrorCode.CANCEL)
        + http2.goaway(9, ErrorCode.ENHANCE_YOUR_CALM, b"calm")
    )
    assert [type(frame) for frame in frames] == [
        oracle.DataFrame, oracle.WindowUpdateFrame, oracle.RstStreamFrame, oracle.GoAwayFrame,
    ]  # fmt: skip
    assert "END_STREAM" in frames[0].flags
    assert frames[1].window_increment == 5
    assert (frames[2].stream_id, frames[2].error_code) == (7, 8)
    assert (frames[3].last_stream_id, frames[3].error_code) == (9, 11)
    assert http2.number(b"\x80\0\0\1") & http2.MAX_WINDOW == 1
