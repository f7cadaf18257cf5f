"""The shared cache in one process: what it keeps, what goes first, what it costs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import wait_until

from uwgate.config.settings_tls import CacheSettings
from uwgate.tls.cache import SharedCache

FAR = 1 << 40
PAST = 1_000_000_000


def small(items: int = 16, keysize: int = 32, blocksize: int = 64) -> SharedCache:
    return SharedCache(CacheSettings("small", items, keysize, blocksize))


def test_keeps_and_forgets() -> None:
    cache = small()
    assert cache.get(b"key") is None
    assert not cache.delete(b"key")
    assert cache.set(b"key", b"value", FAR)
    assert cache.get(b"key") == b"value"
    assert cache.set(b"key", b"another", 0)
    assert cache.get(b"key") == b"another"
    assert cache.items() == 1
    assert cache.delete(b"key")
    assert cache.get(b"key") is None
    assert cache.items() == 0


def test_sizes() -> None:
    cache = small(keysize=4, blocksize=6)
    assert cache.set(b"1234", b"123456", FAR)
    assert cache.get(b"1234") == b"123456"
    assert not cache.set(b"12345", b"", FAR)
    assert not cache.set(b"1", b"1234567", FAR)
    assert not cache.set(b"", b"1", FAR)
    assert cache.get(b"") is None
    assert not cache.delete(b"")
    assert cache.set(b"1", b"", FAR)
    assert cache.get(b"1") == b""
    assert cache.items() == 2


def test_time_is_up() -> None:
    cache = small()
    assert cache.set(b"key", b"value", int(time.time()) + 2)
    assert cache.get(b"key") == b"value"
    wait_until(lambda: cache.get(b"key") is None, "expiry")
    assert cache.items() == 0
    assert not cache.delete(b"key")


@pytest.mark.parametrize("expires", [PAST, 1, -5])
def test_a_value_of_the_past_still_replaces(expires: int) -> None:
    cache = small()
    assert cache.set(b"key", b"value", FAR)
    assert cache.set(b"key", b"another", expires)
    assert cache.get(b"key") is None


def test_a_time_beyond_all_bounds_is_for_ever() -> None:
    cache = small()
    assert cache.set(b"key", b"value", 1 << 80)
    assert cache.get(b"key") == b"value"


def test_what_expires_first_goes() -> None:
    cache = small(items=16)
    for number in range(15):
        assert cache.set(b"%d" % number, b"value", FAR + number)
    assert cache.set(b"for ever", b"value", 0)
    assert cache.snapshot()["full"] == 0
    assert cache.set(b"new", b"value", FAR + 50)
    assert cache.set(b"newer", b"value", FAR + 60)
    kept = [number for number in range(15) if cache.get(b"%d" % number) is not None]
    assert kept == list(range(2, 15))
    assert cache.get(b"for ever") == cache.get(b"new") == cache.get(b"newer") == b"value"
    assert cache.snapshot()["full"] == 2
    assert cache.snapshot()["items"] == 16


def test_free_and_expired_slots_come_before_that() -> None:
    cache = small(items=16)
    for number in range(16):
        assert cache.set(b"%d" % number, b"value", PAST if number == 5 else FAR)
    assert cache.delete(b"3")
    for key in (b"new", b"newer", b"0"):
        assert cache.set(key, b"value", FAR)
    assert cache.snapshot()["full"] == 0
    for number in set(range(16)) - {3, 5}:
        assert cache.get(b"%d" % number) == b"value"


def test_most_of_it_fills_before_anything_goes() -> None:
    cache = small(items=1000)
    for number in range(800):
        assert cache.set(b"%d" % number, b"%d" % number, FAR)
    assert [cache.get(b"%d" % number) for number in range(800)] == [
        b"%d" % number for number in range(800)
    ]
    for number in range(800, 5000):
        assert cache.set(b"%d" % number, b"%d" % number, FAR)
    assert 950 < cache.items() <= 1008


@pytest.mark.parametrize("items", [0, 1, 15, 16, 17, 32, 33])
def test_few_items(items: int) -> None:
    """Rounded up to whole sets of sixteen, at least one."""
    cache = small(items)
    for number in range(500):
        assert cache.set(b"%d" % number, b"%d" % number, FAR)
        assert cache.get(b"%d" % number) == b"%d" % number
    assert cache.items() == max(1, -(-items // 16)) * 16
    assert cache.clear()
    assert cache.items() == 0
    assert cache.get(b"499") is None
    assert cache.set(b"499", b"again", FAR)
    assert cache.get(b"499") == b"again"


keys = st.binary(min_size=1, max_size=4)
expiries = st.sampled_from((FAR, 0, PAST))
steps = st.one_of(
    st.tuples(st.just("set"), keys, st.binary(max_size=64), expiries),
    st.tuples(st.just("get"), keys, st.just(b""), st.just(0)),
    st.tuples(st.just("delete"), keys, st.just(b""), st.just(0)),
    st.tuples(st.just("clear"), st.just(b""), st.just(b""), st.just(0)),
)


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(steps, max_size=100))
def test_is_a_dictionary_that_may_forget(
    items: int, actions: list[tuple[str, bytes, bytes, int]]
) -> None:
    """Nothing but the last value is ever found, and all of them as long as there was room."""
    cache = small(items)
    model: dict[bytes, bytes] = {}
    for action, key, value, expires in actions:
        full = cache.snapshot()["full"]
        if action == "set":
            assert cache.set(key, value, expires)
            model.pop(key, None)
            if expires != PAST:
                model[key] = value
                assert cache.get(key) == value
        elif action == "delete":
            known = cache.delete(key)
            assert known == (key in model) or full
            model.pop(key, None)
        elif action == "clear":
            assert cache.clear()
            model.clear()
        found = cache.get(key)
        assert found == model.get(key) or (found is None and full)
    if not cache.snapshot()["full"]:
        assert cache.items() == len(model)
        assert {key: cache.get(key) for key in model} == model


def test_statistics_are_those_of_uwsgi() -> None:
    cache = SharedCache(CacheSettings("sessions", 100, 32, 4096, hash="murmur2", hashsize=1000))
    assert cache.snapshot()["last_modified_at"] == 0
    before = int(time.time())
    cache.set(b"key", b"value", FAR)
    cache.get(b"key")
    cache.cell = 3  # another process
    cache.get(b"key")
    cache.get(b"no key")
    cache.cell = 256 + 3  # more processes than places
    cache.get(b"no key")
    snapshot = cache.snapshot()
    changed = snapshot.pop("last_modified_at")
    assert isinstance(changed, int)
    assert before <= changed <= time.time()
    assert snapshot == {
        "name": "sessions",
        "hash": "murmur2",
        "hashsize": 1000,
        "keysize": 32,
        "max_items": 100,
        "blocks": 100,
        "blocksize": 4096,
        "items": 1,
        "hits": 2,
        "miss": 2,
        "full": 0,
    }
    assert cache.dropped == 0


def mapping(size: int) -> tuple[int, list[str]]:
    """Resident bytes and flags of the cache's mapping of at least ``size``."""
    blocks = Path("/proc/self/smaps").read_text().split("memfd:uwgate-cache")[1:]
    for block in blocks:
        facts, _, flags = block.partition("VmFlags:")
        fields = dict(line.split(":", 1) for line in facts.splitlines()[1:])
        if int(fields["Size"].split()[0]) * 1024 >= size:
            return int(fields["Rss"].split()[0]) * 1024, flags.splitlines()[0].split()
    raise AssertionError("no mapping")


def test_costs_what_it_holds_and_is_in_no_core_dump() -> None:
    size = 2_000_000 * 4096
    cache = SharedCache(CacheSettings("large", 2_000_000, 32, 4096))
    resident, flags = mapping(size)
    assert resident < 100_000
    assert "dd" in flags  # MADV_DONTDUMP
    for number in range(100):
        cache.set(b"%d" % number, bytes(200), FAR)
        cache.get(b"not %d" % number)
    # A few pages of heads each, and one or two of a body.
    assert mapping(size)[0] < 200 * 8 * 4096
    assert cache.clear()
    cache.get(b"1")
    assert mapping(size)[0] < 100_000
