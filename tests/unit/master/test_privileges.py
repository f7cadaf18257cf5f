"""Privileges and limits, each in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAD = "import json, os, sys\nfrom uwgate.master import privileges\n"


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_drop_to_oneself_is_nothing() -> None:
    done = child("privileges.drop(os.geteuid(), os.getegid()); privileges.drop(None, None)")
    assert done.returncode == 0, done.stderr


def test_drop_is_for_good_or_refused() -> None:
    done = child(
        "privileges.drop(65534, None)\n"
        "print(os.getresuid(), os.getgroups())\n"
        "try: os.setuid(0)\n"
        "except PermissionError: print('for good')\n"
    )
    if os.geteuid() == 0:
        assert "(65534, 65534, 65534)" in done.stdout
        assert done.stdout.endswith("for good\n")
    else:
        assert "StartError: " in done.stderr
        assert "uid = 65534: operation not permitted" in done.stderr


def test_user_without_an_account_keeps_no_group() -> None:
    done = child("privileges.drop(54321, 54321, 'http-'); print(os.getgroups(), os.getgid())")
    if os.geteuid() == 0:
        assert done.stdout == "[] 54321\n"
    else:
        expected = "http-gid = 54321, http-uid = 54321: operation not permitted"
        assert expected in done.stderr


def test_descriptor_limit_is_raised() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = child(
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))\n"
        "privileges.raise_descriptor_limit()\n"
        "privileges.raise_descriptor_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    assert done.stdout == f"{hard}\n"


def test_bad_prctl_is_an_error() -> None:
    done = child("privileges._prctl(-1, 0)")
    assert "OSError: [Errno 22] Invalid argument" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose its groups")
def test_more_groups() -> None:
    done = child(
        "import pwd\n"
        "mail = pwd.getpwnam('nobody')\n"
        "privileges.drop(mail.pw_uid, 54321, add_gids=(54322, 54323, 54322))\n"
        "groups = os.getgroups()\n"
        "print(os.getgid(), [gid for gid in groups if gid > 54000])\n"
        "privileges.drop(os.geteuid(), os.getegid(), add_gids=(54322,))\n"
        "try: privileges.drop(os.geteuid(), os.getegid(), 'http-', add_gids=(1, 54324))\n"
        "except Exception as error: print(error)\n"
    )
    first, second = done.stdout.splitlines()
    assert first in ("54321 [54321, 54322, 54323]", "54321 [54322, 54323]")
    assert second == "http-add-gid = 1,54324: operation not permitted"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose its groups")
def test_more_groups_without_another_user() -> None:
    done = child("privileges.drop(None, None, add_gids=(54322,)); print(os.getgroups())")
    assert "54322" in done.stdout, done.stderr
    done = child("os.setgroups([7]); privileges.drop(None, None); print(os.getgroups())")
    assert done.stdout == "[7]\n"


def test_another_root_directory(tmp_path: Path) -> None:
    (tmp_path / "inside").touch()
    done = child(f"privileges.enter_root({str(tmp_path)!r}); print(os.getcwd(), os.listdir('/'))")
    if os.geteuid() == 0:
        assert done.stdout == "/ ['inside']\n"
        done = child(f"privileges.enter_root({str(tmp_path / 'missing')!r})")
        assert f"StartError: chroot = {tmp_path}/missing: no such file" in done.stderr
    else:
        assert f"StartError: chroot = {tmp_path}: operation not permitted" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the right to hand on")
def test_another_root_directory_for_the_worker_of_a_master_that_was_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = child(
        f"os.chdir({str(tmp_path)!r})\n"
        "privileges.drop(65534, None, capabilities=('sys_chroot',))\n"
        "from uwgate.master import capabilities\n"
        "privileges.enter_root('.')\n"
        "capabilities.drop_all()\n"
        "try: os.chroot('/')\n"
        "except PermissionError: print('for good')\n"
    )
    assert done.stdout == "for good\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_nobody_of_the_same_user_looks_in() -> None:
    """An execution makes a process visible again that has given its user up (prctl(2))."""
    code = (
        "import ctypes, os; from uwgate.master import privileges\n"
        "prctl = ctypes.CDLL(None).prctl\n"
        "privileges.hide(); assert prctl(3, 0, 0, 0, 0) == 1  # root need not hide\n"
        "os.setresuid(65534, 65534, 65534); prctl(4, 1, 0, 0, 0)\n"
        "privileges.hide(); assert prctl(3, 0, 0, 0, 0) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
