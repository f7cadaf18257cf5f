"""Capabilities, each time in a process of its own; what the kernel says of it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uwgate.master import capabilities
from uwgate.master.errors import StartError

ROOT = Path(__file__).resolve().parents[3]
HEAD = """
import json, os, sys
from uwgate.master import capabilities, privileges
from uwgate.master.errors import StartError
def sets():
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    names = ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")
    return [int(rows[name], 16) for name in names]
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has any to keep")

# sed: those four sets, each as a JSON string.
SCRIPT = r's/^Cap\(Inh\|Prm\|Eff\|Amb\):\t\(.*\)/"\2"/p'
CHROOT, BIND = 1 << 18, 1 << 10


def child(code: str) -> list[Any]:
    """What it has printed: JSON, one value a line."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_numbers_are_those_of_linux() -> None:
    # <linux/capability.h>: the first, the last of the first word, the first of the second, the last
    assert capabilities.numbers(["chown", "setfcap", "mac_override"]) == [0, 31, 32]
    assert capabilities.numbers(["checkpoint_restore", "net_bind_service"]) == [10, 40]
    assert len(capabilities.NAMES) == 41


def test_unknown_name() -> None:
    with pytest.raises(StartError, match=r"^cap = fly: there is no such capability$"):
        capabilities.numbers(["chown", "fly"])


@as_root
def test_kept_over_the_change_of_user_and_over_an_execution() -> None:
    # Not Python: another user may not be allowed to read its library.
    ours, reduced, *after = child(
        "privileges.drop(65534, None, capabilities=('net_bind_service', 'sys_chroot'))\n"
        "print(json.dumps(sets()[:4]))\n"
        "privileges.drop(65534, None, capabilities=('sys_chroot',))\n"
        "print(json.dumps(sets()[:4]), flush=True)\n"
        f"os.execvp('sed', ['sed', '-n', {SCRIPT!r}, '/proc/self/status'])\n"
    )
    assert ours == [CHROOT | BIND] * 4
    assert reduced == [CHROOT] * 4
    assert after == [f"{CHROOT:016x}"] * 4


@as_root
def test_nothing_is_kept_that_was_not_asked_for() -> None:
    (ours,) = child("privileges.drop(65534, None)\nprint(json.dumps(sets()[:4]))")
    assert ours == [0, 0, 0, 0]


@as_root
def test_root_that_stays_root_keeps_all() -> None:
    before, after = child(
        "print(json.dumps(sets()))\n"
        "privileges.drop(None, 65534, capabilities=('chown',))\n"
        "print(json.dumps(sets()))\n"
    )
    assert before == after


def test_one_that_it_has_not_is_refused() -> None:
    code = (
        "if os.geteuid() == 0: privileges.drop(65534, None)\n"
        "try: privileges.drop(os.geteuid(), None, capabilities=('sys_chroot', 'chown'))\n"
        "except StartError as error: print(json.dumps(str(error)))\n"
    )
    assert child(code) == ["cap = chown,sys_chroot: operation not permitted"]


@as_root
def test_drop_all() -> None:
    after, bounding = child(
        "capabilities.drop_all()\n"
        "print(json.dumps(sets()))\n"
        "print(json.dumps(sorted(capabilities.permitted())))\n"
    )
    assert after == [0, 0, 0, 0, 0]
    assert bounding == []


@as_root
def test_drop_all_of_what_was_kept() -> None:
    kept, after = child(
        "privileges.drop(65534, None, capabilities=('net_bind_service',))\n"
        "print(json.dumps(sorted(capabilities.permitted())))\n"
        "capabilities.drop_all()\n"
        "capabilities.drop_all()\n"
        "print(json.dumps(sets()[:4]))\n"
    )
    assert kept == ["net_bind_service"]
    assert after == [0, 0, 0, 0]
