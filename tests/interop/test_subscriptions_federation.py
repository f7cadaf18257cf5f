"""Routers announce to each other what they serve: uwgate and real uWSGI, in lines and circles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.waiting import wait_until

from interop.peers import Peer
from interop.subscribing import (
    KEY,
    Relay,
    Router,
    Traffic,
    address,
    fast_router,
    node,
    one_request,
    router,
    stop,
    subscribe,
    uwsgi_router,
)


def status(target: str, key: str = KEY) -> int:
    """Of an answer of uWSGI's HTTP router, which hangs up if there is no node: 0."""
    try:
        return one_request(target, key=key).status
    except (OSError, AssertionError):
        return 0


def cpu_seconds(pid: int) -> float:
    """What a process and its children that are alive have used so far."""
    total = 0.0
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    for each in pids:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


# --- lines --------------------------------------------------------------------------------------


def test_uwsgi_fastrouter_announces_to_us(tmp_path: Path) -> None:
    """client → our HTTP router → uWSGI's fastrouter → node, which has announced itself there."""
    fast, there = address(), address()
    with router() as gate, ExitStack() as stack:
        words = ("--fastrouter", fast, "--fastrouter-subscription-server", there)
        words += ("--fastrouter-resubscribe", gate.server)
        stack.enter_context(uwsgi_router(tmp_path, *words, listens=fast))
        instance = stack.enter_context(
            node(tmp_path, "--subscribe-to", f"{there}:{KEY}", "--subscribe-freq", "1")
        )
        gate.joined(fast)
        gate.served()
        assert gate.name() == "node"
        assert set(gate.nodes()) == {fast}
        stop(instance)
        gate.left(fast)
        gate.unserved()


def test_uwsgi_http_router_announces_to_us(tmp_path: Path) -> None:
    """What it announces is its HTTP address, and it does not say that one speaks HTTP there."""
    http, there = address(), address()
    with router() as gate, ExitStack() as stack:
        words = ("--http", http, "--http-subscription-server", there)
        words += ("--http-resubscribe", gate.server)
        stack.enter_context(uwsgi_router(tmp_path, *words, listens=http))
        instance = stack.enter_context(node(tmp_path, "--subscribe-to", f"{there}:{KEY}"))
        gate.joined(http)
        assert gate.nodes()[http]["proto"] == "uwsgi"
        stop(instance)
        gate.left(http)
        gate.unserved()


def test_our_fastrouter_announces_to_uwsgi(tmp_path: Path) -> None:
    """client → uWSGI's HTTP router → our fastrouter → nodes that have announced themselves here."""
    http, there = address(), address()
    with ExitStack() as stack:
        words = ("--http", http, "--http-subscription-server", there)
        stack.enter_context(uwsgi_router(tmp_path, *words, listens=http))
        gate = stack.enter_context(fast_router("--fastrouter-resubscribe", there))
        one = stack.enter_context(node(tmp_path, *subscribe(gate, freq=1), name="one"))
        two = stack.enter_context(node(tmp_path, *subscribe(gate, freq=1), name="two"))
        gate.joined(one.address)
        gate.joined(two.address)
        wait_until(lambda: status(http) == 200, "uWSGI serves the key through us")

        def names() -> set[bytes]:
            return {one_request(http).body.partition(b",")[0] for _ in range(10)}

        # A worker hears of a node behind the log.
        wait_until(lambda: len(names()) == 2, "both serve")
        # One of two leaves: uWSGI itself would withdraw the key here.
        stop(one)
        gate.left(one.address)
        wait_until(lambda: gate.names(10) == ["two"] * 10, "the worker knows")
        assert [status(http) for _ in range(10)] == [200] * 10
        stop(two)
        gate.left(two.address)
        wait_until(lambda: status(http) == 0, "uWSGI has no node any more")


def test_we_end_and_uwsgi_knows(tmp_path: Path) -> None:
    """A router that stops withdraws what it has announced."""
    http, there = address(), address()
    with ExitStack() as stack:
        words = ("--http", http, "--http-subscription-server", there)
        stack.enter_context(uwsgi_router(tmp_path, *words, listens=http))
        with fast_router("--fastrouter-resubscribe", there) as gate:
            stack.enter_context(node(tmp_path, *subscribe(gate, freq=1)))
            wait_until(lambda: status(http) == 200, "uWSGI serves the key through us")
        wait_until(lambda: status(http) == 0, "uWSGI has no node any more")


@pytest.mark.parametrize("below", ["fastrouter", "http"])
def test_ours_announces_to_ours(below: str, tmp_path: Path) -> None:
    make = fast_router if below == "fastrouter" else router
    with (
        router() as gate,
        make(f"--{below}-resubscribe", gate.server) as lower,
        node(tmp_path, *subscribe(lower, freq=1)) as instance,
    ):
        lower.joined(instance.address)
        gate.joined(lower.address)
        gate.served()
        assert gate.name() == "node"
        found = gate.nodes()[lower.address]
        assert found["proto"] == ("uwsgi" if below == "fastrouter" else "http")
        stop(instance)
        lower.left(instance.address)
        gate.left(lower.address)
        gate.unserved()


