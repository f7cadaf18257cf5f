"""Header compression of HTTP/2 (RFC 7541), of the server's side.

Requests are decoded with the client's dynamic table. Clients send the same block again and again:
what a block means in one state of the table is remembered (`Memo`), for all connections of a
gateway, and the same object is returned again. Responses are encoded without a dynamic table, so
that what a head becomes can be remembered, too, and be sent on any connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from uwgate.protocols.hpack_tables import STATIC, decode_huffman, encode_huffman

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]
"""Name and value, in the order of the block."""

DEFAULT_TABLE = 4096
OVERHEAD = 32
"""Bytes that every entry counts more than it has (RFC 7541 §4.1)."""

_STATIC_SIZE = len(STATIC)
_LONGEST_STATIC = max(len(name) + len(value) for name, value in STATIC)
_MOST_OCTETS = 4  # of an integer behind its prefix: 2^28
_STRINGS = 4096  # decoded Huffman strings that are remembered
_LONGEST_STRING = 256
_LONGEST_BLOCK = 2048
_BLOCKS = 4096
_BLOCKS_OF_STATE = 256


class HpackError(ValueError):
    """A block that cannot be decoded: the connection is lost (RFC 9113 §4.3)."""


class FieldListTooLarge(ValueError):
    """More fields than allowed; the dynamic table is in step, and the connection may go on."""


class _State:
    """A dynamic table: ``entries``, newest first, of ``size`` bytes within ``limit``; and what
    blocks mean in that state, and lead to."""

    __slots__ = ("entries", "known", "limit", "size")

    def __init__(self, entries: Fields, size: int, limit: int) -> None:
        self.entries = entries
        self.size = size
        self.limit = limit
        self.known: dict[bytes, tuple[_State, Fields]] = {}


class Memo:
    """What blocks mean, shared by decoders. Bounded: a block counts when it comes a second time,
    and when there are 4,096 all are forgotten."""

    __slots__ = ("_count", "_seen", "_states", "root")

    def __init__(self) -> None:
        self.root = _State((), 0, DEFAULT_TABLE)
        self._states = [self.root]
        self._seen: set[int] = set()
        self._count = 0

    def learn(self, state: _State, block: bytes, after: _State, fields: Fields) -> None:
        """Remember what was decoded, if it is worth that."""
        if len(block) > _LONGEST_BLOCK or len(state.known) >= _BLOCKS_OF_STATE:
            return
        mark = hash((id(state), block))
        if mark not in self._seen:
            if len(self._seen) >= 4 * _BLOCKS:
                self._seen.clear()
            self._seen.add(mark)
            return
        if self._count >= _BLOCKS:
            # Connections still hold the states; what those know would be kept alive by them.
            for each in self._states:
                each.known.clear()
            self._states = []
            self._seen.clear()
            self._count = 0
        if not state.known:
            self._states.append(state)
        state.known[block] = after, fields
        self._count += 1


class Decoder:
    """Of one connection, with a dynamic table of at most DEFAULT_TABLE bytes. ``memo``: shared with
    others."""

    __slots__ = ("_memo", "_state")

    def __init__(self, memo: Memo | None = None) -> None:
        self._memo = memo or Memo()
        self._state = self._memo.root

    def decode(self, block: bytes, limit: int) -> Fields:
        """The fields of a header block; the same object where it was decoded before in the same
        state. ``limit``: of their size with OVERHEAD each (RFC 9113 §6.5.2); the same
        for all that share a memo. Raises HpackError, also where there are many times more, or
        FieldListTooLarge.
        """
        state = self._state
        known = state.known.get(block)
        if known is not None:
            self._state, fields = known
            return fields
        fields, after = _decode(block, state, limit // OVERHEAD * 2)
        self._state = after
        # Usually it is clear without counting: a byte of a string makes at most 1.6, an index
        # stands for no more than there is in a table.
        most = max(state.size, after.size, _LONGEST_STATIC) + OVERHEAD
        if 2 * len(block) + most * len(fields) > limit and _size(fields) > limit:
            raise FieldListTooLarge(f"more than {limit} bytes of fields")
        self._memo.learn(state, block, after, fields)
        return fields


def _size(fields: Fields) -> int:
    size = OVERHEAD * len(fields)
    for name, value in fields:
        size += len(name) + len(value)
    return size


def _decode(block: bytes, state: _State, most: int) -> tuple[Fields, _State]:
    """RFC 7541 §6. ``most``: fields."""
    entries: Sequence[Field] = state.entries
    table: _Table | None = None  # once it changes
    fields: list[Field] = []
    append = fields.append
    pos, end = 0, len(block)
    many = end > most
    try:
        while pos < end:
            byte = block[pos]
            pos += 1
            if byte >= 0x80:  # indexed (§6.1)
                index = byte & 0x7F
                if index == 0x7F:
                    index, pos = _integer(block, pos, 0x7F)
                if not index:
                    raise HpackError("index 0")
                if index <= _STATIC_SIZE:
                    append(_INDEXED[index])
                else:
                    append(entries[index - _STATIC_SIZE - 1])
            elif byte & 0xE0 == 0x20:  # size update (§6.3)
                if fields:
                    raise HpackError("a change of the table behind a field")
                size, pos = _prefixed(block, pos, byte, 0x1F)
                table = table or _Table(state)
                table.resize(size)
                entries = table.entries
            else:  # literal (§6.2)
                index, pos = _prefixed(block, pos, byte, 0x3F if byte & 0x40 else 0x0F)
                if not index:
                    name, pos = _string(block, pos)
                elif index <= _STATIC_SIZE:
                    name = _INDEXED[index][0]
                else:
                    name = entries[index - _STATIC_SIZE - 1][0]
                value, pos = _string(block, pos)
                field = name, value
                append(field)
                if byte & 0x40:
                    table = table or _Table(state)
                    table.add(field)
                    entries = table.entries
            if many and len(fields) > most:
                raise HpackError("far too many fields")
    except IndexError:
        raise HpackError("no such entry, or a block that is cut short") from None
    return tuple(fields), state if table is None else table.state()


_INDEXED: tuple[Field, ...] = ((b"", b""), *STATIC)


class _Table:
    """A dynamic table that changes."""

    __slots__ = ("_limit", "_size", "_updates", "entries")

    def __init__(self, state: _State) -> None:
        self.entries = list(state.entries)
        self._size = state.size
        self._limit = state.limit
        self._updates = 0

    def resize(self, limit: int) -> None:
        """RFC 7541 §4.2, §4.3."""
        self._updates += 1
        if limit > DEFAULT_TABLE or self._updates > 2:
            raise HpackError("a table larger than allowed, or changed too often")
        self._limit = limit
        self._evict(0)

    def add(self, field: Field) -> None:
        """RFC 7541 §4.4: an entry larger than the table empties it."""
        size = len(field[0]) + len(field[1]) + OVERHEAD
        self._evict(size)
        if size <= self._limit:
            self.entries.insert(0, field)
            self._size += size

    def _evict(self, room: int) -> None:
        entries = self.entries
        while entries and self._size + room > self._limit:
            name, value = entries.pop()
            self._size -= len(name) + len(value) + OVERHEAD

    def state(self) -> _State:
        return _State(tuple(self.entries), self._size, self._limit)


def _prefixed(block: bytes, pos: int, byte: int, prefix: int) -> tuple[int, int]:
    value = byte & prefix
    return _integer(block, pos, prefix) if value == prefix else (value, pos)


def _integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """What follows a full prefix (RFC 7541 §5.1) -> value and the place behind it."""
    shift = 0
    for _ in range(_MOST_OCTETS):
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise HpackError("an integer without end")


_strings: dict[bytes, bytes] = {}


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """RFC 7541 §5.2."""
    byte = block[pos]
    pos += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, pos = _integer(block, pos, 0x7F)
    end = pos + length
    if end > len(block):
        raise HpackError("a string that is cut short")
    data = block[pos:end]
    if byte < 0x80:
        return data, end
    text = _strings.get(data)
    if text is None:
        try:
            text = decode_huffman(data)
        except ValueError as error:
            raise HpackError(str(error)) from None
        if length <= _LONGEST_STRING:
            if len(_strings) >= _STRINGS:
                _strings.clear()
            _strings[data] = text
    return text, end


# --- encoding -------------------------------------------------------------------------------------

_PAIRS = {field: index for index, field in reversed(list(enumerate(STATIC, 1))) if field[1]}
_NAMES = {field[0]: index for index, field in reversed(list(enumerate(STATIC, 1)))}
# Never to be indexed by anybody on the way (RFC 7541 §7.1.3).
_SECRET = frozenset((b"set-cookie", b"authorization", b"proxy-authorization", b"cookie"))
_STATUS = {int(value): index for (name, value), index in _PAIRS.items() if name == b":status"}
_HUFFMAN_FROM = 4  # bytes; shorter ones gain nothing


def encode(fields: Iterable[Field], *, huffman: bool = True) -> bytes:
    """A header block that changes no dynamic table: entries of the static one, and literals, with
    ``huffman`` in that code where it is shorter."""
    out = []
    for field in fields:
        index = _PAIRS.get(field)
        if index is not None:
            out.append(_number(index, 0x80, 0x7F))
            continue
        name, value = field
        kind = 0x10 if name in _SECRET else 0
        index = _NAMES.get(name)
        if index is None:
            out += (bytes((kind,)), _literal(name, huffman=huffman))
        else:
            out.append(_number(index, kind, 0x0F))
        out.append(_literal(value, huffman=huffman))
    return b"".join(out)


def encode_status(status: int) -> bytes:
    """``:status``, the first field of a response."""
    index = _STATUS.get(status)
    if index is not None:
        return _number(index, 0x80, 0x7F)
    return b"\x08\x03%d" % status


def _literal(text: bytes, *, huffman: bool) -> bytes:
    if huffman and len(text) >= _HUFFMAN_FROM:
        code = encode_huffman(text)
        if len(code) < len(text):
            return _number(len(code), 0x80, 0x7F) + code
    return _number(len(text), 0, 0x7F) + text


def _number(value: int, kind: int, prefix: int) -> bytes:
    """RFC 7541 §5.1."""
    if value < prefix:
        return bytes((kind | value,))
    out = bytearray((kind | prefix,))
    value -= prefix
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
