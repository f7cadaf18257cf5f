"""Subscribed keys and nodes in the document and in the metrics."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from observe_render import make_facts, parse_exposition, render_json, render_metrics
from observe_samples import View, full, node, worker

from uwgate.config.settings import RouterSubscriptions, SubscriptionSettings
from uwgate.observe import prometheus, stats, subscribed
from uwgate.observe.counters import Ledger, Totals
from uwgate.observe.subscriptions import RegistryView, djb33x, tables
from uwgate.observe.sums import Snapshot
from uwgate.subscriptions.admission import Registry
from uwgate.subscriptions.packet import Announcement, encode
from uwgate.subscriptions.table import Extra, Kind

SLOT_KEYS = ["key", "hash", "hits", "sni_enabled", "algo", "gateway", "nodes"]
NODE_KEYS = (
    "name modifier1 modifier2 last_check pid uid gid requests last_requests tx rx cores load weight"
    " wrr ref failcnt death_mark vassal backup proto"
)
OURS = " state in_flight idle latency_ms failures errors last_seen joined sender"


def told(nodes: dict[str, dict[str, Snapshot]], identity: int = 1, **values: Any) -> Snapshot:
    """A worker's snapshot with ``{key: {address: Node.snapshot()}}``, each key looked up twice."""
    gateway = values.pop("gateway", "http")
    snapshot = worker(identity, nodes=[], **values)
    part = snapshot["gateways"].pop("http")
    slots = {key: {"hits": 2, "nodes": each} for key, each in nodes.items()}
    snapshot["gateways"][gateway] = part | {"subscriptions": {"slots": slots}}
    return snapshot


def totals_of(ledger: Ledger, snapshots: list[Snapshot], *views: RegistryView) -> Totals:
    return ledger.totals(snapshots, tables(views))


def show(*views: View, snapshots: list[Snapshot], ledger: Ledger | None = None) -> dict[str, Any]:
    """The document."""
    totals = totals_of(ledger or Ledger(), snapshots, *views)
    return json.loads(render_json(totals, [], make_facts(subscriptions=lambda: views)))


def measure(*views: View, snapshots: list[Snapshot]) -> dict[str, str]:
    """The series."""
    totals = totals_of(Ledger(), snapshots, *views)
    text = render_metrics(totals, [], make_facts(subscriptions=lambda: views)).decode()
    return parse_exposition(text)


def test_the_hash_is_uwsgis() -> None:
    assert djb33x(b"example.com") % 65535 == 30778  # from its own statistics


def test_slots_and_nodes_have_the_keys_of_uwsgi_in_its_order() -> None:
    view = View(algo="lrc", slow_start=30)
    view.add("example.com", "10.0.0.1:3031")
    value = show(view, snapshots=[told({"example.com": {}})])
    names = ["http", "subscriptions", "subscriptions_shown", "subscriptions_total"]
    names += ["subscription_counters", "cheap"]
    assert [name for name in value if name in names] == names
    assert value["http"] == ["127.0.0.1:8080", "127.0.0.1:4040"]
    (slot,) = value["subscriptions"]
    assert list(slot) == SLOT_KEYS
    assert (slot["key"], slot["hash"], slot["hits"]) == ("example.com", 30778, 2)
    assert (slot["algo"], slot["gateway"]) == ("lrc", "http")
    (row,) = slot["nodes"]
    assert list(row) == (NODE_KEYS + OURS).split()


