"""The rules of admission without signatures: who joins, stays, leaves; limits; what is said of it.

The numbers of sections are those of the specification of uWSGI's protocol; where we differ, the
test says what uWSGI does.
"""

from __future__ import annotations

import gc
import inspect
import re
import time
from typing import Any

import pytest
from packet_tools import captured, datagram, plain
from registry_tools import KEY, NODE, World, contents, other_command, packet

from uwgate.config.settings import RouterSubscriptions, SubscriptionSettings
from uwgate.subscriptions import admission, identity
from uwgate.subscriptions.admission import Registry
from uwgate.subscriptions.identity import Refused, with_host
from uwgate.subscriptions.packet import Announcement
from uwgate.subscriptions.table import NOTHING, Extra, Kind, Member

OTHER = "10.0.0.2:3031"


@pytest.fixture
def world() -> World:
    return World()


# --- joining, refreshing, leaving (§4) ---------------------------------------------------------


def test_the_first_packet_makes_a_pool_and_a_node(world: World) -> None:
    assert world.send(modifier1=5, weight=4, cores=8, load=3) == ""
    member = world.member()
    assert (member.kind, member.weight) == (Kind(5), 4)
    assert (member.cores, member.load, member.sender) == (8, 3, "10.0.0.7")
    assert abs(member.joined - time.time()) < 3
    assert abs(world.registry.last_check(member) - time.time()) < 3
    assert world.published == [["+", KEY, NODE, 5, 0, 4, 0, "uwsgi", "", member.joined]]
    assert world.log == [
        f"[subscriptions http] new pool: {KEY}",
        f"[subscriptions http] {KEY} => new node: {NODE} (weight: 4, backup: 0, from 10.0.0.7)",
    ]
    assert world.counters["joined"] == 1


def test_nodes_keep_the_order_of_their_first_packets(world: World) -> None:
    for address in (OTHER, NODE, OTHER):
        world.send(address=address)
    assert [member.address for member in world.registry.table.slots[KEY]] == [OTHER, NODE]


@pytest.mark.parametrize("weight", ["0", None])
def test_weight_0_is_1(world: World, weight: str | None) -> None:
    assert world.receive(plain(weight=weight)) == ""
    assert world.member(KEY, "127.0.0.1:3031").weight == 1


@pytest.mark.parametrize(
    "name",
    ["subscribe_basic", "subscribe_cores_weight", "subscribe2_weight_sni", "subscribe_notify"],
)
def test_a_captured_packet_joins_and_leaves(world: World, name: str) -> None:
    assert world.receive(captured(name), "127.0.0.1") == ""
    assert world.registry.table.members == 1
    assert world.receive(other_command(captured(name)), "127.0.0.1") == ""
    assert world.registry.table.members == 0


def test_the_same_bytes_again_refresh(world: World) -> None:
    data = packet()
    world.receive(data)
    world.pass_time(5)
    before = world.member().seen
    world.receive(data)
    assert world.member().seen == before + 5
    assert len(world.published) == 1
    assert world.counters["received"] == 2
    assert world.counters["refreshed"] == 1


def test_a_refresh_changes_what_it_says(world: World) -> None:
    """uWSGI keeps modifiers and notify of the first packet until the node is removed."""
    world.send(weight=1, cores=1)
    world.send(weight=1, cores=2, load=7)
    assert len(world.published) == 1  # nothing that workers need
    world.send(weight=3, modifier1=9, protocol="http", backup=2)
    member = world.member()
    assert (member.weight, member.kind) == (3, Kind(9, 0, 2, "http"))
    assert world.published[1][3:9] == [9, 0, 3, 2, "http", ""]
    assert world.counters["updated"] == 1
    assert world.counters["joined"] == 1


def test_workers_are_told_of_other_files_of_a_certificate(world: World) -> None:
    old: dict[str, Any] = {"sni_crt": "/old.pem", "sni_key": "/k.pem"}
    for fields in (old, {**old, "sni_crt": "/new.pem"}, {**old, "sni_ca": "!/ca.pem"}):
        before = len(world.published)
        world.receive(packet(**fields))
        world.receive(packet(**fields, load=7))
        assert len(world.published) == before + 1
        member = world.worker.find(KEY, NODE)
        assert member is not None
        assert member.extra == Extra(**fields)


def test_what_was_said_before_can_be_said_again(world: World) -> None:
    """Packets that were seen are recognized by their bytes: only the last one is."""
    first, second = packet(weight=1), packet(weight=2)
    for data, weight in ((first, 1), (second, 2), (first, 1), (first, 1), (second, 2)):
        world.receive(data)
        assert world.member().weight == weight


