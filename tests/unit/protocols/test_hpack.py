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


def test_single_fields_as_in_the_rfc() -> None:
    """C.2, and the integer of C.1.2 as the size of a table."""
    for block, text in (
        ("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
         "custom-key=custom-header"),
        ("040c 2f73 616d 706c 652f 7061 7468", ":path=/sample/path"),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password=secret"),
        ("82", ":method=GET"),
        ("3f9a0a 82", ":method=GET"),
    ):
        assert Decoder().decode(bytes.fromhex(block), LIMIT) == fields_of(text)


@pytest.mark.parametrize(
    "blocks",
    [
        [  # C.5
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133"
            "2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65"
            "2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0"
            "5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851"
            "5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        ],
        [  # C.6
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6"
            "2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad"
            "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160"
            "65c0 03ed 4ee5 b106 3d50 07",
        ],
    ],
)
def test_responses_as_in_the_rfc(blocks: list[str]) -> None:
    """With a table of 256 bytes: entries go."""
    decoder = Decoder(max_table_size=256)
    third = (
        f":status=200\n{RESPONSE.replace(':21 GMT', ':22 GMT')}\ncontent-encoding=gzip\n"
        "set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
    )
    for block, text in zip(
        blocks, (f":status=302\n{RESPONSE}", f":status=307\n{RESPONSE}", third), strict=True
    ):
        assert decoder.decode(bytes.fromhex(block), LIMIT) == fields_of(text)
    assert decoder.decode(b"\xbe\xbf\xc0", LIMIT) == (  # the table behind them
        *fields_of(third.split("\n")[-1]),
        (b"content-encoding", b"gzip"),
        (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
    )
    with pytest.raises(HpackError):
        decoder.decode(b"\xc1", LIMIT)


def test_the_huffman_code() -> None:
    codes = dict(enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)))
    assert codes == hpack_tables.CODES
    assert len(hpack_tables.STATIC) == 61
    assert list(hpack_tables.STATIC) == list(oracle.table.HeaderTable.STATIC_TABLE)


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


def test_the_limit_is_exact() -> None:
    block = encode([(b"a", b"b" * 100), (b":method", b"GET")], huffman=False)
    size = hpack.list_size(Decoder().decode(block, LIMIT))
    assert size == 101 + 10 + 2 * 32
    assert len(Decoder().decode(block, size)) == 2
    with pytest.raises(FieldListTooLarge):
        Decoder().decode(block, size - 1)


def test_a_larger_table_is_the_peers_choice() -> None:
    decoder = Decoder(max_table_size=8192)
    large = b"\x40\x01a\x7f\xf1\x2d" + b"b" * 6000
    decoder.decode(large, LIMIT)  # of 4,096 bytes still
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe", LIMIT)
    decoder.decode(b"\x3f\xe1\x3f" + large, LIMIT)
    assert decoder.decode(b"\xbe", LIMIT) == ((b"a", b"b" * 6000),)
    with pytest.raises(HpackError):
        decoder.decode(b"\x3f\xe2\x3f", LIMIT)


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
