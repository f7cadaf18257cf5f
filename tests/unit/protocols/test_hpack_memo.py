"""What decoders remember: it is bounded, and nobody sees a difference but in time."""

from __future__ import annotations

import hpack as oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uwgate.protocols import hpack
from uwgate.protocols.hpack import Decoder, FieldListTooLarge, Fields, HpackError, Memo
from uwgate.protocols.hpack_tables import encode_huffman

LIMIT = 32768


def test_the_same_block_is_the_same_object_on_every_connection() -> None:
    memo = Memo()
    theirs = oracle.Encoder()
    blocks = [theirs.encode([(":path", "/"), ("a", "b")]) for _ in range(3)]
    seen = []
    for _ in range(4):
        decoder = Decoder(memo)
        seen.append([decoder.decode(block, LIMIT) for block in blocks])
    assert [id(each) for each in seen[2]] == [id(each) for each in seen[3]]
    assert seen[0] == seen[3]


def test_the_same_block_is_the_same_object_from_the_third_time_on() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x01b", LIMIT)
    found = [decoder.decode(b"\x82\xbe", LIMIT) for _ in range(5)]
    assert found[1] is found[2] is found[3] is found[4]


def test_decoders_without_a_memo_share_nothing() -> None:
    one, other = Decoder(), Decoder()
    for _ in range(3):
        found = one.decode(b"\x82", LIMIT)
    assert other.decode(b"\x82", LIMIT) is not found


def test_no_table_is_anothers() -> None:
    """Nor is the part that all have."""
    decoders = [Decoder(), Decoder(max_table_size=256), Decoder(max_table_size=8192), Decoder()]
    for number, decoder in enumerate(decoders):
        decoder.decode(b"\x20\x3f\x45\x40\x01a\x01%d" % number, LIMIT)
    for number, decoder in enumerate(decoders):
        assert decoder.decode(b"\xbe", LIMIT) == ((b"a", b"%d" % number),)
        with pytest.raises(HpackError):
            decoder.decode(b"\xbf", LIMIT)
    for fresh in (Decoder(), Decoder(max_table_size=256), Decoder(max_table_size=8192)):
        with pytest.raises(HpackError):
            fresh.decode(b"\xbe", LIMIT)


def test_a_state_in_a_memo_never_changes() -> None:
    """One connection stays where another goes on from."""
    memo = Memo()
    for _ in range(3):
        decoder = Decoder(memo)
        decoder.decode(b"\x40\x01a\x01b", LIMIT)
    stays = Decoder(memo)
    stays.decode(b"\x40\x01a\x01b", LIMIT)
    decoder.decode(b"\x40\x01c\x01d", LIMIT)
    assert decoder.decode(b"\x20", LIMIT) == ()
    assert stays.decode(b"\xbe", LIMIT) == ((b"a", b"b"),)
    with pytest.raises(HpackError):
        stays.decode(b"\xbf", LIMIT)
    with pytest.raises(HpackError):
        Decoder(memo).decode(b"\xbe", LIMIT)


def test_a_block_that_changes_the_table_does_so_every_time() -> None:
    memo = Memo()
    for _ in range(4):
        decoder = Decoder(memo)
        for _ in range(6):
            decoder.decode(b"\x40\x01a\x01b", LIMIT)
        assert len(decoder.decode(b"\xbe\xbf\xc0\xc1\xc2\xc3", LIMIT)) == 6
        with pytest.raises(HpackError):
            decoder.decode(b"\xc4", LIMIT)


def test_a_pattern_changes_no_table() -> None:
    """What comes behind the value of one block adds an entry; so it does in the next."""
    memo = Memo()
    for path in (b"a", b"b", b"c"):
        decoder = Decoder(memo)
        for number in range(3):
            found = decoder.decode(b"\x04\x01" + path + b"\x40\x01x\x01y", LIMIT)
            assert found == ((b":path", path), (b"x", b"y"))
            assert decoder.decode(bytes((0xBE + number,)), LIMIT) == ((b"x", b"y"),)


