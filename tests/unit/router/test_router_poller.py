"""The nested epoll: readiness of many raw sockets through one reader of the loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from router_tools import run

from uwgate.router.poller import READ, WRITE, Poller


class Owner:
    """Reads what is there, tells what happened, and then does what the test wants."""

    def __init__(self, sock: socket.socket, then: Callable[[], object] = lambda: None) -> None:
        self.sock = sock
        self.then = then
        self.events: list[int] = []
        self.data = b""
        self.called = asyncio.Event()

    def ready(self, events: int) -> None:
        self.events.append(events)
        if events & READ:
            self.data += self.sock.recv(1)
        self.called.set()
        self.then()


@pytest.fixture
def pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    with ExitStack() as stack:

        def make() -> tuple[socket.socket, socket.socket]:
            ends = socket.socketpair()
            for end in ends:
                stack.enter_context(end)
                end.setblocking(False)
            return ends

        yield make


Pair = Callable[[], tuple[socket.socket, socket.socket]]


async def _some_rounds() -> None:
    """Let the loop look at its readers several times."""
    watched, other = socket.socketpair()
    loop = asyncio.get_running_loop()
    with watched, other:
        for _ in range(5):
            seen = asyncio.Event()
            loop.add_reader(watched, seen.set)
            other.send(b"x")
            await seen.wait()
            watched.recv(1)
        loop.remove_reader(watched)


def test_reading_is_level_triggered(pair: Pair) -> None:
    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        ours, theirs = pair()
        enough = asyncio.Event()
        owner = Owner(ours)
        owner.then = lambda: enough.set() if owner.data == b"abc" else None
        poller.register(ours.fileno(), owner, READ)
        await _some_rounds()
        assert owner.events == []
        theirs.send(b"abc")  # one byte is read each time
        await enough.wait()
        assert owner.events == [READ] * 3
        poller.close()

    run(story)


def test_writing_and_a_change_of_mind(pair: Pair) -> None:
    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        ours, theirs = pair()
        fd = ours.fileno()
        owner = Owner(ours, lambda: poller.modify(fd, READ))
        poller.register(fd, owner, WRITE)
        await owner.called.wait()
        await _some_rounds()
        assert owner.events == [WRITE]
        owner.called.clear()
        theirs.send(b"a")
        await owner.called.wait()
        assert (owner.events, owner.data) == ([WRITE, READ], b"a")
        poller.close()

    run(story)


def test_the_end_of_the_other_side_is_told(pair: Pair) -> None:
    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        ours, theirs = pair()
        owner = Owner(ours, lambda: poller.forget(ours.fileno()))
        poller.register(ours.fileno(), owner, READ)
        theirs.close()
        await owner.called.wait()
        assert owner.events[0] & READ
        assert owner.data == b""
        poller.close()

    run(story)


def test_suspend_and_begin_again(pair: Pair) -> None:
    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        ours, theirs = pair()
        owner = Owner(ours)
        poller.register(ours.fileno(), owner, READ)
        poller.suspend(ours.fileno())
        theirs.send(b"a")
        await _some_rounds()
        assert owner.events == []
        poller.register(ours.fileno(), owner, READ)
        await owner.called.wait()
        assert owner.data == b"a"
        poller.close()

    run(story)


def test_nobody_is_called_for_a_forgotten_descriptor(pair: Pair) -> None:
    """Within one round too: the first owner makes the others go."""

    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        owners: list[Owner] = []

        def forget_all() -> None:
            for owner in owners:
                poller.forget(owner.sock.fileno())

        for _ in range(5):
            ours, theirs = pair()
            owners.append(Owner(ours, forget_all))
            theirs.send(b"a")
            poller.register(ours.fileno(), owners[-1], READ)
        await asyncio.wait(
            [asyncio.ensure_future(owner.called.wait()) for owner in owners],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert sorted(len(owner.events) for owner in owners) == [0, 0, 0, 0, 1]
        for owner in owners:
            owner.called.set()
        poller.close()

    run(story)


def test_a_number_may_be_used_again(pair: Pair) -> None:
    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        first, _first_peer = pair()
        fd = first.fileno()
        before = Owner(first)
        poller.register(fd, before, READ)
        poller.forget(fd)
        first.close()
        ours, theirs = pair()
        assert ours.fileno() == fd  # the lowest free one
        again = Owner(ours)
        poller.register(ours.fileno(), again, READ)
        theirs.send(b"a")
        await again.called.wait()
        assert before.events == []
        poller.close()

    run(story)


def test_more_descriptors_than_a_round_takes(pair: Pair) -> None:
    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        owners = []
        for _ in range(200):
            ours, theirs = pair()
            owners.append(Owner(ours))
            theirs.send(b"a")
            poller.register(ours.fileno(), owners[-1], READ)
        await asyncio.gather(*(owner.called.wait() for owner in owners))
        assert [owner.data for owner in owners] == [b"a"] * 200
        poller.close()

    run(story)


def test_closing_leaves_the_descriptors_open(pair: Pair) -> None:
    async def story() -> None:
        poller = Poller(asyncio.get_running_loop())
        ours, theirs = pair()
        owner = Owner(ours)
        poller.register(ours.fileno(), owner, READ)
        theirs.send(b"a")
        poller.close()
        await _some_rounds()
        assert owner.events == []
        assert ours.recv(1) == b"a"

    run(story)
