"""Opening files while others swap links, directories and the root: what nobody ever gets."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from opening_tools import SECRET, read

from uwgate.files import opening
from uwgate.files.opening import Root

pytestmark = pytest.mark.usefixtures("no_leaks")

RACE = 0.6  # seconds


def while_swapping(swap: Callable[[], None], look: Callable[[], bytes | None]) -> set[bytes | None]:
    """All that ``look`` saw while a thread did ``swap`` again and again."""
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            swap()

    thread = threading.Thread(target=loop)
    thread.start()
    seen: set[bytes | None] = set()
    try:
        end = time.monotonic() + RACE
        while time.monotonic() < end:
            seen.add(look())
    finally:
        done.set()
        thread.join()
    return seen


def test_nothing_outside_while_a_directory_and_a_link_take_turns(www: Path, openat2: bool) -> None:
    place, aside, link = www / "d", www / "aside", www / "link"
    place.mkdir()
    (place / "file").write_bytes(b"inside")
    link.symlink_to("../outside")

    def swap() -> None:
        os.rename(place, aside)
        os.rename(link, place)
        os.rename(place, link)
        os.rename(aside, place)

    root = Root(str(www), openat2=openat2)
    seen = while_swapping(swap, lambda: read(root, b"d/file"))
    assert b"inside" in seen
    assert SECRET not in seen


def test_nothing_outside_while_a_file_and_a_link_take_turns(www: Path, openat2: bool) -> None:
    def swap() -> None:
        (www / "new").write_bytes(b"inside")
        os.rename(www / "new", www / "file")
        os.symlink("../outside/file", www / "new")
        os.rename(www / "new", www / "file")
        os.mkfifo(www / "new")
        os.rename(www / "new", www / "file")

    root = Root(str(www), openat2=openat2)
    seen = while_swapping(swap, lambda: read(root, b"file"))
    assert b"inside" in seen
    assert SECRET not in seen


def test_nothing_outside_while_links_change_between_the_steps(www: Path, openat2: bool) -> None:
    """The long way: links in and out, and a directory behind them that becomes a link itself."""
    (www.parent / "outside" / "b").mkdir()
    (www.parent / "outside" / "b" / "c.css").write_bytes(SECRET)
    (www / "l").symlink_to(www / "a")

    def swap() -> None:
        os.symlink(www.parent / "outside", www / "new")
        os.rename(www / "new", www / "l")
        os.symlink("a", www / "new")
        os.rename(www / "new", www / "l")
        os.rename(www / "a", www / "aside")
        os.symlink("../outside", www / "a")
        os.unlink(www / "a")
        os.rename(www / "aside", www / "a")

    root = Root(str(www), openat2=openat2)
    seen = while_swapping(swap, lambda: read(root, b"l/b/c.css"))
    assert b"style" in seen
    assert SECRET not in seen


def test_nothing_outside_between_the_steps_for_certain(
    www: Path, openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (www / "l").symlink_to("a")
    (www.parent / "outside" / "b").mkdir()
    (www.parent / "outside" / "b" / "c.css").write_bytes(SECRET)
    realpath = os.path.realpath

    def then_swap(path: bytes, *, strict: bool = False) -> bytes:
        real = realpath(path, strict=strict)
        os.rename(www / "a", www / "aside")
        os.symlink("../outside", www / "a")
        monkeypatch.undo()
        return real

    root = Root(str(www), openat2=openat2)
    monkeypatch.setattr(os.path, "realpath", then_swap)
    assert read(root, b"l/b/c.css") is None
    assert os.path.islink(www / "a")


def test_a_deployment_by_link_is_never_a_miss(www: Path, openat2: bool) -> None:
    for number in (1, 2):
        (www / f"{number}").mkdir()
        (www / f"{number}" / "file").write_bytes(b"%d" % number)
    (www / "current").symlink_to("1")

    def swap() -> None:
        for number in (2, 1):
            os.symlink(f"{number}", www / "new")
            os.rename(www / "new", www / "current")

    root = Root(str(www), openat2=openat2)
    assert while_swapping(swap, lambda: read(root, b"current/file")) <= {b"1", b"2"}


def test_a_target_that_goes_with_its_link_is_asked_for_again(
    www: Path, openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (www / "1").write_bytes(b"1")
    (www / "2").write_bytes(b"2")
    (www / "link").symlink_to("1")
    realpath = os.path.realpath

    def then_deploy(path: bytes, *, strict: bool = False) -> bytes:
        real = realpath(path, strict=strict)
        os.symlink("2", www / "new")
        os.rename(www / "new", www / "link")
        os.unlink(www / "1")
        monkeypatch.undo()
        return real

    root = Root(str(www), openat2=openat2)
    monkeypatch.setattr(os.path, "realpath", then_deploy)
    assert read(root, b"link") == b"2"


def test_an_old_descriptor_lives_as_long_as_somebody_uses_it(www: Path, openat2: bool) -> None:
    for release in ("r1", "r2"):
        (www.parent / release).mkdir()
        (www.parent / release / "file").write_bytes(b"inside")
    current = www.parent / "current"
    current.symlink_to("r1")
    root = Root(str(current), openat2=openat2)
    really_open, squatters = root._open, []

    def after_a_refresh(fd: int, relative: bytes, flags: int) -> int:
        os.symlink("r2", www.parent / "new")
        os.rename(www.parent / "new", current)
        root.refresh()
        squatters.append(os.open(www.parent / "outside", os.O_PATH))
        root._open = really_open
        return really_open(fd, relative, flags)

    root._open = after_a_refresh
    assert read(root, b"file") == b"inside"
    os.close(squatters.pop())


def test_what_became_something_else_is_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert opening._opened(fifo, b"") is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fifo)


def test_threads_open_while_the_root_is_replaced(www: Path, openat2: bool) -> None:
    """An old descriptor's number soon belongs to something else; nobody may look below that."""
    releases = [www.parent / "r1", www.parent / "r2"]
    for release in releases:
        release.mkdir()
        (release / "file").write_bytes(b"inside")
    current = www.parent / "current"
    current.symlink_to("r1")
    root = Root(str(current), openat2=openat2)

    def swap() -> None:
        for release in reversed(releases):
            os.symlink(release.name, www.parent / "new")
            os.rename(www.parent / "new", current)
            root.refresh()
            os.close(os.open(www.parent / "outside", os.O_PATH))

    assert while_swapping(swap, lambda: read(root, b"file")) == {b"inside"}
