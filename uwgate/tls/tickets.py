"""Keys of session tickets (RFC 5077, RFC 8446 §4.6.1), the same for all workers of an instance.

The master makes them before the fork, in memory that all share, and changes them from time to
time; workers look once a second whether they have. A new key decrypts at once and encrypts a
second later, when every worker knows it; the one before decrypts for as long as its tickets live,
and is overwritten then. While there is one key only, OpenSSL uses it by itself; while there are
several, it asks a `TicketRing`, which costs a resumed handshake some microseconds.

All times are seconds of ``time.monotonic()``, which the processes of a machine share.

The memory, in the machine's byte order: u64 number of the change, u32 number of keys, u32 CRC-32
of all the rest; then for each key, newest first, its 80 bytes, f64 time from which it encrypts,
f64 time until which it decrypts. What was read half written has another CRC, and is read again a
second later. It is left out of core dumps.

A file of keys holds 1 to 16 keys, raw one after another (as nginx has them) or in base64, a line
each (as HAProxy has them). The first encrypts, all decrypt. A key has 80 bytes (16 name, 32
HMAC-SHA-256, 32 AES-256) or 48, of which the last 32 are stretched; so nginx, which takes those for
AES-128, and this do not read each other's tickets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import mmap
import os
import ssl
import stat
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Sequence

from uwgate.config.settings_tls import TicketSettings
from uwgate.tls.errors import TlsError
from uwgate.tls.openssl import TICKET_KEY, OpenSsl
from uwgate.tls.shared import memory_file, seal
from uwgate.tls.ticket_ring import TicketRing

KEY_SIZE = TICKET_KEY
MAX_FILE_KEYS = 16
_SHORT = 48
_NAME = 16
_MOST = 512  # keys in memory
_HEADER = struct.Struct("=QII")
_HEAD = struct.Struct("=QI")
_CHANGE = struct.Struct("=Q")
_ENTRY = struct.Struct(f"={KEY_SIZE}sdd")
_LONGEST = 1 << 20  # bytes of the memory of the master before
_UNDERSTOOD = 1.0  # seconds after which every worker knows a new key
_FOREVER = math.inf


class _Key:
    """A key, and when it encrypts and decrypts. Never shown."""

    __slots__ = ("data", "since", "until")

    def __init__(self, data: bytes, since: float = 0.0, until: float = _FOREVER) -> None:
        self.data = bytearray(data)
        self.since = since
        self.until = until

    def wipe(self) -> None:
        self.data[:] = bytes(KEY_SIZE)


class TicketKeys:
    """The keys of an instance.

    ``timeout``: life of a ticket in seconds. ``inherited``: descriptor of the memory of the keys of
    the master before, which go on; it is closed. Where ``settings`` name a file, the keys are those
    in it; ``TlsError`` if it cannot be used. Where they name the distributed store, keys of our own
    serve until `adopt` brings its keys. ``file``: another than in the settings.
    """

    def __init__(
        self,
        settings: TicketSettings,
        timeout: int,
        log: Callable[[str], None],
        *,
        file: str | None = None,
        inherited: int | None = None,
    ) -> None:
        source = "" if "://" in settings.source else settings.source
        self._file = source if file is None else file
        self._rotation = settings.rotate
        self._timeout = timeout
        self._log = log
        self._stamp: object = None
        self._complaint = ""
        self._adopted = False
        self._change = 0
        self._hooks: OpenSsl | None = None
        self._ring: TicketRing | None = None
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
        self._encrypting = bytearray()
        self._several = False
        self._event = _FOREVER  # when a key begins to encrypt, or ends to decrypt
        self.next_rotation = _FOREVER
        now = time.monotonic()
        if self._file:
            self._keys = self._read_file()
        else:
            self._keys = _left(inherited, now) or [_Key(os.urandom(KEY_SIZE), since=now)]
            self.next_rotation = max(now, self._keys[0].since + self._rotation)
        together = math.ceil(timeout / self._rotation) + 3
        self._most = MAX_FILE_KEYS if self._file else min(together, _MOST)
        size = _HEADER.size + self._most * _ENTRY.size
        # A file, so that the next master of a reload finds the keys; our workers keep to this one.
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._descriptor = memory_file("uwgate-tickets", whole)
        self._memory = mmap.mmap(self._descriptor, whole)
        if hasattr(mmap, "MADV_DONTDUMP"):
            self._memory.madvise(mmap.MADV_DONTDUMP)
        self._publish()
        self._select(now)

    def handover(self) -> int:
        """A sealed copy of the keys for the next master -> its descriptor. Not what workers have:
        they could write there what they want to be believed."""
        record = self._record()
        file = os.memfd_create("uwgate-tickets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(file, record)
            seal(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def __repr__(self) -> str:
        return f"<TicketKeys: {len(self._keys)}>"

    def __len__(self) -> int:
        """How many keys decrypt, or will."""
        return len(self._keys)

    # --- in the master ----------------------------------------------------------------------------

    def rotate(self, now: float | None = None) -> None:
        """A new key; the one before decrypts for ``timeout`` and two seconds. Nothing for keys of
        a file. Sets ``next_rotation``."""
        if self._file:
            return
        now = time.monotonic() if now is None else now
        self.next_rotation = now + self._rotation
        last = self._keys[0]
        # A worker may use it until it next looks, up to a second after the new one begins.
        last.until = min(last.until, now + _UNDERSTOOD + 1.0 + self._timeout)
        new = _Key(os.urandom(KEY_SIZE), since=now + _UNDERSTOOD)
        self._replace([new, *self._keys], now)

    def retire(self, now: float | None = None) -> None:
        """Overwrite the keys that no ticket can need any more."""
        now = time.monotonic() if now is None else now
        if any(key.until <= now for key in self._keys):
            self._replace(self._keys, now)

    def reread(self) -> None:
        """Take over the file's keys if it has changed. With what cannot be read the keys stay, and
        a line in the log says so, once."""
        if not self._file:
            return
        try:
            if _stamp(self._file) == self._stamp:
                return
            keys = self._read_file()
        except TlsError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._log(f"{error}; the ticket keys stay as they are")
            return
        self._complaint = ""
        if [key.data for key in keys] != [key.data for key in self._keys]:
            self._replace(keys, time.monotonic())
            self._log(f"ssl-ticket-keys: {self._file}: {len(keys)} keys are in use from now on")

    def _read_file(self) -> list[_Key]:
        keys, self._stamp = read_keys(self._file, self._log)
        return [_Key(key) for key in keys]

    def _replace(self, keys: Sequence[_Key], now: float) -> None:
        """Other keys for this process and, through the memory, for all."""
        self._take([key for key in keys if key.until > now][: self._most])
        self._publish()
        self._select(now)

    def _publish(self) -> None:
        self._change += 1
        record = self._record()
        # In one piece with what overwrites the keys before.
        self._memory[:] = record + bytes(len(self._memory) - len(record))

    def _record(self) -> bytes:
        head = _HEAD.pack(self._change, len(self._keys))
        body = b"".join(_ENTRY.pack(bytes(key.data), key.since, key.until) for key in self._keys)
        check = zlib.crc32(body, zlib.crc32(head))
        return _HEADER.pack(self._change, len(self._keys), check) + body

    # --- in a worker ------------------------------------------------------------------------------

    def refresh(self, now: float | None = None) -> None:
        """Take over what the master has changed, and what time has; two comparisons usually."""
        now = time.monotonic() if now is None else now
        change = _CHANGE.unpack_from(self._memory)[0]
        changed = change != self._change and not self._adopted and self._read_memory()
        if changed or now >= self._event:
            self._select(now)

    def _read_memory(self) -> bool:
        change, keys = _read(self._memory)
        if 0 < len(keys) <= self._most:  # else half written: whole a second later
            self._take(keys)
            self._change = change
            return True
        return False

    def fileno(self) -> int:
        """Descriptor of the memory, for the keys of the next master (``inherited``)."""
        return self._descriptor

    def adopt(self, keys: Sequence[bytes]) -> None:
        """Use keys of the distributed store in this process, from now on instead of the master's:
        the first encrypts, all decrypt. ValueError unless there are some, of 80 bytes each."""
        if not keys or any(len(key) != KEY_SIZE for key in keys):
            raise ValueError(f"one or more ticket keys of {KEY_SIZE} bytes are needed")
        self._adopted = True
        if [bytes(key.data) for key in self._keys] != list(keys):
            self._take([_Key(key) for key in keys])
            self._select(time.monotonic())

    def attach(self, hooks: OpenSsl, context: ssl.SSLContext) -> None:
        """Have ``context`` use these keys, now and after each change."""
        self._hooks = hooks
        self._contexts.add(context)
        self._apply(hooks, context)

    # --- in both ----------------------------------------------------------------------------------

    def _take(self, keys: list[_Key]) -> None:
        kept = set(map(id, keys))
        for key in self._keys:
            if id(key) not in kept:
                key.wipe()
        self._keys = keys

    def _select(self, now: float) -> None:
        """Which keys are good now, and which of them encrypts."""
        good = [key for key in self._keys if key.until > now] or self._keys[:1]
        encrypting = next((key for key in good if key.since <= now), good[-1])
        times = [time for key in good for time in (key.since, key.until) if time > now]
        self._event = min(times, default=_FOREVER)
        self._encrypting = encrypting.data
        self._good = good
        self._several = len(good) > 1
        if self._hooks is not None:
            self._load_ring(self._hooks)
            for context in list(self._contexts):
                self._apply(self._hooks, context)

    def _load_ring(self, hooks: OpenSsl) -> None:
        if self._ring is None:
            self._ring = TicketRing(hooks)
        datas = [key.data for key in self._good]
        encrypting = next(i for i, data in enumerate(datas) if data is self._encrypting)
        self._ring.load(datas, encrypting)

    def _apply(self, hooks: OpenSsl, context: ssl.SSLContext) -> None:
        hooks.set_ticket_keys(context, self._encrypting)
        if self._several and self._ring is None:
            self._load_ring(hooks)
        hooks.set_ticket_ring(context, self._ring if self._several else None)


# --- files ----------------------------------------------------------------------------------------


def _read(memory: mmap.mmap | bytearray) -> tuple[int, list[_Key]]:
    """Number of the change and the keys in the memory; no keys if they are being written."""
    with memoryview(memory) as shared:
        change, count, check = _HEADER.unpack_from(shared)
        end = _HEADER.size + count * _ENTRY.size
        if end > len(shared):
            return change, []
        body = bytearray(shared[_HEADER.size : end])
    good = zlib.crc32(body, zlib.crc32(_HEAD.pack(change, count))) == check
    keys = [_Key(*each) for each in _ENTRY.iter_unpack(body)] if good else []
    body[:] = bytes(len(body))
    return change, keys


def _left(descriptor: int | None, now: float) -> list[_Key]:
    """The keys in the memory of the master before that are still good."""
    if descriptor is None:
        return []
    try:
        # Not mapped: an older uwgate has left its length open to everybody who has it.
        memory = bytearray(os.pread(descriptor, _LONGEST, 0))
        keys = _read(memory)[1]
        memory[:] = bytes(len(memory))
        return [key for key in keys if key.until > now and key.since <= now + 1]
    except (OSError, struct.error):
        return []
    finally:
        os.close(descriptor)


def read_keys(path: str, log: Callable[[str], None]) -> tuple[list[bytes], object]:
    """The keys of a file, 80 bytes each, and its stamp, which changes with it. TlsError if it
    cannot be read or holds something else; a line in ``log`` if everybody may read it."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_FILE_KEYS * 128)
    except OSError as error:
        raise TlsError(f"ssl-ticket-keys: {path}: {error.strerror}") from None
    keys = _parse(data)
    if not keys or len(keys) > MAX_FILE_KEYS:
        raise TlsError(
            f"ssl-ticket-keys: {path}: expected 1 to {MAX_FILE_KEYS} keys of 80 or 48 bytes, "
            "raw or a line of base64 each"
        )
    if len({key[:_NAME] for key in keys}) < len(keys):
        raise TlsError(f"ssl-ticket-keys: {path}: two keys begin with the same 16 bytes")
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        log(f"warning: ssl-ticket-keys: {path}: everybody may read or write it")
    return [_stretched(key) for key in keys], _facts(status)


def _parse(data: bytes) -> list[bytes]:
    """Keys of both lengths; none for what is no file of keys."""
    if data.isascii():  # 48 bytes of chance never are
        try:
            keys = [base64.b64decode(line, validate=True) for line in data.split()]
        except binascii.Error:
            return []
        return keys if all(len(key) in (KEY_SIZE, _SHORT) for key in keys) else []
    for size in (KEY_SIZE, _SHORT):
        if len(data) % size == 0:
            return [data[place : place + size] for place in range(0, len(data), size)]
    return []


def _stretched(key: bytes) -> bytes:
    if len(key) == KEY_SIZE:
        return key
    secret = key[_NAME:]
    return key[:_NAME] + b"".join(
        hmac.digest(secret, label, hashlib.sha256) for label in (b"uwgate mac", b"uwgate cipher")
    )


def _stamp(path: str) -> object:
    try:
        return _facts(os.stat(path))
    except OSError as error:
        raise TlsError(f"ssl-ticket-keys: {path}: {error.strerror}") from None


def _facts(status: os.stat_result) -> object:
    return status.st_mtime_ns, status.st_size, status.st_ino
