"""The state file (``subscription-state``): the tables of subscriptions over a restart.

One JSON array a line, in this order::

    ["uwgate subscriptions", VERSION, time of writing]
    ["table", gateway]                 what follows, up to the next one, is its table
    ["key", key, algo]                 what follows is served by
    ["node", address, modifier1, modifier2, backup, protocol, weight, cores, load, unix, joined,
             age, sender, [the fields of `table.Extra`]]
    ["floor", key, address, announced, goodbye]
                                       signed packets of a node that left (`freshness.Departed`)
    ["end", number of lines before this one]

``joined`` and ``unix`` are seconds of the epoch, ``age`` is how many seconds ago the node announced
itself last; the list at the end of a node is missing if there is nothing in it. Whoever can write
the file decides where requests go, so it is for its owner only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from uwgate.subscriptions.outbox import Log, Troubles
from uwgate.subscriptions.table import NOTHING, Extra, Kind, Member, Table

INTERVAL = 5.0
"""Seconds between two writes while there are changes."""
RETRY = 60.0
"""Seconds until the next attempt when one failed."""

Floor = tuple[str, str, int, int]
"""What is remembered of a node that left; an entry of `freshness.Departed`."""

_TITLE = "uwgate subscriptions"
_VERSION = 1
_LONGEST = 1 << 14  # bytes of a line; the longest that is written has about 10,000
_REST = 10
_NUMBERS = 2**63 - 1
_CHUNK = 1000  # lines between two writes
_REASON = 512
_LEFTOVER = re.compile(r"([0-9]{1,10})\.tmp")


class StateError(Exception):
    """The file cannot be used; ``str()`` is one line that says why, without the file's name."""


@dataclass(slots=True)
class State:
    """What was saved. ``saved``: when, seconds of the epoch. Both others are by gateway."""

    saved: float
    tables: dict[str, Table] = field(default_factory=dict)
    floors: dict[str, list[Floor]] = field(default_factory=dict)


# --- writing -----------------------------------------------------------------------------------


def save(
    path: str, tables: Mapping[str, Table], floors: Mapping[str, Iterable[Floor]], now: float
) -> None:
    """Write the file, whole or not at all: what was there stays until the new one is on the disk.

    ``tables``, ``floors``: by gateway; floors of a gateway without a table are left out. ``now``:
    the monotonic clock, which `Member.seen` is of. A symbolic link at ``path`` is replaced, not
    followed. Raises OSError.
    """
    temporary = _temporary(path, os.getpid())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii", newline="\n") as file:
            write(file, tables, floors, now)
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # not every file system can
        _sync_directory(path)


def write(
    file: IO[str],
    tables: Mapping[str, Table],
    floors: Mapping[str, Iterable[Floor]],
    now: float,
) -> None:
    """Write all of it to an open file and flush; as `save`."""
    _write(file, _lines(tables, floors, int(now)))
    file.flush()


def read(file: IO[bytes], now: float | None = None) -> State:
    """The counterpart of `write`. Raises StateError, OSError."""
    with _no_collections():
        return _Reader(file, int(time.monotonic() if now is None else now)).read()


def _temporary(path: str, pid: int) -> str:
    return f"{path}.{pid}.tmp"


def _write(file: IO[str], lines: Iterator[list[Any]]) -> None:
    encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
    batch: list[str] = []
    count = 0
    for line in lines:
        batch.append(encode(line))
        if len(batch) == _CHUNK:
            file.write("\n".join(batch) + "\n")
            count += _CHUNK
            batch.clear()
    count += len(batch)
    batch.append(encode(["end", count]))
    file.write("\n".join(batch) + "\n")


def _lines(
    tables: Mapping[str, Table], floors: Mapping[str, Iterable[Floor]], now: int
) -> Iterator[list[Any]]:
    yield [_TITLE, _VERSION, int(time.time())]
    for name, table in tables.items():
        yield ["table", name]
        for slot in table.slots.values():
            yield ["key", slot.key, slot.algo]
            for member in slot:
                yield _node(member, now)
        for floor in floors.get(name, ()):
            yield ["floor", *floor]


def _node(member: Member, now: int) -> list[Any]:
    line: list[Any] = [
        "node",
        member.address,
        *member.kind,
        member.weight,
        member.cores,
        member.load,
        member.unix,
        member.joined,
        max(0, now - member.seen),
        member.sender,
    ]
    if member.extra != NOTHING:
        line.append(list(member.extra))
    return line


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading -----------------------------------------------------------------------------------


