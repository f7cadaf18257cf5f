"""Values of the master's options: text -> value, or ValueError with one sentence."""

from __future__ import annotations

import difflib
import os
import re
import signal
from collections.abc import Callable
from typing import get_args

from uwgate.config import addresses, values
from uwgate.config.settings import Endpoint
from uwgate.config.settings_process import Touch, TouchAction, ZergPool

_UNIX_LIMIT = 107
# capabilities(7), by number.
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)  # fmt: skip


def megabytes(text: str) -> int:
    """A number of megabytes (uWSGI) -> bytes."""
    return values.integer(0, 1 << 20)(text) << 20


def owner(text: str) -> tuple[int, int]:
    """``USER[:GROUP]`` or ``:GROUP`` -> user and group id, -1 where it stays."""
    user, colon, group = text.partition(":")
    if not user and not group:
        raise ValueError(f"{text!r} names nobody; expected USER or USER:GROUP")
    if colon and not group:
        raise ValueError(f"{text!r} has no group behind the colon")
    return (values.user(user) if user else -1, values.group(group) if group else -1)


def log_owner(text: str) -> tuple[int, int] | bool:
    """As ``owner``. uWSGI has a flag here: its words for on and off are those, not users."""
    if values.odd_boolean(text):
        return owner(text)
    return values.boolean(text)


def log_mode(text: str) -> int:
    """Permission bits in octal; there is no default (that of sockets lets everybody write)."""
    if not text:
        raise ValueError("a mode is missing; expected three octal digits such as 640")
    return values.mode(text)


def socket_path(text: str) -> str:
    """The path of a unix socket."""
    path = values.filename(text)
    if path.startswith(("@", ":")) or addresses.connecting(path).kind != "unix":
        raise ValueError(f"{text!r} is no path of a unix socket")
    if len(os.fsencode(os.path.abspath(path))) > _UNIX_LIMIT:
        raise ValueError(f"{text!r} is too long for a unix socket ({_UNIX_LIMIT} bytes)")
    return path


def unix_address(text: str) -> Endpoint:
    """A path, or ``@name``: descriptors pass through no other socket."""
    if not text:
        raise ValueError("an address is missing; expected a path or @name")
    found = addresses.connecting(text)
    if found.kind not in ("unix", "abstract"):
        raise ValueError(f"{text!r} is no unix socket; expected a path or @name")
    return found


def zerg_pool(text: str) -> ZergPool:
    """``CONTROL:ADDRESS[,ADDRESS]``. The first colon separates; an address with another colon is
    TCP, one without is a unix socket (uWSGI)."""
    control, colon, rest = text.partition(":")
    if not control or not colon or not rest:
        raise ValueError(f"{text!r} is not understood; expected CONTROL:ADDRESS[,ADDRESS]")
    parts = rest.split(",")
    if not all(parts):
        raise ValueError(f"{text!r} has an empty address")
    found = tuple(map(addresses.bindable, parts))
    if any(each.kind == "fd" for each in found):
        raise ValueError(f"{text!r}: a pool binds its sockets itself; fd:// is of no use to it")
    return ZergPool(unix_address(control), found)


def capabilities(text: str) -> tuple[str, ...]:
    """Names of capabilities(7) with commas, with or without ``cap_``, in any case."""
    found = []
    for word in text.split(","):
        name = word.strip().lower().removeprefix("cap_")
        if name not in CAPABILITIES:
            near = difflib.get_close_matches(name, CAPABILITIES, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{word.strip()!r} is no capability{hint}")
        found.append(name)
    return tuple(dict.fromkeys(found))


def touched(action: str) -> Callable[[str], Touch]:
    """The value of ``touch-ACTION``: a file, with ``exec`` and ``signal`` an argument behind."""
    (known,) = (each for each in get_args(TouchAction) if each == action)

    def parse(text: str) -> Touch:
        if known not in ("exec", "signal"):
            return Touch(os.path.abspath(values.filename(text)), known)
        path, _, argument = values.for_system(text).strip().partition(" ")
        argument = argument.strip()
        if not argument:
            what = "command" if known == "exec" else "signal"
            raise ValueError(f"{text!r} is not understood; expected FILE, a blank, and the {what}")
        if known == "signal":
            argument = str(int(_signal(argument)))
        return Touch(os.path.abspath(values.filename(path)), known, argument)

    return parse


def _signal(text: str) -> signal.Signals:
    """By number or name, with or without SIG."""
    name = text.upper()
    try:
        if re.fullmatch(r"[0-9]{1,3}", text):
            return signal.Signals(int(text))
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is no signal") from None