def test_the_first_of_a_key_decides_the_algorithm(world: World) -> None:
    """§13, 2.1: from the packet that creates the slot only; unknown ones mean the default."""
    world.send(algo="lrc")
    world.send(address=OTHER, algo="p2c")
    assert world.registry.table.slots[KEY].algo == "lrc"
    assert [change[8] for change in world.published] == ["lrc", "lrc"]
    world.send("second.example", algo="fastest")
    world.send("second.example", OTHER, algo="lrc")
    world.send("third.example")
    world.send("third.example", OTHER, algo="lrc")
    assert world.registry.table.slots["second.example"].algo == ""
    assert world.registry.table.slots["third.example"].algo == ""
    assert contents(world.worker) == contents(world.registry.table)


def test_keys_are_compared_in_lower_case(world: World) -> None:
    """uWSGI compares them byte by byte; hosts have no case. Paths have."""
    world.send("Example.COM")
    world.send("example.com", OTHER)
    world.send("Example.com/App")
    assert {key: slot.count for key, slot in world.registry.table.slots.items()} == {
        "example.com": 2,
        "example.com/App": 1,
    }


@pytest.mark.parametrize("how", [{"command": 1}, {"clear": True, "vassal": "v"}])
def test_a_goodbye_removes_at_once(world: World, how: dict[str, Any]) -> None:
    world.send()
    world.send(address=OTHER)
    assert world.send(**how) == ""
    assert world.find() is None
    assert world.member(address=OTHER)
    assert world.published[-1] == ["-", KEY, NODE]
    assert world.counters["left"] == 1
    assert world.logged(f"{KEY} => node left: {NODE} (it said goodbye)")
    world.send(address=OTHER, **how)
    assert not world.registry.table.slots


def test_a_goodbye_of_nobody_does_nothing(world: World) -> None:
    assert world.send(command=1) == ""
    assert (world.published, world.log) == ([], [])
    world.send()
    assert world.send(address=OTHER, command=1) == ""
    assert world.member()


def test_who_left_may_come_back(world: World) -> None:
    data = packet()
    world.receive(data)
    world.receive(other_command(data))
    world.receive(data)
    assert world.member().weight == 1
    assert [change[0] for change in world.published] == ["+", "-", "+"]


def test_optional_items_are_kept(world: World) -> None:
    fields = {"notify": "/run/n", "vassal": "v", "sni_key": "/k", "sni_crt": "/c", "sni_ca": "!/a"}
    world.send(**fields, via="one,two")
    extra = world.member().extra
    assert {name: getattr(extra, name) for name in fields} == fields
    assert extra.via == "one,two"
    world.send()
    assert world.member().extra is NOTHING


# --- addresses without a host ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "sender", "wanted"),
    [
        (":3031", "10.0.0.7", "10.0.0.7:3031"),
        ("0.0.0.0:3031", "10.0.0.7", "10.0.0.7:3031"),
        ("[::]:3031", "10.0.0.7", "10.0.0.7:3031"),
        (":3031", "2001:db8::7", "[2001:db8::7]:3031"),
        ("0.0.0.0:3031", "::1", "[::1]:3031"),
        (":3031", "unix", "127.0.0.1:3031"),
        (":3031", "uid 1000", "127.0.0.1:3031"),
        ("10.0.0.9:3031", "10.0.0.7", "10.0.0.9:3031"),
        ("node.example:3031", "10.0.0.7", "node.example:3031"),
        ("/run/app.sock", "10.0.0.7", "/run/app.sock"),
        ("@app", "unix", "@app"),
    ],
)
def test_the_sender_is_the_host_where_none_is_named(
    address: str, sender: str, wanted: str
) -> None:
    """uWSGI takes ``:3031`` for a port of the router's own machine."""
    world = World()
    assert with_host(address, sender) == wanted
    world.receive(packet(address=address), sender)
    assert world.member(address=wanted).sender == sender
    world.receive(packet(address=address, command=1), sender)
    assert not world.registry.table.slots


def test_two_machines_that_send_the_same_bytes_are_two_nodes(world: World) -> None:
    data = packet(address=":3031")
    for sender in ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"):
        assert world.receive(data, sender) == ""
    assert [m.address for m in world.registry.table.slots[KEY]] == ["10.0.0.1:3031", OTHER]
    world.receive(other_command(data), "10.0.0.1")
    assert [m.address for m in world.registry.table.slots[KEY]] == [OTHER]


def test_bytes_that_say_less_do_not_hide_a_change(world: World) -> None:
    whole = packet(address="10.0.0.7:3031", weight=1)
    world.receive(whole)
    world.receive(packet(address=":3031", weight=5))
    world.receive(whole)
    assert world.member(address="10.0.0.7:3031").weight == 1


