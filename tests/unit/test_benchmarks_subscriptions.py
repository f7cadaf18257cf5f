"""The pure parts of the benchmarks of subscriptions and of the rolling test."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks import measured, rolling, subscriptions, workloads
from benchmarks.app import HELLO, application
from benchmarks.compare import Cell, Outcome
from benchmarks.measured import Figure
from benchmarks.rolling_client import (
    Connection,
    Ended,
    Score,
    Traffic,
    Wrong,
    during,
    quantile,
)
from benchmarks.subscription_traffic import Rate, announcements, settings
from uwgate.subscriptions.packet import decode

ROOT = Path(__file__).resolve().parents[2]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + HELLO


# --- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "kept", "text"),
    [
        (Figure("a", 99_999, "/s", 100_000, least=True), False, "OVER  a: 99,999 /s, at least"),
        (Figure("a", 100_000, "/s", 100_000, least=True), True, "ok    a: 100,000 /s, at least"),
        (Figure("a", 600, "bytes", 600), True, "ok    a: 600 bytes, limit 600"),
        (Figure("a", 600.5, "bytes", 600), False, "OVER  a: 600 bytes, limit 600"),
        (Figure("a", 1.234, "times", note="why"), True, "      a: 1.23 times (why)"),
    ],
)
def test_a_figure_knows_its_verdict(figure: Figure, kept: bool, text: str) -> None:
    assert figure.kept is kept
    assert figure.text.startswith(text)


def test_rates_are_of_what_was_received() -> None:
    rate = Rate(
        received=1000, sent=3000, lost=2000, joined=0, updated=0, refused=0, cpu=0.5, wall=2.0
    )
    assert (rate.per_cpu, rate.per_wall) == (2000.0, 500.0)


def test_work_apart_is_bound_and_its_failure_is_told() -> None:
    code = (
        "import os\n"
        "from benchmarks.measured import MeasureError, apart\n"
        "core = max(os.sched_getaffinity(0))\n"
        "print(apart(core, lambda: {'cores': sorted(os.sched_getaffinity(0)), 'core': core}))\n"
        "try:\n    apart(core, lambda: {'n': 1 // 0})\n"
        "except MeasureError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    found = eval(first)
    assert found["cores"] == [found["core"]]
    assert second == "the measuring process ended with 1"
    assert "ZeroDivisionError" in done.stderr


def test_announcements_are_of_different_nodes_and_right() -> None:
    packets = [decode(datagram) for datagram in announcements(70_000, 7_000, sign=None)]
    assert len({(packet.key, packet.address) for packet in packets}) == 70_000
    assert len({packet.key for packet in packets}) == 7_000
    assert packets[0].key == packets[7_000].key == "app0.example.com"
    assert settings().common.max_rate > 0  # a limit is looked at, though never reached


def test_ratios_are_those_of_the_subscribed_one() -> None:
    row = next(row for row in workloads.WORKLOADS if row.name == "subscribed-tiny")
    outcome = Outcome(row)
    for number, (ours, theirs) in enumerate([(12.0, 10.0), (11.0, 10.0), (30.0, 20.0)]):
        for peer, price in (("uwgate-subscribed", ours), ("uwgate", theirs)):
            outcome.cells.append(Cell(peer, number, price, 1, 1, 1, 1, 1))
    (figure,) = subscriptions._ratios(outcome)
    assert figure.value == 1.2
    assert figure.note == "1.10 to 1.50, +2.0 us a request"


# --- command lines ------------------------------------------------------------------------------


def test_parts_by_pattern() -> None:
    assert subscriptions.arguments(["--only", "l*,rates"]).parts == ["rates", "lookup"]
    assert subscriptions.arguments([]).parts == list(subscriptions.PARTS)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "speed"], "no part is called 'speed'"),
        (["--rounds", "0"], "at least 1"),
        (["--nodes", "10"], "at least 1"),
        (["--joins", "99999999"], "at the most"),
    ],
)
def test_bad_words_of_the_subscription_benchmark(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        subscriptions.arguments(words)
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--seconds", "0"], "--seconds > 0"),
        (["--nodes", "2"], "--nodes >= 3"),
        (["--kill-every", "2"], "2 seconds more than --down"),
        (["--kept", "1.1"], "from 0 to 1"),
        (["--worker-every", "-1"], "not negative"),
    ],
)
def test_bad_words_of_the_rolling_test(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        rolling.arguments(words)
    assert complaint in capsys.readouterr().err


def test_two_nodes_are_enough_if_only_one_can_be_away() -> None:
    assert rolling.arguments(["--nodes", "2", "--reload-every", "0"]).nodes == 2


# --- the rolling test's client ------------------------------------------------------------------


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert quantile([7.0], 0.5) == 7.0
    assert quantile([], 0.5) == 0.0


def test_a_kill_is_felt_while_a_request_runs_and_a_moment_before_it() -> None:
    assert during([100.0], 99.0, 101.0)
    assert during([100.0], 100.4, 101.0)
    assert not during([100.0], 100.6, 101.0)
    assert not during([100.0], 98.0, 99.9)


def test_every_request_needs_an_outcome() -> None:
    score = Score(asked=3)
    score.done["short"] = 1
    score.fail("closed", "x")
    assert rolling.unaccounted(score) == ["3 requests were made, but the outcome of 2 is known"]
    score.cut = 1
    assert rolling.unaccounted(score) == []
    assert rolling.unaccounted(Score()) != []


def test_levels_are_medians_of_fifths() -> None:
    assert rolling.levels([1, 1, 5, 7, 0, 0, 0, 0, 20, 40]) == (6, 30)
    assert rolling.levels([3]) == (3, 3)
    assert rolling.levels([]) == (0.0, 0.0)


def test_ports_of_nodes_are_not_those_of_outgoing_connections() -> None:
    low, high = map(int, rolling._EPHEMERAL.read_text().split())
    assert not any(low <= rolling.steady_port() <= high for _ in range(20))


def test_the_application_waits() -> None:
    began = time.monotonic()
    assert list(application({"PATH_INFO": "/wait/30"}, lambda _, fields: None)) == [HELLO]
    assert time.monotonic() - began >= 0.03


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(*answers: bytes) -> Serve:
    """A server whose connections get these answers in turn, then an end; ``b""`` ends one."""
    left = iter(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                answer = next(left)
                writer.write(answer)
                if not answer.endswith(HELLO):
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    return serve


async def served() -> None:
    """Until the server is done with all connections."""
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


async def ask(serve: Serve) -> tuple[int, bytes]:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        loop, (host, port) = asyncio.get_running_loop(), server.sockets[0].getsockname()
        _, connection = await loop.create_connection(Connection, host, port)
        try:
            return await connection.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        finally:
            connection.close()
            await served()


@pytest.mark.parametrize(
    ("answer", "received"), [(b"", 0), (ANSWER[:20], 20), (ANSWER[:-1], len(ANSWER) - 1)]
)
def test_what_ends_early_is_told_with_what_was_there(answer: bytes, received: int) -> None:
    with pytest.raises(Ended) as caught:
        asyncio.run(ask(answering(answer)))
    assert len(caught.value.received) == received


def test_a_whole_response_and_one_with_more_behind_it() -> None:
    assert asyncio.run(ask(answering(ANSWER))) == (200, HELLO)
    with pytest.raises(Wrong):
        asyncio.run(ask(answering(ANSWER + HELLO)))




async def traffic(score: Score, *answers: bytes) -> None:
    """As many GETs as there are outcomes, one after the other, on connections of their own."""
    async with await asyncio.start_server(answering(*answers), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = Traffic(port, "key", score, rate=1000, kept=0, wait=0)
        client._kinds = client._kinds[:1]
        client._draw = lambda: client._kinds[0][1]  # type: ignore[method-assign]
        await client.run(0.001)
        await served()


def test_who_is_closed_without_a_kill_has_failed() -> None:
    score = Score()
    asyncio.run(traffic(score, b"", ANSWER))
    assert (score.asked, dict(score.failed), score.repeated) == (1, {"closed": 1}, 0)


def test_who_was_at_a_killed_worker_asks_once_more() -> None:
    score = Score(worker_kills=[time.monotonic()])
    asyncio.run(traffic(score, b"", ANSWER))
    assert (sum(score.done.values()), dict(score.failed), score.repeated) == (1, {}, 1)
    score = Score(worker_kills=[time.monotonic()])
    asyncio.run(traffic(score, b"", b"", ANSWER))
    assert (sum(score.done.values()), dict(score.failed), score.repeated) == (0, {"closed": 1}, 1)


def test_a_killed_node_is_no_excuse_for_an_unanswered_get() -> None:
    score = Score(node_kills=[time.monotonic()])
    asyncio.run(traffic(score, b"", ANSWER))
    assert (dict(score.failed), score.repeated) == ({"closed": 1}, 0)


def test_a_response_cut_by_a_kill_is_counted_apart_and_one_cut_otherwise_fails() -> None:
    score = Score(node_kills=[time.monotonic()])
    asyncio.run(traffic(score, ANSWER[:-1]))
    assert (score.cut, dict(score.failed), score.repeated) == (1, {}, 0)
    score = Score()
    asyncio.run(traffic(score, ANSWER[:-1]))
    assert (score.cut, dict(score.failed)) == (0, {"cut": 1})


def test_other_answers_than_the_right_one_fail() -> None:
    score = Score()
    asyncio.run(traffic(score, ANSWER.replace(b"200 OK", b"502 Bad")))
    assert dict(score.failed) == {"status 502": 1}
    score = Score()
    asyncio.run(traffic(score, ANSWER.replace(b": 13", b": 14").replace(HELLO, b"!" + HELLO)))
    assert dict(score.failed) == {"body": 1}


def test_numbers_are_short() -> None:
    assert [measured.number(value) for value in (0.0123, 12.345, 123.4, 1234567)] == [
        "0.0123", "12.3", "123", "1,234,567",
    ]  # fmt: skip
