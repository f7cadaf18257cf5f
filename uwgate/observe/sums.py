"""Sums over worker snapshots: of an instance, of each gateway, of each node.

Counters and gauges are told apart: a counter (requests, bytes) outlives its worker, a gauge
(connections open now) does not.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

Snapshot = dict[str, Any]
"""What a worker sends to the master, with ``status`` and ``respawn_count`` added there:
``{"id": int, "pid": int, "started": epoch seconds, "draining": bool, "rss": bytes, "vsz": bytes,
"status": "idle"|"busy"|"starting"|"dead", "respawn_count": int, "gateways": {"http":
{"tally": Tally.snapshot(), "listeners": [str], "nodes": [{"name": str, …}], "cheap": 0|1,
"subscriptions": {"slots": {key: {"hits": int, "nodes": {address: {…}}}}}, "tls":
{"contexts": int, "certificates": [{"source": str, "name": str, "not_after": epoch seconds}],
"store": {…: int}}, "tls_handshaking": int, "static": Site.snapshot()}}, "sync": {cache:
{"sent": int, "failed": int}}}``; what is behind ``nodes`` only where there is something to say.
A worker that never answered has no ``gateways`` (or no such key)."""

GAUGES = frozenset(
    (
        *("connections", "active_requests", "http2_connections", "http2_streams"),
        *("spdy_connections", "spdy_streams"),
    )
)
STORE_GAUGES = frozenset({"connected"})
FILE_GAUGES = frozenset({"entries", "cached_bytes", "descriptors"})
_MOST_NAMES = 1_000
CERTIFICATES = 1_000
"""Most certificates that are shown one by one."""


class NodeKey(NamedTuple):
    """What tells one static node from another within an instance."""

    gateway: str
    name: str
    protocol: str
    modifier1: int
    modifier2: int
    fallback: int


@dataclass(slots=True)
class NodeTotals:
    """One node over all workers. ``tx``: bytes read from it, ``rx``: bytes written to it.

    ``hits``: connects that succeeded and reuses, ``requests``: those that failed, too. ``grace``:
    epoch seconds of the latest failure that a live worker still honours, 0 = alive in all of them.
    ``down``: how many live workers skip the node now. ``credits``: uWSGI's ``wrr``.
    """

    hits: int = 0
    requests: int = 0
    failures: int = 0
    tx: int = 0
    rx: int = 0
    errors: dict[str, int] | None = None  # by word; None while there was none
    active: int = 0
    idle: int = 0
    weight: int = 1
    backup: int = 0
    grace: int = 0
    down: int = 0
    credits: int = 0
    last_requests: int = 0
    waited: int = 0  # sum of latency times requests, microseconds
    measured: int = 0  # those requests

    @property
    def latency(self) -> float:
        """Microseconds: the workers' moving averages, each with the weight of its requests."""
        return self.waited / self.measured if self.measured else 0.0

    def add(self, node: Snapshot, gauges: bool) -> None:
        """Add ``Node.snapshot()`` of one worker; without ``gauges`` what outlives the worker."""
        get = node.get
        requests, failures = get("requests", 0), get("failures", 0)
        self.hits += get("hits", requests - failures)
        self.requests += requests
        self.failures += failures
        self.tx += get("tx", 0)
        self.rx += get("rx", 0)
        errors = get("errors")
        if errors:
            self._add_errors(errors)
        if not gauges:
            return
        self.active += get("active", 0)
        self.idle += get("idle", 0)
        self.credits += get("credits", 0)
        self.last_requests += get("last_requests", 0)
        latency = get("latency", 0)
        if latency:
            weight = requests or 1
            self.waited += latency * weight
            self.measured += weight
        grace = get("grace", 0)
        if grace:
            self.grace = max(self.grace, grace)
            self.down += 1

    def carry(self, old: NodeTotals) -> None:
        """Add the counters of ``old``."""
        self.hits += old.hits
        self.requests += old.requests
        self.failures += old.failures
        self.tx += old.tx
        self.rx += old.rx
        if old.errors:
            self._add_errors(old.errors)

    def join(self, other: NodeTotals) -> None:
        """Add another node, gauges included."""
        self.carry(other)
        self.active += other.active
        self.idle += other.idle
        self.waited += other.waited
        self.measured += other.measured

    def counters(self) -> Snapshot:
        """What outlives a worker, as `add` takes it."""
        found: Snapshot = {
            "hits": self.hits,
            "requests": self.requests,
            "failures": self.failures,
            "tx": self.tx,
            "rx": self.rx,
        }
        return found | ({"errors": self.errors} if self.errors else {})

    def _add_errors(self, errors: dict[str, int]) -> None:
        if self.errors is None:
            self.errors = {}
        add_each(self.errors, errors)


