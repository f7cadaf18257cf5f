"""Reload under load, shortened: nobody who is connected, or connects, notices.

The whole of it is ``python -m benchmarks.reload``, which runs for a minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.uwgate import ROOT

_COMMAND = [sys.executable, "-m", "benchmarks.reload", "--rate=250", "--kept=32", "--slow=0"]
_COMMAND += ["--fresh=8", "--mercy=2", "--upload-mb=2-3", "--upload-rate=2"]


def reload(tmp_path: Path, *options: str) -> dict[str, Any]:
    """What the program found out; it has to be content."""
    report = tmp_path / "report.json"
    command = [*_COMMAND, f"--json={report}", *options]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(report.read_text())["results"]
    return dict(found)


def test_nothing_is_lost(tmp_path: Path) -> None:
    found = reload(tmp_path, "--seconds=6")
    assert (found["failed"], found["resets"], found["growth"]) == (0, 0, [])
    # It was tried indeed.
    assert found["facts"]["reloaded"] >= 3
    assert len(found["first"]) >= 3
    assert found["polite"] > 10
    assert found["partings"]["merciful"] + found["partings"].get("interrupted", 0) >= 1
    for kind in ("kept", "new", "upload", "websocket", "marker"):
        assert found["delays"][kind]["count"] >= 2, kind
