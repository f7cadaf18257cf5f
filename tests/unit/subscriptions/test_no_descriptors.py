"""Announcing and resubscribing while the process has no descriptor left: later, but not never."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from announcer_tools import NOW, Client, Server

from uwgate.config.settings import SubscribeSettings
from uwgate.subscriptions.packet import Announcement
from uwgate.subscriptions.resubscribe import Resubscriber
from uwgate.subscriptions.table import Table


@contextmanager
def none_left() -> Iterator[None]:
    """Nothing can be opened meanwhile."""
    lowest = os.dup(0)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_announcement_that_needs_to_know_our_address() -> None:
    server = Server()
    client = Client(SubscribeSettings(server.endpoint, "k.example", address="*:80"))
    with none_left():
        client.announcer.start(NOW)
        assert client.announcer.due == NOW + 1
    client.announcer.tick(NOW + 1)
    assert server.said() == [(0, "k.example", "127.0.0.1:80")]
    client.outbox.close()
    server.sock.close()


def test_a_federation() -> None:
    server = Server()
    log: list[str] = []
    member = Table().add("k.example", "10.0.0.7:80")
    with none_left():
        router = Resubscriber(
            [server.endpoint],
            bind=None,
            address=lambda: "0.0.0.0:80",
            weight=1,
            modifier1=None,
            notify="",
            instance="me",
            log=log.append,
        )
        router.forward("k.example", member, 0.0)
        router.tick(0.0)
        assert (router.sent, router.failed) == (0, 1)
    router.forward("k.example", member, 10.0)
    (packet,) = server.packets()
    assert isinstance(packet, Announcement)
    assert (packet.key, packet.address) == ("k.example", "127.0.0.1:80")
    router.close()
    server.sock.close()
