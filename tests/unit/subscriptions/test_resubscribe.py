"""Federation: what is told to other routers, and how often. Time is simulated."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from tempfile import TemporaryDirectory

import pytest
from support.waiting import free_port

from uwgate.config.settings import Endpoint
from uwgate.subscriptions.outbox import SocketAddress
from uwgate.subscriptions.packet import UNSUBSCRIBE, Announcement, decode
from uwgate.subscriptions.resubscribe import Resubscriber
from uwgate.subscriptions.table import Extra, Kind, Member, Table

NODE = "127.0.0.1:3031"


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