@dataclass(slots=True)
class Tallies:
    """``Tally.snapshot`` summed. ``counters``: whatever integers it has, gauges included.

    ``handshakes``: completed ones by TLS version, ``resumed``: those of them that went on with an
    earlier session. ``resets``: streams of HTTP/2 that ended early (``side:CODE``), ``goaways``:
    connections that the gateway ended (``CODE``).
    """

    counters: dict[str, int] = field(default_factory=dict)
    responses: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    handshakes: dict[str, int] = field(default_factory=dict)
    resumed: dict[str, int] = field(default_factory=dict)
    resets: dict[str, int] = field(default_factory=dict)
    goaways: dict[str, int] = field(default_factory=dict)
    spdy_resets: dict[str, int] = field(default_factory=dict)
    spdy_goaways: dict[str, int] = field(default_factory=dict)

    def add_tally(self, tally: Snapshot, *, gauges: bool) -> None:
        """Add one gateway of one worker."""
        add_each(
            self.counters,
            {
                key: value
                for key, value in tally.items()
                if isinstance(value, int) and (gauges or key not in GAUGES)
            },
        )
        add_each(self.responses, mapping(tally, "responses"))
        add_each(self.errors, mapping(tally, "errors"))
        add_each(self.handshakes, mapping(tally, "tls_handshakes"))
        add_each(self.resumed, mapping(tally, "tls_resumed"))
        add_each(self.resets, mapping(tally, "http2_resets"))
        add_each(self.goaways, mapping(tally, "http2_goaways"))
        add_each(self.spdy_resets, mapping(tally, "spdy_resets"))
        add_each(self.spdy_goaways, mapping(tally, "spdy_goaways"))

    def tally(self) -> Snapshot:
        """What outlives a worker, as `add_tally` takes it."""
        return {name: value for name, value in self.counters.items() if name not in GAUGES} | {
            "responses": self.responses,
            "errors": self.errors,
            "tls_handshakes": self.handshakes,
            "tls_resumed": self.resumed,
            "http2_resets": self.resets,
            "http2_goaways": self.goaways,
            "spdy_resets": self.spdy_resets,
            "spdy_goaways": self.spdy_goaways,
        }

    def carry_tallies(self, other: Tallies) -> None:
        """Add all of ``other``, which was summed without gauges."""
        add_each(self.counters, other.counters)
        add_each(self.responses, other.responses)
        add_each(self.errors, other.errors)
        add_each(self.handshakes, other.handshakes)
        add_each(self.resumed, other.resumed)
        add_each(self.resets, other.resets)
        add_each(self.goaways, other.goaways)
        add_each(self.spdy_resets, other.spdy_resets)
        add_each(self.spdy_goaways, other.spdy_goaways)


class CertificateKey(NamedTuple):
    """``source``: where its files are named (``listener``, ``sni``, ``sni-regexp``, …)."""

    source: str
    name: str


@dataclass(slots=True)
class TlsTotals:
    """TLS of all workers. ``handshaking``: connections not yet that far, ``contexts``: those loaded
    by all workers together, ``certificates``: epoch seconds of their end, the earliest that a
    worker has, ``store``: counters of the distributed store, and how many workers reach it."""

    handshaking: int = 0
    contexts: int = 0
    certificates: dict[CertificateKey, int] = field(default_factory=dict)
    store: dict[str, int] = field(default_factory=dict)

    def add(self, part: Snapshot, *, gauges: bool) -> None:
        """Add the ``tls`` of one gateway of one worker."""
        store = mapping(part, "store")
        counting = {key: gauges or key not in STORE_GAUGES for key in store}
        add_each(self.store, {key: store[key] if counting[key] else 0 for key in store})
        if not gauges:
            return
        self.contexts += number(part, "contexts")
        for each in part.get("certificates", ()):
            certificate = CertificateKey(str(each.get("source", "")), str(each.get("name", "")))
            end = number(each, "not_after")
            self.certificates[certificate] = min(end, self.certificates.get(certificate, end))

    def expiring(self) -> list[tuple[CertificateKey, int]]:
        """The certificates by name; of more than CERTIFICATES those that end first."""
        found = self.certificates.items()
        return sorted(heapq.nsmallest(CERTIFICATES, found, key=itemgetter(1)))


