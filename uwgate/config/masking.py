"""What nobody should read in messages and in ``--show-config``: keys, passwords, secrets."""

from __future__ import annotations

import re

PEM = "-----BEGIN "
"""How a value begins that is the PEM text itself, and not the name of a file (uWSGI)."""

HIDDEN = "***"

_PEM_TEXT = re.compile(r"-----BEGIN .*?(?:-----END [^-]*-----|\Z)", re.DOTALL)
# "[[USER]" stands in our own messages.
_STORE_USER = re.compile(r"\b((?:redis|valkey)s?://)(?!\[\[USER\])\S*@", re.IGNORECASE)
_STORE_WORD = re.compile(r"([?&]password=)[^&\s'\"]*", re.IGNORECASE)
_CACHE_SECRET = re.compile(r"(?<![A-Za-z0-9_-])(secret=)(?:\\.|[^,\\])*", re.DOTALL)


def masked(text: str) -> str:
    """``text`` without PEM texts, without users and passwords of store addresses, and without the
    ``secret=`` of a ``cache2``. What is cut off in the middle is hidden as well."""
    if PEM in text:
        text = _PEM_TEXT.sub("(PEM text)", text)
    text = _STORE_USER.sub(rf"\g<1>{HIDDEN}@", text)
    text = _STORE_WORD.sub(rf"\g<1>{HIDDEN}", text)
    return _CACHE_SECRET.sub(rf"\g<1>{HIDDEN}", text)
