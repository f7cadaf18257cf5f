"""A process that is nothing but the master's zerg servers: real loop, binder and servers.

``python zerg_standin.py JSON``: ``{"pools": [[CONTROL, ADDRESS, …], …], "servers": [ADDRESS, …],
"listen": [ADDRESS, …], "workers": n, "chmod": mode or null}``. SIGTERM ends it.
"""

from __future__ import annotations

import json
import signal
import sys

from uwgate.config.addresses import listening
from uwgate.config.settings import ProcessSettings
from uwgate.config.settings_process import ZergPool, ZergSettings
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.sockets import Binder
from uwgate.master.zerg import serve_zergs


def main() -> None:
    options = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log = MainLog()
    loop = Loop(log)
    binder = Binder(ProcessSettings(chmod_socket=options.get("chmod")), log.line)
    pools = [
        ZergPool(listening(control), tuple(listening(text) for text in addresses))
        for control, *addresses in options.get("pools", [])
    ]
    servers = tuple(listening(text) for text in options.get("servers", []))
    sockets = [
        sock
        for text in options.get("listen", [])
        for sock in binder.listen("http", listening(text), options.get("workers", 1)).sockets
    ]
    zergs = serve_zergs(ZergSettings(servers, tuple(pools)), binder, lambda: sockets, loop, log)
    log.line(f"handing out, {len(zergs)} servers")
    try:
        while True:
            loop.run_once()
    finally:
        for zerg in zergs:
            zerg.close()
        loop.close()
        binder.close()
        binder.vacuum()


if __name__ == "__main__":
    main()
