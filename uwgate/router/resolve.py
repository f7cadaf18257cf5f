"""Routing key -> node. Resolvers: static list, base directory, pattern, code; then the fallback.

A key is the Host value in lower case with its port, or the gateway's host name where a request has
none. Keys are the client's choice: those that become part of a path are checked first.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from uwgate.config.settings import Endpoint, GatewaySettings, NodeSettings
from uwgate.router.balance import Node, NodeGroup
from uwgate.router.clock import Clock

# What host names, addresses and ports are made of; no "/", no NUL, no leading dot, no "..".
_SAFE_KEY = re.compile(r"(?!\.)(?!.*\.\.)[A-Za-z0-9._:\[\]~-]{1,255}")
_MAX_MAPPED = 10_000  # nodes that exist only because a key was asked for


class ResolveTimeoutError(Exception):
    """The code mapper did not answer within its budget."""


Picked = Node | None | Awaitable[Node | None]


class Resolver:
    """Finds a node for a key; ``tried`` are the nodes that this request has failed on.

    ``several``: a key may have more than one node. What is here is true of resolvers that make one
    node of a key.
    """

    __slots__ = ()
    several = False

    def pick(self, key: str, token: bytes, tried: Sequence[Node]) -> Picked:
        """A node, None, or an awaitable of either (only code mappers wait).

        ``token``: what hashing algorithms look at; the client's address, unless ``hash`` wants
        something else.
        """
        raise AssertionError

    def last_resort(self, key: str, tried: Sequence[Node]) -> Node | None:
        """A marked node that may be tried again where no other is left."""
        return None

    def knows(self, key: str) -> bool:
        """Whether there are nodes for this key, alive or not."""
        return False

    def candidates(self, key: str) -> Sequence[Node]:
        """The nodes among which ``pick`` chooses, where there are several."""
        return ()

    def nodes(self) -> Sequence[Node]:
        """Every node known now, for the stats and for name look-ups."""
        raise AssertionError

    def turns(self) -> Callable[[], Node] | None:
        """The bare rotation where the key and marks do not matter; None: ask ``pick``."""
        return None


class StaticResolver(Resolver):
    """``http-to``: the same nodes for every key."""

    __slots__ = ("_group",)
    several = True

    def __init__(self, nodes: Sequence[Node], algo: str, clock: Clock) -> None:
        self._group = NodeGroup(nodes, algo, clock)

    def pick(self, key: str, token: bytes, tried: Sequence[Node]) -> Node | None:
        return self._group.pick(token, tried)

    def last_resort(self, key: str, tried: Sequence[Node]) -> Node | None:
        return self._group.last_resort(tried)

    def knows(self, key: str) -> bool:
        return True

    def candidates(self, key: str) -> Sequence[Node]:
        return self._group.nodes

    def turns(self) -> Callable[[], Node] | None:
        return self._group.turns()

    def nodes(self) -> Sequence[Node]:
        return self._group.nodes


class MappedNodes:
    """Nodes made on demand from an address text, the least recently used forgotten first."""

    __slots__ = ("_clock", "_known")

    def __init__(self, clock: Clock) -> None:
        self._known: OrderedDict[tuple[str, int | None], Node] = OrderedDict()
        self._clock = clock

    def get(
        self, text: str, modifier1: int | None, tried: Sequence[Node], *, unix: bool = False
    ) -> Node | None:
        """The node at ``text`` (uWSGI's connect syntax) unless it is marked or was tried.

        ``unix``: it is the path of a socket, colons or not. Raises ValueError as ``parse_mapped``.
        """
        identity = (text, modifier1)
        node = self._known.get(identity)
        if node is None:
            endpoint, protocol = parse_mapped(text, unix=unix)
            node = Node(NodeSettings(endpoint, protocol, modifier1))
            self._known[identity] = node
            self._trim()
        else:
            self._known.move_to_end(identity)
        if node in tried:
            return None
        now = self._clock.now
        # A mapped name has one node: a mark only spares it from more than one try a second.
        if not node.alive(now) and node.tried_at + 1.0 > now:
            return None
        return node

    def all(self) -> Sequence[Node]:
        return list(self._known.values())

    def _trim(self) -> None:
        if len(self._known) <= _MAX_MAPPED:
            return
        for identity, node in self._known.items():
            if not node.active and not node.idle:
                del self._known[identity]
                return


def parse_mapped(
    text: str, *, unix: bool = False
) -> tuple[Endpoint, Literal["uwsgi", "http"]]:
    """Endpoint and protocol of a mapper's result: ``[http://|uwsgi://]addr``.

    ``host:port`` and ``[v6]:port`` are TCP, ``@name`` an abstract socket, the rest a unix path.
    Raises ValueError for a port that is not a number from 1 to 65535.
    """
    protocol: Literal["uwsgi", "http"] = "uwsgi"
    rest = text
    schemes: tuple[Literal["http", "uwsgi"], ...] = ("http", "uwsgi")
    for scheme in schemes:
        if text.startswith(scheme + "://"):
            protocol, rest = scheme, text[len(scheme) + 3 :]
    if rest.startswith("@"):
        return Endpoint("abstract", text, path=rest[1:]), protocol
    if unix or rest.startswith("/") or ":" not in rest:
        return Endpoint("unix", text, path=rest), protocol
    host, _, port = rest.rpartition(":")
    if re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) is None or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r}: the port must be a number from 1 to 65535")
    return Endpoint("tcp", text, host=host.strip("[]"), port=int(port)), protocol


class BaseResolver(Resolver):
    """``http-use-base``: base + key; ``http-use-pattern``: ``%s`` replaced by the key."""

    __slots__ = ("_mapped", "_template", "_unix")

    def __init__(self, template: Callable[[str], str], clock: Clock) -> None:
        self._template = template
        self._mapped = MappedNodes(clock)
        # The operator decides on the kind of address: a port in a key must not make a path TCP.
        try:
            self._unix = parse_mapped(template("key"))[0].kind == "unix"
        except ValueError:
            self._unix = False

    def pick(self, key: str, token: bytes, tried: Sequence[Node]) -> Node | None:
        if _SAFE_KEY.fullmatch(key) is None:
            return None
        try:
            return self._mapped.get(self._template(key), None, tried, unix=self._unix)
        except ValueError:
            return None

    def nodes(self) -> Sequence[Node]:
        return self._mapped.all()


def pattern_template(pattern: str) -> Callable[[str], str]:
    """uWSGI's pattern: ``%s`` is the key, ``%%`` is ``%``, ``%(`` stays, other ``%x`` vanish."""
    parts = re.split(r"(%.)", pattern, flags=re.DOTALL)
    fixed = {"%%": "%", "%(": "%("}

    def expand(key: str) -> str:
        return "".join(
            key if part == "%s" else fixed.get(part, "") if part[:1] == "%" else part
            for part in parts
        )

    return expand


class CodeResolver(Resolver):
    """``http-use-code-string``: a Python function is called with the key.

    It returns ``addr[,modifier1]`` (str or bytes) or None, directly or from a coroutine, which gets
    ``budget`` seconds. What it raises counts as None and is logged.
    """

    __slots__ = ("_budget", "_function", "_log", "_mapped", "_modifier1")

    def __init__(
        self,
        function: Callable[[str], object],
        modifier1: int,
        budget: float,
        clock: Clock,
        log: Callable[[str], None],
    ) -> None:
        self._function = function
        self._modifier1 = modifier1
        self._budget = budget
        self._mapped = MappedNodes(clock)
        self._log = log

    def pick(self, key: str, token: bytes, tried: Sequence[Node]) -> Picked:
        try:
            result = self._function(key)
            if inspect.isawaitable(result):
                return self._wait(result, tried)
            return self._node(result, tried)
        except Exception as error:
            self._log(f"http-use-code-string: {type(error).__name__}: {error}")
            return None

    def nodes(self) -> Sequence[Node]:
        return self._mapped.all()

    async def _wait(self, result: Awaitable[object], tried: Sequence[Node]) -> Node | None:
        try:
            return self._node(await asyncio.wait_for(result, self._budget), tried)
        except TimeoutError:
            raise ResolveTimeoutError from None
        except Exception as error:
            self._log(f"http-use-code-string: {type(error).__name__}: {error}")
            return None

    def _node(self, result: object, tried: Sequence[Node]) -> Node | None:
        if isinstance(result, bytes):
            result = result.decode("ascii")
        if not result:
            return None
        if not isinstance(result, str):
            raise TypeError(f"the function returned {type(result).__name__}, not an address")
        text, _, modifier = result.partition(",")
        modifier1 = self._modifier1
        if modifier:
            if re.fullmatch(r"[0-9]{1,3}", modifier, re.ASCII) is None or int(modifier) > 255:
                raise ValueError(f"{result!r}: the modifier must be a number from 0 to 255")
            modifier1 = int(modifier)
        return self._mapped.get(text, modifier1, tried)


def load_function(path: str, name: str) -> Callable[[str], object]:
    """The function ``name`` of the Python file ``path``.

    Raises ValueError (unreadable file, failing import, no such callable) with one line to show.
    """
    spec = importlib.util.spec_from_file_location("uwgate_code_mapper", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path}: no function named {name!r}")
    return function  # type: ignore[no-any-return]


def make_resolver(
    settings: GatewaySettings, nodes: Sequence[Node], clock: Clock, log: Callable[[str], None]
) -> Resolver:
    """The resolver that the settings ask for. Raises ValueError as ``load_function`` does."""
    mapper = settings.mapper
    if mapper.kind == "base":
        return BaseResolver(lambda key: mapper.value + key, clock)
    if mapper.kind == "pattern":
        return BaseResolver(pattern_template(mapper.value), clock)
    if mapper.kind == "code":
        function = load_function(mapper.value, mapper.function)
        return CodeResolver(function, mapper.modifier1, mapper.code_timeout, clock, log)
    return StaticResolver(nodes, settings.algo, clock)
