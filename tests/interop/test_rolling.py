"""Endurance, shortened: GETs go on while nodes are reloaded, and nodes and workers are killed.

The whole of it is ``python -m benchmarks.rolling``, which runs for three minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.uwgate import ROOT

_COMMAND = [sys.executable, "-m", "benchmarks.rolling", "--rate=100", "--down=0.5"]
_COMMAND += ["--kill-every=2.5", "--worker-every=3", "--reload-every=0.5"]


def roll(tmp_path: Path, *options: str) -> dict[str, Any]:
    """What the program found out; it has to be content."""
    report = tmp_path / "report.json"
    command = [*_COMMAND, f"--json={report}", *options]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found


@pytest.mark.parametrize("sockets", ["tcp", "unix"])
def test_no_get_fails_while_nodes_and_workers_come_and_go(tmp_path: Path, sockets: str) -> None:
    found = roll(tmp_path, "--seconds=10", f"--sockets={sockets}")
    assert found["failed"] == {}
    assert found["answered"] + found["cut"] == 1000
    # It was tried indeed.
    assert found["node_kills"] >= 3
    assert found["worker_kills"] >= 2
    assert found["reloads_finished"] >= 2
    assert found["counters"]["left"] >= found["reloads_finished"]
    # One after the other: only the last one may still be under way.
    assert found["counters"]["joined"] >= 3 + found["reloads"] - 1
