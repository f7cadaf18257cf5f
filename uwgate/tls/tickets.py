"""Keys of session tickets (RFC 5077, RFC 8446 §4.6.1), the same for all workers of an instance.

The master makes them before the fork, in memory that all share, and changes them from time to
time; a worker looks once a second whether they have changed. Tickets under the last key are
accepted for as long as they can be valid, and answered with a new one.

A key has 80 bytes: 16 name, 32 HMAC-SHA-256, 32 AES-256. A file of keys holds one or more, raw one
after another (nginx's files, 80 bytes each) or a line of base64 each; those of 48 bytes (name, 16
HMAC, 16 AES) are stretched. The first encrypts, all decrypt.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import hashlib
import hmac
import mmap
import os
import ssl
import weakref
import zlib
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

from uwgate.config.settings_tls import TicketSettings
from uwgate.tls.errors import TlsError
from uwgate.tls.openssl import OpenSsl, TicketCallback

KEY_SIZE = 80
_SHORT_KEY_SIZE = 48
MAX_KEYS = 16
_HEADER = Struct("<QQI")  # number of the last change, keys, CRC-32 of what follows
_SIZE = 4096
_CIPHER_BLOCK = 16


class TicketKeys:
    """The keys. ``keys``: the current one first. ``timeout``: life of a session in seconds."""

    def __init__(
        self,
        settings: TicketSettings,
        timeout: int,
        log: Callable[[str], None],
        *,
        file: str = "",
    ) -> None:
        self.rotation = settings.rotate
        self._timeout = timeout
        self._log = log
        self._file = file
        self._stamp: object = None
        self._complained = False
        self._rotated = 0.0  # when the last key was replaced; 0: never
        self._change = 0
        self._memory = mmap.mmap(-1, _SIZE)
        if hasattr(mmap, "MADV_DONTDUMP"):
            self._memory.madvise(mmap.MADV_DONTDUMP)
        self._contexts: weakref.WeakKeyDictionary[ssl.SSLContext, OpenSsl] = (
            weakref.WeakKeyDictionary()
        )
        self._callback: Any = None
        self.keys: tuple[bytes, ...] = (os.urandom(KEY_SIZE),)
        if file:
            self._stamp = _stamp(file)
            self.keys = read_keys(file)
            _check_mode(file, log)
        self._publish()

    def __repr__(self) -> str:
        return f"<TicketKeys, {len(self.keys)}>"

    # --- in the master ----------------------------------------------------------------------------

    def rotate(self) -> None:
        """A new key; the last one still decrypts."""
        if not self._file:
            self.keys = (os.urandom(KEY_SIZE), self.keys[0])
            self._publish()

    def retire(self) -> None:
        """No ticket of the last key can be valid any more."""
        if not self._file and len(self.keys) > 1:
            self.keys = self.keys[:1]
            self._publish()

    def reread(self) -> None:
        """Look whether the file has changed; while it cannot be read the keys stay."""
        if not self._file:
            return
        try:
            stamp = _stamp(self._file)
            if stamp == self._stamp:
                return
            keys = read_keys(self._file)
        except TlsError as error:
            if not self._complained:
                self._log(f"{error}; the ticket keys stay as they are")
            self._complained = True
            return
        self._complained = False
        self._stamp = stamp
        if keys != self.keys:
            self.keys = keys
            self._publish()
            self._log(f"ticket keys read anew from {self._file}")

    def _publish(self) -> None:
        self._change += 1
        body = b"".join(self.keys)
        packed = _HEADER.pack(self._change, len(self.keys), zlib.crc32(body)) + body
        self._memory[: len(packed)] = packed
        self._memory[len(packed) :] = bytes(_SIZE - len(packed))

    # --- in a worker ------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take over what the master has changed; one comparison where nothing has."""
        change, count, check = _HEADER.unpack_from(self._memory)
        if change == self._change or not 0 < count <= MAX_KEYS:
            return
        body = self._memory[_HEADER.size : _HEADER.size + count * KEY_SIZE]
        if zlib.crc32(body) != check:
            return  # half written: whole a second later
        self._change = change
        self._use([body[pos : pos + KEY_SIZE] for pos in range(0, len(body), KEY_SIZE)])

    def adopt(self, keys: Sequence[bytes]) -> None:
        """Use keys of the distributed store in this process."""
        if tuple(keys) != self.keys:
            self._use(keys)

    def _use(self, keys: Sequence[bytes]) -> None:
        self.keys = tuple(keys)
        for context, hooks in list(self._contexts.items()):
            self._apply(hooks, context)

    def attach(self, hooks: OpenSsl, context: ssl.SSLContext) -> None:
        """Have ``context`` use these keys, now and after each change."""
        self._contexts[context] = hooks
        self._apply(hooks, context)

    def _apply(self, hooks: OpenSsl, context: ssl.SSLContext) -> None:
        """One key: OpenSSL's own code. More: a callback, which costs some microseconds."""
        hooks.set_ticket_keys(context, self.keys[0])
        several = len(self.keys) > 1 and ssl.OPENSSL_VERSION_INFO >= (3,)
        if several and self._callback is None:
            self._callback = Callback(hooks, self)
        hooks.library.SSL_CTX_set_tlsext_ticket_key_evp_cb.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        pointer = hooks.pointer(context)
        if several:
            hooks.keep(context, "tickets", self._callback)
            hooks.library.SSL_CTX_set_tlsext_ticket_key_evp_cb(pointer, self._callback.function)
        elif ssl.OPENSSL_VERSION_INFO >= (3,):
            hooks.library.SSL_CTX_set_tlsext_ticket_key_evp_cb(pointer, None)


