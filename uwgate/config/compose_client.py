"""Accepted values -> the settings of the subscription client."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings import AnnounceSettings, SubscribeSettings
from uwgate.config.subscribe import MAX_NOTIFY, Subscription, address


def announce_settings(found: Found, problems: Problems) -> AnnounceSettings:
    """The client's part: all ``subscribe-to``, then all ``subscribe2`` (uWSGI's order)."""
    fields: dict[str, Any] = found.fields("announce")
    given = [*found.all("subscribe-to"), *found.all("subscribe2")]
    fields["entries"] = tuple(
        entry for each in given if (entry := _entry(each, found, problems)) is not None
    )
    if fields.get("notify_socket"):
        fields["notify_socket"] = os.path.abspath(fields["notify_socket"])
        _check_length(found, fields["notify_socket"], problems)
        fields.setdefault("announced_notify_socket", fields["notify_socket"])
    fields["use_credentials"] = found.is_on("subscriptions-use-credentials")
    return AnnounceSettings(**fields)


def _check_length(found: Found, path: str, problems: Problems) -> None:
    """The absolute path is longer than what was written."""
    each = found.last("notify-socket")
    if each is not None and len(os.fsencode(path)) > MAX_NOTIFY:
        message = f"{path} has more than {MAX_NOTIFY} bytes, which no server takes"
        problems.error(each.item.origin, each.item.key, message)


def _entry(each: Value, found: Found, problems: Problems) -> SubscribeSettings | None:
    assert isinstance(each.value, Subscription)
    entry, item = each.value.settings, each.item
    if each.value.shared is not None:
        count = len(found.all("shared-socket", "undeferred-shared-socket"))
        if each.value.shared >= count:
            message = f"there is no shared-socket number {each.value.shared}; {count} are given"
            problems.error(item.origin, item.key, message)
            return None
        entry = replace(entry, address=f"={each.value.shared}")
    if each.value.socket is not None:
        sockets = found.all("socket")
        if each.value.socket >= len(sockets):
            message = f"there is no socket number {each.value.socket}; {len(sockets)} are given"
            problems.error(item.origin, item.key, message)
            return None
        try:
            entry = replace(entry, address=address(sockets[each.value.socket].item.value))
        except ValueError as error:
            problems.error(item.origin, item.key, f"socket number {each.value.socket}: {error}")
            return None
    if entry.server.kind == "unix":
        path = os.path.abspath(entry.server.path)
        entry = replace(entry, server=replace(entry.server, path=path))
    return entry
