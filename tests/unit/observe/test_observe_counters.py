from hypothesis import given
from hypothesis import strategies as st
from observe_samples import node, worker

from uwgate.observe.counters import Ledger
from uwgate.observe.sums import NodeKey


def test_counters_gauges_and_nodes_are_summed_over_workers() -> None:
    totals = Ledger().totals(
        [
            worker(1, requests=3, connections=2, rx=10, nodes=[node(hits=3, active=1, tx=7)]),
            worker(2, requests=4, connections=1, rx=20, nodes=[node(hits=4, active=1, tx=8)]),
        ]
    )
    assert totals.sums.counters["requests"] == 7
    assert totals.sums.counters["connections"] == 3
    assert totals.sums.counters["rx"] == 30
    assert totals.sums.responses == {"200": 7}
    assert totals.sums.errors["node-timeout"] == 0
    (one,) = totals.sums.nodes.values()
    assert (one.hits, one.active, one.tx) == (7, 2, 15)
    assert totals.listeners == {"http": ["127.0.0.1:8080"]}


def test_a_respawn_keeps_counters_and_forgets_gauges() -> None:
    ledger = Ledger()
    ledger.totals([worker(requests=10, connections=5, nodes=[node(hits=9, active=3, grace=99)])])
    totals = ledger.totals([worker(started=2000, requests=1, nodes=[node(hits=1)])])
    assert totals.sums.counters["requests"] == 11
    assert totals.sums.counters["connections"] == 0
    (one,) = totals.sums.nodes.values()
    assert (one.hits, one.active, one.grace, one.down) == (10, 0, 0, 0)
    (row,) = totals.workers
    assert row.sums.counters["requests"] == 11
    assert row.own.counters["requests"] == 1


def test_a_worker_that_has_not_answered_yet_hides_nothing() -> None:
    ledger = Ledger()
    ledger.totals([worker(requests=10, nodes=[node(hits=9)])])
    fresh = {"id": 1, "pid": 7, "status": "starting"}
    totals = ledger.totals([fresh])
    assert totals.sums.counters["requests"] == 10
    assert [n.hits for n in totals.sums.nodes.values()] == [9]
    assert totals.listeners == {"http": ["127.0.0.1:8080"]}
    assert totals.workers[0].status == "starting"
    assert totals.workers[0].sums.counters["requests"] == 10
    assert not totals.workers[0].accepting


def test_a_live_worker_without_a_new_snapshot_counts_with_its_last() -> None:
    ledger = Ledger()
    ledger.totals([worker(requests=10, connections=2)])
    late = {"id": 1, "started": 1000.0, "status": "busy"}
    totals = ledger.totals([late])
    assert totals.sums.counters["requests"] == 10
    assert totals.sums.counters["connections"] == 2


def test_a_dead_worker_still_listed_has_counters_but_no_gauges() -> None:
    ledger = Ledger()
    ledger.totals([worker(requests=10, connections=5)])
    totals = ledger.totals([worker(requests=10, connections=5, status="dead") | {"pid": 0}])
    assert totals.sums.counters["requests"] == 10
    assert totals.sums.counters.get("connections", 0) == 0
    assert not totals.workers[0].accepting


def test_last_words_count_once_even_if_an_older_answer_arrives_later() -> None:
    ledger = Ledger()
    ledger.totals([worker(requests=10)])
    ledger.retire(worker(requests=12))
    assert ledger.totals([worker(requests=11)]).sums.counters["requests"] == 12
    assert ledger.totals([]).sums.counters["requests"] == 12


def test_two_lives_of_one_worker_overlap_during_a_reload() -> None:
    ledger = Ledger()
    ledger.totals([worker(started=1, requests=5)])
    old, young = worker(started=2, requests=3), worker(started=3, requests=1)
    totals = ledger.totals([old, young])
    assert totals.sums.counters["requests"] == 9
    assert [row.sums.counters["requests"] for row in totals.workers] == [3, 6]


def test_many_respawns_stay_bounded_and_exact() -> None:
    ledger = Ledger()
    for life in range(1000):
        totals = ledger.totals([worker(started=life + 1, requests=2)])
    assert totals.sums.counters["requests"] == 2000
    assert len(ledger._gone) <= 256
    assert len(ledger._last) == 1


def test_nodes_that_no_worker_knows_any_more_are_dropped() -> None:
    ledger = Ledger()
    ledger.totals([worker(started=1, nodes=[node("old:1", hits=5)])])
    totals = ledger.totals([worker(started=2, nodes=[node("new:1")])])
    assert list(totals.sums.nodes) == [NodeKey("http", "new:1", "uwsgi", 0, 0, 0)]


def test_grace_is_the_latest_and_down_counts_workers() -> None:
    totals = Ledger().totals(
        [
            worker(1, nodes=[node(grace=500)]),
            worker(2, nodes=[node(grace=700)]),
            worker(3, nodes=[node(grace=0)]),
        ]
    )
    (one,) = totals.sums.nodes.values()
    assert (one.grace, one.down) == (700, 2)


def test_malformed_values_count_as_nothing() -> None:
    odd = {"id": 1, "gateways": {"http": {"tally": 5, "nodes": [{"hits": "x"}]}, "fast": None}}
    totals = Ledger().totals([odd])
    assert totals.sums.counters == {}
    assert [n.hits for n in totals.sums.nodes.values()] == [0]
    assert totals.workers[0].status == "idle"


def test_status_is_derived_if_the_master_gives_none() -> None:
    busy = worker(active_requests=1)
    del busy["status"]
    (row,) = Ledger().totals([busy]).workers
    assert row.status == "busy"
    assert row.accepting


_STEPS = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(["serve", "die", "silent"]), st.integers(0, 9))
)


@given(_STEPS)
def test_totals_never_go_backwards(steps: list[tuple[int, str, int]]) -> None:
    ledger = Ledger()
    lives = {1: 1, 2: 1, 3: 1}
    counted = {1: 0, 2: 0, 3: 0}
    everything = 0
    before = 0
    for identity, action, amount in steps:
        if action == "die":
            lives[identity] += 1
            counted[identity] = 0
        else:
            counted[identity] += amount
            everything += amount
        rows = [worker(i, float(lives[i]), requests=counted[i]) for i in lives]
        if action == "silent":
            rows[identity - 1].pop("gateways")
            everything -= amount
            counted[identity] -= amount
        now = ledger.totals(rows).sums.counters.get("requests", 0)
        assert now >= before
        assert now == everything
        before = now
