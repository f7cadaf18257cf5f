"""uWSGI's cache datagrams: as captured from uWSGI 2.0.31, made by us, and broken ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols.cache_sync import SyncError, Update, datagram, decode, encode, split

# Captured: sent by a uWSGI to its nodes, or accepted by one.
SET = bytes.fromhex("6f11000a05006d796b6579050068656c6c6f010030")
DELETE_AS_SENT = bytes.fromhex("6f07000b05006d796b6579")
DELETE_ACCEPTED = bytes.fromhex("6f07000b03007278310000")


def test_as_uwsgi_says_it() -> None:
    assert encode(Update(b"mykey", b"hello")) == SET
    assert decode(SET) == Update(b"mykey", b"hello", 0)
    assert decode(DELETE_AS_SENT) == Update(b"mykey", None)


def test_deletes_are_such_as_uwsgi_honours() -> None:
    assert encode(Update(b"rx1", None)) == DELETE_ACCEPTED
    assert decode(DELETE_ACCEPTED) == Update(b"rx1", None)


def test_the_expiry_may_be_missing() -> None:
    assert decode(datagram(10, b"\x01\0k\x01\0v")) == Update(b"k", b"v", 0)


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
