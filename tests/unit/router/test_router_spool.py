"""A spooled body: the same bytes out as in, in memory or not, and never more than allowed."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.router.spool import Spool, SpoolFullError


def drain(spool: Spool, size: int) -> bytes:
    return b"".join(iter(lambda: spool.read(size), b""))


@given(
    pieces=st.lists(st.binary(max_size=50), max_size=10),
    memory=st.integers(0, 200),
    size=st.integers(1, 70),
)
def test_what_goes_in_comes_out_as_often_as_wanted(
    pieces: list[bytes], memory: int, size: int
) -> None:
    spool = Spool(memory, 1000)
    for piece in pieces:
        spool.write(piece)
    assert spool.size == len(b"".join(pieces))
    for _ in range(2):
        spool.seal()
        assert drain(spool, size) == b"".join(pieces)
        assert spool.read(size) == b""
    spool.close()


def test_the_limit_is_the_last_byte_allowed() -> None:
    spool = Spool(4, 10)
    spool.write(b"a" * 10)
    with pytest.raises(SpoolFullError):
        spool.write(b"b")
    spool.close()
    with pytest.raises(SpoolFullError):
        Spool(100, 10).write(b"a" * 11)


def _unlinked_files() -> set[str]:
    """Open files that have no name any more: they vanish even if we are killed."""
    links = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # that of listdir itself
            continue
    return {link for link in links if link.endswith("(deleted)")}


def test_a_small_body_needs_no_file_and_a_file_is_given_back() -> None:
    before = _unlinked_files()
    spool = Spool(10, 1000)
    spool.write(b"a" * 10)
    assert _unlinked_files() == before
    spool.write(b"b")
    assert len(_unlinked_files() - before) == 1
    spool.write(b"c")
    spool.seal()
    assert drain(spool, 100) == b"a" * 10 + b"bc"
    spool.close()
    assert _unlinked_files() == before


@contextmanager
def _no_room_beyond(size: int) -> Iterator[None]:
    """Files of this process end there, as on a full disk (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("last", [10, 5000, 100_000])
def test_a_full_disk_is_noticed_by_write_and_only_there(last: int) -> None:
    with _no_room_beyond(50_000):
        spool = Spool(100, 1 << 20)
        spool.write(b"a" * 49_995)
        with pytest.raises(OSError, match="too large"):
            spool.write(b"b" * last)
        assert spool.size == 49_995
        spool.close()
