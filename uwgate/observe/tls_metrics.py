"""Metrics of TLS, of certificates, and of the caches that workers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from uwgate.observe.exposition import Family
from uwgate.observe.stats import Cache
from uwgate.observe.sums import STORE_GAUGES, Sums, TlsTotals, number

# (name without prefix, kind, key of a cache's snapshot, help)
_OF_CACHES = (
    ("cache_items", "gauge", "items", "Entries that have not expired."),
    ("cache_items_limit", "gauge", "max_items", "Most entries."),
    ("cache_hits_total", "counter", "hits", "Lookups that found something."),
    ("cache_misses_total", "counter", "miss", "Lookups that found nothing."),
    ("cache_full_total", "counter", "full", "Entries that had to make room before their time."),
)


def families(sums: Sums, caches: Sequence[Cache]) -> Iterator[Family]:
    """Nothing where there is neither a TLS listener nor a cache."""
    if sums.tls is not None:
        yield from _of_tls(sums, sums.tls)
    if caches:
        yield from _of_caches(sums, caches)


def _of_tls(sums: Sums, tls: TlsTotals) -> Iterator[Family]:
    yield (
        "tls_handshakes_total",
        "counter",
        "TLS handshakes completed, by version and whether an earlier session was resumed.",
        [
            ({"version": version, "resumed": str(resumed)}, count)
            for version, total in sorted(sums.handshakes.items())
            for resumed, count in (
                (0, total - sums.resumed.get(version, 0)),
                (1, sums.resumed.get(version, 0)),
            )
        ],
    )
    yield "tls_handshaking", "gauge", "Connections in their handshake now.", [({}, tls.handshaking)]
    yield (
        "tls_contexts",
        "gauge",
        "Certificates loaded now, those of all workers added up.",
        [({}, tls.contexts)],
    )
    yield (
        "tls_certificate_not_after_seconds",
        "gauge",
        "When the certificate expires, epoch seconds; of several versions in use the earliest.",
        [
            ({"source": key.source, "name": key.name}, end)
            for key, end in tls.expiring()
        ],
    )
    if not tls.store:
        return
    yield (
        "tls_store_events_total",
        "counter",
        "Lookups and writes of sessions in the distributed store, by outcome.",
        [
            ({"event": event}, count)
            for event, count in sorted(tls.store.items())
            if event not in STORE_GAUGES
        ],
    )
    yield (
        "tls_store_connected_workers",
        "gauge",
        "Workers that reach the distributed store.",
        [({}, tls.store.get("connected", 0))],
    )


def _of_caches(sums: Sums, caches: Sequence[Cache]) -> Iterator[Family]:
    names = [str(cache["name"]) for cache in caches]
    for metric, kind, key, text in _OF_CACHES:
        samples = [
            ({"cache": name}, number(cache, key))
            for name, cache in zip(names, caches, strict=True)
        ]
        yield metric, kind, text, samples
    synced = [(str(cache["name"]), cache["sync"]) for cache in caches if "sync" in cache]
    if synced:
        yield (
            "cache_sync_datagrams_total",
            "counter",
            "Changes of caches exchanged with other machines, by what became of them.",
            [
                ({"cache": name, "result": result}, count)
                for name, counts in synced
                for result, count in counts.items()
            ],
        )