def test_source_address_of_a_fastrouter(tmp_path: Path) -> None:
    source = address()
    words = ("--fastrouter-resubscribe-bind", source)
    with (
        router() as gate,
        Relay(gate.server) as relay,
        fast_router("--fastrouter-resubscribe", relay.address, *words) as lower,
        node(tmp_path, *subscribe(lower)),
    ):
        relay.wait(1)
        assert relay.senders[0] == source


# --- circles ------------------------------------------------------------------------------------


class Circle:
    """Two routers that announce to each other, with somebody who counts between them.

    ``forth``: from ``first`` to ``second``. ``pids``: of the routers.
    """

    def __init__(self, forth: Relay, back: Relay, pids: list[int]) -> None:
        self.forth = forth
        self.back = back
        self.pids = pids

    def settles(self, announced: Callable[[], int]) -> None:
        """While a node announces itself four times more, hardly anything else is sent.

        ``announced``: how often it has, so far. uWSGI's routers never stop here (uwsgi#871).
        """
        start, cpu = announced(), sum(map(cpu_seconds, self.pids))
        packets = len(self.forth.seen) + len(self.back.seen)
        wait_until(lambda: announced() >= start + 4, "four announcements", 20)
        packets = len(self.forth.seen) + len(self.back.seen) - packets
        assert packets <= 15, packets
        assert sum(map(cpu_seconds, self.pids)) - cpu < 1.0


@contextmanager
def relays() -> Iterator[tuple[str, str, Relay, Relay]]:
    """Subscription servers of two routers, and the relays on the way to the second, the first."""
    first, second = address(), address()
    with Relay(second) as forth, Relay(first) as back:
        yield first, second, forth, back


@pytest.mark.parametrize("kind", ["http", "fastrouter"])
def test_circle_of_ours(kind: str, tmp_path: Path) -> None:
    make = fast_router if kind == "fastrouter" else router
    with relays() as (first, second, forth, back), ExitStack() as stack:
        option = f"--{kind}-resubscribe"
        one = stack.enter_context(make(option, forth.address, server=first))
        two = stack.enter_context(make(option, back.address, server=second))
        with Relay(first) as counted:
            words = ("--subscribe-to", f"{counted.address}:{KEY}", "--subscribe-freq", "1")
            instance = stack.enter_context(node(tmp_path, *words))
            one.joined(instance.address)
            two.joined(one.address)
            pids = [each.gate.process.pid for each in (one, two)]
            Circle(forth, back, pids).settles(lambda: len(counted.seen))
            # Neither of them sends a request back to where it came from.
            assert set(one.nodes()) == {instance.address}
            assert set(two.nodes()) == {one.address}
            assert two.names(5) == one.names(5) == ["node"] * 5
            stop(instance)
            one.left(instance.address)
            two.left(one.address)
            one.unserved()
            two.unserved()
            settled_without(one, two)
            assert "] refused: " not in one.log + two.log  # a circle is nothing to complain about


def settled_without(*routers: Router) -> None:
    """The key is nowhere, and no echo brings it back."""
    for each in routers:
        assert each.nodes() == {}
        assert each.ask().status == 503


@contextmanager
def with_uwsgi(where: Path) -> Iterator[tuple[Router, str, Peer, Circle]]:
    """Our fastrouter and uWSGI's, each announcing to the other; uWSGI's HTTP router before its."""
    with relays() as (first, second, forth, back), ExitStack() as stack:
        fast, http = address(), address()
        gate = stack.enter_context(
            fast_router("--fastrouter-resubscribe", forth.address, server=first)
        )
        words = ["--fastrouter", fast, "--fastrouter-subscription-server", second]
        words += ["--fastrouter-resubscribe", back.address, "--http", http, "--http-to", fast]
        theirs = stack.enter_context(uwsgi_router(where, *words, listens=http))
        circle = Circle(forth, back, [gate.gate.process.pid, theirs.process.pid])
        yield gate, http, theirs, circle


def test_circle_with_uwsgi_node_here(tmp_path: Path) -> None:
    with with_uwsgi(tmp_path) as (gate, http, _, circle), Relay(gate.server) as counted:
        words = ("--subscribe-to", f"{counted.address}:{KEY}", "--subscribe-freq", "1")
        with node(tmp_path, *words) as instance:
            gate.joined(instance.address)
            wait_until(lambda: status(http) == 200, "uWSGI serves the key through us")
            circle.settles(lambda: len(counted.seen))
            assert set(gate.nodes()) == {instance.address}
            with Traffic(gate) as traffic:
                traffic.more()
            stop(instance)
            gate.left(instance.address)
            gate.unserved()
            wait_until(lambda: status(http) in (0, 502), "it is gone there, too")
            settled_without(gate)


def test_circle_with_uwsgi_node_there(tmp_path: Path) -> None:
    with with_uwsgi(tmp_path) as (gate, http, _, circle):
        second = circle.forth.target
        with Relay(second) as counted:
            words = ("--subscribe-to", f"{counted.address}:{KEY}", "--subscribe-freq", "1")
            with node(tmp_path, *words) as instance:
                gate.served()
                assert gate.name() == "node"
                circle.settles(lambda: len(counted.seen))
                assert instance.address not in gate.nodes()
                stop(instance)
                wait_until(lambda: status(http) in (0, 502), "it is gone there")
                gate.unserved()
                settled_without(gate)
