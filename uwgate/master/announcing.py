"""The subscription client in a ``selectors`` loop: timers, host names, acknowledgements."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from uwgate.config.settings import AnnounceSettings, SubscribeSettings
from uwgate.master.errors import StartError, explain
from uwgate.master.handover import HandedSocket, adopt
from uwgate.master.inherited import Inherited
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop, Timer
from uwgate.master.sockets import Bound
from uwgate.subscriptions.client import AnnounceError, Announcer
from uwgate.subscriptions.lookup import Lookups
from uwgate.subscriptions.outbox import Outbox
from uwgate.subscriptions.socketfile import identity, remove_stale, set_rights

_MAX_NOTICE = 1024  # bytes of an acknowledgement that are logged
_NOTICES = 64  # read before other events get their turn


class Announcing:
    """Announces ``settings.entries`` (with final addresses) while it is started.

    To be made before privileges are dropped: it reads private keys and binds the notify socket.
    ``mode``: permission bits of that socket. Raises StartError.
    """

    def __init__(
        self,
        settings: AnnounceSettings,
        loop: Loop,
        log: MainLog,
        *,
        cores: int = 0,
        mode: int | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        self._loop = loop
        self._timer: Timer | None = None
        self._lookups = Lookups(loop.selector, log.line, self._on_answer)
        self._outbox = Outbox(
            self._lookups.address, log.line, credentials=settings.use_credentials
        )
        try:
            self._announcer = Announcer(settings, self._outbox, log.line, cores=cores)
        except AnnounceError as error:
            raise StartError(str(error)) from None
        self._notify: NotifySocket | None = None
        if settings.notify_socket:
            handed = (inherited or Inherited()).take_all(_notify_text(settings.notify_socket))
            self._notify = NotifySocket(
                settings.notify_socket,
                mode,
                loop.selector,
                log.line,
                inherited=adopt(handed[0].fds[0]) if handed else None,
            )

    @property
    def announced(self) -> bool:
        """Whether servers were told of something that was not taken back."""
        return self._announcer.announced

    def start(self) -> None:
        """Announce at once, and again and again."""
        self._act(self._announcer.start)

    def stop(self) -> None:
        """Say goodbye and be silent; harmless if nothing was announced."""
        self._act(self._announcer.goodbye)

    def reload(self) -> None:
        """A graceful reload begins: be silent, after a goodbye if it is configured so."""
        self._act(self._announcer.reload)

    def toggle(self) -> bool:
        """Block, or let go on; whether announcements are blocked now (FIFO command ``S``)."""
        self._act(self._announcer.toggle)
        return self._announcer.blocked

    def sockets(self) -> list[HandedSocket]:
        """The notify socket, for the next master."""
        if self._notify is None:
            return []
        return [self._notify.handed()]

    def let_go(self) -> None:
        """This was a rehearsal: nothing was announced, and the socket is another's."""
        self._lookups.close()
        self._outbox.close()
        if self._notify is not None:
            self._notify.let_go()

    def close(self) -> None:
        """Stop, send what is still to be sent (half a second at most), and let go of everything."""
        self.stop()
        self._announcer.finish()
        if self._timer is not None:
            self._timer.cancel()
        self._lookups.close()
        self._outbox.close()
        if self._notify is not None:
            self._notify.close()

    def _act(self, action: Callable[[float], object]) -> None:
        action(time.monotonic())
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._announcer.due
        if due is not None:
            later = max(0.0, due - time.monotonic())
            self._timer = self._loop.call_later(later, functools.partial(self._act, self._tick))

    def _tick(self, now: float) -> None:
        self._timer = None
        self._announcer.tick(now)

    def _on_answer(self) -> None:
        self._act(self._announcer.hurry)


class NotifySocket:
    """The unix datagram socket ``path``, on which servers acknowledge; each text is logged.

    Raises StartError if it cannot be bound; the socket of somebody who is gone is replaced.
    """

    def __init__(
        self,
        path: str,
        mode: int | None,
        selector: selectors.BaseSelector,
        log: Callable[[str], None],
        *,
        inherited: socket.socket | None = None,
    ) -> None:
        self._path = path
        self._selector = selector
        self._log = log
        self._fresh = inherited is None
        self._socket = inherited or _notify_socket(path, mode)
        self._file = identity(path)
        selector.register(self._socket, selectors.EVENT_READ, self._on_readable)

    def handed(self) -> HandedSocket:
        """For the next master."""
        return HandedSocket(
            self._path, "dgram", [self._socket.fileno()], None, _notify_text(self._path)
        )

    def let_go(self) -> None:
        """Close our copy; the file goes only if it was made for this rehearsal."""
        if not self._fresh:
            self._file = None
        self.close()

    def close(self) -> None:
        """Close and remove it, unless another has taken its place."""
        self._selector.unregister(self._socket)
        self._socket.close()
        if self._file is not None and identity(self._path) == self._file:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _on_readable(self, mask: int) -> None:
        for _ in range(_NOTICES):
            try:
                text = self._socket.recv(_MAX_NOTICE)
            except BlockingIOError:
                return
            # The log escapes control characters, whoever sent them.
            self._log(f"[notify-socket] {text.decode('utf-8', 'backslashreplace')}")


def _notify_text(path: str) -> str:
    return f"notify-socket {path}"


def _notify_socket(path: str, mode: int | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        remove_stale(path, socket.SOCK_DGRAM)
        sock.bind(path)
        set_rights(path, mode)
    except OSError as error:
        sock.close()
        raise StartError(f"notify-socket = {path}: {explain(error)}") from None
    return sock


def placed(
    settings: AnnounceSettings, listening: Sequence[tuple[str, Bound]], shared: Sequence[Bound]
) -> AnnounceSettings:
    """``settings`` with the addresses that were bound.

    ``listening``: gateway name and its sockets, in order; ``shared``: the shared sockets by number.
    An HTTP listener is announced as a node that speaks HTTP.
    """
    entries = tuple(_placed(entry, listening, shared) for entry in settings.entries)
    return replace(settings, entries=entries)


def _placed(
    entry: SubscribeSettings, listening: Sequence[tuple[str, Bound]], shared: Sequence[Bound]
) -> SubscribeSettings:
    address = entry.address
    if not address:
        address = listening[0][1].name
    elif address.startswith("="):
        address = shared[int(address[1:])].name
    serving = [gateway for gateway, bound in listening if bound.name == address]
    if address is not entry.address:
        address = _reachable(address)
    return replace(
        entry, address=address, protocol="http" if "http" in serving else entry.protocol
    )


def _reachable(name: str) -> str:
    """The name of a listening socket as something to connect to."""
    host, colon, port = name.rpartition(":")
    if colon and host == "0.0.0.0":
        return f"*:{port}"
    if colon and host == "[::]":
        return f"[*]:{port}"
    return name if colon or name.startswith("@") else os.path.abspath(name)
