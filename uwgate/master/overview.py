"""What the master says of the instance: a line in the log, the answer of ``uwgate status``."""

from __future__ import annotations

from collections.abc import Iterable

from uwgate.observe.counters import Totals


def stats_line(totals: Totals) -> str:
    """Some numbers (SIGUSR1, FIFO ``s``)."""
    states = [worker.status for worker in totals.workers]
    counters = totals.sums.counters
    numbers = ", ".join(
        f"{name} {counters.get(name, 0)}"
        for name in ("connections", "active_requests", "accepted", "requests", "rx", "tx")
    )
    if totals.sums.tls is not None:
        full, resumed = totals.sums.handshakes, totals.sums.resumed
        numbers += f", TLS {sum(full.values())} of which {sum(resumed.values())} resumed"
    errors = sum(totals.sums.errors.values())
    return f"stats: workers {' '.join(states)}; {numbers}, errors {errors}"


def workers_status(totals: Totals, gateways: dict[int, str]) -> list[dict[str, object]]:
    """Those of `Orders.status`. ``gateways``: pid -> name."""
    return [
        {
            "gateway": gateways.get(worker.pid, ""),
            "id": worker.id,
            "pid": worker.pid,
            "status": worker.status,
            "draining": worker.draining,
            "requests": worker.own.counters.get("requests", 0),
            "rss": worker.rss,
            "started": worker.started,
        }
        for worker in totals.workers
    ]


def listeners(listening: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Gateway -> names of its addresses."""
    found: dict[str, list[str]] = {}
    for gateway, name in listening:
        found.setdefault(gateway, []).append(name)
    return found
