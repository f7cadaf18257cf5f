"""Accepted values -> the settings of static files.

Files come from places of this gateway (``PLACES``), or nodes name them in a field of their
responses: ``http-sendfile``, ``file-serve-mode``, and uWSGI's recipe of ``collect-header`` (or
``pull-header``) with ``response-route-if-not``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

from uwgate.config import static_values
from uwgate.config.compose_nodes import serves
from uwgate.config.found import Found, Value
from uwgate.config.model import Problems
from uwgate.config.settings_static import (
    Compressed,
    ExpiresRule,
    SendfileField,
    StaticMap,
    StaticSettings,
)

PLACES = ("check-static", "check-static-docroot", "static-map", "static-map2")
"""The options that say where files are looked for."""
_COLLECTORS = ("collect-header", "pull-header")
_ROUTE = "response-route-if-not"
_APPLICATION = ("offload-threads", "disable-sendfile")  # a server without files has them, too
_EXPIRES = tuple(
    f"static-expires{by}{mtime}"
    for by in ("", "-path-info", "-uri", "-type")
    for mtime in ("", "-mtime")
)
_MAX_MIME = 4 << 20  # bytes


# --- What there is ---------------------------------------------------------------------------


def has_places(found: Found) -> bool:
    """Whether files are looked for anywhere, or were meant to be."""
    given = any(each.value for each in found.all(*PLACES))
    return given or bool(found.refused.intersection(PLACES))


def is_serving(found: Found) -> bool:
    """Whether any file is sent, or was meant to be."""
    meant = found.refused.intersection(("http-sendfile", "file-serve-mode"))
    return bool(has_places(found) or meant or list(_fields(found)))


def names_paths(found: Found) -> bool:
    """Whether a field of nodes says a path that ``static-accel`` maps, or was meant to."""
    meant = found.refused.intersection(("http-sendfile", "file-serve-mode"))
    return bool(meant) or any(field.uri for field, _ in _fields(found))


def for_application(found: Found) -> list[str]:
    """Options, as they were written, that mean nothing here but belong to the application server:
    in an INI file that both read they are in their place."""
    here = serves(found, "http")
    used = {id(each) for each in _recipe(found)} if here else set()
    names = [each.item.key for each in found.all(*_COLLECTORS, _ROUTE) if id(each) not in used]
    if not here or not is_serving(found):
        names += [each.item.key for each in found.all(*_APPLICATION)]
    return names


def _recipe(found: Found) -> Iterator[Value]:
    """The options that together are uWSGI's recipe for X-Sendfile, a field before its route."""
    collected = [
        (static_values.collected(str(each.value)), each)
        for name in _COLLECTORS
        for each in found.all(name)
    ]
    for route in found.all(_ROUTE):
        variable = static_values.routed(str(route.value))
        sources = [each for pair, each in collected if pair is not None and pair[1] == variable]
        yield from sources
        if sources:
            yield route


def _fields(found: Found) -> Iterator[tuple[SendfileField, Value]]:
    """Every field that names a file, and who says so."""
    own: list[tuple[SendfileField, Value]] = []
    for each in found.all("http-sendfile"):
        assert isinstance(each.value, tuple)
        own = own + [(field, each) for field in each.value] if each.value else []
    yield from own
    mode = found.last("file-serve-mode")
    if mode is not None:
        assert isinstance(mode.value, SendfileField)
        yield mode.value, mode
    for each in _recipe(found):
        pair = static_values.collected(str(each.value))
        if each.row.name != _ROUTE and pair is not None:
            yield SendfileField(pair[0]), each


# --- The settings ----------------------------------------------------------------------------


def static_settings(found: Found, problems: Problems) -> StaticSettings | None:
    """The files' part; None where no file is sent."""
    unused = found.last("static-cache-paths-name")
    if unused is not None:
        message = "without effect: paths are remembered without a cache"
        problems.warn(unused.item.origin, unused.item.key, message)
    if not is_serving(found):
        return None
    fields: dict[str, Any] = found.fields("static")
    checks, safe = found.all("check-static"), found.all("static-safe")
    maps = [*found.all("static-map"), *found.all("static-map2")]
    accel = found.all("static-accel")
    for each in (*checks, *maps, *safe, *accel):
        _look_at(each, problems)
    fields |= {
        "checks": tuple(str(each.value) for each in checks),
        "maps": tuple(each.value for each in maps),
        "docroot": _docroot(found, problems),
        "index": _values(found, "static-index"),
        "skip_ext": _values(found, "static-skip-ext"),
        "safe": tuple(str(each.value) for each in safe),
        "mime": _mime(found, problems),
        "expires": _expires(found),
        "compressed": Compressed(
            everything=found.is_on("static-gzip-all"),
            prefixes=_values(found, "static-gzip-dir"),
            suffixes=_values(found, "static-gzip-ext"),
            regexps=_values(found, "static-gzip"),
        ),
        "sendfile": not found.is_on("disable-sendfile"),
        "accel": tuple(each.value for each in accel),
        "sendfile_fields": _sendfile_fields(found, problems),
    }
    return StaticSettings(**fields)


