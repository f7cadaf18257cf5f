"""A cache in memory that all workers of an instance share (uWSGI's ``cache``, ``cache2``).

The master makes it before the fork. It is an array of slots in sets of eight; a key belongs to one
set, by its hash. Nothing is touched before it is used, so that a cache of a gigabyte costs what it
holds. Heads are apart from the rest, for the same reason::

    offset  size  field of a head, little-endian
    0       8     expiry, seconds of the epoch; 0: the slot is free; 2^62: never
    8       4     CRC-32 of expiry, lengths, key and value
    12      4     length of the key
    16      4     length of the value
    20      4     nothing

Readers take no lock: an entry that is being written does not match its checksum, and is a miss.
Writers lock their set (``fcntl``); the lock of one that is killed is released by the kernel, and
what it left half-written does not match its checksum either.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
import zlib
from struct import Struct

from uwgate.config.settings_tls import CacheSettings

_WAYS = 8
_HEAD = Struct("<QIII4x")
_SEALED = Struct("<QII")
_NEVER = 1 << 62
_HASH_KEY_LIMIT = 256  # bytes of a key that are kept
_CELLS = 256  # processes that count
_CELL = Struct("<QQQQ")  # hits, misses, full, epoch second of the last change
_TRIES = 50  # of a lock that another process holds


class SharedCache:
    """``cell``: the number of this process, 0 for the master; each counts in a place of its own."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self.cell = 0
        self.keysize = min(settings.keysize, _HASH_KEY_LIMIT)
        self._size = self.keysize + settings.blocksize
        self._sets = max(1, -(-settings.items // _WAYS))
        self._heads = _CELLS * _CELL.size
        self._bodies = self._heads + self._sets * _WAYS * _HEAD.size
        total = self._bodies + self._sets * _WAYS * self._size
        self._file = os.memfd_create("uwgate-cache", os.MFD_CLOEXEC)
        os.ftruncate(self._file, total)
        self._memory = mmap.mmap(self._file, total)
        if hasattr(mmap, "MADV_DONTDUMP"):
            self._memory.madvise(mmap.MADV_DONTDUMP)  # it holds secrets

    @property
    def blocksize(self) -> int:
        """Bytes of the largest value."""
        return self.settings.blocksize

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, unless it has expired."""
        now = int(time.time())
        for slot in self._slots(key):
            if self._expiry(slot) > now:
                value = self._read(slot, key)
                if value is not None:
                    self._count(0)
                    return value
        self._count(1)
        return None

    def set(self, key: bytes, value: bytes, expires: int) -> bool:
        """Keep ``value`` until ``expires`` (seconds of the epoch; 0: for ever). False if it is too
        large, or the set was locked for too long. In a full set what expires first goes."""
        if not key or len(key) > self.keysize or len(value) > self.settings.blocksize:
            return False
        slots = self._slots(key)
        if not self._lock(slots[0]):
            return False
        try:
            slot, full = self._victim(slots, key)
            head = self._heads + slot * _HEAD.size
            body = self._bodies + slot * self._size
            memory = self._memory
            memory[head : head + 8] = bytes(8)
            memory[body : body + len(key)] = key
            body += self.keysize
            memory[body : body + len(value)] = value
            end = expires or _NEVER
            _HEAD.pack_into(memory, head, 0, _check(end, key, value), len(key), len(value))
            memory[head : head + 8] = end.to_bytes(8, "little")
        finally:
            self._unlock(slots[0])
        if full:
            self._count(2)
        self._touch()
        return True

    def delete(self, key: bytes) -> bool:
        """Forget ``key``; whether it was there."""
        slots = self._slots(key)
        if not self._lock(slots[0]):
            return False
        try:
            for slot in slots:
                if self._expiry(slot) and self._read(slot, key) is not None:
                    head = self._heads + slot * _HEAD.size
                    self._memory[head : head + 8] = bytes(8)
                    self._touch()
                    return True
        finally:
            self._unlock(slots[0])
        return False

    # --- slots ------------------------------------------------------------------------------------

    def _slots(self, key: bytes) -> range:
        """Numbers of the slots that may hold ``key``."""
        first = zlib.crc32(key) % self._sets * _WAYS
        return range(first, first + _WAYS)

    def _expiry(self, slot: int) -> int:
        head = self._heads + slot * _HEAD.size
        return int.from_bytes(self._memory[head : head + 8], "little")

    def _read(self, slot: int, key: bytes) -> bytes | None:
        """The value of the slot, if it is that key's, whole and not being written."""
        memory = self._memory
        head = self._heads + slot * _HEAD.size
        end, check, key_size, size = _HEAD.unpack_from(memory, head)
        body = self._bodies + slot * self._size
        if key_size != len(key) or memory[body : body + key_size] != key:
            return None
        if size > self.settings.blocksize:
            return None
        body += self.keysize
        value = memory[body : body + size]
        return value if _check(end, key, value) == check else None

    def _victim(self, slots: range, key: bytes) -> tuple[int, bool]:
        """The slot to write to, and whether something has to go that could still be asked for."""
        now = int(time.time())
        ends = [self._expiry(slot) for slot in slots]
        for slot, end in zip(slots, ends, strict=True):
            if end and self._read(slot, key) is not None:
                return slot, False
        first = min(ends)
        return slots[ends.index(first)], first > now

    # --- locks and counters -----------------------------------------------------------------------

    def _lock(self, place: int) -> bool:
        # Of the process, not of the descriptor: what the fork has copied excludes the parent.
        for _ in range(_TRIES):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError:
                os.sched_yield()
            else:
                return True
        return False

    def _unlock(self, place: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def _count(self, which: int) -> None:
        place = self.cell % _CELLS * _CELL.size + which * 8
        memory = self._memory
        number = int.from_bytes(memory[place : place + 8], "little") + 1
        memory[place : place + 8] = number.to_bytes(8, "little")

    def _touch(self) -> None:
        place = self.cell % _CELLS * _CELL.size + 24
        self._memory[place : place + 8] = int(time.time()).to_bytes(8, "little")

    # --- statistics -------------------------------------------------------------------------------

    def items(self) -> int:
        """Entries that have not expired."""
        now = int(time.time())
        heads = memoryview(self._memory)[self._heads : self._bodies]
        return sum(end > now for end in heads.cast("Q")[:: _HEAD.size // 8].tolist())

    def snapshot(self) -> dict[str, object]:
        """The object of uWSGI's stats server, of all processes together."""
        cells = [_CELL.unpack_from(self._memory, cell * _CELL.size) for cell in range(_CELLS)]
        settings = self.settings
        return {
            "name": settings.name,
            "hash": settings.hash,
            "hashsize": settings.hashsize,
            "keysize": settings.keysize,
            "max_items": settings.items,
            "blocks": settings.blocks or settings.items,
            "blocksize": settings.blocksize,
            "items": self.items(),
            "hits": sum(cell[0] for cell in cells),
            "miss": sum(cell[1] for cell in cells),
            "full": sum(cell[2] for cell in cells),
            "last_modified_at": max(cell[3] for cell in cells),
        }


def _check(end: int, key: bytes, value: bytes) -> int:
    sealed = _SEALED.pack(end, len(key), len(value))
    return zlib.crc32(value, zlib.crc32(key, zlib.crc32(sealed)))
