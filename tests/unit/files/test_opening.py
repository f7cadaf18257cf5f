"""Opening files below a directory: what is found, and what is not."""

from __future__ import annotations

import errno
import os
import resource
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opening_tools import SECRET, content, read

from uwgate.files import opening
from uwgate.files.opening import Root

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_files_and_directories(www: Path, openat2: bool) -> None:
    root = Root(str(www), openat2=openat2)
    assert read(root, b"index.html") == b"index"
    assert read(root, b"a/b/c.css") == b"style"
    assert read(root, b"a/b") == b"c.css"
    assert read(root, b"", dotfiles=True) == b".git,.hidden,.well-known,a,index.html"
    opened = root.open(b"a/b/c.css", False)
    assert opened is not None
    os.close(opened.fd)
    assert opened.path == os.fsencode(www / "a" / "b" / "c.css")
    assert opened.stat.st_size == 5


@pytest.mark.parametrize(
    "relative",
    [b"none", b"a/none", b"none/c", b"index.html/c", b"x" * 300, b"x/" * 3000 + b"x"],
)
def test_misses(www: Path, openat2: bool, relative: bytes) -> None:
    root = Root(str(www), openat2=openat2)
    assert root.open(relative, True) is None
    assert root.stat(relative) is None


@pytest.mark.parametrize(
    "relative",
    [
        b"../outside/file",
        b"a/../../outside/file",
        b"..",
        b"a/..",
        b".",
        b"index.html\0.css",
        b"/etc/passwd",
        b"//etc/passwd",
    ],
)
def test_what_callers_promise_not_to_ask_for(www: Path, openat2: bool, relative: bytes) -> None:
    root = Root(str(www), safe=[Root(str(www / "a"))], openat2=openat2)
    assert root.open(relative, True) is None


@pytest.mark.parametrize(
    ("relative", "plain", "dotfiles"),
    [
        (b".hidden", None, SECRET),
        (b".git/config", None, SECRET),
        (b".git", None, b"config"),
        (b".well-known/token", b"token", b"token"),
        (b".well-known/.deep/file", None, SECRET),
        (b"a/.well-known/x", None, b"nested"),
        (b"to-hidden", None, SECRET),
        (b"to-git/config", None, SECRET),
        (b".well-known/link", b"token", b"token"),
    ],
)
def test_hidden(
    www: Path, openat2: bool, relative: bytes, plain: bytes | None, dotfiles: bytes
) -> None:
    (www / "a" / ".well-known").mkdir()
    (www / "a" / ".well-known" / "x").write_bytes(b"nested")
    (www / "to-hidden").symlink_to(".hidden")
    (www / "to-git").symlink_to(".git")
    (www / ".well-known" / "link").symlink_to("token")
    root = Root(str(www), openat2=openat2)
    assert read(root, relative) == plain
    assert read(root, relative, dotfiles=True) == dotfiles


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("index.html", b"index"),
        ("a/b", b"c.css"),
        ("a/../index.html", b"index"),
        ("{www}/index.html", b"index"),
        ("../www/index.html", b"index"),
        (".", None),  # leads to the root, see below
        ("../outside/file", None),
        ("{www}-private/file", None),
        ("{www}/../outside/file", None),
        ("/proc/self/" + "root/{www}/index.html", b"index"),
        ("/etc/passwd", None),
        ("/dev/zero", None),
        ("link", None),  # to itself
        ("missing", None),
    ],
)
def test_links(www: Path, openat2: bool, target: str, expected: bytes | None) -> None:
    (www / "link").symlink_to(target.format(www=www))
    root = Root(str(www), openat2=openat2)
    if target == ".":
        assert read(root, b"link/a/b/c.css") == b"style"
        return
    assert read(root, b"link") == expected


def test_links_in_the_middle(www: Path, openat2: bool) -> None:
    (www / "inner").symlink_to("a")
    (www / "absolute").symlink_to(www / "a")
    (www / "outer").symlink_to("../outside")
    root = Root(str(www), openat2=openat2)
    assert read(root, b"inner/b/c.css") == b"style"
    assert read(root, b"absolute/b/c.css") == b"style"
    assert read(root, b"outer/file") is None
    opened = root.open(b"inner/b/c.css", False)
    assert opened is not None
    os.close(opened.fd)
    assert opened.path == os.fsencode(www / "a" / "b" / "c.css")