def _values(found: Found, name: str) -> tuple[Any, ...]:
    return tuple(each.value for each in found.all(name))


def _expires(found: Found) -> tuple[ExpiresRule, ...]:
    return tuple(rule for name in _EXPIRES for rule in _values(found, name))


# --- On the disk -----------------------------------------------------------------------------


def _look_at(each: Value, problems: Problems) -> None:
    """Files may come later, and so may directories: what is missing now is only suspicious."""
    item = each.item
    path = each.value.path if isinstance(each.value, StaticMap) else str(each.value)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        message = f"{path}: {error.strerror}; it is looked for again while requests come"
        problems.warn(item.origin, item.key, message)
        return
    if not stat.S_ISDIR(mode) and each.row.name == "check-static":
        problems.error(item.origin, item.key, f"{path} is not a directory")


def _docroot(found: Found, problems: Problems) -> str:
    """The directory of ``check-static-docroot``; of several variables the last one counts."""
    flag = found.last("check-static-docroot")
    if flag is None or not flag.value:
        return ""
    variables: dict[bytes, bytes] = dict(_values(found, "http-var"))
    text = variables.get(b"DOCUMENT_ROOT", b"").decode("utf-8", "surrogateescape")
    try:
        path = static_values.path(text) if text else ""
    except ValueError as error:
        problems.error(flag.item.origin, flag.item.key, f"DOCUMENT_ROOT: {error}")
        return ""
    if not path:
        if "http-var" not in found.refused:
            message = "needs http-var = DOCUMENT_ROOT=DIRECTORY; clients cannot say it"
            problems.error(flag.item.origin, flag.item.key, message)
    elif not os.path.isdir(path):
        message = f"DOCUMENT_ROOT: {path} is no directory; it is looked for again"
        problems.warn(flag.item.origin, flag.item.key, f"{message} while requests come")
    return path


def _mime(found: Found, problems: Problems) -> tuple[tuple[bytes, bytes], ...] | None:
    """Extensions and types of all ``mimefile`` options; the first one that has one counts."""
    files = found.all("mimefile")
    types: dict[bytes, bytes] = {}
    for each in files:
        path, item = str(each.value), each.item
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_MIME + 1)
        except OSError as error:
            problems.error(item.origin, item.key, f"{path}: {error.strerror}")
            continue
        if len(data) > _MAX_MIME:
            problems.error(item.origin, item.key, f"{path}: larger than {_MAX_MIME} bytes")
            continue
        found_here = static_values.mime_types(data)
        if not found_here:
            message = f"{path} holds no types; expected lines such as: text/html html htm"
            problems.warn(item.origin, item.key, message)
        types = found_here | types
    return tuple(types.items()) if files else None


# --- Fields of nodes -------------------------------------------------------------------------


def _sendfile_fields(found: Found, problems: Problems) -> tuple[SendfileField, ...]:
    """Every field once."""
    fields: dict[bytes, tuple[SendfileField, Value]] = {}
    for field, each in _fields(found):
        known, first = fields.setdefault(field.name, (field, each))
        if known != field:
            item = each.item
            message = (
                f"{field.name.decode()} names a file here, and a path that static-accel maps in"
                f" {first.item.key} ({first.item.origin})"
            )
            problems.error(item.origin, item.key, message)
    _check_sources(found, problems)
    return tuple(field for field, _ in fields.values())


def _check_sources(found: Found, problems: Problems) -> None:
    """Whoever names a field has to say what may be sent. Of two fields of one option one is
    enough."""
    files = has_places(found) or bool(found.all("static-safe")) or "static-safe" in found.refused
    paths = bool(found.all("static-accel")) or "static-accel" in found.refused
    options: dict[int, list[tuple[SendfileField, Value]]] = {}
    for field, each in _fields(found):
        options.setdefault(id(each), []).append((field, each))
    for pairs in options.values():
        if any(paths if field.uri else files for field, _ in pairs):
            continue
        message = "no file may be sent; name the directories that may be sent from with static-safe"
        if all(field.uri for field, _ in pairs):
            message = "no path leads to a file; map it with static-accel /internal=/srv/private"
        item = pairs[0][1].item
        problems.error(item.origin, item.key, message)