def test_what_is_remembered_obeys_other_limits() -> None:
    decoder = Decoder()
    block = b"\x82" * 10  # 420 bytes
    for _ in range(3):
        decoder.decode(block, LIMIT)
    with pytest.raises(FieldListTooLarge):
        decoder.decode(block, 419)
    with pytest.raises(HpackError):
        decoder.decode(block, 100)
    assert len(decoder.decode(block, 420)) == 10


def test_the_number_of_blocks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpack, "_BLOCKS", 8)
    monkeypatch.setattr(hpack, "_STRINGS", 4)
    memo = Memo()
    decoder, theirs = Decoder(memo), oracle.Encoder()
    for number in range(200):
        fields = [("a", "b"), (":path", f"/{number % 20}")]
        found = decoder.decode(theirs.encode(fields), LIMIT)
        assert found == tuple((name.encode(), value.encode()) for name, value in fields)
        # Blocks that change no table, all in one state.
        block = b"\x00\x01x\x02%02d" % (number % 7)
        other = Decoder(memo)
        assert other.decode(block, LIMIT) == other.decode(block, LIMIT)
        assert sum(len(state.known) for state in memo._states) == memo._count <= 8
        assert len(memo._seen) <= 32
        assert len(hpack._strings) <= 4


def test_blocks_that_come_once_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpack, "_BLOCKS", 8)
    memo = Memo()
    for number in range(100):
        Decoder(memo).decode(b"\x04\x03%03d" % number, LIMIT)
        assert len(memo._seen) <= 32
    assert not memo.root.known


def test_long_blocks_and_strings_are_not_remembered() -> None:
    decoder = Decoder()
    long = b"\x00\x01x\x7f\x80\x20" + b"y" * (127 + 0x1000)
    for _ in range(3):
        assert decoder.decode(long, LIMIT) == ((b"x", b"y" * 4223),)
    assert not decoder._state.known
    assert decoder._state.pattern is None
    code = encode_huffman(b"0" * 500)
    block = b"\x04" + hpack._number(len(code), 0x80, 0x7F) + code
    assert decoder.decode(block, LIMIT) == ((b":path", b"0" * 500),)
    assert code not in hpack._strings


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpack, "_BYTES", 100_000)
    memo = Memo()
    for number in range(100):
        for _ in range(2):
            decoder = Decoder(memo)
            decoder.decode(b"\x40\x02%02d\x7f\xe9\x06" % number + b"b" * 1000, LIMIT)
        assert memo._bytes < 105_000
    assert 10 < memo._count < 40


# --- the pattern of the last block ---------------------------------------------------------------