def test_a_node_is_what_it_announced_and_what_the_workers_counted() -> None:
    view = View()
    announced = view.add(
        "k",
        "10.0.0.1:3031",
        kind=Kind(5, 6, 1, "http"),
        extra=Extra(pid=7, uid=8, gid=9, vassal="shop.ini"),
        seen=int(time.monotonic()) - 3,
        joined=1_600_000_000,
        failures=1,
        sender="10.0.0.1",
    )
    announced.cores, announced.load, announced.weight = 4, 2, 3
    counted = node(requests=9, failures=1, tx=800, rx=1024, active=2, hits=8)
    counted |= {"latency": 1500, "errors": {"node-timeout": 1}, "credits": 2, "last_requests": 4}
    (slot,) = show(view, snapshots=[told({"k": {"10.0.0.1:3031": counted}})])["subscriptions"]
    (row,) = slot["nodes"]
    assert row.pop("last_seen") in (3, 4)
    texts = {"name": "10.0.0.1:3031", "vassal": "shop.ini", "proto": "http", "state": "up"}
    of_sender = {"pid": 7, "uid": 8, "gid": 9, "sender": "10.0.0.1", "joined": 1_600_000_000}
    numbers = {"modifier1": 5, "modifier2": 6, "backup": 1, "cores": 4, "load": 2, "weight": 3}
    numbers |= {"requests": 8, "last_requests": 4, "tx": 800, "rx": 1024, "wrr": 2, "ref": 2}
    numbers |= {"failcnt": 1, "death_mark": 0, "in_flight": 2, "idle": 0, "failures": 1}
    last_check = {"last_check": 1_700_000_000 + announced.seen}
    ours = {"latency_ms": 1.5, "errors": {"node-timeout": 1}}
    assert row == texts | of_sender | numbers | last_check | ours


def test_states() -> None:
    view, now = View(slow_start=60), int(time.time())
    view.add("k", "a:1", joined=now - 120)
    view.add("k", "b:1", joined=now - 30)
    view.add("k", "c:1", joined=now - 30, marked=True)
    (slot,) = show(view, snapshots=[])["subscriptions"]
    assert [each["state"] for each in slot["nodes"]] == ["up", "slow-start", "marked"]
    assert [each["death_mark"] for each in slot["nodes"]] == [0, 0, 1]


def test_workers_are_summed_and_latency_weighted_by_requests() -> None:
    view = View()
    view.add("k", "a:1")
    one = node(requests=30, hits=30, active=1) | {"latency": 1000, "errors": {"node-timeout": 1}}
    two = node(requests=10, hits=10, active=2) | {"latency": 5000, "errors": {"node-timeout": 2}}
    three = node(requests=0)  # nothing measured yet
    snapshots = [told({"k": {"a:1": each}}, i) for i, each in enumerate((one, two, three), 1)]
    (slot,) = show(view, snapshots=snapshots)["subscriptions"]
    assert slot["hits"] == 6
    (row,) = slot["nodes"]
    assert (row["requests"], row["in_flight"], row["latency_ms"]) == (40, 3, 2.0)
    assert row["errors"] == {"node-timeout": 3}


def test_a_respawn_keeps_counters_until_the_node_leaves() -> None:
    view, ledger = View(), Ledger()
    for address in ("a:1", "b:1"):
        view.add("k", address)
    old = told({"k": {"a:1": node(hits=5, active=1), "b:1": node(hits=7)}}, started=1)
    show(view, snapshots=[old], ledger=ledger)
    young = told({"k": {"a:1": node(hits=1)}}, started=2)
    (slot,) = show(view, snapshots=[young], ledger=ledger)["subscriptions"]
    assert [(row["requests"], row["in_flight"]) for row in slot["nodes"]] == [(6, 0), (7, 0)]
    assert slot["hits"] == 4
    again = show(view, snapshots=[young], ledger=ledger)["subscriptions"]
    assert again[0]["nodes"][0]["requests"] == 6

    member = view.table.find("k", "b:1")
    assert member is not None
    view.table.remove(member)
    show(view, snapshots=[young], ledger=ledger)
    view.add("k", "b:1")
    (slot,) = show(view, snapshots=[young], ledger=ledger)["subscriptions"]
    assert [row["requests"] for row in slot["nodes"]] == [6, 0]


def test_a_dead_worker_still_listed_has_counters_but_no_gauges() -> None:
    view, ledger = View(), Ledger()
    view.add("k", "a:1")
    report = {"k": {"a:1": node(hits=5, active=3) | {"latency": 9}}}
    show(view, snapshots=[told(report)], ledger=ledger)
    (slot,) = show(view, snapshots=[told(report, status="dead")], ledger=ledger)["subscriptions"]
    (row,) = slot["nodes"]
    assert (row["requests"], row["in_flight"], row["latency_ms"]) == (5, 0, 0)


