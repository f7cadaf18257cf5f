"""Which gateways a configuration asks for: one row each, and how a worker makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from uwgate.config.settings import (
    GatewaySettings,
    ListenerSettings,
    RouterSubscriptions,
    Settings,
)
from uwgate.config.settings_process import ZergAttach
from uwgate.master.errors import StartError
from uwgate.master.worker import Gateway, GatewayFactory
from uwgate.observe.requestlog import RequestLog
from uwgate.router.fast import FastGateway
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
    make = partial(HttpGateway, settings.http, measured=settings.process.stats is not None)
    return _made("http", make, loop, request_log, server_name, log)


def fast_gateway(
    settings: Settings,
    loop: asyncio.AbstractEventLoop,
    request_log: RequestLog | None,
    server_name: bytes,
    log: Callable[[str], None],
) -> Gateway:
    """The fastrouter; ``StartError`` if the code of its mapper cannot be loaded."""
    assert settings.fastrouter is not None
    make = partial(FastGateway, settings.fastrouter, measured=settings.process.stats is not None)
    return _made("fastrouter", make, loop, request_log, server_name, log)


def _made(
    name: str,
    make: Callable[..., Gateway],
    loop: asyncio.AbstractEventLoop,
    request_log: RequestLog | None,
    server_name: bytes,
    log: Callable[[str], None],
) -> Gateway:
    try:
        return make(loop=loop, request_log=request_log, server_name=server_name, log=log)
    except ValueError as error:
        raise StartError(f"{name}-use-code-string: {error}") from None


FACTORIES: Mapping[str, GatewayFactory] = {"http": http_gateway, "fastrouter": fast_gateway}


@dataclass(frozen=True, slots=True)
class Plan:
    """One gateway: ``name`` is its option and its word in logs and stats.

    ``uid``, ``gid``: whom its workers become; ``drain_timeout``: seconds. ``attach``: zerg servers
    that hand out sockets for it.
    """

    name: str
    listeners: tuple[ListenerSettings, ...]
    workers: int
    uid: int | None
    gid: int | None
    drain_timeout: float
    factory: GatewayFactory
    subscriptions: RouterSubscriptions | None = None
    attach: tuple[ZergAttach, ...] = ()


def plans(settings: Settings, factories: Mapping[str, GatewayFactory]) -> list[Plan]:
    """The gateways of ``settings``; ``StartError`` if there is nothing to do."""
    gateways: tuple[tuple[str, GatewaySettings | None], ...] = (
        ("http", settings.http),
        ("fastrouter", settings.fastrouter),
    )
    found = [
        Plan(
            name,
            gateway.listeners,
            max(1, gateway.processes),
            gateway.uid,
            gateway.gid,
            gateway.drain_timeout,
            factories[name],
            gateway.subscriptions if gateway.mapper.kind == "subscription" else None,
            _attach(settings, name),
        )
        for name, gateway in gateways
        if gateway is not None and (gateway.listeners or _attach(settings, name))
    ]
    if not found and not settings.zerg.pools:
        raise StartError("nothing to do: no gateway is configured (try http = :8080)")
    return found


def _attach(settings: Settings, gateway: str) -> tuple[ZergAttach, ...]:
    """The zerg servers that this gateway gets sockets of: its own, and the general ones."""
    return tuple(each for each in settings.zerg.attach if each.gateway in (gateway, ""))
