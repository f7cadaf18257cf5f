"""Accepted values -> the settings of the master's work."""

from __future__ import annotations

import os
from typing import Any, get_args

from uwgate.config.compose_nodes import ALL_LISTENERS, LISTENERS, bound_as, where_of
from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings import Endpoint
from uwgate.config.settings_process import (
    LifeSettings,
    MainLogSettings,
    Touch,
    TouchAction,
    ZergAttach,
    ZergPool,
    ZergSettings,
)

_SLOTS = 10
ATTACH = {"zerg": "", "http-zerg": "http", "fastrouter-zerg": "fastrouter"}
"""Options that take sockets of a zerg server -> the gateway ("": the only one)."""
TOUCHES = tuple(f"touch-{action}" for action in get_args(TouchAction))
"""Options that watch a file."""


def life_settings(found: Found, problems: Problems) -> LifeSettings:
    """Reloads, lives of workers, orders. File names become absolute: ``chdir`` comes later."""
    fields: dict[str, Any] = found.fields("life")
    if fields.get("control"):
        fields["control"] = os.path.abspath(fields["control"])
    harakiri = found.last("harakiri")
    if harakiri is not None:
        fields.setdefault("harakiri", harakiri.value)
    fields["fifos"] = _fifos(found, problems)
    touches = [each.value for each in found.all(*TOUCHES)]
    fields["touches"] = tuple(each for each in touches if isinstance(each, Touch))
    return LifeSettings(**fields)


def _fifos(found: Found, problems: Problems) -> tuple[str, ...]:
    given = found.all("master-fifo")
    paths: list[str] = []
    for each in given:
        path = os.path.abspath(str(each.value))
        if path in paths:
            message = f"{each.value} is slot {paths.index(path)} already"
            problems.error(each.item.origin, each.item.key, message)
        elif len(paths) == _SLOTS:
            problems.error(each.item.origin, each.item.key, "there are ten slots, 0 to 9, no more")
            break
        else:
            paths.append(path)
    return tuple(paths)


def main_log_settings(found: Found, problems: Problems) -> MainLogSettings:
    """What becomes of the file of the main log."""
    fields: dict[str, Any] = found.fields("main_log")
    if fields.get("backup_name"):
        fields["backup_name"] = os.path.abspath(fields["backup_name"])
    owner = found.last("logfile-chown")
    if owner is not None and owner.value is True:
        fields |= _process_owner(owner, found, problems)
    elif owner is not None and isinstance(owner.value, tuple):
        uid, gid = owner.value
        fields["uid"] = uid if uid >= 0 else None
        fields["gid"] = gid if gid >= 0 else None
    return MainLogSettings(**fields)


def _process_owner(owner: Value, found: Found, problems: Problems) -> dict[str, object]:
    """uWSGI's ``logfile-chown``, without a value: whom the instance becomes."""
    given = {name: found.last(name) for name in ("uid", "gid")}
    if not any(given.values()) and not found.refused.intersection(given):
        problems.warn(owner.item.origin, owner.item.key, "has no effect without uid or gid")
    return {name: each.value for name, each in given.items() if each is not None}


def zerg_settings(found: Found, gateways: int, problems: Problems) -> ZergSettings:
    """``gateways``: how many of them this instance has."""
    attach = []
    for each in found.all(*ATTACH):
        if each.row.name == "zerg" and gateways != 1:
            message = "which gateway? write http-zerg or fastrouter-zerg"
            problems.error(each.item.origin, each.item.key, message)
        attach.append(ZergAttach(ATTACH[each.row.name], _address(each)))
    pools = [each.value for each in found.all("zerg-pool")]
    return ZergSettings(
        tuple(_address(each) for each in found.all("zerg-server")),
        tuple(each for each in pools if isinstance(each, ZergPool)),
        tuple(attach),
        found.is_on("zerg-fallback"),
    )


def check_addresses(found: Found, problems: Problems) -> None:
    """What would be bound twice, or asked of this instance itself, or asked twice."""
    seen: dict[Endpoint, str] = {}
    for each in found.all(*ALL_LISTENERS, "shared-socket", "undeferred-shared-socket"):
        seen.setdefault(bound_as(where_of(each)), each.item.origin)
    controls = set()
    for each in found.all("zerg-pool", "zerg-server", "control-socket"):
        bound = _bound(each)
        if each.row.name != "control-socket":
            controls.add(bound_as(bound[0]))
        for where in bound:
            same = bound_as(where)
            if same not in seen:
                seen[same] = each.item.origin
            elif where.kind != "tcp" or where.port:
                message = f"{where.text} is listened on already (see {seen[same]})"
                problems.error(each.item.origin, each.item.key, message)
    for each in found.all("master-fifo"):
        same = bound_as(_unix(str(each.value)))
        if same in seen:
            message = f"{each.value} is listened on already (see {seen[same]})"
            problems.error(each.item.origin, each.item.key, message)
    _check_attach(found, controls, problems)


def _check_attach(found: Found, controls: set[Endpoint], problems: Problems) -> None:
    asked: dict[Endpoint, str] = {}
    for each in found.all(*ATTACH):
        server = _address(each)
        same = bound_as(server)
        if same in controls:
            message = f"{server.text} hands out sockets of this very instance"
            problems.error(each.item.origin, each.item.key, message)
        elif same in asked:
            message = f"{server.text} is asked already (see {asked[same]})"
            problems.error(each.item.origin, each.item.key, message)
        asked.setdefault(same, each.item.origin)
        router = ATTACH[each.row.name]
        own = LISTENERS[router] if router else ALL_LISTENERS
        fallback = found.last("zerg-fallback")
        if fallback is not None and fallback.value and not found.all(*own):
            message = f"there is no address to fall back to, if {server.text} is away"
            problems.warn(fallback.item.origin, fallback.item.key, message)


def _bound(each: Value) -> tuple[Endpoint, ...]:
    """All that an option binds; a control socket comes first."""
    if isinstance(each.value, ZergPool):
        return (each.value.control, *each.value.addresses)
    return (_unix(each.value) if isinstance(each.value, str) else _address(each),)


def _unix(path: str) -> Endpoint:
    return Endpoint("unix", path, path=path)


def _address(each: Value) -> Endpoint:
    assert isinstance(each.value, Endpoint)
    return each.value
