"""What an instance is put together of before its first worker starts: everything that may fail.

A start, a reload and the rehearsal of a reload go through the same steps, in the same order.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from uwgate.config.settings import Endpoint, ListenerSettings, Settings
from uwgate.config.settings_process import ZergAttach
from uwgate.master import privileges
from uwgate.master.announcing import Announcing, placed
from uwgate.master.errors import StartError, explain
from uwgate.master.gateways import Plan
from uwgate.master.handover import HandedSocket, Handover, adopt
from uwgate.master.inherited import Inherited
from uwgate.master.logs import MainLog, create_log
from uwgate.master.loop import Loop
from uwgate.master.slots import Slot, make_slots
from uwgate.master.sockets import Binder, Bound
from uwgate.master.subscribing import Subscriptions
from uwgate.master.systemd import Activated
from uwgate.master.tls import Tls
from uwgate.master.zerg import ZergServer, attached, serve_zergs
from uwgate.observe.backlog import socket_name
from uwgate.subscriptions.socketfile import identity, set_rights
from uwgate.subscriptions.table import Change

Publish = Callable[[str, list[Change]], None]


class Assembly:
    """One instance without its workers. ``make`` raises ``StartError``.

    ``handed``: from the master before. ``activated``: sockets of systemd. ``publish`` sends changes
    of subscriptions to the workers of a gateway.
    """

    def __init__(
        self,
        settings: Settings,
        plans: Mapping[str, Plan],
        loop: Loop,
        log: MainLog,
        publish: Publish,
        *,
        handed: Handover | None = None,
        activated: Sequence[Activated] = (),
    ) -> None:
        self.settings = settings
        self.plans = plans
        self._loop = loop
        self._log = log
        self._publish = publish
        self.rehearsal = handed is not None and handed.mode == "rehearse"
        self._handed = handed
        self._parts: Mapping[str, Any] = handed.parts if handed is not None else {}
        sockets = [*(handed.sockets if handed is not None else ()), *map(_activated, activated)]
        self.inherited = Inherited(sockets, rehearsal=self.rehearsal)
        self.binder = Binder(settings.process, log.line, self.inherited)
        self.traffic: list[Bound] = []
        self.listening: list[tuple[str, Bound]] = []  # gateway, address
        self.encrypted: list[Bound] = []  # of those the ones with TLS
        self.slots: list[Slot] = []
        self.stats: Bound | None = None
        self.control: Bound | None = None
        self.zergs: list[ZergServer] = []
        self.tls = Tls(settings, loop, log, self._parts.get("tls"), self.inherited)
        self.subscriptions: Subscriptions | None = None
        self.announcing: Announcing | None = None

    def make(self) -> None:
        """All of it, in the order in which it may be needed."""
        self._settle()
        self._bind()
        self.tls.prepare()
        self._subscribe()
        self._bind_services()
        self._prepare_announcing()
        self._create_logs()

    def drop_privileges(self) -> None:
        """Whatever needs them is made."""
        process = self.settings.process
        # What puts the workers into their root directory; they give it up.
        kept = process.capabilities + (("sys_chroot",) if process.chroot else ())
        privileges.drop(
            process.uid, process.gid, add_gids=process.add_gids, capabilities=kept
        )
        privileges.hide()
        if os.geteuid() != 0:
            for plan in self.plans.values():
                for kind, wanted, have in (
                    ("uid", plan.uid, os.geteuid()),
                    ("gid", plan.gid, os.getegid()),
                ):
                    if wanted not in (None, have):
                        raise StartError(f"{plan.name}-{kind} = {wanted}: only root may change it")
        elif any(plan.uid in (None, 0) for plan in self.plans.values()):
            self._log.line("running as root: set uid and gid, or those of each gateway")

    # -- steps ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        # After the log and the pidfile got their names, before the sockets: as in uWSGI.
        process = self.settings.process
        if process.umask is not None:
            os.umask(process.umask)
        if process.chdir:
            try:
                os.chdir(process.chdir)
            except OSError as error:
                raise StartError(f"chdir = {process.chdir}: {explain(error)}") from None

    def _bind(self) -> None:
        most = max((plan.workers for plan in self.plans.values()), default=1)
        self.binder.bind_shared(most)
        for plan in self.plans.values():
            listening: list[tuple[ListenerSettings, Bound]] = []
            for listener in plan.listeners:
                word = _option_of(plan.name, listener)
                bound = self.binder.listen(word, listener.endpoint, plan.workers)
                listening.append((listener, bound))
                if listener.tls is not None:
                    self.encrypted.append(bound)
            listening += self._attach(plan)
            for listener, bound in listening:
                self.listening.append((plan.name, bound))
                numbers = ", ".join(str(sock.fileno()) for sock in bound.sockets)
                word = _option_of(plan.name, listener)
                self._log.line(f"uwgate {word} bound on {bound.name} fd {numbers}")
            self.slots += make_slots(plan.name, plan.workers, listening, len(self.slots) + 1)
        self.traffic = list(self.binder.bound)

    def _attach(self, plan: Plan) -> list[tuple[ListenerSettings, Bound]]:
        """Listeners on the sockets that zerg servers hand out."""
        found = []
        for each in plan.attach:
            option = f"{each.gateway}-zerg" if each.gateway else "zerg"
            kept = [adopt(fd) for handed in self._kept(each) for fd in handed.fds]
            if not kept:
                zerg = self.settings.zerg
                kept = attached(option, each.server, self._log, fallback=zerg.fallback)
            for bound in self.binder.attach(option, each.server, kept):
                endpoint = replace(each.server, text=bound.name)
                found.append((ListenerSettings(endpoint), bound))
        return found

    def _kept(self, each: ZergAttach) -> list[HandedSocket]:
        return self.inherited.take_all(each.server.text)

    def _subscribe(self) -> None:
        """Bind the subscription servers, and read what is left of the last run."""
        settings = self.settings
        wanted = {
            name: plan.subscriptions
            for name, plan in self.plans.items()
            if plan.subscriptions is not None
        }
        if not wanted:
            return
        self.subscriptions = Subscriptions(
            wanted,
            settings.subscriptions,
            settings.announce,
            self._loop,
            self._log,
            self._publish,
            mode=settings.process.chmod_socket,
            uid=settings.process.uid,
            inherited=self.inherited,
            handed=self._parts.get("subscriptions"),
        )
        for name in wanted:
            names = [bound.name for gateway, bound in self.listening if gateway == name]
            self.subscriptions.listens(name, names)

    def _bind_services(self) -> None:
        """What the master serves itself. Clients of these need not say a word, so acceptance must
        not wait for one."""
        process, life = self.settings.process, self.settings.life
        if process.stats is not None:
            self.stats = self.binder.listen("http-stats", process.stats, 1, defer=False)
            number = self.stats.sockets[0].fileno()
            self._log.line(f"uwgate stats on {self.stats.name} fd {number}")
        if life.control:
            if self._handed is not None and self._handed.mode == "fork":
                _make_way(life.control)
            endpoint = Endpoint("unix", life.control, path=life.control)
            self.control = self.binder.listen("control-socket", endpoint, 1, defer=False)
            if self.control.fresh:
                _open_to_all(life.control)
        self.zergs = serve_zergs(
            self.settings.zerg, self.binder, self._lendable, self._loop, self._log
        )

    def _lendable(self) -> Iterator[socket.socket]:
        """Those without TLS: what makes it is not handed out with a socket."""
        hidden = {sock for bound in self.encrypted for sock in bound.sockets}
        return (sock for sock in self.all_traffic() if sock not in hidden)

    def all_traffic(self) -> Iterator[socket.socket]:
        """Every listening socket that clients come to."""
        return (sock for bound in self.traffic for sock in bound.sockets)

    def _prepare_announcing(self) -> None:
        settings = self.settings.announce
        if not settings.entries and not settings.notify_socket:
            return
        shared = [bound for bound in self.traffic if bound.option.endswith("shared-socket")]
        self.announcing = Announcing(
            placed(settings, self.listening, shared),
            self._loop,
            self._log,
            cores=sum(plan.workers for plan in self.plans.values()),
            mode=self.settings.process.chmod_socket,
            inherited=self.inherited,
        )

    def _create_logs(self) -> None:
        """While it is still allowed: the workers will open it as somebody else."""
        settings, process = self.settings, self.settings.process
        if settings.request_log.enabled and settings.request_log.path and self.plans:
            plan = next(iter(self.plans.values()))
            uid = process.uid if process.uid is not None else plan.uid
            gid = process.gid if process.gid is not None else plan.gid
            create_log(settings.request_log.path, uid, gid)

    def renew_control(self) -> socket.socket | None:
        """Another instance had taken the path of the control socket, and is gone: a new socket,
        None if that is not so. Raises StartError."""
        old = self.control
        if old is None or identity(old.endpoint.path) == old.file:
            return None
        fresh = self.binder.listen(old.option, old.endpoint, 1, defer=False)
        _open_to_all(old.endpoint.path)
        self.binder.bound.remove(old)
        self.control = fresh
        return fresh.sockets[0]

    # -- from one master to the next -----------------------------------------------------------

    def handed(self) -> list[HandedSocket]:
        """All sockets, for the next master."""
        sockets = [bound.handed() for bound in self.binder.bound]
        if self.subscriptions is not None:
            sockets += self.subscriptions.sockets()
        if self.announcing is not None:
            sockets += self.announcing.sockets()
        return sockets + self.tls.sockets() + self.inherited.kept()

    # -- the end -------------------------------------------------------------------------------

    def let_go(self) -> None:
        """This was a rehearsal: leave everything as if it had never been."""
        if self.announcing is not None:
            self.announcing.let_go()
        if self.subscriptions is not None:
            self.subscriptions.let_go()
        self.binder.vacuum(fresh=True)

    def close(self, *, heirs: bool = False) -> None:
        """Say goodbye to other machines, and close all of it. ``heirs``: another instance has the
        same sockets, so nobody need know and no file goes."""
        if self.announcing is not None:
            (self.announcing.let_go if heirs else self.announcing.close)()
        if self.subscriptions is not None:
            (self.subscriptions.let_go if heirs else self.subscriptions.close)()
        self.tls.close()
        for zerg in self.zergs:
            zerg.close()
        if heirs:
            pass
        elif self.settings.process.vacuum:
            self.binder.vacuum()
        elif self.control is not None:
            self.control.vacuum()
        self.binder.close()


def _open_to_all(path: str) -> None:
    """Whoever connects is asked for his name; the mode would keep out those who may."""
    try:
        set_rights(path, 0o666)
    except OSError as error:
        raise StartError(f"control-socket = {path}: {explain(error)}") from None


def _make_way(path: str) -> None:
    """The newer of two instances that share everything gets the control socket."""
    if identity(path) is not None:
        os.unlink(path)


def _activated(each: Activated) -> HandedSocket:
    """A socket of systemd. It is one for all workers, as it was not made for more."""
    with socket.socket(fileno=os.dup(each.fd)) as sock:
        kind = "stream" if sock.type == socket.SOCK_STREAM else "dgram"
        name = socket_name(sock)
        if sock.family == socket.AF_INET6 and not sock.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        ):
            # ``ListenStream=80``: IPv4, too, which is what ``:80`` means.
            name = name.replace("[::]:", "0.0.0.0:", 1)
        path = name if sock.family == socket.AF_UNIX else ""
    file = identity(path) if path.startswith("/") else None
    text = f"fd://{each.name}" if each.name else f"fd://{each.fd}"
    return HandedSocket(
        name, kind, [each.fd], list(file) if file else None, text, single=True, foreign=True
    )


def _option_of(gateway: str, listener: ListenerSettings) -> str:
    """The option that asks for such a listener."""
    if listener.tls is not None:
        return "https"
    return "http-to-https" if listener.redirect is not None else gateway
