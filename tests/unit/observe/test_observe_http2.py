"""HTTP/2 and SPDY in the statistics: each by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
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
    assert "spdy" not in document(totals)
    assert "spdy" not in render_metrics(totals, [], make_facts()).decode()


def of(protocol: str, **tally: Any) -> dict[str, Any]:
    return {f"{protocol}_{name}": value for name, value in tally.items()}


@pytest.mark.parametrize(("protocol", "other"), [("http2", "spdy"), ("spdy", "http2")])
def test_sums(protocol: str, other: str) -> None:
    ledger = Ledger()
    one = speaking(
        1,
        **of(
            protocol, connections=2, streams=7, requests=40, delayed=3,
            resets={"client:CANCEL": 3, "gateway:PROTOCOL_ERROR": 1}, goaways={"NO_ERROR": 2},
        ),
    )  # fmt: skip
    two = speaking(
        2,
        **of(
            protocol, connections=1, streams=1, requests=2, delayed=1,
            resets={"client:CANCEL": 1}, goaways={"ENHANCE_YOUR_CALM": 1},
        ),
    )  # fmt: skip
    totals = ledger.totals([one, two])
    shown = {
        "connections": 3,
        "streams": 8,
        "requests": 42,
        "delayed": 4,
        "resets": {"client:CANCEL": 4, "gateway:PROTOCOL_ERROR": 1},
        "goaways": {"ENHANCE_YOUR_CALM": 1, "NO_ERROR": 2},
    }
    assert document(totals)[protocol] == shown
    assert other not in document(totals)
    series = parse_exposition(render_metrics(totals, [], make_facts()).decode())
    assert series[f"uwgate_{protocol}_streams"] == "8"
    assert series[f"uwgate_{protocol}_requests_total"] == "42"
    assert series[f'uwgate_{protocol}_resets_total{{side="client",code="CANCEL"}}'] == "4"
    assert series[f'uwgate_{protocol}_goaways_total{{code="ENHANCE_YOUR_CALM"}}'] == "1"


@pytest.mark.parametrize("protocol", ["http2", "spdy"])
def test_what_outlives_a_worker_and_a_master(protocol: str) -> None:
    ledger = Ledger()
    ledger.retire(
        speaking(
            1,
            **of(
                protocol, connections=2, streams=7, requests=40, delayed=3,
                resets={"client:CANCEL": 3}, goaways={"NO_ERROR": 2},
            ),
        )
    )  # fmt: skip
    after = Ledger()
    after.restore(json.loads(json.dumps(ledger.state())))
    assert document(after.totals([worker(2)]))[protocol] == {
        "connections": 0,
        "streams": 0,
        "requests": 40,
        "delayed": 3,
        "resets": {"client:CANCEL": 3},
        "goaways": {"NO_ERROR": 2},
    }
