"""A cache in memory that all processes of an instance share (uWSGI's ``cache``, ``cache2``).

The master makes it before the fork. Slots are in sets of sixteen, and a key belongs to two sets, by
its hash: the emptier one gets it. So about nine tenths of the slots fill before anything has to
go. Nothing is touched before it is used: a cache of a gigabyte starts at once and costs what it
holds. Layout, all numbers unsigned, 64 bits, in the machine's order (nobody else reads it)::

    cells   256 × 8   of each process: hits, misses, full, second of the last change, dropped
    ends    slots     expiry, seconds of the epoch; 0: the slot is free; 2^62: never
    names   slots     hash of the key; 0: never used. A hash is in one slot at most
    sizes   slots     bytes of the key << 32 | bytes of the value
    checks  slots     CRC-32 of expiry, sizes, key and value
    bodies  slots     key, value, directly one after the other; keysize + blocksize bytes each

Readers take no lock: an entry that is being written does not match its checksum, and is a miss.
Writers lock both sets (``fcntl``); the kernel releases the locks of one that is killed, and what it
left half-written is a free slot.

The hash is keyed with a secret of the instance: nobody outside can choose keys that crowd a set. Of
a process, one thread at a time may use the cache. The next master of a reload maps the same file.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import time
import zlib
from bisect import bisect_right
from hashlib import blake2b
from struct import Struct
from typing import Any

from uwgate.config.settings_tls import CacheSettings
from uwgate.tls.shared import keeps_size, memory_file

_WAYS = 16
_WORD = 8
_SEALED = Struct("=QQ")
_NEVER = 1 << 62
_MOST = (1 << 64) - 1
_CELLS = 256  # processes that count
_CELL_WORDS = 8
_HIT, _MISS, _FULL, _CHANGED, _DROPPED = range(5)
_READS = 3  # of an entry that does not match its checksum
_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_TRIES = 50  # of a lock that another process holds: tens of microseconds

_Spans = list[tuple[int, int]]
"""First set and number of sets, of what is locked."""


class SharedCache:
    """A cache; made before the fork, used by all. ``settings.items`` slots, rounded up to whole
    sets: unlike in uWSGI none is reserved. ``settings.blocks`` and ``hash`` change nothing.

    ``cell``: number of this process, 0 for the master; each counts in a place of its own, that of
    256 is again 0. ``handed``: what `handed` of the master before said; the cache is the same then,
    if its measures are. Raises OSError if there is no address space for it.
    """

    def __init__(self, settings: CacheSettings, handed: dict[str, Any] | None = None) -> None:
        self.settings = settings
        self.cell = 0
        self._sets = max(1, -(-settings.items // _WAYS))
        self._size = settings.keysize + settings.blocksize
        slots = self._sets * _WAYS
        cells = _CELLS * _CELL_WORDS
        self._start = _pages(cells * _WORD)  # of what clear() empties
        self._bodies = _pages(self._start + 4 * slots * _WORD)
        self._total = _pages(self._bodies + slots * self._size)
        self.inherited = False
        if handed is not None and handed.get("measures") == self._measures:
            self.inherited = keeps_size(int(handed["fd"]), self._total)
        if handed is not None and self.inherited:
            self._file = int(handed["fd"])
            self._secret = bytes.fromhex(handed["secret"])
        else:
            # Pages of such a file are not accounted before they are touched (no overcommit).
            self._file = memory_file("uwgate-cache", self._total)
            self._secret = secrets.token_bytes(16)
        self._memory = mmap.mmap(self._file, self._total)
        self._memory.madvise(mmap.MADV_DONTDUMP)  # it holds secrets
        words = memoryview(self._memory)[: self._bodies].cast("Q")
        self._counters = words[:cells]
        first = self._start // _WORD
        self._ends, self._names, self._sizes, self._checks = (
            words[first + part * slots : first + (part + 1) * slots] for part in range(4)
        )

    @property
    def _measures(self) -> list[int]:
        return [self._sets, self._size, self._bodies, self._total]

    def handed(self) -> dict[str, Any]:
        """For the cache of the next master: its descriptor ``fd`` has to stay open until then."""
        return {"fd": self._file, "secret": self._secret.hex(), "measures": self._measures}

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, unless it has expired."""
        slot = self._find(*self._places(key))
        value = None if slot is None else self._read(slot, key)
        self._count(_MISS if value is None else _HIT)
        return value

    def set(self, key: bytes, value: bytes, expires: int) -> bool:
        """Keep ``value``, instead of what ``key`` had, until ``expires`` (second of the epoch; 0:
        for ever). False if it is not kept: key or value are too large, the key is empty, or another
        process held one of the sets for too long. If both are full, what expires first goes
        (counted as ``full``)."""
        if not key or len(key) > self.settings.keysize or len(value) > self.settings.blocksize:
            return False
        name, sets = self._places(key)
        spans = [(number, 1) for number in sets]
        if not self._lock(spans):
            return False
        try:
            slot = self._find(name, sets)
            if slot is None:
                slot = self._victim(sets)
            end = min(max(expires, 1), _NEVER) if expires else _NEVER
            self._write(slot, name, key, value, end)
        finally:
            self._unlock()
        return True

    def delete(self, key: bytes) -> bool:
        """Forget ``key``; whether it was there."""
        name, sets = self._places(key)
        spans = [(number, 1) for number in sets]
        if self._find(name, sets) is None or not self._lock(spans):
            return False
        try:
            slot = self._find(name, sets)
            if slot is None or self._read(slot, key) is None:
                return False
            self._ends[slot] = 0
            self._touch()
        finally:
            self._unlock()
        return True

    def clear(self) -> bool:
        """Forget everything, and give the memory back; False if it was locked for too long."""
        spans = [(0, self._sets)]
        if not self._lock(spans):
            return False
        try:
            self._memory.madvise(mmap.MADV_REMOVE, self._start, self._total - self._start)
            self._touch()
        finally:
            self._unlock()
        return True

    # --- slots ------------------------------------------------------------------------------------

    def _places(self, key: bytes) -> tuple[int, tuple[int, ...]]:
        """Name of ``key``, and the two sets that may hold it; one, if there is no other."""
        digest = blake2b(key, digest_size=_WORD, key=self._secret).digest()
        name = int.from_bytes(digest, "little") or 1
        first = name % self._sets
        second = (name >> 32) % self._sets
        if first != second:
            return name, (first, second)
        if self._sets == 1:
            return name, (0,)
        return name, (first, (first + 1) % self._sets)

    def _find(self, name: int, sets: tuple[int, ...]) -> int | None:
        """The slot of that name, whatever its state."""
        for number in sets:
            start = number * _WAYS
            names = self._names[start : start + _WAYS].tolist()
            if name in names:
                return start + names.index(name)
        return None

    def _read(self, slot: int, key: bytes) -> bytes | None:
        """The value of the slot, if it is that key's, has not expired and is not being written."""
        now = int(time.time())
        for _ in range(_READS):
            end = self._ends[slot]
            if end <= now:
                return None
            sizes = self._sizes[slot]
            check = self._checks[slot]
            length = sizes >> 32
            size = length + (sizes & 0xFFFFFFFF)
            if size > self._size:
                continue
            start = self._bodies + slot * self._size
            body = self._memory[start : start + size]
            if zlib.crc32(body, zlib.crc32(_SEALED.pack(end, sizes))) == check:
                return body[length:] if body[:length] == key else None
        return None

    def _victim(self, sets: tuple[int, ...]) -> int:
        """A free or expired slot of the emptier set; if both are full, what expires first."""
        now = int(time.time())
        offers = []
        for number in sets:
            start = number * _WAYS
            ends = self._ends[start : start + _WAYS].tolist()
            ordered = sorted(ends)
            used = _WAYS - bisect_right(ordered, now)
            offers.append((used, ordered[0], start + ends.index(ordered[0])))
        used, _, slot = min(offers)
        if used == _WAYS:
            self._count(_FULL)
        return slot

    def _write(self, slot: int, name: int, key: bytes, value: bytes, end: int) -> None:
        sizes = len(key) << 32 | len(value)
        body = key + value
        start = self._bodies + slot * self._size
        self._ends[slot] = 0  # a free slot, should we be killed now
        self._names[slot] = name
        self._sizes[slot] = sizes
        self._checks[slot] = zlib.crc32(body, zlib.crc32(_SEALED.pack(end, sizes)))
        self._memory[start : start + len(body)] = body
        self._ends[slot] = end
        self._touch()

    # --- locks and counters -----------------------------------------------------------------------

    def _lock(self, spans: _Spans) -> bool:
        """Byte n of the file stands for set n. The locks are the process's, not the descriptor's:
        what the fork has copied excludes the parent. They end as soon as any descriptor of the file
        is closed, so none ever is."""
        for _ in range(_TRIES):
            try:
                for start, length in spans:
                    fcntl.lockf(self._file, _LOCK, length, start)
            except OSError:
                self._unlock()
                os.sched_yield()
            else:
                return True
        self._count(_DROPPED)
        return False

    def _unlock(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)  # all that this process has

    def _count(self, which: int) -> None:
        # Whatever others have written there fits after that.
        place = self.cell % _CELLS * _CELL_WORDS + which
        self._counters[place] = (self._counters[place] + 1) & _MOST

    def _touch(self) -> None:
        self._counters[self.cell % _CELLS * _CELL_WORDS + _CHANGED] = int(time.time())

    # --- statistics -------------------------------------------------------------------------------

    @property
    def dropped(self) -> int:
        """Writes of all processes that found their set locked for too long."""
        return sum(self._counters[_DROPPED::_CELL_WORDS].tolist())

    def items(self) -> int:
        """Entries that have not expired."""
        now = int(time.time())
        return sum(end > now for end in self._ends.tolist())

    def snapshot(self) -> dict[str, object]:
        """The object of uWSGI's stats server (``caches``), of all processes together."""
        settings, counters = self.settings, self._counters
        return {
            "name": settings.name,
            "hash": settings.hash,
            "hashsize": settings.hashsize,
            "keysize": settings.keysize,
            "max_items": settings.items,
            "blocks": settings.blocks or settings.items,
            "blocksize": settings.blocksize,
            "items": self.items(),
            "hits": sum(counters[_HIT::_CELL_WORDS].tolist()),
            "miss": sum(counters[_MISS::_CELL_WORDS].tolist()),
            "full": sum(counters[_FULL::_CELL_WORDS].tolist()),
            "last_modified_at": max(counters[_CHANGED::_CELL_WORDS].tolist()),
        }


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
