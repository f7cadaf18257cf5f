"""From everything the operator wrote to ``Settings``, or to the list of all that is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeVar

from uwgate.config.argv import CommandLine
from uwgate.config.compose import http_settings, process_settings, request_log_settings
from uwgate.config.compose_caches import cache_settings, used_caches
from uwgate.config.compose_client import announce_settings
from uwgate.config.compose_fast import fast_settings
from uwgate.config.compose_master import (
    check_addresses,
    life_settings,
    main_log_settings,
    zerg_settings,
)
from uwgate.config.compose_nodes import check_gateways
from uwgate.config.compose_static import for_application
from uwgate.config.compose_subscriptions import subscription_settings
from uwgate.config.compose_tls import asks_clients
from uwgate.config.effects import check_effects
from uwgate.config.found import Found, Matcher
from uwgate.config.model import Item, Problems
from uwgate.config.settings import (
    Endpoint,
    FastSettings,
    HttpSettings,
    NodeSettings,
    ProcessSettings,
    Settings,
)
from uwgate.config.settings_process import ZergPool, ZergSettings
from uwgate.config.sources import Gatherer, referenced

_UNIX_LIMIT = 107
_Gateway = TypeVar("_Gateway", HttpSettings, FastSettings)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The outcome: ``settings`` is None if and only if ``problems`` has errors.

    ``items`` are all keys and values after replacement, ``found`` the accepted ones, ``printed``
    the texts of ``print`` options.
    """

    settings: Settings | None
    problems: Problems
    items: list[Item]
    found: Found
    printed: list[str]


def configure(
    command: CommandLine,
    environ: Mapping[str, str],
    stdin: BinaryIO,
    program: str,
    problems: Problems,
) -> Configuration:
    """Read all sources and build the settings.

    ``problems`` may hold errors of the command line already. ``program`` is the path of the
    running program (the magic ``%b``). Never raises for anything the operator can get wrong.
    """
    gatherer = Gatherer(environ, stdin, program, problems)
    items = gatherer.gather(command)
    used = referenced(gatherer.items)
    matcher = Matcher(problems, gatherer.strict, gatherer.placeholders, used)
    accepted = [value for value in map(matcher.match, items) if value is not None]
    found = Found(accepted, matcher.refused)
    server = [*matcher.server, *for_application(found)]
    if server:
        problems.warn("", "", _server_line(server))
    settings = _settings(found, problems)
    return Configuration(
        None if problems.errors else settings, problems, items, found, gatherer.printed
    )


def _server_line(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return f"ignored, as they belong to the application server: {', '.join(unique)}"


def _settings(found: Found, problems: Problems) -> Settings:
    process = process_settings(found)
    subscriptions = subscription_settings(found, problems)
    check_gateways(found, problems)
    caches = cache_settings(found, problems)
    http = http_settings(found, subscriptions, caches, problems)
    fast = fast_settings(found, subscriptions, problems)
    sessions = {http.tls.sessions.cache} if http is not None and http.tls is not None else ()
    check_effects(found, problems)
    zerg = zerg_settings(found, (http is not None) + (fast is not None), problems)
    check_addresses(found, problems)
    if process.chdir:
        if not os.path.isdir(process.chdir):
            each = found.last("chdir")
            assert each is not None
            problems.error(each.item.origin, "chdir", f"{process.chdir} is not a directory")
        process = _absolute_process(process)
        zerg = _absolute_zerg(zerg)
        http = http and _absolute_gateway(http)
        fast = fast and _absolute_gateway(fast)
    return Settings(
        process,
        http,
        request_log_settings(found),
        announce_settings(found, problems),
        subscriptions,
        fastrouter=fast,
        caches=used_caches(
            found, caches, sessions, http is not None and asks_clients(http), problems
        ),
        life=life_settings(found, problems),
        main_log=main_log_settings(found, problems),
        zerg=zerg,
    )


# With chdir, relative socket paths still mean the directory that uwgate was started in.


def _absolute(endpoint: Endpoint) -> Endpoint:
    if endpoint.kind != "unix":
        return endpoint
    path = os.path.abspath(endpoint.path)
    return endpoint if len(os.fsencode(path)) > _UNIX_LIMIT else replace(endpoint, path=path)


def _absolute_nodes(nodes: tuple[NodeSettings, ...]) -> tuple[NodeSettings, ...]:
    return tuple(replace(node, endpoint=_absolute(node.endpoint)) for node in nodes)


def _absolute_process(process: ProcessSettings) -> ProcessSettings:
    return replace(
        process,
        shared_sockets=tuple(map(_absolute, process.shared_sockets)),
        stats=process.stats and _absolute(process.stats),
    )


def _absolute_zerg(zerg: ZergSettings) -> ZergSettings:
    return ZergSettings(
        tuple(map(_absolute, zerg.servers)),
        tuple(
            ZergPool(_absolute(pool.control), tuple(map(_absolute, pool.addresses)))
            for pool in zerg.pools
        ),
        tuple(replace(each, server=_absolute(each.server)) for each in zerg.attach),
        zerg.fallback,
    )


def _absolute_gateway(gateway: _Gateway) -> _Gateway:
    return replace(
        gateway,
        listeners=tuple(
            replace(each, endpoint=_absolute(each.endpoint)) for each in gateway.listeners
        ),
        nodes=_absolute_nodes(gateway.nodes),
        fallback=_absolute_nodes(gateway.fallback),
    )
