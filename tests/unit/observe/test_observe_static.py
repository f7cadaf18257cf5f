"""Files in the statistics, and what the request log says of them."""

from __future__ import annotations

import json
from typing import Any

from observe_render import make_facts, parse_exposition, render_json, render_metrics
from observe_samples import facts, worker

from uwgate.config.settings_static import StaticSettings
from uwgate.files.site import Site
from uwgate.observe.counters import Ledger
from uwgate.observe.logformat import compile_format
from uwgate.observe.logvars import Environment
from uwgate.observe.sums import Snapshot

METRICS = {
    "uwgate_static_requests_total": "requests",
    "uwgate_static_not_modified_total": "not_modified",
    "uwgate_static_bytes_total": "bytes",
    "uwgate_static_cache_hits_total": "hits",
    "uwgate_static_cache_loads_total": "loads",
    "uwgate_static_cache_misses_total": "misses",
    "uwgate_offloaded_requests_total": "offloaded",
    "uwgate_static_cache_entries": "entries",
    "uwgate_static_cache_bytes": "cached_bytes",
    "uwgate_static_open_files": "descriptors",
}


def serving(identity: int = 1, started: float = 1000.0, **values: int) -> Snapshot:
    """A worker that serves files, with the counters of a real site."""
    snapshot = worker(identity, started, requests=values.get("requests", 0))
    snapshot["gateways"]["http"]["static"] = Site(StaticSettings()).snapshot() | values
    return snapshot


def shown(*snapshots: Snapshot, ledger: Ledger | None = None) -> dict[str, Any]:
    """The document."""
    totals = (ledger or Ledger()).totals(snapshots)
    return json.loads(render_json(totals, [], make_facts()))  # type: ignore[no-any-return]


def series(*snapshots: Snapshot, ledger: Ledger | None = None) -> dict[str, str]:
    """The metrics."""
    totals = (ledger or Ledger()).totals(snapshots)
    return parse_exposition(render_metrics(totals, [], make_facts()).decode())


def test_where_no_files_are_served_nothing_is_said_of_them() -> None:
    document = shown(worker(requests=3))
    assert "static" not in document
    (core,) = document["workers"][0]["cores"]
    assert (core["static_requests"], core["offloaded_requests"]) == (0, 0)
    assert not METRICS.keys() & series(worker()).keys()


def test_files_are_summed_over_workers_and_told_by_worker() -> None:
    names = list(METRICS.values())
    one = serving(1, **{name: number for number, name in enumerate(names, 1)})
    two = serving(2, **{name: 100 * number for number, name in enumerate(names, 1)})
    document = shown(one, two)
    assert document["static"] == {name: 101 * n for n, name in enumerate(names, 1)}
    assert document["static"].keys() == Site(StaticSettings()).snapshot().keys()
    cores = [row["cores"][0] for row in document["workers"]]
    assert [core["static_requests"] for core in cores] == [1, 100]
    assert [core["offloaded_requests"] for core in cores] == [7, 700]
    metrics = series(one, two)
    assert {name: metrics[name] for name in METRICS} == {
        name: str(document["static"][key]) for name, key in METRICS.items()
    }


def test_counters_outlive_their_worker_and_what_it_remembered_does_not() -> None:
    ledger = Ledger()
    shown(serving(1, 1000.0, requests=5, bytes=50, entries=3, descriptors=2), ledger=ledger)
    second = serving(1, 2000.0, requests=1, bytes=7, entries=1, cached_bytes=9)
    document = shown(second, ledger=ledger)
    static = document["static"]
    assert (static["requests"], static["bytes"]) == (6, 57)
    assert (static["entries"], static["cached_bytes"], static["descriptors"]) == (1, 9, 0)
    assert document["workers"][0]["cores"][0]["static_requests"] == 6
    dead = {**second, "status": "dead"}
    metrics = series(dead, ledger=ledger)
    assert metrics["uwgate_static_requests_total"] == "6"
    assert metrics["uwgate_static_cache_entries"] == "0"


def test_files_that_are_no_longer_served_are_still_counted() -> None:
    ledger = Ledger()
    shown(serving(1, 1000.0, requests=5, entries=3), ledger=ledger)
    static = shown(worker(1, 2000.0), ledger=ledger)["static"]
    assert (static["requests"], static["entries"]) == (5, 0)


def test_the_request_log_names_files_in_every_format() -> None:
    file = facts(
        node="static",
        attempts=0,
        connect_micros=-1,
        first_byte_micros=-1,
        variables=0,
        packet=0,
        modifier1=0,
        modifier2=0,
    )

    def line(template: str) -> str:
        return compile_format(template, Environment(pid=1, worker=1))(file)

    assert '" 200 static 0 -1/-1/1234.567 12/180/1000 ok\n' in line("default")
    value = json.loads(line("json"))
    assert (value["node"], value["attempts"], value["connect_us"]) == ("static", 0, -1)
    assert (value["status"], value["response_body"], value["reason"]) == (200, 1000, "ok")
    names = "node attempts connect first total size vars pktsize modifier1 reason"
    template = " ".join(f"%({name})" for name in names.split())
    assert line(template) == "static 0 -1 -1 1234.567 1180 0 0 0 ok\n"
