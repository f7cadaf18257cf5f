"""Frames of SPDY: what they mean however they are split, and what ends a stream or the session."""

from __future__ import annotations

import zlib
from itertools import pairwise
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uwgate.protocols.spdy3 import (
    DICTIONARY,
    INITIAL_WINDOW,
    INITIAL_WINDOW_SIZE,
    MAX_CONTROL,
    MAX_WINDOW,
    PERSISTED,
    Data,
    Field,
    Frame,
    Goaway,
    Headers,
    Ping,
    RstStream,
    SessionStatus,
    Setting,
    Settings,
    SpdyError,
    SpdyReader,
    SpdyStreamError,
    SpdyWriter,
    StreamStatus,
    SynReply,
    SynStream,
    WindowUpdate,
    data_frame,
    data_header,
    goaway_frame,
    ping_frame,
    rst_stream_frame,
    settings_frame,
    window_update_frame,
)

FIELDS: tuple[Field, ...] = ((b":path", b"/"), (b"cookie", b"a"), (b"cookie", b"b"))
BLOCK = pack(">II5sI1sI6sI3s", 2, 5, b":path", 1, b"/", 6, b"cookie", 3, b"a\0b")
Event = Frame | tuple[type[ValueError], int]


def control(kind: int, body: bytes, flags: int = 0, version: int = 3) -> bytes:
    return pack(">HHI", 0x8000 | version, kind, flags << 24 | len(body)) + body


class Client:
    """Writes as a client does; one for each session."""

    def __init__(self) -> None:
        self.deflate = zlib.compressobj(zdict=DICTIONARY)

    def block(self, block: bytes = BLOCK) -> bytes:
        return self.deflate.compress(block) + self.deflate.flush(zlib.Z_SYNC_FLUSH)

    def syn_stream(
        self, stream_id: int, flags: int = 0, head: bytes = bytes(6), block: bytes = BLOCK
    ) -> bytes:
        return control(1, pack(">I", stream_id) + head + self.block(block), flags)


def one(data: bytes) -> Frame:
    """The only frame in ``data``, and none before it is whole."""
    reader, buffer = SpdyReader(), bytearray()
    for byte in data:
        assert reader.next_frame(buffer) is None
        buffer.append(byte)
    frame = reader.next_frame(buffer)
    assert frame is not None
    assert not buffer
    return frame


def fails(data: bytes) -> None:
    """``data`` ends a session: at once, and for good."""
    reader, buffer = SpdyReader(), bytearray(data)
    with pytest.raises(SpdyError) as caught:
        reader.next_frame(buffer)
    assert caught.value.status == SessionStatus.PROTOCOL_ERROR
    for again in (buffer, bytearray(), bytearray(ping_frame(1))):
        with pytest.raises(SpdyError, match="malformed before"):
            reader.next_frame(again)


def events(*feeds: bytes) -> tuple[list[Event], bytes]:
    """All that comes of ``feeds``, errors too, and what is left of them in the end."""
    reader, buffer, found = SpdyReader(), bytearray(), list[Event]()
    for data in feeds:
        buffer += data
        try:
            while True:
                try:
                    frame = reader.next_frame(buffer)
                except SpdyStreamError as error:
                    found.append((SpdyStreamError, error.stream_id))
                    continue
                if frame is None:
                    break
                found.append(frame)
        except SpdyError:
            return [*found, (SpdyError, 0)], b""
    return found, bytes(buffer)


# --- control frames -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "fin", "unidirectional"),
    [(0, False, False), (1, True, False), (2, False, True), (3, True, True)],
)
def test_syn_stream(flags: int, fin: bool, unidirectional: bool) -> None:
    # Reserved bits are set.
    head = pack(">IBB", 0x80000004, 0b101_11111, 255)
    data = Client().syn_stream(0x80000003, flags, head)
    assert one(data) == SynStream(3, 4, 5, fin, unidirectional, FIELDS)


