"""Whole instances: a master and real worker processes, with a stand-in for the gateway."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from master_instance import Instance, gone, instance, tcp
from support.waiting import DEADLINE, free_port, wait_until


def stats_of(port: int, path: str = "/") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def with_stats(**http_options: Any) -> tuple[int, dict[str, Any]]:
    port = free_port()
    return port, {"http": http_options, "process": {"stats": tcp(port), "respawn_delay": 0.2}}


def ready(port: int) -> bool:
    try:
        return stats_of(port, "/readyz")[0] == 200
    except OSError:
        return False


def test_serves_and_stops_with_0() -> None:
    with instance() as it:
        assert int(it.ask("who")) in it.workers
        it.stop()
        assert "spawned uwgate http 1 (pid: " in it.log
        assert "goodbye to uwgate." in it.log


def test_every_worker_has_its_own_socket_and_no_other() -> None:
    with instance({"http": {"processes": 3}}) as it:
        seen = set()
        wait_until(lambda: seen.add(it.ask("who")) or len(seen) == 3, "all three answer")
        facts = json.loads(it.ask("uid"))
        # Listener, control channel, the connection itself, and uvloop's pair for signals (three
        # descriptors with its wake-up duplicate at most): no sibling's listener or channel.
        assert facts["sockets"] <= 6
        it.stop()


def test_killed_worker_is_replaced() -> None:
    with instance({"process": {"respawn_delay": 0.1}}) as it:
        first = int(it.ask("who"))
        os.kill(first, signal.SIGKILL)
        second = int(it.ask("who"))
        assert second != first
        it.logged(f"respawned uwgate http 1 (pid: {second})")
        assert f"uwgate http 1 (pid: {first}) died: SIGKILL" in it.log
        it.stop()


def test_connections_queued_on_a_dead_workers_socket_are_served_by_its_successor() -> None:
    with instance({"process": {"respawn_delay": 0.3}}) as it:
        os.kill(int(it.ask("who")), signal.SIGKILL)
        os.kill(int(it.ask("who")), signal.SIGKILL)  # early again: this time it waits
        talks = [it.connect() for _ in range(5)]
        assert len({talk.ask("who") for talk in talks}) == 1
        for talk in talks:
            talk.sock.close()
        it.stop()


def test_worker_that_dies_again_and_again_does_not_spin() -> None:
    with instance({"process": {"respawn_delay": 0.2}}) as it:
        for code in range(4):
            with it.connect() as talk:
                talk.sock.sendall(b"exit %d\n" % (code + 20))
                it.logged(f"exit code {code + 20}")
        times = [line[11:23] for line in it.log.splitlines() if "respawned" in line]
        assert len(times) >= 3
        deaths = [line[11:23] for line in it.log.splitlines() if "died: exit code" in line]
        assert millis(times[2]) - millis(deaths[2]) >= 190
        it.stop()


def millis(clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return int((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1000)


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("broken", "uwgate http 1 cannot start: no such app"),
        ("crashing", "| RuntimeError: first"),
        ("silent", "died: exit code 9"),
    ],
)
def test_no_worker_could_ever_start(factory: str, line: str) -> None:
    options = {"factory": factory, "http": {"processes": 2}, "process": {"respawn_delay": 0.1}}
    with instance(options) as it:
        assert it.wait() == 3
        assert line in it.log
        assert "no worker could start: giving up" in it.log
        if factory == "crashing":
            assert "RuntimeError: first\\nsecond" in it.log


def test_drain_lets_requests_finish_and_refuses_new_ones() -> None:
    port, options = with_stats()
    with instance(options) as it:
        with it.connect() as talk:
            assert talk.ask("hold") == "held"
            assert ready(port)
            it.signal(signal.SIGTERM)
            wait_until(lambda: stats_of(port, "/readyz") == (503, b"draining\n"), "not ready")
            wait_until(lambda: refused(it.port), "refused")
            document = json.loads(stats_of(port)[1])
            assert document["counters"]["active_requests"] == 1
            assert talk.ask("done") == "finished"
        assert it.wait() == 0


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # its socket was closed in this very moment
        return False
    return False


def test_drain_is_limited() -> None:
    with instance({"http": {"drain_timeout": 0.3}}) as it, it.connect() as talk:
        talk.ask("hold")
        it.signal(signal.SIGTERM)
        assert it.wait() == 0
        with pytest.raises(ConnectionResetError):
            talk.ask("done")


def test_second_signal_cuts() -> None:
    with instance() as it:
        with it.connect() as talk:
            talk.ask("hold")
            it.signal(signal.SIGINT)
            it.logged("draining")
            # Signals within a tenth of a second are one.
            wait_until(lambda: it.signal(signal.SIGINT) or "stopping at once" in it.log)
            assert it.wait() == 0
        assert "SIGINT received: stopping at once" in it.log


def test_sigquit_cuts_and_a_stuck_worker_is_killed() -> None:
    with instance() as it:
        with it.connect() as talk:
            worker = int(talk.ask("who"))
            talk.sock.sendall(b"stuck\n")
            blocked = Path(f"/proc/{worker}/wchan")
            wait_until(lambda: "futex" in blocked.read_text(), "worker is stuck")
            it.signal(signal.SIGQUIT)
            assert it.wait() == 0
        assert "does not end: killed" in it.log
        assert gone(worker)


def test_sigterm_to_a_worker_drains_that_worker() -> None:
    with instance() as it:
        with it.connect() as talk:
            worker = int(talk.ask("who"))
            talk.ask("hold")
            os.kill(worker, signal.SIGTERM)
            assert talk.ask("done") == "finished"
        it.logged(f"(pid: {worker}) died: exit code 0")
        assert int(it.ask("who")) != worker
        it.stop()


def test_terminal_signals_do_not_end_a_worker() -> None:
    with instance() as it:
        worker = int(it.ask("who"))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker, number)
        assert int(it.ask("who")) == worker
        it.stop()


def test_workers_end_with_their_master_and_the_address_is_free() -> None:
    with instance({"http": {"processes": 2}}) as it:
        it.ask("who")
        workers = it.workers
        assert len(workers) == 2
        it.process.kill()
        wait_until(lambda: all(map(gone, workers)), "workers ended")
        assert refused(it.port)


def test_usr2_is_harmless_and_usr1_shows_counters() -> None:
    with instance() as it:
        it.ask("who")
        it.signal(signal.SIGUSR2)
        it.logged("SIGUSR2: means nothing to uwgate, ignored")
        it.signal(signal.SIGUSR1)
        it.logged("stats: workers idle; connections 0, active_requests 0, accepted 1, requests 1")
        it.stop()


def test_stats_survive_a_respawn() -> None:
    port, options = with_stats(processes=2)
    with instance(options) as it:
        wait_until(lambda: ready(port), "ready")
        worker = int(it.ask("who"))
        document = json.loads(stats_of(port)[1])
        assert document["counters"]["requests"] == 1
        os.kill(worker, signal.SIGTERM)
        it.logged("respawned")
        wait_until(lambda: len(rows(port, "idle")) == 2, "both serve")
        document = json.loads(stats_of(port)[1])
        assert document["counters"]["requests"] == 1
        assert sorted(row["respawn_count"] for row in document["workers"]) == [0, 1]
        assert document["pid"] == it.process.pid
        it.stop()


def rows(port: int, status: str) -> list[dict[str, Any]]:
    workers = json.loads(stats_of(port)[1])["workers"]
    return [row for row in workers if row["status"] == status]


def test_snapshot_larger_than_socket_buffers() -> None:
    port, options = with_stats()
    with instance(options) as it:
        wait_until(lambda: ready(port), "ready")
        it.ask("big")
        assert len(json.loads(stats_of(port)[1])["http"]) == 4001
        it.stop()


def test_worker_that_talks_nonsense_is_replaced() -> None:
    with instance({"process": {"respawn_delay": 0.1}}) as it:
        worker = it.ask("who")
        with it.connect() as talk:
            talk.sock.sendall(b"nonsense\n")
            it.logged("talks nonsense")
        it.logged(f"(pid: {worker}) talks nonsense (not JSON): killed")
        it.logged("respawned")
        assert it.ask("who") != worker
        it.stop()


def test_stuck_worker_does_not_hold_up_stats() -> None:
    port, options = with_stats(processes=2)
    with instance(options) as it:
        wait_until(lambda: ready(port), "ready")
        with it.connect() as talk:
            talk.sock.sendall(b"stuck\n")
            document = json.loads(stats_of(port)[1])
            assert len(document["workers"]) == 2
            it.signal(signal.SIGQUIT)
            assert it.wait() == 0


def test_crash_lines_are_escaped_and_not_repeated() -> None:
    with instance() as it:
        for _ in range(3):
            with it.connect() as talk, pytest.raises(ConnectionResetError):
                talk.ask("boom")
        it.logged("(2 times)")
        it.stop()
        assert it.log.count("Traceback") == 1
        assert "\x1b" not in it.log
        assert "RuntimeError: boom\\x1b[31m\\nnext line" in it.log


def test_address_in_use_is_one_line_and_1() -> None:
    with instance({"http": {"processes": 2}}) as it:
        it.ask("who")
        with instance({"http": {"listeners": [tcp(it.port)], "processes": 2}}) as other:
            assert other.wait() == 1
            last = other.log.splitlines()[-1]
            assert last == f"uwgate: error: http = 127.0.0.1:{it.port}: address already in use"
        it.stop()


def test_reuse_port_lets_two_instances_share_an_address() -> None:
    shared: dict[str, Any] = {"process": {"reuse_port": True}}
    with instance(shared) as it:
        it.ask("who")
        second = {"http": {"listeners": [tcp(it.port)]}, "process": {"reuse_port": True}}
        with instance(second) as other:
            other.logged("spawned")
            seen = set()
            wait_until(lambda: seen.add(it.ask("who")) or len(seen) == 2, "both answer")
            other.stop()
        it.stop()


def test_nothing_to_do() -> None:
    with instance({"http": {"listeners": []}}) as it:
        assert it.wait() == 1
        assert (
            it.log == "uwgate: error: nothing to do: no gateway is configured (try http = :8080)\n"
        )


def test_pidfile(tmp_path: Path) -> None:
    path = tmp_path / "uwgate.pid"
    with instance({"process": {"pidfile": str(path)}}) as it:
        it.ask("who")
        assert path.read_bytes() == b"%d\n" % it.process.pid
        assert path.stat().st_mode & 0o777 == 0o644
        it.stop()
        assert not path.exists()


def test_second_instance_leaves_the_pidfile_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with instance({"process": {"pidfile": str(path)}}) as it:
        it.ask("who")
        # The stand-in's command line does not name uwgate: as far as the file goes it is stale.
        second = {"http": {"listeners": [tcp(it.port)]}, "process": {"pidfile": str(path)}}
        with instance(second) as other:
            assert other.wait() == 1
        assert path.read_bytes() == b"%d\n" % it.process.pid
        it.stop()


def test_chdir_umask_and_log_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    process = {
        "chdir": str(tmp_path / "sub"),
        "log_file": "main.log",
        "pidfile": "pid",
        "umask": 0o077,
        "vacuum": True,
    }
    options = {
        "http": {"listeners": [{"kind": "unix", "text": "s", "path": "s"}]},
        "process": process,
    }
    with instance(options, cwd=tmp_path) as it:
        log = tmp_path / "main.log"
        wait_until(lambda: log.exists() and "spawned uwgate http 1" in log.read_text())
        # As in uWSGI: log and pidfile are named before the change of directory, sockets after.
        assert (tmp_path / "pid").exists()
        assert (tmp_path / "sub" / "s").stat().st_mode & 0o777 == 0o700
        log.rename(tmp_path / "old.log")
        it.signal(signal.SIGUSR1)
        wait_until(lambda: log.exists() and "stats:" in log.read_text(), "log reopened")
        it.stop()
        assert "goodbye" in log.read_text()
        assert it.log == ""
        assert os.listdir(tmp_path / "sub") == []


@pytest.mark.parametrize("option", ["chdir", "log_file", "pidfile"])
def test_bad_paths_are_one_line_and_1(option: str, tmp_path: Path) -> None:
    with instance({"process": {option: str(tmp_path / "no" / "where")}}) as it:
        assert it.wait() == 1
        name = {"log_file": "logto"}.get(option, option)
        path = tmp_path / "no" / "where"
        assert f"uwgate: error: {name} = {path}: no such file or directory\n" in it.log


def test_pidfile_that_is_a_directory(tmp_path: Path) -> None:
    with instance({"process": {"pidfile": str(tmp_path)}}) as it:
        assert it.wait() == 1
        assert f"pidfile = {tmp_path}: is a directory" in it.log


def test_request_log_is_created_and_reopened(tmp_path: Path) -> None:
    path = tmp_path / "requests.log"
    with instance({"request_log": {"enabled": True, "path": str(path)}}) as it:
        it.ask("who")
        assert path.stat().st_mode & 0o777 == 0o640
        path.rename(tmp_path / "old")
        it.signal(signal.SIGUSR1)
        wait_until(path.exists, "request log reopened")
        it.stop()


def test_request_log_in_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "no" / "log"
    with instance({"request_log": {"enabled": True, "path": str(path)}}) as it:
        assert it.wait() == 1
        assert f"request log {path}: no such file or directory" in it.log


def test_request_log_that_workers_cannot_open(tmp_path: Path) -> None:
    with instance({"request_log": {"enabled": True, "path": str(tmp_path)}}) as it:
        assert it.wait() == 3
        assert f"cannot start: request log {tmp_path}: is a directory" in it.log


def test_closed_standard_streams_do_not_receive_the_log() -> None:
    def closed() -> None:
        for number in range(3):
            os.close(number)

    with instance(preexec_fn=closed, stdout=None, stderr=None) as it:
        worker = it.ask("who")
        assert worker
        for number in range(3):
            target = os.readlink(f"/proc/{it.process.pid}/fd/{number}")
            assert target == "/dev/null"
        it.stop()


def test_log_reader_that_goes_away_or_stalls_does_not_matter() -> None:
    reading, writing = os.pipe()
    with instance(stderr=writing, stdout=writing) as it:
        os.close(writing)
        it.ask("who")
        os.close(reading)
        os.kill(int(it.ask("who")), signal.SIGKILL)
        it.ask("who")
        it.stop()


def test_full_pipe_does_not_block() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    with instance(stderr=writing, stdout=writing) as it:
        it.ask("who")
        it.stop()
    os.close(reading)
    os.close(writing)


def test_vacuum_removes_the_unix_socket() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/s"
        listener = {"kind": "unix", "text": path, "path": path}
        options = {"http": {"listeners": [listener]}, "process": {"vacuum": True}}
        with instance(options) as it:
            wait_until(lambda: os.path.exists(path), "bound")
            it.logged("spawned")
            it.stop()
        assert not os.path.exists(path)


def test_inherited_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        listener = {"kind": "fd", "text": f"fd://{number}", "number": number}
        options = {"http": {"listeners": [listener]}}
        with instance(options, pass_fds=(number,)) as it:
            it.port = listening.getsockname()[1]
            assert int(it.ask("who")) in it.workers
            it.stop()


def test_workers_descriptor_limit_and_rights() -> None:
    with instance({"process": {"procname": "gate"}}) as it:
        facts = json.loads(it.ask("uid"))
        assert facts["no_new_privs"] == "1"
        assert facts["name"] == "uwgate http 1"
        assert facts["limit"][0] == facts["limit"][1]
        assert Path(f"/proc/{it.process.pid}/comm").read_text() == "gate\n"
        it.stop()


def nobody() -> int:
    return 65534


@pytest.mark.parametrize("options", ["process", "http"])
def test_privileges(options: str) -> None:
    wanted = {options: {"uid": nobody(), "gid": nobody()}, "life": {"no_orphans": True}}
    with instance(wanted) as it:
        if os.geteuid() != 0:
            assert it.wait() == 1
            assert "uid = 65534" in it.log
            return
        facts = json.loads(it.ask("uid"))
        assert facts["uid"] == facts["gid"] == [nobody()] * 3
        assert 0 not in facts["groups"]
        owner = os.stat(f"/proc/{it.process.pid}").st_uid
        assert owner == (nobody() if options == "process" else 0)
        # The parent-death signal is set after the change of user, or it would be gone; a worker
        # with a request in flight would then drain for a minute.
        with it.connect() as talk:
            talk.ask("hold")
            workers = it.workers
            it.process.kill()
            it.process.wait()
            wait_until(lambda: all(map(gone, workers)), "worker ended with its master")


def test_shared_socket_is_bound_before_privileges_are_dropped() -> None:
    port = free_port()
    options = {
        "http": {"listeners": [{"kind": "shared", "text": "=0", "number": 0}], "processes": 2},
        "process": {"shared_sockets": [tcp(port)], "undeferred": [True]},
    }
    with instance(options) as it:
        it.port = port
        seen = set()
        wait_until(lambda: seen.add(it.ask("who")) or len(seen) == 2, "both answer")
        it.stop()


def test_backlog_above_the_kernels_is_an_error() -> None:
    with instance({"process": {"listen": 1_000_000}}) as it:
        it.logged("uwgate: error: listen = 1000000: more than net.core.somaxconn (")
        assert it.process.wait(DEADLINE) == 1


def test_stop_while_workers_are_starting() -> None:
    it = Instance({"http": {"processes": 2}})
    try:
        it.logged("starting uwgate")
        it.stop()
    finally:
        it.clean()
