"""The Prometheus text exposition format, version 0.0.4: families, samples, labels.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based format).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from uwgate.observe.subscriptions import plain

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "uwgate_"

Labels = dict[str, str]
Sample = tuple[Labels | str, int | float]
"""Labels, or the text that ``label_text`` made of them, and the value."""

Family = tuple[str, str, str, Iterable[Sample]]
"""Name without the prefix, ``counter`` or ``gauge``, help, samples."""


_PIECE = 65536  # characters after which the rest is for later


def render(families: Iterable[Family | None]) -> Iterator[bytes | None]:
    """The exposition as UTF-8 in pieces; None (as in ``families``) while one is not ready yet."""
    text = ""
    for family in families:
        if family is None:
            yield None
            continue
        name, kind, description, samples = family
        text += f"# HELP {PREFIX}{name} {description}\n# TYPE {PREFIX}{name} {kind}\n"
        for labels, value in samples:
            known = labels if isinstance(labels, str) else label_text(labels)
            text += f"{PREFIX}{name}{known} {value}\n"
        if len(text) >= _PIECE:
            yield text.encode("utf-8", "replace")
            text = ""
    if text:
        yield text.encode("utf-8", "replace")


def label_text(labels: Labels) -> str:
    """``{name="value",…}``, or nothing."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    """Label values: backslash, double quote and line feed are the characters with a meaning."""
    return plain(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
