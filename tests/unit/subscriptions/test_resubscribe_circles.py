"""Routers that tell each other in a circle, over real sockets; time is simulated.

uwsgi#871: two of uWSGI's that did so kept a core busy each.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ

import pytest
from support.waiting import free_port, wait_until

from uwgate.config.settings import Endpoint, RouterSubscriptions, SubscriptionSettings
from uwgate.subscriptions.admission import Registry
from uwgate.subscriptions.packet import UNSUBSCRIBE, Announcement, decode, encode
from uwgate.subscriptions.resubscribe import Resubscriber
from uwgate.subscriptions.server import Credentials, DatagramServer

NODE = "127.0.0.1:3031"
START = int(time.monotonic()) + 100


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def udp(host: str, port: int) -> Endpoint:
    return Endpoint("tcp", f"{host}:{port}", host=host, port=port)


class Router:
    """A whole router: its socket, its table, and those that it tells."""

    def __init__(self, stack: ExitStack, instance: str) -> None:
        self.instance = instance
        self.server = DatagramServer(
            udp("127.0.0.1", 0), self.receive, credentials=False, max_rate=0
        )
        stack.callback(self.server.close)
        self._stack = stack
        self.endpoint = udp("127.0.0.1", int(self.server.name.rpartition(":")[2]))
        self.address = f"127.0.0.1:{20000 + int.from_bytes(instance.encode(), 'big')}"

    def tell(self, *others: Router | Relay | Endpoint) -> None:
        self.forwarder = Resubscriber(
            [other if isinstance(other, Endpoint) else other.endpoint for other in others],
            bind=None,
            address=lambda: self.address,
            weight=1,
            modifier1=None,
            notify="",
            instance=self.instance,
            log=lambda text: None,
        )
        self._stack.callback(self.forwarder.close)
        settings = RouterSubscriptions(SubscriptionSettings(), ())
        self.registry = Registry(
            "http",
            settings,
            publish=lambda change: None,
            log=lambda text: None,
            forwarder=self.forwarder,
        )
        self.registry.tick(START)

    def receive(self, datagram: bytes, sender: str, who: Credentials | None) -> None:
        self.registry.receive(datagram, sender, who)

    def nodes(self, key: str = "k") -> set[str]:
        slot = self.registry.table.slots.get(key)
        return {member.address for member in slot} if slot is not None else set()

    def tick(self, now: float) -> None:
        self.registry.tick(now)
        self.forwarder.tick(now)


class Relay:
    """What uWSGI does: sends on whatever comes, without the items it does not know.

    ``copies``: ``sni_ca`` stays, as in uWSGI.
    """

    def __init__(self, stack: ExitStack, *, copies: bool) -> None:
        self.server = DatagramServer(
            udp("127.0.0.1", 0), self.receive, credentials=False, max_rate=0
        )
        stack.callback(self.server.close)
        self._copies = copies
        self._socket = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.endpoint = udp("127.0.0.1", int(self.server.name.rpartition(":")[2]))
        self.target = self.endpoint

    def receive(self, datagram: bytes, sender: str, who: Credentials | None) -> None:
        found = decode(datagram)
        found.address, found.via = "127.0.0.1:19999", ""
        if not self._copies:
            found.sni_ca = ""
        self._socket.sendto(encode(found), (self.target.host, self.target.port))

    def tick(self, now: float) -> None:
        """It has no clock."""


def announce(router: Router, command: int = 0, address: str = NODE, key: str = "k") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
        datagram = encode(Announcement(key, address, command))
        node.sendto(datagram, (router.endpoint.host, router.endpoint.port))


def settle(peers: list[Router | Relay]) -> int:
    """Let every datagram arrive and what it causes; how many there were. They must come to an end.

    What is sent on loopback is in the receiver's queue before the call returns.
    """
    total, more = 0, True
    while more:
        more = False
        for peer in peers:
            before = peer.server.received
            peer.server.on_readable(EVENT_READ)
            total += peer.server.received - before
            more = more or peer.server.received > before
        assert total < 1000, "they do not stop"
    return total


def live(peers: list[Router | Relay], seconds: int, step: Callable[[int], None]) -> list[int]:
    """Datagrams of each second of a simulated time."""
    counts = []
    for second in range(seconds):
        step(second)
        for peer in peers:
            peer.tick(START + second)
        counts.append(settle(peers))
    return counts


def test_a_chain(stack: ExitStack) -> None:
    near, middle, far = (Router(stack, name) for name in "abc")
    near.tell(middle)
    middle.tell(far)
    far.tell()
    peers: list[Router | Relay] = [near, middle, far]
    announce(near)
    announce(near, address="127.0.0.1:3032")
    assert settle(peers) == 4
    assert (middle.nodes(), far.nodes()) == ({near.address}, {middle.address})
    announce(near, UNSUBSCRIBE)
    settle(peers)
    assert far.nodes() == {middle.address}  # there is another node
    announce(near, UNSUBSCRIBE, address="127.0.0.1:3032")
    settle(peers)
    assert (near.nodes(), middle.nodes(), far.nodes()) == (set(), set(), set())
    assert far.forwarder.keys == near.forwarder.keys == 0


@pytest.mark.parametrize("size", [2, 3])
def test_a_circle_settles(size: int, stack: ExitStack) -> None:
    """uwsgi#871: two routers that tell each other used to keep a core busy each."""
    routers = [Router(stack, name) for name in "abc"[:size]]
    for router, following in zip(routers, routers[1:] + routers[:1], strict=True):
        router.tell(following)
    peers: list[Router | Relay] = [*routers]

    def step(second: int) -> None:
        if second % 10 == 0 and second < 100:
            announce(routers[0])

    counts = live(peers, 140, step)
    assert max(counts) == size + 1
    # Each announcement goes round once, and each router says goodbye once.
    assert sum(counts) == 10 * (size + 1) + size
    # And the key ends with its node: nobody keeps it alive by saying it to the others.
    assert [router.nodes() for router in routers] == [set()] * size
    assert routers[0].registry.rejected == {"loop": 10}


