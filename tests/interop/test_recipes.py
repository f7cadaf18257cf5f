"""uWSGI's recipes for the HTTP router run unchanged, from every form of configuration."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.nodes import RawUwsgiNode, SeenUwsgi
from support.waiting import free_port

from interop.clients import fetch
from interop.observing import stats
from interop.peers import check, uwgate
from interop.recipes import FORMS, NODE, RECIPES, SERVER_ADDRESSES, Pairs, Recipe, as_ini, as_words

SOURCES = [*FORMS, "command line", "standard input"]
# These have everything that the forms write differently: lists, numbers, flags, placeholders.
IN_EVERY_FORM = {"several-nodes", "farm", "full-stack-cgi", "time-limits-and-keepalive"}
CASES = [
    pytest.param(recipe, source, id=f"{recipe.name}-{source}")
    for recipe in RECIPES
    for source in SOURCES
    if recipe.name in IN_EVERY_FORM or source in ("ini", "command line")
]


def with_node(recipe: Recipe) -> Pairs:
    """uWSGI would start the application itself; uwgate wants to be told where it is."""
    return recipe.pairs + ([("http-to", NODE)] if recipe.closed else [])


def own_identity(pairs: Pairs) -> Pairs:
    """Only root may become www-data."""
    names = {
        "uid": pwd.getpwuid(os.getuid()).pw_name,
        "gid": grp.getgrgid(os.getgid()).gr_name,
    }
    return [(key, names.get(key, value)) for key, value in pairs]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_literal_text_is_understood(recipe: Recipe, tmp_path: Path) -> None:
    text = recipe.text
    for key, value in own_identity(recipe.pairs):
        if key in ("uid", "gid"):
            text = "\n".join(
                f"{key} = {value}" if line.startswith(f"{key} =") else line
                for line in text.split("\n")
            )
    if recipe.closed:
        text += f"http-to = {NODE}\n"
    path = tmp_path / "router.ini"
    path.write_text(text)
    done = check([str(path)])
    assert done.returncode == 0, done.stdout + done.stderr


class Farm:
    """Recording nodes and free ports in the place of a recipe's addresses."""

    def __init__(self, pairs: Pairs, stack: ExitStack) -> None:
        self.nodes: dict[str, RawUwsgiNode] = {}
        self.ports: dict[str, str] = {}
        self.pairs: Pairs = []
        for key, value in own_identity(pairs):
            if key in ("http-to", "http-fallback"):
                kind = "unix" if value.startswith("/") else "tcp"
                self.nodes[value] = stack.enter_context(RawUwsgiNode(kind))
                self.pairs.append((key, self.nodes[value].spec))
            elif value in SERVER_ADDRESSES:
                self.ports[value] = f"127.0.0.1:{free_port()}"
                self.pairs.append((key, self.ports[value]))
            else:
                self.pairs.append((key, value))


@contextmanager
def started(source: str, farm: Farm, where: Path) -> Iterator[None]:
    """uwgate with the farm's options from ``source``."""
    stdin = None
    if source == "command line":
        known = [pair for pair in farm.pairs if pair[0] not in ("workdir", "ipaddress")]
        words = as_words(known)
    elif source == "standard input":
        stdin = where / "stdin"
        stdin.write_text(as_ini(farm.pairs))
        words = ["-"]
    else:
        path = where / f"router.{source}"
        path.write_text(FORMS[source](farm.pairs))
        words = [str(path)]
    with uwgate(where, words, *farm.ports.values(), stdin=stdin):
        yield


def seen_requests(farm: Farm) -> list[SeenUwsgi]:
    return [seen for node in farm.nodes.values() for seen in node.seen]  # type: ignore[misc]


def expect_from(pairs: Pairs, farm: Farm) -> None:
    """What the options of a recipe promise, checked from outside."""
    options = dict(pairs)
    listeners = [farm.ports[v] for k, v in pairs if k in ("http", "shared-socket") and v[0] != "="]
    for _ in range(4):
        for address in listeners:
            assert fetch(int(address.rpartition(":")[2]), "/x").status == 200
    primary = [farm.nodes[v] for k, v in pairs if k == "http-to"]
    if "http-processes" not in options:
        counts = [len(node.seen) for node in primary]
        assert max(counts) - min(counts) <= 1, "round robin"
    for seen in seen_requests(farm):
        assert seen.modifier1 == int(options.get("http-modifier1", 0))
        assert seen.modifier2 == int(options.get("http-modifier2", 0))
        if "http-var" in options:
            name, _, value = options["http-var"].partition("=")
            assert seen.var(name.encode()) == value.encode()
    if "http-stats" in options:
        document = stats(farm.ports[options["http-stats"]])
        assert len(document["workers"]) == int(options["http-processes"])
        assert [node["name"] for node in document["static_nodes"]] == [n.spec for n in primary]


@pytest.mark.parametrize(("recipe", "source"), CASES)
def test_recipe_runs(recipe: Recipe, source: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        pairs = with_node(recipe)
        farm = Farm(pairs, stack)
        with started(source, farm, tmp_path):
            expect_from(pairs, farm)
        for node in farm.nodes.values():
            node.check()


def test_section_of_a_file(tmp_path: Path) -> None:
    with RawUwsgiNode() as node:
        port = free_port()
        path = tmp_path / "many.ini"
        path.write_text(
            f"[uwsgi]\nhttp = 127.0.0.1:1\nhttp-to = 127.0.0.1:1\n"
            f"[second]\nhttp = 127.0.0.1:{port}\nhttp-to = {node.spec}\n"
        )
        with uwgate(tmp_path, ["--ini", f"{path}:second"], f"127.0.0.1:{port}"):
            assert fetch(port, "/").status == 200


def test_environment(tmp_path: Path) -> None:
    with RawUwsgiNode() as node:
        port = free_port()
        environ = {"UWSGI_HTTP": f"127.0.0.1:{port}", "UWSGI_HTTP_TO": node.spec}
        with uwgate(tmp_path, [], f"127.0.0.1:{port}", environ=environ):
            assert fetch(port, "/").status == 200


def test_dead_node_of_a_recipe_is_skipped(tmp_path: Path) -> None:
    """Three nodes, one dead: no request fails (uWSGI fails for dead unix sockets)."""
    port = free_port()
    with RawUwsgiNode() as one, RawUwsgiNode("unix") as two:
        path = tmp_path / "router.ini"
        path.write_text(
            as_ini(
                [
                    ("http", f"127.0.0.1:{port}"),
                    ("http-to", one.spec),
                    ("http-to", str(tmp_path / "dead.sock")),
                    ("http-to", two.spec),
                ]
            )
        )
        with uwgate(tmp_path, [str(path)], f"127.0.0.1:{port}"):
            assert [fetch(port, "/").status for _ in range(12)] == [200] * 12
        assert len(one.seen) + len(two.seen) == 12
