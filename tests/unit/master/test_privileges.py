"""Privileges and limits, each in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

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
