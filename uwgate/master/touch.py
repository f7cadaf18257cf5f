"""Files that are watched (``touch-*``): one that is touched is an order.

Once a second each is looked at. It counts as touched when it appears, when it is removed, when its
modification time changes, and when another file has its name; not when it is there at the start.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from uwgate.config.settings_process import Touch
from uwgate.master.errors import explain
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop, Timer
from uwgate.master.orders import Orders

_TICK = 1.0  # seconds, as uWSGI
_SHELL = "/bin/sh"

_Mark = tuple[int, int, int] | None
"""Device, inode, nanoseconds of the modification time; None: there is no file."""


class Watch:
    """The files of one instance. ``extra`` is called at every look (the size of the log).

    ``state``: what ``state()`` said in the master that executed itself; what was touched in
    between counts. To be made when the working directory is the final one.
    """

    def __init__(
        self,
        touches: Sequence[Touch],
        loop: Loop,
        log: MainLog,
        orders: Orders,
        extra: Callable[[], object] | None = None,
        *,
        state: object = None,
    ) -> None:
        # Absolute, because it says so in the state.
        self._touches = [(os.path.abspath(touch.path), touch) for touch in touches]
        self._loop = loop
        self._log = log
        self._orders = orders
        self._extra = extra
        self._denied: set[str] = set()  # paths that cannot be looked at, and it is known
        self._commands: dict[int, str] = {}  # pid -> what has started it
        before = _marks_of(state)
        self._marks: dict[str, _Mark] = {}
        for path, touch in self._touches:
            if path not in self._marks:
                mark = before[path] if path in before else self._look(path, touch, None)
                self._marks[path] = mark
        self._timer: Timer | None = None
        if self._touches or extra is not None:
            self._timer = loop.call_later(_TICK, self._tick)

    def state(self) -> dict[str, object]:
        """JSON value for the master that follows in this process: ``{path: [device, inode,
        mtime_ns] or null}``."""
        return {path: list(mark) if mark else None for path, mark in self._marks.items()}

    def reaped(self, pid: int, code: int) -> bool:
        """A child has ended (``code`` negative: of that signal); whether it was a command of
        ``touch-exec``."""
        name = self._commands.pop(pid, None)
        if name is None:
            return False
        if code:
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._log.line(f"{name}: the command (pid: {pid}) ended with {cause}")
        return True

    def close(self) -> None:
        """Look no more; commands that run go on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- looking -------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK, self._tick)
        touched = set()
        for path in self._marks:
            touch = next(touch for name, touch in self._touches if name == path)
            before = self._marks[path]
            self._marks[path] = self._look(path, touch, before)
            if self._marks[path] != before:
                touched.add(path)
        if self._extra is not None:
            self._extra()
        # When all are known: an order may be the end of this process.
        for path, touch in self._touches:
            if path in touched:
                self._obey(path, touch)

    def _look(self, path: str, touch: Touch, before: _Mark) -> _Mark:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            self._denied.discard(path)
            return None
        except OSError as error:
            if path not in self._denied:
                self._denied.add(path)
                self._log.line(f"touch-{touch.action} = {path}: {explain(error)}")
            return before
        self._denied.discard(path)
        return found.st_dev, found.st_ino, found.st_mtime_ns

    # -- obeying -------------------------------------------------------------------------------

    def _obey(self, path: str, touch: Touch) -> None:
        why, orders = f"touch-{touch.action} {path}", self._orders
        match touch.action:
            case "reload":
                orders.reload(why)
            case "chain-reload":
                orders.reload(why, chain=True)
            case "workers-reload":
                orders.reload_workers(why)
            case "logreopen":
                orders.reopen_logs(why)
            case "logrotate":
                orders.rotate_logs(why)
            case "exec":
                self._run(why, touch.argument)
            case "signal":
                self._raise(why, touch.argument)

    def _run(self, why: str, command: str) -> None:
        try:
            pid = spawn_command(command, self._log.fileno())
        except (OSError, ValueError) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            self._log.line(f"{why}: cannot run {command}: {reason}")
            return
        self._commands[pid] = why
        self._log.line(f"{why}: running {command} (pid: {pid})")

    def _raise(self, why: str, argument: str) -> None:
        self._log.line(f"{why}: signal {argument}")
        try:
            os.kill(os.getpid(), int(argument))
        except (OSError, ValueError) as error:
            reason = explain(error) if isinstance(error, OSError) else "not a number"
            self._log.line(f"{why}: no such signal as {argument}: {reason}")


def spawn_command(command: str, output: int) -> int:
    """Run it with /bin/sh, in a session of its own, and do not wait -> its pid.

    Its standard input is /dev/null, standard output and error are descriptor ``output``; it has no
    other of ours, and no signal is ignored or blocked. It is not waited for: whoever reaps the
    children of this process gets it. Raises OSError, or ValueError for a NUL in it.
    """
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int] | tuple[int, int]] = [
        (os.POSIX_SPAWN_DUP2, output, 2),
        (os.POSIX_SPAWN_DUP2, 2, 1),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
    ]
    # Those of ours close themselves; not those that came with the start, as systemd's sockets.
    actions += [(os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()]
    return os.posix_spawn(
        _SHELL,
        ["sh", "-c", command],
        dict(os.environ),
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=[n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)],
    )


def _inheritable() -> list[int]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        number = int(entry)
        with contextlib.suppress(OSError):
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found


def _marks_of(state: object) -> dict[str, _Mark]:
    """As ``state`` wrote it; without what cannot be read."""
    marks: dict[str, _Mark] = {}
    for path, value in state.items() if isinstance(state, Mapping) else ():
        if value is None:
            marks[str(path)] = None
        elif isinstance(value, list) and len(value) == 3:
            with contextlib.suppress(TypeError, ValueError):
                marks[str(path)] = (int(value[0]), int(value[1]), int(value[2]))
    return marks
