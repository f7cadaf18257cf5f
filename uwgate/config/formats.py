"""INI, YAML, JSON and XML texts -> ordered entries. Nothing here touches files or options.

Every parser takes the text and the wanted sections and returns ``(entries, found)``: ``found`` is
False where none of the sections exists. Syntax errors raise ``FormatError`` with a line number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

import yaml
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser


@dataclass(frozen=True, slots=True)
class Entry:
    """``key = value`` with the line it starts on (from 1)."""

    key: str
    value: str
    line: int


class FormatError(ValueError):
    """The text is not what its format asks for; ``line`` from 1, or 0 if unknown."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


Parsed = tuple[list[Entry], bool]
_BLANK = " \t\r"


def parse_ini(text: str, sections: Sequence[str]) -> Parsed:
    """uWSGI's INI: ``key = value``, whole-line comments with ``;`` or ``#``, no quotes.

    Sections of the same name are merged, other sections and lines before the first are passed
    over, a line without ``=`` is a key with an empty value. (uWSGI core/ini.c; it also drops the
    last character of a section line unseen, we want it to be ``]``.)
    """
    entries: list[Entry] = []
    found = False
    inside = False
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(_BLANK)
        if not line or line[0] in ";#":
            continue
        if line[0] == "[":
            if line[-1] != "]":
                raise FormatError(number, f"the section {line!r} has no closing ']'")
            inside = line[1:-1] in sections
            found = found or inside
        elif inside:
            key, _, value = line.partition("=")
            key = key.strip(_BLANK)
            if not key:
                raise FormatError(number, f"{line!r} has no key before '='")
            entries.append(Entry(key, value.strip(_BLANK), number))
    return entries, found


