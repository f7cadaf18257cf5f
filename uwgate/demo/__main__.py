"""``python -m uwgate.demo``: two nodes in a process of their own, the router before them.

PORT is where the router serves HTTP (8080), the statistics are one above. Ctrl-C or SIGTERM ends
all of it. Exit codes: 0 stopped as asked, 1 the ports cannot be had, else those of the router.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from typing import NoReturn

from uwgate import cli
from uwgate.demo.nodes import serve
from uwgate.master.privileges import die_with_parent

_HOST = "127.0.0.1"
_KEY = "demo"  # whatever name the router is called by
_DRAIN = "2"  # seconds; the demo's event stream would never end by itself


def _ports() -> tuple[int, int]:
    """Of the router and of the statistics; ValueError if PORT is no port."""
    text = os.environ.get("PORT") or "8080"
    if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) is None or not 0 < int(text) < 65535:
        raise ValueError(f"PORT={text}: expected a number from 1 to 65534")
    return int(text), int(text) + 1


def _check_free(port: int) -> None:
    """OSError, with the port in its text, if somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise OSError(f"{_HOST}:{port} cannot be had: {error.strerror}") from error


def _free_datagram_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _fork_nodes(http: socket.socket, uwsgi: socket.socket, server: int) -> int:
    """Start the process that serves both nodes, and announces them to the UDP port ``server``; its
    pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_nodes(parent, http, uwsgi, server)
    return pid


def _be_nodes(parent: int, http: socket.socket, uwsgi: socket.socket, server: int) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's Ctrl-C; it will tell us
        die_with_parent()
        if os.getppid() == parent:
            asyncio.run(serve(http, uwsgi, _KEY, (_HOST, server)))
        code = 0
    finally:
        # Not sys.exit: below us on the stack is the router's side of this program.
        os._exit(code)


def _say(port: int, stats: int) -> None:
    base = f"http://{_HOST}:{port}"
    print(f"""
uwgate demo: {base}/ is served by two nodes in turn, one over HTTP, one over uwsgi, which
announced themselves.

  in a browser      {base}/             who answered, what it saw, events, a WebSocket
  what a node saw   curl {base}/seen -d 'a body'
  a stream          curl -N {base}/stream
  refused           curl -i {base}/ -H 'Content-Length: +1'
  statistics        curl http://{_HOST}:{stats}/         uwsgitop {_HOST}:{stats}
  who serves what   uwgate nodes {_HOST}:{stats}
  metrics           curl http://{_HOST}:{stats}/metrics

Ctrl-C stops it. Another port: make demo PORT=9000
""", flush=True)  # fmt: skip


def main() -> int:
    """Run the demonstration until it is told to stop; the exit code."""
    try:
        port, stats = _ports()
        _check_free(port)
        _check_free(stats)
    except (OSError, ValueError) as error:
        print(f"uwgate demo: {error}; choose another with PORT=, as in: make demo PORT=9000",
              file=sys.stderr)  # fmt: skip
        return 1
    with socket.create_server((_HOST, 0)) as http, socket.create_server((_HOST, 0)) as uwsgi:
        server = _free_datagram_port()
        nodes = _fork_nodes(http, uwsgi, server)
    try:
        _say(port, stats)
        return cli.main([
            "--http", f"{_HOST}:{port}", "--http-cheap",
            "--http-subscription-server", f"{_HOST}:{server}",
            "--http-subscription-fallback-key", _KEY,
            "--http-stats", f"{_HOST}:{stats}", "--http-log",
            "--http-drain-timeout", _DRAIN,
        ])  # fmt: skip
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(nodes, signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):  # the router buries whoever dies before it
            os.waitpid(nodes, 0)


if __name__ == "__main__":
    sys.exit(main())