def test_syn_reply_and_headers() -> None:
    body = pack(">I", 0x80000002)
    assert one(control(2, body + Client().block(), 1)) == SynReply(2, True, FIELDS)
    assert one(control(8, body + Client().block(), 1)) == Headers(2, True, FIELDS)
    assert one(control(8, body)) == Headers(2, False, ())


def test_small_frames() -> None:
    assert one(control(3, pack(">II", 0x80000001, 5))) == RstStream(1, StreamStatus.CANCEL)
    assert one(control(3, pack(">II", 1, 0xFFFFFFFF))) == RstStream(1, 0xFFFFFFFF)
    assert one(control(6, pack(">I", 0xFFFFFFFF))) == Ping(0xFFFFFFFF)
    assert one(control(7, pack(">II", 0x80000000, 2))) == Goaway(0, SessionStatus.INTERNAL_ERROR)
    assert one(control(9, pack(">II", 0x80000000, 0x80000001))) == WindowUpdate(0, 1)
    assert one(control(9, pack(">II", 1, 0xFFFFFFFF))) == WindowUpdate(1, MAX_WINDOW)


def test_settings() -> None:
    entries = pack(">IIIIIII", 3, 0x02000007, MAX_WINDOW, 4, 0xFFFFFFFF, 0x01000007, 1)
    assert one(control(4, entries, 1)) == Settings(
        True, (Setting(INITIAL_WINDOW_SIZE, MAX_WINDOW, PERSISTED), Setting(4, 0xFFFFFFFF))
    )
    assert one(control(4, bytes(4))) == Settings(False, ())


def test_data() -> None:
    assert one(data_frame(1, b"")) == Data(1, False, b"")
    assert one(data_frame(MAX_WINDOW, b"abc", fin=True)) == Data(MAX_WINDOW, True, b"abc")


@pytest.mark.parametrize("kind", [0, 5, 10, 0xF000, 0xFFFF])
def test_unknown_types_are_read_over(kind: int) -> None:
    unknown = control(kind, b"whatever", flags=255)
    assert events(unknown + unknown) == ([], b"")
    assert events(unknown + ping_frame(1) + unknown[:-1]) == ([Ping(1)], unknown[:-1])


def test_unknown_types_are_counted() -> None:
    reader, unknown = SpdyReader(), control(5, b"")
    assert reader.next_frame(bytearray(unknown * 3 + ping_frame(1))) == Ping(1)
    assert reader.skipped == 3
    assert reader.next_frame(bytearray(unknown + unknown[:-1])) is None
    assert reader.skipped == 4


def test_data_may_be_taken_before_its_end() -> None:
    reader, frame = SpdyReader(), data_frame(5, b"abcdef", fin=True)
    buffer, parts = bytearray(), list[Frame]()
    for byte in frame[:-1]:
        buffer.append(byte)
        assert reader.next_frame(buffer) is None
        part = reader.part(buffer)
        assert reader.part(buffer) is None
        parts += [part] if part is not None else []
    assert parts == [Data(5, False, b"%c" % byte) for byte in b"abcde"]
    buffer += frame[-1:]
    assert reader.next_frame(buffer) == Data(5, True, b"f")
    assert not buffer


def test_parts_of_other_frames_are_not_taken() -> None:
    buffer = bytearray(Client().syn_stream(1)[:-1])
    assert SpdyReader().next_frame(buffer) is None
    assert SpdyReader.part(buffer) is None


def test_slow_is_what_has_begun_and_is_no_data() -> None:
    assert not SpdyReader.slow(bytearray())
    assert SpdyReader.slow(bytearray(b"\0"))  # nobody can say yet
    assert SpdyReader.slow(bytearray(ping_frame(1)[:-1]))
    assert not SpdyReader.slow(bytearray(data_frame(1, b"abc")[:-1]))


