"""Kernel capabilities (capabilities(7)): what is kept of root's rights when the user changes.

Kept ones are permitted, effective, inheritable *and* ambient: so the master has them again after
it has executed itself for a reload.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Collection

from uwgate.master.errors import StartError, explain

# <linux/capability.h>: the numbers are the positions.
# fmt: off
_ORDER = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)
# fmt: on
NAMES: dict[str, int] = {name: number for number, name in enumerate(_ORDER)}

# <linux/prctl.h>
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    """``struct __user_cap_header_struct``; pid 0 is the caller."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    """``struct __user_cap_data_struct``: 32 of 64 bits; low ones first."""

    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def numbers(names: Collection[str]) -> list[int]:
    """Their numbers. ``StartError`` for one that Linux does not have. Lower case, without
    ``cap_``."""
    unknown = sorted(set(names) - NAMES.keys())
    if unknown:
        raise StartError(f"cap = {unknown[0]}: there is no such capability")
    return sorted({NAMES[name] for name in names})


def hold(on: bool) -> None:
    """Keep the permitted capabilities when the user changes from root, or do not any more."""
    _prctl(_PR_SET_KEEPCAPS, int(on))


def limit(names: Collection[str]) -> None:
    """Have exactly these, also after ``execve``. ``StartError`` if the process has not got one of
    them."""
    wanted = numbers(names)
    try:
        _set(wanted)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        for number in wanted:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
    except OSError as error:
        raise StartError(f"cap = {','.join(sorted(names))}: {explain(error)}") from None


def drop_all() -> None:
    """Have none, and no way to get one. The bounding set only shrinks with the capability to shrink
    it; without, ``privileges.no_new_privileges`` has the same effect."""
    with contextlib.suppress(OSError):
        for number in range(64):
            if _prctl(_PR_CAPBSET_READ, number):
                _prctl(_PR_CAPBSET_DROP, number)
    with contextlib.suppress(OSError):  # a kernel before 4.3 has no ambient ones
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _set(())


def permitted() -> set[str]:
    """What this process may use; those without a name are left out."""
    data = (_Data * 2)()
    _call("capget", data)
    bits = data[0].permitted | data[1].permitted << 32
    return {name for name, number in NAMES.items() if bits >> number & 1}


def _set(wanted: Collection[int]) -> None:
    bits = sum(1 << number for number in wanted)
    halves = [_Data(half, half, half) for half in (bits & 0xFFFFFFFF, bits >> 32)]
    _call("capset", (_Data * 2)(*halves))


def _call(name: str, data: ctypes.Array[_Data]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(ctypes.byref(_Header(_VERSION_3, 0)), data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _prctl(option: int, first: int, second: int = 0) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    result: int = libc.prctl(ctypes.c_int(option), *words)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
