"""uWSGI's cache datagrams: as captured from uWSGI 2.0.31, made by us, and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols.cache_sync import SyncError, Update, datagram, decode, encode, split

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "cache-sync"


def captured(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (FIXTURES / f"{name}.hex").read_text().split()]


(SET,) = captured("udp-set-noexpire")


@pytest.mark.parametrize(
    ("name", "update"),
    [
        ("udp-set-noexpire", Update(b"mykey", b"hello")),
        ("udp-set-expire-abs", Update(b"k2", b"world", 1795229837)),
        ("udp-update-expire-abs", Update(b"mykey", b"HELLO2", 1795229598)),
        ("udp-set-lru-relative-expiry", Update(b"mykey", b"hello", 77)),
        ("udp-inc-operand-only", Update(b"num", (5).to_bytes(8, "little"))),
        ("accepted-set-noexpire", Update(b"rx1", b"value1")),
        ("accepted-delete-padded2", Update(b"rx1", None)),
    ],
)
def test_as_uwsgi_says_it_or_hears_it(name: str, update: Update) -> None:
    """What a uWSGI honours is what is sent; nothing that one sends is sent otherwise."""
    (data,) = captured(name)
    assert decode(data) == update
    assert encode(update) == data


@pytest.mark.parametrize(
    ("name", "update"),
    [
        ("udp-delete-as-sent", Update(b"mykey", None)),
        ("ignored-delete-standard", Update(b"rx1", None)),
        ("ignored-delete-padded1", Update(b"rx3", None)),
        ("accepted-set-without-expiry-field", Update(b"rx3", b"v3")),
    ],
)
def test_what_is_understood_but_not_said(name: str, update: Update) -> None:
    (data,) = captured(name)
    assert decode(data) == update
    assert encode(update) != data


def test_clearing_is_not_understood() -> None:
    """A uWSGI says it by deletes of no key, which other uWSGIs drop."""
    burst = captured("udp-clear-burst")
    assert len(burst) == 19
    for data in burst:
        with pytest.raises(SyncError, match="no key"):
            decode(data)


def test_every_capture_is_used() -> None:
    text = Path(__file__).read_text()
    assert not [path.stem for path in FIXTURES.glob("*.hex") if f'"{path.stem}"' not in text]


@given(
    st.binary(min_size=1, max_size=300),
    st.one_of(st.none(), st.binary(max_size=300)),
    st.integers(0, 1 << 40),
)
def test_there_and_back(key: bytes, value: bytes | None, expires: int) -> None:
    update = Update(key, value, expires if value is not None else 0)
    assert decode(encode(update)) == update


@given(st.binary(max_size=60))
def test_whatever_comes(body: bytes) -> None:
    for data in (body, datagram(10, body), datagram(11, body)):
        try:
            decode(data)
        except SyncError:
            pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x6f\0\0",
        b"\x6e" + SET[1:],
        SET[:-1],
        SET + b"x",
        datagram(10, b""),
        datagram(10, b"\0\0\x01\0v"),
        datagram(10, b"\x01\0k"),
        datagram(10, b"\x01\0k\x05\0v"),
        datagram(10, b"\x01\0k\x01\0v\x01\0x"),
        datagram(10, b"\x01\0k\x01\0v\0\0"),
        datagram(10, b"\x01\0k\x01\0v\x01\x000x"),
        datagram(10, b"\x01\0k\x01\0v\x15\0" + b"1" * 21),
        datagram(12, b"\x01\0k"),
        datagram(11, b"\x05\0k"),
    ],
)
def test_broken(data: bytes) -> None:
    with pytest.raises(SyncError):
        decode(data)


@pytest.mark.parametrize(
    "update",
    [
        Update(b"k", b"v" * 65536),  # uWSGI would send what is left over of 65536
        Update(b"k", b"v" * 65500),
        Update(b"k" * 65536, None),
    ],
)
def test_what_fits_no_datagram(update: Update) -> None:
    with pytest.raises(SyncError):
        encode(update)


def test_split() -> None:
    assert split(SET) == (10, SET[4:])
