"""From a request's target to what is to be sent: lookup in uWSGI's order, and what is remembered.

A path that was found stays known. Once a second (``static-cache-paths``), when it is asked for, the
names on its way are looked at again; what was opened is only opened anew if they show another file.
What was not found is forgotten every second.

``known`` is for the event loop. ``load`` does all that may have to wait for a disk, touches nothing
that is shared, and may run in a thread.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from typing import Literal

from uwgate.config.settings_static import Compressed, StaticMap, StaticSettings
from uwgate.files import listing
from uwgate.files.entries import KEPT_SIZE, Entry, File, identity
from uwgate.files.opening import Opened, Root
from uwgate.protocols.paths import decoded_path

_MAX_ENTRIES = 20_000
_MAX_TARGETS = 50_000
_MAX_BYTES = 64 << 20
_MAX_DESCRIPTORS = 1024
_LONG_TARGET = 1024  # bytes; longer ones are looked up each time
_LISTING_AGE = 10  # seconds; sizes of files are in it, which change without the directory
_OVERHEAD = 1024  # bytes of an entry beside its data

CODINGS = {b"br": b".br", b"zstd": b".zst", b"gzip": b".gz"}
"""Content codings (RFC 9110 §8.4.1, RFC 7932, RFC 8878) and the endings of files in them, best
first."""

# A file that an application names is under another key than any path: those begin with a slash.
_NAMED = b"\0"

Unknown = Literal["unknown"]
UNKNOWN: Unknown = "unknown"


class Counters:
    """``requests``: files sent (200, 206); ``offloaded``: lookups and reads left to threads."""

    __slots__ = ("hits", "loads", "misses", "not_modified", "offloaded", "requests", "sent")

    def __init__(self) -> None:
        self.requests = self.not_modified = self.sent = 0
        self.hits = self.loads = self.misses = self.offloaded = 0


Found = Callable[[Entry | None, Exception | None], None]
"""Takes what a path leads to, or why that cannot be known."""


class Waiting:
    """Somebody who waits for a path to be looked up, until ``cancel``."""

    __slots__ = ("target", "then")

    def __init__(self, target: bytes, then: Found) -> None:
        self.target = target
        self.then: Found | None = then

    def cancel(self) -> None:
        """It is not wanted any more."""
        self.then = None


class _Place:
    """A configured directory, or a single file: that is opened as what it is in its directory, so
    that nobody gains anything by putting a link in its place: what was once a file is no directory
    later."""

    __slots__ = ("_directory", "_name", "_parent", "root")

    def __init__(self, root: Root) -> None:
        self.root = root
        directory, _, self._name = root.path.rpartition(b"/")
        self._directory = directory or b"/"
        self._parent: Root | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look at it again."""
        self.root.refresh()
        if self._parent is not None:
            self._parent.refresh()
        elif self.root.is_file:
            self._parent = self.root.beside(self._directory)

    def split(self, path: bytes) -> Iterator[tuple[Root, bytes]]:
        """Where to open ``path``, which is below the place, and what; no slash at either end."""
        relative = path.strip(b"/")
        if self._parent is None:
            yield self.root, relative
        elif not relative:
            yield self._parent, self._name


