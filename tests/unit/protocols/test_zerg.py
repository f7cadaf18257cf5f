"""What zerg servers say: as captured from uWSGI 2.0.31, made by us, and broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols.zerg import MAGIC, MAX_DESCRIPTORS, SIZE, ZergError, decode, encode

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "zerg"


def captured(name: str) -> bytes:
    return bytes.fromhex((FIXTURES / f"{name}.hex").read_text())


def refusal(data: bytes) -> str:
    with pytest.raises(ZergError) as caught:
        decode(data)
    return str(caught.value)


@pytest.mark.skipif(sys.byteorder != "little", reason="captured on a little-endian machine")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("server-4-sockets", 4),
        ("pool-2-sockets", 2),
        ("pool-12-sockets", 12),
        ("fake-server-1-socket", 1),
    ],
)
def test_as_uwsgi_says_it(name: str, count: int) -> None:
    assert decode(captured(name)) == count
    assert encode(count) == captured(name)


def test_the_client_says_nothing() -> None:
    assert captured("client-request") == b""


def test_what_uwsgi_refuses() -> None:
    assert refusal(captured("fake-server-bad-magic")) == "it does not begin with uwsgi-zerg"


@pytest.mark.parametrize("count", [1, 2, MAX_DESCRIPTORS])
def test_there_and_back(count: int) -> None:
    data = encode(count)
    assert data == MAGIC + count.to_bytes(4, sys.byteorder)
    assert len(data) == SIZE
    assert decode(data) == count


@pytest.mark.parametrize("count", [-(2**31), -1, 0, MAX_DESCRIPTORS + 1, 2**31 - 1])
def test_counts_that_no_message_holds(count: int) -> None:
    expected = f"{count} sockets; 1 to 253 can be handed out"
    assert refusal(MAGIC + count.to_bytes(4, sys.byteorder, signed=True)) == expected
    with pytest.raises(ZergError, match="can be handed out"):
        encode(count)


def test_lengths() -> None:
    whole = encode(1)
    assert refusal(b"") == "nothing was sent"
    for size in range(1, SIZE):
        assert refusal(whole[:size]) == f"{size} bytes instead of 14"
    assert refusal(whole + b"\0") == "15 bytes instead of 14"


@given(st.binary(max_size=20) | st.binary(min_size=SIZE, max_size=SIZE))
def test_any_bytes(data: bytes) -> None:
    try:
        count = decode(data)
    except ZergError:
        return
    assert encode(count) == data


@given(st.binary(min_size=4, max_size=4))
def test_any_count(data: bytes) -> None:
    try:
        count = decode(MAGIC + data)
    except ZergError:
        assert not 1 <= int.from_bytes(data, sys.byteorder, signed=True) <= MAX_DESCRIPTORS
    else:
        assert encode(count) == MAGIC + data
