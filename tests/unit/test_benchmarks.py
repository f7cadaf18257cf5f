"""The pure parts of benchmarks/: what they say must be right, or every figure is wrong."""

from __future__ import annotations

import hashlib
import io
import select
import time
from pathlib import Path

import pytest

from benchmarks import app, figures, heads, procs, soak_client, workloads, wrk
from benchmarks.compare import Cell, Outcome, render, summarise, verdicts

REPORT = (
    'Running 2s test\n@{"requests":1000,"bytes":250000,"micros":2000000,"p50":900,"p99":1800,'
    '"connect":0,"read":0,"write":0,"timeout":0,"status":0}\n'
)


def test_parse_takes_exact_numbers_from_the_report() -> None:
    result = wrk.parse(REPORT)
    assert result == wrk.WrkResult(1000, 250000, 2.0, 900.0, 1800.0, ())


@pytest.mark.parametrize("key", ["connect", "read", "write", "timeout", "status"])
def test_every_kind_of_error_is_a_fault(key: str) -> None:
    result = wrk.parse(REPORT.replace(f'"{key}":0', f'"{key}":7'))
    assert len(result.errors) == 1
    assert result.errors[0].startswith("7 ")
    assert wrk.faults(result, 13) == list(result.errors)


@pytest.mark.parametrize(
    "output",
    ["", "unable to connect to 127.0.0.1:1 Connection refused", '@{"requests":1}', "@{nonsense}"],
)
def test_parse_refuses_what_is_not_a_report(output: str) -> None:
    with pytest.raises(wrk.WrkError, match="report from wrk"):
        wrk.parse(output)


def test_no_request_and_short_bodies_are_faults() -> None:
    nothing = wrk.parse(REPORT.replace('"requests":1000', '"requests":0'))
    assert wrk.faults(nothing, 13) == ["no request was completed"]
    assert wrk.faults(wrk.parse(REPORT), 250) == []
    assert "too short" in wrk.faults(wrk.parse(REPORT), 251)[0]


def test_ratios_are_paired_by_round() -> None:
    ours, theirs = {1: 10.0, 2: 30.0, 4: 5.0}, {1: 20.0, 2: 20.0, 3: 1.0, 4: 0.0}
    assert figures.paired_ratios(ours, theirs) == [0.5, 1.5]
    assert figures.spread([0.5, 1.5, 1.0]) == figures.Spread(1.0, 0.5, 1.5, 3)


def test_units() -> None:
    assert figures.per_request_micros(15_000_000, 1000) == 15.0
    assert figures.per_gigabyte_seconds(500_000_000, 1_000_000_000) == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.spread([]),
        lambda: figures.per_request_micros(1, 0),
        lambda: figures.per_gigabyte_seconds(1, 0),
    ],
)
def test_nothing_measured_is_an_error_not_a_zero(call: object) -> None:
    with pytest.raises(ValueError, match="no "):
        call()  # type: ignore[operator]


def test_table_aligns_columns() -> None:
    assert figures.table([["", "a"], ["name", "12.5"]], indent="") == "         a\nname  12.5"
    assert figures.table([]) == ""


def _cell(peer: str, number: int, cost: float, *faults: str) -> Cell:
    return Cell(peer, number, cost, 1000.0, 900.0, 1800.0, 1 << 20, 0.9, faults)


def test_a_cell_with_faults_is_reported_and_not_counted() -> None:
    workload = next(row for row in workloads.WORKLOADS if row.name == "tiny")
    outcome = Outcome(workload)
    outcome.cells += [_cell("uwgate", 1, 8.0), _cell("nginx", 1, 16.0)]
    outcome.cells += [_cell("uwgate", 2, 30.0), _cell("nginx", 2, 15.0, "3 time-outs")]
    outcome.cells += [_cell("uwgate", 3, 22.0), _cell("nginx", 3, 20.0)]
    summarise(outcome)
    nginx = next(line for line in outcome.lines if line.peer == "nginx")
    assert nginx.ratio is not None
    assert (nginx.ratio.low, nginx.ratio.high, nginx.ratio.count) == (0.5, 1.1, 2)
    assert outcome.failed == {"nginx": "round 2: 3 time-outs"}
    assert "nginx: FAILED: round 2: 3 time-outs" in render(outcome)
    assert [kept for _, kept in verdicts(outcome)] == [True, True]


