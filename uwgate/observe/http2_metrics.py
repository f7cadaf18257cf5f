"""Metrics of HTTP/2."""

from __future__ import annotations

from collections.abc import Iterator

from uwgate.observe.exposition import Family
from uwgate.observe.sums import Sums

# (name without prefix, kind, key of Tally.snapshot, help)
_METRICS = (
    ("http2_connections", "gauge", "http2_connections", "Connections that speak HTTP/2 now."),
    ("http2_streams", "gauge", "http2_streams", "Streams of HTTP/2 that are not over."),
    ("http2_requests_total", "counter", "http2_requests", "Requests that came over HTTP/2."),
)


def families(sums: Sums) -> Iterator[Family]:
    """Nothing where nobody has ever spoken HTTP/2."""
    counters = sums.counters
    if not (counters.get("http2_requests") or counters.get("http2_connections")):
        return
    for name, kind, key, text in _METRICS:
        yield name, kind, text, [({}, counters.get(key, 0))]
    resets = [(name.partition(":"), count) for name, count in sorted(sums.resets.items())]
    yield (
        "http2_resets_total",
        "counter",
        "Streams that the client or the gateway has ended early, by error code.",
        [({"side": side, "code": code}, count) for (side, _, code), count in resets],
    )
    yield (
        "http2_goaways_total",
        "counter",
        "Connections that the gateway has ended (GOAWAY), by error code.",
        [({"code": code}, count) for code, count in sorted(sums.goaways.items())],
    )
