"""Accepted values -> the frozen settings; here is what concerns more than one option."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import replace
from typing import Any

from uwgate.config import addresses
from uwgate.config.compose_subscriptions import router_subscriptions
from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings import (
    Endpoint,
    ErrorPage,
    HttpSettings,
    ListenerSettings,
    MapperSettings,
    NodeSettings,
    ProcessSettings,
    RequestLogSettings,
    SubscriptionSettings,
)

_DEFAULTS = HttpSettings(listeners=())
_MAX_PAGE = 1 << 20
_PAGE_TYPES = {
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
_CODE = re.compile(r"([0-9]{1,3}):(.+):([A-Za-z_][A-Za-z0-9_]*)", re.DOTALL)
_SAMPLE = "www.example.com"  # a key to try patterns with


def process_settings(found: Found) -> ProcessSettings:
    """The master's part. File names become absolute, as they are opened after ``chdir``."""
    fields: dict[str, Any] = found.fields("process")
    for name in ("pidfile", "log_file", "chdir"):
        if name in fields:
            fields[name] = os.path.abspath(fields[name])
    shared = found.all("shared-socket", "undeferred-shared-socket")
    fields["shared_sockets"] = tuple(_endpoint(each) for each in shared)
    fields["undeferred"] = tuple(each.row.name.startswith("undeferred") for each in shared)
    if found.is_on("no-defer-accept"):
        fields["defer_accept"] = 0
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
    found: Found, subscriptions: SubscriptionSettings, problems: Problems
) -> HttpSettings | None:
    """The router's part; None where it has no listener (which is an error by then)."""
    listeners = _listeners(found, problems)
    fields: dict[str, Any] = found.fields("http")
    timeout = fields.get("timeout", _DEFAULTS.timeout)
    for name in ("headers_timeout", "connect_timeout", "keepalive_timeout"):
        fields.setdefault(name, timeout)
    _keepalive(found, fields)
    mapper, nodes = _node_source(found, problems)
    networks = [each.value for each in found.all("http-trusted-proxy")]
    fields |= {
        "listeners": tuple(listeners),
        "nodes": nodes,
        "fallback": tuple(_node(each) for each in found.all("http-fallback")),
        "mapper": mapper,
        "variables": tuple(each.value for each in found.all("http-var")),
        "stud_prefix": tuple(each.value for each in found.all("http-stud-prefix")),
        "trusted_proxies": tuple(network for network in networks if network is not None),
        "trust_unix": None in networks,
        "error_pages": _error_pages(found, problems),
        "subscriptions": router_subscriptions(found, "http", subscriptions, problems),
    }
    return HttpSettings(**fields) if listeners else None


def _endpoint(each: Value) -> Endpoint:
    assert isinstance(each.value, Endpoint)
    return each.value


def _node(each: Value) -> NodeSettings:
    assert isinstance(each.value, NodeSettings)
    return each.value


def _listeners(found: Found, problems: Problems) -> list[ListenerSettings]:
    shared = len(found.all("shared-socket", "undeferred-shared-socket"))
    seen: dict[Endpoint, str] = {}
    listeners = []
    for each in found.all("http"):
        endpoint = _endpoint(each)
        item = each.item
        same = replace(endpoint, text="")
        if endpoint.kind == "shared" and endpoint.number >= shared:
            message = f"there is no shared-socket number {endpoint.number}; {shared} are given"
            problems.error(item.origin, item.key, message)
        elif same in seen and (endpoint.kind != "tcp" or endpoint.port):
            message = f"{item.value} is listened on already (see {seen[same]})"
            problems.error(item.origin, item.key, message)
        else:
            seen[same] = item.origin
            listeners.append(ListenerSettings(endpoint))
    if not found.all("http") and "http" not in found.refused:
        message = "no address to listen on; give one, such as http = :8080 (see --help)"
        problems.error("", "http", message)
    return listeners


def _keepalive(found: Found, fields: dict[str, Any]) -> None:
    each = found.last("http-keepalive")
    if each is None:
        return
    assert isinstance(each.value, int)
    fields["keepalive"] = each.value > 0
    if each.value > 1:
        fields["keepalive_timeout"] = float(each.value)


