"""Accepted values -> the settings of the master's work."""

from __future__ import annotations

import os
from typing import Any

from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings import Endpoint
from uwgate.config.settings_process import (
    LifeSettings,
    MainLogSettings,
    Touch,
    ZergAttach,
    ZergPool,
    ZergSettings,
)

_SLOTS = 10
_ATTACH = {"zerg": "", "http-zerg": "http", "fastrouter-zerg": "fastrouter"}


def life_settings(found: Found, problems: Problems) -> LifeSettings:
    """Reloads, lives of workers, orders. File names become absolute: ``chdir`` comes later."""
    fields: dict[str, Any] = found.fields("life")
    if fields.get("control"):
        fields["control"] = os.path.abspath(fields["control"])
    fields["fifos"] = _fifos(found, problems)
    names = [f"touch-{action}" for action in
             ("reload", "chain-reload", "workers-reload", "logreopen", "logrotate", "exec",
              "signal")]  # fmt: skip
    touches = [each.value for each in found.all(*names)]
    fields["touches"] = tuple(each for each in touches if isinstance(each, Touch))
    if found.is_on("die-on-idle") and not fields.get("idle"):
        each = found.last("die-on-idle")
        assert each is not None
        problems.warn(each.item.origin, each.item.key, "without effect, as there is no idle")
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


def main_log_settings(found: Found) -> MainLogSettings:
    """What becomes of the file of the main log."""
    fields: dict[str, Any] = found.fields("main_log")
    if fields.get("backup_name"):
        fields["backup_name"] = os.path.abspath(fields["backup_name"])
    owner = found.last("logfile-chown")
    if owner is not None and isinstance(owner.value, tuple):
        uid, gid = owner.value
        fields["uid"] = uid if uid >= 0 else None
        fields["gid"] = gid if gid >= 0 else None
    return MainLogSettings(**fields)


def zerg_settings(found: Found, gateways: int, problems: Problems) -> ZergSettings:
    """``gateways``: how many of them this instance has."""
    attach = []
    for each in found.all(*_ATTACH):
        if each.row.name == "zerg" and gateways != 1:
            message = "which gateway? write http-zerg or fastrouter-zerg"
            problems.error(each.item.origin, each.item.key, message)
        attach.append(ZergAttach(_ATTACH[each.row.name], _address(each)))
    pools = [each.value for each in found.all("zerg-pool")]
    return ZergSettings(
        tuple(_address(each) for each in found.all("zerg-server")),
        tuple(each for each in pools if isinstance(each, ZergPool)),
        tuple(attach),
        found.is_on("zerg-fallback"),
    )


def _address(each: Value) -> Endpoint:
    assert isinstance(each.value, Endpoint)
    return each.value
