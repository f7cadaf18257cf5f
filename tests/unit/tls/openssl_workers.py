"""A master with two forked workers for tests: ``CERT KEY tickets|sessions DIRECTORY``.

Prints the two ports, one line. Each line on the standard input is an order: ``rotate``, ``retire``
(both as if enough time had passed), ``kill`` (the first worker dies and is forked anew); the answer
is ``done``. With ``sessions``, sessions are files in DIRECTORY; else ticket keys are shared.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from uwgate.config.settings_tls import TicketSettings
from uwgate.tls.openssl import load
from uwgate.tls.tickets import TicketKeys

LIFE = 300


class Master:
    """Everything before the fork."""

    def __init__(self, cert: str, key: str, mode: str, where: Path) -> None:
        hooks = load(print)
        assert hooks is not None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(cert, key)
        hooks.set_session_context(self.context, b"workers")
        hooks.set_timeout(self.context, LIFE)
        self.keys = TicketKeys(TicketSettings(), LIFE, print)
        self.where = where
        if mode == "sessions":
            self.context.options |= ssl.OP_NO_TICKET
            hooks.external_sessions(self.context, self.new, self.get, lambda _: None)
        else:
            self.keys.attach(hooks, self.context)
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.pids = [self.fork(listener) for listener in self.listeners]

    def new(self, key: bytes, der: bytes) -> None:
        (self.where / key.hex()).write_bytes(der)

    def get(self, key: bytes) -> bytes | None:
        file = self.where / key.hex()
        return file.read_bytes() if file.exists() else None

    def fork(self, listener: socket.socket) -> int:
        pid = os.fork()
        if pid == 0:
            while True:
                connection = listener.accept()[0]
                self.keys.refresh()
                try:
                    self.serve(connection)
                except OSError as error:
                    print(error, file=sys.stderr)
        return pid

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with self.context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.sendall(b"served by %d\n" % os.getpid())
            wrapped.unwrap().close()

    def order(self, word: str) -> None:
        now = time.monotonic()
        if word == "rotate":
            self.keys.rotate(now - 2)  # the workers have long seen it
        elif word == "retire":
            self.keys.retire(now + LIFE + 2)
        elif word == "kill":
            os.kill(self.pids[0], signal.SIGKILL)
            os.waitpid(self.pids[0], 0)
            self.pids[0] = self.fork(self.listeners[0])


def main() -> None:
    master = Master(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    print(*[listener.getsockname()[1] for listener in master.listeners], flush=True)
    for line in sys.stdin:
        master.order(line.strip())
        print("done", flush=True)
    for pid in master.pids:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