@pytest.mark.parametrize("version", [0, 2, 4, 0x7FFF])
@pytest.mark.parametrize("kind", [1, 6, 10])
def test_another_version_ends_the_session(version: int, kind: int) -> None:
    fails(control(kind, bytes(4), version=version)[:8])


@pytest.mark.parametrize(
    ("kind", "length"),
    [(1, 9), (2, 3), (3, 7), (3, 9), (4, 3), (6, 3), (6, 5), (7, 4), (7, 9), (8, 3), (9, 7)],
)
def test_a_wrong_size_ends_the_session_before_the_rest_comes(kind: int, length: int) -> None:
    fails(control(kind, b"\1" * length)[:8])


@pytest.mark.parametrize(
    ("kind", "flags"), [(1, 4), (2, 2), (3, 1), (4, 2), (6, 1), (7, 1), (8, 2), (9, 1), (9, 255)]
)
def test_an_unknown_flag_ends_the_session(kind: int, flags: int) -> None:
    size = {1: 10, 6: 4}.get(kind, 8)
    fails(control(kind, b"\1" * size, flags)[:8])


@pytest.mark.parametrize("kind", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("stream_id", [0, 0x80000000])
def test_there_is_no_stream_0(kind: int, stream_id: int) -> None:
    fails(control(kind, pack(">II", stream_id, 0) + (bytes(2) if kind == 1 else b"")))


@pytest.mark.parametrize(
    "body",
    [
        pack(">I", 1),
        pack(">I", 0xFFFFFFFF),
        pack(">III", 0, 7, 1),
        pack(">IIII", 1, 7, 1, 0),
        pack(">IIIB", 1, 7, 1, 0),
        pack(">III", 1, 7, MAX_WINDOW + 1),
        pack(">I", 33) + pack(">II", 4, 1) * 33,  # there are eight ids
    ],
)
def test_malformed_settings_end_the_session(body: bytes) -> None:
    fails(control(4, body))


def test_malformed_data_frames_end_the_session() -> None:
    fails(data_frame(0, b""))
    fails(pack(">II", 1, 2 << 24))
    fails(pack(">II", 1, 0x80 << 24))


def test_a_window_enlarged_by_nothing_ends_its_stream() -> None:
    buffer = bytearray(control(9, pack(">II", 5, 0)) + ping_frame(1))
    reader = SpdyReader()
    with pytest.raises(SpdyStreamError) as caught:
        reader.next_frame(buffer)
    assert (caught.value.stream_id, caught.value.status) == (5, StreamStatus.FLOW_CONTROL_ERROR)
    assert reader.next_frame(buffer) == Ping(1)


# --- limits ---------------------------------------------------------------------------------------


def test_frames_may_have_just_as_many_bytes_as_the_limits() -> None:
    assert one(control(0xF000, bytes(MAX_CONTROL)) + ping_frame(1)) == Ping(1)
    assert one(data_frame(1, bytes(INITIAL_WINDOW))) == Data(1, False, bytes(INITIAL_WINDOW))
    fails(control(0xF000, bytes(MAX_CONTROL + 1))[:8])
    fails(control(1, bytes(MAX_CONTROL + 1))[:8])
    fails(data_frame(1, bytes(INITIAL_WINDOW + 1))[:8])


def test_limits_are_parameters() -> None:
    def reader() -> SpdyReader:
        return SpdyReader(max_control=60, max_data=3, limit=len(BLOCK))

    assert reader().next_frame(bytearray(data_frame(1, b"abc"))) == Data(1, False, b"abc")
    stream = bytearray(Client().syn_stream(1))
    assert len(stream) <= 68
    assert reader().next_frame(stream) == SynStream(1, 0, 0, False, False, FIELDS)
    for data in (
        data_frame(1, b"abcd"),
        control(4, pack(">I", 8) + bytes(64)),
        Client().syn_stream(1, block=BLOCK + b"\0"),
    ):
        with pytest.raises(SpdyError, match="more than"):
            reader().next_frame(bytearray(data))


# --- stream ids, and what becomes of the compression ----------------------------------------------


def test_streams_are_opened_in_order() -> None:
    client, reader = Client(), SpdyReader()
    assert reader.last_stream_id == 0
    buffer = bytearray()
    for stream_id in (1, 9, MAX_WINDOW):
        buffer += client.syn_stream(stream_id)
        assert reader.next_frame(buffer) == SynStream(stream_id, 0, 0, False, False, FIELDS)
        assert reader.last_stream_id == stream_id
    buffer += client.syn_stream(9)
    with pytest.raises(SpdyError, match="stream 9 after stream"):
        reader.next_frame(buffer)
    assert reader.last_stream_id == MAX_WINDOW


def test_a_client_has_odd_streams_only() -> None:
    fails(Client().syn_stream(2))


def test_a_stream_opened_twice_is_ended_and_the_compression_goes_on() -> None:
    client = Client()
    data = client.syn_stream(3) + client.syn_stream(3) + client.syn_stream(5)
    opened = [SynStream(stream_id, 0, 0, False, False, FIELDS) for stream_id in (3, 5)]
    assert events(data) == ([opened[0], (SpdyStreamError, 3), opened[1]], b"")


def test_a_stream_with_malformed_fields_is_ended_and_counts() -> None:
    client, reader = Client(), SpdyReader()
    buffer = bytearray(client.syn_stream(7, block=BLOCK.replace(b"cookie", b"Cookie")))
    with pytest.raises(SpdyStreamError) as caught:
        reader.next_frame(buffer)
    assert (caught.value.stream_id, caught.value.status) == (7, StreamStatus.PROTOCOL_ERROR)
    assert reader.last_stream_id == 7
    assert not buffer
    buffer += control(8, pack(">I", 7) + client.block())
    assert reader.next_frame(buffer) == Headers(7, False, FIELDS)


def test_a_broken_block_ends_the_session() -> None:
    fails(control(1, pack(">IIH", 1, 0, 0) + b"garbage"))
    fails(control(2, pack(">I", 1) + b"garbage"))
    fails(control(8, pack(">I", 1) + b"garbage"))


# --- written --------------------------------------------------------------------------------------


def test_frames_are_written_as_the_draft_has_them() -> None:
    assert data_frame(1, b"abc", fin=True) == b"\0\0\0\1\1\0\0\3abc"
    assert rst_stream_frame(3, StreamStatus.FRAME_TOO_LARGE) == bytes.fromhex(
        "80030003 00000008 00000003 0000000b"
    )
    assert ping_frame(2) == bytes.fromhex("80030006 00000004 00000002")
    assert goaway_frame(5) == bytes.fromhex("80030007 00000008 00000005 00000000")
    assert window_update_frame(0, MAX_WINDOW) == bytes.fromhex(
        "80030009 00000008 00000000 7fffffff"
    )
    assert settings_frame([]) == bytes.fromhex("80030004 00000004 00000000")


def test_a_header_is_that_of_its_frame() -> None:
    for data, end in ((b"", True), (b"abc", False), (b"x" * 70_000, True)):
        assert data_header(7, len(data), end=end) + data == data_frame(7, data, fin=end)


def test_a_reply_says_the_version_it_is_told() -> None:
    data = SpdyWriter().syn_reply(1, b"404 Not Found", (), version=b"HTTP/1.0", fin=True)
    fields = ((b":version", b"HTTP/1.0"), (b":status", b"404 Not Found"))
    assert one(data) == SynReply(1, True, fields)


def test_what_no_frame_takes_is_not_written() -> None:
    with pytest.raises(ValueError, match="a frame takes 16777215 bytes"):
        data_frame(1, bytes(1 << 24))
    assert len(data_frame(1, bytes((1 << 24) - 1))) == (1 << 24) + 7


# --- any ------------------------------------------------------------------------------------------

ids = st.integers(1, MAX_WINDOW)
words = st.integers(0, 0xFFFFFFFF)
entries = st.builds(Setting, st.integers(0, 6), words, st.integers(0, 255))


def encoded(frame: Frame, writer: SpdyWriter) -> bytes:
    match frame:
        case Data(stream_id, fin, data):
            return data_frame(stream_id, data, fin=fin)
        case RstStream(stream_id, status):
            return rst_stream_frame(stream_id, status)
        case Settings(clear, several):
            return settings_frame(several, clear=clear)
        case Ping(ping_id):
            return ping_frame(ping_id)
        case Goaway(last, status):
            return goaway_frame(last, status)
        case WindowUpdate(stream_id, delta):
            return window_update_frame(stream_id, delta)
        case SynReply(stream_id, fin, fields):
            return writer.syn_reply(stream_id, fields[1][1], fields[2:], fin=fin)
        case Headers(stream_id, fin, fields):
            return writer.headers(stream_id, fields, fin=fin)
    raise AssertionError(frame)


START = (b":version", b"HTTP/1.1"), (b":status", b"200 OK")
names = st.sampled_from([b"a", b"content-type", b"x-very-long-name-of-a-field"])
fields = st.dictionaries(
    names, st.sampled_from([b"", b"x", b"text/html", b"\xe4 \t"]), max_size=3
).map(lambda pairs: tuple(pairs.items()))
frames = st.one_of(
    st.builds(Data, ids, st.booleans(), st.binary(max_size=30)),
    st.builds(RstStream, ids, words),
    st.builds(
        Settings,
        st.booleans(),
        st.lists(entries, max_size=4, unique_by=lambda each: each.setting_id).map(tuple),
    ),
    st.builds(Ping, words),
    st.builds(Goaway, st.integers(0, MAX_WINDOW), words),
    st.builds(WindowUpdate, st.integers(0, MAX_WINDOW), ids),
    st.builds(SynReply, ids, st.booleans(), fields.map(lambda each: (*START, *each))),
    st.builds(Headers, ids, st.booleans(), fields),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(bounds)]


@given(st.lists(frames, max_size=8), st.integers(0, 9), st.lists(words, max_size=6))
def test_what_is_written_is_read_however_split(
    sent: list[Frame], level: int, places: list[int]
) -> None:
    writer = SpdyWriter(level)
    data = b"".join(encoded(frame, writer) for frame in sent)
    found, rest = events(*cut(data, places))
    assert (found, rest) == (sent, b"")
    assert [type(frame) for frame in found] == [type(frame) for frame in sent]


headers = st.builds(
    lambda first, kind, flags, body: pack(">HHI", first, kind, flags << 24 | len(body)) + body,
    st.sampled_from([0x8003, 0x8003, 0x8003, 0x8002, 0, 1]),
    st.integers(0, 11),
    st.sampled_from([0, 0, 0, 1, 2, 3, 255]),
    st.one_of(
        st.binary(max_size=30),
        st.builds(lambda *each: pack(">II", *each), st.integers(0, 3), st.integers(0, 3)),
    ),
)
def opened(each: list[tuple[int, bytes]]) -> bytes:
    """Streams of one session, with these ids and blocks."""
    client = Client()
    return b"".join(client.syn_stream(stream_id, block=block) for stream_id, block in each)


streams = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([BLOCK, b"\0\0\0\0", BLOCK.upper(), BLOCK[:-1]])),
    max_size=4,
).map(opened)


@given(st.one_of(st.binary(max_size=80), st.lists(headers | streams).map(b"".join)), st.data())
@example(b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01" * 2, None)
def test_any_bytes_give_the_same_however_split(data: bytes, draw: st.DataObject | None) -> None:
    places = draw.draw(st.lists(words, max_size=6)) if draw else [5, 13]
    whole = events(data)
    assert events(*cut(data, places)) == whole
    assert events(*(bytes([byte]) for byte in data)) == whole