@dataclass(slots=True)
class Sums(Tallies):
    """Sums of an instance, or of one worker.

    ``gateways``: the same numbers of each gateway. Subscribed nodes are counted elsewhere
    (``observe.subscribed``). ``tls``: None where no worker terminates TLS. ``static``: None
    where no worker serves files, else ``Site.snapshot`` summed. ``sync``: changes of caches that
    workers sent to other machines, by cache: ``sent``, ``failed``.
    """

    gateways: dict[str, Tallies] = field(default_factory=dict)
    nodes: dict[NodeKey, NodeTotals] = field(default_factory=dict)
    tls: TlsTotals | None = None
    static: dict[str, int] | None = None
    sync: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, snapshot: Snapshot, *, gauges: bool) -> None:
        """Add one worker's snapshot; without ``gauges`` only what outlives the worker."""
        for name, gateway in gateways(snapshot):
            tally = mapping(gateway, "tally")
            self.add_tally(tally, gauges=gauges)
            self.gateways.setdefault(name, Tallies()).add_tally(tally, gauges=gauges)
            for node in gateway.get("nodes", ()):
                self._add_node(name, node, gauges)
            if "tls" in gateway:
                tls = self._tls()
                tls.add(mapping(gateway, "tls"), gauges=gauges)
                if gauges:
                    tls.handshaking += number(gateway, "tls_handshaking")
            if "static" in gateway:
                self._add_static(mapping(gateway, "static"), gauges)
        self._add_sync(mapping(snapshot, "sync"))

    def as_snapshot(self) -> Snapshot:
        """What outlives a worker, as `add` takes it: for the next master."""
        found: Snapshot = {name: {"tally": each.tally()} for name, each in self.gateways.items()}
        for key, totals in self.nodes.items():
            gateway = found.setdefault(key.gateway, {})
            node = key._asdict() | {"weight": totals.weight, "backup": totals.backup}
            gateway.setdefault("nodes", []).append(node | totals.counters())
        if self.tls is not None:
            found.setdefault("http", {})["tls"] = {"store": self.tls.store}
        if self.static is not None:
            found.setdefault("http", {})["static"] = self.static
        return {"gateways": found, "sync": self.sync}

    def _tls(self) -> TlsTotals:
        if self.tls is None:
            self.tls = TlsTotals()
        return self.tls

    def _add_static(self, static: Snapshot, gauges: bool) -> None:
        if self.static is None:
            self.static = {}
        counting = {key: gauges or key not in FILE_GAUGES for key in static}
        add_each(self.static, {key: number(static, key) if counting[key] else 0 for key in static})

    def _add_sync(self, sync: dict[str, dict[str, int]]) -> None:
        for cache, counts in sync.items():
            if cache in self.sync or len(self.sync) < _MOST_NAMES:
                add_each(self.sync.setdefault(cache, {}), counts)

    def _add_node(self, gateway: str, node: Snapshot, gauges: bool) -> None:
        key = NodeKey(
            gateway,
            str(node.get("name", "")),
            str(node.get("protocol", "")),
            number(node, "modifier1"),
            number(node, "modifier2"),
            number(node, "fallback"),
        )
        totals = self.nodes.get(key)
        if totals is None:
            totals = self.nodes[key] = NodeTotals()
        totals.weight = number(node, "weight") or 1
        totals.backup = number(node, "backup")
        totals.add({k: v for k, v in node.items() if isinstance(v, int | dict)}, gauges)

    def carry(self, other: Sums) -> None:
        """Add the counters that ``other`` carried over; static nodes only where listed here."""
        self.carry_tallies(other)
        for name, tallies in other.gateways.items():
            self.gateways.setdefault(name, Tallies()).carry_tallies(tallies)
        if other.tls is not None:
            add_each(self._tls().store, other.tls.store)
        if other.static is not None:
            self._add_static(other.static, gauges=True)  # it has none of workers that are gone
        self._add_sync(other.sync)
        for key, totals in self.nodes.items():
            old = other.nodes.get(key)
            if old is not None:
                totals.carry(old)


def number(values: Snapshot, key: str) -> int:
    """``values[key]`` as an integer; 0 if it is missing or not a number."""
    value = values.get(key, 0)
    return int(value) if isinstance(value, (int, float)) else 0


def mapping(values: Snapshot, key: str) -> Snapshot:
    """``values[key]`` if that is an object, else an empty one."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def gateways(snapshot: Snapshot) -> Iterator[tuple[str, Snapshot]]:
    """Name and part of each gateway in a worker's snapshot."""
    for name, gateway in mapping(snapshot, "gateways").items():
        if isinstance(gateway, dict):
            yield name, gateway


def add_each(into: dict[str, int], values: dict[str, int]) -> None:
    """Add numbers to those of the same name, of which there are at most 1,000: one worker after the
    other may have its own."""
    for key, value in values.items():
        if key in into or len(into) < _MOST_NAMES:
            into[key] = into.get(key, 0) + value
