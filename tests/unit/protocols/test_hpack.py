"""HPACK: the examples of RFC 7541, python-hyper's codec as the oracle, and what is refused."""

from __future__ import annotations

import hpack as oracle
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols import hpack, hpack_tables
from uwgate.protocols.hpack import (
    Decoder,
    Field,
    FieldListTooLarge,
    HpackError,
    Memo,
    encode,
    encode_status,
)

LIMIT = 32768


def fields_of(text: str) -> tuple[Field, ...]:
    return tuple(
        (name.encode(), value.encode())
        for name, _, value in (line.strip().partition("=") for line in text.strip().split("\n"))
    )


FIRST = ":method=GET\n:scheme=http\n:path=/\n:authority=www.example.com"
SECOND = f"{FIRST}\ncache-control=no-cache"
THIRD = (
    ":method=GET\n:scheme=https\n:path=/index.html\n:authority=www.example.com"
    "\ncustom-key=custom-value"
)
RESPONSE = (
    "cache-control=private\ndate=Mon, 21 Oct 2013 20:13:21 GMT\nlocation=https://www.example.com"
)


@pytest.mark.parametrize(
    "blocks",
    [
        [  # C.3
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST),
            ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                THIRD,
            ),
        ],
        [  # C.4
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST),
            ("8286 84be 5886 a8eb 1064 9cbf", SECOND),
            ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", THIRD),
        ],
    ],
)
def test_examples_of_the_rfc(blocks: list[tuple[str, str]]) -> None:
    decoder = Decoder()
    for block, text in blocks:
        assert decoder.decode(bytes.fromhex(block), LIMIT) == fields_of(text)


def test_eviction_as_in_the_rfc() -> None:
    """C.5, whose table has 256 bytes: the first entry has gone with the second response."""
    decoder = Decoder()
    block = (
        "3fe101 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133"
        "2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65"
        "2e63 6f6d"
    )
    assert decoder.decode(bytes.fromhex(block), LIMIT) == fields_of(f":status=302\n{RESPONSE}")
    second = decoder.decode(bytes.fromhex("4803 3330 37c1 c0bf"), LIMIT)
    assert second == fields_of(f":status=307\n{RESPONSE}")
    with pytest.raises(HpackError):
        Decoder().decode(bytes.fromhex("c2"), LIMIT)


def test_the_huffman_code() -> None:
    codes = dict(enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)))
    assert codes == hpack_tables.CODES
    assert len(hpack_tables.STATIC) == 61
    assert list(hpack_tables.STATIC) == list(oracle.table.HeaderTable.STATIC_TABLE)


@given(st.binary(max_size=200))
def test_huffman_round_trip(text: bytes) -> None:
    assert hpack_tables.decode_huffman(hpack_tables.encode_huffman(text)) == text


@pytest.mark.parametrize(
    "code",
    [
        "ff",  # eight ones are no padding
        "1c641fff",  # nor are they behind a string
        "18",  # padding with zeros: a code that is cut short
        "ffffffff",  # EOS
        "ffffffffff",
    ],
)
def test_huffman_that_is_wrong(code: str) -> None:
    with pytest.raises(ValueError, match=r"EOS|within a code"):
        hpack_tables.decode_huffman(bytes.fromhex(code))
    data = bytes.fromhex(code)
    with pytest.raises(HpackError):
        Decoder().decode(b"\x00" + bytes((0x80 | len(data),)) + data + b"\x00", LIMIT)


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "be",  # no such entry
        "ff808001",  # far beyond
        "7e00",  # the name of no entry
        "ffffffffffff",  # an integer that does not end
        "ff8080808001",
        "0001",  # a name that is cut short
        "00",
        "000141",  # no value
        "0f",
        "827f",
        "3fe21f",  # a table of 4097 bytes
        "202020 82",  # three updates
        "8220",  # an update behind a field
        "82 3f",
    ],
)
def test_what_is_refused(block: str) -> None:
    with pytest.raises(HpackError):
        Decoder().decode(bytes.fromhex(block), LIMIT)


def test_two_updates_are_allowed() -> None:
    decoder = Decoder()
    decoder.decode(bytes.fromhex("40 0161 0162"), LIMIT)
    assert decoder.decode(bytes.fromhex("20 3fe11f 82"), LIMIT) == ((b":method", b"GET"),)
    with pytest.raises(HpackError):  # it was emptied
        decoder.decode(bytes.fromhex("be"), LIMIT)


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder, theirs = Decoder(), oracle.Encoder()
    decoder.decode(theirs.encode([("a", "b")]), LIMIT)
    large = theirs.encode([("a", "b" * 5000)], huffman=False)
    assert decoder.decode(large, LIMIT) == ((b"a", b"b" * 5000),)
    with pytest.raises(HpackError):
        decoder.decode(bytes.fromhex("be"), LIMIT)


