"""Metrics of the files that are served."""

from __future__ import annotations

from collections.abc import Iterator

from uwgate.observe.exposition import Family
from uwgate.observe.sums import Sums

# (name without prefix, kind, key of Site.snapshot, help)
_METRICS = (
    ("static_requests_total", "counter", "requests", "Files sent, whole or in parts (200, 206)."),
    (
        "static_not_modified_total",
        "counter",
        "not_modified",
        "Requests for files that the client had already (304).",
    ),
    ("static_bytes_total", "counter", "bytes", "Bytes of files sent to clients, without heads."),
    (
        "static_cache_hits_total",
        "counter",
        "hits",
        "Requests for which the file was known without a look-up.",
    ),
    (
        "static_cache_loads_total",
        "counter",
        "loads",
        "Look-ups of a path on the disk, those that found nothing included.",
    ),
    (
        "static_cache_misses_total",
        "counter",
        "misses",
        "Paths for which there was no file; each once until that is forgotten.",
    ),
    (
        "offloaded_requests_total",
        "counter",
        "offloaded",
        "Look-ups and reads of files that were left to threads.",
    ),
    (
        "static_cache_entries",
        "gauge",
        "entries",
        "Paths remembered now, those of all workers added up.",
    ),
    (
        "static_cache_bytes",
        "gauge",
        "cached_bytes",
        "Memory of what is remembered, that of all workers added up.",
    ),
    (
        "static_open_files",
        "gauge",
        "descriptors",
        "Files kept open, those of all workers added up.",
    ),
)


def families(sums: Sums) -> Iterator[Family]:
    """Nothing where no files are served."""
    if sums.static is None:
        return
    for name, kind, key, text in _METRICS:
        yield name, kind, text, [({}, sums.static.get(key, 0))]
