"""The child's side of a rehearsal: the new master, up to the first worker, without a trace."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import NoReturn

import uvloop

from uwgate.config.settings import Settings
from uwgate.master.assembly import Assembly
from uwgate.master.daemon import log_file
from uwgate.master.errors import StartError, explain
from uwgate.master.fifo import check_fifo
from uwgate.master.gateways import Plan
from uwgate.master.handover import Handover
from uwgate.master.logs import MainLog, check_log
from uwgate.master.loop import Loop
from uwgate.master.pidfile import PidFiles
from uwgate.master.worker import take_rights

_LONGEST = 4096  # bytes of a reason


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
    """The gateway, as a worker makes it, in a process with the rights of one: the code of a mapper
    may not load, and may be whose code only a worker is to run. Raises StartError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_worker(settings, plan, log, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read(_LONGEST).decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise StartError(said or f"{plan.name}: a worker ends at its start (exit code {code})")


def _be_worker(settings: Settings, plan: Plan, log: MainLog, writer: int) -> NoReturn:
    code = 1
    try:
        take_rights(settings, plan.name, plan.uid, plan.gid, {writer})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            plan.factory(settings, runner.get_loop(), None, b"localhost", log.line)
            runner.run(asyncio.sleep(0))
        code = 0
    except BaseException as error:
        text = explain(error) if isinstance(error, OSError) else str(error)
        os.write(writer, text.encode("utf-8", "replace")[:_LONGEST])
    finally:
        # Not sys.exit: below us on the stack is the rehearsal, with its clean-up.
        os._exit(code)


def _check_writable(settings: Settings, handed: Handover, log: MainLog) -> None:
    check_log(log_file(settings.process), settings.main_log, handed.parts.get("log"))
    PidFiles(settings.process, log, handed.parts.get("pidfiles", ())).rehearse()
