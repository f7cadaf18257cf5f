"""Snapshots and facts as the workers make them, for the tests of this directory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from uwgate.config.settings import SubscriptionSettings
from uwgate.observe.sums import Snapshot
from uwgate.router.facts import RequestFacts
from uwgate.router.tally import Tally
from uwgate.subscriptions.table import Member, Table


def node(name: str = "127.0.0.1:3031", **values: Any) -> dict[str, Any]:
    """One entry of a gateway's ``nodes``."""
    return {
        "name": name,
        "protocol": "uwsgi",
        "hits": 0,
        "grace": 0,
        "active": 0,
        "requests": 0,
        "failures": 0,
        "tx": 0,
        "rx": 0,
        "idle": 0,
        "weight": 1,
        "modifier1": 0,
        "modifier2": 0,
        "fallback": 0,
        **values,
    }


def worker(
    identity: int = 1,
    started: float = 1000.0,
    *,
    requests: int = 0,
    connections: int = 0,
    nodes: list[dict[str, Any]] | None = None,
    status: str = "idle",
    **tally_values: int,
) -> Snapshot:
    """One worker's snapshot, built from a real Tally."""
    tally = Tally()
    tally.requests = requests
    tally.connections = connections
    tally.responses[200] = requests
    for name, value in tally_values.items():
        if name == "time_micros":
            tally.seconds = value / 1e6
        else:
            setattr(tally, name, value)
    return {
        "id": identity,
        "pid": int(started) + identity,
        "started": started,
        "draining": False,
        "rss": 20_000_000,
        "vsz": 300_000_000,
        "status": status,
        "respawn_count": 1,
        "gateways": {
            "http": {
                "tally": tally.snapshot(),
                "listeners": ["127.0.0.1:8080"],
                "nodes": [node()] if nodes is None else nodes,
            }
        },
    }


class View:
    """A hand-made registry."""

    def __init__(self, name: str = "http", **options: Any) -> None:
        self.name = name
        self.settings = SubscriptionSettings(**options)
        self.table = Table()
        self.counters = {"received": 0}
        self.rejected: dict[str, int] = {}
        self.servers = ["127.0.0.1:4040"]

    def last_check(self, member: Member) -> int:
        return 1_700_000_000 + member.seen

    def add(self, key: str, address: str, **values: Any) -> Member:
        member = self.table.add(key, address)
        for name, value in values.items():
            setattr(member, name, value)
        return member


def full(view: View, nodes: int) -> None:
    """Add so many keys with a node each."""
    for number in range(nodes):
        view.add(f"host{number:06}.example.com", f"10.0.{number >> 8}.{number & 255}:80")


FACTS = RequestFacts(
    method=b"GET",
    target=b"/a%20b?x=1",
    protocol=b"HTTP/1.1",
    host=b"example.com",
    client=b"192.0.2.1",
    client_port=5555,
    fields=b"Host: example.com\r\nUSER-agent: curl/8 \t\r\nReferer:\r\nContent-Length: 12\r\n"
    b"X-Forwarded-For: 203.0.113.9, 10.0.0.1\r\nX-Empty:\r\nContent-Type: text/plain",
    status=200,
    started=1_700_000_000.25,
    connect_micros=150,
    first_byte_micros=2_345,
    total_micros=1_234_567,
    request_body=12,
    response_head=180,
    response_body=1000,
    response_fields=4,
    node="127.0.0.1:3031",
    attempts=2,
    failure=None,
    keepalive=True,
    variables=14,
    packet=266,
    modifier1=5,
    modifier2=6,
)


def facts(**values: Any) -> RequestFacts:
    """``FACTS`` with some fields replaced."""
    return replace(FACTS, **values)
