"""The configurations in the documentation are ones that uwgate takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.furnished import Furnished

from interop.peers import ROOT, check

BLOCK = re.compile(r"(?ms)^```(ini|yaml|json|xml)\n(.*?)^```$")
PAGES = ["recipes.md", "static.md", "subscriptions.md", "tls.md", "websockets.md"]


def blocks(page: str) -> list[tuple[str, str]]:
    """``(format, text)`` of each configuration on a page."""
    return BLOCK.findall((ROOT / "docs" / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_configurations_of_a_page(page: str, tmp_path: Path) -> None:
    found = blocks(page)
    assert found
    code = ROOT / "examples" / "code_router.py"
    furnished = Furnished(tmp_path)
    for number, (kind, text) in enumerate(found):
        path = tmp_path / f"{number}.{kind}"
        text = text.replace("/etc/uwgate/code_router.py", str(code))
        path.write_text(furnished.adapt(text).replace("/etc/uwgate/keys", str(tmp_path)))
        done = check([str(path)])
        assert done.returncode == 0, text + done.stdout + done.stderr
        assert "unknown" not in done.stdout + done.stderr, text + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "docs" / page).read_text()):
        assert (ROOT / "docs" / target).exists(), target
