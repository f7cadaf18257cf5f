"""Federation: routers that tell each other, over real sockets; time is simulated."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from selectors import EVENT_READ
from tempfile import TemporaryDirectory

import pytest
from support.waiting import free_port, wait_until

from uwgate.config.settings import Endpoint, RouterSubscriptions, SubscriptionSettings
from uwgate.subscriptions.admission import Registry
from uwgate.subscriptions.outbox import SocketAddress
from uwgate.subscriptions.packet import UNSUBSCRIBE, Announcement, decode, encode
from uwgate.subscriptions.resubscribe import Resubscriber
from uwgate.subscriptions.server import Credentials, DatagramServer
from uwgate.subscriptions.table import Extra, Kind, Member, Table

NODE = "127.0.0.1:3031"
START = int(time.monotonic()) + 100


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def udp(host: str, port: int) -> Endpoint:
    return Endpoint("tcp", f"{host}:{port}", host=host, port=port)


class Upstream:
    """A socket that hears what is told."""

    def __init__(self, stack: ExitStack, host: str = "127.0.0.1", path: str = "") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(socket.AF_UNIX if path else family, socket.SOCK_DGRAM)
        stack.enter_context(self.socket)
        self.socket.bind(path or (host, 0))
        self.socket.settimeout(5)
        port = 0 if path else self.socket.getsockname()[1]
        self.endpoint = Endpoint("unix", path, path=path) if path else udp(host, port)

    def next(self) -> Announcement:
        """The next packet."""
        return decode(self.socket.recv(9000))

    def quiet(self) -> bool:
        """Whether nothing is there; what is sent on loopback is there at once."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(9000)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(5)
        return False


class Told:
    """A resubscriber, a table for its members, and its log."""

    def __init__(
        self,
        stack: ExitStack,
        *targets: Endpoint,
        name: str = "10.0.0.1:8080",
        bind: Endpoint | None = None,
        resolve: Callable[[str, int], SocketAddress | None] = lambda host, port: None,
        modifier1: int | None = None,
        weight: int = 1,
        notify: str = "",
        instance: str = "me",
    ) -> None:
        self.log: list[str] = []
        self.table = Table()
        self.made = Resubscriber(
            targets,
            bind=bind,
            address=lambda: name,
            weight=weight,
            modifier1=modifier1,
            notify=notify,
            instance=instance,
            log=self.log.append,
            resolve=resolve,
        )
        stack.callback(self.made.close)

    def member(
        self, key: str = "k", address: str = NODE, kind: Kind | None = None, **extra: str
    ) -> Member:
        found = self.table.find(key, address) or self.table.add(key, address)
        found.kind = kind or Kind()
        found.extra = Extra(**extra)  # type: ignore[arg-type]
        return found

    def forward(self, member: Member, now: float) -> bool:
        """True if a packet went out."""
        before = self.made.sent
        self.made.forward(member.slot.key, member, now)
        return self.made.sent > before


# --- one packet --------------------------------------------------------------------------------


def test_what_is_sent(stack: ExitStack) -> None:
    """The fields of uWSGI's forwarded packets: the node's key and modifiers, our own address."""
    up = Upstream(stack)
    told = Told(stack, up.endpoint, weight=4, notify="/run/n")
    member = told.member("k:80", kind=Kind(5, 6), notify="/run/node", vassal="v")
    assert told.forward(member, 0)
    expected = Announcement("k:80", "10.0.0.1:8080", modifier1=5, modifier2=6, weight=4)
    expected.notify, expected.via, expected.sni_ca = "/run/n", "me", "via:me"
    assert up.next() == expected
    told.made.withdraw("k:80")
    expected.command = UNSUBSCRIBE
    assert up.next() == expected
    assert told.made.keys == 0
    told.made.withdraw("k:80")
    assert up.quiet()


def test_modifier1_of_our_own_and_certificates(stack: ExitStack) -> None:
    up = Upstream(stack)
    told = Told(stack, up.endpoint, modifier1=9)
    files = {"sni_key": "/k", "sni_crt": "/c", "sni_ca": "/ca"}
    told.forward(told.member(kind=Kind(5, 6), **files), 0)
    got = up.next()
    assert (got.modifier1, got.modifier2) == (9, 6)
    assert (got.sni_key, got.sni_crt, got.sni_ca, got.via) == ("/k", "/c", "/ca", "me")


def test_to_all_targets_from_one_address(stack: ExitStack) -> None:
    with TemporaryDirectory() as directory:
        first, second = Upstream(stack), Upstream(stack, path=f"{directory}/u")
        port = free_port()
        told = Told(stack, first.endpoint, second.endpoint, bind=udp("127.0.0.1", port))
        told.forward(told.member(), 0)
        assert first.socket.recvfrom(9000)[1] == ("127.0.0.1", port)
        assert second.next().address == "10.0.0.1:8080"
    assert told.made.sent == 2


