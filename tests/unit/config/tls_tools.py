"""Short ways to TLS settings, for the tests of this room; for use with the fixture ``files``."""

from __future__ import annotations

import os

from config_tools import errors_of, http_of, warnings_of

from uwgate.config.settings import HttpSettings
from uwgate.config.settings_tls import PairSettings, TlsSettings

TO = ("--http-to", "127.0.0.1:3031")


def pair(*words: str, **more: str | bool) -> PairSettings:
    """A pair of files in the current directory."""
    cert, key = map(os.path.abspath, words or ("foobar.crt", "foobar.key"))
    ca = more.get("ca", "")
    assert isinstance(ca, str)
    return PairSettings(
        cert,
        key,
        str(more.get("ciphers", "")),
        ca and os.path.abspath(ca),
        bool(more.get("required", False)),
    )


def ini(text: str, *words: str) -> HttpSettings:
    return http_of(*TO, *words, "-", stdin=f"[uwsgi]\n{text}".encode())


def tls(text: str, *words: str) -> TlsSettings:
    found = ini(f"https = :443,foobar.crt,foobar.key\n{text}", *words).tls
    assert found is not None
    return found


def complaints(text: str, *words: str) -> list[str]:
    """The errors of an INI text beside a listener, without where."""
    text = f"[uwsgi]\nhttps = :443,foobar.crt,foobar.key\n{text}"
    found = errors_of(*TO, *words, "-", stdin=text.encode())
    return [each.partition(": ")[2] for each in found]


def remarks(text: str, *words: str) -> list[str]:
    """The warnings of an INI text beside a listener, without where."""
    text = f"[uwsgi]\nhttps = :443,foobar.crt,foobar.key\n{text}"
    found = warnings_of(*TO, *words, "-", stdin=text.encode())
    return [each.partition(": ")[2] for each in found]
