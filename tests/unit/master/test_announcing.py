"""The subscription client in the master's loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.announced import Listener, burying

from uwgate.config.settings import AnnounceSettings, Endpoint, SubscribeSettings
from uwgate.master.announcing import Announcing, placed
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.sockets import Bound

NOWHERE = Endpoint("tcp", "127.0.0.1:1", host="127.0.0.1", port=1)


def bound(name: str) -> Bound:
    return Bound("http", NOWHERE, name, ())


@pytest.mark.parametrize(
    ("address", "wanted", "protocol"),
    [
        ("", "*:80", "http"),
        ("=0", "10.0.0.7:9", "uwsgi"),
        ("=1", "[*]:8080", "http"),
        ("10.0.0.8:1", "10.0.0.8:1", "uwsgi"),
        ("/run/http.sock", "/run/http.sock", "http"),
        (":80", ":80", "uwsgi"),
    ],
)
def test_addresses_that_were_bound(address: str, wanted: str, protocol: str) -> None:
    listening = [
        ("http", bound("0.0.0.0:80")),
        ("http", bound("[::]:8080")),
        ("http", bound("/run/http.sock")),
        ("fastrouter", bound("10.0.0.7:9")),
    ]
    shared = [bound("10.0.0.7:9"), bound("[::]:8080")]
    settings = AnnounceSettings((SubscribeSettings(NOWHERE, "k", address=address),))
    (entry,) = placed(settings, listening, shared).entries
    assert (entry.address, entry.protocol) == (wanted, protocol)


def test_relative_unix_sockets_are_announced_in_full() -> None:
    settings = AnnounceSettings((SubscribeSettings(NOWHERE, "k"),))
    (entry,) = placed(settings, [("fastrouter", bound("a.sock"))], []).entries
    assert entry.address.startswith("/")
    assert entry.address.endswith("/a.sock")
    (entry,) = placed(settings, [("fastrouter", bound("@a"))], []).entries
    assert entry.address == "@a"


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(MainLog())
    yield made
    made.close()


def run(loop: Loop, server: Listener, *, ups: int, downs: int) -> None:
    """Run the loop until that much was heard."""
    for _ in range(10_000):
        if server.ups() >= ups and server.downs() >= downs:
            return
        loop.run_once(0.005)
    raise AssertionError(f"heard {server.heard}")


def test_toggle_and_reload(loop: Loop) -> None:
    with Listener() as server:
        endpoint = Endpoint("tcp", server.address, host="127.0.0.1", port=server.port)
        entry = SubscribeSettings(endpoint, "k", address="10.0.0.7:1")
        settings = AnnounceSettings(
            (entry,), frequency=0.1, start_unsubscribed=True, unsubscribe_on_reload=True
        )
        announcing = Announcing(settings, loop, MainLog())
        announcing.start()
        assert not announcing.announced
        assert announcing.toggle() is False
        assert announcing.announced
        run(loop, server, ups=4, downs=0)
        assert announcing.toggle() is True
        run(loop, server, ups=4, downs=2)
        assert announcing.toggle() is False
        announcing.reload()
        run(loop, server, ups=5, downs=4)
        announcing.close()
        assert not loop.selector.get_map()
        assert [each.up for each in server.heard[-3:]] == [True, False, False]


def test_a_name_that_is_looked_up_meanwhile(loop: Loop) -> None:
    with burying(), Listener() as server:
        endpoint = Endpoint("tcp", "name", host="localhost", port=server.port)
        entry = SubscribeSettings(endpoint, "k", address="*:1")
        announcing = Announcing(AnnounceSettings((entry,), frequency=60.0), loop, MainLog())
        announcing.start()
        run(loop, server, ups=1, downs=0)
        announcing.close()
        server.wait(downs=2)
        assert {each.packet.address for each in server.heard} == {"127.0.0.1:1"}


def test_nothing_to_announce_is_fine(loop: Loop) -> None:
    announcing = Announcing(AnnounceSettings(), loop, MainLog())
    announcing.start()
    announcing.close()
    assert not loop.selector.get_map()