def test_a_key_that_left_the_table_is_not_shown_and_not_carried() -> None:
    view, ledger = View(), Ledger()
    view.add("k", "a:1")
    gone = told({"gone": {"x:1": node(hits=5)}, "k": {"gone:1": node(hits=1)}})
    assert [each["key"] for each in show(view, snapshots=[gone])["subscriptions"]] == ["k"]
    show(view, snapshots=[gone], ledger=ledger)
    show(view, snapshots=[], ledger=ledger)
    assert len(ledger._departed) == 1  # the key that is still there
    assert not any("gone" in series for series in measure(view, snapshots=[gone]))


def test_what_is_carried_over_is_bounded_without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribed, "_LIMIT", 10)
    ledger = Ledger()
    for life in range(20):
        names = {f"key{life}": {f"a:{life}": node(), f"b:{life}": node()}}
        ledger.retire(told(names, started=life + 1))
        assert len(ledger._departed) <= 10
    assert len(ledger._departed) == 9  # with their keys


def test_of_many_nodes_the_marked_and_busy_ones_are_shown() -> None:
    view, other = View(), View("fastrouter")
    full(view, 15_000)
    busy = view.add("zzz.example.com", "10.9.9.9:80")
    failed = view.add("zzz.example.com", "10.9.9.8:80", marked=True)
    view.add("zzz.example.com", "10.9.9.7:80")
    other.add("late.example.com", "10.8.8.8:80")
    report = {"zzz.example.com": {busy.address: node(hits=9), failed.address: node(requests=1)}}
    report["left.example.com"] = {"10.7.7.7:80": node(hits=99)}
    value = show(view, other, snapshots=[told(report)])
    assert value["subscriptions_total"] == 15_004
    assert value["subscriptions_shown"] == 10_000
    slots = value["subscriptions"]
    assert sum(len(slot["nodes"]) for slot in slots) == 10_000
    assert [slot["key"] for slot in slots] == sorted(slot["key"] for slot in slots)
    assert slots[-1]["key"] == "zzz.example.com"
    names = [row["name"] for row in slots[-1]["nodes"]]
    assert names == ["10.9.9.9:80", "10.9.9.8:80"]


def test_nodes_that_workers_tell_of_are_too_many_as_well() -> None:
    view = View()
    full(view, 10_500)
    report = {
        slot.key: {member.address: node(requests=number) for member in slot}
        for number, slot in enumerate(view.table.slots.values())
    }
    quiet = view.table.find("host000000.example.com", "10.0.0.0:80")
    assert quiet is not None
    quiet.marked = True
    keys = [slot["key"] for slot in show(view, snapshots=[told(report)])["subscriptions"]]
    assert keys[:2] == ["host000000.example.com", "host000501.example.com"]
    assert len(keys) == 10_000


def test_a_long_document_is_made_in_small_pieces() -> None:
    view = View()
    full(view, 12_000)
    report = {
        slot.key: {member.address: node(requests=1) for member in slot}
        for slot in view.table.slots.values()
    }
    facts = make_facts(subscriptions=lambda: [view])
    for render in (stats.render_json, prometheus.render_metrics):
        totals = totals_of(Ledger(), [told(report, 1), told(report, 2)], view)
        pieces = list(render(totals, [], facts))
        assert pieces[:20] == [None] * 20  # putting reports together takes its time, too
        sizes = [len(piece) for piece in pieces if piece is not None]
        assert max(sizes) < 400_000
        assert min(sizes) > 0


@pytest.mark.parametrize("minified", [False, True])
def test_hostile_texts_stay_inside_their_strings(minified: bool) -> None:
    view = View()
    hostile = '"},\\\n\x1b[2J\udcff\u2028'
    view.add(hostile, hostile, extra=Extra(vassal=hostile), sender=hostile)
    view.rejected[hostile] = 1
    totals = totals_of(Ledger(), [], view)
    facts = make_facts(subscriptions=lambda: [view], minified=minified)
    text = render_json(totals, [], facts)
    assert text.isascii()
    assert b"\x1b" not in text
    assert (b"\n" in text) is not minified
    (slot,) = json.loads(text)["subscriptions"]
    assert slot["key"] == slot["nodes"][0]["vassal"] == '"},\\\n\x1b[2J\ufffd\u2028'
    parse_exposition(render_metrics(totals, [], facts).decode().replace("\u2028", ""))


