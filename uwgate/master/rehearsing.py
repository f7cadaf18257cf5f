"""The child's side of a rehearsal: the new master, up to the first worker, without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import uvloop

from uwgate.config.settings import Settings
from uwgate.master.assembly import Assembly
from uwgate.master.daemon import log_file
from uwgate.master.fifo import check_fifo
from uwgate.master.gateways import Plan
from uwgate.master.handover import Handover
from uwgate.master.logs import MainLog, check_log
from uwgate.master.loop import Loop
from uwgate.master.pidfile import PidFiles


def rehearse(settings: Settings, plans: Mapping[str, Plan], handed: Handover) -> None:
    """Raises ``StartError`` for whatever would keep the new master from serving."""
    log = MainLog()  # standard error, which the master reads
    loop = Loop(log)
    assembly = Assembly(settings, plans, loop, log, lambda _name, _changes: None, handed=handed)
    try:
        assembly.make()
        assembly.drop_privileges()
        for path in settings.life.fifos:
            check_fifo(path)
        _check_writable(settings, handed, log)
        for plan in plans.values():
            _make(settings, plan, log)
    finally:
        assembly.let_go()
        loop.close()


def _make(settings: Settings, plan: Plan, log: MainLog) -> None:
    """The gateway, as a worker makes it: the code of a mapper may not load."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        plan.factory(settings, runner.get_loop(), None, b"localhost", log.line)
        runner.run(asyncio.sleep(0))


def _check_writable(settings: Settings, handed: Handover, log: MainLog) -> None:
    check_log(log_file(settings.process), settings.main_log, handed.parts.get("log"))
    PidFiles(settings.process, log, handed.parts.get("pidfiles", ())).rehearse()
