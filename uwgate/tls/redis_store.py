"""stub"""
from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence


class RedisStore:
    def start(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def close(self) -> None: ...
    def snapshot(self) -> dict[str, object]: return {}
    def prefetch(self, ids: Sequence[bytes], done: Callable[[], None]) -> None: done()
