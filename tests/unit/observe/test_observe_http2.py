"""HTTP/2 in the statistics."""

from __future__ import annotations

import json
from typing import Any

from observe_render import make_facts, parse_exposition, render_json, render_metrics
from observe_samples import worker

from uwgate.observe.counters import Ledger, Totals
from uwgate.observe.sums import Snapshot


def speaking(identity: int, **tally: Any) -> Snapshot:
    snapshot = worker(identity, requests=5)
    snapshot["gateways"]["http"]["tally"] |= tally
    return snapshot


def document(totals: Totals) -> dict[str, Any]:
    return json.loads(render_json(totals, [], make_facts()))  # type: ignore[no-any-return]


def test_where_nobody_speaks_it_nothing_is_said() -> None:
    totals = Ledger().totals([worker()])
    assert "http2" not in document(totals)
    assert "http2" not in render_metrics(totals, [], make_facts()).decode()


def test_sums() -> None:
    ledger = Ledger()
    one = speaking(
        1, http2_connections=2, http2_streams=7, http2_requests=40,
        http2_resets={"client:CANCEL": 3, "gateway:PROTOCOL_ERROR": 1},
        http2_goaways={"NO_ERROR": 2},
    )  # fmt: skip
    two = speaking(
        2, http2_connections=1, http2_streams=1, http2_requests=2,
        http2_resets={"client:CANCEL": 1}, http2_goaways={"ENHANCE_YOUR_CALM": 1},
    )  # fmt: skip
    totals = ledger.totals([one, two])
    shown = {
        "connections": 3,
        "streams": 8,
        "requests": 42,
        "resets": {"client:CANCEL": 4, "gateway:PROTOCOL_ERROR": 1},
        "goaways": {"ENHANCE_YOUR_CALM": 1, "NO_ERROR": 2},
    }
    assert document(totals)["http2"] == shown
    series = parse_exposition(render_metrics(totals, [], make_facts()).decode())
    assert series["uwgate_http2_streams"] == "8"
    assert series["uwgate_http2_requests_total"] == "42"
    assert series['uwgate_http2_resets_total{side="client",code="CANCEL"}'] == "4"
    assert series['uwgate_http2_goaways_total{code="ENHANCE_YOUR_CALM"}'] == "1"


def test_what_outlives_a_worker_and_a_master() -> None:
    ledger = Ledger()
    ledger.retire(
        speaking(1, http2_connections=2, http2_streams=7, http2_requests=40,
                 http2_resets={"client:CANCEL": 3}, http2_goaways={"NO_ERROR": 2})
    )  # fmt: skip
    after = Ledger()
    after.restore(json.loads(json.dumps(ledger.state())))
    assert document(after.totals([worker(2)]))["http2"] == {
        "connections": 0,
        "streams": 0,
        "requests": 40,
        "resets": {"client:CANCEL": 3},
        "goaways": {"NO_ERROR": 2},
    }
