"""Clocks, nodes and event loops for the tests of router pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import uvloop

from uwgate.config.settings import Endpoint, NodeSettings
from uwgate.router.balance import Node
from uwgate.router.clock import Clock

T = TypeVar("T")


@contextmanager
def resting_clock() -> Iterator[Clock]:
    """A clock that does not tick; tests set ``now``."""
    loop = uvloop.new_event_loop()
    try:
        clock = Clock(loop)
        clock.now = 1000.0
        yield clock
    finally:
        loop.close()


def run(story: Callable[[], Awaitable[T]]) -> T:
    """Run a story on the loop that workers use."""

    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await story()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def node(port: int = 9000, weight: int = 1) -> Node:
    """An HTTP node on TCP."""
    endpoint = Endpoint("tcp", f"127.0.0.1:{port}", host="127.0.0.1", port=port)
    return Node(NodeSettings(endpoint, "http", weight=weight))
