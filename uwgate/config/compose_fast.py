"""Accepted values -> the settings of the fastrouter."""

from __future__ import annotations

import os
from typing import Any

from uwgate.config.compose_nodes import listening, node, node_source, serves
from uwgate.config.compose_subscriptions import router_subscriptions
from uwgate.config.found import Found
from uwgate.config.model import Problems
from uwgate.config.settings import FastSettings, SubscriptionSettings

_DEFAULTS = FastSettings(listeners=())
_NAME = "fastrouter"


def fast_settings(
    found: Found, subscriptions: SubscriptionSettings, problems: Problems
) -> FastSettings | None:
    """The fastrouter's part; None where it has no listener."""
    _check_stats(found, problems)
    attached = found.all(f"{_NAME}-zerg") or (found.all("zerg") and serves(found, _NAME))
    if not found.all(_NAME) and not attached:
        _without_effect(found, problems)
        return None
    listeners = listening(found, _NAME, problems)
    fields: dict[str, Any] = found.fields(_NAME)
    fields.setdefault("connect_timeout", fields.get("timeout", _DEFAULTS.timeout))
    directory = found.last("fastrouter-post-buffering-dir")
    if directory is not None:
        path = fields["post_buffering_dir"] = os.path.abspath(str(directory.value))
        if not os.path.isdir(path):
            problems.error(directory.item.origin, directory.item.key, f"{path} is not a directory")
    mapper, nodes = node_source(found, _NAME, problems)
    fields |= {
        "listeners": tuple(listeners),
        "nodes": nodes,
        "fallback": tuple(node(each) for each in found.all("fastrouter-fallback")),
        "mapper": mapper,
        "subscriptions": router_subscriptions(found, _NAME, subscriptions, problems),
    }
    return FastSettings(**fields)


def _without_effect(found: Found, problems: Problems) -> None:
    """Options of a gateway that there is not are most likely a slip of the pen."""
    if _NAME in found.refused:
        return
    for each in found.accepted:
        name = each.row.name
        if name.startswith("fastrouter-") and name != "fastrouter-stats":
            problems.warn(each.item.origin, each.item.key, "has no effect without fastrouter")
            return


def _check_stats(found: Found, problems: Problems) -> None:
    """The statistics are those of the whole instance, at one address."""
    ours, other = found.last("fastrouter-stats"), found.last("http-stats")
    if ours is not None and other is not None and ours.value != other.value:
        message = (
            f"an instance has its statistics at one address, and http-stats says "
            f"{other.item.value} ({other.item.origin})"
        )
        problems.error(ours.item.origin, ours.item.key, message)
    first, also = other or ours, found.last("stats")
    if first is not None and also is not None and first.value != also.value:
        message = (
            f"has no effect: an instance has its statistics at one address, and {first.row.name}"
            f" says {first.item.value} ({first.item.origin})"
        )
        problems.warn(also.item.origin, also.item.key, message)
