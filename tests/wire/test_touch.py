"""Files that are touched, and what the instance does then."""

from __future__ import annotations

import os
from pathlib import Path

from support.nodes import RawHttpNode
from support.reloading import Reloadable, reloadable
from support.waiting import wait_until

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


def touched(path: Path) -> None:
    """As touch(1); another modification time, whatever the resolution of the file system. One
    change: the instance might look between two."""
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now + 1_000_000_000))


def test_touched(tmp_path: Path, http_node: RawHttpNode) -> None:
    paths = {name: tmp_path / name for name in ("reload", "workers-reload", "exec", "signal")}
    paths["reload"].touch()
    text = "\n".join(
        [
            f"http-to = {http_node.spec}",
            f"touch-reload = {paths['reload']}",
            f"touch-workers-reload = {paths['workers-reload']}",
            f"touch-exec = {paths['exec']} echo said; sleep 0.1; exit 3",
            f"touch-signal = {paths['signal']} 10",
        ]
    )
    with reloadable(tmp_path, text) as gateway:
        first = gateway.workers
        touched(paths["reload"])
        gateway.logged("] reloaded: ")
        assert f"touch-reload {paths['reload']}" in gateway.log
        second = successors(gateway, first)
        # Watched on by the next master; those that are missing appear.
        for name in ("workers-reload", "exec", "signal"):
            paths[name].touch()
        gateway.logged("stats: workers ")
        gateway.logged("\nsaid\n")
        gateway.logged("ended with exit code 3")
        successors(gateway, second)
        assert f"touch-signal {paths['signal']}: signal 10" in gateway.log
        assert f"touch-exec {paths['exec']}: the command (pid: " in gateway.log
        paths["exec"].unlink()
        gateway.logged("\nsaid\n", 2)
        # And nothing has counted twice.
        for text in ("] reloaded: ", "fresh workers", "stats: workers "):
            assert gateway.log.count(text) == 1
        with gateway.connect() as client:
            assert client.ask(GET).status == 200


def successors(gateway: Reloadable, before: list[int]) -> list[int]:
    """The workers, once those from before have gone."""
    wait_until(lambda: gateway.workers and not set(before) & set(gateway.workers), "new workers")
    return gateway.workers
