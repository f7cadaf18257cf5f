"""Name/value blocks of SPDY: what is in one, what ends a stream, what ends the session."""

from __future__ import annotations

import zlib
from hashlib import sha256
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uwgate.protocols.spdy3_names import (
    DICTIONARY,
    MAX_BLOCK,
    BlockReader,
    BlockWriter,
    Field,
    SessionStatus,
    SpdyError,
    SpdyRequest,
    SpdyStreamError,
    StreamStatus,
    request_of,
)

PSEUDO: tuple[Field, ...] = (
    (b":method", b"GET"),
    (b":path", b"/a?b=%20"),
    (b":version", b"HTTP/1.1"),
    (b":host", b"a.example"),
    (b":scheme", b"https"),
)


def layout(*pairs: Field) -> bytes:
    """A block before compression."""
    block = pack(">I", len(pairs))
    for name, value in pairs:
        block += pack(">I", len(name)) + name + pack(">I", len(value)) + value
    return block


class Peer:
    """The compressing side of a session."""

    def __init__(self, level: int = 6) -> None:
        self.deflate = zlib.compressobj(level, zdict=DICTIONARY)

    def send(self, block: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
        return self.deflate.compress(block) + self.deflate.flush(flush)


def read(*pairs: Field) -> tuple[Field, ...]:
    return BlockReader().read(Peer().send(layout(*pairs)), 1)


names = st.text("abc-_!~09", min_size=1, max_size=12).map(str.encode)
values = st.text("\t ~a=;\xa0\xff", max_size=40).map(lambda text: text.encode("latin-1"))
headers = st.lists(st.tuples(names, values), max_size=12)


def grouped(fields: list[Field]) -> tuple[Field, ...]:
    """What comes of fields that are joined by name: empty values only where there is no other."""
    together: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        together.setdefault(name, []).extend([value] if value else [])
    return tuple(
        (name, value) for name, several in together.items() for value in several or [b""]
    )


def test_the_dictionary_is_that_of_the_draft() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2
    digest = "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"
    assert sha256(DICTIONARY).hexdigest() == digest


def test_fields_come_in_their_order_and_several_values_apart() -> None:
    assert read((b"b", b"2"), (b":a", b""), (b"cookie", b"x=1\0y=2\0x=1")) == (
        (b"b", b"2"),
        (b":a", b""),
        (b"cookie", b"x=1"),
        (b"cookie", b"y=2"),
        (b"cookie", b"x=1"),
    )


def test_blocks_of_a_session_share_their_compression() -> None:
    reader, peer = BlockReader(), Peer()
    field = (b"x-token", bytes(range(0x21, 0x7F)))
    first, second = peer.send(layout(field)), peer.send(layout(field))
    assert len(second) < len(first) // 3
    assert reader.read(first, 1) == reader.read(second, 3) == (field,)


def test_nothing_is_a_block_without_fields() -> None:
    reader, peer = BlockReader(), Peer()
    assert reader.read(b"", 1) == ()
    assert reader.read(peer.send(layout()), 1) == ()
    assert reader.read(b"", 1) == ()
    assert reader.read(peer.send(layout((b"a", b"b"))), 1) == ((b"a", b"b"),)


@pytest.mark.parametrize(
    "pair",
    [
        (b"", b"x"),
        (b"Accept", b"x"),
        (b"a\0b", b"x"),
        (b"a b", b"x"),
        (b"a:b", b"x"),
        (b":", b"x"),
        (b"::a", b"x"),
        (b"a\n", b"x"),
        (b"\xe4", b"x"),
        (b"a", b"\0"),
        (b"a", b"\0x"),
        (b"a", b"x\0"),
        (b"a", b"x\0\0y"),
        (b"a", b"x\r\ny: z"),
        (b"a", b"x\n"),
        (b"a", b"x\0y\n"),
        (b"a", b"\x7f"),
        (b"first", b"again"),
    ],
)
def test_a_malformed_field_ends_its_stream_and_no_other(pair: Field) -> None:
    reader, peer = BlockReader(), Peer()
    with pytest.raises(SpdyStreamError) as caught:
        reader.read(peer.send(layout((b"first", b"1"), pair, (b"last", b"2"))), 7)
    assert (caught.value.stream_id, caught.value.status) == (7, StreamStatus.PROTOCOL_ERROR)
    assert reader.read(peer.send(layout((b"first", b"1"))), 9) == ((b"first", b"1"),)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\0\0\0",
        layout() + b"\0",
        layout((b"a", b"b")) + b"\0",
        layout((b"a", b"b"))[:-1],
        b"\xff\xff\xff\xff",
        pack(">II", 1, 0xFFFFFFFF),
        pack(">II", 1, 0xFFFFFFFF) + b"a\0\0\0\0",
        pack(">I", 2) + layout((b"a", b"b"))[4:],
        pack(">I", 2) + layout((b"a", b"bcdefgh"))[4:-1],
        # What is wrong with a field counts for less than what is wrong with the block.
        layout((b"", b"b")) + b"\0",
    ],
)
def test_a_block_of_another_length_ends_the_session(block: bytes) -> None:
    with pytest.raises(SpdyError) as caught:
        BlockReader().read(Peer().send(block), 1)
    assert caught.value.status == SessionStatus.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"garbage",
        zlib.compress(layout((b"a", b"b"))),
        zlib.compressobj(zdict=b"another").flush(zlib.Z_SYNC_FLUSH),
        Peer().send(layout((b"a", b"b")), zlib.Z_FINISH),
        Peer().send(layout((b"a", b"b")), zlib.Z_NO_FLUSH),
        Peer().send(layout((b"a", b"b")), zlib.Z_FINISH) + b"more",
    ],
)
def test_anything_but_a_flushed_stream_ends_the_session(data: bytes) -> None:
    with pytest.raises(SpdyError):
        BlockReader().read(data, 1)


