"""Files below a directory, opened so that nothing outside ever is, whoever swaps links meanwhile.

The short way follows no symbolic link at all: openat2(2) with RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS, or where a kernel or a seccomp filter has none, directory by directory with
O_NOFOLLOW. Whoever meets a link goes the long way: ask where the whole path leads, look which of
the allowed directories that is in, and open what remains by the short way, below that directory.
A swap between the two steps can make it fail, or open something else that is allowed.

A path is first opened with O_PATH, which touches nothing: FIFOs and devices have side effects.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import NamedTuple

_LOCATE = os.O_PATH | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_READ_DIRECTORY = _READ | os.O_DIRECTORY

_OPENAT2 = 437  # <asm-generic/unistd.h>
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08  # <linux/openat2.h>
_TRIES = 4  # of what a rename disturbed

# Not the fault of the path, so "there is no such file" would be wrong.
_TROUBLE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO))
# What a swap between the two steps of the long way looks like.
_SWAPPED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV))

_Open = Callable[[int, bytes, int], int]
"""Descriptor of a directory, path below it, flags -> descriptor. Raises OSError; ELOOP: a link."""


class Opened(NamedTuple):
    """What was opened; whoever gets it closes ``fd``.

    ``fd``: for reading, of a regular file or a directory (``os.scandir(fd)`` lists it). ``stat``:
    what fstat(2) says of it. ``path``: where it was, absolute, without links.
    """

    fd: int
    stat: os.stat_result
    path: bytes


class Root:
    """A directory below which files are looked for; or one file, whose relative path is empty.

    ``path``: absolute; links in it are followed, and it may come into being later. ``safe``: where
    links may lead besides ``path`` itself; whoever made them refreshes them. ``openat2``: False for
    the way of old kernels. Any thread may open while another one refreshes.
    """

    __slots__ = ("_anchor", "_open", "_safe", "_trouble", "path")

    def __init__(
        self, path: str | bytes, safe: Sequence[Root] = (), openat2: bool | None = None
    ) -> None:
        self.path = os.fsencode(path)
        self._safe = tuple(safe)
        found = None if openat2 is False else _find_openat2()
        self._open: _Open = stepwise if found is None else found
        self._anchor: _Anchor | None = None
        self._trouble = 0  # errno, if there is no anchor for want of means
        self.refresh()

    def refresh(self) -> None:
        """Notice that ``path`` came, went, or is another directory now. Two stat(2) if it is not;
        to be called once a second. Raises nothing."""
        anchor = self._anchor
        try:
            stat = os.stat(self.path)
            # Of both: a directory that was moved has a new path, and is still the same one.
            if anchor is None or not anchor.is_still(stat) or not anchor.is_still_there():
                self._anchor = _Anchor(self.path)
            self._trouble = 0
        except OSError as error:
            if error.errno not in _TROUBLE:
                self._anchor = None
                self._trouble = 0
            elif anchor is None:
                self._trouble = error.errno or errno.EIO

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return self._anchor is not None and self._anchor.fd < 0

    def beside(self, path: bytes) -> Root:
        """Another directory, from which links may lead to the same ones."""
        return Root(path, self._safe, None if self._open is not stepwise else False)

    def close(self) -> None:
        """Let go of the directory, as soon as nobody is opening something; all else is a miss."""
        self._anchor = None
        self._trouble = 0

    def open(self, relative: bytes, dotfiles: bool) -> Opened | None:
        """Open ``relative``: decoded, without empty and dot segments; empty for the root itself.

        None if there is nothing to be served: missing, not readable, neither file nor directory,
        behind a link that leaves the allowed directories; without ``dotfiles`` also hidden, by its
        path or by the one that links lead to (but for ``/.well-known``, RFC 8615 §3).
        Raises OSError if descriptors or memory have run out, or the disk fails.
        """
        anchor = self._anchor
        if anchor is None:
            if self._trouble:
                raise OSError(self._trouble, os.strerror(self._trouble))
            return None
        if not _allowed(relative, dotfiles):
            return None
        try:
            return self._below(anchor, relative)
        except OSError as error:
            if error.errno in _TROUBLE:
                raise
            # EXDEV is what RESOLVE_BENEATH says of absolute links, ELOOP what everybody says.
            if error.errno not in (errno.ELOOP, errno.EXDEV):
                return None
        return self._follow(anchor, relative, dotfiles)

    def stat(self, relative: bytes) -> os.stat_result | None:
        """What ``relative`` names now, links followed wherever they lead; None if nothing. Tells
        whether it is still what was opened (device and inode), and is good for nothing else."""
        anchor = self._anchor
        if anchor is None or b"\0" in relative:
            return None
        try:
            if anchor.fd < 0:
                return None if relative else os.stat(self.path)
            return os.stat(relative or b".", dir_fd=anchor.fd)
        except OSError:
            return None

    def _below(self, anchor: _Anchor, relative: bytes) -> Opened | None:
        """Open without following a link. Raises OSError."""
        if anchor.fd < 0:
            return None if relative else self._whole(anchor)
        if not relative:
            return _opened(os.open(b".", _READ_DIRECTORY, dir_fd=anchor.fd), anchor.real)
        path = anchor.prefix + relative
        located = self._open(anchor.fd, relative, _LOCATE)
        return _reopen(located, path, lambda flags: self._open(anchor.fd, relative, flags))

    def _whole(self, anchor: _Anchor) -> Opened | None:
        """The file that the root is, in its directory: a new one that was renamed over it is heard,
        a link in its place is not followed."""
        directory, name = os.path.split(anchor.real)
        above = os.open(directory, _LOCATE | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            located = self._open(above, name, _LOCATE)
            return _reopen(located, anchor.real, lambda flags: self._open(above, name, flags))
        finally:
            os.close(above)

    def _follow(self, anchor: _Anchor, relative: bytes, dotfiles: bool) -> Opened | None:
        """The long way."""
        for _ in range(_TRIES):
            try:
                real = os.path.realpath(anchor.prefix + relative, strict=True)
                for root, place, rest in self._places(anchor, real):
                    if _allowed(rest, dotfiles):
                        return root._below(place, rest)
                return None
            except OSError as error:
                if error.errno in _TROUBLE:
                    raise
                # Deployments swap links, and the new target is as good as the old one.
                if error.errno not in _SWAPPED:
                    return None
        return None

    def _places(self, anchor: _Anchor, real: bytes) -> Iterator[tuple[Root, _Anchor, bytes]]:
        """Of the allowed directories those that contain ``real``, and the rest of it."""
        rest = anchor.rest_of(real)
        if rest is not None:
            yield self, anchor, rest
        for root in self._safe:
            place = root._anchor
            rest = None if place is None else place.rest_of(real)
            if place is not None and rest is not None:
                yield root, place, rest


class _Anchor:
    """A root as it was found. ``fd``: of the directory, O_PATH; -1 of a file. ``real``: its path
    without links, ``prefix`` that of what is in it. Raises OSError.

    Never closed but by the last one who uses it: were a thread about to open something below a
    number that has become another directory's, nothing else would keep it in.
    """

    __slots__ = ("_close", "fd", "identity", "prefix", "real")

    def __init__(self, path: bytes) -> None:
        self.fd = -1
        self._close = os.close  # the interpreter may have let go of ``os`` before
        self.real = os.path.realpath(path, strict=True)
        self.prefix = self.real.rstrip(b"/") + b"/"
        stat = os.stat(self.real)
        if S_ISDIR(stat.st_mode):
            self.fd = os.open(self.real, _LOCATE | os.O_DIRECTORY | os.O_NOFOLLOW)
            stat = os.fstat(self.fd)
        self.identity = stat.st_dev, stat.st_ino

    def __del__(self) -> None:
        if self.fd >= 0:
            self._close(self.fd)

    def is_still(self, stat: os.stat_result) -> bool:
        """Whether it is what has ``stat``."""
        return (stat.st_dev, stat.st_ino) == self.identity

    def is_still_there(self) -> bool:
        """Whether ``real`` names it. Raises OSError."""
        try:
            return self.is_still(os.lstat(self.real))
        except FileNotFoundError:
            return False

    def rest_of(self, real: bytes) -> bytes | None:
        """``real`` relative to this directory; None if it is not in it."""
        if real == self.real:
            return b""
        return real[len(self.prefix) :] if real.startswith(self.prefix) else None


def _allowed(relative: bytes, dotfiles: bool) -> bool:
    """Whether a path may be looked for. ``..`` is none of ours, whatever the caller promised: it
    would lead out where there is no RESOLVE_BENEATH."""
    if b"\0" in relative:  # C would take it for the end
        return False
    if b"/." not in relative and not relative.startswith(b"."):
        return True
    segments = relative.split(b"/")
    if b"." in segments or b".." in segments:
        return False
    if segments[0] == b".well-known":
        del segments[0]
    return dotfiles or not any(segment.startswith(b".") for segment in segments)


def _reopen(located: int, path: bytes, again: Callable[[int], int]) -> Opened | None:
    """Open for reading what ``located`` (O_PATH; closed here) is; None if it is neither file nor
    directory. ``again`` opens its path anew, with flags. Raises OSError."""
    try:
        mode = os.fstat(located).st_mode
        if not S_ISREG(mode) and not S_ISDIR(mode):
            return None
        flags = _READ_DIRECTORY if S_ISDIR(mode) else _READ
        try:
            fd = os.open(f"/proc/self/fd/{located}", flags)
        except (FileNotFoundError, PermissionError):
            fd = again(flags)  # no /proc; or it may not be read, which is said once more
    finally:
        os.close(located)
    return _opened(fd, path)


def _opened(fd: int, path: bytes) -> Opened | None:
    """``fd`` and what it is; None, and closed, if it became something else meanwhile."""
    try:
        stat = os.fstat(fd)
    except OSError:
        os.close(fd)
        raise
    if not S_ISREG(stat.st_mode) and not S_ISDIR(stat.st_mode):
        os.close(fd)
        return None
    return Opened(fd, stat, path)


# --- the short way --------------------------------------------------------------------------------


def stepwise(root: int, relative: bytes, flags: int) -> int:
    """Open ``relative`` below ``root``, directory by directory. Raises OSError; ELOOP: a link."""
    *directories, last = relative.split(b"/")
    at = root
    try:
        for name in directories:
            try:
                below = os.open(name, _LOCATE | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            except NotADirectoryError:
                # The kernel says this of links, too: with O_PATH they are something to open.
                if S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                raise
            at, above = below, at
            if above != root:
                os.close(above)
        fd = os.open(last, flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        if at != root:
            os.close(at)
    if flags & os.O_PATH and S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return fd


class _Openat2:
    """openat2(2), for the flags of this module. The buffers are only read, so threads share them.

    ``struct open_how``: flags, mode, resolve; 64 bits each."""

    __slots__ = ("_call", "_hows")

    def __init__(self) -> None:
        call = ctypes.CDLL(None, use_errno=True).syscall
        call.restype = ctypes.c_long
        # All of them as wide as a register: the function is variadic.
        number, text, address = ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p
        call.argtypes = (number, number, text, address, ctypes.c_size_t)
        self._call = call
        resolve = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
        self._hows = {
            flags: (ctypes.c_uint64 * 3)(flags, 0, resolve)
            for flags in (_LOCATE, _READ, _READ_DIRECTORY)
        }

    def __call__(self, root: int, relative: bytes, flags: int) -> int:
        """Open ``relative`` below ``root``. Raises OSError; ELOOP: a link."""
        how = self._hows[flags]
        for _ in range(_TRIES):
            fd: int = self._call(_OPENAT2, root, relative, how, 24)
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):
                break  # a filter that came after the test
            if number not in (errno.EAGAIN, errno.EINTR):
                raise OSError(number, os.strerror(number))
        return stepwise(root, relative, flags)

    def works(self) -> bool:
        """Whether the kernel has it and no filter forbids it."""
        fd: int = self._call(_OPENAT2, -100, b".", self._hows[_LOCATE], 24)  # AT_FDCWD
        if fd >= 0:
            os.close(fd)
        # Whatever is wrong with the working directory, these are not.
        return fd >= 0 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM, errno.EINVAL)


@functools.cache
def _find_openat2() -> _Openat2 | None:
    found = _Openat2()
    return found if found.works() else None
