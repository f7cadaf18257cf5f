"""TLS and caches in the statistics."""

from __future__ import annotations

import json
from typing import Any

from observe_render import make_facts, parse_exposition, render_json, render_metrics
from observe_samples import View, worker

from uwgate.observe.backlog import Queue
from uwgate.observe.counters import Ledger
from uwgate.observe.sums import Snapshot
from uwgate.subscriptions.table import Extra

CERTIFICATE = {"source": "listener", "name": "http-:443", "not_after": 2_000_000_000}
CACHE = {
    "name": "ssl",
    "hash": "djb33x",
    "hashsize": 65536,
    "keysize": 128,
    "max_items": 20000,
    "blocks": 20000,
    "blocksize": 4096,
    "items": 3,
    "hits": 7,
    "miss": 2,
    "full": 1,
    "last_modified_at": 1_700_000_000,
}


def encrypting(
    identity: int = 1,
    started: float = 1000.0,
    handshakes: dict[str, int] | None = None,
    resumed: dict[str, int] | None = None,
    handshaking: int = 0,
    **tls: Any,
) -> Snapshot:
    """A worker that terminates TLS."""
    snapshot = worker(identity, started)
    gateway = snapshot["gateways"]["http"]
    gateway["tally"]["tls_handshakes"] = handshakes or {}
    gateway["tally"]["tls_resumed"] = resumed or {}
    gateway["tls_handshaking"] = handshaking
    gateway["tls"] = {"contexts": 1, "certificates": [CERTIFICATE], **tls}
    return snapshot


def shown(*snapshots: Snapshot, ledger: Ledger | None = None, **facts: Any) -> dict[str, Any]:
    """The document."""
    totals = (ledger or Ledger()).totals(snapshots)
    return json.loads(render_json(totals, [], make_facts(**facts)))  # type: ignore[no-any-return]


def series(*snapshots: Snapshot, **facts: Any) -> dict[str, str]:
    """The metrics."""
    totals = Ledger().totals(snapshots)
    return parse_exposition(render_metrics(totals, [], make_facts(**facts)).decode())


def test_without_tls_and_caches_nothing_is_said_of_them() -> None:
    document = shown(worker())
    assert "tls" not in document
    assert "caches" not in document
    assert "tls" not in document["workers"][0]
    names = {name.partition("{")[0] for name in series(worker())}
    assert not [name for name in names if "tls" in name or "cache" in name]


def test_handshakes_are_summed_over_workers_and_told_by_worker() -> None:
    one = encrypting(1, handshakes={"TLSv1.3": 5, "TLSv1.2": 1}, resumed={"TLSv1.3": 2})
    two = encrypting(2, handshakes={"TLSv1.3": 3}, resumed={"TLSv1.3": 3}, handshaking=4)
    document = shown(one, two)
    tls = document["tls"]
    assert tls["handshakes"] == {"TLSv1.2": 1, "TLSv1.3": 8}
    assert tls["resumed"] == {"TLSv1.3": 5}
    assert (tls["handshaking"], tls["contexts"]) == (4, 2)
    assert tls["certificates"] == [CERTIFICATE]
    assert "store" not in tls
    assert [row["tls"]["handshakes"] for row in document["workers"]] == [
        {"TLSv1.2": 1, "TLSv1.3": 5},
        {"TLSv1.3": 3},
    ]
    metrics = series(one, two)
    assert metrics['uwgate_tls_handshakes_total{version="TLSv1.3",resumed="0"}'] == "3"
    assert metrics['uwgate_tls_handshakes_total{version="TLSv1.3",resumed="1"}'] == "5"
    assert metrics['uwgate_tls_handshakes_total{version="TLSv1.2",resumed="0"}'] == "1"
    assert metrics["uwgate_tls_handshaking"] == "4"
    assert metrics["uwgate_tls_contexts"] == "2"


def test_handshakes_outlive_their_worker_and_connections_do_not() -> None:
    ledger = Ledger()
    store = {"connected": 1, "hits": 9}
    first = encrypting(1, 1000.0, handshakes={"TLSv1.3": 5}, handshaking=3, store=store)
    shown(first, ledger=ledger)
    second = encrypting(1, 2000.0, handshakes={"TLSv1.3": 1}, store={"connected": 1, "hits": 2})
    tls = shown(second, ledger=ledger)["tls"]
    assert tls["handshakes"] == {"TLSv1.3": 6}
    assert tls["handshaking"] == 0
    assert tls["store"] == {"connected": 1, "hits": 11}
    dead = {**second, "status": "dead"}
    assert shown(dead, ledger=ledger)["tls"]["store"] == {"connected": 0, "hits": 11}


