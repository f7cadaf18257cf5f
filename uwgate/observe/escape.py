"""Bytes of clients made safe for logs: one line stays one line, and no field can be forged.

Everything outside printable ASCII, the double quote and the backslash become ``\\xHH``, so that
the original bytes can be told from the line without doubt and a terminal shows it as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from json.encoder import encode_basestring_ascii

# Clean text is by far the most common: one search decides.
_UNSAFE = re.compile(rb"[^\x20\x21\x23-\x5b\x5d-\x7e]")
_unsafe = _UNSAFE.search
_UNSAFE_WORD = re.compile(rb"[^\x21\x23-\x5b\x5d-\x7e]")
_HEX = tuple(b"\\x%02x" % byte for byte in range(256))
_CACHED_LENGTH = 256


def _replace(match: re.Match[bytes]) -> bytes:
    return _HEX[match[0][0]]


def escape(raw: bytes) -> str:
    """For quoted fields and templates; spaces stay."""
    if _unsafe(raw) is None:
        return raw.decode("ascii")
    return _UNSAFE.sub(_replace, raw).decode("ascii")


def escape_word(raw: bytes) -> str:
    """For fields without quotes: spaces are escaped too; empty becomes ``-``.

    Addresses and host names repeat: short ones are remembered.
    """
    return _short_word(raw) if len(raw) <= _CACHED_LENGTH else _word(raw)


def _word(raw: bytes) -> str:
    return _UNSAFE_WORD.sub(_replace, raw).decode("ascii") or "-"


_short_word = lru_cache(maxsize=1024)(_word)


def escape_json(raw: bytes) -> str:
    """A JSON string with its quotes, pure ASCII; bytes that are not UTF-8 appear as ``\\xHH``."""
    text = encode_basestring_ascii(raw.decode("utf-8", "backslashreplace"))
    return text.replace("\x7f", "\\u007f") if "\x7f" in text else text