def test_a_line_for_each_slot_and_node() -> None:
    view = View()
    view.add("a", "x:1")
    view.add("a", "x:2")
    view.add("b", "x:1")
    facts = make_facts(subscriptions=lambda: [view])
    text = render_json(totals_of(Ledger(), [], view), [], facts).decode()
    begins = [line[:12] for line in text.partition('"subscriptions":[\n')[2].splitlines()[:8]]
    slot, row, end = '\t\t{"key":"', '\t\t\t{"name":"', "\t\t]}"
    assert [each.startswith(slot) for each in begins] == [1, 0, 0, 0, 1, 0, 0, 0]
    assert [each.startswith(row) for each in begins] == [0, 1, 1, 0, 0, 1, 0, 0]
    assert begins[3] == end + ","
    assert begins[6:] == [end, "\t],"]


def test_an_empty_table_and_no_table() -> None:
    value = show(View(), snapshots=[])
    assert value["subscriptions"] == []
    assert value["subscription_counters"]["http"]["servers"] == ["127.0.0.1:4040"]
    assert "subscriptions" not in show(snapshots=[])


def test_cheap_is_what_a_live_worker_says() -> None:
    snapshot = worker()
    assert show(snapshots=[snapshot])["cheap"] == 0
    snapshot["gateways"]["http"]["cheap"] = 1
    assert show(snapshots=[snapshot])["cheap"] == 1
    assert show(snapshots=[snapshot | {"status": "dead"}])["cheap"] == 0


def test_a_real_registry() -> None:
    registry = Registry(
        "fastrouter",
        RouterSubscriptions(SubscriptionSettings(), ()),
        publish=lambda change: None,
        log=lambda line: None,
    )
    registry.receive(encode(Announcement("Example.com", "10.0.0.1:80", weight=2)), "::1", None)
    registry.receive(b"garbage", "::1", None)
    registry.tick(time.monotonic())
    facts = make_facts(subscriptions=lambda: [registry])
    totals = totals_of(Ledger(), [], registry)
    value = json.loads(render_json(totals, [], facts))
    (slot,) = value["subscriptions"]
    (row,) = slot["nodes"]
    assert (slot["key"], slot["gateway"], slot["algo"]) == ("example.com", "fastrouter", "wrr")
    assert (row["name"], row["weight"], row["sender"]) == ("10.0.0.1:80", 2, "::1")
    assert abs(row["last_check"] - time.time()) < 10
    counters = value["subscription_counters"]["fastrouter"]
    assert (counters["keys"], counters["nodes"], counters["joined"]) == (1, 1, 1)
    assert counters["rejected"] == {"not-a-subscription": 1}
    series = parse_exposition(render_metrics(totals, [], facts).decode())
    packets = "uwgate_subscription_packets_total"
    assert series[f'{packets}{{gateway="fastrouter",result="joined"}}'] == "1"
    assert series[f'{packets}{{gateway="fastrouter",result="rejected"}}'] == "1"


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_of_nodes() -> None:
    view = View()
    seen = int(time.monotonic()) - 5
    view.add('k"\\', "a:1", weight=4, seen=seen)
    view.add('k"\\', "b:1", marked=True, seen=seen)
    counted = node(requests=4, failures=1, tx=10, rx=20, active=2)
    counted |= {"latency": 2500, "errors": {"node-timeout": 1}}
    series = measure(view, snapshots=[told({'k"\\': {"a:1": counted}})])
    labels = '{gateway="http",key="k\\"\\\\",node="a:1"'
    name = "uwgate_subscription_node_"
    assert series[f"{name}requests_total{labels}}}"] == "4"
    assert series[f"{name}failures_total{labels}}}"] == "1"
    assert series[f'{name}errors_total{labels},reason="node-timeout"}}'] == "1"
    assert series[f"{name}received_bytes_total{labels}}}"] == "10"
    assert series[f"{name}sent_bytes_total{labels}}}"] == "20"
    assert series[f"{name}active{labels}}}"] == "2"
    assert series[f"{name}latency_seconds{labels}}}"] == "0.0025"
    assert series[f"{name}up{labels}}}"] == "1"
    assert series[f"{name}up{labels.replace('a:1', 'b:1')}}}"] == "0"
    assert series[f"{name}weight{labels}}}"] == "4"
    assert series[f"{name}last_seen_seconds{labels}}}"] in ("5", "6")
    assert f"{name}latency_seconds{labels.replace('a:1', 'b:1')}}}" not in series
    assert series['uwgate_subscription_keys{gateway="http"}'] == "1"
    assert series['uwgate_subscription_nodes{gateway="http"}'] == "2"
    assert series["uwgate_cheap"] == "0"


