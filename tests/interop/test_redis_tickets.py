"""Ticket keys of several machines in a real Redis: the same, changed together, also without it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.waiting import dead_address

from interop.redis_peer import RedisServer, redis_server, run, started, until
from uwgate.config.settings_tls import TicketSettings
from uwgate.tls.errors import TlsError
from uwgate.tls.redis_tickets import KEY_SIZE, RedisTicketKeys, successor

LONG = 3600.0


class Clock:
    """Stands still until it is put forward. ``off``: how much one of its clocks is wrong."""

    def __init__(self) -> None:
        self.now = 1_000_000.0 * LONG + 10

    def __call__(self) -> float:
        return self.now


class Machine(RedisTicketKeys):
    """``keys``: those in use, the first encrypts. ``adoptions``: how often they were given out."""

    def __init__(
        self, url: str, clock: Clock, *, off: float = 0.0, rotate: float = LONG, timeout: int = 300
    ) -> None:
        self.lines: list[str] = []
        self.keys: tuple[bytes, ...] = ()
        self.adoptions = 0
        super().__init__(
            TicketSettings(rotate=rotate, source=url),
            self,
            self.lines.append,
            timeout=timeout,
            clock=lambda: clock() + off,
        )

    def adopt(self, keys: Sequence[bytes]) -> None:
        self.keys = tuple(keys)
        self.adoptions += 1

    async def has(self, count: int) -> None:
        await until(lambda: len(self.keys) >= count, "keys")

    async def looked(self) -> None:
        """Has been through its turn, once from the beginning: each gives out keys up to twice,
        before and after Redis is asked."""
        seen = self.adoptions
        await until(lambda: self.adoptions >= seen + 4, "a turn")


def understood(one: Machine, two: Machine) -> bool:
    """Both can read each other's tickets."""
    return one.keys[0] in two.keys and two.keys[0] in one.keys


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not half a minute between looks: the clock of these tests jumps."""
    monkeypatch.setattr("uwgate.tls.redis_tickets._LOOK", 0.01)


def test_all_machines_have_the_same_keys(redis: RedisServer) -> None:
    async def main() -> None:
        clock = Clock()
        machines = [Machine(redis.url, clock) for _ in range(5)]
        async with started(*machines):
            for machine in machines:
                await machine.has(2)
            assert len({machine.keys for machine in machines}) == 1
            assert [len(key) for key in machines[0].keys] == [KEY_SIZE, KEY_SIZE]
            assert machines[0].lines == ["TLS ticket keys are those in Redis"]
            assert machines[0].snapshot() == {"connected": 1, "keys": 2, "alone": 0}
        number = int(clock() // LONG)
        life = int(redis.command("TTL", f"uwgate:ticket-key:3600:{number}")[1:])
        assert LONG + 300 < life <= 2 * LONG + 300
        assert int(redis.command("TTL", f"uwgate:ticket-key:3600:{number + 1}")[1:]) > life

    run(main())


def test_keys_change_with_the_epochs(redis: RedisServer) -> None:
    async def main() -> None:
        clock = Clock()
        one, two = Machine(redis.url, clock), Machine(redis.url, clock)
        used = []
        async with started(one, two):
            for _ in range(5):
                await one.looked()
                await two.looked()
                assert one.keys == two.keys
                used.append(one.keys[0])
                following = one.keys[1]
                clock.now += LONG
                await until(lambda key=following: one.keys[0] == key, "the next key")
            await one.looked()
        assert len(set(used)) == 5
        # This one, the next, and the one before: its tickets may still be good.
        assert len(one.keys) == 3
        assert used[-1] in one.keys
        assert used[0] not in one.keys

    run(main())


def test_epochs_shorter_than_sessions(redis: RedisServer) -> None:
    async def main() -> None:
        clock = Clock()
        machine = Machine(redis.url, clock, rotate=60.0, timeout=300)
        used = []
        async with started(machine):
            for _ in range(9):
                await machine.looked()
                used.append(machine.keys[0])
                clock.now += 60
            await machine.looked()
            late = Machine(redis.url, clock, rotate=60.0, timeout=300)
            async with started(late):
                await late.looked()
                assert set(used[-5:]) < set(late.keys)
                assert set(late.keys) == set(machine.keys)
                assert len(late.keys) == 7

    run(main())


@pytest.mark.parametrize("off", [-1000.0, 1000.0])
def test_clocks_that_differ(redis: RedisServer, off: float) -> None:
    async def main() -> None:
        clock = Clock()
        right, wrong = Machine(redis.url, clock), Machine(redis.url, clock, off=off)
        different = 0
        async with started(right, wrong):
            for _ in range(16):
                await right.looked()
                await wrong.looked()
                assert understood(right, wrong)
                different += right.keys[0] != wrong.keys[0]
                clock.now += 500
        assert 2 <= different <= 6

    run(main())


def test_real_time(redis: RedisServer) -> None:
    """Epochs of half a second, and no clock but the machine's."""

    async def main() -> None:
        clock = time.time
        one = Machine(redis.url, clock, rotate=0.5, timeout=1)  # type: ignore[arg-type]
        two = Machine(redis.url, clock, rotate=0.5, timeout=1)  # type: ignore[arg-type]
        seen: list[bytes] = []
        async with started(one, two):
            await one.has(2)
            await two.has(2)

            def step() -> bool:
                assert understood(one, two)
                if one.keys[0] not in seen:
                    seen.append(one.keys[0])
                return len(seen) == 4

            await until(step, "four epochs")

    run(main())


