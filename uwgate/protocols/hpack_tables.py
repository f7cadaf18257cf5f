"""Tables of HPACK: the static one (RFC 7541, Appendix A), and its Huffman code (Appendix B)."""

from __future__ import annotations

import zlib

_TABLE = """\
:authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate"""

STATIC: tuple[tuple[bytes, bytes], ...] = tuple(
    (name.encode(), value.encode())
    for name, _, value in (line.partition(" ") for line in _TABLE.split("\n"))
)
"""Entry n of the table is at n - 1."""

EOS = 256

# The code is canonical: codes of one length follow each other in the order of their symbols, and
# those of the next length behind them. Length -> symbols; ranges with their end.
_LENGTHS = """\
5 48-50 97 99 101 105 111 115-116
6 32 37 45-47 51-57 61 65 95 98 100 102-104 108-110 112 114 117
7 58 66-87 89 106-107 113 118-122
8 38 42 44 59 88 90
10 33-34 40-41 63
11 39 43 124
12 35 62
13 0 36 64 91 93 126
14 94 125
15 60 96 123
19 92 195 208
20 128 130-131 162 184 194 224 226
21 153 161 167 172 176-177 179 209 216-217 227 229-230
22 129 132-134 136 146 154 156 160 163-164 169-170 173 178 181 185-187 189-190 196 198 228 232-233
23 1 135 137-141 143 147 149-152 155 157-158 165-166 168 174-175 180 182-183 188 191 197 231 239
24 9 142 144-145 148 159 171 206 215 225 236-237
25 199 207 234-235
26 192-193 200-202 205 210 213 218-219 238 240 242-243 255
27 203-204 211-212 214 221-223 241 244-248 250-254
28 2-8 11-12 14-21 23-31 127 220 249
30 10 13 22 256"""


def _codes() -> dict[int, tuple[int, int]]:
    """Symbol -> (code, bits)."""
    codes: dict[int, tuple[int, int]] = {}
    code = bits = 0
    for line in _LENGTHS.split("\n"):
        length, *ranges = line.split()
        code <<= int(length) - bits
        bits = int(length)
        for each in ranges:
            first, _, last = each.partition("-")
            for symbol in range(int(first), int(last or first) + 1):
                codes[symbol] = (code, bits)
                code += 1
    return codes


CODES = _codes()
"""Symbol -> (code, bits); 256 is EOS."""


def _tree() -> list[list[int]]:
    """Inner nodes: the nodes behind a 0 and a 1; a leaf is -1 - its symbol."""
    nodes = [[0, 0]]
    for symbol, (code, bits) in CODES.items():
        at = 0
        for shift in range(bits - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[at][bit]:
                nodes.append([0, 0])
                nodes[at][bit] = len(nodes) - 1
            at = nodes[at][bit]
        nodes[at][code & 1] = -1 - symbol
    return nodes


_NODES = _tree()

# States in which a string may end: up to seven ones, the beginning of EOS (RFC 7541 §5.2).
_ENDS = {0}
_at = 0
for _ in range(7):
    _at = _NODES[_at][1]
    _ENDS.add(_at << 4)

# (node << 4 | half a byte) -> (what that adds, the next node << 4); filled as it is needed. Halves,
# because strings of strangers fill it: 4,096 entries, not 65,536.
_STEPS: dict[int, tuple[bytes, int]] = {}

# zlib decodes ten times faster than a loop here can. Deflate, too, has canonical codes (RFC 1951
# §3.2.2), of at most 15 bits: those of ASCII but for "\\" and control bytes. One code of 15 bits
# is left, all ones, with which EOS and the others begin. It becomes deflate's end of a block. Its
# streams have the first bit of a byte where Huffman codes of HPACK have the last.
_MOST_BITS = 15
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# Behind a string: ends the block if nothing but ones is left of its last byte. The zero is for a
# code that is cut short and completed by the first one: 14 are too few.
_TERMINATOR = b"\xff\x7f"
_BITS = bytes(CODES[symbol][1] for symbol in range(256))


def _deflate_header() -> bytes:
    """The beginning of a deflate stream, up to the first code of the last block (RFC 1951 §3.2.7).

    That block says how long its codes are in a code itself, here 0 to 15 in four bits each. Three
    empty blocks (01, 0 and its end in the fixed code) make the whole end where a byte does.
    """
    bits = ("0" + "10" + "0000000") * 3  # no last block; numbers have their lowest bit first
    bits += "1" + "01" + "00000" + "00000" + "1111"  # last; 257 codes, 1 distance, 19 lengths
    bits += "000" * 3 + "001" * 16  # lengths of the codes of 16, 17, 18; 0, 8, 7, 9 … 15
    lengths = [length if length <= _MOST_BITS else 0 for length in _BITS]
    bits += "".join(f"{length:04b}" for length in (*lengths, _MOST_BITS, 0))
    return bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))


_primed = zlib.decompressobj(-9)  # it keeps 512 bytes of what it wrote, and nobody reads them
_primed.decompress(_deflate_header())
_copy_primed = _primed.copy


def decode_huffman(data: bytes) -> bytes:
    """The string behind the Huffman code ``data``. Raises ValueError for one that contains EOS or
    does not end with less than eight ones behind its last code (RFC 7541 §5.2)."""
    inflater = _copy_primed()
    # The bound is never reached, but makes the buffer a small one.
    text = inflater.decompress(data.translate(_MIRRORED) + _TERMINATOR, 2 * len(data) + 4)
    if (
        inflater.eof
        and len(inflater.unused_data) < 2
        # A byte of ones may be too much padding, or the end of a code and seven ones.
        and (data[-1:] != b"\xff" or 8 * len(data) - sum(text.translate(_BITS)) < 8)
    ):
        return text
    return _walk(data)


def _walk(data: bytes) -> bytes:
    """The general way of `decode_huffman`: for longer codes, and to find what is wrong."""
    steps = _STEPS
    pieces = []
    state = 0
    for byte in data:
        for half in (byte >> 4, byte & 0x0F):
            step = steps.get(state | half)
            if step is None:
                step = _step(state, half)
            pieces.append(step[0])
            state = step[1]
    if state not in _ENDS:
        raise ValueError("a string ends within a code")
    return b"".join(pieces)


def _step(state: int, half: int) -> tuple[bytes, int]:
    node, found = state >> 4, b""
    for shift in range(3, -1, -1):
        node = _NODES[node][half >> shift & 1]
        if node < 0:
            symbol = -1 - node
            if symbol == EOS:
                raise ValueError("EOS in a string")
            found = bytes((symbol,))  # the only one: codes have five bits or more
            node = 0
    step = _STEPS[state | half] = found, node << 4
    return step


# Text, of which int() makes a number in time that grows as its length does; adding code by code
# to a number would take the square of it.
_DIGITS = tuple(f"{code:0{bits}b}" for code, bits in (CODES[symbol] for symbol in range(256)))


def encode_huffman(data: bytes) -> bytes:
    """The Huffman code of a string, padded with ones to a whole byte (RFC 7541 §5.2)."""
    digits = "".join([_DIGITS[byte] for byte in data])
    digits += "1" * (-len(digits) % 8)
    return int(digits or "0", 2).to_bytes(len(digits) // 8, "big")
