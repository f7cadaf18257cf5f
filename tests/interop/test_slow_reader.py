"""A reader that stalls costs a bounded buffer, whatever the size of the body."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from support.uwgate import Gateway, running

from interop.apps.workhorse import blob_digest
from interop.clients import Client, fetch
from interop.peers import Gate, Peer

SIZE = 100 << 20
ALLOWED = 8 << 20


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def resident(gateway: Gateway) -> int:
    """RSS of the gateway's processes together, bytes."""
    pages = 0
    for pid in family(gateway.process.pid):
        pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", ["uwsgi", "http"])
@pytest.mark.parametrize("path", ["download", "unframed"])
def test_stalled_reader(uwsgi_app: Peer, gunicorn_app: Peer, kind: str, path: str) -> None:
    node = uwsgi_app.address if kind == "uwsgi" else f"http://{gunicorn_app.address}"
    with running("--http-to", node) as gateway:
        assert fetch(gateway.port, "/download?size=3000000").size == 3000000
        before = resident(gateway)
        with Client(gateway.port, receive_buffer=65536) as client:
            client.start("GET", f"/{path}?size={SIZE}")
            client.finish()
            assert client.head().status == 200
            # Observed for a while, not waited for: whatever the gateway would read ahead, it would
            # read at once.
            peak, end = before, time.monotonic() + 1.5
            while time.monotonic() < end:
                peak = max(peak, resident(gateway))
                time.sleep(0.05)
            assert peak - before <= ALLOWED, f"{peak - before} bytes for one stalled reader"
            digest = hashlib.sha256()
            for part in client.parts():
                digest.update(part)
            assert digest.hexdigest() == blob_digest(SIZE)


@pytest.mark.parametrize("kind", ["uwsgi", "http"])
def test_stalled_node(uwsgi_app: Peer, gunicorn_app: Peer, gate: Gate, kind: str) -> None:
    """The other direction: an application that does not read the body it was promised."""
    node = uwsgi_app.address if kind == "uwsgi" else f"http://{gunicorn_app.address}"
    with running("--http-to", node) as gateway:
        assert fetch(gateway.port, "/digest", method="POST", body=b"x" * 3000000).status == 200
        before = resident(gateway)
        with Client(gateway.port) as client:
            client.start("POST", f"/late?gate={gate.path}", [("Content-Length", str(SIZE))])
            gate.reached()
            client.socket.setblocking(False)
            sent, peak, end = 0, before, time.monotonic() + 1.5
            block = b"x" * 65536
            while time.monotonic() < end:
                try:
                    sent += client.socket.send(block)
                except BlockingIOError:
                    time.sleep(0.02)
                peak = max(peak, resident(gateway))
            assert sent < SIZE // 2, "nothing held the client back"
            assert peak - before <= ALLOWED, f"{peak - before} bytes for one stalled node"
        gate.open()
