"""Sessions in a real Redis: shared by machines, never waited for, found again when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.waiting import dead_address, free_port

from interop.redis_peer import RedisServer, redis_server, run, started, until
from uwgate.config.settings_tls import SessionSettings
from uwgate.tls.errors import TlsError
from uwgate.tls.redis_store import RedisStore

DEADLINE = 0.3
MARGIN = 5.0  # of a busy machine; that it was no other limit the counters say
SESSION = bytes(range(256)) * 6
KEY = bytes(range(32))


class Store(RedisStore):
    """With its log, and lookups that can be awaited."""

    def __init__(self, url: str, deadline: float = 5.0) -> None:
        self.lines: list[str] = []
        super().__init__(SessionSettings(url=url, deadline=deadline), self.lines.append)

    async def look_up(self, *ids: bytes) -> float:
        """Seconds that it took, by the clock of the loop."""
        done = asyncio.Event()
        now = asyncio.get_running_loop().time
        began = now()
        self.prefetch(ids, done.set)
        await asyncio.wait_for(done.wait(), 10)
        return now() - began

    def at_once(self, *ids: bytes) -> bool:
        """Whether nobody waits for these."""
        done: list[int] = []
        self.prefetch(ids, lambda: done.append(1))
        return bool(done)

    async def connected(self) -> None:
        await until(lambda: self.snapshot()["connected"], "Redis")

    async def away(self) -> None:
        await until(lambda: self.lines and "away" in self.lines[-1], "Redis away")

    async def finds(self, key: bytes, value: bytes | None) -> None:
        """Sooner or later."""
        limit = time.monotonic() + 10
        while self.get(key) != value:
            assert time.monotonic() < limit
            await self.look_up(key)


def later(seconds: int = 300) -> int:
    return int(time.time()) + seconds


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.mark.parametrize("tcp", [False, True])
def test_what_one_machine_keeps_another_finds(tmp_path: Path, tcp: bool) -> None:
    async def main(url: str) -> None:
        one, two = Store(url), Store(url)
        async with started(one, two):
            assert one.set(KEY, SESSION, later(300))
            assert one.get(KEY) == SESSION  # at once
            await two.finds(KEY, SESSION)
            assert two.hits == 1
            assert one.lines == two.lines == ["TLS sessions: Redis is there"]

    with redis_server(tmp_path, tcp=tcp) as redis:
        run(main(redis.url))
        life = redis.command("TTL", b"uwgate:session:" + KEY)
        assert 290 <= int(life[1:]) <= 300
        assert SESSION in redis.command("GET", b"uwgate:session:" + KEY)


def test_what_is_not_there_is_a_miss(redis: RedisServer) -> None:
    async def main() -> None:
        store = Store(redis.url)
        async with started(store):
            await store.connected()
            await store.look_up(b"one", b"two")
            assert store.get(b"one") is None
            snapshot = store.snapshot()
            assert snapshot.pop("connected") == 1
            assert snapshot == {"hits": 0, "misses": 2, "timeouts": 0, "errors": 0, "dropped": 0}

    run(main())


def test_deleted_here_and_there(redis: RedisServer) -> None:
    async def main() -> None:
        one, two = Store(redis.url), Store(redis.url)
        async with started(one, two):
            one.set(KEY, SESSION, later())
            one.set(b"other", SESSION, later())
            one.delete(KEY)
            assert one.get(KEY) is None
            await two.finds(b"other", SESSION)  # written in that order
            await two.look_up(KEY)
            assert two.get(KEY) is None

    run(main())


def test_too_large_too_late_nameless_or_not_started(redis: RedisServer) -> None:
    async def main() -> None:
        store = Store(redis.url)
        assert not store.set(KEY, SESSION, later())
        store.delete(KEY)
        async with started(store):
            assert not store.set(KEY, bytes(65537), later())
            assert not store.set(b"", SESSION, later())
            assert store.set(b"late", SESSION, later(0))
            assert store.set(b"last", SESSION, later())
            await until(lambda: b":1" in redis.command("EXISTS", "uwgate:session:last"), "write")
            assert redis.command("EXISTS", "uwgate:session:late") == b":0\r\n"

    run(main())


def test_foreign_values_do_no_harm(redis: RedisServer) -> None:
    async def main() -> None:
        store = Store(redis.url)
        async with started(store):
            redis.command("LPUSH", "uwgate:session:list", "x")
            redis.command("SET", "uwgate:session:huge", bytes(65537))
            redis.command("SET", "uwgate:session:good", SESSION)
            await store.connected()
            await store.look_up(b"list", b"huge", b"good")
            assert store.get(b"list") is store.get(b"huge") is None
            assert store.get(b"good") == SESSION

    run(main())


def test_what_comes_up_together_goes_together(redis: RedisServer) -> None:
    """A task for all lookups, and no round trip for each."""

    async def main() -> None:
        store = Store(redis.url, deadline=5.0)
        async with started(store):
            await store.connected()
            tasks = len(asyncio.all_tasks())
            left = 1000
            over = asyncio.Event()

            def done() -> None:
                nonlocal left
                left -= 1
                if not left:
                    over.set()

            for number in range(1000):
                store.prefetch([b"%d" % (number // 2)], done)
            assert len(asyncio.all_tasks()) == tasks
            await asyncio.wait_for(over.wait(), 10)
            assert store.misses == 1000
            trips = redis.command("INFO", "commandstats").partition(b"cmdstat_mget:calls=")[2]
            assert 1 <= int(trips.partition(b",")[0]) <= 20

    run(main())


def test_one_that_fails_does_not_take_the_others_along(redis: RedisServer) -> None:
    async def main() -> None:
        store = Store(redis.url)
        failures: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
        async with started(store):
            await store.connected()
            store.prefetch([KEY], lambda: 1 // 0)
            await store.look_up(KEY)
            assert store.timeouts == 0
        assert [type(failure) for failure in failures] == [ZeroDivisionError]

    run(main())


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who accepts, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


def test_who_never_answers_is_waited_for_until_the_deadline(silent: str) -> None:
    async def main() -> None:
        store = Store(silent, DEADLINE)
        async with started(store):
            times = await asyncio.gather(*(store.look_up(b"%d" % n) for n in range(20)))
            assert all(DEADLINE - 0.05 < each < DEADLINE + MARGIN for each in times)
            assert store.timeouts == 20
            await store.away()
            assert store.at_once(KEY)  # nobody waits any more
            assert store.timeouts == 20
            assert store.misses == 1
            assert len(store.lines) == 1

    run(main())


def test_each_has_a_deadline_of_its_own(silent: str) -> None:
    async def main() -> None:
        store = Store(silent, DEADLINE)
        async with started(store):
            first = asyncio.ensure_future(store.look_up(KEY))
            await asyncio.sleep(DEADLINE / 2)
            assert DEADLINE - 0.05 < await store.look_up(KEY) < DEADLINE + MARGIN
            assert DEADLINE - 0.05 < await first < DEADLINE + MARGIN
            assert store.timeouts == 2

    run(main())


def test_a_redis_that_stands_still(redis: RedisServer) -> None:
    async def main() -> None:
        one, two = Store(redis.url), Store(redis.url, DEADLINE)
        async with started(one, two):
            one.set(KEY, SESSION, later())
            await two.finds(KEY, SESSION)
            before = two.timeouts
            with redis.standing_still():
                assert await two.look_up(b"other") < DEADLINE + MARGIN
                assert two.timeouts == before + 1
                one.set(b"meanwhile", SESSION, later())
                await one.away()
                await two.away()
                assert two.at_once(b"other")
            await one.connected()
            await two.connected()
            await two.finds(b"meanwhile", SESSION)  # it was not lost
            assert len(one.lines) == 3

    run(main())


def test_a_redis_that_goes_and_comes_back(redis: RedisServer) -> None:
    async def main() -> None:
        one, two = Store(redis.url), Store(redis.url)
        async with started(one, two):
            await one.connected()
            await two.connected()
            redis.stop()
            await two.look_up(KEY)
            assert two.get(KEY) is None
            await two.away()
            one.set(KEY, SESSION, later())
            await one.away()
            redis.start()
            await one.connected()
            await two.finds(KEY, SESSION)
            assert one.lines[0] == one.lines[2] == "TLS sessions: Redis is there"
            assert one.lines[1].startswith("TLS sessions: Redis is away, handshakes are full ones:")
            assert len(one.lines) == len(two.lines) == 3

    run(main())


def test_a_restart_that_nobody_notices(redis: RedisServer) -> None:
    """The connection is gone, but the next one works: no reason to give up lookups."""

    async def main() -> None:
        store = Store(redis.url, deadline=5.0)
        async with started(store):
            await store.look_up(b"warm")
            await asyncio.sleep(0.15)  # not one that ends as soon as it begins
            redis.stop()
            redis.start()
            redis.command("SET", b"uwgate:session:" + KEY, SESSION)
            await store.look_up(KEY)
            assert store.get(KEY) == SESSION
            assert store.lines == ["TLS sessions: Redis is there"]

    run(main())


def test_a_connection_that_breaks_within_a_lookup(redis: RedisServer) -> None:
    """The first one does; the next is in time for the same handshake."""

    async def main() -> None:
        broken: list[int] = []

        async def pass_on(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
            far, forth = await asyncio.open_unix_connection(str(redis.path))
            with contextlib.closing(back), contextlib.closing(forth):
                while data := await near.read(65536):
                    if b"MGET" in data and not broken:
                        broken.append(1)
                        return
                    forth.write(data)
                    back.write(await far.read(65536))

        server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        store = Store(f"redis://127.0.0.1:{port}", deadline=5.0)
        async with server, started(store):
            redis.command("SET", b"uwgate:session:" + KEY, SESSION)
            await store.connected()
            await asyncio.sleep(0.15)  # not one that ends as soon as it begins
            await store.look_up(KEY)
            assert store.get(KEY) == SESSION
            assert broken == [1]
            assert store.lines == ["TLS sessions: Redis is there"]
            assert store.errors == 1

    run(main())


def test_sessions_kept_here_are_few(redis: RedisServer) -> None:
    async def main() -> None:
        store = Store(redis.url)
        async with started(store):
            for number in range(5000):
                store.set(b"%d" % number, b"x", later())
            assert store.get(b"4999") == b"x"
            assert store.get(b"0") is None

    run(main())


def test_nobody_there(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store(f"redis://{dead_address()}")
        async with started(store):
            await store.away()
            assert store.at_once(KEY)
            for number in range(5000):  # more than are kept for better times
                assert store.set(b"%d" % number, b"x", later())
            assert store.dropped == 5000 - 4096
            assert store.snapshot()["connected"] == 0

    run(main())


def test_lookups_are_over_when_the_process_ends(silent: str) -> None:
    async def main() -> None:
        store = Store(silent, deadline=60.0)
        over: list[int] = []
        async with started(store):
            store.prefetch([KEY], lambda: over.append(1))
            store.set(b"lost", b"x", later())
        assert over == [1]
        assert store.dropped == 1
        store.prefetch([KEY], lambda: over.append(2))
        assert over == [1, 2]

    run(main())


def test_a_redis_that_is_full(tmp_path: Path) -> None:
    async def main(redis: RedisServer) -> None:
        store = Store(redis.url)
        async with started(store):
            redis.command("SET", "uwgate:session:there", SESSION)
            redis.command("CONFIG", "SET", "maxmemory", "1")
            for number in range(10):
                store.set(b"%d" % number, SESSION, later())
                await until(lambda number=number: store.errors > number, "refusal")
            await store.finds(b"there", SESSION)
            redis.command("CONFIG", "SET", "maxmemory", "0")
            store.set(KEY, SESSION, later())
            await until(lambda: len(store.lines) == 3, "its end")
            assert "Redis refuses: " in store.lines[1]
            assert store.lines[2] == "TLS sessions: Redis refuses no more"

    with redis_server(tmp_path, "--maxmemory-policy", "noeviction") as redis:
        run(main(redis))


def test_password(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        good = Store(f"redis://:pass%2fword@127.0.0.1:{port}")
        bad = Store(f"redis://:wrong-one@127.0.0.1:{port}")
        none = Store(f"redis://127.0.0.1:{port}")
        async with started(good, bad, none):
            await good.connected()
            await bad.away()
            await none.away()
            assert "wrong-one" not in str(bad.lines)

    with redis_server(tmp_path, "--requirepass", "pass/word", tcp=True) as redis:
        run(main(int(redis.url.rpartition(":")[2])))


def test_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("127.0.0.1")
    port = free_port()
    options = {
        "--tls-port": str(port),
        "--tls-cert-file": str(pair.cert),
        "--tls-key-file": str(pair.key),
        "--tls-auth-clients": "no",
    }

    async def main() -> None:
        trusting = Store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.file}")
        doubting = Store(f"rediss://127.0.0.1:{port}")
        async with started(trusting, doubting):
            trusting.set(KEY, SESSION, later())
            await trusting.connected()
            await doubting.away()

    with redis_server(tmp_path, *(word for pair in options.items() for word in pair)) as redis:
        run(main())
        assert SESSION in redis.command("GET", b"uwgate:session:" + KEY)


def test_somebody_else_answers() -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        store = Store(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with server, started(store):
            await store.away()
            assert store.at_once(KEY)

    run(main())


@pytest.mark.parametrize("url", ["", "http://x", "redis://x:port", "redis://:pa/ss@x"])
def test_no_address(url: str) -> None:
    with pytest.raises(TlsError) as caught:
        Store(url)
    assert "pa" not in str(caught.value)
