"""``uwgate announce`` where something that it needs is there only later."""

from __future__ import annotations

from pathlib import Path

from support.announced import Listener, announcing
from support.waiting import wait_until


def test_keys_that_come_late_are_not_those_of_an_unwell_server(tmp_path: Path) -> None:
    well, keys, looks = tmp_path / "well", tmp_path / "keys", tmp_path / "looks"
    well.touch()
    with Listener() as server:
        words = ["--server", server.address, "--key", f"@{keys}", "--addr", "127.0.0.1:9"]
        words += ["--check-command", f"echo >> {looks}; test -e {well}", "--check-interval", "0.05"]
        words += ["--freq", "0.1"]
        with announcing(*words) as running:
            running.logged("well: announcing")
            running.logged(f"keys of {keys}: No such file")
            well.unlink()
            running.logged("not well yet: exit code 1")
            keys.write_text("late.test\n")
            before = looks.stat().st_size
            wait_until(lambda: looks.stat().st_size > before + 5, "more looks at it")
            assert not server.heard
            well.touch()
            server.wait(ups=2)