def test_links_to_safe_directories(www: Path, openat2: bool) -> None:
    outside, file = www.parent / "outside", www.parent / "single"
    file.write_bytes(b"single")
    (outside / ".hidden").write_bytes(SECRET)
    (www / "link").symlink_to(outside)
    (www / "single").symlink_to(file)
    (www / "private").symlink_to(www.parent / "www-private" / "file")
    safe = [Root(str(www.parent / "later")), Root(str(outside)), Root(str(file))]
    root = Root(str(www), safe, openat2)
    assert read(root, b"link/file") == SECRET
    assert read(root, b"link") == b".hidden,file"
    assert read(root, b"link/.hidden") is None
    assert read(root, b"link/.hidden", dotfiles=True) == SECRET
    assert read(root, b"single") == b"single"
    assert read(root, b"private") is None


def test_a_hidden_directory_can_be_declared_safe(www: Path, openat2: bool) -> None:
    (www / "link").symlink_to(".git/config")
    assert read(Root(str(www), [Root(str(www / ".git"))], openat2), b"link") == SECRET


def test_the_root_may_be_reached_by_links(www: Path, openat2: bool) -> None:
    way = www.parent / "way"
    way.symlink_to(www)
    (www / "absolute").symlink_to(www / "index.html")
    (www / "by-way").symlink_to(way / "index.html")
    root = Root(str(way) + "/", openat2=openat2)
    assert read(root, b"index.html") == b"index"
    assert read(root, b"absolute") == b"index"
    assert read(root, b"by-way") == b"index"


def test_everything_is_below_the_root_of_all(www: Path, openat2: bool) -> None:
    (www / "link").symlink_to(www / "index.html")
    opened = Root("/", openat2=openat2).open(os.fsencode(www / "link")[1:], False)
    assert opened is not None
    assert opened.path == os.fsencode(www / "index.html")
    assert content(opened) == b"index"


@pytest.mark.parametrize("procfs", [True, False])
def test_only_files_and_directories(
    www: Path, openat2: bool, procfs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open
    if not procfs:

        def no_proc(path: str | bytes, flags: int, *, dir_fd: int | None = None) -> int:
            if isinstance(path, str) and path.startswith("/proc"):
                raise FileNotFoundError(errno.ENOENT, path)
            return real_open(path, flags, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", no_proc)
    os.mkfifo(www / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(www / "socket"))
        root = Root(str(www), openat2=openat2)
        assert root.open(b"fifo", False) is None  # and does not wait for a writer
        assert root.open(b"socket", False) is None
        assert read(Root("/dev"), b"null") is None
        assert read(root, b"a/b/c.css") == b"style"
        assert read(root, b"a/b") == b"c.css"


def test_what_may_not_be_read(www: Path, openat2: bool) -> None:
    (www / "index.html").chmod(0)
    (www / "a").chmod(0)
    www.chmod(0o755)
    root = Root(str(www), openat2=openat2)
    me = os.geteuid()
    try:
        if me == 0:
            os.seteuid(65534)
        assert root.open(b"index.html", False) is None
        assert root.open(b"a", False) is None
        assert root.open(b"a/b/c.css", False) is None
    finally:
        os.seteuid(me)
        (www / "a").chmod(0o755)


def test_stat(www: Path, openat2: bool) -> None:
    root = Root(str(www), openat2=openat2)
    opened = root.open(b"a/b/c.css", False)
    assert opened is not None
    os.close(opened.fd)

    def same() -> bool:
        stat = root.stat(b"a/b/c.css")
        return stat is not None and os.path.samestat(stat, opened.stat)

    assert same()
    (www / "new").write_bytes(b"new")
    (www / "new").rename(www / "a" / "b" / "c.css")
    assert not same()
    directory = root.stat(b"")
    assert directory is not None
    assert os.path.samestat(directory, www.stat())
    assert root.stat(b"a\0") is None


def test_a_root_that_comes_goes_and_comes_again(tmp_path: Path, openat2: bool) -> None:
    www = tmp_path / "www"
    root = Root(str(www), openat2=openat2)
    assert root.open(b"file", False) is None
    assert root.open(b"", False) is None
    assert root.stat(b"file") is None
    www.mkdir()
    (www / "file").write_bytes(b"1")
    assert root.open(b"file", False) is None
    root.refresh()
    assert read(root, b"file") == b"1"

    www.rename(tmp_path / "old")
    www.mkdir()
    (www / "file").write_bytes(b"2")
    root.refresh()
    assert read(root, b"file") == b"2"

    (www / "file").unlink()
    www.rmdir()
    assert root.open(b"file", False) is None
    root.refresh()
    assert root.open(b"file", False) is None
    www.write_bytes(b"now a file")
    root.refresh()
    assert read(root, b"") == b"now a file"
    root.close()
    assert root.open(b"", False) is None


def test_a_root_that_moved_with_its_link(tmp_path: Path, openat2: bool) -> None:
    tmp_path = tmp_path.resolve()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "file").write_bytes(b"file")
    (tmp_path / "1" / "link").symlink_to("file")
    current = tmp_path / "current"
    current.symlink_to("1")
    root = Root(str(current), openat2=openat2)
    (tmp_path / "1").rename(tmp_path / "2")
    current.unlink()
    current.symlink_to("2")
    root.refresh()
    assert read(root, b"link") == b"file"


def test_refreshing_changes_nothing_if_nothing_changed(www: Path, openat2: bool) -> None:
    root = Root(str(www), openat2=openat2)
    anchor = root._anchor
    root.refresh()
    assert root._anchor is anchor


def test_a_root_that_is_a_file(www: Path, openat2: bool) -> None:
    root = Root(str(www / "index.html"), openat2=openat2)
    assert read(root, b"") == b"index"
    assert root.open(b"x", False) is None
    assert root.stat(b"x") is None
    (www / "new").write_bytes(b"new")
    (www / "new").rename(www / "index.html")
    assert read(root, b"") == b"new"
    stat = root.stat(b"")
    assert stat is not None
    assert os.path.samestat(stat, (www / "index.html").stat())
    (www / "index.html").unlink()
    os.mkfifo(www / "index.html")
    assert root.open(b"", False) is None


def test_running_out_of_descriptors_is_no_miss(www: Path, openat2: bool) -> None:
    (www / "link").symlink_to(www / "index.html")
    root, missing = Root(str(www), openat2=openat2), www.parent / "later"
    later = Root(str(missing), openat2=openat2)
    missing.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    for spare in range(3):
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + spare, hard))
        try:
            caught: list[int | None] = []
            for asked, relative in ((root, b"a/b/c.css"), (root, b"link"), (root, b"")):
                try:
                    opened = asked.open(relative, False)
                except OSError as error:
                    caught.append(error.errno)
                else:
                    assert opened is not None
                    os.close(opened.fd)
            if not spare:
                later.refresh()
                root.refresh()
                with pytest.raises(OSError, match="Too many open files"):
                    later.open(b"x", False)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert set(caught) <= {errno.EMFILE}
        assert spare or len(caught) == 3
    later.refresh()
    assert later.open(b"x", False) is None
    assert read(root, b"link") == b"index"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EAGAIN])
