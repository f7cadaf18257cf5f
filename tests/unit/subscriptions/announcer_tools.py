"""A subscription server's socket, and an announcer with everything around it."""

from __future__ import annotations

import socket

from uwgate.config.settings import AnnounceSettings, Endpoint, SubscribeSettings
from uwgate.subscriptions.client import Announcer
from uwgate.subscriptions.outbox import Outbox, SocketAddress
from uwgate.subscriptions.packet import Announcement, decode

NOW = 1000.0
UNIX = 1_700_000_000


class Server:
    """A subscription server's socket."""

    def __init__(self, path: str = "", family: int = socket.AF_INET) -> None:
        if path:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.sock.bind(path)
            self.endpoint = Endpoint("unix", path, path=path)
        else:
            self.sock = socket.socket(family, socket.SOCK_DGRAM)
            host = "127.0.0.1" if family == socket.AF_INET else "::1"
            self.sock.bind((host, 0))
            port = self.sock.getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            self.endpoint = Endpoint("tcp", f"{shown}:{port}", host=host, port=port)
        self.sock.setblocking(False)

    def raw(self) -> list[bytes]:
        """The datagrams that arrived; on loopback they are there when ``send`` returns."""
        found = []
        while True:
            try:
                found.append(self.sock.recv(65536))
            except BlockingIOError:
                return found

    def packets(self) -> list[Announcement]:
        return [decode(datagram) for datagram in self.raw()]

    def said(self) -> list[tuple[int, str, str]]:
        return [(each.command, each.key, each.address) for each in self.packets()]


class Client:
    """An announcer with everything around it. ``wall`` is the time of signed packets."""

    def __init__(self, *entries: SubscribeSettings, **settings: object) -> None:
        self.log: list[str] = []
        self.wall = float(UNIX)
        self.names: dict[str, SocketAddress] = {}
        made = AnnounceSettings(entries=entries, **settings)  # type: ignore[arg-type]
        self.outbox = Outbox(
            lambda host, port: self.names.get(host),
            self.log.append,
            credentials=made.use_credentials,
        )
        self.announcer = Announcer(
            made, self.outbox, self.log.append, cores=4, wall=lambda: self.wall
        )

    def run(self, now: float, until: float) -> None:
        """Let time pass from ``now`` to ``until``."""
        while (due := self.announcer.due) is not None and due <= until:
            now = max(now, due)
            self.announcer.tick(now)


UP = (0, "k.example", "10.0.0.7:80")
DOWN = (1, "k.example", "10.0.0.7:80")
