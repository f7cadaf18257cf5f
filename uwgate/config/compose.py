"""Accepted values -> the frozen settings; here is what concerns more than one option."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uwgate.config.compose_nodes import endpoint, listening, node, node_source, serves
from uwgate.config.compose_static import has_places, static_settings
from uwgate.config.compose_subscriptions import router_subscriptions
from uwgate.config.compose_tls import tls_settings
from uwgate.config.found import Found
from uwgate.config.model import Problems
from uwgate.config.settings import (
    ErrorPage,
    Http2Settings,
    HttpSettings,
    ProcessSettings,
    RequestLogSettings,
    SubscriptionSettings,
)
from uwgate.config.settings_tls import CacheSettings

_DEFAULTS = HttpSettings(listeners=())
_FILES = ("pidfile", "pidfile2", "safe_pidfile", "safe_pidfile2", "log_file", "daemonize",
          "daemonize2", "chdir", "chroot")  # fmt: skip
_MAX_PAGE = 1 << 20
_PAGE_TYPES = {
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}


def process_settings(found: Found) -> ProcessSettings:
    """The master's part. File names become absolute, as they are opened after ``chdir``."""
    fields: dict[str, Any] = found.fields("process")
    for name in _FILES:
        if name in fields:
            fields[name] = os.path.abspath(fields[name])
    shared = found.all("shared-socket", "undeferred-shared-socket")
    fields["shared_sockets"] = tuple(endpoint(each) for each in shared)
    fields["undeferred"] = tuple(each.row.name.startswith("undeferred") for each in shared)
    if found.is_on("no-defer-accept"):
        fields["defer_accept"] = 0
    for name in ("fastrouter-stats", "stats"):  # of http-stats it is the field
        stats = found.last(name)
        if stats is not None:
            fields.setdefault("stats", stats.value)
    background = fields.get("daemonize") or fields.get("daemonize2")
    if background:
        fields.setdefault("log_file", background)
    groups = [each.value for each in found.all("add-gid")]
    fields["add_gids"] = tuple(each for each in groups if isinstance(each, int))
    fields["procname"] = _process_name(found, fields.pop("procname", "uwgate"))
    return ProcessSettings(**fields)


def _process_name(found: Found, name: str) -> str:
    for option, form in (
        ("procname-append", "{name}{part}"),
        ("procname-prefix", "{part}{name}"),
        ("procname-prefix-spaced", "{part} {name}"),
    ):
        each = found.last(option)
        if each is not None:
            name = form.format(name=name, part=each.value)
    return name


def request_log_settings(found: Found) -> RequestLogSettings:
    """The request log: on by ``http-log`` or by naming a format or file, off by -L."""
    fields: dict[str, Any] = found.fields("request_log")
    if fields.get("path"):
        fields["path"] = os.path.abspath(fields["path"])
    if "enabled" not in fields:
        named = "format" in fields or "path" in fields
        fields["enabled"] = named and not found.is_on("disable-logging")
    return RequestLogSettings(**fields)


def http_settings(
    found: Found,
    subscriptions: SubscriptionSettings,
    caches: Mapping[str, CacheSettings],
    problems: Problems,
) -> HttpSettings | None:
    """The router's part; None where it has no listener."""
    if not serves(found, "http") and (serves(found, "fastrouter") or found.all("zerg-pool")):
        return None
    listeners = listening(found, "http", problems)
    fields: dict[str, Any] = found.fields("http")
    timeout = fields.get("timeout", _DEFAULTS.timeout)
    for name in ("headers_timeout", "connect_timeout", "keepalive_timeout"):
        fields.setdefault(name, timeout)
    _keepalive(found, fields)
    mapper, nodes = node_source(found, "http", problems, needed=not has_places(found))
    networks = [each.value for each in found.all("http-trusted-proxy")]
    http2 = Http2Settings(**found.fields("http2"))  # type: ignore[arg-type]
    fields |= {
        "listeners": tuple(listeners),
        "nodes": nodes,
        "fallback": tuple(node(each) for each in found.all("http-fallback")),
        "mapper": mapper,
        "variables": tuple(each.value for each in found.all("http-var")),
        "stud_prefix": tuple(each.value for each in found.all("http-stud-prefix")),
        "trusted_proxies": tuple(network for network in networks if network is not None),
        "trust_unix": None in networks,
        "error_pages": _error_pages(found, problems),
        "subscriptions": router_subscriptions(found, "http", subscriptions, problems),
        "static": static_settings(found, problems),
        "http2": http2,
    }
    if any(each.tls is not None for each in listeners):
        tls = tls_settings(found, subscriptions.dotsplit, caches, problems)
        fields["tls"] = tls if http2.enabled else replace(tls, alpn=("http/1.1",))
    zerg = serves(found, "http") and found.all("zerg", "http-zerg")
    return HttpSettings(**fields) if listeners or zerg else None


def _keepalive(found: Found, fields: dict[str, Any]) -> None:
    each = found.last("http-keepalive")
    if each is None:
        return
    assert isinstance(each.value, int)
    fields["keepalive"] = each.value > 0
    if each.value > 1:
        fields["keepalive_timeout"] = float(each.value)


def _error_pages(found: Found, problems: Problems) -> dict[int, ErrorPage]:
    pages = {}
    for each in found.accepted:
        if not each.row.name.startswith("error-page-"):
            continue
        path = str(each.value)
        ending = os.path.splitext(path)[1].lower()
        try:
            with open(path, "rb") as file:
                body = file.read(_MAX_PAGE + 1)
        except OSError as error:
            problems.error(each.item.origin, each.item.key, f"{path}: {error.strerror}")
            continue
        if len(body) > _MAX_PAGE:
            message = f"{path}: larger than {_MAX_PAGE} bytes"
            problems.error(each.item.origin, each.item.key, message)
            continue
        media_type = _PAGE_TYPES.get(ending, "text/html; charset=utf-8")
        pages[int(each.row.name[-3:])] = ErrorPage(body, media_type)
    return pages