# Where nodes come from: exactly one source, the first of this order (uWSGI's).
_NODE_SOURCES = (
    "http-use-pattern",
    "http-subscription-server",
    "http-use-base",
    "http-use-code-string",
    "http-use-socket",
    "http-to",
)


def _node_source(
    found: Found, problems: Problems
) -> tuple[MapperSettings, tuple[NodeSettings, ...]]:
    given = [each for each in map(found.last, _NODE_SOURCES) if each is not None]
    if len(given) > 1:
        others = ", ".join(each.row.name for each in given[1:])
        message = f"decides where requests go; {others} cannot act beside it"
        problems.warn(given[0].item.origin, given[0].row.name, message)
    if not given:
        return MapperSettings(), _embedded(found, problems)
    first = given[0]
    if first.row.name == "http-subscription-server":
        return MapperSettings("subscription"), ()
    if first.row.name == "http-to":
        return MapperSettings(), tuple(_node(each) for each in found.all("http-to"))
    if first.row.name == "http-use-socket":
        return MapperSettings(), _use_socket(first, found, problems)
    return _mapper(first, found, problems), ()


def _mapper(each: Value, found: Found, problems: Problems) -> MapperSettings:
    text = str(each.value)
    item = each.item
    try:
        if each.row.name == "http-use-code-string":
            return _code(text, found)
        if each.row.name == "http-use-base":
            addresses.node(text + _SAMPLE)
            return MapperSettings("base", text)
        if "%s" not in text:
            message = "has no %s, so that every host has the same node; in files write %%s"
            problems.warn(item.origin, item.key, message)
        addresses.node(_filled(text))
        return MapperSettings("pattern", text)
    except ValueError as error:
        problems.error(item.origin, item.key, str(error))
        return MapperSettings()


def _filled(pattern: str) -> str:
    """The pattern with a sample key: ``%s`` key, ``%%`` percent, ``%(`` stays, others vanish."""
    known = {"s": _SAMPLE, "%": "%", "(": "%("}
    return re.sub(r"%(.)", lambda match: known.get(match[1], ""), pattern)


def _code(text: str, found: Found) -> MapperSettings:
    match = _CODE.fullmatch(text)
    if match is None or int(match[1]) > 255:
        raise ValueError(f"{text!r} is not complete; expected MODIFIER1:FILE:FUNCTION")
    path = os.path.abspath(match[2])
    try:
        with open(path, "rb") as file:
            ast.parse(file.read(), path)
    except OSError as error:
        raise ValueError(f"{match[2]}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        raise ValueError(f"{match[2]}:{line} is not valid Python: {error}") from None
    timeout = found.last("http-code-timeout")
    budget = timeout.value if timeout is not None else _DEFAULTS.mapper.code_timeout
    assert isinstance(budget, float)
    return MapperSettings("code", path, match[3], int(match[1]), budget)


def _socket_node(each: Value, problems: Problems) -> tuple[NodeSettings, ...]:
    text = each.item.value
    try:
        return (NodeSettings(addresses.connecting(text)),)
    except ValueError as error:
        message = f"cannot serve as a node ({error})"
        problems.error(each.item.origin, each.item.key, message)
        return ()


def _use_socket(each: Value, found: Found, problems: Problems) -> tuple[NodeSettings, ...]:
    sockets = found.all("socket")
    assert isinstance(each.value, int)
    if each.value >= len(sockets):
        message = f"there is no socket option number {each.value}; {len(sockets)} are given"
        problems.error(each.item.origin, each.item.key, message)
        return ()
    return _socket_node(sockets[each.value], problems)


def _embedded(found: Found, problems: Problems) -> tuple[NodeSettings, ...]:
    """Nothing names a node: uWSGI would serve from its own first socket."""
    sockets = found.all("socket")
    if sockets:
        item = sockets[0].item
        message = f"no http-to is given: requests go to {item.value} (uwgate runs no application)"
        problems.warn(item.origin, item.key, message)
        return _socket_node(sockets[0], problems)
    listening = found.last("http")
    if listening is not None and not found.refused.intersection(_NODE_SOURCES):
        message = "no node to send requests to; add http-to = ADDRESS of the application server"
        problems.error(listening.item.origin, "http", message)
    return ()


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
