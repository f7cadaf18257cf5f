"""Text -> value, for the options of the subscription servers.

Every function raises ``ValueError`` with one sentence that says what is wrong and what is expected.
"""

from __future__ import annotations

import os

from uwgate.config import addresses, values
from uwgate.config.settings import Endpoint
from uwgate.config.subscribe import key as announced_key

DIGESTS = (
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "sha512-224",
    "sha512-256",
    "sha3-224",
    "sha3-256",
    "sha3-384",
    "sha3-512",
    "blake2b512",
    "blake2s256",
)
"""Names of digests to check signatures with (OpenSSL's); MD5 and older are too weak."""


def datagram(text: str) -> Endpoint:
    """A datagram address: ``HOST:PORT`` or ``[IPV6]:PORT`` is UDP (an empty host: any address of
    this machine), anything without a colon a path. ``@`` means nothing special here (uWSGI)."""
    if text.startswith("@"):
        text = "./" + text
    found = addresses.listening(text)
    if found.kind in ("fd", "shared"):
        raise ValueError(f"{text!r} cannot be used here; expected HOST:PORT or a path")
    return found


def target(text: str) -> Endpoint:
    """The address of another router's subscription server."""
    found = datagram(text)
    if found.kind == "tcp" and not found.port:
        raise ValueError(f"{text!r} has no port to send to")
    return found


def key(text: str) -> str:
    """A routing key; compared in lower case."""
    return announced_key(text)


def mountpoints(text: str) -> int:
    """How many segments of the path belong to a key; a word that means on is one."""
    if text.lower() in ("", "true", "on", "yes"):
        return 1
    return 0 if values.is_false(text) else values.integer(0, 16)(text)


def sign_check(text: str) -> tuple[str, str]:
    """``DIGEST:DIR`` -> both."""
    digest, colon, directory = text.partition(":")
    if not colon or not directory:
        raise ValueError(f"{text!r} is not complete; expected DIGEST:DIR, as in SHA256:/etc/keys")
    if digest.lower() not in DIGESTS:
        known = ", ".join(DIGESTS)
        raise ValueError(f"the digest {digest!r} is unknown or too weak; expected one of {known}")
    if "\0" in directory:
        raise ValueError("a directory cannot have a NUL in its name")
    return digest, os.path.expanduser(directory)