def test_nodes_on_both_sides_of_a_circle(stack: ExitStack) -> None:
    first, second = Router(stack, "a"), Router(stack, "b")
    first.tell(second)
    second.tell(first)

    def step(now: int) -> None:
        if now % 10 == 0 and now < 60:
            announce(first, address="127.0.0.1:3031")
        if now % 10 == 5 and now < 60:
            announce(second, address="127.0.0.1:3032")

    counts = live([first, second], 60, step)
    assert max(counts) <= 3
    assert first.nodes() == {"127.0.0.1:3031", second.address}
    assert second.nodes() == {"127.0.0.1:3032", first.address}
    live([first, second], 120, lambda now: None)
    assert first.nodes() == second.nodes() == set()


@pytest.mark.parametrize("copies", [True, False])
def test_a_circle_with_one_that_forgets(copies: bool, stack: ExitStack) -> None:
    router, relay = Router(stack, "a"), Relay(stack, copies=copies)
    router.tell(relay)
    relay.target = router.endpoint

    def step(second: int) -> None:
        if second % 10 == 0 and second < 60:
            announce(router)

    counts = live([router, relay], 100, step)
    if copies:
        assert max(counts) == 3
        assert router.nodes() == set()
        assert router.registry.rejected == {"loop": 7}  # one is the goodbye
    else:
        # Not recognised, and so a node like others; but it does not spin.
        assert max(counts) <= 4
        assert sum(counts) / len(counts) <= 2


@pytest.mark.skipif(
    not Path(sys.executable).with_name("uwsgi").exists(), reason="there is no uWSGI"
)
def test_a_circle_with_uwsgi(stack: ExitStack, tmp_path: Path) -> None:
    """Real time, real packets: it settles, and the key ends with its node."""
    router, port, http = Router(stack, "a"), free_port(), free_port()
    router.tell(udp("127.0.0.1", port))
    command = [str(Path(sys.executable).with_name("uwsgi")), "--master"]
    command += ["--http", f"127.0.0.1:{http}"]
    command += ["--http-subscription-server", f"127.0.0.1:{port}"]
    command += ["--http-resubscribe", router.endpoint.text]
    log = stack.enter_context((tmp_path / "log").open("w+"))
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    wait_until(lambda: f"127.0.0.1:{port}" in (tmp_path / "log").read_text(), "uWSGI")

    def heard() -> bool:
        # Its socket is bound before that line, but its router process may be slow to start. Time
        # stands still for the registry: only a key that is new to the forwarder is sent at once.
        router.forwarder.withdraw("k")
        announce(router)
        settle([router])
        return router.registry.rejected.get("loop", 0) > 0

    wait_until(heard, "an echo")
    before = router.server.received
    limit = time.monotonic() + 1
    while (rest := limit - time.monotonic()) > 0:
        if select.select([router.server], [], [], rest)[0]:
            settle([router])
    # What is left of the attempts above, and no more.
    assert router.server.received - before < 20
    assert router.nodes() == {NODE}
    assert set(router.registry.rejected) == {"loop"}
