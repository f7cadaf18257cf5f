"""What every gateway of a worker has: listeners, nodes, connections to nodes, counters, its life.

A gateway adds its front: the client's side of a connection, and what that has to know.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from uwgate.config.settings import GatewaySettings, ListenerSettings
from uwgate.protocols.http1_response import ResponseParser, ResponsePolicy
from uwgate.protocols.uwsgi import var
from uwgate.router.affinity import Sticky, token_of
from uwgate.router.balance import Address, Node, NodeGroup, is_named
from uwgate.router.clock import Clock
from uwgate.router.errors import Failure
from uwgate.router.exchange import Exchange
from uwgate.router.facts import RequestFacts, RequestLog
from uwgate.router.front import Connection, Front
from uwgate.router.own import OwnAddresses
from uwgate.router.poller import Poller
from uwgate.router.resolve import Resolver, make_resolver
from uwgate.router.resolve_subscriptions import Report, SubscriptionResolver
from uwgate.router.tally import Tally
from uwgate.router.upstream_http import HttpBack
from uwgate.router.upstream_uwsgi import UwsgiBack
from uwgate.subscriptions.table import Change, Table

if TYPE_CHECKING:
    from uwgate.tls.terminator import Terminator

_COMPLAINTS = 20  # log lines a second that traffic can cause


class Accepting(Protocol):
    """What accepts on a listening socket."""

    def close(self) -> None:
        """Accept no more."""
        ...


class Listener:
    """One listening socket of this worker. ``name``: for the stats; ``port``: SERVER_PORT, empty
    for unix sockets."""

    __slots__ = ("name", "port", "server", "settings", "sock")

    def __init__(self, settings: ListenerSettings, sock: socket.socket) -> None:
        self.settings = settings
        self.sock = sock
        self.server: Accepting | None = None
        self.name, self.port = _listener_name(settings, sock)


def _let_go(node: Node) -> bool:
    """Close the idle connections of a withdrawn node; whether nothing is left of it."""
    idle, node.idle = node.idle, []
    for back in idle:
        back.transport.close()
    return not node.active


def _listener_name(settings: ListenerSettings, sock: socket.socket) -> tuple[str, bytes]:
    """``(name for the stats, SERVER_PORT)`` of a bound socket."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        host, port = sock.getsockname()[:2]
        if sock.family == socket.AF_INET6:
            host = f"[{host}]"
        return f"{host}:{port}", str(port).encode()
    name = sock.getsockname()
    if isinstance(name, bytes):  # abstract
        return "@" + name.strip(b"\0").decode("utf-8", "replace"), b""
    return name or settings.endpoint.text, b""


