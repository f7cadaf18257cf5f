"""Routing keys become nodes, and nothing else: mappers, their limits, and hostile keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from router_tools import node, resting_clock, run

from uwgate.config.settings import HttpSettings, MapperSettings
from uwgate.router.balance import Node
from uwgate.router.clock import Clock
from uwgate.router.resolve import (
    BaseResolver,
    CodeResolver,
    ResolveTimeoutError,
    StaticResolver,
    load_function,
    make_resolver,
    parse_mapped,
    pattern_template,
)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with resting_clock() as clock:
        yield clock


def base(clock: Clock, directory: str = "/run/apps/") -> BaseResolver:
    return BaseResolver(lambda key: directory + key, clock)


# --- static ---------------------------------------------------------------------------------------


def test_static_nodes_serve_every_key(clock: Clock) -> None:
    nodes = [node(1), node(2)]
    resolver = StaticResolver(nodes, "wrr", clock)
    assert [resolver.pick(key, b"", ()) for key in ("a", "b", "/../", "")] == nodes * 2
    assert resolver.pick("a", b"", nodes) is None
    assert resolver.nodes() == nodes


# --- addresses of mappers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "protocol", "kind", "where"),
    [
        ("127.0.0.1:3031", "uwsgi", "tcp", ("127.0.0.1", 3031)),
        ("app:80", "uwsgi", "tcp", ("app", 80)),
        ("[::1]:80", "uwsgi", "tcp", ("::1", 80)),
        (":3031", "uwsgi", "tcp", ("", 3031)),
        ("http://127.0.0.1:1", "http", "tcp", ("127.0.0.1", 1)),
        ("uwsgi://127.0.0.1:65535", "uwsgi", "tcp", ("127.0.0.1", 65535)),
        ("/run/a.sock", "uwsgi", "unix", "/run/a.sock"),
        ("/run/a:80", "uwsgi", "unix", "/run/a:80"),
        ("http:///run/a.sock", "http", "unix", "/run/a.sock"),
        ("a.sock", "uwsgi", "unix", "a.sock"),
        ("@app", "uwsgi", "abstract", "app"),
        ("http://@app", "http", "abstract", "app"),
    ],
)
def test_addresses(text: str, protocol: str, kind: str, where: object) -> None:
    endpoint, spoken = parse_mapped(text)
    assert (spoken, endpoint.kind, endpoint.text) == (protocol, kind, text)
    found = (endpoint.host, endpoint.port) if kind == "tcp" else endpoint.path
    assert found == where


@pytest.mark.parametrize(
    "text", ["h:", "h:0", "h:65536", "h:99999", "h:123456", "h:-1", "h:+1", "h:1_0", "h:٣", "h:8 "]
)
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="the port must be a number from 1 to 65535"):
        parse_mapped(text)


# --- http-use-base --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["example.com", "example.com:8080", "127.0.0.1", "[::1]:80", "a_b~c-d"]
)
def test_a_key_names_a_socket_in_the_base(clock: Clock, key: str) -> None:
    resolver = base(clock)
    found = resolver.pick(key, b"", ())
    assert found is not None
    assert (found.endpoint.kind, found.endpoint.path) == ("unix", "/run/apps/" + key)
    assert found.protocol == "uwsgi"
    assert resolver.pick(key, b"", ()) is found
    assert list(resolver.nodes()) == [found]


@pytest.mark.parametrize(
    "key",
    [
        "", ".", "..", "../x", "a/../b", "a/b", "/etc/passwd", "..a", "a..", "a..b", ".hidden",
        "a\0b",
        "a\nb", "a\n", "a b", "a%2fb", "a\\b", "@app", "é", "a\x7f", "a;b", "a" * 256,
    ],
)  # fmt: skip
def test_keys_that_leave_the_base_find_nothing(clock: Clock, key: str) -> None:
    resolver = base(clock)
    assert resolver.pick(key, b"", ()) is None
    assert list(resolver.nodes()) == []


def test_an_address_that_is_none_finds_nothing(clock: Clock) -> None:
    assert BaseResolver(lambda key: f"10.0.0.1:{key}", clock).pick("web", b"", ()) is None


def test_a_mapped_node_is_spared_for_a_second_after_a_failure(clock: Clock) -> None:
    resolver = base(clock)
    found = resolver.pick("a", b"", ())
    assert found is not None
    assert resolver.pick("a", b"", (found,)) is None
    found.failed(clock, 30.0)
    assert resolver.pick("a", b"", ()) is None
    clock.now += 1.0
    assert resolver.pick("a", b"", ()) is found
    assert resolver.pick("b", b"", ()) not in (found, None)


def test_keys_of_strangers_do_not_fill_the_memory(clock: Clock) -> None:
    resolver = base(clock)
    busy, used = resolver.pick("busy", b"", ()), resolver.pick("used", b"", ())
    assert busy is not None
    busy.active = 1
    for i in range(10_500):
        resolver.pick(f"k{i}", b"", ())
        if not i % 1000:
            assert resolver.pick("used", b"", ()) is used
    known = resolver.nodes()
    assert len(known) == 10_000
    assert {busy, used} <= set(known)
    assert resolver.pick("busy", b"", ()) is busy  # with a request under way: not forgotten
    assert {each.name for each in known}.isdisjoint({"/run/apps/k0", "/run/apps/k1"})


def test_nodes_with_requests_under_way_are_all_kept(clock: Clock) -> None:
    resolver = base(clock)
    for i in range(10_001):
        found = resolver.pick(f"k{i}", b"", ())
        assert found is not None
        found.active = 1
    resolver.pick("last", b"", ())
    names = {each.name for each in resolver.nodes()}
    assert {f"/run/apps/k{i}" for i in range(10_001)} <= names | {"/run/apps/k10000"}
    assert "/run/apps/last" not in names


# --- http-use-pattern -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("/run/%s.sock", "/run/KEY.sock"),
        ("%s", "KEY"),
        ("/run/%s/%s", "/run/KEY/KEY"),
        ("/run/fixed", "/run/fixed"),
        ("100%%/%s", "100%/KEY"),
        ("%%s", "%s"),
        ("%(%s", "%(KEY"),
        ("%d/%s", "/KEY"),
        ("%\n%s", "KEY"),
        ("", ""),
    ],
)
def test_patterns(pattern: str, expanded: str) -> None:
    assert pattern_template(pattern)("KEY") == expanded


def test_a_key_is_not_a_pattern() -> None:
    assert pattern_template("/run/%s")("%s%%") == "/run/%s%%"


# --- http-use-code-string -------------------------------------------------------------------------


class Code:
    """A code mapper around ``function``, and what it logged."""

    def __init__(
        self, clock: Clock, function: Callable[[str], object], budget: float = 5.0
    ) -> None:
        self.logged: list[str] = []
        self.resolver = CodeResolver(function, 9, budget, clock, self.logged.append)

    def pick(self, key: str = "k", tried: tuple[Node, ...] = ()) -> Node | None:
        found = self.resolver.pick(key, b"", tried)
        if found is None or isinstance(found, Node):
            return found
        waiting: Awaitable[Node | None] = found

        async def story() -> Node | None:
            return await waiting

        return run(story)


def _async(function: Callable[[str], object]) -> Callable[[str], object]:
    async def answer(key: str) -> object:
        await asyncio.sleep(0)
        return function(key)

    return answer


def _same(function: Callable[[str], object]) -> Callable[[str], object]:
    return function


both = pytest.mark.parametrize("kind", [_same, _async], ids=["plain", "async"])
Kind = Callable[[Callable[[str], object]], Callable[[str], object]]


@both
@pytest.mark.parametrize(
    ("answer", "name", "modifier1"),
    [
        ("127.0.0.1:3031", "127.0.0.1:3031", 9),
        (b"127.0.0.1:3031", "127.0.0.1:3031", 9),
        ("/run/a.sock,5", "/run/a.sock", 5),
        (b"@app,0", "@app", 0),
        ("http://127.0.0.1:80,255", "http://127.0.0.1:80", 255),
    ],
)
def test_a_function_names_the_node(
    clock: Clock, kind: Kind, answer: object, name: str, modifier1: int
) -> None:
    asked: list[str] = []

    def function(key: str) -> object:
        asked.append(key)
        return answer

    code = Code(clock, kind(function))
    found = code.pick("example.com")
    assert found is not None
    assert (found.name, found.modifier1, asked) == (name, modifier1, ["example.com"])
    assert code.pick() is found
    assert list(code.resolver.nodes()) == [found]
    assert code.pick(tried=(found,)) is None
    assert code.logged == []


@both
@pytest.mark.parametrize("answer", [None, "", b""])
def test_a_function_knows_no_node(clock: Clock, kind: Kind, answer: object) -> None:
    code = Code(clock, kind(lambda key: answer))
    assert code.pick() is None
    assert code.logged == []


@both
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (7, "TypeError: the function returned int, not an address"),
        (["127.0.0.1:80"], "TypeError: the function returned list, not an address"),
        ("127.0.0.1:x", "ValueError: '127.0.0.1:x': the port must be a number from 1 to 65535"),
        ("/a,256", "ValueError: '/a,256': the modifier must be a number from 0 to 255"),
        ("/a,x", "ValueError: '/a,x': the modifier must be a number from 0 to 255"),
        ("/a,-1", "ValueError: '/a,-1': the modifier must be a number from 0 to 255"),
        ("/a,٣", "ValueError: '/a,٣': the modifier must be a number from 0 to 255"),
        (b"/\xff", "UnicodeDecodeError: "),
    ],
)
def test_a_function_answers_nonsense(
    clock: Clock, kind: Kind, answer: object, complaint: str
) -> None:
    code = Code(clock, kind(lambda key: answer))
    assert code.pick() is None
    (line,) = code.logged
    assert line.startswith("http-use-code-string: " + complaint)


@both
def test_a_function_raises(clock: Clock, kind: Kind) -> None:
    def function(key: str) -> object:
        raise KeyError(key)

    code = Code(clock, kind(function))
    assert code.pick("gone") is None
    assert code.logged == ["http-use-code-string: KeyError: 'gone'"]


def test_a_function_takes_too_long(clock: Clock) -> None:
    cancelled: list[str] = []

    async def function(key: str) -> object:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(key)
            raise
        return None

    code = Code(clock, function, budget=0.02)
    with pytest.raises(ResolveTimeoutError):
        code.pick("slow")
    assert cancelled == ["slow"]
    assert code.logged == []


def test_a_function_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "map.py"
    path.write_text("def by_name(key):\n    return '/run/' + key\n\nNUMBER = 7\n")
    assert load_function(str(path), "by_name")("a") == "/run/a"
    for name in ("other", "NUMBER"):
        with pytest.raises(ValueError, match=f"map.py: no function named '{name}'"):
            load_function(str(path), name)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.txt", "", "not a Python file"),
        ("a.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("a.py", "def (", "SyntaxError: "),
        ("a.py", "import no_such_module_anywhere", "ModuleNotFoundError: "),
        ("a.py", None, "FileNotFoundError: "),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, text: str | None, complaint: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_function(str(path), "f")
    assert str(caught.value).startswith(f"{path}: ")


# --- what the settings ask for --------------------------------------------------------------------


def test_each_mapper_of_the_settings(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "map.py"
    path.write_text("def f(key):\n    return '/code/' + key\n")
    static = [node(1)]

    def name_of(mapper: MapperSettings) -> str:
        settings = HttpSettings(listeners=(), mapper=mapper)
        found = make_resolver(settings, static, clock, print).pick("k", b"", ())
        assert isinstance(found, Node)
        return found.name

    assert name_of(MapperSettings()) == "127.0.0.1:1"
    assert name_of(MapperSettings("base", "/base/")) == "/base/k"
    assert name_of(MapperSettings("pattern", "/p/%s.sock")) == "/p/k.sock"
    assert name_of(MapperSettings("code", str(path), "f")) == "/code/k"
    with pytest.raises(ValueError, match="no function named 'g'"):
        name_of(MapperSettings("code", str(path), "g"))
