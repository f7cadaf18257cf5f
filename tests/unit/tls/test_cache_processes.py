"""The shared cache under several processes: together, one that is killed, one that stands still."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from support.waiting import DEADLINE

import uwgate.tls.cache
from uwgate.config.settings_tls import CacheSettings
from uwgate.tls.cache import SharedCache

FAR = 1 << 40
MODULE = uwgate.tls.cache.__file__


def small(items: int, blocksize: int = 4096) -> SharedCache:
    return SharedCache(CacheSettings("small", items, 32, blocksize))


def in_child(work: Callable[[], None]) -> int:
    """Fork; the child does ``work`` and leaves with 0, or 1 if that fails."""
    pid = os.fork()
    if pid == 0:
        leave(work)
    return pid


def leave(work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def at_line(number: int, action: Callable[[], None]) -> None:
    """Do ``action`` when this process comes to the ``number``-th line of the module."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != MODULE:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                action()
        return trace

    sys.settrace(trace)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stand_still() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_what_one_process_sets_another_gets() -> None:
    cache = small(16)
    cache.set(b"parent", b"1", FAR)

    def work() -> None:
        cache.cell = 1
        assert cache.get(b"parent") == b"1"
        assert cache.set(b"child", b"2", FAR)
        assert cache.delete(b"parent")

    assert os.waitpid(in_child(work), 0)[1] == 0
    assert cache.get(b"child") == b"2"
    assert cache.get(b"parent") is None
    assert cache.snapshot()["hits"] == 2


def test_nobody_ever_sees_half_a_value() -> None:
    cache = small(32)
    keys = [b"key %d" % number for number in range(48)]

    def work() -> None:
        chance = random.Random(os.getpid())
        cache.cell = os.getpid()
        for _ in range(3000):
            key = chance.choice(keys)
            if chance.random() < 0.4:
                value = (key + b"=%d;" % chance.randrange(1000)) * chance.randrange(1, 200)
                cache.set(key, value, FAR)
            elif chance.random() < 0.1:
                cache.delete(key)
            else:
                value = cache.get(key) or b""
                pieces = value.split(b";")
                assert pieces.pop() == b""
                assert len(set(pieces)) <= 1
                assert not pieces or pieces[0].startswith(key + b"=")

    children = [in_child(work) for _ in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    for key in keys:
        assert cache.set(key, b"quiet", FAR)
        assert cache.get(key) == b"quiet"
    assert cache.snapshot()["hits"] > 100


def test_a_writer_that_is_killed_breaks_nothing() -> None:
    """At each line of ``set`` in turn: the others are whole, and nothing stays locked."""
    cache = small(16)
    keys = [b"%d" % number for number in range(16)]
    found = set()
    number = 0
    while True:
        number += 1
        for key in keys:
            assert cache.set(key, key * 100, FAR)

        def work(number: int = number) -> None:
            at_line(number, die)
            cache.set(b"3", b"another" * 100, FAR)

        status = os.waitpid(in_child(work), 0)[1]
        for key in keys:
            if key != b"3":
                assert cache.get(key) == key * 100
        value = cache.get(b"3")
        assert value in (None, b"3" * 100, b"another" * 100)
        found.add(value)
        assert cache.set(b"3", b"after", FAR)
        assert cache.get(b"3") == b"after"
        assert cache.items() == 16
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(found) == 3  # before, within and after
    assert cache.dropped == 0


def test_a_writer_that_stands_still_holds_up_nobody() -> None:
    cache = small(16)
    assert cache.set(b"key", b"value", FAR)
    children = []
    try:
        # Up to a line where it has the lock and is not done with it.
        for number in range(1, 100):

            def work(number: int = number) -> None:
                at_line(number, stand_still)
                cache.set(b"key", b"another", FAR)

            pid = in_child(work)
            children.append(pid)
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
            began = time.monotonic()
            stored = cache.set(b"key", b"value", FAR)
            assert time.monotonic() - began < DEADLINE
            if not stored:
                break
        assert cache.dropped == 1
        assert not cache.delete(b"key")
        assert not cache.clear()
        assert cache.dropped == 3
        assert cache.get(b"key") == b"value"
        assert cache.get(b"another") is None
    finally:
        for pid in children:
            os.kill(pid, signal.SIGCONT)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)
    assert cache.get(b"key") == b"another"
    assert cache.set(b"key", b"value", FAR)


def test_nobody_can_make_it_shorter() -> None:
    """A process that touches what is missing would be killed by the kernel."""
    cache = small(16)
    assert cache.set(b"key", b"value", 0)

    def shorten() -> None:
        for size in (0, 1 << 30):
            try:
                os.ftruncate(cache.handed()["fd"], size)
            except PermissionError:
                continue
            os._exit(3)

    assert os.waitpid(in_child(shorten), 0)[1] == 0
    assert cache.get(b"key") == b"value"
    assert cache.clear()
    assert cache.get(b"key") is None
    after = SharedCache(cache.settings, cache.handed())
    assert after.inherited


def test_what_is_not_as_long_as_it_was_is_not_taken_over() -> None:
    cache = small(16)
    open_to_all = os.memfd_create("cache", os.MFD_ALLOW_SEALING)
    for file in (open_to_all, 9999):
        assert not SharedCache(cache.settings, cache.handed() | {"fd": file}).inherited
    os.ftruncate(open_to_all, cache.handed()["measures"][3])
    assert not SharedCache(cache.settings, cache.handed() | {"fd": open_to_all}).inherited
    os.close(open_to_all)