def test_nodes_beyond_the_limit_are_summed_by_key() -> None:
    view = View()
    for number in range(1_200):
        view.add("big", f"10.0.0.1:{number + 1}")
    report = {"big": {f"10.0.0.1:{n + 1}": node(requests=n, active=1) for n in range(1_200)}}
    series = measure(view, snapshots=[told(report)])
    requests = {
        name: int(value)
        for name, value in series.items()
        if name.startswith("uwgate_subscription_node_requests_total{")
    }
    assert len(requests) == 1_001
    assert sum(requests.values()) == sum(range(1_200))
    rest = '{gateway="http",key="big",node="other"}'
    assert requests[f"uwgate_subscription_node_requests_total{rest}"] == sum(range(200))
    assert series[f"uwgate_subscription_node_active{rest}"] == "200"
    assert f"uwgate_subscription_node_up{rest}" not in series


def test_keys_beyond_the_limit_are_one_sum() -> None:
    view = View()
    full(view, 2_500)
    view.add("other", "other")  # of the same names as the sums
    report = {
        slot.key: {member.address: node(requests=number + 1) for member in slot}
        for number, slot in enumerate(view.table.slots.values())
    }
    series = measure(view, snapshots=[told(report)])
    requests = {
        name: int(value)
        for name, value in series.items()
        if name.startswith("uwgate_subscription_node_requests_total{")
    }
    assert sum(requests.values()) == sum(range(2_502))
    assert len(requests) <= 2_001
    assert 'uwgate_subscription_node_requests_total{gateway="http",key="other",node="other"}' in (
        requests
    )


def test_two_gateways_are_told_apart() -> None:
    http, fast = View("http"), View("fastrouter")
    http.add("k", "a:1")
    fast.add("k", "a:1")
    one = told({"k": {"a:1": node(requests=1)}}, 1, requests=3)
    one["gateways"]["http"]["nodes"] = [node("s:1", requests=6)]
    two = told({"k": {"a:1": node(requests=2)}}, 2, requests=4, gateway="fastrouter")
    series = measure(http, fast, snapshots=[one, two])
    assert series['uwgate_requests_total{gateway="http"}'] == "3"
    assert series['uwgate_requests_total{gateway="fastrouter"}'] == "4"
    assert series['uwgate_responses_total{gateway="http",code="200"}'] == "3"
    assert series['uwgate_errors_total{gateway="http",reason="no-node"}'] == "0"
    static = '{gateway="http",node="s:1",protocol="uwsgi"}'
    assert series[f"uwgate_node_requests_total{static}"] == "6"
    name = "uwgate_subscription_node_requests_total"
    assert series[f'{name}{{gateway="http",key="k",node="a:1"}}'] == "1"
    assert series[f'{name}{{gateway="fastrouter",key="k",node="a:1"}}'] == "2"
    value = show(http, fast, snapshots=[one, two])
    assert value["counters"]["requests"] == 7
    assert value["gateways"]["fastrouter"]["counters"]["requests"] == 4
    assert [slot["gateway"] for slot in value["subscriptions"]] == ["http", "fastrouter"]