def test_of_a_certificate_that_workers_have_in_two_versions_the_earlier_end_counts() -> None:
    renewed = {**CERTIFICATE, "not_after": 2_100_000_000}
    one, two = encrypting(1), encrypting(2, certificates=[renewed])
    name = 'uwgate_tls_certificate_not_after_seconds{source="listener",name="http-:443"}'
    assert series(one, two)[name] == str(CERTIFICATE["not_after"])
    assert series(two)[name] == "2100000000"


def test_of_many_certificates_those_are_shown_that_end_first() -> None:
    many = [
        {"source": "sni", "name": f"{number:05}.example", "not_after": 2_000_000_000 - number}
        for number in range(3000)
    ]
    shown_now = shown(encrypting(certificates=many))["tls"]["certificates"]
    assert [each["name"] for each in shown_now] == [each["name"] for each in many[2000:]]
    metrics = series(encrypting(certificates=many))
    assert sum("certificate_not_after" in name for name in metrics) == len(shown_now) == 1000


def test_counters_of_the_distributed_store() -> None:
    store = {"connected": 1, "hits": 9, "timeouts": 1}
    metrics = series(encrypting(1, store=store), encrypting(2, store=store))
    assert metrics['uwgate_tls_store_events_total{event="hits"}'] == "18"
    assert metrics["uwgate_tls_store_connected_workers"] == "2"
    assert 'uwgate_tls_store_events_total{event="connected"}' not in metrics


def test_caches_have_uwsgis_shape_and_place() -> None:
    document = shown(worker(), caches=lambda: [dict(CACHE)])
    assert document["caches"] == [CACHE]
    keys = list(document)
    assert keys.index("caches") < keys.index("sockets") < keys.index("workers")
    metrics = series(worker(), caches=lambda: [dict(CACHE)])
    assert metrics['uwgate_cache_items{cache="ssl"}'] == "3"
    assert metrics['uwgate_cache_hits_total{cache="ssl"}'] == "7"
    assert metrics['uwgate_cache_misses_total{cache="ssl"}'] == "2"
    assert metrics['uwgate_cache_full_total{cache="ssl"}'] == "1"
    assert not [name for name in metrics if "sync" in name]


def test_datagrams_that_workers_sent_are_added_to_those_that_the_master_received() -> None:
    def caches() -> list[dict[str, Any]]:
        return [{**CACHE, "sync": {"received": 5, "refused": 1}}]

    ledger = Ledger()
    first = worker() | {"sync": {"ssl": {"sent": 10, "failed": 1}}}
    shown(first, ledger=ledger)
    second = worker(started=2000) | {"sync": {"ssl": {"sent": 2, "failed": 0}}}
    cache = shown(second, ledger=ledger, caches=caches)["caches"][0]
    assert cache["sync"] == {"received": 5, "refused": 1, "sent": 12, "failed": 1}
    metrics = series(second, caches=caches)
    assert metrics['uwgate_cache_sync_datagrams_total{cache="ssl",result="sent"}'] == "2"
    assert metrics['uwgate_cache_sync_datagrams_total{cache="ssl",result="refused"}'] == "1"


def test_sockets_with_tls_say_so() -> None:
    totals = Ledger().totals([worker()])
    waiting = [Queue("127.0.0.1:8080"), Queue("127.0.0.1:8443")]
    facts = make_facts(https=frozenset({"127.0.0.1:8443"}))
    document = json.loads(render_json(totals, waiting, facts))
    assert [each["proto"] for each in document["sockets"]] == ["http", "https"]


def test_keys_whose_nodes_announce_certificates() -> None:
    view = View()
    view.add("plain.example", "10.0.0.1:80")
    files = Extra(sni_key="/etc/k", sni_crt="/etc/c")
    view.add("tls.example", "10.0.0.1:80", extra=files)
    view.add("half.example", "10.0.0.1:80", extra=Extra(sni_crt="/etc/c"))
    facts = {"subscriptions": lambda: [view]}

    def enabled(snapshot: Snapshot) -> dict[str, int]:
        return {s["key"]: s["sni_enabled"] for s in shown(snapshot, **facts)["subscriptions"]}

    with_tls = enabled(encrypting())
    assert with_tls == {"half.example": 0, "plain.example": 0, "tls.example": 1}
    assert set(enabled(worker()).values()) == {0}  # no listener would use it