@pytest.mark.parametrize(
    ("host", "name", "expected"),
    [
        ("127.0.0.1", "0.0.0.0:80", "127.0.0.1:80"),
        ("127.0.0.1", ":80", "127.0.0.1:80"),
        ("::1", "[::]:80", "[::1]:80"),
        ("::1", "[::1]:80", "[::1]:80"),
        ("", "0.0.0.0:80", "127.0.0.1:80"),
        ("", "/run/gate", "/run/gate"),
    ],
)
def test_an_address_that_others_can_use(
    host: str, name: str, expected: str, stack: ExitStack
) -> None:
    path = stack.enter_context(TemporaryDirectory()) + "/u" if not host else ""
    up = Upstream(stack, host, path)
    told = Told(stack, up.endpoint, name=name)
    told.forward(told.member(), 0)
    assert up.next().address == expected


def test_without_an_address_nothing_is_said(stack: ExitStack) -> None:
    up = Upstream(stack)
    told = Told(stack, up.endpoint, name="")
    assert not told.forward(told.member(), 0)
    assert up.quiet()
    assert told.made.failed == 1


def test_an_address_that_cannot_be_said_is_told_once(stack: ExitStack) -> None:
    up = Upstream(stack)
    told = Told(stack, up.endpoint, name="not an address:0")
    for now in range(3):
        told.forward(told.member(), now * 10)
    (line,) = told.log
    assert line.startswith("resubscribing: bad-address")
    assert (told.made.sent, told.made.failed) == (0, 3)


def test_bad_arguments(stack: ExitStack) -> None:
    with pytest.raises(ValueError, match="'NO' is not an instance id"):
        Told(stack, instance="NO")
    for bind, reason in (
        (Endpoint("unix", "/x", path="/x"), "HOST:PORT"),
        (udp("no-such-host.invalid", 1), "cannot be resolved"),
        (udp("192.0.2.99", 1), "Cannot assign"),
    ):
        with pytest.raises(OSError, match=reason):
            Told(stack, bind=bind)


# --- how often ---------------------------------------------------------------------------------


def test_one_packet_in_three_seconds(stack: ExitStack) -> None:
    up = Upstream(stack)
    told = Told(stack, up.endpoint)
    first, second = told.member(), told.member(address="127.0.0.1:3032")
    times = [
        tenth / 10
        for tenth in range(100)
        if told.forward(first if tenth % 2 else second, tenth / 10)
    ]
    assert times == [0, 3, 6, 9]
    assert told.made.suppressed == 96
    # Another key has its own time.
    assert told.forward(told.member("other"), 9.1)


def test_news_go_out_sooner(stack: ExitStack) -> None:
    up = Upstream(stack)
    told = Told(stack, up.endpoint)
    assert told.forward(told.member(), 0)
    assert not told.forward(told.member(kind=Kind(5)), 0.5)
    assert told.forward(told.member(kind=Kind(5)), 1)
    assert not told.forward(told.member(kind=Kind(5)), 3.9)
    # Two nodes that differ: bounded all the same.
    count = sum(told.forward(told.member(kind=Kind(n % 2)), 10 + n / 100) for n in range(1000))
    assert count == 10


def test_withdrawn_and_back(stack: ExitStack) -> None:
    up = Upstream(stack)
    told = Told(stack, up.endpoint)
    told.forward(told.member(), 0)
    told.made.withdraw("k")
    assert told.forward(told.member(), 0.1)
    assert [up.next().command for _ in range(3)] == [0, UNSUBSCRIBE, 0]
    told.forward(told.member("other"), 0)
    told.made.withdraw_all()
    assert told.made.keys == 0
    assert [up.next().command for _ in range(3)] == [0, UNSUBSCRIBE, UNSUBSCRIBE]


def test_memory_is_bounded(stack: ExitStack) -> None:
    told = Told(stack, Upstream(stack).endpoint)
    for number in range(3000):
        told.forward(told.member(f"k{number}", sni_key=f"/{number}"), 0)
    assert len(told.made._saids) <= 1000
    for number in range(3000):
        told.made.withdraw(f"k{number}")
    assert told.made.keys == 0


# --- via ---------------------------------------------------------------------------------------


def test_the_way_is_written_down(stack: ExitStack) -> None:
    up = Upstream(stack)
    told = Told(stack, up.endpoint)
    told.forward(told.member(via="a,b", sni_ca="via:b,c"), 0)
    got = up.next()
    assert (got.via, got.sni_ca) == ("a,b,c,me", "via:a,b,c,me")
    told.made.withdraw("k")
    assert up.next().via == "me"
    long = ",".join(letter * 32 for letter in "abcdefgh")
    told.forward(told.member(via=long), 0)
    got = up.next()
    assert (got.via, got.sni_ca) == (long + ",me", "via:me")


