"""Groups of nodes by letters, for the tests of balancing."""

from __future__ import annotations

from router_tools import node

from uwgate.config.settings import Endpoint, NodeSettings
from uwgate.router.balance import Node, NodeGroup

CLIENTS = [b"%d.0.%d.%d" % (10 + i % 2, i // 256, i % 256) for i in range(1000)]


def names(group: NodeGroup, count: int, *, held: bool = False, token: bytes = b"") -> str:
    """The letters (A is the first node) of what is picked; ``held``: no request ever ends."""
    order = {each: chr(65 + i) for i, each in enumerate(group.nodes)}
    text = ""
    for _ in range(count):
        picked = group.pick(token)
        assert picked is not None
        picked.active += held
        text += order[picked]
    return text


def nodes_of(*weights: int) -> list[Node]:
    return [node(9000 + i, weight) for i, weight in enumerate(weights)]


def spare(port: int, backup: int = 1) -> Node:
    endpoint = Endpoint("tcp", f"127.0.0.1:{port}", host="127.0.0.1", port=port)
    return Node(NodeSettings(endpoint, "http", backup=backup))