# --- what is refused ----------------------------------------------------------------------------

BAD = {
    "too-long": b"\xe0" * 9000,
    "not-a-subscription": b"\0" + packet()[1:],
    "malformed": packet()[:-1],
    "bad-key": datagram(("key", ""), ("address", NODE)),
    "no-address": datagram(("key", KEY)),
    "bad-address": datagram(("key", KEY), ("address", "10.0.0.1:0")),
    "bad-number": datagram(("key", KEY), ("address", NODE), ("modifier1", "300")),
}


@pytest.mark.parametrize("word", BAD)
def test_garbage_is_counted_and_forgotten(world: World, word: str) -> None:
    assert world.receive(BAD[word]) == word
    assert world.registry.rejected == {word: 1}
    assert not world.registry.table.slots
    assert world.published == []
    assert re.fullmatch(r"\[subscriptions http\] refused: .* \(from 10\.0\.0\.7\)", world.log[0])


def test_every_word_is_documented() -> None:
    words = set(re.findall(r"``([a-z-]+)``", Refused.__doc__ or "")) - {"word"}
    source = inspect.getsource(admission) + inspect.getsource(identity)
    assert words == set(re.findall(r'Refused\(\s*"([a-z-]+)"', source))
    assert len(words) == 11


def test_this_router_is_not_its_own_node(world: World) -> None:
    world.registry.own = frozenset((NODE,))
    assert world.send() == "self"
    assert world.send(address=OTHER) == ""
    world.registry.own = frozenset(("10.0.0.7:3031",))
    assert world.send(address=":3031") == "self"


# --- limits -------------------------------------------------------------------------------------


def test_limit_of_keys() -> None:
    world = World(max_keys=2)
    assert [world.send(key) for key in "abc"] == ["", "", "too-many-keys"]
    assert world.send("a", OTHER) == ""  # an old key
    assert world.send("b", command=1) == ""
    assert world.send("c") == ""
    assert set(world.registry.table.slots) == {"a", "c"}


def test_limit_of_nodes_of_a_key() -> None:
    world = World(max_nodes=2)
    nodes = [f"10.0.0.{number}:1" for number in range(3)]
    assert [world.send("a", node) for node in nodes] == ["", "", "too-many-nodes"]
    assert world.send("a", nodes[0], weight=9) == ""  # a refresh
    assert world.send("b", nodes[2]) == ""
    world.send("a", nodes[0], command=1)
    assert world.send("a", nodes[2]) == ""


def test_limit_of_nodes_of_a_sender() -> None:
    """One tenant cannot fill the table."""
    world = World(max_sender_nodes=2)
    nodes = [f"10.0.0.{number}:1" for number in range(3)]
    assert [world.send("a", node) for node in nodes] == ["", "", "too-many-from-sender"]
    assert world.receive(packet("a", nodes[2]), "10.9.9.9") == ""
    # Whoever refreshes a node does not take it over.
    assert world.receive(packet("a", nodes[0]), "10.9.9.9") == ""
    assert world.send("b", nodes[0]) == "too-many-from-sender"
    world.receive(packet("a", nodes[0], command=1), "10.9.9.9")
    assert world.send("b", nodes[0]) == ""
    world.pass_time(18)
    assert world.registry.table.members == 0
    assert [world.send("a", node) for node in nodes] == ["", "", "too-many-from-sender"]


def test_0_is_no_limit_of_a_sender() -> None:
    world = World(max_sender_nodes=0)
    assert {world.send(address=f"10.0.{n % 9}.{n % 200}:1") for n in range(500)} == {""}


# --- marks and revivals (§6.2) ------------------------------------------------------------------


def test_a_mark_and_the_next_announcement(world: World) -> None:
    """uWSGI removes a node that cannot be reached; here it stays, for the case that all are."""
    data = packet()
    world.receive(data)
    world.registry.mark(KEY, NODE, "connection refused")
    world.registry.mark(KEY, NODE, "connection refused")
    member = world.member()
    assert (member.marked, member.failures) == (True, 2)
    assert world.published[1:] == [["x", KEY, NODE]]
    assert world.logged(f"{KEY} => marking {NODE} as failed (connection refused)")
    world.receive(data)
    assert not member.marked
    assert world.published[2:] == [["o", KEY, NODE]]
    assert world.logged(f"{KEY} => {NODE} is back (it announced itself)")
    assert (world.counters["marked"], world.counters["revived"]) == (1, 1)
    world.receive(data)
    assert len(world.published) == 3


