"""``uwgate announce``: from its words to the agent, or to one packet and out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from uwgate.announce import agent
from uwgate.announce.options import OptionError, Options, parse
from uwgate.master.errors import StartError
from uwgate.master.logs import MainLog, complain, occupy_standard_streams
from uwgate.subscriptions.client import AnnounceError, Announcer
from uwgate.subscriptions.outbox import Outbox, SocketAddress, Troubles, resolve_now

EXIT_WRONG = 1


def main(argv: Sequence[str]) -> int:
    """Run the command with these words (those behind ``announce``) -> exit code."""
    occupy_standard_streams()
    try:
        options = parse(argv)
        if isinstance(options, str):
            sys.stdout.write(options)
            return 0
        log = MainLog()
        return agent.run(options, log) if options.mode == "run" else _once(options, log)
    except (OptionError, AnnounceError, StartError) as error:
        complain(f"announce: {error}")
        return EXIT_WRONG


def _once(options: Options, log: MainLog) -> int:
    """Announce or take back once; 1 if a packet could not be sent."""
    troubles = Troubles(log.line)

    def resolve(host: str, port: int) -> SocketAddress | None:
        try:
            return resolve_now(host, port)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            troubles.report(f"looking up {host}", reason)
            return None

    outbox = Outbox(resolve, log.line)
    try:
        announcer = Announcer(options.settings, outbox, log.line, cores=options.cores)
        now = time.monotonic()
        if options.mode == "once":
            announcer.start(now)
        else:
            announcer.withdraw(now)
        announcer.finish()
        wrong = outbox.failed or troubles.active or outbox.troubles.active
        return EXIT_WRONG if wrong else 0
    finally:
        outbox.close()
