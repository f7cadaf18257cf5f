"""Captured datagrams, and datagrams made by hand: what `encode` would never send."""

from __future__ import annotations

from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "subscription"


def captured(name: str) -> bytes:
    """The datagram of ``name.hex``."""
    return bytes.fromhex((FIXTURES / f"{name}.hex").read_text())


def item(name: bytes, value: bytes) -> bytes:
    return len(name).to_bytes(2, "little") + name + len(value).to_bytes(2, "little") + value


def framed(data: bytes, command: int = 0, modifier: int = 224) -> bytes:
    """``data`` behind a header that fits it."""
    return bytes((modifier,)) + len(data).to_bytes(2, "little") + bytes((command,)) + data


def datagram(*items: tuple[str, bytes | str], command: int = 0) -> bytes:
    """The items in this order, duplicates and all."""
    return framed(
        b"".join(
            item(name.encode(), value.encode() if isinstance(value, str) else value)
            for name, value in items
        ),
        command,
    )


PLAIN: dict[str, bytes | str] = {
    "key": "example.com",
    "address": "127.0.0.1:3031",
    "modifier1": "0",
    "modifier2": "0",
    "cores": "1",
    "load": "0",
    "weight": "1",
}
"""The items of a plain 2.0 packet, in its order."""


def plain(**changed: bytes | str | None) -> bytes:
    """A plain packet with some items changed, added at the end, or (None) left out."""
    items = {**PLAIN, **changed}
    return datagram(*((name, value) for name, value in items.items() if value is not None))
