"""The master FIFO (option ``master-fifo``): one byte written to a named pipe is one order.

Up to ten paths are the slots 0 to 9, of which one is active: only its file exists and is read. The
letters are those of uWSGI ("The Master FIFO" of its documentation).

Unlike uWSGI's, the file is open for reading and writing: there is always a reader, so that no
writer ever waits in ``open``, and never an end, so that nothing has to be made again after each
writer. It is put in its place by a rename: at no time does ``echo r > PATH`` find nothing there and
leave a plain file behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import stat
from collections.abc import Callable, Mapping, Sequence

from uwgate.master.errors import StartError, explain
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop, Timer
from uwgate.master.orders import Orders

SLOTS = 10
_MODE = 0o600
_ROUND = 256  # bytes that are obeyed before other events get their turn
_PAUSE = 0.05  # seconds until the next round, if one was full: a flood costs nobody else the master
_KEPT = 1 << 16  # bytes taken along from the pipe of a slot that is left: what one holds

# Letters of uWSGI that mean nothing here, and why.
_NOT_HERE = {
    "+": "the number of workers is fixed",
    "-": "the number of workers is fixed",
    "B": "there is no emperor to ask",
    "E": "there is no emperor in a gateway",
}

_Identity = tuple[int, int]


def check_fifo(path: str) -> None:
    """Raise StartError if no FIFO can be put at ``path``; changes nothing."""
    try:
        found = _refuse_others(path)
        directory = os.path.dirname(os.path.abspath(path))
        ours = found is not None and found.st_uid == os.geteuid()
        if not ours and not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise OSError("the directory does not exist or may not be written to")
    except OSError as error:
        raise StartError(f"master-fifo = {path}: {explain(error)}") from None


class Fifos:
    """The slots of one instance; obeys from the loop.

    ``slot``: the one to begin with. ``inherited``: what ``state`` said in the master that executed
    itself, whose pipe is read on, so that no byte is lost. Without it, StartError if the FIFO
    cannot be made; with it the log says so, and the instance goes on without one.

    A FIFO that exists at the path is replaced, whoever reads it (uWSGI: so a new instance takes
    the path of an old one over); any other file is an error.
    """

    def __init__(
        self,
        paths: Sequence[str],
        loop: Loop,
        log: MainLog,
        orders: Orders,
        *,
        slot: int = 0,
        inherited: object = None,
    ) -> None:
        # Absolute, because the working directory may change.
        self._paths = [os.path.abspath(path) for path in paths[:SLOTS]]
        self._loop = loop
        self._log = log
        self._letters = _letters(orders)
        self._fd = -1
        self._path = ""
        self._rest = bytearray()  # read from pipes that are not used any more
        self._timer: Timer | None = None
        self._closed = False
        self.slot = slot if slot < len(self._paths) else 0
        if inherited is not None:
            self._inherit(inherited)
        elif self._paths:
            try:
                self._open(self.slot)
            except OSError as error:
                path = paths[self.slot]
                raise StartError(f"master-fifo = {path}: {explain(error)}") from None

    @property
    def path(self) -> str:
        """Where orders are read now, "" if nowhere."""
        return self._path

    def state(self) -> dict[str, object]:
        """JSON value for the master that follows in this process. ``fd`` has to stay open: -1 if
        there is none. ``file``: device and inode; ``rest``: bytes not yet obeyed, as Latin-1."""
        return {
            "slot": self.slot,
            "path": self._path,
            "file": list(_file_of(self._fd)) if self._fd >= 0 else [],
            "fd": self._fd,
            "rest": self._rest.decode("latin-1"),
        }

    def renew(self) -> None:
        """Be sure that the file of the slot is there, and ours: a successor that failed may have
        removed it."""
        self._switch(self.slot)

    def close(self) -> None:
        """Obey no more; remove the file if it is still ours."""
        self._closed = True
        self._rest.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._let_go()

    # -- which file ----------------------------------------------------------------------------

    def _inherit(self, value: object) -> None:
        """Read on where the master before us has stopped."""
        try:
            if not isinstance(value, Mapping):
                raise TypeError
            slot, path, fd = int(value["slot"]), str(value["path"]), int(value["fd"])
            file: _Identity = (int(value["file"][0]), int(value["file"][1]))
            rest = str(value.get("rest", "")).encode("latin-1")
            if fd < 0 or _file_of(fd) != file:
                raise ValueError
        except (KeyError, IndexError, TypeError, ValueError, OSError):
            self._switch(self.slot)
            return
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
        self._rest += rest[:_KEPT]
        self._watch(fd, path)
        # The new configuration may have the path in another place, or not at all.
        if slot >= len(self._paths) or self._paths[slot] != path:
            slot = self._paths.index(path) if path in self._paths else slot
        if not self._paths:
            self._leave()
        elif self._belongs_to_another(path):
            self.slot = slot if slot < len(self._paths) else 0
            self._log.line(f"FIFO: {path} belongs to another instance now")
        else:
            self._switch(slot if slot < len(self._paths) else 0)
        if self._rest:
            self._pause()

    def _belongs_to_another(self, path: str) -> bool:
        """Whether somebody has put a FIFO of their own there, and reads it."""
        if self._is_ours(path) or path not in self._paths:
            return False
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError:
            return False  # ENXIO: nobody reads
        return True

    def _switch(self, slot: int) -> None:
        """Read from that slot; if it cannot be opened, go on with the old one."""
        if not self._paths:
            return
        if self._is_ours(self._paths[slot]):
            self.slot = slot
            return
        try:
            self._open(slot)
        except OSError as error:
            self._log.line(f"FIFO: {self._paths[slot]}: {explain(error)}")

    def _open(self, slot: int) -> None:
        path = self._paths[slot]
        fd = _create(path)
        # The new one is there before the old one goes.
        self._leave()
        self.slot = slot
        self._watch(fd, path)
        self._log.line(f"FIFO: reading {path} (slot {slot})")

    def _watch(self, fd: int, path: str) -> None:
        self._fd, self._path = fd, path
        self._listen()

    def _leave(self) -> None:
        """What was written before is still obeyed, what comes later fails with EPIPE."""
        with contextlib.suppress(OSError):
            while self._fd >= 0 and len(self._rest) < _KEPT:
                self._rest += os.read(self._fd, _KEPT)
        self._let_go()

    def _let_go(self) -> None:
        if self._fd < 0:
            return
        if self._is_ours(self._path):
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._deafen()
        os.close(self._fd)
        self._fd, self._path = -1, ""

    def _is_ours(self, path: str) -> bool:
        try:
            found = os.lstat(path)
            # No other file can have our inode's number while we hold it open.
            return self._fd >= 0 and _file_of(self._fd) == (found.st_dev, found.st_ino)
        except OSError:
            return False

    # -- what is written -----------------------------------------------------------------------

    def _listen(self) -> None:
        if self._fd >= 0 and self._fd not in self._loop.selector.get_map():
            self._loop.selector.register(self._fd, selectors.EVENT_READ, self._on_readable)

    def _deafen(self) -> None:
        if self._fd >= 0 and self._fd in self._loop.selector.get_map():
            self._loop.selector.unregister(self._fd)

    def _on_readable(self, mask: int) -> None:
        self._round()

    def _resume(self) -> None:
        self._timer = None
        self._listen()
        self._round()

    def _pause(self) -> None:
        self._deafen()
        if self._timer is None:
            self._timer = self._loop.call_later(_PAUSE, self._resume)

    def _round(self) -> None:
        """Obey a bounded number of bytes: those of former slots first."""
        data = bytes(self._rest[:_ROUND])
        del self._rest[:_ROUND]
        if not data:
            if self._fd < 0:
                return
            try:
                data = os.read(self._fd, _ROUND)
            except (BlockingIOError, InterruptedError):
                return
        self._obey(data)
        if self._closed:
            return
        if self._rest or len(data) == _ROUND:
            self._pause()

    def _obey(self, data: bytes) -> None:
        told: set[str] = set()
        for letter in data.decode("latin-1"):
            if self._closed:
                return
            if letter.isascii() and letter.isdecimal():
                self._select(int(letter))
            elif letter in self._letters:
                self._order(letter)
            elif letter.isascii() and letter.isprintable() and letter != " " and letter not in told:
                told.add(letter)  # once a round: the log is not the flood's to fill
                why = _NOT_HERE.get(letter)
                self._log.line(f"FIFO: {letter} does nothing here" + (f": {why}" if why else ""))

    def _select(self, slot: int) -> None:
        if slot >= len(self._paths):
            self._log.line(f"FIFO: there is no slot {slot}, taking slot 0")
            slot = 0
        self._switch(slot)

    def _order(self, letter: str) -> None:
        try:
            self._letters[letter](f"FIFO {letter}")
        except Exception as error:
            # In the loop it would cost the FIFO.
            self._log.crash(f"FIFO {letter}", error)


def _letters(orders: Orders) -> dict[str, Callable[[str], None]]:
    """Docs: ``docs/fifo.md``, a row for each."""
    return {
        "c": lambda why: orders.reload(why, chain=True),
        "C": orders.go_cheap,
        "f": orders.fork_master,
        "l": orders.reopen_logs,
        "L": orders.rotate_logs,
        "p": orders.pause,
        "P": orders.write_pidfiles,
        "q": orders.stop,
        "Q": orders.stop_at_once,
        "r": orders.reload,
        # A reload that cuts nothing takes no longer for those who come: there is no need for one.
        "R": orders.reload,
        "s": orders.log_stats,
        "S": orders.toggle_subscriptions,
        "w": orders.reload_workers,
        "W": lambda why: orders.reload_workers(why, brutal=True),
    }


def _refuse_others(path: str) -> os.stat_result | None:
    """The FIFO there, None if there is no file; OSError if it is another one."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISFIFO(found.st_mode):
        raise FileExistsError("the file exists and is not a FIFO")
    return found


def _create(path: str) -> int:
    """A new FIFO at ``path``, mode 0600, in place of one that was there -> its descriptor."""
    _refuse_others(path)
    fresh = f"{path}.{secrets.token_hex(4)}"
    os.mkfifo(fresh, _MODE)
    try:
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(fresh, flags)
        try:
            found = os.fstat(fd)
            # In a directory of somebody else it might have been exchanged.
            if not stat.S_ISFIFO(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError("somebody else has put another file there")
            os.fchmod(fd, _MODE)  # whatever the umask left of it
            os.rename(fresh, path)
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    return fd


def _file_of(fd: int) -> _Identity:
    found = os.fstat(fd)
    if not stat.S_ISFIFO(found.st_mode):
        raise OSError("no FIFO")
    return found.st_dev, found.st_ino