def test_a_mark_goes_with_an_update(world: World) -> None:
    world.send()
    world.registry.mark(KEY, NODE, "")
    world.send(weight=2)
    assert not world.member().marked
    assert contents(world.worker) == contents(world.registry.table)


def test_a_marked_node_was_reached_after_all(world: World) -> None:
    world.send()
    world.registry.reached(KEY, NODE)
    assert world.counters["revived"] == 0
    world.registry.mark(KEY, NODE, "")
    world.registry.reached(KEY, NODE)
    assert world.published[1:] == [["x", KEY, NODE], ["o", KEY, NODE]]
    assert world.logged("is back (it was reached)")


def test_marks_of_nobody_do_nothing(world: World) -> None:
    world.registry.mark(KEY, NODE, "")
    world.registry.reached(KEY, NODE)
    assert (world.published, world.log) == ([], [])


def test_a_marked_node_expires(world: World) -> None:
    world.send()
    world.registry.mark(KEY, NODE, "")
    world.pass_time(18)
    assert world.find() is None


# --- acknowledgements (§8) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "told"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("unix", True),
        ("uid 1000", True),
        ("10.0.0.7", False),
        ("2001:db8::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
    ],
)
def test_only_new_nodes_of_this_machine_are_told(sender: str, told: bool) -> None:
    """uWSGI writes to whatever path anybody names."""
    world = World()
    data = packet(notify="/run/notify")
    for _ in range(3):
        world.receive(data, sender)
    world.receive(other_command(data), sender)
    assert world.told == ([("/run/notify", KEY, NODE)] if told else [])
    assert world.counters["acknowledged"] == int(told)


# --- the log ------------------------------------------------------------------------------------


def test_log_lines_are_limited() -> None:
    world = World()
    for number in range(100):
        world.send(f"k{number}")
        world.receive(b"garbage")
    assert len(world.log) == 55
    world.pass_time(1)
    assert world.log[-2:] == [
        "[subscriptions http] (150 more changes)",
        "[subscriptions http] (95 more refused packets)",
    ]
    world.receive(b"garbage")
    assert len(world.log) == 58


# --- federation ---------------------------------------------------------------------------------


class Noting:
    """A forwarder; ``me`` in ``via`` is a loop."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.sent = 0
        self.sent = 0

    def is_loop(self, announcement: Announcement) -> bool:
        return "me" in announcement.via.split(",")

    def forward(self, key: str, member: Member, now: float) -> None:
        self.said.append((key, member.address))

    def withdraw(self, key: str) -> None:
        self.said.append((key, ""))


def test_what_is_passed_on() -> None:
    """uWSGI passes on what it refuses, too."""
    noting = Noting()
    world = World(noting, max_nodes=2)
    data = packet()
    for _ in range(2):
        world.receive(data)
    world.send(address=OTHER)
    assert world.send(address="10.0.0.3:1") == "too-many-nodes"
    world.receive(other_command(data))
    assert noting.said == [(KEY, NODE), (KEY, NODE), (KEY, OTHER)]
    world.send("unknown", command=1)
    world.send(address=OTHER, command=1)
    assert noting.said[3:] == [(KEY, "")]
    assert world.send(via="a,me") == "loop"
    assert world.send(via="a,me", command=1) == "loop"
    assert world.send(via="a,b") == ""


# --- memory -------------------------------------------------------------------------------------


def test_nothing_is_left_of_who_left(world: World) -> None:
    for number in range(50):
        world.send(f"k{number}", f"10.0.0.{number}:1", weight=number + 1)
        world.send(f"k{number}", f"10.0.0.{number}:1", command=1)
    registry = world.registry
    assert registry.table.members == 0
    assert not registry.table.slots
    assert not registry._digests
    assert not registry._by_sender
    assert len(registry.departed) == 0


def test_60000_joins_and_leaves_do_not_add_up() -> None:
    """Neither of the same node nor of others, and while no time passes at all."""
    published: list[object] = []
    settings = RouterSubscriptions(SubscriptionSettings(), ())
    registry = Registry("http", settings, publish=published.append, log=lambda line: None)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(30_000):
        address = f"10.{number % 7}.0.{number % 250}:1"
        data = packet("k", address)
        registry.receive(data, "10.0.0.7", None)
        registry.receive(other_command(data), "10.0.0.7", None)
        published.clear()
    for number in range(30_000):
        key = f"k{number}"
        data = packet(key, NODE)
        registry.receive(data, "10.0.0.7", None)
        registry.receive(other_command(data), "10.0.0.7", None)
        published.clear()
    assert registry.counters["joined"] == 60_000
    gc.collect()
    # Those of the last seconds are still on the wheel, but not more and more of them.
    assert len(gc.get_objects()) - before < 45_000
