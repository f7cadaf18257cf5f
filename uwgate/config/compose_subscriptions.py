"""Accepted values -> the settings of the subscription servers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings import Endpoint, RouterSubscriptions, SubscriptionSettings

_ROUTERS = ("http", "fastrouter")


def subscription_settings(found: Found, problems: Problems) -> SubscriptionSettings:
    """What all gateways share. File names become absolute."""
    fields: dict[str, Any] = found.fields("subscriptions")
    if fields.get("state"):
        fields["state"] = os.path.abspath(fields["state"])
    sign = found.last("subscriptions-sign-check")
    if sign is not None:
        fields["sign_digest"], fields["sign_directory"] = _sign(sign, problems)
    uids = frozenset(each.value for each in found.all("subscriptions-sign-skip-uid"))
    prefixes = [str(each.value) for each in found.all("subscriptions-credentials-check")]
    fields["sign_skip_uids"] = uids
    fields["credentials"] = tuple(map(_absolute_prefix, prefixes))
    if uids or prefixes:
        fields["use_credentials"] = True
    settings = SubscriptionSettings(**fields)
    _check(found, settings, problems)
    return settings


def _sign(each: Value, problems: Problems) -> tuple[str, str]:
    assert isinstance(each.value, tuple)
    digest, directory = each.value
    item = each.item
    directory = os.path.abspath(directory)
    if not os.path.isdir(directory):
        problems.error(item.origin, item.key, f"{directory} is not a directory")
    if digest.lower() == "sha1":
        message = "SHA-1 can be forged with some effort; SHA256 is as easy to use"
        problems.warn(item.origin, item.key, message)
    return digest, directory


def _absolute_prefix(text: str) -> str:
    """uWSGI puts the key right behind the text: a closing slash has to stay."""
    return os.path.abspath(text) + ("/" if text.endswith("/") else "")


def _check(found: Found, settings: SubscriptionSettings, problems: Problems) -> None:
    for name, wanted in (
        ("subscriptions-sign-skip-uid", settings.sign_skip_uids),
        ("subscriptions-credentials-check", settings.credentials),
    ):
        each = found.last(name)
        if each is None or not wanted:
            continue
        servers = [s for r in _ROUTERS for s in found.all(f"{r}-subscription-server")]
        if servers and all(_endpoint(s).kind != "unix" for s in servers):
            message = "nobody can be known over UDP; it needs a subscription server on a unix path"
            problems.warn(each.item.origin, each.item.key, message)
    if 0 in settings.sign_skip_uids:
        each = found.last("subscriptions-sign-skip-uid")
        assert each is not None
        problems.error(each.item.origin, each.item.key, "root can never be exempt")


def _endpoint(each: Value) -> Endpoint:
    assert isinstance(each.value, Endpoint)
    return each.value


def router_subscriptions(
    found: Found, router: str, common: SubscriptionSettings, problems: Problems
) -> RouterSubscriptions | None:
    """The subscriptions of the gateway ``router``; None where it has no server."""
    servers = found.all(f"{router}-subscription-server")
    targets = found.all(f"{router}-resubscribe")
    if not servers:
        return None
    algo = found.last(f"{router}-algo")
    if algo is not None:
        message = "is for nodes that options name; subscription-algo is for those that announce"
        problems.warn(algo.item.origin, algo.item.key, message)
    seen: dict[Endpoint, str] = {}
    for each in servers:
        same = replace(_endpoint(each), text="")
        if same in seen:
            message = f"{each.item.value} is listened on already (see {seen[same]})"
            problems.error(each.item.origin, each.item.key, message)
        seen[same] = each.item.origin
    key = found.last(f"{router}-subscription-fallback-key")
    bind = found.last(f"{router}-resubscribe-bind")
    return RouterSubscriptions(
        common,
        tuple(map(_absolute, map(_endpoint, servers))),
        fallback_key=str(key.value).lower() if key is not None else "",
        resubscribe=tuple(map(_absolute, map(_endpoint, targets))),
        resubscribe_bind=_endpoint(bind) if bind is not None else None,
    )


def _absolute(endpoint: Endpoint) -> Endpoint:
    if endpoint.kind != "unix":
        return endpoint
    return replace(endpoint, path=os.path.abspath(endpoint.path))