def test_without_redis_there_are_keys_for_this_epoch_and_the_next(redis: RedisServer) -> None:
    async def main() -> None:
        clock = Clock()
        one, two = Machine(redis.url, clock), Machine(redis.url, clock)
        async with started(one, two):
            await one.has(2)
            await two.has(2)
            first, second = one.keys
            redis.stop()
            await until(lambda: len(one.lines) == len(two.lines) == 2, "Redis away")
            assert one.lines[1].startswith("TLS ticket keys: Redis is away, those we have stay:")
            assert one.keys[0] == two.keys[0] == first
            clock.now += LONG
            await until(lambda: one.keys[0] == two.keys[0] == second, "the next key")
            assert len(one.lines) == 2

            clock.now += LONG  # nobody has made a key for this one
            made = successor(second)
            await until(lambda: one.keys[0] == two.keys[0] == made, "one that follows")
            assert one.lines[2] == (
                "TLS ticket keys: Redis is still away, new ones are made without it"
            )
            clock.now += LONG
            await until(lambda: one.keys[0] == two.keys[0] == successor(made), "the next")
            assert len(one.lines) == 3
            assert one.snapshot() == {"connected": 0, "keys": 2, "alone": 1}

            redis.start()
            await until(lambda: one.snapshot()["connected"], "Redis", 20)
            await until(lambda: two.snapshot()["connected"], "Redis", 20)
            await one.looked()
            await two.looked()
            assert one.keys[0] == two.keys[0] != successor(made)
            assert successor(made) in one.keys  # tickets of the dark times are good
            assert successor(made) in two.keys
            assert one.snapshot()["alone"] == 0
            clock.now += 301
            await until(lambda: successor(made) not in one.keys, "their end")

    run(main())


def test_a_redis_that_has_forgotten_everything(redis: RedisServer) -> None:
    async def main() -> None:
        clock = Clock()
        one, two = Machine(redis.url, clock), Machine(redis.url, clock)
        async with started(one, two):
            await one.has(2)
            before = one.keys[0]
            redis.command("FLUSHALL")
            await until(lambda: one.keys[0] != before, "new keys")
            await until(lambda: one.keys[0] == two.keys[0], "the same")
            assert before in one.keys
            assert before in two.keys

    run(main())


def test_never_a_redis() -> None:
    """The keys that the master made stay in use."""

    async def main() -> None:
        clock = Clock()
        machine = Machine(f"redis://{dead_address()}", clock)
        async with started(machine):
            await until(lambda: machine.lines, "a line")
            clock.now += LONG
            await until(lambda: machine.snapshot()["connected"] == 0, "nothing")
        assert machine.adoptions == 0
        assert machine.snapshot()["alone"] == 1

    run(main())


def test_what_is_no_key(redis: RedisServer) -> None:
    async def main() -> None:
        clock = Clock()
        number = int(clock() // LONG)
        redis.command("SET", f"uwgate:ticket-key:3600:{number}", "short")
        machine = Machine(redis.url, clock)
        async with started(machine):
            await until(lambda: machine.lines, "a line")
            assert "there is no key in uwgate:ticket-key:3600:" in machine.lines[0]
            redis.command("DEL", f"uwgate:ticket-key:3600:{number}")
            await machine.looked()
            assert len(machine.keys[0]) == KEY_SIZE

    run(main())


def test_successors() -> None:
    key = bytes(KEY_SIZE)
    chain = [key := successor(key) for _ in range(100)]
    assert len(set(chain)) == 100
    assert {len(each) for each in chain} == {KEY_SIZE}
    assert len({each[:16] for each in chain}) == 100  # names
    assert successor(bytes(KEY_SIZE)) == chain[0]


def test_no_address() -> None:
    with pytest.raises(TlsError, match=r"^ssl-ticket-keys: not an address of Redis$"):
        Machine("redis://:pa/ss@x", Clock())