def test_a_kernel_that_refuses_later(
    www: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (www / "link").symlink_to("a")
    refusing = opening._Openat2()
    assert not refusing.works() or opening._find_openat2() is not None

    def call(*_: object) -> int:
        opening.ctypes.set_errno(number)
        return -1

    refusing._call = call
    assert refusing.works() == (number == errno.EAGAIN)
    monkeypatch.setattr(opening, "_find_openat2", lambda: refusing)
    root = Root(str(www))
    assert read(root, b"a/b/c.css") == b"style"
    assert read(root, b"link/b/c.css") == b"style"
    monkeypatch.setattr(opening, "_find_openat2", lambda: None)
    assert Root(str(www))._open is opening.stepwise


_segments = st.sampled_from([b"a", b"b", b"c.css", b"up", b"out", b"in", b".git", b"..", b"none"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(_segments, min_size=1, max_size=6), st.booleans())
def test_both_ways_find_the_same(www: Path, segments: list[bytes], dotfiles: bool) -> None:
    for name, target in (("up", "."), ("in", "a"), ("out", "../outside"), ("a/up", "..")):
        if not (www / name).is_symlink():
            (www / name).symlink_to(target)
    relative = b"/".join(segments)
    one, two = Root(str(www)), Root(str(www), openat2=False)
    found = read(one, relative, dotfiles)
    assert read(two, relative, dotfiles) == found
    if not dotfiles:
        assert found != SECRET


def test_a_safe_file_is_no_way_out(www: Path, openat2: bool) -> None:
    """Of ``static-safe`` naming a single file: a link in its place is not followed."""
    outside = www.parent / "outside"
    (outside / "one").write_bytes(b"allowed")
    (www / "link").symlink_to(outside / "one")
    safe = Root(str(outside / "one"), openat2=openat2)
    root = Root(str(www), [safe], openat2=openat2)
    opened = root.open(b"link", dotfiles=False)
    assert opened is not None
    assert os.read(opened.fd, 100) == b"allowed"
    os.close(opened.fd)
    (outside / "new").symlink_to(outside / "file")
    (outside / "new").rename(outside / "one")
    assert root.open(b"link", dotfiles=False) is None
    assert safe.open(b"", dotfiles=False) is None
