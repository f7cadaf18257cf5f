"""Giving up what a process does not need: users, groups, kernel privileges; and its limits.

Order matters: groups before the user (afterwards they cannot be changed), the parent-death signal
after the user (the kernel forgets it when the effective user changes, prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
from collections.abc import Collection

from uwgate.master import capabilities as caps
from uwgate.master.errors import StartError, explain

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38


def drop(
    uid: int | None,
    gid: int | None,
    option: str = "",
    *,
    add_gids: Collection[int] = (),
    capabilities: Collection[str] = (),
) -> None:
    """Become ``uid``/``gid`` for good; None keeps the one or the other.

    With a ``uid`` that has an account, its supplementary groups are taken on and, without a
    ``gid``, its primary group; without an account no supplementary group is left. ``add_gids`` come
    on top. Does nothing if the process is that user and group already. ``option`` ("" or "http-")
    prefixes the option names in errors. Raises ``StartError`` if the system refuses.

    ``capabilities``: kept over the change of user, and nothing else is; a process that was not root
    at first must have them already. One that stays root keeps all.
    """
    account = _account(uid)
    if gid is None and account is not None and uid != os.geteuid():
        gid = account.pw_gid
    if os.geteuid() != 0 and _is(uid, gid):
        if not set(add_gids) <= {*os.getgroups(), os.getegid()}:
            raise StartError(f"{option}add-gid = {_listed(add_gids)}: operation not permitted")
        if capabilities:
            caps.limit(capabilities)
        return
    if uid is None and gid is None and not add_gids:
        return
    keep = bool(capabilities) and uid not in (None, 0)
    try:
        if keep:
            caps.numbers(capabilities)
            caps.hold(True)
        _become(uid, gid, account, add_gids)
    except OSError as error:
        wanted = [
            f"{option}{name} = {value}"
            for name, value in (("gid", gid), ("add-gid", _listed(add_gids)), ("uid", uid))
            if value not in (None, "")
        ]
        raise StartError(f"{', '.join(wanted)}: {explain(error)}") from None
    if keep:
        caps.limit(capabilities)
        caps.hold(False)


def enter_root(path: str) -> None:
    """Make ``path`` the root directory and the working directory of this process (chroot(2)).

    Before ``drop``: it takes root, or the capability sys_chroot. Raises ``StartError``.
    """
    try:
        os.chroot(path)
        os.chdir("/")
    except OSError as error:
        raise StartError(f"chroot = {path}: {explain(error)}") from None


def _is(uid: int | None, gid: int | None) -> bool:
    return uid in (None, os.geteuid()) and gid in (None, os.getegid())


def _listed(numbers: Collection[int]) -> str:
    return ",".join(map(str, numbers))


def _account(uid: int | None) -> pwd.struct_passwd | None:
    if uid is None:
        return None
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _become(
    uid: int | None,
    gid: int | None,
    account: pwd.struct_passwd | None,
    add_gids: Collection[int],
) -> None:
    if gid is not None:
        os.setresgid(gid, gid, gid)
    if uid is not None and account is not None:
        os.initgroups(account.pw_name, os.getegid())
    elif uid is not None or gid is not None:
        os.setgroups([])
    if add_gids:
        os.setgroups(list(dict.fromkeys([*os.getgroups(), *add_gids])))
    if uid is not None:
        os.setresuid(uid, uid, uid)


def die_with_parent() -> None:
    """Have the kernel SIGKILL this process when its parent dies (as uWSGI's gateways do).

    An orphan would go on holding the address, with nobody to stop it. To be called after
    ``drop``; the caller compares ``getppid`` afterwards, as the parent may be dead already.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def hide() -> None:
    """Let no other process of this user look into this one, nor write there (ptrace(2), /proc): the
    kernel sees to that when the user changes, and forgets it when a program is executed."""
    if os.geteuid() != 0:
        _prctl(_PR_SET_DUMPABLE, 0)


def no_new_privileges() -> None:
    """No program that this process starts can gain privileges (set-user-ID, file capabilities)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_name(name: str) -> None:
    """Name of the process in ``ps -o comm`` and ``top``; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode("utf-8", "replace")[:15])


def raise_descriptor_limit() -> None:
    """Let this process open as many descriptors as the hard limit allows.

    Nothing is allocated by the limit, so memory does not depend on it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # Some sandboxes report a hard limit above what they grant: the soft one stays.
            return


def _prctl(option: int, argument: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    value = argument if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    nil = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), value, nil, nil, nil) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
