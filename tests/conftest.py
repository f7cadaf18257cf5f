"""Fixtures that every test room may use."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from support.nodes import RawHttpNode, RawUwsgiNode
from support.uwgate import Gateway, StartGateway, running
from support.zygote import measure_little

_CI = bool(os.environ.get("CI"))
_SHARE = 4  # of the examples that a test has by itself
_FEWEST = 10

if _CI:  # fewer than hypothesis usually makes: there is an end to CI's time
    settings.register_profile("quick", settings.get_profile("ci"), max_examples=20)
    settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The same for those that say how many they want."""
    seen = set()
    for item in items:
        test = getattr(item, "obj", None)
        wanted = getattr(test, "_hypothesis_internal_use_settings", None)
        if _CI and wanted is not None and test not in seen:
            seen.add(test)
            if wanted.max_examples > _FEWEST:
                fewer = max(wanted.max_examples // _SHARE, _FEWEST)
                test._hypothesis_internal_use_settings = settings(wanted, max_examples=fewer)


def pytest_collection_finish() -> None:
    """Twelve thousand tests are half a gigabyte, which the collector need not look at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _measured() -> None:
    measure_little()


@pytest.fixture
def http_node() -> Iterator[RawHttpNode]:
    """A recording HTTP node on TCP."""
    with RawHttpNode() as node:
        yield node


@pytest.fixture
def uwsgi_node() -> Iterator[RawUwsgiNode]:
    """A recording uwsgi node on TCP."""
    with RawUwsgiNode() as node:
        yield node


@pytest.fixture
def start_gateway() -> Iterator[StartGateway]:
    """Start gateways with ``start_gateway(*options, listen="")``; all are stopped and checked."""
    with ExitStack() as stack:

        def start(*options: str, listen: str = "", env: dict[str, str] | None = None) -> Gateway:
            return stack.enter_context(running(*options, listen=listen, env=env))

        yield start