class Callback:
    """OpenSSL's question which key to use: SSL_CTX_set_tlsext_ticket_key_evp_cb(3)."""

    def __init__(self, hooks: OpenSsl, keys: TicketKeys) -> None:
        self._keys = keys
        self._library = library = hooks.library
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        for name, result, arguments in (
            ("EVP_EncryptInit_ex", number, [pointer, pointer, pointer, text, pointer]),
            ("EVP_DecryptInit_ex", number, [pointer, pointer, pointer, text, pointer]),
            ("EVP_aes_256_cbc", pointer, []),
            ("EVP_MAC_init", number, [pointer, text, ctypes.c_size_t, pointer]),
        ):
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
        self._cipher = library.EVP_aes_256_cbc()
        self._parameters = _digest_parameters()
        self.function = TicketCallback(self._call)

    def _call(self, _: int, name: int, iv: int, cipher: int, mac: int, encrypt: int) -> int:
        """1: go on; 2: go on, and send a new ticket; 0: a full handshake; -1: failed."""
        try:
            keys = self._keys.keys
            if encrypt:
                key = keys[0]
                ctypes.memmove(name, key[:16], 16)
                ctypes.memmove(iv, os.urandom(_CIPHER_BLOCK), _CIPHER_BLOCK)
                done = self._start(self._library.EVP_EncryptInit_ex, key, iv, cipher, mac)
                return 1 if done else -1
            wanted = ctypes.string_at(name, 16)
            for index, key in enumerate(keys):
                if key[:16] == wanted:
                    if not self._start(self._library.EVP_DecryptInit_ex, key, iv, cipher, mac):
                        return -1
                    return 2 if index else 1
            return 0
        except Exception:  # C code is above us
            return -1

    def _start(self, init: Any, key: bytes, iv: int, cipher: int, mac: int) -> bool:
        done = init(cipher, self._cipher, None, key[48:], iv)
        return bool(done and self._library.EVP_MAC_init(mac, key[16:48], 32, self._parameters[0]))


class _Parameter(ctypes.Structure):
    """OSSL_PARAM(3)."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_char_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


def _digest_parameters() -> tuple[Any, ...]:
    """``digest = SHA256`` for EVP_MAC_init, and what has to live as long."""
    utf8, unmodified = 4, ctypes.c_size_t(-1).value
    array = (_Parameter * 2)(
        _Parameter(b"digest", utf8, b"SHA256", 6, unmodified),
        _Parameter(None, 0, None, 0, 0),
    )
    return ctypes.addressof(array), array


# --- files ----------------------------------------------------------------------------------------


def read_keys(path: str) -> tuple[bytes, ...]:
    """The keys of a file; TlsError if it cannot be read or is none."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_KEYS * 256 + 1)
    except OSError as error:
        raise TlsError(f"ssl-ticket-keys: {path}: {error.strerror}") from None
    keys = _raw_keys(data)
    if keys is None:
        try:
            keys = [base64.b64decode(line, validate=True) for line in data.split()]
        except (binascii.Error, ValueError):
            keys = []
    good = keys and all(len(key) in (KEY_SIZE, _SHORT_KEY_SIZE) for key in keys)
    if not good or len(keys) > MAX_KEYS:
        raise TlsError(
            f"ssl-ticket-keys: {path}: expected 1 to {MAX_KEYS} keys of 80 or 48 bytes, "
            "raw or a line of base64 each"
        )
    whole = tuple(map(_stretched, keys))
    if len({key[:16] for key in whole}) < len(whole):
        raise TlsError(f"ssl-ticket-keys: {path}: two keys have the same name (first 16 bytes)")
    return whole


def _raw_keys(data: bytes) -> list[bytes] | None:
    """None for what can only be text."""
    if data.isascii() and data.strip():
        return None
    for size in (KEY_SIZE, _SHORT_KEY_SIZE):
        if data and len(data) % size == 0:
            return [data[pos : pos + size] for pos in range(0, len(data), size)]
    return []


def _stretched(key: bytes) -> bytes:
    if len(key) == KEY_SIZE:
        return key
    secret = key[16:]
    parts = [hmac.new(secret, label, hashlib.sha256).digest() for label in (b"hmac", b"aes")]
    return key[:16] + b"".join(parts)


def _stamp(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError as error:
        raise TlsError(f"ssl-ticket-keys: {path}: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _check_mode(path: str, log: Callable[[str], None]) -> None:
    if os.stat(path).st_mode & 0o007:
        log(f"warning: ssl-ticket-keys: everybody may read {path}")
