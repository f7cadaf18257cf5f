"""Counters of a worker: the snapshot is complete, plain and valid JSON."""

from __future__ import annotations

import json

from uwgate.router.errors import PHRASES, Failure
from uwgate.router.tally import Tally


def test_a_fresh_tally() -> None:
    snapshot = Tally().snapshot()
    errors = snapshot.pop("errors")
    assert errors == {failure.word: 0 for failure in Failure}
    assert snapshot.pop("responses") == {}
    assert snapshot.pop("tls_handshakes") == snapshot.pop("tls_resumed") == {}
    assert snapshot.pop("http2_resets") == snapshot.pop("http2_goaways") == {}
    assert snapshot.pop("spdy_resets") == snapshot.pop("spdy_goaways") == {}
    assert snapshot == dict.fromkeys(
        (
            "accepted", "connections", "active_requests", "requests", "retries", "node_connects",
            "node_reuses", "tunnels", "rx", "tx", "time_micros",
            "http2_connections", "http2_delayed", "http2_requests", "http2_streams",
            "spdy_connections", "spdy_delayed", "spdy_requests", "spdy_streams",
        ),
        0,
    )  # fmt: skip


def test_what_was_counted() -> None:
    tally = Tally()
    tally.requests += 3
    tally.tx += 1 << 40
    tally.responses[200] += 2
    tally.responses[599] += 1
    tally.handshakes["TLSv1.3"] = 2
    tally.resumed["TLSv1.3"] = 1
    tally.errors[Failure.NODE_TIMEOUT] += 1
    tally.count_reset("client", 8)
    tally.count_reset("client", 8)
    tally.count_reset("gateway", 77)
    tally.count_goaway(11)
    tally.count_spdy_reset("client", 8)
    tally.count_spdy_reset("gateway", 77)
    tally.count_spdy_goaway(11)
    snapshot = json.loads(json.dumps(tally.snapshot()))
    assert (snapshot["requests"], snapshot["tx"]) == (3, 1 << 40)
    assert snapshot["responses"] == {"200": 2, "599": 1}
    assert snapshot["http2_resets"] == {"client:CANCEL": 2, "gateway:UNKNOWN": 1}
    assert snapshot["http2_goaways"] == {"ENHANCE_YOUR_CALM": 1}
    assert snapshot["spdy_resets"] == {"client:STREAM_IN_USE": 1, "gateway:UNKNOWN": 1}
    assert snapshot["spdy_goaways"] == {"ENHANCE_YOUR_CALM": 1}
    assert (snapshot["tls_handshakes"], snapshot["tls_resumed"]) == ({"TLSv1.3": 2}, {"TLSv1.3": 1})
    assert {word for word, count in snapshot["errors"].items() if count} == {"node-timeout"}


def test_a_snapshot_does_not_change_any_more() -> None:
    tally = Tally()
    snapshot = tally.snapshot()
    tally.errors[Failure.NO_NODE] += 1
    tally.responses[503] += 1
    assert snapshot == Tally().snapshot()


def test_the_table_of_failures() -> None:
    words = [failure.word for failure in Failure]
    assert len(words) == len(set(words))
    for failure in Failure:
        assert failure.text.endswith(".")
        assert failure.status == 0 or failure.status in PHRASES
        assert failure.status < len(Tally().responses)
    assert {failure.status for failure in Failure} - {0} == set(PHRASES)
