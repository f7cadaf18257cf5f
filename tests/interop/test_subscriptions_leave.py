"""Real uWSGI instances stop, reload, pause, die and come back: who is asked, and does it show?"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.waiting import wait_until

from interop.peers import Gate, Peer, accepts
from interop.subscribing import (
    KEY,
    Router,
    Traffic,
    address,
    kill_all,
    node,
    node_logged,
    router,
    stop,
    subscribe,
)


@pytest.fixture
def gate_router() -> Iterator[Router]:
    with router() as started:
        yield started


@contextlib.contextmanager
def two_nodes(gate: Router, where: Path, *options: str) -> Iterator[tuple[Peer, Peer, Traffic]]:
    """Both serve, and somebody keeps asking; ``options``: of the first. No request may fail."""
    with ExitStack() as stack:
        two = stack.enter_context(node(where, *subscribe(gate, freq=1), name="two"))
        one = stack.enter_context(node(where, *subscribe(gate, freq=1), *options, name="one"))
        gate.joined(one.address)
        gate.joined(two.address)
        wait_until(lambda: set(gate.names(10)) == {"one", "two"}, "both serve")
        with Traffic(gate) as traffic:
            traffic.comes_from({"one", "two"})
            yield one, two, traffic


def fifo(path: Path, command: str) -> None:
    """Writes a command to uWSGI's master fifo, once the master reads it."""

    def written() -> bool:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        os.write(fd, command.encode())
        os.close(fd)
        return True

    wait_until(written, f"the master reads {path}")


class Slow:
    """A request that waits in the application of the node until ``gate`` opens.

    ``status``: of the answer, 0 while there is none.
    """

    def __init__(self, router: Router, gate: Gate) -> None:
        self._router = router
        self._gate = gate
        self._thread = threading.Thread(target=self._ask)
        self.status = 0

    def _ask(self) -> None:
        self.status = self._router.ask(f"/slow?gate={self._gate.path}").status

    def __enter__(self) -> Slow:
        self._thread.start()
        self._gate.reached()
        return self

    def __exit__(self, *exc: object) -> None:
        self._gate.open()
        self._thread.join()


# --- stop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGINT, ()),
        (signal.SIGQUIT, ()),
        (signal.SIGTERM, ("--die-on-term",)),
    ],
    ids=["SIGINT", "SIGQUIT", "SIGTERM-die-on-term"],
)
def test_goodbye_at_the_end(
    number: signal.Signals, options: tuple[str, ...], gate_router: Router, tmp_path: Path
) -> None:
    with two_nodes(gate_router, tmp_path, *options) as (one, _two, traffic):
        one.process.send_signal(number)
        gate_router.left(one.address)
        traffic.comes_from({"two"})
        assert one.process.wait(20) == 0
        traffic.more()
    assert f"marking {one.address}" not in gate_router.log  # nobody was turned away


def test_last_node_says_goodbye(gate_router: Router, tmp_path: Path) -> None:
    with node(tmp_path, *subscribe(gate_router)) as instance:
        gate_router.served()
        instance.process.send_signal(signal.SIGINT)
        gate_router.left(instance.address)
        gate_router.unserved()


def test_requests_in_flight_finish(gate_router: Router, gate: Gate, tmp_path: Path) -> None:
    """A graceful stop says goodbye first, and then lets its requests finish."""
    commands = tmp_path / "fifo"
    words = ("--master-fifo", str(commands), *subscribe(gate_router))
    with node(tmp_path, *words) as instance:
        gate_router.served()
        with Slow(gate_router, gate) as slow:
            fifo(commands, "q")
            gate_router.left(instance.address)
            gate_router.unserved()
            assert slow.status == 0
        assert slow.status == 200
        assert instance.process.wait(20) == 0


# --- reload -------------------------------------------------------------------------------------


def test_graceful_reload(gate_router: Router, tmp_path: Path) -> None:
    """Without the option a node does not leave: its socket stays, and requests wait in it."""
    with two_nodes(gate_router, tmp_path) as (one, _two, traffic):
        one.process.send_signal(signal.SIGHUP)
        node_logged(one, "gracefully (RE)spawned uWSGI master process")
        traffic.comes_from({"one", "two"})
    assert gate_router.log.count(f"new node: {one.address} ") == 1
    assert f"marking {one.address}" not in gate_router.log


def test_unsubscribe_on_graceful_reload(gate_router: Router, tmp_path: Path) -> None:
    words = ("--unsubscribe-on-graceful-reload",)
    with two_nodes(gate_router, tmp_path, *words) as (one, _two, traffic):
        for times in (1, 2):
            one.process.send_signal(signal.SIGHUP)
            gate_router.left(one.address, times=times)
            gate_router.joined(one.address, times=times + 1)
            traffic.comes_from({"one", "two"})
    assert f"marking {one.address}" not in gate_router.log


def test_request_in_flight_survives_a_reload(
    gate_router: Router, gate: Gate, tmp_path: Path
) -> None:
    words = ("--unsubscribe-on-graceful-reload", *subscribe(gate_router))
    with node(tmp_path, *words) as instance:
        gate_router.served()
        with Slow(gate_router, gate) as slow:
            instance.process.send_signal(signal.SIGHUP)
            gate_router.left(instance.address)
            gate_router.unserved()
        assert slow.status == 200
        gate_router.joined(instance.address, times=2)
        gate_router.served()


