"""Directories to open files in, and both ways to open them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opening_tools import SECRET, descriptors

from uwgate.files import opening


@pytest.fixture(params=["openat2", "stepwise"])
def openat2(request: pytest.FixtureRequest) -> bool:
    """Both ways to open."""
    if request.param == "openat2" and opening._find_openat2() is None:
        pytest.skip("this kernel has no openat2(2)")
    return bool(request.param == "openat2")


@pytest.fixture
def www(tmp_path: Path) -> Path:
    """A directory with files, beside one with a secret."""
    tmp_path = tmp_path.resolve()
    www, outside = tmp_path / "www", tmp_path / "outside"
    (www / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (www / "index.html").write_bytes(b"index")
    (www / "a" / "b" / "c.css").write_bytes(b"style")
    (www / ".hidden").write_bytes(SECRET)
    (www / ".git").mkdir()
    (www / ".git" / "config").write_bytes(SECRET)
    (www / ".well-known" / ".deep").mkdir(parents=True)
    (www / ".well-known" / "token").write_bytes(b"token")
    (www / ".well-known" / ".deep" / "file").write_bytes(SECRET)
    (outside / "file").write_bytes(SECRET)
    (tmp_path / "www-private").mkdir()
    (tmp_path / "www-private" / "file").write_bytes(SECRET)
    return www


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """As many descriptors afterwards as before."""
    before = descriptors()
    yield
    assert descriptors() == before
