"""House rules that no linter knows: pages that repeat the code, lengths, what files may name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.furnished import Furnished

from uwgate.cli import main
from uwgate.config.settings import HttpSettings
from uwgate.protocols.uwsgi import PacketError, path_info
from uwgate.router.errors import PHRASES, Failure

ROOT = Path(__file__).resolve().parents[2]
ROUTER_PAGE = ROOT / "docs" / "http-router.md"

FILE_LINES = 580  # "about 500"
FUNCTION_LINES = 50

# Split, so that this file does not name them either.
MACHINE_NAMES = re.compile(
    "/wo" r"rk/|/ro" r"ot/|/tmp" r"/t/|/opt/py" r"pi|py" r"pi\.org|python" r"hosted|"
    "mirr" r"ors?\.|artif" r"actory|extra-ind" r"ex-url",
)

_MADE = {"build", "dist", "results", "htmlcov"}


def texts(*patterns: str) -> Iterator[Path]:
    """Files of the repository that match; nothing hidden (except .ci), nothing that a tool made."""
    for pattern in patterns:
        for path in sorted(ROOT.rglob(pattern)):
            parts = path.relative_to(ROOT).parts
            hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
            made = _MADE.intersection(parts) or any(part.endswith(".egg-info") for part in parts)
            if path.is_file() and not hidden and not made:
                yield path


def error_table() -> str:
    """The table of docs/http-router.md, as uwgate/router/errors.py has it."""
    rows = ["| Status | Word | Meaning |", "|---|---|---|"]
    for failure in Failure:
        status = f"{failure.status} {PHRASES[failure.status]}" if failure.status else "–"
        rows.append(f"| {status} | `{failure.word}` | {failure.text} |")
    return "\n".join(rows)


def test_every_status_has_a_phrase_and_every_word_is_its_own() -> None:
    assert {failure.status for failure in Failure} - {0} <= set(PHRASES)
    words = [failure.word for failure in Failure]
    assert len(set(words)) == len(words)


def test_error_table_is_current() -> None:
    text = ROUTER_PAGE.read_text()
    found = re.search(r"<!-- errors: [^\n]*-->\n(.*?)\n?<!-- /errors -->", text, re.DOTALL)
    assert found is not None
    assert found[1] == error_table(), f"put this between the marks:\n{error_table()}"


def test_path_info_table_is_true() -> None:
    section = ROUTER_PAGE.read_text().partition("| Target | PATH_INFO |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\S+)` \| (?:`(\S+)`|(empty)|(400)) \|", section, re.MULTILINE)
    assert len(rows) == section.count("\n") - 1
    for target, path, _empty, refused in rows:
        if refused:
            with pytest.raises(PacketError):
                path_info(target.encode())
        else:
            assert path_info(target.encode()) == path.encode(), target


def test_defaults_in_the_router_page_are_true() -> None:
    """The numbers that the page repeats in its tables of limits."""
    text, settings = ROUTER_PAGE.read_text(), HttpSettings(())
    numbers = {
        "http-timeout": settings.timeout,
        "http-body-min-rate": settings.body_min_rate,
        "http-node-keepalive-timeout": settings.node_keepalive_timeout,
        "http-drain-timeout": settings.drain_timeout,
        "http-max-head": settings.max_head,
        "http-max-headers": settings.max_headers,
    }
    for name, number in numbers.items():
        rows = re.findall(rf"^\| [^|]+ \| `{name}` \| ([0-9]+)", text, re.MULTILINE)
        assert rows, name
        assert {int(row) for row in rows} == {int(number)}, name


@pytest.mark.parametrize("path", list(texts("*.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{path.name}: {target}"


@pytest.mark.parametrize("path", [ROOT / "README.md", ROUTER_PAGE], ids=lambda path: path.name)
def test_configurations_of_a_page_are_taken(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text()
    (function,) = re.findall(r"(?ms)^```python\n(.*?)^```$", text) or ["def node_of(key): ..."]
    (tmp_path / "router.py").write_text(function)
    (tmp_path / "502.html").write_text("away")
    furnished = Furnished(tmp_path)
    blocks = re.findall(r"(?ms)^```ini\n(.*?)^```$", text)
    assert blocks
    for number, block in enumerate(blocks):
        block = furnished.adapt(block).replace("router.py", str(tmp_path / "router.py"))
        block = block.replace("/srv/errors", str(tmp_path)).replace("www-data", "root")
        if not block.startswith("["):
            block = "[uwsgi]\nhttp = :8080\n" + block
        if not re.search("http-to|http-use|subscription-server", block):
            block += "http-to = /run/app.sock\n"
        file = tmp_path / f"{number}.ini"
        file.write_text(block)
        code = main(["--check", str(file)])
        output = capsys.readouterr()
        assert (code, output.err) == (0, ""), block


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not {page for page in pages if f"]({page})" not in index}


def test_readme_says_the_essential_in_ten_lines() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:10])
    for needed in ("HTTP router", "uWSGI", "make demo", "make test"):
        assert needed in first


def test_no_file_names_a_machine_or_a_registry() -> None:
    named = []
    for path in texts("*.py", "*.md", "*.toml", "*.ini", "*.yaml", "*.xml", "*.json", "Makefile"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if MACHINE_NAMES.search(line):
                named.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not named


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): length
        for path in texts("*.py")
        if (length := len(path.read_text().splitlines())) > FILE_LINES
    }
    assert not long


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement behind the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    long = {}
    for path in texts("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = _code_lines(node)
                if lines > FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert not long


def test_there_is_no_unfinished_work() -> None:
    marks = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found
