"""Looking for files: at once, or in threads where disks may be slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from uwgate.files.entries import Entry
from uwgate.files.site import Site, Waiting
from uwgate.router.errors import Failure
from uwgate.router.exchange import Exchange
from uwgate.router.phases import IDLE, RESOLVING

if TYPE_CHECKING:
    from uwgate.router.front import Front
    from uwgate.router.http import HttpGateway


class StaticLookup(Exchange):
    """The part of an exchange that finds files. ``source``: "static" where a file is the answer."""

    __slots__ = ("site", "source")

    gateway: HttpGateway

    def __init__(self, gateway: HttpGateway, front: Front) -> None:
        super().__init__(gateway, front)
        self.site = cast(Site, gateway.site)
        self.source = ""

    def count_own(self) -> None:
        """A request that no node will see has begun."""
        gateway = self.gateway
        self.node = None
        self.attempts = 0
        self.source = "static"
        if gateway.timed > 1:
            self._count()
        else:
            gateway.tally.requests += 1
            if gateway.timed:
                self.started_at = time.monotonic()

    @property
    def offloads(self) -> bool:
        """Whether what may wait for a disk is left to threads."""
        return self.gateway.pool is not None

    def offload(self, work: Callable[..., Any], *arguments: object) -> asyncio.Future[Any]:
        """Have a thread do ``work``."""
        gateway = self.gateway
        self.site.counters.offloaded += 1
        return gateway.loop.run_in_executor(gateway.pool, work, *arguments)

    def load(self, target: bytes, then: Callable[[Entry | None], None]) -> None:
        """Look where it is not known what there is, and go on with that."""
        site = self.site
        path = site.path_of(target)
        assert path is not None
        if not self.offloads:
            try:
                entry = site.load(path)
            except OSError as error:
                self.short_of(error)
            else:
                then(site.keep(target, path, entry))
            return

        def loaded(entry: Entry | None, error: Exception | None) -> None:
            self.task = None
            self.phase = IDLE
            if error is None:
                then(entry)
            else:
                self.short_of(error)

        self.phase = RESOLVING
        waiting = Waiting(target, loaded)
        self.task = waiting  # type: ignore[assignment]  # to be cancelled like any other
        others = site.loading.get(path)
        if others is not None:
            others.append(waiting)
            return
        site.loading[path] = [waiting]
        future = self.offload(site.load, path)
        future.add_done_callback(partial(_hand_out, site, self.gateway, path))

    def short_of(self, error: Exception) -> None:
        """It cannot be known what there is."""
        if self.node is None and not self.offloads:
            self.count_own()
        if isinstance(error, OSError):
            self.gateway.complain(f"cannot open files: {error.strerror}")
            self.fail_unsent(Failure.RESOURCES)
        else:
            self.fail_unsent(Failure.INTERNAL)

    def fail_unsent(self, failure: Failure) -> None:
        """Answer with an error."""
        self.phase = RESOLVING  # or nothing could fail
        self.fail(failure)


def _hand_out(
    site: Site, gateway: HttpGateway, path: bytes, future: asyncio.Future[Entry | None]
) -> None:
    """A path was looked up: tell all who wait for it."""
    waiting = site.loading.pop(path)
    if future.cancelled():
        return
    error = future.exception()
    entry = None
    if error is None:
        entry = site.keep(waiting[0].target, path, future.result())
    elif not isinstance(error, OSError):
        context = {"message": "a lookup failed", "exception": error}
        gateway.loop.call_exception_handler(context)
    for number, each in enumerate(waiting):
        if number and error is None:
            site.kept(each.target, entry)
        if each.then is None:
            continue
        try:
            each.then(entry, error)  # type: ignore[arg-type]
        except Exception as fault:  # one client's, and not that of those who come after
            context = {"message": "a file could not be served", "exception": fault}
            gateway.loop.call_exception_handler(context)
