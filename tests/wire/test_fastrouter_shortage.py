"""The fastrouter when the machine runs out of something: an answer, and no harm to others."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from support.fast import ask, fastrouter, post, request
from support.nodes import RawUwsgiNode
from support.uwgate import Gateway


def _workers(gateway: Gateway) -> list[int]:
    pid = gateway.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("size", [200_005, 201_000, 300_000])
def test_a_full_disk_is_a_503(tmp_path: Path, size: int) -> None:
    options = ["--fastrouter-post-buffering", "1000"]
    options += ["--fastrouter-post-buffering-dir", str(tmp_path), "--fastrouter-timeout", "3"]
    with (
        RawUwsgiNode("unix") as node,
        fastrouter("--fastrouter-to", node.spec, *options) as gateway,
    ):
        assert ask(gateway, request()).status == 200
        (worker,) = _workers(gateway)
        before = resource.prlimit(worker, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        assert ask(gateway, post(b"x" * size)).status == 503
        assert ask(gateway, post(b"x" * 5000)).status == 200
        resource.prlimit(worker, resource.RLIMIT_FSIZE, before)
        assert ask(gateway, post(b"x" * size)).status == 200
        assert ask(gateway, request()).status == 200
        assert len(node.seen) == 4
        assert gateway.log.count("cannot store a request body") == 1
