"""Raw non-blocking sockets beside uvloop: one nested epoll, registered with the loop as one reader.

For sockets that live for one request (uwsgi nodes) this costs about half of a transport: no handle
objects, one epoll_ctl, and one epoll_wait for all that are ready.
"""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
BATCH = 128  # events a round; the loop comes back at once for the rest


class Pollable(Protocol):
    """Owner of a polled descriptor."""

    def ready(self, events: int) -> None:
        """The descriptor has ``events``. May be spurious (a number reused within one round): the
        owner must find out from the socket itself and take EAGAIN for "not yet"."""
        ...


class Poller:
    """Level-triggered readiness for any number of descriptors.

    ``spent``: for owners that could go on for long, what they have had of this round together.
    """

    __slots__ = ("_loop", "add", "epoll", "modify", "owners", "spent")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.spent = 0
        self.epoll = select.epoll()
        # ``register`` in two steps, for who counts calls: owners[fd] = owner; add(fd, events).
        self.owners: dict[int, Pollable] = {}
        self.add = self.epoll.register
        self.modify = self.epoll.modify
        loop.add_reader(self.epoll.fileno(), self.round)

    def register(self, fd: int, owner: Pollable, events: int) -> None:
        """Watch ``fd`` for ``events`` (READ, WRITE) on behalf of ``owner``."""
        self.owners[fd] = owner
        self.epoll.register(fd, events)

    def suspend(self, fd: int) -> None:
        """Stop watching ``fd`` for now; ``register`` begins again."""
        self.owners.pop(fd, None)
        self.epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Stop watching; to be called right before ``fd`` is closed (closing removes it from the
        kernel's set, as no duplicate of it exists)."""
        self.owners.pop(fd, None)

    def close(self) -> None:
        """Give up the nested epoll; registered descriptors stay open."""
        self._loop.remove_reader(self.epoll.fileno())
        self.epoll.close()
        self.owners.clear()

    def round(self) -> None:
        """Tell the owners of all that is ready."""
        owners = self.owners
        self.spent = 0
        for fd, events in self.epoll.poll(0, BATCH):
            owner = owners.get(fd)
            if owner is not None:
                owner.ready(events)
