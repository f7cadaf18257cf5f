"""Documents and expositions in one piece, and what a strict reader makes of the latter."""

from __future__ import annotations

import re
from typing import Any

from uwgate.observe import prometheus, stats
from uwgate.observe.backlog import Queue
from uwgate.observe.counters import Totals
from uwgate.observe.stats import StatsFacts

_LABEL = r'[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"'
_SERIES = re.compile(rf"[a-z_:][a-z0-9_:]*(?:\{{{_LABEL}(?:,{_LABEL})*\}})?")


def render_json(totals: Totals, waiting: list[Queue], facts: StatsFacts) -> bytes:
    """The whole document."""
    return b"".join(piece for piece in stats.render_json(totals, waiting, facts) if piece)


def render_metrics(totals: Totals, waiting: list[Queue], facts: StatsFacts) -> bytes:
    """The whole exposition."""
    return b"".join(piece for piece in prometheus.render_metrics(totals, waiting, facts) if piece)


def make_facts(**options: Any) -> StatsFacts:
    """Facts of an instance that started at 1000 and is ready."""
    return StatsFacts(1000.0, not_ready=lambda: "", sockets=list, **options)


def parse_exposition(text: str) -> dict[str, str]:
    """Series -> value; checks that each family has HELP and TYPE once, before its samples."""
    series: dict[str, str] = {}
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in helped
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name in helped
            assert (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
        else:
            key, _, number = line.rpartition(" ")
            assert _SERIES.fullmatch(key), key
            assert key.partition("{")[0] in kinds
            assert key not in series
            float(number)
            series[key] = number
    return series