def slowly(blocks: list[bytes], limit: int) -> list[Fields | type[Exception]]:
    """By the general way alone, each block in a state that nobody has seen."""
    state = hpack._State(hpack.DEFAULT_TABLE)
    found: list[Fields | type[Exception]] = []
    for block in blocks:
        state.pattern = None
        try:
            fields, state, _ = hpack._decode(block, state, limit // 32 * 2)
        except HpackError as error:
            return [*found, type(error)]
        found.append(fields if hpack.list_size(fields) <= limit else FieldListTooLarge)
    return found


def usually(decoder: Decoder, blocks: list[bytes], limit: int) -> list[Fields | type[Exception]]:
    found: list[Fields | type[Exception]] = []
    for block in blocks:
        try:
            found.append(decoder.decode(block, limit))
        except FieldListTooLarge as error:
            found.append(type(error))
        except HpackError as error:
            return [*found, type(error)]
    return found


def string(text: bytes, huffman: bool) -> bytes:
    code = encode_huffman(text) if huffman else text
    return hpack._number(len(code), 0x80 if huffman else 0, 0x7F) + code


_TEXTS = st.sampled_from([b"", b"a", b"/", b"/abc", b"\\\xff", b"x" * 40, b"z" * 130])
_STRINGS = st.builds(string, _TEXTS, st.booleans())
_INDEXES = st.sampled_from([2, 3, 4, 16, 61, 62, 62, 63, 64]).map(lambda n: bytes((0x80 | n,)))
_LITERALS = st.builds(
    lambda kind, index, name, value: hpack._number(index, *kind) + (b"" if index else name) + value,
    st.sampled_from([(0, 15), (0, 15), (0x10, 15), (0x40, 63)]),
    st.sampled_from([0, 4, 4, 4, 58, 62]),
    _STRINGS,
    _STRINGS,
)
_OTHERS = st.sampled_from(
    [b"\x20", b"\x3f\x45", b"\x3f\xe1\x1f", b"\x3f\xe2\x1f", b"\x80", b"\xff\x00", b"\xff\xff"]
)
# Few kinds of pieces, so that a block often begins or ends as others do.
_BLOCKS = st.lists(
    st.one_of(
        _INDEXES, _INDEXES, _LITERALS, st.sampled_from([b"\x82\x84\x87", b"\x04\x01/"]), _OTHERS
    ),
    max_size=5,
).map(b"".join)
_CUT = st.builds(lambda block, end: block[:end], _BLOCKS, st.integers(0, 20))
_WHOLE = st.one_of(_BLOCKS, _BLOCKS, _BLOCKS, _CUT, st.binary(max_size=6))


@settings(max_examples=300)
@given(st.lists(_WHOLE, max_size=6), st.sampled_from([100, 200, LIMIT]))
@example([b"\x82\x04\x01a\x84", b"\x82\x04\x01b\x84", b"\x82\x04"], LIMIT)
@example([b"\x82\x04\x01a\x84", b"\x82\x04\x02b"], LIMIT)
@example([b"\x82\x04\x01a\x84", b"\x82\x04\x01b\x83", b"\x82\x04\x01c"], LIMIT)
@example([b"\x04\x01a\xbe"], LIMIT)
@example([b"\x40\x01a\x01b", b"\x04\x01a\xbe", b"\x40\x01c\x01d", b"\x04\x01b\xbe"], 200)
def test_nothing_differs_from_the_general_way(blocks: list[bytes], limit: int) -> None:
    wanted = slowly(blocks, limit)
    assert usually(Decoder(), blocks, limit) == wanted
    memo = Memo()
    for _ in range(3):  # what one connection has learned, the next one uses
        assert usually(Decoder(memo), blocks, limit) == wanted
    repeated = [block for block in blocks for _ in range(3)]
    assert usually(Decoder(memo), repeated, limit) == slowly(repeated, limit)


@settings(max_examples=300)
@given(st.lists(_WHOLE, max_size=6))
def test_any_bytes(blocks: list[bytes]) -> None:
    """The oracle agrees about what they mean, and that they mean nothing; but it knows no bound of
    updates in a block."""
    ours, theirs = Decoder(), oracle.Decoder(1 << 20)
    for block in blocks:
        try:
            found = ours.decode(block, 1 << 20)
        except HpackError as error:
            if "third" not in str(error):
                with pytest.raises(oracle.HPACKError):
                    theirs.decode(block, raw=True)
            return
        wanted = theirs.decode(block, raw=True)
        assert [(bytes(name), bytes(value)) for name, value in wanted] == list(found)


def test_a_path_alone_is_another() -> None:
    """The block of a browser with one path after the other, and a table that stays."""
    theirs, ours = oracle.Encoder(), Decoder()
    fields = [(":method", "GET"), ("user-agent", "x"), ("accept", "*/*")]
    ours.decode(theirs.encode(fields), LIMIT)
    head, *tail = (theirs.encode([field]) for field in fields)
    for number in range(20):
        path = b"/%d" % number
        found = ours.decode(head + b"\x04" + string(path, number % 2 == 0) + b"".join(tail), LIMIT)
        assert found == (
            (b":method", b"GET"), (b":path", path), (b"user-agent", b"x"), (b"accept", b"*/*"),
        )
    assert ours._state.pattern is not None
