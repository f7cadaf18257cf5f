"""``uwgate nodes`` against a running gateway, and against sockets that serve captured documents."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.nodes import RawHttpNode, RawUwsgiNode
from support.uwgate import ROOT, StartGateway
from support.waiting import DEADLINE, dead_address, free_port, wait_until

from uwgate.nodes.rows import rows
from uwgate.nodes.table import render
from uwgate.subscriptions.packet import Announcement, encode

# What a uWSGI 2.0.31 router says (with keys of its own only).
UWSGI = {
    "version": "2.0.31",
    "http": ["127.0.0.1:8080", "127.0.0.1:4040"],
    "subscriptions": [
        {
            "key": "example.com",
            "hash": 30778,
            "hits": 9,
            "nodes": [
                {
                    "name": "10.0.0.1:3031",
                    "modifier1": 0,
                    "modifier2": 0,
                    "last_check": 1_700_000_000,
                    "requests": 4,
                    "last_requests": 1,
                    "weight": 1,
                    "wrr": 1,
                    "ref": 1,
                    "failcnt": 3,
                    "death_mark": 1,
                }
            ],
        }
    ],
    "cheap": 0,
}

OURS: dict[str, Any] = {
    "static_nodes": [
        {
            "name": "10.0.0.9:80",
            "hits": 7,
            "grace": 0,
            "gateway": "http",
            "protocol": "http",
            "fallback": 1,
            "weight": 2,
            "failures": 0,
            "active": 0,
        }
    ],
    "subscriptions": [
        {
            "key": "b.example.com/Shop",
            "gateway": "http",
            "nodes": [
                {
                    "name": "/run/\x1b[31m\u2028.sock",
                    "proto": "uwsgi",
                    "state": "slow-start",
                    "weight": 4,
                    "backup": 1,
                    "ref": 2,
                    "requests": 100,
                    "latency_ms": 2.04,
                    "failures": 1,
                    "errors": {"node-timeout": 3, "node-closed": 1},
                    "last_seen": 130,
                }
            ],
        },
        {
            "key": "a.example.com",
            "gateway": "http",
            "nodes": [
                {
                    "name": "10.0.0.1:3031",
                    "proto": "uwsgi",
                    "state": "up",
                    "weight": 1,
                    "backup": 0,
                    "ref": 0,
                    "requests": 300,
                    "latency_ms": 4.04,
                    "failures": 0,
                    "errors": {},
                    "last_seen": 3,
                }
            ],
        },
    ],
    "subscriptions_shown": 2,
    "subscriptions_total": 12,
    "subscription_counters": {
        "http": {"keys": 2, "nodes": 12, "received": 9, "joined": 2, "rejected": {"stale": 1}}
    },
}

Answer = Callable[[bytes], bytes]


@contextmanager
def answering(answer: Answer, listener: socket.socket | None = None) -> Iterator[str]:
    """A socket that reads until the end or an empty line and says ``answer`` of it."""
    server = listener or socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _address = server.accept()
            except OSError:
                return
            with sock:
                asked = b""
                while not asked.endswith(b"\r\n\r\n") and (data := sock.recv(4096)):
                    asked += data
                sock.sendall(answer(asked))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}" if listener is None else ""
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def saying(document: object) -> Answer:
    return lambda asked: json.dumps(document).encode()


def run(*words: str, **environ: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "uwgate", "nodes", *words],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environ},
        timeout=30,
    )
    error = done.stderr.decode()
    assert "Traceback" not in error
    return done.returncode, done.stdout.decode(), error


def table(text: str) -> list[list[str]]:
    return [line.replace("IN FLIGHT", "IN_FLIGHT").split() for line in text.splitlines()]


def test_the_table() -> None:
    with answering(saying(OURS)) as address:
        code, text, error = run(address)
    assert (code, error) == (0, "")
    head, static, first, second, total, counters, shown = table(text)
    titles = "KEY NODE PROTO STATE WEIGHT BACKUP IN_FLIGHT REQUESTS LATENCY ERRORS SEEN"
    assert " ".join(head) == titles
    assert " ".join(static) == "- 10.0.0.9:80 http up 2 1 0 7 - 0 -"
    assert " ".join(first) == "a.example.com 10.0.0.1:3031 uwsgi up 1 0 0 300 4.0 ms 0 3s"
    name = r"/run/\x1b[31m\xe2\x80\xa8.sock"
    assert " ".join(second) == f"b.example.com/Shop {name} uwsgi slow-start 4 1 2 100 2.0 ms 4 2m"
    assert total == ["2", "keys", "3", "nodes", "2", "407", "3.5", "ms", "4"]
    assert " ".join(counters) == "http: datagrams: received 9, joined 2, rejected 1 (stale 1)"
    assert " ".join(shown).startswith("2 of 12 nodes are shown")
    assert "\x1b" not in text


def test_a_router_of_uwsgi() -> None:
    with answering(saying(UWSGI)) as address:
        code, text, _error = run(address)
    assert code == 0
    row = table(text)[1]
    assert row[:8] == ["example.com", "10.0.0.1:3031", "uwsgi", "marked", "1", "0", "1", "4"]
    assert row[8:10] == ["-", "3"]
    assert row[10].endswith("d")


def test_one_key() -> None:
    with answering(saying(OURS)) as address:
        for key in ("B.example.com/Shop", "b.example.com/Shop"):
            code, text, _error = run("--key", key, address)
            assert code == 0
            assert [row[0] for row in table(text)] == ["KEY", "b.example.com/Shop", "1"]
        code, text, _error = run("--key", "-", address)
        assert [row[0] for row in table(text)] == ["KEY", "-", "0"]
        code, text, error = run("--key", "b.example.com/shop", address)
    assert (code, text) == (1, "")
    assert error == f"uwgate nodes: {address}: no node has the key 'b.example.com/shop'\n"


def test_json() -> None:
    with answering(saying(OURS | {"workers": [1]})) as address:
        code, text, _error = run("--json", address)
        assert (code, json.loads(text)) == (0, OURS)
        assert "\x1b" not in text
        code, text, _error = run(address, "--json", "--key=a.example.com")
    value = json.loads(text)
    assert [slot["key"] for slot in value["subscriptions"]] == ["a.example.com"]
    assert "static_nodes" not in value


def test_stats_http_and_urls() -> None:
    """Who wants a request gets one, whatever form the address has."""
    asked = []

    def answer(request: bytes) -> bytes:
        asked.append(request)
        body = json.dumps(OURS).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n" + body if request else b""

    with answering(answer) as address:
        assert run(address)[0] == 0
        assert asked == [b"", b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"]
        asked.clear()
        assert run(f"http://{address}/stats?x")[0] == 0
        assert asked == [b"GET /stats?x HTTP/1.0\r\nHost: %b\r\n\r\n" % address.encode()]


def test_unix_and_abstract_sockets(tmp_path: Path) -> None:
    path, name = str(tmp_path / "stats.sock"), f"uwgate-nodes-{os.getpid()}"
    for bound, text in ((path, path), (b"\0" + name.encode() + b"\0", "@" + name)):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(bound)
            listener.listen()
            with answering(saying(OURS), listener):
                code, output, _error = run(text)
                assert code == 0
                assert "a.example.com" in output


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "the connection was closed without an answer"),
        (b"SSH-2.0-x\r\n", "the answer is not the statistics of a gateway"),
        (b"[1]", "the answer is not the statistics of a gateway"),
        (b"[" * 100_000, "the answer is not the statistics of a gateway"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "the answer has status 404"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "the answer is not the statistics of a gateway"),
    ],
)
def test_other_answers(answer: bytes, problem: str) -> None:
    with answering(lambda asked: answer) as address:
        assert run(address) == (1, "", f"uwgate nodes: {address}: {problem}\n")


def test_nobody_answers(tmp_path: Path) -> None:
    address = dead_address()
    assert run(address) == (1, "", f"uwgate nodes: {address}: Connection refused\n")
    path = str(tmp_path / "none")
    assert run(path) == (1, "", f"uwgate nodes: {path}: No such file or directory\n")
    assert run("--watch", address) == (1, "", f"uwgate nodes: {address}: Connection refused\n")


@pytest.mark.parametrize("words", [["8080"], [":x"], [], ["--watch", "0", ":1"], ["--what", ":1"]])
def test_what_is_not_understood(words: list[str]) -> None:
    code, text, error = run(*words)
    assert (code, text) == (2, "")
    assert "uwgate nodes: error: " in error


def test_values_of_other_types_are_nothing() -> None:
    odd = {"subscriptions": [1, {"key": 2, "nodes": [{"name": [], "requests": "x"}, 3]}, {}]}
    (row,) = rows(odd | {"static_nodes": {"a": 1}})
    assert (row.key, row.node, row.requests, row.state) == ("", "", 0, "up")


def test_no_nodes() -> None:
    with answering(saying({"version": "1"})) as address:
        assert run(address) == (0, "no nodes\n", "")


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    found = rows(OURS)
    lines = render(found, width).splitlines()
    widest = max(map(len, render(found).splitlines()))
    assert max(map(len, lines)) <= width
    if width >= widest:
        assert lines == render(found).splitlines()
    else:
        assert lines[0].split()[:2] == ["KEY", "NODE"]
        assert ("STATE" in lines[0]) is (width >= 40)


def test_gateways_are_a_column_if_there_are_several() -> None:
    other = {"key": "a.example.com", "gateway": "fastrouter", "nodes": [{"name": "x:1"}]}
    text = render(rows(OURS | {"subscriptions": [*OURS["subscriptions"], other]}))
    lines = table(text)
    assert lines[0][:2] == ["GATEWAY", "KEY"]
    assert lines[1][:3] == ["fastrouter", "a.example.com", "x:1"]
    assert lines[-1][:4] == ["3", "keys", "4", "nodes"]


# --- on a terminal --------------------------------------------------------------------------------


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Terminal:
    """The command on a terminal of 100 columns and ``height`` lines."""

    def __init__(self, *words: str, height: int = 24, **environ: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, 100, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uwgate", "nodes", *words],
            cwd=ROOT,
            env={**kept, "TERM": "xterm", **environ},
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            # Ignored signals are inherited: nohup, and shells that start things in the background.
            preexec_fn=_interruptible,
        )
        os.close(slave)
        self.seen = ""

    def read(self) -> bool:
        """Read what is there; False at the end."""
        if not select.select([self._master], [], [], 0)[0]:
            return True
        try:
            self.seen += os.read(self._master, 65536).decode()
        except OSError:  # EIO: the other side is closed
            return False
        return True

    def finish(self) -> str:
        wait_until(lambda: not self.read(), "end of the output")
        assert self.process.wait(DEADLINE) == 0
        os.close(self._master)
        return self.seen.replace("\r\n", "\n")


def test_colours_on_a_terminal_only() -> None:
    bad = {"name": "x:1", "state": "marked", "errors": {"a": 1}}
    marked = {"key": "c", "gateway": "http", "nodes": [bad]}
    with answering(saying(OURS | {"subscriptions": [marked]})) as address:
        text = Terminal(address).finish()
        assert "\x1b[31mmarked" in text
        assert "\x1b[1mKEY" in text
        for words, environ in (
            (["--no-color"], {}),
            ([], {"NO_COLOR": "1"}),
            ([], {"TERM": "dumb"}),
        ):
            assert "\x1b" not in Terminal(*words, address, **environ).finish()


def test_watch_paints_again_and_survives_a_restart() -> None:
    said = [json.dumps(OURS).encode(), b"?", json.dumps(UWSGI).encode()]
    with answering(lambda asked: said.pop(0) if len(said) > 1 else said[0]) as address:
        terminal = Terminal("--watch=0.1", address, height=8)

        def painted() -> bool:
            assert terminal.read()
            return terminal.seen.count("10.0.0.1:3031") >= 3

        wait_until(painted, "three tables")
        terminal.process.send_signal(2)
        text = terminal.finish()
    first, failed, *_others = text.split("\x1b[H")[1:]
    assert first.startswith(f"{address}, every 0.1 s, ")
    assert first.count("\n") <= 8
    assert "more lines)" in first
    assert "not the statistics" in failed
    assert text.endswith("\x1b[J")


def test_watch_without_a_terminal() -> None:
    with answering(saying(OURS)) as address:
        process = subprocess.Popen(
            [sys.executable, "-m", "uwgate", "nodes", "--json", "--watch", "0.1", address],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process.stdout:
            assert [json.loads(process.stdout.readline()) for _ in range(3)] == [OURS] * 3
        assert process.wait(DEADLINE) == 0  # the reader left


# --- a running gateway ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--stats-http"], ["--stats-minified"]])
def test_static_nodes_of_a_running_gateway(
    start_gateway: StartGateway,
    http_node: RawHttpNode,
    uwsgi_node: RawUwsgiNode,
    options: list[str],
) -> None:
    stats = f"127.0.0.1:{free_port()}"
    gateway = start_gateway(
        "--http-to", http_node.spec, "--http-to", uwsgi_node.spec, "--http-stats", stats, *options
    )
    with gateway.connect() as client:
        for _ in range(4):
            assert client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
    code, text, error = run(stats)
    assert (code, error) == (0, "")
    lines = table(text)
    assert sorted((row[0], row[2], row[3], row[7]) for row in lines[1:3]) == [
        ("-", "http", "up", "2"),
        ("-", "uwsgi", "up", "2"),
    ]
    assert lines[3][:4] == ["0", "keys", "2", "nodes"]
    assert len(lines) == 4
    value = json.loads(run("--json", stats)[1])
    assert list(value) == ["static_nodes"]
    assert sum(node["hits"] for node in value["static_nodes"]) == 4


def test_subscribed_nodes_of_a_running_gateway(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode
) -> None:
    stats, port, dead = f"127.0.0.1:{free_port()}", free_port(), dead_address()
    gateway = start_gateway(
        *("--http-subscription-server", f"127.0.0.1:{port}", "--http-stats", stats),
        *("--http-processes", "2"),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for address in (uwsgi_node.spec.rpartition("/")[2], dead):
            packet = encode(Announcement("example.com", address, weight=3))
            sender.sendto(packet, ("127.0.0.1", port))
        sender.sendto(b"garbage", ("127.0.0.1", port))

        def document() -> dict[str, Any]:
            return json.loads(run("--json", stats)[1])

        wait_until(lambda: document()["subscriptions_total"] == 2, "two nodes")
    refused = {"not-a-subscription": 1}
    for _ in range(8):
        with gateway.connect() as client:
            assert client.ask(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").status == 200
    wait_until(lambda: "marked" in run(stats)[1], "the mark")
    lines = table(run("--key", "example.com", stats)[1])
    found = {row[1]: (row[0], row[2], row[3], row[4], row[7]) for row in lines[1:3]}
    live = uwsgi_node.spec.rpartition("/")[2]
    assert found[live] == ("example.com", "uwsgi", "up", "3", "8")
    assert found[dead] == ("example.com", "uwsgi", "marked", "3", "0")
    wait_until(
        lambda: document()["subscription_counters"]["http"]["rejected"] == refused,
        "the refusal",
    )
    counters = document()["subscription_counters"]["http"]
    assert (counters["keys"], counters["nodes"], counters["joined"]) == (1, 2, 2)
    assert counters["servers"] == [f"127.0.0.1:{port}"]


def test_packets_above_the_rate_are_counted(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode
) -> None:
    stats, port = f"127.0.0.1:{free_port()}", free_port()
    start_gateway(
        *("--http-subscription-server", f"127.0.0.1:{port}", "--http-stats", stats),
        *("--subscription-max-rate", "5"),
    )
    wait_until(lambda: run(stats)[0] == 0, "the statistics")
    packet = encode(Announcement("example.com", uwsgi_node.spec))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(100):
            sender.sendto(packet, ("127.0.0.1", port))

    def counted() -> bool:
        counters = json.loads(run("--json", stats)[1])["subscription_counters"]["http"]
        # A second may have ended in between.
        return counters["joined"] == 1 and counters["rejected"].get("rate", 0) >= 90

    wait_until(counted, "what was dropped")
