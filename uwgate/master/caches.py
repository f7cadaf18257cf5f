"""The caches of an instance: made before the fork, kept in step with those of other machines.

Each process counts in a cell of its own (``SharedCache.cell``). What other machines send is
received and applied once, by the master; what a worker stores it sends to them itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from uwgate.config.settings_tls import CacheSettings
from uwgate.master.errors import StartError, explain
from uwgate.tls.cache import SharedCache


class Caches:
    """``by_name``: in option order. To be made before privileges are dropped: it binds.

    Raises StartError with the cache and the reason.
    """

    def __init__(self, settings: Sequence[CacheSettings]) -> None:
        self.by_name: dict[str, SharedCache] = {}
        for each in settings:
            try:
                self.by_name[each.name] = SharedCache(each)
            except OSError as error:
                raise StartError(f'cache "{each.name}": {explain(error)}') from None

    def enter_worker(self, number: int) -> None:
        """In a new worker: count apart from the others."""
        for cache in self.by_name.values():
            cache.cell = number

    def snapshot(self) -> list[dict[str, object]]:
        """The objects of uWSGI's stats server, all processes together."""
        return [cache.snapshot() for cache in self.by_name.values()]