class Gateway:
    """Everything that the requests of one worker share.

    ``timed``: 0, 1 if durations are summed (``measured``: statistics want them), 2 if a request log
    wants every fact. ``log`` takes one line for the main log. Subclasses provide ``accept``.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        loop: asyncio.AbstractEventLoop,
        request_log: RequestLog | None = None,
        server_name: bytes = b"localhost",
        log: Callable[[str], None] = print,
        measured: bool = False,
        auto_gzip: bool = False,
    ) -> None:
        self.settings = settings
        self.loop = loop
        self.log = log
        self.request_log = request_log
        # Balancing may want latencies.
        measured = measured or settings.algo == "p2c" or settings.subscriptions is not None
        self.timed = 2 if request_log is not None else int(measured)
        self.server_name = server_name
        self.default_key = server_name.decode("ascii", "replace").lower()
        self.clock = Clock(loop, self._on_tick)
        self.poller = self.make_poller()
        self.tally = Tally()
        self.fronts: set[Connection] = set()
        self.backs: set[HttpBack] = set()
        self.listeners: list[Listener] = []
        self.draining = False
        self.gently = False  # draining, but others serve: clients need not notice
        self.paused = False
        self.own = OwnAddresses(())
        self.leaving: list[Node] = []  # withdrawn nodes with requests or connections left
        self.spooled = 0  # bytes of request bodies held in memory and files now
        self._complaints = 0
        self.short_connect = settings.connect_timeout < settings.timeout
        self.pool_limit = settings.node_keepalive
        self._on_tick(self.clock.now)
        # Connections to uwsgi nodes whose packet is to be sent before the loop polls again. Sent in
        # a burst, they find a node awake that would go to sleep between them: 8 % of the CPU over
        # TCP.
        self.unsent: list[UwsgiBack] = []
        self.spare: list[UwsgiBack] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_drained: Callable[[], None] | None = None
        self.responses = ResponseParser(ResponsePolicy(gzip=auto_gzip))
        self.uwsgi_tail = b"".join(var(key, value) for key, value in settings.variables)
        self._make_nodes()
        self.no_exchange = Exchange(self, cast(Front, None))  # of connections that are gone

    def _make_nodes(self) -> None:
        settings = self.settings
        nodes = [Node(node) for node in settings.nodes]
        fallback = [Node(node, fallback=True) for node in settings.fallback]
        self.static_nodes = [*nodes, *fallback]
        self.mapped = settings.mapper.kind != "static"
        self.subscribed: SubscriptionResolver | None = None
        self.mountpoints = 0
        algo = settings.algo
        if settings.mapper.kind == "subscription":
            assert settings.subscriptions is not None
            self.mountpoints = settings.subscriptions.common.mountpoints
            self.subscribed = SubscriptionResolver(settings.subscriptions, self.clock)
            self.subscribed.is_own = self.is_own
            self.resolver: Resolver = self.subscribed
        else:
            self.resolver = make_resolver(settings, nodes, self.clock, self.log)
        # What hash looks at; announcements may ask for it key by key.
        hashed = self.subscribed is not None or algo == "hash"
        self.token_of = token_of(settings.hash_by) if hashed else None
        self.sticky: Sticky | None = None
        # The table, where a request's key is all that may decide.
        self.by_key = self.subscribed if not self.mountpoints else None
        self.turn = self.resolver.turns()
        self.fallback = NodeGroup(fallback, "wrr", self.clock) if fallback else None
        # Mapped nodes may be of either kind.
        self.any_uwsgi = self.mapped or any(node.protocol == "uwsgi" for node in self.static_nodes)

    def _on_tick(self, now: float) -> None:
        """Once a second: the deadlines that most requests get, so that none has to add them up."""
        settings = self.settings
        if self._complaints > _COMPLAINTS:
            self.log(f"({self._complaints - _COMPLAINTS} more complaints of this kind)")
        self._complaints = 0
        self.request_deadline = now + settings.timeout
        self.pool_deadline = now + settings.node_keepalive_timeout
        if self.gently:
            for front in list(self.fronts):
                front.leave()
        if self.leaving:
            self.leaving = [node for node in self.leaving if not _let_go(node)]

    def make_poller(self) -> Poller:
        """What watches the raw sockets."""
        return Poller(self.loop)

    # --- to be provided -----------------------------------------------------------------------

    async def accept(self, listener: Listener) -> Accepting:
        """Begin to accept clients on a socket."""
        raise AssertionError

    def use_tls(self, terminator: Terminator) -> None:
        """Terminate TLS with this; of no use to a gateway that has no such listener."""

    # --- life -------------------------------------------------------------------------------------

    async def start(self, sockets: Sequence[tuple[ListenerSettings, socket.socket]]) -> None:
        """Look up the nodes' names, then accept. The sockets are bound and listening."""
        self.clock.start()
        await self.look_up([node for node in self.static_nodes if not node.addresses])
        self._spawn(self._keep_looking_up())
        self.listeners = [Listener(settings, sock) for settings, sock in sockets]
        self.own = OwnAddresses(sock for _, sock in sockets)
        if not self.cheap:
            await self._listen()

    async def _listen(self) -> None:
        for listener in self.listeners:
            # Meanwhile the nodes may have left again, or an end been decided on.
            if listener.server is None and self._may_listen:
                listener.server = await self.accept(listener)

    @property
    def _may_listen(self) -> bool:
        return not (self.cheap or self.draining or self.paused)

    def pause(self) -> None:
        """Accept nobody for now: connections wait in the queue. Those that are here are served."""
        self.paused = True
        self._close_listeners()

    def resume(self) -> None:
        """Accept again."""
        self.paused = False
        if any(listener.server is None for listener in self.listeners):
            self._spawn(self._listen())

    def drain(
        self, on_drained: Callable[[], None] | None = None, *, gently: bool = False
    ) -> None:
        """Stop accepting, close idle connections, let requests under way finish.

        ``gently``: another worker has the sockets. Idle connections are kept for one more request,
        whose response tells that they end (RFC 9112 §9.6): whoever closes one takes the request
        that is on its way. May be called again, without ``gently``.
        """
        self._on_drained = on_drained
        self.draining = True
        self.gently = gently
        self.pool_limit = 0
        # Not at once: who was accepted a moment ago has a front only after this turn of the loop.
        # And if nobody else has the sockets, who connected before the signal is still served.
        self.loop.call_later(0.0 if gently else 0.01, self._close_listeners)
        for front in list(self.fronts):
            if gently:
                front.leave()
            else:
                front.drain()
        for node in self._all_nodes():
            idle, node.idle = node.idle, []
            for back in idle:
                back.transport.close()
        self.check_drained()

    def _close_listeners(self) -> None:
        for listener in self.listeners:
            if listener.server is not None:
                listener.server.close()
                listener.server = None
            if self.draining:
                listener.sock.close()  # nobody shall wait in the queue of who does not come back
        self.check_drained()

    @property
    def drained(self) -> bool:
        """Whether no client connection is left, nor can come."""
        return not self.fronts and all(listener.server is None for listener in self.listeners)

    def part(self) -> int:
        """The time is over: end tunnels in order, which takes a moment, and cut the rest. Returns
        how many clients there were."""
        count = self.tally.connections
        for front in list(self.fronts):
            front.part()
        return count

    def check_drained(self) -> None:
        """Tell whoever asked, once nothing is left."""
        if self._on_drained is not None and self.drained:
            callback, self._on_drained = self._on_drained, None
            callback()

    async def close(self) -> None:
        """Cut what is left and free everything."""
        self.draining = True
        self.pool_limit = 0
        self._close_listeners()
        for task in self._tasks:
            task.cancel()
        for front in list(self.fronts):
            front.cut()
        for back in list(self.backs):
            back.abort()
        await asyncio.sleep(0)  # the loop delivers connection_lost
        self.clock.stop()
        self.poller.close()

    def snapshot(self) -> dict[str, object]:
        """Counters and nodes as plain values for the stats."""
        tally = self.tally
        tally.active_requests = sum(front.active for front in self.fronts)
        snapshot: dict[str, object] = {
            "tally": tally.snapshot(),
            # Several sockets may make up an address.
            "listeners": list(dict.fromkeys(listener.name for listener in self.listeners)),
            "cheap": int(self.cheap),
        }
        if self.subscribed is not None:
            snapshot["nodes"] = [node.snapshot() for node in self.static_nodes]
            snapshot["subscriptions"] = self.subscribed.snapshot()
        else:
            snapshot["nodes"] = [node.snapshot() for node in self._all_nodes()]
        return snapshot

    def _all_nodes(self) -> list[Node]:
        if self.mapped:
            return [*self.resolver.nodes(), *self.static_nodes]
        return self.static_nodes

    def flush_soon(self) -> None:
        """There is a packet to send again."""
        self.loop.call_soon(self.send_packets)

    def send_packets(self) -> None:
        """Send the packets of all connections in ``unsent``."""
        unsent, self.unsent = self.unsent, []
        for back in unsent:
            try:
                back.send_packet()
            except OSError as error:  # the poller's: no memory or no watch left
                if back.exchange is not None:
                    back.exchange.shortage(error)

    # --- nodes that announce themselves -----------------------------------------------------------

    @property
    def cheap(self) -> bool:
        """Whether nothing is accepted now, because there is no node."""
        resolver = self.subscribed
        return self.settings.cheap and resolver is not None and not resolver.table.members

    def inherit(self, table: Table, report: Report) -> None:
        """Use this table of subscriptions; ``report`` sends a message to the master."""
        assert self.subscribed is not None
        self.subscribed.inherit(table, report)

    def nodes_changed(self, changes: Sequence[Change]) -> None:
        """The master says what is new in the table."""
        resolver = self.subscribed
        assert resolver is not None
        for change in changes:
            node = resolver.apply(change)
            if node is not None and not _let_go(node):
                self.leaving.append(node)
        if self.settings.cheap and not self.draining and not self.paused:
            if self.cheap:
                self._close_listeners()
            elif any(listener.server is None for listener in self.listeners):
                self._spawn(self._listen())

    def node_failed(self, node: Node, reason: str) -> None:
        """A node that announced itself could not be reached."""
        if self.subscribed is not None:
            self.subscribed.mark(node, reason)

    def node_works(self, node: Node) -> None:
        """A connection to a node was made."""
        if node.dead_until:
            node.works()
            if node.key and self.subscribed is not None:
                self.subscribed.reached(node)

    def is_own(self, node: Node) -> bool:
        """Whether a node that announced itself is this gateway."""
        if not any(self.own.leads_here(family, address) for family, address in node.addresses):
            return False
        self.complain(f"node {node.name} of {node.key} is this router itself")
        return True

    # --- names of nodes ---------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_looking_up(self) -> None:
        while True:
            await asyncio.sleep(self.settings.resolve_interval)
            named = [node for node in self.static_nodes if is_named(node.endpoint)]
            if self.subscribed is not None:
                named += self.subscribed.named
            await self.look_up(named)

    async def look_up(self, nodes: Sequence[Node]) -> None:
        """Find the addresses of nodes that are named by a host name."""
        for node in nodes:
            endpoint = node.endpoint
            try:
                found = await self.loop.getaddrinfo(
                    endpoint.host, endpoint.port, type=socket.SOCK_STREAM
                )
            except (OSError, UnicodeError) as error:  # UnicodeError: a label that no name can have
                # What was found before stays: a name server that is away is not a node that is.
                if not node.addresses:
                    reason = getattr(error, "strerror", None) or "not a host name"
                    self.complain(f"cannot resolve node {node.name}: {reason}")
                continue
            node.addresses = tuple(
                dict.fromkeys((int(entry[0]), cast(Address, entry[4])) for entry in found)
            )
            if node.key and self.is_own(node):
                node.addresses = ()

    def complain(self, text: str) -> None:
        """A line for the main log that clients or nodes can cause: a few a second at the most."""
        self._complaints += 1
        if self._complaints <= _COMPLAINTS:
            self.log(text)

    # --- request log ------------------------------------------------------------------------

    def log_refused(self, front: Connection, failure: Failure) -> None:
        """A request whose head was refused: it has no exchange, but a log line."""
        if self.request_log is None:
            return
        front.exchange.forget()
        self.finished(front, failure, time.monotonic())

    def field_lines(self, front: Connection) -> bytes:
        """The header fields of the request that ``front`` serves, each line with its CRLF."""
        return front.block.raw[2:-2] + front.exchange.extra

    def finished(self, front: Connection, failure: Failure | None, now: float) -> None:
        """Count the time of a request and log its facts."""
        exchange, request = front.exchange, front.request
        started = exchange.started_at or now
        self.tally.seconds += now - started
        if self.request_log is None:
            return
        node, block = exchange.node, front.block
        self.request_log(
            RequestFacts(
                method=request.method if request else b"",
                target=request.target if request else b"",
                protocol=request.protocol if request else b"",
                host=block.host or b"",
                client=front.client,
                client_port=front.client_port,
                fields=self.field_lines(front),
                status=front.status,
                started=time.time() - (now - started),
                connect_micros=_since(started, exchange.connected_at),
                first_byte_micros=_since(started, exchange.first_byte_at),
                total_micros=int((now - started) * 1e6),
                request_body=exchange.request_size,
                response_head=front.head_bytes,
                response_body=max(0, front.sent_bytes),  # less than its head may have been sent
                response_fields=front.fields,
                node=node.name if node is not None else exchange.source,
                attempts=exchange.attempts,
                failure=failure,
                keepalive=front.persist,
                variables=exchange.count_variables(),
                packet=exchange.packet_size,
                modifier1=node.modifier1 if node is not None else 0,
                modifier2=node.modifier2 if node is not None else 0,
            )
        )


def _since(started: float, moment: float) -> int:
    return int((moment - started) * 1e6) if moment else -1