def test_a_list_that_is_too_large_leaves_the_table_in_step() -> None:
    decoder = Decoder()
    block = b"\x40\x01a\x01b" + b"\x82" * 100
    for _ in range(3):
        with pytest.raises(FieldListTooLarge):
            decoder.decode(block, 3_000)
    assert decoder.decode(b"\xbe\xbf", 3_000) == ((b"a", b"b"),) * 2


def test_a_bomb_is_not_unpacked() -> None:
    """An entry of 4 KB, named 60,000 times."""
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x7f\xd1\x1e" + b"b" * 4048, LIMIT)
    with pytest.raises(FieldListTooLarge):
        decoder.decode(b"\xbe" * 100, LIMIT)
    with pytest.raises(HpackError, match="far too many"):
        decoder.decode(b"\xbe" * 60_000, LIMIT)


def test_the_same_block_is_the_same_object_on_every_connection() -> None:
    memo, blocks = Memo(), [oracle.Encoder().encode([("a", "b"), ("c", "d")])]
    theirs = oracle.Encoder()
    blocks = [theirs.encode([(":path", "/"), ("a", "b")]) for _ in range(3)]
    seen = []
    for _ in range(4):
        decoder = Decoder(memo)
        seen.append([decoder.decode(block, LIMIT) for block in blocks])
    assert [id(each) for each in seen[2]] == [id(each) for each in seen[3]]
    assert seen[0] == seen[3]


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpack, "_BLOCKS", 8)
    monkeypatch.setattr(hpack, "_BLOCKS_OF_STATE", 5)
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
    assert len(memo.root.known) <= 5
    long = b"\x00\x01x\x7f\x80\x20" + b"y" * (127 + 0x1000)
    for _ in range(3):
        assert decoder.decode(long, LIMIT) == ((b"x", b"y" * 4223),)


_NAMES = st.sampled_from(
    ["a", "b", ":path", ":method", "cookie", "user-agent", "x-very-long-name" * 9]
)
_VALUES = st.one_of(
    st.sampled_from(["", "GET", "/", "b", "gzip, deflate", "x" * 300]),
    st.text(st.characters(codec="latin-1"), max_size=60),
)
_LISTS = st.lists(st.tuples(_NAMES, _VALUES, st.booleans()), min_size=1, max_size=12)


@settings(max_examples=60)
@given(st.lists(st.tuples(_LISTS, st.booleans()), min_size=1, max_size=12), st.booleans())
def test_in_step_with_another_encoder(
    messages: list[tuple[list[tuple[str, str, bool]], bool]], small: bool
) -> None:
    theirs, ours = oracle.Encoder(), Decoder()
    if small:
        theirs.header_table_size = 150
    for message, huffman in messages:
        wanted = [(name.encode(), value.encode("utf-8"), secret) for name, value, secret in message]
        block = theirs.encode([oracle.HeaderTuple(n, v) for n, v, _ in wanted], huffman=huffman)
        assert ours.decode(block, 1 << 20) == tuple((n, v) for n, v, _ in wanted)


@given(_LISTS, st.booleans())
def test_another_decoder_reads_what_we_encode(
    message: list[tuple[str, str, bool]], huffman: bool
) -> None:
    fields = [(name.encode(), value.encode("utf-8")) for name, value, _ in message]
    theirs = oracle.Decoder(1 << 20)
    found = theirs.decode(encode(fields, huffman=huffman), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in found] == fields


def test_secrets_are_never_indexed() -> None:
    (found,) = oracle.Decoder().decode(encode([(b"set-cookie", b"a=b")]), raw=True)
    assert isinstance(found, oracle.NeverIndexedHeaderTuple)
    assert not isinstance(
        oracle.Decoder().decode(encode([(b"x", b"y")]), raw=True)[0], oracle.NeverIndexedHeaderTuple
    )


@pytest.mark.parametrize("status", [100, 200, 204, 206, 304, 404, 500, 503, 599])
def test_status(status: int) -> None:
    assert oracle.Decoder().decode(encode_status(status)) == [(":status", str(status))]


@settings(max_examples=80)
@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes(blocks: list[bytes]) -> None:
    """The oracle agrees, but for what we are stricter in."""
    ours, theirs = Decoder(), oracle.Decoder()
    for block in blocks:
        try:
            found = ours.decode(block, 1 << 20)
        except HpackError:
            return
        wanted = theirs.decode(block, raw=True)
        assert [(bytes(name), bytes(value)) for name, value in wanted] == list(found)
