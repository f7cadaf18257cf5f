"""What an operator sees of a running gateway: stats JSON, Prometheus text, probes, worker pids."""

from __future__ import annotations

import json
import socket
from typing import Any, cast

from support.waiting import wait_until

from interop.peers import curl


def stats(address: str) -> dict[str, Any]:
    """The document that a plain connection to ``http-stats`` delivers (nothing is sent)."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        plain.makefile("rb") as stream,
    ):
        return cast(dict[str, Any], json.loads(stream.read()))


def workers(address: str) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], stats(address)["workers"])


def probe(address: str, path: str) -> int:
    """Status of ``GET path`` on the stats address; 0 if nothing answers."""
    done = curl("-o", "/dev/null", "-w", "%{http_code}", f"http://{address}{path}")
    return int(done.stdout)


def wait_ready(address: str, count: int) -> list[int]:
    """The worker pids once ``count`` workers are up and ``/readyz`` says so."""
    wait_until(lambda: probe(address, "/readyz") == 200, "readyz")

    def up() -> list[int]:
        alive = [each for each in workers(address) if each["status"] in ("idle", "busy")]
        return [int(each["pid"]) for each in alive]

    wait_until(lambda: len(up()) == count, f"{count} workers")
    return up()
