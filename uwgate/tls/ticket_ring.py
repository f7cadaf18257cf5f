"""Several ticket keys at once, in the place where OpenSSL asks for them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import CFUNCTYPE, c_char_p, c_int, c_size_t, c_uint, c_void_p

from uwgate.tls.openssl import TICKET_KEY, Declaration, OpenSsl, declare, immortal

_NAME, _SECRET, _IV = 16, 32, 16

_TicketCallback = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int)

_COMMON: tuple[Declaration, ...] = (
    ("RAND_bytes", c_int, (c_void_p, c_int)),
    ("EVP_EncryptInit_ex", c_int, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    ("EVP_DecryptInit_ex", c_int, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
)
_OF_3: tuple[Declaration, ...] = (
    ("EVP_CIPHER_fetch", c_void_p, (c_void_p, c_char_p, c_char_p)),
    ("EVP_MAC_init", c_int, (c_void_p, c_void_p, c_size_t, c_void_p)),
)
_OF_1: tuple[Declaration, ...] = (  # OpenSSL 3 still has them
    ("EVP_aes_256_cbc", c_void_p, ()),
    ("EVP_sha256", c_void_p, ()),
    ("HMAC_Init_ex", c_int, (c_void_p, c_void_p, c_int, c_void_p, c_void_p)),
)


class _Parameter(ctypes.Structure):
    """OSSL_PARAM(3)."""

    _fields_ = (
        ("key", c_char_p),
        ("data_type", c_uint),
        ("data", c_char_p),
        ("data_size", c_size_t),
        ("return_size", c_size_t),
    )


class TicketRing:
    """Several ticket keys: one encrypts, all decrypt (SSL_CTX_set_tlsext_ticket_key_evp_cb(3)).

    Tickets are those that OpenSSL makes of the same key by itself (RFC 5077 §4): name, IV,
    AES-256-CBC, HMAC-SHA-256. Never freed, as C knows it: make one a process, not one a context.
    ``old``: by the callback of OpenSSL 1.1.1, with HMAC_CTX. Without a key, no ticket is good.
    """

    def __init__(self, hooks: OpenSsl, *, old: bool | None = None) -> None:
        self.old = hooks.number < 0x30000000 if old is None else old
        self._library = library = hooks.library
        self._buffer = ctypes.create_string_buffer(TICKET_KEY)
        self._start = ctypes.addressof(self._buffer)
        self._places: dict[bytes, tuple[int, int]] = {}
        declare(library, _COMMON)
        declare(library, _OF_1 if self.old else _OF_3)
        if self.old:
            self._cipher = library.EVP_aes_256_cbc()
            self._digest = library.EVP_sha256()
        else:
            self._cipher = library.EVP_CIPHER_fetch(None, b"AES-256-CBC", None)
            self._parameters = (_Parameter * 2)(
                _Parameter(b"digest", 4, b"SHA256", 6, c_size_t(-1).value),  # 4: UTF-8
                _Parameter(None, 0, None, 0, 0),
            )
            self._digest = ctypes.addressof(self._parameters)
        self.function = immortal(_TicketCallback(self._call))

    def load(self, keys: Sequence[bytes | bytearray], encrypting: int = 0) -> None:
        """Use these keys, TICKET_KEY bytes each; ``encrypting``: the index of that which encrypts.

        The keys before are overwritten. ValueError for a wrong length or no key.
        """
        if not keys or any(len(key) != TICKET_KEY for key in keys):
            raise ValueError(f"one or more ticket keys of {TICKET_KEY} bytes are needed")
        self._wipe()
        self._buffer = buffer = ctypes.create_string_buffer(len(keys) * TICKET_KEY)
        base = ctypes.addressof(buffer)
        for index, key in enumerate(keys):
            place = index * TICKET_KEY
            ctypes.memmove(base + place, bytes(key), TICKET_KEY)
            verdict = 1 if index == encrypting else 2
            self._places.setdefault(bytes(key[:_NAME]), (base + place, verdict))
        self._start = base + encrypting * TICKET_KEY

    def _wipe(self) -> None:
        ctypes.memset(self._buffer, 0, len(self._buffer))
        self._places.clear()

    def _call(self, _: int, name: int, iv: int, cipher: int, mac: int, encrypt: int) -> int:
        """1: go on; 2: go on, and send a new ticket; 0: a full handshake; -1: failed."""
        try:
            library = self._library
            if encrypt:
                if not self._places or library.RAND_bytes(iv, _IV) != 1:
                    return -1
                key, verdict, init = self._start, 1, library.EVP_EncryptInit_ex
                ctypes.memmove(name, key, _NAME)
            else:
                found = self._places.get(ctypes.string_at(name, _NAME))
                if found is None:
                    return 0
                key, verdict = found
                init = library.EVP_DecryptInit_ex
            good = init(cipher, self._cipher, None, key + _NAME + _SECRET, iv)
            if self.old:
                good = good and library.HMAC_Init_ex(mac, key + _NAME, _SECRET, self._digest, None)
            else:
                good = good and library.EVP_MAC_init(mac, key + _NAME, _SECRET, self._digest)
            return verdict if good else -encrypt
        except BaseException:
            return -1 if encrypt else 0  # a ticket that cannot be read costs a full handshake