def test_brutal_reload(gate_router: Router, tmp_path: Path) -> None:
    """SIGTERM without die-on-term: goodbye, then the same again."""
    with node(tmp_path, *subscribe(gate_router)) as instance:
        gate_router.served()
        instance.process.send_signal(signal.SIGTERM)
        gate_router.left(instance.address)
        gate_router.joined(instance.address, times=2)
        gate_router.served()


# --- pause, silence -----------------------------------------------------------------------------


def test_pause_and_resume(gate_router: Router, tmp_path: Path) -> None:
    with two_nodes(gate_router, tmp_path) as (one, _two, traffic):
        one.process.send_signal(signal.SIGTSTP)
        gate_router.left(one.address)
        traffic.comes_from({"two"})
        one.process.send_signal(signal.SIGTSTP)
        gate_router.joined(one.address, times=2)
        traffic.comes_from({"one", "two"})


def test_subscriptions_blocked_by_the_fifo(tmp_path: Path) -> None:
    """``S``: not a word more, no goodbye either; the clock drops the node, ``S`` brings it back."""
    commands = tmp_path / "fifo"
    with router("--subscription-tolerance", "2") as gate:
        words = ("--start-unsubscribed", "--master-fifo", str(commands), *subscribe(gate, freq=1))
        with node(tmp_path, *words) as instance:
            node_logged(instance, "spawned uWSGI worker 1")
            assert gate.ask().status == 503
            fifo(commands, "S")
            gate.joined(instance.address)
            gate.served()
            fifo(commands, "S")
            gate.logged(f"{KEY} => marking {instance.address} as failed (no announce received")
            gate.unserved()
            assert accepts(instance.address)
            stop(instance)
            assert instance.process.wait(20) == 0
        assert f"node left: {instance.address}" not in gate.log


def test_silent_master(tmp_path: Path) -> None:
    """A master that hangs is silent: its node is dropped by the clock, without a request."""
    with (
        router("--subscription-tolerance", "2") as gate,
        two_nodes(gate, tmp_path) as (one, _two, traffic),
    ):
        one.process.send_signal(signal.SIGSTOP)
        try:
            gate.logged(f"{KEY} => marking {one.address} as failed (no announce received in")
            traffic.comes_from({"two"})
        finally:
            one.process.send_signal(signal.SIGCONT)
        gate.joined(one.address, times=2)
        traffic.comes_from({"one", "two"})


# --- death --------------------------------------------------------------------------------------


def test_kill_is_not_noticed(gate_router: Router, tmp_path: Path) -> None:
    """kill -9 of a whole instance: the first refused connection marks it, its request goes on."""
    with two_nodes(gate_router, tmp_path) as (one, _two, traffic):
        # Nothing is being answered by it that would die with it.
        one.process.send_signal(signal.SIGTSTP)
        gate_router.left(one.address)
        traffic.comes_from({"two"})
        one.process.send_signal(signal.SIGTSTP)
        gate_router.joined(one.address, times=2)
        kill_all(one)
        gate_router.logged(f"{KEY} => marking {one.address} as failed (")
        traffic.comes_from({"two"})
        assert gate_router.nodes()[one.address]["death_mark"] == 1
        with node(tmp_path, *subscribe(gate_router), socket_address=one.address, name="again"):
            gate_router.logged(f"{KEY} => {one.address} is back (")
            traffic.comes_from({"again", "two"})


def test_only_node_dies_and_comes_back_elsewhere(tmp_path: Path) -> None:
    """Errors are honest meanwhile, and the old address is dropped by the clock."""
    with router("--subscription-tolerance", "3") as gate, ExitStack() as stack:
        words = subscribe(gate, freq=1)
        first = stack.enter_context(node(tmp_path, *words, name="first"))
        gate.served()
        kill_all(first)
        wait_until(lambda: gate.ask().status in (502, 503), "there is nobody")
        gate.logged(f"{KEY} => marking {first.address} as failed (")
        second = stack.enter_context(node(tmp_path, *words, name="second"))
        gate.joined(second.address)
        wait_until(lambda: gate.name() == "second", "the second one serves")
        with Traffic(gate) as traffic:
            gate.logged(f"marking {first.address} as failed (no announce received")
            assert set(traffic.more()) == {"second"}
            assert set(gate.nodes()) == {second.address}


def test_comes_back_at_the_same_address(gate_router: Router, tmp_path: Path) -> None:
    where = address()
    for times in (1, 2, 3):
        words = subscribe(gate_router)
        name = f"n{times}"
        with node(tmp_path, *words, socket_address=where, name=name) as instance:
            gate_router.joined(where, times=times)
            wait_until(lambda name=name: gate_router.name() == name, "it serves")
            stop(instance)
            gate_router.left(where, times=times)
            gate_router.unserved()


def test_worker_of_the_router_dies(tmp_path: Path) -> None:
    """A new worker knows all nodes from its first request on: the master keeps the table."""
    with router() as gate, node(tmp_path, *subscribe(gate)) as instance:
        gate.joined(instance.address)
        gate.served()
        pid = gate.gate.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        (worker,) = children.read_text().split()
        instance.process.send_signal(signal.SIGSTOP)  # no announcement helps
        try:
            os.kill(int(worker), signal.SIGKILL)
            gate.logged("spawned uwgate http 1", times=2)
            assert gate.ask().status == 200
        finally:
            instance.process.send_signal(signal.SIGCONT)