def load(
    path: str, now: float | None = None, *, owners: Iterable[int | None] = ()
) -> State | None:
    """Read the file; None if there is none. Raises StateError for one that is not as written.

    ``owners``: user ids whose file it may be, beside root and who we are now. ``now``: the
    monotonic clock, `time.monotonic` if None. `Member.seen` becomes what it was when
    the file was written, as if no time had passed since; ``State.saved`` tells how much has.
    """
    moment = int(time.monotonic() if now is None else now)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(_reason(error)) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StateError("is not a regular file")
        if found.st_uid not in (0, os.geteuid(), *owners):
            raise StateError(f"belongs to another user ({found.st_uid})")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StateError("may be written by others than its owner")
        with open(descriptor, "rb", closefd=False) as file:
            return read(file, moment)
    except OSError as error:
        raise StateError(_reason(error)) from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """They would look at everything that was read so far, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Reader:
    """Reads line by line; the file is believed nothing that it does not say in the right form."""

    def __init__(self, file: IO[bytes], now: int) -> None:
        self._file = file
        self._now = now
        self._number = 0
        self._table: Table | None = None
        self._floors: list[Floor] = []
        self._key = ""
        self._algo = ""
        self._senders: dict[str, str] = {}  # each once, not once a node

    def read(self) -> State:
        head = self._line()
        if len(head) != 3 or head[0] != _TITLE:
            raise StateError("is not a file of subscriptions")
        if head[1] != _VERSION:
            raise StateError("is of another version")
        state = State(float(self._integer(head[2])))
        while (line := self._line())[0] != "end":
            if line[0] == "table":
                self._on_table(line, state)
            elif self._table is None:
                raise self._bad()
            elif line[0] == "node":
                self._on_node(line, self._table)
            elif line[0] == "key":
                self._on_key(line, self._table)
            elif line[0] == "floor":
                self._on_floor(line)
            else:
                raise self._bad()
        if line != ["end", self._number - 1] or self._file.read(1):
            raise StateError("has lost lines")
        return state

    def _bad(self) -> StateError:
        return StateError(f"line {self._number} is damaged")

    def _line(self) -> list[Any]:
        """The next line: a list that begins with a word."""
        self._number += 1
        text = self._file.readline(_LONGEST)
        if not text:
            raise StateError("is not complete")
        try:
            line = json.loads(text) if text.endswith(b"\n") else None
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, list) or not line or not isinstance(line[0], str):
            raise self._bad()
        return line

    def _integer(self, value: object) -> int:
        if type(value) is not int or not 0 <= value <= _NUMBERS:
            raise self._bad()
        return value

    def _string(self, value: object) -> str:
        # What was announced is printable: nothing else may reach logs, sockets and statistics.
        if type(value) is not str or not value.isprintable():
            raise self._bad()
        return value

    def _on_table(self, line: list[Any], state: State) -> None:
        if len(line) != 2 or self._string(line[1]) in state.tables:
            raise self._bad()
        self._table = state.tables[line[1]] = Table()
        self._floors = state.floors[line[1]] = []
        self._key = ""

    def _on_key(self, line: list[Any], table: Table) -> None:
        if len(line) != 3:
            raise self._bad()
        self._key, self._algo = self._string(line[1]), self._string(line[2])
        if not self._key or self._key in table.slots:
            raise self._bad()

    def _on_node(self, line: list[Any], table: Table) -> None:
        if not self._key or len(line) not in (13, 14):
            raise self._bad()
        _, address, modifier1, modifier2, backup, protocol, *numbers, sender = line[:13]
        weight, cores, load, unix, joined, age = numbers
        for number in (modifier1, modifier2, backup, *numbers):
            if type(number) is not int or not 0 <= number <= _NUMBERS:
                raise self._bad()
        if protocol not in ("uwsgi", "http") or modifier1 > 255 or modifier2 > 255 or not weight:
            raise self._bad()
        if not self._string(address) or table.find(self._key, address) is not None:
            raise self._bad()
        sender = self._senders.setdefault(self._string(sender), sender)
        extra = self._extra(line[13]) if len(line) == 14 else NOTHING
        member = table.add(self._key, address)
        member.slot.algo = self._algo
        member.kind = table.kind(Kind(modifier1, modifier2, backup, protocol))
        member.extra = extra
        member.weight, member.cores, member.load = weight, cores, load
        member.unix, member.joined, member.seen = unix, joined, self._now - age
        member.sender = sender

    def _extra(self, values: object) -> Extra:
        if not isinstance(values, list) or len(values) != len(NOTHING):
            raise self._bad()
        for value, usual in zip(values, NOTHING, strict=True):
            if type(usual) is str:
                self._string(value)
            else:
                self._integer(value)
        return Extra(*values)

    def _on_floor(self, line: list[Any]) -> None:
        if len(line) != 5:
            raise self._bad()
        key, address = self._string(line[1]), self._string(line[2])
        self._floors.append((key, address, self._integer(line[3]), self._integer(line[4])))


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return text[:1].lower() + text[1:]


# --- when to write -----------------------------------------------------------------------------


class StateKeeper:
    """Writes the file when something has changed, from a forked child while the loop goes on.

    A table that takes long to write is written less often: a tenth of the time at most.

    The child sees the tables as they were at the fork, so that a million nodes cost the loop the
    time of a fork and no more. There is one writer at a time. Whoever reaps the owner's children
    reaps these, too; how it went is heard through a pipe.

    ``write`` writes the file, that is, calls `save` for ``path``; in the child, or in ``finish``
    here. ``log`` gets a line when writing fails, when the reason changes, and when it works again.
    """

    def __init__(
        self, path: str, write: Callable[[], None], log: Log, *, interval: float = INTERVAL
    ) -> None:
        self._path = path
        self._write = write
        self._interval = interval
        self._troubles = Troubles(log)
        self._dirty = False
        self._next = float("-inf")
        self._began = 0.0
        self._child = 0
        self._reader = -1
        self.writes = 0  # that went well
        _remove_leftovers(path)

    @property
    def writing(self) -> bool:
        """Whether a child is at work."""
        return self._child != 0

    def changed(self) -> None:
        """The tables are not as they were."""
        self._dirty = True

    def tick(self, now: float) -> None:
        """To be called once a second or so, with the monotonic clock: hears the child, starts one
        if it is time."""
        self._hear(now)
        if not self._dirty or self._child or now < self._next:
            return
        self._began = now
        self._next = now + self._interval
        self._dirty = False
        try:
            self._child, self._reader = _fork(self._write)
        except OSError as error:
            self._failed(_reason(error), now)

    def finish(self) -> None:
        """The end: write what is not written yet, and wait for it."""
        self._hear(time.monotonic())
        if self._child:
            # What it writes is older than what we know. Its number is still its own, as nobody can
            # have reaped it: its end of the pipe was open just now.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)
            self._bury()
            self._dirty = True
        if not self._dirty:
            return
        self._dirty = False
        try:
            self._write()
        except Exception as error:
            self._failed(_reason(error), time.monotonic())
        else:
            self._succeeded()

    def _hear(self, now: float) -> None:
        if not self._child:
            return
        try:
            answer = os.read(self._reader, _REASON).decode("utf-8", "replace")
        except BlockingIOError:
            return
        self._bury()
        if answer == "ok":
            self._next = max(self._next, now + (_REST - 1) * (now - self._began))
            self._succeeded()
        else:
            self._failed(answer or "the writing process died", now)

    def _bury(self) -> None:
        with contextlib.suppress(OSError):  # it takes its file with it, unless it was killed
            os.unlink(_temporary(self._path, self._child))
        os.close(self._reader)
        self._child, self._reader = 0, -1

    def _succeeded(self) -> None:
        self.writes += 1
        self._troubles.over(f"writing {self._path}")

    def _failed(self, reason: str, now: float) -> None:
        self._troubles.report(f"writing {self._path}", reason)
        self._dirty = True
        self._next = now + RETRY


def _fork(write: Callable[[], None]) -> tuple[int, int]:
    """Start a child that writes; its pid, and the descriptor on which it says how it went."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    # For good in the child: its handlers would write into the parent's wake-up descriptor.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _child(write, writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid, reader


def _child(write: Callable[[], None], writer: int) -> NoReturn:
    """Nothing of the parent's may stay open here: its addresses are free once it is gone."""
    answer = b""
    try:
        # A collection would touch, and so copy, all memory shared with the parent, and could
        # close descriptors by numbers that are others by now.
        gc.disable()
        os.closerange(3, writer)
        os.closerange(writer + 1, max(writer + 2, os.sysconf("SC_OPEN_MAX")))
        os.nice(10)
        write()
        answer = b"ok"
    except Exception as error:
        answer = _reason(error).encode("utf-8", "replace")[:_REASON]
    finally:
        with contextlib.suppress(OSError):
            os.write(writer, answer)
        os._exit(0)


def _remove_leftovers(path: str) -> None:
    """What writers left that were killed together with their parent."""
    directory, base = os.path.split(path)
    with contextlib.suppress(OSError):
        for name in os.listdir(directory or "."):
            match = _LEFTOVER.fullmatch(name.removeprefix(base + "."))
            if name.startswith(base + ".") and match is not None and not _lives(int(match[1])):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(directory, name))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