@pytest.mark.parametrize("via", ["a,me", "me", ",".join("abcdefghijklmnop")])
def test_what_went_far_enough_stays(via: str, stack: ExitStack) -> None:
    told = Told(stack, Upstream(stack).endpoint)
    assert not told.forward(told.member(via=via), 0)
    assert told.made.suppressed == 1


def test_loops_are_seen(stack: ExitStack) -> None:
    is_loop = Told(stack).made.is_loop
    assert is_loop(Announcement("k", NODE, via="me"))
    assert is_loop(Announcement("k", NODE, via="a,me,b"))
    assert is_loop(Announcement("k", NODE, sni_ca="via:me"))
    assert is_loop(Announcement("k", NODE, via="a", sni_ca="via:b,me"))
    for via, sni_ca in (("", ""), ("mee", ""), ("", "/me"), ("", "via:a,mee"), ("", "via:")):
        assert not is_loop(Announcement("k", NODE, via=via, sni_ca=sni_ca))


def test_the_short_way_is_preferred(stack: ExitStack) -> None:
    told = Told(stack, Upstream(stack).endpoint)
    near, far = told.member(), told.member(address="127.0.0.1:9", via="a")
    assert told.forward(far, 0)
    assert told.forward(near, 1)
    assert not told.forward(far, 11)
    assert told.forward(near, 12)
    assert not told.forward(far, 23)
    assert told.forward(far, 24)
    # Another way of the same length is nothing new.
    assert not told.forward(told.member(address="127.0.0.1:10", via="b"), 26)


# --- targets -----------------------------------------------------------------------------------


def test_targets_are_not_told_of_themselves(stack: ExitStack) -> None:
    told = Told(
        stack,
        udp("192.0.2.77", 4040),
        udp("2001:db8::7", 4040),
        udp("router.example", 4040),
        udp("127.0.0.1", 4040),
        resolve=lambda host, port: (socket.AF_INET, ("192.0.2.78", port)),
    )
    for host in ("192.0.2.77", "[2001:db8::7]", "192.0.2.78", "router.example"):
        assert told.made.is_target(f"{host}:8080")
        assert not told.forward(told.member(address=f"{host}:8080"), 0)
    for address in (NODE, "192.0.2.7:80", "/192.0.2.77", "@192.0.2.77"):
        assert not told.made.is_target(address)
    assert told.made.suppressed == 4


def test_names_are_asked_for_until_they_are_known(stack: ExitStack) -> None:
    up, known, asked = Upstream(stack), [False], []

    def resolve(host: str, port: int) -> SocketAddress | None:
        asked.append(host)
        return (socket.AF_INET, ("127.0.0.1", port)) if known[0] else None

    told = Told(stack, udp("up.example", up.endpoint.port), resolve=resolve)
    assert not told.forward(told.member(), 0)
    told.made.tick(1)
    known[0] = True
    told.made.tick(2)
    assert told.forward(told.member(), 3)
    what = f"resubscribing to up.example:{up.endpoint.port}"
    assert told.log == [f"{what}: the host name is not known yet", f"{what}: works again"]
    assert asked == ["up.example"] * 3
    told.made.tick(3)
    told.made.tick(61)
    assert len(asked) == 3
    told.made.tick(62)
    assert len(asked) == 4


def test_names_are_asked_for_again_when_sending_fails(stack: ExitStack) -> None:
    up = Upstream(stack)
    # A broadcast address without leave to use it: refused at once.
    answers = ["255.255.255.255", "127.0.0.1"]
    told = Told(
        stack,
        udp("up.example", up.endpoint.port),
        resolve=lambda host, port: (socket.AF_INET, (answers[0], port)),
    )
    told.made.tick(0)
    assert not told.forward(told.member(), 0)
    assert told.made.failed == 1
    assert len(told.log) == 1
    answers.pop(0)
    told.made.tick(1)
    assert told.forward(told.member(), 3)
    assert up.next().key == "k"
    assert told.log[1].endswith(": works again")


def test_a_withdrawal_waits_for_room(stack: ExitStack) -> None:
    with TemporaryDirectory() as directory:
        up = Upstream(stack, path=f"{directory}/u")
        told = Told(stack, up.endpoint)
        told.forward(told.member(), 0)
        filler = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        filler.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filler.sendto(b"x" * 1000, f"{directory}/u")
        told.made.withdraw("k")
        told.forward(told.member("other"), 0)
        assert (told.made.sent, told.made.failed) == (1, 1)
        told.made.tick(1)
        assert told.made.sent == 1
        while not up.quiet():
            pass
        told.made.tick(2)
        assert up.next().command == UNSUBSCRIBE
        assert up.quiet()


# --- circles -----------------------------------------------------------------------------------


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
