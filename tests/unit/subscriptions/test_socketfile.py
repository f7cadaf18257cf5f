"""Rights of a socket's file, in a directory that somebody else may write to."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from uwgate.subscriptions.socketfile import set_rights


def test_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        set_rights(str(path), 0o612, (-1, os.getgid()))
        assert path.stat().st_mode & 0o777 == 0o612
        set_rights(str(path), None)
        assert path.stat().st_mode & 0o777 == 0o612


@pytest.mark.parametrize("kind", ["link", "link-to-socket", "file", "directory"])
def test_what_was_put_in_its_place_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "socket", tmp_path / "target"
    with socket.socket(socket.AF_UNIX) as sock:
        if kind == "link-to-socket":
            sock.bind(str(target))
        else:
            target.touch()
        target.chmod(0o600)
        if kind == "directory":
            path.mkdir(mode=0o700)
        elif kind == "file":
            path.touch(mode=0o600)
        else:
            path.symlink_to(target)
        before = path.stat().st_mode
        with pytest.raises(OSError, match="replaced") as caught:
            set_rights(str(path), 0o666, (os.getuid(), os.getgid()))
        assert caught.value.errno == errno.ENOTSOCK
        assert path.stat().st_mode == before
        assert target.stat().st_mode & 0o777 == 0o600