@pytest.mark.parametrize("level", [0, 9])
def test_a_block_may_have_just_as_many_bytes_as_the_limit(level: int) -> None:
    block = layout((b"a", b"x" * 5000))
    reader, peer = BlockReader(len(block)), Peer(level)
    for _ in range(3):
        assert reader.read(peer.send(block), 1) == ((b"a", b"x" * 5000),)
    with pytest.raises(SpdyError, match="more than 5013 bytes"):
        reader.read(peer.send(layout((b"a", b"x" * 5001))), 1)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = Peer().send(layout((b"a", b"x" * 8_000_000)))
    assert len(bomb) < MAX_BLOCK
    with pytest.raises(SpdyError, match="more than 32768 bytes"):
        BlockReader().read(bomb, 1)


def test_many_fields_in_few_bytes_are_not_unpacked() -> None:
    most = 16 + MAX_BLOCK // 32
    several = [(b"a", b"\0".join([b"x"] * (most - 1)))]
    names = [(b"x%d" % number, b"") for number in range(most - 1)]
    for pairs in (several, names):
        assert len(BlockReader().read(Peer().send(layout((b"b", b""), *pairs)), 1)) == most
        with pytest.raises(SpdyError, match="too many"):
            BlockReader().read(Peer().send(layout((b"b", b""), *pairs, (b"c", b""))), 1)


@given(st.integers(0, 9), st.lists(headers, max_size=4))
@example(0, [[(b"a", b"x" * 40)] * 400])
@example(9, [[(b"a", b""), (b"b", b""), (b"a", b"x"), (b"a", b"")]])
def test_what_is_written_is_read(level: int, blocks: list[list[Field]]) -> None:
    writer, reader = BlockWriter(level), BlockReader()
    for fields in blocks:
        upper = [(name.upper(), value) for name, value in fields]
        data = writer.write([(b":status", b"200 OK")], upper)
        assert reader.read(data, 1) == ((b":status", b"200 OK"), *grouped(fields))


@pytest.mark.parametrize("level", [0, 6])
def test_a_long_block_is_written_whole(level: int) -> None:
    fields = [(b"x-%d" % number, b"y" * 400) for number in range(70)]
    data = BlockWriter(level).write((), fields)
    assert BlockReader().read(data, 1) == tuple(fields)


def test_level_0_does_not_compress() -> None:
    block = layout((b"set-cookie", b"secret"))
    writer = BlockWriter()
    assert block in writer.write((), [(b"Set-Cookie", b"secret")])
    assert block in writer.write((), [(b"Set-Cookie", b"secret")])


@pytest.mark.parametrize(
    "name", [b"Connection", b"keep-alive", b"Proxy-Connection", b"TRANSFER-ENCODING"]
)
def test_fields_of_a_connection_are_not_written(name: bytes) -> None:
    data = BlockWriter().write((), [(b"a", b"b"), (name, b"x")])
    assert BlockReader().read(data, 1) == ((b"a", b"b"),)


