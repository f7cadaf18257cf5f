"""The Huffman code of HPACK: zlib's way and the general one, and python-hyper's."""

from __future__ import annotations

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman as decode_theirs
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols import hpack_tables
from uwgate.protocols.hpack import Decoder, HpackError
from uwgate.protocols.hpack_tables import decode_huffman, encode_huffman

THEIRS = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def result(decode: object, data: bytes) -> bytes | None:
    try:
        return bytes(decode(data))  # type: ignore[operator]
    except (ValueError, HPACKDecodingError):
        return None


@given(st.one_of(st.binary(max_size=200), st.text("aZ09 -/\\\\<`{|~", max_size=99).map(str.encode)))
def test_round_trip(text: bytes) -> None:
    code = encode_huffman(text)
    assert code == THEIRS.encode(text)
    assert decode_huffman(code) == text == hpack_tables._walk(code)


def test_every_string_of_two_bytes() -> None:
    for number in range(1 << 16):
        data = number.to_bytes(2, "big")
        assert result(decode_huffman, data) == result(hpack_tables._walk, data), data


# Ends are what matters: padding, ones that belong to a code, codes that are cut short.
_PIECES = st.one_of(
    st.binary(max_size=3),
    st.text(st.characters(max_codepoint=127), max_size=6).map(lambda t: encode_huffman(t.encode())),
    st.sampled_from([b"\xff", b"\xfe", b"\x7f", b"\xfc", b"\xff\xfe", b"\xff\xff\xff\xff"]),
)


@settings(max_examples=400)
@given(st.lists(_PIECES, max_size=5).map(b"".join))
def test_both_ways_are_one(data: bytes) -> None:
    found = result(decode_huffman, data)
    assert found == result(hpack_tables._walk, data) == result(decode_theirs, data)


@pytest.mark.parametrize(
    "code",
    [
        "ff",  # eight ones are no padding
        "1c641fff",  # nor are they behind a string
        "18",  # padding with zeros: a code that is cut short
        "ffffffff",  # EOS
        "ffffffffff",
        "1fffffffff",  # and behind a string
    ],
)
def test_what_is_refused(code: str) -> None:
    data = bytes.fromhex(code)
    with pytest.raises(ValueError, match=r"EOS|within a code"):
        decode_huffman(data)
    with pytest.raises(HpackError):
        Decoder().decode(b"\x00" + bytes((0x80 | len(data),)) + data + b"\x00", 1000)


def test_strings_of_strangers_fill_no_memory() -> None:
    for number in range(1 << 12):
        result(hpack_tables._walk, number.to_bytes(2, "big") * 20)
    assert len(hpack_tables._STEPS) <= 1 << 12


def test_a_long_string() -> None:
    """With a character that zlib cannot do at its end."""
    text = b"q" * 50_000
    assert decode_huffman(encode_huffman(text)) == text
    text += b"\\"
    assert decode_huffman(encode_huffman(text)) == text
