"""Run wrk and take its figures exactly, not as it rounds them for people."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.procs import on_core

# wrk calls this once at the end; the line that starts with "@" is ours.
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '@{"requests":%.0f,"bytes":%.0f,"micros":%.0f,"p50":%.0f,"p99":%.0f,' ..
    '"connect":%.0f,"read":%.0f,"write":%.0f,"timeout":%.0f,"status":%.0f}\\n',
    summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
"""

_LINE = re.compile(r"^@(\{.*\})$", re.MULTILINE)
_ERROR_WORDS = {
    "connect": "failed connects",
    "read": "read errors",
    "write": "write errors",
    "timeout": "time-outs",
    "status": "responses of status 400 or above",
}


class WrkError(Exception):
    """wrk failed, or said something that is not a report."""


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What one run of wrk counted.

    ``size`` is bytes received (heads included), ``seconds`` its wall clock, ``p50`` and ``p99``
    latencies in microseconds. ``errors`` has an entry for each kind of error that happened.
    """

    requests: int
    size: int
    seconds: float
    p50: float
    p99: float
    errors: tuple[str, ...]


def parse(output: str) -> WrkResult:
    """Take the report line out of wrk's output; WrkError if it is not there or not whole."""
    found = _LINE.search(output)
    if found is None:
        raise WrkError(f"no report from wrk: {' | '.join(output.split())[:300]!r}")
    try:
        numbers = json.loads(found[1])
        errors = [
            f"{int(numbers[key])} {words}" for key, words in _ERROR_WORDS.items() if numbers[key]
        ]
        return WrkResult(
            requests=int(numbers["requests"]),
            size=int(numbers["bytes"]),
            seconds=numbers["micros"] / 1e6,
            p50=float(numbers["p50"]),
            p99=float(numbers["p99"]),
            errors=tuple(errors),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WrkError(f"bad report from wrk: {error!r} in {found[1][:300]!r}") from error


def faults(result: WrkResult, body_size: int) -> list[str]:
    """Why the run may not be counted; an empty list if it may.

    ``body_size``: bytes that every response body must have. A proxy that answers quickly with
    something shorter must not win.
    """
    found = list(result.errors)
    if result.requests == 0:
        found.append("no request was completed")
    elif result.size < result.requests * body_size:
        mean = result.size / result.requests
        found.append(f"responses too short: {mean:.0f} bytes for a body of {body_size}")
    return found


def run(
    command: Sequence[str],
    script: Path,
    port: int,
    connections: int,
    seconds: int,
    core: int,
    *,
    tls: bool = False,
) -> WrkResult:
    """Load 127.0.0.1:``port`` for ``seconds`` with one thread on ``core``; WrkError."""
    argv = [
        *command,
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "20s",
        "-s",
        str(script),
        f"{'https' if tls else 'http'}://127.0.0.1:{port}/",
    ]
    try:
        with on_core(core):
            done = subprocess.run(
                argv, capture_output=True, text=True, check=False, timeout=seconds + 60
            )
    except subprocess.TimeoutExpired as error:
        raise WrkError(f"wrk did not end within {seconds + 60} s") from error
    if done.returncode:
        raise WrkError(f"wrk failed with {done.returncode}: {done.stderr.strip()[:300]}")
    return parse(done.stdout)