@pytest.mark.parametrize(
    ("pseudo", "fields"),
    [
        ([(b":status", b"200 O\0K")], []),
        ([], [(b"", b"x")]),
        ([], [(b":status", b"200")]),
        ([], [(b"a b", b"x")]),
        ([], [(b"a", b"x\0y")]),
        ([], [(b"a", b"x\ny")]),
        ([], [(b"connection", b"x\n")]),
    ],
)
def test_a_field_that_no_reader_takes_is_not_written(
    pseudo: list[Field], fields: list[Field]
) -> None:
    writer, reader = BlockWriter(), BlockReader()
    with pytest.raises(ValueError, match="malformed field"):
        writer.write(pseudo, fields)
    assert reader.read(writer.write([], [(b"a", b"b")]), 1) == ((b"a", b"b"),)


@given(st.binary(max_size=200), st.integers(0, 9))
def test_any_block_is_read_or_refused(block: bytes, level: int) -> None:
    reader = BlockReader()
    try:
        fields = reader.read(Peer(level).send(block), 1)
    except (SpdyError, SpdyStreamError):
        return
    assert all(b"\0" not in name + value for name, value in fields)


@given(st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=6)), max_size=5))
def test_any_fields_are_read_or_end_their_stream(pairs: list[Field]) -> None:
    try:
        fields = read(*pairs)
    except SpdyStreamError:
        return
    assert grouped(list(fields)) == fields
    assert len({name for name, _ in fields}) == len(pairs)


@given(st.permutations([*PSEUDO, (b"cookie", b"a"), (b"x", b""), (b"cookie", b"b")]))
def test_a_request_is_found_in_any_order(fields: list[Field]) -> None:
    rest = tuple(field for field in fields if not field[0].startswith(b":"))
    assert request_of(fields, 1) == SpdyRequest(
        b"GET", b"/a?b=%20", b"HTTP/1.1", b"a.example", b"https", rest
    )


@pytest.mark.parametrize("name", [name for name, _ in PSEUDO])
def test_a_request_needs_each_of_its_own_fields_once(name: bytes) -> None:
    rest = [field for field in PSEUDO if field[0] != name]
    with pytest.raises(SpdyStreamError, match=f"a request without {name.decode()}") as caught:
        request_of(rest, 5)
    assert (caught.value.stream_id, caught.value.status) == (5, StreamStatus.PROTOCOL_ERROR)
    value = dict(PSEUDO)[name]
    with pytest.raises(SpdyStreamError, match="several values"):
        request_of([*PSEUDO, (name, value)], 5)


@pytest.mark.parametrize(
    "field",
    [
        (b":method", b"G T"),
        (b":method", b""),
        (b":path", b""),
        (b":path", b"a"),
        (b":path", b"*a"),
        (b":path", b"/a b"),
        (b":path", b"/a#b"),
        (b":path", b"/\xc3\xa4"),
        (b":path", b"https://a.example/"),
        (b":path", b"a.example:443"),
        (b":version", b"HTTP/2.0"),
        (b":version", b"HTTP/1.1 "),
        (b":host", b""),
        (b":host", b"a b"),
        (b":host", b"a/b"),
        (b":host", b"a\tb"),
        (b":scheme", b"ftp"),
        (b":scheme", b"HTTPS"),
        (b":status", b"200"),
    ],
)
def test_malformed_fields_of_the_request_itself(field: Field) -> None:
    fields = {**dict(PSEUDO), field[0]: field[1]}
    with pytest.raises(SpdyStreamError, match="malformed or unknown"):
        request_of(fields.items(), 1)


@pytest.mark.parametrize(
    "name", [b"connection", b"host", b"keep-alive", b"proxy-connection", b"transfer-encoding"]
)
def test_fields_of_a_connection_are_refused(name: bytes) -> None:
    with pytest.raises(SpdyStreamError, match="is not for SPDY"):
        request_of([*PSEUDO, (name, b"a.example")], 1)


@pytest.mark.parametrize(
    "field",
    [
        (b":method", b"M-SEARCH"),
        (b":path", b"*"),
        (b":path", b"//a?b?c"),
        (b":version", b"HTTP/1.0"),
        (b":host", b"[::1]:8443"),
        (b":scheme", b"http"),
    ],
)
def test_what_requests_may_look_like(field: Field) -> None:
    fields = {**dict(PSEUDO), field[0]: field[1]}
    assert field[1] in request_of(fields.items(), 1)
