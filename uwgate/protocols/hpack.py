"""Header compression of HTTP/2 (RFC 7541), of the server's side.

Requests are decoded with the client's dynamic table. Clients send the same block again and again:
what a block means in one state of the table is remembered (`Memo`), for all connections of a
gateway, and the same object is returned again. Responses are encoded without a dynamic table, so
that what a head becomes can be remembered, too, and be sent on any connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from uwgate.protocols.hpack_tables import STATIC, decode_huffman, encode_huffman

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]
"""Name and value, in the order of the block."""

DEFAULT_TABLE = 4096
"""Bytes of a dynamic table, until SETTINGS_HEADER_TABLE_SIZE says otherwise (RFC 9113 §6.5.2)."""
EMPTY_TABLE = b"\x20"
"""What a block begins with after which there is no dynamic table (RFC 7541 §6.3)."""
OVERHEAD = 32
"""Bytes that every entry counts more than it has (RFC 7541 §4.1)."""

_LONGEST_STATIC = max(len(name) + len(value) for name, value in STATIC)
_MOST_OCTETS = 4  # of an integer behind its prefix: 2^28
_MOST_UPDATES = 2  # of the table's size, in one block (RFC 7541 §4.2)
_STRINGS = 4096  # decoded Huffman strings that are remembered
_LONGEST_STRING = 256
_LONGEST_BLOCK = 2048
_LONGEST_PATTERN = 512
_MOST_FIELDS = 1024
_BLOCKS = 4096
_BYTES = 1 << 23  # of blocks, their fields and the states that they lead to, about
_STATE_BYTES = 2048  # that a state has more than the entries of its table

# Where a table has its entries: the byte that stands for one (§6.1) is its place. 0 is none.
_INDEXED = 0x80
_NONE: Field = (b"", b"")
_STATIC_PART: Fields = (_NONE,) * (_INDEXED + 1) + STATIC
_DYNAMIC = len(_STATIC_PART)
_run = re.compile(rb"[\x81-\xfe]+").match


class HpackError(ValueError):
    """A block that cannot be decoded: the connection is lost, with COMPRESSION_ERROR
    (RFC 9113 §4.3)."""


class FieldListTooLarge(ValueError):
    """More ``fields`` than allowed; the dynamic table is in step, and the connection may go on."""

    def __init__(self, reason: str, fields: Fields) -> None:
        super().__init__(reason)
        self.fields = fields


class _State:
    """A dynamic table, and what blocks mean in that state and lead to. Once ``shared``, that is
    in a memo, it never changes: a block that changes the table makes another of it.

    ``table``: the static part, and entries, newest first. ``size``: of the entries, in bytes as
    RFC 7541 §4.1 counts them; they fit ``limit``, which the peer chose, up to ``ceiling``, which
    we allowed. ``largest``: no entry has more bytes. ``known``: block -> state after it, fields,
    and their size. ``pattern``: of the last block, if one of its values can change alone."""

    __slots__ = (
        "ceiling", "known", "largest", "limit", "pattern", "shared", "size", "table",
    )

    def __init__(self, ceiling: int, table: Sequence[Field] = _STATIC_PART) -> None:
        self.table = list(table)
        self.size = 0
        # The peer begins with that, and has to say so if it takes more (RFC 9113 §6.5.2).
        self.limit = min(ceiling, DEFAULT_TABLE)
        self.ceiling = ceiling
        self.largest = _LONGEST_STATIC
        self.known: dict[bytes, tuple[_State, Fields, int]] = {}
        self.pattern: _Pattern | None = None
        self.shared = False

    def copy(self) -> _State:
        """The same table, to be changed."""
        state = _State(self.ceiling, self.table)
        state.size = self.size
        state.limit = self.limit
        state.largest = self.largest
        return state

    def changing(self) -> _State:
        """A state of the same table for a block to change: this one, where no one else has it."""
        if self.shared:
            return self.copy()
        self.pattern = None
        return self

    def resize(self, limit: int) -> None:
        """RFC 7541 §4.2, §4.3. Raises HpackError."""
        if limit > self.ceiling:
            raise HpackError("a table larger than allowed")
        self.limit = limit
        self._evict(0)

    def add(self, field: Field) -> None:
        """RFC 7541 §4.4: an entry larger than the table empties it."""
        size = len(field[0]) + len(field[1]) + OVERHEAD
        if self.size + size > self.limit:
            self._evict(size)
        if size <= self.limit:
            self.table.insert(_DYNAMIC, field)
            self.size += size
            if size > self.largest:
                self.largest = size

    def _evict(self, room: int) -> None:
        table = self.table
        while self.size and self.size + room > self.limit:
            name, value = table.pop()
            self.size -= len(name) + len(value) + OVERHEAD


class Memo:
    """What blocks mean, shared by decoders. Bounded: a block of at most 2,048 bytes counts when it
    comes a second time, and when there are 4,096, or about 8 MB with what they mean, all are
    forgotten."""

    __slots__ = ("_bytes", "_count", "_seen", "_states", "root")

    def __init__(self) -> None:
        self.root = _State(DEFAULT_TABLE)
        self.root.shared = True
        self._states: list[_State] = []
        self._seen: set[int] = set()
        self._count = self._bytes = 0

    def learn(self, state: _State, block: bytes, after: _State, fields: Fields) -> None:
        """Remember what was decoded, if it is worth that."""
        mark = hash(block) ^ id(state)
        seen = self._seen
        if mark not in seen:
            if len(seen) >= 4 * _BLOCKS:
                seen.clear()
            seen.add(mark)
            return
        if len(block) > _LONGEST_BLOCK:
            return
        if self._count >= _BLOCKS or self._bytes >= _BYTES:
            # Connections still hold the states; what those know would be kept alive by them.
            for each in self._states:
                each.known.clear()
            self._states = []
            seen.clear()
            self._count = self._bytes = 0
        size = list_size(fields)
        if not state.known:
            self._states.append(state)
            self._bytes += state.size + _STATE_BYTES
        if after is not state:
            self._bytes += after.size + _STATE_BYTES
        self._bytes += len(block) + size
        self._count += 1
        state.shared = after.shared = True
        state.known[block] = after, fields, size


class Decoder:
    """Of one connection. ``memo``: shared with others. ``max_table_size``: of the dynamic table,
    in bytes (RFC 7541 §4.2); what is remembered is shared only by those that have DEFAULT_TABLE."""

    __slots__ = ("_memo", "_state")

    def __init__(self, memo: Memo | None = None, *, max_table_size: int = DEFAULT_TABLE) -> None:
        self._memo = memo or Memo()
        self._state = self._memo.root
        if max_table_size != DEFAULT_TABLE:
            self._state = _State(max_table_size)

    def decode(self, block: bytes, limit: int) -> Fields:
        """The fields of a header block (RFC 7541 §6); the same object where it was decoded before
        in the same state, from the third time on at the latest. ``limit``: of their size in bytes,
        with OVERHEAD each (RFC 9113 §6.5.2). Raises FieldListTooLarge above it, and HpackError,
        also for more than twice as many fields as fit, or than 1,024. Names are as they were sent.
        """
        state = self._state
        known = state.known.get(block)
        if known is not None:
            self._state, fields, size = known
            if size > limit:
                raise _too_large(fields, limit)
            return fields
        pattern = state.pattern
        after, found, changed = state, None, False
        if pattern is not None and block.startswith(pattern[0]):
            found = _fit(block, pattern)
        if found is None:
            found, after, changed = _decode(block, state, _most_fields(limit))
            self._state = after
        # Usually it is clear without counting: a byte of a string makes at most 1.6, an index
        # stands for no more than there is in a table.
        if 2 * len(block) + (after.largest + OVERHEAD) * len(found) > limit and (
            list_size(found) > limit
        ):
            raise _too_large(found, limit)
        if after is not state or not changed:
            self._memo.learn(state, block, after, found)
        return found


def _most_fields(limit: int) -> int:
    """Twice as many as fit, to tell a client what is wrong; it takes a byte or two to send one."""
    return min(limit // OVERHEAD * 2, _MOST_FIELDS)


def _too_large(fields: Fields, limit: int) -> HpackError | FieldListTooLarge:
    if len(fields) > _most_fields(limit):
        return HpackError("far too many fields")
    return FieldListTooLarge(f"more than {limit} bytes of fields", fields)


def list_size(fields: Fields) -> int:
    """Bytes of names and values, and OVERHEAD for each field (RFC 9113 §6.5.2)."""
    size = OVERHEAD * len(fields)
    for name, value in fields:
        size += len(name) + len(value)
    return size


_Pattern = tuple[bytes, Fields, bytes, bytes, Fields]
"""What comes before the value of a literal that does not change the table, and the fields of that;
the literal's name; what comes behind it, and the fields of that. Clients ask for one thing after
the other with blocks that differ in ``:path`` alone, and a table that does not change."""


def _fit(block: bytes, pattern: _Pattern) -> Fields | None:
    """The fields of a block that begins as ``pattern`` does, if it also ends as that does."""
    begin, before, name, end, behind = pattern
    try:
        value, pos = _string(block, len(begin))
    except IndexError:
        raise HpackError("a block that is cut short") from None
    return (*before, (name, value), *behind) if block[pos:] == end else None


def _decode(block: bytes, state: _State, most: int) -> tuple[Fields, _State, bool]:
    """RFC 7541 §6: the fields, at most ``most``, the state behind them, and whether its table has
    changed: so may ``state`` have."""
    after, changed = state, False
    fields: list[Field] = []
    updates = pos = start = 0
    end = len(block)
    try:
        while pos < end:
            byte = block[pos]
            if byte > _INDEXED:  # indexed (§6.1), as what follows usually is, too
                run = _run(block, pos)
                if run is not None:
                    pos = run.end()
                    fields += [after.table[place] for place in run[0]]
                else:
                    index, pos = _integer(block, pos + 1, 0x7F)
                    fields.append(after.table[_INDEXED + index])
            elif byte < 0x20 or byte & 0x40:  # literal (§6.2)
                name, at = _name(block, pos, after.table)
                value, pos = _string(block, at)
                field = name, value
                fields.append(field)
                if byte & 0x40:
                    if not changed:
                        after, changed = state.changing(), True
                    after.add(field)
                elif not start:
                    start, behind, place = at, pos, len(fields)
            else:
                updates += 1
                if byte == _INDEXED:
                    raise HpackError("index 0")
                if fields or updates > _MOST_UPDATES:
                    raise HpackError("a change of the table behind a field, or a third one")
                if not changed:
                    after, changed = state.changing(), True
                size, pos = byte & 0x1F, pos + 1  # (§6.3)
                if size == 0x1F:
                    size, pos = _integer(block, pos, size)
                after.resize(size)
            if len(fields) > most:
                raise HpackError("far too many fields")
    except IndexError:
        raise HpackError("no such entry, or a block that is cut short") from None
    found = tuple(fields)
    if start and not changed and end <= _LONGEST_PATTERN:
        name = found[place - 1][0]
        state.pattern = block[:start], found[: place - 1], name, block[behind:], found[place:]
    return found, after, changed


def _name(block: bytes, pos: int, table: list[Field]) -> tuple[bytes, int]:
    """The name of the literal at ``pos`` (RFC 7541 §6.2), and the place behind it."""
    byte = block[pos]
    prefix = 0x3F if byte & 0x40 else 0x0F
    index = byte & prefix
    pos += 1
    if index == prefix:
        index, pos = _integer(block, pos, prefix)
    if index:
        return table[_INDEXED + index][0], pos
    return _string(block, pos)


def _integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """What follows a full prefix, ``value`` (RFC 7541 §5.1) -> value and the place behind it."""
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
    """The string at ``pos`` (RFC 7541 §5.2), and the place behind it."""
    byte = block[pos]
    pos += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, pos = _integer(block, pos, 0x7F)
    end = pos + length
    data = block[pos:end]
    if len(data) != length:
        raise HpackError("a string that is cut short")
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

_ONE_BYTE = tuple(bytes((byte,)) for byte in range(256))


def _number(value: int, kind: int, prefix: int) -> bytes:
    """RFC 7541 §5.1: ``kind`` are the bits before the prefix, which is a mask."""
    if value < prefix:
        return _ONE_BYTE[kind | value]
    out = bytearray((kind | prefix,))
    value -= prefix
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# Never to be indexed by anybody on the way (RFC 7541 §7.1.3).
_SECRET = frozenset((b"set-cookie", b"authorization", b"proxy-authorization", b"cookie"))
# Of several entries with one name, the first.
_ENTRIES = list(reversed(list(enumerate(STATIC, 1))))
_PAIRS = {field: _number(index, 0x80, 0x7F) for index, field in _ENTRIES if field[1]}
_NAMES = {
    name: _number(index, 0x10 if name in _SECRET else 0, 0x0F) for index, (name, _) in _ENTRIES
}
_STATUS = {int(value): code for (name, value), code in _PAIRS.items() if name == b":status"}
_HUFFMAN_FROM = 4  # bytes; shorter ones gain nothing


def encode(fields: Iterable[Field], *, huffman: bool = True) -> bytes:
    """A header block that neither needs nor changes a dynamic table (RFC 7541 §6): entries of the
    static one where a whole field is in it, and literals, the names of which may be there.

    With ``huffman``, their strings are in that code where it is shorter, else as they are. Cookies
    and credentials are marked as never to be indexed. Names have to be in lower case.
    """
    out = []
    for field in fields:
        pair = _PAIRS.get(field)
        if pair is not None:
            out.append(pair)
            continue
        name, value = field
        known = _NAMES.get(name)
        if known is not None:
            out.append(known)
        else:
            out += (b"\x00", _literal(name, huffman=huffman))
        out.append(_literal(value, huffman=huffman))
    return b"".join(out)


def encode_status(status: int) -> bytes:
    """``:status``, the first field of a response (RFC 9113 §8.3.2); three digits."""
    return _STATUS.get(status) or b"\x08\x03%d" % status


def _literal(text: bytes, *, huffman: bool) -> bytes:
    """A string (RFC 7541 §5.2)."""
    if huffman and len(text) >= _HUFFMAN_FROM:
        code = encode_huffman(text)
        if len(code) < len(text):
            return _number(len(code), 0x80, 0x7F) + code
    return _number(len(text), 0, 0x7F) + text
