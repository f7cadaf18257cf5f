"""Replays: no signed packet that was accepted counts again, as itself or as the other command.

uWSGI compares with the time of the first announcement only, not at all for goodbyes, and forgets
it with the node: each of these tests would pass a replay there, unless it says otherwise.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from packet_tools import FIXTURES, captured
from registry_tools import KEY, NODE, KeyPair, World, other_command, packet, signed_world

from uwgate.subscriptions.freshness import Departed
from uwgate.subscriptions.packet import Announcement, encode

PAIR = KeyPair()
OTHER = "10.0.0.2:3031"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return signed_world(tmp_path, PAIR, KEY, sign_tolerance=100.0)


@pytest.fixture
def now() -> int:
    return int(time.time())


def signed(unix: int, command: int = 0, address: str = NODE, **fields: Any) -> bytes:
    return packet(address=address, signer=PAIR, unix=unix, command=command, **fields)


def bye(unix: int, address: str = NODE) -> bytes:
    """As uWSGI says goodbye at ``unix``: with a second more."""
    return signed(unix + 1, 1, address)


# --- refreshes ----------------------------------------------------------------------------------


def test_time_has_to_go_on(world: World, now: int) -> None:
    assert world.receive(signed(now - 20)) == ""
    assert world.receive(signed(now - 10)) == ""
    assert world.receive(signed(now - 10)) == "repeated"
    assert world.receive(signed(now - 20)) == "stale"
    assert world.receive(signed(now - 15)) == "stale"  # uWSGI: newer than the first, and so good
    assert world.receive(signed(now - 9)) == ""
    assert world.member().unix == now - 9
    assert world.registry.rejected == {"repeated": 1, "stale": 2}


def test_a_refused_packet_changes_nothing(world: World, now: int) -> None:
    world.receive(signed(now - 10))
    seen = world.member().seen
    world.pass_time(5)
    assert world.receive(signed(now - 10, weight=9)) == "repeated"
    assert world.receive(signed(now - 11, weight=9)) == "stale"
    assert (world.member().weight, world.member().seen) == (1, seen)


def test_two_packets_of_one_second_are_nothing_to_talk_about(world: World, now: int) -> None:
    """As at every start; uWSGI refuses the second one, too."""
    world.receive(signed(now))
    lines = len(world.log)
    assert world.receive(signed(now, load=1)) == "repeated"
    assert len(world.log) == lines


def test_nodes_of_a_key_have_their_own_times(world: World, now: int) -> None:
    assert world.receive(signed(now)) == ""
    assert world.receive(signed(now - 50, address=OTHER)) == ""


@pytest.mark.parametrize(("age", "refused"), [(90, ""), (102, "stale"), (-90, ""), (-120, "stale")])
def test_tolerance_in_both_directions(world: World, now: int, age: int, refused: str) -> None:
    """uWSGI takes any time in the future."""
    assert world.receive(signed(now - age)) == refused
    assert (world.find() is None) is bool(refused)


def test_no_time_at_all_is_stale(world: World) -> None:
    unsigned_time = encode(Announcement(KEY, NODE), sign=PAIR.sign)
    assert world.receive(unsigned_time) == "stale"


# --- the other command --------------------------------------------------------------------------


def test_an_announcement_is_no_goodbye(world: World, now: int) -> None:
    announcement = signed(now - 5)
    world.receive(announcement)
    assert world.receive(other_command(announcement)) == "repeated"
    world.receive(signed(now - 3))
    assert world.receive(other_command(announcement)) == "stale"
    assert world.find() is not None


def test_a_goodbye_is_no_announcement(world: World, now: int) -> None:
    world.receive(signed(now - 5))
    goodbye = bye(now - 2)
    assert world.receive(goodbye) == ""
    assert world.find() is None
    assert world.receive(other_command(goodbye)) == "stale"
    assert world.receive(goodbye) == "repeated"
    assert world.find() is None


def test_goodbyes_have_to_be_fresh(world: World, now: int) -> None:
    world.receive(signed(now - 5))
    old = bye(now - 30)
    assert world.receive(old) == "stale"
    assert world.find() is not None


def test_a_goodbye_does_not_count_twice(world: World, now: int) -> None:
    world.receive(signed(now - 9))
    goodbye = bye(now - 5)
    world.receive(goodbye)
    world.receive(signed(now - 3))
    assert world.receive(goodbye) == "stale"
    assert world.find() is not None


# --- after leaving ------------------------------------------------------------------------------


def test_who_left_comes_back_with_newer_packets_only(world: World, now: int) -> None:
    first = signed(now - 20)
    world.receive(first)
    world.receive(signed(now - 10))
    world.receive(bye(now - 5))
    for old in (first, signed(now - 10), signed(now - 7)):
        assert world.receive(old) == "stale"
    assert world.receive(signed(now - 2)) == ""


def test_a_restart_within_a_second(world: World, now: int) -> None:
    """A goodbye has its second plus one; whoever is back in the same second is older than that."""
    before = signed(now - 9)
    world.receive(before)
    goodbye = bye(now - 5)
    world.receive(goodbye)
    assert world.receive(signed(now - 5, cores=2)) == ""
    assert world.receive(other_command(goodbye)) == "repeated"
    assert world.receive(goodbye) == "repeated"
    assert world.receive(before) == "stale"
    assert world.receive(signed(now - 4)) == "repeated"  # the goodbye's time; the next one counts
    assert world.receive(signed(now - 3)) == ""


def test_started_and_stopped_within_a_second(world: World, now: int) -> None:
    announcement = signed(now - 5)
    world.receive(announcement)
    world.receive(bye(now - 5))
    assert world.receive(announcement) == "stale"
    assert world.receive(signed(now - 3)) == ""


def test_after_expiry(world: World, now: int) -> None:
    data = signed(now - 5)
    world.receive(data)
    world.pass_time(18)
    assert world.find() is None
    assert world.receive(data) == "stale"
    assert world.receive(signed(now - 6)) == "stale"
    assert world.receive(signed(now - 4)) == ""


def test_a_goodbye_that_comes_after_expiry(world: World, now: int) -> None:
    """It withdraws nobody, and must not bring the node back as an announcement either."""
    world.receive(signed(now - 20))
    world.pass_time(18)
    goodbye = bye(now - 5)
    assert world.receive(goodbye) == ""
    assert world.receive(other_command(goodbye)) == "stale"
    assert world.receive(goodbye) == "repeated"
    assert world.receive(bye(now - 9)) == "stale"
    assert world.receive(signed(now - 4)) == "stale"  # the goodbye's own second
    assert world.receive(signed(now - 3)) == ""


def test_a_wrong_goodbye_after_expiry_changes_nothing(world: World, now: int) -> None:
    world.receive(signed(now - 20))
    world.pass_time(18)
    assert world.receive(packet(unix=now + 50, command=1, signer=KeyPair())) == "bad-signature"
    assert world.receive(signed(now - 10)) == ""


def test_a_goodbye_by_clear(world: World, now: int) -> None:
    world.receive(signed(now - 9))
    goodbye = signed(now - 5, clear=True, vassal="v")
    assert world.receive(goodbye) == ""
    assert world.find() is None
    assert world.receive(other_command(goodbye)) == "repeated"  # clear is signed: a goodbye
    assert world.find() is None


def test_whoever_is_exempt_opens_no_door(tmp_path: Path, now: int) -> None:
    """A node that comes back unsigned has not forgotten what was signed before."""
    world = signed_world(tmp_path, PAIR, sign_skip_uids=frozenset((1000,)), use_credentials=True)
    old = signed(now - 9)
    world.receive(old)
    world.receive(bye(now - 5))
    assert world.receive(packet(), "uid 1000", (1, 1000, 1000)) == ""
    assert world.receive(old) == "stale"
    assert world.receive(other_command(old)) == "stale"
    assert world.find() is not None
    assert world.receive(signed(now - 2)) == ""


def test_captured_packets_are_from_the_past(tmp_path: Path) -> None:
    public = (FIXTURES / "signing_public_key.pem").read_bytes()
    for key in ("signed.example.com", KEY):
        (tmp_path / f"{key}.pem").write_bytes(public)
    names = {"sha1": "subscribe_signed_sha1", "sha256": "subscribe2_signed_sha256"}
    for digest, name in names.items():
        strict = World(sign_digest=digest, sign_directory=str(tmp_path))
        assert strict.receive(captured(name)) == "stale"


# --- what is remembered of who left -------------------------------------------------------------


def test_times_are_dropped_when_the_tolerance_is_over() -> None:
    departed = Departed(100.0)
    departed.left("k", "a", 1000)
    departed.left("k", "b", 1050, 1060)
    assert departed.entries() == [("k", "a", 1000, 0), ("k", "b", 1050, 1060)]
    departed.forget_old(1100)
    assert len(departed) == 2
    departed.forget_old(1101)
    assert [entry[1] for entry in departed.entries()] == ["b"]
    departed.forget_old(1161)
    assert len(departed) == 0


def test_what_falls_out_raises_the_floor_of_its_key_file() -> None:
    departed = Departed(1000.0, limit=2)
    departed.left("k", "a", 100, 110)
    departed.left("k/app", "b", 50)
    departed.left("k", "c", 60)
    assert len(departed) == 2
    assert not departed.allows("k", "a", 110)
    assert not departed.allows("k/other", "new", 105)
    assert departed.allows("k", "a", 111)
    assert departed.returned("k", "a", 0) == 110
    # Others are not concerned, whatever a tenant sends.
    assert departed.allows("l", "a", 1)
    # "k:1" and "k_1" have the same file.
    departed.left("k:1", "d", 700)
    departed.left("x", "e", 1)
    departed.left("x", "f", 1)
    assert not departed.allows("k_1", "z", 700)
    departed.forget_old(1200)
    assert departed.allows("k", "a", 60)
    assert not departed.allows("k_1", "z", 700)


def test_floors_are_part_of_what_is_saved() -> None:
    departed = Departed(1000.0, limit=1)
    departed.left("k/app", "a", 100, 110)
    departed.left("k", "b", 120)
    copy = Departed(1000.0)
    for key, address, announced, goodbye in departed.entries():
        copy.left(key, address, announced, goodbye)
    assert copy.entries() == departed.entries() == [("k", "", 110, 0), ("k", "b", 120, 0)]
    assert not copy.allows("k", "a", 110)


def test_a_flood_is_bounded(tmp_path: Path, now: int) -> None:
    departed = Departed(86400.0)
    for number in range(150_000):
        departed.left("k", str(number), number, number)
    assert len(departed) == 100_000
    assert len(departed.entries()) == 100_001