def _yaml_scalar(node: yaml.Node, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        line = node.start_mark.line + 1
        raise FormatError(line, f"{key}: expected a value or a list of values")
    if node.tag == "tag:yaml.org,2002:null" and node.value in ("~", "null", "Null", "NULL"):
        return ""
    return str(node.value)


def _yaml_entries(section: yaml.Node, name: str) -> list[Entry]:
    if isinstance(section, yaml.ScalarNode) and not section.value:
        return []
    if not isinstance(section, yaml.MappingNode):
        raise FormatError(section.start_mark.line + 1, f"{name}: expected 'key: value' lines")
    entries = []
    for key_node, value_node in section.value:
        key = _yaml_scalar(key_node, name)
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise FormatError(key_node.start_mark.line + 1, "merge keys (<<) are not supported")
        many = isinstance(value_node, yaml.SequenceNode)
        for node in value_node.value if many else [value_node]:
            at = node.start_mark.line if many else key_node.start_mark.line
            entries.append(Entry(key, _yaml_scalar(node, key), at + 1))
    return entries


def parse_yaml(text: str, sections: Sequence[str]) -> Parsed:
    """A mapping of sections; values are taken as they are written, lists are repeats.

    The node tree of the safe loader is read, not its objects: YAML would turn ``0660`` into 432
    and ``1:30`` into 90.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = error.problem or error.context or "not YAML"
        raise FormatError(mark.line + 1 if mark else 0, f"not valid YAML: {why}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise FormatError(0, f"not valid YAML: {why}") from None
    if root is None:
        return [], False
    if not isinstance(root, yaml.MappingNode):
        raise FormatError(root.start_mark.line + 1, f"expected a section such as '{sections[0]}:'")
    entries: list[Entry] = []
    found = False
    for key_node, value_node in root.value:
        name = _yaml_scalar(key_node, "section")
        if name in sections:
            found = True
            entries += _yaml_entries(value_node, name)
    return entries, found


_JSON_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')


class _Pairs(list[tuple[str, object]]):
    """A JSON object as it stands: doubled keys stay visible."""


def _json_lines(text: str, section: str) -> dict[str, int]:
    """Key -> line of its first appearance inside the section; the json module tells no lines."""
    lines: dict[str, int] = {}
    inside = False
    for match in _JSON_KEY.finditer(text):
        key = json.loads(f'"{match[1]}"', strict=False)
        inside = inside or key == section
        if inside and key not in lines:
            lines[key] = text.count("\n", 0, match.start()) + 1
    return lines


def _json_scalar(value: object, key: str, line: int) -> str:
    if value is True:
        return "1"
    if value is False or value is None:
        return "0"  # uWSGI; null too
    if isinstance(value, str):
        return value
    raise FormatError(line, f"{key}: expected a value or a list of values")


def _not_a_number(text: str) -> str:
    raise ValueError(f"{text} is not a JSON value")


def parse_json(text: str, sections: Sequence[str]) -> Parsed:
    """An object of sections; arrays are repeats; true is 1, false and null are 0 (uWSGI)."""
    try:
        root = json.loads(
            text,
            object_pairs_hook=_Pairs,
            parse_int=str,
            parse_float=str,
            parse_constant=_not_a_number,
        )
    except json.JSONDecodeError as error:
        raise FormatError(error.lineno, f"not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(0, f"not valid JSON: {error}") from None
    if not isinstance(root, _Pairs):
        raise FormatError(1, f'expected an object with the key "{sections[0]}"')
    entries: list[Entry] = []
    found = False
    for name, section in root:
        if name not in sections:
            continue
        found = True
        lines = _json_lines(text, name)
        if not isinstance(section, _Pairs):
            raise FormatError(lines[name], f"{name}: expected an object")
        seen: set[str] = set()
        for key, value in section:
            line = lines.get(key, 0)
            if key in seen:
                raise FormatError(line, f"{key} is given twice; write an array of its values")
            seen.add(key)
            many = value if isinstance(value, list) and not isinstance(value, _Pairs) else [value]
            entries += [Entry(key, _json_scalar(each, key, line), line) for each in many]
    return entries, found


class _LineBuilder(TreeBuilder):
    """A tree whose elements know their line (attribute ``lines``: element -> line)."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Element, int] = {}
        self.where: Callable[[], int] = lambda: 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        element: Element = super().start(tag, attrs)
        self.lines[element] = self.where()
        return element


def _parse_tree(text: str) -> tuple[Element, dict[Element, int]]:
    builder = _LineBuilder()
    parser = DefusedXMLParser(target=builder, forbid_dtd=True)
    builder.where = lambda: int(parser.parser.CurrentLineNumber)
    try:
        parser.feed(text)
        root: Element = parser.close()
    except ParseError as error:
        raise FormatError(error.position[0], f"not valid XML: {error}") from None
    except DefusedXmlException:
        raise FormatError(0, "a document type or entities are not allowed here") from None
    except ValueError as error:  # characters that cannot be encoded
        raise FormatError(0, f"not valid XML: {error}") from None
    return root, builder.lines


def parse_xml(text: str, sections: Sequence[str]) -> Parsed:
    """``<uwsgi>`` (or ``<uwgate>``) as root or below it; each child element is an option.

    ``sections`` other than the usual names are values of the attribute ``id``. An empty element
    is ``1`` (uWSGI).
    """
    root, lines = _parse_tree(text)
    usual = ("uwsgi", "uwgate")
    entries: list[Entry] = []
    found = False
    for element in (root, *root):
        if element.tag not in usual or element.get("id", element.tag) not in sections:
            continue
        found = True
        for child in element:
            if child.tag in usual:
                continue
            if len(child):
                raise FormatError(lines[child], f"<{child.tag}>: expected text, not elements")
            value = (child.text or "").strip(" \t\r\n") or "1"
            entries.append(Entry(child.tag, value, lines[child]))
    return entries, found


PARSERS: dict[str, Callable[[str, Sequence[str]], Parsed]] = {
    "ini": parse_ini,
    "yaml": parse_yaml,
    "json": parse_json,
    "xml": parse_xml,
}
EXTENSIONS = {
    ".ini": "ini",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".js": "json",
    ".xml": "xml",
}
