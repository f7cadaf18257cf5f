"""Files for the tests of TLS options."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that the seed documents name, in the current directory. Only their names count."""
    monkeypatch.chdir(tmp_path)
    for name in ("foobar.crt", "foobar.key", "ca.crt", "other.crt", "other.key"):
        (tmp_path / name).write_text(name)
    return tmp_path
