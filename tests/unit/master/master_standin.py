"""A minimal gateway, so that processes can be tested without a router: ``master_standin.py JSON``.

It speaks lines. ``who`` -> the worker's pid; ``hold`` -> ``held``, and the connection then counts
as a request in flight until the client sends ``done``; ``uid`` -> ids and rights; ``boom`` raises
in the event loop; ``exit N`` ends the process; ``stuck`` blocks the event loop for ever; ``big``
makes its snapshots huge; ``nonsense`` goes to the master.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from uwgate.config.settings import (
    Endpoint,
    HttpSettings,
    ListenerSettings,
    ProcessSettings,
    RequestLogSettings,
    Settings,
)
from uwgate.config.settings_process import LifeSettings
from uwgate.master import supervisor
from uwgate.master.control import Message
from uwgate.master.worker import Listener
from uwgate.observe.requestlog import RequestLog
from uwgate.router.tally import Tally


class StandIn:
    """Implements ``master.worker.Gateway``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.tally = Tally()
        self.servers: list[asyncio.Server] = []
        self.open: set[Line] = set()
        self.names: list[str] = []

    async def start(self, listeners: Sequence[Listener]) -> None:
        for settings, sock in listeners:
            self.names.append(settings.endpoint.text)
            server = await self.loop.create_server(lambda: Line(self), sock=sock)
            self.servers.append(server)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def drain(self, *, gently: bool = False) -> None:
        for server in self.servers:
            server.close()
        for line in list(self.open):
            if not line.holding:
                line.transport.close()

    @property
    def drained(self) -> bool:
        return not any(line.holding for line in self.open)

    def part(self) -> int:
        return len(self.open)

    async def close(self) -> None:
        for line in list(self.open):
            line.transport.abort()

    def snapshot(self) -> Message:
        return {"tally": self.tally.snapshot(), "listeners": self.names, "nodes": []}


class Line(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, gateway: StandIn) -> None:
        self.gateway = gateway
        self.holding = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.gateway.open.add(self)
        self.gateway.tally.accepted += 1

    def connection_lost(self, error: Exception | None) -> None:
        self.gateway.open.discard(self)
        if self.holding:
            self.gateway.tally.active_requests -= 1

    def data_received(self, data: bytes) -> None:
        word, _, argument = data.decode().strip().partition(" ")
        self.gateway.tally.requests += 1
        if word == "exit":
            os._exit(int(argument))
        answer = getattr(self, f"on_{word}")()
        self.transport.write(answer.encode() + b"\n")

    def on_who(self) -> str:
        return str(os.getpid())

    def on_hold(self) -> str:
        self.holding = True
        self.gateway.tally.active_requests += 1
        return "held"

    def on_done(self) -> str:
        self.holding = False
        self.gateway.tally.active_requests -= 1
        return "finished"

    def on_uid(self) -> str:
        status = Path("/proc/self/status").read_text()
        fields = dict(row.split(":\t", 1) for row in status.splitlines() if ":\t" in row)
        return json.dumps(
            {
                "uid": os.getresuid(),
                "gid": os.getresgid(),
                "groups": os.getgroups(),
                "no_new_privs": fields["NoNewPrivs"],
                "name": fields["Name"],
                "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
                "sockets": sum(
                    os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
                    for fd in os.listdir("/proc/self/fd")
                    if os.path.exists(f"/proc/self/fd/{fd}")
                ),
            }
        )

    def on_big(self) -> str:
        """Snapshots become larger than any socket buffer."""
        self.gateway.names += ["n" * 1000] * 4000
        return "big"

    def on_nonsense(self) -> str:
        """Break the rules of the control channel."""
        frame = sys._getframe()
        while "channel" not in frame.f_locals:
            assert frame.f_back is not None
            frame = frame.f_back
        os.write(frame.f_locals["channel"].fileno(), b"nonsense\n")
        return "sent"

    def on_boom(self) -> str:
        raise RuntimeError("boom\x1b[31m\nnext line")

    def on_stuck(self) -> str:
        threading.Event().wait()
        return ""


def stand_in(
    settings: Settings,
    loop: asyncio.AbstractEventLoop,
    request_log: RequestLog | None,
    server_name: bytes,
    log: Callable[[str], None],
) -> StandIn:
    """The usual one."""
    return StandIn(loop)


def broken(
    settings: Settings,
    loop: asyncio.AbstractEventLoop,
    request_log: RequestLog | None,
    server_name: bytes,
    log: Callable[[str], None],
) -> StandIn:
    """Cannot be made, and says why."""
    raise OSError(2, "no such app", "app.py")


def crashing(
    settings: Settings,
    loop: asyncio.AbstractEventLoop,
    request_log: RequestLog | None,
    server_name: bytes,
    log: Callable[[str], None],
) -> StandIn:
    """Has a bug."""
    raise RuntimeError("first\nsecond")


def silent(
    settings: Settings,
    loop: asyncio.AbstractEventLoop,
    request_log: RequestLog | None,
    server_name: bytes,
    log: Callable[[str], None],
) -> StandIn:
    """Dies without a word."""
    os._exit(9)


FACTORIES = {"": stand_in, "broken": broken, "crashing": crashing, "silent": silent}


def build(options: dict[str, object]) -> Settings:
    """Settings from plain values; addresses are ``{"kind": …, "text": …, …}``."""
    process = dict(options.get("process", {}))
    for key in ("shared_sockets",):
        process[key] = tuple(Endpoint(**value) for value in process.get(key, ()))
    if "stats" in process:
        process["stats"] = Endpoint(**process["stats"])
    if "undeferred" in process:
        process["undeferred"] = tuple(process["undeferred"])
    http = dict(options.get("http", {}))
    listeners = tuple(ListenerSettings(Endpoint(**value)) for value in http.pop("listeners"))
    return Settings(
        ProcessSettings(**process),
        HttpSettings(listeners, **http),
        RequestLogSettings(**options.get("request_log", {})),
        life=LifeSettings(**options.get("life", {})),
    )


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    factory = FACTORIES[chosen.pop("factory", "")]
    sys.exit(supervisor.run(build(chosen), {"http": factory}))
