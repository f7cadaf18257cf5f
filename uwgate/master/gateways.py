"""Which gateways a configuration asks for: one row each, and how a worker makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from uwgate.config.settings import ListenerSettings, RouterSubscriptions, Settings
from uwgate.master.errors import StartError
from uwgate.master.worker import Gateway, GatewayFactory
from uwgate.observe.requestlog import RequestLog
from uwgate.router.http import HttpGateway


def http_gateway(
    settings: Settings,
    loop: asyncio.AbstractEventLoop,
    request_log: RequestLog | None,
    server_name: bytes,
    log: Callable[[str], None],
) -> Gateway:
    """The HTTP router; ``StartError`` if the code of its mapper cannot be loaded."""
    assert settings.http is not None
    try:
        return HttpGateway(
            settings.http,
            loop=loop,
            request_log=request_log,
            server_name=server_name,
            log=log,
            measured=settings.process.stats is not None,
        )
    except ValueError as error:
        raise StartError(f"http-use-code-string: {error}") from None


FACTORIES: Mapping[str, GatewayFactory] = {"http": http_gateway}


@dataclass(frozen=True, slots=True)
class Plan:
    """One gateway: ``name`` is its option and its word in logs and stats.

    ``uid``, ``gid``: whom its workers become; ``drain_timeout``: seconds.
    """

    name: str
    listeners: tuple[ListenerSettings, ...]
    workers: int
    uid: int | None
    gid: int | None
    drain_timeout: float
    factory: GatewayFactory
    subscriptions: RouterSubscriptions | None = None


def plans(settings: Settings, factories: Mapping[str, GatewayFactory]) -> list[Plan]:
    """The gateways of ``settings``; ``StartError`` if there is none."""
    http = settings.http
    if http is None or not http.listeners:
        raise StartError("nothing to do: no gateway is configured (try http = :8080)")
    return [
        Plan(
            "http",
            http.listeners,
            max(1, http.processes),
            http.uid,
            http.gid,
            http.drain_timeout,
            factories["http"],
            http.subscriptions if http.mapper.kind == "subscription" else None,
        )
    ]
