"""Frozen settings of the master's work: lives of workers, orders from outside, main log, zergs.

Times are seconds, sizes are bytes; 0 means "off" or "no limit" only where a field says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from uwgate.config.settings import Endpoint

TouchAction = Literal[
    "reload", "chain-reload", "workers-reload", "logreopen", "logrotate", "exec", "signal"
]


@dataclass(frozen=True, slots=True)
class Touch:
    """A file to watch (``touch-*``). ``argument``: the command of ``exec``, the number of
    ``signal`` as text, else empty."""

    path: str
    action: TouchAction
    argument: str = ""


@dataclass(frozen=True, slots=True)
class LifeSettings:
    """How long workers live, how they are replaced, and who may order it."""

    reload_mercy: float = 60.0  # a replaced worker gets this long for what is under way
    drain_delay: float = 0.0  # after SIGTERM: not ready, but still accepting, for this long
    harakiri: float = 0.0  # a worker whose loop is stuck for so long is killed; 0 = never
    max_lifetime: float = 0.0  # max-worker-lifetime; 0 = no limit
    min_lifetime: float = 10.0  # min-worker-lifetime: not replaced before, whatever its size
    reload_on_rss: int = 0  # bytes; 0 = no limit
    cheap: bool = False  # no worker before the first connection
    idle: float = 0.0  # without a request for so long all workers go; 0 = never
    die_on_idle: bool = False  # and the master with them
    exit_on_reload: bool = False  # a reload ends the instance instead (a supervisor restarts it)
    no_orphans: bool = False  # workers are killed with their master, instead of draining
    fifos: tuple[str, ...] = ()  # master-fifo, slots 0 to 9
    control: str = ""  # path of the control socket; "" = none
    touches: tuple[Touch, ...] = ()


@dataclass(frozen=True, slots=True)
class MainLogSettings:
    """What becomes of the file of the main log (``process.log_file``)."""

    max_size: int = 0  # log-maxsize; 0 = no limit
    backup_name: str = ""  # log-backupname; "" = the file's name, a dot, the second of the epoch
    reopen: bool = False  # log-reopen: also on a reload
    truncate: bool = False  # log-truncate: empty it at start
    mode: int | None = None  # logfile-chmod
    uid: int | None = None  # logfile-chown
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class ZergPool:
    """``zerg-pool = CONTROL:ADDRESS,ADDRESS``: who connects to ``control`` gets the sockets."""

    control: Endpoint
    addresses: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class ZergAttach:
    """``http-zerg``, ``fastrouter-zerg`` (``gateway``: http, fastrouter) or ``zerg`` (gateway ""):
    listen on the sockets that the server at ``server`` hands out."""

    gateway: str
    server: Endpoint


@dataclass(frozen=True, slots=True)
class ZergSettings:
    """Sockets handed to, and taken from, other instances."""

    servers: tuple[Endpoint, ...] = ()  # zerg-server: all listening sockets of this instance
    pools: tuple[ZergPool, ...] = ()
    attach: tuple[ZergAttach, ...] = ()
    fallback: bool = False  # zerg-fallback: start without a server that is away
