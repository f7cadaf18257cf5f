"""What every gateway's options say alike: where it listens, and where its nodes come from.

``router`` is the prefix of the options, and the option of the listening address: ``http`` or
``fastrouter``.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import replace

from uwgate.config import addresses
from uwgate.config.compose_tls import listener
from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings import (
    Endpoint,
    ListenerSettings,
    MapperSettings,
    NodeSettings,
)
from uwgate.config.tls_values import Https, ToHttps

GATEWAYS = ("http", "fastrouter")
LISTENERS = {
    "http": ("http", "https", "https2", "http-to-https"),
    "fastrouter": ("fastrouter",),
}
"""Gateway -> the options that say where it listens."""
ALL_LISTENERS = tuple(name for names in LISTENERS.values() for name in names)

_ZERGS = ("zerg", "http-zerg", "fastrouter-zerg")

_CODE = re.compile(r"([0-9]{1,3}):(.+):([A-Za-z_][A-Za-z0-9_]*)", re.DOTALL)
_SAMPLE = "www.example.com"  # a key to try patterns with


def endpoint(each: Value) -> Endpoint:
    """The address that an option says."""
    assert isinstance(each.value, Endpoint)
    return each.value


def node(each: Value) -> NodeSettings:
    """The node that an option says."""
    assert isinstance(each.value, NodeSettings)
    return each.value


def check_gateways(found: Found, problems: Problems) -> None:
    """There has to be a gateway."""
    names = (*ALL_LISTENERS, *_ZERGS, "zerg-pool")
    if not found.all(*names) and not found.refused.intersection(names):
        message = "no address to listen on; give one, such as http = :8080 (see --help)"
        problems.error("", "http", message)


def listening(found: Found, router: str, problems: Problems) -> list[ListenerSettings]:
    """Where the gateway listens; an address that another one has as well is an error."""
    shared = len(found.all("shared-socket", "undeferred-shared-socket"))
    seen: dict[Endpoint, str] = {}
    listeners = []
    for each in found.all(*ALL_LISTENERS):
        plain = isinstance(each.value, Endpoint)
        mine = each.row.name in LISTENERS[router]
        if plain or not mine:
            settings = ListenerSettings(where_of(each))
        else:
            settings = listener(each, found, problems)
        where, item = settings.endpoint, each.item
        same = bound_as(where)
        if where.kind == "shared" and where.number >= shared:
            if mine:
                message = f"there is no shared-socket number {where.number}; {shared} are given"
                problems.error(item.origin, item.key, message)
        elif same in seen and (where.kind != "tcp" or where.port):
            if mine:
                message = f"{where.text} is listened on already (see {seen[same]})"
                problems.error(item.origin, item.key, message)
        else:
            seen[same] = item.origin
            if mine:
                listeners.append(settings)
    return listeners


def where_of(each: Value) -> Endpoint:
    """Where an option of ``ALL_LISTENERS`` listens."""
    value = each.value
    return value.endpoint if isinstance(value, (Https, ToHttps)) else endpoint(each)


def bound_as(where: Endpoint) -> Endpoint:
    """The same for two ways to write one address; not to be bound itself."""
    path = os.path.abspath(where.path) if where.kind == "unix" else where.path
    host = (where.host or "0.0.0.0") if where.kind == "tcp" else where.host
    return replace(where, text="", path=path, host=host)


def serves(found: Found, router: str) -> bool:
    """Whether the gateway listens at all, or was meant to."""
    names = (*LISTENERS[router], f"{router}-zerg")
    if found.all(*names) or found.refused.intersection(names):
        return True
    # A zerg of no gateway's name: whichever has nodes.
    plain = found.all("zerg") and not found.all(*ALL_LISTENERS, *_ZERGS[1:])
    return bool(plain and any(found.last(each) for each in _sources(router)))


# Where nodes come from: exactly one source, the first of this order (uWSGI's).
_SOURCES = ("use-pattern", "subscription-server", "use-base", "use-code-string", "use-socket", "to")


def _sources(router: str) -> list[str]:
    return [f"{router}-{source}" for source in _SOURCES]


def node_source(
    found: Found, router: str, problems: Problems, *, needed: bool = True
) -> tuple[MapperSettings, tuple[NodeSettings, ...]]:
    """How a key becomes a node, and the static nodes. ``needed``: there has to be one."""
    given = [each for each in map(found.last, _sources(router)) if each is not None]
    if len(given) > 1:
        others = ", ".join(each.row.name for each in given[1:])
        message = f"decides where requests go; {others} cannot act beside it"
        problems.warn(given[0].item.origin, given[0].row.name, message)
    if not given:
        return MapperSettings(), _embedded(found, router, problems, needed=needed)
    first = given[0]
    if first.row.name == f"{router}-subscription-server":
        return MapperSettings("subscription"), ()
    if first.row.name == f"{router}-to":
        return MapperSettings(), tuple(node(each) for each in found.all(f"{router}-to"))
    if first.row.name == f"{router}-use-socket":
        return MapperSettings(), _use_socket(first, found, problems)
    return _mapper(first, router, found, problems), ()


def _mapper(each: Value, router: str, found: Found, problems: Problems) -> MapperSettings:
    text = str(each.value)
    item = each.item
    try:
        if each.row.name == f"{router}-use-code-string":
            return _code(text, found.last(f"{router}-code-timeout"))
        if each.row.name == f"{router}-use-base":
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


def _code(text: str, timeout: Value | None) -> MapperSettings:
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
    budget = timeout.value if timeout is not None else MapperSettings().code_timeout
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


def _embedded(
    found: Found, router: str, problems: Problems, *, needed: bool
) -> tuple[NodeSettings, ...]:
    """Nothing names a node: uWSGI would serve from its own first socket."""
    names = [name for name in LISTENERS[router] if name != "http-to-https"]  # needs no node
    given = found.all(*names, f"{router}-zerg")
    if not given and serves(found, router):
        given = found.all("zerg")
    if not given and found.all(*LISTENERS[router]):
        return ()
    sockets = found.all("socket")
    if sockets:
        item = sockets[0].item
        message = (
            f"no {router}-to is given: requests go to {item.value} (uwgate runs no application)"
        )
        problems.warn(item.origin, item.key, message)
        return _socket_node(sockets[0], problems)
    if needed and given and not found.refused.intersection(_sources(router)):
        message = (
            f"no node to send requests to; add {router}-to = ADDRESS of the application server"
        )
        problems.error(given[-1].item.origin, given[-1].row.name, message)
    return ()
