"""Files of ticket keys."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openssl_tools import TLS_1_3, World, hooks, visit

from uwgate.config.settings_tls import TicketSettings
from uwgate.tls.errors import TlsError
from uwgate.tls.tickets import KEY_SIZE, TicketKeys, read_keys

WORLD_READABLE = "warning: ssl-ticket-keys: {}: everybody may read or write it"


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """In one step, as whoever changes keys should."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.chmod(mode)
    new.replace(path)
    return path


def made(file: Path, log: list[str]) -> TicketKeys:
    return TicketKeys(TicketSettings(source=str(file)), 300, log.append)


def datas(keys: TicketKeys) -> list[bytes]:
    return [bytes(key.data) for key in keys._keys]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=80, max_size=80), min_size=1, max_size=16), st.booleans())
def test_keys_of_80_bytes_are_taken_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, keys: list[bytes], text: bool
) -> None:
    keys = [bytes([200 + place]) + key[1:] for place, key in enumerate(keys)]  # names differ
    data = b"\n".join(map(base64.b64encode, keys)) + b"\n" if text else b"".join(keys)
    file = write(tmp_path_factory.mktemp("keys") / "keys", data)
    log: list[str] = []
    assert read_keys(str(file), log.append)[0] == keys
    assert log == []


@pytest.mark.parametrize("text", [False, True])
def test_keys_of_48_bytes_are_stretched(tmp_path: Path, text: bool) -> None:
    keys = [b"\xff" + os.urandom(47) for _ in range(2)]
    data = b"\n".join(map(base64.b64encode, keys)) if text else b"".join(keys)
    file = write(tmp_path / "keys", data)
    found = read_keys(str(file), print)[0]
    assert [key[:16] for key in found] == [key[:16] for key in keys]
    assert {len(key) for key in found} == {KEY_SIZE}
    assert len({part for key in found for part in (key[16:48], key[48:])}) == 4
    assert read_keys(str(file), print)[0] == found


BAD = {
    "empty": b"",
    "blank": b"\n\n",
    "too short": b"\xff" * 79,
    "too long": b"\xff" * 81,
    "not base64": b"-----BEGIN PRIVATE KEY-----\n",
    "base64 of something else": base64.b64encode(bytes(64)),
    "seventeen": b"".join(bytes([200 + place]) * 80 for place in range(17)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_file_of_keys(tmp_path: Path, data: bytes) -> None:
    file = write(tmp_path / "keys", data)
    with pytest.raises(TlsError) as caught:
        made(file, [])
    assert str(caught.value) == (
        f"ssl-ticket-keys: {file}: expected 1 to 16 keys of 80 or 48 bytes, "
        "raw or a line of base64 each"
    )


def test_two_keys_of_one_name(tmp_path: Path) -> None:
    file = write(tmp_path / "keys", b"\xff" * 16 + bytes(64) + b"\xff" * 80)
    with pytest.raises(TlsError, match="two keys begin with the same 16 bytes"):
        made(file, [])


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"^ssl-ticket-keys: .*/keys: No such file or directory$"):
        made(tmp_path / "keys", [])
    with pytest.raises(TlsError, match="Is a directory"):
        made(tmp_path, [])


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o604, True)])
def test_file_that_everybody_may_read(tmp_path: Path, mode: int, warned: bool) -> None:
    file = write(tmp_path / "keys", b"\xff" * 80, mode)
    log: list[str] = []
    made(file, log)
    assert log == ([WORLD_READABLE.format(file)] if warned else [])


def test_file_is_not_rotated_and_read_again_when_it_changes(tmp_path: Path) -> None:
    first, second = b"\xff" + os.urandom(79), b"\xfe" + os.urandom(79)
    file = write(tmp_path / "keys", first)
    log: list[str] = []
    keys = made(file, log)
    assert keys.next_rotation == float("inf")
    keys.rotate()
    keys.reread()
    assert (datas(keys), log) == ([first], [])
    write(file, second + first)
    keys.reread()
    assert datas(keys) == [second, first]
    assert log == [f"ssl-ticket-keys: {file}: 2 keys are in use from now on"]
    write(file, second + first)
    keys.reread()
    assert len(log) == 1
    keys.refresh(1e12)
    assert datas(keys) == [second, first]


def test_broken_file_leaves_the_keys_and_is_logged_once(tmp_path: Path) -> None:
    first, second = b"\xff" + os.urandom(79), b"\xfe" + os.urandom(79)
    file = write(tmp_path / "keys", first)
    log: list[str] = []
    keys = made(file, log)
    write(file, first[:50])
    for _ in range(3):
        keys.reread()
    assert datas(keys) == [first]
    assert len(log) == 1
    assert log[0].endswith("a line of base64 each; the ticket keys stay as they are")
    file.unlink()
    for _ in range(3):
        keys.reread()
    assert datas(keys) == [first]
    assert len(log) == 2
    assert "No such file" in log[1]
    write(file, second)
    keys.reread()
    assert datas(keys) == [second]
    assert len(log) == 3
    file.unlink()
    keys.reread()
    assert len(log) == 4


def test_keys_of_our_own_are_not_read_again() -> None:
    log: list[str] = []
    keys = TicketKeys(TicketSettings(source="redis://127.0.0.1/0"), 300, log.append)
    before = datas(keys)
    keys.reread()
    assert (datas(keys), log) == (before, [])


def test_two_machines_change_keys_without_losing_a_session(tmp_path: Path) -> None:
    """The way the documentation tells: first the new key at the end, then at the beginning."""
    world, client = World(tmp_path), None
    old, new = b"\xff" + os.urandom(79), b"\xfe" + os.urandom(79)
    files = [write(tmp_path / f"keys{number}", old) for number in range(2)]
    machines = [made(file, []) for file in files]
    servers = [world.server(), world.server()]
    for machine, server in zip(machines, servers, strict=True):
        machine.attach(hooks(), server)
    client = world.client(TLS_1_3)
    session = visit(servers[0], client)[1]
    for data in (old + new, new + old):
        for file, machine in zip(files, machines, strict=True):
            write(file, data)
            machine.reread()
            for server in servers:
                reused, session = visit(server, client, session)
                assert reused
    for file, machine in zip(files, machines, strict=True):
        write(file, new)
        machine.reread()
    assert visit(servers[0], client, session)[0]
