"""The nodes of a document as rows; one of uWSGI's own documents will do, too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

NO_KEY = "-"
"""The key of static nodes, which serve them all."""

# What no counter reaches; arithmetic with more may fail.
_MOST = 2**63


@dataclass(frozen=True, slots=True)
class Row:
    """One node of one key. ``latency``: ms, 0 = not known. ``seen``: seconds ago, None: static."""

    gateway: str
    key: str
    node: str
    protocol: str
    state: str
    weight: int
    backup: int
    in_flight: int
    requests: int
    latency: float
    errors: int
    seen: int | None


def rows(document: Document) -> list[Row]:
    """All nodes, by gateway, key, backup level and name."""
    found = [*_static(document), *_subscribed(document)]
    found.sort(key=lambda row: (row.gateway, row.key, row.backup, row.node))
    return found


def select(document: Document, key: str = "") -> Document:
    """What the document says of nodes, of ``key`` only if that is not empty."""
    part = {name: value for name, value in document.items() if name.startswith("subscription")}
    static = document.get("static_nodes")
    if static is not None and key in ("", NO_KEY):
        part["static_nodes"] = static
    if key and "subscriptions" in part:
        part["subscriptions"] = [each for each in _objects(part, "subscriptions") if _is(each, key)]
    return part


def _is(slot: Document, key: str) -> bool:
    # The host of a key is kept in lower case, the path behind it as it is.
    host, slash, path = key.partition("/")
    return slot.get("key") in (key, host.lower() + slash + path)


def _static(document: Document) -> Iterator[Row]:
    for node in _objects(document, "static_nodes"):
        yield Row(
            gateway=_text(node, "gateway"),
            key=NO_KEY,
            node=_text(node, "name"),
            protocol=_text(node, "protocol") or "uwsgi",
            state="marked" if _number(node, "grace") else "up",
            weight=_number(node, "weight") or 1,
            backup=max(_number(node, "fallback"), _number(node, "backup")),
            in_flight=_number(node, "active"),
            requests=_number(node, "hits"),
            latency=_decimal(node, "latency_ms"),
            errors=_errors(node, "failures"),
            seen=None,
        )


def _subscribed(document: Document) -> Iterator[Row]:
    now = int(time.time())
    for slot in _objects(document, "subscriptions"):
        for node in _objects(slot, "nodes"):
            seen = _number(node, "last_seen")
            if "last_seen" not in node:
                seen = max(0, now - _number(node, "last_check"))
            yield Row(
                gateway=_text(slot, "gateway"),
                key=_text(slot, "key"),
                node=_text(node, "name"),
                protocol=_text(node, "proto") or "uwsgi",
                state=_text(node, "state") or ("marked" if _number(node, "death_mark") else "up"),
                weight=_number(node, "weight"),
                backup=_number(node, "backup"),
                in_flight=_number(node, "ref"),
                requests=_number(node, "requests"),
                latency=_decimal(node, "latency_ms"),
                errors=_errors(node, "failures" if "failures" in node else "failcnt"),
                seen=seen,
            )


def _errors(node: Document, failures: str) -> int:
    words = node.get("errors")
    by_word = 0
    if isinstance(words, dict):
        by_word = sum(_number(words, word) for word in words)
    return max(by_word, _number(node, failures))


def _objects(values: Document, key: str) -> list[Document]:
    found = values.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text(values: Document, key: str) -> str:
    value = values.get(key, "")
    return value if isinstance(value, str) else ""


def _number(values: Document, key: str) -> int:
    value = values.get(key)
    return value if isinstance(value, int) and -_MOST < value < _MOST else 0


def _decimal(values: Document, key: str) -> float:
    value = values.get(key)
    # NaN is below nothing.
    return value if isinstance(value, int | float) and -_MOST < value < _MOST else 0.0
