"""Metrics of HTTP/2 and SPDY."""

from __future__ import annotations

from collections.abc import Iterator

from uwgate.observe.exposition import Family
from uwgate.observe.sums import Sums

# (name behind that of the protocol, kind, help)
_METRICS = (
    ("connections", "gauge", "Connections that speak {} now."),
    ("streams", "gauge", "Streams of {} that are not over."),
    ("requests", "counter", "Requests that came over {}."),
    ("delayed", "counter", "Requests that came over {} and waited for others of their connection."),
)


def families(sums: Sums) -> Iterator[Family]:
    """Nothing of a protocol that nobody has ever spoken."""
    yield from _families("http2", "HTTP/2", sums, sums.resets, sums.goaways)
    yield from _families("spdy", "SPDY", sums, sums.spdy_resets, sums.spdy_goaways)


def _families(
    protocol: str, title: str, sums: Sums, resets: dict[str, int], goaways: dict[str, int]
) -> Iterator[Family]:
    counters = sums.counters
    if not (counters.get(f"{protocol}_requests") or counters.get(f"{protocol}_connections")):
        return
    for key, kind, text in _METRICS:
        name = f"{protocol}_{key}"
        shown = f"{name}_total" if kind == "counter" else name
        yield shown, kind, text.format(title), [({}, counters.get(name, 0))]
    parts = [(name.partition(":"), count) for name, count in sorted(resets.items())]
    yield (
        f"{protocol}_resets_total",
        "counter",
        f"Streams of {title} that the client or the gateway has ended early, by error code.",
        [({"side": side, "code": code}, count) for (side, _, code), count in parts],
    )
    yield (
        f"{protocol}_goaways_total",
        "counter",
        f"Connections of {title} that the gateway has ended (GOAWAY), by error code.",
        [({"code": code}, count) for code, count in sorted(goaways.items())],
    )