def test_every_workload_names_known_peers_that_speak_to_its_node() -> None:
    from benchmarks.peers import PEERS

    for row in workloads.WORKLOADS:
        assert "uwgate" in row.peers
        assert all(row.node in PEERS[name].nodes for name in row.peers)
        assert set(row.limits) | set(row.p99_limits) <= set(row.peers)


def test_select_by_pattern() -> None:
    rows, extras = workloads.select(["body*", "idle"])
    assert [row.name for row in rows] == ["body64k", "body1m", "body100m"]
    assert extras == ["idle"]
    with pytest.raises(ValueError, match="no workload is called 'tyni'"):
        workloads.select(["tyni"])


def test_heads_are_sent_as_the_wire_wants_them() -> None:
    whole = "".join(heads.parts(heads.BROWSER))
    assert whole.startswith("GET /shop/list HTTP/1.1\r\nHost: www.example.com\r\n")
    assert whole.endswith("\r\n\r\n")
    assert "\n" not in whole.replace("\r\n", "")
    assert 600 <= len(whole) <= 720
    assert heads.parts("GET /<n> HTTP/1.1\nA: <id>\n") == [
        "GET /", "n", " HTTP/1.1\r\nA: ", "id", "\r\n\r\n",
    ]  # fmt: skip


def test_lua_script_quotes_and_keeps_constant_heads_constant() -> None:
    script = heads.lua_script(['GET / HTTP/1.1\nA: "b\\c"\n'])
    assert r'"GET / HTTP/1.1\r\nA: \"b\\c\"\r\n\r\n"' in script
    assert "string.format('%d', n)" not in script
    assert "local heads = {" in heads.lua_script(heads.MIXED)


@pytest.mark.parametrize(
    ("path", "size"),
    [("/", 13), ("/body/64k", 65536), ("/body/1m", 1 << 20), ("/pattern/70001", 70001)],
)
def test_app_sends_the_length_it_announces(path: str, size: int) -> None:
    sent: list[list[tuple[str, str]]] = []
    body = b"".join(app.application({"PATH_INFO": path}, lambda _, fields: sent.append(fields)))
    assert len(body) == size
    assert ("Content-Length", str(size)) in sent[0]
    if path.startswith("/pattern"):
        assert body == app.pattern(size)


def test_app_echoes_what_it_received() -> None:
    environ = {"PATH_INFO": "/echo", "wsgi.input": io.BytesIO(b"x" * 100_000)}
    (body,) = app.application(environ, lambda _, fields: None)
    assert body == f"100000 {hashlib.sha256(b'x' * 100_000).hexdigest()}".encode()


def test_processes_are_measured_and_ended_with_their_children(tmp_path: Path) -> None:
    busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 600 & sleep 600"
    process = procs.Process("busy", ["sh", "-c", busy], tmp_path / "log")
    with process:
        deadline = time.monotonic() + 10
        while len(pids := procs.family(process.pid)) < 3 and time.monotonic() < deadline:
            select.select([], [], [], 0.01)
        assert len(pids) == 3
        assert procs.cpu_nanos(pids) > 1_000_000
        assert procs.rss_bytes(pids) > 0
        assert all(len(found) >= 3 for found in procs.descriptors(pids).values())
    assert not process.running()
    while procs.rss_bytes(pids) and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    assert procs.rss_bytes(pids) == 0


def test_a_server_that_ends_at_once_is_told_with_its_words(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo cannot bind; exit 3"]
    with (
        procs.Process("broken", argv, tmp_path / "log") as process,
        pytest.raises(procs.StartError, match="broken ended at once: cannot bind"),
    ):
        procs.wait_http(process, ("127.0.0.1", procs.free_port()))


def test_only_requests_that_ran_during_a_kill_are_excused() -> None:
    score = soak_client.Score(kills=[100.0])
    assert score.excused(99.0, 101.0)
    assert score.excused(100.0 + soak_client.KILL_ECHO, 101.0)
    assert not score.excused(100.1 + soak_client.KILL_ECHO, 101.0)
    assert not score.excused(98.0, 99.9)