class Site:
    """The files of one gateway in one worker."""

    __slots__ = (
        "_accel", "_all", "_descriptors", "_endings", "_max_descriptors", "_missed", "_named_from",
        "_paths", "_places", "_size", "_turned", "counters", "loading", "now", "settings",
        "targets", "tick",
    )  # fmt: skip

    def __init__(self, settings: StaticSettings) -> None:
        self.settings = settings
        self.counters = Counters()
        self.now = 0
        self.tick = 0
        self._turned = 0.0
        safe = [Root(path) for path in settings.safe]
        # (mount, where, whether the whole path is looked for below it), in uWSGI's order.
        self._places: list[tuple[bytes, _Place, bool]] = []
        everywhere = [StaticMap(b"", path, whole=True) for path in settings.checks]
        behind = [StaticMap(b"", settings.docroot, whole=True)] if settings.docroot else []
        for each in (*everywhere, *settings.maps, *behind):
            self._places.append((each.prefix, _Place(Root(each.path, safe)), each.whole))
        self._accel = [(each.prefix, _Place(Root(each.path, safe))) for each in settings.accel]
        named = [*(_Place(root) for root in safe), *(place for _, place, _ in self._places)]
        self._all = [*named, *(place for _, place in self._accel)]
        self._named_from = sorted(named, key=lambda place: len(place.root.path), reverse=True)
        # To look for beside a file.
        self._endings = tuple(CODINGS.values()) if settings.compressed != Compressed() else ()
        self.targets: dict[bytes, Entry] = {}
        self._paths: dict[bytes, Entry] = {}  # the least recently checked first
        self._missed: set[bytes] = set()
        # Who waits for a path that a thread is looking up.
        self.loading: dict[bytes, list[Waiting]] = {}
        self._size = self._descriptors = 0
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_descriptors = min(_MAX_DESCRIPTORS, limit // 4)

    def turn(self, now: float) -> None:
        """Once a second; ``now``: seconds since the epoch."""
        self.now = int(now)
        if abs(now - self._turned) < self.settings.cache_paths - 0.5:
            return
        self._turned = now
        self.tick += 1
        self._missed.clear()
        for place in self._all:
            place.refresh()

    # --- in the event loop ------------------------------------------------------------------------

    def known(self, target: bytes) -> Entry | Unknown | None:
        """What this target leads to; None: nothing. UNKNOWN: that has to be loaded."""
        entry = self.targets.get(target)
        if entry is None:
            if target in self._missed:
                return None
            path = self.path_of(target)
            if path is None:
                self._miss(target)
                return None
            return self._by_path(target, path)
        if entry.checked == self.tick:
            return entry
        if self.is_still(entry):
            return entry
        del self.targets[target]
        return self._by_path(target, entry.path)

    def _by_path(self, target: bytes, path: bytes) -> Entry | Unknown:
        entry = self._paths.get(path)
        if entry is None or not (entry.checked == self.tick or self.is_still(entry)):
            return UNKNOWN
        self._remember(target, entry)
        return entry

    def path_of(self, target: bytes) -> bytes | None:
        """What ``load`` wants for a target (or a ``named_key``); None: no file is to be sent."""
        if target.startswith(_NAMED):
            return target
        path = decoded_path(target)
        return None if path is None or path.endswith(self.settings.skip_ext) else path

    def keep(self, target: bytes, path: bytes, entry: Entry | None) -> Entry | None:
        """Remember what ``load`` has found for a target."""
        self._store(path, entry)
        self.kept(target, entry)
        return entry

    def kept(self, target: bytes, entry: Entry | None) -> None:
        """Another target leads to the same."""
        if entry is None:
            self._miss(target)
        else:
            self._remember(target, entry)

    def anew(self, entry: Entry) -> Entry | None:
        """What the path of an entry leads to now: its file has changed. Raises OSError."""
        fresh = self.load(entry.path)
        self._store(entry.path, fresh)
        return fresh

    def _store(self, path: bytes, entry: Entry | None) -> None:
        self.counters.loads += 1
        before = self._paths.get(path)
        if before is not None:
            self._drop(before)
        if entry is None:
            return
        entry.checked = self.tick
        files = entry.files()
        entry.size = _OVERHEAD + len(path) + sum(len(each.data or b"") for each in files)
        self._paths[path] = entry
        self._size += entry.size
        self._descriptors += sum(each.fd >= 0 for each in files)
        while len(self._paths) > 1 and (
            len(self._paths) > _MAX_ENTRIES
            or self._size > _MAX_BYTES
            or self._descriptors > self._max_descriptors
        ):
            self._drop(next(iter(self._paths.values())))

    def _remember(self, target: bytes, entry: Entry) -> None:
        if len(target) <= _LONG_TARGET:
            if len(self.targets) >= _MAX_TARGETS:
                self.targets.clear()
            self.targets[target] = entry

    def _miss(self, target: bytes) -> None:
        self.counters.misses += 1
        if len(target) <= _LONG_TARGET and len(self._missed) < _MAX_TARGETS:
            self._missed.add(target)

    def _drop(self, entry: Entry) -> None:
        """Files close with their last reference: who is sending one goes on."""
        del self._paths[entry.path]
        self._size -= entry.size
        self._descriptors -= sum(each.fd >= 0 for each in entry.files())
        entry.release()

    def is_still(self, entry: Entry) -> bool:
        """Whether the names on the way show what they showed before; forget it if not."""
        if entry.gone:
            return False
        direct = entry.direct
        if direct is not None:
            status = direct[0].stat(direct[1])
            if status is None or identity(status) != entry.file.identity:  # type: ignore[union-attr]
                self._drop(entry)
                return False
        elif (
            entry.signature is None
            or (entry.kind == "listing" and self.now - entry.made >= _LISTING_AGE)
            or self._look(entry.path) != entry.signature
        ):
            self._drop(entry)
            return False
        entry.checked = self.tick
        self._paths[entry.path] = self._paths.pop(entry.path)
        return True

    # --- names of an application ------------------------------------------------------------------

    def named_key(self, value: bytes, *, uri: bool) -> bytes | None:
        """The key, in place of a target, of the file that an application names; None: it must not.
        ``uri``: a path that ``static-accel`` maps, else an absolute file name."""
        if uri:
            path = decoded_path(value)
            return None if path is None or path.endswith(b"/") else _NAMED + b"uri" + path
        odd = b"\0" in value or b".." in value.split(b"/")
        if odd or not value.startswith(b"/") or value.endswith(b"/"):
            return None
        return _NAMED + b"file" + os.path.normpath(value).replace(b"//", b"/")

    def _named(self, key: bytes) -> Iterator[tuple[Root, bytes]]:
        if key.startswith(b"uri", 1):
            path = key[4:]
            for mount, place in self._accel:
                if _below(path, mount):
                    yield from place.split(path[len(mount) :])
            return
        path = key[5:]
        for place in self._named_from:
            above = place.root.path.rstrip(b"/")
            if _below(path, above):
                yield from place.split(path[len(above) :])
                return

    # --- what may wait for a disk -----------------------------------------------------------------

    def _candidates(self, path: bytes) -> Iterator[tuple[Root, bytes]]:
        """Where to look for a path, in order; no slash at either end of the relative ones."""
        if path.startswith(_NAMED):
            yield from self._named(path)
            return
        for mount, place, whole in self._places:
            if _below(path, mount):
                yield from place.split(path if whole else path[len(mount) :])

    def _look(self, path: bytes) -> tuple[object, ...] | None:
        """What the names show, without opening anything. It only serves to be compared."""
        for number, (root, relative) in enumerate(self._candidates(path)):
            status = root.stat(relative)
            if status is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                for index in self.settings.index:
                    inner = _join(relative, index)
                    found = root.stat(inner)
                    if found is not None and stat.S_ISREG(found.st_mode):
                        return number, *self._shown(root, inner, found)
                if self.settings.autoindex:
                    return number, identity(status)
            elif stat.S_ISREG(status.st_mode) and not path.endswith(b"/"):
                return number, *self._shown(root, relative, status)
        return None

    def _shown(self, root: Root, relative: bytes, status: os.stat_result) -> Iterator[object]:
        yield identity(status)
        for ending in self._endings:
            beside = root.stat(relative + ending)
            yield None if beside is None else identity(beside)

    def load(self, path: bytes) -> Entry | None:
        """Look a path up, open what it leads to, and read it if it is small. Raises OSError if
        there is no descriptor or memory left."""
        signature = self._look(path)
        for number, (root, relative) in enumerate(self._candidates(path)):
            entry = self._load_from(root, relative, path)
            if entry is not None:
                # What was looked at has to be what was opened.
                file = entry.file
                if signature is None or file is None:
                    return entry
                if entry.kind == "listing":
                    entry.signature = signature
                elif signature[1] == file.identity and not entry.is_young:
                    entry.signature = signature
                    if not number and entry.variants is None and not path.endswith(b"/"):
                        entry.direct = root, relative
                return entry
        return None

    def _load_from(self, root: Root, relative: bytes, path: bytes) -> Entry | None:
        named = path.startswith(_NAMED)
        slash = path.endswith(b"/") and not named
        opened = root.open(relative, self.settings.dotfiles or named)
        if opened is None:
            # Who may pass through a directory but not list it finds its index.
            status = root.stat(relative) if self.settings.index and not named else None
            if status is None or not stat.S_ISDIR(status.st_mode):
                return None
            return self._directory(root, relative, path, None)
        if stat.S_ISREG(opened.stat.st_mode):
            if slash or (not named and opened.path.endswith(self.settings.skip_ext)):
                os.close(opened.fd)
                return None
            return self._file_entry(root, relative, path, opened)
        try:
            return None if named else self._directory(root, relative, path, opened)
        finally:
            os.close(opened.fd)

    def _directory(
        self, root: Root, relative: bytes, path: bytes, directory: Opened | None
    ) -> Entry | None:
        """Its index, its listing, or the way to its name with a slash."""
        settings = self.settings
        slash = path.endswith(b"/")
        for index in settings.index:
            inner = _join(relative, index)
            opened = root.open(inner, settings.dotfiles)
            if opened is None:
                continue
            usable = stat.S_ISREG(opened.stat.st_mode)
            if not usable or opened.path.endswith(settings.skip_ext) or not slash:
                os.close(opened.fd)
                if usable and not slash:
                    return Entry(path, "redirect")
                continue
            return self._file_entry(root, inner, path, opened)
        if not settings.autoindex or directory is None:
            return None
        if not slash:
            return Entry(path, "redirect")

        def is_served(name: bytes) -> bool:
            opened = root.open(_join(relative, name), settings.dotfiles)
            if opened is None:
                return False
            os.close(opened.fd)
            return not opened.path.endswith(settings.skip_ext)

        found, cut = listing.entries(directory.fd, settings.dotfiles, is_served=is_served)
        found = [each for each in found if each.is_dir or not each.name.endswith(settings.skip_ext)]
        entry = Entry(path, "listing")
        entry.made = self.now
        entry.file = File.made(listing.html(path, found, cut))
        entry.variants = {b"json": File.made(listing.as_json(path, found, cut))}
        return entry

    def _file_entry(self, root: Root, relative: bytes, path: bytes, opened: Opened) -> Entry:
        entry = Entry(path, "file")
        entry.file = _kept(File(opened.fd, identity(opened.stat), opened.path))
        if self._is_compressed(opened.path):
            entry.variants = {}
            for coding, ending in CODINGS.items():
                other = root.open(relative + ending, self.settings.dotfiles)
                if other is None:
                    continue
                skipped = other.path.endswith(self.settings.skip_ext)
                if stat.S_ISREG(other.stat.st_mode) and not skipped:
                    entry.variants[coding] = _kept(File(other.fd, identity(other.stat), other.path))
                else:
                    os.close(other.fd)
        return entry

    def _is_compressed(self, path: bytes) -> bool:
        """Whether compressed forms of this file are looked for."""
        rules = self.settings.compressed
        return (
            rules.everything
            or path.startswith(rules.prefixes)
            or path.endswith(rules.suffixes)
            or any(each.search(path) for each in rules.regexps)
        )

    # --- statistics -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        """``{"requests", "not_modified", "bytes", "hits", "loads", "misses", "offloaded",
        "entries", "cached_bytes", "descriptors"}``"""
        counters = self.counters
        return {
            "requests": counters.requests,
            "not_modified": counters.not_modified,
            "bytes": counters.sent,
            "hits": counters.hits,
            "loads": counters.loads,
            "misses": counters.misses,
            "offloaded": counters.offloaded,
            "entries": len(self._paths),
            "cached_bytes": self._size,
            "descriptors": self._descriptors,
        }


def _kept(file: File) -> File:
    """In memory, if it is small and nobody is writing to it."""
    if file.size <= KEPT_SIZE:
        try:
            file.read_whole()
        except OSError:
            pass  # who sends it finds out
    return file


def _below(path: bytes, mount: bytes) -> bool:
    """Whether ``path`` is ``mount`` or below it. Both begin with a slash, or the mount is empty."""
    return not mount or path == mount or path.startswith(mount + b"/")


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
